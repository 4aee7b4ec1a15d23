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

    Below half that sum `quiet` fades the learned part out: it saw no such data and may be anything there. `pairs`
    looks up what depends on the elements alone, once for both.

    Source: Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids (1985).
    """

    table: Tensor
    amplitudes: Tensor
    exponents: Tensor

    def __init__(self, elements: tuple[int, ...]):
        super().__init__()
        charge = torch.tensor(elements, dtype=torch.float64)
        radius = torch.from_numpy(COVALENT_RADII)[list(elements)].double()
        screening = charge**0.23 / (0.8854 * BOHR)
        self.n_species = len(elements)
        rows = (0.5 * COULOMB * torch.outer(charge, charge), _sums(screening), _sums(radius))
        self.constant("table", torch.stack([row.flatten() for row in rows]))
        self.constant("amplitudes", torch.tensor(_AMPLITUDES, dtype=torch.float64))
        self.constant("exponents", torch.tensor(_EXPONENTS, dtype=torch.float64))

    def pairs(self, species: Tensor, plan: GraphPlan, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Half of e² Z_i Z_j / (4 pi eps0) (eV Å), 1/a (1/Å) and the sum of the radii (Å) of every edge, ``(E,)``.

        Args:
            species: ``(N,)`` index into the elements.
            plan: the graph.
        """
        which = species[plan.target] * self.n_species + species[plan.source]
        return self.table.to(dtype)[:, which].unbind()

    def forward(self, pairs: tuple[Tensor, ...], distances: Tensor, plan: GraphPlan) -> Tensor:
        """Energy of each atom ``(N,)`` eV; every pair gives half to either atom.

        Args:
            pairs: of `pairs`.
            distances: ``(E,)`` Å.
            plan: the graph.
        """
        strength, screening, radii = pairs
        exponents, amplitudes = (x.to(distances.dtype) for x in (self.exponents, self.amplitudes))
        phi = torch.exp((distances * screening)[:, None] * -exponents) @ amplitudes
        pair = strength / distances * phi * polynomial_envelope(distances, radii)
        return torch.zeros(plan.n_nodes, dtype=pair.dtype, device=pair.device).index_add(0, plan.target, pair)

    def quiet(self, pairs: tuple[Tensor, ...], distances: Tensor) -> Tensor:
        """Factor ``(E,)`` of the learned part of every edge: 1 above half the sum of radii, 0 below a quarter.

        Args:
            pairs: of `pairs`.
            distances: ``(E,)`` Å.
        """
        radii = pairs[2]
        return smooth_step(distances, 0.25 * radii, 0.5 * radii)


def _sums(x: Tensor) -> Tensor:
    return x[:, None] + x[None, :]
