"""What is in a data set: counts, elements, labels, ranges, groups; one streaming pass for print, JSON and plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from . import elements
from .errors import DataError
from .neighbors import neighbor_list
from .statistics import Collector, Statistics
from .structure import LABELS, Structure

MAX_SAMPLES = 200_000  # values kept per histogram; beyond, frames are thinned
NEAREST_FRAMES = 2000
NEAREST_CUTOFF = 3.5  # Å
LISTED = 8  # most frequent formulas and groups in print


@dataclass
class Range:
    """Smallest, mean and largest value of a quantity and its unit."""

    min: float
    mean: float
    max: float
    unit: str


@dataclass
class Summary:
    """Contents of a data set.

    samples: values for histograms: energy per atom without references (eV), force (norms, eV/Å), distance (to the
    nearest atom, Å), atoms (per frame).
    """

    name: str
    n_frames: int
    n_atoms: int
    elements: dict[str, int]
    formulas: dict[str, int]
    periodic: dict[str, int]
    labels: dict[str, int]
    other_keys: list[str]
    groups: dict[str, int]
    charges: dict[str, int]
    spins: dict[str, int]
    ranges: dict[str, Range]
    statistics: Statistics | None
    store: dict[str, Any] | None = None
    samples: dict[str, np.ndarray] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested keys for JSON, without the samples."""
        plain = asdict(self)
        del plain["samples"]
        if self.statistics is not None:
            references = self.statistics.reference_energies
            plain["statistics"]["reference_energies"] = {elements.symbol(z): e for z, e in references.items()}
            plain["statistics"]["elements"] = [elements.symbol(z) for z in self.statistics.elements]
        return plain


def inspect(
    source: Sequence[Structure],
    *,
    cutoff: float = 5.0,
    progress: Callable[[Iterable[Structure]], Iterable[Structure]] | None = None,
) -> Summary:
    """Summarise a data set in one pass. `cutoff` Å is that of the mean number of neighbours.

    Raises DataError for an empty source and for labels that are not finite (naming the frame).
    """
    taken = _Tally(len(source), cutoff)
    for index, structure in enumerate(progress(source) if progress else source):
        try:
            taken.add(index, structure)
        except DataError as error:
            where = getattr(source, "where", "frame {}".format)(index)
            raise DataError(str(error), where) from error
    name = getattr(source, "name", "")
    taken.collector.check((), name)
    return taken.summary(name, _store_facts(source))


def _store_facts(source: Any) -> dict[str, Any] | None:
    """Units, provenance and checksum of a store; None for other sources."""
    if not hasattr(source, "provenance"):
        return None
    return {"units": source.units, "provenance": source.provenance, "checksum": source.checksum}


class _Tally:
    """Counters and samples while frames stream by."""

    def __init__(self, n_frames: int, cutoff: float) -> None:
        self.collector = Collector(n_frames, cutoff)
        self.thin = max(1, n_frames // NEAREST_FRAMES)
        self.counters: dict[str, Counter[str]] = {
            name: Counter() for name in ("elements", "formulas", "periodic", "groups", "charges", "spins")
        }
        self.sizes: list[int] = []
        self.compositions: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.extremes: dict[str, list[float]] = {}
        self.forces: list[np.ndarray] = []
        self.nearest: list[float] = []
        self.n_forces = 0

    def add(self, index: int, s: Structure) -> None:
        self.collector.add(index, s)
        self.sizes.append(s.n_atoms)
        present, counts = np.unique(s.numbers, return_counts=True)
        for z, count in zip(present.tolist(), counts.tolist(), strict=True):
            self.counters["elements"][elements.symbol(z)] += count
        self.counters["formulas"][s.formula] += 1
        self.counters["periodic"]["".join("FT"[int(axis)] for axis in s.pbc)] += 1
        for name, value in (("groups", s.info.get("config_type")), ("charges", s.charge), ("spins", s.spin)):
            if value is not None:
                self.counters[name][f"{value:g}" if isinstance(value, float) else str(value)] += 1
        if "energy" in s.labels and s.n_atoms:
            self.compositions.append((float(s.labels["energy"]) / s.n_atoms, present, counts / s.n_atoms))
        self._note_ranges(s)
        if index % self.thin == 0:
            self._sample(s)

    def _note_ranges(self, s: Structure) -> None:
        for key, value in s.labels.items():
            size = np.linalg.norm(value, axis=1) if LABELS[key].shape == (3,) and value.ndim == 2 else value
            self._extend(key, size)
        if s.pbc.all():
            self._extend("volume_per_atom", np.array([s.volume / max(1, s.n_atoms)]))

    def _extend(self, key: str, values: np.ndarray) -> None:
        if values.size == 0:
            return
        found = self.extremes.setdefault(key, [np.inf, 0.0, -np.inf, 0])
        found[0], found[2] = min(found[0], float(values.min())), max(found[2], float(values.max()))
        found[1], found[3] = found[1] + float(values.sum()), found[3] + values.size

    def _sample(self, s: Structure) -> None:
        if "forces" in s.labels and self.n_forces < MAX_SAMPLES:
            self.forces.append(np.linalg.norm(s.labels["forces"], axis=1))
            self.n_forces += s.n_atoms
        source, target, shifts = neighbor_list(s.positions, s.cell, s.pbc, NEAREST_CUTOFF)
        if len(source):
            vectors = s.positions[source] + shifts @ s.cell - s.positions[target]
            self.nearest.append(float(np.linalg.norm(vectors, axis=1).min()))

    def summary(self, name: str, store: dict[str, Any] | None) -> Summary:
        statistics = self.collector.result() if self.compositions else None
        samples = {"atoms": np.array(self.sizes), "distance": np.array(self.nearest)}
        if statistics is not None:
            samples["energy"] = self._reduced(statistics.reference_energies)
            self._extend("energy_per_atom_without_references", samples["energy"])
        samples["force"] = np.concatenate(self.forces) if self.forces else np.zeros(0)
        self._extend("nearest_distance", samples["distance"])
        counted = {key: dict(counter.most_common()) for key, counter in self.counters.items()}
        return Summary(
            name=name,
            n_frames=self.collector.n_frames,
            n_atoms=self.collector.n_atoms,
            **counted,
            labels=dict(sorted(self.collector.label_counts.items())),
            other_keys=sorted(self.collector.other_keys),
            ranges={key: self._range(key) for key in self.extremes},
            statistics=statistics,
            store=store,
            samples=samples,
        )

    def _reduced(self, references: dict[int, float]) -> np.ndarray:
        return np.array(
            [energy - sum(references[z] * f for z, f in zip(zs.tolist(), fs, strict=True))
             for energy, zs, fs in self.compositions]
        )  # fmt: skip

    def _range(self, key: str) -> Range:
        low, total, high, count = self.extremes[key]
        own = {
            "volume_per_atom": "Å³",
            "nearest_distance": "Å",
            "energy_per_atom_without_references": "eV/atom",
        }
        return Range(low, total / count, high, own[key] if key in own else LABELS[key].unit)


def describe(summary: Summary) -> str:
    """The summary as text for a terminal."""
    s = summary
    sizes = s.samples["atoms"]
    lines = [
        s.name,
        f"{s.n_frames} frames, {s.n_atoms} atoms ({sizes.min()} to {sizes.max()} per frame)",
        _counted("elements", s.elements, len(s.elements)),
        _counted("formulas", s.formulas),
        _counted("periodic axes", s.periodic),
        _counted("labels (frames)", s.labels, len(s.labels)) if s.labels else "labels: none",
    ]
    lines += [_counted(name, getattr(s, name)) for name in ("groups", "charges", "spins") if getattr(s, name)]
    if s.other_keys:
        lines.append(f"other keys: {', '.join(s.other_keys)}")
    lines.append(f"{'':36s}{'smallest':>14s}{'mean':>14s}{'largest':>14s}")
    for key, r in s.ranges.items():
        lines.append(f"{key.replace('_', ' '):36s}{r.min:14.6g}{r.mean:14.6g}{r.max:14.6g}  {r.unit}")
    if s.statistics is not None:
        energies = s.statistics.reference_energies.items()
        lines.append("reference energies: " + ", ".join(f"{elements.symbol(z)} {e:.4f} eV" for z, e in energies))
        lines.append(
            f"force rms {s.statistics.force_rms:.4f} eV/Å, energy spread "
            f"{s.statistics.energy_std_per_atom:.4f} eV/atom, {s.statistics.mean_neighbors:.1f} neighbours per atom"
        )
        lines += [f"note: {note}" for note in s.statistics.notes]
    if s.store is not None:
        units = ", ".join(f"{key} {unit}" for key, unit in s.store["units"].items() if key in {*s.labels, "length"})
        lines.append(f"store: {units}; {s.store['checksum'][:19]}…")
    return "\n".join(lines)


def _counted(title: str, counts: dict[str, int], most: int = LISTED) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:most])
    return f"{title}: {shown}" + (f" … ({len(counts)} kinds)" if len(counts) > most else "")


PANELS = {
    "energy": ("energy without references, eV/atom", False),
    "force": ("force on an atom, eV/Å", True),
    "distance": ("closest two atoms of a frame, Å", False),
    "atoms": ("atoms per frame", False),
}


def plot(summary: Summary, path: str | Path) -> None:
    """Histograms of what is there (energies, forces, distances, sizes) as one figure; the format follows the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [key for key in PANELS if summary.samples.get(key, np.zeros(0)).size]
    grid = figure.subplots(-(-len(shown) // 2), 2, squeeze=False).ravel()
    for axes, key in zip(grid, shown, strict=False):
        label, logarithmic = PANELS[key]
        axes.hist(summary.samples[key], bins=60, color="#0e6b70", log=logarithmic)
        axes.set(xlabel=label, ylabel="atoms" if key == "force" else "frames")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(f"{Path(summary.name).name}: {summary.n_frames} frames", fontsize=11)
    out = BytesIO()
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise DataError(f"cannot draw a .{suffix} file; name it .png, .pdf or .svg", str(path))
    figure.savefig(out, format=suffix, dpi=150)
    Path(path).write_bytes(out.getvalue())
