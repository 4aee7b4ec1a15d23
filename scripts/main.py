"""The command `tesseral`: finds the command's module, runs it, turns errors into exit codes.

Only the chosen command's module is imported: `tesseral --help` loads neither torch nor anything else heavy.
Each module has `add_arguments(parser)`, `run(args)` and, for the end of its help page, `EXAMPLE`.
Exit codes: 0 success, 2 the user's mistake, 1 our own fault, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import _cli

COMMANDS = {
    "info": ("tesseral.scripts.info", "versions, devices, kernel backends, shipped models"),
    "data": ("tesseral.scripts.data", "convert, inspect, check and split data sets; Hamiltonian labels"),
    "train": ("tesseral.scripts.train", "train a model from a YAML file"),
    "evaluate": ("tesseral.scripts.evaluate", "errors of a model on a data set"),
    "relax": ("tesseral.scripts.relax", "relax structures to the nearest energy minimum"),
    "md": ("tesseral.scripts.md", "molecular dynamics"),
    "generate": ("tesseral.scripts.generate", "draw molecules from a trained generator"),
    "hamiltonian": ("tesseral.scripts.hamiltonian", "predicted Fock matrices, orbital energies, starts of an SCF"),
    "export": ("tesseral.scripts.export", "compile a model into one file for C++ hosts and small systems"),
    "report": ("tesseral.scripts.report", "one static HTML page of a training or MD run"),
    "demo": ("tesseral.scripts.demo", "train, evaluate, relax and simulate in a few minutes, with a report"),
    "bench": ("tesseral.scripts.bench", "side-by-side timings"),
}
USER_PATH_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # threads that wait by spinning make a shared machine many times slower, and gain nothing on a free one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    _cli.COMMAND_LINE.set(("tesseral", *words))
    try:
        code = _run(words)
        sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
        return code
    except KeyboardInterrupt:
        hint = "the same command continues it" if words[:1] == ["generate"] else "--resume continues it"
        print(f"tesseral: interrupted; finished work is on disk, {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left early, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _run(words: list[str]) -> int:
    """Parse and run; argparse's own exit (0 after --help, 2 after a bad option) becomes the code."""
    try:
        args = _parse(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return args._command(args) or 0


def _parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line; only the chosen command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="tesseral",
        description="Equivariant machine learning of molecules and materials.",
        epilog="example:\n  tesseral md molecule.xyz -o run.extxyz --temperature 300 --steps 1000\n\n"
        "`tesseral COMMAND --help` explains one command; --debug shows tracebacks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from .. import __version__

    parser.add_argument("--version", action="version", version=f"tesseral {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((w for w in words if not w.startswith("-")), None)
    for name, (module_name, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            module = import_module(module_name)
            if example := getattr(module, "EXAMPLE", ""):
                sub.epilog = f"example:\n  {example}"
            module.add_arguments(sub)
            sub.set_defaults(_command=module.run)  # no option's name
    return parser.parse_args(words)


def _explain(error: Exception) -> int:
    """Print one line about an error and return its exit code: 2 for the user's mistake, 1 for ours."""
    from ..datasets.errors import UserError

    if isinstance(error, UserError):
        print(f"tesseral: error: {error}", file=sys.stderr)
        return 2
    if isinstance(error, USER_PATH_ERRORS) and error.filename is not None:
        print(f"tesseral: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"tesseral: internal error: {type(error).__name__}: {error}", file=sys.stderr)
    print("tesseral: this is our fault; run again with --debug and report the traceback", file=sys.stderr)
    return 1
