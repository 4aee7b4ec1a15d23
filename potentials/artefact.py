"""Exported potentials (``.pt2``, see `potentials.export`): reading their header and running them from Python.

An artefact holds machine code: load only files that you or people you trust have exported. Its header can be read
without running anything.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from ..datasets.elements import MAX_Z
from ..datasets.errors import UserError
from ..datasets.graph import Graph
from .base import Potential, Prediction, check_known, checked_periodic
from .export import FORMAT, FORMAT_VERSION, METADATA_KEY, Outputs, header, padded

SUFFIX = ".pt2"


def read_artefact_header(path: str | Path) -> dict[str, Any]:
    """What an artefact says of itself; runs no code from it.

    Raises:
        UserError: no such file, no artefact of ours, or one of another format version.
    """
    try:
        with ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_metadata.json"):
                    entry = json.loads(archive.read(name))
                    if METADATA_KEY in entry:
                        found: dict[str, Any] = json.loads(entry[METADATA_KEY])
                        break
            else:
                raise KeyError(METADATA_KEY)
        if (found["format"], found["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise UserError(f"{path} is an artefact of another version of tesseral: export the model again")
    except FileNotFoundError:
        raise UserError(f"no artefact {path}; `tesseral export MODEL -o {path} --to aoti` makes one") from None
    except (BadZipFile, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is truncated or was not written by `tesseral export` ({type(error).__name__}: {error})"
        ) from error
    return found


class Deployment(ABC):
    """What predicts one structure at a time from the inputs of `export.Deployed`.

    Args:
        elements: atomic numbers that the model knows.
        cutoff: Å.
    """

    def __init__(self, elements: tuple[int, ...], cutoff: float):
        self.elements, self.cutoff = elements, cutoff
        self.index = torch.full((MAX_Z + 1,), -1)
        self.index[list(elements)] = torch.arange(len(elements))

    def predict(self, graph: Graph, *, forces: bool = True, stress: bool | Literal["auto"] = "auto") -> Prediction:
        """As `potentials.base.predict`, of one structure.

        Raises:
            UserError: unknown element, or stress demanded of a structure without three periodic axes.
            ValueError: a batch of several structures.
        """
        periodic = checked_periodic(graph, stress)
        volume = torch.linalg.det(graph.cell[0].double()).abs() if bool(periodic.all()) else None
        energy, energies, net, derivative = self.evaluate(graph, volume)
        result = Prediction(energy[None], energies, net if forces else None)
        if stress is not False and volume is not None:
            result.stress, result.stress_mask = derivative[None], periodic
        return result

    def evaluate(self, graph: Graph, volume: Tensor | None = None) -> Outputs:
        """Energy, energies, forces and derivative of the energy with respect to strain ``(6,)``, over `volume`."""
        if graph.n_graphs != 1:
            raise ValueError(f"one structure at a time, got {graph.n_graphs}")
        check_known(graph.numbers, self.index[graph.numbers.cpu()], self.elements)
        n, vectors = graph.numbers.shape[0], graph.edge_vectors().double().contiguous()
        volume = vectors.new_ones(()) if volume is None else volume
        energy, energies, net, derivative = self.run(graph.numbers, graph.edge_index.contiguous(), vectors, volume)
        return energy, energies[:n], net[:n], derivative

    @abstractmethod
    def run(self, numbers: Tensor, edge_index: Tensor, vectors: Tensor, volume: Tensor) -> Outputs:
        """As `export.Deployed`, for any number of atoms and edges; ghosts may follow the atoms in the results."""


class Artefact(Deployment):
    """An exported potential in memory, ready to predict; what users hold is the calculator around it.

    Args:
        path: the ``.pt2`` file.
        device: "cpu", "cuda" …, which must be what it was exported for; None: that one.
        dtype: likewise.

    Attributes:
        header: see `export.header`.
        elements, cutoff, conservative, architecture, dtype, device: as of the exported `Potential`.

    Raises:
        UserError: not an artefact, made for another device or dtype, or one that torch cannot load here.
    """

    inputs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.path, self.header = Path(path), read_artefact_header(path)
        self.device = torch.device(device or self.header["device"])
        self.dtype = getattr(torch, self.header["dtype"])
        super().__init__(tuple(self.header["elements"]), float(self.header["cutoff"]))
        self.architecture, self.conservative = self.header["architecture"], self.header["conservative"]
        if self.device.type != self.header["device"] or dtype not in (None, self.dtype):
            wanted = str(dtype or self.dtype).removeprefix("torch.")
            raise UserError(
                f"{path} was exported for {self.header['device']} in {self.header['dtype']}, not for "
                f"{self.device.type} in {wanted}; export again with --device {self.device.type} --dtype {wanted}"
            )
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"{path} was exported for a GPU and torch finds none here; export with --device cpu")
        self._run = self._load()

    def fingerprint(self) -> str:
        """As of the model that was exported, see `Potential.fingerprint`."""
        return str(self.header["weights"])

    def run(self, numbers: Tensor, edge_index: Tensor, vectors: Tensor, volume: Tensor) -> Outputs:
        """On the artefact's device."""
        energy, energies, net, derivative = self._run(*padded(numbers, edge_index, vectors, self.cutoff), volume)
        return energy, energies, net, derivative

    def _load(self) -> Any:
        where = -1 if self.device.index is None else self.device.index
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own
                return torch._inductor.aoti_load_package(str(self.path), device_index=where)
        except Exception as error:  # whatever the dynamic loader stumbles over
            made = self.header["versions"]["torch"]
            raise UserError(
                f"torch {torch.__version__} cannot load {self.path}, which was compiled with torch {made}: "
                f"{str(error).strip().splitlines()[0]}; export the model again on this machine"
            ) from error


def artefact_beside(checkpoint: Path, model: Potential) -> Artefact | None:
    """The artefact beside a checkpoint (same name, ``.pt2``), if it was exported from this model on this torch.

    Args:
        checkpoint: file of the model.
        model: what was loaded from it, on its device and in its dtype.
    """
    path = checkpoint.with_suffix(SUFFIX)
    if path == checkpoint or not path.exists():
        return None
    try:
        found, own = read_artefact_header(path), json.loads(json.dumps(header(model)))
        proof = ("architecture", "config", "elements", "cutoff", "reference_energies", "weights", "versions")
        same = all(found.get(key) == own[key] for key in (*proof, "device", "dtype"))
        return Artefact(path, device=model.device) if same else None
    except UserError:
        return None
