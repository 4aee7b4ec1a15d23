"""QM9's geometries with the bonds of its SMILES, as stores from which generators are trained.

    python benchmarks/generative/qm9.py DATA/qm9 OUT [--processes 4] [--limit 2000]

writes OUT/qm9.h5 (all hydrogens) and OUT/qm9-noh.h5 (heavy atoms alone), each with a part kept aside as
OUT/…-kept.h5 (to look for memorisation), their SMILES in train.smi and kept.smi, and card.json: counts, what was left
out and why. Deterministic.
Molecules whose HOMO-LUMO gap is known (about a fifth) carry it as the property `gap` (B3LYP, eV), for data.condition.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from tesseral.datasets.errors import DataError
from tesseral.datasets.structure import Structure
from tesseral.generative.data import MoleculeOptions, prepared, with_bonds_of
from tesseral.generative.sets import Found, write_sets

FORMS = {"qm9": MoleculeOptions(), "qm9-noh": MoleculeOptions(hydrogens="remove")}
SOURCE = "QM9 (Sci. Data 2014, 1, 140022), B3LYP/6-31G(2df,p) geometries, no fluorine; bonds of its SMILES, Kekulé form"

Job = tuple[int, np.ndarray, np.ndarray, str, float]


def jobs(folder: Path, limit: int | None) -> Iterator[Job]:
    """(index, numbers, positions, SMILES, gap) of every molecule that has geometry and SMILES; gap may be NaN."""
    with gzip.open(folder / "qm9_smiles.csv.gz", "rt") as file:
        smiles = {int(row["gdb_index"]): row["smiles"] for row in csv.DictReader(file)}
    with h5py.File(folder / "qm9_train.h5") as file:
        index, offsets = file["gdb_index"][:limit], file["offsets"][:]
        numbers, positions, gaps = file["numbers"][:], file["positions"][:], file["gap_B3LYP_eV"][:]
    for k, gdb in enumerate(index.tolist()):
        part = slice(offsets[k], offsets[k + 1])
        if gdb in smiles:
            yield gdb, numbers[part], positions[part], smiles[gdb], float(gaps[k])


def molecules(job: Job) -> Found:
    """The molecule in each form, or the kind of reason for which it is left out."""
    gdb, numbers, positions, smiles, gap = job
    try:
        whole = with_bonds_of(Structure(numbers, positions), smiles)
        found = {name: prepared(whole, options) for name, options in FORMS.items()}
    except DataError as error:
        return gdb, str(error).split(":", maxsplit=1)[0]
    for structure in found.values():
        structure.info["gdb_index"] = gdb
        if np.isfinite(gap):
            structure.info["gap"] = gap
    return gdb, found


def main() -> None:
    """Write the stores and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit", type=int, help="the first molecules only")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes) as pool:
        found = pool.map(molecules, jobs(args.data, args.limit), chunksize=200)
        card = write_sets(found, args.out, tuple(FORMS), {"source": SOURCE})
    print(json.dumps(card, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
