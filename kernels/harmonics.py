"""Real spherical harmonics as polynomials: no trigonometry, no poles.

Plain torch, whose derivatives of any order come from autograd; directions of edges run on the fast kernels.
"""

from __future__ import annotations

from math import pi, sqrt

from torch import Tensor

from .backends import choose
from .harmonics_ops import harmonics_op
from .harmonics_reference import reference_harmonics


def spherical_harmonics(
    vectors: Tensor, lmax: int, *, normalize: bool = True, normalization: str = "component"
) -> Tensor:
    """Real spherical harmonics of degrees 0..lmax.

    Degree by degree: the stretched coupling of ``Y_{l-1}`` with the vector is ``Y_l`` up to a factor.

    Args:
        vectors: ``(..., 3)``, any unit of length.
        lmax: largest degree.
        normalize: divide the vectors by their length first; otherwise the solid harmonics r^l Y_lm are returned.
        normalization: "component" (``|Y_l|^2 = 2l+1``) or "integral" (``|Y_l|^2 = (2l+1)/4pi``).

    Returns:
        ``(..., (lmax + 1)^2)``, index ``l*l + l + m``, e3nn's order and sign.

    Raises:
        ValueError: wrong last axis, or an unknown normalization.
    """
    if vectors.shape[-1] != 3:
        raise ValueError(f"vectors must end in an axis of 3, got shape {tuple(vectors.shape)}")
    if normalization not in ("component", "integral"):
        raise ValueError(f"normalization must be 'component' or 'integral', got {normalization!r}")
    if normalize and vectors.ndim == 2 and lmax > 0 and choose(vectors, "spherical_harmonics") != "reference":
        harmonics: Tensor = harmonics_op(vectors, lmax)
    else:
        harmonics = reference_harmonics(vectors, lmax, normalize=normalize)
    return harmonics if normalization == "component" else harmonics * (1 / sqrt(4 * pi))
