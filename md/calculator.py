"""A potential as an ASE calculator: energy, free_energy, energies, forces and stress of one structure.

Geometry is kept in float64 up to the edge vectors, whatever the dtype of the model; results are detached
float64 numpy arrays. Nothing is ever stale: a failed evaluation leaves no results behind, and the next
request computes anew.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from ase.calculators.calculator import (
    BaseCalculator,
    CalculationFailed,
    PropertyNotImplementedError,
    all_changes,
)
from ase.calculators.calculator import Calculator as AseCalculator

from ..datasets.errors import UserError
from ..datasets.graph import Graph, graph_from_structure
from ..datasets.neighbors import SkinList
from ..datasets.structure import Structure
from ..potentials import locate
from ..potentials.artefact import SUFFIX, Artefact, artefact_beside
from ..potentials.base import energy_and_gradient, predict
from ..potentials.captured import CapturedStep, CaptureError, suits

if TYPE_CHECKING:
    from ase import Atoms

    from ..potentials.base import Potential, Prediction

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SMALL = 12
"""Atoms up to which an artefact is faster than the kernels, whose calls cost more than their work there.

Measured with the shipped models, one CPU thread, float32, kernels against artefact, ms: 3 atoms 6.6 and 1.4, 12 atoms
(organic) 7.4 and 7.3, 16 atoms (solids) 12 and 14, 108 atoms 42 and 90."""
ENERGIES = ("energy", "free_energy", "energies")


class StressUndefinedError(UserError, PropertyNotImplementedError):
    """Stress was asked of a structure without three periodic axes, which has none."""


class Calculator(AseCalculator):
    """ASE calculator of a tesseral potential.

    Arguments:
        model: a shipped model's name, the path of a checkpoint or of an artefact (``.pt2``, `tesseral export`), or
            a `Potential`. A `Potential` is copied: what happens to the original later (training, `.to`) does not
            change this calculator. An artefact that lies beside the checkpoint and was exported from it is used
            for structures of at most `SMALL` atoms, where it is faster than the kernels. On a GPU other structures
            of up to `captured.LARGEST` atoms run as one CUDA graph, unless TESSERAL_BACKEND chooses the kernels.
        device: "cpu", "cuda", "cuda:1" …; None: the model's own device, the CPU for a name or path.
        dtype: "float32" or "float64"; None: as the model was stored.
        skin: Å added to the neighbour list so that steps can share it; results never depend on it.

    Models that take charge or spin read `atoms.info["charge"]` (e) and `atoms.info["spin"]` (2S + 1); both
    must be there. Raises UserError for unknown models, devices, dtypes and elements, `StressUndefinedError`
    (also a `PropertyNotImplementedError`) for the stress of a structure without three periodic axes,
    `CalculationFailed` when the model returns numbers that are not finite.
    """

    implemented_properties = [  # noqa: RUF012 (ASE declares it so)
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]

    def __init__(
        self,
        model: Potential | str | PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        self.model: Any = own_model(model, device=device, dtype=dtype)
        self.artefact = self._artefact(model)
        self.captured = CapturedStep(self.model) if suits(self.model) else None
        self.model_name = str(model) if isinstance(model, (str, PathLike)) else self.model.architecture
        self.neighbors = SkinList(self.model.cutoff, skin)
        self._inputs: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name under which ASE files the results."""
        return "tesseral"

    @property
    def conservative(self) -> bool:
        """False when the model's forces are no gradient of its energy (NVE then heats or cools)."""
        return bool(self.model.conservative)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """What ASE files beside the results: model, dtype and device."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.model_name, "dtype": dtype, "device": str(self.model.device)}

    def fingerprint(self) -> str:
        """Hash of all weights: equal for equal models, whatever their file is called."""
        return self.model.fingerprint()

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last result: exact comparison of what the model reads, and of nothing else.

        ASE's own comparison takes twenty times longer and is made several times in a step.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        pairs = {
            "positions": (old.positions, atoms.positions),
            "numbers": (old.numbers, atoms.numbers),
            "cell": (old.cell.array, atoms.cell.array),
            "pbc": (old.pbc, atoms.pbc),
        }
        changes = [name for name, (before, now) in pairs.items() if not np.array_equal(before, now)]
        return changes + ["info"] * (self._read_inputs(atoms) != self._inputs)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As in ASE; see the class for the errors raised."""
        if name == "stress" and atoms is not None and not atoms.pbc.all():
            if not allow_calculation:
                return None
            raise StressUndefinedError(
                f"stress was asked of a structure with pbc {atoms.pbc.tolist()}: it is defined for three "
                "periodic axes only; set atoms.pbc = True with a proper cell, or do not ask (a slab has "
                "`in_plane_virial`)"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Evaluate the model: energies alone, or all at once when forces or stress are asked."""
        structure_atoms = self.atoms if atoms is None else atoms
        self.reset()
        if structure_atoms is None:
            raise UserError("the calculator has no atoms yet; attach it (atoms.calc = calculator) and ask the atoms")
        forces = any(name not in ENERGIES for name in properties)
        graph = self._host_graph(structure_atoms)
        results = self._results(self._predict(graph, forces, "auto" if forces else False))
        self.results, self.atoms = results, structure_atoms.copy()
        self._inputs = self._read_inputs(structure_atoms)

    def graph(self, atoms: Atoms) -> Graph:
        """The model's input for these atoms, on its device, geometry in float64.

        Raises UserError for unknown elements, missing charge or spin, bad geometry.
        """
        return self._on_device(self._host_graph(atoms))

    def in_plane_virial(self, atoms: Atoms) -> np.ndarray:
        """Virial −dE/dε (3, 3) in eV, projected on the span of the one, two or three periodic axes.

        For three periodic axes it is −volume · stress. Raises StressUndefinedError without any periodic axis.
        """
        if not atoms.pbc.any():
            raise StressUndefinedError("the virial was asked of a structure without periodic axes; set atoms.pbc first")
        virial = -self._strain_derivative(self.graph(atoms))
        periodic = atoms.cell.array[atoms.pbc]
        span = np.linalg.pinv(periodic) @ periodic  # projector on the periodic directions
        return span @ virial @ span

    def _host_graph(self, atoms: Atoms) -> Graph:
        inputs = self._read_inputs(atoms)
        for key, value in inputs.items():
            if value is None:
                raise UserError(
                    f"the model {self.model_name} takes the {key} of the structure as input and atoms.info "
                    f"has none; set atoms.info[{key!r}], there is no default"
                )
        structure = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, **inputs)
        edges = self.neighbors.update(structure.positions, structure.cell, structure.pbc)
        return graph_from_structure(structure, self.model.cutoff, dtype=torch.float64, neighbors=edges)

    def _on_device(self, graph: Graph) -> Graph:
        device = self.model.device
        return graph if device.type == "cpu" else graph.to(device)

    def _predict(self, graph: Graph, forces: bool, stress: Literal["auto", False]) -> Prediction:
        n = graph.numbers.shape[0]
        if isinstance(self.model, Artefact):
            return self.model.predict(self._on_device(graph), forces=forces, stress=stress)
        if self.artefact is not None and n <= SMALL:
            return self.artefact.predict(self._on_device(graph), forces=forces, stress=stress)
        if self.captured is not None and self.captured.takes(n):
            try:
                return self.captured.predict(graph, forces=forces, stress=stress)
            except CaptureError as error:
                self.captured = None
                warnings.warn(f"{self.model_name} runs without CUDA graphs, slower: {error}", stacklevel=2)
        return predict(self.model, self._on_device(graph), forces=forces, stress=stress)

    def _strain_derivative(self, graph: Graph) -> np.ndarray:
        """Derivative of the energy with respect to strain (3, 3) in eV."""
        if isinstance(self.model, Artefact):
            xx, yy, zz, yz, xz, xy = _numpy(self.model.evaluate(graph)[3])
            return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        found: list[torch.Tensor] = []

        def keep(model: Potential, species: torch.Tensor, vectors: torch.Tensor, plan: Any, **options: Any) -> Any:
            energies, gradient = energy_and_gradient(model, species, vectors, plan, **options)
            found.extend((vectors, gradient))
            return energies, gradient

        predict(self.model, graph, stress=False, energy_and_gradient=keep)
        vectors, gradient = (tensor.double() for tensor in found)
        outer = _numpy(vectors.T @ gradient)
        return (outer + outer.T) / 2

    def _artefact(self, model: Potential | str | PathLike[str]) -> Artefact | None:
        """What runs small structures: the model itself if it is an artefact, or the one beside its checkpoint."""
        if isinstance(self.model, Artefact):
            return self.model
        if not isinstance(model, (str, PathLike)):
            return None
        return artefact_beside(locate(str(model)), self.model)

    def _read_inputs(self, atoms: Atoms) -> dict[str, Any]:
        """The entries of atoms.info that the model reads ("charge", "spin"); None where there is none."""
        return {key: atoms.info.get(key) for key in getattr(self.model, "inputs", ())}

    def _results(self, prediction: Prediction) -> dict[str, Any]:
        """ASE's results as float64 numpy arrays that own their memory."""
        energy = float(prediction.energy)
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": _numpy(prediction.energies),
        }
        if prediction.forces is not None:
            results["forces"] = _numpy(prediction.forces)
        if prediction.stress is not None:
            results["stress"] = _numpy(prediction.stress)[0]
        for name, value in results.items():
            if not np.isfinite(value).all():
                raise CalculationFailed(
                    f"the model {self.model_name} returned {name} that is not finite: the structure is far "
                    "outside its training domain, or two atoms coincide"
                )
        return results


def own_model(
    model: Potential | str | PathLike[str],
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> Potential | Artefact:
    """The model, frozen, on the device and in the dtype; a `Potential` handed in is copied."""
    kind = parse_dtype(dtype)
    if isinstance(model, (str, PathLike)) and str(model).endswith(SUFFIX):
        return Artefact(str(model), device=device, dtype=kind)
    if isinstance(model, (str, PathLike)):
        from ..potentials import load

        owned = load(str(model), device=str(device or "cpu"), dtype=kind)
    else:
        owned = deepcopy(model)
    owned = owned.to(device=None if device is None else torch.device(device), dtype=kind)
    return owned.eval().requires_grad_(False)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """torch.float32 or torch.float64 by name; None stays None. Raises UserError for anything else."""
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64, order="C")


def as_calculator(
    model: Any, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> BaseCalculator:
    """An ASE calculator for a name, a path or a `Potential`; an ASE calculator is returned as it is.

    Raises UserError when device or dtype are given for a ready calculator, or the model cannot be used.
    """
    if isinstance(model, BaseCalculator):
        if device is not None or dtype is not None:
            raise UserError("device and dtype belong to the calculator that was handed in; set them when making it")
        return model
    return Calculator(model, device=device, dtype=dtype)
