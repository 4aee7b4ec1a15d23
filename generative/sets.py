"""Data sets for generators: stores of molecules in several forms, a part kept aside, and a card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.store_writer import StoreWriter
from ..datasets.structure import Structure
from .chemistry import judge

KEPT = 0.05  # share kept aside
SEED = 20240613

Found = tuple[int, Mapping[str, Structure] | str]
"""A number that names the molecule for ever, and its forms by name, or the kind of reason for which it is left out."""


def write_sets(
    molecules: Iterable[Found], out: str | Path, forms: tuple[str, ...], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write OUT/FORM.h5, OUT/FORM-kept.h5, OUT/train.smi, OUT/kept.smi and OUT/card.json; returns the card.

    Whether a molecule is kept aside (to look for memorisation) depends on its number alone, not on what else there is.
    The SMILES are canonical, without stereo, once each. A part without molecules has no store.

    Args:
        molecules: in the order in which they are written; every form of a molecule has all names of `forms`.
        out: a folder.
        provenance: source and method, for the stores and the card.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter(train=0, kept=0)
    left_out: Counter[str] = Counter()
    smiles: dict[str, dict[str, None]] = {"train": {}, "kept": {}}
    with ExitStack() as stack:
        writers: dict[str, StoreWriter] = {}
        for number, found in molecules:
            if isinstance(found, str):
                left_out[found] += 1
                continue
            part = "kept" if np.random.default_rng((SEED, number)).random() < KEPT else "train"
            for form in forms:
                name = form if part == "train" else f"{form}-kept"
                if name not in writers:
                    writer = StoreWriter(out / f"{name}.h5", provenance=dict(provenance))
                    writers[name] = stack.enter_context(writer)
                writers[name].append(found[form])
            first = found[forms[0]]
            counts[part] += 1
            counts["with formal charges"] += bool(first.arrays.get("formal_charges", np.zeros(1)).any())
            implicit = not (first.numbers == 1).any()
            smiles[part][judge(first, implicit_hydrogens=implicit).smiles] = None
    for part, texts in smiles.items():
        (out / f"{part}.smi").write_text("".join(f"{text}\n" for text in texts))
    card = {
        **provenance,
        "counts": dict(counts),
        "left_out": dict(left_out.most_common()),
        "kept_share": KEPT,
        "seed": SEED,
    }
    (out / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card
