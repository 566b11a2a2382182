"""Layout of the xenstore ring page, and the byte queues in it, as both ends use them.

Two 1024-byte queues, each with free-running 32-bit consumer and producer indices, and three words of state
(public/io/xs_wire.h, docs/misc/xenstore-ring.txt). The other end is not trusted and may write at any time, so
each of its indices is read once, checked, and only the copy used; our own indices are kept here and merely published
in the page. Used by `ring` (server) and `client_ring` (guest).

Ordering: data is copied before the index that publishes it is stored, and an index is read before the data it
publishes. An index is one aligned 32-bit store or load through a typed memoryview. x86 keeps stores in order and
loads in order, which is enough for that. It does not keep a load behind an earlier store, and that is needed too: either
end sends no event if, by the other's index, the other has something to do anyway. So whoever has published an index looks
at the other's once more before it waits, and `publish` puts a barrier between the two.
"""

from __future__ import annotations

import threading

RING_SIZE = 1024
PAGE_SIZE = 4096
_MASK = RING_SIZE - 1
_U32 = 0xFFFFFFFF

REQUESTS, RESPONSES = 0, 1024  #: offsets of the queues

#: Word numbers in `RingPage.words`, from offset 2048.
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, SERVER_FEATURES, CONNECTION, ERROR, EVTCHN_PORT = range(8)
_WORDS_OFFSET, _WORDS_END = 2048, 2080

#: Values of the connection word.
CONNECTED, RECONNECT = 0, 1


_barrier = threading.Lock()  # taking and giving back a lock are locked instructions, each a full barrier: Python has no other


class BadIndex(Exception):
    """The other end published an index that cannot be: more than a ring's worth ahead or behind."""


class RingPage:
    """A window on one xenstore ring page.

    page: a writable buffer of at least 4096 bytes, 4-byte aligned, which may be memory shared with a running guest.
    """

    def __init__(self, page: object) -> None:
        view = memoryview(page)
        if view.readonly or view.nbytes < PAGE_SIZE:
            raise ValueError(f"a xenstore ring needs a writable page of {PAGE_SIZE} bytes, not {view.nbytes} bytes")
        self.bytes = view.cast("B")
        self._words_bytes = self.bytes[_WORDS_OFFSET:_WORDS_END]
        self.words = self._words_bytes.cast("I")
        self._views = (self.words, self._words_bytes, self.bytes, view)

    def publish(self, word: int, index: int) -> None:
        """Store an index of ours; what is read of the page afterwards is read behind it."""
        self.words[word] = index
        with _barrier:
            pass

    def release(self) -> None:
        """Give up every view of the page, so that its owner may unmap it."""
        for view in self._views:
            view.release()


class Inbox:
    """The consumer's end of a queue."""

    def __init__(self, page: RingPage, queue: int, cons: int, prod: int) -> None:
        self._page = page
        self._queue = queue
        self._cons_word = cons
        self._prod_word = prod
        self.cons = page.words[cons]

    def take(self) -> bytes:
        """All bytes the producer has published, which are thereby consumed. BadIndex."""
        page = self._page
        available = (page.words[self._prod_word] - self.cons) & _U32
        if not available:
            return b""
        if available > RING_SIZE:
            raise BadIndex(f"producer index is {available} bytes ahead of the consumer in a ring of {RING_SIZE}")
        start = self.cons & _MASK
        first = min(available, RING_SIZE - start)
        at = self._queue + start
        data = bytes(page.bytes[at : at + first])
        if first < available:
            data += bytes(page.bytes[self._queue : self._queue + available - first])
        self.cons = (self.cons + available) & _U32
        page.publish(self._cons_word, self.cons)
        return data

    def waiting(self) -> bool:
        """Something is published that was not taken, or the index is none."""
        return self._page.words[self._prod_word] != self.cons

    def reset(self) -> None:
        """Begin anew at index 0."""
        self.cons = 0
        self._page.words[self._cons_word] = 0


class Outbox:
    """The producer's end of a queue."""

    def __init__(self, page: RingPage, queue: int, cons: int, prod: int) -> None:
        self._page = page
        self._queue = queue
        self._cons_word = cons
        self._prod_word = prod
        self.prod = page.words[prod]

    def room(self) -> int:
        """Bytes that may be put now. BadIndex."""
        waiting = (self.prod - self._page.words[self._cons_word]) & _U32
        if waiting > RING_SIZE:
            raise BadIndex(f"consumer index leaves {waiting} bytes in a ring of {RING_SIZE}")
        return RING_SIZE - waiting

    def put(self, data: bytes) -> None:
        """Publish `data`, for which `room` was found. The consumer can only make more room meanwhile."""
        page = self._page
        start = self.prod & _MASK
        first = min(len(data), RING_SIZE - start)
        at = self._queue + start
        page.bytes[at : at + first] = data[:first]
        if first < len(data):
            page.bytes[self._queue : self._queue + len(data) - first] = data[first:]
        self.prod = (self.prod + len(data)) & _U32
        page.publish(self._prod_word, self.prod)

    def reset(self) -> None:
        """Begin anew at index 0."""
        self.prod = 0
        self._page.words[self._prod_word] = 0
