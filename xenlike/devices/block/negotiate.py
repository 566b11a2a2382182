"""The block protocol without state: which step two xenbus states call for, what each side announces, what a front end said.

Pure: no xenstore, no hypervisor. Called by ``backend``. Facts: public/io/blkif.h; which key means what to whom is said at
the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from .image import DiskImage
from .xenbus import XenbusState

MAX_RING_PAGE_ORDER = 2             #: csrc/io/blk.h, XL_BLK_MAX_RING_PAGE_ORDER
MAX_INDIRECT_SEGMENTS = 256         #: XL_BLK_MAX_INDIRECT_SEGMENTS
PROTOCOLS = ("x86_64-abi",)         #: also assumed where the front end names none: then it has its host's layout

VDISK_CDROM, VDISK_READONLY = 1, 4  #: bits of `info`

_EINVAL, _EOPNOTSUPP = 22, 95
_U32_MAX = 0xFFFFFFFF


class NegotiationError(Exception):
    """A front end's keys cannot be used. ``errno`` (Xen's, positive) and ``message`` go to the error node."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)
        self.errno, self.message = errno, message

    def __str__(self) -> str:
        return self.message


# --- steps ----------------------------------------------------------------------------------------------------------

class Step(Enum):
    """What the back end does next."""

    NOTHING = auto()
    ANNOUNCE = auto()       #: drop any connection, write features, InitWait
    CONNECT = auto()        #: take ring and port, write properties, Connected
    CLOSING = auto()        #: agree to close; the ring is still served, a last flush may be on it
    CLOSE = auto()          #: drop the connection, Closed


_S = XenbusState
_NEVER_CONNECTED = {_S.INITIALISING, _S.INIT_WAIT}

#: Front end's state → (step, back end's states in which it is taken).
_STEPS: dict[XenbusState, tuple[Step, set[XenbusState]]] = {
    # A front end begins, or begins anew: after Closed (a boot loader handed over to a kernel), but also out of a connection
    # when a guest restarts its driver without ceremony.
    _S.INITIALISING: (Step.ANNOUNCE, {_S.INITIALISING, _S.CONNECTED, _S.CLOSING, _S.CLOSED}),
    # Most say Initialised; Mini-OS says Connected at once, and without waiting for our InitWait: then Closed -> Connected
    # may be all that we see of its coming back.
    _S.INITIALISED: (Step.CONNECT, _NEVER_CONNECTED | {_S.CLOSED}),
    _S.CONNECTED: (Step.CONNECT, _NEVER_CONNECTED | {_S.CLOSED}),
    _S.CLOSING: (Step.CLOSING, _NEVER_CONNECTED | {_S.CONNECTED}),
    _S.CLOSED: (Step.CLOSE, _NEVER_CONNECTED | {_S.CONNECTED, _S.CLOSING}),
    _S.UNKNOWN: (Step.CLOSE, _NEVER_CONNECTED | {_S.CONNECTED, _S.CLOSING}),    # its directory was removed
}


def next_step(front: XenbusState, back: XenbusState, *, online: bool) -> Step:
    """The step for a back end in state ``back`` whose front end is in ``front``; not ``online``: the disk is to go away."""
    step, states = _STEPS.get(front, (Step.NOTHING, set()))
    if back not in states:
        return Step.NOTHING
    if not online and step in (Step.ANNOUNCE, Step.CONNECT):
        return Step.NOTHING if back is _S.CLOSED else Step.CLOSE
    return step


# --- what the back end says -----------------------------------------------------------------------------------------

def features(image: DiskImage | None) -> dict[str, str]:
    """Keys that a front end reads before it builds its ring. ``image`` None: an empty drive."""
    keys = {
        "feature-flush-cache": "1",
        "feature-barrier": "1",
        "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
        "max-ring-page-order": str(MAX_RING_PAGE_ORDER),
        "feature-discard": "0",
    }
    if image is not None and image.discard:
        keys |= {"feature-discard": "1", "discard-granularity": str(image.physical_sector_size), "discard-alignment": "0",
                 "discard-secure": "0"}
    return keys


def properties(image: DiskImage) -> dict[str, str]:
    """Keys of a connected disk. ``sectors`` counts 512 bytes whatever the sector sizes are."""
    info = (VDISK_CDROM if image.cdrom else 0) | (0 if image.writable else VDISK_READONLY)
    return {
        "sectors": str(image.sectors),
        "sector-size": "512",
        "physical-sector-size": str(image.physical_sector_size),
        "info": str(info),
    }


# --- what the front end says ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class FrontRing:
    """A front end's ring and event channel: grant references, one a page, and its port."""

    refs: tuple[int, ...]
    port: int


def parse_front(read: Callable[[str], str | None]) -> FrontRing:
    """The ring that a front end offers. ``read`` gives the value of one of its keys, None if it is missing.

    Raises ``NegotiationError``.
    """
    protocol = read("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise NegotiationError(_EOPNOTSUPP, f"protocol {_show(protocol)} is not served, only {', '.join(PROTOCOLS)}")
    if (queues := _number(read, "multi-queue-num-queues", default=1)) != 1:
        raise NegotiationError(_EINVAL, f"multi-queue-num-queues {queues}: one queue was offered")
    port = _number(read, "event-channel")

    order = _ring_page_order(read)
    if order > MAX_RING_PAGE_ORDER:
        raise NegotiationError(_EINVAL, f"ring-page-order {order}: max-ring-page-order is {MAX_RING_PAGE_ORDER}")
    if order == 0 and read("ring-ref") is not None:
        return FrontRing((_number(read, "ring-ref"),), port)
    refs = tuple(_number(read, f"ring-ref{page}" if order or read("ring-ref0") is not None else "ring-ref")
                 for page in range(1 << order))
    if len(set(refs)) != len(refs):
        raise NegotiationError(_EINVAL, f"ring references {refs} are not distinct")
    return FrontRing(refs, port)


def _ring_page_order(read: Callable[[str], str | None]) -> int:
    """log2 of the number of ring pages; ``num-ring-pages`` is an older way to say it."""
    pages = 1 if read("ring-page-order") is not None else _number(read, "num-ring-pages", default=1)
    if pages == 0 or pages & (pages - 1):
        raise NegotiationError(_EINVAL, f"num-ring-pages {pages} is no power of two")
    return _number(read, "ring-page-order", default=pages.bit_length() - 1)


def _number(read: Callable[[str], str | None], key: str, *, default: int | None = None) -> int:
    """The unsigned 32-bit decimal at ``key``."""
    text = read(key)
    if text is None:
        if default is not None:
            return default
        raise NegotiationError(_EINVAL, f"{key} is missing")
    digits = text.strip(" \n\0")        # what front ends have been seen to leave around a number
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= _U32_MAX):
        raise NegotiationError(_EINVAL, f"{key} {_show(text)} is no unsigned 32-bit number")
    return int(digits)


def _show(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")
