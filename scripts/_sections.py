"""Sections of the reports: what a training run, a simulation, a relaxation looked like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..datasets.structure import Structure
from . import _figures as figures
from . import _page as page
from ._drawing import scene

QUANTITIES = {"forces": ("force", "meV/Å"), "energy": ("energy", "meV/atom"), "stress": ("stress", "GPa")}


def learning_curves(rows: Sequence[Mapping[str, str]]) -> str:
    """Errors over the epochs, one figure for each quantity of metrics.csv."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {name: {} for name in QUANTITIES}
    for name in QUANTITIES:
        for part, label in (("train", "training"), ("val", "validation")):
            if any(row.get(f"{part}_{name}_rmse") for row in rows):
                curves[name][label] = _column(rows, f"{part}_{name}_rmse")
    blocks, present = [], [name for name in QUANTITIES if curves[name]]
    for name in present:
        word, unit = QUANTITIES[name]
        picture = figures.learning_curve(curves[name], x="epoch", y=f"{word} RMSE ({unit})", wide=len(present) == 1)
        blocks.append(page.figure(picture, f"Error of the {word} over the epochs, root mean square."))
    return page.pair(*blocks) if len(blocks) > 1 else "".join(blocks)


def training_tiles(rows: Sequence[Mapping[str, str]], header: Mapping[str, Any]) -> str:
    """The best epoch's errors, and the cost of getting there."""
    best = best_row(rows)
    part = "val" if best.get("val_loss") else "train"
    word = "validation" if part == "val" else "training"
    tiles = [
        (page.number(best[f"{part}_{name}_rmse"]), unit, f"{quantity} RMSE, {word} data")
        for name, (quantity, unit) in QUANTITIES.items()
        if best.get(f"{part}_{name}_rmse")
    ]
    tiles.append((rows[-1]["epoch"], "epochs", f"best: epoch {best['epoch']}"))
    tiles.append((duration(float(rows[-1]["time_s"])), "", "training time"))
    if count := header.get("card", {}).get("n_parameters") or header.get("n_parameters"):
        tiles.append((f"{count:,}", "", "parameters"))
    return page.tiles(tiles)


def best_row(rows: Sequence[Mapping[str, str]]) -> Mapping[str, str]:
    """The row with the lowest validation loss, or the last one where nothing was validated."""
    validated = [row for row in rows if row.get("val_loss")]
    return min(validated, key=lambda row: float(row["val_loss"])) if validated else rows[-1]


def model_table(header: Mapping[str, Any]) -> str:
    """The facts of a checkpoint's header."""
    from ..datasets.elements import symbol

    elements = " ".join(symbol(int(z)) for z in header.get("elements", []))
    facts = {
        "architecture": header.get("architecture"),
        "elements": elements,
        "cutoff (Å)": header.get("cutoff"),
        "precision": header.get("dtype"),
        **header.get("config", {}),
    }
    return page.table(["model", ""], [(k, str(v)) for k, v in facts.items() if v is not None])


def simulation(thermo: Mapping[str, np.ndarray], n_atoms: int, *pictures: str) -> str:
    """Numbers and thermodynamic log of one molecular dynamics run, with pictures between them."""
    time, temperature = thermo["time_fs"], thermo["temperature_K"]
    drift = np.polyfit(time / 1000, thermo["drift_meV_per_atom"], 1)[0] if len(time) > 2 else np.nan
    tiles = page.tiles(
        [
            (page.number(time[-1] / 1000), "ps", f"simulated, {n_atoms} atoms"),
            (f"{temperature.mean():.0f} ± {temperature.std():.0f}", "K", "temperature"),
            (page.number(drift, 2), "meV/atom/ps", "drift of the conserved energy"),
        ]
    )
    energies = {
        label: 1000 * (thermo[column] - thermo["total_eV"][0]) / n_atoms
        for label, column in (("potential", "potential_eV"), ("total", "total_eV"))
    }
    energies["potential"] = energies["potential"] - energies["potential"][0] + energies["total"][0]
    panels: list[tuple[str, Mapping[str, Any]]] = [
        ("temperature (K)", {"": temperature}),
        ("energy (meV/atom)", energies),
    ]
    if np.isfinite(thermo["pressure_GPa"]).all():
        panels.append(("pressure (GPa)", {"": thermo["pressure_GPa"]}))
    log = figures.stacked(time.tolist(), panels, xlabel="time (fs)")
    return tiles + "".join(pictures) + page.figure(log, "Energies relative to the start.")


def moving(frames: Sequence[Structure], *, name: str, what: str) -> str:
    """Picture of a trajectory that can be turned and played."""
    return page.viewer(scene(frames), f"{what}. Drag to turn it.", name=name)


def relaxation(steps: Sequence[Mapping[str, float]], frames: Sequence[Structure], *, name: str, what: str) -> str:
    """Picture and log of a relaxation; `steps` are rows with energy_eV and fmax_eV_per_A."""
    lowest = min(row["energy_eV"] for row in steps)
    panels = [
        ("energy (meV)", {"": [1000 * (row["energy_eV"] - lowest) for row in steps]}),
        ("largest force (eV/Å)", {"": [row["fmax_eV_per_A"] for row in steps]}),
    ]
    log = figures.stacked(list(range(len(steps))), panels, xlabel="step", wide=False)
    return page.pair(
        moving(frames, name=name, what=what),
        page.figure(log, "Energy above the minimum, and the largest force on an atom."),
    )


def duration(seconds: float) -> str:
    """A time in words: 48 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one column, where it is filled."""
    filled = [row for row in rows if row.get(name)]
    return [float(row["epoch"]) for row in filled], [float(row[name]) for row in filled]
