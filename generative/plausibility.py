"""PoseBusters' checks of single molecules (package posebusters): bond lengths, clashes, flat rings, energy, … ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..datasets.errors import DataError
from ..datasets.structure import Structure
from .extras import require
from .strain import with_hydrogens
from .workers import Failed, apart

TIMEOUT = 30.0  # s per molecule
CONFIG = "mol"  # all checks of a molecule without a pocket, its energy included


def bust(
    structures: Sequence[Structure],
    *,
    implicit_hydrogens: bool,
    processes: int | None = None,
    timeout: float = TIMEOUT,
) -> list[list[str]]:
    """Names of the checks that each molecule fails, none if it passes all; hydrogens that are no atoms are added.

    A molecule that PoseBusters cannot finish fails with its reason ("no answer within 30 s", …).

    Raises:
        UserError: posebusters is not installed.
    """
    require("PoseBusters")
    results: list[list[str]] = [[] for _ in structures]
    blocks: dict[int, str] = {}
    for k, structure in enumerate(structures):
        try:
            blocks[k] = _block(with_hydrogens(structure, implicit_hydrogens=implicit_hydrogens))
        except DataError as error:
            results[k] = [str(error)]
    items = [{"block": block, "config": CONFIG} for block in blocks.values()]
    answers = apart(f"{__package__}.plausibility:check", items, processes=processes, timeout=timeout)
    for k, answer in zip(blocks, answers, strict=True):
        results[k] = [answer.reason] if isinstance(answer, Failed) else answer
    return results


def summary(results: Sequence[Sequence[str]], n_generated: int) -> dict[str, Any]:
    """Share that passes, over all that were generated and over those checked; how often each check failed."""
    failed = Counter(name for names in results for name in names)
    passed = sum(not names for names in results)
    return {
        "config": CONFIG,
        "n_checked": len(results),
        "pass": passed / n_generated,
        "pass_of_checked": passed / len(results) if results else None,
        "failed": dict(failed.most_common()),
    }


def check(block: str, config: str) -> list[str]:
    """Names of the failed checks of one molecule, given as a mol block with all hydrogens; runs in a worker."""
    from rdkit import Chem

    mol = Chem.MolFromMolBlock(block, sanitize=True, removeHs=False)
    table = _buster(config).bust([mol])
    return [str(name) for name, value in table.iloc[0].items() if value is not True and not bool(value == 1)]


@lru_cache
def _buster(config: str) -> Any:
    from posebusters import PoseBusters

    return PoseBusters(config=config)


def _block(structure: Structure) -> str:
    from rdkit import Chem

    return str(Chem.MolToMolBlock(structure.to_rdkit()))
