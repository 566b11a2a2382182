"""A test disk, an image of random bytes, and a front end that is connected to it: fixtures for tests of csrc/io.

Owns: the fixtures ``host`` (both clocks), ``disk``, ``guest``; ``pages_of``, ``set_req_prod``. Used by: ``test_block_io.py``,
``test_block_hostile.py``, which name the fixtures as their own (``disk = block_disk.disk``). The front end is driven by hand
(block_rig.py).
"""

from __future__ import annotations

import os
import random
import struct

import pytest
from block_rig import BlockGuest, BlockHost

from guest_sdk.blkring import Segment
from xenlike.engine import lib

SECTORS = 256                           # of the test disk
SECTOR = 512
BOTH = pytest.fixture(params=[True, False], ids=["virtual", "real"])


@BOTH
def host(request):
    host = BlockHost(virtual=request.param)
    yield host
    lib.xl_host_destroy(host.ptr)


@pytest.fixture
def disk(tmp_path):
    """An image of random bytes: (path, descriptor)."""
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SECTORS * SECTOR))
    fd = os.open(path, os.O_RDWR)
    yield path, fd
    os.close(fd)


@pytest.fixture
def guest(host, disk):
    """A front end on that disk, connected."""
    guest = BlockGuest(host)
    assert guest.attach(disk[1], sectors=SECTORS, cookie=77) >= 0
    return guest


def pages_of(guest, n):
    return [Segment(100 + pfn) for pfn in guest.data[:n]]


def set_req_prod(guest, value):
    struct.pack_into("=I", guest.shared_ring, 0, value & 0xFFFFFFFF)
