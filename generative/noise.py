"""Noise processes, with exact steps between any two times s < t: coordinates, and classes in two ways.

All are given by tables over the times 0..T and know neither network nor molecule.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .streams import Streams, choose

Times = int | Tensor


class Draw(NamedTuple):
    """The random numbers of M rows: row m has the counter `counter[m]` in the stream of molecule `molecule[m]`."""

    streams: Streams
    molecule: Tensor
    counter: Tensor

    def choice(self, probabilities: Tensor) -> Tensor:
        """Classes ``(M,)`` drawn from `probabilities` ``(M, K)``."""
        return choose(probabilities, self.streams.uniform(self.molecule, self.counter))

    def normal(self, n: int) -> Tensor:
        """Standard normal ``(M, n)`` float64."""
        counter = n * self.counter.unsqueeze(1) + torch.arange(n, device=self.counter.device)
        return self.streams.normal(self.molecule.unsqueeze(1), counter)


class ClassNoise(Protocol):
    """A noise process of one variable that takes K classes; what a state x_t is, is its own business.

    noised: a draw from q(x_t | x_0) for classes ``(M,)``. prior: M rows of pure noise. step: x_s from x_t and logits
    ``(M, K)`` of x_0; without `draw` the likeliest. back: a draw from q(x_t | x_s), s < t. channels: what a network
    sees, ``(M, K)``. classes: ``(M,)`` int64 of a state.
    """

    @property
    def n_classes(self) -> int: ...

    def to(self, device: torch.device | str) -> ClassNoise: ...

    def noised(self, clean: Tensor, t: Times, draw: Draw) -> Tensor: ...

    def prior(self, draw: Draw) -> Tensor: ...

    def step(self, noisy: Tensor, logits: Tensor, draw: Draw | None, *, t: Times, s: Times, eta: float) -> Tensor: ...

    def back(self, less: Tensor, draw: Draw, *, t: Times, s: Times) -> Tensor: ...

    def channels(self, state: Tensor) -> Tensor: ...

    def classes(self, state: Tensor) -> Tensor: ...


class CategoricalNoise:
    """Classes that decay towards their frequencies: q(c_t | c_0) = ā_t e_{c_0} + (1 − ā_t) m.

    One step from s to t multiplies with Q_{t|s} = a I + (1 − a) 1 mᵀ, a = ā_t / ā_s (D3PM, Austin et al., 2021;
    marginal limit: Vignac et al., 2023). Uniform and absorbing noise are other choices of m.

    Args:
        levels: ``(T + 1,)`` ā, from 1 towards 0.
        marginals: ``(K,)`` m, positive; normalised here.

    Raises:
        ValueError: a marginal that is not positive (its posterior would be 0/0).
    """

    def __init__(self, levels: Tensor, marginals: Tensor) -> None:
        if not bool((marginals > 0).all()):
            raise ValueError(f"every class needs a positive marginal, got {marginals.tolist()}")
        self.levels = levels.double()
        self.marginals = (marginals.double() / marginals.double().sum()).to(levels.device)

    def to(self, device: torch.device | str) -> CategoricalNoise:
        return CategoricalNoise(self.levels.to(device), self.marginals.to(device))

    @property
    def n_classes(self) -> int:
        return len(self.marginals)

    def forward(self, clean: Tensor, t: Times) -> Tensor:
        """q(c_t | c_0) ``(M, K)`` float64 for classes `clean` ``(M,)`` at times `t`, one or ``(M,)``."""
        level = self._level(t)
        return level * self._one_hot(clean) + (1 - level) * self.marginals

    def posterior(self, noisy: Tensor, clean: Tensor, t: Times, s: Times) -> Tensor:
        """Σ_{c_0} q(c_s | c_t, c_0) p(c_0) ``(M, K)`` float64, for s < t.

        With L(c) = Q_{t|s}[c, c_t], w(c_0) = p(c_0) / Q̄_t[c_0, c_t]:
        p(c_s) = L(c_s) (ā_s w(c_s) + (1 − ā_s) m(c_s) Σ w).

        Args:
            noisy: ``(M,)`` classes c_t. clean: ``(M, K)`` probabilities p(c_0), rows of sum 1.
            t, s: times, one or ``(M,)``.
        """
        level_t, level_s = self._level(t), self._level(s)
        ratio = level_t / level_s
        here = self._one_hot(noisy)
        frequency = self.marginals[noisy].unsqueeze(-1)
        left = ratio * here + (1 - ratio) * frequency
        weights = clean.double() / (level_t * here + (1 - level_t) * frequency)
        right = level_s * weights + (1 - level_s) * self.marginals * weights.sum(-1, keepdim=True)
        return left * right

    def between(self, less: Tensor, t: Times, s: Times) -> Tensor:
        """q(c_t | c_s) ``(M, K)`` float64 for classes `less` ``(M,)`` at time s < t."""
        ratio = self._level(t) / self._level(s)
        return ratio * self._one_hot(less) + (1 - ratio) * self.marginals

    def noised(self, clean: Tensor, t: Times, draw: Draw) -> Tensor:
        """A state is a class ``(M,)``; see :class:`ClassNoise`."""
        return draw.choice(self.forward(clean, t))

    def prior(self, draw: Draw) -> Tensor:
        return draw.choice(self.marginals.expand(len(draw.counter), -1))

    def step(self, noisy: Tensor, logits: Tensor, draw: Draw | None, *, t: Times, s: Times, eta: float = 1.0) -> Tensor:
        probabilities = self.posterior(noisy, logits.double().softmax(-1), t, s)
        return probabilities.argmax(-1) if draw is None else draw.choice(probabilities)

    def back(self, less: Tensor, draw: Draw, *, t: Times, s: Times) -> Tensor:
        return draw.choice(self.between(less, t, s))

    def channels(self, state: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(state, self.n_classes)

    def classes(self, state: Tensor) -> Tensor:
        return state

    def _one_hot(self, classes: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(classes, self.n_classes).double()

    def _level(self, t: Times) -> Tensor:
        level = self.levels[t]
        return level.unsqueeze(-1) if level.ndim else level


class StepCoefficients(NamedTuple):
    """x_s = a x_t + b x_0 + c z."""

    a: Tensor
    b: Tensor
    c: Tensor


class GaussianNoise:
    """x_t = α_t x_0 + σ_t ε, σ_t² = 1 − α_t². Noise that lies in a subspace (centred) stays in it.

    Args:
        amplitudes: ``(T + 1,)`` α, from 1 towards 0. EQGAT-diff reads the table of its schedule as amplitude;
            variance-preserving tables give √ā.
    """

    def __init__(self, amplitudes: Tensor) -> None:
        self.alpha = amplitudes.double()
        self.variance = (1 - self.alpha) * (1 + self.alpha)

    def to(self, device: torch.device | str) -> GaussianNoise:
        return GaussianNoise(self.alpha.to(device))

    def forward(self, clean: Tensor, noise: Tensor, t: Times) -> Tensor:
        """x_t ``(M, …)`` of `clean` and standard noise `noise`, at times `t`, one or ``(M,)``; dtype of `clean`."""
        alpha, sigma = self.alpha[t], self.variance[t].sqrt()
        return _scaled(alpha, clean) + _scaled(sigma, noise)

    def coefficients(self, t: Times, s: Times, eta: float = 1.0) -> StepCoefficients:
        """Coefficients of the step t → s, s < t, float64.

        c = η σ_{s|t}, with the posterior's variance σ_{s|t}² = (σ_t² − a_{ts}² σ_s²) σ_s² / σ_t² (a_{ts} = α_t / α_s);
        a = √(σ_s² − c²) / σ_t, b = α_s − a α_t: for every η the marginal of x_s is that of the forward process.
        η = 1 is ancestral sampling, η = 0 the deterministic step (DDIM, Song et al., 2021).
        """
        alpha_t, alpha_s, var_t, var_s = self.alpha[t], self.alpha[s], self.variance[t], self.variance[s]
        ratio = alpha_t / alpha_s
        var = (eta**2 * (var_t - ratio**2 * var_s) * var_s / var_t).clamp(min=0)
        a = ((var_s - var).clamp(min=0) / var_t).sqrt()
        return StepCoefficients(a, alpha_s - a * alpha_t, var.sqrt())

    def step(self, noisy: Tensor, clean: Tensor, noise: Tensor, *, t: Times, s: Times, eta: float = 1.0) -> Tensor:
        """x_s from x_t, an estimate of x_0 and standard noise; shapes and dtype of `noisy`."""
        a, b, c = self.coefficients(t, s, eta)
        return _scaled(a, noisy) + _scaled(b, clean) + _scaled(c, noise)

    def clean(self, noisy: Tensor, noise: Tensor, t: Times) -> Tensor:
        """x_0 = (x_t − σ_t ε) / α_t from an estimate of the noise."""
        alpha, sigma = self.alpha[t], self.variance[t].sqrt()
        return _scaled(1 / alpha, noisy - _scaled(sigma, noise))

    def between(self, less: Tensor, noise: Tensor, *, t: Times, s: Times) -> Tensor:
        """A draw from q(x_t | x_s), s < t, with standard noise `noise`."""
        ratio = self.alpha[t] / self.alpha[s]
        variance = (self.variance[t] - ratio**2 * self.variance[s]).clamp(min=0)
        return _scaled(ratio, less) + _scaled(variance.sqrt(), noise)


class GaussianClasses:
    """Classes as one-hot channels with Gaussian noise: the continuous counterpart of :class:`CategoricalNoise`.

    A state is ``(M, K)`` float64. The estimate of the clean channels is their expectation, the probabilities of the
    classes, which is what a regression of the channels would learn; the loss can therefore be the same cross-entropy.

    Args:
        amplitudes: ``(T + 1,)`` α of :class:`GaussianNoise`.
        n_classes: K.
    """

    def __init__(self, amplitudes: Tensor, n_classes: int) -> None:
        self.noise, self.n_classes = GaussianNoise(amplitudes), n_classes

    def to(self, device: torch.device | str) -> GaussianClasses:
        return GaussianClasses(self.noise.alpha.to(device), self.n_classes)

    def noised(self, clean: Tensor, t: Times, draw: Draw) -> Tensor:
        """See :class:`ClassNoise`."""
        one_hot = torch.nn.functional.one_hot(clean, self.n_classes).double()
        return self.noise.forward(one_hot, draw.normal(self.n_classes), t)

    def prior(self, draw: Draw) -> Tensor:
        return draw.normal(self.n_classes)

    def step(self, noisy: Tensor, logits: Tensor, draw: Draw | None, *, t: Times, s: Times, eta: float = 1.0) -> Tensor:
        noise = torch.zeros_like(noisy) if draw is None else draw.normal(self.n_classes)
        return self.noise.step(noisy, logits.double().softmax(-1), noise, t=t, s=s, eta=eta)

    def back(self, less: Tensor, draw: Draw, *, t: Times, s: Times) -> Tensor:
        return self.noise.between(less, draw.normal(self.n_classes), t=t, s=s)

    def channels(self, state: Tensor) -> Tensor:
        return state

    def classes(self, state: Tensor) -> Tensor:
        return state.argmax(-1)


def centred(x: Tensor, batch: Tensor, n_atoms: Tensor) -> Tensor:
    """`x` ``(N, …)`` minus the mean of its molecule; `batch` ``(N,)`` molecule of each atom, `n_atoms` ``(G,)``."""
    total = x.new_zeros(len(n_atoms), *x.shape[1:]).index_add(0, batch, x)
    return x - _scaled(1 / n_atoms.clamp(min=1).double(), total)[batch]


def _scaled(factor: Tensor, x: Tensor) -> Tensor:
    """A float64 factor, one or one per row, times `x`, in the dtype of `x`."""
    factor = factor.to(x.dtype)
    return (factor.reshape(-1, *[1] * (x.ndim - 1)) if factor.ndim else factor) * x
