"""The front end's ring logic (guest_sdk/blkring.py). If it fails, Python guests and every block test here speak another
layout than blkif.h, or miss a notification and hang."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_sdk.blkring import (BlkRing, MAX_SEGMENTS, Op, RingError, RingFull, SLOT, Segment, Status, pack_segments,
                               segments)

BLKIF_H = Path(__file__).parents[2] / "csrc/include/xen/io/blkif.h"
WORD = struct.Struct("=I")


def word(page, index):
    return WORD.unpack_from(page, 4 * index)[0]


def set_word(page, index, value):
    WORD.pack_into(page, 4 * index, value & 0xFFFFFFFF)


def answer(page, index, id, op=0, status=0, slots=32):
    """What a back end does with one response slot."""
    struct.pack_into("<QBxh", page, 64 + (index & slots - 1) * SLOT, id, op, status)


def test_numbers_are_those_of_the_header():
    """A second copy of the operation and status numbers must not drift from the ABI header."""
    text = BLKIF_H.read_text()
    for op in Op:
        assert re.search(rf"BLKIF_OP_{op.name} = {int(op)},", text), op
    for status in Status:
        assert re.search(rf"BLKIF_RSP_{status.name} = {int(status)},", text), status
    assert f"BLKIF_MAX_SEGMENTS_PER_REQUEST = {MAX_SEGMENTS}," in text


def test_layout_of_each_request():
    """Byte for byte the offsets of blkif.h, 64-bit: a back end elsewhere would read other fields."""
    page = bytearray(4096)
    ring = BlkRing(page, handle=51712)
    ring.put(Op.WRITE, 0x1122334455667788, 0x99AABBCC, [Segment(7), Segment(9, 2, 3)])
    ring.put_discard(5, 6, 7, secure=True)
    ring.put_indirect(Op.READ, 8, 9, 20, [0xABCDEF])
    slots = [bytes(page[64 + n * 112:64 + (n + 1) * 112]) for n in range(3)]
    assert slots[0][:40] == (b"\1\2" + struct.pack("<H", 51712 & 0xFFFF) + bytes(4) + struct.pack("<QQ", 0x1122334455667788, 0x99AABBCC)
                             + struct.pack("<IBBxx", 7, 0, 7) + struct.pack("<IBBxx", 9, 2, 3))
    assert (slots[1][0], slots[1][1], struct.unpack_from("<QQQ", slots[1], 8)) == (5, 1, (5, 6, 7))
    assert (slots[2][0], slots[2][1]) == (6, 0)
    assert struct.unpack_from("<H", slots[2], 2)[0] == 20
    assert struct.unpack_from("<QQ", slots[2], 8) == (8, 9)
    assert struct.unpack_from("<I", slots[2], 28)[0] == 0xABCDEF
    assert pack_segments([Segment(1, 2, 3)]) == b"\1\0\0\0\2\3\0\0"


@pytest.mark.parametrize(("pages", "slots"), [(1, 32), (2, 64), (4, 128)])
def test_number_of_slots(pages, slots):
    """The ring's size decides which slot an index means: both sides must compute the same."""
    ring = BlkRing(bytearray(4096 * pages))
    assert ring.slots == ring.free == slots
    for n in range(slots):
        ring.put(Op.FLUSH_DISKCACHE, n, 0)
    with pytest.raises(RingFull):
        ring.put(Op.FLUSH_DISKCACHE, 99, 0)


def test_notifications_are_asked_for_by_the_event_index():
    """push() must notify exactly when req_event was passed, or the back end sleeps for ever (or is woken for nothing)."""
    page = bytearray(4096)
    ring = BlkRing(page)
    ring.put(Op.READ, 0, 0, [Segment(1)])
    assert ring.push() and word(page, 0) == 1           # fresh rings have event indices of 1
    ring.put(Op.READ, 1, 0, [Segment(1)])
    assert not ring.push()                              # still 1: the back end is busy and will look by itself
    set_word(page, 1, 4)
    ring.put(Op.READ, 2, 0, [Segment(1)])
    assert not ring.push()
    ring.put(Op.READ, 3, 0, [Segment(1)])
    ring.put(Op.READ, 4, 0, [Segment(1)])
    assert ring.push()                                  # 3 -> 5 passes 4
    assert not ring.push()                              # nothing new


def test_final_check_sees_a_response_that_came_in_between():
    """Between pop() and waiting a response may come without notification: final_check must find it."""
    page = bytearray(4096)
    ring = BlkRing(page)
    ring.put(Op.READ, 42, 0, [Segment(1)])
    ring.push()
    assert ring.pop() == [] and not ring.final_check() and word(page, 3) == 1
    answer(page, 0, 42, 0, -1)
    set_word(page, 2, 1)
    assert ring.final_check()
    assert ring.pop() == [(42, 0, -1)] and ring.outstanding == 0
    assert not ring.final_check() and word(page, 3) == 2


@pytest.mark.parametrize("claim", [2, 33, -1, 0x80000000])
def test_a_back_end_that_claims_too_much_is_an_error(claim):
    """rsp_prod beyond what was asked must not hand out stale slots as responses."""
    page = bytearray(4096)
    ring = BlkRing(page)
    ring.put(Op.READ, 1, 0, [Segment(1)])
    ring.push()
    set_word(page, 2, claim)
    with pytest.raises(RingError):
        ring.pop()


@given(st.integers(0, 0xFFFFFFFF), st.lists(st.integers(1, 32), max_size=12))
def test_indices_run_freely_over_32_bits(start, batches):
    """All arithmetic is modulo 2**32: a ring that has carried 4 billion requests works like a new one."""
    page = bytearray(4096)
    for index in (0, 2):
        set_word(page, index, start)
    ring = BlkRing(page, attach=True)
    done = start
    for batch in batches:
        for n in range(batch):
            ring.put(Op.READ, n, n, [Segment(n)])
        assert ring.free == 32 - batch
        ring.push()
        assert word(page, 0) == (done + batch) & 0xFFFFFFFF
        for n in range(batch):
            answer(page, done + n, n)
        done += batch
        set_word(page, 2, done)
        assert [response.id for response in ring.pop()] == list(range(batch))
        assert ring.free == 32


@given(st.integers(1, 11), st.data())
def test_segments_cover_exactly_the_sectors(pages, data):
    """A short last page must be cut to the sector, or the guest's memory beyond is overwritten."""
    sectors = data.draw(st.integers(1, pages * 8))
    found = segments(list(range(100, 100 + pages)), sectors)
    assert sum(s.last - s.first + 1 for s in found) == sectors
    assert [s.gref for s in found] == list(range(100, 100 + len(found)))
    with pytest.raises(ValueError):
        segments([1] * pages, pages * 8 + 1)
