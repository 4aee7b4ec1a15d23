"""The page of `tesseral demo`: what each step gave, in numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.read import read
from ..datasets.structure import Structure
from . import _drawing as drawing
from . import _figures as figures
from . import _page as page
from . import _sections as sections
from ._tour import Step

MOLECULE = "3-(benzyloxy)pyridin-2-amine"


def build_page(examples: Path, out: Path, steps: Mapping[str, Step], seconds: float) -> str:
    """HTML of the page; the pictures also become files in `out`/figures."""
    numbers = {
        name: _json(out / f"{name}.json") for name in ("before", "after", "relax", "md", "solids", "cell", "nve")
    }
    moving = read(out / "3bpa.extxyz")
    made = page.Page(
        "A molecule learned in a minute",
        f"The shipped organic model had never seen {MOLECULE}. A hundred frames taught it the molecule; then it was "
        "relaxed and set in motion. A crystal needed no teaching at all.",
        kind="Tesseral demo",
    )
    before, after = (numbers[name]["forces"]["mae"] for name in ("before", "after"))
    made.add(
        page.tiles(
            [
                (
                    f"{page.number(before)} → {page.number(after)}",
                    "meV/Å",
                    "force error (MAE) on 34 unseen frames",
                ),
                (sections.duration(steps["train"].seconds), "", "of training, on the CPU"),
                (f"{numbers['md']['speed']['steps_per_second']:.0f}", "steps/s", "dynamics of the molecule"),
                (
                    page.number(numbers["nve"]["drift"]["value"], 2),
                    "meV/atom/ps",
                    "energy drift, copper crystal",
                ),
            ]
        ),
        page.viewer(
            drawing.scene(moving),
            f"{MOLECULE} at 300 K, driven by the model trained here. Drag to turn it.",
            name="hero",
        ),
    )
    made.section("The data, examined", *_data(steps))
    made.section("Learning", *_learning(examples, out, numbers))
    made.section("The nearest minimum", *_relaxation(out, numbers, steps))
    made.section("At 300 K", *_dynamics(out, steps))
    made.section("A crystal, without training", *_crystal(out, numbers, steps))
    made.section("What was typed", *_commands(steps, seconds))
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "molecule.svg").write_text(
        drawing.still(drawing.scene(moving), name="m", cloud=14), encoding="utf-8"
    )
    return made.render()


def _data(steps: Mapping[str, Step]) -> list[str]:
    text = (
        "Before anything is trained, the data doctor reads the frames and looks for the faults that ruin trainings: "
        "wrong units, duplicates, overlapping atoms, outliers, broken cells."
    )
    return [page.paragraph(text), page.code(steps["check"].text)]


def _learning(examples: Path, out: Path, numbers: Mapping[str, Any]) -> list[str]:
    """Learning curves, and prediction against reference before and after."""
    from ..training.checkpoint import read_header
    from ..training.records import read_rows

    rows = read_rows(out / "training" / "metrics.csv")
    text = (
        "Training started from the weights of tesseral-organic. The new frames come from another level of theory "
        "(ωB97X instead of PBE): the energies of the isolated atoms were estimated anew, the weights learned the rest."
    )
    names = {"before": "tesseral-organic", "after": "after training"}
    before, after = (_force_errors(numbers[name]) for name in names)
    table = page.table(
        ["force, meV/Å", *names.values()],
        [(what, page.number(before[what]), page.number(after[what])) for what in after],
    )
    return [
        page.paragraph(text),
        sections.training_tiles(rows, read_header(out / "training" / "best.safetensors")),
        sections.learning_curves(rows),
        page.pair(
            page.figure(_parity(examples, out, names), "Force components on unseen frames, predicted against DFT."),
            page.figure(table, "On 34 unseen frames. Errors by element are mean absolute errors."),
        ),
    ]


def _force_errors(report: Mapping[str, Any]) -> dict[str, float]:
    """Force errors by what they are taken over."""
    elements = {symbol: entry["forces"]["mae"] for symbol, entry in report["by_element"].items()}
    return {
        "mean absolute": report["forces"]["mae"],
        "root mean square": report["forces"]["rmse"],
        **elements,
    }


def _parity(examples: Path, out: Path, names: Mapping[str, str]) -> str:
    """Figure of the forces of both models on the test frames; also kept as a file."""
    from ..datasets.read import open_source
    from ..potentials import load
    from ..potentials.evaluate import evaluate

    source = open_source(examples / "data" / "3bpa_test.extxyz")
    models: dict[str, str | Path] = {
        names["before"]: "tesseral-organic",
        names["after"]: out / "training" / "best.safetensors",
    }
    results = {name: evaluate(load(model), source) for name, model in models.items()}
    reference = next(iter(results.values())).reference["forces"].flatten().numpy()
    predicted = {name: result.predicted["forces"].flatten().numpy() for name, result in results.items()}
    picture = figures.parity(reference, predicted, quantity="force", unit="eV/Å", error_unit="meV/Å")
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "parity.svg").write_text(picture, encoding="utf-8")
    return picture


def _relaxation(out: Path, numbers: Mapping[str, Any], steps: Mapping[str, Step]) -> list[str]:
    frames = read(out / "3bpa_relaxation.extxyz")
    text = "From a frame of the hot molecule, the forces are followed downhill until none is larger than 0.01 eV/Å."
    picture = sections.relaxation(relaxation_rows(frames), frames, name="relaxation", what="The way down")
    return [page.paragraph(text), picture, page.code(steps["relax"].text)]


def relaxation_rows(frames: Sequence[Structure]) -> list[dict[str, float]]:
    """Energy (eV) and largest force (eV/Å) of the frames of a relaxation."""
    return [
        {
            "energy_eV": float(frame.labels["energy"]),
            "fmax_eV_per_A": float(np.linalg.norm(frame.labels["forces"], axis=1).max()),
        }
        for frame in frames
    ]


def _dynamics(out: Path, steps: Mapping[str, Step]) -> list[str]:
    from ..md.thermo import read_thermo

    thermo, frames = read_thermo(out / "3bpa.thermo.csv"), read(out / "3bpa.extxyz")
    text = "Langevin dynamics at 300 K from the same start. The conserved energy counts what the thermostat gave."
    return [
        page.paragraph(text),
        sections.simulation(thermo, frames[0].n_atoms),
        page.code(steps["md"].text),
    ]


def _crystal(out: Path, numbers: Mapping[str, Any], steps: Mapping[str, Step]) -> list[str]:
    """The shipped solids model: errors, a cell relaxation, energy conservation."""
    from ..md.thermo import read_thermo

    thermo, frames = read_thermo(out / "copper.thermo.csv"), read(out / "copper.extxyz")
    solids = numbers["solids"]
    table = page.table(
        ["test frames of", "energy MAE (meV/atom)", "force MAE (meV/Å)"],
        [
            (symbol, page.number(_energy_error(solids, symbol)), page.number(entry["forces"]["mae"]))
            for symbol, entry in solids["by_element"].items()
        ],
    )
    cell = read(out / "copper_relaxed.extxyz")[-1]
    constant = (4 * cell.volume / cell.n_atoms) ** (1 / 3)
    return [
        page.paragraph(
            "tesseral-solids ships with the package and knows Ni, Cu, Li, Mo, Si and Ge. Nothing was trained here. "
            f"A copper cell stretched to 3.70 Å relaxes to a lattice constant of {constant:.3f} Å (PBE: about 3.63 Å), "
            "and keeps its energy when it is set in motion at constant energy."
        ),
        table,
        sections.simulation(
            thermo, cell.n_atoms, sections.moving(frames, name="copper", what="Copper at constant energy")
        ),
        page.code(steps["cell"].text),
    ]


def _energy_error(report: Mapping[str, Any], symbol: str) -> float:
    """Mean energy error (meV/atom) of an element's groups, which are called Cu-Elastic and so on."""
    groups = [g for name, g in report["by_config_type"].items() if name.startswith(f"{symbol}-")]
    return float(np.mean([group["energy_per_atom"]["mae"] for group in groups]))


def _commands(steps: Mapping[str, Step], seconds: float) -> list[str]:
    text = f"The whole tour took {sections.duration(seconds)} on this machine."
    rows = [("tesseral " + " ".join(step.words), sections.duration(step.seconds)) for step in steps.values()]
    return [page.paragraph(text), page.table(["command", "time"], rows)]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
