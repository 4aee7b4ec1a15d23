"""Evaluate a finished training on its card's test files; record the errors and, with --ship, the weights.

    python benchmarks/training/ship.py RUN NAME --card solids --split RUNS --ship

Run it in the folder of the data sets.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tesseral.datasets import open_source
from tesseral.potentials import load, save
from tesseral.potentials.evaluate import evaluate
from tesseral.scripts.bench.machine import commit, machine

HERE = Path(__file__).parent
REPO = HERE.parent.parent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `tesseral train` wrote")
    parser.add_argument("name", help="name of the model, e.g. tesseral-solids")
    parser.add_argument("--card", required=True, help="recipe and card: 3bpa, solids or organic")
    parser.add_argument("--split", default=".", help="folder of the parts kept aside")
    parser.add_argument("--before", type=Path, help="run of the first stage, where a second one continued it")
    parser.add_argument("--ship", action="store_true", help="also write potentials/weights/NAME.safetensors and .md")
    args = parser.parse_args()
    card = yaml.safe_load((HERE / f"{args.card}.card.yaml").read_text(encoding="utf-8"))
    model = load(args.run / "best.safetensors")
    tests = {}
    for name, path in card.pop("tests").items():
        report = evaluate(model, open_source(path.replace("SPLIT", args.split))).report()
        tests[name] = {key: report[key] for key in ("energy_per_atom", "forces", "stress") if key in report}
        tests[name]["n_frames"] = report["n_frames"]
        print(name, json.dumps(tests[name]))
    training: dict[str, Any] = training_facts(args.run)
    if args.before:
        training["first_stage"] = training_facts(args.before)
    record = {
        "model": args.name,
        "recipe": f"benchmarks/training/{args.card}.yaml",
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "test": tests,
        "training": training,
        "machine": {**machine(), "threads": 1},
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in ("tesseral", "torch", "numpy")},
        "date": datetime.date.today().isoformat(),
    }
    results = REPO / "benchmarks" / "results" / f"training-{args.card}.json"
    results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.ship:
        header = {**model.card, "card": card, "metrics": {"test": tests, "training": training}}
        weights = REPO / "potentials" / "weights"
        save(model, weights / f"{args.name}.safetensors", header, force=True)
        (weights / f"{args.name}.md").write_text(page(args.name, card, record), encoding="utf-8")


def training_facts(run: Path) -> dict[str, Any]:
    """Epochs, steps and time of a training, from its log."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {key: float(last[key]) for key in ("epoch", "step", "time_s") if last.get(key)}


def page(name: str, card: dict[str, Any], record: dict[str, Any]) -> str:
    """The model card as Markdown."""
    lines = [f"# {name}", "", card["description"].strip(), ""]
    for key in ("data", "level_of_theory", "licence", "reference_energies"):
        lines.append(f"- **{key.replace('_', ' ').capitalize()}.** {card[key]}")
    lines.append(f"- **Parameters.** {record['n_parameters']:,}")
    lines += ["", "## Not for", "", *(f"- {text}" for text in card["not_for"]), "", "## Measured errors", ""]
    lines += [
        "| test | frames | E MAE / RMSE meV/atom | F MAE / RMSE meV/Å | stress MAE GPa |",
        "|---|---|---|---|---|",
    ]
    for test, errors in record["test"].items():
        energy, forces = (
            " / ".join(f"{errors[k][m]:.3g}" for m in ("mae", "rmse")) for k in ("energy_per_atom", "forces")
        )
        stress = f"{errors['stress']['mae']:.3g}" if "stress" in errors else "-"
        lines.append(f"| {test} | {errors['n_frames']} | {energy} | {forces} | {stress} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
