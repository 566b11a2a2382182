"""Packets of gdb's remote serial protocol (GDB manual, appendix E, "Overview" and "Packet Acknowledgment").

Owns: framing, checksums, escapes, acknowledgments. Knows nothing of what packets say. Called by: ``server``.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["INTERRUPT", "PACKET_SIZE", "Framer", "escape"]

PACKET_SIZE = 0x4000            #: longest packet that we take, as told to gdb in qSupported
INTERRUPT = b"\x03"             #: what ``Framer.feed`` yields for Ctrl-C, which is no packet


def escape(data: bytes) -> bytes:
    """Binary data with what the framing uses made harmless: ``}`` and the byte xor 0x20."""
    out = bytearray()
    for byte in data:
        out += bytes((0x7D, byte ^ 0x20)) if byte in b"#$}*" else bytes((byte,))
    return bytes(out)


def _unescape(data: bytes) -> bytes:
    out, rest = bytearray(), iter(data)
    for byte in rest:
        out.append(next(rest, 0) ^ 0x20 if byte == 0x7D else byte)
    return bytes(out)


class Framer:
    """One connection's framing. ``feed`` takes bytes from the peer; ``frame`` makes what is sent to it.

    acks: bytes of acknowledgment to be sent, collected by ``feed``; empty once the peer has asked for no-ack mode.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.no_ack = False
        self.acks = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The packets that are complete, unescaped; ``INTERRUPT`` for a Ctrl-C. Raises ValueError for an endless packet."""
        self._buffer += data
        while self._buffer:
            first = self._buffer[0]
            if first == 3:
                del self._buffer[0]
                yield INTERRUPT
            elif first != 0x24:         # '+', '-' or noise: TCP loses nothing, so nothing is sent twice
                del self._buffer[0]
            else:
                end = self._buffer.find(b"#")
                if end < 0 or len(self._buffer) < end + 3:
                    if len(self._buffer) > PACKET_SIZE + 8:
                        raise ValueError("a packet longer than was agreed")
                    return
                body, check = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1:end + 3])
                del self._buffer[:end + 3]
                good = check.lower() == b"%02x" % (sum(body) & 255)
                if not self.no_ack:
                    self.acks += b"+" if good else b"-"
                if good:
                    yield _unescape(body)

    @staticmethod
    def frame(body: bytes) -> bytes:
        """``body`` (escaped where it is binary) as a packet."""
        return b"$%b#%02x" % (body, sum(body) & 255)
