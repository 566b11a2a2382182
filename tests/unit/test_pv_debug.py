"""Breakpoints, watchpoints and steps from outside the guest (csrc/hv/debug.c): what a debugger's front end stands on."""

from __future__ import annotations

import pytest
from machine_guests import RESULT, MachineHost
from test_pv_attack import context

from xenlike.engine import check, ffi, lib

PROGRAM = """
    mov $3, %ecx
loop:
    incq RESULT
    mov RESULT, %rax
next:
    dec %ecx
    jnz loop
    exit
"""


class DebugHost(MachineHost):
    """Keeps EXIT_DEBUG: (vcpu, reason, address)."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.stops: list[tuple[int, int, int]] = []

    def _handle(self, e: object, until: int) -> None:
        if e.kind == lib.EXIT_DEBUG:
            self.stops.append((e.vcpu, e.a, e.b))
        super()._handle(e, until)

    def next_stop(self) -> tuple[int, int, int]:
        seen = len(self.stops)
        self.run(lambda: len(self.stops) > seen)
        return self.stops[-1]


@pytest.fixture
def host():
    with DebugHost() as h:
        yield h


def point(guest: object, add: int, kind: int, va: int, length: int = 1) -> int:
    return lib.xl_debug_break(guest.host.ptr, guest.id, add, kind, va, length)


def attach(host: DebugHost, program: str = PROGRAM, **options: int) -> object:
    g = host.boot(program, **options)
    check(lib.xl_debug_attach(host.ptr, g.id), "xl_debug_attach")
    g.unpause()
    return g


def go(guest: object) -> None:
    check(lib.xl_debug_continue(guest.host.ptr, guest.id), "xl_debug_continue")


def test_breakpoint(host: DebugHost) -> None:
    """It stops before its instruction, each time round, goes on without being removed first, and the guest's memory does not show it."""
    g = attach(host)
    assert point(g, 1, lib.DEBUG_EXEC, g.labels["next"]) == 0
    for n in (1, 2, 3):
        go(g)
        assert host.next_stop() == (0, lib.DEBUG_BREAKPOINT, g.labels["next"])
        s = g.state()
        assert (s.regs.rip, s.regs.rax, s.regs.rcx) == (g.labels["next"], n, 4 - n)
        assert g.read(g.labels["next"], 2) == b"\xff\xc9"
    assert point(g, 0, lib.DEBUG_EXEC, g.labels["next"]) == 0
    go(g)
    host.run(lambda: g.info().state == lib.DOM_shutdown)
    assert g.reason == 0


def test_step(host: DebugHost) -> None:
    """One instruction at a time, then on."""
    g = attach(host)
    at = []
    for _ in range(5):
        check(lib.xl_debug_step(g.vcpus[0]), "xl_debug_step")
        vcpu, reason, where = host.next_stop()
        assert (vcpu, reason) == (0, lib.DEBUG_STEPPED) and g.state().regs.rip == where
        at.append(where)
    labels = g.labels
    assert at[0] == labels["loop"] and at[2] == labels["next"] and at[4] == labels["loop"]
    check(lib.xl_debug_detach(host.ptr, g.id), "xl_debug_detach")
    host.run(lambda: g.info().state == lib.DOM_shutdown)
    assert g.reason == 0 and g.results(1) == [3]


@pytest.mark.parametrize("kind,stops", [("DEBUG_WRITE", [1, 2, 3]), ("DEBUG_READ", [1, 2, 3]), ("DEBUG_ACCESS", [1, 1, 2])])
def test_watchpoint(host: DebugHost, kind: str, stops: list[int]) -> None:
    """Data accesses that touch the watched bytes stop behind the instruction that made them; a read-modify-write is one write."""
    g = attach(host)
    assert point(g, 1, getattr(lib, kind), RESULT + 2, 4) == 0
    values = []
    for _ in range(3):
        go(g)
        assert host.next_stop() == (0, lib.DEBUG_WATCHPOINT, RESULT + 2)
        values.append(g.results(1)[0])
    assert values == stops


def test_registers_can_be_changed(host: DebugHost) -> None:
    """A debugger writes registers: they must be the guest's when it goes on, its selectors untouched."""
    g = attach(host)
    assert point(g, 1, lib.DEBUG_EXEC, g.labels["next"]) == 0
    go(g)
    host.next_stop()
    s = g.state()
    s.regs.rcx = 1
    s.regs.cs = 0x1234
    s.fs_base = 0x5000
    check(lib.xl_vcpu_set_state(g.vcpus[0], s), "xl_vcpu_set_state")
    now = g.state()
    assert (now.regs.rcx, now.regs.cs, now.fs_base) == (1, 0xe033, 0x5000)
    s.gs_base = 1 << 63
    assert lib.xl_vcpu_set_state(g.vcpus[0], s) == -lib.XEN_EINVAL
    go(g)
    host.run(lambda: g.info().state == lib.DOM_shutdown)
    assert g.results(1) == [1]


def test_errors(host: DebugHost) -> None:
    """Attaching twice, points of a running domain, points that are none: refused, each with its error."""
    g = host.boot("1: jmp 1b")
    assert lib.xl_debug_continue(host.ptr, g.id) == -lib.XEN_EINVAL
    assert lib.xl_debug_step(g.vcpus[0]) == -lib.XEN_EINVAL
    assert lib.xl_debug_attach(host.ptr, g.id) == 0
    assert lib.xl_debug_attach(host.ptr, g.id) == -lib.XEN_EBUSY
    assert point(g, 1, 9, 0) == point(g, 1, lib.DEBUG_EXEC, 0, 0) == point(g, 0, lib.DEBUG_EXEC, 5) == -lib.XEN_EINVAL
    assert [point(g, 1, lib.DEBUG_EXEC, n) for n in range(65)] == [0] * 64 + [-lib.XEN_ENOSPC]
    go(g)
    assert point(g, 1, lib.DEBUG_EXEC, 0) == -lib.XEN_EBUSY
    assert lib.xl_debug_stop(host.ptr, g.id) == 0
    assert point(g, 0, lib.DEBUG_EXEC, 63) == 0
    python = host.guest()
    assert lib.xl_debug_attach(host.ptr, python.id) == -lib.XEN_EINVAL
    assert lib.xl_debug_attach(host.ptr, 4711) == -lib.XEN_ESRCH


def test_stop_while_it_runs() -> None:
    """With the real clock the guest runs on its own thread; xl_debug_stop brings it to rest, and it goes on from there."""
    with DebugHost(virtual=False, pcpus=1) as host:
        g = attach(host, "1: incq RESULT\njmp 1b")
        go(g)
        check(lib.xl_debug_stop(host.ptr, g.id), "xl_debug_stop")
        first = g.state().retired
        assert g.state().retired == first, "it stands"
        go(g)
        lib.xl_debug_stop(host.ptr, g.id)
        assert lib.xl_debug_detach(host.ptr, g.id) == 0
        assert lib.xl_domain_pause(host.ptr, g.id) == 0
        assert g.state().retired >= first


def test_points_hold_for_a_vcpu_that_is_brought_up_later(host):
    """VCPUOP_initialise gives a vCPU fresh registers. Breakpoints and watchpoints that were set before would not stop it."""
    g = attach(host, """
        mov $1, %esi; mov context, %rdx; xor %edi, %edi; hypercall vcpu_op
        mov $1, %edi; mov $1, %esi; hypercall vcpu_op
    1:  pause
        jmp 1b
    ap: nop
    watched:
        incq RESULT
        exit 2
    .balign 8
    context: .quad 0
    """, vcpus=2)
    c = context(g, g.labels["ap"])
    g.write(g.va(8), bytes(ffi.buffer(c)))
    g.write(g.labels["context"], g.va(8).to_bytes(8, "little"))
    check(point(g, 1, lib.DEBUG_EXEC, g.labels["ap"]), "point")
    check(point(g, 1, lib.DEBUG_WRITE, RESULT, 8), "point")
    go(g)
    assert host.next_stop() == (1, lib.DEBUG_BREAKPOINT, g.labels["ap"])
    go(g)
    assert host.next_stop() == (1, lib.DEBUG_WATCHPOINT, RESULT)
    go(g)
    host.run(lambda: g.info().state >= lib.DOM_shutdown)
    assert g.reason == 2
