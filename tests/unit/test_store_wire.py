"""The byte format: what would be wrong here is framing, so that every client would be misread or misread us."""

from __future__ import annotations

import struct

import pytest

from xenlike.store import ERRNO, Store, StoreError, wire
from xenlike.store.operations import OPERATIONS
from xenlike.store.wire import Type

from storekit import OK, Client


def test_header_is_four_little_endian_words():
    """Wrong field order or width would break every client there is."""
    assert wire.pack(2, 0x01020304, 7, b"/a\0") == struct.pack("<4I", 2, 0x01020304, 7, 3) + b"/a\0"


def test_parser_takes_any_cut_of_the_stream():
    """Rings wrap and sockets split: a message cut at any byte must come out whole, once."""
    stream = wire.pack(2, 1, 0, b"/a\0") + wire.pack(11, 2, 5, b"/b\0value") + wire.pack(6, 3, 0, b"")
    expected = [(2, 1, 0, b"/a\0"), (11, 2, 5, b"/b\0value"), (6, 3, 0, b"")]
    for cut in range(len(stream) + 1):
        parser, got = wire.Parser(), []
        for piece in (stream[:cut], stream[cut:]):
            parser.feed(piece)
            while (message := parser.next()) is not None:
                got.append(tuple(message))
        assert got == expected
        assert len(parser) == 0


def test_every_reply_echoes_ids_and_a_byte_at_a_time_works():
    """Clients match replies by req_id and tx_id; feeding single bytes must make no difference."""
    store = Store()
    conn = store.connect(0)
    for byte in wire.pack(Type.READ, 0xDEADBEEF, 0, b"/nowhere\0"):
        conn.feed(bytes([byte]))
    assert conn.take_output(4096) == wire.pack(Type.ERROR, 0xDEADBEEF, 0, b"ENOENT\0")


@pytest.mark.parametrize("length", [4097, 0x7FFFFFFF, 0xFFFFFFFF])
def test_oversized_payload_kills_only_that_connection(length):
    """A length over 4096 must end the connection at the header, before anything is buffered for it."""
    store = Store()
    bad, good = Client(store, 1), Client(store, 0)
    bad.watch(b"x", b"t")
    bad.begin()
    bad.conn.feed(wire.HEADER.pack(Type.READ, 1, 0, length))
    assert bad.conn.closed and bad.conn.error == wire.ERROR_PROTO
    assert not bad.conn.has_output
    bad.conn.feed(wire.pack(Type.READ, 1, 0, b"/\0"))
    assert not bad.conn.has_output
    usage = store.domains.record(1).usage
    assert (usage.watches, usage.transactions, usage.outstanding, usage.memory) == (0, 0, 0, 0)
    assert good.read(b"/tool") == b""
    assert store.check() == []


def test_payload_of_exactly_4096_is_accepted():
    """The limit is inclusive: the longest legal WRITE must not look like a violation."""
    client = Client(Store(), 0)
    path = b"/big"
    value = b"v" * (4096 - len(path) - 1)
    assert client.write(path, value) == OK
    assert client.read(path) == value


def test_unknown_and_server_only_types_are_enosys():
    """A newer client must be able to probe: unknown types answer, they do not kill."""
    client = Client(Store(), 0)
    for kind in (Type.WATCH_EVENT, Type.ERROR, Type.RESTRICT, 27, 128, 65535, 0xFFFFFFFF):
        assert kind not in OPERATIONS
        assert client.call(kind, b"/") == b"!ENOSYS"
    assert set(OPERATIONS) == set(range(27)) - {Type.WATCH_EVENT, Type.ERROR, Type.RESTRICT}


@pytest.mark.parametrize(
    "kind", [Type.DIRECTORY, Type.READ, Type.GET_PERMS, Type.MKDIR, Type.RM, Type.TRANSACTION_END, Type.RELEASE,
             Type.GET_DOMAIN_PATH, Type.IS_DOMAIN_INTRODUCED, Type.RESUME]
)
@pytest.mark.parametrize("payload", [b"", b"1", b"/tool", b"/tool\0x", b"/tool\0x\0"])
def test_one_string_operations_want_exactly_one(kind, payload):
    """A string without its NUL, or more after it, is EINVAL: guessing would let a client read another path."""
    client = Client(Store(), 0)
    assert client.call(kind, raw=payload) == b"!EINVAL"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Type.WRITE, b"/no-nul"),
        (Type.WATCH, b"/a\0"),
        (Type.WATCH, b"/a\0t\0-1\0"),
        (Type.WATCH, b"/a\0t\0x\0"),
        (Type.WATCH, b"/a\0t\0" + b"1\0" * 2),
        (Type.UNWATCH, b"/a\0"),
        (Type.UNWATCH, b"/a\0t\0u\0"),
        (Type.SET_PERMS, b"/tool\0"),
        (Type.SET_PERMS, b"/tool\0x0\0"),
        (Type.SET_PERMS, b"/tool\0r\0"),
        (Type.SET_PERMS, b"/tool\0r-1\0"),
        (Type.SET_PERMS, b"/tool\0r65536\0"),
        (Type.SET_PERMS, b"/tool\0\xff0\0"),
        (Type.INTRODUCE, b"1\0002\0"),
        (Type.INTRODUCE, b"x\0002\0003\0"),
        (Type.INTRODUCE, b"1\0002\0000\0"),
        (Type.INTRODUCE, b"0\0002\0003\0"),
        (Type.INTRODUCE, b"32752\0002\0003\0"),
        (Type.SET_TARGET, b"1\0"),
        (Type.DIRECTORY_PART, b"/tool\0"),
        (Type.DIRECTORY_PART, b"/tool\0x\0"),
        (Type.GET_DOMAIN_PATH, b"65536\0"),
        (Type.GET_DOMAIN_PATH, b"-1\0"),
        (Type.GET_DOMAIN_PATH, b"\0"),
        (Type.CONTROL, b"no-such-command\0"),
        (Type.CONTROL, b""),
        (Type.GET_QUOTA, b"no-such-quota\0"),
        (Type.SET_QUOTA, b"nodes\0-1\0"),
        (Type.SET_FEATURE, b"1\000x\0"),
        (Type.SET_FEATURE, b"1\00016\0"),
    ],
)
def test_malformed_arguments_are_einval(kind, payload):
    """Each malformed argument gets EINVAL, and the store is as before."""
    store = Store()
    client = Client(store, 0)
    before = store.top
    assert client.call(kind, raw=payload) == b"!EINVAL"
    assert store.top is before


def test_reserved_bytes_after_the_last_string_are_ignored():
    """WATCH, UNWATCH and INTRODUCE have a reserved tail; clients that fill it must still work."""
    client = Client(Store(), 0)
    assert client.call(Type.WATCH, b"/a", b"t", raw=b"tail") == OK
    assert client.call(Type.UNWATCH, b"/a", b"t", raw=b"tail") == OK
    assert client.call(Type.INTRODUCE, b"3", b"-5", b"7", raw=b"tail") == OK


def test_error_names_are_those_of_the_protocol():
    """A name that is not in xs_wire.h cannot be translated by any client."""
    assert set(ERRNO) == set(
        "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN EISCONN E2BIG EPERM".split()
    )
    assert wire.error_payload(StoreError("EAGAIN")) == b"EAGAIN\0"
    assert wire.error_from_payload(b"EAGAIN\0").errno == 11
    assert wire.error_from_payload(b"EWEIRD\0").name == "EIO"


def test_store_error_text_names_domain_operation_value_and_remedy():
    """An error that a toolstack author sees must say who, what, which value, and what to do."""
    direct = Store().direct()
    with pytest.raises(StoreError) as caught:
        direct.read("/local/domain/9/name")
    text = str(caught.value)
    for part in ("domain 0", "READ", "ENOENT", "/local/domain/9/name", "create it first"):
        assert part in text
