"""What the xenstore unit tests share: a client that speaks bytes to one `Connection`; hooks that write down their calls; three fixtures.

The fixtures ``store`` (with such hooks), ``dom0``, which has made homes for domains 5 and 6, and ``guest``, domain 5, are for test files
that name them as their own (``store = storekit.store``).
"""

from __future__ import annotations

import pytest

from xenlike.store import Connection, Hooks, Store, StoreError, wire
from xenlike.store.wire import Message, Type


class Client:
    """A wire client of `store` as domain `domid`; every method goes through real request and reply bytes."""

    def __init__(self, store: Store, domid: int, *, privileged: bool | None = None) -> None:
        self.store = store
        self.conn: Connection = store.connect(domid, privileged=privileged)
        self.events: list[tuple[bytes, bytes]] = []
        self._parser = wire.Parser()
        self._req_id = 0

    def send(self, kind: int, payload: bytes = b"", tx: int = 0) -> int:
        """Feed one request without looking at the output; its request id."""
        self._req_id += 1
        self.conn.feed(wire.pack(kind, self._req_id, tx, payload))
        return self._req_id

    def receive(self) -> list[Message]:
        """Every message that waits; watch events also go to `events`."""
        self._parser.feed(self.conn.take_output(1 << 20))
        messages = []
        while (message := self._parser.next()) is not None:
            if message.type == Type.WATCH_EVENT:
                assert (message.req_id, message.tx_id) == (0, 0)
                path, token, rest = message.payload.split(b"\0")
                assert rest == b""
                self.events.append((path, token))
            messages.append(message)
        return messages

    def call(self, kind: int, *strings: bytes, tx: int = 0, raw: bytes = b"") -> bytes:
        """One request of NUL-terminated strings and `raw`; the reply's payload, or b"!ENAME" for an error."""
        req_id = self.send(kind, b"".join(s + b"\0" for s in strings) + raw, tx)
        replies = [m for m in self.receive() if m.type != Type.WATCH_EVENT]
        assert len(replies) == 1, replies
        reply = replies[0]
        assert (reply.req_id, reply.tx_id) == (req_id, tx)
        if reply.type == Type.ERROR:
            assert reply.payload.endswith(b"\0")
            return b"!" + reply.payload[:-1]
        assert reply.type == kind
        return reply.payload

    def take_events(self) -> list[tuple[bytes, bytes]]:
        """Events received since the last time."""
        self.receive()
        events, self.events = self.events, []
        return events

    # The operations that tests use most.

    def read(self, path: bytes, tx: int = 0) -> bytes:
        return self.call(Type.READ, path, tx=tx)

    def write(self, path: bytes, value: bytes = b"", tx: int = 0) -> bytes:
        return self.call(Type.WRITE, path, raw=value, tx=tx)

    def mkdir(self, path: bytes, tx: int = 0) -> bytes:
        return self.call(Type.MKDIR, path, tx=tx)

    def rm(self, path: bytes, tx: int = 0) -> bytes:
        return self.call(Type.RM, path, tx=tx)

    def ls(self, path: bytes, tx: int = 0) -> bytes:
        return self.call(Type.DIRECTORY, path, tx=tx)

    def get_perms(self, path: bytes, tx: int = 0) -> bytes:
        return self.call(Type.GET_PERMS, path, tx=tx)

    def set_perms(self, path: bytes, *perms: bytes, tx: int = 0) -> bytes:
        return self.call(Type.SET_PERMS, path, *perms, tx=tx)

    def watch(self, path: bytes, token: bytes, *depth: bytes) -> bytes:
        return self.call(Type.WATCH, path, token, *depth)

    def unwatch(self, path: bytes, token: bytes) -> bytes:
        return self.call(Type.UNWATCH, path, token)

    def begin(self) -> int:
        return int(self.call(Type.TRANSACTION_START, b"").rstrip(b"\0"))

    def end(self, tx: int, answer: bytes = b"T") -> bytes:
        return self.call(Type.TRANSACTION_END, answer, tx=tx)


OK = b"OK\0"


class Recorder(Hooks):
    """Hooks that write down their calls, and refuse gfn 666."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def introduce(self, domid, gfn, port):
        if gfn == 666:
            raise StoreError("EINVAL", "no such frame")
        self.calls.append(("introduce", domid, gfn, port))

    def release(self, domid):
        self.calls.append(("release", domid))

    def resume(self, domid):
        self.calls.append(("resume", domid))

    def print(self, text):
        self.calls.append(("print", text))


@pytest.fixture
def store() -> Store:
    return Store(Recorder())


@pytest.fixture
def dom0(store) -> Client:
    client = Client(store, 0)
    for domid in (b"5", b"6"):
        client.mkdir(b"/local/domain/" + domid)
        client.set_perms(b"/local/domain/" + domid, b"n" + domid)
    return client


@pytest.fixture
def guest(store, dom0) -> Client:
    return Client(store, 5)


def quota(dom0: Client, name: bytes, value: int) -> None:
    assert dom0.call(Type.SET_QUOTA, name, b"%d" % value) == OK
