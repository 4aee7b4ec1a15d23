"""The operators behind `message` and `species_density`, with analytic derivatives of every order.

S(z, x, q, W) is the multilinear form of `kernels.message` contracted with a cotangent z; q holds harmonics Y and
radial functions g of every edge, and S is linear in both. Leaving one argument open gives the operators:

- `message`: dS/dz, or dS/dx on the transposed graph;
- `message_edge`: dS/dq;
- `message_weight`: dS/dW;
- `message_tangent` and `message_weight_tangent`: dS/dz (dS/dx) and dS/dW, changed to first order along dq.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import kernels_for
from .coupling import Coupling
from .library import below_autograd, define, recording, with_gradients

Sides = list[Tensor]


# --- message: S with z open, or with x open when transposed -------------------------------------------------


def _message_fake(x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool) -> Tensor:
    coupling, side = Coupling.from_key(key), columns if transposed else rows
    return x.new_empty(side[0].shape[0] - 1, coupling.x_width if transposed else coupling.z_width)


def _message_cpu(x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool) -> Tensor:
    out = _message_fake(x, q, w, rows, columns, key, transposed)
    side = columns if transposed else rows
    return kernels_for("message", x).message(x, q, None, w, side, out, key, transposed)  # type: ignore[no-any-return]


def _message_autograd(
    x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool
) -> Tensor:
    value: Tensor = below_autograd(message_op, x, q, w, rows, columns, key, transposed)
    if not recording(x, q, w):
        return value
    graph = (rows, columns, key)

    def ends(cotangent: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x, cotangent) if transposed else (cotangent, x)

    def to_x(cotangent: Tensor, x: Tensor, q: Tensor, w: Tensor) -> Tensor:
        return message_op(cotangent, q, w, *graph, not transposed)  # type: ignore[no-any-return]

    def to_q(cotangent: Tensor, q: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return message_edge(*ends(cotangent, x), q, w, *graph)  # type: ignore[no-any-return]

    def to_w(cotangent: Tensor, w: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return message_weight(*ends(cotangent, x), q, w, *graph)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_x, (x,), (q, w)), (to_q, (q,), (x, w)), (to_w, (w,), (x, q)))
    return result


message_op = define(
    "message(Tensor x, Tensor q, Tensor w, Tensor[] rows, Tensor[] columns, str key, bool transposed) -> Tensor",
    fake=_message_fake,
    compute=_message_cpu,
    autograd=_message_autograd,
)


# --- message_tangent: message with q changed to first order along dq -----------------------------------------


def _tangent_fake(
    x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool
) -> Tensor:
    return _message_fake(x, q, w, rows, columns, key, transposed)


def _tangent_cpu(
    x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool
) -> Tensor:
    out = _message_fake(x, q, w, rows, columns, key, transposed)
    side = columns if transposed else rows
    return kernels_for("message", x).message(x, q, dq, w, side, out, key, transposed)  # type: ignore[no-any-return]


def mixed(q: Tensor, dq: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """q with its harmonics, and with its radial functions, replaced by those of dq."""
    return torch.cat([dq[:, :n], q[:, n:]], dim=1), torch.cat([q[:, :n], dq[:, n:]], dim=1)


def _tangent_autograd(
    x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str, transposed: bool
) -> Tensor:
    if not recording(x, q, dq, w):
        value: Tensor = below_autograd(message_tangent, x, q, dq, w, rows, columns, key, transposed)
        return value
    first, second = mixed(q, dq, Coupling.from_key(key).n_harmonics)
    a: Tensor = message_op(x, first, w, rows, columns, key, transposed)
    b: Tensor = message_op(x, second, w, rows, columns, key, transposed)
    return a + b


message_tangent = define(
    "message_tangent(Tensor x, Tensor q, Tensor dq, Tensor w, Tensor[] rows, Tensor[] columns, str key, "
    "bool transposed) -> Tensor",
    fake=_tangent_fake,
    compute=_tangent_cpu,
    autograd=_tangent_autograd,
)


# --- message_edge: S with q open -----------------------------------------------------------------------------


def _edge_fake(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _edge_cpu(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    out = _edge_fake(z, x, q, w, rows, columns, key)
    return kernels_for("message", x).edge(z, x, q, w, rows, out, key)  # type: ignore[no-any-return]


def _edge_autograd(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    value: Tensor = below_autograd(message_edge, z, x, q, w, rows, columns, key)
    if not recording(z, x, q, w):
        return value
    graph = (rows, columns, key)
    n = Coupling.from_key(key).n_harmonics

    def to_z(dq: Tensor, z: Tensor, x: Tensor, q: Tensor, w: Tensor) -> Tensor:
        return message_tangent(x, q, dq, w, *graph, False)  # type: ignore[no-any-return]

    def to_x(dq: Tensor, x: Tensor, z: Tensor, q: Tensor, w: Tensor) -> Tensor:
        return message_tangent(z, q, dq, w, *graph, True)  # type: ignore[no-any-return]

    def to_q(dq: Tensor, q: Tensor, z: Tensor, x: Tensor, w: Tensor) -> Tensor:
        first, second = mixed(q, dq, n)
        radial: Tensor = message_edge(z, x, first, w, *graph)
        harmonics: Tensor = message_edge(z, x, second, w, *graph)
        return torch.cat([harmonics[:, :n], radial[:, n:]], dim=1)

    def to_w(dq: Tensor, w: Tensor, z: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return message_weight_tangent(z, x, q, dq, w, *graph)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(
        value,
        (to_z, (z,), (x, q, w)),
        (to_x, (x,), (z, q, w)),
        (to_q, (q,), (z, x, w)),
        (to_w, (w,), (z, x, q)),
    )
    return result


message_edge = define(
    "message_edge(Tensor z, Tensor x, Tensor q, Tensor w, Tensor[] rows, Tensor[] columns, str key) -> Tensor",
    fake=_edge_fake,
    compute=_edge_cpu,
    autograd=_edge_autograd,
)


# --- message_weight: S with W open ---------------------------------------------------------------------------


def _weight_fake(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    return torch.empty_like(w, memory_format=torch.contiguous_format)


def _weight_cpu(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    out = _weight_fake(z, x, q, w, rows, columns, key)
    return kernels_for("message", x).weight(z, x, q, None, rows, out, key)  # type: ignore[no-any-return]


def _weight_autograd(z: Tensor, x: Tensor, q: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str) -> Tensor:
    value: Tensor = below_autograd(message_weight, z, x, q, w, rows, columns, key)
    if not recording(z, x, q):
        return value
    graph = (rows, columns, key)

    def to_z(dw: Tensor, z: Tensor, x: Tensor, q: Tensor) -> Tensor:
        return message_op(x, q, dw, *graph, False)  # type: ignore[no-any-return]

    def to_x(dw: Tensor, x: Tensor, z: Tensor, q: Tensor) -> Tensor:
        return message_op(z, q, dw, *graph, True)  # type: ignore[no-any-return]

    def to_q(dw: Tensor, q: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return message_edge(z, x, q, dw, *graph)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_z, (z,), (x, q)), (to_x, (x,), (z, q)), (to_q, (q,), (z, x)))
    return result


message_weight = define(
    "message_weight(Tensor z, Tensor x, Tensor q, Tensor w, Tensor[] rows, Tensor[] columns, str key) -> Tensor",
    fake=_weight_fake,
    compute=_weight_cpu,
    autograd=_weight_autograd,
)


def _weight_tangent_fake(
    z: Tensor, x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str
) -> Tensor:
    return torch.empty_like(w, memory_format=torch.contiguous_format)


def _weight_tangent_cpu(
    z: Tensor, x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str
) -> Tensor:
    out = torch.empty_like(w, memory_format=torch.contiguous_format)
    return kernels_for("message", x).weight(z, x, q, dq, rows, out, key)  # type: ignore[no-any-return]


def _weight_tangent_autograd(
    z: Tensor, x: Tensor, q: Tensor, dq: Tensor, w: Tensor, rows: Sides, columns: Sides, key: str
) -> Tensor:
    if not recording(z, x, q, dq):
        value: Tensor = below_autograd(message_weight_tangent, z, x, q, dq, w, rows, columns, key)
        return value
    first, second = mixed(q, dq, Coupling.from_key(key).n_harmonics)
    a: Tensor = message_weight(z, x, first, w, rows, columns, key)
    b: Tensor = message_weight(z, x, second, w, rows, columns, key)
    return a + b


message_weight_tangent = define(
    "message_weight_tangent(Tensor z, Tensor x, Tensor q, Tensor dq, Tensor w, Tensor[] rows, Tensor[] columns, "
    "str key) -> Tensor",
    fake=_weight_tangent_fake,
    compute=_weight_tangent_cpu,
    autograd=_weight_tangent_autograd,
)
