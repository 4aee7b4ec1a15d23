"""Vocabulary in one pass, batches of all pairs, and the way from structures to classes and back."""

import json

import numpy as np
import pytest
import torch

from tesseral.datasets.errors import DataError
from tesseral.datasets.structure import Structure
from tesseral.generative.layout import Layout
from tesseral.generative.molecules import collate, decode, encode
from tesseral.generative.vocabulary import FLOOR, Vocabulary, published_vocabulary


def molecules():
    """Water, ammonium (charge +1), selenium dioxide: three sizes, a charge, an unusual element."""
    rng = np.random.default_rng(0)
    water = Structure([8, 1, 1], rng.normal(size=(3, 3)), bonds=[[0, 1, 1], [2, 0, 1]])
    ammonium = Structure(
        [7, 1, 1, 1, 1],
        rng.normal(size=(5, 3)),
        bonds=[[0, k, 1] for k in range(1, 5)],
        arrays={"formal_charges": np.array([1, 0, 0, 0, 0])},
    )
    oxide = Structure([34, 8, 8], rng.normal(size=(3, 3)), bonds=[[0, 1, 2], [0, 2, 2]])
    return [water, ammonium, oxide]


def test_one_pass_over_a_generator_counts_everything():
    vocabulary = Vocabulary.from_structures(m for m in molecules())
    assert vocabulary.atoms["element"].values == (1, 7, 8, 34)
    assert vocabulary.atoms["element"].frequencies == pytest.approx((6 / 11, 1 / 11, 3 / 11, 1 / 11))
    assert vocabulary.atoms["charge"].values == (0, 1)
    assert vocabulary.bonds.values == (0, 1, 2)
    assert vocabulary.bonds.frequencies == pytest.approx((8 / 16, 6 / 16, 2 / 16))
    assert vocabulary.sizes == {3: 2, 5: 1}
    assert vocabulary.n_atom_channels == 6
    assert not vocabulary.implicit_hydrogens
    assert vocabulary.summary() == "elements H N O Se; charges 0 +1; bonds single double; 3-5 atoms"


def test_the_header_of_a_checkpoint_holds_it_exactly():
    vocabulary = Vocabulary.from_structures(molecules())
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_extra_variables_come_from_arrays():
    first = molecules()[0]
    with pytest.raises(DataError, match=r"molecule 0.*'ring'"):
        Vocabulary.from_structures([first], extra=("ring",))
    first.arrays["ring"] = np.array([1, 0, 0])
    vocabulary = Vocabulary.from_structures([first], extra=("ring",))
    back = decode(collate([encode(first, vocabulary)]), vocabulary)[0]
    assert back.arrays["ring"].tolist() == [1, 0, 0]


def test_published_classes():
    for extra, channels in ((False, 22), (True, 35)):
        vocabulary = published_vocabulary(extra)
        assert vocabulary.n_atom_channels == channels
        assert len(vocabulary.bonds) == 5
        assert min(vocabulary.atoms["element"].frequencies) > 0.9 * FLOOR
    assert sum(vocabulary.atoms["element"].frequencies) == pytest.approx(1)


def test_sizes_follow_the_histogram():
    vocabulary = Vocabulary.from_structures(molecules())
    drawn = vocabulary.draw_sizes((np.arange(300) + 0.5) / 300)
    assert np.bincount(drawn).tolist() == [0, 0, 0, 200, 0, 100]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bonds": None}, "no bonds are known"),
        ({"bonds": [[0, 1, 0]]}, "dative"),
        ({"bonds": [[0, 1, 1], [1, 0, 1]]}, "bonded twice"),
    ],
)
def test_what_is_no_molecule_is_refused_by_its_place(change, text):
    bad = Structure([8, 1, 1], np.zeros((3, 3)), **change)
    with pytest.raises(DataError, match=f"molecule 3: .*{text}"):
        Vocabulary.from_structures([*molecules(), bad])


def test_unknown_element_names_itself_and_the_place():
    vocabulary = Vocabulary.from_structures(molecules())
    with pytest.raises(DataError, match=r"x\.sdf, frame 4: element 9 .*1, 7, 8, 34"):
        encode(Structure([9, 1], np.zeros((2, 3)), bonds=[[0, 1, 1]]), vocabulary, "x.sdf, frame 4")


def test_round_trip_of_a_batch():
    originals = molecules()
    vocabulary = Vocabulary.from_structures(originals)
    batch = collate([encode(m, vocabulary) for m in originals], torch.float64)
    for original, back in zip(originals, decode(batch, vocabulary), strict=True):
        assert back.numbers.tolist() == original.numbers.tolist()
        np.testing.assert_allclose(back.positions, original.positions - original.positions.mean(0), atol=1e-14)
        expected = sorted((min(i, j), max(i, j), order) for i, j, order in original.bonds.tolist())
        assert sorted(map(tuple, back.bonds.tolist())) == expected
        charges = original.arrays.get("formal_charges", np.zeros(original.n_atoms))
        assert back.arrays["formal_charges"].tolist() == charges.tolist()
        assert back.charge == charges.sum()


def test_layout_holds_every_ordered_pair_once_sorted_by_target():
    layout = Layout.of(torch.tensor([3, 1, 2, 4]))
    source, target = layout.edge_index.tolist()
    first = [0, 0, 0, 3, 4, 4, 6, 6, 6, 6]
    expected = [(j, i) for i in range(10) for j in range(10) if i != j and first[i] == first[j]]
    assert list(zip(source, target, strict=True)) == expected
    assert torch.equal(layout.edge_index[:, layout.reverse], layout.edge_index.flip(0))
    assert layout.local.tolist() == [0, 1, 2, 0, 0, 1, 0, 1, 2, 3]
    assert layout.edge_batch.tolist() == [0] * 6 + [2] * 2 + [3] * 12
    values = torch.arange(len(layout.pairs))
    full = layout.both_ways(values)
    assert torch.equal(full[layout.pairs], values)
    assert torch.equal(full, full[layout.reverse])


def test_single_atoms_have_no_edges():
    layout = Layout.of(torch.tensor([1, 1]))
    assert layout.edge_index.shape == (2, 0)
    assert layout.both_ways(torch.zeros(0, 5)).shape == (0, 5)
