"""The back end of the PV console ring (xen public io/console.h).

Owns: one guest's ring, our half. Called by: dom0 at the console port's events. Every index is the guest's and hostile: read once,
bounded, and an impossible one ends the service of this console, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ConsoleRing"]

_IN, _OUT = 1024, 2048
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = 768, 769, 770, 771      # 32-bit words
_CONNECTION = 3088


class ConsoleRing:
    """Moves a guest's output to ``sink(bytes)`` and queued input to the guest; ``notify()`` sends the event."""

    def __init__(self, page: memoryview, notify: Callable[[], None], sink: Callable[[bytes], None]) -> None:
        self._page = page
        self._words = page.cast("I")
        self._notify = notify
        self._sink = sink
        self._input = bytearray()
        self.broken: str | None = None
        page[_CONNECTION] = 0           # XENCONSOLE_CONNECTED

    @property
    def used(self) -> bool:
        """The guest has put output into the ring, now or before."""
        return self._words[_OUT_PROD] != 0

    def service(self) -> None:
        """At an event: drains output, gives input."""
        if self.broken is None and (self._take_output() | self._give_input()):
            self._notify()

    def _take_output(self) -> bool:
        words = self._words
        cons, prod = words[_OUT_CONS], words[_OUT_PROD]
        n = prod - cons & 0xFFFFFFFF
        if n == 0:
            return False
        if n > _OUT:
            self.broken = f"console ring: the guest claims {n} bytes of output in a ring of {_OUT}"
            return False
        at = cons % _OUT
        first = min(n, _OUT - at)
        data = bytes(self._page[_IN + at:_IN + at + first]) + bytes(self._page[_IN:_IN + n - first])
        words[_OUT_CONS] = prod
        self._sink(data)
        return True

    def _give_input(self) -> bool:
        if not self._input:
            return False
        words, page = self._words, self._page
        cons, prod = words[_IN_CONS], words[_IN_PROD]
        used = prod - cons & 0xFFFFFFFF
        if used > _IN:
            self.broken = f"console ring: the guest claims {used} bytes of input in a ring of {_IN}"
            return False
        part = self._input[:_IN - used]
        for byte in part:
            page[prod % _IN] = byte
            prod = prod + 1 & 0xFFFFFFFF
        words[_IN_PROD] = prod
        del self._input[:len(part)]
        return bool(part)

    def send(self, data: bytes) -> int:
        """Input for the guest; what does not fit waits until the guest has read. Returns how many bytes wait."""
        self._input += data
        self.service()
        return len(self._input)

    def close(self) -> None:
        """Gives the page up."""
        self.broken = self.broken or "closed"
        self._words.release()
        self._page.release()
