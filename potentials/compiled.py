"""Compiled energies and gradients for training on forces.

A force loss needs derivatives of a derivative. `torch.compile` cannot give them when the force gradient is taken
outside the compiled region, and gives silently wrong gradients of the weights when it traces through the kernels'
own autograd functions. What is right: record energies and gradient together as one graph of plain operations and
kernel operators (`make_fx`), and compile that graph; its derivatives then come from the operators' registered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..kernels.plan import GraphPlan
from .base import EnergyAndGradient, Potential, energy_and_gradient

COVERED = ("facet", "tesseral")
"""Architectures whose compiled gradients of weights a test compares with the eager ones."""


class _Both(nn.Module):
    """Energies and gradient of a model as the forward of a module, which `functional_call` can give weights to."""

    def __init__(self, model: Potential):
        super().__init__()
        self.model = model

    def forward(self, species: Tensor, vectors: Tensor, *graph: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_gradient(self.model, species, vectors, GraphPlan(*graph), create_graph=True)


def record(
    function: Callable[..., Any], examples: Sequence[Tensor], free: Sequence[int | None]
) -> torch.fx.GraphModule:
    """The operations of a function with autograd inside, as a graph that is valid for tensors of other sizes.

    Args:
        function: of tensors; it must not rely on `Tensor.detach` to stop the derivatives of its results.
        examples: its arguments, free axes longer than 1.
        free: of every argument, the axis whose length is free; None: the shape is fixed.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    with torch.enable_grad():
        function(*examples)  # tables that kernels build on first use and keep must not be built while recording
    fake = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    inputs = []
    for example, axis in zip(examples, free, strict=True):
        sizes = [DimDynamic.DYNAMIC if k == axis else DimDynamic.STATIC for k in range(example.ndim)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
        inputs.append(fake.from_tensor(example, symbolic_context=context))
    # The order of a contraction chosen by size would bind the graph to this size.
    with torch.backends.opt_einsum.flags(enabled=False), torch.enable_grad():
        graph: torch.fx.GraphModule = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    # The strides of intermediates may differ between recording and compiling: views must be free to copy.
    # Autograd hands a saved result to backward detached, which recording takes literally: derivatives of the gradient
    # would lose these terms.
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def compile_recorded(
    function: Callable[..., Any], examples: Sequence[Tensor], free: Sequence[int | None], backend: str
) -> Callable[..., Any]:
    """A function with autograd inside, compiled, that can be differentiated again; see `record` for the arguments."""
    compiled = torch.compile(record(function, examples, free), backend=backend)

    def run(*tensors: Tensor) -> Any:
        for tensor, axis in zip(tensors, free, strict=True):
            if axis is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return compiled(*tensors)

    return run


def compile_gradient(backend: str = "inductor") -> EnergyAndGradient:
    """A compiled `energy_and_gradient` for training on forces; batches of other sizes do not compile again.

    Args:
        backend: of torch.compile.
    """
    compiled: WeakKeyDictionary[Potential, Callable[..., Any]] = WeakKeyDictionary()

    def run(
        model: Potential, species: Tensor, vectors: Tensor, plan: GraphPlan, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        if not create_graph or len(species) < 2 or len(vectors) < 2:  # 0 and 1 would be compiled as constants
            return energy_and_gradient(model, species, vectors, plan, create_graph=create_graph)
        both = _Both(model)
        state = {**dict(both.named_parameters()), **dict(both.named_buffers())}
        tensors = (*state.values(), species, vectors.detach(), plan.source, plan.target, plan.row_ptr)
        if model not in compiled:
            names, free = tuple(state), (None,) * len(state) + (0,) * 5

            def evaluate(*tensors: Tensor) -> Any:
                given = dict(zip(names, tensors, strict=False))
                return torch.func.functional_call(_Both(own()), given, tensors[len(names) :])  # type: ignore[arg-type]

            own = ref(model)  # a strong one would keep the model alive through its own entry
            compiled[model] = compile_recorded(evaluate, tensors, free, backend)
        energies, gradient = compiled[model](*tensors)
        return energies, gradient

    return run
