"""What `tesseral bench kernels` compares: one operation, exactly, by our kernels, in plain torch, and by peers.

All sides get the same numbers, each in its own layout: the maps between layouts are not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from ...kernels import use_backend
from ...kernels.conventions import FROM_Z_POLAR, TO_Z_POLAR, Path, coupling_paths, gaunt, gaunt_strength
from ...kernels.coupling import Coupling
from ...kernels.gaunt import gaunt_product
from ...kernels.harmonics import spherical_harmonics
from ...kernels.harmonics_reference import reference_harmonics
from ...kernels.message import message, reference_message
from ...kernels.pairs import pair_product, reference
from ...kernels.plan import GraphPlan
from ...kernels.sphere import from_grid, gauss_legendre_grid, grid_mlp, to_grid

FORWARD, BACKWARD, DOUBLE = ORDERS = ("forward", "forward+backward", "double backward")
Tensors = Sequence[Tensor]


def _same(tensors: Any) -> Any:
    return tensors


@dataclass(frozen=True)
class Side:
    """One program that does the operation, in its own layout.

    Attributes:
        name: as in the record.
        run: the operation on the side's own inputs.
        pack: the side's inputs from the house's.
        unpack: the house's gradients from the gradients of the side's inputs.
        value: the house's result from the side's.
        cotangent: the transpose of `value`.
        moved: how many of the side's inputs, the first ones, depend on positions.
        peer: it is another program.
        orders: what it takes part in.
    """

    name: str
    run: Callable[..., Tensor]
    pack: Callable[[Tensors], Tensors] = _same
    unpack: Callable[[Tensors], Tensors] = _same
    value: Callable[[Tensor], Tensor] = _same
    cotangent: Callable[[Tensor], Tensor] = _same
    moved: int = 1
    peer: bool = False
    orders: tuple[str, ...] = ORDERS


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        inputs: float64, layout of the house.
        shape: of the result.
        exact: the operation in float64 from closed-form coefficients.
        moved: how many of the inputs, the first ones, depend on positions.
        sides: who is compared.
        orders: what is compared.
        facts: for the record.
    """

    inputs: list[Tensor]
    shape: tuple[int, ...]
    exact: Callable[..., Tensor]
    sides: list[Side]
    moved: int = 1
    orders: tuple[str, ...] = (FORWARD, BACKWARD)
    facts: dict[str, Any] = field(default_factory=dict)


def build(spec: dict[str, Any], peers: Sequence[str], seed: int) -> Case:
    """The case of a specification: its operation, `rows`, `lmax` and what else the operation needs."""
    torch.manual_seed(seed)
    options = {name: value for name, value in spec.items() if name != "operation"}
    case: Case = BUILDERS[spec["operation"]](**options)
    sides = [side for side in case.sides if not side.peer or side.name.split(",")[0] in peers]
    return replace(case, sides=sides)


def normal(*shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def on_reference(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same on plain torch."""

    def run(*inputs: Tensor) -> Tensor:
        with use_backend("reference"):
            return function(*inputs)

    return run


# --- messages ------------------------------------------------------------------------------------------------


def message_case(*, rows: int, lmax: int, source: str, neighbours: int, channels: int, radial: int) -> Case:
    """Messages of a random graph; sources are scalars, or have all degrees up to lmax."""
    degrees = tuple(range(lmax + 1))
    sources = degrees if source == "all" else (0,)
    coupling = Coupling(coupling_paths(sources, lmax, degrees, "o3"), (channels,) * len(sources), lmax)
    target = torch.arange(rows).repeat_interleave(neighbours)
    edge_index = torch.stack([torch.randint(rows, target.shape), target])
    plan = GraphPlan.build(edge_index, torch.arange(rows + 1) * neighbours)
    _ = plan.columns  # made once per graph, not per call
    harmonics = reference_harmonics(normal(len(target), 3), lmax)
    edges = torch.cat([harmonics, normal(len(target), radial)], dim=1)
    inputs = [normal(rows, coupling.x_width), edges, normal(radial, coupling.n_weights)]
    exact = lambda x, q, w: reference_message(x, q, w, plan, coupling)  # noqa: E731
    sides = [
        Side("tesseral", lambda x, q, w: message(x, q, w, plan, coupling), moved=2),
        Side("torch", exact, moved=2),
        *_e3nn_messages(plan, coupling, inputs[1][:, coupling.n_harmonics :], inputs[2]),
    ]
    facts = {"paths": len(coupling.paths), "edges": len(target)}
    return Case(inputs, (rows, coupling.z_width), exact, sides, 2, ORDERS, facts)


def _e3nn_messages(plan: GraphPlan, coupling: Coupling, radial: Tensor, weights: Tensor) -> list[Side]:
    """Gather, e3nn's channelwise product, sum; with the radial matrix product, and with its result given."""
    n, terms = coupling.n_harmonics, coupling.terms
    x_order, x_back = _orders(
        _channel_first(sum((2 * k + 1) * coupling.channels[k] for k in range(l)), c, l, c)
        for l, c in enumerate(coupling.channels)
    )
    z_order, z_back = _orders(_channel_first(t.z, t.z_stride, t.path.l3, t.channels) for t in terms)

    def conv(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        product = _channelwise(coupling.paths, coupling.channels, coupling.lmax)
        messages = product(x.index_select(0, plan.source), y, w)
        return messages.new_zeros(plan.n_nodes, messages.shape[1]).index_add(0, plan.target, messages)

    layout: dict[str, Any] = {
        "value": lambda z: z[:, z_back],
        "cotangent": lambda z: z[:, z_order],
        "moved": 3,
        "peer": True,
    }

    def pack(inputs: Tensors) -> Tensors:
        x, q, w = inputs
        return x[:, x_order], q[:, :n], q[:, n:], w

    def unpack(gradients: Tensors) -> Tensors:
        x, y, g, w = gradients
        return x[:, x_back], torch.cat([y, g], dim=1), w

    def pack_given(inputs: Tensors) -> Tensors:
        x, y, g, w = pack(inputs)
        return x, y, g @ w

    def unpack_given(gradients: Tensors) -> Tensors:
        x, y, w = (g.double() for g in gradients)
        return unpack([x, y, w @ weights.T, radial.T @ w])

    given = Side("e3nn, weights given", conv, pack_given, unpack_given, orders=(FORWARD, BACKWARD), **layout)
    return [Side("e3nn", lambda x, y, g, w: conv(x, y, g @ w), pack, unpack, **layout), given]


@cache
def _channelwise(paths: tuple[Path, ...], channels: tuple[int, ...], lmax: int) -> Any:
    """e3nn's 'uvu' product with the weights of every edge, one output per path, compiled as e3nn does by default."""
    from e3nn import o3

    return o3.TensorProduct(
        [(c, _irrep(l)) for l, c in enumerate(channels)],
        o3.Irreps.spherical_harmonics(lmax),
        [(channels[p.l1], _irrep(p.l3)) for p in paths],
        [(p.l1, p.l2, k, "uvu", True) for k, p in enumerate(paths)],
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    )


def _irrep(l: int) -> tuple[int, int]:
    return l, (-1) ** l


def _channel_first(start: int, stride: int, l: int, channels: int) -> Tensor:
    """Where e3nn's block ``(channel, m)`` lies in a flat layout ``(m, channel)``."""
    return (start + stride * torch.arange(2 * l + 1) + torch.arange(channels)[:, None]).flatten()


def _orders(blocks: Any) -> tuple[Tensor, Tensor]:
    """Columns of ours in e3nn's order, and back."""
    order = torch.cat(list(blocks))
    return order, torch.argsort(order)


# --- products ------------------------------------------------------------------------------------------------


def gaunt_case(*, rows: int, lmax: int, channels: int) -> Case:
    """Point-wise product of two fields, degrees of the result up to lmax as well."""
    degrees = tuple(range(lmax + 1))
    paths = coupling_paths(degrees, lmax, degrees, "o3")

    def exact(x: Tensor, y: Tensor) -> Tensor:
        rows = [slice(l * l, (l + 1) ** 2) for l in degrees]
        z = torch.zeros_like(x)
        for p in paths:
            table = sqrt(4 * pi) * torch.from_numpy(gaunt(p.l1, p.l2, p.l3).copy())
            term = torch.einsum("abd,nac,nbc->ndc", table, x[:, rows[p.l1]], y[:, rows[p.l2]])
            z = z + torch.nn.functional.pad(term, (0, 0, p.l3**2, (lmax + 1) ** 2 - (p.l3 + 1) ** 2))
        return z

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return gaunt_product(x, y, lmax)

    # e3nn takes the square of a path's strength
    strengths = tuple(4 * pi * gaunt_strength(p.l1, p.l2, p.l3) ** 2 for p in paths)
    inputs = [normal(rows, (lmax + 1) ** 2, channels) for _ in range(2)]
    sides = [
        Side("tesseral", ours),
        Side("torch", on_reference(ours)),
        _e3nn_fields(paths, lmax, channels, strengths),
    ]
    return Case(inputs, tuple(inputs[0].shape), exact, sides, facts={"paths": len(paths)})


def pair_case(*, rows: int, lmax: int, channels: int, share: float) -> Case:
    """Product of two features with a weight per row, path and channel, for a random share of the paths."""
    degrees = tuple(range(lmax + 1))
    every = coupling_paths(degrees, lmax, degrees, "so3")
    chosen = torch.randperm(len(every))[: max(1, round(share * len(every)))].sort().values.tolist()
    paths = tuple(every[k] for k in chosen)
    inputs = [normal(rows, (lmax + 1) ** 2, channels) for _ in range(2)]
    inputs.append(normal(rows, len(paths), channels))

    def exact(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return reference(x, y, w, paths, lmax)

    sides = [
        Side("tesseral", lambda x, y, w: pair_product(x, y, w, paths, lmax)),
        Side("torch", exact),
        _e3nn_fields(paths, lmax, channels, None),
    ]
    facts = {"paths": len(paths), "of": len(every)}
    return Case(inputs, tuple(inputs[0].shape), exact, sides, facts=facts)


def _e3nn_fields(paths: tuple[Path, ...], lmax: int, channels: int, strengths: tuple[float, ...] | None) -> Side:
    """e3nn's 'uuu' product: constant strengths of the paths, or None for weights per row as third input."""
    order, back = _orders(_channel_first(l * l * channels, channels, l, channels) for l in range(lmax + 1))

    def run(x: Tensor, y: Tensor, *w: Tensor) -> Tensor:
        result: Tensor = _elementwise(paths, lmax, channels, strengths)(x, y, *w)
        return result

    def pack(inputs: Tensors) -> Tensors:
        return [t.flatten(1)[:, order] for t in inputs[:2]] + [w.flatten(1) for w in inputs[2:]]

    def unpack(gradients: Tensors) -> Tensors:
        fields = [g[:, back].unflatten(1, (-1, channels)) for g in gradients[:2]]
        return fields + [g.unflatten(1, (-1, channels)) for g in gradients[2:]]

    return Side(
        "e3nn",
        run,
        pack,
        unpack,
        lambda z: z[:, back].unflatten(1, (-1, channels)),
        lambda z: z.flatten(1)[:, order],
        peer=True,
    )


@cache
def _elementwise(paths: tuple[Path, ...], lmax: int, channels: int, strengths: tuple[float, ...] | None) -> Any:
    from e3nn import o3

    irreps = [(channels, (l, 1)) for l in range(lmax + 1)]  # with natural parities odd paths would lead elsewhere
    return o3.TensorProduct(
        irreps,
        irreps,
        irreps,
        [
            (p.l1, p.l2, p.l3, "uuu", strengths is None, 1.0 if strengths is None else strengths[k])
            for k, p in enumerate(paths)
        ],
        irrep_normalization="component" if strengths is None else "none",
        path_normalization="none",
        shared_weights=strengths is not None,
        internal_weights=False,
    )


# --- harmonics and networks on the sphere --------------------------------------------------------------------


def harmonics_case(*, rows: int, lmax: int) -> Case:
    """Spherical harmonics of vectors of 1 to 5 Å."""
    direction = torch.nn.functional.normalize(normal(rows, 3), dim=1)
    vectors = direction * (1 + 4 * torch.rand(rows, 1, dtype=torch.float64))

    def exact(v: Tensor) -> Tensor:
        return reference_harmonics(v, lmax)

    sides = [
        Side("tesseral", lambda v: spherical_harmonics(v, lmax)),
        Side("torch", exact),
        Side("e3nn", lambda v: _e3nn_harmonics(v, lmax), peer=True),
        Side(
            "sphericart",
            lambda v: _sphericart(lmax)(v),  # noqa: PLW0108, made at the first call
            lambda inputs: [t[:, TO_Z_POLAR] for t in inputs],
            lambda gradients: [g[:, FROM_Z_POLAR] for g in gradients],
            lambda z: z * sqrt(4 * pi),
            lambda z: z * sqrt(4 * pi),
            peer=True,
        ),
    ]
    return Case([vectors], (rows, (lmax + 1) ** 2), exact, sides, orders=ORDERS)


def _e3nn_harmonics(vectors: Tensor, lmax: int) -> Tensor:
    from e3nn import o3

    return o3.spherical_harmonics(list(range(lmax + 1)), vectors, True, "component")  # type: ignore[no-any-return]


@cache
def _sphericart(lmax: int) -> Any:
    from sphericart.torch import SphericalHarmonics

    return SphericalHarmonics(lmax)


def grid_case(*, rows: int, lmax: int, channels: int, hidden: int, heads: int) -> Case:
    """Facet's network at 10 x 20 points; in plain torch the values on the grid go through memory."""
    grid = gauss_legendre_grid(lmax, 10, 20)
    width = channels // heads
    weights = [normal(width, hidden) / sqrt(width), normal(hidden, width) / sqrt(hidden)]

    def unfused(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        values = to_grid(x, grid).unflatten(-1, (heads, -1))
        for weight in (a, b):
            values = torch.nn.functional.silu(values @ weight)
        return from_grid(values.flatten(-2), grid)

    sides = [
        Side("tesseral", lambda x, a, b: grid_mlp(x, grid, (a, b), heads=heads)),
        Side("torch", unfused),
    ]
    x = normal(rows, (lmax + 1) ** 2, channels)
    return Case([x, *weights], tuple(x.shape), unfused, sides)


BUILDERS: dict[str, Callable[..., Case]] = {
    "message": message_case,
    "gaunt": gaunt_case,
    "harmonics": harmonics_case,
    "grid": grid_case,
    "pair": pair_case,
}
