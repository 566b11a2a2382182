"""Xenstore from Python: the toolstack and back ends depend on it for text, callbacks and transactions."""

from __future__ import annotations

import logging

import pytest

from xenlike.store import Hooks, Store, StoreError

from storekit import Client


@pytest.fixture
def store() -> Store:
    return Store()


def test_text_in_and_out(store):
    """Values come back as written, also those that are no UTF-8; names are text."""
    xs = store.direct()
    xs.write("/a/name", "wéb")
    assert xs.read("/a/name") == "wéb"
    assert xs.read_bytes("/a/name") == "wéb".encode()
    xs.write(b"/a/raw", b"\xff\0\xfe")
    assert xs.read_bytes("/a/raw") == b"\xff\0\xfe"
    xs.write("/a/copy", xs.read("/a/raw"))
    assert xs.read_bytes("/a/copy") == b"\xff\0\xfe"
    assert xs.ls("/a") == ["name", "raw", "copy"]
    assert xs.read("/missing", default=None) is None
    assert xs.exists("/a") and not xs.exists("/b")
    xs.rm("/a")
    assert not xs.exists("/a")


def test_it_is_the_same_store_as_on_the_wire(store):
    """What Python writes a guest reads, and the other way round."""
    xs, guest = store.direct(), Client(store, 3)
    xs.write("/local/domain/3/name", "x")
    xs.set_perms("/local/domain/3", ["n3"])
    xs.set_perms("/local/domain/3/name", ["n0", "r3"])
    assert guest.read(b"name") == b"x"
    guest.write(b"answer", b"42")
    assert xs.read("/local/domain/3/answer") == "42"
    assert xs.get_perms("/local/domain/3/answer") == ["n3"]


def test_unprivileged_direct_is_held_to_permissions(store):
    """`direct(domid)` acts as that domain, for tests and Python back ends in a driver domain."""
    xs, five = store.direct(), store.direct(5)
    xs.write("/secret", "v")
    with pytest.raises(StoreError) as caught:
        five.read("/secret")
    assert (caught.value.name, caught.value.domid, caught.value.op) == ("EACCES", 5, "READ")
    for refused in (lambda: five.introduce(6, 1, 1), lambda: five.release(6), lambda: five.set_target(5, 0)):
        with pytest.raises(StoreError, match="EACCES"):
            refused()


def test_a_value_that_no_client_could_read_is_refused(store):
    """4096 bytes must hold path, NUL and value."""
    xs = store.direct()
    xs.write("/p", "x" * (4096 - 3))
    with pytest.raises(StoreError, match="E2BIG"):
        xs.write("/p", "x" * (4096 - 2))


def test_callbacks_run_before_the_call_returns(store):
    """Deterministic: when `write` returns, everything it caused has happened, in order."""
    xs = store.direct()
    seen = []
    xs.watch("/w", "t", lambda path, token: seen.append((path, token)))
    assert seen == [("/w", "t")]
    xs.write("/w/x", "1")
    assert seen[1:] == [("/w/x", "t")]
    Client(store, 0).write(b"/w/y", b"1")
    assert seen[2:] == [("/w/y", "t")]
    xs.unwatch("/w", "t")
    xs.write("/w/x", "2")
    assert len(seen) == 3


def test_callbacks_may_write_and_are_told_in_order(store):
    """A back end that answers a state change in its callback must see changes in the order they were made."""
    xs = store.direct()
    seen = []

    def first(path, token):
        seen.append(("first", path))
        if path == "/w/a":
            xs.write("/w/b", "from the callback")
            seen.append(("wrote", path))

    xs.watch("/w", "1", first)
    xs.watch("/w", "2", lambda path, token: seen.append(("second", path)))
    seen.clear()
    xs.write("/w/a", "v")
    assert seen == [("first", "/w/a"), ("wrote", "/w/a"), ("second", "/w/a"), ("first", "/w/b"), ("second", "/w/b")]


def test_no_callback_after_unwatch(store):
    """A watch removed by an earlier callback of the same event must stay silent."""
    xs = store.direct()
    seen = []
    xs.watch("/w", "killer", lambda path, token: path == "/w/x" and xs.unwatch("/w", "victim"))
    xs.watch("/w", "victim", lambda path, token: seen.append(path))
    xs.write("/w/x", "v")
    assert seen == ["/w"]


def test_a_failing_callback_does_not_stop_the_store(store, caplog):
    """One broken back end must not take others, or the writer, with it."""
    xs = store.direct()
    seen = []
    xs.watch("/w", "bad", lambda path, token: 1 / 0)
    xs.watch("/w", "good", lambda path, token: seen.append(path))
    with caplog.at_level(logging.ERROR):
        xs.write("/w", "v")
    assert seen == ["/w", "/w"]
    assert "ZeroDivisionError" in caplog.text and "bad" in caplog.text


def test_hooks_hear_of_failing_callbacks():
    """The host decides what becomes of the error."""
    failures = []

    class Mine(Hooks):
        def callback_failed(self, path, token, error):
            failures.append((path, token, type(error)))

    xs = Store(Mine()).direct()
    xs.watch("/w", "t", lambda path, token: {}["missing"])
    assert failures == [("/w", "t", KeyError)]


def test_transaction_block_commits_or_discards(store):
    """Leaving the block commits; an exception, or `abort`, discards."""
    xs = store.direct()
    with xs.transaction() as t:
        t.write("/a", "1")
        t.mkdir("/b/c")
        assert not xs.exists("/a") and t.exists("/b/c")
    assert xs.read("/a") == "1"
    with pytest.raises(RuntimeError), xs.transaction() as t:
        t.write("/a", "2")
        raise RuntimeError
    with xs.transaction() as t:
        t.write("/a", "3")
        t.abort()
    assert xs.read("/a") == "1"
    with pytest.raises(StoreError, match="ENOENT"):
        t.read("/a")
    assert store.statistics().transactions == 0


def test_conflict_raises_and_transact_retries(store):
    """EAGAIN reaches the caller of the block; `transact` runs its body again with fresh values."""
    xs = store.direct()
    xs.write("/n", "0")
    with pytest.raises(StoreError, match="EAGAIN"), xs.transaction() as t:
        t.write("/n", "lost")
        xs.write("/n", "1")
    attempts = []

    def increment(t):
        attempts.append(1)
        value = int(t.read("/n"))
        if len(attempts) < 3:
            xs.write("/n", str(value + 10))
        t.write("/n", str(value + 1))
        return value

    assert xs.transact(increment) == 21
    assert xs.read("/n") == "22"
    with pytest.raises(StoreError, match="EAGAIN"):
        xs.transact(lambda t: (t.read("/n"), xs.write("/n", "always")), attempts=2)


def test_domains(store):
    """The toolstack introduces, asks and releases without a wire."""
    xs = store.direct()
    seen = []
    xs.watch("@introduceDomain", "i", lambda path, token: seen.append(path))
    xs.watch("@releaseDomain", "r", lambda path, token: seen.append(path), depth=1)
    seen.clear()
    xs.introduce(4, 100, 1)
    assert xs.is_introduced(4) and xs.domain_path(4) == "/local/domain/4"
    xs.resume(4)
    xs.release(4)
    assert not xs.is_introduced(4)
    assert seen == ["@introduceDomain", "@releaseDomain/4"]


def test_closed_session_says_so(store):
    """Using a session after `close` is a programming error with a clear word; its watches are gone."""
    xs, other = store.direct(), store.direct()
    seen = []
    xs.watch("/w", "t", lambda path, token: seen.append(path))
    xs.close()
    other.write("/w", "v")
    assert seen == ["/w"]
    with pytest.raises(ValueError, match="closed"):
        xs.read("/w")
