"""What a training shows and keeps of its numbers: metrics.csv, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REDRAW = 0.5  # seconds between updates of the bar


class Records:
    """Rows of one run folder; silent when `active` is False (the other processes of a `torchrun`).

    Args:
        folder: the run folder.
        active: this process writes.
        tensorboard: also write FOLDER/tb.
        first_epoch: where the run (re)starts: rows and events of later epochs of an earlier run are dropped.
        first_step: the same in steps.
    """

    def __init__(self, folder: Path, *, active: bool, tensorboard: bool, first_epoch: int, first_step: int):
        self.path = folder / "metrics.csv"
        self.active = active
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None
        self.bar: Any = None
        if not active:
            return
        if first_step > 0:
            self.rows = [row for row in read_rows(self.path) if int(row["epoch"]) <= first_epoch]
        self._write_all()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tb"), purge_step=first_step + 1 if first_step else None)

    def start_bar(self, epochs: int, done: float) -> None:
        """Show a progress bar over epochs on a terminal."""
        if self.active and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=epochs,
                initial=done,
                unit=" epoch",
                mininterval=REDRAW,
                leave=False,
                bar_format="{l_bar}{bar}| {n:.2f}/{total} [{elapsed}<{remaining}]{postfix}",
            )

    @property
    def wants_bar(self) -> bool:
        """The bar would be redrawn now: worth computing the numbers for it."""
        return self.bar is not None and self.bar._time() - self.bar.last_print_t >= REDRAW

    def show(self, done: float, text: str) -> None:
        """Move the bar to `done` epochs with a text behind it."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)

    def epoch(self, row: Mapping[str, Any], text: str) -> None:
        """Keep the numbers of one epoch and print them as one line."""
        if not self.active:
            return
        known = self.rows[0].keys() if self.rows else row.keys()
        self.rows.append({key: _text(value) for key, value in row.items()})
        if row.keys() - known or len(self.rows) == 1:
            self._write_all()
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, list(known), restval="").writerow(self.rows[-1])
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self.writer.add_scalar(key.replace("_", "/", 1), value, int(row["step"]))
        self.say(text)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self.active:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Flush TensorBoard and remove the bar."""
        if self.writer is not None:
            self.writer.close()
        if self.bar is not None:
            self.bar.close()

    def _write_all(self) -> None:
        """Rewrite the file atomically, with the union of all columns."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if columns:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(self.rows)
        os.replace(temporary, self.path)
        if self.rows and columns != list(self.rows[0]):
            self.rows[0] = {key: self.rows[0].get(key, "") for key in columns}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv as texts; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row.values() and row["epoch"].isdigit()]


def _text(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
