"""From noise to molecules: any number of network calls, fixed parts, guidance, recorded paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..datasets.errors import UserError
from .diffusion import Diffusion
from .eqgat import Prediction
from .layout import Layout
from .molecules import Molecules
from .pocket import EncodedPocket, Pockets
from .schedule import strided_times
from .streams import Streams
from .valence_guides import OpenValences

Denoiser = Callable[[Molecules, Tensor], Prediction]
"""x_t and the times ``(G,)`` of its molecules to the prediction of x_0."""

Guide = Callable[[Prediction, Molecules, int], Prediction]
"""Changes a prediction, given x_t and t: gradients of a property, constraints, …"""

CERTAIN = 1e4  # logit of a class that is given


@dataclass(frozen=True)
class SamplerOptions:
    """How molecules are drawn.

    calls: network calls (None: one per noise level). eta: 1 ancestral, 0 deterministic coordinates.
    resample: rounds per step, going back into the noise in between; helps a fixed part and its surroundings to agree.
    likeliest: the last step takes the likeliest classes; published: they are drawn.
    temperature: divides the logits of classes; below 1 the unlikely ones, which few steps cannot mend, come up less.
    free_valences: atoms may get more bonds than any of their kind has in the training data (published).

    Raises:
        UserError: values out of range.
    """

    calls: int | None = None
    eta: float = 1.0
    resample: int = 1
    likeliest: bool = False
    temperature: float = 1.0
    free_valences: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.resample < 1 or (self.calls is not None and self.calls < 1):
            raise UserError(f"sampling needs eta in [0, 1], resample >= 1 and steps >= 1, got {self}")
        if not self.temperature > 0:
            raise UserError(f"sampling needs a temperature > 0, got {self.temperature:g} (0.5 to 1 is useful)")


@dataclass
class Recorder:
    """A callback that keeps x_t every `every` steps, the last included."""

    every: int = 1
    times: list[int] = field(default_factory=list)
    frames: list[Molecules] = field(default_factory=list)
    seen: int = 0

    def __call__(self, molecules: Molecules, s: int) -> None:
        if self.seen % self.every == 0 or s == 0:
            self.times.append(s)
            self.frames.append(molecules.to("cpu"))
        self.seen += 1


class FixedPart:
    """A guide that holds some atoms of each molecule, and the bonds among them, at given values.

    Their prediction is replaced by what is known, so that each step draws them from their exact posterior: the same
    distribution as noising the known part anew. The known part keeps its shape and orientation; its place follows
    the mean of the network's prediction for these atoms.

    Args:
        known: the batch with the known values; those of free atoms do not matter.
        fixed: ``(N,)`` bool, the atoms that are given.
        open_valences: bounds their bonds to the free atoms; None: whatever the network says.
    """

    def __init__(self, known: Molecules, fixed: Tensor, open_valences: OpenValences | None = None) -> None:
        layout = known.layout
        source, target = layout.edge_index[:, layout.pairs]
        self.known, self.fixed, self.open_valences = known, fixed, open_valences
        self.fixed_pairs = fixed[source] & fixed[target]
        self.bonds = known.bonds[layout.pairs]
        self.counts = torch.zeros_like(layout.n_atoms).index_add(0, layout.batch, fixed.long())

    def __call__(self, prediction: Prediction, noisy: Molecules, t: int) -> Prediction:
        layout = self.known.layout
        if self.open_valences is not None:
            prediction = self.open_valences(prediction, noisy, t)
        atoms = tuple(_given(logits, self.known.atoms[:, k], self.fixed) for k, logits in enumerate(prediction.atoms))
        bonds = _given(prediction.bonds, self.bonds, self.fixed_pairs)
        positions = self.placed(prediction.positions)
        return Prediction(layout.centred(positions), atoms, bonds)

    def placed(self, positions: Tensor) -> Tensor:
        """`positions` ``(N, 3)`` with the fixed atoms in their known shape around their present mean."""
        layout, fixed = self.known.layout, self.fixed.unsqueeze(1)
        known = self.known.positions.to(positions.dtype)
        difference = torch.where(fixed, positions - known, torch.zeros_like(known))
        total = torch.zeros_like(positions[: layout.n_molecules]).index_add(0, layout.batch, difference)
        shift = total / self.counts.clamp(min=1).unsqueeze(1).to(total.dtype)
        return torch.where(fixed, known + shift[layout.batch], positions)

    def exactly(self, molecules: Molecules) -> Molecules:
        """The finished molecules with the fixed part exactly as given, without the last noise."""
        layout = molecules.layout
        atoms = torch.where(self.fixed.unsqueeze(1), self.known.atoms, molecules.atoms)
        bonds = torch.where(self.fixed_pairs, self.bonds, molecules.bonds[layout.pairs])
        positions = self.placed(molecules.positions)
        return replace(molecules, atoms=atoms, bonds=layout.both_ways(bonds), positions=positions)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    diffusion: Diffusion,
    n_atoms: Tensor,
    *,
    seed: int,
    numbers: Tensor | None = None,
    options: SamplerOptions | None = None,
    fixed: FixedPart | None = None,
    guides: Sequence[Guide] = (),
    callback: Callable[[Molecules, int], None] | None = None,
    context: Tensor | None = None,
    pockets: Sequence[EncodedPocket] = (),
    dtype: torch.dtype = torch.float32,
) -> Molecules:
    """Draw one batch of molecules; each depends on seed and its number alone, not on the batch it is in.

    Args:
        denoiser: the network. diffusion: the noise process, on the device of `n_atoms`.
        n_atoms: ``(G,)`` int64 atoms of each molecule.
        seed, numbers: `numbers` ``(G,)`` names the random stream of each molecule; None counts from 0.
        options: steps and noise.
        fixed: atoms that are given. guides: change predictions one after the other, before `fixed` does.
        callback: called with x_s (classes as integers) and s after the start (s = T) and each step.
        context: ``(G, C)`` standardised properties. pockets: one for each molecule, or none at all.

    Raises:
        UserError: more calls than noise levels.
    """
    options = options or SamplerOptions()
    steps = diffusion.config.steps
    try:
        times = strided_times(steps, options.calls or steps)
    except ValueError:
        raise UserError(f"the model has {steps} noise levels: ask for 1..{steps} steps") from None
    layout = Layout.of(n_atoms)
    if numbers is None:
        numbers = torch.arange(len(n_atoms), device=n_atoms.device)
    streams = Streams(seed, numbers)
    around = Pockets.around(layout, pockets, dtype) if pockets else None
    state = diffusion.prior(layout, streams, dtype, context=context, pockets=around)
    _tell(callback, diffusion, state, steps)
    changes: list[Guide] = [*guides, *([] if fixed is None else [fixed])]
    for t, s in pairwise(times):
        for repeat in range(options.resample if s else 1):
            if repeat:
                state = diffusion.again(state, streams, t=t, s=s)
            prediction = _sharpened(denoiser(state, torch.full_like(n_atoms, t)), options.temperature)
            for change in changes:
                prediction = change(prediction, state, t)
            last = options.likeliest and s == 0
            state = replace(state, estimate=prediction)
            state = diffusion.step(state, prediction, streams, t=t, s=s, eta=options.eta, likeliest=last)
        _tell(callback, diffusion, state, s)
    state = diffusion.classes(state)
    return state if fixed is None else fixed.exactly(state)


def _sharpened(prediction: Prediction, temperature: float) -> Prediction:
    if temperature == 1.0:
        return prediction
    atoms = tuple(logits / temperature for logits in prediction.atoms)
    return prediction._replace(atoms=atoms, bonds=prediction.bonds / temperature)


def _given(logits: Tensor, classes: Tensor, fixed: Tensor) -> Tensor:
    """Logits with certainty for the given classes where `fixed`."""
    certain = CERTAIN * torch.nn.functional.one_hot(classes, logits.shape[-1]).to(logits.dtype)
    return torch.where(fixed.unsqueeze(-1), certain, logits)


def _tell(callback: Callable[[Molecules, int], None] | None, diffusion: Diffusion, state: Molecules, s: int) -> None:
    if callback is not None:
        callback(diffusion.classes(state), s)
