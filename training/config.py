"""Typed configuration: dataclasses, read from YAML and ``key=value`` overrides; data only, never code paths.

Every field is declared once with :func:`option`: its type, its default and its help text. Reading, checking and
the commented template (:func:`template`) all come from that declaration.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from ..datasets.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A configuration that cannot be used; the text names the file, the key and the mend."""


def option(default: Any = dataclasses.MISSING, text: str = "") -> Any:
    """A dataclass field with a help text; lists and dicts are copied per use."""
    metadata = {"help": text}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(cls: type[T], path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into the dataclass `cls`, after putting the overrides in place.

    Args:
        cls: a dataclass whose fields are numbers, strings, booleans, literals, lists, mappings or dataclasses.
        path: the YAML file; None starts from the defaults.
        overrides: ``section.key=value`` texts, the value in YAML.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key (the nearest known one is named) or wrong type.
    """
    data = {} if path is None else read_yaml(path)
    for text in overrides:
        _override(data, text)
    return from_dict(cls, data, where=str(path or "overrides"))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when it cannot be read, is no mapping or repeats a key."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.load(file, Loader=_loader())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {_describe(data)}")
    return data


def from_dict(
    cls: type[T],
    data: Mapping[str, Any],
    *,
    where: str = "configuration",
    prefix: str = "",
    base: T | None = None,
) -> T:
    """Build the dataclass `cls` from a plain mapping, checking every key and type; see :func:`load_config`.

    Keys that are left out keep the value of `base`, or else the default of their field.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {} if base is None else {name: getattr(base, name) for name in fields}
    for key, value in data.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {prefix + str(key)!r}{_suggest(str(key), fields)}")
        kind, name = hints[key], prefix + key
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping | None):
                raise _wrong(where, name, "a section with keys", value)
            inner = values.get(key, default_of(fields[key]))
            section = typing.cast(type, kind)
            values[key] = from_dict(section, value or {}, where=where, prefix=name + ".", base=inner)
        else:
            values[key] = _convert(kind, value, where, name)
    for name, field in fields.items():
        if name not in values and default_of(field) is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key {prefix + name!r} is missing ({field.metadata.get('help', '')})")
    try:
        return cls(**values)
    except ConfigError as error:  # from a __post_init__ that checks ranges: say where
        raise ConfigError(f"{where}: {prefix}{error}") from None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass field, or `dataclasses.MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested mapping of a configuration, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML text; `load_config` reads it back to an equal object."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, default_flow_style=None)


def template(cls: type, *, base: Any = None, indent: int = 0) -> str:
    """A commented YAML text with every key of `cls`, its default and its help."""
    import yaml

    hints = typing.get_type_hints(cls)
    pad, lines = "  " * indent, []
    for field in dataclasses.fields(cls):
        kind, text = hints[field.name], field.metadata.get("help", "")
        default = default_of(field) if base is None else getattr(base, field.name)
        if dataclasses.is_dataclass(kind):
            section = template(typing.cast(type, kind), base=default, indent=indent + 1)
            lines += [f"{pad}{field.name}:  # {text}", section]
            continue
        shown = yaml.safe_dump(default, default_flow_style=True, allow_unicode=True, width=1000)
        lines.append(f"{pad}{field.name}: {shown.removesuffix(chr(10)).removesuffix(chr(10) + '...')}  # {text}")
    return "\n".join(lines)


def _override(data: dict[str, Any], text: str) -> None:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r}: expected key=value, as in training.epochs=100")
    *sections, last = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if inner is None:
            inner = data[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {text!r}: {section!r} is {_describe(inner)}, it has no keys")
        data = inner
    try:
        data[last] = yaml.load(value, Loader=_loader())
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from error


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the annotated type `kind`, or ConfigError naming the key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(kind, arguments, value, where, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[arguments.index(value)], bool):
            allowed = ", ".join(map(str, arguments))
            raise ConfigError(
                f"{where}: {key}={value!r} is not one of {allowed}{_suggest(str(value), list(map(str, arguments)))}"
            )
        return value
    if origin is list:
        if not isinstance(value, list | tuple):
            raise _wrong(where, key, "a list", value)
        return [_convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, key, "a mapping", value)
        return {
            _convert(arguments[0], k, where, f"{key} (its keys)"): _convert(arguments[1], v, where, f"{key}.{k}")
            for k, v in value.items()
        }
    return _convert_scalar(kind, value, where, key)


def _convert_scalar(kind: Any, value: Any, where: str, key: str) -> Any:
    if kind is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                raise _wrong(where, key, "a number", value) from None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise _wrong(where, key, "a number", value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        names = {int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
        raise _wrong(where, key, names.get(kind, str(kind)), value)
    return value


def _convert_union(kind: Any, members: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    """The first member that accepts the value; a member of exactly the value's type goes first."""
    errors: list[ConfigError] = []
    for member in sorted(members, key=lambda m: (typing.get_origin(m) or m) is not type(value)):
        try:
            return _convert(member, value, where, key)
        except ConfigError as error:
            errors.append(error)
    useful = [e for e, m in zip(errors, members, strict=True) if m is not type(None)]
    raise useful[0] if len(useful) == 1 else _wrong(where, key, _type_name(kind), value)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_type_name(member) for member in typing.get_args(kind))
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true/false", type(None): "null"}
    if kind in names:
        return names[kind]
    origin: Any = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    return {list: "a list", dict: "a mapping"}.get(origin, str(kind))


def _wrong(where: str, key: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{where}: {key} must be {expected}, got {_describe(value)}")


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {dict: "a mapping", list: "a list", str: "the text", bool: "the switch"}
    return f"{kinds.get(type(value), 'the number')} {value!r}"


def _suggest(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _loader() -> Any:
    """A safe YAML loader that refuses a key given twice instead of keeping the last one."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep=deep)

    return Loader
