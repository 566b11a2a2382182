"""The data path of disks (csrc/io) on the real core: what is on the file is what the guest wrote; attaching, detaching, notifications.

If it fails: data is lost or lands elsewhere, or something is left behind when a disk or a guest goes. The front end is driven by hand
(block_rig.py); both clocks are tried. Hostile front ends are in test_block_hostile.py.
"""

from __future__ import annotations

import errno
import os
import random
import struct

import block_disk
import pytest
from block_disk import SECTOR, SECTORS, pages_of, set_req_prod
from block_rig import BlockGuest, BlockHost

from guest_sdk.blkring import Op, Segment, Status, pack_segments, segments
from xenlike.engine import ffi, lib

CLOCKS = pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
host, disk, guest = block_disk.host, block_disk.disk, block_disk.guest


# --- data -----------------------------------------------------------------------------------------------------------

def test_read_gives_the_files_bytes(guest, disk):
    """Eleven pages in one request, and single sectors in the middle of a page; no byte around them is touched."""
    data = disk[0].read_bytes()
    assert guest.request(Op.READ, 8, pages_of(guest, 11)) == Status.OKAY
    assert b"".join(bytes(guest.page(pfn)) for pfn in guest.data[:11]) == data[8 * SECTOR:(8 + 88) * SECTOR]
    page = guest.page(guest.data[0])
    page[:] = b"\xee" * 4096
    assert guest.request(Op.READ, 3, [Segment(100 + guest.data[0], 2, 4)]) == Status.OKAY
    assert bytes(page) == b"\xee" * 1024 + data[3 * SECTOR:6 * SECTOR] + b"\xee" * (4096 - 2560)


def test_write_lands_in_the_file(guest, disk):
    """Segments of unequal length, one after the other; the rest of the file stays."""
    data = bytearray(disk[0].read_bytes())
    a, b = guest.data[:2]
    guest.page(a)[:], guest.page(b)[:] = b"A" * 4096, b"B" * 4096
    assert guest.request(Op.WRITE, 10, [Segment(100 + a, 5, 7), Segment(100 + b, 0, 0)]) == Status.OKAY
    data[10 * SECTOR:13 * SECTOR] = b"A" * 3 * SECTOR
    data[13 * SECTOR:14 * SECTOR] = b"B" * SECTOR
    assert disk[0].read_bytes() == data


@pytest.mark.parametrize(("virtual", "pages", "scattered"), [
    *((virtual, pages, False) for virtual in (True, False) for pages in (1, 2, 4)),
    (True, 2, True), (True, 4, True),       # the test copies such rings, and needs the virtual clock's one thread for it
])
def test_random_traffic_against_a_model(disk, virtual, pages, scattered):
    """A few hundred random requests, many at a time, in rings of every size: the file equals a model's bytes, and every read
    what the model had. With scattered ring pages, slots that stretch over a page's end are put together rightly."""
    host = BlockHost(virtual=virtual)
    guest = BlockGuest(host, data_pages=40, ring_pages=pages, scattered=scattered)
    assert guest.attach(disk[1], sectors=SECTORS) >= 0
    assert guest.stats().nr_slots == guest.ring.slots
    rng, model = random.Random(pages), bytearray(disk[0].read_bytes())
    for _ in range(12):
        reads, free = [], list(guest.data)
        taken = set()
        for ident in range(min(guest.ring.slots, 12 * pages)):
            n = rng.randint(1, 3)
            if len(free) < n:
                break
            segs, used = [], [free.pop() for _ in range(n)]
            for pfn in used:
                first = rng.randint(0, 7)
                segs.append(Segment(100 + pfn, first, rng.randint(first, 7)))
            count = sum(s.last - s.first + 1 for s in segs)
            sector = rng.randint(0, SECTORS - count)
            span = set(range(sector, sector + count))
            if taken & span:                            # requests in flight together have no order
                free += used
                continue
            taken |= span
            if rng.random() < 0.5:
                data = rng.randbytes(count * SECTOR)
                at = 0
                for pfn, s in zip(used, segs):
                    size = (s.last - s.first + 1) * SECTOR
                    guest.page(pfn)[s.first * SECTOR:(s.last + 1) * SECTOR] = data[at:at + size]
                    at += size
                model[sector * SECTOR:(sector + count) * SECTOR] = data
                guest.ring.put(Op.WRITE, ident, sector, segs)
            else:
                reads.append((used, segs, sector, count))
                guest.ring.put(Op.READ, ident, sector, segs)
        guest.push()
        assert set(guest.finish().values()) == {0}
        for used, segs, sector, count in reads:
            got = b"".join(bytes(guest.page(pfn)[s.first * SECTOR:(s.last + 1) * SECTOR]) for pfn, s in zip(used, segs))
            assert got == model[sector * SECTOR:(sector + count) * SECTOR]
    assert disk[0].read_bytes() == model
    lib.xl_host_destroy(host.ptr)


def test_indirect_requests(guest, disk):
    """Segments in a granted page: sixteen pages in one request, more than a plain request can carry."""
    table = guest.data[0]
    segs = [Segment(100 + pfn) for pfn in guest.data[1:17]]
    guest.page(table)[:128] = pack_segments(segs)
    guest.ring.put_indirect(Op.READ, 5, 16, 16, [100 + table])
    guest.push()
    (response,) = guest.host.wait(guest.pop)
    assert response == (5, Op.READ, 0), "front ends expect the inner operation in the response"
    got = b"".join(bytes(guest.page(pfn)) for pfn in guest.data[1:17])
    assert got == disk[0].read_bytes()[16 * SECTOR:(16 + 128) * SECTOR]
    for op, count, gref in ((Op.FLUSH_DISKCACHE, 1, 100 + table), (Op.INDIRECT, 1, 100 + table), (Op.READ, 0, 100 + table),
                            (Op.READ, 257, 100 + table), (Op.READ, 4096, 100 + table), (Op.READ, 1, 4000)):
        guest.ring.put_indirect(op, 6, 0, count, [gref])
        guest.push()
        assert guest.finish() == {6: Status.ERROR}, (op, count, gref)


def test_flush_and_barrier(guest, disk):
    """A flush without data, and a barrier with: both are acknowledged, the data is in the file."""
    guest.page(guest.data[0])[:SECTOR] = b"f" * SECTOR
    assert guest.request(Op.FLUSH_DISKCACHE, 0, []) == Status.OKAY
    assert guest.request(Op.WRITE_BARRIER, 0, []) == Status.OKAY
    assert guest.request(Op.WRITE_BARRIER, 9, [Segment(100 + guest.data[0], 0, 0)]) == Status.OKAY
    assert disk[0].read_bytes()[9 * SECTOR:10 * SECTOR] == b"f" * SECTOR
    assert guest.stats().flushes == 3


def test_flush_reaches_the_disk_before_the_answer(host, tmp_path):
    """The acknowledgement must come after fdatasync: a descriptor on which that fails makes the flush fail."""
    read_end, write_end = os.pipe()
    guest = BlockGuest(host)
    assert guest.attach(write_end, sectors=8) >= 0
    assert guest.request(Op.FLUSH_DISKCACHE, 0, []) == Status.ERROR
    os.close(read_end), os.close(write_end)


def test_discard(guest, disk):
    """Discarded sectors read as zeros and take no room; secure discard is not supported."""
    guest.ring.put_discard(1, 16, 64)
    guest.ring.put_discard(2, 16, 64, secure=True)
    guest.ring.put_discard(3, 0, 0)
    guest.ring.put_discard(4, SECTORS - 1, 2)
    guest.push()
    statuses = guest.finish()
    if statuses[1] == Status.EOPNOTSUPP:
        pytest.skip("this file system cannot punch holes")
    assert statuses == {1: 0, 2: Status.EOPNOTSUPP, 3: Status.ERROR, 4: Status.ERROR}
    data = disk[0].read_bytes()
    assert data[16 * SECTOR:80 * SECTOR] == bytes(64 * SECTOR) and len(data) == SECTORS * SECTOR
    assert any(data[80 * SECTOR:81 * SECTOR]) and any(data[15 * SECTOR:16 * SECTOR])


def test_ram_disk(host):
    """Memory behind a ring (benchmarks): what is written is read back, discards give zeros."""
    guest = BlockGuest(host)
    assert guest.attach(sectors=64) >= 0
    page = guest.page(guest.data[0])
    page[:] = b"r" * 4096
    assert guest.request(Op.WRITE, 56, pages_of(guest, 1)) == 0
    page[:] = bytes(4096)
    assert guest.request(Op.READ, 56, pages_of(guest, 1)) == 0
    assert bytes(page) == b"r" * 4096
    guest.ring.put_discard(1, 57, 1)
    guest.push()
    assert guest.finish() == {1: 0}
    assert guest.request(Op.READ, 56, pages_of(guest, 1)) == 0
    assert bytes(page[:1536]) == b"r" * 512 + bytes(512) + b"r" * 512


def test_notifications(guest):
    """Only when rsp_event is passed; and a sleeping back end asks to be notified by req_event."""
    guest.pending()
    guest.request(Op.READ, 0, pages_of(guest, 1))
    guest.host.wait(guest.pending, "the first response's event")
    assert struct.unpack_from("=I", guest.shared_ring, 4) == (2,), "req_event: it sleeps, and wants to hear of request 1"
    guest.ring.put(Op.READ, 9, 0, pages_of(guest, 1))       # rsp_event is still 1
    guest.push()
    guest.finish()
    guest.host.idle()
    assert not guest.pending()
    assert guest.stats().notifications == 1
    guest.ring.final_check()
    guest.request(Op.READ, 0, pages_of(guest, 1))
    guest.host.wait(guest.pending, "the event that final_check asked for")


# --- files that are not as they should be ---------------------------------------------------------------------------

def test_end_of_file(host, disk):
    """A disk declared larger than its file reads as zeros there; a file that was cut since is an error, not zeros; a write
    beyond the end extends it."""
    path, fd = disk
    guest = BlockGuest(host)
    assert guest.attach(fd, sectors=SECTORS + 16) >= 0
    page = guest.page(guest.data[0])
    page[:] = b"\xee" * 4096
    assert guest.request(Op.READ, SECTORS - 4, pages_of(guest, 1)) == 0
    assert bytes(page) == path.read_bytes()[-2048:] + bytes(2048)
    page[:] = b"e" * 4096
    assert guest.request(Op.WRITE, SECTORS + 8, pages_of(guest, 1)) == 0
    assert path.stat().st_size == (SECTORS + 16) * SECTOR
    os.ftruncate(fd, 100 * SECTOR)
    assert guest.request(Op.READ, 96, pages_of(guest, 1)) == Status.ERROR
    assert guest.request(Op.READ, 92, pages_of(guest, 1)) == 0


def test_host_errors_reach_the_guest(host):
    """ENOSPC and EIO of the host: the request fails, and the next one is served."""
    fd = os.open("/dev/full", os.O_RDWR)
    guest = BlockGuest(host)
    assert guest.attach(fd, sectors=64) >= 0
    assert guest.request(Op.WRITE, 0, pages_of(guest, 1)) == Status.ERROR
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0
    assert guest.stats().errors == 1 and guest.stats().requests == 2
    os.close(fd)


def test_the_callers_descriptor_may_go(host, disk):
    """The back end keeps its own duplicate; Python closes its image while a guest is connected."""
    fd = os.dup(disk[1])
    guest = BlockGuest(host)
    assert guest.attach(fd, sectors=SECTORS) >= 0
    os.close(fd)
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0


def test_read_only(host, disk):
    """Nothing that a guest can send changes a read-only disk, although the descriptor could."""
    before = disk[0].read_bytes()
    guest = BlockGuest(host)
    assert guest.attach(disk[1], sectors=SECTORS, flags=lib.XL_BLK_READONLY) >= 0
    for op in (Op.WRITE, Op.WRITE_BARRIER, Op.FLUSH_DISKCACHE):
        assert guest.request(op, 0, pages_of(guest, 1)) == Status.ERROR
    guest.ring.put_discard(1, 0, 8)
    guest.page(guest.data[1])[:8] = pack_segments(pages_of(guest, 1))
    guest.ring.put_indirect(Op.WRITE, 2, 0, 1, [100 + guest.data[1]])
    guest.push()
    assert guest.finish() == {1: Status.ERROR, 2: Status.ERROR}
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0
    assert guest.request(Op.FLUSH_DISKCACHE, 0, []) == 0
    assert disk[0].read_bytes() == before


# --- attach and detach ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "error"), [
    ({"sectors": 0}, errno.EINVAL),
    ({"sectors": 2**63}, errno.EINVAL),
    ({"flags": 4}, errno.EINVAL),
    ({"kind": 2}, errno.EINVAL),
    ({"refs": []}, errno.EINVAL),
    ({"refs": [8, 9, 10]}, errno.EINVAL),
    ({"refs": [4]}, errno.EINVAL),                  # not granted
    ({"refs": [2**32 - 1]}, errno.EINVAL),
    ({"refs": [8, 4]}, errno.EINVAL),               # the second page
    ({"port": 0}, errno.EINVAL),
    ({"port": 4000}, errno.EINVAL),
    ({"kind": 0}, errno.EBADF),                     # a file without a descriptor
])
def test_refused_attach_leaks_nothing(host, options, error):
    """Every way out of xl_blk_attach gives back what it took."""
    guest = BlockGuest(host)
    def books():
        return host.usage(), guest.info().nr_grants_pinned, guest.info().refcount, len(os.listdir("/proc/self/fd"))

    assert guest.attach(sectors=64) >= 0 and guest.detach() == 0        # the host's books for I/O exist by now
    before = books()
    assert guest.attach(**({"sectors": 64} | options)) == -error
    assert books() == before


def test_detach_gives_everything_back(host, disk):
    """And an id that is gone, or was never there, is -ENOENT, even when its slot has a new user."""
    guest = BlockGuest(host)
    assert guest.attach(sectors=64) >= 0 and guest.detach() == 0
    before = host.usage(), guest.info().nr_grants_pinned, len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        first = guest.attach(disk[1], sectors=SECTORS)
        guest.ring.put(Op.READ, 1, 0, pages_of(guest, 1))
        guest.push()
        assert guest.detach() == 0 and guest.detach() == -errno.ENOENT
        assert guest.attach(disk[1], sectors=SECTORS) != first
        assert lib.xl_blk_detach(host.ptr, first) == -errno.ENOENT
        assert guest.detach() == 0
    assert (host.usage(), guest.info().nr_grants_pinned, len(os.listdir("/proc/self/fd"))) == before
    assert lib.xl_blk_stats(host.ptr, 5, ffi.new("struct xl_blk_stats *")) == -errno.ENOENT
    for ident in (-1, 0, 4095, 2**31 - 1):
        assert lib.xl_blk_detach(host.ptr, ident) == -errno.ENOENT


def test_death_in_mid_io(host, disk):
    """A guest is destroyed with a full ring under way: the host goes on, and after the detach every frame is free."""
    path, fd = disk
    before = None
    for round in range(3):
        guest = BlockGuest(host)
        assert guest.attach(fd, sectors=SECTORS) >= 0
        for ident in range(32):
            guest.ring.put(Op.READ if ident % 2 else Op.WRITE, ident, ident * 8, pages_of(guest, 3))
        guest.push()
        if round:
            host.step()
        guest.close()
        guest.destroy()
        host.idle()
        assert guest.detach() == 0
        host.idle()
        dom0 = host.dom0
        dom0.put("struct evtchn_close", port=guest.back_port)
        assert dom0.call(32, 3, 0x200000) == 0
        if before is None:
            before = host.usage()
    assert host.usage() == before


def test_detach_first_then_death(host, disk):
    """The other order: block-detach --force, then destroy."""
    guest = BlockGuest(host)
    assert guest.attach(disk[1], sectors=SECTORS) >= 0
    guest.request(Op.READ, 0, pages_of(guest, 2))
    assert guest.detach() == 0
    guest.close()
    guest.destroy()
    assert lib.xl_domain_info(host.ptr, guest.id, ffi.new("struct xl_domain_info *")) < 0


@CLOCKS
def test_host_ends_with_disks_attached(disk, virtual):
    """xl_host_destroy joins the worker and closes what is open, with requests under way."""
    fds, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    host = BlockHost(virtual=virtual)
    for _ in range(3):
        guest = BlockGuest(host)
        guest.attach(disk[1], sectors=SECTORS)
        for ident in range(20):
            guest.ring.put(Op.WRITE, ident, 0, pages_of(guest, 11))
        guest.push()
    lib.xl_host_destroy(host.ptr)
    assert len(os.listdir("/proc/self/fd")) == fds and len(os.listdir("/proc/self/task")) == threads


def test_attach_to_a_ring_in_use(host, disk):
    """Indices do not start at 0 after a hand-over; and what is absurd at attach is refused at attach."""
    guest = BlockGuest(host)
    for at, value in ((0, 1000), (4, 1001), (8, 1000), (12, 1001)):
        struct.pack_into("=I", guest.shared_ring, at, value)
    guest.ring.__init__(guest.shared_ring, attach=True)
    assert guest.attach(disk[1], sectors=SECTORS) >= 0
    assert guest.request(Op.READ, 0, pages_of(guest, 1)) == 0
    assert guest.detach() == 0
    set_req_prod(guest, 5000)
    assert guest.attach(disk[1], sectors=SECTORS) == -errno.EIO


def test_requests_before_the_attach_are_served(host, disk):
    """Mini-OS may fill its ring and notify before we listen."""
    guest = BlockGuest(host)
    guest.ring.put(Op.READ, 5, 0, pages_of(guest, 1))
    guest.push()
    assert guest.attach(disk[1], sectors=SECTORS) >= 0
    assert guest.finish() == {5: 0}


# --- determinism ----------------------------------------------------------------------------------------------------

def history(path):
    """A run with the virtual clock: its trace digest, and when it ended."""
    fd = os.open(path, os.O_RDWR)
    host = BlockHost(virtual=True)
    guests = [BlockGuest(host) for _ in range(2)]
    for guest in guests:
        guest.attach(fd, sectors=SECTORS)
    rng = random.Random(3)
    for _ in range(10):
        for guest in guests:
            for ident in range(rng.randint(1, 8)):
                guest.ring.put(rng.choice([Op.READ, Op.WRITE, Op.FLUSH_DISKCACHE]), ident, rng.randint(0, 64), pages_of(guest, rng.randint(1, 4)))
            guest.push()
        for guest in guests:
            guest.finish()
    result = lib.xl_trace_digest(host.ptr, 1), lib.xl_now(host.ptr)
    lib.xl_host_destroy(host.ptr)
    os.close(fd)
    return result


def test_virtual_clock_repeats(tmp_path):
    """Two runs on equal disks: equal digests of every event and all memory, equal end. A disk takes time: none was free."""
    path = tmp_path / "disk.img"
    results = []
    for _ in range(2):
        path.write_bytes(random.Random(1).randbytes(SECTORS * SECTOR))
        results.append(history(path))
    assert results[0] == results[1]
    assert results[0][1] > 10 * 20_000


def test_latency_grows_with_the_request(tmp_path, disk):
    """The modelled disk: a request of 88 sectors takes longer than one of 1, by the table."""
    host = BlockHost(virtual=True)
    guest = BlockGuest(host)
    guest.attach(disk[1], sectors=SECTORS)

    def timed(segs):
        start = lib.xl_now(host.ptr)
        guest.request(Op.READ, 0, segs)
        return lib.xl_now(host.ptr) - start

    one = timed([Segment(105, 0, 0)])
    many = timed(segments([100 + pfn for pfn in guest.data[:11]], 88))
    assert abs(many - one - 87 * 250) <= 1000, "the rest is hypercalls, which cost virtual time as well"
    lib.xl_host_destroy(host.ptr)
