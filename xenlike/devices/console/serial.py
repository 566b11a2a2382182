"""A PC's serial port as a console (csrc/pc/uart.c).

Owns: input that waits for room. Called by: dom0, on the lane, when the port has output or the user gives input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenlike.engine import ffi, lib

__all__ = ["SerialConsole"]

_CHUNK = 4096
_RETRY_INPUT = 256          # bytes to offer at a time while the guest is slow


class SerialConsole:
    """Moves a guest's output to ``sink(bytes)`` and input to the guest: the same calls as ``ConsoleRing``."""

    def __init__(self, host_c: Any, domid: int, sink: Callable[[bytes], None]) -> None:
        self._host_c, self._domid, self._sink = host_c, domid, sink
        self._buffer = ffi.new("u8[]", _CHUNK)
        self._input = bytearray()

    def service(self) -> None:
        """Takes output; gives input that waits."""
        while (n := lib.xl_pc_output(self._host_c, self._domid, self._buffer, _CHUNK)) > 0:
            self._sink(bytes(ffi.buffer(self._buffer, n)))
        self._give_input()

    def _give_input(self) -> None:
        while self._input:
            part = bytes(self._input[:_RETRY_INPUT])
            n = lib.xl_pc_input(self._host_c, self._domid, part, len(part))
            if n <= 0:
                break
            del self._input[:n]

    def send(self, data: bytes) -> int:
        """Input for the guest; what does not fit waits. Returns how many bytes wait."""
        self._input += data
        self._give_input()
        return len(self._input)

    def close(self) -> None:
        """There is nothing to give up."""
