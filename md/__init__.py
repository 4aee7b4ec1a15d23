"""What users do with a potential: ASE calculator, relaxation, molecular dynamics.

Calculator(model)                   a model as an ASE calculator
relax.relax(atoms, model)           nearest energy minimum (also `tesseral.relax`)
run_md(atoms, model, steps=…)       molecular dynamics with files, restart and checks
Simulation, Settings, Limits        the same run in memory, step by step
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calculator import Calculator as Calculator
    from .dynamics import run_md as run_md
    from .ensembles import Settings as Settings
    from .simulation import Simulation as Simulation
    from .watch import Limits as Limits

_PUBLIC = {
    "Calculator": ".calculator",
    "Limits": ".watch",
    "Settings": ".ensembles",
    "Simulation": ".simulation",
    "run_md": ".dynamics",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import tesseral.md` loads neither torch nor ASE."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name], __name__), name)
