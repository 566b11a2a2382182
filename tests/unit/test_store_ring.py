"""The xenstore ring page, both ends: wrapping, partial messages, stalls, hostile indices, reconnection."""

from __future__ import annotations

import struct

import pytest

from xenlike.store import Hooks, RingClient, RingError, RingTransport, Store, ringpage, wire
from xenlike.store.wire import Type

REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, CONNECTION, ERROR = range(2048, 2076, 4)


def word(page: bytearray, offset: int) -> int:
    return struct.unpack_from("<I", page, offset)[0]


def set_word(page: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<I", page, offset, value & 0xFFFFFFFF)


class Wire:
    """One guest on a ring of its own, notifications counted; `run` lets both ends move until nothing moves."""

    def __init__(self, store: Store, domid: int, page: bytearray | None = None) -> None:
        self.page = bytearray(4096) if page is None else page
        self.notified = 0
        self.transport = RingTransport(store, domid, self.page, self._notify)
        self.client = RingClient(self.page)

    def _notify(self) -> None:
        self.notified += 1

    def run(self) -> list[wire.Message]:
        messages = []
        while True:
            moved = self.client.service()
            moved |= self.transport.service()
            while (message := self.client.next_message()) is not None:
                messages.append(message)
            if not moved:
                return messages

    def call(self, kind: int, payload: bytes, tx: int = 0) -> wire.Message:
        req_id = self.client.request(kind, payload, tx_id=tx)
        return next(m for m in self.run() if m.req_id == req_id)


@pytest.fixture
def store() -> Store:
    store = Store()
    xs = store.direct()
    for domid in (5, 6):
        xs.mkdir(f"/local/domain/{domid}")
        xs.set_perms(f"/local/domain/{domid}", [f"n{domid}"])
    return store


def test_layout(store):
    """Requests at 0, replies at 1024, indices from 2048: a guest that goes by the header must be understood."""
    page = bytearray(4096)
    notified = []
    transport = RingTransport(store, 5, page, lambda: notified.append(1))
    assert word(page, FEATURES) == wire.FEATURES
    request = wire.pack(Type.GET_DOMAIN_PATH, 7, 0, b"5\0")
    page[: len(request)] = request
    set_word(page, REQ_PROD, len(request))
    assert transport.service() is True
    assert notified == [1]
    reply = wire.pack(Type.GET_DOMAIN_PATH, 7, 0, b"/local/domain/5\0")
    assert word(page, REQ_CONS) == len(request)
    assert word(page, RSP_PROD) == len(reply)
    assert page[1024 : 1024 + len(reply)] == reply
    assert transport.service() is False
    assert notified == [1]


@pytest.mark.parametrize("start", [0, 1, 1000, 1023, 0xFFFFFFF0, 0xFFFFFFFF])
def test_streams_longer_than_the_ring_from_any_index(store, start):
    """Indices run free and wrap at 2**32, messages wrap at 1024 and may be longer than the ring."""
    page = bytearray(4096)
    for offset in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
        set_word(page, offset, start)
    guest = Wire(store, 5, page)
    value = bytes(range(256)) * 8
    for i in range(20):
        assert guest.call(Type.WRITE, b"data\0" + value[i:]).payload == b"OK\0"
        assert guest.call(Type.READ, b"data\0").payload == value[i:]
    assert word(page, REQ_CONS) == word(page, REQ_PROD)


def test_pipelined_requests_are_answered_in_order(store):
    """Linux sends several requests before it reads; all are answered, also beyond the outstanding quota."""
    guest = Wire(store, 5)
    ids = [guest.client.request(Type.WRITE, b"x\0%d" % i) for i in range(200)]
    assert [m.req_id for m in guest.run()] == ids
    assert guest.call(Type.READ, b"x\0").payload == b"199"


class _PublishesMeanwhile:
    """A page's index words, on which the guest publishes another piece just before the server publishes what it took."""

    def __init__(self, page: bytearray, words, piece: bytes) -> None:
        self.page, self.words, self.piece = page, words, piece

    def __getitem__(self, n):
        return self.words[n]

    def __setitem__(self, n, value):
        if n == ringpage.REQ_CONS and self.piece:
            prod = word(self.page, REQ_PROD)
            self.page[prod : prod + len(self.piece)] = self.piece
            set_word(self.page, REQ_PROD, prod + len(self.piece))
            self.piece = b""
        self.words[n] = value


def test_what_is_published_without_an_event_is_taken(store):
    """Linux publishes a request's body without an event if its header is not consumed yet: the guest waited for ever."""
    page = bytearray(4096)
    transport = RingTransport(store, 5, page, lambda: None)
    request = wire.pack(Type.WRITE, 1, 0, b"x\0meanwhile")
    page[:16], page_words = request[:16], transport._page.words
    set_word(page, REQ_PROD, 16)
    transport._page.words = _PublishesMeanwhile(page, page_words, request[16:])
    transport.service()
    assert transport.more and word(page, RSP_PROD) == 0
    transport.service()
    assert not transport.more and word(page, RSP_PROD) > 0
    assert store.direct().read("/local/domain/5/x") == "meanwhile"


def test_full_reply_ring_waits_for_the_guest(store):
    """A guest that does not consume replies gets no more than a ring's worth, loses none, and stops being served."""
    page = bytearray(4096)
    transport = RingTransport(store, 5, page, lambda: None)
    store.direct().write("/local/domain/5/v", "x" * 500)
    store.direct().set_perms("/local/domain/5/v", ["n5"])
    request = wire.pack(Type.READ, 0, 0, b"v\0")
    prod = 0
    for _ in range(100):
        free = 1024 - (prod - word(page, REQ_CONS))
        if free < len(request):
            break
        for byte in request:
            page[prod % 1024] = byte
            prod += 1
        set_word(page, REQ_PROD, prod)
        transport.service()
    assert word(page, RSP_PROD) == 1024
    assert transport.connection.stalled
    served, cons, reply = 0, 0, bytearray()
    while word(page, RSP_PROD) != cons:
        while cons != word(page, RSP_PROD):
            reply.append(page[1024 + cons % 1024])
            cons += 1
        set_word(page, RSP_CONS, cons)
        transport.service()
    assert word(page, REQ_CONS) == prod
    expected = wire.pack(Type.READ, 0, 0, b"x" * 500)
    assert bytes(reply) == expected * (prod // len(request))


def test_events_reach_a_guest_that_did_not_ask_anything(store):
    """A watch event must go into the ring and notify at once, not wait for the guest's next request."""
    guest = Wire(store, 5)
    guest.call(Type.WATCH, b"device\0t\0")
    guest.run()
    before = guest.notified
    store.direct().write("/local/domain/5/device/vbd", "v")
    assert guest.notified == before + 1
    assert [m.payload for m in guest.run()] == [b"device/vbd\0t\0"]


def test_a_guest_stalled_by_a_slow_reader_is_resumed_by_it(store):
    """Once the reader takes its events, requests left in the other's ring are served without the other asking again."""
    xs = store.direct()
    xs.set_perms("/local/domain/5", ["r5"])
    fast, slow = Wire(store, 5), Wire(store, 6)
    slow.call(Type.WATCH, b"/local/domain/5\0" + b"token" * 20 + b"\0")
    slow.run()
    for i in range(40):
        fast.client.request(Type.WRITE, b"n%d\0v" % i)
    fast.run()
    assert fast.transport.connection.stalled and not xs.exists("/local/domain/5/n35")
    for i in range(40, 50):
        fast.client.request(Type.WRITE, b"n%d\0v" % i)
    fast.client.service()
    fast.transport.service()
    assert word(fast.page, REQ_CONS) != word(fast.page, REQ_PROD)
    events = slow.run()
    assert word(fast.page, REQ_CONS) == word(fast.page, REQ_PROD)
    assert xs.exists("/local/domain/5/n49")
    assert len(events) == 50
    assert store.check() == []


@pytest.mark.parametrize("prod", [1025, 5000, 0x80000000, 0xFFFFFFFF])
def test_impossible_request_index_stops_that_domain_only(store, prod):
    """An index more than a ring ahead is a protocol violation: error 2, no more service, nobody else hurt."""
    bad, good = Wire(store, 5), Wire(store, 6)
    bad.call(Type.WATCH, b"x\0t\0")
    set_word(bad.page, REQ_PROD, word(bad.page, REQ_CONS) + prod)
    assert bad.transport.service() is True
    assert word(bad.page, ERROR) == wire.ERROR_RINGIDX
    assert bad.transport.connection.closed
    assert bad.transport.service() is False
    with pytest.raises(RingError, match="error 2"):
        bad.client.service()
    assert good.call(Type.GET_DOMAIN_PATH, b"6\0").payload == b"/local/domain/6\0"
    store.direct().write("/local/domain/5/x", "v")
    assert store.check() == []


def test_impossible_reply_index_stops_that_domain_only(store):
    """The guest's consumer index is no more to be trusted than its producer index."""
    bad = Wire(store, 5)
    bad.client.request(Type.GET_DOMAIN_PATH, b"5\0")
    bad.client.service()
    set_word(bad.page, RSP_CONS, 1)
    assert bad.transport.service() is True
    assert word(bad.page, ERROR) == wire.ERROR_RINGIDX


def test_server_indices_are_not_taken_from_the_page(store):
    """A guest that overwrites the server's own indices confuses nobody but itself."""
    guest = Wire(store, 5)
    guest.call(Type.GET_DOMAIN_PATH, b"5\0")
    guest.client.request(Type.WRITE, b"after\0v")
    guest.client.service()
    for offset in (REQ_CONS, RSP_PROD):
        set_word(guest.page, offset, 0x12345678)
    guest.transport.service()
    assert store.direct().read("/local/domain/5/after") == "v"


def test_oversized_message_is_error_3(store):
    """A header with a length over 4096 stops the domain with the protocol error."""
    guest = Wire(store, 5)
    header = wire.HEADER.pack(Type.READ, 0, 0, 4097)
    guest.page[: len(header)] = header
    set_word(guest.page, REQ_PROD, len(header))
    guest.transport.service()
    assert word(guest.page, ERROR) == wire.ERROR_PROTO


def test_reconnect_resets_everything(store):
    """A guest's new kernel asks for a clean ring: no old watch, transaction, half message or index remains."""
    guest = Wire(store, 5)
    guest.call(Type.WATCH, b"w\0t\0")
    tx = int(guest.call(Type.TRANSACTION_START, b"\0").payload[:-1])
    guest.client.request(Type.WRITE, b"half\0" + b"x" * 2000)
    guest.client.service()
    guest.transport.service()
    guest.client.reconnect()
    assert not guest.client.connected
    guest.client.request(Type.WRITE, b"new\0v")
    assert guest.client.service() is False
    before = guest.notified
    assert guest.transport.service() is True
    assert guest.notified == before + 1
    assert guest.client.connected
    assert [word(guest.page, o) for o in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, CONNECTION, ERROR)] == [0] * 6
    assert [m.payload for m in guest.run()] == [b"OK\0"]
    xs = store.direct()
    assert xs.read("/local/domain/5/new") == "v" and not xs.exists("/local/domain/5/half")
    xs.write("/local/domain/5/w", "v")
    assert guest.run() == []
    assert guest.call(Type.READ, b"new\0", tx).type == Type.ERROR
    assert store.check() == []


def test_reconnect_after_a_violation(store):
    """Reconnection also forgives: the guest's next kernel is not the one that broke the ring."""
    guest = Wire(store, 5)
    set_word(guest.page, REQ_PROD, 99999)
    guest.transport.service()
    guest.client.reconnect()
    guest.transport.service()
    assert guest.call(Type.GET_DOMAIN_PATH, b"5\0").payload == b"/local/domain/5\0"


def test_without_the_feature_the_connection_word_means_nothing(store):
    """Older servers leave the words alone; a stray 1 there must not reset a ring in use."""
    store.domains.set_features(5, 0)
    guest = Wire(store, 5)
    assert word(guest.page, FEATURES) == 0
    guest.call(Type.WRITE, b"x\0v")
    set_word(guest.page, CONNECTION, 1)
    assert guest.call(Type.READ, b"x\0").payload == b"v"
    with pytest.raises(RingError):
        guest.client.reconnect()
    set_word(guest.page, REQ_PROD, 99999)
    guest.transport.service()
    assert word(guest.page, ERROR) == 0
    assert guest.transport.connection.closed


def test_introduce_and_release_through_hooks(store):
    """How the toolstack uses it: the ring lives from INTRODUCE to the domain's end, and frees its page."""

    class Rings(Hooks):
        def __init__(self):
            self.rings = {}

        def introduce(self, domid, gfn, port):
            if domid in self.rings:
                self.rings[domid].transport.reset()
            else:
                self.rings[domid] = Wire(store, domid)

        def release(self, domid):
            self.rings.pop(domid).transport.detach()

    store.hooks = hooks = Rings()
    xs = store.direct()
    xs.introduce(5, 1, 1)
    guest = hooks.rings[5]
    assert guest.call(Type.WRITE, b"x\0v").payload == b"OK\0"
    xs.introduce(5, 1, 2)
    assert word(guest.page, REQ_PROD) == 0
    guest.client = RingClient(guest.page)
    assert guest.call(Type.READ, b"x\0").payload == b"v"
    store.domain_died(5)
    assert hooks.rings == {}
    assert guest.transport.service() is False
    guest.client.release()
    guest.page.extend(b"resizable again")  # raises BufferError while a view of the page is left
    guest.transport.detach()


def test_release_by_the_guests_own_doing_while_it_is_served(store):
    """A callback may detach the very ring whose request caused it; the service call must end quietly."""
    guest = Wire(store, 5)
    xs = store.direct()
    xs.watch("/local/domain/5/kill", "t", lambda path, token: xs.exists(path) and guest.transport.detach())
    guest.client.request(Type.WRITE, b"kill\0v")
    guest.client.service()
    guest.transport.service()
    assert guest.transport.detached and guest.transport.connection.closed


def test_client_checks_the_server_too(store):
    """A broken server must give the guest an error, not an endless loop."""
    for offset, value in ((RSP_PROD, 5000), (REQ_CONS, 7)):
        page = bytearray(4096)
        client = RingClient(page)
        client.request(Type.READ, b"/\0")
        set_word(page, offset, value)
        with pytest.raises(RingError, match="corrupt"):
            client.service()
    page = bytearray(4096)
    client = RingClient(page)
    page[1024:1040] = wire.HEADER.pack(Type.READ, 0, 0, 5000)
    set_word(page, RSP_PROD, 16)
    with pytest.raises(RingError, match="nonsense"):
        client.service()
    with pytest.raises(ValueError):
        client.request(Type.READ, b"x" * 4097)


def test_pages_that_cannot_be_a_ring_are_refused(store):
    """A short or read-only buffer is a mistake of ours, to be told at once."""
    with pytest.raises(ValueError, match="writable page"):
        RingTransport(store, 5, bytearray(100), lambda: None)
    with pytest.raises(ValueError, match="writable page"):
        RingClient(bytes(4096))
