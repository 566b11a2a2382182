"""``key=value,flag,...`` specification strings and the files they name.

Owns what the device specifications of xl have in common. Called by ``disk``, ``vif`` and ``config``. Pure but for
``existing_path``, which looks whether a file is there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from .errors import SpecError, did_you_mean, show


class Param(NamedTuple):
    """One parameter of a specification: its meaning for the documentation, and whether xenlike acts on it."""

    doc: str
    used: bool = True
    flag: bool = False      # stands alone, without a value


def unknown_parameter(name: str, known: Collection[str]) -> SpecError:
    """The error for a parameter that is not in ``known``."""
    return SpecError(f"unknown parameter {show(name)}",
                     hint=did_you_mean(name, known) or "known are " + ", ".join(sorted(known)))


def parse_pairs(spec: str, params: dict[str, Param]) -> dict[str, str]:
    """The parameters of ``spec``, a comma-separated list of ``key=value`` and flags, each at most once.

    White space around keys and values is dropped, as are empty places between commas. A flag's value is ``""``.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, spec.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in params:
            if not equals:
                raise SpecError(f"{show(part)} is no key=value pair in {show(spec)}",
                                hint=did_you_mean(name, params) or f"for example {next(iter(params))}=...")
            raise unknown_parameter(name, params)
        if params[name].flag == bool(equals):
            raise SpecError(f"{name} takes no value" if equals else f"{name} needs a value: {name}=...")
        if name in found:
            raise SpecError(f"{name} is given twice in {show(spec)}")
        found[name] = value
    return found


def one_of(value: str, choices: Collection[str], what: str) -> str:
    """``value`` if it is one of ``choices``; ``what`` names it in the error."""
    if value not in choices:
        raise SpecError(f"unknown {what} {show(value)}",
                        hint=did_you_mean(value, choices) or "one of " + ", ".join(choices))
    return value


def absolute(text: str, directory: str) -> str:
    """The absolute path that ``text`` means in a configuration file that lies in ``directory``."""
    return os.path.abspath(os.path.join(directory, text))


def existing_path(text: str, directory: str, *, kind: str = "file", write: bool = False) -> str:
    """The absolute path of ``text``, which must exist: a ``"file"`` (or device), or a ``"directory"``.

    ``write`` asks also that this process may write it. ``directory`` is that of the configuration file.
    """
    path = absolute(text, directory)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(f"{kind} {show(text)} does not exist", hint=None if os.path.isabs(text) else
                        "paths are relative to the config file") from None
    except OSError as error:
        raise SpecError(f"{kind} {show(text)} cannot be used: {error.strerror}") from None
    except ValueError:
        raise SpecError(f"{show(text)} cannot be the name of a {kind}") from None
    if stat.S_ISDIR(mode) != (kind == "directory"):
        raise SpecError(f"{show(text)} is {'a directory' if stat.S_ISDIR(mode) else 'no directory'}")
    if not os.access(path, os.R_OK | (os.W_OK if write else 0)):
        raise SpecError(f"{kind} {show(text)} may not be {'written' if os.access(path, os.R_OK) else 'read'} "
                        "by this user", hint="access=ro makes a disk read-only" if write else None)
    return path
