"""``xenlike new NAME``: the start of somebody's guest.

Owns the project skeleton: the templates in ``skeleton/`` (for guests in Python) and ``skeleton/c/``, and the rules for names and
places. Called by the command of that name. A template's file name and text may contain ``$name`` (the domain) and ``$classname`` (the
guest's class); ``$$`` stands for a dollar sign; a trailing ``.in`` keeps test collectors and linters off and is dropped.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

from .errors import SpecError, ToolstackError, did_you_mean, show
from .values import parse_domain_name


class Language(NamedTuple):
    """Templates: their folder below ``skeleton/``, the files in the order in which to read them; and what builds the guest."""

    folder: str
    files: tuple[str, ...]
    build: str = ""


LANGUAGES = {
    "python": Language("", ("README.md.in", "guest.py.in", "$name.cfg.in", "test_guest.py.in")),
    "c": Language("c", ("README.md.in", "guest.c.in", "Makefile.in", "$name.cfg.in", "test_guest.py.in", ".gitignore.in"), "make"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class SkeletonError(ToolstackError):
    """A project cannot be written: the name is not usable, or the place is taken."""


def class_name(name: str) -> str:
    """The guest's class for a project ``name``: ``web-server`` gives ``WebServer``."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))


def create_skeleton(name: str, directory: str | os.PathLike[str] | None = None, lang: str = "python") -> list[Path]:
    """Write a runnable guest project for a domain called ``name``.

    ``directory`` is the project's own directory (``name`` in the current one if None); it is made, with its parents,
    and may exist only if it is empty. ``lang`` is one of ``LANGUAGES``. Returns the files written, in the order in which to read
    them. Raises ``SkeletonError``, in which case nothing has been written.
    """
    _check_name(name)
    if lang not in LANGUAGES:
        raise SkeletonError(f"unknown language {show(lang)} ({did_you_mean(lang, LANGUAGES) or ' or '.join(LANGUAGES)})")
    target = Path(name if directory is None else directory)
    names = {"name": name, "classname": class_name(name)}
    project = [(target / Template(file).substitute(names), Template(text).substitute(names))
               for file, text in _templates(lang)]
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise SkeletonError(f"directory {show(str(target))} is not empty; name another place, or empty it")
        for path, text in project:
            with open(path, "x", encoding="utf-8") as file:     # never over something that came in between
                file.write(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SkeletonError(f"directory {show(str(target))} cannot be used: {reason}") from None
    return [path for path, _ in project]


def _check_name(name: str) -> None:
    """The name becomes a domain, a file and a Python class, so it may be less than a domain's name may."""
    try:
        parse_domain_name(name)
    except SpecError as error:
        raise SkeletonError(str(error)) from None
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise SkeletonError(f"{show(name)} cannot be a project's name (a letter, then up to 63 letters, digits, "
                            "'-', '_' or '.', such as web-server)")


def _templates(lang: str) -> list[tuple[str, str]]:
    """File name and text of each template, both still with their placeholders."""
    folder = resources.files(__package__) / "skeleton" / LANGUAGES[lang].folder
    return [(file.removesuffix(".in"), (folder / file).read_text(encoding="utf-8")) for file in LANGUAGES[lang].files]
