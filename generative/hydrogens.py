"""How many hydrogens implicit-hydrogen molecules have at each atom: what fills up the usual valences.

Plain numpy, so that sampling needs no chemistry package; the numbers are those of RDKit for the elements listed.
"""

from __future__ import annotations

import numpy as np

from ..datasets.structure import Structure
from .valences import AROMATIC

CARBON = 6
VALENCES: dict[int, tuple[int, ...]] = {
    **dict.fromkeys((1, 3, 9, 11, 17, 35), (1,)),
    **dict.fromkeys((5, 13, 7), (3,)),
    **dict.fromkeys((6, 14, 32), (4,)),
    **dict.fromkeys((15, 33, 51), (3, 5)),
    8: (2,),
    **dict.fromkeys((16, 34, 52), (2, 4, 6)),
    53: (1, 3, 5),
}
"""Usual valences by the number of electrons: an ion bonds as the neutral atom with as many (N+ as C, O- as F)."""


def implicit_hydrogens(structure: Structure) -> np.ndarray:
    """Hydrogens ``(n,)`` int64 that fill each atom up to the next usual valence.

    None at atoms whose valence is larger than all usual ones, and at aromatic atoms other than carbon, whose
    hydrogens the bonds do not tell.
    """
    n = structure.n_atoms
    bonds = structure.bonds if structure.bonds is not None else np.zeros((0, 3), dtype=np.int64)
    ends, orders = bonds[:, :2].T.ravel(), np.tile(bonds[:, 2], 2)
    aromatic = np.bincount(ends[orders == AROMATIC], minlength=n)
    plain = orders != AROMATIC
    valences = np.bincount(ends[plain], weights=orders[plain], minlength=n).astype(np.int64)
    valences += np.where(aromatic == 2, 3, np.where(aromatic == 3, 4, aromatic))
    electrons = structure.numbers - structure.arrays.get("formal_charges", 0)
    fill = np.array(
        [
            next((usual - v for usual in VALENCES.get(int(e), ()) if usual >= v), 0)
            for e, v in zip(electrons, valences, strict=True)
        ],
        dtype=np.int64,
    )
    return np.where((aromatic > 0) & (structure.numbers != CARBON), 0, fill)
