"""The short-range repulsion against its closed form, pair by pair."""

from __future__ import annotations

from math import exp

import pytest
import torch

from tesseral.datasets.elements import COVALENT_RADII
from tesseral.kernels.plan import GraphPlan
from tesseral.potentials.repulsion import ZBL

CARBON, OXYGEN = 6, 8
RADII = float(COVALENT_RADII[CARBON] + COVALENT_RADII[OXYGEN])


def dimer() -> tuple[ZBL, torch.Tensor, GraphPlan]:
    """A carbon and an oxygen, both edges."""
    plan = GraphPlan.build(torch.tensor([[1, 0], [0, 1]]), torch.tensor([0, 1, 2]))
    return ZBL((1, CARBON, OXYGEN)), torch.tensor([1, 2]), plan


@pytest.mark.parametrize("r", [0.05, 0.4, 1.0])
def test_energy_is_the_published_formula(r: float) -> None:
    zbl, species, plan = dimer()
    lengths = torch.full((2,), r, dtype=torch.float64)
    found = zbl(zbl.pairs(species, plan, torch.float64), lengths, plan)
    screening = 0.8854 * 0.529177211 / (CARBON**0.23 + OXYGEN**0.23)
    x = r / screening
    phi = 0.18175 * exp(-3.1998 * x) + 0.50986 * exp(-0.94229 * x)
    phi += 0.28022 * exp(-0.4029 * x) + 0.02817 * exp(-0.20162 * x)
    u = r / RADII
    switch = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    expected = 14.399645 * CARBON * OXYGEN / r * phi * switch
    assert found.sum().item() == pytest.approx(expected, rel=1e-12)
    assert found[0].item() == found[1].item()


def test_nothing_from_the_sum_of_radii_on() -> None:
    zbl, species, plan = dimer()
    lengths = torch.full((2,), RADII, dtype=torch.float64)
    assert zbl(zbl.pairs(species, plan, torch.float64), lengths, plan).abs().max().item() < 1e-12


@pytest.mark.parametrize(("share", "factor"), [(0.2, 0.0), (0.375, 0.5), (0.6, 1.0)])
def test_learned_part_fades_out_at_half_the_sum(share: float, factor: float) -> None:
    zbl, species, plan = dimer()
    lengths = torch.full((2,), share * RADII, dtype=torch.float64)
    assert zbl.quiet(zbl.pairs(species, plan, torch.float64), lengths).tolist() == pytest.approx([factor] * 2)
