"""Cycles of PySCF's SCF from a model's prediction, beside those from PySCF's own guesses, on labelled molecules.

    python benchmarks/hamiltonian/scf_starts.py MODEL test_labels.h5 -o starts.json

conv_tol 1e-9, DIIS space 8, the grid of the labels. Cycles from `minao` and `1e` do not depend on the model: they are
kept in test_labels.h5.starts.jsonl, one line per molecule, and every model's in OUT.jsonl, so that an interrupted run
goes on where it was. Source of the measure: QH9 (arXiv 2306.09549).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tesseral.datasets.structure import Structure
from tesseral.potentials.hamiltonian import load
from tesseral.potentials.hamiltonian.data import LabelSet
from tesseral.potentials.hamiltonian.evaluate import predicted_matrix
from tesseral.potentials.hamiltonian.scf import Prediction, converge, from_matrix
from tesseral.potentials.hamiltonian.solve import orbital_errors
from tesseral.potentials.hamiltonian.store import Label

Row = dict[str, Any]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("labels", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first molecules")
    args = parser.parse_args()
    model, labels = load(args.model), LabelSet.open(args.labels)

    def converged(label: Label) -> Prediction:
        structure = Structure(label.numbers, label.positions)
        return from_matrix(structure, labels.level, label.hamiltonian, guess=label.guess)

    def reference(label: Label) -> Row:
        found = converge(converged(label))
        return {"cycles": found.cycles, "energies": found.energies, "converged": found.converged}

    def predicted(label: Label) -> Row:
        matrix = predicted_matrix(model, label)
        prediction = from_matrix(Structure(label.numbers, label.positions), labels.level, matrix, guess=label.guess)
        found = converge(prediction, starts=())
        errors = orbital_errors(matrix, label.hamiltonian, label.overlap, prediction.n_electrons)
        errors["hamiltonian"] = float(np.abs(matrix - label.hamiltonian).mean())
        return {
            "cycles": found.cycles["predicted"],
            "energy": found.energies["predicted"],
            "converged": found.converged["predicted"],
            "energy_of_prediction": found.first_energy,
            "errors": errors,
        }

    chosen = list(labels.labels[: args.limit])
    ours, theirs = (
        Kept(args.output.with_suffix(".jsonl"), predicted),
        Kept(args.labels.with_name(args.labels.name + ".starts.jsonl"), reference),
    )
    pairs = []
    for label in chosen:
        pairs.append((ours(label), theirs(label)))
        print(label.name, pairs[-1][0]["cycles"], pairs[-1][1]["cycles"], flush=True)
    record = summary(pairs) | {"model": Path(args.model).name, "labels": args.labels.name}
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["scf"], indent=2))


class Kept:
    """Rows of a computation by the name of the molecule, kept in a file as they come."""

    def __init__(self, path: Path, compute: Callable[[Label], Row]) -> None:
        self.path, self.compute = path, compute
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}

    def __call__(self, label: Label) -> Row:
        if label.name not in self.rows:
            row = {"name": label.name, **self.compute(label)}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            self.rows[label.name] = row
        return self.rows[label.name]


def summary(pairs: list[tuple[Row, Row]]) -> Row:
    """Ratios with standard errors; largest difference of the converged energies; mean errors."""
    scf: Row = {"n_molecules": len(pairs)}
    for start in ("minao", "1e"):
        ratios = np.array([mine["cycles"] / other["cycles"][start] for mine, other in pairs])
        error = float(ratios.std(ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
        scf[f"ratio_{start}"] = {"mean": float(ratios.mean()), "standard_error": error}
    limit = [other["cycles"]["predicted"] / other["cycles"]["minao"] for _, other in pairs]
    scf["limit_minao"] = float(np.mean(limit))
    scf["cycles"] = {
        "predicted": float(np.mean([mine["cycles"] for mine, _ in pairs])),
        **{s: float(np.mean([other["cycles"][s] for _, other in pairs])) for s in ("minao", "1e")},
    }
    spread = [np.ptp([mine["energy"], *other["energies"].values()]) for mine, other in pairs]
    scf["largest_energy_difference"] = {"value": float(max(spread)), "unit": "Eh"}
    scf["all_converged"] = all(mine["converged"] and all(other["converged"].values()) for mine, other in pairs)
    above = [mine["energy_of_prediction"] - mine["energy"] for mine, _ in pairs]
    scf["energy_of_prediction"] = {"mean_error": 1e3 * float(np.mean(above)), "unit": "mEh"}
    return {"scf": scf}


if __name__ == "__main__":
    main()
