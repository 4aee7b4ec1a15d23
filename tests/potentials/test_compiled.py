"""Recorded and compiled derivatives equal eager ones, for every operation with kernels of its own."""

import pytest
import torch

from tesseral.kernels.backends import OPERATIONS
from tesseral.kernels.conventions import coupling_paths
from tesseral.kernels.coupling import Coupling
from tesseral.kernels.degrees import degree_dot, degree_gate
from tesseral.kernels.fields import field_products
from tesseral.kernels.gaunt import gaunt_product
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.linear import degree_linear
from tesseral.kernels.message import message, species_density
from tesseral.kernels.pairs import pair_product
from tesseral.kernels.plan import GraphPlan
from tesseral.kernels.sphere import gauss_legendre_grid, grid_mlp
from tesseral.kernels.weighted import weighted_message
from tesseral.potentials.compiled import compile_recorded, record

GRID = gauss_legendre_grid(1, 4, 6)
PATHS = coupling_paths((0, 1), 1, (0, 1), "o3")
COUPLING = Coupling(PATHS, (3, 2), 1)


def plan(n):
    """Every node receives from the next two."""
    target = torch.arange(n).repeat_interleave(2)
    source = (target + torch.tensor([1, 2]).repeat(n)) % n
    return GraphPlan(source, target, torch.arange(0, 2 * n + 1, 2))


# Functions of x, whose rows are free, and of weights w; shapes of both, without the rows.
CASES = {
    "degree_products": (lambda x, w: degree_gate(x * w, degree_dot(x, x * w)), (4, 3), (3,)),
    "degree_linear": (lambda x, w: degree_linear(x, w, (3, 2), (2, 2)), (9,), (10,)),
    "field_products": (lambda x, w: field_products(x * w, 1), (4, 6), (6,)),
    "gaunt_product": (lambda x, w: gaunt_product(x, x * w, 2), (4, 3), (3,)),
    "grid_mlp": (lambda x, w: grid_mlp(x, GRID, (w, w.T)), (4, 3), (3, 3)),
    "pair_product": (lambda x, w: pair_product(x, x, w, PATHS, 1), (4, 3), (len(PATHS), 3)),
    "spherical_harmonics": (lambda x, w: spherical_harmonics(x, 2) * w, (3,), (9,)),
}


def example(name, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    _, x, w = CASES[name]
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in ((rows, *x), w)
    ]


def energy_and_gradient(function):
    """Of a function of tensors: the sum of tanh, and its gradient with respect to the first one."""

    def run(x, *others):
        x = x.requires_grad_() if x.is_leaf else x
        energy = function(x, *others).tanh().sum()
        return energy, torch.autograd.grad(energy, x, create_graph=True)[0]

    return run


def derivatives(run, tensors):
    energy, gradient = run(*tensors)
    found = torch.autograd.grad(energy + gradient.square().sum(), tensors)
    return [energy.detach(), gradient.detach(), *found]


def close(found, expected):
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(found, expected, strict=True))


def test_cases_cover_all_operations():
    assert set(CASES) | {"message", "species_density", "weighted_message"} == set(OPERATIONS)


@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_eager(name):
    """Energy, gradient and the derivatives of a loss on both, on sizes other than the recorded one too."""
    run = energy_and_gradient(CASES[name][0])
    compiled = compile_recorded(run, example(name, 5, 0), (0, None), "aot_eager")
    for rows in (5, 8):
        tensors = example(name, rows, rows)
        assert close(derivatives(compiled, tensors), derivatives(run, tensors))


def on_graph(name):
    if name == "message":
        return lambda q, x, w, *graph: message(x, q, w, GraphPlan(*graph), COUPLING), (6, 9, 2)
    if name == "weighted_message":
        return lambda q, x, w, *graph: weighted_message(
            x.unflatten(1, (4, 3)), q[:, :4], q[:, 4:, None] * w[:, :3], GraphPlan(*graph), PATHS, 1
        ), (5, 12, len(PATHS))
    return lambda q, x, w, *graph: species_density(q, (x[:, 0] > 0).long(), 2, 4, GraphPlan(*graph)), (
        6,
        1,
        1,
    )


@pytest.mark.parametrize("name", ["message", "species_density", "weighted_message"])
def test_compiled_equals_eager_on_graphs(name):
    function, (columns, width, rows) = on_graph(name)
    run = energy_and_gradient(function)

    def inputs(n):
        generator = torch.Generator().manual_seed(n)
        shapes = [(2 * n, columns), (n, width), (rows, COUPLING.n_weights)]
        tensors = [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]
        graph = plan(n)
        return tensors, [graph.source, graph.target, graph.row_ptr]

    tensors, graph = inputs(5)
    compiled = compile_recorded(run, [*tensors, *graph], (0, 0, None, 0, 0, 0), "aot_eager")
    for n in (5, 8):
        tensors, graph = inputs(n)
        results = []
        for evaluate in (compiled, run):
            energy, gradient = evaluate(*tensors, *graph)
            found = torch.autograd.grad(energy + gradient.square().sum(), tensors, allow_unused=True)
            results.append([energy.detach(), gradient.detach(), *(f for f in found if f is not None)])
        assert close(*results)


def test_saved_results_keep_their_derivatives():
    """Autograd saves the result of exp and sqrt detached; recording that literally lost terms of the loss."""
    run = energy_and_gradient(lambda x, w: (x * w).exp().sqrt())
    x, w = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, 1.2, 0.7], [0.5, 0.1, 2.0]))
    graph = record(run, (x, w), (None, None))
    assert close(derivatives(graph, [x, w]), derivatives(run, [x, w]))
