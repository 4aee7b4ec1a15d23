"""What a check returns: a finding with a plain verdict, the frames and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["fatal", "warning", "note"]
# Titles of findings that silence others, which would only be their consequences.
LENGTH_UNIT, STRESS_UNIT = "Lengths are not in Å", "Stress is not in eV/Å³"
TWO_KINDS, ENERGY_UNIT = "Energies of two kinds", "Energies are not in eV"
SHOWN = 12  # frame numbers in a printed list


@dataclass
class Finding:
    """One fault of a data set.

    level: "fatal" (a training on this data is ruined), "warning" (it will suffer), "note" (good to know);
    title: a few words; verdict: what was measured, in a sentence; frames: numbers of the frames concerned,
    empty when it concerns the whole set; mend: what to do.
    """

    level: Level
    title: str
    verdict: str
    mend: str
    frames: list[int] = field(default_factory=list)


def listed(frames: Sequence[int]) -> str:
    """Frame numbers as text, shortened: "3, 8, 9 … (120 frames)"."""
    head = ", ".join(str(frame) for frame in frames[:SHOWN])
    return head if len(frames) <= SHOWN else f"{head} … ({len(frames)} frames)"


def report(findings: Sequence[Finding]) -> str:
    """The findings as text for a terminal, the gravest first."""
    if not findings:
        return "No faults found."
    lines = []
    for finding in findings:
        lines.append(f"[{finding.level}] {finding.title}")
        lines.append(f"    {finding.verdict}")
        if finding.frames:
            lines.append(f"    frames: {listed(finding.frames)}")
        lines.append(f"    mend: {finding.mend}")
    return "\n".join(lines)
