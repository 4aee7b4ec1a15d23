"""Compile the Triton kernels for real GPUs on a machine without one, and print what they need as JSON.

A script, run by test_triton.py without the interpreter: `python triton_resources.py sm CASE...`, a case is
`message|backward|tangent|backward-tangent|edge|weight|weight-tangent:LMAX:PARITY:CHANNELS[:DTYPE]`,
`values|tangent|gradient|second:LMAX` or `grid|grid-gradient:LMAX:CHANNELS:HIDDEN:HEADS`.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def compiled(function, types, constants, num_warps, capability):
    """Registers, bytes of stack (spills) and shared memory of a kernel."""
    names = function.arg_names
    signature = dict(zip(names, [*types, *("constexpr" for _ in constants)], strict=True))
    source = ASTSource(function, signature, {(names.index(n),): v for n, v in constants.items()})
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        words = [CUOBJDUMP, "--dump-resource-usage", file.name]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", said).group(1)) for word in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled": stack + local, "shared": kernel.metadata.shared}


def message(kind, lmax, parity, channels, dtype="float32"):
    """A kernel of the message family with 8 radial functions and equal channels in every degree."""
    from tesseral.kernels import _triton_message
    from tesseral.kernels.conventions import coupling_paths
    from tesseral.kernels.coupling import Coupling

    degrees = tuple(range(lmax + 1))
    key = Coupling(coupling_paths(degrees, lmax, degrees, parity), (channels,) * (lmax + 1), lmax).key
    transposed, tangent = kind.startswith("backward"), kind.endswith("tangent")
    form = kind.removesuffix("-tangent")
    form = "message" if form in ("backward", "tangent") else form
    real, whole = "*" + {"float32": "fp32", "float64": "fp64"}[dtype], "*i64"
    kernel = _triton_message.build(form, key, 8, getattr(torch, dtype), transposed, tangent)
    types = {
        "message": [real] * 4 + [whole] * 3 + [real],
        "edge": [real] * 4 + [whole] * 3 + [real, "i64"],
        "weight": [real] * 4 + [whole] * 3 + [real, "i32", "i32"],
    }[form]
    return kernel.function, types, {"BLOCK": kernel.block}, max(1, kernel.block // 32)


def harmonics(kind, lmax):
    """A kernel of the harmonics."""
    from tesseral.kernels import _triton_harmonics as h

    types = ["*fp32"] * {"values": 2, "tangent": 3, "gradient": 3, "second": 4}[kind] + ["i32"]
    return h.build(kind, lmax), types, {"BLOCK": h.BLOCK}, 4


def grid(kind, lmax, channels, hidden, heads):
    """A kernel of the point-wise network on a grid of 200 points."""
    from tesseral.kernels import _triton_grid as g

    k, per_head = (lmax + 1) ** 2, channels // heads
    shapes = [(2, k, channels), (200, k), (k, 200)]
    x, synthesis, analysis = (torch.empty(s, device="meta") for s in shapes)
    parameters = [torch.empty(s, device="meta") for s in ((per_head, hidden), (hidden, per_head))]
    constants = g.constants(x, synthesis, analysis, parameters, heads)
    function = {"grid": g.forward_kernel, "grid-gradient": g.gradient_kernel}[kind]
    types = ["*fp32"] * (len(function.arg_names) - len(constants) - 2) + ["i32", "i32"]
    return function, types, constants, g.WARPS


def case(text):
    """The kernel that a case names."""
    kind, *rest = text.split(":")
    if kind.startswith("grid"):
        return grid(kind, *map(int, rest))
    if kind in ("values", "gradient", "second") or (kind == "tangent" and len(rest) == 1):
        return harmonics(kind, int(rest[0]))
    return message(kind, int(rest[0]), rest[1], int(rest[2]), *rest[3:])


if __name__ == "__main__":
    found = {text: compiled(*case(text), int(sys.argv[1])) for text in sys.argv[2:]}
    print(json.dumps(found))
