"""The states that a front end and its back end show each other in their ``state`` nodes (public/io/xenbus.h).

Pure. Called by the other modules of this folder.
"""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """Value of a ``state`` node, in decimal."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2       #: the back end has announced its features
    INITIALISED = 3     #: the front end has published ring and event channel
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


def parse_state(text: str | None) -> XenbusState | None:
    """The state that a node's value says; a missing or empty node is UNKNOWN. None: no state at all."""
    if text is None or text == "":
        return XenbusState.UNKNOWN
    try:
        return XenbusState(int(text)) if text.isascii() and text.isdigit() and len(text) <= 2 else None
    except ValueError:
        return None
