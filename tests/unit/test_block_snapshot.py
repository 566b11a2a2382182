"""Disks and snapshots of a host: reset brings back devices as they were, requests under way included.

If it fails: after a reset a device answers from another one's file, from a descriptor that was closed, or not at all; or
descriptors pile up, one a reset. (What is in the file is not part of a snapshot.)
"""

import errno
import os

import pytest

from block_rig import BlockGuest, BlockHost
from guest_sdk.blkring import Op, Segment
from xenlike.engine import lib

SECTORS = 64


def nr_fds():
    return len(os.listdir("/proc/self/fd"))


class Scene:
    """A guest with a disk, two sectors of it read, and then a snapshot; `reset` goes back to it."""

    def __init__(self, host, fd):
        self.host, self.guest, self.fd = host, BlockGuest(host), fd
        assert self.guest.attach(fd, sectors=SECTORS) >= 0
        self.read(0)
        self.read(1)
        self.take()

    def take(self):
        ring = self.guest.ring
        self.saved = ring._req_prod, ring._pushed, ring._rsp_cons, self.guest.ident
        assert lib.xl_snapshot(self.host.ptr) == 0

    def reset(self):
        assert lib.xl_reset(self.host.ptr) == 0
        ring = self.guest.ring
        ring._req_prod, ring._pushed, ring._rsp_cons, self.guest.ident = self.saved

    def read(self, sector):
        """Reads a sector, which must hold its own number."""
        pfn = self.guest.data[0]
        assert self.guest.request(Op.READ, sector, [Segment(100 + pfn, 0, 0)]) == 0
        assert bytes(self.guest.page(pfn)[:4]) == b"%04d" % sector


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(b"%04d" % n + bytes(508) for n in range(SECTORS)))
    fd, before = os.open(path, os.O_RDWR), nr_fds()
    host = BlockHost(virtual=True)
    yield Scene(host, fd)
    lib.xl_host_destroy(host.ptr)
    assert nr_fds() == before, "destroying the host must close what snapshots kept open"
    os.close(fd)


def test_requests_after_a_reset(scene):
    """Private and shared indices go back together."""
    for n in range(4):
        scene.read(2 + n)
        scene.reset()
    assert scene.guest.stats().requests == 2
    scene.read(9)


def test_detached_after_the_snapshot(scene):
    """Detach, reset: the device is there again, with its file, and can be detached again."""
    fds = nr_fds()
    for _ in range(3):
        assert scene.guest.detach() == 0 and scene.guest.detach() == -errno.ENOENT
        scene.reset()
        scene.read(5)
    lib.xl_snapshot_drop(scene.host.ptr)
    assert nr_fds() == fds
    assert scene.guest.detach() == 0
    assert nr_fds() == fds - 1


def test_dropping_a_snapshot_of_a_detached_disk(scene):
    """Nobody can bring it back: its descriptor is closed."""
    fds = nr_fds()
    assert scene.guest.detach() == 0
    assert nr_fds() == fds
    lib.xl_snapshot_drop(scene.host.ptr)
    assert nr_fds() == fds - 1


def test_attached_after_the_snapshot(scene):
    """A second disk, then reset: it is gone, its id too, even though the first device's slot is next to it."""
    fds = nr_fds()
    for _ in range(3):
        second = BlockGuest(scene.host)
        assert second.attach(scene.fd, sectors=SECTORS) >= 0
        assert second.request(Op.READ, 0, [Segment(105)]) == 0
        scene.reset()
        assert second.detach() == -errno.ENOENT and nr_fds() == fds
        scene.read(3)


def test_replaced_after_the_snapshot(scene):
    """Detached, and its slot given to another disk (of zeros): after the reset the first one's file answers."""
    assert scene.guest.detach() == 0
    assert scene.guest.attach(sectors=SECTORS) >= 0             # a RAM disk
    scene.reset()
    scene.read(7)


def test_request_under_way_at_the_snapshot(scene):
    """Its timer, its copy and its answer come back each time."""
    guest = scene.guest
    guest.ring.put(Op.READ, 77, 11, [Segment(105, 0, 0)])
    guest.push()
    scene.take()
    for _ in range(3):
        assert guest.finish() == {77: 0}
        assert bytes(guest.page(guest.data[0])[:4]) == b"0011"
        scene.reset()
    assert guest.finish() == {77: 0}


def test_snapshot_before_the_first_disk(tmp_path):
    """The host's books for I/O did not exist yet when the snapshot was taken."""
    host, before = BlockHost(virtual=True), nr_fds()
    assert lib.xl_snapshot(host.ptr) == 0
    for _ in range(2):
        guest = BlockGuest(host)
        fd = os.open(__file__, os.O_RDONLY)
        assert guest.attach(fd, sectors=1, flags=lib.XL_BLK_READONLY) >= 0
        os.close(fd)
        assert lib.xl_reset(host.ptr) == 0
        assert guest.detach() == -errno.ENOENT and nr_fds() == before
    lib.xl_host_destroy(host.ptr)
