"""Put a trained generator and its measured quality into the package: weights with a card, and the card as a page.

    python benchmarks/generative/ship.py RUN/best.safetensors eqgat-qm9-noh --bench benchmarks/results/generative.json

The records come from `tesseral bench generative RUN/best.safetensors -o …`, that of the network alone with
`--free-valences`; the card from NAME.card.yaml.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from tesseral.generative import load, save
from tesseral.generative.reference import Reference
from tesseral.training.shipped import weights

HERE = Path(__file__).parent
SHOWN = {
    "validity": "valid, one fragment",
    "stability.corrected.molecule": "stable, corrected protocol",
    "stability.learned.molecule": "stable, valences as in the training data",
    "stability.legacy.molecule": "stable, legacy protocol",
    "uniqueness": "unique among valid",
    "novelty": "not in the training data",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.safetensors of a run")
    parser.add_argument("name", help="name of the shipped model; NAME.card.yaml lies beside this file")
    parser.add_argument("--bench", type=Path, required=True, help="record of `tesseral bench generative`")
    parser.add_argument("--free", type=Path, help="record of the same with --free-valences")
    parser.add_argument(
        "--data", type=Path, help="the training data, where the checkpoint lacks their valences (older versions)"
    )
    args = parser.parse_args()
    card = yaml.safe_load((HERE / f"{args.name}.card.yaml").read_text(encoding="utf-8"))
    record = json.loads(args.bench.read_text(encoding="utf-8"))
    measured = record["models"][args.checkpoint.stem]
    model = load(args.checkpoint)
    metrics = {
        "n_per_seed": record["settings"]["n_per_seed"],
        "seeds": record["settings"]["seeds"],
        "steps": quality(measured),
        "training": training_facts(model.card),
    }
    if args.free is not None:
        free = json.loads(args.free.read_text(encoding="utf-8"))
        metrics["free_valences"] = quality(free["models"][args.checkpoint.stem])
    folder = weights("generative")
    folder.mkdir(exist_ok=True)
    reference = Reference.of_header(model.card)
    if args.data is not None:
        reference = reference.or_else(Reference.of_file(args.data, model.vocabulary))
    header = {**model.card, **reference.to_header(), "card": card, "metrics": metrics}
    save(model, folder / f"{args.name}.safetensors", header, force=True)
    page_of_card = page(args.name, card, metrics, measured["parameters"])
    (folder / f"{args.name}.md").write_text(page_of_card, encoding="utf-8")


def quality(measured: dict[str, Any]) -> dict[str, Any]:
    """Mean and half width of every number but the speed, by steps."""
    return {
        steps: {
            key: {k: value[k] for k in ("mean", "half_width")}
            for key, value in run["numbers"].items()
            if not key.startswith("sampling.")
        }
        for steps, run in measured["runs"].items()
    }


def training_facts(header: dict[str, Any]) -> dict[str, float]:
    """Steps and seconds that these weights were trained for, and the steps of the weights that they started from."""
    found = {key: float(header["training_metrics"][key]) for key in ("epoch", "step", "time_s")}
    return {**found, "steps_before": header["provenance"]["steps_before"]}


def page(name: str, card: dict[str, Any], metrics: dict[str, Any], parameters: int) -> str:
    """The model card as Markdown."""
    training = metrics["training"]
    lines = [f"# {name}", "", card["description"].strip(), ""]
    lines += [f"- **{key.capitalize()}.** {card[key]}" for key in ("data", "licence")]
    lines += [
        f"- **Parameters.** {parameters:,}",
        f"- **Training.** {training['step']:,.0f} steps, {training['time_s'] / 60:.0f} min on one CPU core"
        + (f", from weights of {training['steps_before']:,} steps" if training["steps_before"] else ""),
        "",
        "## Not for",
        "",
        *(f"- {text}" for text in card["not_for"]),
        "",
        "## Measured quality",
        "",
        f"Of all molecules drawn, {len(metrics['seeds'])} seeds of {metrics['n_per_seed']:,}; 95 % intervals.",
        "",
        "| | " + " | ".join(f"{steps} steps" for steps in metrics["steps"]) + " |",
        "|---|" + "---|" * len(metrics["steps"]),
    ]
    for key, label in SHOWN.items():
        if all(key in numbers for numbers in metrics["steps"].values()):
            cells = [percent(numbers[key]) for numbers in metrics["steps"].values()]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if "free_valences" in metrics:
        cells = [percent(numbers["validity"]) for numbers in metrics["free_valences"].values()]
        lines.append("| valid, one fragment, with `--free-valences` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(number: dict[str, Any]) -> str:
    """Mean and half width in per cent."""
    half = "" if number["half_width"] is None else f" ± {100 * number['half_width']:.1f}"
    return f"{100 * number['mean']:.1f}{half} %"


if __name__ == "__main__":
    main()
