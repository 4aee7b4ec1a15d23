"""What every Hamiltonian network is to the rest of the room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...datasets.errors import UserError
from .expansion import Expansion
from .layout import Blocks, OrbitalLayout
from .molecules import Molecules
from .pair import PAIRS_AT_ONCE, PairInteraction, Pairs

TARGETS = ("delta", "full", "orthogonal")


class HamiltonianModel(nn.Module):
    """A network from molecules to the blocks of their Fock matrix, in Hartree.

    Args:
        config: hyper-parameters, an instance of `Config`.
        layout: orbitals of the elements that the model knows.
        target: "delta": the network makes the difference to the Fock matrix of the minao guess; "full": the matrix;
            "orthogonal": S^(-1/2) times the difference times S^(-1/2), see `targets`.

    Attributes:
        architecture: name in configs and checkpoints.
        Config: class of the hyper-parameters, a frozen dataclass.
        card: header of the checkpoint that the model was loaded from.
        scales: ``(2,)`` Hartree; factors of the diagonal blocks and of the others, for instance the root mean squares
            of the training data. Not trained.
    """

    architecture: ClassVar[str]
    Config: ClassVar[type]
    scales: Tensor

    def __init__(self, config: Any, layout: OrbitalLayout, target: str = "delta"):
        super().__init__()
        if target not in TARGETS:
            raise UserError(f"the target of a Hamiltonian model is one of {', '.join(TARGETS)}, got {target!r}")
        self.config, self.layout, self.target = config, layout, target
        self.card: dict[str, Any] = {}
        self.register_buffer("scales", torch.ones(2))

    def forward(self, molecules: Molecules) -> Blocks:
        """Diagonal ``(N, B, B)``, symmetric, and lower ``(P, B, B)`` blocks; padding holds no meaning.

        Raises:
            UserError: an element that the model does not know.
        """
        self.layout.require(molecules.numbers.unique().tolist())
        blocks = self.blocks(molecules)
        return Blocks(blocks.diagonal * self.scales[0], blocks.lower * self.scales[1])

    def blocks(self, molecules: Molecules) -> Blocks:
        """`forward` before the scales."""
        raise NotImplementedError

    def start_step(self, step: int) -> None:
        """Prepare for an optimiser step; ``step``: number of finished ones. Models without a schedule do nothing."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def header(self) -> dict[str, Any]:
        """What `from_header` needs to build the model again, without its weights."""
        return {
            "architecture": self.architecture,
            "config": asdict(self.config),
            "layout": self.layout.header(),
            "target": self.target,
        }

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> HamiltonianModel:
        """A fresh model from `header`.

        Raises:
            UserError: a hyper-parameter that this version does not know.
        """
        layout = OrbitalLayout.from_header(header["layout"])
        return cls(cls.make_config(header["config"]), layout, header["target"])

    @classmethod
    def make_config(cls, values: Mapping[str, Any]) -> Any:
        """Hyper-parameters from plain values; "preset" names the preset that the others change.

        Raises:
            UserError: unknown preset or hyper-parameter.
        """
        from difflib import get_close_matches

        given = dict(values)
        presets = cls.presets()
        name = given.pop("preset", None)
        if name is not None and name not in presets:
            raise UserError(f"{cls.architecture} has no preset {name!r}; there are {', '.join(presets)}")
        known = [f.name for f in fields(cls.Config)]
        for key in given:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
                raise UserError(f"{cls.architecture} has no hyper-parameter {key!r}{hint}")
        return cls.Config(**(asdict(presets[name]) if name is not None else {}) | given)

    @classmethod
    def presets(cls) -> Mapping[str, Any]:
        """Named hyper-parameters."""
        raise NotImplementedError


def evaluate_pairs(
    layers: nn.ModuleList, features: Sequence[Tensor], pairs: Pairs, radial: Tensor
) -> Iterator[tuple[Pairs, list[Tensor]]]:
    """Features of the blocks of pairs after all pair layers: of all pairs, or in parts where nothing is recorded.

    Args:
        layers: `PairInteraction` layers, each on top of the one before.
        features: ``(N, (L+1)^2, C)`` features of atoms that every layer reads.
        pairs: all pairs.
        radial: ``(P, n)`` radial functions.

    Yields:
        The pairs, and the features ``(Q, (L+1)^2, C)`` of their blocks.
    """
    chain = [layer for layer in layers if isinstance(layer, PairInteraction)]
    prepared = [layer.prepare(x, pairs) for layer, x in zip(chain, features, strict=True)]
    size = len(pairs.lengths) if torch.is_grad_enabled() else PAIRS_AT_ONCE
    for chosen, blocks, part in pairs.slices(max(size, 1)):
        found: list[Tensor] = []
        for layer, ready in zip(chain, prepared, strict=True):
            found = layer(layer.part(ready, chosen, blocks), part, radial[chosen], found)
        yield part, found


def no_blocks(molecules: Molecules, expansion: Expansion) -> Tensor:
    """Blocks of no pairs, for molecules of one atom."""
    return molecules.positions.new_zeros(0, expansion.size, expansion.size)
