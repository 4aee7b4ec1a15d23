"""The generated CUDA C: run on the CPU through a small shim, and compiled for real GPUs where nvcc is present."""

import ctypes
import shutil
import subprocess
from functools import cache

import pytest
import torch

from tesseral.kernels import _cuda, gaunt
from tesseral.kernels.backends import self_check
from tesseral.kernels.gaunt import gaunt_product, product_terms

# What a kernel without shared memory needs in order to be a C++ function: its index variables, and loops around it.
SHIM = """
#define __global__
#define __launch_bounds__(n)
struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx, blockDim;
"""
LOOPS = """
extern "C" void run(long long blocks, long long threads, void* x, void* y, void* z, long long n, long long c)
{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            contract((real*)x, (real*)y, (real*)z, n, c);
}
"""


@pytest.fixture
def shim(monkeypatch, tmp_path):
    """The CUDA C kernels stand in for those of the CPU, compiled by g++."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run the CUDA source on the CPU")
    built = []

    @cache
    def load(source, name, device):
        code, library = tmp_path / f"{len(built)}.cpp", tmp_path / f"{len(built)}.so"
        built.append(library)
        code.write_text(SHIM + source + LOOPS)
        subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", library, code], check=True)
        function = ctypes.CDLL(str(library)).run
        return lambda blocks, arguments: function(
            *(ctypes.c_longlong(int(a)) for a in (blocks, _cuda.THREADS, *arguments))
        )

    def contraction(degrees, paths, dtype, device):
        return _cuda.compile_contraction(product_terms(*degrees, paths), tuple((l + 1) ** 2 for l in degrees))

    monkeypatch.setattr(_cuda, "_load", load)
    monkeypatch.setattr(gaunt, "_contraction", contraction)
    monkeypatch.setattr(gaunt, "choose", lambda x, operation: "cupy")
    return built


def fields(l1, l2, nodes, channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(nodes, (l + 1) ** 2, channels, generator=generator, dtype=dtype, requires_grad=True)
        for l in (l1, l2)
    ]


@pytest.mark.parametrize(("l1", "l2", "lmax"), [(0, 0, 0), (3, 1, 0), (2, 3, 4), (3, 3, 3)])
def test_the_source_computes_the_gaunt_product(shim, l1, l2, lmax):
    """Sizes that do not fill the last block; products that leave rows of an input unread."""
    x, y = fields(l1, l2, 3, 50)
    found = gaunt_product(x, y, lmax)
    assert shim
    assert torch.allclose(found, gaunt._reference(x, y, lmax), atol=1e-12, rtol=0)


def test_single_precision(shim):
    x, y = fields(2, 2, 5, 30, torch.float32)
    expected = gaunt._reference(x.double(), y.double(), 2)
    found = gaunt_product(x, y, 2)
    assert float(((found - expected).abs().max() / expected.abs().max()).detach()) < 1e-6


def test_derivatives(shim):
    x, y = fields(1, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda a, b: gaunt_product(a, b, 2), (x, y))
    assert torch.autograd.gradgradcheck(lambda a, b: gaunt_product(a, b, 2), (x, y))
    (gradient,) = torch.autograd.grad(gaunt_product(x, y, 2).sum(), x)  # a cotangent of stride 0
    (expected,) = torch.autograd.grad(gaunt._reference(x, y, 2).sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_nothing_to_do(shim):
    assert gaunt_product(torch.zeros(0, 4, 3), torch.zeros(0, 9, 3), 2).shape == (0, 9, 3)
    assert not shim


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("lmax", "c_type", "registers"), [(3, "float", 64), (4, "float", 96), (3, "double", 128)])
def test_registers_suffice(tmp_path, architecture, lmax, c_type, registers):
    """What nvcc says: no spills, and few enough registers for several blocks per multiprocessor."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    rows = (lmax + 1) ** 2
    code = tmp_path / "k.cu"
    code.write_text(_cuda.contraction_source(product_terms(lmax, lmax, lmax), (rows, rows, rows), c_type))
    words = ["nvcc", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "k.cubin", code]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said
    assert int(said.split("Used ")[1].split(" registers")[0]) <= registers


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvrtc_accepts_the_source(architecture):
    """The compiler that CuPy calls on a GPU machine; it needs no driver."""
    nvrtc = pytest.importorskip("cupy.cuda").nvrtc
    source = _cuda.contraction_source(product_terms(2, 2, 2), (9, 9, 9), "float")
    try:
        program = nvrtc.createProgram(source, "contract.cu", (), ())
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no NVRTC library here: {error}")
    nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}",))
    assert len(nvrtc.getCUBIN(program)) > 1000


def test_a_wrong_kernel_is_caught_loudly():
    right = torch.randn(4, 3)
    self_check("gaunt_product", "cupy", right + 1e-6, right)
    for wrong in (right * 1.001, right * float("nan")):
        with pytest.raises(RuntimeError, match="TESSERAL_BACKEND=reference"):
            self_check("gaunt_product", "cupy", wrong, right)
