"""The data doctor: every planted fault is found and named, and sound data sets are left in peace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from tesseral.datasets.doctor import Finding, check, report
from tesseral.datasets.read import open_source, read
from tesseral.datasets.structure import Structure

EV_PER_KCAL, HARTREE, BOHR = 0.0433641, 27.211386, 0.529177
VASP_ORDER = [0, 1, 2, 5, 3, 4]


def labelled(atoms: Atoms, **info) -> Structure:
    """A structure with energy, forces and stress of ASE's EMT."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    labels = {"energy": np.array(atoms.get_potential_energy()), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        labels["stress"] = atoms.get_stress()
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, labels=labels, info=info)


def copper() -> list[Structure]:
    """A rattled 32-atom cell, 40 times, and an elastic set of random strains around a low-symmetry state."""
    cell = bulk("Cu", cubic=True) * (2, 2, 2)
    frames = []
    for seed in range(40):
        atoms = cell.copy()
        atoms.rattle(0.08, seed=seed)
        frames.append(labelled(atoms))
    rng = np.random.default_rng(5)
    for _ in range(16):
        strain = rng.normal(scale=0.02, size=(3, 3)) + np.array([[0.02, 0.03, -0.02], [0, 0, 0.05], [0, 0, -0.01]])
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        frames.append(labelled(atoms))
    return frames


@pytest.fixture(scope="module")
def emt() -> list[Structure]:
    return copper()


def changed(frames, change: Callable[[int, Structure], object]) -> list[Structure]:
    copies = [s.copy() for s in frames]
    for i, s in enumerate(copies):
        change(i, s)
    return copies


def scaled(frames, label: str, factor: float) -> list[Structure]:
    def change(_, s):
        if label in s.labels:
            s.labels[label] = s.labels[label] * factor

    return changed(frames, change)


def shifted(frames, per_atom: float, which: Callable[[int], bool]) -> list[Structure]:
    return changed(frames, lambda i, s: s.labels.update(energy=s.labels["energy"] + per_atom * s.n_atoms * which(i)))


def grave(frames) -> list[Finding]:
    return [finding for finding in check(frames) if finding.level != "note"]


def titles(frames) -> list[str]:
    return [finding.title for finding in grave(frames)]


def the(frames, title: str) -> Finding:
    found = [finding for finding in check(frames) if finding.title == title]
    assert len(found) == 1, report(check(frames))
    return found[0]


# -- sound data

SOUND = [
    "3bpa/train_300K.extxyz.gz",
    "acac/train_600K.extxyz.gz",
    "mlearn/Cu_train.extxyz.gz",
    "mlearn/Li_train.extxyz.gz",
    "mlearn/Ge_train.extxyz.gz",
    "comp6_s66x8/s66x8_wb97x_631gd.extxyz.gz",
    "water/pbe0_ts_train.extxyz.gz",
    "nbmotaw/test.extxyz.gz",
    "rmd17/ethanol.h5::split_01/train",
]


@pytest.mark.parametrize("name", SOUND)
def test_sound_data_are_left_in_peace(shared_data, name):
    file, _, group = name.partition("::")
    path = str(shared_data(file)) + ("::" + group if group else "")
    assert grave(open_source(path)) == []


def test_synthetic_data_are_sound(emt):
    assert grave(emt) == []
    assert report([]) == "No faults found."


# -- forces and energies


@pytest.fixture(scope="module", params=["emt", "3bpa/train_300K.extxyz.gz", "mlearn/Si_train.extxyz.gz"])
def frames(request, emt, shared_data):
    return emt if request.param == "emt" else read(shared_data(request.param))


def test_gradients_in_place_of_forces(frames):
    finding = the(scaled(frames, "forces", -1), "Forces have the wrong sign")
    assert finding.level == "fatal" and "forces=-KEY" in finding.mend


def test_the_published_gradients_of_s66x8(shared_data):
    assert titles(open_source(shared_data("comp6_s66x8/raw_first10.h5"))) == ["Forces have the wrong sign"]


@pytest.mark.parametrize(
    "energy, forces, cause",
    [
        (1 / HARTREE, 1, "energies are in Hartree"),
        (1, BOHR / HARTREE, "forces are in Hartree/bohr"),
        (1 / EV_PER_KCAL, 1, "energies are in kcal/mol"),
        (1000, 1, "energies are in meV"),
    ],
)
def test_units_that_do_not_match(frames, energy, forces, cause):
    spoilt = scaled(scaled(frames, "energy", energy), "forces", forces)
    assert cause in the(spoilt, "Forces and energies do not match").verdict


def test_energies_per_atom(frames):
    spoilt = changed(frames, lambda _, s: s.labels.update(energy=s.labels["energy"] / s.n_atoms))
    finding = the(spoilt, "Forces and energies do not match")
    assert "per atom" in finding.verdict and "multiply" in finding.mend


def test_forces_of_another_frame(frames):
    order = np.random.default_rng(0).permutation(len(frames))

    def change(i, s):
        other = frames[order[i]]
        if other.n_atoms == s.n_atoms:
            s.labels["forces"] = other.labels["forces"]

    assert titles(changed(frames, change)) == ["Forces do not belong to the energies"]


@pytest.mark.parametrize("offset", [0.1, 5.0])
def test_energies_of_two_codes(frames, offset):
    chosen = set(range(0, len(frames), 3))
    finding = the(shifted(frames, offset, lambda i: i in chosen), "Energies of two kinds")
    assert float(finding.verdict.split(" eV/atom")[0].split()[-1]) == pytest.approx(offset, rel=0.05)
    assert finding.frames and set(finding.frames) <= chosen


def test_two_levels_of_theory_in_one_set(shared_data):
    mixed = read([shared_data("water/rpbe_d3_train.extxyz.gz"), shared_data("water/pbe0_ts_train.extxyz.gz")])
    assert the(mixed, "Energies of two kinds").frames == list(range(280))


def test_total_energies_in_hartree_and_kcal_without_forces(shared_data):
    bare = changed(read(shared_data("3bpa/train_300K.extxyz.gz"), index=":20"), lambda _, s: s.labels.pop("forces"))
    assert "in Ha" in the(scaled(bare, "energy", 1 / HARTREE), "Energies are not in eV").verdict
    assert "in kcal/mol" in the(scaled(bare, "energy", 1 / EV_PER_KCAL), "Energies are not in eV").verdict
    assert "below any electronic energy" in the(scaled(bare, "energy", 7.0), "Energies cannot be eV").verdict


def total_energies(formulas, of_iodine: float) -> list[Structure]:
    """Molecules with all-electron energies, only iodine's is given."""
    atom = {1: -13.6, 6: -1030.0, 8: -2043.0, 53: of_iodine}
    rng = np.random.default_rng(0)
    frames = []
    for numbers in formulas:
        positions = np.cumsum(rng.normal([1.2, 0.0, 0.0], 0.1, (len(numbers), 3)), axis=0)
        energy = sum(atom[z] for z in numbers) + rng.normal(scale=0.05)
        frames.append(Structure(numbers, positions, labels={"energy": energy}))
    return frames


def test_pseudopotentials_of_heavy_atoms_are_no_second_kind_of_energy():
    formulas = [[6, 8, 1, 1], [6, 6, 8, 1], [53, 6, 1, 1, 1], [53, 53, 8]] * 8
    frames = total_energies(formulas, of_iodine=-8070.0)  # 25 of 53 electrons, as with def2 bases
    assert "Energies of two kinds" not in titles(frames)
    assert "Energies of two kinds" in titles(shifted(frames, 300.0, lambda i: i % 4 == 1))


def test_a_size_that_looks_like_hartree_is_refuted_by_the_forces(emt):
    lowered = shifted(emt, -1640.0, lambda _: True)  # all-electron copper is -1639 Hartree
    assert "Energies are not in eV" not in [finding.title for finding in check(lowered)]
    bare = changed(lowered, lambda _, s: s.labels.pop("forces"))
    assert the(bare, "Energies are not in eV").verdict.endswith("in Ha.")


def test_a_set_in_kcal_throughout(shared_data):
    frames = read(shared_data("mlearn/Si_train.extxyz.gz"))
    spoilt = scaled(scaled(frames, "energy", 1 / EV_PER_KCAL), "forces", 1 / EV_PER_KCAL)
    assert "kcal/mol" in the(spoilt, "Forces are not in eV/Å").verdict


def test_energy_outliers_and_constant_energies(emt):
    assert the(shifted(emt, 4.0, lambda i: i == 11), "Energy outliers").frames == [11]
    constant = changed(emt, lambda _, s: s.labels.update(energy=np.array(-1.5)))
    assert the(constant, "Constant energies").level == "fatal"


# -- stress


@pytest.fixture(scope="module", params=["emt", "mlearn/Si_train.extxyz.gz"])
def strained(request, emt, shared_data):
    return emt if request.param == "emt" else read(shared_data(request.param))


def test_stress_of_the_wrong_sign(strained):
    assert titles(scaled(strained, "stress", -1)) == ["Stress has the wrong sign"]


@pytest.mark.parametrize("factor, unit", [(160.2177, "GPa"), (1602.177, "kbar")])
def test_stress_in_another_unit(strained, factor, unit):
    spoilt = scaled(strained, "stress", factor)
    assert titles(spoilt) == ["Stress is not in eV/Å³"]
    assert the(spoilt, "Stress is not in eV/Å³").mend.endswith(f"stress={unit}")


def test_stress_in_the_order_of_vasp(strained):
    spoilt = changed(strained, lambda _, s: s.labels.update(stress=s.labels["stress"][VASP_ORDER]))
    finding = the(spoilt, "Stress components are in another order")
    assert "stress_order=xx yy zz xy yz xz" in finding.mend


def test_energies_in_hartree_are_not_blamed_on_the_stress(strained):
    assert titles(scaled(strained, "energy", 1 / HARTREE)) == ["Forces and energies do not match"]


# -- geometry


def test_positions_in_bohr(frames):
    def change(_, s):
        s.positions /= BOHR
        s.cell /= BOHR

    assert titles(changed(frames, change)) == ["Lengths are not in Å"]


def test_positions_in_nanometres(emt):
    def change(_, s):
        s.positions /= 10
        s.cell /= 10

    assert "nm" in the(changed(emt, change), "Lengths are not in Å").verdict


def test_overlapping_atoms_are_named(emt):
    def change(i, s):
        if i == 7:
            s.positions[3] = s.positions[20] + [0.0, 0.0, 0.8]

    finding = the(changed(emt, change), "Overlapping atoms")
    assert finding.frames == [7] and "Cu3" in finding.verdict and "Cu20" in finding.verdict


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda s: s.positions.__setitem__((2, 1), np.nan), "not finite"),
        (lambda s: s.labels["forces"].__setitem__((1, 1), np.nan), "'forces' is NaN"),
        (lambda s: s.labels.update(energy=np.array(np.inf)), "'energy' is NaN or infinite"),
        (lambda s: setattr(s, "cell", s.cell[[1, 0, 2]]), "left-handed"),
        (lambda s: s.cell.__setitem__(2, 0.0), "zero cell"),
        (lambda s: s.numbers.__setitem__(0, 0), "unknown element"),
    ],
)
def test_unusable_frames_are_listed_and_do_not_stop_the_check(emt, change, text):
    finding = the(changed(emt, lambda i, s: change(s) if i in (4, 9) else None), "Unusable frames")
    assert finding.level == "fatal" and finding.frames == [4, 9] and text in finding.verdict


def test_a_cluster_in_a_huge_box_is_noted(emt):
    def change(i, s):
        if i == 5:
            s.cell *= 4.0

    assert the(changed(emt, change), "Very different cells").frames == [5]


# -- copies and labels


def test_exact_copies_with_the_same_and_with_other_labels(emt):
    assert the([*emt, emt[3].copy()], "Duplicates").frames == [3, len(emt)]
    twice = emt + shifted(emt[3:4], 0.02, lambda _: True)
    finding = the(twice, "Contradicting duplicates")
    assert finding.frames == [3, len(emt)] and "20.0 meV/atom" in finding.verdict


def test_near_copies_are_noted(emt):
    rng = np.random.default_rng(0)
    near = changed(emt[:10], lambda _, s: s.positions.__iadd__(rng.uniform(-1e-3, 1e-3, s.positions.shape)))
    assert set(the(emt + near, "Near duplicates").frames) >= {0, len(emt)}


def test_missing_energies_name_the_keys_present(emt):
    def change(_, s):
        s.info["E_total"] = float(s.labels.pop("energy"))

    finding = the(changed(emt, change), "No energies")
    assert finding.level == "fatal" and "E_total" in finding.verdict


def test_labels_that_some_frames_lack(emt):
    some = changed(emt, lambda i, s: s.labels.pop("energy") if i < 5 else s.labels.pop("forces") if i < 8 else None)
    assert the(some, "Missing energy").frames == [0, 1, 2, 3, 4]
    assert the(some, "Missing forces").frames == [5, 6, 7]


def test_charges_that_only_some_frames_state(emt):
    mixed = changed(emt, lambda i, s: setattr(s, "charge", 0.0) if i else None)
    assert the(mixed, "Mixed charge").frames == [0]


def test_force_outliers_zero_forces_and_net_forces(emt):
    def spike(i, s):
        if i == 12:
            s.labels["forces"][5] = [90.0, 0, 0]

    finding = the(changed(emt, spike), "Force outliers")
    assert finding.frames == [12] and "90.0 eV/Å on atom 5 of frame 12" in finding.verdict
    assert the(scaled(emt, "forces", 0.0), "All forces are zero").level == "fatal"

    def drift(_, s):
        s.labels["forces"] += [0.3, 0.0, 0.0]

    assert len(the(changed(emt, drift), "Net force").frames) == len(emt)


def test_reference_energies_are_asked_for_only_when_missing(emt):
    assert "isolated atom of Cu" in the(emt, "No reference energies").verdict
    atom = labelled(Atoms("Cu", positions=[[0, 0, 0]]))
    assert "No reference energies" not in [finding.title for finding in check([*emt, atom])]


def test_report_lists_the_gravest_first_with_frames_and_mend(emt):
    spoilt = shifted(scaled(emt, "forces", -1), 4.0, lambda i: i == 11)
    lines = report(check(spoilt)).splitlines()
    heads = [line for line in lines if line.startswith("[")]
    order = ["fatal", "warning", "note"]
    ranks = [order.index(head[1:].split("]")[0]) for head in heads]
    assert ranks == sorted(ranks) and ranks[0] == 0
    assert any(line.strip() == "frames: 11" for line in lines)
    assert sum(line.strip().startswith("mend: ") for line in lines) == len(heads)


def test_an_empty_and_a_tiny_set_do_not_break_the_check(emt):
    assert check([]) == []
    assert grave(emt[:1]) == []
