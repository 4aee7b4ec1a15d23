"""`tesseral demo`: the main commands on shipped data, in a few minutes, with one page that shows it all.

Every step is a command that can be typed; the page quotes it with what it printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

from ..datasets.errors import UserError
from ._cli import COMMAND_LINE, add_common, refuse_overwrite, write_text
from ._tour import Step

EXAMPLE = "tesseral demo -o demo"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TRAINING_MINUTES = 1.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral demo`."""
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    parser.add_argument(
        "--examples", type=Path, default=EXAMPLES, metavar="DIR", help="the examples folder of the sources"
    )
    parser.add_argument(
        "--minutes", type=float, default=TRAINING_MINUTES, help=f"of training (default {TRAINING_MINUTES})"
    )
    add_common(parser, "force")


def run(args: argparse.Namespace) -> None:
    """Run the tour and write its page."""
    from ._demo_page import build_page

    if not (args.examples / "data").is_dir():
        raise UserError(
            f"{args.examples}: no examples here; they come with the sources, not with an installed package: "
            "give their folder with --examples"
        )
    report = args.output / "report.html"
    refuse_overwrite(report, args.force)
    start = time.perf_counter()
    steps = {
        name: execute(words)
        for name, words in tour(Path(os.path.relpath(args.examples)), args.output, args.minutes).items()
    }
    page = build_page(args.examples, args.output, steps, time.perf_counter() - start)
    write_text(report, page)
    print(f"\nopen {report} in a browser")


def tour(examples: Path, out: Path, minutes: float) -> dict[str, list[str]]:
    """The commands by name, in order: a molecule is learned, relaxed and moved; a crystal needs no training."""
    data, tuned = examples / "data", f"{out}/training/best.safetensors"
    commands = {
        "check": f"data check {data}/3bpa_train.extxyz",
        "before": f"evaluate tesseral-organic {data}/3bpa_test.extxyz --json {out}/before.json --force",
        "train": f"train {examples}/finetune_3bpa.yaml run={out}/training training.max_time={minutes} --force",
        "after": f"evaluate {tuned} {data}/3bpa_test.extxyz --json {out}/after.json --force",
        "relax": f"relax {examples}/3bpa.xyz -o {out}/3bpa_relaxed.extxyz --model {tuned}"
        f" --trajectory {out}/3bpa_relaxation.extxyz --json {out}/relax.json --force",
        "md": f"md {examples}/3bpa.xyz -o {out}/3bpa.extxyz --model {tuned} --ensemble nvt --temperature 300"
        f" --timestep 0.5 --steps 1200 --seed 1 --json {out}/md.json --force",
        "solids": f"evaluate tesseral-solids {data}/solids_test.extxyz --json {out}/solids.json --force",
        "cell": f"relax {examples}/copper.vasp -o {out}/copper_relaxed.extxyz --cell"
        f" --trajectory {out}/copper_relaxation.extxyz --json {out}/cell.json --force",
        "nve": f"md {out}/copper_relaxed.extxyz -o {out}/copper.extxyz --ensemble nve --temperature 600"
        f" --timestep 2 --steps 250 --seed 1 --json {out}/nve.json --force",
    }
    return {name: words.split() for name, words in commands.items()}


def execute(words: list[str]) -> Step:
    """Run one command in this process, show what it prints and keep it.

    Raises RuntimeError when the command fails: the tour uses nothing that the user could have got wrong.
    """
    from .main import main

    print(f"\n$ tesseral {shlex.join(words)}", flush=True)
    outer, tee, start = COMMAND_LINE.get(), Tee(sys.stdout), time.perf_counter()
    try:
        with contextlib.redirect_stdout(tee):
            code = main(words)
    finally:
        COMMAND_LINE.set(outer)
    if code:
        raise RuntimeError(f"the demo's step `tesseral {shlex.join(words)}` failed with exit code {code}")
    return Step(words, tee.getvalue(), time.perf_counter() - start)


class Tee(io.StringIO):
    """Text that is kept and also passed on."""

    def __init__(self, through: TextIO) -> None:
        super().__init__()
        self.through = through

    def write(self, text: str) -> int:
        """Keep and pass on."""
        self.through.write(text)
        return super().write(text)

    def flush(self) -> None:
        """Pass on what is pending."""
        self.through.flush()
