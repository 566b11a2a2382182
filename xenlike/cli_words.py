"""What ``xenlike run`` and ``xenlike bt`` take alike: configurations, images and ``key=value`` words, clock, seed, numbers; and the host they ask for.

Owns: which word is a file and which a setting, how a file that is neither image nor configuration is refused, what the environment may say of
the engine. Called by: ``cli_run``, ``cli_bt``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from xenlike import translation
from xenlike.cli import Failure
from xenlike.loaders.image import is_pc_file, looks_like_image
from xenlike.toolstack import ConfigError, DomainConfig, check_supported, image_config, load_config, name_for

__all__ = ["check_environment", "common_arguments", "count", "load", "note", "number", "seconds", "split"]

_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*\+?=")     # a word that is a setting, not a file


def common_arguments(parser: argparse.ArgumentParser, *, words: str, clock: str, clock_help: str, quiet: str) -> None:
    """Declares what both commands take; ``clock`` is the default one, the rest is for the help."""
    add = parser.add_argument
    add("words", nargs="*", metavar="CFG|IMAGE|key=value", help=words)
    add("--clock", choices=("real", "virtual"), default=clock, help=clock_help)
    add("--seed", type=number, default=0, metavar="N", help="of everything random on the host (default: 0)")
    add("-q", "--quiet", action="store_true", help=quiet)


def number(text: str) -> int:
    """A whole number, for argparse."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def count(text: str) -> int:
    """One that is not negative, and that C can take."""
    if not 0 <= (value := number(text)) < 1 << 63:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 2^63 - 1")
    return value


def seconds(text: str) -> float:
    """A time."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def split(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(files, settings)."""
    files: list[str] = []
    settings: list[str] = []
    for word in words:
        (settings if _SETTING.match(word) else files).append(word)
    return files, settings


def load(file: str, settings: list[str], *, seed: int, quiet: bool) -> DomainConfig:
    """The configuration in ``file``, or one for the image that it is; what is odd about it is said on stderr. Raises ConfigError, Failure."""
    image = looks_like_image(file)
    try:
        config, warnings = (image_config if image else load_config)(file, settings, seed=seed)
    except ConfigError as error:
        path, _, guest = file.rpartition(":") if ":" in file else (file, "", "")
        if path.endswith(".py") and Path(path).is_file():
            raise Failure(f"{file}: a guest in Python is started by a configuration, a file with the lines name = \"{name_for(path)}\" and "
                          f"kernel = \"{path}:{guest or 'ClassName'}\" (xenlike new writes one)") from None
        if image or Path(file).suffix == ".cfg" or not Path(file).is_file():
            raise
        raise Failure(f"{file} is no kernel image, and no configuration: {error}") from None
    if not quiet:
        for warning in [*warnings, *check_supported(_of_its_type(config))]:
            note(str(warning))
    return config


def _of_its_type(config: DomainConfig) -> DomainConfig:
    """``config`` with the type that its image will have if none is given."""
    found = config.disk and "type" not in config.source and config.kernel is not None and config.kernel.kind == "image"
    return replace(config, type="hvm") if found and is_pc_file(config.kernel.path) else config      # type: ignore[union-attr]


def check_environment() -> None:
    """Raises Failure for words in the environment that mean nothing; a host would raise ValueError."""
    options, engine = (os.environ.get(f"XENLIKE_{name}", "") for name in ("BT_OPTIONS", "ENGINE"))
    if engine not in ("", "bt", "interp"):
        raise Failure(f"XENLIKE_ENGINE={engine}: only bt and interp are known")
    try:
        int(options or "0", 0)
    except ValueError:
        raise Failure(f"XENLIKE_BT_OPTIONS={options}: is not a number") from None
    try:
        translation.choose("interp")        # which looks at XENLIKE_HOST_LACKS, too
    except ValueError as error:
        raise Failure(f"{error}") from None


def note(text: str) -> None:
    """A line of the command's own, beside what guests say."""
    print(f"xenlike: {text}", file=sys.stderr, flush=True)
