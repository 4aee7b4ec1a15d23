"""Learning curves of SPHNet and QHNet at equal data and steps.

    python benchmarks/hamiltonian/learning_curve.py water.h5 OUT --sizes 40,100,280 --steps 2000 --batch 10

trains each network on so many frames, tests it on the same fifth of the file kept aside, and writes OUT/curve.json and
a figure beside it (elsewhere: -o); trainings that are there already are not repeated. Weights are taken from the last
step, never chosen by the test.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tesseral.potentials.hamiltonian import load
from tesseral.potentials.hamiltonian.data import LabelSet, split
from tesseral.potentials.hamiltonian.evaluate import evaluate
from tesseral.potentials.hamiltonian.fit import HamiltonianTraining, train
from tesseral.scripts._figures import BLUE, SOFT, STYLE, TEAL, WARM
from tesseral.scripts.bench.machine import commit, machine
from tesseral.training.config import from_dict

NETWORKS: dict[str, dict[str, Any]] = {
    "qhnet": {"architecture": "qhnet", "config": {"preset": "small"}},
    "sphnet": {"architecture": "sphnet", "config": {"preset": "small"}},
    "sphnet-dense": {"architecture": "sphnet", "config": {"preset": "small", "sparsity": 0.0}},
}
TESTED = 0.2
PUBLISHED = {  # QHNet on MD17: frames learned from, µEh, µEh, %; as orientation: other frames, far longer training
    "water": {"frames": 500, "hamiltonian": 10.79, "orbital_energies": 33.76, "similarity": 99.99},
    "ethanol": {"frames": 25_000, "hamiltonian": 20.91, "orbital_energies": 81.03, "similarity": 99.99},
}
QUANTITIES = {"hamiltonian": "error of H, µEh", "orbital_energies": "error of occupied energies, µEh"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="label file of one molecule's frames")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", required=True, help="frames to learn from, as 40,100,280")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of every training")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--target", default="delta", help="what is learned: delta (published) or orthogonal")
    parser.add_argument("-o", "--output", type=Path, help="the record (default OUT/curve.json)")
    args = parser.parse_args()
    curve: dict[str, dict[str, Any]] = {}
    for size in map(int, args.sizes.split(",")):
        for name in args.networks.split(","):
            curve.setdefault(name, {})[str(size)] = one(args, name, size)
            write(args, curve)


def one(args: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Errors of one training on the frames kept aside."""
    folder = args.out / f"{name}-{size}"
    epochs = max(1, round(args.steps * args.batch / size))
    plain = {
        "run": str(folder),
        "model": {**NETWORKS[name], "target": args.target},
        "data": {"train": args.labels, "val": TESTED, "limit": size, "batch_size": args.batch},
        "optimizer": {"lr": args.lr},
        "training": {"epochs": epochs, "threads": 1, "validate_every": epochs, "tensorboard": False},
    }
    config = from_dict(HamiltonianTraining, plain)
    if not (folder / "best.safetensors").exists():
        train(config, resume=folder.exists())
    labels = LabelSet.open(args.labels)
    _, tested = split(len(labels), config.data, config.training.seed)
    model = load(folder / "best.safetensors")
    errors = evaluate(model, replace(labels, labels=[labels.labels[k] for k in tested]))
    return {"parameters": sum(p.numel() for p in model.parameters()), "epochs": epochs, **errors}


def write(args: argparse.Namespace, curve: dict[str, dict[str, Any]]) -> None:
    """The record so far."""
    record = {
        "labels": Path(args.labels).name,
        "steps": args.steps,
        "batch_size": args.batch,
        "learning_rate": args.lr,
        "target": args.target,
        "networks": {name: NETWORKS[name] for name in curve},
        "curve": curve,
        "published": {key: row for key, row in PUBLISHED.items() if key in Path(args.labels).name},
        "machine": {**machine(), "threads": 1},
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in ("tesseral", "torch", "numpy")},
        "date": datetime.date.today().isoformat(),
    }
    output = args.output or args.out / "curve.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figure(record, output.with_suffix(".png"))


def figure(record: dict[str, Any], path: Path) -> None:
    """Errors on the frames kept aside over the frames learned from, one line per network."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "savefig.transparent": False, "font.size": 9}):
        drawing = Figure(figsize=(3.6 * len(QUANTITIES), 3.0), layout="constrained")
        for axes, (key, label) in zip(drawing.subplots(1, len(QUANTITIES)), QUANTITIES.items(), strict=True):
            for (name, found), colour in zip(record["curve"].items(), (WARM, TEAL, BLUE), strict=False):
                sizes = sorted(found, key=int)
                values = [found[size][key]["mae"] for size in sizes]
                axes.plot([int(size) for size in sizes], values, marker="o", markersize=4, color=colour, label=name)
            for row in record["published"].values():
                axes.plot(row["frames"], row[key], "*", color=SOFT, label="QHNet, published")
            ticks = sorted({*map(int, sizes), *(row["frames"] for row in record["published"].values())})
            axes.set(xscale="log", yscale="log", xlabel="frames learned from", ylabel=label)
            axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
            axes.xaxis.set_minor_formatter("")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.legend(fontsize=7)
        drawing.savefig(path, dpi=180)


if __name__ == "__main__":
    main()
