"""Neighbour lists: the full radius graph over all periodic images, in one deterministic order.

The convention of the package: an edge goes from a source j (the neighbour) to a target i (the centre) and

    r_ij = positions[source] + shift @ cell - positions[target],    |r_ij| < cutoff,

with integer `shift`. Every pair appears in both directions, also when the cutoff exceeds half the cell or the
whole cell; an atom is a neighbour of its own images but never of itself. Shifts vanish along non-periodic
axes. Edges are sorted by target, then source, then shift.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from .errors import DataError, UserError

Neighbors = tuple[np.ndarray, np.ndarray, np.ndarray]

MIN_HEIGHT = 0.1  # Å; a periodic cell thinner than this is an input error, not a crystal
MAX_BINS = 1e6  # vesin allocates the bins of the whole box along free axes and crashes when atoms fly apart


def neighbor_list(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    *,
    backend: Literal["auto", "vesin", "torch"] = "auto",
) -> Neighbors:
    """All pairs closer than `cutoff`.

    Arguments: positions (n, 3) Å, atoms may lie outside the cell; cell (3, 3) Å with rows as vectors (rows of
    non-periodic axes may be zero); pbc (3,) bool, each axis on its own; cutoff Å; backend "vesin", "torch"
    (the cell list below) or "auto" (vesin where it is installed); atoms scattered over a huge free space
    always take the torch list.
    Returns source (E,), target (E,) and shifts (E, 3), all int64, sorted by target, source, shift.
    Raises UserError for NaN positions, a non-positive cutoff, or periodic axes that span no volume.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    cell = np.ascontiguousarray(cell, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    check_geometry(positions, cell, pbc, cutoff)
    extent = np.ptp(positions, axis=0) if len(positions) else np.zeros(3)
    scattered = not pbc.all() and np.prod(extent / cutoff + 1) > MAX_BINS
    if backend == "torch" or scattered or (backend == "auto" and not _has_vesin()):
        tensors = (torch.from_numpy(positions), torch.from_numpy(cell), torch.from_numpy(pbc))
        source, target, shifts = torch_neighbor_list(*tensors, cutoff)
        return source.numpy(), target.numpy(), shifts.numpy()
    return _vesin_list(positions, completed_cell(cell, pbc) if pbc.any() else cell, pbc, cutoff)


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> None:
    """Raise UserError when no neighbour list can exist for this input; see `neighbor_list`."""
    if not cutoff > 0:
        raise UserError(f"the neighbour cutoff must be positive, got {cutoff} Å")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise DataError(f"position of atom {atom} is not finite: {positions[atom]}; repair or drop the frame")
    if pbc.any():
        height = cell_heights(completed_cell(cell, pbc))[pbc].min()
        if not height > MIN_HEIGHT:
            raise DataError(
                f"the cell is flat or zero along a periodic axis (smallest height {height:.3g} Å, pbc "
                f"{pbc.tolist()}, cell {cell.tolist()}); give a proper cell or set pbc to False on that axis"
            )


def completed_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell (3, 3) with rows of non-periodic axes replaced by unit vectors normal to the periodic ones.

    What stands in such a row (zeros, a formal box) is no lattice vector, and the periodic rows alone decide.
    Periodic rows that are zero or dependent leave a singular matrix.
    """
    cell = cell.copy()
    free = np.flatnonzero(~pbc)
    if len(free):
        # The right singular vectors beyond the periodic rows span their orthogonal complement.
        cell[free] = np.linalg.svd(cell[pbc])[2][3 - len(free) :] if pbc.any() else np.eye(3)
    return cell


def cell_heights(cell: np.ndarray) -> np.ndarray:
    """Distances (3,) in Å between opposite faces of a cell (3, 3); zeros for a flat cell."""
    volume = abs(np.linalg.det(cell))
    areas = np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    return np.divide(volume, areas, out=np.zeros(3), where=areas > 0)


def _has_vesin() -> bool:
    try:
        import vesin  # noqa: F401
    except ImportError:
        return False
    return True


def _vesin_list(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Neighbors:
    import vesin

    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=False, n_threads=1)
    pairs, shifts = calculator.compute(positions, cell, pbc, "PS", copy=False)
    target, source = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    order = _edge_order(source, target, shifts, len(positions))
    return source[order], target[order], shifts[order].astype(np.int64)


def _edge_order(source: np.ndarray, target: np.ndarray, shifts: np.ndarray, n_atoms: int) -> np.ndarray:
    """Permutation that sorts edges by target, source, shift; one integer key, as lexsort is far slower."""
    if len(source) == 0:
        return np.zeros(0, dtype=np.int64)
    low = shifts.min(axis=0).astype(np.int64)
    span = shifts.max(axis=0) - low + 1
    key = target * n_atoms + source
    if n_atoms**2 * float(span.prod()) > 2**62:
        return np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], key))
    for axis in range(3):
        if span[axis] > 1:
            key = key * span[axis] + (shifts[:, axis] - low[axis])
    return np.argsort(key, kind="stable")


def torch_neighbor_list(
    positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, cutoff: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same list in plain torch, on the device of `positions`: ghosts of all images, bins of one cutoff.

    Fallback where vesin is absent, and the oracle of its tests. Arguments and order as in `neighbor_list`, as
    tensors; the geometry is not checked here.
    """
    device, n = positions.device, len(positions)
    if n == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return empty, empty, torch.zeros(0, 3, dtype=torch.int64, device=device)
    periodic = pbc.cpu().numpy().astype(bool)
    full = completed_cell(cell.detach().cpu().double().numpy(), periodic)
    lattice = torch.from_numpy(full).to(positions)
    fractional = positions.detach() @ torch.linalg.inv(lattice)
    wrap = torch.floor(fractional) * pbc.to(positions)
    fractional = fractional - wrap
    reach = torch.from_numpy(cutoff / cell_heights(full)).to(positions)
    ghosts, shifts = _ghost_images(fractional, reach, periodic)
    centres, images = fractional @ lattice, (fractional[ghosts] + shifts) @ lattice
    target, ghost = _binned_pairs(centres, images, cutoff)
    source, shift = ghosts[ghost], shifts[ghost]
    keep = (source != target) | shift.any(dim=1)
    keep &= (images[ghost] - centres[target]).square().sum(dim=1) < cutoff**2
    source, target = source[keep], target[keep]
    offsets = (shift[keep] - wrap[source] + wrap[target]).round().long()
    order = _edge_order(source.cpu().numpy(), target.cpu().numpy(), offsets.cpu().numpy(), n)
    chosen = torch.from_numpy(order).to(device)
    return source[chosen], target[chosen], offsets[chosen]


def _ghost_images(
    fractional: torch.Tensor, reach: torch.Tensor, periodic: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Atoms and image offsets whose images lie within `reach` (3,) cell heights of the unit cell."""
    index = torch.arange(len(fractional), device=fractional.device)
    shifts = torch.zeros_like(fractional)
    for axis in np.flatnonzero(periodic):
        n_images = int(np.ceil(float(reach[axis])))
        steps = torch.arange(-n_images, n_images + 1, device=index.device).to(fractional)
        coordinate = fractional[index, axis][:, None] + steps
        margin = reach[axis] + 1e-6
        atom, step = torch.nonzero((coordinate > -margin) & (coordinate < 1 + margin)).T
        index, shifts = index[atom], shifts[atom]
        shifts[:, axis] = steps[step]
    return index, shifts


def _binned_pairs(centres: torch.Tensor, images: torch.Tensor, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidate pairs (centre, image) from the 27 bins of edge `cutoff` around every centre."""
    origin = images.amin(dim=0)
    image_bins = torch.floor((images - origin) / cutoff).long() + 1
    centre_bins = torch.floor((centres - origin) / cutoff).long() + 1
    size = image_bins.amax(dim=0) + 2
    ids, order = torch.sort((image_bins[:, 0] * size[1] + image_bins[:, 1]) * size[2] + image_bins[:, 2])
    step = torch.arange(-1, 2, device=centres.device)
    around = (centre_bins[:, None] + torch.cartesian_prod(step, step, step)).reshape(-1, 3)
    wanted = (around[:, 0] * size[1] + around[:, 1]) * size[2] + around[:, 2]
    first = torch.searchsorted(ids, wanted)
    count = torch.searchsorted(ids, wanted, right=True) - first
    centre = torch.arange(len(centres), device=centres.device).repeat_interleave(27).repeat_interleave(count)
    start = (first - (count.cumsum(0) - count)).repeat_interleave(count)
    return centre, order[start + torch.arange(len(centre), device=centres.device)]


class SkinList:
    """A neighbour list that is rebuilt only when atoms have moved (Verlet skin).

    The list is built for `cutoff + skin` and kept while no atom has moved by more than skin / 2 and cell, pbc
    and the number of atoms are unchanged; what `update` returns is always filtered to `cutoff`, so that
    results never depend on the skin. Arguments: cutoff and skin in Å (skin 0: rebuilt at every call).
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if skin < 0:
            raise UserError(f"the skin must not be negative, got {skin} Å")
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.n_builds = 0
        self._geometry: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._edges: Neighbors | None = None

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Neighbors:
        """Source, target, shifts within the cutoff, as `neighbor_list` returns and orders them."""
        positions = np.asarray(positions, dtype=np.float64)
        cell, pbc = np.asarray(cell, dtype=np.float64), np.asarray(pbc, dtype=bool)
        if self.skin == 0:
            self.n_builds += 1
            return neighbor_list(positions, cell, pbc, self.cutoff)
        if self._edges is None or self._outdated(positions, cell, pbc):
            self._edges = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
            self._geometry = (positions.copy(), cell.copy(), pbc.copy())
            self.n_builds += 1
        source, target, shifts = self._edges
        vectors = positions[source] - positions[target]
        if pbc.any():
            vectors += shifts @ cell
        keep = np.einsum("ei,ei->e", vectors, vectors) < self.cutoff**2
        return source[keep], target[keep], shifts[keep]

    def _outdated(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self._geometry is None:
            return True
        old_positions, old_cell, old_pbc = self._geometry
        if positions.shape != old_positions.shape or not np.array_equal(pbc, old_pbc):
            return True
        if pbc.any() and not np.array_equal(cell[pbc], old_cell[pbc]):
            return True
        moved = np.square(positions - old_positions).sum(axis=1)
        # Written so that a NaN position means "outdated" and reaches the check of the list.
        return len(moved) > 0 and not moved.max() <= (self.skin / 2) ** 2
