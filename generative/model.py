"""EQGAT-diff as a whole: network, vocabulary and noise process; draws molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.errors import UserError
from ..datasets.loader import Budget, plan_batches
from ..datasets.structure import Structure
from ..training.config import from_dict, option
from .conditions import Conditions
from .diffusion import Diffusion, DiffusionConfig
from .eqgat import PRESETS, Eqgat, EqgatConfig, Prediction
from .estimate import channel_numbers, estimate_channels
from .hydrogens import implicit_hydrogens
from .molecules import Encoded, Molecules, collate, count_edges, decode, encode
from .pocket import EncodedPocket, PocketFacts
from .sampler import FixedPart, Guide, SamplerOptions, sample
from .streams import Streams
from .valence_guides import LargestValences, OpenValences
from .valences import ValenceTable
from .vocabulary import NO_BOND, Vocabulary

MAX_EDGES = {
    "cpu": 10_000,
    "cuda": 60_000,
}  # ordered pairs of atoms at a time: what fits a CPU's cache, fills a GPU


@dataclass(frozen=True)
class EqgatDiffConfig:
    """Network and noise process of EQGAT-diff."""

    network: EqgatConfig = option(EqgatConfig(), "size of the network")
    diffusion: DiffusionConfig = option(DiffusionConfig(), "the noise")
    self_conditioning: bool = option(
        False, "the network also sees its last estimate, and counts of bonds; published: false"
    )


class Settings(TypedDict, total=False):
    """Keywords of :meth:`EqgatDiff.sample`, which says what they mean."""

    atoms: int | tuple[int, int] | None
    seed: int
    options: SamplerOptions | None
    fixed: Structure | None
    properties: Mapping[str, float] | None
    pocket: Structure | None
    max_edges: int | None
    first: int
    guide: Guide | None
    callback: Callable[[Molecules, int], None] | None


class EqgatDiff(nn.Module):
    """A generator of molecules with elements, charges, bonds and coordinates.

    Args:
        config: sizes and noise.
        vocabulary: what its data consist of.
        conditions: properties that steer it, if any.
        pockets: what it knows of pockets, if it draws molecules inside pockets.
    """

    architecture: ClassVar[str] = "eqgat-diff"
    card: dict[str, Any]

    def __init__(
        self,
        config: EqgatDiffConfig,
        vocabulary: Vocabulary,
        *,
        conditions: Conditions | None = None,
        pockets: PocketFacts | None = None,
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.card = config, vocabulary, {}
        self.conditions, self.pockets = conditions, pockets
        classes = [len(c) for c in vocabulary.atoms.values()]
        self.network = Eqgat(
            config.network,
            classes,
            len(vocabulary.bonds),
            further=channel_numbers(sum(classes), len(vocabulary.bonds)) if config.self_conditioning else (0, 0),
            context=0 if conditions is None else len(conditions.names),
            pocket_classes=0 if pockets is None else pockets.n_classes,
        )
        self._diffusion = Diffusion(config.diffusion, vocabulary)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        vocabulary: Vocabulary,
        *,
        conditions: Conditions | None = None,
        pockets: PocketFacts | None = None,
    ) -> EqgatDiff:
        """From plain data; `preset` names a size of the network, further keys change it.

        Raises:
            ConfigError: unknown keys or presets.
        """
        plain = dict(config)
        preset = plain.pop("preset", "default")
        if preset not in PRESETS:
            raise UserError(f"model.config: no preset is called {preset!r}; there are {', '.join(PRESETS)}")
        base = EqgatDiffConfig(network=PRESETS[preset])
        full = from_dict(EqgatDiffConfig, plain, where="model.config", base=base)
        return cls(full, vocabulary, conditions=conditions, pockets=pockets)

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
        if self.config.self_conditioning:
            of_atoms, of_bonds = estimate_channels(noisy, atoms, bonds)
            atoms, bonds = torch.cat([atoms, of_atoms], 1), torch.cat([bonds, of_bonds], 1)
        given = {"time": t / self.config.diffusion.steps, "context": noisy.context}
        pockets = noisy.pockets
        if pockets is None:
            found: Prediction = self.network(noisy.layout, atoms=atoms, bonds=bonds, positions=noisy.positions, **given)
        else:
            graph = pockets.graph(noisy.positions)
            classes = torch.nn.functional.one_hot(pockets.classes, self.network.pocket_in.in_features)
            edges = bonds.new_zeros(len(graph.edge_index[0]), bonds.shape[1])
            edges[graph.between] = bonds
            found = self.network(
                graph,
                atoms=pockets.spread(atoms),
                bonds=edges,
                positions=pockets.spread(noisy.positions, pockets.positions),
                pocket=pockets.spread(atoms.new_zeros(len(atoms), classes.shape[1]), classes),
                **given,
            )
            place = pockets.ligand
            found = Prediction(found.positions[place], tuple(x[place] for x in found.atoms), found.bonds)
        return found._replace(positions=self.diffusion.clean_positions(noisy, found.positions, t))

    def sample(self, n: int, **settings: Unpack[Settings]) -> list[Structure]:
        """Draw `n` molecules; molecule k of a seed is the same whatever `n` and `max_edges` are.

        Args:
            atoms: number of atoms, or the least and the largest; None: as in the training data. With `fixed`:
                atoms that are added to it.
            seed: of the random numbers.
            options: number of steps, noise, resampling.
            fixed: a part that every molecule contains unchanged, as the model's data would have it (bonds; with or
                without hydrogens). It grows at its open valences: `arrays["open_valences"]`, else what its atoms lack.
            properties: values that are asked for, of a model trained with `data.condition`; those left out are drawn
                as the data have them.
            pocket: atoms around the molecules, of a model trained with pockets; the molecules lie in its frame.
            max_edges: ordered pairs of atoms computed at a time; bounds the memory. None: as suits the device.
            first: number of the first molecule, to go on with an earlier run.
            guide, callback: see :func:`.sampler.sample`; called batch by batch.

        Raises:
            UserError: sizes or steps out of range, a fixed part that the vocabulary does not cover, or a property or
                pocket that the model does not know.
        """
        drawn: dict[int, Structure] = {}
        for numbers, structures in self.batches(n, **settings):
            drawn.update(zip(numbers, structures, strict=True))
        return [drawn[k] for k in sorted(drawn)]

    def batches(
        self,
        n: int,
        *,
        atoms: int | tuple[int, int] | None = None,
        seed: int = 0,
        options: SamplerOptions | None = None,
        fixed: Structure | None = None,
        properties: Mapping[str, float] | None = None,
        pocket: Structure | None = None,
        max_edges: int | None = None,
        first: int = 0,
        guide: Guide | None = None,
        callback: Callable[[Molecules, int], None] | None = None,
    ) -> Iterator[tuple[list[int], list[Structure]]]:
        """As :meth:`sample`, batch by batch (small molecules first): numbers of the molecules, and these."""
        around = self._pocket(pocket, fixed)
        core = None if fixed is None else encode(fixed, self.vocabulary, "the fixed part")
        room = None if fixed is None else self._open_valences(fixed)
        numbers = np.arange(first, first + n)
        sizes = self._sizes(numbers, seed, atoms, around) + (0 if core is None else len(core.atoms))
        values = self._values(numbers, seed, sizes, properties or {})
        order = np.argsort(sizes, kind="stable")
        edges = np.array([count_edges(int(k), around) for k in sizes[order]], dtype=np.int64)
        wanted = MAX_EDGES.get(self.device.type, MAX_EDGES["cuda"]) if max_edges is None else max_edges
        limit = max(wanted, int(edges.max(initial=1)))
        guides: list[Guide] = [] if guide is None else [guide]
        if self.bounded(options):
            largest = ValenceTable.from_dict(self.card["valences"]).largest()
            guides.append(LargestValences(largest, self.vocabulary, self.device))
        was_training = self.training
        self.eval()
        try:
            table = np.stack([sizes[order], edges], 1)
            for chosen in plan_batches(table, Budget(max_edges=limit), shuffle=False, seed=0, epoch=0):
                members = order[chosen]
                molecules = sample(
                    self,
                    self.diffusion,
                    torch.from_numpy(sizes[members]).to(self.device),
                    seed=seed,
                    numbers=torch.from_numpy(members + first).to(self.device),
                    options=options,
                    fixed=None if core is None else self._fixed(core, sizes[members], room),
                    guides=guides,
                    callback=callback,
                    context=None if values is None else self._context(values[members]),
                    pockets=() if around is None else [around] * len(members),
                    dtype=self.dtype,
                )
                structures = decode(molecules, self.vocabulary)
                self._note(structures, None if values is None else values[members], pocket)
                yield (members + first).tolist(), structures
        finally:
            self.train(was_training)

    def bounded(self, options: SamplerOptions | None) -> bool:
        """Whether bonds stay within the largest valences of the training data, which a trained model brings along."""
        return "valences" in self.card and not (options and options.free_valences)

    def _pocket(self, pocket: Structure | None, fixed: Structure | None) -> EncodedPocket | None:
        if (pocket is None) != (self.pockets is None):
            knows = "without pockets: leave the pocket away" if self.pockets is None else "in pockets: give one"
            raise UserError(f"this model was trained on molecules {knows}")
        if pocket is None or self.pockets is None:
            return None
        if fixed is not None:
            raise UserError("a fixed part inside a pocket is not possible yet")
        return self.pockets.encode(pocket)

    def _sizes(
        self,
        numbers: np.ndarray,
        seed: int,
        atoms: int | tuple[int, int] | None,
        pocket: EncodedPocket | None,
    ) -> np.ndarray:
        """Numbers of atoms of the molecules `numbers`, which depend on seed and number alone."""
        uniform = _uniform(seed, numbers, -1)
        if atoms is None and pocket is not None and self.pockets is not None:
            return self.pockets.draw_sizes(len(pocket.classes), uniform)
        if atoms is None:
            return self.vocabulary.draw_sizes(uniform)
        low, high = (atoms, atoms) if isinstance(atoms, int) else atoms
        if not 1 <= low <= high:
            raise UserError(f"atoms must be a number >= 1 or a range low-high, got {atoms}")
        return low + np.minimum((uniform * (high - low + 1)).astype(np.int64), high - low)

    def _values(
        self, numbers: np.ndarray, seed: int, sizes: np.ndarray, given: Mapping[str, float]
    ) -> np.ndarray | None:
        """Properties ``(n, C)`` of the molecules `numbers`, in the units of the data."""
        if self.conditions is None:
            if given:
                raise UserError("this model was trained without properties: it cannot aim at any")
            return None
        self.conditions.check(given)
        return self.conditions.draw(sizes, _uniform(seed, numbers, -2), given)

    def _context(self, values: np.ndarray) -> Tensor | None:
        if self.conditions is None:
            return None
        return torch.from_numpy(self.conditions.standardised(values)).to(self.device, self.dtype)

    def _note(self, structures: list[Structure], values: np.ndarray | None, pocket: Structure | None) -> None:
        """Write the values that were asked for to `info`, and go back to the frame of the pocket."""
        for k, structure in enumerate(structures):
            if values is not None and self.conditions is not None:
                wanted = zip(self.conditions.names, values[k].tolist(), strict=True)
                structure.info.update({f"wanted_{name}": value for name, value in wanted})
            if pocket is not None:
                structure.positions += pocket.positions.mean(0)

    def _open_valences(self, fixed: Structure) -> OpenValences:
        room = fixed.arrays.get("open_valences")
        if room is None:
            room = implicit_hydrogens(fixed)
        return OpenValences(torch.as_tensor(room, device=self.device), self.vocabulary.bonds.values)

    def _fixed(self, core: Encoded, sizes: np.ndarray, room: OpenValences | None) -> FixedPart:
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
        return FixedPart(batch, batch.layout.local < n_core, room)


def _uniform(seed: int, numbers: np.ndarray, counter: int) -> np.ndarray:
    """A number in (0, 1) for each molecule, from its own stream; no atom has a negative `counter`."""
    streams = Streams(seed, torch.from_numpy(numbers.astype(np.int64)))
    index = torch.arange(len(numbers))
    return streams.uniform(index, torch.full_like(index, counter)).numpy()
