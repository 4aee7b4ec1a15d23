"""Equivariant messages on a graph: gather, weigh, couple with edge harmonics, sum onto targets, in one operation.

The message is one multilinear form of source features x, harmonics Y, radial functions g and weights W:

``z[i, (l3 m3), (p c)] = sum_j W[r, (p c)] g[ij, r] c^p[m1, m2, m3] Y[ij, l2 m2] x[j, (l1 m1), c]``

summed over repeated indices and the neighbours j of i; p runs over couplings ``l1 x l2 -> l3``. Being multilinear,
all its derivatives are the same form with other arguments left open: a small family of operators is closed under
differentiation, and none of them ever holds a tensor of size edges x channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose
from .coupling import Coupling
from .plan import GraphPlan


def message(x: Tensor, edges: Tensor, weights: Tensor, plan: GraphPlan, coupling: Coupling) -> Tensor:
    """Messages of a graph, see the module's formula.

    Args:
        x: ``(N, coupling.x_width)`` source features.
        edges: ``(E, (lmax+1)^2 + R)`` harmonics and radial functions of every edge, side by side.
        weights: ``(R, coupling.n_weights)``.
        plan: the graph.
        coupling: the paths.

    Returns:
        ``(N, coupling.z_width)``; `Coupling.split` gives the degrees.

    Raises:
        ValueError: shapes that do not fit.

    Source: Facet (arXiv 2509.08418), spline radial weights and convolution (sheet 4.3, 4.4); derivatives after
    the family of Gaunt tensor products (arXiv 2401.10216).
    """
    wanted = (coupling.n_harmonics + weights.shape[0], coupling.n_weights)
    if (edges.shape[-1], weights.shape[-1]) != wanted or x.shape[-1] != coupling.x_width:
        raise ValueError(
            f"message needs x (N, {coupling.x_width}), edges (E, {wanted[0]}) and weights (R, {wanted[1]}), "
            f"got {tuple(x.shape)}, {tuple(edges.shape)} and {tuple(weights.shape)}"
        )
    if choose(x, "message") == "reference":
        return reference_message(x, edges, weights, plan, coupling)
    from .message_ops import message_op

    result: Tensor = message_op(x, edges, weights, plan.rows.tensors, plan.columns.tensors, coupling.key, False)
    return result


def reference_message(x: Tensor, edges: Tensor, weights: Tensor, plan: GraphPlan, coupling: Coupling) -> Tensor:
    """`message` in plain torch, one tensor per path and edge: the oracle, and what compilers can look into."""
    harmonics, radial = edges.split([coupling.n_harmonics, weights.shape[0]], dim=-1)
    w, sources = radial @ weights, x.index_select(0, plan.source)
    parts: dict[int, list[Tensor]] = {l: [] for l in coupling.degrees}
    for t in coupling.terms:
        l1, l2, l3 = t.path.l1, t.path.l2, t.path.l3
        table = torch.from_numpy(t.table).to(x.device, x.dtype)
        y = harmonics[:, l2 * l2 : (l2 + 1) ** 2]
        own = sources[:, t.x : t.x + (2 * l1 + 1) * t.channels].unflatten(1, (2 * l1 + 1, t.channels))
        coupled = torch.einsum("eac,eac->eac", own, w[:, None, t.w : t.w + t.channels].expand_as(own))
        parts[l3].append(torch.einsum("abd,eb,eac->edc", table, y, coupled))
    flat = torch.cat([torch.cat(parts[l], dim=-1).flatten(1) for l in coupling.degrees], dim=-1)
    return flat.new_zeros(plan.n_nodes, flat.shape[1]).index_add(0, plan.target, flat)


def species_density(edges: Tensor, species: Tensor, n_species: int, n_harmonics: int, plan: GraphPlan) -> Tensor:
    """Sums over neighbours of harmonics times radial functions, apart for every species of neighbour.

    ``d[i, k, (s, r)] = sum over neighbours j of species s of Y[ij, k] g[ij, r]``: what a message needs to know when
    all source features are functions of the species; no channel is touched.

    Args:
        edges: ``(E, n_harmonics + R)`` harmonics and radial functions, side by side.
        species: ``(N,)`` species of every node, 0..n_species - 1.
        n_species: number of species.
        n_harmonics: columns of the harmonics.
        plan: the graph.

    Returns:
        ``(N, n_harmonics, n_species R)``.
    """
    neighbours = species.index_select(0, plan.source)
    if choose(edges, "species_density") == "reference":
        y, g = edges.split([n_harmonics, edges.shape[1] - n_harmonics], dim=-1)
        pairs = y.unsqueeze(2) * g.unsqueeze(1)
        flat = pairs.new_zeros(plan.n_nodes * n_species, n_harmonics, g.shape[1])
        flat = flat.index_add(0, plan.target * n_species + neighbours, pairs)
        return flat.unflatten(0, (plan.n_nodes, n_species)).transpose(1, 2).flatten(2)
    from .density_ops import density_op

    result: Tensor = density_op(edges, neighbours, plan.row_ptr, n_species, n_harmonics)
    return result
