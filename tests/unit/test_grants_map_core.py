"""Mappings of granted pages on the real core: the pin protocol in the guest's own word, map and unmap in all forms, death on either side.

`host.usage()` before and after says whether a frame, a handle or a domain leaked.
"""
# covers: grant_table_op/map_grant_ref, grant_table_op/unmap_and_replace, grant_table_op/unmap_grant_ref

from __future__ import annotations

import core_guests
import grant_guests
from core_guests import BASE, PAGE
from grant_guests import (
    ALL_ONES, APPLICATION, BAD_DEV_ADDR, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, CONTAINS_PTE, DEVICE, EINVAL, GENERAL, HOST, MMUEXT_OP,
    NO_SPACE, OKAY, PERMIT, PTE_PRESENT, PTE_RW, PTE_USER, READING, READONLY, REF, RO, SELF, SOURCE_GREF, SUB_PAGE, UPDATE_VA_MAPPING,
    WINDOW, WRITING, Granter, copy, counts, do_map, mapped, pte, replace, unmap, writable,
)

from xenlike.engine import lib

host, dom0, a, b = core_guests.host, core_guests.dom0, grant_guests.a, grant_guests.b


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
