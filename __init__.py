"""Tesseral: equivariant machine learning of molecules and materials, from a data file to molecular dynamics.

Importing the package loads nothing heavy; each public name brings its room along when it is first used:

    tesseral.read(path)                    structures of any file, in Å and eV
    tesseral.load(name_or_path)            any trained model, shipped or your own
    tesseral.Calculator(name_or_path)      the same model as an ASE calculator
    tesseral.relax(atoms, name_or_path)    nearest energy minimum
    tesseral.generate(model, n)            new molecules from a trained generator
    tesseral.Structure                     one arrangement of atoms with its labels
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets.read import read as read
    from .datasets.structure import Structure as Structure
    from .generative import generate as generate
    from .md.calculator import Calculator as Calculator
    from .md.relax import relax as relax

__version__ = "0.1.0"

_PUBLIC = {
    "Structure": ".datasets.structure",
    "read": ".datasets.read",
    "Calculator": ".md.calculator",
    "relax": ".md.relax",
    "generate": ".generative",
}


def load(name_or_path: Any, *, device: str = "cpu", dtype: Any = None) -> Any:
    """Open a trained model of any room, by a shipped name or a path; the header says which room.

    Raises `UserError` when there is no such model or the file is not a tesseral checkpoint.
    """
    from importlib import import_module

    shipped = import_module(".training.shipped", __name__)
    path = shipped.locate(name_or_path)
    if path.suffix == ".pt2":
        room = "potentials"
    else:
        room = import_module(".training.checkpoint", __name__).read_header(path).get("room")
    if room not in shipped.ROOMS:
        errors = import_module(".datasets.errors", __name__)
        raise errors.UserError(f"{path}: room {room!r} in the header, expected one of {', '.join(shipped.ROOMS)}")
    module = shipped.ROOMS[room].replace("/", ".")
    return import_module(f".{module}", __name__).load(path, device=device, dtype=dtype)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_PUBLIC[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, also those not imported yet."""
    return sorted([*_PUBLIC, "load", "__version__"])
