"""Messages: the compiled operators against the plain definition and e3nn, every derivative, awkward graphs."""

import pytest
import torch

from tesseral.kernels.backends import backends, use_backend
from tesseral.kernels.conventions import coupling_paths
from tesseral.kernels.coupling import Coupling
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.irreps import join, split
from tesseral.kernels.message import message, reference_message, species_density
from tesseral.kernels.plan import GraphPlan
from tesseral.potentials.blocks import Convolution, Neighbourhood, SpeciesConvolution

BACKENDS = [name for name in ("reference", "numba") if name in backends()]


def ragged_graph(degrees=(3, 0, 5, 1)):
    """Plan of a random graph with the given numbers of neighbours; node 1 is alone."""
    generator = torch.Generator().manual_seed(0)
    target = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    source = torch.randint(len(degrees), (len(target),), generator=generator)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(degrees).cumsum(0)])
    vectors = torch.randn(len(target), 3, dtype=torch.float64, generator=generator)
    return GraphPlan.build(torch.stack([source, target]), row_ptr), vectors


def edge_functions(vectors, lmax, n_radial):
    """Harmonics and powers of r, side by side."""
    r = vectors.norm(dim=-1, keepdim=True)
    radial = torch.cat([torch.exp(-r * (k + 1)) for k in range(n_radial)], dim=-1)
    return torch.cat([spherical_harmonics(vectors, lmax), radial], dim=1)


def small_case(*, channels=(9, 5), lmax=2, parity="o3", n_radial=2, dtype=torch.float64, degrees=(3, 0, 5, 1)):
    """Coupling, plan and random leaves x, edges, weights."""
    plan, _ = ragged_graph(degrees)
    coupling = Coupling(
        coupling_paths(tuple(range(len(channels))), lmax, tuple(range(lmax + 1)), parity), channels, lmax
    )
    generator = torch.Generator().manual_seed(1)
    shapes = (
        (plan.n_nodes, coupling.x_width),
        (plan.source.shape[0], coupling.n_harmonics + n_radial),
        (n_radial, coupling.n_weights),
    )
    leaves = [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes]
    return coupling, plan, leaves


@pytest.mark.parametrize("parity", ["o3", "so3"])
def test_convolution_equals_e3nn_tensor_product(parity):
    """Same weights, same paths: e3nn's channel-wise product, summed per target, then its linear map."""
    o3 = pytest.importorskip("e3nn.o3")
    torch.manual_seed(0)
    plan, vectors = ragged_graph()
    channels, lmax, n_radial = (4, 3, 2), 2, 3
    layer = Convolution(channels, (5, 5, 5), lmax=lmax, n_radial=n_radial, parity=parity).double()
    blocks = [torch.randn(4, 2 * l + 1, c, dtype=torch.float64) for l, c in enumerate(channels)]
    edges = edge_functions(vectors, lmax, n_radial)
    harmonics, radial = edges.split([(lmax + 1) ** 2, n_radial], dim=1)
    one = torch.ones((), dtype=torch.float64)
    near = Neighbourhood(torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4), edges, plan, one)
    with use_backend("reference"):
        found = split(layer(join(blocks), near), (5, 5, 5))

    mul_major = torch.cat([b.transpose(1, 2).flatten(1) for b in blocks], dim=-1)
    irreps_in = o3.Irreps([(c, (l, 1)) for l, c in enumerate(channels)])
    irreps_sh = o3.Irreps([(1, (l, 1)) for l in range(lmax + 1)])
    expected = {l: torch.zeros(4, 2 * l + 1, 5, dtype=torch.float64) for l in range(3)}
    offset, row = 0, dict.fromkeys(range(3), 0)
    for path in layer.coupling.paths:
        c = channels[path.l1]
        irreps_out = o3.Irreps([(c, (path.l3, 1))])
        product = o3.TensorProduct(
            irreps_in,
            irreps_sh,
            irreps_out,
            [(path.l1, path.l2, 0, "uvu", True)],
            internal_weights=False,
            shared_weights=False,
        ).double()
        weights = radial @ layer.radial[:, offset : offset + c]
        messages = product(mul_major[plan.source], harmonics, weights).unflatten(-1, (c, 2 * path.l3 + 1))
        summed = torch.zeros(4, c, 2 * path.l3 + 1, dtype=torch.float64).index_add_(0, plan.target, messages)
        linear = layer.linear.weights[path.l3]
        part = linear[row[path.l3] : row[path.l3] + c] / linear.shape[0] ** 0.5
        expected[path.l3] += summed.transpose(1, 2) @ part
        offset, row[path.l3] = offset + c, row[path.l3] + c
    for l, block in enumerate(found):
        assert torch.allclose(block, expected[l], atol=1e-10), l


TOLERANCES = {torch.float64: (1e-12, 1e-10, 1e-10), torch.float32: (1e-5, 3e-5, 1e-4)}


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("parity", ["o3", "so3"])
def test_numba_equals_the_definition_with_all_derivatives(parity, dtype):
    """Values, gradients, and gradients of gradients, with stride-0 and non-contiguous cotangents on the way."""
    coupling, plan, leaves = small_case(parity=parity, dtype=dtype)

    def derivatives(function):
        z = function(*leaves, plan, coupling)
        first = torch.autograd.grad(z.sin().sum() + z.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() + g.T.sum() for g in first), leaves)
        return [z], first, second

    for found, expected, limit in zip(
        derivatives(message), derivatives(reference_message), TOLERANCES[dtype], strict=True
    ):
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= limit * b.abs().max()


def test_gradients_of_gradients_by_finite_differences():
    coupling, plan, leaves = small_case(channels=(2,), lmax=1, n_radial=2, degrees=(2, 0, 1))

    def run(*tensors):
        return message(*tensors, plan, coupling)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_third_derivative():
    coupling, plan, leaves = small_case(channels=(2,), lmax=1, n_radial=2, degrees=(2, 0, 1))

    def third(function):
        z = function(*leaves, plan, coupling).square().sum()
        for _ in range(2):
            z = sum(g.square().sum() for g in torch.autograd.grad(z, leaves, create_graph=True))
        return torch.autograd.grad(z, leaves)

    for a, b in zip(third(message), third(reference_message), strict=True):
        assert torch.allclose(a, b, rtol=1e-9)


def test_only_what_is_asked_for_is_computed():
    """Forces do not pay for weight gradients: the operator behind them does not run."""
    coupling, plan, (x, edges, weights) = small_case(channels=(2,), lmax=1, degrees=(2, 0, 1))
    z = message(x, edges, weights, plan, coupling)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(z.sum(), edges, retain_graph=True)
    names = {event.key for event in profile.key_averages()}
    assert "tesseral::message_edge" in names
    assert "tesseral::message_weight" not in names


@pytest.mark.parametrize("backend", BACKENDS)
def test_awkward_graphs(backend):
    """No edge, no node, and one node with 10,000 neighbours."""
    with use_backend(backend):
        coupling, _, (_, _, weights) = small_case(channels=(2,), lmax=1, degrees=(2, 0, 1))
        for n in (0, 3):
            plan = GraphPlan.build(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(n + 1, dtype=torch.int64))
            x = torch.randn(n, 2, dtype=torch.float64, requires_grad=True)
            z = message(x, torch.zeros(0, 6, dtype=torch.float64), weights, plan, coupling)
            assert z.shape == (n, coupling.z_width)
            assert bool((z == 0).all())
            assert bool((torch.autograd.grad(z.sum(), x)[0] == 0).all())
        n = 10_000
        plan = GraphPlan.build(
            torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)]),
            torch.cat([torch.zeros(1, dtype=torch.int64), torch.full((n,), n)]),
        )
        x, edges = torch.randn(n, 2, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)
        z = message(x, edges, weights, plan, coupling)
        with use_backend("reference"):
            assert torch.allclose(z, message(x, edges, weights, plan, coupling), rtol=1e-10, atol=1e-10)


def test_messages_are_bitwise_deterministic():
    coupling, plan, (x, edges, weights) = small_case(dtype=torch.float32)
    runs = []
    for _ in range(3):
        z = message(x, edges, weights, plan, coupling)
        runs.append([z, *torch.autograd.grad(z.square().sum(), (x, edges, weights))])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_species_density_gives_the_same_messages(backend):
    torch.manual_seed(0)
    plan, vectors = ragged_graph()
    layer = SpeciesConvolution((6,), (5, 4, 3), lmax=2, n_radial=3, parity="o3").double()
    table = torch.randn(3, 6, dtype=torch.float64)
    species = torch.tensor([0, 2, 1, 2])
    norm = torch.tensor(0.7, dtype=torch.float64)
    near = Neighbourhood(species, table, edge_functions(vectors, 2, 3), plan, norm)
    with use_backend(backend):
        fast = layer(table[species], near)
        plain = Convolution.forward(layer, table[species], near)
    assert torch.allclose(plain, fast, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_species_density_derivatives(backend):
    plan, vectors = ragged_graph((2, 0, 3))
    species = torch.tensor([1, 0, 1])
    edges = edge_functions(vectors, 1, 2).requires_grad_()

    def run(edges):
        return species_density(edges, species, 2, 4, plan)

    with use_backend(backend):
        assert torch.autograd.gradcheck(run, (edges,))
        assert torch.autograd.gradgradcheck(run, (edges,))


def test_a_coupling_is_found_again_by_its_key():
    coupling = Coupling(coupling_paths((0, 1), 2, (0, 1, 2), "so3"), (3, 2), 2)
    again = Coupling.from_key(coupling.key)
    assert (again.paths, again.channels, again.lmax) == (coupling.paths, coupling.channels, coupling.lmax)


def test_shapes_that_do_not_fit_are_refused():
    coupling, plan, (x, edges, weights) = small_case(channels=(2,), lmax=1, degrees=(2, 0, 1))
    with pytest.raises(ValueError, match="message needs x"):
        message(x[:, :-1], edges, weights, plan, coupling)
    with pytest.raises(ValueError, match="message needs x"):
        message(x, edges[:, :-1], weights, plan, coupling)


def test_unsorted_row_pointers_are_refused():
    with pytest.raises(ValueError, match="sort edges by target"):
        GraphPlan.build(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1, 2]))
