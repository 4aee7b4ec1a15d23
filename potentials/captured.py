"""Whole steps as CUDA graphs: energy, forces and stress of a small system by one launch instead of hundreds.

A step of `export.Deployed`, its gradient inside, is recorded once on memory of a fixed size. Every further structure is
padded with ghosts to that size, copied there, and replayed: one copy in, one launch, one copy out. A structure that
does not fit makes a larger recording, which then serves all.

What is recorded must not make the host wait (no `.item()`, no copies between host and GPU), and its shapes must follow
from the sizes alone: tests/potentials/test_captured.py holds all architectures to it, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..kernels.backends import VARIABLE, forced
from .artefact import Deployment
from .base import Potential
from .export import Deployed, Outputs, disagreement, padded

LARGEST = 512
"""Atoms up to which steps are captured: where launching takes longer than running.

An estimate, no GPU has confirmed it: a step of `tesseral-solids` is 450 operations on a GPU, which take 5 µs or more
each to launch from Python and autograd, 2.3 ms together; the bytes that they move take some 1 to 4 µs per atom,
depending on the GPU: the two are equal between 600 and 2300 atoms. Beyond, padding costs more than it saves."""
WARM_UPS = 3
"""Runs before the recording: kernels compile, check themselves and fill their tables, and libraries make workspaces."""

Capture = Callable[[Callable[..., Tensor], Sequence[Tensor]], Callable[[], Tensor]]
"""``capture(function, buffers)`` returns a replay: what ``function(*buffers)`` returns for what they hold then."""


class CaptureError(RuntimeError):
    """A model's steps cannot be captured here; the text says why."""


def cuda_graph(function: Callable[..., Tensor], buffers: Sequence[Tensor]) -> Callable[[], Tensor]:
    """The `Capture` of a GPU. The replay's result lies in the same memory every time."""
    device = buffers[0].device
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function(*buffers)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(*buffers)

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay


def suits(model: Any) -> TypeGuard[Potential]:
    """Whether steps of a calculator's model are worth capturing: a `Potential` on a GPU."""
    return isinstance(model, Potential) and model.device.type == "cuda" and not getattr(model, "inputs", ())


def explain() -> str:
    """One line: which steps on a GPU are captured, and why."""
    if name := forced():
        return f"no CUDA graphs (backend {name} asked for)"
    return f"one CUDA graph up to {LARGEST} atoms (automatic: launches dominate; {VARIABLE}=triton does without)"


class Buffers:
    """Memory of a step's inputs, of one size for good, on the host and on the device.

    All inputs have eight bytes per number and lie side by side, so that one copy moves them.

    Args:
        atoms, edges: the size.
        device: where the step runs.

    Attributes:
        inputs: numbers, edge_index, vectors and volume on the device.
    """

    def __init__(self, atoms: int, edges: int, device: torch.device):
        self._sizes = (atoms, 2 * edges, 3 * edges, 1)
        n = sum(self._sizes)
        self._host = torch.zeros(n, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(n, dtype=torch.int64, device=device)
        self.inputs, self._written = self._views(self._device), self._views(self._host)

    def fill(self, *values: Tensor) -> None:
        """Copy inputs of just this size; the last fill must have been used, as after reading a step's results."""
        for view, value in zip(self._written, values, strict=True):
            view.copy_(value)
        self._device.copy_(self._host, non_blocking=True)

    def _views(self, words: Tensor) -> tuple[Tensor, ...]:
        numbers, edge_index, vectors, volume = words.split(self._sizes)
        return (
            numbers,
            edge_index.view(2, -1),
            vectors.view(torch.float64).view(-1, 3),
            volume.view(torch.float64)[0],
        )


Recording = tuple[Deployed, Buffers, Callable[[], Tensor]]


class CapturedStep(Deployment):
    """A frozen model that predicts small structures by replaying a captured step.

    Results are on the host. A change of the weights is noticed and makes a new recording.

    Args:
        model: the potential, on its device.
        capture: how steps are captured.

    Attributes:
        size: atoms and edges of the recording, ghosts included; grows with what is asked.
        recordings: how many were made.
    """

    def __init__(self, model: Potential, capture: Capture = cuda_graph):
        super().__init__(model.elements, model.cutoff)
        self.model, self.capture = model, capture
        self.size, self.recordings = (0, 0), 0
        self._recording: Recording | None = None
        self._weights: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []
        self._checked = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A recording cannot be copied; a copy makes its own.
        return type(self), (self.model, self.capture)

    def takes(self, n_atoms: int) -> bool:
        """Whether a structure of this size is worth a captured step; never where a kernel backend was asked for."""
        return 0 < n_atoms <= LARGEST and forced() is None

    def run(self, numbers: Tensor, edge_index: Tensor, vectors: Tensor, volume: Tensor) -> Outputs:
        """As `export.Deployed`, from and to the host.

        Raises:
            CaptureError: the model's steps cannot be captured.
            RuntimeError: the first replay gives other numbers than the model.
        """
        atoms, edges = len(numbers), len(vectors)
        step, buffers, replay = self._fitting(atoms, edges) or self._record(atoms, edges)
        buffers.fill(*padded(numbers, edge_index, vectors, self.cutoff, self.size), volume)
        n = self.size[0]
        energy, energies, forces, stress = replay().to("cpu", copy=True).split([1, n, 3 * n, 6])
        found = energy[0], energies, forces.view(n, 3), stress
        if not self._checked:
            self._check(step, (numbers, edge_index, vectors, volume), found)
        return found

    def _fitting(self, atoms: int, edges: int) -> Recording | None:
        fits = needs(atoms) <= self.size[0] and edges <= self.size[1]
        return self._recording if fits and self._versions == self._found_versions() else None

    def _record(self, atoms: int, edges: int) -> Recording:
        self._recording, self._checked = None, False  # the old one gives its memory back first
        self.size = (
            max(self.size[0], rounded(needs(atoms), 16)),
            max(self.size[1], rounded(edges + edges // 16, 64)),
        )
        self._weights = [*self.model.parameters(), *self.model.buffers()]
        try:
            self._versions = self._found_versions()
            step, buffers = Deployed(self.model), Buffers(*self.size, self.model.device)

            def packed(*inputs: Tensor) -> Tensor:
                return torch.cat([out.detach().flatten() for out in step(*inputs)])

            recording = step, buffers, self.capture(packed, buffers.inputs)
        except Exception as error:  # whatever a model's own parts, or the driver, stumble over
            reason = (str(error).strip().splitlines() or [""])[0]
            raise CaptureError(f"{type(error).__name__}: {reason}") from error
        self._recording, self.recordings = recording, self.recordings + 1
        return recording

    def _found_versions(self) -> list[tuple[int, int]]:
        return [(w.data_ptr(), w._version) for w in self._weights]

    def _check(self, step: Deployed, inputs: Outputs, found: Outputs) -> None:
        """Compare with the same model, unpadded and not captured; once per recording."""
        expected = [out.detach().cpu() for out in step(*(t.to(self.model.device) for t in inputs))]
        if not all(bool(out.isfinite().all()) for out in expected):
            return  # nothing to learn from it; the next structure is compared
        n = len(inputs[0])
        energy, energies, forces, stress = found
        if wrong := disagreement((energy, energies[:n], forces[:n], stress), expected, self.model.dtype):
            self._recording = None
            raise RuntimeError(
                f"the captured step's {wrong} on {n} atoms with torch {torch.__version__}. Results cannot be trusted "
                f"here: set {VARIABLE}=triton to do without CUDA graphs, and please report this"
            )
        self._checked = True


def needs(atoms: int) -> int:
    """Atoms with an eighth more for ghosts, which share the spare edges: about as many as atoms have."""
    return atoms + atoms // 8 + 1


def rounded(n: int, least: int) -> int:
    """Up to one of 8 to 16 sizes per factor of two."""
    step = 1 << max((n - 1).bit_length() - 4, 0)
    return max(-(-n // step) * step, least)
