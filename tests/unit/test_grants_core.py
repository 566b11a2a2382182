"""Grant tables of the real core, by the words of the ABI: the table and its entries, copies, batches, hostile arguments.

Mappings are in test_grants_map_core.py. `host.usage()` before and after says whether a frame, a handle or a domain leaked.
"""
# covers: grant_table_op/cache_flush, grant_table_op/copy, grant_table_op/dump_table, grant_table_op/get_status_frames
# covers: grant_table_op/get_version, grant_table_op/query_size, grant_table_op/set_version, grant_table_op/setup_table
# covers: grant_table_op/swap_grant_ref, grant_table_op/transfer

from __future__ import annotations

import struct

import core_guests
import grant_guests
from core_guests import BASE, PAGE
from grant_guests import (
    ALL_ONES, BAD_COPY_ARG, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_PAGE, BAD_VIRT_ADDR, COPY, DEST_GREF, DEVICE, DUMP, EAGAIN, EFAULT,
    EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, FLUSH, GENERAL, GET_VERSION, GRANT_TABLE_OP, MAP, OKAY, PERMISSION, PERMIT, QUERY, READONLY,
    REF, REPLACE, SELF, SETUP, SET_VERSION, SOURCE_GREF, STATUS_FRAMES, SWAP, TRANSFER, UNMAP, UNMAPPED, WINDOW, WRITABLE, Granter, copy,
    counts, mapped, op, unmap,
)

from xenlike.engine import lib

host, dom0, a, b = core_guests.host, core_guests.dom0, grant_guests.a, grant_guests.b


# ---- the table ----------------------------------------------------------------------------------------------------------


def test_setup_and_query(host, dom0):
    """Guests grow the table as they need; frames stay where they are, belong to Xen, and are writable for good."""
    guest = host.guest(max_grant_frames=4)

    def query(who, dom):
        rc, out = op(who, QUERY, "query_size", dom=dom)
        return rc, out.status, out.nr_frames, out.max_nr_frames

    assert query(guest, SELF) == (0, OKAY, 1, 4)
    first = Granter(guest).mfns
    four = Granter(guest, 4).mfns
    assert four[0] == first[0] and len(set(four)) == 4
    assert query(guest, guest.id) == (0, OKAY, 4, 4)
    assert Granter(guest, 2).mfns == four[:2]           # never shrinks
    assert query(guest, SELF)[2] == 4
    for mfn in four:
        f = host.frame(mfn)
        assert (f.owner, f.special, f.type) == (guest.id, 1, WRITABLE)

    setup = dict(nr_frames=1, frame_list=guest.va(1))
    assert op(guest, SETUP, "setup_table", dom=SELF, nr_frames=5, frame_list=guest.va(1))[1].status == GENERAL
    assert op(guest, SETUP, "setup_table", dom=0, **setup)[1].status == PERMISSION
    assert op(guest, SETUP, "setup_table", dom=999, **setup)[1].status == BAD_DOMAIN
    assert op(dom0, SETUP, "setup_table", dom=guest.id, nr_frames=1, frame_list=dom0.va(1))[1].status == OKAY
    assert op(guest, SETUP, "setup_table", dom=SELF, nr_frames=1, frame_list=UNMAPPED)[1].status == BAD_VIRT_ADDR
    assert op(guest, SETUP, "setup_table", count=2, dom=SELF, **setup)[0] == -EINVAL
    assert op(guest, QUERY, "query_size", count=0, dom=SELF)[0] == -EINVAL
    assert query(guest, 0)[1] == PERMISSION and query(guest, 999)[1] == BAD_DOMAIN
    assert op(guest, DUMP, "dump_table", dom=SELF)[1].status == OKAY


def test_versions(b):
    """Linux and Mini-OS ask for version 2 first and live with 1 only if the answers are these."""
    for version, expected in ((1, 0), (2, -ENOSYS), (0, -EINVAL), (3, -EINVAL)):
        rc, out = op(b, SET_VERSION, "set_version", version=version)
        assert (rc, out.version) == (expected, 1)
    rc, out = op(b, GET_VERSION, "get_version", dom=SELF)
    assert (rc, out.version) == (0, 1)
    assert op(b, GET_VERSION, "get_version", dom=0)[0] == -EPERM
    assert op(b, GET_VERSION, "get_version", dom=999)[0] == -ESRCH
    frames = b.va(1)
    assert op(b, STATUS_FRAMES, "get_status_frames", nr_frames=1, dom=SELF, frame_list=frames)[1].status == GENERAL
    assert op(b, STATUS_FRAMES, "get_status_frames", nr_frames=0, dom=SELF, frame_list=frames)[1].status == OKAY
    assert b.call(GRANT_TABLE_OP, TRANSFER, BASE, 1) == b.call(GRANT_TABLE_OP, FLUSH, BASE, 1) == -EOPNOTSUPP


def test_swap(a, b):
    """Entries change places whole, unless one is in use."""
    a.set(REF, PERMIT, 1, 111)
    a.set(REF + 1, PERMIT | READONLY, 2, 222)

    def swap(x, y):
        rc, out = op(a.guest, SWAP, "swap_grant_ref", ref_a=x, ref_b=y)
        assert rc == 0
        return out.status

    assert swap(REF, REF + 1) == OKAY
    entry = [a.guest.host.read_frame(a.mfns[0], 8 * n, 8) for n in (REF, REF + 1)]
    assert entry == [struct.pack("<HHI", PERMIT | READONLY, 2, 222), struct.pack("<HHI", PERMIT, 1, 111)]
    assert swap(REF, 512) == swap(512, REF) == BAD_GNTREF
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    assert swap(REF, REF + 1) == swap(REF + 1, REF) == EAGAIN
    assert swap(REF, REF) == OKAY
    assert unmap(b, handle) == OKAY and swap(REF, REF + 1) == OKAY


def test_reserved_entries(host, dom0, b):
    """The toolstack seeds entries 0 and 1; domain 0 maps console and xenstore rings through them."""
    assert lib.xl_grant_seed(host.ptr, b.id, 1, 0, b.mfns[7]) == 0
    b.write(b.va(7), b"ring")
    handle = mapped(dom0, b.id, 1)
    assert dom0.read(dom0.va(WINDOW), 4) == b"ring"
    assert lib.xl_grant_seed(host.ptr, b.id, 1, 0, b.mfns[8]) == -16       # EBUSY
    assert lib.xl_grant_seed(host.ptr, b.id, 8, 0, b.mfns[7]) == -EINVAL
    assert lib.xl_grant_seed(host.ptr, b.id, 0, 0, dom0.mfns[7]) == -EINVAL
    assert unmap(dom0, handle) == OKAY


# ---- copy ---------------------------------------------------------------------------------------------------------------


def test_copy(host, a, b):
    """Network back ends live on it: from a grant, to a grant, between grants, within own memory."""
    a.grant(REF, b, 3, PERMIT | READONLY)
    a.grant(REF + 1, b, 4)
    a.guest.write(a.guest.va(3), bytes(range(256)) * 16)
    before = [counts(host, m) for m in (a.guest.mfns[3], a.guest.mfns[4], b.mfns[5])]
    assert copy(b, (REF, a.guest.id, 10), (b.mfns[5], SELF, 4000), 96, SOURCE_GREF) == OKAY
    assert b.read(b.va(5) + 3999, 97) == b"\0" + (bytes(range(256)) * 16)[10:106]
    assert copy(b, (b.mfns[5], SELF, 4000), (REF + 1, a.guest.id, 0), 96, DEST_GREF) == OKAY
    assert copy(b, (REF, a.guest.id, 0), (REF + 1, a.guest.id, 200), 16, SOURCE_GREF | DEST_GREF) == OKAY
    assert a.guest.read(a.guest.va(4), 3) == b"\x0a\x0b\x0c" and a.guest.read(a.guest.va(4) + 200, 3) == b"\0\1\2"
    assert copy(b, (b.mfns[5], SELF, 4000), (b.mfns[5], SELF, 4001), 50, 0) == OKAY        # overlapping, like memmove
    assert b.read(b.va(5) + 4000, 3) == b"\x0a\x0a\x0b"
    assert copy(b, (REF, a.guest.id, 0), (b.mfns[6], SELF, 0), PAGE, SOURCE_GREF) == OKAY
    assert b.read(b.va(6), PAGE) == bytes(range(256)) * 16
    assert before == [counts(host, m) for m in (a.guest.mfns[3], a.guest.mfns[4], b.mfns[5])]
    assert (a.flags(REF), a.flags(REF + 1)) == (PERMIT | READONLY, PERMIT)


def test_copy_errors(host, a, b):
    """Each refusal with its code; no byte moves, no reference or in-use bit stays."""
    a.grant(REF, b, 3, PERMIT | READONLY)
    a.grant(REF + 1, b, 4)
    a.set(REF + 2, PERMIT, b.id, b.mfns[3])
    own, grant = (b.mfns[5], SELF, 0), (REF + 1, a.guest.id, 0)
    before = host.usage(), counts(host, a.guest.mfns[4]), counts(host, b.mfns[5]), counts(host, b.l1)
    for expected, source, dest, length, flags in (
            (PERMISSION, (b.mfns[5], b.id, 0), own, 8, 0), (PERMISSION, own, (a.guest.mfns[4], a.guest.id, 0), 8, 0),
            (BAD_DOMAIN, (REF, 555, 0), own, 8, SOURCE_GREF), (BAD_DOMAIN, own, (REF, 0xFFFF, 0), 8, DEST_GREF),
            (BAD_GNTREF, (512, a.guest.id, 0), own, 8, SOURCE_GREF), (BAD_GNTREF, own, (1 << 31, a.guest.id, 0), 8, DEST_GREF),
            (GENERAL, own, (REF, a.guest.id, 0), 8, DEST_GREF), (GENERAL, (REF + 9, a.guest.id, 0), own, 8, SOURCE_GREF),
            (BAD_PAGE, (REF + 2, a.guest.id, 0), own, 8, SOURCE_GREF), (BAD_PAGE, (a.guest.mfns[3], SELF, 0), own, 8, 0),
            (BAD_PAGE, own, (ALL_ONES, SELF, 0), 8, 0), (GENERAL, own, (b.l1, SELF, 0), 8, 0),
            (BAD_COPY_ARG, (REF, a.guest.id, 4090), own, 7, SOURCE_GREF), (BAD_COPY_ARG, grant, (b.mfns[5], SELF, 65535), 1, 1),
            (BAD_COPY_ARG, grant, own, 65535, SOURCE_GREF)):
        assert copy(b, source, dest, length, flags) == expected, (source, dest, length, flags)
    assert copy(b, (999, 999, 9999), (999, 999, 9999), 0, 0) == OKAY               # length 0: not looked at
    assert before == (host.usage(), counts(host, a.guest.mfns[4]), counts(host, b.mfns[5]), counts(host, b.l1))
    assert [a.flags(REF + n) for n in range(3)] == [PERMIT | READONLY, PERMIT, PERMIT]
    assert a.guest.info().nr_grants_pinned == 0
    assert host.read_frame(b.mfns[5], 0, PAGE) == bytes(PAGE)


def test_copy_batch(a, b):
    """A batch may keep a page open between elements that name it alike: each must still get its own bytes and status."""
    for ref, pfn, text in ((REF, 3, b"abc"), (REF + 1, 4, b"xyz")):
        a.grant(ref, b, pfn)
        a.guest.write(a.guest.va(pfn), text)
    element = struct.Struct("<QHH4xQHH4xHHh2x")
    own, granter = b.mfns[5], a.guest.id

    def run(*rows):
        b.write(b.va(1), b"".join(element.pack(*row, 7) for row in rows))
        assert b.call(GRANT_TABLE_OP, COPY, b.va(1), len(rows)) == 0
        return [element.unpack(b.read(b.va(1) + 40 * n, 40))[-1] for n in range(len(rows))]

    def fetch(ref, offset, mfn=own):
        return ref, granter, 0, mfn, SELF, offset, 3, SOURCE_GREF

    assert run(fetch(REF, 0), fetch(REF, 10), fetch(REF + 1, 20), fetch(REF + 9, 0), fetch(REF + 1, 30),
               fetch(REF + 1, 0, b.mfns[6]), (own, SELF, 20, REF, granter, 100, 3, DEST_GREF),
               (REF, granter, 100, own, SELF, 40, 3, SOURCE_GREF)) == [OKAY] * 3 + [GENERAL] + [OKAY] * 4
    page = b.read(b.va(5), 50)
    assert [page[n:n + 3] for n in (0, 10, 20, 30, 40)] == [b"abc", b"abc", b"xyz", b"xyz", b"xyz"]
    assert b.read(b.va(6), 3) == b"xyz"
    assert [a.flags(REF), a.flags(REF + 1)] == [PERMIT, PERMIT] and a.guest.info().nr_grants_pinned == 0


# ---- arguments ----------------------------------------------------------------------------------------------------------


def test_batches(host, a, b):
    """Elements are done in order, each with its own status; an unreadable one ends the call, and what was done stays done."""
    for n in range(40):
        a.grant(REF + n, b, 3, PERMIT if n % 3 else 0)
    element = struct.Struct("<QIIHhIQ")
    array = b.va(1)
    b.write(array, b"".join(element.pack(0, DEVICE, REF + n, a.guest.id, 7, 0, 0) for n in range(40)))
    assert b.call(GRANT_TABLE_OP, MAP, array, 40) == 0
    out = [element.unpack(b.read(array + 32 * n, 32)) for n in range(40)]
    assert [e[4] for e in out] == [OKAY if n % 3 else GENERAL for n in range(40)]
    good = [e[5] for e in out if e[4] == OKAY]
    unmaps = struct.Struct("<QQIh2x")
    tail = b.va(32) - 24 * 35                           # pfn 32 is not mapped: the array runs into nothing
    b.write(tail, b"".join(unmaps.pack(0, a.guest.mfns[3] << 12, h, 7) for h in [999] * 9 + good))
    assert b.call(GRANT_TABLE_OP, UNMAP, tail, 36) == -EFAULT
    done = [unmaps.unpack(b.read(tail + 24 * n, 24))[3] for n in range(35)]
    assert len(good) == 26 and done == [BAD_HANDLE] * 9 + [OKAY] * 26
    assert b.info().nr_maptrack == 0 and a.guest.info().nr_grants_pinned == 0
    assert all(a.flags(REF + n) == (PERMIT if n % 3 else 0) for n in range(40))


def test_hostile_arguments(host, a, b):
    """Whatever the registers hold: the documented error, and nothing changes."""
    before = host.usage()
    for cmd in (MAP, UNMAP, COPY, REPLACE, SWAP, SETUP, QUERY, STATUS_FRAMES, SET_VERSION, GET_VERSION, DUMP):
        for pointer in (UNMAPPED, 0xFFFF800000000000, 0xFFFF87FFFFFFFFF8, 1 << 47, ALL_ONES):
            assert b.call(GRANT_TABLE_OP, cmd, pointer, 1) == -EFAULT, (cmd, hex(pointer))
        assert b.call(GRANT_TABLE_OP, cmd, BASE, 1 << 31) == -EINVAL
        assert b.call(GRANT_TABLE_OP, cmd | 1 << 12, BASE, 1) == -EINVAL
    for cmd in (MAP, UNMAP, COPY, REPLACE, SWAP):
        assert b.call(GRANT_TABLE_OP, cmd, BASE, 0) == b.call(GRANT_TABLE_OP, cmd, BASE, 1 << 32) == 0
        b.write(BASE, bytes(PAGE))
        assert b.call(GRANT_TABLE_OP, cmd, BASE, 0x7FFFFFFF) == -EFAULT         # runs off the end of memory
    for cmd in (13, 99, 0xFFF):
        assert b.call(GRANT_TABLE_OP, cmd, BASE, 1) == -ENOSYS
    assert host.usage()[0] == before[0]
