"""Hostile front ends of disks (csrc/io): bad requests, grants that do not hold, rings whose indices are nonsense, changes meanwhile.

If it fails: a guest reads or writes what is not its own, harms the host or another guest, or is left without an answer. Both clocks are
tried.
"""

from __future__ import annotations

import random
import struct

import block_disk
import pytest
from block_disk import SECTOR, SECTORS, pages_of, set_req_prod
from block_rig import GTF_PERMIT_ACCESS, BlockGuest, BlockHost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest_sdk.blkring import Op, Segment
from xenlike.engine import lib

host, disk, guest = block_disk.host, block_disk.disk, block_disk.guest


# --- hostile requests -----------------------------------------------------------------------------------------------

def request(op=0, nr=1, sector=0, segs=((105, 0, 7),), ident=1):
    """The bytes of a request, checked by nobody."""
    return struct.pack("<BBHxxxxQQ", op, nr, 0, ident, sector) + b"".join(struct.pack("<IBBxx", *s) for s in segs)


@pytest.mark.parametrize(("raw", "status"), [
    (request(nr=0, segs=()), -1),                                   # a read of nothing
    (request(op=1, nr=0, segs=()), -1),
    (request(nr=12), -1),                                           # more than a request can hold
    (request(nr=255), -1),
    (request(segs=((105, 5, 4),)), -1),                             # backwards
    (request(segs=((105, 0, 8),)), -1),                             # beyond the page
    (request(segs=((105, 255, 255),)), -1),
    (request(sector=SECTORS - 7), -1),                              # beyond the disk by one
    (request(sector=SECTORS), -1),
    (request(sector=2**64 - 1), -1),                                # sums that wrap
    (request(sector=2**64 - 8), -1),
    (request(sector=2**55), -1),                                    # bytes that wrap
    (request(segs=((4, 0, 7),)), -1),                               # no such grant
    (request(segs=((511, 0, 7),)), -1),
    (request(segs=((512, 0, 7),)), -1),                             # beyond the grant table
    (request(segs=((2**32 - 1, 0, 7),)), -1),
    (request(nr=2, segs=((105, 0, 7), (4, 0, 7))), -1),             # the second of two is bad
    (request(op=4), -2), (request(op=7), -2), (request(op=255), -2),
    (request(op=5, nr=0, sector=0, segs=()) + struct.pack("<Q", 2**64 - 1), -1),
    (request(op=5, nr=0, sector=2**63, segs=()) + struct.pack("<Q", 2**63), -1),
])
def test_bad_requests(guest, disk, raw, status):
    """Each gets its documented status; the file does not change; a good request afterwards is served."""
    before = disk[0].read_bytes()
    pinned = guest.info().nr_grants_pinned
    assert guest.raw(raw) == status
    assert disk[0].read_bytes() == before and guest.info().nr_grants_pinned == pinned
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0


def test_grants_are_respected(guest, disk):
    """Read-only grants can be written to disk but not read into; grants to others and revoked ones not used at all."""
    pfn = guest.data[0]
    page = guest.page(pfn)
    for options, read, write in (({"readonly": True}, -1, 0), ({"domid": 3}, -1, -1), ({"flags": 0}, -1, -1),
                                 ({"flags": 2}, -1, -1), ({"flags": 3}, -1, -1), ({"flags": GTF_PERMIT_ACCESS | 256}, -1, -1)):
        guest.grant(105, pfn, **options)
        page[:] = b"\xaa" * 4096
        assert guest.request(Op.READ, 0, [Segment(105)]) == read, options
        assert bytes(page) == b"\xaa" * 4096
        assert guest.request(Op.WRITE, 0, [Segment(105)]) == write, options
    assert disk[0].read_bytes()[:4096] == b"\xaa" * 4096
    struct.pack_into("<HHI", guest.grants, 8 * 105, GTF_PERMIT_ACCESS, 0, 0x7FFFFFFF)   # a frame that does not exist
    assert guest.request(Op.READ, 0, [Segment(105)]) == -1
    struct.pack_into("<HHI", guest.grants, 8 * 105, GTF_PERMIT_ACCESS, 0, guest.host.dom0.mfns[0])    # and one of dom0
    assert guest.request(Op.READ, 0, [Segment(105)]) == -1 and guest.request(Op.WRITE, 0, [Segment(105)]) == -1


def test_page_tables_are_not_read_into(guest):
    """Reading from disk into a page table would hand the guest the machine: its grant cannot be used for writing."""
    struct.pack_into("<HHI", guest.grants, 8 * 105, GTF_PERMIT_ACCESS, 0, guest.l1)
    assert guest.request(Op.READ, 0, [Segment(105)]) == -1
    assert guest.info().nr_grants_pinned == 1


def test_grant_bits_are_clean_afterwards(guest):
    """A front end revokes a grant when its request is answered: reading and writing must be clear by then."""
    guest.request(Op.READ, 0, pages_of(guest, 3))
    for pfn in guest.data[:3]:
        assert struct.unpack_from("<H", guest.grants, 8 * (100 + pfn)) == (GTF_PERMIT_ACCESS,)
    assert guest.info().nr_grants_pinned == 1, "the ring's"


OTHER_GREFS = st.integers(0, 2**32 - 1).filter(lambda gref: gref not in range(8, 12))     # not the ring: it would stop


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(
    st.builds(lambda op, nr, sector, segs: request(op, nr, sector, segs),
              st.integers(0, 8), st.integers(0, 13), st.integers(0, SECTORS + 8) | st.integers(0, 2**64 - 1),
              st.lists(st.tuples(st.integers(98, 130) | OTHER_GREFS, st.integers(0, 9), st.integers(0, 9)), max_size=11)),
), min_size=1, max_size=32))
def test_any_request_at_all(fuzzed, batch):
    """Random slots: each is answered once, with its id and a status of the protocol; no grant stays pinned."""
    for raw in batch:
        fuzzed.ring.put_raw(raw.ljust(112, b"\0"))
    fuzzed.push()
    got = []
    fuzzed.host.wait(lambda: got.extend(fuzzed.pop()) or fuzzed.ring.outstanding == 0)
    assert sorted(r.id for r in got) == sorted(struct.unpack_from("<Q", raw, 8)[0] for raw in batch)
    assert {r.status for r in got} <= {0, -1, -2}
    assert fuzzed.info().nr_grants_pinned == 1


@pytest.fixture
def fuzzed(guest):
    return guest


def test_a_guest_that_changes_everything_meanwhile(disk):
    """While the worker runs: slots rewritten after they were published, grants revoked, granted again, made read-only. Every
    request is answered once, with an id that once stood there; nothing stays pinned; the file keeps its size."""
    host = BlockHost(virtual=False)
    guest = BlockGuest(host)
    assert guest.attach(disk[1], sectors=SECTORS) >= 0
    rng = random.Random(5)
    for _ in range(60):
        for ident in range(32):
            guest.ring.put(rng.choice([Op.READ, Op.WRITE]), ident, rng.randint(0, SECTORS), pages_of(guest, 5))
        guest.push()
        got, tries = [], 0
        while guest.ring.outstanding:
            pfn = rng.choice(guest.data)
            guest.grant(100 + pfn, pfn, flags=rng.choice([0, 1, 1, 5, 2]))
            slot = 64 + 112 * rng.randint(0, 31)
            struct.pack_into("<IBB", guest.shared_ring, slot + 24, rng.randint(100, 130), rng.randint(0, 9), rng.randint(0, 9))
            got += guest.pop()
            tries += 1
            assert tries < 10**7, "requests without response"
        assert len(got) == 32 and {r.status for r in got} <= {0, -1, -2} and {r.id for r in got} <= set(range(32))
        for pfn in guest.data:
            guest.grant(100 + pfn, pfn)
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0
    assert guest.info().nr_grants_pinned == 1 and not host.io_exits
    assert disk[0].stat().st_size == SECTORS * SECTOR
    lib.xl_host_destroy(host.ptr)


# --- hostile rings --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ahead", [33, 1000, 0x7FFFFFFF, -1, 0x80000000])
def test_ring_overrun_stops_the_device(guest, disk, ahead):
    """A producer index beyond the ring: not one stale slot is served; the lane hears why; the guest can be detached."""
    guest.request(Op.READ, 0, pages_of(guest, 1))
    before, served = disk[0].read_bytes(), guest.stats().requests
    set_req_prod(guest, 1 + ahead)
    guest.notify()
    guest.host.wait(lambda: guest.host.io_exits, "EXIT_IO")
    assert guest.host.io_exits == [(guest.id, 77, lib.XL_BLK_BAD_RING)]
    assert guest.stats().stopped == lib.XL_BLK_BAD_RING and guest.stats().requests == served
    set_req_prod(guest, 2)
    guest.notify()
    guest.host.idle()
    assert guest.stats().requests == served, "a stopped device must not go on"
    assert len(guest.host.io_exits) == 1
    assert guest.detach() == 0 and disk[0].read_bytes() == before


def test_one_bad_guest_does_not_disturb_another(host, guest, disk):
    """They share the worker."""
    other = BlockGuest(host)
    assert other.attach(disk[1], sectors=SECTORS) >= 0
    set_req_prod(guest, 5000)
    guest.notify()
    assert other.request(Op.READ, 0, pages_of(other, 1)) == 0
    guest.host.wait(lambda: host.io_exits)
    assert other.request(Op.READ, 0, pages_of(other, 1)) == 0


def test_what_the_guest_does_to_our_indices_is_ignored(guest):
    """rsp_prod and req_event are published copies: a guest that overwrites them harms its own ring at most."""
    guest.ring.put(Op.READ, 5, 0, pages_of(guest, 1))
    struct.pack_into("=I", guest.shared_ring, 8, 0xDEADBEEF)
    guest.push()
    struct.pack_into("=I", guest.shared_ring, 4, 0xDEADBEEF)
    guest.host.wait(lambda: struct.unpack_from("=I", guest.shared_ring, 8) == (1,), "rsp_prod of the back end")
    assert guest.finish() == {5: 0}
