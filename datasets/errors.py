"""Errors that are the user's to mend; the command line prints them as one line and exits with 2."""

from __future__ import annotations


class UserError(ValueError):
    """What is wrong, where (file, frame, field) and how to mend it. Anything else raised is our own fault."""


class DataError(UserError):
    """A data file or a structure that cannot be used as it is; `where` (file, frame) leads the message."""

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(f"{where}: {text}" if where else text)
