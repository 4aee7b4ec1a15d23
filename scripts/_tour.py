"""A command of the tour (`tesseral demo`) and what came of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass
class Step:
    """One command of the tour: its words, what it printed, how long it took (s)."""

    words: list[str]
    output: str
    seconds: float

    @property
    def text(self) -> str:
        """Command and output as on a terminal."""
        return f"$ tesseral {shlex.join(self.words)}\n{self.output}".rstrip()
