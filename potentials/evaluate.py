"""Errors of a potential on labelled structures: overall, by element, by config_type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..datasets.elements import SYMBOLS
from ..datasets.errors import DataError
from ..datasets.graph import Graph
from ..datasets.loader import GraphLoader
from ..datasets.structure import Structure
from .base import Potential, predict
from .loss import SCALES, TERMS, UNITS, errors_of

BATCH_ATOMS = 1000
NAMES = {"energy": "energy_per_atom", "forces": "forces", "stress": "stress"}


@dataclass
class Evaluation:
    """Reference and predicted values of everything labelled, and what the errors belong to.

    reference, predicted: by quantity, float64 on the CPU: "energy" ``(n,)`` eV/atom, "forces" ``(n, 3)`` eV/Å,
    "stress" ``(n, 6)`` eV/Å³. elements: atomic number of each row of forces. groups: by quantity the config_type
    of each row ("" where the frame has none). notes: what was left out and why.
    """

    n_frames: int
    reference: dict[str, Tensor]
    predicted: dict[str, Tensor]
    elements: Tensor
    groups: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The plain nested numbers of `tesseral evaluate --json`."""
        report: dict[str, Any] = {NAMES[name]: self._errors(name) for name in self.reference}
        report["n_frames"] = self.n_frames
        report["by_element"] = {}
        if "forces" in self.reference:
            for z in self.elements.unique().tolist():
                rows = self.elements == z
                report["by_element"][SYMBOLS[z]] = {
                    "forces": self._errors("forces", rows),
                    "n_atoms": int(rows.sum()),
                }
        report["by_config_type"] = self._by_group()
        report["notes"] = self.notes
        return report

    def _by_group(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, groups in self.groups.items():
            for group in sorted(set(groups) - {""}):
                rows = torch.tensor([one == group for one in groups])
                entry = result.setdefault(group, {})
                entry[NAMES[name]] = self._errors(name, rows)
                if name != "forces":
                    entry["n_frames"] = max(int(rows.sum()), entry.get("n_frames", 0))
        return result

    def _errors(self, name: str, rows: Tensor | None = None) -> dict[str, Any]:
        error = self.predicted[name] - self.reference[name]
        error = error if rows is None else error[rows]
        mae, rmse = error.abs().mean(), error.square().mean().sqrt()
        return {"mae": float(mae) * SCALES[name], "rmse": float(rmse) * SCALES[name], "unit": UNITS[name]}


def evaluate(
    model: Potential,
    source: Sequence[Structure],
    *,
    progress: Callable[[Iterable[Graph]], Iterable[Graph]] | None = None,
) -> Evaluation:
    """Predict every frame and keep what has a label.

    Args:
        model: the potential, on its device.
        source: labelled structures.
        progress: wraps the iteration over batches (a progress bar).

    Raises:
        DataError: no frame has an energy, forces or stress; the text names the keys present.
        UserError: elements that the model does not know.
    """
    largest = max((structure.n_atoms for structure in source), default=0)
    loader = GraphLoader(
        source,
        model.cutoff,
        labels=TERMS,
        dtype=model.dtype,
        max_atoms=max(BATCH_ATOMS, largest),
        shuffle=False,
        workers=0,
        cache_bytes=0,
    )
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in TERMS}
    groups: dict[str, list[str]] = {name: [] for name in TERMS}
    elements: list[Tensor] = []
    for batch in progress(loader) if progress else loader:
        graph = batch.to(model.device)
        prediction = predict(model, graph, stress="auto")
        masks = errors_of(prediction, graph).masks
        for name, mask in masks.items():
            predicted, reference = getattr(prediction, name)[mask], graph.labels[name][mask]
            if name == "energy":
                n_atoms = graph.n_atoms[mask]
                predicted, reference = predicted / n_atoms, reference / n_atoms
            kept[name].append((reference.double().cpu(), predicted.detach().double().cpu()))
            owners = graph.batch[mask] if name == "forces" else mask.nonzero()[:, 0]
            names = graph.groups or [""] * graph.n_graphs
            groups[name] += [names[k] for k in owners.tolist()]
        if "forces" in masks:
            elements.append(graph.numbers[masks["forces"]].cpu())
    present = {name: pairs for name, pairs in kept.items() if sum(len(r) for r, _ in pairs)}
    if not present:
        raise DataError(_no_labels(source), getattr(source, "name", ""))
    absent = [name for name in TERMS if name not in present]
    return Evaluation(
        n_frames=len(source),
        reference={name: torch.cat([r for r, _ in pairs]) for name, pairs in present.items()},
        predicted={name: torch.cat([p for _, p in pairs]) for name, pairs in present.items()},
        elements=torch.cat(elements) if elements else torch.zeros(0, dtype=torch.int64),
        groups={name: groups[name] for name in present},
        notes=[f"no frame has a label for the {name}: left out" for name in absent],
    )


def _no_labels(source: Sequence[Structure]) -> str:
    present: set[str] = set()
    for structure in source:
        present |= structure.labels.keys() | structure.info.keys() | structure.arrays.keys()
    found = ", ".join(sorted(map(str, present))) or "none"
    return (
        f"no frame has an energy, forces or stress to compare with; keys present: {found}. "
        "Name the right ones with --keys energy=KEY,forces=KEY"
    )
