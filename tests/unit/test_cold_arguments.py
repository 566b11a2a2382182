"""Hypercalls that Python answers, with pointers at the very end of the address space.

A guest may map the last page. What an argument there leads to beyond it wraps around to address 0, as in a machine; a Python
integer does not wrap, and an address of 65 bits would end the lane, that is the host, with an OverflowError.
"""

from __future__ import annotations

import struct

import pytest

from core_guests import ACCESSED, BASE, DIRTY, PRESENT, RW, CoreHost
from xenlike import hypercalls
from xenlike.engine import lib

SELF, EFAULT = 0x7FF0, 14
CONSOLE_IO, PHYSDEV_OP_COMPAT, PHYSDEV_OP, SYSCTL = 18, 19, 33, 35
LAST = 0xFFFFFFFFFFFFF000


class Printed:
    """As much of a host as the handlers ask for."""

    def __init__(self) -> None:
        self.text = b""

    def console_text(self, domid: int, data: bytes) -> None:
        self.text += data


@pytest.fixture
def guest():
    with CoreHost() as host:
        guest = host.guest()
        guest.write(BASE + 512, struct.pack("<QQIIHHI", BASE + 1024, 4, 0, 0, SELF, 0, 0))
        assert guest.call(12, 0, BASE + 512) == 4               # increase_reservation
        *tables, below = struct.unpack("<4Q", guest.read(BASE + 1024, 32))
        host.write_frame(below, 0, b"x" * 4096)
        for table in tables:
            host.write_frame(table, 511 * 8, struct.pack("<Q", below << 12 | PRESENT | RW | ACCESSED | DIRTY | 4))
            below = table
        guest.write(BASE + 512, struct.pack("<QQ", guest.l4 << 12 | 511 * 8, below << 12 | PRESENT | RW | ACCESSED | DIRTY | 4))
        assert guest.call(1, BASE + 512, 1, 0, SELF) == 0       # mmu_update
        assert guest.read(LAST, 1) == b"x"
        yield guest


def answer(guest, host, number: int, *args: int) -> int:
    assert guest.call(number, *args) == lib.HYPERCALL_COLD
    return lib.xl_hypercall_complete(guest.vcpus[0], hypercalls.dispatch(host, guest.vcpus[0], guest.id))


def test_text_that_runs_past_the_end(guest):
    """console_io goes on behind the last page."""
    host = Printed()
    assert answer(guest, host, CONSOLE_IO, 0, 8192, LAST) == -EFAULT
    assert host.text == b"x" * 4096


@pytest.mark.parametrize("number, args", [
    (PHYSDEV_OP_COMPAT, (LAST + 4092,)), (PHYSDEV_OP, (6, LAST + 4094)), (SYSCTL, (LAST + 4092,))])
def test_structures_that_stand_across_the_end(guest, number, args):
    """A structure whose second half lies at address 0, where nothing is mapped."""
    assert answer(guest, Printed(), number, *args) < 0
