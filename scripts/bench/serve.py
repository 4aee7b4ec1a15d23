"""The loop of a benchmark's worker process: requests and replies are JSON lines on stdin and stdout.

Standard library only, and runnable by any Python: ``python serve.py SIDE.py`` loads the file SIDE.py, whose class
`Side` knows one program and what is measured of it:

    Side(options)                    builds the model; `describe()` -> facts about it
    load(system, paths) -> edges     gets a system ready for these paths (see `systems.System.as_dict`)
    evaluate(path, k)                the k-th evaluation; raises when the numbers are not finite

The loop times what `evaluate` takes, so that all programs share one clock.
"""

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(make_side: Callable[[dict[str, Any]], Any]) -> None:
    """Serve one program: requests to open it, to load a system and to measure."""
    side: Any = None
    done = 0

    def reply(request: dict[str, Any]) -> Any:
        nonlocal side, done
        if request["do"] == "open":
            side = make_side(request["options"])
            return side.describe()
        if request["do"] == "load":
            return {"edges": side.load(request["system"], request["paths"]), "peak": peak_memory()}
        times = measure(side, request["path"], request["calls"], done)
        done += request["calls"]
        return {**times, "peak": peak_memory()}

    answer(reply)


def answer(reply: Callable[[dict[str, Any]], Any]) -> None:
    """Answer each request by one line until stdin closes: its reply, or ``{"error": text}``.

    Whatever the program prints to stdout goes to stderr instead.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = reply(request)
            except Exception as error:  # the other end decides what it means
                found = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(found) + "\n")
            replies.flush()


def measure(side: Any, path: str, calls: int, done: int) -> dict[str, float]:
    """Mean seconds of `calls` evaluations: CPU time of this process, and wall time.

    The count goes on from `done`: two evaluations of one frame in a row would be answered from memory.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for k in range(done, done + calls):
        side.evaluate(path, k)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / calls, "wall": wall / calls}


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_side(path: str) -> Any:
    """The class `Side` of a file."""
    spec = importlib.util.spec_from_file_location("side", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Side


if __name__ == "__main__":
    serve(load_side(sys.argv[1]))
