"""Hamiltonian networks against e3nn: couplings, normalisation of paths, and a whole QHNet made of e3nn's layers."""

import pytest
import torch

from tesseral.kernels.conventions import coupling_paths
from tesseral.kernels.rotations import wigner_d
from tesseral.kernels.weighted import weighted_message
from tesseral.potentials.hamiltonian import steerable
from tesseral.potentials.hamiltonian.expansion import Expansion
from tesseral.potentials.hamiltonian.gates import path_coefficients
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.molecules import orbital_harmonics
from tesseral.potentials.hamiltonian.scalars import shifted_softplus

o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed: nothing to compare with")
DEGREES = (0, 1, 2)


@pytest.fixture
def double():
    """e3nn keeps its coefficients in the default precision of the moment a layer is built."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def to_e3nn(x):
    """Channels outside the components of every degree."""
    sizes = [2 * l + 1 for l in DEGREES]
    return torch.cat([b.transpose(1, 2).flatten(1) for b in x.split(sizes, dim=1)], dim=1)


def test_whole_network(nets, double, monkeypatch):
    """Every layer of QHNet with e3nn's own: messages, gates, products, expansion, normalisation of paths."""
    from tesseral.scripts.bench.hamiltonian_peer import PeerQHNet

    monkeypatch.setattr(steerable, "EPS", 1e-30)  # e3nn's lengths are not smooth at zero
    model, batch = nets.network("qhnet"), nets.several()
    ours, theirs = model(batch), PeerQHNet(model).double()(batch)
    for a, b in ((ours.diagonal, theirs.diagonal), (ours.lower, theirs.lower)):
        assert torch.allclose(a, b, atol=1e-10) and float(a.detach().abs().max()) > 0.01


@pytest.mark.parametrize("parity", ["o3", "so3"])
def test_normalisation_of_paths(double, parity):
    """The published layers give a = sqrt((2l+1)/n) as the weight of a path, whose root e3nn takes, with 1/n_l."""
    paths, c, edges = coupling_paths(DEGREES, 2, DEGREES, parity), 3, 5
    coefficients = path_coefficients(paths)
    features = o3.Irreps([(c, (l, 1)) for l in DEGREES])
    instructions = [(p.l1, p.l2, p.l3, "uvu", True, ((2 * p.l3 + 1) / len(paths)) ** 0.5) for p in paths]
    layer = o3.TensorProduct(
        features,
        o3.Irreps.spherical_harmonics(2, p=1),
        features,
        instructions,
        irrep_normalization="component",
        shared_weights=False,
        internal_weights=False,
    )
    from tesseral.kernels.message import GraphPlan

    x, y, w = draw(edges, 9, c), draw(edges, 9, seed=1), draw(edges, len(paths), c, seed=2)
    plan = GraphPlan(torch.arange(edges), torch.arange(edges), torch.arange(edges + 1))
    found = weighted_message(x, y, w * coefficients[:, None], plan, paths, 2)
    assert torch.allclose(to_e3nn(found), layer(to_e3nn(x), y, w.flatten(1)), atol=1e-12)


def test_activation_of_weight_networks(double):
    """e3nn estimates the factor from random numbers, we integrate."""
    from e3nn.math import normalize2mom

    theirs = normalize2mom(lambda x: torch.nn.functional.softplus(x) - 0.6931471805599453)
    x = draw(50)
    assert torch.allclose(shifted_softplus(x), theirs(x), rtol=3e-3)
    z = torch.linspace(-12, 12, 20001)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    assert abs(float(torch.trapezoid(shifted_softplus(z).square() * density, z)) - 1) < 1e-10


def test_harmonics_in_the_axes_of_orbitals(double):
    v = draw(6, 3)
    theirs = o3.spherical_harmonics([0, 1, 2, 3], v[:, [1, 2, 0]], True, normalization="component")
    assert torch.allclose(orbital_harmonics(v, 3), theirs, atol=1e-12)


@pytest.mark.parametrize(("basis", "lmax"), [("def2-svp", 4), ("def2-tzvp", 6)])
def test_expansion(double, basis, lmax):
    """Coupling by coupling with e3nn's 3j symbols."""
    from tesseral.scripts.bench.hamiltonian_peer import expand

    operator, n = Expansion(layout(basis), lmax, 4), (lmax + 1) ** 2
    x, weights, biases = draw(3, n, 4), draw(3, operator.n_weights, seed=1), draw(3, operator.n_biases, seed=2)
    flat = torch.cat([x[:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(lmax + 1)], dim=1)
    found = operator([x], weights, biases)
    assert torch.allclose(found, expand(operator, flat, weights, biases), atol=1e-12)


@pytest.mark.parametrize(("basis", "lmax"), [("def2-svp", 4), ("def2-tzvp", 6)])
def test_expansion_turns_and_reaches_every_block(basis, lmax):
    orbitals = layout(basis)
    operator, n = Expansion(orbitals, lmax, 32), (lmax + 1) ** 2
    x, weights, biases = draw(2, n, 32), draw(1, operator.n_weights), draw(1, operator.n_biases)
    q, _ = torch.linalg.qr(draw(3, 3, seed=5))
    q = q * torch.linalg.det(q)
    polar = q[[1, 2, 0]][:, [1, 2, 0]]
    d_features, d = torch.block_diag(*wigner_d(polar, lmax)), orbitals.rotation(q)
    both = weights.expand(2, -1), biases.expand(2, -1)
    assert torch.allclose(operator([d_features @ x], *both), d @ operator([x], *both) @ d.T, atol=1e-12)
    if basis == "def2-svp":
        units = torch.eye(n * 32, dtype=torch.float64).view(-1, n, 32)
        blocks = operator([units], weights.expand(len(units), -1), biases.expand(len(units), -1) * 0)
        assert int(torch.linalg.matrix_rank(blocks.flatten(1))) == operator.size**2
