"""Grant tables of the real core, by the words of the ABI: the pin protocol in the guest's own word, map and unmap in all
forms, copy, table management, death on either side.

Numbers (status codes, flags) are written out here: the test judges the headers too. `host.usage()` before and after says
whether a frame, a handle or a domain leaked.
"""
# covers: grant_table_op/cache_flush, grant_table_op/copy, grant_table_op/dump_table, grant_table_op/get_status_frames
# covers: grant_table_op/get_version, grant_table_op/map_grant_ref, grant_table_op/query_size
# covers: grant_table_op/set_version, grant_table_op/setup_table, grant_table_op/swap_grant_ref
# covers: grant_table_op/transfer, grant_table_op/unmap_and_replace, grant_table_op/unmap_grant_ref

from __future__ import annotations

import struct

import pytest

from core_guests import BASE, PAGE, CoreHost
from xenlike.engine import ffi, lib

EPERM, ESRCH, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP = 1, 3, 14, 22, 38, 95
OKAY, GENERAL, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_VIRT_ADDR, BAD_DEV_ADDR = 0, -1, -2, -3, -4, -5, -6
PERMISSION, BAD_PAGE, BAD_COPY_ARG, EAGAIN, NO_SPACE = -8, -9, -10, -12, -13
SELF = 0x7FF0
PERMIT, READONLY, READING, WRITING, SUB_PAGE = 1, 4, 8, 16, 256
DEVICE, HOST, RO, APPLICATION, CONTAINS_PTE = 1, 2, 4, 8, 16
SOURCE_GREF, DEST_GREF = 1, 2
UPDATE_VA_MAPPING, GRANT_TABLE_OP, MMUEXT_OP = 14, 20, 26
MAP, UNMAP, SETUP, DUMP, TRANSFER, COPY, QUERY, REPLACE, SET_VERSION, STATUS_FRAMES, GET_VERSION, SWAP, FLUSH = range(13)
PTE_PRESENT, PTE_RW, PTE_USER = 1, 2, 4
WRITABLE = 7
UNMAPPED = BASE + 500 * PAGE
ALL_ONES = (1 << 64) - 1
WINDOW = 24                             # pfns from here on are where tests map grants
REF = 8                                 # first unreserved entry


class Granter:
    """A guest with its grant frames at hand: writes entries as a kernel does."""

    def __init__(self, guest, frames=1):
        self.guest = guest
        rc, out = op(guest, SETUP, "setup_table", dom=SELF, nr_frames=frames, frame_list=guest.va(1))
        assert (rc, out.status) == (0, OKAY)
        self.mfns = struct.unpack(f"<{frames}Q", guest.read(guest.va(1), 8 * frames))

    def _at(self, ref):
        return self.mfns[ref // 512], ref % 512 * 8

    def grant(self, ref, to, pfn, flags=PERMIT):
        self.set(ref, flags, to.id, self.guest.mfns[pfn])

    def set(self, ref, flags, domid, frame):
        self.guest.host.write_frame(*self._at(ref), struct.pack("<HHI", flags, domid, frame))

    def flags(self, ref):
        return struct.unpack("<HHI", self.guest.host.read_frame(*self._at(ref), 8))[0]


def op(guest, cmd, name, *, count=1, **fields):
    """grant_table_op with one element → (rc, the element afterwards)."""
    ctype = f"struct gnttab_{name}"
    guest.put(ctype, **fields)
    rc = guest.call(GRANT_TABLE_OP, cmd, BASE, count)
    return rc, guest.get(ctype)


def do_map(guest, granter, ref, *, pfn=WINDOW, flags=HOST, addr=None):
    """→ (status, handle, dev_bus_addr)"""
    rc, out = op(guest, MAP, "map_grant_ref", host_addr=guest.va(pfn) if addr is None else addr, flags=flags, ref=ref,
                 dom=granter.guest.id if isinstance(granter, Granter) else granter)
    assert rc == 0
    return out.status, out.handle, out.dev_bus_addr


def mapped(guest, granter, ref, **how):
    status, handle, _ = do_map(guest, granter, ref, **how)
    assert status == OKAY
    return handle


def unmap(guest, handle, *, pfn=WINDOW, addr=None, dev=0):
    rc, out = op(guest, UNMAP, "unmap_grant_ref", host_addr=guest.va(pfn) if addr is None else addr, dev_bus_addr=dev,
                 handle=handle)
    assert rc == 0
    return out.status


def replace(guest, handle, new_pfn, *, pfn=WINDOW):
    rc, out = op(guest, REPLACE, "unmap_and_replace", host_addr=guest.va(pfn), new_addr=guest.va(new_pfn), handle=handle)
    assert rc == 0
    return out.status


def pte(guest, pfn):
    return struct.unpack("<Q", guest.host.read_frame(guest.l1, pfn * 8, 8))[0]


def counts(host, mfn):
    f = host.frame(mfn)
    return f.count, f.type_count


def writable(guest, pfn):
    """Can the guest store there now?"""
    return lib.xl_guest_write(guest.vcpus[0], guest.va(pfn) + 100, b"x", 1, ffi.NULL) == 0


@pytest.fixture
def host():
    with CoreHost() as h:
        yield h


@pytest.fixture
def dom0(host):
    return host.guest(privileged=True, domid=0)


@pytest.fixture
def a(host, dom0):
    return Granter(host.guest())


@pytest.fixture
def b(host, dom0):
    return host.guest()


# ---- map and unmap ------------------------------------------------------------------------------------------------------


def test_map_and_unmap(host, a, b):
    """The life of a mapping: bytes shared, the granter's word says so, counts up and down, everything as before at the end."""
    mfn = a.guest.mfns[3]
    before = counts(host, mfn), counts(host, b.mfns[WINDOW]), host.usage()
    a.grant(REF, b, 3)
    a.guest.write(a.guest.va(3), b"hello")
    status, handle, bus = do_map(b, a, REF)
    assert (status, bus) == (OKAY, mfn << 12)
    assert a.flags(REF) == PERMIT | READING | WRITING
    assert counts(host, mfn) == (before[0][0] + 1, before[0][1] + 1)
    assert b.read(b.va(WINDOW), 5) == b"hello"
    b.write(b.va(WINDOW), b"world")
    assert a.guest.read(a.guest.va(3), 5) == b"world"
    assert (a.guest.info().nr_grants_pinned, b.info().nr_maptrack) == (1, 1)

    assert unmap(b, handle) == OKAY
    assert a.flags(REF) == PERMIT
    assert counts(host, mfn) == before[0]
    assert pte(b, WINDOW) == 0 and not writable(b, WINDOW)          # no stale translation either
    assert (a.guest.info().nr_grants_pinned, b.info().nr_maptrack) == (0, 0)
    assert unmap(b, handle) == BAD_HANDLE
    # What the mapping replaced was let go when it was made.
    assert counts(host, b.mfns[WINDOW]) == (before[1][0] - 1, before[1][1] - 1)
    assert host.usage()[0] == before[2][0]


def test_entry_of_a_mapping(a, b):
    """Section 4.3: present, accessed, dirty, not executable; writable and open to user mode as asked; AVAIL from flags."""
    a.grant(REF, b, 3)
    frame = a.guest.mfns[3] << 12
    base = frame | PTE_PRESENT | 32 | 64 | 1 << 63
    for flags, expected in ((HOST, base | PTE_RW | PTE_USER | 1 << 52), (HOST | RO, base | PTE_USER | 1 << 52),
                            (HOST | APPLICATION, base | PTE_RW | PTE_USER | 256),
                            (HOST | RO | 5 << 16, base | PTE_USER | 1 << 52 | 5 << 9)):
        handle = mapped(b, a, REF, flags=flags)
        assert pte(b, WINDOW) == expected, hex(flags)
        assert unmap(b, handle) == OKAY


def test_readonly_mapping(host, a, b):
    """A read-only grant may not be mapped writable; a read-only mapping must not let a store through, nor say "writing"."""
    a.grant(REF, b, 3, PERMIT | READONLY)
    assert do_map(b, a, REF)[0] == GENERAL
    assert a.flags(REF) == PERMIT | READONLY
    types = counts(host, a.guest.mfns[3])[1]
    handle = mapped(b, a, REF, flags=HOST | RO)
    assert a.flags(REF) == PERMIT | READONLY | READING
    assert counts(host, a.guest.mfns[3])[1] == types
    assert not writable(b, WINDOW)
    assert unmap(b, handle) == OKAY and a.flags(REF) == PERMIT | READONLY


def test_map_errors(host, a, b, dom0):
    """Each refusal with its code, and nothing left behind by any of them."""
    other = host.guest()
    a.grant(REF, b, 3)
    a.grant(REF + 1, other, 3)
    a.set(REF + 2, 2, b.id, a.guest.mfns[3])            # accept_transfer
    a.set(REF + 3, PERMIT, b.id, b.mfns[3])             # not the granter's frame
    a.set(REF + 4, PERMIT, b.id, 5)                     # no RAM at all
    a.set(REF + 5, PERMIT, b.id, a.guest.l1)            # a page table: not to be had writable
    a.set(REF + 6, PERMIT | SUB_PAGE, b.id, a.guest.mfns[3])
    unmap(b, mapped(b, a, REF, pfn=WINDOW + 1), pfn=WINDOW + 1)        # so that b has its first page of handles
    before = host.usage(), counts(host, a.guest.mfns[3]), counts(host, a.guest.l1), b.info().nr_maptrack
    for expected, how in ((BAD_GNTREF, dict(ref=REF, flags=0)), (BAD_GNTREF, dict(ref=REF, flags=RO | APPLICATION)),
                          (BAD_GNTREF, dict(ref=512)), (BAD_GNTREF, dict(ref=0xFFFFFFFF)),
                          (GENERAL, dict(ref=REF + 1)), (GENERAL, dict(ref=REF + 2)), (GENERAL, dict(ref=REF + 3)),
                          (GENERAL, dict(ref=REF + 4)), (GENERAL, dict(ref=REF + 5)), (GENERAL, dict(ref=REF + 6)),
                          (GENERAL, dict(ref=REF + 9)),
                          (GENERAL, dict(ref=REF, addr=1 << 40)),                       # no L1 there
                          (GENERAL, dict(ref=REF, addr=0xFFFF800000000000)),
                          (GENERAL, dict(ref=REF, addr=b.l1 << 12 | 6, flags=HOST | CONTAINS_PTE)),
                          (GENERAL, dict(ref=REF, addr=b.mfns[2] << 12, flags=HOST | CONTAINS_PTE)),
                          (GENERAL, dict(ref=REF, addr=a.guest.l1 << 12, flags=HOST | CONTAINS_PTE)),
                          (GENERAL, dict(ref=REF, addr=ALL_ONES & ~7, flags=HOST | CONTAINS_PTE))):
        assert do_map(b, a, **how)[0] == expected, how
    for domid in (999, SELF, 0x7FF4, 0xFFFF):
        assert do_map(b, domid, REF)[0] == BAD_DOMAIN
    assert a.flags(REF) == PERMIT and a.flags(REF + 5) == PERMIT
    assert before == (host.usage(), counts(host, a.guest.mfns[3]), counts(host, a.guest.l1), b.info().nr_maptrack)
    assert a.guest.info().nr_grants_pinned == 0
    mapped(b, a, REF + 5, flags=HOST | RO)              # a page table may be looked at



def test_pins_nest(a, b):
    """"reading" and "writing" go with the last mapping that needs them, in whatever order mappings end; flags the guest
    changes while the entry is in use are not looked at again."""
    a.grant(REF, b, 3)
    first = mapped(b, a, REF, flags=HOST | RO, pfn=WINDOW)
    assert a.flags(REF) == PERMIT | READING
    a.grant(REF, b, 3, flags=PERMIT | READONLY | READING)
    assert do_map(b, a, REF, pfn=WINDOW + 1)[0] == GENERAL          # the first pin that writes looks at "read-only" ...
    a.grant(REF, b, 3, flags=READING)
    assert unmap(b, mapped(b, a, REF, pfn=WINDOW + 1), pfn=WINDOW + 1) == OKAY     # ... and at nothing else
    a.grant(REF, b, 3, flags=PERMIT | READING)
    second = mapped(b, a, REF, pfn=WINDOW + 1)
    assert a.flags(REF) == PERMIT | READING | WRITING
    a.grant(REF, b, 4, flags=READING | WRITING)         # revoked, without looking: existing pins go on
    third = mapped(b, a, REF, pfn=WINDOW + 2)
    assert unmap(b, second, pfn=WINDOW + 1) == OKAY and a.flags(REF) & WRITING
    assert unmap(b, third, pfn=WINDOW + 2) == OKAY and a.flags(REF) == READING
    assert unmap(b, first) == OKAY and a.flags(REF) == 0
    assert do_map(b, a, REF)[0] == GENERAL              # now it counts


def test_pin_counts_do_not_overflow(host, a, b):
    """Eight-bit counters. The 129th mapping of one kind is refused, of another kind still allowed."""
    a.grant(REF, b, 3)
    handles = [mapped(b, a, REF, flags=DEVICE) for _ in range(128)]
    assert do_map(b, a, REF, flags=DEVICE)[0] == GENERAL
    assert do_map(b, a, REF, flags=DEVICE | HOST)[0] == GENERAL
    assert pte(b, WINDOW) >> 12 & 0xFFFFFFFF == b.mfns[WINDOW]
    last = mapped(b, a, REF, flags=DEVICE | RO)
    for handle in handles:
        assert unmap(b, handle, addr=0, dev=a.guest.mfns[3] << 12) == OKAY
    assert a.flags(REF) == PERMIT | READING
    assert unmap(b, last, addr=0, dev=a.guest.mfns[3] << 12) == OKAY and a.flags(REF) == PERMIT


def test_only_one_domain_may_hold_a_pin(host, a, b):
    """While b maps, an entry rewritten for c must not give c a pin on b's counters."""
    c = host.guest()
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    a.grant(REF, c, 3)
    assert do_map(c, a, REF)[0] == GENERAL
    assert unmap(b, handle) == OKAY
    mapped(c, a, REF)


def test_host_and_device_map_end_apart(host, a, b):
    """xsa-224: two unmaps for the two halves; the frame stays writable-typed until the second, and the handle until then."""
    mfn = a.guest.mfns[3]
    before = counts(host, mfn)
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF, flags=HOST | DEVICE)
    assert counts(host, mfn) == (before[0] + 2, before[1] + 2)
    assert unmap(b, handle, addr=0, dev=(mfn << 12) + PAGE) == BAD_DEV_ADDR
    assert unmap(b, handle, addr=0, dev=0) == OKAY      # nothing named, nothing done
    assert counts(host, mfn) == (before[0] + 2, before[1] + 2)
    assert unmap(b, handle) == OKAY
    assert counts(host, mfn) == (before[0] + 1, before[1] + 1) and a.flags(REF) == PERMIT | READING | WRITING
    assert unmap(b, handle) == OKAY                     # the host half is gone already
    assert unmap(b, handle, addr=0, dev=mfn << 12) == OKAY
    assert counts(host, mfn) == before and a.flags(REF) == PERMIT
    assert unmap(b, handle, addr=0, dev=mfn << 12) == BAD_HANDLE


def test_unmap_errors(a, b):
    """A wrong address must not end the mapping, nor touch the entry that is there."""
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    entry = pte(b, WINDOW + 1)
    for bad in (handle + 1, 255, 256, 1 << 20, 0xFFFFFFFF):
        assert unmap(b, bad) == BAD_HANDLE
    assert unmap(b, handle, pfn=WINDOW + 1) == GENERAL and pte(b, WINDOW + 1) == entry
    assert unmap(b, handle, addr=1 << 41) == GENERAL
    assert a.flags(REF) == PERMIT | READING | WRITING
    assert unmap(b, handle) == OKAY


def test_overwritten_mapping(host, a, b):
    """A guest that overwrites the PTE drops its references, but stays in the granter's way until it dies (6.3)."""
    mfn = a.guest.mfns[3]
    before = counts(host, mfn)
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    assert b.call(UPDATE_VA_MAPPING, b.va(WINDOW), 0, 2) == 0
    assert counts(host, mfn) == before
    assert unmap(b, handle) == GENERAL
    assert a.flags(REF) == PERMIT | READING | WRITING
    b.destroy()
    assert a.flags(REF) == PERMIT and counts(host, mfn) == before


def test_contains_pte(a, b):
    """Mapping by the machine address of the entry, as Linux's and Xen's user-space mappings do."""
    a.grant(REF, b, 3)
    addr = b.l1 << 12 | WINDOW * 8
    handle = mapped(b, a, REF, flags=HOST | CONTAINS_PTE, addr=addr)
    assert pte(b, WINDOW) >> 12 & 0xFFFFFFFF == a.guest.mfns[3]
    assert replace(b, handle, 3) == GENERAL             # not available for such a mapping
    assert unmap(b, handle, addr=addr) == OKAY and pte(b, WINDOW) == 0


def test_unmap_and_replace(host, a, b):
    """The entry of new_addr moves, with the references it holds: nothing is counted twice or lost (xsa-234)."""
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    kept = b.mfns[WINDOW + 1]
    before = counts(host, kept)
    entry = pte(b, WINDOW + 1)
    assert replace(b, handle, WINDOW + 1) == OKAY
    assert (pte(b, WINDOW), pte(b, WINDOW + 1)) == (entry, 0)
    assert counts(host, kept) == before and a.flags(REF) == PERMIT
    b.write(b.va(WINDOW), b"moved")
    assert host.read_frame(kept, 0, 5) == b"moved"
    assert not writable(b, WINDOW + 1)
    assert replace(b, handle, WINDOW) == BAD_HANDLE


def test_self_grant(host, a):
    """XTF maps its own grants: one domain on both sides, one set of locks."""
    a.grant(REF, a.guest, 3)
    before = host.usage()
    handle = mapped(a.guest, a, REF, flags=HOST | DEVICE)
    assert a.flags(REF) == PERMIT | READING | WRITING
    a.guest.write(a.guest.va(WINDOW), b"self")
    assert a.guest.read(a.guest.va(3), 4) == b"self"
    assert unmap(a.guest, handle, dev=a.guest.mfns[3] << 12) == OKAY
    assert a.flags(REF) == PERMIT and host.usage()[2] == before[2]


def test_granted_frame_cannot_become_a_page_table(host, a, b):
    """The safety of paging across domains: while b may write the frame, a cannot pin it as a table."""
    mfn = a.guest.mfns[3]
    a.grant(REF, b, 3)
    a.guest.write(a.guest.va(3), bytes(PAGE))
    handle = mapped(b, a, REF)
    b.write(b.va(WINDOW), bytes(8))                     # a writable translation is cached now
    assert a.guest.call(UPDATE_VA_MAPPING, a.guest.va(3), mfn << 12 | PTE_PRESENT, 2) == 0
    a.guest.put("struct mmuext_op", cmd=0, arg1__mfn=mfn)           # MMUEXT_PIN_L1_TABLE
    assert a.guest.call(MMUEXT_OP, BASE, 1, 0, SELF) == -EINVAL
    assert unmap(b, handle) == OKAY
    a.guest.put("struct mmuext_op", cmd=0, arg1__mfn=mfn)
    assert a.guest.call(MMUEXT_OP, BASE, 1, 0, SELF) == 0
    assert lib.xl_check_tlbs(host.ptr) == 0
    assert do_map(b, a, REF)[0] == GENERAL


def test_handles(host, dom0, a):
    """A mapper's handles are limited (no_space), reused, and freed by every failed map."""
    b = host.guest(max_maptrack_frames=1)
    for n in range(256):
        a.set(REF + n, PERMIT, b.id, a.guest.mfns[3])
    handles = [mapped(b, a, REF + n, flags=DEVICE) for n in range(256)]
    assert sorted(handles) == list(range(256))
    a.grant(REF + 256, b, 3)
    assert do_map(b, a, REF + 256, flags=DEVICE)[0] == NO_SPACE
    assert a.flags(REF + 256) == PERMIT
    assert unmap(b, handles[77], addr=0, dev=a.guest.mfns[3] << 12) == OKAY
    assert do_map(b, a, REF + 300, flags=DEVICE)[0] == GENERAL
    assert mapped(b, a, REF + 256, flags=DEVICE) == handles[77]


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


# ---- copy ---------------------------------------------------------------------------------------------------------------


def copy(guest, source, dest, length, flags):
    """source, dest: (gref or mfn, domid, offset)"""
    rc, out = op(guest, COPY, "copy", **{f"{side}__{field}": value for side, (where, domid, offset) in
                                         (("source", source), ("dest", dest))
                                         for field, value in (("u__gmfn", where), ("domid", domid), ("offset", offset))},
                 len=length, flags=flags)
    assert rc == 0
    return out.status


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


# ---- death --------------------------------------------------------------------------------------------------------------


def test_death_of_the_mapper(host, dom0, a):
    """Everything a dead mapper held is released: the granter can revoke, and its frames count as before."""
    mfn = a.guest.mfns[3]
    before = counts(host, mfn), host.usage()
    b = host.guest()
    for n in range(4):
        a.grant(REF + n, b, 3)
    mapped(b, a, REF)
    mapped(b, a, REF + 1, flags=HOST | RO, pfn=WINDOW + 1)
    mapped(b, a, REF + 2, flags=DEVICE)
    mapped(b, a, REF + 3, flags=DEVICE | HOST, pfn=WINDOW + 2)
    b.destroy()
    assert [a.flags(REF + n) for n in range(4)] == [PERMIT] * 4
    assert counts(host, mfn) == before[0]
    assert a.guest.info().nr_grants_pinned == 0
    assert host.usage() == before[1]


def test_death_of_the_granter(host, dom0, b):
    """A mapped frame outlives its owner, who stays as a zombie; no new maps; the last unmap frees both."""
    clean = host.usage()
    granter = host.guest()
    a = Granter(granter)
    a.grant(REF, b, 3)
    a.grant(REF + 1, b, 4)
    a.grant(REF + 2, b, 5)
    granter.write(granter.va(3), b"left behind")
    handle = mapped(b, a, REF)
    device = mapped(b, a, REF + 1, flags=DEVICE)
    mfn = granter.mfns[3]
    granter.destroy()
    assert b.read(b.va(WINDOW), 11) == b"left behind"
    b.write(b.va(WINDOW), b"still mine")
    assert host.frame(mfn).owner == granter.id and counts(host, mfn) == (1, 1)
    assert do_map(b, a, REF + 2, pfn=WINDOW + 1)[0] == BAD_DOMAIN
    assert do_map(b, a, REF, pfn=WINDOW + 1)[0] == BAD_DOMAIN
    assert copy(b, (REF, granter.id, 0), (b.mfns[5], SELF, 0), 8, SOURCE_GREF) == BAD_DOMAIN
    assert host.usage()[2] == clean[2] + 1              # the zombie keeps its id
    heir = host.guest(pages=96)                         # gets the dead table's frame: nobody may write there any more
    for pfn in range(96):
        heir.write(heir.va(pfn), b"\xff" * PAGE)
    assert unmap(b, handle) == OKAY
    assert unmap(b, device, addr=0, dev=granter.mfns[4] << 12) == OKAY
    assert not writable(b, WINDOW)
    assert all(heir.read(heir.va(pfn), PAGE) == b"\xff" * PAGE for pfn in range(96))
    heir.destroy()
    frames, _, domains = host.usage()
    assert (frames, domains) == (clean[0], clean[2])


def test_death_of_both(host, dom0):
    """Each maps the other; whoever goes first, nothing is left at the end. A frame comes to its next owner zeroed."""
    clean = host.usage()
    first, second = host.guest(), host.guest()
    x, y = Granter(first), Granter(second)
    x.grant(REF, second, 3)
    y.grant(REF, first, 3)
    x.grant(REF + 1, first, 4)
    mapped(second, x, REF)
    mapped(first, y, REF)
    mapped(first, x, REF + 1, pfn=WINDOW + 1, flags=HOST | DEVICE)          # itself
    second.write(second.va(WINDOW), b"secret")
    first.destroy()
    second.destroy()
    assert host.usage() == clean
    heir = host.guest()
    assert all(heir.read(heir.va(n), PAGE) == bytes(PAGE) for n in range(1, 32))


def test_death_with_an_overwritten_mapping(host, dom0, b):
    """The granter's struct must stay while a handle names it, though no frame of it is left."""
    clean = host.usage()
    granter = host.guest()
    a = Granter(granter)
    a.grant(REF, b, 3)
    handle = mapped(b, a, REF)
    assert b.call(UPDATE_VA_MAPPING, b.va(WINDOW), 0, 2) == 0
    granter.destroy()
    assert unmap(b, handle) == GENERAL                  # and not a crash
    b.destroy()
    assert host.usage()[2] == clean[2] - 1
