"""The torch operator library "tesseral": what `torch.compile`, export and meta tensors see of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("tesseral", "DEF")


def define(
    schema: str,
    *,
    fake: Callable[..., Any],
    compute: Callable[..., Any],
    autograd: Callable[..., Any] | None = None,
) -> Any:
    """Register an operator and return it.

    Args:
        schema: ``"name(Tensor x, ...) -> Tensor"``.
        fake: shapes and dtypes of the results, without data.
        compute: the computation, on tensors of any device that has kernels.
        autograd: what runs where gradients may be recorded; it must reach the computation through
            `below_autograd`. Without it the operator has no derivative: a building block of one that has.
    """
    name = _LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, compute, device)
    torch.library.register_fake(f"tesseral::{name}", fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, autograd, "Autograd")
    return getattr(torch.ops.tesseral, name).default


def below_autograd(operator: Any, *args: Any) -> Any:
    """Run the operator's computation itself."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def recording(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what happens to one of these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class _Whole(torch.autograd.Function):
    """Gives a computed value its gradient node: the case of one group of inputs, with half the overhead."""

    @staticmethod
    def forward(ctx: Any, gradient: Any, others: Any, value: Any, *inputs: Any) -> Any:
        ctx.gradient = gradient
        ctx.save_for_backward(*inputs, *others)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:  # type: ignore[override]
        gradients = ctx.gradient(cotangent, *ctx.saved_tensors)
        return (None, None, None, *(gradients if isinstance(gradients, tuple) else (gradients,)))


class _Share(torch.autograd.Function):
    """Gives a computed value its gradient nodes; every node receives the whole cotangent."""

    @staticmethod
    def forward(ctx: Any, value: Any, *nodes: Any) -> Any:
        ctx.n = len(nodes)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:  # type: ignore[override]
        return (None, *(cotangent for _ in range(ctx.n)))


class _Node(_Whole):
    """A zero of the value's shape without memory, whose backward is the gradient of a group of inputs."""

    @staticmethod
    def forward(ctx: Any, gradient: Any, others: Any, value: Any, *inputs: Any) -> Any:
        # `others` come in a tuple, unseen by autograd: they must not make this node run for their sake. They keep
        # their own history, so the gradient can be differentiated with respect to them too.
        ctx.gradient = gradient
        ctx.save_for_backward(*inputs, *others)
        return value.new_zeros(()).expand(value.shape)


def with_gradients(value: Any, *groups: tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]) -> Any:
    """Attach one gradient node per group of inputs to a computed value.

    Autograd runs a node only if the caller asked for the gradient of one of its inputs: forces need the gradient
    with respect to edge vectors but not the expensive one with respect to weights. One custom Function for all
    inputs could not know (its `needs_input_grad` says what may be differentiated, not what is wanted now).

    Args:
        value: the result, computed without recording.
        groups: ``(gradient, inputs, others)``: ``gradient(cotangent, *inputs, *others)`` returns the gradients of
            the inputs, made of differentiable operations.
    """
    wanted = [group for group in groups if any(t.requires_grad for t in group[1])]
    if len(wanted) == 1:
        gradient, inputs, others = wanted[0]
        return _Whole.apply(gradient, others, value, *inputs)
    nodes = [_Node.apply(gradient, others, value, *inputs) for gradient, inputs, others in wanted]
    return _Share.apply(value, *nodes) if nodes else value
