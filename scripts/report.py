"""`tesseral report`: one static HTML page of a training run or of a simulation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..datasets.errors import UserError
from ._cli import add_common, refuse_overwrite, write_text

EXAMPLE = "tesseral report runs/ethanol -o ethanol.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training, or trajectory of an MD run")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="page (default: report.html beside RUN)")
    add_common(parser, "force")


def run(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    thermo = args.run.with_name(f"{args.run.stem}.thermo.csv")
    if (args.run / "metrics.csv").exists():
        page, beside = training_page(args.run), args.run / "report.html"
    elif args.run.is_file() and thermo.exists():
        page, beside = simulation_page(args.run, thermo), args.run.with_name(f"{args.run.stem}.report.html")
    else:
        raise UserError(
            f"{args.run}: neither the folder of a training (it would hold metrics.csv) nor the trajectory "
            f"of an MD run (it would have {thermo.name} beside it)"
        )
    output = args.output or beside
    refuse_overwrite(output, args.force)
    write_text(output, page.render())
    print(f"wrote {output}")


def training_page(folder: Path) -> Any:
    """Page of a training run: numbers, learning curves, the model's facts."""
    from ..training.checkpoint import read_header
    from ..training.records import read_rows
    from . import _sections
    from ._page import Page

    rows = read_rows(folder / "metrics.csv")
    if not rows:
        raise UserError(f"{folder / 'metrics.csv'} has no finished epoch yet; wait for the first one")
    models = [path for name in ("best", "model") if (path := folder / f"{name}.safetensors").exists()]
    header = read_header(models[0]) if models else {}
    lead = f"{len(rows)} epochs of training, {_sections.duration(float(rows[-1]['time_s']))}."
    page = Page(folder.resolve().name, lead, kind="Training run")
    page.add(_sections.training_tiles(rows, header))
    page.section("Learning", _sections.learning_curves(rows))
    if header:
        page.section("Model", _sections.model_table(header))
    return page


def simulation_page(trajectory: Path, thermo: Path) -> Any:
    """Page of an MD run: numbers, thermodynamic log, moving picture."""
    from ..datasets.read import read
    from ..md.thermo import read_thermo
    from . import _sections
    from ._page import Page

    columns, frames = read_thermo(thermo), read(trajectory)
    if not frames or not len(columns["time_fs"]):
        raise UserError(f"{trajectory} has no frame yet; wait for the first record")
    lead = f"Molecular dynamics of {frames[0].formula}, {len(frames)} frames."
    page = Page(trajectory.stem, lead, kind="Simulation")
    moving = _sections.moving(frames, name="run", what=frames[0].formula)
    page.add(_sections.simulation(columns, frames[0].n_atoms, moving))
    return page
