"""Products of two sets of features, channel by channel, with external weights and paths chosen at run time ('uuu').

All operations are derivatives of one form, linear in each of its four arguments,

    F = sum_p w_p sum_ijk T^p_ijk x_i y_j z_k,   T^p = sqrt(2 l3 + 1) w3j(l1, l2, l3),

with respect to one of them: the result is dF/dz, its gradients dF/dx, dF/dy and dF/dw with the cotangent for z, and so
on for ever. Two kernels do: `couple` (dF/dz, dF/dx, dF/dy with permuted tables) and `strengths` (dF/dw). A third makes
dF/dx, dF/dy and dF/dw in one pass, for training. Weights of all nodes have one row, ``(1, P, C)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor

from .backends import choose
from .conventions import Path, w3j
from .library import below_autograd, define, recording, with_gradients

# The two arguments of `couple` and the argument of the form that it leaves open, by role; as in `_numba_pairs`.
ROLES = (("x", "y", "z"), ("z", "y", "x"), ("z", "x", "y"))


def pair_product(
    x: Tensor, y: Tensor, weights: Tensor, paths: Sequence[Path], lmax: int, *, together: bool = False
) -> Tensor:
    """Weighted couplings of two features, ``z[n, l3] = sum_p w[n, p] sqrt(2 l3 + 1) w3j x[n, l1] y[n, l2]``.

    Only the given paths cost time; another selection needs no compilation.

    Args:
        x: ``(N, (L1+1)^2, C)``, component normalised.
        y: ``(N, (L2+1)^2, C)``.
        weights: ``(N, P, C)``, or ``(P, C)`` for all nodes; ``weights[..., p, :]`` belongs to ``paths[p]``.
        paths: the P selected couplings.
        lmax: largest degree of the result, of which the paths may reach only a part.
        together: whoever asks for the gradient of one argument wants those of all three, as in training without
            forces; one pass makes them in about half the time.

    Returns:
        ``(N, (lmax+1)^2, C)``; degrees that no path reaches are zero.

    Raises:
        ValueError: shapes that do not fit, or a path beyond the degrees of x, y or lmax.

    Source: QHNet (arXiv 2306.04922), pair and self layers; SPHNet (arXiv 2502.01171), sparse tensor product gate.
    """
    shared = weights.ndim == 2
    weights = weights.unsqueeze(0) if shared else weights
    n, channels = x.shape[0], x.shape[-1]
    if x.ndim != 3 or y.ndim != 3 or (y.shape[0], y.shape[2]) != (n, channels):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be (nodes, (L+1)^2, channels), alike")
    if weights.shape != (1 if shared else n, len(paths), channels):
        raise ValueError(f"weights must be {(n, len(paths), channels)}, one per path, got {tuple(weights.shape)}")
    for p in paths:
        fits = (p.l1 + 1) ** 2 <= x.shape[1] and (p.l2 + 1) ** 2 <= y.shape[1] and p.l3 <= lmax
        if not fits or not abs(p.l1 - p.l2) <= p.l3 <= p.l1 + p.l2:
            raise ValueError(f"{p} does not fit x {tuple(x.shape)}, y {tuple(y.shape)} and lmax = {lmax}")
    if choose(x, "pair_product") == "reference":
        return reference(x, y, weights, paths, lmax)
    flat = [l for p in paths for l in (p.l1, p.l2, p.l3)]
    result: Tensor = couple_op(x, y, weights, flat, [0, (lmax + 1) ** 2], together)
    return result


def reference(x: Tensor, y: Tensor, weights: Tensor, paths: Sequence[Path], lmax: int) -> Tensor:
    """`pair_product` in plain torch, path by path."""
    # Splits, not slices: their backward is one concatenation instead of a sum of zero-padded tensors.
    xs, ys = (t.split(list(range(1, 2 * isqrt(t.shape[1]), 2)), dim=1) for t in (x, y))
    blocks = [[x.new_zeros(x.shape[0], 2 * l + 1, x.shape[2])] for l in range(lmax + 1)]
    for p, weight in zip(paths, weights.split(1, dim=1), strict=False):
        products = (xs[p.l1].unsqueeze(2) * ys[p.l2].unsqueeze(1)).flatten(1, 2)
        blocks[p.l3].append(_table(p).to(x) @ products * weight)
    return torch.cat([sum(parts[1:], parts[0]) for parts in blocks], dim=1)


@cache
def _table(p: Path) -> Tensor:
    table = sqrt(2 * p.l3 + 1) * w3j(p.l1, p.l2, p.l3)
    return torch.from_numpy(table.reshape(-1, 2 * p.l3 + 1).T.copy())


def _kernels() -> Any:
    from . import _numba_pairs

    return _numba_pairs


def _differentiable(value: Tensor, arguments: dict[str, Tensor], opened: str, paths: list[int]) -> Tensor:
    """Attach the gradients: for every argument, the derivative of the form with the cotangent in the open place."""

    def group(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
        others = [other for other in arguments if other != name]

        def gradient(cotangent: Tensor, own: Tensor, *rest: Tensor) -> Tensor:
            return _gradient(name, own, dict(zip(others, rest, strict=True)) | {opened: cotangent}, paths)

        return gradient, (arguments[name],), tuple(arguments[other] for other in others)

    result: Tensor = with_gradients(value, *(group(name) for name in arguments))
    return result


def _gradient(name: str, own: Tensor, values: dict[str, Tensor], paths: list[int]) -> Tensor:
    """Derivative of the form with respect to one argument, whose value is `own`, from the three others."""
    if name == "w":
        found: Tensor = strengths_op(values["x"], values["y"], values["z"], paths, own.shape[0] == 1)
    else:
        role = next(k for k, r in enumerate(ROLES) if r[2] == name)
        first, second = values[ROLES[role][0]], values[ROLES[role][1]]
        found = couple_op(first, second, values["w"], paths, [role, own.shape[1]], False)
    return found


def _all_gradients(value: Tensor, x: Tensor, y: Tensor, w: Tensor, paths: list[int]) -> Tensor:
    """Attach the gradients of all arguments as one node."""

    def gradient(z: Tensor, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        if recording(z, x, y, w):
            values = {"x": x, "y": y, "w": w, "z": z}
            return tuple(_gradient(name, values[name], values, paths) for name in ("x", "y", "w"))
        return gradients_op(x, y, w, z, paths)  # type: ignore[no-any-return]

    result: Tensor = with_gradients(value, (gradient, (x, y, w), ()))
    return result


def _couple_autograd(a: Tensor, b: Tensor, w: Tensor, paths: list[int], opened: list[int], together: bool) -> Tensor:
    value: Tensor = below_autograd(couple_op, a, b, w, paths, opened, together)
    if not recording(a, b, w):
        return value
    if together and a.requires_grad and b.requires_grad and w.requires_grad:
        return _all_gradients(value, a, b, w, paths)
    first, second, place = ROLES[opened[0]]
    return _differentiable(value, {first: a, second: b, "w": w}, place, paths)


def _strengths_autograd(x: Tensor, y: Tensor, z: Tensor, paths: list[int], shared: bool) -> Tensor:
    value: Tensor = below_autograd(strengths_op, x, y, z, paths, shared)
    return _differentiable(value, {"x": x, "y": y, "z": z}, "w", paths) if recording(x, y, z) else value


def _strengths_fake(x: Tensor, y: Tensor, z: Tensor, paths: list[int], shared: bool) -> Tensor:
    return x.new_empty(1 if shared else x.shape[0], len(paths) // 3, x.shape[2])


couple_op = define(
    "pair_couple(Tensor a, Tensor b, Tensor w, int[] paths, int[2] opened, bool together) -> Tensor",
    fake=lambda a, b, w, paths, opened, together: a.new_empty(a.shape[0], opened[1], a.shape[2]),
    compute=lambda a, b, w, paths, opened, together: _kernels().couple(a, b, w, paths, opened),
    autograd=_couple_autograd,
)
strengths_op = define(
    "pair_strengths(Tensor x, Tensor y, Tensor z, int[] paths, bool shared) -> Tensor",
    fake=_strengths_fake,
    compute=lambda x, y, z, paths, shared: _kernels().strengths(x, y, z, paths, shared),
    autograd=_strengths_autograd,
)
gradients_op = define(
    "pair_gradients(Tensor x, Tensor y, Tensor w, Tensor z, int[] paths) -> (Tensor, Tensor, Tensor)",
    fake=lambda x, y, w, z, paths: tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, y, w)),
    compute=lambda x, y, w, z, paths: _kernels().gradients(x, y, w, z, paths, w.shape[0] == 1),
)
