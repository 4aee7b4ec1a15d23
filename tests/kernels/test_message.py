"""Messages and couplings: the fast order of sums against the plain definition, and against e3nn."""

import pytest
import torch

from tesseral.kernels.conventions import coupling_paths
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.message import Coupling, GraphPlan, neighbour_moments
from tesseral.potentials.blocks import Convolution, Neighbourhood, SpeciesConvolution, join


def ragged_graph(degrees=(3, 0, 5, 1)):
    """Plan of a random graph with the given numbers of neighbours; node 1 is alone."""
    generator = torch.Generator().manual_seed(0)
    target = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    source = torch.randint(len(degrees), (len(target),), generator=generator)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(degrees).cumsum(0)])
    vectors = torch.randn(len(target), 3, dtype=torch.float64, generator=generator)
    return GraphPlan.build(torch.stack([source, target]), row_ptr), vectors


def padded_basis(plan, vectors, lmax, n_radial):
    """Harmonics times powers of r, per edge and padded."""
    r = vectors.norm(dim=-1, keepdim=True)
    radial = torch.cat([torch.exp(-r * (k + 1)) for k in range(n_radial)], dim=-1)
    edge = spherical_harmonics(vectors, lmax)
    basis = (edge[:, :, None] * radial[:, None, :]).flatten(1)
    return edge, radial, basis[plan.slots] * plan.mask[..., None]


def test_moments_are_the_neighbour_sum():
    plan, vectors = ragged_graph()
    x = torch.randn(4, 6, dtype=torch.float64)
    _, _, basis = padded_basis(plan, vectors, 2, 3)
    flat = basis[plan.mask]
    expected = torch.zeros(4, basis.shape[-1], 6, dtype=torch.float64)
    expected.index_add_(0, plan.target, flat[:, :, None] * x[plan.source][:, None, :])
    assert torch.allclose(neighbour_moments(basis, x, plan), expected, atol=1e-14)


@pytest.mark.parametrize("parity", ["o3", "so3"])
def test_convolution_equals_e3nn_tensor_product(parity):
    """Same weights, same paths: e3nn's channel-wise product, summed per target, then its linear map."""
    o3 = pytest.importorskip("e3nn.o3")
    torch.manual_seed(0)
    plan, vectors = ragged_graph()
    channels, lmax, n_radial = (4, 3, 2), 2, 3
    layer = Convolution(channels, (5, 5, 5), lmax=lmax, n_radial=n_radial, parity=parity).double()
    blocks = [torch.randn(4, 2 * l + 1, c, dtype=torch.float64) for l, c in enumerate(channels)]
    edge, radial, basis = padded_basis(plan, vectors, lmax, n_radial)
    found = layer(join(blocks), basis, plan)

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
        messages = product(mul_major[plan.source], edge, weights).unflatten(-1, (c, 2 * path.l3 + 1))
        summed = torch.zeros(4, c, 2 * path.l3 + 1, dtype=torch.float64).index_add_(0, plan.target, messages)
        linear = layer.linear.weights[path.l3]
        part = linear[row[path.l3] : row[path.l3] + c] / linear.shape[0] ** 0.5
        expected[path.l3] += summed.transpose(1, 2) @ part
        offset, row[path.l3] = offset + c, row[path.l3] + c
    for l, block in enumerate(found):
        assert torch.allclose(block, expected[l], atol=1e-10), l


def test_species_density_gives_the_same_messages():
    torch.manual_seed(0)
    plan, vectors = ragged_graph()
    layer = SpeciesConvolution((6,), (5, 4, 3), lmax=2, n_radial=3, parity="o3").double()
    table = torch.randn(3, 6, dtype=torch.float64)
    species = torch.tensor([0, 2, 1, 2])
    _, _, basis = padded_basis(plan, vectors, 2, 3)
    near = Neighbourhood(species, table, basis, plan, torch.tensor(0.7, dtype=torch.float64))
    plain = layer(table[species], basis, plan)
    for a, b in zip(plain, layer.messages([], near), strict=True):
        assert torch.allclose(0.7 * a, b, atol=1e-13)


def test_no_edges_gives_zero_messages():
    plan = GraphPlan.build(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    layer = Convolution((4, 2), (3, 3), lmax=1, n_radial=2, parity="o3")
    basis = torch.zeros(2, 0, 8)
    assert all(bool((block == 0).all()) for block in layer(torch.randn(2, 10), basis, plan))


def test_unsorted_row_pointers_are_refused():
    with pytest.raises(ValueError, match="sort edges by target"):
        GraphPlan.build(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1, 2]))


def test_coupling_tables_survive_a_cast_to_float32_and_back():
    coupling = Coupling(coupling_paths((0, 1), 2, (0, 1, 2), "so3"), (2, 2), 2)
    before = [b.clone() for b in coupling.buffers()]
    coupling.float().double()
    assert all(b.dtype == torch.float64 for b in coupling.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, coupling.buffers(), strict=True))
