"""Which engine runs machine code, and the one line that says when it is not the binary translator.

Called by: ``xenlike.host``, ``xenlike bt``, benchmarks. The C core finds out what the host has (``csrc/bt/block.c``); the environment's ``XENLIKE_HOST_LACKS`` makes it appear to
lack some of it (docs/engine.md).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from xenlike.engine import ffi, lib

__all__ = ["FEATURES", "choose", "more_options", "say_why_not"]

#: What the translator needs, in the words of ``XENLIKE_HOST_LACKS``.
FEATURES = ("bmi2", "fsgsbase", "lahf", "wx")

_said = False           # once a process: the reason is the machine's, and does not change


def choose(wanted: str | None) -> str:
    """"bt" or "interp": what ``wanted`` asks for, or the environment's XENLIKE_ENGINE, or the translator, as far as the host can.

    Raises ValueError for other words, there and in XENLIKE_HOST_LACKS.
    """
    wanted = wanted or os.environ.get("XENLIKE_ENGINE") or None
    if wanted not in (None, "bt", "interp"):
        raise ValueError(f"engine={wanted!r}: 'bt' or 'interp'")
    masked = filter(None, os.environ.get("XENLIKE_HOST_LACKS", "").split(","))
    if unknown := [word for word in masked if word not in FEATURES]:
        raise ValueError(f"XENLIKE_HOST_LACKS names {', '.join(unknown)}: only {', '.join(FEATURES)}, separated by commas, mean anything")
    if wanted == "interp":
        return wanted
    why = lib.xl_bt_unavailable()
    if why == ffi.NULL:
        return "bt"
    say_why_not(why)
    return "interp"


def say_why_not(why: object) -> None:
    """Warns, once a process, that machine code is interpreted. ``why``: the core's reason; NULL: a translator found no memory."""
    global _said
    if _said:
        return
    _said = True
    reason = ffi.string(why).decode() if why != ffi.NULL else "there is no memory for its code"
    warnings.warn(f"no binary translation: {reason}; machine code is interpreted, which is slower", RuntimeWarning, stacklevel=4)


@contextmanager
def more_options(more: int) -> Iterator[None]:
    """Hosts that are made meanwhile have these options of the translator too (``XL_BT_*``), beside those in the environment's XENLIKE_BT_OPTIONS."""
    before = os.environ.get("XENLIKE_BT_OPTIONS")
    os.environ["XENLIKE_BT_OPTIONS"] = str(int(before or "0", 0) | more)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XENLIKE_BT_OPTIONS"]
        else:
            os.environ["XENLIKE_BT_OPTIONS"] = before
