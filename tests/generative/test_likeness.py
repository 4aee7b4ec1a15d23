"""Comparison with a reference set by known answers; learned valences; what a reference is made from."""

import json

import numpy as np
import pytest

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write
from tesseral.generative.chemistry import judge
from tesseral.generative.likeness import Likeness
from tesseral.generative.metrics import PROTOCOLS, evaluate
from tesseral.generative.reference import Reference
from tesseral.generative.valences import ValenceTable
from tesseral.generative.vocabulary import Vocabulary

ACIDS = [f"{'C' * n}C(=O)O" for n in range(1, 9)]
RINGS = ["c1ccccc1O", "c1ccccc1N", "c1ccncc1C", "C1CCCCC1O", "c1ccc2ccccc2c1", "c1ccoc1C", "C1CCNC1", "c1ccccc1F"]


def test_a_set_is_like_itself_and_unlike_others():
    likeness = Likeness(ACIDS)
    same, other = likeness.of(ACIDS), likeness.of(RINGS)
    assert same["kl"]["value"] == pytest.approx(1)
    assert len(same["kl"]["parts"]) == 10
    assert same["snn"] == pytest.approx(1)
    assert same["fragments"] == pytest.approx(1)
    assert same["scaffolds"] is None  # no rings
    assert max(same["wasserstein"].values()) == 0
    assert other["kl"]["value"] < 0.5
    assert other["kl"]["parts"]["aromatic_rings"] == pytest.approx(1 / 4)  # two of eight have none, as all acids
    assert other["snn"] < 0.4
    assert other["fragments"] < 0.1
    assert json.dumps(other)


def test_numbers_by_hand():
    likeness = Likeness(["c1ccccc1C", "c1ccccc1CC", "C1CCCCC1"])
    found = likeness.of(["c1ccccc1O"])
    assert found["scaffolds"] == pytest.approx(2 / 5**0.5)  # (1, 0) against (2, 1)
    weights = np.array([92.14, 106.17, 84.16]) - 94.11
    assert found["wasserstein"]["weight"] == pytest.approx(np.abs(weights).mean(), abs=0.01)
    donors = likeness.of(["CC", "CC", "CC", "CO"])["kl"]["parts"]["donors"]
    assert donors == pytest.approx(0.75)  # exp(−ln(1 / 0.75)): all of the reference have none
    with pytest.raises(ValueError, match="reference"):
        Likeness(["not a molecule"])
    with pytest.raises(ValueError, match="no molecules"):
        likeness.of([])


def test_frechet_chemnet_distance():
    pytest.importorskip("fcd_torch", reason="pip install 'tesseral[evaluation]'")
    likeness = Likeness(ACIDS)
    assert likeness.fcd(ACIDS) == pytest.approx(0, abs=1e-3)
    assert likeness.fcd(RINGS) > 5
    assert likeness.fcd(["CCO"]) is None


def test_learned_valences(small):
    data = small.structures(("c1ccccc1", "C[N+](=O)[O-]"), hydrogens=True)
    table = ValenceTable.of(data)
    assert table.counts[6, 0] == {(2, 1): 6, (0, 4): 1}
    assert table.counts[7, 1] == {(0, 4): 1}
    assert ValenceTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert all(table.allows(s).all() for s in data)
    radical = data[1].copy()
    radical.bonds = radical.bonds[:-1]  # without one hydrogen
    assert table.allows(radical).sum() == radical.n_atoms - 2
    unknown = Structure([16, 1, 1], np.eye(3), bonds=[[0, 1, 1], [0, 2, 1]])
    assert table.allows(unknown).tolist() == [False, True, True]


def test_protocols_differ_where_they_should(small):
    """Benzene with one aromatic bond made single: the legacy protocol sees nothing, the others do."""
    (benzene,) = small.structures(("c1ccccc1",), hydrogens=True)
    broken = benzene.copy()
    broken.bonds[np.flatnonzero(broken.bonds[:, 2] == 4)[0], 2] = 1
    vocabulary = Vocabulary.from_structures([benzene])
    found = evaluate([benzene, broken], vocabulary, reference=Reference.of([benzene]))["stability"]
    assert set(found) == set(PROTOCOLS)
    assert all(found[name]["protocol"] == PROTOCOLS[name] for name in found)
    assert found["legacy"]["molecule"] == 1
    assert found["learned"]["molecule"] == 0.5
    assert found["learned"]["atom"] == pytest.approx(22 / 24)
    assert "learned" not in evaluate([benzene], vocabulary)["stability"]


def test_reference_of_files_and_of_a_header(small, tmp_path):
    molecules = small.structures()
    vocabulary = Vocabulary.from_structures(molecules)
    smiles = [judge(s, implicit_hydrogens=True).smiles for s in molecules]
    (tmp_path / "a.smi").write_text("\n".join([*small.SMILES, small.SMILES[0]]))
    plain = Reference.of_file(tmp_path / "a.smi", vocabulary)
    assert sorted(plain.smiles) == sorted(smiles)
    assert plain.distributions is None
    write(tmp_path / "a.sdf", small.structures(hydrogens=True))
    whole = Reference.of_file(tmp_path / "a.sdf", vocabulary)  # its hydrogens are removed, as the model has none
    assert sorted(whole.smiles) == sorted(smiles)
    assert (1, 0) not in whole.valences.counts
    header = json.loads(json.dumps(whole.to_header()))
    again = plain.or_else(Reference.of_header(header))
    assert again.smiles == plain.smiles
    assert again.valences == whole.valences
    assert again.distributions.to_dict() == whole.distributions.to_dict()
    (tmp_path / "b.smi").write_text("nothing\n")
    with pytest.raises(UserError, match="no SMILES"):
        Reference.of_file(tmp_path / "b.smi", vocabulary)
    with pytest.raises(UserError, match="--reference"):
        evaluate(molecules, vocabulary, fcd=True)
