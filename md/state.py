"""The state of a simulation in one file: safetensors with JSON, written atomically, never a pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.errors import UserError

FORMAT = "tesseral-md-state"
VERSION = 1
KEY = "tesseral"


@dataclass
class State:
    """Everything from which a run goes on as if it had never stopped.

    arrays: numbers, positions, momenta, cell, pbc, masses and the integrator's variables under
    "integrator/…", all as plain arrays; meta: step, seed, settings, model, random generator, limits, running
    averages, positions in files.
    """

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.meta["step"])


def write_state(path: Path, state: State) -> None:
    """Write the state so that a reader finds the old one or the whole new one, also after a crash."""
    from safetensors.numpy import save

    meta = json.dumps({"format": FORMAT, "version": VERSION, **state.meta})
    arrays = {name: np.array(value, order="C") for name, value in state.arrays.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(save(arrays, metadata={KEY: meta}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_state(path: Path) -> State:
    """Read a state. Raises UserError when the file is absent, damaged, foreign or from a newer version."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such state file, so there is no run to resume; start one without --resume")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {})[KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or no state of a simulation ({error}); start anew with --force") from None
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise UserError(
            f"{path} has format {meta.get('format')} version {meta.get('version')}, this installation reads "
            f"{FORMAT} version {VERSION}: resume with the version that wrote it, or start anew"
        )
    return State(arrays, meta)
