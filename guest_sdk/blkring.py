"""A block ring as its front end sees it: bytes in, bytes out, no I/O.

Owns the private indices of one ring; the page belongs to the guest, which grants it to the back end and shares nothing else
with it. Called by the SDK's block front end, by tests and benchmarks. Layout: public/io/ring.h and blkif.h (64-bit). It
runs alike on a page of a Python guest, on one of another guest's, or on a bytearray.

The back end is trusted with the data but not with the indices: a ring that it breaks raises ``RingError``.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

PAGE_SIZE = 4096
SECTOR = 512
SECTORS_PER_PAGE = PAGE_SIZE // SECTOR
HEADER = 64
SLOT = 112
MAX_SEGMENTS = 11

_REQUEST = struct.Struct("<BBHxxxxQQ")          # operation, nr_segments, handle, id, sector_number
_SEGMENT = struct.Struct("<IBBxx")
_DISCARD = struct.Struct("<BBHxxxxQQQ")         # operation, flag, handle, id, sector_number, nr_sectors
_INDIRECT = struct.Struct("<BBHxxxxQQHxx8I")    # operation, indirect_op, nr_segments, id, sector_number, handle, grefs
_RESPONSE = struct.Struct("<QBxh")

_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = range(4)     # places of the shared indices, in 32-bit words


class Op(IntEnum):
    """BLKIF_OP_*."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    """BLKIF_RSP_*."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class Segment(NamedTuple):
    """Sectors ``first`` to ``last``, both included, of the page granted as ``gref``."""

    gref: int
    first: int = 0
    last: int = SECTORS_PER_PAGE - 1


class Response(NamedTuple):
    """``id`` is the request's; ``status`` is a ``Status`` if the back end keeps to the protocol."""

    id: int
    op: int
    status: int


class RingError(Exception):
    """The back end's index makes no sense; nothing on the ring can be believed any more."""


class RingFull(Exception):
    """Every slot holds a request without response: pop responses first."""


_fence = threading.Lock()


def barrier() -> None:
    """A full memory barrier: Python has none, but taking a lock is one.

    Between publishing an index and looking at the other side's event index; without it the look can come first, even in
    Python, and once in some 100,000 times a notification is lost for good.
    """
    with _fence:
        pass


def segments(grefs: Sequence[int], sectors: int) -> list[Segment]:
    """Segments for ``sectors`` sectors that fill the pages ``grefs`` from the start, the last one perhaps in part."""
    if not 0 < sectors <= len(grefs) * SECTORS_PER_PAGE:
        raise ValueError(f"{sectors} sectors do not fit in {len(grefs)} pages of {SECTORS_PER_PAGE}")
    full, rest = divmod(sectors, SECTORS_PER_PAGE)
    found = [Segment(gref) for gref in grefs[:full]]
    if rest:
        found.append(Segment(grefs[full], 0, rest - 1))
    return found


def pack_segments(segs: Iterable[Segment]) -> bytes:
    """Segments as an indirect page holds them."""
    return b"".join(_SEGMENT.pack(*segment) for segment in segs)


class BlkRing:
    """The front end's half of a ring in ``page``, a writable buffer of 4096 bytes, or 8192 or 16384 for larger rings.

    The shared part is made ready unless ``attach``: then the ring is in use, and ours are the indices from its current end.
    ``handle`` is the virtual device number, which back ends ignore.
    """

    def __init__(self, page: memoryview | bytearray, *, handle: int = 0, attach: bool = False) -> None:
        self._bytes = memoryview(page).cast("B")
        if self._bytes.readonly or len(self._bytes) not in (PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE):
            raise ValueError(f"a ring needs 1, 2 or 4 writable pages, not {len(self._bytes)} bytes")
        self._words = self._bytes[:16].cast("I")        # aligned words: the indices change in one store
        self.handle = handle & 0xFFFF
        self.slots = 1 << (((len(self._bytes) - HEADER) // SLOT).bit_length() - 1)
        if not attach:
            self._bytes[:HEADER] = bytes(HEADER)
            self._words[_REQ_EVENT] = self._words[_RSP_EVENT] = 1
        self._req_prod = self._pushed = self._words[_REQ_PROD]
        self._rsp_cons = self._words[_RSP_PROD]

    def release(self) -> None:
        """Let the page go; the ring is over."""
        self._words.release()
        self._bytes.release()

    # Requests.

    @property
    def free(self) -> int:
        """Slots in which a request can be put now."""
        return self.slots - (self._req_prod - self._rsp_cons & 0xFFFFFFFF)

    @property
    def outstanding(self) -> int:
        """Requests put whose response has not been popped."""
        return self.slots - self.free

    def put(self, op: int, id: int, sector: int, segs: Sequence[Segment] = ()) -> None:
        """Put a request that carries its segments. Not visible until ``push``. Raises ``RingFull``."""
        if len(segs) > MAX_SEGMENTS:
            raise ValueError(f"{len(segs)} segments; a request has room for {MAX_SEGMENTS}, use put_indirect")
        at = self._next_slot()
        _REQUEST.pack_into(self._bytes, at, op, len(segs), self.handle, id, sector)
        for n, segment in enumerate(segs):
            _SEGMENT.pack_into(self._bytes, at + _REQUEST.size + n * _SEGMENT.size, *segment)

    def put_discard(self, id: int, sector: int, sectors: int, *, secure: bool = False) -> None:
        """Put a request to forget ``sectors`` sectors."""
        _DISCARD.pack_into(self._bytes, self._next_slot(), Op.DISCARD, secure, self.handle, id, sector, sectors)

    def put_indirect(self, op: int, id: int, sector: int, nr_segments: int, grefs: Sequence[int]) -> None:
        """Put a read or write whose segments (``pack_segments``) stand in the pages granted as ``grefs``, 512 in each."""
        refs = (*grefs, *(0,) * (8 - len(grefs)))
        _INDIRECT.pack_into(self._bytes, self._next_slot(), Op.INDIRECT, op, nr_segments, id, sector, self.handle, *refs)

    def put_raw(self, request: bytes) -> None:
        """Put any bytes as a request, for tests of back ends."""
        at = self._next_slot()
        self._bytes[at:at + len(request[:SLOT])] = request[:SLOT]

    def push(self) -> bool:
        """Publish the requests put. True: the back end asked to be notified."""
        old, new = self._pushed, self._req_prod
        self._words[_REQ_PROD] = self._pushed = new
        barrier()
        return new - self._words[_REQ_EVENT] & 0xFFFFFFFF < new - old & 0xFFFFFFFF

    # Responses.

    def pop(self) -> list[Response]:
        """The responses that have come, oldest first. Raises ``RingError``."""
        prod = self._words[_RSP_PROD]
        count = prod - self._rsp_cons & 0xFFFFFFFF
        if count > self._pushed - self._rsp_cons & 0xFFFFFFFF:
            raise RingError(f"the back end claims {count} responses to {self.outstanding} requests")
        found = [Response._make(_RESPONSE.unpack_from(self._bytes, self._offset(self._rsp_cons + n & 0xFFFFFFFF)))
                 for n in range(count)]
        self._rsp_cons = prod
        return found

    def final_check(self) -> bool:
        """Before waiting: ask for a notification of the next response. True: there is one already, pop again."""
        self._words[_RSP_EVENT] = self._rsp_cons + 1 & 0xFFFFFFFF
        barrier()
        return self._words[_RSP_PROD] != self._rsp_cons

    # Places.

    def _offset(self, index: int) -> int:
        return HEADER + (index & self.slots - 1) * SLOT

    def _next_slot(self) -> int:
        if not self.free:
            raise RingFull(f"all {self.slots} slots hold requests; pop responses first")
        at = self._offset(self._req_prod)
        self._req_prod = self._req_prod + 1 & 0xFFFFFFFF
        return at
