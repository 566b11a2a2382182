"""The xenstore wire format: message types, header, incremental parser, argument strings.

One message is a 16-byte little-endian header (type, request id, transaction id, payload length) and at most
4096 bytes of payload (public/io/xs_wire.h). Used by the servers, by the guest's ring client and by tests; pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from .errors import ERRNO, StoreError

PAYLOAD_MAX = 4096
HEADER = struct.Struct("<IIII")
HEADER_SIZE = HEADER.size

#: Bits of server_features in the ring page.
FEATURE_RECONNECTION, FEATURE_ERROR, FEATURE_WATCHDEPTH, FEATURE_DOMID_ANY = 1, 2, 4, 8
FEATURES = FEATURE_RECONNECTION | FEATURE_ERROR | FEATURE_WATCHDEPTH | FEATURE_DOMID_ANY

#: Values of the ring page's error field.
ERROR_NONE, ERROR_COMM, ERROR_RINGIDX, ERROR_PROTO = 0, 1, 2, 3


class Type(IntEnum):
    """Message types (enum xsd_sockmsg_type)."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESTRICT = 20
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


ACK = b"OK\0"


class ProtocolViolation(Exception):
    """The peer broke the framing; nothing that follows on the connection can be understood."""


class Message(NamedTuple):
    """One whole message. `type` is a plain int: a peer may send any."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def pack(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """The bytes of one message; the payload must fit PAYLOAD_MAX."""
    return HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


class Parser:
    """Cuts a byte stream into messages. Holds at most what was fed and is not taken yet."""

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = b""
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Append stream bytes."""
        rest = len(self._buffer) - self._start
        self._buffer = self._buffer[self._start :] + data if rest else bytes(data)
        self._start = 0

    def next(self) -> Message | None:
        """The next whole message, or None until more is fed.

        ProtocolViolation: its header announces more than PAYLOAD_MAX; the parser stays at that header.
        """
        start = self._start
        have = len(self._buffer) - start
        if have < HEADER_SIZE:
            return None
        kind, req_id, tx_id, length = HEADER.unpack_from(self._buffer, start)
        if length > PAYLOAD_MAX:
            raise ProtocolViolation(f"message of type {kind} announces {length} bytes; the limit is {PAYLOAD_MAX}")
        end = start + HEADER_SIZE + length
        if end > len(self._buffer):
            return None
        self._start = end
        return Message(kind, req_id, tx_id, self._buffer[start + HEADER_SIZE : end])

    def clear(self) -> None:
        """Forget everything fed."""
        self._buffer = b""
        self._start = 0

    def __len__(self) -> int:
        """Bytes fed and not taken yet."""
        return len(self._buffer) - self._start


def one_string(payload: bytes) -> bytes:
    """The argument of an operation that takes one: a NUL at the end, none elsewhere. EINVAL otherwise."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise StoreError("EINVAL", "the payload is not one NUL-terminated string")
    return payload[:-1]


def strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of `payload`; reserved bytes after the last NUL are ignored, as the protocol says."""
    return payload.split(b"\0")[:-1]


def text(value: bytes) -> str:
    """An argument that must be plain ASCII, such as a number or a permission. EINVAL otherwise."""
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise StoreError("EINVAL", f"argument {value[:20]!r} is not ASCII") from None


def error_payload(error: StoreError) -> bytes:
    """Payload of the ERROR reply for `error`."""
    return error.name.encode() + b"\0"


def error_from_payload(payload: bytes, *, op: str = "") -> StoreError:
    """The exception for an ERROR reply; a name that is none of ours reads as EIO and is quoted."""
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    if name in ERRNO:
        return StoreError(name, op=op)
    return StoreError("EIO", f"the server answered {name[:40]!r}", op=op)
