"""vCPUs of the real clock on real threads, several of them at once in the same hypervisor objects.

Random programs from a seed: the interleavings are the machine's, so a seed repeats the programs and not the run. What must hold
at the end whatever happened between: every program came to its end (no wake-up was lost, nobody waits for ever), the frame
table agrees with what page tables and vCPUs hold, no TLB can write where it may not, and after the deaths frames, hypervisor
memory, domains and timers are what they were.

    XENLIKE_STRESS=50 XENLIKE_STRESS_SEED=1 pytest tests/property/test_thread_stress.py     # fifty times as many programs
"""

from __future__ import annotations

import os
import pathlib
import random
import struct
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "unit"))

import script_guests as s
from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW
from xenlike.engine import check, ffi, lib

ROUNDS = int(os.environ.get("XENLIKE_STRESS", "1"))
FIRST_SEED = int(os.environ.get("XENLIKE_STRESS_SEED", "1"))
SEEDS = range(FIRST_SEED, FIRST_SEED + ROUNDS)
SELF = 0x7FF0
MMU_UPDATE, MEMORY_OP, MULTICALL, UPDATE_VA, GRANT_OP, MMUEXT = 1, 12, 13, 14, 20, 26
ENTRY = PRESENT | ACCESSED | DIRTY
ARGS = 12                                   # pfns 12 to 15 hold what the programs' hypercalls point at
PLAY = range(16, 32)                        # frames that page tables are played with
CLEAR_WRITE = {"set": 0}


class Host(s.ScriptHost):
    """A host with three threads that must have nothing left when it ends."""

    def __init__(self) -> None:
        super().__init__(virtual=False, pcpus=3, memory=32 << 20)

    def everything(self) -> tuple[int, ...]:
        out = ffi.new("struct xl_usage *")
        lib.xl_usage(self.ptr, out)
        return out.frames_free, out.arena_in_use, out.domains, out.timers

    def quiet(self, *, exact: bool) -> None:
        """No vCPU runs: all accounts must agree."""
        assert lib.xl_check_tlbs(self.ptr) == 0, "a TLB can write to a frame that is not typed writable"
        assert lib.xl_check_frames(self.ptr, exact) == 0, "references disagree"


class Arguments:
    """Puts structures into a guest's argument pages."""

    def __init__(self, guest: s.ScriptGuest) -> None:
        self.guest, self.at = guest, BASE + ARGS * PAGE

    def put(self, data: bytes) -> int:
        at = self.at
        assert at + len(data) <= BASE + PLAY.start * PAGE
        self.guest.write(at, data)
        self.at += len(data) + 7 & ~7
        return at


@pytest.fixture
def host():
    with Host() as host:
        before = host.everything()
        yield host
        assert host.everything() == before, "frames, hypervisor memory, domains or timers leaked"


def looped(body: list, times: int) -> list:
    """body, `times` over. Register 14 counts."""
    return [s.setreg(times, r=14), *body, s.loop(1, r=14)]


def end_of(host: Host, *guests: s.ScriptGuest) -> None:
    reasons = host.finish(*guests)
    crashed = [ffi.string(guest.info().crash_reason) for guest, reason in zip(guests, reasons) if reason]
    assert not crashed, crashed
    for guest in guests:
        guest.pause()


# --- events -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", SEEDS)
def test_no_wakeup_is_lost(host, seed):
    """Pairs of vCPUs answer each other's events, some by block and some by poll, while the lane pauses and unpauses them. A lost
    wake-up would leave a pair waiting: Timeout."""
    rng = random.Random(seed)
    guests, rounds = [], 3000
    for _ in range(3):
        one, two = host.script([], []), host.script([], [])
        for vcpu in range(2):
            mine, theirs = one.connect(two)
            for guest, port, first in ((one, mine, True), (two, theirs, False)):
                scratch = guest.va(4 + vcpu)
                turn = [s.send(guest.port_at(port))]
                if rng.random() < 0.5 and vcpu == 1:            # vCPU 1's events go to vCPU 0: only a poll hears of them
                    heard = [s.poll(port, 0, scratch, r=1), s.call(s.EVENT_CHANNEL_OP, 3 + 0, 0, r=2)][:1]
                    heard += [s.call(s.SET_TIMER_OP, 0, r=3)]
                else:
                    heard = []
                if vcpu == 0 or not heard:
                    guest.put("struct evtchn_bind_vcpu", BASE + 64, port=port, vcpu=vcpu)
                    assert guest.call(s.EVENT_CHANNEL_OP, 8, BASE + 64) == 0
                    heard = [s.wait(1, r=1)]
                else:
                    heard = None
                guest.programs = getattr(guest, "programs", [[], []])
                if heard is None:
                    guest.programs[vcpu] = looped([s.compute(rng.randrange(2000)), s.yield_()], 200)
                else:
                    body = turn + heard if first else heard + turn
                    guest.programs[vcpu] = looped(body, rounds)
        guests += [one, two]
    for guest in guests:
        guest.drain()
        for vcpu in range(2):
            guest.load(guest.programs[vcpu], vcpu=vcpu)
    end_of(host, *guests)
    for guest in guests:
        guest.destroy()
