"""Ctrl-C and SIGTERM between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopSignals:
    """Notes the first Ctrl-C or SIGTERM instead of dying from it; a second one acts as it did before.

    Only the main thread can take signals; elsewhere nothing changes. The old handlers return at the end.
    """

    def __init__(self) -> None:
        self.asked = False
        self.kept: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        return self

    def install(self) -> None:
        """Take the signals over (again: Lightning puts its own handler in place at the start of a run)."""
        for number in self.kept:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.kept.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
