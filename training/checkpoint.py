"""The checkpoint file: one ``.safetensors`` with a JSON header; never a pickle, so opening one runs no code.

The header lies in the metadata of the safetensors file as JSON text under :data:`METADATA_KEY`. This module
knows the container only: which keys of the header matter to whom is the business of the room named in it.

A checkpoint may also be a folder of small files, FOLDER/weights-00001-of-00003.safetensors and so on, opened by the
folder or by its first file (:func:`write_shards`). The first one carries the whole header, and in it
``"shards": {"files": [names in order], "digest": …}``; the others have format ``tesseral-shard`` and the same digest,
so that files of two checkpoints are never mixed. Every tensor lies whole in one file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Header = dict[str, Any]
Tensors = dict[str, "Tensor"]
Upgrade = Callable[[Header, Tensors], tuple[Header, Tensors]]

MODEL_FORMAT = "tesseral"
STATE_FORMAT = "tesseral-state"
SHARD_FORMAT = "tesseral-shard"
SHARD_PATTERN = "*-?????-of-?????.safetensors"
METADATA_KEY = "tesseral"

UPGRADES: list[Upgrade] = []
"""``UPGRADES[k]`` turns version ``k + 1`` into ``k + 2``: ``(header, tensors) -> (header, tensors)``.

The new header must not depend on the tensors: :func:`read_header` passes an empty mapping. Every function
added here comes with a stored old file in the tests that it opens.
"""

FORMAT_VERSION = 1 + len(UPGRADES)

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written, with the path, the reason and the mend in its text."""


def write_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    force: bool = False,
) -> Path:
    """Write tensors and header to one file, atomically: a reader sees the old file or the whole new one.

    Args:
        path: the file to write; its folder is made when absent.
        tensors: any shapes and dtypes; copied to the CPU.
        header: what JSON can hold (NumPy scalars and paths are converted). ``format`` and
            ``format_version`` are filled in when absent.
        force: replace an existing file.

    Returns:
        The path written.

    Raises:
        CheckpointError: the file exists and ``force`` is False, or the folder cannot be written.
        ValueError: the header holds something that JSON cannot (NaN and infinities included).
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists already; choose another name or allow overwriting with --force")
    full_header = {"format": MODEL_FORMAT, "format_version": FORMAT_VERSION, **header}
    try:
        text = json.dumps(full_header, allow_nan=False, default=_to_json)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the header of {path} cannot be written as JSON: {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_independent(tensors), temporary, metadata={METADATA_KEY: text})
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_shards(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    max_mb: float = 16.0,
    half: bool = True,
    force: bool = False,
) -> Path:
    """Write a checkpoint as a folder of files of at most `max_mb` MB (10⁶ bytes); see the module's text.

    Args:
        folder: the folder to write; the files appear in it together.
        tensors, header: as for :func:`write_checkpoint`.
        half: store matrices (two or more axes) of float32 as bfloat16; vectors stay as they are. A reader gets them
            as stored: a room puts them into a model of the header's ``dtype``.
        force: replace an existing folder of shards.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder exists, holds other files, or one tensor alone needs more than `max_mb`.
    """
    folder = Path(folder)
    if folder.exists() and not force:
        raise CheckpointError(f"{folder} exists already; choose another name or allow overwriting with --force")
    if folder.exists() and not (folder.is_dir() and set(folder.iterdir()) == set(folder.glob(SHARD_PATTERN))):
        raise CheckpointError(f"{folder} holds other files than shards of a checkpoint; choose another name")
    stored = {name: _halved(t) if half else t.detach().cpu() for name, t in tensors.items()}
    digest = _digest(stored)
    full = {"format": MODEL_FORMAT, "format_version": FORMAT_VERSION, **header}
    text = json.dumps(full, default=_to_json)
    first = len(json.dumps(text)) + 1000  # safetensors keeps the text as JSON once more, its quotes escaped
    parts = _packed(stored, int(1e6 * max_mb), first)
    names = [f"weights-{k:05}-of-{len(parts):05}.safetensors" for k in range(1, len(parts) + 1)]
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, part in zip(names, parts, strict=True):
            facts = {"files": names, "digest": digest}
            of_part = {**full, "shards": facts} if name == names[0] else {"format": SHARD_FORMAT, **facts}
            write_checkpoint(temporary / name, part, of_part, force=True)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds the files of :func:`write_shards`."""
    return any(Path(path).glob(SHARD_PATTERN))


def read_header(path: str | os.PathLike[str], *, expect: str = MODEL_FORMAT) -> Header:
    """Return the header alone, upgraded to the present format; loads no tensor and not even torch.

    Raises:
        CheckpointError: absent, truncated, pickled, foreign, or written by a newer version.
    """
    return _read(path, expect, "numpy")[0]


def read_checkpoint(path: str | os.PathLike[str], *, expect: str = MODEL_FORMAT) -> tuple[Header, Tensors]:
    """Return ``(header, tensors)``, upgraded to the present format; tensors on the CPU, dtypes as stored.

    Raises:
        CheckpointError: absent, truncated, pickled, foreign, or written by a newer version.
    """
    return _read(path, expect, "pt")


def _read(path: str | os.PathLike[str], expect: str, framework: str) -> tuple[Header, Tensors]:
    path = _first_file(Path(path))
    header, tensors = _read_file(path, expect, framework)
    shards = header.pop("shards", {"files": []})
    for name in shards["files"][1:] if framework == "pt" else []:
        facts, more = _read_file(path.with_name(name), SHARD_FORMAT, framework)
        if facts["digest"] != shards["digest"]:
            raise CheckpointError(f"{path.with_name(name)} belongs to another checkpoint than {path.name}")
        tensors.update(more)
    for upgrade in UPGRADES[header["format_version"] - 1 :]:
        header, tensors = upgrade(header, tensors)
    return {**header, "format_version": FORMAT_VERSION}, tensors


def _read_file(path: Path, expect: str, framework: str) -> tuple[Header, Tensors]:
    from safetensors import SafetensorError, safe_open

    _refuse_what_is_no_safetensors(path)
    try:
        with safe_open(path, framework=framework) as file:
            header = _parse_header(path, file.metadata() or {}, expect)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if framework == "pt" else {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or no checkpoint ({error}); take a whole copy of the file, or train again"
        ) from error
    return header, tensors


def _first_file(path: Path) -> Path:
    """The path itself, or the first file of a folder of shards."""
    if not is_sharded(path):
        return path
    first = sorted(path.glob("*-00001-of-?????.safetensors"))
    if len(first) != 1:
        raise CheckpointError(f"{path} has {len(first)} first parts (…-00001-of-….safetensors), expected one")
    return first[0]


def _refuse_what_is_no_safetensors(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .safetensors file in it")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if start.startswith(_PICKLE_STARTS):
        raise CheckpointError(
            f"{path} is a pickled PyTorch file; reading it could run foreign code, so it is never opened: "
            "give a .safetensors checkpoint"
        )


def _parse_header(path: Path, metadata: Mapping[str, str], expect: str) -> Header:
    try:
        header = json.loads(metadata[METADATA_KEY])
        kind, version = header["format"], int(header["format_version"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of ours (no header under {METADATA_KEY!r}); "
            "give a file that `tesseral train` wrote"
        ) from None
    if kind != expect:
        raise CheckpointError(f"{path} holds {_name(kind)}, but {_name(expect)} is needed here")
    if not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this installation reads 1 to {FORMAT_VERSION}: upgrade tesseral"
        )
    return header


def _name(kind: object) -> str:
    names = {
        MODEL_FORMAT: "a model",
        STATE_FORMAT: "the state of a training run (for --resume)",
        SHARD_FORMAT: "a later part of a model in several files (give the folder, or its first file)",
    }
    return names.get(str(kind), f"data of the unknown format {kind!r}")


def _independent(tensors: Mapping[str, Tensor]) -> Tensors:
    """CPU copies where needed: safetensors refuses tensors that share memory or are not contiguous."""
    seen: set[int] = set()
    result: Tensors = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _halved(tensor: Tensor) -> Tensor:
    import torch

    plain = tensor.detach().cpu()
    return plain.to(torch.bfloat16) if plain.ndim > 1 and plain.dtype == torch.float32 else plain


def _packed(tensors: Tensors, limit: int, header: int) -> list[Tensors]:
    """Tensors in their order, dealt out to files of at most `limit` bytes; the first also holds `header` bytes."""
    parts: list[Tensors] = [{}]
    used = header
    for name, tensor in tensors.items():
        size = tensor.nbytes + len(name) + 200  # its entry in the file's table
        if used + size > limit and parts[-1]:
            parts.append({})
            used = 1000 + 60 * len(tensors)  # names of the files, of which there are at most as many
        if used + size > limit:
            raise CheckpointError(
                f"the tensor {name} needs {size / 1e6:.2f} MB in one file; allow more than {limit / 1e6:g} MB"
            )
        parts[-1][name] = tensor
        used += size
    return parts


def _digest(tensors: Tensors) -> str:
    import torch

    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _to_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not data that JSON knows: {value!r}")


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
