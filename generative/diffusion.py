"""The joint noise process of a molecule: coordinates Gaussian and centred, elements, charges and bonds categorical.

The alternatives that the paper compares with are options: Gaussian noise on one-hot classes, and a network whose
coordinates are read as noise. Source: Le et al., EQGAT-diff, arXiv 2309.17296; schedules per variable: Vignac et al.,
MiDi, arXiv 2302.09048.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..training.config import ConfigError, option
from .eqgat import Prediction
from .layout import Layout
from .molecules import Molecules
from .noise import CategoricalNoise, ClassNoise, Draw, GaussianClasses, GaussianNoise, Times
from .pocket import Pockets
from .schedule import adaptive_cosine, snr_weights
from .streams import Streams
from .vocabulary import Classes, Vocabulary


@dataclass(frozen=True)
class DiffusionConfig:
    """Steps, schedules and the weight of each time in the loss."""

    steps: int = option(500, "noise levels T; samplers may take fewer steps")
    position_exponent: float = option(2.5, "exponent of the schedule of coordinates: larger = noised later")
    bond_exponent: float = option(1.5, "exponent of the schedule of bonds")
    atom_exponent: float = option(1.0, "exponent of the schedule of elements, charges and further variables")
    classes: Literal["categorical", "gaussian"] = option(
        "categorical", "noise of elements, charges, bonds: categorical (published), or Gaussian on one-hot channels"
    )
    target: Literal["data", "noise"] = option(
        "data", "what the network's coordinates are: the clean molecule (published), or x_t plus the noise in it"
    )
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

    def __init__(self, config: DiffusionConfig, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        self.config, self.vocabulary, self.device = config, vocabulary, torch.device(device)
        levels = adaptive_cosine(config.steps, config.position_exponent)
        self.positions = GaussianNoise(self._amplitudes(levels)).to(device)
        self.atoms = [
            self._class_noise(config.atom_exponent, classes).to(device) for classes in vocabulary.atoms.values()
        ]
        self.bonds = self._class_noise(config.bond_exponent, vocabulary.bonds).to(device)
        self.weights = time_weights(config).to(device)

    def to(self, device: torch.device | str) -> Diffusion:
        """The same process with its tables on `device`."""
        if torch.device(device) == self.device:
            return self
        return Diffusion(self.config, self.vocabulary, device)

    def channels(self, noisy: Molecules) -> tuple[Tensor, Tensor]:
        """What a network sees of the classes: ``(N, A)`` and ``(E, B)``, in the dtype of the positions."""
        columns = [noise.channels(x) for noise, x in zip(self.atoms, self._split(noisy.atoms), strict=True)]
        dtype = noisy.positions.dtype
        return torch.cat(columns, 1).to(dtype), self.bonds.channels(noisy.bonds).to(dtype)

    def classes(self, state: Molecules) -> Molecules:
        """A state with its likeliest classes as integers; of categorical noise the state itself."""
        columns = [noise.classes(x) for noise, x in zip(self.atoms, self._split(state.atoms), strict=True)]
        return replace(state, atoms=torch.stack(columns, 1), bonds=self.bonds.classes(state.bonds))

    def clean_positions(self, noisy: Molecules, output: Tensor, t: Tensor) -> Tensor:
        """Clean coordinates ``(N, 3)`` from those of the network, at the time `t` ``(G,)`` of each molecule."""
        if self.config.target == "data":
            return output
        noise = output - noisy.centred(noisy.positions).to(output.dtype)
        return self.positions.clean(noisy.positions.to(output.dtype), noise, t[noisy.layout.batch])

    def position_weights(self, t: Tensor) -> Tensor | None:
        """What makes the square error of clean coordinates that of the network's output, at times `t`; None is 1.

        |ε̂ − ε|² = (α/σ)² |x̂ − x|², the signal-to-noise ratio.
        """
        if self.config.target == "data":
            return None
        return self.positions.alpha[t] ** 2 / self.positions.variance[t]

    def noised(self, clean: Molecules, t: Tensor, streams: Streams) -> Molecules:
        """A draw from q(x_t | x_0) at the time `t` ``(G,)`` of each molecule."""
        layout = clean.layout
        of_atom, of_pair = t[layout.batch], t[layout.edge_batch[layout.pairs]]
        noise = self.noise(clean, streams).to(clean.positions.dtype)
        of_atoms, of_bonds = _draws(layout, streams)
        atoms = [p.noised(x, of_atom, of_atoms) for p, x in zip(self.atoms, clean.atoms.unbind(1), strict=True)]
        bonds = self.bonds.noised(clean.bonds[layout.pairs], of_pair, of_bonds)
        positions = self.positions.forward(clean.centred(clean.positions), noise, of_atom)
        return replace(clean, atoms=self._join(atoms), bonds=layout.both_ways(bonds), positions=positions)

    def prior(
        self,
        layout: Layout,
        streams: Streams,
        dtype: torch.dtype = torch.float32,
        *,
        context: Tensor | None = None,
        pockets: Pockets | None = None,
    ) -> Molecules:
        """Molecules of pure noise: where sampling starts."""
        of_atoms, of_bonds = _draws(layout, streams)
        atoms = self._join([noise.prior(of_atoms) for noise in self.atoms])
        bonds = layout.both_ways(self.bonds.prior(of_bonds))
        nowhere = torch.zeros(len(layout.batch), 3, dtype=dtype, device=layout.batch.device)
        start = Molecules(layout, atoms, bonds, nowhere, context=context, pockets=pockets)
        return replace(start, positions=self.noise(start, streams).to(dtype))

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
            eta: 1 = ancestral, 0 = no noise in the coordinates (categorical classes are drawn all the same).
            likeliest: take the likeliest classes instead of drawing them.
        """
        layout = noisy.layout
        noise = self.noise(noisy, streams).to(noisy.positions.dtype)
        clean = prediction.positions.to(noisy.positions.dtype)
        positions = self.positions.step(noisy.positions, clean, noise, t=t, s=s, eta=eta)
        of_atoms, of_bonds = (None, None) if likeliest else _draws(layout, streams)
        atoms = [
            process.step(x, logits, of_atoms, t=t, s=s, eta=eta)
            for process, x, logits in zip(self.atoms, self._split(noisy.atoms), prediction.atoms, strict=True)
        ]
        pairs = noisy.bonds[layout.pairs]
        bonds = self.bonds.step(pairs, prediction.bonds, of_bonds, t=t, s=s, eta=eta)
        return replace(
            noisy,
            atoms=self._join(atoms),
            bonds=layout.both_ways(bonds),
            positions=noisy.centred(positions),
        )

    def again(self, less: Molecules, streams: Streams, *, t: Times, s: Times) -> Molecules:
        """A draw from q(x_t | x_s), s < t: back into the noise, for resampling."""
        layout = less.layout
        noise = self.noise(less, streams).to(less.positions.dtype)
        of_atoms, of_bonds = _draws(layout, streams)
        columns = zip(self.atoms, self._split(less.atoms), strict=True)
        atoms = [process.back(x, of_atoms, t=t, s=s) for process, x in columns]
        bonds = self.bonds.back(less.bonds[layout.pairs], of_bonds, t=t, s=s)
        positions = self.positions.between(less.positions, noise, t=t, s=s)
        return replace(less, atoms=self._join(atoms), bonds=layout.both_ways(bonds), positions=positions)

    def noise(self, molecules: Molecules, streams: Streams) -> Tensor:
        """Standard normal ``(N, 3)`` float64, without the mean of each molecule (with it inside a pocket)."""
        layout = molecules.layout
        counter = 3 * layout.local.unsqueeze(1) + torch.arange(3, device=layout.local.device)
        return molecules.centred(streams.normal(layout.batch.unsqueeze(1), counter))

    def _amplitudes(self, levels: Tensor) -> Tensor:
        return levels if self.config.amplitude == "level" else levels.sqrt()

    def _class_noise(self, exponent: float, classes: Classes) -> ClassNoise:
        levels = adaptive_cosine(self.config.steps, exponent)
        if self.config.classes == "gaussian":
            return GaussianClasses(self._amplitudes(levels), len(classes))
        return CategoricalNoise(levels, torch.tensor(classes.frequencies, dtype=torch.float64))

    def _split(self, atoms: Tensor) -> list[Tensor]:
        """The state of each variable from `Molecules.atoms`; inverse of :meth:`_join`."""
        if self.config.classes == "gaussian":
            return list(atoms.split([noise.n_classes for noise in self.atoms], 1))
        return list(atoms.unbind(1))

    def _join(self, states: list[Tensor]) -> Tensor:
        return torch.cat(states, 1) if self.config.classes == "gaussian" else torch.stack(states, 1)


def _draws(layout: Layout, streams: Streams) -> tuple[Draw, Draw]:
    """Random numbers of the atoms, and of the pairs: bonds are drawn once for both directions."""
    source, target = layout.edge_index[:, layout.pairs]
    counter = layout.local[target] * (layout.local[target] - 1) // 2 + layout.local[source]
    return Draw(streams, layout.batch, layout.local), Draw(streams, layout.batch[target], counter)
