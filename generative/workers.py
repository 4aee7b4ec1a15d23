"""Work on many molecules in processes of their own: one that hangs or crashes costs its molecule, not the run.

The processes are started anew (`python -m tesseral.generative.workers TASK`), not forked: they share neither threads
nor state with the caller, and scripts need no `if __name__ == "__main__"`. Questions and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

START_LIMIT = 180.0  # s, for imports on a busy machine


@dataclass(frozen=True)
class Failed:
    """No answer for an item, and why."""

    reason: str


def apart(
    task: str, items: Sequence[Mapping[str, Any]], *, processes: int | None = None, timeout: float = 60.0
) -> Iterator[Any]:
    """The answers to all items in their order, each plain data or :class:`Failed`.

    Args:
        task: "package.module:function", called with an item's values by keyword; returns plain data.
        items: plain data.
        processes: how many run at a time; None: one for each core.
        timeout: seconds for one item; then its process is ended, and the next item gets a fresh one.
    """
    idle: SimpleQueue[_Worker] = SimpleQueue()
    alive: list[_Worker] = []

    def ask(item: Mapping[str, Any]) -> Any:
        try:
            worker = idle.get_nowait()
        except Empty:
            worker = _Worker(task)
            alive.append(worker)
        answer = worker.ask(item, timeout)
        if worker.running:
            idle.put(worker)
        else:
            alive.remove(worker)
        return answer

    pool = ThreadPoolExecutor(max(1, min(processes or os.cpu_count() or 1, len(items))))
    try:
        yield from pool.map(ask, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in list(alive):
            worker.kill()
        pool.shutdown()
        for worker in alive:
            worker.close()


class _Worker:
    """One process and the pipes to it."""

    def __init__(self, task: str) -> None:
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        self._words = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            encoding="utf-8",
            env={**os.environ, **threads, "PYTHONSAFEPATH": "1"},
        )
        self._started = False

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, item: Mapping[str, Any], timeout: float) -> Any:
        """The answer to one item; the process has ended when it crashed or took too long."""
        if not self._started:
            started = self._line("", START_LIMIT)
            if isinstance(started, Failed):
                return started
            self._started = True
        return self._line(json.dumps(item) + "\n", timeout)

    def _line(self, question: str, limit: float) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            if question:
                self._process.stdin.write(question)
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            reason = f"no answer within {limit:g} s" if late.is_set() else f"crashed, code {code}{self._last_word()}"
            self.close()
            return Failed(reason)
        answer = json.loads(line)
        return Failed(answer["failed"]) if "failed" in answer else answer["result"]

    def _last_word(self) -> str:
        self._words.seek(0)
        lines = [line.strip() for line in self._words if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """End the process, whatever it does; whoever waits for its answer gets none."""
        self._process.kill()

    def close(self) -> None:
        """End the process and close the pipes to it."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._words):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def serve(task: str) -> None:
    """Answer the items on stdin, one line each; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = task.partition(":")
    function = getattr(import_module(module), name)
    print(json.dumps({"result": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = {"result": function(**json.loads(line))}
        except Exception as error:  # whatever goes wrong with one molecule is its answer
            answer = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
