"""Angular-momentum conventions of the house, in one place.

Real spherical harmonics follow e3nn: y is the polar axis, degree 1 is ordered (x, y, z), no Condon-Shortley
sign; index of (l, m) is ``l*l + l + m``. "Component" normalisation means ``|Y_l|^2 = 2l + 1``, "integral" means
unit norm on the sphere (a factor ``sqrt(4 pi)`` smaller). All tables are float64 numpy arrays, cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import factorial, pi, sqrt

import numpy as np

# Our vector (x, y, z) read by a library whose polar axis is z must be permuted to (y, z, x) ...
TO_Z_POLAR = (2, 0, 1)  # v_zpolar = v[TO_Z_POLAR]: evaluate a z-polar library here to get our harmonics
# ... and our harmonics evaluated at v[FROM_Z_POLAR] are the z-polar library's harmonics at v.
FROM_Z_POLAR = (1, 2, 0)
# PySCF orders p orbitals (x, y, z), the z-polar harmonics order them (y, z, x): p_pyscf = p_zpolar[ZPOLAR_P_TO_PYSCF].
ZPOLAR_P_TO_PYSCF = (2, 0, 1)


@dataclass(frozen=True)
class Path:
    """One coupling ``l1 x l2 -> l3`` of a tensor product."""

    l1: int
    l2: int
    l3: int


def coupling_paths(l1s: tuple[int, ...], l2max: int, l3s: tuple[int, ...], parity: str) -> tuple[Path, ...]:
    """All couplings from source degrees and harmonics up to ``l2max`` to the wanted degrees.

    Args:
        l1s: source degrees.
        l2max: largest degree of the harmonics.
        l3s: wanted degrees.
        parity: "o3" keeps even ``l1 + l2 + l3`` (the Gaunt couplings), "so3" keeps all.

    Raises:
        ValueError: parity is neither "o3" nor "so3".
    """
    if parity not in ("o3", "so3"):
        raise ValueError(f"parity must be 'o3' or 'so3', got {parity!r}")
    return tuple(
        Path(l1, l2, l3)
        for l1 in l1s
        for l2 in range(l2max + 1)
        for l3 in l3s
        if abs(l1 - l2) <= l3 <= l1 + l2 and (parity == "so3" or (l1 + l2 + l3) % 2 == 0)
    )


def _complex_w3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """Wigner 3j symbols ``(l1 l2 l3; m1 m2 m3)`` of the complex basis, by Racah's formula."""
    out = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    f = factorial
    triangle = f(l1 + l2 - l3) * f(l1 - l2 + l3) * f(-l1 + l2 + l3) / f(l1 + l2 + l3 + 1)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            m3 = -m1 - m2
            if abs(m3) > l3:
                continue
            front = sqrt(triangle * f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l3 + m3) * f(l3 - m3))
            total = 0.0
            for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
                lower = f(k) * f(l1 + l2 - l3 - k) * f(l1 - m1 - k) * f(l2 + m2 - k)
                lower *= f(l3 - l2 + m1 + k) * f(l3 - l1 - m2 + k)
                total += (-1) ** k / lower
            out[m1 + l1, m2 + l2, m3 + l3] = (-1) ** (l1 - l2 - m3) * front * total
    return out


def _complex_from_real(l: int) -> np.ndarray:
    """Unitary matrix whose rows express complex harmonics of degree l in the real ones (times (-i)^l)."""
    u = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    u[l, l] = 1.0
    for m in range(1, l + 1):
        u[l + m, l + m], u[l + m, l - m] = (-1) ** m / sqrt(2), 1j * (-1) ** m / sqrt(2)
        u[l - m, l + m], u[l - m, l - m] = 1 / sqrt(2), -1j / sqrt(2)
    return (-1j) ** l * u


@cache
def w3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real Wigner 3j tensor ``(2l1+1, 2l2+1, 2l3+1)`` of unit Frobenius norm, e3nn's basis and sign.

    Raises:
        ValueError: the degrees violate the triangle rule.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"({l1}, {l2}, {l3}) violates |l1 - l2| <= l3 <= l1 + l2")
    u1, u2, u3 = _complex_from_real(l1), _complex_from_real(l2), _complex_from_real(l3)
    # The third index couples as a bra: m3 -> -m3 with the sign (-1)^(l3-m3) turns the 3j symbol into a CG coefficient.
    m3 = np.arange(-l3, l3 + 1)
    bra = _complex_w3j(l1, l2, l3)[:, :, ::-1] * (-1.0) ** (l3 - m3) * (-1.0) ** (l1 - l2 + l3)
    real = np.einsum("ia,jb,kc,ijk->abc", u1, u2, u3.conj(), bra).real
    real /= np.linalg.norm(real)
    real.setflags(write=False)
    return real


def gaunt_strength(l1: int, l2: int, l3: int) -> float:
    """Factor kappa with ``integral(Y_i Y_j Y_k) = kappa * w3j``; zero for odd ``l1 + l2 + l3``.

    Source: Gaunt tensor products (arXiv 2401.10216); kappa = sqrt((2l1+1)(2l2+1)(2l3+1)/4pi) |(l1 l2 l3; 0 0 0)|.
    """
    zero = abs(_complex_w3j(l1, l2, l3)[l1, l2, l3])
    return sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * pi)) * zero


@cache
def gaunt(l1: int, l2: int, l3: int) -> np.ndarray:
    """Gaunt coefficients ``integral(Y_i Y_j Y_k)`` (integral normalisation), ``(2l1+1, 2l2+1, 2l3+1)``."""
    table = gaunt_strength(l1, l2, l3) * w3j(l1, l2, l3)
    table.setflags(write=False)
    return table


def bracket_strength(l1: int, l2: int, l3: int) -> float:
    """Factor kappa with ``integral(Y_k {Y_i, Y_j}) = kappa * w3j`` of the surface bracket; zero for even sums.

    ``{f, g} = r . (grad f x grad g)``;
    kappa = sqrt((2l1+1)(2l2+1)(2l3+1)/4pi) sqrt(l1(l1+1) l2(l2+1)) |(l1 l2 l3; 1 -1 0)|.

    Source: Fast contracted Clebsch-Gordan tensor products (arXiv 2605.15073).
    """
    if min(l1, l2, l3) == 0 or (l1 + l2 + l3) % 2 == 0:
        return 0.0
    symbol = abs(_complex_w3j(l1, l2, l3)[l1 + 1, l2 - 1, l3])
    orders = sqrt(l1 * (l1 + 1) * l2 * (l2 + 1))
    return sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * pi)) * orders * symbol


@cache
def surface_bracket_table(l1: int, l2: int, l3: int) -> np.ndarray:
    """``integral(Y_k {Y_i, Y_j})`` (integral normalisation), totally antisymmetric, ``(2l1+1, 2l2+1, 2l3+1)``."""
    table = bracket_strength(l1, l2, l3) * w3j(l1, l2, l3)
    table.setflags(write=False)
    return table
