"""Snapshot and reset of hosts whose guests are translated: a reset drops every translator, and what comes after it is the same again."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest
from machine_guests import MachineHost

from xenlike.engine import ffi, lib

ENGINES = {"interp": None, "bt": 0, "forced-slow": 15, "verified": lib.XL_BT_VERIFY}
#: Hot code that changes itself, fills memory and yields, for some 300,000 instructions a guest.
PROGRAM = """
    xor %ebx, %ebx
again:
    inc %rbx
    mov %ebx, patched + 1
patched:
    mov $0, %eax
    add %rax, RESULT
    mov $500, %ecx
1:  add %rcx, %rdx
    mov %rdx, RESULT + 64(, %rcx, 4)
    dec %ecx
    jnz 1b
    xor %edi, %edi; xor %esi, %esi
    hypercall sched_op              # yield
    cmp $200, %rbx
    jb again
    exit
"""


@pytest.fixture(autouse=True)
def _translator() -> None:
    if lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip(f"no translator on this host: {ffi.string(lib.xl_bt_unavailable()).decode()}")


def all_mappings() -> int:
    return len(re.findall("xenlike-bt", Path("/proc/self/maps").read_text(encoding="ascii")))


@pytest.fixture(autouse=True)
def _others() -> None:
    """Machines of other tests that live in this process, by fixtures of theirs, are not counted."""
    global _theirs
    gc.collect()
    _theirs = all_mappings()


_theirs = 0


def mappings() -> int:
    """Views of translators' caches that this process has by the test's doing."""
    return all_mappings() - _theirs


def size() -> int:
    """Pages of address space in use."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])


def usage(host: MachineHost) -> tuple[int, ...]:
    u = ffi.new("struct xl_usage *")
    lib.xl_usage(host.ptr, u)
    return u.frames_free, u.arena_in_use, u.domains, u.timers


def state(host: MachineHost, guests: list) -> tuple:
    return (lib.xl_trace_digest(host.ptr, 1), host.now(), usage(host), [g.results(3) for g in guests], [g.stat("instructions") for g in guests])


def begin(engine: str) -> tuple[MachineHost, list]:
    """Two guests in the middle of their work, with their code hot."""
    options = ENGINES[engine]
    host = MachineHost(engine="interp" if options is None else "bt", bt_options=options or 0)
    guests = [host.boot(PROGRAM) for _ in range(2)]
    for guest in guests:
        guest.unpause()
    host.run(ns=150_000)
    return host, guests


def futures(engine: str, resets: int) -> list[tuple]:
    """What becomes of a snapshot: at once, after a while, at the end; once more after each reset."""
    found = []
    host, guests = begin(engine)
    with host:
        vcpus = [lib.xl_vcpu(host.ptr, g.id, 0) for g in guests]
        assert all((lib.xl_bt_of_vcpu(v) != ffi.NULL) == (engine != "interp") for v in vcpus)
        assert lib.xl_snapshot(host.ptr) == 0
        assert mappings() == 0                  # none is in a snapshot
        for _ in range(resets + 1):
            course = [state(host, guests)]
            host.run(ns=50_000)
            course.append(state(host, guests))
            assert mappings() == (0 if engine == "interp" else 2 * len(guests))
            host.run(lambda: len(host.shutdowns) == 2)
            host.shutdowns.clear()
            course.append(state(host, guests))
            found.append(course)
            assert lib.xl_reset(host.ptr) == 0
            assert mappings() == 0
    assert mappings() == 0
    return found


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "interp"])
def test_the_same_after_each_reset_as_interpreted(engine: str) -> None:
    """A translation, or a TLB entry in translated code, would outlive the state that it was made from: code changed since, frames of others."""
    found = futures(engine, 3)
    assert all(course == found[0] for course in found)
    assert len({str(moment) for moment in found[0]}) == 3
    assert found[0] == futures("interp", 0)[0]
    assert found[0][2][3] == [[sum(range(1, 201)), 0, 0]] * 2


def test_resets_leak_nothing() -> None:
    """Each reset would leave a translator's memory or its file descriptors behind: a fuzzer's thousand resets would end it."""
    host, _ = begin("bt")
    with host:
        assert lib.xl_snapshot(host.ptr) == 0

        def cycle() -> tuple[int, int]:
            host.run(ns=20_000)
            assert mappings() == 4
            assert lib.xl_reset(host.ptr) == 0
            return size(), len(os.listdir("/proc/self/fd"))

        first = [cycle() for _ in range(3)][-1]
        last = [cycle() for _ in range(60)][-1]
        assert last[1] == first[1] and last[0] - first[0] < 2048        # pages: a cache alone has more


def test_domains_made_after_the_snapshot_go_with_their_translators() -> None:
    """A domain that a reset undoes would leave its translator, whose vCPU is gone, to run or to leak."""
    host, guests = begin("bt")
    with host:
        assert lib.xl_snapshot(host.ptr) == 0
        before = usage(host)
        for _ in range(3):
            late = host.boot(PROGRAM)
            late.unpause()
            host.run(ns=60_000)
            assert mappings() == 6
            assert lib.xl_reset(host.ptr) == 0
            assert (mappings(), usage(host)) == (0, before)


def test_destroying_and_forgetting() -> None:
    """A destroyed domain, or a snapshot that is dropped, would keep a translator's memory."""
    host, guests = begin("bt")
    with host:
        assert mappings() == 4
        assert lib.xl_domain_destroy(host.ptr, guests[0].id) == 0
        assert mappings() == 2
        assert lib.xl_snapshot(host.ptr) == 0
        host.run(ns=20_000)
        lib.xl_snapshot_drop(host.ptr)
        host.run(lambda: host.shutdowns == [(guests[1].id, 0)])
        assert guests[1].results(1) == [sum(range(1, 201))]
        assert mappings() == 2
    assert mappings() == 0
