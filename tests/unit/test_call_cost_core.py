"""One hypercall cannot keep a physical CPU: calls over endless arrays end their domain, with a reason, after bounded work.

From four frames a guest makes half a terabyte of addresses: every entry of a table leads to the same next table, and every
address to the same page. Whatever an array of a hypercall may hold, it then never ends. These tests would hang if a limit were
missing (they assert no time).
"""

from __future__ import annotations

import struct

import core_guests
import pytest
from core_guests import ACCESSED, BASE, DIRTY, PRESENT, RW

from xenlike.engine import ffi, lib

host = core_guests.host

SELF = 0x7FF0
MMU_UPDATE, MEMORY_OP, MULTICALL, GRANT_OP, MMUEXT, EVENT_CHANNEL_OP = 1, 12, 13, 20, 26, 32
INCREASE, DECREASE = 0, 1
ENDLESS = 1 << 39
FLAGS = PRESENT | RW | ACCESSED | DIRTY | 4


@pytest.fixture
def guest(host):
    """A guest with `page` at every address from ENDLESS on, for 2^39 bytes."""
    guest = host.guest(pages=32)
    guest.write(BASE + 512, struct.pack("<QQIIHHI", BASE + 1024, 4, 0, 0, SELF, 0, 0))
    assert guest.call(MEMORY_OP, INCREASE, BASE + 512) == 4
    *tables, guest.page = struct.unpack("<4Q", guest.read(BASE + 1024, 32))
    below = guest.page
    for table in tables:
        host.write_frame(table, 0, struct.pack("<Q", below << 12 | FLAGS) * 512)
        below = table
    guest.write(BASE + 512, struct.pack("<QQ", guest.l4 << 12 | 8, below << 12 | FLAGS))
    assert guest.call(MMU_UPDATE, BASE + 512, 1, 0, SELF) == 0
    return guest


def reason(guest) -> str:
    info = guest.info()
    assert (info.state, info.shutdown_code) == (lib.DOM_shutdown, 3)
    return ffi.string(info.crash_reason).decode()


def fill(guest, data: bytes) -> None:
    guest.host.write_frame(guest.page, 0, data * (4096 // len(data)))


@pytest.mark.parametrize("command, element", [
    pytest.param(0, 32, id="map_grant_ref"), pytest.param(1, 24, id="unmap_grant_ref"), pytest.param(3, 8, id="dump_table"),
    pytest.param(5, 40, id="copy"), pytest.param(7, 24, id="unmap_and_replace"), pytest.param(11, 16, id="swap_grant_ref")])
def test_endless_grant_batches(guest, command, element):
    """Two thousand million elements in one call are minutes on the lane, for every domain of the host."""
    assert (ENDLESS + element * (2**31 - 1)) < 2 * ENDLESS
    guest.call(GRANT_OP, command, ENDLESS, 2**31 - 1)
    assert "one hypercall" in reason(guest)


def test_a_frame_given_up_for_ever(guest):
    """A frame that is mapped stays the domain's when it is given up, and could be given up again sixty million times."""
    fill(guest, struct.pack("<Q", guest.mfns[5]))
    guest.write(BASE + 512, struct.pack("<QQIIHHI", ENDLESS, 2**26 - 1, 0, 0, SELF, 0, 0))
    assert 0 < guest.call(MEMORY_OP, DECREASE, BASE + 512) < 2**26 - 1
    assert "one hypercall" in reason(guest)


@pytest.mark.parametrize("number, first, second", [
    pytest.param(EVENT_CHANNEL_OP, 10, BASE + 600, id="reset"), pytest.param(0, ENDLESS, 0, id="set_trap_table"),
    pytest.param(17, 0, 0, id="xen_version")])
def test_multicalls_cost_the_sum_of_their_entries(guest, number, first, second):
    """Four thousand million entries, each within its own limit, would be hours in one call."""
    guest.write(BASE + 600, struct.pack("<H", SELF))
    fill(guest, struct.pack("<8Q", number, 0, first, second, 0, 0, 0, 0))
    guest.call(MULTICALL, ENDLESS, 2**32 - 1)
    assert "one hypercall" in reason(guest)


def test_multicalls_of_page_table_work(guest):
    """Pins and unpins count wherever they stand: a multicall of long mmuext_ops is no way round their limit."""
    op = struct.pack("<IIQQ", 16, 0, guest.mfns[5], 0) * 40             # CLEAR_PAGE
    guest.write(BASE + 1024, op)
    fill(guest, struct.pack("<8Q", MMUEXT, 0, BASE + 1024, 40, 0, SELF, 0, 0))
    guest.call(MULTICALL, ENDLESS, 2**32 - 1)
    assert "one hypercall" in reason(guest)


def test_an_honest_batch_is_not_crashed(guest):
    """Ten thousand elements are far below the limit, and a multicall of ten such calls too."""
    fill(guest, bytes(64))
    assert guest.call(GRANT_OP, 5, ENDLESS, 10_000) == 0
    fill(guest, struct.pack("<8Q", GRANT_OP, 0, 5, BASE + 4096, 100, 0, 0, 0))
    assert guest.call(MULTICALL, ENDLESS, 100) == 0
    assert guest.info().state != lib.DOM_shutdown
