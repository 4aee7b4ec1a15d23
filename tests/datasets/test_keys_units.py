"""Names and units of labels: guesses that are said, doubts that are refused, conversions against other sources."""

import numpy as np
import pytest

from tesseral.datasets import KeyMap, Structure, Units
from tesseral.datasets.errors import DataError
from tesseral.datasets.keys import Labeller, to_voigt
from tesseral.datasets.units import VOIGT, voigt_permutation

F = np.arange(6.0).reshape(2, 3)


def raw(info=None, arrays=None, cell=None) -> Structure:
    cell = np.diag([2.0, 3.0, 4.0]) if cell is None else cell
    return Structure([1, 8], np.zeros((2, 3)), cell, cell.any(axis=1), info=info or {}, arrays=arrays or {})


@pytest.mark.parametrize(
    ("energy", "forces"),
    [
        ("energy", "forces"),
        ("Energy", "force"),
        ("REF_energy", "REF_forces"),
        ("dft_energy", "dft_forces"),
        ("energy_dft", "forces_dft"),
        ("E_lj", "F_lj"),
        ("xtb_energy", "xtb_forces"),
        ("total_energy", "f"),
    ],
)
def test_usual_names_are_guessed_and_said(energy, forces, caplog):
    frame = Labeller(source="a.xyz")(raw({energy: -1.5, "homo_energy": 3.0, "T": 300}, {forces: F, "vel": F}))
    assert float(frame.labels["energy"]) == -1.5
    np.testing.assert_array_equal(frame.labels["forces"], F)
    assert set(frame.info) == {"homo_energy", "T"}
    assert set(frame.arrays) == {"vel"}
    said = [(energy, "energy"), (forces, "forces")]
    assert all((f"{key!r} as {label}" in caplog.text) == (key != label) for key, label in said)


def test_the_guess_is_said_once(caplog):
    labeller = Labeller(source="a.xyz")
    for _ in range(3):
        labeller(raw({"Energy": 1.0}))
    assert caplog.text.count("'Energy' as energy") == 1
    assert labeller.chosen == {"energy": "Energy"}


@pytest.mark.parametrize("key", ["homo_energy", "energy_per_atom", "energy_cutoff", "nl_energy", "e_hull"])
def test_other_energies_are_not_taken(key):
    assert Labeller()(raw({key: 1.0})).labels == {}


def test_two_different_energies_are_a_question():
    with pytest.raises(
        DataError,
        match=r"b.xyz, frame 4: energy is ambiguous: info 'energy' and info 'REF_energy' .*keys: energy=",
    ):
        Labeller()(raw({"energy": 1.0, "REF_energy": 2.0}), "b.xyz, frame 4")
    same = Labeller()(raw({"energy": 1.0, "REF_energy": 1.0}))
    assert float(same.labels["energy"]) == 1.0
    named = Labeller(KeyMap(energy="REF_energy"))(raw({"energy": 1.0, "REF_energy": 2.0}))
    assert float(named.labels["energy"]) == 2.0
    assert named.info == {"energy": 1.0}


def test_a_calculator_and_another_reference_are_a_question():
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms("H", info={"REF_energy": 2.0})
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    with pytest.raises(DataError, match="energy is ambiguous: the calculator and info 'REF_energy'"):
        Structure.from_ase(atoms)
    assert float(Structure.from_ase(atoms, keys=KeyMap(energy="REF_energy")).labels["energy"]) == 2.0
    atoms.info["REF_energy"] = 1.0
    assert float(Structure.from_ase(atoms).labels["energy"]) == 1.0


def test_the_same_stress_in_two_forms_is_no_question():
    frame = Labeller()(raw({"stress": S, "REF_stress": MATRIX}))
    np.testing.assert_allclose(frame.labels["stress"], S)


def test_equal_in_the_first_frame_is_not_trusted_for_the_second():
    labeller = Labeller()
    labeller(raw({"energy": 1.0, "REF_energy": 1.0}))
    with pytest.raises(DataError, match="ambiguous"):
        labeller(raw({"energy": 1.0, "REF_energy": 2.0}))


def test_names_given_by_the_user():
    keys = KeyMap.parse("energy=u0, forces=-grad, group=kind, charge=q, spin=mult, dipole=mu, stress=")
    frame = raw({"u0": 1, "kind": "bulk", "q": -1, "mult": 2, "mu": [[1.0, 2, 3]], "stress": np.zeros(6)}, {"grad": F})
    Labeller(keys)(frame)
    np.testing.assert_array_equal(frame.labels["forces"], -F)
    np.testing.assert_array_equal(frame.labels["dipole"], [1, 2, 3])
    assert (frame.charge, frame.spin, frame.info["config_type"]) == (-1.0, 2, "bulk")
    assert "stress" not in frame.labels
    for text, message in [("energie=a", "cannot read 'energie=a'"), ("energy", "write LABEL=NAME")]:
        with pytest.raises(DataError, match=message):
            KeyMap.parse(text)


def test_a_named_key_with_a_useless_value():
    with pytest.raises(DataError, match=r"f, frame 0: key 'name' does not hold numbers, it cannot be energy: 'abc'"):
        Labeller(KeyMap(energy="name"))(raw({"name": "abc"}), "f, frame 0")
    with pytest.raises(DataError, match=r"key 'x' has shape \(3,\), forces needs \(2, 3\)"):
        Labeller(KeyMap(forces="x"))(raw({"x": np.zeros(3)}))


def test_spin_zero_means_not_given():
    assert Labeller()(raw({"spin": 0, "charge": 0})).spin is None


S = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # xx yy zz yz xz xy
MATRIX = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])


@pytest.mark.parametrize("stress", [S, MATRIX, MATRIX.ravel(), MATRIX.tolist()])
def test_stress_of_any_form(stress):
    np.testing.assert_allclose(Labeller()(raw({"stress": stress})).labels["stress"], S)


@pytest.mark.parametrize("key", ["virial", "virials", "REF_virial"])
def test_virial_becomes_stress(key):
    frame = Labeller()(raw({key: MATRIX}))
    np.testing.assert_allclose(frame.labels["stress"], -S / 24.0)
    assert key not in frame.info


def test_virial_beside_a_stress_stays():
    frame = Labeller()(raw({"virial": MATRIX, "stress": S}))
    np.testing.assert_allclose(frame.labels["stress"], S)
    assert "virial" in frame.info


def test_virial_without_a_cell():
    with pytest.raises(DataError, match="is a virial, but the frame has no cell"):
        Labeller()(raw({"virial": MATRIX}, cell=np.zeros((3, 3))))


def test_a_stress_that_is_not_symmetric():
    with pytest.raises(DataError, match="is not symmetric"):
        to_voigt(np.arange(9.0))


def test_vasp_stress_in_kbar():
    units = Units.parse("stress=kbar,stress_sign=-1,stress_order=xx yy zz xy yz zx")
    frame = raw()
    frame.labels["stress"] = np.array([10.0, 20, 30, 60, 40, 50])  # kbar, VASP order, compression positive
    units.convert(frame)
    np.testing.assert_allclose(frame.labels["stress"], -S * 10 * 6.241509074460763e-4, rtol=1e-9)


def test_voigt_orders():
    assert voigt_permutation(" ".join(VOIGT)).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="name the six components"):
        voigt_permutation("xx yy zz")


def test_units_agree_with_ase():
    units = pytest.importorskip("ase.units")
    ours = [
        (Units(energy="Ha").factors()["energy"], units.Hartree),
        (Units(energy="kcal/mol").factors()["energy"], units.kcal / units.mol),
        (Units(energy="kJ/mol").factors()["energy"], units.kJ / units.mol),
        (Units(energy="Ry").factors()["energy"], units.Rydberg),
        (Units(length="bohr").factors()["length"], units.Bohr),
        (Units(length="nm").factors()["length"], units.nm),
        (Units(stress="GPa").factors()["stress"], units.GPa),
        (Units(stress="kbar").factors()["stress"], 0.1 * units.GPa),
        (Units(dipole="Debye").factors()["dipole"], units.Debye),
        (Units(energy="Ha", length="bohr").factors()["forces"], units.Hartree / units.Bohr),
        (Units(stress="Ha/bohr^3").factors()["stress"], units.Hartree / units.Bohr**3),
        (Units(forces="meV/Angstrom").factors()["forces"], 1e-3),
    ]
    for mine, theirs in ours:
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_units_convert_everything_that_has_one():
    frame = raw()
    frame.positions[:] = 1.0
    frame.labels = {
        "energy": np.array(2.0),
        "forces": F.copy(),
        "magmoms": np.ones(2),
        "energies": np.ones(2),
    }
    Units(energy="meV", length="nm").convert(frame)
    assert frame.positions[0, 0] == 10.0
    assert frame.cell[1, 1] == 30.0
    assert float(frame.labels["energy"]) == pytest.approx(0.002)
    np.testing.assert_allclose(frame.labels["forces"], F * 1e-4)
    np.testing.assert_allclose(frame.labels["energies"], 1e-3)
    np.testing.assert_array_equal(frame.labels["magmoms"], 1.0)


def test_units_given_win_over_the_format():
    merged = Units(energy="eV").merged(Units(energy="Ha", length="bohr", forces="Ha/bohr"))
    assert merged.factors()["energy"] == 1.0
    assert merged.factors()["forces"] == pytest.approx(1 / 0.529177210544)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy=furlong", "unknown unit 'furlong' of energy; known: eV"),
        ("length=Ha", "unknown unit 'Ha' of length"),
        ("speed=c", "cannot read 'speed=c'"),
        ("stress_sign=2", "stress_sign is '2'"),
        ("forces=eV", "cannot read 'eV' of forces; write ENERGY/LENGTH"),
    ],
)
def test_bad_units(text, message):
    with pytest.raises(DataError, match=message):
        Units.parse(text)
