"""What is said when a configuration is wrong.

Owns the error and warning types of the toolstack's parsers and the few helpers that word them. Called by every
module of ``xenlike.toolstack``; the shell prints them and puts the program's name in front (``xenlike: `` or
``xl: ``), which is why it is not part of the text here.

Two levels: a parser of one value (a disk specification, a size, a CPU list) knows nothing of files and raises
``SpecError``; the configuration reader knows where the value stood and turns it into ``ConfigError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Location(NamedTuple):
    """Where a value was written: file as the user named it, line and column from 1; line 0 means there is no line."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def _sentence(where: Location | None, key: str | None, message: str, hint: str | None, label: str = "") -> str:
    parts = [str(where) if where else None, label or None, key, message]
    return ": ".join(part for part in parts if part) + (f" ({hint})" if hint else "")


class ToolstackError(Exception):
    """Base of the errors that the toolstack raises about what it was asked to do."""


class SpecError(ToolstackError, ValueError):
    """One value cannot be what it should be.

    ``message`` says what is wrong with it, ``hint`` what to write instead, ``where`` the place of the offending item
    if a reader of files has filled it in.
    """

    def __init__(self, message: str, *, hint: str | None = None, where: Location | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.where = message, hint, where

    def __str__(self) -> str:
        return _sentence(self.where, None, self.message, self.hint)


class ConfigError(ToolstackError, ValueError):
    """A configuration file cannot be used.

    ``file``, ``line``, ``column`` (None where there is none), ``key``, ``message`` and ``hint`` hold the parts;
    ``str()`` is one line, ``web.cfg:7: disk: file 'root.img' does not exist (paths are relative to the config file)``.
    """

    def __init__(self, where: Location, key: str | None, message: str, *, hint: str | None = None) -> None:
        super().__init__(where, key, message, hint)
        self.where, self.key, self.message, self.hint = where, key, message, hint

    def __reduce__(self) -> tuple:
        return _rebuild, (self.where, self.key, self.message, self.hint)    # hint is keyword-only: spell out pickling

    @property
    def file(self) -> str:
        return self.where.file

    @property
    def line(self) -> int | None:
        return self.where.line or None

    @property
    def column(self) -> int | None:
        return self.where.column or None

    def __str__(self) -> str:
        return _sentence(self.where, self.key, self.message, self.hint)


def _rebuild(where: Location, key: str | None, message: str, hint: str | None) -> ConfigError:
    return ConfigError(where, key, message, hint=hint)


class ConfigWarning(NamedTuple):
    """Something in a configuration that is taken, but probably not as its author meant it."""

    where: Location
    key: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        return _sentence(self.where, self.key, self.message, self.hint, label="warning")


def show(text: str, *, limit: int = 60) -> str:
    """``text`` in quotes for a message, with what cannot be printed escaped and a long middle left out."""
    if len(text) > limit:
        text = text[: limit - 20] + "..." + text[-17:]
    return repr(text)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint ``did you mean 'vcpus'?`` when ``word`` is close to one of ``known``, else None."""
    if len(word) > 64:      # nobody's slip of the finger, and matching is quadratic
        return None
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean '{match[0]}'?" if match else None
