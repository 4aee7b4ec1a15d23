"""Pictures of structures as plain SVG text: ball and stick with depth, and the cloud of a trajectory.

The same scene (colours, radii, bonds, centred frames) feeds the still picture and the page's viewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.elements import COVALENT_RADII
from ..datasets.structure import Structure

COLOURS = {
    1: "#f1efe9", 3: "#b48be0", 5: "#e8a98f", 6: "#4a5565", 7: "#3f72d4", 8: "#d8453c", 9: "#7fc65c",
    11: "#9a74d6", 12: "#78b04a", 13: "#b3a4a4", 14: "#d2a566", 15: "#e58b32", 16: "#e3bb34", 17: "#4fb155",
    28: "#5fa58d", 29: "#cf7f48", 32: "#6f9aa6", 35: "#a2492f", 42: "#4f9fb4", 53: "#8a3f99",
}  # fmt: skip
OTHER = "#a396b8"
BONDING = {1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 53}  # the others are drawn as touching spheres


@dataclass(frozen=True)
class Scene:
    """What to draw; `frames` are (n_frames, n, 3) Å, turned so that the viewer looks along −z."""

    frames: np.ndarray
    colours: list[str]
    radii: np.ndarray
    bonds: list[tuple[int, int]]
    edges: np.ndarray  # (n_edges, 2, 3) Å, outline of the cell

    def as_dict(self) -> dict[str, Any]:
        """The scene as plain lists for the viewer, positions rounded to 0.001 Å."""
        return {
            "frames": [np.round(f, 3).ravel().tolist() for f in self.frames],
            "colours": self.colours,
            "radii": np.round(self.radii, 3).tolist(),
            "bonds": self.bonds,
            "edges": np.round(self.edges, 3).tolist(),
        }


def scene(structures: Sequence[Structure], *, most: int = 80) -> Scene:
    """Scene of a trajectory (or of one structure), at most `most` frames of it.

    Molecules are laid flat (largest extent to the right) and every frame is turned onto the first;
    crystals are seen from a little above, with their cell.
    """
    first = structures[0]
    chosen = [structures[i] for i in np.linspace(0, len(structures) - 1, min(most, len(structures))).astype(int)]
    frames = np.stack([s.positions for s in chosen])
    edges = np.zeros((0, 2, 3))
    if first.pbc.any():
        view, centre = _tilt(), first.cell.sum(axis=0) / 2
        corners = np.array(list(itertools.product((0, 1), repeat=3))) @ first.cell
        pairs = [(i, j) for i in range(8) for j in range(i) if (i ^ j).bit_count() == 1]
        edges = (np.array([[corners[i], corners[j]] for i, j in pairs]) - centre) @ view.T
        frames = (frames - frames[0].mean(axis=0)) @ view.T  # atoms in the middle of the outline
    else:
        frames = _superpose(frames - frames.mean(axis=1, keepdims=True))
        frames = frames @ _principal_axes(frames[0]).T
    joined = set(first.numbers.tolist()) <= BONDING
    bonds = find_bonds(first) if joined else []
    covalent = COVALENT_RADII[first.numbers]
    radii = 0.42 * covalent + 0.08 if joined else 0.8 * covalent
    return Scene(frames, [COLOURS.get(int(z), OTHER) for z in first.numbers], radii, bonds, edges)


def find_bonds(structure: Structure) -> list[tuple[int, int]]:
    """Pairs of atoms nearer than 1.2 times the sum of their covalent radii (drawn, not chemistry)."""
    radii = COVALENT_RADII[structure.numbers]
    distance = np.linalg.norm(structure.positions[:, None] - structure.positions[None], axis=-1)
    near = distance < 1.2 * (radii[:, None] + radii[None])
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))]


def still(scene: Scene, *, name: str, cloud: int = 0, size: tuple[int, int] = (640, 420)) -> str:
    """SVG of the scene's first frame; with `cloud`, that many other frames lie behind it as a haze.

    `name` keeps the ids of gradients apart when several pictures share a page.
    """
    extent = np.concatenate([scene.frames.reshape(-1, 3), scene.edges.reshape(-1, 3)])
    low, high = extent[:, :2].min(axis=0), extent[:, :2].max(axis=0)
    margin = float(scene.radii.max()) + 0.25
    scale = float(np.min(np.array(size) / (high - low + 2 * margin)))
    offset = np.array(size) / 2 - scale * (low + high) / 2 * [1, -1]

    def project(points: np.ndarray) -> np.ndarray:
        return points[..., :2] * [scale, -scale] + offset

    parts = [_gradients(scene.colours, name)]
    parts += [_line(project(edge), "#9aa0aa", 1.2, "edge") for edge in scene.edges]
    for frame in scene.frames[1:][:: max(1, len(scene.frames) // cloud)] if cloud else []:
        parts.append(f'<g opacity="0.10">{_atoms(scene, frame, project, scale, name)}</g>')
    parts.append(_atoms(scene, scene.frames[0], project, scale, name))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img">'
    return f"{head}{''.join(parts)}</svg>"


def _atoms(scene: Scene, frame: np.ndarray, project: Any, scale: float, name: str) -> str:
    """Spheres and sticks of one frame, far ones first."""
    flat, items = project(frame), []
    for i, j in scene.bonds:
        middle = (flat[i] + flat[j]) / 2
        stick = _line(np.array([flat[i], flat[j]]), "#2b3240", 0.26 * scale)
        stick += _line(np.array([flat[i], middle]), scene.colours[i], 0.20 * scale)
        stick += _line(np.array([middle, flat[j]]), scene.colours[j], 0.20 * scale)
        items.append((float(min(frame[i, 2], frame[j, 2])), stick))
    for k, (x, y) in enumerate(flat):
        fill = f"url(#{name}{scene.colours[k][1:]})"
        ball = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{scene.radii[k] * scale:.1f}" fill="{fill}" '
        items.append((float(frame[k, 2]), ball + 'stroke="#2b3240" stroke-width="0.8"/>'))
    return "".join(text for _, text in sorted(items, key=lambda item: item[0]))


def _gradients(colours: list[str], name: str) -> str:
    """One shaded-sphere gradient for each colour."""
    stops = '<stop offset="0" stop-color="#fff" stop-opacity=".95"/><stop offset=".35" stop-color="{c}"/>'
    stops += '<stop offset="1" stop-color="{d}"/>'
    one = '<radialGradient id="{n}{i}" cx=".36" cy=".32" r=".75">' + stops + "</radialGradient>"
    return "".join(one.format(n=name, i=c[1:], c=c, d=_darker(c)) for c in sorted(set(colours)))


def _darker(colour: str) -> str:
    """The colour at 62 % of its brightness."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.62):02x}" for i in (1, 3, 5))


def _line(ends: np.ndarray, colour: str, width: float, kind: str = "stick") -> str:
    (x1, y1), (x2, y2) = ends
    at = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    cap = "round" if kind == "stick" else "butt"
    return f'<line {at} stroke="{colour}" stroke-width="{width:.1f}" stroke-linecap="{cap}"/>'


def _superpose(frames: np.ndarray) -> np.ndarray:
    """Every centred frame turned onto the first (least squares)."""
    from scipy.spatial.transform import Rotation

    if frames.shape[1] < 2:
        return frames
    return np.stack([Rotation.align_vectors(frames[0], f)[0].apply(f) for f in frames])


def _principal_axes(positions: np.ndarray) -> np.ndarray:
    """Proper rotation (3, 3) that lays the largest extent along x and the smallest along z."""
    _, _, axes = np.linalg.svd(positions, full_matrices=True)
    axes[2] *= np.sign(np.linalg.det(axes))
    return axes


def _tilt() -> np.ndarray:
    """View of a crystal: turned by 24° about the vertical, seen from 14° above."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("yx", [24, 14], degrees=True).as_matrix()
