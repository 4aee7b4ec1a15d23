"""The systems that are timed: fixed geometries, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

N_FRAMES = 8
WIGGLE = 0.001  # Å; frames differ so that no program can reuse its last result, and their edges stay the same
RATTLE = 0.05  # Å
DENSITY = 0.997  # g/cm³ of water
WATER_MASS = 18.015  # amu
AMU_PER_A3 = 1.66054  # g/cm³
BOND, ANGLE = 0.9572, 104.52  # Å, degrees

# 3-(benzyloxy)pyridin-2-amine (3BPA), relaxed with MMFF94 from a distance geometry conformer
MOLECULE = """
N 1.527 -0.146 2.183    C 2.345 0.015 1.061     N 3.628 0.343 1.303     C 4.434 0.506 0.228
C 4.019 0.356 -1.087    C 2.689 0.029 -1.321    C 1.835 -0.120 -0.235   O 0.533 -0.476 -0.463
C -0.314 0.677 -0.378   C -1.741 0.199 -0.280   C -2.444 -0.190 -1.428  C -3.760 -0.645 -1.332
C -4.383 -0.723 -0.087  C -3.689 -0.351 1.063   C -2.373 0.104 0.969    H 2.131 -0.105 2.999
H 1.013 -1.018 2.114    H 5.463 0.766 0.461     H 4.716 0.489 -1.906    H 2.322 -0.108 -2.333
H -0.078 1.312 0.485    H -0.193 1.288 -1.282   H -1.965 -0.145 -2.404  H -4.298 -0.944 -2.228
H -5.406 -1.079 -0.012  H -4.171 -0.418 2.035   H -1.838 0.384 1.875
"""


@dataclass(frozen=True)
class System:
    """One system to time.

    Attributes:
        name: short name.
        numbers: ``(n,)`` atomic numbers.
        cell: ``(3, 3)`` Å; zeros without a cell.
        periodic: all three axes are periodic, or none.
        frames: ``(8, n, 3)`` Å; evaluation k takes frame k modulo 8, a training step takes all as one batch.
        training: time training steps instead of energies and forces.
    """

    name: str
    numbers: np.ndarray
    cell: np.ndarray
    periodic: bool
    frames: np.ndarray
    training: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The system as plain data, for a worker."""
        return {
            "numbers": self.numbers.tolist(),
            "cell": self.cell.tolist(),
            "periodic": self.periodic,
            "frames": self.frames.tolist(),
        }


def molecule() -> System:
    """One organic molecule of 27 atoms (H, C, N, O)."""
    numbers, positions = _molecule()
    return System("molecule", numbers, np.zeros((3, 3)), False, _frames(positions))


def training() -> System:
    """Eight conformers of the molecule in one training batch."""
    numbers, positions = _molecule()
    return System("training", numbers, np.zeros((3, 3)), False, _frames(positions, RATTLE), training=True)


def silicon() -> System:
    """216 rattled atoms of diamond silicon."""
    return _crystal("si216", "Si", "diamond", 5.431, (3, 3, 3))


def copper() -> System:
    """500 rattled atoms of fcc copper."""
    return _crystal("cu500", "Cu", "fcc", 3.615, (5, 5, 5))


def copper_5000() -> System:
    """5,000 rattled atoms of fcc copper; with the next one it shows how memory grows."""
    return _crystal("cu5000", "Cu", "fcc", 3.615, (10, 25, 5))


def copper_20000() -> System:
    """20,000 rattled atoms of fcc copper."""
    return _crystal("cu20000", "Cu", "fcc", 3.615, (20, 25, 10))


def water() -> System:
    """64 water molecules, jittered and turned at random on a cubic grid."""
    random = np.random.RandomState(0)  # its stream is the same in every version of numpy
    side = (64 * WATER_MASS * AMU_PER_A3 / DENSITY) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    oxygen = (grid + 0.5) * side / 4 + random.uniform(-0.2, 0.2, (64, 3))
    frame = np.linalg.qr(random.normal(size=(64, 3, 3)))[0]
    half = np.radians(ANGLE / 2)
    along, across = np.cos(half) * frame[:, :, 0], np.sin(half) * frame[:, :, 1]
    atoms = [oxygen, oxygen + BOND * (along + across), oxygen + BOND * (along - across)]
    positions = np.stack(atoms, axis=1).reshape(-1, 3)
    return System("water192", np.tile([8, 1, 1], 64), side * np.eye(3), True, _frames(positions))


SYSTEMS = {
    "molecule": molecule,
    "si216": silicon,
    "cu500": copper,
    "cu5000": copper_5000,
    "cu20000": copper_20000,
    "water192": water,
    "training": training,
}
ELEMENTS = [1, 6, 7, 8, 14, 29]


def _molecule() -> tuple[np.ndarray, np.ndarray]:
    words = np.array(MOLECULE.split()).reshape(-1, 4)
    numbers = np.array([{"H": 1, "C": 6, "N": 7, "O": 8}[symbol] for symbol in words[:, 0]])
    return numbers, words[:, 1:].astype(float)


def _crystal(name: str, symbol: str, lattice: str, constant: float, repeat: tuple[int, int, int]) -> System:
    from ase.build import bulk

    atoms = bulk(symbol, lattice, a=constant, cubic=True) * repeat
    atoms.rattle(RATTLE, seed=0)
    return System(name, atoms.numbers, atoms.cell.array, True, _frames(atoms.positions))


def _frames(positions: np.ndarray, size: float = WIGGLE) -> np.ndarray:
    """Copies of the positions, the first as it is, the others displaced at random."""
    moves = np.random.RandomState(1).normal(scale=size, size=(N_FRAMES, *positions.shape))
    moves[0] = 0.0
    return positions + moves
