"""Verdicts with reasons, both stability protocols, distributions and rates, against molecules known by hand."""

import json

import numpy as np
import pytest

from tesseral.datasets.errors import DataError
from tesseral.datasets.structure import Structure
from tesseral.generative.chemistry import judge, largest_fragment, n_fragments
from tesseral.generative.geometry import Distributions, superposed_rmsd
from tesseral.generative.library import library_metrics
from tesseral.generative.metrics import evaluate, memory, total_variations
from tesseral.generative.reference import Reference
from tesseral.generative.strain import mmff, relaxed
from tesseral.generative.vocabulary import Vocabulary


def methane(**change):
    directions = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    values = {"bonds": [[0, k, 1] for k in range(1, 5)], **change}
    return Structure([6, 1, 1, 1, 1], np.vstack([np.zeros((1, 3)), 1.09 * directions]), **values)


def test_real_molecules_pass_everything(small):
    smiles = (*small.SMILES, "c1cc[nH]c1", "CS(=O)(=O)C", "O=S(C)C", "[NH3+]CC(=O)[O-]")
    from rdkit import Chem

    for hydrogens in (True, False):
        kept = smiles if hydrogens else smiles[:4]
        for text, structure in zip(kept, small.structures(kept, hydrogens=hydrogens), strict=True):
            verdict = judge(structure, implicit_hydrogens=not hydrogens)
            assert verdict.valid, (text, verdict.reason)
            assert verdict.complete
            assert verdict.reason == ""
            assert verdict.molecule_stable, text
            assert verdict.smiles == Chem.CanonSmiles(text)


def test_smiles_have_no_hydrogen_that_marks_a_double_bond(small):
    imine = small.structures(("CC=N",), hydrogens=True)[0]
    verdict = judge(imine, implicit_hydrogens=False)
    assert verdict.smiles == "CC=N"


def test_missing_and_excess_bonds_are_told_apart():
    radical = judge(methane(bonds=[[0, k, 1] for k in range(1, 4)]), implicit_hydrogens=False)
    assert radical.reason == "2 fragments"
    assert radical.sanitised
    assert not radical.valid
    excess = judge(methane(bonds=[[0, 1, 2], [0, 2, 1], [0, 3, 1], [0, 4, 1]]), implicit_hydrogens=False)
    assert not excess.sanitised
    assert "valence" in excess.reason.lower()
    assert excess.stable_legacy.tolist() == [False, False, True, True, True]
    methyl = Structure([6, 1, 1, 1], methane().positions[:4], bonds=[[0, k, 1] for k in range(1, 4)])
    verdict = judge(methyl, implicit_hydrogens=False)
    assert verdict.valid
    assert not verdict.complete
    assert verdict.molecule_stable_legacy  # C with valence 3: allowed by the published table only
    assert not verdict.molecule_stable
    assert judge(methyl, implicit_hydrogens=True).complete


def test_aromatic_bonds_count_as_one_in_the_legacy_protocol_only(small):
    benzene = small.structures(("c1ccccc1",), hydrogens=True)[0]
    verdict = judge(benzene, implicit_hydrogens=False)
    assert verdict.molecule_stable_legacy
    assert verdict.molecule_stable
    broken = benzene.copy()
    broken.bonds[np.flatnonzero(broken.bonds[:, 2] == 4)[0], 2] = 1
    verdict = judge(broken, implicit_hydrogens=False)
    assert verdict.molecule_stable_legacy  # published: nothing wrong with it
    assert verdict.valid == verdict.molecule_stable


def test_fragments(small):
    furan, water = small.structures(("c1ccoc1",))[0], Structure([8], [[9.0, 9, 9]], bonds=np.zeros((0, 3)))
    both = Structure(
        np.concatenate([water.numbers, furan.numbers]),
        np.concatenate([water.positions, furan.positions]),
        bonds=np.add(furan.bonds, [1, 1, 0]),
        arrays={"formal_charges": np.zeros(6, dtype=np.int64)},
    )
    assert n_fragments(both) == 2
    rest = largest_fragment(both)
    assert rest.numbers.tolist() == furan.numbers.tolist()
    assert rest.bonds.tolist() == furan.bonds.tolist()
    np.testing.assert_array_equal(rest.positions, furan.positions)
    assert judge(rest, implicit_hydrogens=True).smiles == "c1ccoc1"


def test_distributions_of_methane_and_of_a_chain():
    counts = Distributions.of([methane()]).counts
    assert counts["valence"][6].nonzero()[0].tolist() == [8]  # bins of 0.5 around 0, 0.5, …: 4 is the ninth
    assert counts["bond"][1].sum() == 4
    (place,) = set(counts["bond"][1].nonzero()[0].tolist())
    assert 0.5 + 0.01 * place == pytest.approx(1.09, abs=0.011)
    (place,) = set(counts["angle"][6].nonzero()[0].tolist())
    assert 0.1 * place == pytest.approx(109.4712, abs=0.11)
    assert counts["dihedral"] == {}
    positions = [[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]  # dihedral of 90 degrees
    chain = Structure([8, 6, 6, 8], positions, bonds=[[0, 1, 1], [1, 2, 2], [2, 3, 1]])
    assert Distributions.of([chain]).counts["dihedral"][2].nonzero()[0].tolist() == [900]


def test_wasserstein_distance_is_the_shift():
    first, second = methane(), methane()
    second.positions *= 1.2
    a, b = Distributions.of([first]), Distributions.of([second])
    distances = a.wasserstein(b)
    assert distances["bond"] == pytest.approx(0.2 * 1.09, abs=0.011)
    assert distances["angle"] == pytest.approx(0, abs=0.11)
    assert distances["valence"] == 0
    again = Distributions.from_dict(json.loads(json.dumps(b.to_dict())))
    assert a.wasserstein(again) == distances


def test_strain_of_a_stretched_molecule(small):
    ethanol = small.structures(("CCO",), hydrogens=True)[0]
    minimum = relaxed(ethanol, mmff, implicit_hydrogens=False)
    assert minimum.converged
    again = relaxed(minimum.structure, mmff, implicit_hydrogens=False)
    assert abs(again.drop) < 1e-3
    assert again.rmsd < 1e-2
    stretched = minimum.structure.copy()
    stretched.positions *= 1.05
    strained = relaxed(stretched, mmff, implicit_hydrogens=False)
    assert strained.drop > 5
    assert 0.02 < strained.rmsd < 0.2
    bare = small.structures(("CCO",))[0]
    assert relaxed(bare, mmff, implicit_hydrogens=True).structure.n_atoms == 9
    with pytest.raises(DataError, match="MMFF94"):
        relaxed(small.structures(("C[SeH]",), hydrogens=True)[0], mmff, implicit_hydrogens=False)


def test_rmsd_ignores_place_and_orientation_but_not_handedness():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    assert superposed_rmsd(a, a @ rotation + 3.0) < 1e-7
    assert superposed_rmsd(a, -a) > 0.1


def test_library_numbers():
    alone = library_metrics(["c1ccccc1O"])
    assert alone["diversity"] is None
    assert alone["scaffolds"] == 1
    from rdkit import Chem
    from rdkit.Chem import QED

    two = library_metrics(["c1ccccc1O", "c1ccccc1N"])
    assert two["scaffolds"] == 0.5  # benzene twice
    expected = np.mean([QED.qed(Chem.MolFromSmiles(s)) for s in ("c1ccccc1O", "c1ccccc1N")])
    assert two["qed"] == pytest.approx(expected)
    assert 0.2 < 1 - two["diversity"] < 0.9
    assert two["diversity"] == pytest.approx(two["diversity_2"])  # one pair: mean and root mean square agree
    assert two["sa"] is None or 0.8 < two["sa"] <= 1
    assert two["rule_of_five"] == 1
    assert two["weight"] == pytest.approx((94.11 + 93.13) / 2, abs=0.01)
    assert library_metrics(["CCO", "CCO"])["diversity"] == pytest.approx(0)
    assert library_metrics(["C" * 40])["rule_of_five"] == 0  # logP 15


def test_rates_over_all_that_were_generated(small):
    good = small.structures()
    vocabulary = Vocabulary.from_structures(good)
    bad = good[0].copy()
    bad.bonds = bad.bonds[:1]  # falls apart
    result = evaluate([*good, good[1], bad], vocabulary, reference=Reference.of(good, ["CC#N"]))
    assert result["n_generated"] == 6
    assert result["validity"] == pytest.approx(5 / 6)
    assert result["sanitised"] == 1
    assert result["uniqueness"] == pytest.approx(4 / 5)
    assert result["novelty"] == pytest.approx(3 / 4)
    assert result["failures"] == {"several fragments": 1}
    assert result["wasserstein"]["bond"]["unit"] == "Å"
    assert result["likeness"]["n_reference"] == 1
    assert set(result["stability"]) == {"legacy", "corrected", "learned"}
    assert result["stability"]["learned"]["molecule"] == pytest.approx(5 / 6)
    same = evaluate(good, vocabulary, reference=Reference.of(good))
    assert all(v["value"] == 0 for v in same["wasserstein"].values())
    assert max(same["total_variation"].values()) < 1e-3
    assert json.dumps(result)


def test_total_variation_by_hand(small):
    vocabulary = Vocabulary.from_structures(small.structures(("CC#N",)))  # C, C, N
    only_carbon = Structure([6, 6], np.eye(2, 3), bonds=[[0, 1, 1]])
    found = total_variations([only_carbon], vocabulary)
    assert found["element"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["bond"] == pytest.approx(4 / 3, abs=1e-4)  # one pair, bonded; data: none, single, triple, a third each


def test_memory_counts_both_sets_and_nothing_twice():
    """Of 4 trained molecules 2 are drawn, of 2 kept ones 1 (a third was trained on): ratio 1."""
    trained = ("C", "CC", "CCC", "CO")
    found = memory(["C", "CC", "CN"], trained, ("CN", "CCN", "CC"))
    assert found == {"trained": 0.5, "kept": 0.5, "ratio": 1.0}
    assert memory(["C", "CC", "N"], trained, ("CN",)) == {"trained": 0.5, "kept": 0.0, "ratio": None}
