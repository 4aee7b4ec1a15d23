"""Configuration: types, overrides, nearest match, template."""

from dataclasses import dataclass
from typing import Literal

import pytest

from tesseral.potentials.fit import PotentialTraining
from tesseral.training.config import ConfigError, from_dict, load_config, option, template, to_dict, to_yaml


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.1, "a rate")
    steps: int = option(5, "steps")

    def __post_init__(self):
        if self.rate < 0:
            raise ConfigError(f"rate must be positive, got {self.rate}")


@dataclass(frozen=True)
class Outer:
    name: str = option(text="a name")
    inner: Inner = option(Inner(rate=0.7), "the inner section")
    kind: Literal["a", "b", 3] = option("a", "one of three")
    switch: bool | Literal["auto"] = option("auto", "on, off or auto")
    limit: float | None = option(None, "a limit")
    table: dict[str, float] = option({}, "numbers by name")
    files: str | list[str] = option([], "files")


def make(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(Outer, path, overrides)


def test_values_take_their_types(tmp_path):
    config = make(tmp_path, "name: x\ninner: {rate: 1e-3, steps: 4.0}\ntable: {H: -1}\nlimit: 2\nfiles: [a, b]")
    assert config == Outer("x", Inner(1e-3, 4), limit=2.0, table={"H": -1.0}, files=["a", "b"])
    assert isinstance(config.inner.steps, int)
    assert isinstance(config.limit, float)


def test_overrides_win_and_reach_into_sections(tmp_path):
    config = make(tmp_path, "name: x", "inner.steps=9", "switch=false", "table.O=2.5", "files=one.xyz", "limit=null")
    assert (config.inner.steps, config.switch, config.table, config.files) == (
        9,
        False,
        {"O": 2.5},
        "one.xyz",
    )


def test_a_section_given_in_part_keeps_the_default_of_the_section_not_of_its_class(tmp_path):
    assert make(tmp_path, "name: x\ninner: {steps: 1}").inner == Inner(rate=0.7, steps=1)
    assert make(tmp_path, "name: x", "inner.steps=1").inner == Inner(rate=0.7, steps=1)
    assert load_config(PotentialTraining, None, ["loss.forces.delta=0.02"]).loss.forces.weight == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nkinds: b", r"c\.yaml: unknown key 'kinds'; did you mean 'kind'\?"),
        ("name: x\ninner: {rat: 1}", r"unknown key 'inner\.rat'; did you mean 'rate'\?"),
        ("name: x\ninner: {rate: fast}", r"inner\.rate must be a number, got the text 'fast'"),
        ("name: x\ninner: {steps: 1.5}", r"inner\.steps must be a whole number, got the number 1\.5"),
        ("name: x\ninner: {steps: true}", r"inner\.steps must be a whole number, got the switch True"),
        ("name: x\ninner: 3", r"inner must be a section with keys, got the number 3"),
        ("name: x\nkind: c", r"kind='c' is not one of a, b, 3"),
        ("name: x\nswitch: maybe", r"switch must be true/false or auto, got the text 'maybe'"),
        ("name: x\ntable: {H: yes}", r"table\.H must be a number"),
        ("name: 3", r"name must be a text, got the number 3"),
        ("inner: {rate: 1}", r"the key 'name' is missing \(a name\)"),
        ("name: x\ninner: {rate: -1}", r"c\.yaml: inner\.rate must be positive, got -1"),
        ("name: x\nname: y", r"the key 'name' is given twice"),
        ("name: [x", r"c\.yaml is not valid YAML"),
        ("- a\n- b", r"expected `key: value` lines, got a list"),
        ("name: !!python/object/apply:os.getcwd []", r"not valid YAML"),
    ],
)
def test_mistakes_are_named_with_their_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, text)


def test_bad_overrides_are_named(tmp_path):
    with pytest.raises(ConfigError, match="expected key=value"):
        make(tmp_path, "name: x", "inner.rate")
    with pytest.raises(ConfigError, match="'name' is the text 'x', it has no keys"):
        make(tmp_path, "name: x", "name.first=3")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(Outer, tmp_path / "absent.yaml")


def test_yaml_of_a_configuration_reads_back_equal(tmp_path):
    path = tmp_path / "c.yaml"
    config = load_config(PotentialTraining, None, ["loss.forces.weight={0: 1, 0.5: 20}", "data.train=[a, b]"])
    path.write_text(to_yaml(config))
    assert load_config(PotentialTraining, path) == config
    assert from_dict(PotentialTraining, to_dict(config)) == config


def test_template_holds_every_key_with_help_and_equals_the_defaults(tmp_path):
    path = tmp_path / "template.yaml"
    path.write_text(template(PotentialTraining))
    assert load_config(PotentialTraining, path) == PotentialTraining()
    for line in path.read_text().splitlines():
        assert line.partition("  # ")[2], f"no help in {line!r}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", r"optimizer\.lr must be positive"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas must be two numbers"),
        ("optimizer.name=sgd", r"optimizer\.name='sgd' is not one of adamw, prodigy"),
        ("schedule.warmup=2", r"schedule\.warmup must lie in \[0, 1\]"),
        ("training.epochs=0", r"training\.epochs must be at least 1"),
        ("training.ema=1", r"training\.ema must lie in"),
        ("training.precision=float16", r"training\.precision='float16' is not one of"),
        ("loss.forces.weight={0.5: 1}", r"loss\.forces\.weight: steps must begin at 0"),
        ("loss.energy.delta=0", r"loss\.energy\.delta must be positive"),
        ("data.val=1.5", r"data\.val as a fraction"),
    ],
)
def test_ranges_are_checked(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PotentialTraining, None, [override])
