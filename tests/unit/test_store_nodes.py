"""Reading and editing nodes over the wire: values, directories, paths, permissions, by the protocol's words."""

from __future__ import annotations

import pytest

from xenlike.store import Store
from xenlike.store.wire import Type

from storekit import OK, Client


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def dom0(store) -> Client:
    return Client(store, 0)


@pytest.fixture
def guest(store, dom0) -> Client:
    """Domain 5 with a home it owns."""
    dom0.mkdir(b"/local/domain/5")
    dom0.set_perms(b"/local/domain/5", b"n5")
    return Client(store, 5)


# Values and directories.


def test_write_read_and_implicit_parents(dom0):
    """WRITE makes missing parents with empty values; READ gives raw bytes with no NUL added."""
    assert dom0.write(b"/a/b/c", b"va\0lue") == OK
    assert dom0.read(b"/a/b/c") == b"va\0lue"
    assert dom0.read(b"/a/b") == b""
    assert dom0.ls(b"/a") == b"b\0"
    assert dom0.ls(b"/a/b/c") == b""
    assert dom0.write(b"/a/b/c", b"") == OK
    assert dom0.read(b"/a/b/c") == b""


def test_mkdir_keeps_what_exists(dom0):
    """MKDIR of an existing node succeeds and leaves value and children alone."""
    dom0.write(b"/a/b", b"v")
    assert dom0.mkdir(b"/a/b") == OK
    assert dom0.mkdir(b"/a") == OK
    assert dom0.read(b"/a/b") == b"v"


def test_directory_is_in_order_of_creation(dom0):
    """The order must not depend on hashing: it is the order in which children were made."""
    for name in (b"z", b"a", b"m"):
        dom0.mkdir(b"/d/" + name)
    dom0.write(b"/d/z", b"changed")
    assert dom0.ls(b"/d") == b"z\0a\0m\0"
    dom0.rm(b"/d/z")
    dom0.mkdir(b"/d/z")
    assert dom0.ls(b"/d") == b"a\0m\0z\0"


def test_rm_is_recursive_and_forgiving(dom0):
    """RM takes the subtree; a missing node under an existing parent is fine, a missing parent is not, "/" never."""
    dom0.write(b"/a/b/c", b"v")
    assert dom0.rm(b"/a/b") == OK
    assert dom0.read(b"/a/b/c") == b"!ENOENT"
    assert dom0.rm(b"/a/b") == OK
    assert dom0.rm(b"/a/b/c") == b"!ENOENT"
    assert dom0.rm(b"/") == b"!EINVAL"
    assert dom0.ls(b"/a") == b""


def test_missing_nodes_are_enoent(dom0):
    """Reading operations on a missing node are ENOENT for who may know."""
    for call in (dom0.read, dom0.ls, dom0.get_perms):
        assert call(b"/no/such") == b"!ENOENT"
    assert dom0.set_perms(b"/no/such", b"n0") == b"!ENOENT"


def test_long_directory_is_e2big_and_readable_in_parts(dom0):
    """A listing over 4096 bytes cannot be sent; DIRECTORY_PART must give all of it, each name once, and say the end."""
    names = [b"child-with-a-long-name-%04d" % i for i in range(300)]
    for name in names:
        dom0.mkdir(b"/d/" + name)
    assert dom0.ls(b"/d") == b"!E2BIG"
    got, offset, generations = b"", 0, set()
    while True:
        reply = dom0.call(Type.DIRECTORY_PART, b"/d", b"%d" % offset)
        assert len(reply) <= 4096
        generation, _, part = reply.partition(b"\0")
        generations.add(generation)
        if part.endswith(b"\0\0") or part == b"\0":
            got += part[:-1]
            break
        assert part.endswith(b"\0")
        got += part
        offset += len(part)
    assert got.split(b"\0")[:-1] == names
    assert len(generations) == 1
    dom0.mkdir(b"/d/one-more")
    assert dom0.call(Type.DIRECTORY_PART, b"/d", b"0").partition(b"\0")[0] not in generations


def test_directory_part_of_short_and_empty_and_beyond(dom0):
    """The end mark is an empty name, also for a leaf and for an offset past the end."""
    dom0.mkdir(b"/d/x")
    assert dom0.call(Type.DIRECTORY_PART, b"/d", b"0").partition(b"\0")[2] == b"x\0\0"
    assert dom0.call(Type.DIRECTORY_PART, b"/d/x", b"0").partition(b"\0")[2] == b"\0"
    assert dom0.call(Type.DIRECTORY_PART, b"/d", b"99").partition(b"\0")[2] == b"\0"
    assert dom0.call(Type.DIRECTORY_PART, b"/nope", b"0") == b"!ENOENT"


# Paths.


@pytest.mark.parametrize(
    "path",
    [b"", b"//", b"/a/", b"a/", b"/a//b", b"a//b", b"/a b", b"/a.b", b"/\xff", b"/a\n", b"@releaseDomain", b"@x",
     b"/" + b"x" * 3072, b"x" * 2049, b"/" + b"y/" * 1600 + b"y"],
)
def test_bad_paths_are_einval(dom0, path):
    """A path that is empty, doubled, trailing, too long or has other characters is refused everywhere."""
    for kind in (Type.READ, Type.DIRECTORY, Type.MKDIR, Type.RM):
        assert dom0.call(kind, path) == b"!EINVAL"
    assert dom0.write(path, b"v") == b"!EINVAL"


def test_longest_paths_work(dom0):
    """3072 absolute and 2048 relative bytes are still good, however deep, also to remove."""
    deep = b"/d" * 1536
    assert len(deep) == 3072
    assert dom0.write(deep, b"bottom") == OK
    assert dom0.read(deep) == b"bottom"
    assert dom0.rm(b"/d") == OK
    assert dom0.write(b"r" * 2048, b"v") == OK
    assert dom0.read(b"/local/domain/0/" + b"r" * 2048) == b"v"
    assert dom0.store.check() == []


def test_all_permitted_characters_and_at_inside(dom0):
    """Letters, digits, - _ and @ are names."""
    path = b"/AZaz09-_@/@x"
    assert dom0.write(path, b"v") == OK
    assert dom0.read(path) == b"v"


def test_relative_paths_start_at_the_own_home(dom0, guest):
    """A guest's relative path means /local/domain/<own>, not somebody else's."""
    assert guest.write(b"data/x", b"1") == OK
    assert dom0.read(b"/local/domain/5/data/x") == b"1"
    assert guest.read(b"/local/domain/5/data/x") == b"1"
    assert dom0.write(b"name", b"Domain-0") == OK
    assert dom0.read(b"/local/domain/0/name") == b"Domain-0"


# Permissions.


def test_new_nodes_inherit_and_belong_to_their_creator(dom0, guest):
    """A guest owns what it makes and keeps the parent's other entries; dom0's creations keep the parent's owner."""
    dom0.set_perms(b"/local/domain/5", b"n5", b"r7")
    guest.write(b"mine", b"v")
    assert dom0.get_perms(b"/local/domain/5/mine") == b"n5\0r7\0"
    dom0.write(b"/local/domain/5/given/deep", b"v")
    assert dom0.get_perms(b"/local/domain/5/given/deep") == b"n5\0r7\0"
    dom0.mkdir(b"/shared")
    dom0.set_perms(b"/shared", b"r0", b"b5")
    guest.mkdir(b"/shared/a/b")
    for path in (b"/shared/a", b"/shared/a/b"):
        assert dom0.get_perms(path) == b"r5\0b5\0"


@pytest.mark.parametrize(
    ("perms", "may_read", "may_write"),
    [
        ((b"n0",), False, False),
        ((b"r0",), True, False),
        ((b"w0",), False, True),
        ((b"b0",), True, True),
        ((b"b0", b"n5"), False, False),
        ((b"n0", b"r5"), True, False),
        ((b"n0", b"w5"), False, True),
        ((b"n0", b"b5"), True, True),
        ((b"n0", b"r5", b"b5"), True, False),
        ((b"n0", b"b6"), False, False),
        ((b"n5",), True, True),
        ((b"n5", b"n5"), True, True),
        ((b"n0", b"r32757"), True, False),
    ],
)
def test_what_entries_allow(dom0, guest, perms, may_read, may_write):
    """The owner may all; the first entry that names the domain decides; else the first entry's letter does."""
    dom0.write(b"/node", b"v")
    assert dom0.set_perms(b"/node", *perms) == OK
    assert dom0.get_perms(b"/node") == b"".join(p + b"\0" for p in perms)
    assert guest.read(b"/node") == (b"v" if may_read else b"!EACCES")
    assert guest.ls(b"/node") == (b"" if may_read else b"!EACCES")
    assert guest.get_perms(b"/node") == (dom0.get_perms(b"/node") if may_read else b"!EACCES")
    assert guest.write(b"/node", b"w") == (OK if may_write else b"!EACCES")
    assert guest.mkdir(b"/node") == (OK if may_write else b"!EACCES")
    assert guest.mkdir(b"/node/child") == (OK if may_write else b"!EACCES")
    assert guest.rm(b"/node") == (OK if may_write else b"!EACCES")
    assert dom0.read(b"/node") == (b"!ENOENT" if may_write else b"v")


def test_eacces_instead_of_enoent_where_the_parent_may_not_be_read(dom0, guest):
    """Errors must not tell a guest which nodes of others exist."""
    dom0.write(b"/secret/there", b"v")
    for path in (b"/secret/there", b"/secret/missing", b"/secret/missing/below"):
        assert guest.read(path) == b"!EACCES"
        assert guest.write(path, b"x") == b"!EACCES"
        assert guest.rm(path) == b"!EACCES"
    dom0.set_perms(b"/secret", b"r0")
    assert guest.read(b"/secret/missing/below") == b"!ENOENT"
    assert guest.rm(b"/secret/missing") == b"!EACCES"
    assert guest.read(b"/secret/there") == b"!EACCES"
    dom0.set_perms(b"/secret", b"w0")
    assert guest.read(b"/secret/missing") == b"!EACCES"
    assert guest.rm(b"/secret/missing") == OK
    assert guest.rm(b"/secret/missing/below") == b"!ENOENT"
    assert guest.rm(b"/") == b"!EACCES"


def test_set_perms_needs_ownership_and_keeps_the_owner(dom0, guest):
    """Write permission is not ownership; an owner may not give its node away; dom0 may do both."""
    dom0.write(b"/node", b"v")
    dom0.set_perms(b"/node", b"b0", b"b5")
    assert guest.set_perms(b"/node", b"b0", b"b5") == b"!EACCES"
    guest.write(b"mine", b"v")
    assert guest.set_perms(b"mine", b"r5", b"b0", b"r9999") == OK
    assert guest.set_perms(b"mine", b"n6") == b"!EPERM"
    assert guest.get_perms(b"mine") == b"r5\0b0\0r9999\0"
    assert dom0.set_perms(b"/local/domain/5/mine", b"n6") == OK
    assert guest.read(b"mine") == b"!EACCES"
    assert dom0.store.check() == []


def test_privileged_is_a_property_of_the_connection(store, dom0):
    """A driver domain's toolstack connection may be privileged without being dom0, and the other way round."""
    dom0.write(b"/node", b"v")
    assert Client(store, 7, privileged=True).read(b"/node") == b"v"
    assert Client(store, 7).read(b"/node") == b"!EACCES"
    assert Client(store, 7, privileged=True).write(b"own", b"v") == OK
    assert dom0.read(b"/local/domain/7/own") == b"v"


def test_set_target_lends_the_rights_of_another_domain(store, dom0, guest):
    """A device model (domain 6) acts on its guest's (5's) paths as the guest, until the guest is gone."""
    for domid in (b"5", b"6"):
        assert dom0.call(Type.INTRODUCE, domid, b"1", b"1") == OK
    model = Client(store, 6)
    guest.write(b"mine", b"v")
    dom0.write(b"/for5", b"v")
    dom0.set_perms(b"/for5", b"n0", b"r5")
    assert model.read(b"/local/domain/5/mine") == b"!EACCES"
    assert dom0.call(Type.SET_TARGET, b"6", b"5") == OK
    assert model.read(b"/for5") == b"v"
    assert model.set_perms(b"/local/domain/5/mine", b"n5", b"r6") == OK
    assert model.write(b"/for5", b"x") == b"!EACCES"
    store.domain_died(5)
    assert model.read(b"/for5") == b"!EACCES"
    assert dom0.call(Type.SET_TARGET, b"6", b"5") == b"!ENOENT"
    assert dom0.call(Type.SET_TARGET, b"99", b"6") == b"!ENOENT"


@pytest.mark.parametrize(
    ("kind", "strings"),
    [
        (Type.CONTROL, (b"help",)),
        (Type.INTRODUCE, (b"9", b"1", b"1")),
        (Type.RELEASE, (b"9",)),
        (Type.RESUME, (b"9",)),
        (Type.SET_TARGET, (b"5", b"0")),
        (Type.GET_FEATURE, (b"5",)),
        (Type.SET_FEATURE, (b"9", b"0")),
        (Type.GET_QUOTA, (b"nodes",)),
        (Type.SET_QUOTA, (b"nodes", b"0")),
    ],
)
def test_privileged_operations_are_eacces_for_guests(guest, kind, strings):
    """A guest that could do any of these would own the host's xenstore."""
    assert guest.call(kind, *strings) == b"!EACCES"
    assert guest.store.limits["nodes"] == 1000
