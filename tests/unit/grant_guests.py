"""Domains that grant and map pages of each other by the words of the ABI: for tests of grant tables.

Owns: ``Granter``, which writes entries as a kernel does; the calls ``op``, ``do_map``, ``unmap``, ``copy``; the fixtures ``host``,
``dom0``, ``a`` (a `Granter`), ``b``. Used by: ``test_grants_*core.py``, which name the fixtures as their own (``a = grant_guests.a``).
Numbers (status codes, flags) are written out here: the tests judge the headers too.
"""

from __future__ import annotations

import struct

import pytest
from core_guests import BASE, PAGE

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
def a(host, dom0):
    return Granter(host.guest())


@pytest.fixture
def b(host, dom0):
    return host.guest()


def copy(guest, source, dest, length, flags):
    """source, dest: (gref or mfn, domid, offset)"""
    rc, out = op(guest, COPY, "copy", **{f"{side}__{field}": value for side, (where, domid, offset) in
                                         (("source", source), ("dest", dest))
                                         for field, value in (("u__gmfn", where), ("domid", domid), ("offset", offset))},
                 len=length, flags=flags)
    assert rc == 0
    return out.status
