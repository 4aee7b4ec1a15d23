"""Triton kernels: on the GPU where there is one, else in Triton's interpreter; and compiled ahead for real GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from tesseral.kernels.backends import choose, use_backend
from tesseral.kernels.conventions import coupling_paths
from tesseral.kernels.coupling import Coupling
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.harmonics_reference import reference_harmonics
from tesseral.kernels.message import message, reference_message
from tesseral.kernels.plan import GraphPlan
from tesseral.kernels.sphere import gauss_legendre_grid, grid_mlp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()


def graph(degrees):
    """Random sources; targets with these numbers of neighbours."""
    target = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    source = torch.randint(len(degrees), (len(target),), generator=torch.Generator().manual_seed(0))
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(degrees).cumsum(0)])
    return GraphPlan.build(torch.stack([source, target]).to(DEVICE), row_ptr.to(DEVICE))


def inputs(degrees, channels, lmax, parity, *, n_radial=2, dtype=torch.float64):
    """Arguments of `message`."""
    present = tuple(l for l, c in enumerate(channels) if c)
    coupling = Coupling(coupling_paths(present, lmax, present, parity), channels, lmax)
    plan = graph(degrees)
    x = random(plan.n_nodes, coupling.x_width, dtype=dtype)
    edges = random(len(plan.source), coupling.n_harmonics + n_radial, dtype=dtype, seed=1)
    weights = random(n_radial, coupling.n_weights, dtype=dtype, seed=2)
    return x, edges, weights, plan, coupling


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = float(b.detach().abs().max()) if b.numel() else 1.0
        assert float((a - b).detach().abs().amax()) <= tolerance * scale if b.numel() else a.shape == b.shape


def derivatives(function, arguments, *, second=True):
    """Value, gradients, and the gradients of a random combination of the gradients."""
    value = function(*arguments)
    seeds = [random(*value.shape, dtype=value.dtype, seed=8)]
    first = torch.autograd.grad(value, arguments, seeds[0], create_graph=second)
    if not second:
        return value, *first
    seeds += [random(*g.shape, dtype=g.dtype, seed=9 + k) for k, g in enumerate(first)]
    total = sum((g * s.detach()).sum() for g, s in zip(first, seeds[1:], strict=True))
    return value, *first, *torch.autograd.grad(total, (seeds[0], *arguments))


@pytest.mark.parametrize(
    ("channels", "lmax", "parity", "dtype"),
    [
        ((3, 2), 1, "o3", torch.float64),
        ((40, 0, 1), 2, "so3", torch.float64),  # more channels than a program has lanes; a degree without any
        ((3, 2), 1, "so3", torch.float32),
    ],
)
def test_message_and_its_derivatives(channels, lmax, parity, dtype):
    x, edges, weights, plan, coupling = inputs((2, 0, 3), channels, lmax, parity, dtype=dtype)
    arguments = (x, edges, weights)
    expected = derivatives(lambda *a: reference_message(*a, plan, coupling), arguments)
    with use_backend("triton"):
        found = derivatives(lambda *a: message(*a, plan, coupling), arguments)
    assert_close(found, expected, TOLERANCE[dtype])


def test_many_paths_are_split_among_programs():
    """All couplings at degree 3 with 8 radial functions: more than the registers of one program take."""
    from tesseral.kernels import _triton_message

    x, edges, weights, plan, coupling = inputs((1,), (1, 1, 1, 1), 3, "so3", n_radial=8)
    kernel = _triton_message.build("message", coupling.key, 8, x.dtype, False, False)
    assert kernel.programs > 4
    expected = derivatives(lambda *a: reference_message(*a, plan, coupling), (x, edges, weights), second=False)
    with use_backend("triton"):
        found = derivatives(lambda *a: message(*a, plan, coupling), (x, edges, weights), second=False)
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("degrees", [(0, 0), (), (300, 1)])
def test_rows_of_any_length(degrees):
    """No edges, no nodes, and a node with very many neighbours."""
    x, edges, weights, plan, coupling = inputs(degrees or (0,), (1,), 0, "o3", n_radial=1)
    if not degrees:
        x, plan = x[:0], GraphPlan(plan.source, plan.target, plan.row_ptr[:1])
    with use_backend("triton"):
        found = message(x, edges, weights, plan, coupling)
        gradient = torch.autograd.grad(found.sum(), (x, edges, weights))
    expected = reference_message(x, edges, weights, plan, coupling)
    assert_close([found], [expected], 1e-12)
    assert_close(gradient, torch.autograd.grad(expected.sum(), (x, edges, weights)), 1e-12)


def test_messages_repeat_bitwise():
    x, edges, weights, plan, coupling = inputs((4, 3), (3, 2), 1, "o3", dtype=torch.float32)
    with use_backend("triton"):
        first, again = (
            derivatives(lambda *a: message(*a, plan, coupling), (x, edges, weights), second=False) for _ in "12"
        )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lmax", [1, 4])
def test_harmonics_and_their_derivatives(lmax, dtype):
    from tesseral.kernels import _triton_harmonics

    v, dv = random(5, 3, dtype=dtype), random(5, 3, dtype=dtype, seed=1)
    f = random(5, (lmax + 1) ** 2, dtype=dtype, seed=2)
    with torch.no_grad():
        v[0] = torch.tensor([0.0, -2.0, 0.0])  # along the polar axis, where trigonometric forms have their pole
    value = reference_harmonics(v, lmax)
    (gradient,) = torch.autograd.grad(value, v, f, create_graph=True)
    second, tangent = torch.autograd.grad(gradient, (v, f), dv)
    with torch.no_grad():
        found = [
            _triton_harmonics.harmonics(v, lmax),
            _triton_harmonics.gradient(v, f, lmax),
            _triton_harmonics.second(v, dv, f, lmax),
            _triton_harmonics.tangent(v, dv, lmax),
        ]
    assert_close(found, [value, gradient, second, tangent], 20 * TOLERANCE[dtype])


def test_spherical_harmonics_run_on_triton():
    v = random(4, 3)
    with use_backend("triton"):
        found = derivatives(lambda v: spherical_harmonics(v, 3), (v,))
        assert spherical_harmonics(v[:0], 3).shape == (0, 16)
    assert_close(found, derivatives(lambda v: reference_harmonics(v, 3), (v,)), 1e-11)


@pytest.mark.parametrize(("heads", "biased", "lmax"), [(2, True, 2), (1, False, 1)])
def test_grid_mlp_and_its_derivatives(heads, biased, lmax):
    grid, channels, hidden = gauss_legendre_grid(2, 4, 10).to(DEVICE), 6, 5
    shapes = [(channels // heads, hidden), (hidden, channels // heads)]
    shapes += [(hidden,), (channels // heads,)] if biased else []
    arguments = [random(3, 9, channels, dtype=torch.float32)]
    arguments += [random(*s, dtype=torch.float32, seed=k) for k, s in enumerate(shapes)]

    def run(x, *parameters):
        biases = parameters[2:] or None
        return grid_mlp(x, grid, parameters[:2], biases=biases, heads=heads, lmax=lmax)

    with use_backend("reference"):
        expected = derivatives(run, arguments)
    with use_backend("triton"):
        found = derivatives(run, arguments)
    assert_close(found, expected, 3e-5)


def test_float64_networks_on_the_grid_run_on_torch():
    x = torch.zeros(1, 1, 2, dtype=torch.float64)
    with use_backend("triton"), pytest.raises(ValueError, match="triton takes float32 on a GPU"):
        choose(x, "grid_mlp")


def test_self_checks_pass_and_catch(monkeypatch):
    """What runs on a GPU's first use; a kernel that is wrong by one part in a thousand is refused."""
    from tesseral.kernels import _triton_grid, _triton_harmonics, _triton_message

    *_, coupling = inputs((1,), (3, 2), 1, "so3")
    device = torch.device(DEVICE)
    kinds = [("message", False), ("message", True), ("edge", False), ("weight", False), ("weight", True)]
    for kind, tangent in kinds:
        for transposed in {False, kind == "message"}:
            _triton_message.verify.__wrapped__(kind, coupling.key, 2, torch.float64, transposed, tangent, device)
    _triton_harmonics.verify.__wrapped__(3, torch.float32, device)
    _triton_grid.verify.__wrapped__(4, torch.Size((4, 10)), torch.Size((3, 5)), 2, True, device)

    plain = _triton_message.nonzero
    monkeypatch.setattr(_triton_message, "nonzero", lambda t: [(a, b, c, 1.001 * v) for a, b, c, v in plain(t)])
    _triton_message.build.cache_clear()
    with pytest.raises(RuntimeError, match="TESSERAL_BACKEND=reference"):
        _triton_message.verify.__wrapped__("message", coupling.key, 2, torch.float64, False, False, device)
    _triton_message.build.cache_clear()


REGISTERS = {  # at most
    "values:3": 64,
    "second:3": 96,
    "message:1:o3:64": 96,
    "backward:1:so3:64": 96,
    "tangent:1:o3:64": 96,
    "edge:1:o3:64": 96,
    "weight-tangent:1:o3:64": 96,
    "message:1:o3:64:float64": 128,
    "grid:3:64:16:2": 128,
    "grid-gradient:3:64:16:2": 255,
}


@pytest.mark.parametrize(
    ("capability", "cases"), [(90, list(REGISTERS)), (80, ["edge:1:o3:64", "grid-gradient:3:64:16:2"])]
)
def test_kernels_compile_for_gpus(capability, cases):
    """No spills to memory, and registers and shared memory within what the GPU has (sm_80: 163 kB a block)."""
    script = Path(__file__).with_name("triton_resources.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, str(script), str(capability), *cases]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {k: v["spilled"] for k, v in found.items()} == dict.fromkeys(cases, 0)
    assert {k: v["registers"] for k, v in found.items() if v["registers"] > REGISTERS[k]} == {}
    assert all(v["shared"] < 163 * 1024 for v in found.values())
