"""Domains coming, going and dying, CONTROL: what keeps one guest from outliving itself."""

from __future__ import annotations

import pytest
import storekit
from storekit import OK, Client

from xenlike.store import wire
from xenlike.store.wire import Type

store, dom0, guest = storekit.store, storekit.dom0, storekit.guest


# Introduction and release.


def test_introduce_release_and_their_hooks(store, dom0):
    """The toolstack's ring is attached by INTRODUCE, rebound by another, detached by RELEASE."""
    introduced = lambda: dom0.call(Type.IS_DOMAIN_INTRODUCED, b"5")
    assert introduced() == b"F\0"
    assert dom0.call(Type.INTRODUCE, b"5", b"4096", b"1") == OK
    assert introduced() == b"T\0"
    assert dom0.call(Type.INTRODUCE, b"5", b"4096", b"9") == OK
    assert dom0.call(Type.RELEASE, b"5") == OK
    assert introduced() == b"F\0"
    assert store.hooks.calls == [("introduce", 5, 4096, 1), ("introduce", 5, 4096, 9), ("release", 5)]
    for kind in (Type.RELEASE, Type.RESUME):
        assert dom0.call(kind, b"5") == b"!ENOENT"
        assert dom0.call(kind, b"0") == b"!EINVAL"


def test_refused_introduction_leaves_the_domain_out(store, dom0):
    """When the ring cannot be attached the caller is told, and nobody hears of a domain that is not served."""
    dom0.watch(b"@introduceDomain", b"t")
    dom0.take_events()
    assert dom0.call(Type.INTRODUCE, b"5", b"666", b"1") == b"!EINVAL"
    assert dom0.call(Type.IS_DOMAIN_INTRODUCED, b"5") == b"F\0"
    assert dom0.take_events() == []


def test_introduced_again_begins_anew(store, dom0, guest):
    """After a second INTRODUCE the guest's old watches, transactions and half messages are gone."""
    dom0.call(Type.INTRODUCE, b"5", b"1", b"1")
    guest.watch(b"a", b"t")
    tx = guest.begin()
    guest.take_events()
    guest.conn.feed(b"\x02\0\0")
    assert dom0.call(Type.INTRODUCE, b"5", b"1", b"2") == OK
    dom0.write(b"/local/domain/5/a", b"v")
    assert guest.take_events() == []
    assert guest.read(b"a") == b"v"
    assert guest.end(tx) == b"!ENOENT"


def test_questions_about_domains(dom0, guest):
    """GET_DOMAIN_PATH answers for any id, IS_DOMAIN_INTRODUCED anybody, as in 4.17."""
    assert guest.call(Type.GET_DOMAIN_PATH, b"00007") == b"/local/domain/7\0"
    assert guest.call(Type.IS_DOMAIN_INTRODUCED, b"0") == b"T\0"
    assert guest.call(Type.IS_DOMAIN_INTRODUCED, b"32752") == b"T\0"
    assert guest.call(Type.IS_DOMAIN_INTRODUCED, b"77") == b"F\0"


def test_shutdown_is_told_once_until_resumed(store, dom0):
    """@releaseDomain fires at a shutdown, not again for the same one, and again after RESUME."""
    dom0.call(Type.INTRODUCE, b"5", b"1", b"1")
    dom0.watch(b"@releaseDomain", b"t")
    dom0.take_events()
    fired = []
    for step in (store.domain_shutdown, store.domain_shutdown, None, store.domain_shutdown):
        if step is None:
            assert dom0.call(Type.RESUME, b"5") == OK
        else:
            step(5)
        fired.append(len(dom0.take_events()))
    assert fired == [1, 0, 0, 1]
    assert ("resume", 5) in store.hooks.calls


def test_features(store, dom0, guest):
    """Features are read by all, set by dom0, before introduction only."""
    assert guest.call(Type.GET_FEATURE) == b"%d\0" % wire.FEATURES
    assert dom0.call(Type.SET_FEATURE, b"5", b"2") == OK
    assert dom0.call(Type.GET_FEATURE, b"5") == b"2\0"
    assert guest.call(Type.GET_FEATURE) == b"2\0"
    dom0.call(Type.INTRODUCE, b"5", b"1", b"1")
    assert dom0.call(Type.SET_FEATURE, b"5", b"1") == b"!EBUSY"


# Death.


def test_death_removes_nodes_permissions_and_connections(store, dom0, guest):
    """A new domain with an old number must find nothing of its predecessor's, neither nodes nor rights."""
    dom0.call(Type.INTRODUCE, b"5", b"1", b"1")
    guest.write(b"data/deep/x", b"v")
    dom0.mkdir(b"/backend/vbd")
    dom0.set_perms(b"/backend/vbd", b"n0", b"b5", b"r6")
    guest.write(b"/backend/vbd/5", b"guest made this in another's directory")
    dom0.write(b"/backend/vbd/5/dom0s", b"v")
    guest.watch(b"data", b"t")
    guest.begin()
    watcher = Client(store, 0)
    watcher.watch(b"/local/domain/5/data/deep/x", b"x")
    watcher.watch(b"/backend", b"b")
    watcher.watch(b"@releaseDomain", b"r")
    watcher.take_events()
    store.domain_died(5)
    assert watcher.take_events() == [
        (b"/backend/vbd/5", b"b"), (b"/local/domain/5/data/deep/x", b"x"), (b"@releaseDomain", b"r")
    ]
    assert dom0.read(b"/local/domain/5") == b"!ENOENT"
    assert dom0.get_perms(b"/backend/vbd") == b"n0\0r6\0"
    assert guest.conn.closed and not guest.conn.has_output
    assert store.hooks.calls[-1] == ("release", 5)
    assert store.check() == []
    assert store.domains.get(5) is None
    reborn = Client(store, 5)
    assert reborn.read(b"/backend/vbd") == b"!EACCES"
    assert store.domains.record(5).usage.nodes == 0


def test_death_takes_root_and_specials_from_the_dead_but_keeps_them(store, dom0):
    """"/" or a special that was given to a guest survives the guest, as dom0's."""
    dom0.set_perms(b"/", b"r5")
    dom0.set_perms(b"@releaseDomain", b"n5")
    store.domain_died(5)
    assert dom0.get_perms(b"/") == b"r0\0"
    assert dom0.get_perms(b"@releaseDomain") == b"n0\0"
    assert dom0.ls(b"/local/domain") == b"6\0"
    assert store.check() == []


def test_death_conflicts_with_transactions_that_used_its_nodes(store, dom0, guest):
    """A transaction begun before must not bring a dead domain's nodes or rights back."""
    guest.write(b"x", b"v")
    dom0.write(b"/shared", b"v")
    dom0.set_perms(b"/shared", b"n0", b"b5")
    tx, ty = dom0.begin(), dom0.begin()
    dom0.write(b"/local/domain/5/x", b"w", tx)
    dom0.write(b"/shared", b"w", ty)
    store.domain_died(5)
    assert dom0.end(tx) == b"!EAGAIN"
    assert dom0.end(ty) == b"!EAGAIN"
    assert dom0.get_perms(b"/shared") == b"n0\0"


def test_domain_that_was_never_seen_may_die(store, dom0):
    """The toolstack reports every death; for one without xenstore only the event is left."""
    dom0.watch(b"@releaseDomain", b"t")
    dom0.take_events()
    store.domain_died(99)
    assert dom0.take_events() == [(b"@releaseDomain", b"t")]
    assert store.check() == []
    with pytest.raises(ValueError):
        store.domain_died(0)


# CONTROL and statistics.


def test_control_commands(store, dom0, guest):
    """Operators' tools: each command answers, an unknown one is refused."""
    text = dom0.call(Type.CONTROL, b"help").decode()
    for command in ("check", "help", "memreport", "print", "quota", "quota-soft"):
        assert command in text
    assert dom0.call(Type.CONTROL, b"check") == b"OK\0"
    guest.mkdir(b"a")
    assert b"nodes               :     1000" in dom0.call(Type.CONTROL, b"quota")
    assert dom0.call(Type.CONTROL, b"quota", b"set", b"nodes", b"2") == b"OK\0"
    assert guest.mkdir(b"b") == b"!ENOSPC"
    assert dom0.call(Type.CONTROL, b"quota", b"5").startswith(b"nodes               :        2 of 2\n")
    assert dom0.call(Type.CONTROL, b"quota-soft", b"set", b"memory", b"1") == b"OK\0"
    assert b"over soft-memory" in dom0.call(Type.CONTROL, b"memreport")
    assert dom0.call(Type.CONTROL, b"print", b"hello") == b"OK\0"
    assert store.hooks.calls[-1] == ("print", "hello")
    assert dom0.call(Type.CONTROL, b"print") == b"!EINVAL"
    assert dom0.call(Type.CONTROL, b"help", b"me") == b"!EINVAL"
    assert dom0.call(Type.CONTROL, b"quota", b"77") == b"!ENOENT"


def test_check_finds_a_cooked_book(store, dom0, guest):
    """`check` must be able to fail, or it says nothing."""
    guest.mkdir(b"a")
    store.domains.record(5).usage.nodes += 1
    assert b"domain 5" in dom0.call(Type.CONTROL, b"check")


def test_statistics_count(store, dom0):
    """A snapshot does not change afterwards, and counts what happened."""
    before = store.statistics()
    dom0.write(b"/s", b"v")
    dom0.read(b"/missing")
    after = store.statistics()
    assert after.counters["requests"] - before.counters["requests"] == 2
    assert after.counters["errors"] - before.counters["errors"] == 1
    assert after.nodes - before.nodes == 1
    with pytest.raises(TypeError):
        after.counters["requests"] = 0
