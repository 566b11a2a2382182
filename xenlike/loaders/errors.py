"""What a loader raises. Owns ``LoadError``; everything below ``xenlike.loaders`` raises it for whatever a file holds."""

from __future__ import annotations

__all__ = ["LoadError", "shown"]


class LoadError(Exception):
    """A file cannot be used as what the configuration says it is.

    Attributes: ``file`` (its path, "" where only the caller knows it), ``field`` (what in the file is wrong: a header's field, a
    note's name), ``message`` (what is wrong with it, with the value) and ``hint`` (what to do). ``str()`` is all of them in a line.
    """

    def __init__(self, message: str, *, field: str = "", hint: str = "", file: str = "") -> None:
        super().__init__(message)
        self.message, self.field, self.hint, self.file = message, field, hint, file

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.file and f"'{self.file}'", self.field) if part)
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


def shown(text: str, limit: int = 60) -> str:
    """``text`` from a file in quotes for a message: escaped, and not too long."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")
