"""QM9 molecules of up to six heavy atoms in a random order that is always the same, for `tesseral data hamiltonian`.

    python benchmarks/hamiltonian/qm9_small.py DATA/qm9 -o qm9_small.extxyz \\
        --skip DATA/hamiltonian/qm9small_b3lyp_def2svp.h5

DATA/qm9 holds qm9_train.h5 (columns gdb_index, offsets, numbers, positions Å). Any first part of the output is a random
sample. --skip leaves out the molecules of a file with one group gdb_NNNNNN per molecule: those have labels already.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from tesseral.datasets.structure import Structure
from tesseral.datasets.write import write

SEED = 20250218


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--heavy", type=int, default=6, help="largest number of heavy atoms")
    parser.add_argument("--skip", type=Path)
    args = parser.parse_args()
    known: set[int] = set()
    if args.skip:
        with h5py.File(args.skip) as file:
            known = {int(name.removeprefix("gdb_")) for name in file}
    with h5py.File(args.folder / "qm9_train.h5") as file:
        index, offsets = file["gdb_index"][:], file["offsets"][:]
        numbers = file["numbers"][:]
        heavy = np.add.reduceat((numbers > 1).astype(int), offsets[:-1])
        chosen = [k for k in np.flatnonzero(heavy <= args.heavy) if int(index[k]) not in known]
        np.random.default_rng(SEED).shuffle(chosen)
        frames = []
        for k in chosen:
            rows = slice(int(offsets[k]), int(offsets[k + 1]))
            frames.append(Structure(numbers[rows], file["positions"][rows], info={"name": f"gdb_{int(index[k]):06d}"}))
    print(write(args.output, frames, overwrite=True), "molecules in", args.output)


if __name__ == "__main__":
    main()
