"""Watches: a lost event hangs a driver at boot, one that should not have been sent tells a guest of its neighbours."""

from __future__ import annotations

import pytest

from xenlike.store import Store, wire
from xenlike.store.wire import Type

from storekit import OK, Client


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def dom0(store) -> Client:
    client = Client(store, 0)
    client.mkdir(b"/local/domain/5")
    client.set_perms(b"/local/domain/5", b"n5")
    return client


@pytest.fixture
def guest(store, dom0) -> Client:
    return Client(store, 5)


def test_first_event_follows_the_ok(store, guest):
    """Drivers start from the event that registration gives; it must come after OK, path as given, node or no node."""
    guest.send(Type.WATCH, b"device\0tok\0")
    messages = guest.receive()
    assert [m.type for m in messages] == [Type.WATCH, Type.WATCH_EVENT]
    assert messages[1].payload == b"device\0tok\0"


def test_own_write_is_answered_before_its_event(dom0):
    """A client that waits for its reply must not find an event in front of it, nor may the event be lost."""
    dom0.watch(b"/w", b"t")
    dom0.take_events()
    dom0.send(Type.WRITE, b"/w\0v")
    assert [m.type for m in dom0.receive()] == [Type.WRITE, Type.WATCH_EVENT]


def test_same_pair_twice_is_eexist_and_unwatch_of_nothing_enoent(guest):
    """Path and token together identify a watch, however the path is spelled."""
    assert guest.watch(b"a", b"t") == OK
    assert guest.watch(b"a", b"t") == b"!EEXIST"
    assert guest.watch(b"/local/domain/5/a", b"t") == b"!EEXIST"
    assert guest.watch(b"a", b"u") == OK
    assert guest.unwatch(b"b", b"t") == b"!ENOENT"
    assert guest.unwatch(b"a", b"t") == OK
    assert guest.unwatch(b"a", b"t") == b"!ENOENT"


def test_changes_at_and_below_fire_each_kind(dom0):
    """Write, also of the same value, mkdir of a new node, set_perms and rm fire; mkdir of an old one and reads do not."""
    watcher = Client(dom0.store, 0)
    watcher.watch(b"/w", b"t")
    watcher.take_events()
    steps = [
        (lambda: dom0.write(b"/w", b"v"), [b"/w"]),
        (lambda: dom0.write(b"/w", b"v"), [b"/w"]),
        (lambda: dom0.mkdir(b"/w/x/y"), [b"/w/x/y"]),
        (lambda: dom0.mkdir(b"/w/x/y"), []),
        (lambda: dom0.set_perms(b"/w/x", b"r0"), [b"/w/x"]),
        (lambda: dom0.read(b"/w"), []),
        (lambda: dom0.write(b"/wx", b"not below"), []),
        (lambda: dom0.write(b"/v", b"elsewhere"), []),
        (lambda: dom0.rm(b"/w/x"), [b"/w/x"]),
        (lambda: dom0.rm(b"/w/x"), []),
    ]
    for step, expected in steps:
        assert not step().startswith(b"!")
        assert watcher.take_events() == [(path, b"t") for path in expected]


def test_removal_of_an_ancestor_tells_each_watch_once_about_itself(dom0):
    """A driver watching a leaf must hear when the toolstack removes the whole device; a watch above hears of the removed node."""
    dom0.write(b"/dev/vbd/0/state", b"4")
    watcher = Client(dom0.store, 0)
    for path, token in ((b"/dev/vbd/0/state", b"leaf"), (b"/dev/vbd/0", b"node"), (b"/dev", b"top"), (b"/other", b"no")):
        watcher.watch(path, token)
    watcher.take_events()
    dom0.rm(b"/dev/vbd")
    assert watcher.take_events() == [
        (b"/dev/vbd/0/state", b"leaf"),
        (b"/dev/vbd/0", b"node"),
        (b"/dev/vbd", b"top"),
    ]


def test_creation_of_parents_is_one_event_at_the_written_path(dom0):
    """A watch on the written node or above gets one event with the path that was written, none for implied parents."""
    watcher = Client(dom0.store, 0)
    watcher.watch(b"/a", b"t")
    watcher.watch(b"/a/b", b"u")
    watcher.take_events()
    dom0.write(b"/a/b/c", b"v")
    assert watcher.take_events() == [(b"/a/b/c", b"t"), (b"/a/b/c", b"u")]


def test_relative_watches_get_relative_paths(dom0, guest):
    """Linux compares event paths with what it registered: relative stays relative, absolute absolute."""
    guest.watch(b"device", b"rel")
    guest.watch(b"/local/domain/5/device", b"abs")
    guest.take_events()
    dom0.write(b"/local/domain/5/device/vif/0", b"v")
    assert guest.take_events() == [(b"device/vif/0", b"rel"), (b"/local/domain/5/device/vif/0", b"abs")]
    dom0.rm(b"/local/domain/5/device")
    assert guest.take_events() == [(b"device", b"rel"), (b"/local/domain/5/device", b"abs")]


def test_root_watch_sees_all(dom0):
    """"/" is above everything; its own events spell it so."""
    watcher = Client(dom0.store, 0)
    watcher.watch(b"/", b"t")
    assert watcher.take_events() == [(b"/", b"t")]
    dom0.write(b"/x", b"v")
    dom0.write(b"/", b"v")
    assert watcher.take_events() == [(b"/x", b"t"), (b"/", b"t")]


@pytest.mark.parametrize(
    ("depth", "heard"),
    [(b"0", [b"/w"]), (b"1", [b"/w", b"/w/a"]), (b"2", [b"/w", b"/w/a", b"/w/a/b"]), (b"99", [b"/w", b"/w/a", b"/w/a/b"])],
)
def test_depth_limits_the_levels_below(dom0, depth, heard):
    """Depth counts levels below the watched path; without it every level counts."""
    watcher = Client(dom0.store, 0)
    assert watcher.watch(b"/w", b"t", depth) == OK
    watcher.take_events()
    for path in (b"/w", b"/w/a", b"/w/a/b"):
        dom0.write(path, b"v")
    assert watcher.take_events() == [(path, b"t") for path in heard]


def test_depth_of_the_root_counts_from_the_root(dom0):
    """The children of "/" are one level below it, like any others."""
    watcher = Client(dom0.store, 0)
    watcher.watch(b"/", b"t", b"1")
    watcher.take_events()
    dom0.write(b"/x", b"v")
    dom0.write(b"/x/y", b"v")
    assert watcher.take_events() == [(b"/x", b"t")]


def test_depth_needs_the_feature(store, dom0):
    """A domain that is not offered the feature has two-argument watches only."""
    assert dom0.call(Type.SET_FEATURE, b"5", b"%d" % (wire.FEATURES & ~wire.FEATURE_WATCHDEPTH)) == OK
    guest = Client(store, 5)
    assert guest.watch(b"a", b"t", b"1") == b"!EINVAL"
    assert guest.watch(b"a", b"t") == OK


def test_unreadable_changes_are_not_told(dom0, guest):
    """A guest may watch any path but hears only of nodes that it, or whose parent it, can read."""
    guest.watch(b"/", b"t")
    assert guest.take_events() == [(b"/", b"t")]
    dom0.write(b"/secret/x", b"v")
    assert guest.take_events() == []
    dom0.set_perms(b"/secret", b"r0")
    assert guest.take_events() == [(b"/secret", b"t")]
    dom0.write(b"/secret/x", b"v")  # itself n0, but the parent can be read
    assert guest.take_events() == [(b"/secret/x", b"t")]
    dom0.rm(b"/secret/x")
    assert guest.take_events() == [(b"/secret/x", b"t")]


def test_losing_permission_is_itself_told(dom0, guest):
    """The change that makes a node unreadable still reaches who could read it before; later ones do not."""
    dom0.mkdir(b"/p/x")
    dom0.set_perms(b"/p/x", b"r0")
    guest.watch(b"/p/x", b"t")
    guest.take_events()
    dom0.set_perms(b"/p/x", b"n0")
    assert guest.take_events() == [(b"/p/x", b"t")]
    dom0.write(b"/p/x", b"v")
    assert guest.take_events() == []


def test_removal_is_told_by_the_permissions_that_were(dom0, guest):
    """A reader of a node must hear that it was removed, though only an unreadable parent is left."""
    dom0.write(b"/p/x", b"v")
    dom0.set_perms(b"/p/x", b"n0", b"r5")
    guest.watch(b"/p/x", b"t")
    guest.take_events()
    dom0.rm(b"/p")
    assert guest.take_events() == [(b"/p/x", b"t")]


def test_equal_events_that_wait_are_sent_once(dom0, guest):
    """A guest that does not read must not cost memory for each change: an event already waiting stands for all."""
    guest.watch(b"device", b"t")
    guest.take_events()
    for value in range(1000):
        dom0.write(b"/local/domain/5/device", b"%d" % value)
    dom0.write(b"/local/domain/5/device/other", b"v")
    assert guest.take_events() == [(b"device", b"t"), (b"device/other", b"t")]
    dom0.write(b"/local/domain/5/device", b"again")
    assert guest.take_events() == [(b"device", b"t")]


def test_special_events_that_wait_are_each_sent(store, dom0):
    """Two domains that came are two events: a toolstack that counts them must not miss one."""
    watcher = Client(store, 0)
    watcher.watch(b"@introduceDomain", b"t")
    watcher.take_events()
    for domid in (b"7", b"8"):
        dom0.call(Type.INTRODUCE, domid, b"1", b"1")
    assert watcher.take_events() == [(b"@introduceDomain", b"t")] * 2


def test_token_is_returned_as_given_and_too_long_events_are_left_out(dom0):
    """Tokens are opaque bytes; an event that no message can hold is dropped, and nothing else with it."""
    token = bytes(range(1, 256))
    watcher = Client(dom0.store, 0)
    watcher.watch(b"/w", token)
    assert watcher.take_events() == [(b"/w", token)]
    long_token = b"t" * 4000
    watcher.watch(b"/w", long_token)
    assert watcher.take_events() == [(b"/w", long_token)]
    deep = b"/w/" + b"x" * 200
    dom0.write(deep, b"v")
    assert watcher.take_events() == [(deep, token)]


def test_reset_watches_drops_watches_and_transactions(dom0, guest):
    """A kexec'ed kernel starts clean: no event of the old kernel's watches, no old transaction."""
    guest.watch(b"a", b"t")
    tx = guest.begin()
    guest.take_events()
    assert guest.call(Type.RESET_WATCHES, b"") == OK
    dom0.write(b"/local/domain/5/a", b"v")
    assert guest.take_events() == []
    assert guest.end(tx) == b"!ENOENT"
    assert guest.unwatch(b"a", b"t") == b"!ENOENT"
    assert dom0.store.check() == []


def test_watches_ignore_transaction_ids(dom0):
    """WATCH and UNWATCH act at once, whatever tx_id says."""
    assert dom0.call(Type.WATCH, b"/a", b"t", tx=77) == OK
    assert dom0.call(Type.UNWATCH, b"/a", b"t", tx=78) == OK


# Special watches.


def test_introduce_and_release_fire_the_specials(store, dom0):
    """The toolstack and back ends learn of domains by these events, and of which domain by the depth form."""
    watcher = Client(store, 0)
    watcher.watch(b"@introduceDomain", b"in")
    watcher.watch(b"@releaseDomain", b"out")
    watcher.watch(b"@releaseDomain", b"which", b"1")
    watcher.watch(b"@releaseDomain/7", b"seven", b"0")
    watcher.watch(b"@releaseDomain/8", b"eight")
    assert len(watcher.take_events()) == 5
    assert dom0.call(Type.INTRODUCE, b"7", b"100", b"1") == OK
    assert watcher.take_events() == [(b"@introduceDomain", b"in")]
    assert dom0.call(Type.INTRODUCE, b"7", b"100", b"2") == OK
    assert watcher.take_events() == []
    assert dom0.call(Type.RELEASE, b"7") == OK
    assert watcher.take_events() == [
        (b"@releaseDomain", b"out"),
        (b"@releaseDomain/7", b"which"),
        (b"@releaseDomain/7", b"seven"),
    ]


def test_specials_reach_guests_only_by_permission(store, dom0, guest):
    """Which domains come and go is dom0's knowledge until SET_PERMS on the special shares it."""
    assert guest.watch(b"@releaseDomain", b"t") == OK
    assert guest.take_events() == [(b"@releaseDomain", b"t")]
    dom0.call(Type.INTRODUCE, b"7", b"1", b"1")
    dom0.call(Type.RELEASE, b"7")
    assert guest.take_events() == []
    assert dom0.get_perms(b"@releaseDomain") == b"n0\0"
    assert guest.set_perms(b"@releaseDomain", b"n0", b"r5") == b"!EACCES"
    assert dom0.set_perms(b"@releaseDomain", b"n0", b"r5") == OK
    assert guest.take_events() == [(b"@releaseDomain", b"t")]  # the change of permissions
    dom0.call(Type.INTRODUCE, b"7", b"1", b"1")
    dom0.call(Type.RELEASE, b"7")
    assert guest.take_events() == [(b"@releaseDomain", b"t")]
    assert dom0.get_perms(b"@nothing") == b"!ENOENT"
    assert guest.get_perms(b"@nothing") == b"!EACCES"


def test_specials_are_not_nodes_of_the_tree(dom0):
    """They cannot be read, written, listed or removed, and "/" does not show them."""
    for kind in (Type.READ, Type.DIRECTORY, Type.MKDIR, Type.RM):
        assert dom0.call(kind, b"@releaseDomain") == b"!EINVAL"
    assert dom0.ls(b"/") == b"tool\0local\0"
    assert dom0.read(b"/@releaseDomain") == b"!ENOENT"


def test_changes_below_root_do_not_fire_specials(dom0):
    """A node may be called @releaseDomain; that is no domain's end."""
    watcher = Client(dom0.store, 0)
    watcher.watch(b"@releaseDomain", b"t")
    watcher.take_events()
    dom0.write(b"/@releaseDomain", b"v")
    assert watcher.take_events() == []


def test_watch_index_leaves_nothing_behind(store, dom0):
    """Branches of the index that no watch needs any more must go, or watching would leak."""
    for round_ in range(3):
        client = Client(store, 0)
        for i in range(50):
            client.watch(b"/deep/%d/%d" % (round_, i), b"t")
        client.conn.close()
    assert store.index._top.branches == {}
    assert not store.index._top.watches
