"""Transactions: wrong conflict detection loses an update silently, or makes clients retry for ever."""

from __future__ import annotations

import pytest

from xenlike.store import Store
from xenlike.store.wire import Type

from storekit import OK, Client


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def a(store) -> Client:
    client = Client(store, 0)
    client.write(b"/d/x", b"x0")
    client.write(b"/d/y", b"y0")
    client.write(b"/e/z", b"z0")
    return client


@pytest.fixture
def b(store) -> Client:
    return Client(store, 0)


def test_changes_are_private_until_the_end(a, b):
    """Nobody else sees a transaction's writes, and the writer does, until it commits."""
    tx = a.begin()
    assert a.write(b"/d/x", b"x1", tx) == OK
    assert a.rm(b"/d/y", tx) == OK
    assert a.mkdir(b"/d/new/deep", tx) == OK
    assert (a.read(b"/d/x", tx), a.read(b"/d/y", tx), a.ls(b"/d", tx)) == (b"x1", b"!ENOENT", b"x\0new\0")
    assert (b.read(b"/d/x"), b.read(b"/d/y"), b.ls(b"/d")) == (b"x0", b"y0", b"x\0y\0")
    assert a.end(tx) == OK
    assert (b.read(b"/d/x"), b.read(b"/d/y"), b.ls(b"/d")) == (b"x1", b"!ENOENT", b"x\0new\0")


def test_abort_leaves_nothing(a, b):
    """F discards everything, and fires nothing."""
    b.watch(b"/", b"t")
    b.take_events()
    tx = a.begin()
    a.write(b"/d/x", b"x1", tx)
    a.rm(b"/e", tx)
    before = a.store.top
    assert a.end(tx, b"F") == OK
    assert a.store.top is before
    assert b.take_events() == []


def test_reads_are_of_the_start(a, b):
    """A transaction reads the store as it was when it began, not a mixture of moments."""
    tx = a.begin()
    b.write(b"/d/x", b"x1")
    b.write(b"/d/y", b"y1")
    assert (a.read(b"/d/x", tx), a.read(b"/d/y", tx)) == (b"x0", b"y0")
    assert a.end(tx) == b"!EAGAIN"


@pytest.mark.parametrize(
    ("inside", "outside", "result"),
    [
        pytest.param(lambda c, tx: c.read(b"/d/x", tx), lambda c: c.write(b"/d/x", b"1"), b"!EAGAIN", id="read-written"),
        pytest.param(lambda c, tx: c.write(b"/d/x", b"2", tx), lambda c: c.write(b"/d/x", b"1"), b"!EAGAIN", id="write-write"),
        pytest.param(lambda c, tx: c.read(b"/d/x", tx), lambda c: c.write(b"/d/x", b"x0"), b"!EAGAIN", id="same-value-is-a-write"),
        pytest.param(lambda c, tx: c.read(b"/d/x", tx), lambda c: c.write(b"/d/y", b"1"), OK, id="sibling"),
        pytest.param(lambda c, tx: c.write(b"/d/x", b"2", tx), lambda c: c.write(b"/d/y", b"1"), OK, id="write-sibling"),
        pytest.param(lambda c, tx: c.read(b"/d/x", tx), lambda c: c.rm(b"/d/x"), b"!EAGAIN", id="read-removed"),
        pytest.param(lambda c, tx: c.read(b"/d/x", tx), lambda c: c.rm(b"/d"), b"!EAGAIN", id="parent-removed"),
        pytest.param(lambda c, tx: c.read(b"/d/n", tx), lambda c: c.mkdir(b"/d/n"), b"!EAGAIN", id="missing-created"),
        pytest.param(lambda c, tx: c.read(b"/d/n", tx), lambda c: c.read(b"/d/n"), OK, id="missing-still"),
        pytest.param(lambda c, tx: c.ls(b"/d", tx), lambda c: c.mkdir(b"/d/n"), b"!EAGAIN", id="listed-grown"),
        pytest.param(lambda c, tx: c.ls(b"/d", tx), lambda c: c.write(b"/d/x", b"1"), OK, id="listed-value-below"),
        pytest.param(lambda c, tx: c.mkdir(b"/d/n", tx), lambda c: c.mkdir(b"/d/m"), b"!EAGAIN", id="two-children"),
        pytest.param(lambda c, tx: c.mkdir(b"/d/n", tx), lambda c: c.mkdir(b"/e/m"), OK, id="children-elsewhere"),
        pytest.param(lambda c, tx: c.rm(b"/d", tx), lambda c: c.write(b"/d/x", b"1"), b"!EAGAIN", id="removed-subtree-written"),
        pytest.param(lambda c, tx: c.get_perms(b"/d/x", tx), lambda c: c.set_perms(b"/d/x", b"r0"), b"!EAGAIN", id="perms"),
        pytest.param(lambda c, tx: c.set_perms(b"/d/x", b"r0", tx=tx), lambda c: c.write(b"/d/x", b"1"), b"!EAGAIN", id="perms-write"),
        pytest.param(lambda c, tx: OK, lambda c: c.rm(b"/d"), OK, id="nothing-used"),
    ],
)
def test_conflicts(a, b, inside, outside, result):
    """EAGAIN exactly when a node that the transaction used has another generation at its end."""
    tx = a.begin()
    inside(a, tx)
    assert not outside(b).startswith(b"!ENOSYS")
    outcome = b.store.top
    assert a.end(tx) == result
    if result == b"!EAGAIN":
        assert b.store.top is outcome
    assert a.store.check() == []


def test_rename_back_and_forth_is_a_conflict(a, b):
    """A node removed and made again is another node, though it reads the same."""
    tx = a.begin()
    a.read(b"/d/x", tx)
    b.rm(b"/d/x")
    b.write(b"/d/x", b"x0")
    assert a.end(tx) == b"!EAGAIN"


def test_commit_merges_with_unrelated_changes(a, b):
    """What others changed elsewhere during a transaction survives its commit, also below nodes that it wrote."""
    a.write(b"/d/x/below", b"old")
    tx = a.begin()
    a.write(b"/d/x", b"x1", tx)
    a.write(b"/d/sub/new", b"n", tx)
    a.rm(b"/d/y", tx)
    b.write(b"/e/z", b"z1")
    b.write(b"/d/x/below", b"kept")
    assert a.end(tx) == OK
    assert (b.read(b"/d/x"), b.read(b"/d/x/below"), b.read(b"/e/z")) == (b"x1", b"kept", b"z1")
    assert (b.read(b"/d/sub/new"), b.read(b"/d/y"), b.ls(b"/d")) == (b"n", b"!ENOENT", b"x\0sub\0")
    assert a.store.check() == []


def test_remove_and_create_again_within_one_transaction(a, b):
    """The end state counts: children of the removed node are gone, the new node is there."""
    a.write(b"/d/x/old", b"v")
    tx = a.begin()
    a.rm(b"/d", tx)
    a.write(b"/d/x/new", b"v", tx)
    b.write(b"/e/z", b"unrelated")
    assert a.end(tx) == OK
    assert (b.ls(b"/d"), b.ls(b"/d/x"), b.read(b"/d/x")) == (b"x\0", b"new\0", b"")
    tx = a.begin()
    a.write(b"/gone/soon", b"v", tx)
    a.rm(b"/gone", tx)
    b.write(b"/e/z", b"unrelated")
    assert a.end(tx) == OK
    assert b.read(b"/gone") == b"!ENOENT"
    assert a.store.check() == []


def test_events_follow_the_commit_one_a_node(a, b):
    """Watchers see the committed state at every event: none before the end, one a changed node, in order of first change."""
    b.watch(b"/", b"t")
    b.take_events()
    tx = a.begin()
    a.write(b"/d/x", b"1", tx)
    a.write(b"/n/m", b"1", tx)
    a.rm(b"/e", tx)
    a.write(b"/d/x", b"2", tx)
    assert b.take_events() == []
    a.end(tx)
    assert b.take_events() == [(b"/d/x", b"t"), (b"/n/m", b"t"), (b"/e", b"t")]


def test_removal_in_a_transaction_tells_watches_below(a, b):
    """A removal by a transaction is a removal: watches below hear of themselves."""
    b.watch(b"/e/z", b"t")
    b.take_events()
    tx = a.begin()
    a.rm(b"/e", tx)
    a.end(tx)
    assert b.take_events() == [(b"/e/z", b"t")]


def test_failed_commit_fires_nothing(a, b):
    """EAGAIN means that nothing happened."""
    b.watch(b"/", b"t")
    tx = a.begin()
    a.write(b"/d/x", b"1", tx)
    b.write(b"/d/x", b"2")
    b.take_events()
    assert a.end(tx) == b"!EAGAIN"
    assert b.take_events() == []
    assert a.end(tx) == b"!ENOENT"


def test_identifiers(a, b):
    """Transaction ids belong to a connection, never 0, and an ended one is unknown for every operation."""
    tx = a.begin()
    assert tx != 0
    assert b.read(b"/d/x", tx) == b"!ENOENT"
    assert a.call(Type.TRANSACTION_START, b"", tx=tx) == b"!EBUSY"
    assert a.end(tx, b"X") == b"!EINVAL"
    other = a.begin()
    assert other != tx
    assert a.end(tx) == OK
    assert a.end(other) == OK
    assert a.end(0) == b"!ENOENT"
    for kind in (Type.READ, Type.TRANSACTION_START, Type.TRANSACTION_END, Type.GET_DOMAIN_PATH):
        assert a.call(kind, b"T", tx=tx) == b"!ENOENT"


def test_identifiers_wrap_without_touching_zero_or_open_ones(a):
    """Ids are 32 bits; the counter must skip 0 and whatever is open when it comes round."""
    a.conn._next_transaction = 0xFFFFFFFF
    assert [a.begin() for _ in range(3)] == [0xFFFFFFFF, 1, 2]
    a.conn._next_transaction = 0xFFFFFFFF
    assert a.begin() == 3


def test_errors_inside_do_not_spoil_a_transaction(store, a):
    """A refused operation changes nothing, so the rest of the transaction is good."""
    a.mkdir(b"/local/domain/5")
    a.set_perms(b"/local/domain/5", b"n5")
    guest = Client(store, 5)
    tx = guest.begin()
    assert guest.write(b"ok", b"1", tx) == OK
    assert guest.write(b"/d/x", b"no", tx) == b"!EACCES"
    assert guest.write(b"big", b"x" * 2049, tx) == b"!ENOSPC"
    assert guest.end(tx) == OK
    assert guest.read(b"ok") == b"1"
    assert guest.read(b"big") == b"!ENOENT"


def test_closing_ends_transactions(store, a, b):
    """A client that goes away leaves neither its changes nor its share of the books."""
    tx = a.begin()
    a.write(b"/d/x", b"lost", tx)
    a.conn.close()
    assert b.read(b"/d/x") == b"x0"
    assert store.statistics().transactions == 0
    assert store.check() == []
