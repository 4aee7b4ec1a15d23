"""The data doctor: finds the faults that ruin trainings and says in plain words where they are and how to mend them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..structure import Structure
from . import energies, frames, stress
from .findings import ENERGY_UNIT, LENGTH_UNIT, STRESS_UNIT, TWO_KINDS, Finding, Level, listed, report
from .pairs import Match, check_pairs, similar_pairs
from .survey import Survey, survey

__all__ = ["Finding", "Level", "check", "listed", "report"]

SEVERITY: dict[Level, int] = {"fatal": 0, "warning": 1, "note": 2}
CHECKS = [
    frames.check_faults,
    frames.check_labels,
    frames.check_distances,
    frames.check_volumes,
    frames.check_forces,
    frames.check_duplicates,
    frames.check_near_duplicates,
    energies.check_energy_size,
    energies.check_references,
    energies.check_energy_outliers,
    energies.check_constant,
]


def check(
    source: Sequence[Structure],
    *,
    progress: Callable[[Iterable[Structure]], Iterable[Structure]] | None = None,
) -> list[Finding]:
    """All findings on a data set, the gravest first; an empty list when it is sound.

    One pass over all frames, then up to a few thousand frames again for comparisons between frames. Frame numbers
    count from 0. `progress` wraps the pass (a progress bar).
    """
    found = survey(source, progress)
    findings = [finding for one in CHECKS for finding in one(found, source)]
    # Wrong lengths spoil every comparison of energies with forces and stress: they are the one fault to name.
    if LENGTH_UNIT not in _titles(findings):
        findings = _compare_with_forces(found, source, findings)
    return sorted(findings, key=lambda finding: SEVERITY[finding.level])


def _compare_with_forces(found: Survey, source: Sequence[Structure], findings: list[Finding]) -> list[Finding]:
    """The findings, with what similar and strained frames add: sign and unit of forces and stress, two kinds of
    energies; without those that the comparison refutes."""
    pairs, clusters = similar_pairs(found, source), energies.energy_clusters(found)
    match = check_pairs(pairs, {i for one in clusters for i in one.high})
    if not clusters and not match.sure and (jumps := energies.offset_clusters(pairs)):
        clusters, match = jumps, Match([])
    if match.confirms_units and frames.plausible_forces(found):
        findings = [finding for finding in findings if finding.title != ENERGY_UNIT]
    mixed = [] if TWO_KINDS in _titles(findings) else energies.check_mixed_codes(found, pairs, clusters)
    return findings + mixed + match.findings + _check_stress(found, source, match.scale)


def _check_stress(found: Survey, source: Sequence[Structure], energy_scale: float) -> list[Finding]:
    """The test along strains where it finds the unit at fault, else the size of the stress."""
    findings = stress.check_strain(found, source, energy_scale)
    return findings if STRESS_UNIT in _titles(findings) else findings + frames.check_stress_size(found, source)


def _titles(findings: Sequence[Finding]) -> set[str]:
    return {finding.title for finding in findings}
