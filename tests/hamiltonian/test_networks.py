"""Hamiltonian networks: symmetries with perturbed weights in float64, smoothness, limits, headers, bad input."""

import pytest
import torch

from tesseral.datasets.errors import UserError
from tesseral.datasets.structure import Structure
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.molecules import Molecules, collate
from tesseral.potentials.hamiltonian.networks import build, from_header

NAMES = ("qhnet", "sphnet")
CASES = [(name, parity) for name in NAMES for parity in ("so3", "o3")]
FIXED = 30  # a step of the last phase of the small schedule
TIGHT = 1e-12


def largest(a, b):
    """Largest difference of two sets of blocks, in units of the largest number where that exceeds 1."""
    pairs = (a.diagonal.detach(), b.diagonal.detach()), (a.lower.detach(), b.lower.detach())
    return max(float((x - y).abs().max()) / max(float(y.abs().max()), 1.0) for x, y in pairs)


def turned(blocks, nets, rotation):
    d = nets.LAYOUT.rotation(rotation)
    return type(blocks)(d @ blocks.diagonal @ d.T, d @ blocks.lower @ d.T)


def train(model, batch, steps):
    """Some optimiser steps towards smaller blocks, as a schedule sees them."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    model.train()
    for step in range(steps):
        model.start_step(step)
        optimiser.zero_grad()
        blocks = model(batch)
        (blocks.diagonal.abs().mean() + blocks.lower.square().mean()).backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize(("name", "parity"), CASES)
@pytest.mark.parametrize("step", [0, FIXED])
def test_turns_and_shifts_with_the_molecule(nets, name, parity, step):
    model, batch, rotation = nets.network(name, parity=parity, step=step), nets.several(), nets.rotation(1)
    found = model(nets.collate([nets.moved(m, rotation, 3.0) for m in [nets.molecule([6, 1, 7, 1, 6, 8, 1])]]))
    expected = turned(model(nets.molecule([6, 1, 7, 1, 6, 8, 1])), nets, rotation)
    assert largest(found, expected) < TIGHT
    assert float(model(batch).lower.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_turns_with_the_molecule_after_training(nets, name):
    """Norm weights that training spreads must sit on the channels that they belong to."""
    model = train(nets.network(name), nets.molecule([8, 1, 6, 1]), 35 if name == "sphnet" else 12)
    m, rotation = nets.molecule([6, 1, 7, 1, 6, 8, 1]), nets.rotation(2)
    assert largest(model(nets.moved(m, rotation)), turned(model(m), nets, rotation)) < TIGHT


@pytest.mark.parametrize(("name", "parity"), CASES)
def test_mirror_images(nets, name, parity):
    """Exact with both parities; the published form couples p and d to degree 2, which a mirror shows."""
    model, m, mirror = nets.network(name, parity=parity), nets.molecule([6, 1, 7, 8, 1]), -nets.rotation(3)
    error = largest(model(nets.moved(m, mirror)), turned(model(m), nets, mirror))
    assert error < TIGHT if parity == "o3" else error > 1e-6


@pytest.mark.parametrize(("name", "parity"), CASES)
@pytest.mark.parametrize("step", [0, FIXED])
def test_order_of_atoms(nets, name, parity, step):
    model, numbers = nets.network(name, parity=parity, step=step), [6, 1, 7, 1, 6, 8, 1, 6]
    m = nets.molecule(numbers)
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(1))
    shuffled = Molecules.of(m.numbers[order], m.positions[order], dtype=torch.float64)
    first = nets.LAYOUT.to_matrix(model(m), m.numbers)
    second = nets.LAYOUT.to_matrix(model(shuffled), shuffled.numbers)
    sizes = [len(nets.LAYOUT.places[z]) for z in numbers]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    index = torch.cat([torch.arange(starts[k], starts[k] + sizes[k]) for k in order.tolist()])
    assert torch.allclose(first[index][:, index], second, rtol=TIGHT, atol=TIGHT * float(first.detach().abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0, FIXED])
def test_symmetric_molecule_keeps_its_symmetry(nets, name, step):
    """Ties, as of alike pairs and groups, are never broken by the number of an atom."""
    model = nets.network(name, step=step)
    water = Molecules.of([8, 1, 1], [[0, 0, 0.1], [0, 0.76, -0.5], [0, -0.76, -0.5]], dtype=torch.float64)
    matrix = nets.LAYOUT.to_matrix(model(water), water.numbers)
    mirror = nets.LAYOUT.matrix_rotation(
        torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)), water.numbers
    )
    swap = torch.cat([torch.arange(14), torch.arange(19, 24), torch.arange(14, 19)])
    found = (mirror @ matrix @ mirror.T)[swap][:, swap]
    assert torch.allclose(found, matrix, rtol=TIGHT, atol=TIGHT * float(matrix.detach().abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0, FIXED])
def test_partners_in_the_batch_do_not_matter(nets, name, step):
    model, batch = nets.network(name, step=step), nets.several()
    together = model(batch).split(batch.n_atoms.tolist())
    for k, n in enumerate(batch.n_atoms.cumsum(0).tolist()):
        own = slice(n - int(batch.n_atoms[k]), n)
        alone = model(Molecules.of(batch.numbers[own], batch.positions[own], dtype=torch.float64))
        if len(alone.lower):
            assert largest(together[k], alone) < TIGHT
        else:
            assert torch.allclose(together[k].diagonal, alone.diagonal, atol=TIGHT)


@pytest.mark.parametrize(("name", "parity"), CASES)
def test_matrix_is_symmetric_and_slices_change_nothing(nets, name, parity, monkeypatch):
    from tesseral.potentials.hamiltonian import base, convolution

    model, batch = nets.network(name, parity=parity, step=FIXED), nets.several()
    blocks = model(batch)
    assert torch.equal(blocks.diagonal, blocks.diagonal.transpose(1, 2))
    monkeypatch.setattr(base, "PAIRS_AT_ONCE", 3)
    monkeypatch.setattr(convolution, "SLICE", 7)
    with torch.no_grad():
        assert largest(model(batch), blocks) < 1e-14


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight(nets, name):
    blocks = (model := nets.network(name))(nets.several())
    (blocks.diagonal.square().sum() + blocks.lower.square().sum()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # Scores are compared within a molecule: a common shift changes nothing.
    assert [n for n in idle if not n.endswith("pair_gate.score.bias")] == []


@pytest.mark.parametrize("name", NAMES)
def test_changes_smoothly(nets, name):
    """Along a path through every cutoff and changes of the farthest atom, smaller steps make smaller changes."""
    model = nets.network(name, **({"sparsity": 0.0} if name == "sphnet" else {}))
    assert steepest(model, nets, 400) < 0.35 * steepest(model, nets, 100)


@pytest.mark.parametrize("name", NAMES)
def test_derivative_by_positions(nets, name):
    """Of a random sum of elements along a random direction, against a central difference."""
    model, m = nets.network(name, step=FIXED), nets.molecule([8, 1, 6, 1])
    weights = torch.randn(6, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def total(positions):
        blocks = model(Molecules.of(m.numbers, positions, dtype=torch.float64))
        return (blocks.lower * weights).sum() + (blocks.diagonal * weights[:4]).sum()

    positions = m.positions.clone().requires_grad_()
    slope = (torch.autograd.grad(total(positions), positions)[0] * direction).sum()
    h = 1e-5
    with torch.no_grad():
        difference = (total(m.positions + h * direction) - total(m.positions - h * direction)) / (2 * h)
    assert torch.allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("published", [False, True])
def test_published_form_jumps_and_sees_the_order_of_atoms(nets, published):
    """What the default departs from; were it not so, the tests of both could not fail."""
    model = nets.network("sphnet", sparsity=0.0, published=published)
    ends = [Molecules.of([6, 8], [[0, 0, 0], [0, 0, 5 + e]], dtype=torch.float64) for e in (-1e-8, 1e-8)]
    jump = largest(*(model(m) for m in ends))  # two atoms at the cutoff of the first part
    m = nets.molecule([6, 1, 7, 1, 6, 8, 1, 6])
    flipped = Molecules.of(m.numbers.flip(0), m.positions.flip(0), dtype=torch.float64)
    change = float((model(m).diagonal - model(flipped).diagonal.flip(0)).detach().abs().max())
    assert (jump > 1e-5, change > 1e-5) == (published, published)


def steepest(model, nets, steps):
    """Largest change of the blocks within one step of a path along which one atom leaves the molecule."""
    numbers = [6, 1, 7, 8, 1, 6, 1, 1]
    start = nets.molecule(numbers, seed=3).positions
    away = torch.zeros_like(start)
    away[1], away[3] = torch.tensor([7.0, 2.0, 1.0]), torch.tensor([0.0, -4.0, 0.5])
    ends = torch.linspace(0, 1, steps, dtype=torch.float64)
    batch = collate([Molecules.of(torch.tensor(numbers), start + t * away, dtype=torch.float64) for t in ends])
    with torch.no_grad():
        blocks = model(batch)
    sets = blocks.diagonal.view(steps, -1), blocks.lower.view(steps, -1)
    return max(float((s[1:] - s[:-1]).abs().max()) for s in sets)


def test_far_atoms_have_no_block(nets):
    """Blocks of pairs fade between 20 and 30 Å; weights from the invariants of atoms alone would not."""
    model = nets.network("sphnet")
    sizes = []
    for distance in (19.0, 25.0, 29.9, 31.0):
        m = Molecules.of([6, 8], [[0, 0, 0], [0, 0, distance]], dtype=torch.float64)
        sizes.append(float(model(m).lower.abs().max()))
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == 0


@pytest.mark.parametrize("name", NAMES)
def test_other_precisions_and_scales(nets, name):
    model, batch = nets.network(name, step=FIXED), nets.several()
    expected = model(batch)
    single = model.float()(batch.to(dtype=torch.float32))
    assert single.lower.dtype == torch.float32
    assert largest(single.to(dtype=torch.float64), expected) < 1e-5
    model.scales.copy_(torch.tensor([2.0, 3.0]))
    scaled = model(batch.to(dtype=torch.float32))
    assert torch.equal(scaled.diagonal, 2 * single.diagonal) and torch.equal(scaled.lower, 3 * single.lower)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", [0, 25, FIXED])
def test_header_and_state_make_the_same_model(nets, name, step):
    model, batch = nets.network(name, step=step), nets.several()
    again = from_header(model.header()).double().eval()
    again.load_state_dict(model.state_dict())
    assert largest(again(batch), model(batch)) == 0
    assert again.header() == model.header()


def test_plain_values_make_configs():
    small = build("sphnet", {"preset": "small", "sparsity": 0.5}, layout("def2-svp"))
    assert small.config.sparsity == 0.5 and small.config.channels == 32
    with pytest.raises(UserError, match="did you mean 'sparsity'"):
        build("sphnet", {"sparsty": 0.5}, layout("def2-svp"))
    with pytest.raises(UserError, match="no preset 'big'; there are small"):
        build("qhnet", {"preset": "big"}, layout("def2-svp"))
    with pytest.raises(UserError, match="no Hamiltonian model is called 'qnet'"):
        build("qnet", {}, layout("def2-svp"))
    with pytest.raises(UserError, match="at least 0 and less than 1"):
        build("sphnet", {"sparsity": 1.0}, layout("def2-svp"))
    with pytest.raises(UserError, match="'so3' or 'o3'"):
        build("qhnet", {"parity": "e3"}, layout("def2-svp"))
    with pytest.raises(UserError, match="one of delta, full"):
        build("qhnet", {}, layout("def2-svp"), target="difference")


def test_elements_that_the_model_does_not_know(nets):
    with pytest.raises(UserError, match="no def2-svp orbitals for S; there are H, C, N, O, F"):
        nets.network("qhnet")(nets.molecule([16, 1, 1]))


def test_molecules_that_no_model_takes():
    def structure(numbers, **more):
        return Structure(numbers=numbers, positions=[[0, 0, 1.1 * k] for k in range(len(numbers))], **more)

    assert Molecules.from_structure(structure([1, 9])).n_pairs.tolist() == [1]
    with pytest.raises(UserError, match="HO is open-shell \\(9 electrons\\)"):
        Molecules.from_structure(structure([8, 1]))
    with pytest.raises(UserError, match="multiplicity 3"):
        Molecules.from_structure(structure([8, 8], spin=3))
    with pytest.raises(UserError, match="charge 1"):
        Molecules.from_structure(structure([1, 9], charge=1.0))
    with pytest.raises(UserError, match="periodic"):
        Molecules.from_structure(structure([1, 9], pbc=[True] * 3, cell=torch.eye(3).numpy()))
    with pytest.raises(UserError, match="finite"):
        Molecules.of([1, 1], [[0, 0, 0], [0, 0, float("nan")]])
    with pytest.raises(UserError, match="positions \\(n, 3\\)"):
        Molecules.of([1, 1], [[0, 0, 0]])
    with pytest.raises(UserError, match="empty list"):
        collate([])
