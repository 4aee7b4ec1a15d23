"""Properties that generation is steered by: their scale, and what values molecules of each size have.

A property is a number per molecule. The network gets c = (value − mean) / MAD, with the mean absolute deviation MAD;
where a value is not asked for, it is drawn from p(c | number of atoms, values asked for), as the data have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.errors import DataError, UserError
from ..datasets.structure import Structure

ROWS = 1000  # kept for each number of atoms
NEAREST = 0.1  # share of a size's rows, those nearest to the values asked for, that the others are drawn from
SEED = 20240613


@dataclass(frozen=True)
class Conditions:
    """Names, scales and joint values of K properties.

    names, means, spreads: of length K, in the units of the data. rows: by number of atoms, up to ROWS joint values
    ``(R, K)`` of the data. limits: least and largest value of each property.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    limits: tuple[tuple[float, float], ...]
    rows: dict[int, np.ndarray]

    @classmethod
    def from_structures(
        cls, structures: Iterable[Structure], names: Iterable[str], scale: Conditions | None = None
    ) -> Conditions:
        """From molecules with the properties in `info`.

        Args:
            scale: take means and spreads from these: for fine-tuning, whose network knows them.

        Raises:
            DataError: a molecule without one of them, or a property that is the same in all molecules.
        """
        names = tuple(names)
        by_size: dict[int, list[list[float]]] = {}
        for k, structure in enumerate(structures):
            row = [property_of(structure, name, f"molecule {k}") for name in names]
            by_size.setdefault(structure.n_atoms, []).append(row)
        if not by_size:
            raise DataError("the data set has no molecules")
        values = np.concatenate([np.array(rows) for rows in by_size.values()])
        means = values.mean(0)
        spreads = np.abs(values - means).mean(0)
        for name, spread in zip(names, spreads, strict=True):
            if scale is None and spread < 1e-12:
                raise DataError(f"the property {name!r} is the same in all molecules: nothing to learn from it")
        return cls(
            names,
            tuple(means.tolist()) if scale is None else scale.means,
            tuple(spreads.tolist()) if scale is None else scale.spreads,
            tuple(zip(values.min(0).tolist(), values.max(0).tolist(), strict=True)),
            {n: _some(np.array(by_size[n])) for n in sorted(by_size)},
        )

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """c = (value − mean) / MAD of values ``(…, K)``."""
        found: np.ndarray = (values - np.array(self.means)) / np.array(self.spreads)
        return found

    def check(self, given: Mapping[str, float]) -> list[str]:
        """Warnings about values that the data do not reach.

        Raises:
            UserError: a property that the model does not know, or a value that is no number.
        """
        warnings = []
        for name, value in given.items():
            if name not in self.names:
                known = ", ".join(self.names)
                raise UserError(f"the model knows no property {name!r}; it was trained with {known}")
            if not np.isfinite(value):
                raise UserError(f"the property {name} must be a finite number, got {value}")
            low, high = self.limits[self.names.index(name)]
            if not low <= value <= high:
                warnings.append(
                    f"{name}={value:g} lies outside the training data ({low:g} to {high:g}): expect little of it"
                )
        return warnings

    def draw(self, sizes: np.ndarray, uniform: np.ndarray, given: Mapping[str, float]) -> np.ndarray:
        """Values ``(n, K)`` for molecules of `sizes` ``(n,)`` atoms; `uniform` ``(n,)`` in [0, 1) chooses the rows.

        Sizes that the data lack take the rows of the nearest one.
        """
        fixed = [self.names.index(name) for name in given]
        wanted = np.array([given[self.names[k]] for k in fixed])
        known = np.array(list(self.rows))
        found = np.empty((len(sizes), len(self.names)))
        for k, (size, number) in enumerate(zip(sizes, uniform, strict=True)):
            rows = self.rows[int(known[np.abs(known - size).argmin()])]
            if fixed:
                away = np.abs(rows[:, fixed] - wanted) / np.array(self.spreads)[fixed]
                rows = rows[np.argsort(away.sum(1), kind="stable")[: max(1, round(NEAREST * len(rows)))]]
            found[k] = rows[int(number * len(rows))]
        found[:, fixed] = wanted
        return found

    def summary(self) -> str:
        """One line: each property with its range."""
        parts = [f"{n} {a:.4g} to {b:.4g}" for n, (a, b) in zip(self.names, self.limits, strict=True)]
        return f"conditioned on {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, values to six digits."""
        rows = {str(n): [[float(f"{v:.6g}") for v in row] for row in part.tolist()] for n, part in self.rows.items()}
        return {
            "names": list(self.names),
            "means": list(self.means),
            "spreads": list(self.spreads),
            "limits": [list(pair) for pair in self.limits],
            "rows": rows,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conditions:
        return cls(
            tuple(data["names"]),
            tuple(data["means"]),
            tuple(data["spreads"]),
            tuple((low, high) for low, high in data["limits"]),
            {int(n): np.array(part, dtype=np.float64) for n, part in data["rows"].items()},
        )


def property_of(structure: Structure, name: str, where: str = "") -> float:
    """A number from `structure.info` (or a label, as the energy), where readers put the properties of a file.

    Raises:
        DataError: absent or no finite number; the text before ":" names the kind, and says what there is.
    """
    try:
        value = float(structure.info[name] if name in structure.info else structure.labels[name])
    except KeyError:
        known = ", ".join(map(str, [*structure.info, *structure.labels])) or "none"
        raise DataError(f"no property {name!r} (there are {known})", where) from None
    except (TypeError, ValueError):
        raise DataError(f"the property {name!r} is no number", where) from None
    if not np.isfinite(value):
        raise DataError(f"the property {name!r} is no finite number", where)
    return value


def _some(rows: np.ndarray) -> np.ndarray:
    if len(rows) <= ROWS:
        return rows
    return rows[np.sort(np.random.default_rng(SEED).choice(len(rows), ROWS, replace=False))]
