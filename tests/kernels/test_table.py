"""The correctness table: every operation on every backend that runs here, in every precision, two derivatives deep.

A new operation is one entry in `ENTRIES`; a test makes sure that none is missing. Errors are the largest deviation
over the root mean square of what is expected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tesseral.kernels.backends import DEVICES, DTYPES, OPERATIONS, backends, use_backend
from tesseral.kernels.conventions import coupling_paths, w3j
from tesseral.kernels.coupling import Coupling
from tesseral.kernels.degrees import degree_dot, degree_gate, degree_squares
from tesseral.kernels.fields import field_products
from tesseral.kernels.gaunt import (
    gaunt_power,
    gaunt_product,
    gaunt_products,
    product_terms,
    surface_bracket,
)
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.linear import degree_linear
from tesseral.kernels.message import message, species_density
from tesseral.kernels.pairs import pair_product
from tesseral.kernels.plan import GraphPlan
from tesseral.kernels.rotations import wigner_d_quaternion
from tesseral.kernels.so2 import so2_convolution
from tesseral.kernels.sphere import gauss_legendre_grid, grid_mlp
from tesseral.kernels.weighted import weighted_message

TOLERANCES = {
    torch.float64: {"forward": 1e-12, "gradient": 1e-10, "double backward": 1e-10},
    torch.float32: {"forward": 1e-5, "gradient": 3e-5, "double backward": 1e-4},
}


@dataclass(frozen=True)
class Entry:
    """One operation on one small input.

    Attributes:
        run: the operation, a tensor from tensors.
        shapes: of its differentiable arguments, which are drawn from a normal distribution.
        operation: its name in `backends.OPERATIONS`; empty where plain torch is the only backend.
        definition: what it should be, independent of the package's code for it; without one, backends are compared
            with the reference in float64, which other tests compare with definitions.
    """

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    operation: str = ""
    definition: Callable[..., Tensor] | None = None


def graph(device: torch.device) -> GraphPlan:
    """Nodes with 3, 0, 5 and 1 neighbours, one of them the node itself."""
    degrees = torch.tensor([3, 0, 5, 1])
    source = torch.tensor([1, 2, 3, 0, 1, 2, 3, 3, 0])
    pointers = torch.cat([torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)])
    edges = torch.stack([source, torch.repeat_interleave(torch.arange(4), degrees)])
    return GraphPlan.build(edges.to(device), pointers.to(device))


def contraction(paths: str, lmax: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Dense sum over the coefficients of a product on the sphere."""
    n = (lmax + 1) ** 2
    table = torch.zeros(n, n, n, dtype=torch.float64)
    for i, j, k, value in product_terms(lmax, lmax, lmax, paths):
        table[i, j, k] = value
    return lambda x, y: torch.einsum("nic,njc,ijk->nkc", x, y, table)


def pad(x: Tensor) -> Tensor:
    """Zeros for degree 2."""
    return torch.nn.functional.pad(x, (0, 0, 0, 9 - x.shape[1]))


PATHS = coupling_paths((0, 1, 2), 2, (0, 1, 2), "so3")
SOME = [PATHS[k] for k in (13, 2, 9, 5)]


def pair_definition(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for k, p in enumerate(SOME):
        table = torch.from_numpy((2 * p.l3 + 1) ** 0.5 * w3j(p.l1, p.l2, p.l3))
        a, b, c = (slice(l * l, (l + 1) ** 2) for l in (p.l1, p.l2, p.l3))
        part = torch.einsum("nic,njc,ijk->nkc", x[:, a], y[:, b], table) * w[:, k : k + 1]
        out = out + torch.nn.functional.pad(part, (0, 0, c.start, 9 - c.stop))
    return out


def convolution_definition(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
    plan = graph(x.device)
    harmonics = spherical_harmonics(v, 2).unsqueeze(-1).expand(-1, -1, x.shape[2])
    messages = pair_definition(x[plan.source], harmonics, w)
    return torch.zeros_like(x).index_add(0, plan.target, messages)


COUPLING = Coupling(coupling_paths((0, 1), 1, (0, 1), "so3"), (5, 3), 1)
GRID = gauss_legendre_grid(2, 5, 10)

ENTRIES = {
    "degree_linear": Entry(
        lambda x, w: degree_linear(x, w, (3, 2), (2, 4)),
        ((5, 3 + 3 * 2), (3 * 2 + 2 * 4,)),
        "degree_linear",
        lambda x, w: torch.cat(
            [x[:, :3] @ w[:6].view(3, 2), (x[:, 3:].view(-1, 3, 2) @ w[6:].view(2, 4)).flatten(1)], dim=1
        ),
    ),
    "degree_dot": Entry(
        degree_dot,
        ((5, 9, 6), (5, 9, 6)),
        "degree_products",
        lambda x, y: torch.stack([(x * y)[:, a:b].sum(1) for a, b in ((0, 1), (1, 4), (4, 9))], dim=1),
    ),
    "degree_squares": Entry(
        degree_squares,
        ((5, 4, 6),),
        "degree_products",
        lambda x: torch.stack([x[:, 0], x[:, 1:].square().sum(1)], dim=1),
    ),
    "degree_gate": Entry(
        degree_gate,
        ((5, 9, 6), (5, 3, 6)),
        "degree_products",
        lambda x, f: torch.cat([f[:, :1], x[:, 1:4] * f[:, 1:2], x[:, 4:] * f[:, 2:]], dim=1),
    ),
    "spherical_harmonics": Entry(lambda v: spherical_harmonics(v, 4), ((7, 3),), "spherical_harmonics"),
    "message": Entry(
        lambda x, edges, w: message(x, edges, w, graph(x.device), COUPLING),
        ((4, COUPLING.x_width), (9, COUPLING.n_harmonics + 2), (2, COUPLING.n_weights)),
        "message",
    ),
    "species_density": Entry(
        lambda edges: species_density(
            edges, torch.tensor([0, 1, 1, 0], device=edges.device), 2, 9, graph(edges.device)
        ),
        ((9, 9 + 3),),
        "species_density",
    ),
    # Equal degrees: all derivatives run one compiled table.
    "gaunt_product": Entry(
        lambda x, y: gaunt_product(x, y, 2), ((5, 9, 6), (5, 9, 6)), "gaunt_product", contraction("even", 2)
    ),
    "gaunt_product with bracket": Entry(
        lambda x, y: gaunt_product(x, y, 2, bracket=True),
        ((5, 9, 6), (5, 9, 6)),
        "gaunt_product",
        contraction("all", 2),
    ),
    "surface_bracket": Entry(
        lambda x, y: surface_bracket(x, y, 2), ((5, 9, 6), (5, 9, 6)), "gaunt_product", contraction("odd", 2)
    ),
    "gaunt_products": Entry(
        lambda x, y, z: gaunt_products([x, y, z], 1),
        ((5, 4, 6), (5, 4, 6), (5, 4, 6)),
        "gaunt_product",
        lambda x, y, z: contraction("even", 2)(contraction("even", 2)(pad(x), pad(y)), pad(z))[:, :4],
    ),
    "gaunt_power": Entry(
        lambda x, v, w: gaunt_power(x, [v, w], 1),
        ((5, 4, 6), (5, 2, 6), (5, 1, 6)),
        "gaunt_product",
        lambda x, v, w: x * v[:, [0, 1, 1, 1]] + contraction("even", 1)(x, x) * w,
    ),
    "field_products": Entry(lambda x: field_products(x, 1), ((5, 4, 6),), "field_products"),
    "grid_mlp": Entry(
        lambda x, a, b, c, d: grid_mlp(x, GRID.to(x.device), (a, b), biases=(c, d), heads=2, lmax=1),
        ((5, 9, 8), (4, 6), (6, 4), (6,), (4,)),
        "grid_mlp",
        lambda x, a, b, c, d: (
            GRID.analysis[:4]
            @ torch.nn.functional.silu(
                torch.nn.functional.silu((GRID.synthesis @ x).unflatten(-1, (2, 4)) @ a + c) @ b + d
            ).flatten(-2)
        ),
    ),
    "pair_product": Entry(
        lambda x, y, w: pair_product(x, y, w, SOME, 2),
        ((5, 9, 6), (5, 9, 6), (5, 4, 6)),
        "pair_product",
        pair_definition,
    ),
    "weighted_message": Entry(
        lambda x, y, w: weighted_message(x, y, w, graph(x.device), SOME, 2),
        ((4, 9, 6), (9, 9), (9, 4, 6)),
        "weighted_message",
        lambda x, y, w: torch.zeros_like(x).index_add(
            0,
            graph(x.device).target,
            pair_definition(x[graph(x.device).source], y.unsqueeze(-1).expand(-1, -1, 6), w),
        ),
    ),
    "pair_product with shared weights, together": Entry(
        lambda x, y, w: pair_product(x, y, w, SOME, 2, together=True),
        ((5, 9, 6), (5, 9, 6), (4, 6)),
        "pair_product",
        lambda x, y, w: pair_definition(x, y, w.expand(5, -1, -1)),
    ),
    "so2_convolution": Entry(
        lambda x, v, w: so2_convolution(x, v, w, SOME, (graph(x.device).source, graph(x.device).target), 2),
        ((4, 9, 6), (9, 3), (9, 4, 6)),
        definition=convolution_definition,
    ),
    "wigner_d_quaternion": Entry(
        lambda q, x: torch.cat([d.flatten(1) for d in wigner_d_quaternion(q, 3)], dim=1) * x,
        ((4, 4), (4, 84)),
    ),
}


def rows() -> list[tuple[str, str, torch.dtype]]:
    """Entry, backend and precision; without a definition the reference in float64 has nothing to be compared with."""
    found = []
    for name, entry in ENTRIES.items():
        for backend in ("reference", *OPERATIONS.get(entry.operation, ())):
            for dtype in (torch.float64, torch.float32):
                known = DTYPES.get((entry.operation, backend), ("float32", "float64"))
                tautology = (backend, dtype, entry.definition) == ("reference", torch.float64, None)
                if backend in backends() and str(dtype).removeprefix("torch.") in known and not tautology:
                    found.append((name, backend, dtype))
    return found


def derivatives(
    function: Callable[..., Tensor], tensors: list[Tensor], weights: list[Tensor]
) -> dict[str, list[Tensor]]:
    """Value, gradients of its weighted sum, and gradients of the weighted sum of those.

    Args:
        function: tensor from tensors.
        tensors: its arguments.
        weights: one for the value, one for every gradient.
    """
    value = function(*tensors)
    total = (value * weights[0]).sum()
    first = torch.autograd.grad(total, tensors, create_graph=True)
    total = sum((g * w).sum() for g, w in zip(first, weights[1:], strict=True))
    second = torch.autograd.grad(total, tensors, materialize_grads=True) if total.requires_grad else ()
    return {"forward": [value.detach()], "gradient": list(first), "double backward": list(second)}


def draw(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """The same numbers in every precision and place: float32 can represent them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]


@pytest.mark.parametrize(("name", "backend", "dtype"), rows(), ids=lambda v: str(v).removeprefix("torch."))
def test_values_and_derivatives(name, backend, dtype):
    entry, shapes = ENTRIES[name], list(ENTRIES[name].shapes)

    def results(function, dtype, device):
        tensors = [t.requires_grad_() for t in draw(shapes, 1, dtype, device)]
        with torch.no_grad():
            out_shape = tuple(function(*tensors).shape)
        return derivatives(function, tensors, draw([out_shape, *shapes], 2, dtype, device))

    with use_backend("reference"):
        expected = results(entry.definition or entry.run, torch.float64, "cpu")
    with use_backend(backend):
        found = results(entry.run, dtype, DEVICES.get(backend, "cpu"))
    for order, tolerance in TOLERANCES[dtype].items():
        assert len(found[order]) == len(expected[order])
        for a, b in zip(found[order], expected[order], strict=True):
            assert a.dtype == dtype
            scale = float(b.detach().square().mean().sqrt())
            error = float((a.detach().cpu().double() - b.detach()).abs().max())
            assert error <= tolerance * (scale or 1.0), f"{order}: {error / (scale or 1.0):.1e} of the rms"


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("backend", [b for b in backends() if DEVICES.get(b, "cpu") == "cpu"])
def test_cotangents_of_any_stride(name, backend):
    """Expanded (stride 0) and transposed cotangents give what contiguous ones give."""
    entry = ENTRIES[name]
    tensors = [t.requires_grad_() for t in draw(list(entry.shapes), 3, torch.float64, "cpu")]
    with use_backend(backend):
        value = entry.run(*tensors)
        one = value.new_ones(())
        steps = torch.arange(value.shape[-1], dtype=value.dtype)
        strided = [one.expand(value.shape), steps.expand(value.shape), value.detach().mT.contiguous().mT]
        for cotangent in strided:
            plain = torch.autograd.grad(value, tensors, cotangent.clone(memory_format=torch.contiguous_format), True)
            found = torch.autograd.grad(value, tensors, cotangent, True)
            for a, b in zip(found, plain, strict=True):
                assert torch.allclose(a, b, atol=1e-13, rtol=1e-13)


def test_every_operation_is_in_the_table():
    assert set(OPERATIONS) <= {entry.operation for entry in ENTRIES.values()}
