"""The thermodynamic log of a simulation: one row per record, running averages, a figure."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.errors import UserError

COLUMNS = (
    "step",
    "time_fs",
    "potential_eV",
    "kinetic_eV",
    "total_eV",
    "temperature_K",
    "pressure_GPa",
    "volume_A3",
    "conserved_eV",
    "drift_meV_per_atom",
)


@dataclass(frozen=True)
class Row:
    """One record; pressure and volume are None without three periodic axes. Units are in `COLUMNS`."""

    step: int
    time: float
    potential: float
    kinetic: float
    total: float
    temperature: float
    pressure: float | None
    volume: float | None
    conserved: float
    drift: float

    def line(self) -> str:
        """The row as CSV; an absent value is an empty field."""
        values = [getattr(self, f.name) for f in fields(self)]
        texts = ("" if v is None else str(v) if isinstance(v, int) else f"{v:.12g}" for v in values)
        return ",".join(texts) + "\n"


class ThermoLog:
    """The CSV file, appended row by row. `mark` and `rewind` as for trajectories."""

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("ab")
        if new:
            self._file.write((",".join(COLUMNS) + "\n").encode())

    def write(self, row: Row) -> None:
        """Append one row and hand it to the system."""
        self._file.write(row.line().encode())
        self._file.flush()

    def mark(self) -> int:
        """Put everything on the disk; returns the size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Averages:
    """Running sums over the records: means, spread of the temperature, slope of the conserved energy.

    State in, state out (`to_dict`, `from_dict`), so that a resumed run reports the same numbers.
    """

    NAMES = ("n", "T", "TT", "P", "n_P", "t", "tt", "c", "tc", "start")

    def __init__(self) -> None:
        self.sums = dict.fromkeys(self.NAMES, 0.0)

    def add(self, row: Row) -> None:
        """Take one record in."""
        s = self.sums
        if s["n"] == 0:
            s["start"] = row.conserved
        t, c = row.time, row.conserved - s["start"]
        terms = {
            "n": 1.0,
            "T": row.temperature,
            "TT": row.temperature**2,
            "t": t,
            "tt": t * t,
            "c": c,
            "tc": t * c,
        }
        if row.pressure is not None:
            terms |= {"P": row.pressure, "n_P": 1.0}
        for name, value in terms.items():
            s[name] += value

    def temperature(self) -> tuple[float, float]:
        """Mean and standard deviation in K."""
        s = self.sums
        mean = s["T"] / max(s["n"], 1)
        return mean, float(np.sqrt(max(s["TT"] / max(s["n"], 1) - mean**2, 0.0)))

    def pressure(self) -> float | None:
        """Mean in GPa; None without three periodic axes."""
        return self.sums["P"] / self.sums["n_P"] if self.sums["n_P"] else None

    def slope(self) -> float | None:
        """Slope of the conserved energy in eV/fs; None for fewer than two times."""
        s = self.sums
        spread = s["n"] * s["tt"] - s["t"] ** 2
        return (s["n"] * s["tc"] - s["t"] * s["c"]) / spread if spread > 0 else None

    def to_dict(self) -> dict[str, float]:
        """The sums."""
        return dict(self.sums)

    @classmethod
    def from_dict(cls, sums: dict[str, float]) -> Averages:
        """Go on from sums."""
        averages = cls()
        averages.sums = {name: float(sums[name]) for name in cls.NAMES}
        return averages


def read_thermo(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a thermo log by name, NaN where a field is empty. Raises UserError for another file."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not lines or tuple(lines[0].split(",")) != COLUMNS:
        raise UserError(f"{path} is no thermo log of tesseral (its first line is not {','.join(COLUMNS)})")
    rows = [[float(v) if v else np.nan for v in line.split(",")] for line in lines[1:]]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    return dict(zip(COLUMNS, table.T, strict=True))


def plot_thermo(path: str | os.PathLike[str], figure: str | os.PathLike[str], title: str = "") -> None:
    """Draw the log: temperature, energies, drift of the conserved energy; pressure and volume if any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = read_thermo(path)
    time = log["time_fs"] / 1000
    panels: list[tuple[str, list[tuple[str, Any]]]] = [
        ("temperature / K", [("", log["temperature_K"])]),
        (
            "energy / eV, from the start",
            [(n.split("_")[0], log[n] - log[n][:1]) for n in ("potential_eV", "kinetic_eV", "total_eV")],
        ),
        ("drift of the conserved\nenergy / meV per atom", [("", log["drift_meV_per_atom"])]),
    ]
    if np.isfinite(log["pressure_GPa"]).any():
        panels += [("pressure / GPa", [("", log["pressure_GPa"])]), ("volume / Å³", [("", log["volume_A3"])])]
    drawing = Figure(figsize=(7.0, 1.9 * len(panels)), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (label, curves) in zip(drawing.subplots(len(panels), sharex=True), panels, strict=True):
        for name, values in curves:
            axes.plot(time, values, lw=1.0, label=name)
        axes.set_ylabel(label, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(fontsize=7, frameon=False, ncols=len(curves))
    axes.set_xlabel("time / ps")
    if title:
        drawing.suptitle(title, fontsize=10)
    drawing.savefig(figure, dpi=150)
