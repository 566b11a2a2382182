"""The guest's side of the xenstore ring, without I/O: requests in, bytes moved on `service`, replies and events out.

For guests written in Python and for tests; whoever uses it owns the page, sends the event when `service` says so, and
calls `service` at events on its xenstore port. The server is checked like any peer: nonsense in the ring is a
`RingError`.
"""

from __future__ import annotations

from collections import deque

from . import wire
from .ringpage import (
    CONNECTED,
    CONNECTION,
    ERROR,
    RECONNECT,
    REQ_CONS,
    REQ_PROD,
    REQUESTS,
    RESPONSES,
    RSP_CONS,
    RSP_PROD,
    SERVER_FEATURES,
    BadIndex,
    Inbox,
    Outbox,
    RingPage,
)
from .wire import FEATURE_ERROR, FEATURE_RECONNECTION, PAYLOAD_MAX, Message, Type


class RingError(Exception):
    """The xenstore ring cannot be used: the server broke the protocol, or cut the connection."""


class RingClient:
    """Client on the ring in `page`, a writable buffer of 4096 bytes."""

    def __init__(self, page: object) -> None:
        self._page = RingPage(page)
        self._next_id = 1
        self._parser = wire.Parser()
        self._unsent = bytearray()
        self._messages: deque[Message] = deque()
        self._attach()

    def _attach(self) -> None:
        self._inbox = Inbox(self._page, RESPONSES, RSP_CONS, RSP_PROD)
        self._outbox = Outbox(self._page, REQUESTS, REQ_CONS, REQ_PROD)
        self._reconnecting = not self.connected

    @property
    def features(self) -> int:
        """The server's features, FEATURE_* bits of `wire`."""
        return self._page.words[SERVER_FEATURES]

    def request(self, kind: int, payload: bytes, *, tx_id: int = 0) -> int:
        """Queue a request; the request id its reply will carry. ValueError: payload over 4096 bytes.

        `payload` is as `wire` has it: for example ``path + b"\\0"`` for READ, ``path + b"\\0" + value`` for WRITE.
        """
        if len(payload) > PAYLOAD_MAX:
            raise ValueError(f"{Type(kind).name} payload of {len(payload)} bytes; at most {PAYLOAD_MAX} fit a message")
        req_id = self._next_id
        self._next_id = self._next_id % 0xFFFFFFFF + 1
        self._unsent += wire.pack(kind, req_id, tx_id, payload)
        return req_id

    def service(self) -> bool:
        """Move bytes both ways as far as the ring allows; whether the server must be notified. RingError.

        While a reconnect is asked for and not granted, moves nothing.
        """
        if self._reconnecting:
            if not self.connected:
                return False
            self._attach()
        error = self._page.words[ERROR]
        if error and self.features & FEATURE_ERROR:
            raise RingError(f"xenstore cut the connection, error {error}; reconnect if the server offers it")
        try:
            data = self._inbox.take()
            sent = self._unsent[: self._outbox.room()]
        except BadIndex as error:
            raise RingError(f"xenstore's ring is corrupt: {error}") from None
        if sent:
            self._outbox.put(bytes(sent))
            del self._unsent[: len(sent)]
        if data:
            self._parser.feed(data)
            try:
                while (message := self._parser.next()) is not None:
                    self._messages.append(message)
            except wire.ProtocolViolation as error:
                raise RingError(f"xenstore sent nonsense: {error}") from None
        return bool(data or sent)

    def next_message(self) -> Message | None:
        """The next whole message from the server, reply or watch event (req_id 0), in order of arrival; or None."""
        return self._messages.popleft() if self._messages else None

    @property
    def unsent(self) -> int:
        """Bytes of requests that did not fit the ring yet."""
        return len(self._unsent)

    def reconnect(self) -> None:
        """Ask the server to begin anew, and forget what was queued; notify it, and wait until `connected`.

        Requests may be queued meanwhile. RingError: the server does not offer it.
        """
        if not self.features & FEATURE_RECONNECTION:
            raise RingError("this xenstore does not offer reconnection")
        self._page.words[CONNECTION] = RECONNECT
        self._reconnecting = True
        self._parser.clear()
        self._unsent.clear()
        self._messages.clear()

    @property
    def connected(self) -> bool:
        """Whether no reconnect is pending."""
        return not self.features & FEATURE_RECONNECTION or self._page.words[CONNECTION] == CONNECTED

    def release(self) -> None:
        """Give up the page."""
        self._page.release()
