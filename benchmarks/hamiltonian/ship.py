"""Put a trained Hamiltonian network and its measured errors into the package: weights with a card, the card as a page.

    tesseral hamiltonian RUN/best.safetensors test.xyz -o test.h5 --scf --json starts.json
    python benchmarks/hamiltonian/ship.py RUN/best.safetensors sphnet-organic --test test_labels.h5 --starts starts.json

The card comes from NAME.card.yaml; --starts is left out where no SCF was run.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import yaml

from tesseral.potentials.hamiltonian import load, save
from tesseral.potentials.hamiltonian.data import LabelSet
from tesseral.potentials.hamiltonian.evaluate import evaluate
from tesseral.training.shipped import weights

HERE = Path(__file__).parent
SHOWN = {
    "hamiltonian": "elements of the matrix",
    "guess": "the same of the `minao` guess",
    "orbital_energies": "energies of occupied orbitals",
    "homo": "HOMO",
    "lumo": "LUMO",
    "gap": "gap",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="best.safetensors of a run")
    parser.add_argument("name", help="name of the shipped model; NAME.card.yaml lies beside this file")
    parser.add_argument("--test", type=Path, required=True, help="label file of molecules kept aside")
    parser.add_argument("--starts", type=Path, help="JSON of `tesseral hamiltonian --scf` on molecules kept aside")
    args = parser.parse_args()
    card = yaml.safe_load((HERE / f"{args.name}.card.yaml").read_text(encoding="utf-8"))
    model = load(args.checkpoint)
    metrics: dict[str, Any] = {
        "test": evaluate(model, LabelSet.open(args.test)),
        "training": training_facts(args.checkpoint.parent),
    }
    if args.starts:
        metrics["scf"] = json.loads(args.starts.read_text(encoding="utf-8"))["scf"]
    folder = weights("hamiltonian")
    folder.mkdir(exist_ok=True)
    header = {**model.card, "card": card, "metrics": metrics}
    save(model, folder / f"{args.name}.safetensors", header, force=True)
    parameters = sum(p.numel() for p in model.parameters())
    text = page(args.name, card, metrics, str(model.card["level"]["functional"]), parameters)
    (folder / f"{args.name}.md").write_text(text, encoding="utf-8")
    print(text)


def training_facts(run: Path) -> dict[str, float]:
    """Epochs, steps and time of a training, from its log."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {key: float(last[key]) for key in ("epoch", "step", "time_s") if last.get(key)}


def page(name: str, card: dict[str, Any], metrics: dict[str, Any], functional: str, parameters: int) -> str:
    """The model card as Markdown."""
    training, test = metrics["training"], metrics["test"]
    lines = [f"# {name}", "", card["description"].strip(), ""]
    lines += [f"- **{key.capitalize()}.** {card[key]}" for key in ("data", "licence")]
    lines += [
        f"- **Level of theory.** {card['level']} (functional `{functional}` of PySCF)",
        f"- **Parameters.** {parameters:,}",
        f"- **Training.** {training['step']:,.0f} steps, {training['time_s'] / 60:.0f} min on one shared CPU core",
        "",
        "## Not for",
        "",
        *(f"- {text}" for text in card["not_for"]),
        "",
        "## Measured errors",
        "",
        f"{test['n_molecules']} {card['tested']}; mean absolute errors.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {text} | {test[key]['mae']:.4g} {test[key]['unit']} |" for key, text in SHOWN.items() if key in test]
    for key, text in (("similarity", "similarity of occupied orbitals"), ("subspace", "overlap of occupied spaces")):
        if key in test:
            lines.append(f"| {text} | {test[key]['mean']:.6g} % |")
    if "scf" in metrics:
        scf = metrics["scf"]
        for start in ("minao", "1e"):
            ratio = scf[f"ratio_{start}"]
            lines.append(
                f"| SCF cycles / those from `{start}` | {ratio['mean']:.3f} ± {ratio['standard_error']:.3f} "
                f"({scf['n_molecules']} molecules) |"
            )
        difference = scf["largest_energy_difference"]["value"]
        lines += ["", f"The converged energies of all starts agree within {difference:.0e} Eh (conv_tol 1e-9)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
