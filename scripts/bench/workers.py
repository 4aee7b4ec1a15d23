"""A worker process of a benchmark: starts it with one thread, asks it, reads its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB", "NUMBA")
OWN = [sys.executable, "-m", "tesseral.scripts.bench.tesseral_side"]


class WorkerError(RuntimeError):
    """A worker could not start, died, or could not do what it was asked; the text says which."""


def peer_command(python: str, side: Path) -> list[str]:
    """Command of a peer's worker: its own Python, isolated from this package's folders and settings."""
    return [python, "-I", str(HERE / "serve.py"), str(side)]


class Worker:
    """One worker process; use it as a context manager, so that it ends with the block.

    Arguments: the command that runs `serve.serve`, or another program that answers lines of JSON; more variables of
    its environment.
    Raises WorkerError when it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        threads = {f"{name}_NUM_THREADS": "1" for name in THREAD_VARIABLES}
        self._stderr = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                encoding="utf-8",
                env={**os.environ, **threads, "PYTHONSAFEPATH": "1", **(environment or {})},
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerError(f"{command[0]} cannot be run: {error.strerror}") from error

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """The reply to one request; WorkerError with the worker's own words when it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended with code {self._process.wait()}: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _last_words(self) -> str:
        """Last line that the process wrote to stderr."""
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate()  # closes stdin: the worker's loop ends
        finally:
            self._stderr.close()
