"""No more bonds than an atom has room for: fixed parts, and all atoms by the valences of the training data."""

import numpy as np
import pytest
import torch

from tesseral.generative import load, save
from tesseral.generative.chemistry import core_rmsd
from tesseral.generative.data import embedded, fixed_part
from tesseral.generative.eqgat import Prediction
from tesseral.generative.hydrogens import implicit_hydrogens
from tesseral.generative.layout import Layout
from tesseral.generative.molecules import Molecules
from tesseral.generative.reference import Reference
from tesseral.generative.sampler import SamplerOptions
from tesseral.generative.valence_guides import LargestValences, OpenValences
from tesseral.generative.valences import ValenceTable
from tesseral.generative.vocabulary import Classes, Vocabulary


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
    assert (found[1] > -1).tolist() == [True, True, False, False]  # a second one would be the other's
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


def bounded(kinds, logits, largest, bonds=(0, 1, 2, 3)):
    """Bond logits after :class:`LargestValences`, for one molecule of the kinds ``[(element, charge)]``."""
    vocabulary = Vocabulary(
        {"element": Classes((6, 7, 8), (0.6, 0.2, 0.2)), "charge": Classes((0, 1), (0.9, 0.1))},
        Classes(bonds, (1 / len(bonds),) * len(bonds)),
        {len(kinds): 1},
    )
    n = len(kinds)
    noisy = Molecules(Layout.of(torch.tensor([n])), torch.zeros(n, 2), torch.zeros(0), torch.zeros(n, 3))
    elements = torch.nn.functional.one_hot(torch.tensor([(6, 7, 8).index(z) for z, _ in kinds]), 3)
    charges = torch.nn.functional.one_hot(torch.tensor([q for _, q in kinds]), 2)
    prediction = Prediction(torch.zeros(n, 3), (9.0 * elements, 9.0 * charges), logits)
    return LargestValences(largest, vocabulary)(prediction, noisy, 1).bonds


def star(orders, certainty, n_classes=4):
    """Logits of the pairs 01 02 12 03 13 23 …, where atom 0 has the bonds `orders` and the others none."""
    n = len(orders) + 1
    logits = torch.zeros(n * (n - 1) // 2, n_classes)
    logits[:, 0] = 12.0
    for k, (order, sure) in enumerate(zip(orders, certainty, strict=True)):
        pair = k * (k + 1) // 2
        logits[pair] = torch.tensor([0.0, 1, 0, 0, 0])[:n_classes]
        logits[pair, order] = sure
    return logits


def test_the_unlikeliest_unit_of_a_bond_too_many_is_refused():
    """Carbon with a single bond, a double one and a less certain double one: the last becomes single."""
    logits = star([1, 2, 2], [9.0, 8.0, 6.0])
    largest = {(6, 0): 4.0}
    found = bounded([(6, 0)] * 4, logits, largest)
    assert [int(found[k].argmax()) for k in (0, 1, 3)] == [1, 2, 1]
    assert found[3, :2].tolist() == logits[3, :2].tolist()
    torch.testing.assert_close(found[[2, 4, 5]], logits[[2, 4, 5]])  # of other atoms
    assert torch.equal(bounded([(6, 0)] * 4, logits, {(6, 0): 5.0}), logits)  # it has room
    assert torch.equal(bounded([(6, 0)] * 4, logits, {(7, 0): 3.0}), logits)  # a kind that is not in the table


def test_a_certain_bond_too_many_goes_entirely_and_kinds_differ():
    logits = star([1, 1, 1, 1], [40.0, 60.0, 50.0, 30.0])  # beyond what probabilities of 32 bits tell apart
    kinds = [(7, 0), *[(6, 0)] * 4]
    largest = {(6, 0): 4.0, (7, 0): 3.0, (7, 1): 4.0}
    found = bounded(kinds, logits, largest)
    assert found[6].argmax() == 0
    assert [int(found[k].argmax()) for k in (0, 1, 3)] == [1, 1, 1]
    assert torch.equal(bounded([(7, 1), *kinds[1:]], logits, largest), logits)  # ammonium may


def test_aromatic_bonds_count_one_and_a_half():
    """Two aromatic bonds and a double one are 5; with a single one they fit."""
    largest = {(6, 0): 4.5}
    for order, fits in ((2, False), (1, True)):
        logits = star([4, 4, order], [9.0, 9.0, 5.0], n_classes=5)
        found = bounded([(6, 0)] * 4, logits, largest, bonds=(0, 1, 2, 3, 4))
        assert torch.equal(found, logits) == fits
        assert found[3].argmax() == 1 or fits


def test_drawn_molecules_stay_within_the_valences_of_their_data_unless_asked(small, tmp_path):
    """An untrained network: many molecules have atoms with too many bonds, few with the bounds."""
    molecules = small.structures()
    path = save(small.model(molecules), tmp_path / "m.safetensors", Reference.of(molecules).to_header())
    model, table = load(path), ValenceTable.of(molecules).largest()
    assert table[7, 1] == 4

    def excess(**options):
        drawn = model.sample(40, atoms=6, seed=1, options=SamplerOptions(**options))
        sums = [(s, np.bincount(s.bonds[:, :2].ravel(), np.repeat(s.bonds[:, 2], 2), s.n_atoms)) for s in drawn]
        kinds = [zip(s.numbers, s.arrays["formal_charges"], total, strict=True) for s, total in sums]
        return np.mean([any(v > table.get((int(z), int(q)), 9) for z, q, v in kind) for kind in kinds])

    free, within = excess(free_valences=True), excess()
    assert free > 0.6
    assert within < 0.6 * free  # independent draws of an untrained network still exceed them together


def test_a_single_atom_has_nothing_to_bound():
    assert bounded([(6, 0)], torch.zeros(0, 4), {(6, 0): 4.0}).shape == (0, 4)
