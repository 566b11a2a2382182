"""Quotas, and stalling of who does not take what waits for it: what keeps one guest from harming the others."""

from __future__ import annotations

import storekit
from storekit import OK, Client, quota

from xenlike.store.wire import Type

store, dom0, guest = storekit.store, storekit.dom0, storekit.guest


# Quotas.


def test_node_quota(store, dom0, guest):
    """A guest may own so many nodes; implied parents count; removing makes room; dom0 is not held."""
    quota(dom0, b"nodes", 5)  # the home is one
    assert guest.write(b"a/b/c", b"v") == OK
    assert guest.write(b"d/e", b"v") == b"!ENOSPC"
    assert guest.write(b"d", b"v") == OK
    assert guest.mkdir(b"e") == b"!ENOSPC"
    assert guest.write(b"a/b/c", b"more") == OK
    assert guest.rm(b"a") == OK
    assert guest.mkdir(b"e/f/g") == OK
    assert dom0.mkdir(b"/local/domain/5/x/y/z") == OK
    assert guest.mkdir(b"h") == b"!ENOSPC"
    assert store.check() == []


def test_node_quota_in_transactions(store, dom0, guest):
    """A transaction cannot get round the quota, alone or two together."""
    quota(dom0, b"nodes", 3)
    tx = guest.begin()
    assert guest.mkdir(b"a/b", tx) == OK
    assert guest.mkdir(b"a/c", tx) == b"!ENOSPC"
    assert guest.rm(b"a/b", tx) == OK
    assert guest.mkdir(b"a/c", tx) == OK
    dom0.mkdir(b"/shared/one")
    dom0.set_perms(b"/shared/one", b"b0")
    other = guest.begin()
    assert guest.mkdir(b"/shared/one/x", other) == OK
    assert guest.end(tx) == OK
    assert guest.end(other) == b"!ENOSPC"
    assert guest.ls(b"/shared/one") == b""
    assert store.check() == []


def test_node_size_quota(dom0, guest):
    """Value and child names together are bounded; the bound is inclusive; dom0 writes what it likes."""
    assert guest.write(b"v", b"x" * 2048) == OK
    assert guest.write(b"v", b"x" * 2049) == b"!ENOSPC"
    assert guest.write(b"new", b"x" * 2049) == b"!ENOSPC"
    assert guest.mkdir(b"v/c") == b"!ENOSPC"
    assert guest.write(b"v", b"x" * 2046) == OK
    assert guest.mkdir(b"v/c") == OK
    assert guest.write(b"v", b"x" * 2047) == b"!ENOSPC"
    assert dom0.write(b"/local/domain/5/v", b"x" * 4000) == OK
    assert guest.read(b"v") == b"x" * 4000
    assert guest.write(b"v", b"x" * 2046) == OK


def test_watch_transaction_and_permission_quotas(store, dom0, guest):
    """Each of these tables is bounded for a guest, with ENOSPC, and given back."""
    for i in range(128):
        assert guest.watch(b"w", b"%d" % i) == OK
        guest.take_events()
    assert guest.watch(b"w", b"x") == b"!ENOSPC"
    assert guest.unwatch(b"w", b"0") == OK
    assert guest.watch(b"w", b"x") == OK
    ids = [guest.begin() for _ in range(10)]
    assert guest.call(Type.TRANSACTION_START, b"") == b"!ENOSPC"
    assert guest.end(ids[0], b"F") == OK
    guest.begin()
    guest.mkdir(b"p")
    assert guest.set_perms(b"p", b"n5", *[b"r6"] * 4) == OK
    assert guest.set_perms(b"p", b"n5", *[b"r6"] * 5) == b"!ENOSPC"
    assert dom0.set_perms(b"/local/domain/5/p", b"n5", *[b"r6"] * 50) == OK
    for i in range(200):
        assert dom0.watch(b"/w", b"%d" % i) == OK
    assert store.check() == []


def test_path_quota(dom0, guest):
    """The part below the home counts, however the path is spelled."""
    quota(dom0, b"path-max", 10)
    assert guest.mkdir(b"x" * 10) == OK
    assert guest.mkdir(b"x" * 11) == b"!EINVAL"
    assert guest.mkdir(b"/local/domain/5/" + b"y" * 10) == OK
    assert guest.mkdir(b"/local/domain/5/" + b"y" * 11) == b"!EINVAL"
    assert dom0.mkdir(b"/" + b"x" * 100) == OK


def test_transaction_nodes_quota_fails_the_transaction(dom0, guest):
    """A transaction that would use too many nodes stops there, and cannot be committed in part."""
    quota(dom0, b"transaction-nodes", 4)
    tx = guest.begin()
    for name in (b"a", b"b", b"c"):
        assert guest.read(name, tx).startswith(b"!ENOENT")
    assert guest.read(b"d", tx) == b"!ENOSPC"
    assert guest.end(tx) == b"!ENOMEM"
    tx = guest.begin()
    assert guest.mkdir(b"a", tx) == OK
    assert guest.end(tx) == OK


def test_memory_quota(store, dom0, guest):
    """Nodes, watches and open transactions of a guest together stay below the memory quota, and give it back."""
    quota(dom0, b"memory", 20_000)
    results = [guest.write(b"n%d" % i, b"x" * 1000) for i in range(20)]
    full = results.index(b"!ENOSPC")
    assert 13 <= full <= 16
    assert set(results[full:]) == {b"!ENOSPC"}
    assert 19_000 < store.domains.record(5).usage.memory <= 20_000
    assert guest.watch(b"w", b"t") == b"!ENOSPC"
    tx = guest.begin()
    assert guest.write(b"n0", b"y" * 2048, tx) == b"!ENOSPC"
    assert guest.end(tx, b"F") == OK
    assert guest.rm(b"n0") == OK
    assert guest.rm(b"n1") == OK
    tx = guest.begin()
    grown = [guest.write(b"n%d" % i, b"y" * 2048, tx) for i in range(2, 8)]
    assert grown[0] == OK and grown[-1] == b"!ENOSPC"
    assert guest.end(tx) == OK
    assert guest.read(b"n2") == b"y" * 2048
    assert guest.write(b"n2", b"") == OK
    assert guest.watch(b"w", b"t") == OK
    assert store.check() == []


def test_deep_paths_are_charged_for(store, dom0, guest):
    """A thousand names in one path cost the host a thousand times more than one: the memory quota must notice."""
    deep = b"/".join([b"x"] * 1000)
    watches = [guest.watch(deep, b"%d" % i) for i in range(20)]
    assert watches.index(b"!ENOSPC") < 12
    ids = [guest.begin() for _ in range(10)]
    reads = [guest.read(deep + b"/%d" % i, tx) for tx in ids for i in range(3)]
    assert b"!ENOSPC" in reads
    assert store.check() == []


def test_zero_switches_a_quota_off_and_domains_may_have_their_own(dom0, store, guest):
    """0 means no limit; a domain's own value hides the global one, which others go on following."""
    quota(dom0, b"nodes", 2)
    assert dom0.call(Type.SET_QUOTA, b"5", b"nodes", b"0") == OK
    quota(dom0, b"nodes", 1)
    assert dom0.call(Type.GET_QUOTA, b"5", b"nodes") == b"0\0"
    assert dom0.call(Type.GET_QUOTA, b"6", b"nodes") == b"1\0"
    assert dom0.call(Type.GET_QUOTA, b"nodes") == b"1\0"
    assert guest.mkdir(b"a/b/c/d") == OK
    assert Client(store, 6).mkdir(b"a") == b"!ENOSPC"
    assert dom0.call(Type.GET_QUOTA).rstrip(b"\0").split()[:3] == [b"nodes", b"watches", b"outstanding"]


# Stalling.


def test_guest_that_does_not_take_replies_is_stalled(store, dom0, guest):
    """At most 20 requests are outstanding; the rest waits, in order, and goes on as replies are taken."""
    for i in range(50):
        guest.send(Type.WRITE, b"x\0%d" % i)
    assert guest.conn.stalled and not guest.conn.accepts_input()
    assert store.domains.record(5).usage.outstanding == 20
    assert dom0.read(b"/local/domain/5/x") == b"19"
    assert dom0.write(b"/elsewhere", b"v") == OK
    replies = []
    while got := guest.receive():
        replies += got
    assert [m.req_id for m in replies] == list(range(1, 51))
    assert dom0.read(b"/local/domain/5/x") == b"49"
    assert not guest.conn.stalled and guest.conn.accepts_input()
    assert store.domains.record(5).usage.outstanding == 0


def test_guest_over_its_memory_quota_is_stalled_until_it_reads(store, dom0, guest):
    """Queued replies count as memory: over the quota nothing more is served, and reading them makes it go on."""
    guest.write(b"v", b"x" * 2000)
    quota(dom0, b"memory", 8000)
    woken = []
    guest.conn.on_wake = lambda: (woken.append(1), guest.conn.process())
    for _ in range(10):
        guest.send(Type.READ, b"v\0")
    assert guest.conn.stalled and store.domains.record(5).usage.outstanding < 10
    replies = []
    while got := guest.receive():
        replies += got
    assert len(replies) == 10 and woken
    assert store.check() == []


def test_guest_that_dom0_took_over_its_quota_can_still_ask(store, dom0, guest):
    """What dom0 stores under a guest's name must not silence the guest for good: with its queue read, it is served."""
    guest.watch(b"w", b"t")
    guest.take_events()
    quota(dom0, b"memory", 3000)
    dom0.write(b"/local/domain/5/w", b"v")
    dom0.write(b"/local/domain/5/big", b"x" * 4000)
    guest.send(Type.GET_DOMAIN_PATH, b"5\0")
    assert guest.conn.stalled
    assert [m.type for m in guest.receive()] == [Type.WATCH_EVENT]
    assert [m.type for m in guest.receive()] == [Type.GET_DOMAIN_PATH]


def test_events_that_others_do_not_take_stall_their_cause(store, dom0, guest):
    """A guest that floods a slow reader with events is held until the reader reads; others are not."""
    slow = Client(store, 6)
    dom0.set_perms(b"/local/domain/5", b"r5")
    slow.watch(b"/local/domain/5", b"t")
    slow.take_events()
    for i in range(30):
        guest.send(Type.WRITE, b"n%d\0v" % i)
        guest.receive()
    assert guest.conn.stalled
    assert dom0.read(b"/local/domain/5/n19") == b"v"
    assert dom0.read(b"/local/domain/5/n20") == b"!ENOENT"
    woken = []
    guest.conn.on_wake = lambda: (woken.append(1), guest.conn.process())
    assert len(slow.take_events()) == 20
    assert woken and len(slow.take_events()) == 10
    assert dom0.read(b"/local/domain/5/n29") == b"v"
    assert store.check() == []


def test_ticks_free_the_victim_of_a_reader_that_never_reads(store, dom0, guest):
    """A malicious watcher must not be able to stop another guest for good."""
    dead = Client(store, 6)
    dom0.set_perms(b"/local/domain/5", b"r5")
    dead.watch(b"/local/domain/5", b"t")
    for i in range(25):
        guest.send(Type.WRITE, b"n%d\0v" % i)
        guest.receive()
    assert guest.conn.stalled
    store.tick()
    assert guest.conn.stalled
    store.tick()
    guest.receive()
    assert dom0.read(b"/local/domain/5/n24") == b"v"
    assert dead.conn.has_output
    store.tick(), store.tick()
    dead.take_events()
    assert store.domains.record(5).usage.outstanding == 0


def test_closing_a_slow_reader_frees_its_causes(store, dom0, guest):
    """When the reader dies its unread events are nobody's any more."""
    slow = Client(store, 6)
    dom0.set_perms(b"/local/domain/5", b"r5")
    slow.watch(b"/local/domain/5", b"t")
    for i in range(25):
        guest.send(Type.WRITE, b"n%d\0v" % i)
        guest.receive()
    assert guest.conn.stalled
    store.domain_died(6)
    guest.receive()
    assert dom0.read(b"/local/domain/5/n24") == b"v"


def test_event_flood_is_bounded_by_the_readers_memory_quota(store, dom0):
    """dom0 may cause any number of different events; a guest that does not read them loses the excess, no more."""
    quota(dom0, b"memory", 5000)
    guest = Client(store, 5)
    guest.watch(b"d", b"t")
    for i in range(1000):
        dom0.write(b"/local/domain/5/d", b"")
        dom0.write(b"/x", b"")
        dom0.mkdir(b"/y/%d" % i)
    dom0.set_perms(b"/y", b"r0")
    guest.watch(b"/y", b"u")
    for i in range(1000):
        dom0.write(b"/y/%d" % i, b"v")
    assert guest.conn.output_bytes <= 5100
    assert store.counters["events_dropped"] > 0
    guest.receive()
    guest.receive()
    assert guest.read(b"/y") == b""
    assert store.check() == []
