"""Fixed parts: where they may grow, and that they get no more bonds than they have room for."""

import numpy as np
import pytest
import torch

from tesseral.generative.chemistry import core_rmsd
from tesseral.generative.data import embedded, fixed_part
from tesseral.generative.eqgat import Prediction
from tesseral.generative.hydrogens import implicit_hydrogens
from tesseral.generative.layout import Layout
from tesseral.generative.molecules import Molecules
from tesseral.generative.open_valences import OpenValences
from tesseral.generative.vocabulary import Vocabulary


def guided(room, n_atoms, logits, bonds=(0, 1, 2, 3)):
    """Bond logits ``(pairs, 4)`` after the guide."""
    layout = Layout.of(torch.tensor(n_atoms))
    noisy = Molecules(layout, torch.zeros(sum(n_atoms), 1), torch.zeros(0), torch.zeros(sum(n_atoms), 3))
    prediction = Prediction(torch.zeros(sum(n_atoms), 3), (), torch.as_tensor(logits, dtype=torch.float))
    return OpenValences(torch.tensor(room), bonds)(prediction, noisy, 1).bonds


def test_the_likeliest_partner_comes_first_and_the_rest_gets_what_is_left():
    """One fixed atom with room for two, three free ones: a single bond (likeliest), a double, a triple."""
    logits = torch.zeros(6, 4)  # pairs 01 02 12 03 13 23
    logits[0, 3], logits[1, 1], logits[3, 2] = 2.0, 5.0, 3.0
    found = guided([2], [4], logits)
    assert (found[1] > -1).tolist() == [True, True, True, False]  # room for two
    assert (found[3] > -1).tolist() == [True, True, False, False]  # one left
    assert (found[0] > -1).tolist() == [True, False, False, False]  # nothing left
    torch.testing.assert_close(found[[2, 4, 5]], logits[[2, 4, 5]])  # free atoms among themselves


def test_atoms_without_room_get_no_bond_and_molecules_do_not_mix():
    logits = torch.zeros(6, 4)  # two molecules of three atoms, two of them fixed: pairs 01 02 12
    logits[:, 1] = 3.0
    found = guided([0, 1], [3, 3], logits)
    for pair in (1, 4):
        assert (found[pair] > -1).tolist() == [True, False, False, False]
    for pair in (2, 5):
        assert (found[pair] > -1).tolist() == [True, True, False, False]
    torch.testing.assert_close(found[[0, 3]], logits[[0, 3]])  # inside the fixed part


def test_a_complete_molecule_grows_at_its_hydrogens_and_an_incomplete_one_where_they_lack(small):
    whole = embedded("c1ccoc1")
    for hydrogens in (False, True):
        vocabulary = Vocabulary.from_structures(small.structures(hydrogens=hydrogens))
        core = fixed_part(whole, vocabulary)
        assert sorted(core.numbers) == [6, 6, 6, 6, 8]
        assert core.arrays["open_valences"].tolist() == [0 if z == 8 else 1 for z in core.numbers]
    lacking = whole.copy()
    last = lacking.n_atoms - 1
    place = int(lacking.bonds[(lacking.bonds[:, 1] == last), 0][0])
    lacking = type(whole)(whole.numbers[:-1], whole.positions[:-1], bonds=whole.bonds[whole.bonds[:, 1] != last])
    for hydrogens, n in ((False, 5), (True, 8)):
        vocabulary = Vocabulary.from_structures(small.structures(hydrogens=hydrogens))
        core = fixed_part(lacking, vocabulary)
        assert core.n_atoms == n
        assert np.flatnonzero(core.arrays["open_valences"]).tolist() == [place]


@pytest.mark.parametrize("hydrogens", [False, True])
def test_no_drawn_molecule_overfills_the_fixed_part(small, hydrogens):
    model = small.model(small.structures(hydrogens=hydrogens))
    core = fixed_part(embedded("NCC=O"), model.vocabulary)
    room = core.arrays["open_valences"]
    for drawn in model.sample(30, atoms=(3, 6), fixed=core, seed=1):
        assert core_rmsd(drawn, core) < 1e-5
        n = core.n_atoms
        outward = drawn.bonds[(drawn.bonds[:, 0] < n) & (drawn.bonds[:, 1] >= n)]
        single = np.bincount(outward[:, 0], minlength=n)
        assert (single[room == 0] == 0).all()
    assert implicit_hydrogens(core).tolist() == room.tolist()
