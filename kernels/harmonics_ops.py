"""Operators behind `spherical_harmonics` of directions: values, change along a tangent, gradient.

Each is the derivative of another with respect to its linear arguments; only the second derivative of a gradient or
a tangent with respect to the vectors themselves (Hessians) runs on the reference, where no GPU kernel has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import kernels_for
from .library import below_autograd, define, recording, with_gradients


def _fake(v: Tensor, lmax: int) -> Tensor:
    return v.new_empty(v.shape[0], (lmax + 1) ** 2)


def _autograd(v: Tensor, lmax: int) -> Tensor:
    value: Tensor = below_autograd(harmonics_op, v, lmax)
    if not recording(v):
        return value

    def to_v(f: Tensor, v: Tensor) -> Tensor:
        return harmonics_gradient(v, f, lmax)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_v, (v,), ()))
    return result


harmonics_op = define(
    "harmonics(Tensor v, int lmax) -> Tensor",
    fake=_fake,
    compute=lambda v, lmax: kernels_for("harmonics", v).harmonics(v, lmax),
    autograd=_autograd,
)


def _tangent_autograd(v: Tensor, dv: Tensor, lmax: int) -> Tensor:
    value: Tensor = below_autograd(harmonics_tangent, v, dv, lmax)
    if not recording(v, dv):
        return value

    def to_v(f: Tensor, v: Tensor, dv: Tensor) -> Tensor:
        return _second(v, dv, f, lmax)

    def to_dv(f: Tensor, dv: Tensor, v: Tensor) -> Tensor:
        return harmonics_gradient(v, f, lmax)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_v, (v,), (dv,)), (to_dv, (dv,), (v,)))
    return result


harmonics_tangent = define(
    "harmonics_tangent(Tensor v, Tensor dv, int lmax) -> Tensor",
    fake=lambda v, dv, lmax: _fake(v, lmax),
    compute=lambda v, dv, lmax: kernels_for("harmonics", v).tangent(v, dv, lmax),
    autograd=_tangent_autograd,
)


def _gradient_autograd(v: Tensor, f: Tensor, lmax: int) -> Tensor:
    value: Tensor = below_autograd(harmonics_gradient, v, f, lmax)
    if not recording(v, f):
        return value

    def to_v(dv: Tensor, v: Tensor, f: Tensor) -> Tensor:
        return _second(v, dv, f, lmax)

    def to_f(dv: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return harmonics_tangent(v, dv, lmax)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (to_v, (v,), (f,)), (to_f, (f,), (v,)))
    return result


harmonics_gradient = define(
    "harmonics_gradient(Tensor v, Tensor f, int lmax) -> Tensor",
    fake=lambda v, f, lmax: torch.empty_like(v, memory_format=torch.contiguous_format),
    compute=lambda v, f, lmax: kernels_for("harmonics", v).gradient(v, f, lmax),
    autograd=_gradient_autograd,
)


harmonics_second = define(
    "harmonics_second(Tensor v, Tensor dv, Tensor f, int lmax) -> Tensor",
    fake=lambda v, dv, f, lmax: torch.empty_like(v, memory_format=torch.contiguous_format),
    compute=lambda v, dv, f, lmax: kernels_for("harmonics", v).second(v, dv, f, lmax),
)


def _second(v: Tensor, dv: Tensor, f: Tensor, lmax: int) -> Tensor:
    """Gradient with respect to v of ``f . dY/dv dv``, from the reference where it is differentiated on."""
    from .harmonics_reference import reference_harmonics

    create_graph = recording(v, dv, f)
    if v.is_cuda and not create_graph:
        return harmonics_second(v, dv, f, lmax)  # type: ignore[no-any-return]
    with torch.enable_grad():
        leaf = v if create_graph else v.detach().requires_grad_()
        y = reference_harmonics(leaf, lmax)
        (first,) = torch.autograd.grad(y, leaf, f, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf, dv, create_graph=create_graph)
    return second
