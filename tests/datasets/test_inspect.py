"""Summaries of data sets: what is counted, what is printed, what is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import bulk, molecule

from tesseral.datasets.errors import UserError
from tesseral.datasets.inspect import describe, inspect, plot
from tesseral.datasets.store import Store, write_store
from tesseral.datasets.structure import Structure


def mixed() -> list[Structure]:
    rng = np.random.default_rng(0)
    frames = []
    for k in range(20):
        atoms = molecule("H2O") if k % 2 else bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        labels = {"energy": -10.0 - k, "forces": rng.normal(size=(len(atoms), 3))}
        s = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, labels=labels)
        s.info["config_type"] = "liquid" if k % 2 else "solid"
        s.charge = 0.0 if k % 2 else None
        frames.append(s)
    return frames


def test_everything_is_counted():
    summary = inspect(mixed(), cutoff=4.0)
    assert (summary.n_frames, summary.n_atoms) == (20, 70)
    assert summary.elements == {"Cu": 40, "H": 20, "O": 10}
    assert summary.formulas == {"Cu4": 10, "H2O": 10}
    assert summary.periodic == {"TTT": 10, "FFF": 10}
    assert summary.labels == {"energy": 20, "forces": 20}
    assert summary.groups == {"solid": 10, "liquid": 10} and summary.charges == {"0": 10}
    assert (summary.ranges["energy"].min, summary.ranges["energy"].max) == (-29.0, -10.0)
    norms = np.concatenate([np.linalg.norm(s.labels["forces"], axis=1) for s in mixed()])
    assert summary.ranges["forces"].mean == pytest.approx(norms.mean())
    assert summary.ranges["nearest_distance"].min < 1.0 < summary.ranges["nearest_distance"].max
    np.testing.assert_allclose(np.sort(summary.samples["force"]), np.sort(norms))


def test_numbers_are_plain_json_and_text_names_units():
    summary = inspect(mixed())
    plain = json.loads(json.dumps(summary.to_dict()))
    assert plain["statistics"]["elements"] == ["H", "O", "Cu"] and "samples" not in plain
    text = describe(summary)
    for part in (
        "20 frames, 70 atoms (3 to 4 per frame)",
        "eV/Å",
        "groups: solid 10, liquid 10",
        "charges: 0 10",
    ):
        assert part in text


def test_a_store_tells_units_and_provenance(tmp_path):
    write_store(tmp_path / "set.h5", mixed(), provenance={"made": "here"})
    summary = inspect(Store(tmp_path / "set.h5"))
    assert summary.store["provenance"] == {"made": "here"} and summary.store["units"]["energy"] == "eV"
    assert "store: length Å, energy eV, forces eV/Å; sha256:" in describe(summary)


def test_without_labels_only_the_geometry_is_described():
    frames = mixed()
    for frame in frames:
        frame.labels.clear()
    summary = inspect(frames)
    assert summary.statistics is None and "labels: none" in describe(summary)


@pytest.mark.parametrize("suffix, magic", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_histograms_in_three_formats(tmp_path, suffix, magic):
    path = tmp_path / f"histograms.{suffix}"
    plot(inspect(mixed()), path)
    assert path.read_bytes().startswith(magic)


def test_bad_input_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no frames"):
        inspect([])
    with pytest.raises(UserError, match=r"cannot draw a \.bmp file; name it \.png"):
        plot(inspect(mixed()), tmp_path / "histograms.bmp")
    frames = mixed()
    frames[4].labels["energy"] = np.array(np.nan)
    with pytest.raises(UserError, match="frame 4: the label 'energy' is not finite"):
        inspect(frames)
