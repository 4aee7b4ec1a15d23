"""What a loader draws from: a sequence of structures whose sizes are known without reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from .errors import DataError
from .structure import Structure


class Source(Sequence[Structure]):
    """A sequence of structures with random access; picklable, so that worker processes can open it again.

    Sub-classes give `n_atoms` `(len,)` int64 and `frame(i)` for 0 <= i < len; a slice gives a `Subset`.
    """

    name: str = ""

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame, `(len,)` int64."""
        raise NotImplementedError

    def frame(self, index: int) -> Structure:
        """Read one frame."""
        raise NotImplementedError

    def frames(self, start: int, stop: int) -> list[Structure]:
        """Read consecutive frames (sub-classes may do this in one go)."""
        return [self.frame(i) for i in range(start, stop)]

    def where(self, index: int) -> str:
        """File and frame, for messages."""
        return f"{self.name}, frame {index}"

    def __len__(self) -> int:
        return len(self.n_atoms)

    @overload
    def __getitem__(self, index: int) -> Structure: ...
    @overload
    def __getitem__(self, index: slice) -> Source: ...
    def __getitem__(self, index: int | slice) -> Structure | Source:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.name or 'source'} has {len(self)} frames, frame {number} was asked")
        return self.frame(number % len(self))

    def __iter__(self) -> Iterator[Structure]:
        block = 256
        for start in range(0, len(self), block):
            yield from self.frames(start, min(start + block, len(self)))


class MemorySource(Source):
    """A list of structures."""

    def __init__(self, structures: Sequence[Structure], name: str = "") -> None:
        self.name = name
        self._structures = list(structures)
        self._n_atoms = np.array([s.n_atoms for s in self._structures], dtype=np.int64)

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame."""
        return self._n_atoms

    def frame(self, index: int) -> Structure:
        """The structure itself, not a copy."""
        return self._structures[index]


class Subset(Source):
    """The frames `indices` of another source, in that order (a split, a slice)."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.name = source, source.name
        self.indices = np.asarray(indices, dtype=np.int64)
        if len(self.indices) and not (0 <= self.indices.min() and self.indices.max() < len(source)):
            raise DataError(f"frames {self.indices.min()}..{self.indices.max()} asked of {len(source)}", source.name)

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every chosen frame."""
        return self.source.n_atoms[self.indices]

    def frame(self, index: int) -> Structure:
        """Read one frame."""
        return self.source.frame(int(self.indices[index]))

    def where(self, index: int) -> str:
        """File and frame in the file, for messages."""
        return self.source.where(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)


class Concatenated(Source):
    """Several sources one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = ", ".join(source.name for source in self.sources)
        self._starts = np.cumsum([0, *(len(source) for source in self.sources)])

    @property
    def n_atoms(self) -> np.ndarray:
        """Number of atoms of every frame."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(source.n_atoms for source in self.sources)])

    def _locate(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[part], index - int(self._starts[part])

    def frame(self, index: int) -> Structure:
        """Read one frame."""
        source, local = self._locate(index)
        return source.frame(local)

    def where(self, index: int) -> str:
        """File and frame in that file, for messages."""
        source, local = self._locate(index)
        return source.where(local)

    def __iter__(self) -> Iterator[Structure]:
        for source in self.sources:
            yield from source

    def __len__(self) -> int:
        return int(self._starts[-1])
