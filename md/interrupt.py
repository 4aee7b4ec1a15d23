"""Ctrl-C and SIGTERM between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the user (or the queue) asked to stop."""

    requested = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Inside, the first SIGINT or SIGTERM only sets `requested`; a second one acts at once.

    Only the main thread can take signals; elsewhere nothing changes. The old handlers return at the end.
    """
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        state.requested = True
        signal.signal(number, old[signal.Signals(number)])

    try:
        for number in signals:
            signal.signal(number, note)
        yield state
    finally:
        for number in signals:
            signal.signal(number, old[number])
