"""The guest's end of the PV console ring (xen public io/console.h).

Owns: the ring's guest half and the text that does not fit yet. Called by: guests, the kernel at shutdown.
"""

from __future__ import annotations

from typing import Any

from xenlike.engine import NR, lib

from guest_sdk.kernel import NSEC, Future

__all__ = ["Console"]

_IN, _OUT = 1024, 2048
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = 768, 769, 770, 771      # 32-bit words at 3072 ..


class Console:
    """``guest.console``: ``print`` text, ``await readline()`` input."""

    def __init__(self, guest: Any, page: memoryview, port: Any) -> None:
        self._guest = guest
        self._page = page
        self._words = page.cast("I")
        self._port = port.on_event(self._event)
        self._pending = bytearray()
        self._input = bytearray()
        self._readers: list[Future[None]] = []
        self._drained: list[Future[None]] = []

    def print(self, *values: object, sep: str = " ", end: str = "\n") -> None:
        """Like print(). Never waits: what does not fit the ring goes when the back end has made room."""
        self.write((sep.join(map(str, values)) + end).encode())

    def write(self, data: bytes) -> None:
        """Raw bytes."""
        self._pending += data
        if self._push():
            self._port.notify()

    def _push(self) -> bool:
        """Moves pending text into the ring as far as it goes. True: some moved."""
        words, page = self._words, self._page
        prod = words[_OUT_PROD]
        room = _OUT - (prod - words[_OUT_CONS] & 0xFFFFFFFF)
        n = min(room, len(self._pending))
        if n <= 0:
            return False
        at = prod % _OUT
        first = min(n, _OUT - at)
        page[_IN + at:_IN + at + first] = self._pending[:first]
        page[_IN:_IN + n - first] = self._pending[first:n]
        words[_OUT_PROD] = prod + n & 0xFFFFFFFF        # after the data: x86 keeps stores in order
        del self._pending[:n]
        return True

    def _event(self) -> None:
        words, page = self._words, self._page
        cons, prod = words[_IN_CONS], words[_IN_PROD]
        moved = False
        while cons != prod:
            self._input.append(page[cons % _IN])
            cons = cons + 1 & 0xFFFFFFFF
            moved = True
        words[_IN_CONS] = cons
        if (self._pending and self._push()) or moved:
            self._port.notify()
        if moved:
            self._wake(self._readers)
        if not self._pending and words[_OUT_CONS] == words[_OUT_PROD]:
            self._wake(self._drained)

    @staticmethod
    def _wake(futures: list[Future[None]]) -> None:
        while futures:
            futures.pop().set(None)

    async def read(self, n: int = 1) -> bytes:
        """At least one and at most n bytes of input."""
        while not self._input:
            future: Future[None] = Future()
            self._readers.append(future)
            await future
        data = bytes(self._input[:n])
        del self._input[:n]
        return data

    async def readline(self) -> str:
        """A line of input, without its end."""
        while b"\n" not in self._input and b"\r" not in self._input:
            future: Future[None] = Future()
            self._readers.append(future)
            await future
        text = self._input.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line, _, rest = text.partition(b"\n")
        self._input[:] = rest
        return line.decode(errors="replace")

    async def drain(self, timeout: float = 5.0) -> bool:
        """Waits until the back end has taken everything; False if it did not within ``timeout`` seconds."""
        while self._pending or self._words[_OUT_CONS] != self._words[_OUT_PROD]:
            future: Future[None] = Future()
            self._drained.append(future)
            kernel = self._guest.current
            before = self._words[_OUT_CONS]
            kernel.alarm(kernel.vcpu.now() + round(timeout * NSEC), future)
            self._port.notify()
            await future
            if self._words[_OUT_CONS] == before and (self._pending or before != self._words[_OUT_PROD]):
                return False
        return True

    def close(self) -> None:
        """Lets the ring page go; the text is over."""
        self._words.release()
        self._page.release()

    def emergency(self, text: str) -> None:
        """Straight to the hypervisor's log (console_io), past the ring: for when the ring does not work."""
        data = text.encode()
        for at in range(0, len(data), 4096):
            with self._guest.hypercall.buffer(data[at:at + 4096]) as va:
                self._guest.hypercall(NR.console_io, lib.CONSOLEIO_write, len(data[at:at + 4096]), va)
