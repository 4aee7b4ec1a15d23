"""Which backend runs, what is said about it, and what happens where the wanted one cannot run."""

import sys
import warnings

import pytest
import torch

from tesseral.kernels import backends as listed
from tesseral.kernels import explain, use_backend
from tesseral.kernels.backends import OPERATIONS, VARIABLE, choose


@pytest.fixture
def machine(monkeypatch):
    """A function that says what is missing on an imagined machine."""
    module = sys.modules["tesseral.kernels.backends"]  # the package's attribute of that name is a function

    def missing(**reasons):
        monkeypatch.setattr(module, "_reason_against", reasons.get)
        module._say_once.cache_clear()

    return missing


class OnGPU:
    """What the choice reads of a tensor, for a device that need not be here."""

    def __init__(self, dtype=torch.float32):
        self.dtype, self.device, self.is_cuda = dtype, torch.device("cuda:0"), True


def test_every_operation_has_a_choice_on_this_machine():
    for name in OPERATIONS:
        assert choose(torch.zeros(1), name) in listed()


@pytest.mark.parametrize(("operation", "backend"), [("message", "triton"), ("gaunt_product", "cupy")])
def test_gpu_tensors_get_gpu_kernels(machine, operation, backend):
    machine()
    assert choose(OnGPU(), operation) == backend
    assert explain(operation, OnGPU()) == (
        f"{operation} on float32 on cuda:0: {backend} (automatic: takes float32 and float64 on a GPU)"
    )


def test_other_dtypes_run_on_torch_and_it_is_explained(machine):
    machine()
    assert choose(OnGPU(torch.bfloat16), "message") == "reference"
    text = explain("message", OnGPU(torch.bfloat16))
    assert "reference (plain torch: " in text
    assert "triton takes float32 and float64 on a GPU" in text


def test_a_missing_package_is_said_once(machine):
    machine(triton="triton is not installed")
    with pytest.warns(UserWarning, match="triton is not installed: kernels run on plain torch, slower on a GPU"):
        assert choose(OnGPU(), "message") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(OnGPU(), "spherical_harmonics") == "reference"
    assert "triton is not installed" in explain("message", OnGPU())


def test_a_forced_backend_that_an_operation_lacks_is_said_once(machine):
    machine()
    with use_backend("cupy"), pytest.warns(UserWarning, match="message has no cupy version"):
        assert choose(OnGPU(), "message") == "triton"


def test_a_forced_backend_that_cannot_run_is_an_error(machine, monkeypatch):
    machine(cupy="cupy needs a CUDA device")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with (
        use_backend("triton"),
        pytest.raises(ValueError, match=r"takes float32 and float64 on a GPU, not float32 on cpu"),
    ):
        choose(torch.zeros(1), "message")
    with pytest.raises(ValueError, match="'cupy' is not available here"), use_backend("cupy"):
        pass
    monkeypatch.setenv(VARIABLE, "reference")
    assert explain("message", torch.zeros(1)).endswith("reference (asked for)")


def test_explain_needs_an_operation_and_tensors():
    with pytest.raises(ValueError, match=r"no kernel operation 'mesage'; there are: .*message"):
        explain("mesage", torch.zeros(1))
    with pytest.raises(ValueError, match="needs the tensors"):
        explain("message")
