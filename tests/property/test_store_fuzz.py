"""Garbage in: whatever bytes a client or a guest's ring page holds, only that client suffers.

If this fails, a hostile guest can raise an exception in the host, disturb another domain's xenstore, or make the
store's books disagree with its contents.
"""

from __future__ import annotations

import struct

import hypothesis.strategies as st
from hypothesis import given, settings

from xenlike.store import RingClient, RingError, RingTransport, Store, wire
from xenlike.store.operations import OPERATIONS
from xenlike.store.wire import Type

settings.register_profile("store-fuzz", deadline=None, max_examples=150)
fuzz = settings.get_profile("store-fuzz")

pieces = st.sampled_from([
    b"/", b"/local", b"/local/domain/1", b"/local/domain/1/x", b"x", b"x/y", b"@releaseDomain", b"@introduceDomain/1",
    b"n1", b"r1", b"b0", b"1", b"0", b"2", b"7", b"65535", b"-1", b"T", b"F", b"nodes", b"help", b"quota", b"set", b"print",
    b"check", b"memreport", b"token", b"", b"\xff", b"//", b"a" * 300,
])
payloads = st.one_of(
    st.binary(max_size=64),
    st.lists(pieces, max_size=5).map(lambda parts: b"".join(part + b"\0" for part in parts)),
    st.tuples(pieces, st.binary(max_size=3000)).map(lambda pair: pair[0] + b"\0" + pair[1]),
)
messages = st.builds(
    lambda kind, tx, payload: wire.pack(kind, 5, tx, payload),
    st.one_of(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 0xFFFFFFFF)),
    st.sampled_from([0, 0, 0, 1, 2, 3, 0xFFFFFFFF]),
    payloads,
)
streams = st.lists(st.one_of(messages, messages, messages, st.binary(max_size=40)), max_size=25)


def world() -> Store:
    store = Store()
    xs = store.direct()
    for domid in (1, 2):
        xs.mkdir(f"/local/domain/{domid}")
        xs.set_perms(f"/local/domain/{domid}", [f"n{domid}"])
    xs.write("/local/domain/2/precious", "value")
    xs.set_perms("/local/domain/2/precious", ["n2"])
    return store


def unharmed(store: Store, neighbour) -> None:
    """Domain 2 works as if nothing had happened, and the books are right."""
    neighbour.feed(wire.pack(Type.READ, 9, 0, b"precious\0"))
    assert neighbour.take_output(1 << 20).endswith(wire.pack(Type.READ, 9, 0, b"value"))
    assert store.check() == []


@given(streams, st.data())
@settings(fuzz)
def test_random_bytes_into_a_guests_connection(stream, data):
    """An unprivileged client may send anything, cut anywhere; replies are well-formed and neighbours do not notice."""
    store = world()
    guest, neighbour = store.connect(1), store.connect(2)
    everything = b"".join(stream)
    parser = wire.Parser()
    while everything:
        size = data.draw(st.integers(1, len(everything)))
        guest.feed(everything[:size])
        everything = everything[size:]
        while guest.has_output:
            parser.feed(guest.take_output(data.draw(st.integers(1, 5000))))
    while (message := parser.next()) is not None:
        assert message.type in OPERATIONS or message.type in (Type.WATCH_EVENT, Type.ERROR)
    assert len(parser) == 0 or guest.closed
    unharmed(store, neighbour)


@given(streams)
@settings(fuzz)
def test_random_bytes_into_a_privileged_connection(stream):
    """dom0's tools may destroy nodes, but not the store: nothing raises, and the books stay right."""
    store = world()
    tool = store.connect(0)
    for piece in stream:
        tool.feed(piece)
        tool.take_output(1 << 20)
    assert store.check() == []
    fresh = store.connect(0)
    fresh.feed(wire.pack(Type.WRITE, 1, 0, b"/still\0works") + wire.pack(Type.READ, 2, 0, b"/still\0"))
    assert fresh.take_output(1 << 20).endswith(b"works")


@given(streams)
@settings(fuzz)
def test_a_guest_that_never_reads_costs_a_bounded_amount(stream):
    """Without taking a byte of output, a guest gets no more than its quotas' worth of host memory."""
    store = world()
    guest, neighbour = store.connect(1), store.connect(2)
    for piece in stream * 20:
        if not guest.accepts_input():
            break
        guest.feed(piece)
    usage = store.domains.record(1).usage
    assert usage.outstanding <= store.limits["outstanding"]
    assert guest.output_bytes <= store.limits["memory"]
    unharmed(store, neighbour)


# Index updates a hostile guest may make between services: which word, and its value or its step.
scribbles = st.lists(
    st.tuples(
        st.sampled_from([2048, 2052, 2056, 2060, 2064, 2068, 2072, 2076, 0, 500, 1020]),
        st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, 1024, 1025, 0x80000000, 0xFFFFFFFF])),
    ),
    max_size=6,
)


@given(st.lists(st.tuples(scribbles, st.binary(max_size=200), st.booleans()), max_size=12), st.booleans())
@settings(fuzz)
def test_hostile_ring_page(rounds, well_formed):
    """Any values in any words of the page, at any time: the transport returns, other rings are served."""
    store = world()
    bad_page, good_page = bytearray(4096), bytearray(4096)
    bad = RingTransport(store, 1, bad_page, lambda: None)
    good = RingTransport(store, 2, good_page, lambda: None)
    client = RingClient(good_page)
    for scribble, data, produce in rounds:
        if produce:
            bad_page[: len(data)] = data
            if well_formed:
                request = wire.pack(Type.WATCH, 1, 0, b"x\0t\0")
                bad_page[: len(request)] = request
            struct.pack_into("<I", bad_page, 2052, struct.unpack_from("<I", bad_page, 2048)[0] + len(data) & 0xFFFFFFFF)
        for offset, value in scribble:
            struct.pack_into("<I", bad_page, offset, value)
        bad.service()
        store.direct().write("/local/domain/1/x", "event for the bad guest")
    client.request(Type.READ, b"precious\0")
    client.service()
    good.service()
    client.service()
    assert client.next_message().payload == b"value"
    bad_page[2068:2072] = b"\1\0\0\0"
    bad.service()
    assert bad_page[2048:2064] == bytes(16) and not bad.connection.closed
    assert store.check() == []


@given(st.binary(max_size=64), st.sampled_from([2056, 2060, 2048, 2072]), st.integers(0, 0xFFFFFFFF))
@settings(fuzz)
def test_hostile_server_page(data, offset, value):
    """The guest's side, too, ends with its own error and nothing else."""
    page = bytearray(4096)
    client = RingClient(page)
    client.request(Type.READ, b"/\0")
    page[1024 : 1024 + len(data)] = data
    struct.pack_into("<I", page, 2060, len(data))
    struct.pack_into("<I", page, offset, value)
    try:
        client.service()
        while client.next_message() is not None:
            pass
    except RingError:
        pass
