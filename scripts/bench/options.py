"""What the command lines of the benchmarks share: names in lists, words about the progress."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable

from ...datasets.errors import UserError


def names(option: str, words: Iterable[str], known: Collection[str]) -> list[str]:
    """The words without repeats and empty ones.

    Raises:
        UserError: a word that is not known.
    """
    found = [name for name in dict.fromkeys(words) if name]
    if unknown := sorted(set(found) - set(known)):
        raise UserError(f"{option}: nothing is called {', '.join(unknown)}; there are {', '.join(known)}")
    return found


def say(text: str) -> None:
    """A line about the progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
