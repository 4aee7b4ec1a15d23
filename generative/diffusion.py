"""The joint noise process of a molecule: coordinates Gaussian and centred, elements, charges and bonds categorical.

Source: Le et al., EQGAT-diff, arXiv 2309.17296; schedules per variable: Vignac et al., MiDi, arXiv 2302.09048.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..training.config import ConfigError, option
from .eqgat import Prediction
from .molecules import Layout, Molecules
from .noise import CategoricalNoise, GaussianNoise, Times, centred
from .schedule import adaptive_cosine, snr_weights
from .streams import Streams, choose
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class DiffusionConfig:
    """Steps, schedules and the weight of each time in the loss."""

    steps: int = option(500, "noise levels T; samplers may take fewer steps")
    position_exponent: float = option(2.5, "exponent of the schedule of coordinates: larger = noised later")
    bond_exponent: float = option(1.5, "exponent of the schedule of bonds")
    atom_exponent: float = option(1.0, "exponent of the schedule of elements, charges and further variables")
    amplitude: Literal["level", "root"] = option(
        "level", "amplitude of the clean coordinates: the schedule's level (published), or its root"
    )
    weighting: Literal["snr", "snr-bonds", "difference", "exponential", "uniform"] = option(
        "snr", "loss weight of a time: truncated signal-to-noise ratio of atoms (published) or bonds, …"
    )

    def __post_init__(self) -> None:
        for key in ("steps", "position_exponent", "bond_exponent", "atom_exponent"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be positive, got {getattr(self, key)}")


def time_weights(config: DiffusionConfig) -> Tensor:
    """Loss weight ``(T + 1,)`` of each time."""
    atoms = adaptive_cosine(config.steps, config.atom_exponent)
    if config.weighting == "snr":
        return snr_weights(atoms)
    if config.weighting == "snr-bonds":
        return snr_weights(adaptive_cosine(config.steps, config.bond_exponent), high=5.0)
    if config.weighting == "difference":
        ratio = atoms / (1 - atoms)
        return torch.cat([ratio[:1], ratio[:-1] - ratio[1:]]).clamp(0.05, 1.5)
    if config.weighting == "exponential":
        scale = 0.4 * config.steps  # 200 of 500 steps
        return torch.exp(-torch.arange(config.steps + 1, dtype=torch.float64) / scale).clamp(min=0.1)
    return torch.ones(config.steps + 1, dtype=torch.float64)


class Diffusion:
    """Noise for all variables of a molecule together; times are integers in 0..T.

    Args:
        config: steps and schedules.
        vocabulary: classes and their frequencies, towards which the noise goes.
        device: where the tables lie.
    """

    def __init__(
        self, config: DiffusionConfig, vocabulary: Vocabulary, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.vocabulary, self.device = config, vocabulary, torch.device(device)
        atoms = adaptive_cosine(config.steps, config.atom_exponent)
        positions = adaptive_cosine(config.steps, config.position_exponent)
        self.positions = GaussianNoise(positions if config.amplitude == "level" else positions.sqrt()).to(
            device
        )
        self.atoms = [
            CategoricalNoise(atoms, torch.tensor(c.frequencies, dtype=torch.float64)).to(device)
            for c in vocabulary.atoms.values()
        ]
        self.bonds = CategoricalNoise(
            adaptive_cosine(config.steps, config.bond_exponent),
            torch.tensor(vocabulary.bonds.frequencies, dtype=torch.float64),
        ).to(device)
        self.weights = time_weights(config).to(device)

    def to(self, device: torch.device | str) -> Diffusion:
        """The same process with its tables on `device`."""
        if torch.device(device) == self.device:
            return self
        return Diffusion(self.config, self.vocabulary, device)

    def channels(self, noisy: Molecules) -> tuple[Tensor, Tensor]:
        """What a network sees of the classes: one-hot ``(N, A)`` and ``(E, B)``, in the dtype of the positions."""
        columns = [one_hot(noisy.atoms[:, k], noise.n_classes) for k, noise in enumerate(self.atoms)]
        dtype = noisy.positions.dtype
        return torch.cat(columns, 1).to(dtype), one_hot(noisy.bonds, self.bonds.n_classes).to(dtype)

    def noised(self, clean: Molecules, t: Tensor, streams: Streams) -> Molecules:
        """A draw from q(x_t | x_0) at the time `t` ``(G,)`` of each molecule."""
        layout = clean.layout
        of_atom, of_pair = t[layout.batch], t[layout.edge_batch[layout.pairs]]
        atoms = [noise.forward(clean.atoms[:, k], of_atom) for k, noise in enumerate(self.atoms)]
        bonds = self.bonds.forward(clean.bonds[layout.pairs], of_pair)
        noise = self.centred_noise(layout, streams).to(clean.positions.dtype)
        positions = centred(clean.positions, layout.batch, layout.n_atoms)
        return replace(
            clean,
            atoms=self._draw_atoms(layout, atoms, streams),
            bonds=self._draw_bonds(layout, bonds, streams),
            positions=self.positions.forward(positions, noise, of_atom),
        )

    def prior(self, layout: Layout, streams: Streams, dtype: torch.dtype = torch.float32) -> Molecules:
        """Molecules of pure noise: where sampling starts."""
        n_atoms, n_pairs = len(layout.batch), len(layout.pairs)
        atoms = [noise.marginals.expand(n_atoms, -1) for noise in self.atoms]
        return Molecules(
            layout,
            self._draw_atoms(layout, atoms, streams),
            self._draw_bonds(layout, self.bonds.marginals.expand(n_pairs, -1), streams),
            self.centred_noise(layout, streams).to(dtype),
        )

    def step(
        self,
        noisy: Molecules,
        prediction: Prediction,
        streams: Streams,
        *,
        t: Times,
        s: Times,
        eta: float = 1.0,
        likeliest: bool = False,
    ) -> Molecules:
        """x_s from x_t and a prediction of x_0, for any s < t.

        Args:
            noisy: x_t. prediction: its logits give the probabilities of the classes. streams: random numbers.
            t, s: times, one for the whole batch.
            eta: 1 = ancestral, 0 = no noise in the coordinates (classes are drawn all the same).
            likeliest: take the likeliest classes instead of drawing them.
        """
        layout = noisy.layout
        atoms = [
            noise.posterior(noisy.atoms[:, k], logits.double().softmax(-1), t, s)
            for k, (noise, logits) in enumerate(zip(self.atoms, prediction.atoms, strict=True))
        ]
        bonds = self.bonds.posterior(noisy.bonds[layout.pairs], prediction.bonds.double().softmax(-1), t, s)
        noise = self.centred_noise(layout, streams).to(noisy.positions.dtype)
        clean = prediction.positions.to(noisy.positions.dtype)
        positions = self.positions.step(noisy.positions, clean, noise, t=t, s=s, eta=eta)
        draw = None if likeliest else streams
        return replace(
            noisy,
            atoms=self._draw_atoms(layout, atoms, draw),
            bonds=self._draw_bonds(layout, bonds, draw),
            positions=centred(positions, layout.batch, layout.n_atoms),
        )

    def again(self, less: Molecules, streams: Streams, *, t: Times, s: Times) -> Molecules:
        """A draw from q(x_t | x_s), s < t: back into the noise, for resampling."""
        layout = less.layout
        noise = self.centred_noise(layout, streams).to(less.positions.dtype)
        bonds = self.bonds.between(less.bonds[layout.pairs], t, s)
        atoms = [process.between(less.atoms[:, k], t, s) for k, process in enumerate(self.atoms)]
        return replace(
            less,
            atoms=self._draw_atoms(layout, atoms, streams),
            bonds=self._draw_bonds(layout, bonds, streams),
            positions=self.positions.between(less.positions, noise, t=t, s=s),
        )

    def centred_noise(self, layout: Layout, streams: Streams) -> Tensor:
        """Standard normal ``(N, 3)`` float64 without the mean of each molecule."""
        counter = 3 * layout.local.unsqueeze(1) + torch.arange(3, device=layout.local.device)
        return centred(streams.normal(layout.batch.unsqueeze(1), counter), layout.batch, layout.n_atoms)

    def _draw_atoms(self, layout: Layout, probabilities: list[Tensor], streams: Streams | None) -> Tensor:
        if streams is None:
            return torch.stack([p.argmax(-1) for p in probabilities], 1)
        return torch.stack([choose(p, streams.uniform(layout.batch, layout.local)) for p in probabilities], 1)

    def _draw_bonds(self, layout: Layout, probabilities: Tensor, streams: Streams | None) -> Tensor:
        """Classes of all edges from probabilities of the pairs: drawn once for both directions."""
        if streams is None:
            return layout.both_ways(probabilities.argmax(-1))
        source, target = layout.edge_index[:, layout.pairs]
        counter = layout.local[target] * (layout.local[target] - 1) // 2 + layout.local[source]
        uniform = streams.uniform(layout.batch[target], counter)
        return layout.both_ways(choose(probabilities, uniform))
