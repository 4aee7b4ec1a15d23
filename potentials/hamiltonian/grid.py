"""Exchange-correlation matrices on PySCF's grid by whole-matrix products, several times faster than its own loop.

PySCF screens orbitals block by block and multiplies with the BLAS of its wheel; for molecules of some hundred orbitals
nothing is screened. Here the orbitals on the grid are kept between the cycles of an SCF (while they fit the memory) and
multiplied by numpy's BLAS. Functional, grid and formulas are PySCF's; results agree to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pyscf.dft import numint

BLOCK = 2048  # grid points at a time: the block of orbitals stays in the cache of the processor
MEMORY = 2e9  # bytes that the kept orbitals may take


class DenseIntegrator(numint.NumInt):
    """PySCF's integrator with dense blocks for one symmetric density and an LDA or GGA; the rest is PySCF's own."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Any, list[np.ndarray]] | None = None

    def nr_rks(  # noqa: PLR0917  (the signature is PySCF's)
        self,
        mol: Any,
        grids: Any,
        xc_code: str,
        dms: Any,
        relativity: int = 0,
        hermi: int = 1,
        max_memory: float = 2000,
        verbose: Any = None,
    ) -> tuple[Any, Any, Any]:
        """Number of electrons, energy and matrix ``(n, n)`` of the functional; signature of `NumInt.nr_rks`."""
        kind = self._xc_type(xc_code)
        density = np.asarray(dms)
        if kind not in ("LDA", "GGA") or density.ndim != 2 or hermi != 1 or np.iscomplexobj(density):
            return super().nr_rks(mol, grids, xc_code, dms, relativity, hermi, max_memory, verbose)
        if grids.coords is None:
            grids.build(with_non0tab=True)
        electrons, energy = 0.0, 0.0
        matrix = np.zeros_like(density)
        weights = np.asarray(grids.weights)
        start = 0
        for orbitals in self._orbitals(mol, grids, 1 if kind == "GGA" else 0):
            weight = weights[start : start + orbitals.shape[-1]]
            start += len(weight)
            half = density @ orbitals[0]
            rho = np.stack([np.einsum("in,in->n", part, half) for part in orbitals])
            rho[1:] *= 2
            exc, potential = self.eval_xc_eff(xc_code, rho, deriv=1, xctype=kind)[:2]
            points = rho[0] * weight
            electrons += points.sum()
            energy += points @ exc
            potential = potential * weight
            potential[0] *= 0.5  # the transpose is added below
            weighted = orbitals[0] * potential[0]
            for part, value in zip(orbitals[1:], potential[1:], strict=True):
                weighted += part * value
            matrix += orbitals[0] @ weighted.T
        return electrons, energy, matrix + matrix.T

    def _orbitals(self, mol: Any, grids: Any, deriv: int) -> Iterator[np.ndarray]:
        """Blocks ``(1 or 4, n_orbitals, points)``: values and gradients of the orbitals on the grid."""
        coords = np.asarray(grids.coords)
        key = (mol, grids.coords, deriv)
        if self._kept is not None and all(a is b for a, b in zip(self._kept[0], key, strict=True)):
            yield from self._kept[1]
            return
        self._kept = None
        fits = 8 * (1 + 3 * deriv) * mol.nao * len(coords) < MEMORY
        blocks = []
        for start in range(0, len(coords), BLOCK):
            values = np.asarray(self.eval_ao(mol, coords[start : start + BLOCK], deriv=deriv))
            block = np.ascontiguousarray(values.reshape(1 + 3 * deriv, -1, mol.nao).transpose(0, 2, 1))
            if fits:
                blocks.append(block)
            yield block
        if fits:
            self._kept = (key, blocks)
