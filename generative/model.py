"""EQGAT-diff as a whole: network, vocabulary and noise process; draws molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.errors import UserError
from ..datasets.loader import Budget, plan_batches
from ..datasets.structure import Structure
from ..training.config import from_dict, option
from .diffusion import Diffusion, DiffusionConfig
from .eqgat import PRESETS, Eqgat, EqgatConfig, Prediction
from .molecules import Encoded, Molecules, collate, decode, encode
from .sampler import FixedPart, Guide, SamplerOptions, sample
from .streams import Streams
from .vocabulary import NO_BOND, Vocabulary

MAX_EDGES = 60_000  # ordered pairs of atoms computed at a time, about 200 molecules of 18 atoms


@dataclass(frozen=True)
class EqgatDiffConfig:
    """Network and noise process of EQGAT-diff."""

    network: EqgatConfig = option(EqgatConfig(), "size of the network")
    diffusion: DiffusionConfig = option(DiffusionConfig(), "the noise")


class EqgatDiff(nn.Module):
    """A generator of molecules with elements, charges, bonds and coordinates.

    Args:
        config: sizes and noise.
        vocabulary: what its data consist of.
    """

    architecture: ClassVar[str] = "eqgat-diff"
    card: dict[str, Any]

    def __init__(self, config: EqgatDiffConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary, self.card = config, vocabulary, {}
        classes = [len(c) for c in vocabulary.atoms.values()]
        self.network = Eqgat(config.network, classes, len(vocabulary.bonds))
        self._diffusion = Diffusion(config.diffusion, vocabulary)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], vocabulary: Vocabulary) -> EqgatDiff:
        """From plain data; `preset` names a size of the network, further keys change it.

        Raises:
            ConfigError: unknown keys or presets.
        """
        plain = dict(config)
        preset = plain.pop("preset", "default")
        if preset not in PRESETS:
            raise UserError(f"model.config: no preset is called {preset!r}; there are {', '.join(PRESETS)}")
        base = EqgatDiffConfig(network=PRESETS[preset])
        return cls(from_dict(EqgatDiffConfig, plain, where="model.config", base=base), vocabulary)

    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain data, from which :meth:`from_config` builds an equal model."""
        return asdict(self.config)

    @property
    def diffusion(self) -> Diffusion:
        """The noise process, its tables on the device of the weights (kept in float64 whatever their dtype)."""
        self._diffusion = self._diffusion.to(self.device)
        return self._diffusion

    @property
    def device(self) -> torch.device:
        return self.network.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.shared.weight.dtype

    def forward(self, noisy: Molecules, t: Tensor) -> Prediction:
        """The prediction of the clean molecules from x_t and the times ``(G,)``."""
        atoms, bonds = self.diffusion.channels(noisy)
        time = t / self.config.diffusion.steps
        prediction: Prediction = self.network(
            noisy.layout, atoms=atoms, bonds=bonds, positions=noisy.positions, time=time
        )
        return prediction

    def sample(
        self,
        n: int,
        *,
        atoms: int | tuple[int, int] | None = None,
        seed: int = 0,
        options: SamplerOptions | None = None,
        fixed: Structure | None = None,
        max_edges: int = MAX_EDGES,
        first: int = 0,
        guide: Guide | None = None,
        callback: Callable[[Molecules, int], None] | None = None,
    ) -> list[Structure]:
        """Draw `n` molecules; molecule k of a seed is the same whatever `n` and `max_edges` are.

        Args:
            atoms: number of atoms, or the least and the largest; None: as in the training data. With `fixed`:
                atoms that are added to it.
            seed: of the random numbers.
            options: number of steps, noise, resampling.
            fixed: a part that every molecule contains unchanged, as the model's data would have it (bonds; with or
                without hydrogens).
            max_edges: ordered pairs of atoms computed at a time; bounds the memory.
            first: number of the first molecule, to go on with an earlier run.
            guide, callback: see :func:`.sampler.sample`; called batch by batch.

        Raises:
            UserError: sizes or steps out of range, or a fixed part that the vocabulary does not cover.
        """
        drawn: list[Structure | None] = [None] * n
        for numbers, structures in self.batches(
            n,
            atoms=atoms,
            seed=seed,
            options=options,
            fixed=fixed,
            max_edges=max_edges,
            first=first,
            guide=guide,
            callback=callback,
        ):
            for k, structure in zip(numbers, structures, strict=True):
                drawn[k - first] = structure
        return [s for s in drawn if s is not None]

    def batches(
        self,
        n: int,
        *,
        atoms: int | tuple[int, int] | None = None,
        seed: int = 0,
        options: SamplerOptions | None = None,
        fixed: Structure | None = None,
        max_edges: int = MAX_EDGES,
        first: int = 0,
        guide: Guide | None = None,
        callback: Callable[[Molecules, int], None] | None = None,
    ) -> Iterator[tuple[list[int], list[Structure]]]:
        """As :meth:`sample`, batch by batch (small molecules first): numbers of the molecules, and these."""
        core = None if fixed is None else encode(fixed, self.vocabulary, "the fixed part")
        sizes = self._sizes(np.arange(first, first + n), seed, atoms) + (
            0 if core is None else len(core.atoms)
        )
        order = np.argsort(sizes, kind="stable")
        edges = np.stack([sizes, sizes * (sizes - 1)], 1)[order]
        limit = max(max_edges, int(edges[:, 1].max(initial=1)))
        was_training = self.training
        self.eval()
        try:
            for chosen in plan_batches(edges, Budget(max_edges=limit), shuffle=False, seed=0, epoch=0):
                members = order[chosen]
                n_atoms = torch.from_numpy(sizes[members]).to(self.device)
                molecules = sample(
                    self,
                    self.diffusion,
                    n_atoms,
                    seed=seed,
                    numbers=torch.from_numpy(members + first).to(self.device),
                    options=options,
                    fixed=None if core is None else self._fixed(core, sizes[members]),
                    guide=guide,
                    callback=callback,
                    dtype=self.dtype,
                )
                yield (members + first).tolist(), decode(molecules, self.vocabulary)
        finally:
            self.train(was_training)

    def _sizes(self, numbers: np.ndarray, seed: int, atoms: int | tuple[int, int] | None) -> np.ndarray:
        """Numbers of atoms of the molecules `numbers`, which depend on seed and number alone."""
        streams = Streams(seed, torch.from_numpy(numbers.astype(np.int64)))
        index = torch.arange(len(numbers))
        uniform = streams.uniform(index, torch.full_like(index, -1)).numpy()  # no atom has the number -1
        if atoms is None:
            return self.vocabulary.draw_sizes(uniform)
        low, high = (atoms, atoms) if isinstance(atoms, int) else atoms
        if not 1 <= low <= high:
            raise UserError(f"atoms must be a number >= 1 or a range low-high, got {atoms}")
        return low + np.minimum((uniform * (high - low + 1)).astype(np.int64), high - low)

    def _fixed(self, core: Encoded, sizes: np.ndarray) -> FixedPart:
        """The core as the first atoms of molecules with `sizes` atoms in all."""
        known, n_core = [], len(core.atoms)
        for n in sizes:
            atoms = np.zeros((n, core.atoms.shape[1]), dtype=np.int64)
            positions = np.zeros((n, 3))
            bonds = np.full((n, n), self.vocabulary.bonds.values.index(NO_BOND), dtype=np.int8)
            atoms[:n_core], positions[:n_core], bonds[:n_core, :n_core] = (
                core.atoms,
                core.positions,
                core.bonds,
            )
            known.append(Encoded(atoms, positions, bonds))
        batch = collate(known, self.dtype).to(self.device)
        return FixedPart(batch, batch.layout.local < n_core)
