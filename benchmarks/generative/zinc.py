"""Drug-like molecules of ZINC with geometries, as stores from which generators are trained.

    python benchmarks/generative/zinc.py SMILES… OUT [--processes 4] [--limit 2000]

reads SMILES files (.csv or .smi, also .gz; the first field) and writes OUT/zinc.h5 (all hydrogens), OUT/zinc-noh.h5
(heavy atoms alone), the same with -kept for the part kept aside (to look for memorisation), train.smi, kept.smi and
card.json: counts, what was left out and why. Geometries are ETKDG and MMFF94 of one conformer, so distributions of
bond lengths and angles are those of MMFF94. Deterministic. Takes about 0.1 s of one core per molecule.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from tesseral.datasets.errors import DataError
from tesseral.generative.data import MoleculeOptions, embedded, prepared, smiles_of
from tesseral.generative.sets import Found, write_sets

FORMS = {"zinc": MoleculeOptions(), "zinc-noh": MoleculeOptions(hydrogens="remove")}
PROVENANCE = {
    "source": "ZINC molecules as SMILES, among them a part of ZINC250k",
    "geometries": "one ETKDG conformer relaxed by MMFF94, RDKit; bonds in Kekulé form",
}


def smiles(paths: list[Path], limit: int | None) -> Iterator[str]:
    """Every SMILES of the files once."""
    seen: set[str] = set()
    for text in islice((text for path in paths for text in smiles_of(path)), limit):
        if text not in seen:
            seen.add(text)
            yield text


def molecule(text: str) -> Found:
    """The molecule in each form, or the kind of reason for which it is left out."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    try:
        whole = embedded(text)
        return number, {name: prepared(whole, options) for name, options in FORMS.items()}
    except DataError as error:
        return number, str(error).split(":", maxsplit=1)[0]


def main() -> None:
    """Write the stores and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit", type=int, help="the first molecules only")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes) as pool:
        found = pool.map(molecule, smiles(args.smiles, args.limit), chunksize=50)
        card = write_sets(found, args.out, tuple(FORMS), PROVENANCE)
    print(json.dumps(card, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
