"""Short-range repulsion that keeps a learned potential physical where it saw no data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..datasets.elements import COVALENT_RADII
from ..kernels.constants import Float64Module
from ..kernels.plan import GraphPlan
from ..kernels.radial import polynomial_envelope, smooth_step

COULOMB = 14.399645  # e^2 / (4 pi eps0), eV Å
BOHR = 0.529177211  # Å
_AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
_EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)


class ZBL(Float64Module):
    """Screened nuclear repulsion of Ziegler, Biersack and Littmark, switched off at the sum of covalent radii.

    ``E_ij = COULOMB Z_i Z_j / r phi(r/a) u(r)``, ``a = 0.8854 bohr / (Z_i^0.23 + Z_j^0.23)``, u the polynomial
    envelope with two vanishing derivatives at ``radius_i + radius_j``. Nothing is trained.

    Below half that sum `quiet` fades the learned part out: it saw no such data and may be anything there.

    Source: Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids (1985).
    """

    charge: Tensor
    radius: Tensor

    def __init__(self, elements: tuple[int, ...]):
        super().__init__()
        self.constant("charge", torch.tensor(elements))
        self.constant("radius", torch.from_numpy(COVALENT_RADII)[list(elements)])

    def forward(self, species: Tensor, distances: Tensor, plan: GraphPlan) -> Tensor:
        """Energy of each atom ``(N,)`` eV; every pair gives half to either atom.

        Args:
            species: ``(N,)`` index into the elements.
            distances: ``(E,)`` Å.
            plan: the graph.
        """
        i, j = species[plan.target], species[plan.source]
        charge, radii = self.charge.to(distances.dtype), self.radius.to(distances.dtype)
        zi, zj = charge[i], charge[j]
        scaled = distances * (zi**0.23 + zj**0.23) / (0.8854 * BOHR)
        phi = sum(a * torch.exp(-b * scaled) for a, b in zip(_AMPLITUDES, _EXPONENTS, strict=True))
        switch = polynomial_envelope(distances, radii[i] + radii[j])
        pair = 0.5 * COULOMB * zi * zj / distances * phi * switch
        return torch.zeros(plan.n_nodes, dtype=pair.dtype, device=pair.device).index_add(0, plan.target, pair)

    def quiet(self, species: Tensor, distances: Tensor, plan: GraphPlan) -> Tensor:
        """Factor ``(E,)`` of the learned part of every edge: 1 above half the sum of radii, 0 below a quarter.

        Args:
            species: ``(N,)`` index into the elements.
            distances: ``(E,)`` Å.
            plan: the graph.
        """
        radii = self.radius.to(distances.dtype)[species]
        total = radii[plan.target] + radii[plan.source]
        return smooth_step(distances, 0.25 * total, 0.5 * total)
