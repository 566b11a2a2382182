"""Quick hypercalls (csrc/pv/quick.c, bt/light.c): done for translated code without it being left, and for a guest no other than all."""

from __future__ import annotations

import pytest
from bt_code import Code, record
from bt_kit import needs_translator
from core_guests import BASE, PAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_guests import MachineHost, boot

from xenlike.engine import NR, ffi, lib

pytestmark = needs_translator

#: Each quick call among values that have to stay, in a loop so that the block is translated; FS and GS are used right behind.
PROGRAM = """
    mov $30, %r12d
again:
    mov $0x1001, %rbx; mov $0x1002, %rdx; mov $0x1003, %rbp; mov $0x1008, %r8; mov $0x1009, %r9; mov $0x1010, %r10
    mov $0x1013, %r13; mov $0x1014, %r14; mov $0x1015, %r15
    movq %r12, %xmm3
    fld1
    xor %edi, %edi; mov $0x77, %esi
    stc
    hypercall xen_version
after:
    save rax, 0; save rcx, 1; save r11, 2; save rbx, 3; save rdx, 4; save rbp, 5; save r8, 6; save r9, 7; save r10, 8
    save rdi, 9; save r13, 10; save r14, 11; save r15, 12; save rsi, 13
    pushf; pop RESULT + 8 * 14
    movq %xmm3, RESULT + 8 * 15
    fistpll RESULT + 8 * 16
    mov $0, %edi; lea ARGS(,%r12,8), %rsi
    hypercall set_segment_base
    save rax, 17
    movq $0x55, %fs:8
    mov $2, %edi; lea ARGS + 512(,%r12,8), %rsi
    hypercall set_segment_base
    movq $0x66, %gs:16
    mov $1, %edi; mov $0x123000, %esi
    hypercall set_segment_base
    mov $0, %edi; mov $1, %rsi; shl $63, %rsi
    hypercall set_segment_base
    save rax, 18
    mov $0xe02b, %edi; lea STACK(%r12), %rsi
    hypercall stack_switch
    save rax, 19
    mov $7, %edi; xor %esi, %esi
    hypercall xen_version
    save rax, 20
    call inner
    dec %r12d
    jnz again
    exit
inner:                              # the frame of a call that has not returned, on the host's stack too
    xor %edi, %edi
    hypercall xen_version
    save rax, 21
    ret
"""
CALLS = {NR.xen_version: 90, NR.set_segment_base: 120, NR.stack_switch: 30}


def outcome(engine: str, options: int = 0) -> tuple[object, ...]:
    """Results, all of the state at the end, memory, counts, trace."""
    with MachineHost(virtual=False, engine=engine, bt_options=options) as host:
        g = host.play(PROGRAM)
        assert g.reason == lib.SHUTDOWN_poweroff
        records = ffi.new("struct trace_record[]", 9000)
        traced = [(r.a, r.b) for r in records[0:lib.xl_trace_read(host.ptr, records, 9000)]
                  if r.kind == lib.TRACE_HYPERCALL and r.domid == g.id and r.a >> 48 in CALLS]
        counts = ffi.new("u64[64]")
        lib.xl_vcpu_stats(g.vcpus[0], ffi.new("u64[]", lib.STAT_NR), counts)
        cpu = ffi.buffer(g.state())[:]
        return g.results(22), g.read(BASE, PAGE), cpu, [counts[nr] for nr in CALLS], g.stat("hypercalls"), traced, g.labels["after"]


@pytest.mark.parametrize("options", [0, lib.XL_BT_VERIFY, lib.XL_BT_VERIFY | lib.XL_BT_ONE, lib.XL_BT_VERIFY | lib.XL_BT_TINY_TLB])
def test_a_quick_call_is_a_call(options: int) -> None:
    """Wrong: registers, segments' bases, counters or the trace would tell a guest or its owner how its kernel was executed."""
    *found, after = outcome("bt", options)
    assert found == list(outcome("interp")[:-1])
    results, arguments, _, counts, _, traced, = found
    assert results[:3] == [4 << 16 | 17, after, results[14]] and results[14] & 0x201 == 0x201
    assert results[3:14] == [0x1001, 0x1002, 0x1003, 0x1008, 0x1009, 0x1010, 0, 0x1013, 0x1014, 0x1015, 0x77]
    assert results[15:] == [1, 1, 0, 2**64 - lib.XEN_EINVAL, 0, 4096, 4 << 16 | 17]
    assert arguments[16] == 0x55 and arguments[512 + 24] == 0x66, "the bases were there for the next instruction"
    assert counts == list(CALLS.values()) and len(traced) == sum(counts)


VALUES = st.sampled_from([0, 1, 2, 3, 4, 7, 0xe02b, 0x7fff_ffff_ffff, 1 << 47, (1 << 64) - (1 << 47), (1 << 64) - 1, 1 << 63]) | st.integers(0, 2**64 - 1)
CALL = st.tuples(st.sampled_from([*CALLS, NR.xen_version | 1 << 32, NR.set_segment_base | 1 << 63, NR.vm_assist]), VALUES, VALUES)


@given(st.lists(CALL, min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_any_arguments(calls: list[tuple[int, int, int]]) -> None:
    """Wrong: an argument out of the ordinary (a base that is not canonical, a number of more than 32 bits) would be taken by the short way."""
    program = "".join(f"mov ${nr:#x}, %rax; mov ${a:#x}, %rdi; mov ${b:#x}, %rsi; syscall; save rax, {k}\n" for k, (nr, a, b) in enumerate(calls))
    found = []
    for engine in ("interp", "bt"):
        with MachineHost(virtual=False, engine=engine) as host:
            g = host.play(program + "exit")
            assert g.reason == lib.SHUTDOWN_poweroff
            found.append((g.results(len(calls)), ffi.buffer(g.state())[:]))
    assert found[0] == found[1]


def test_they_leave_nothing() -> None:
    """Wrong: they would be the ordinary way's, and cost twice the time."""
    with MachineHost(virtual=False, engine="bt") as host:
        g = host.play("mov $20000, %ebx; again: xor %edi, %edi; hypercall xen_version; dec %ebx; jnz again; exit")
        assert g.reason == lib.SHUTDOWN_poweroff
        stats = ffi.new("struct xl_bt_stats *")
        lib.xl_bt_stats(lib.xl_bt_of_vcpu(g.vcpus[0]), stats)
        assert g.stat("hypercalls") > 20000 and stats.exits < 2000 and stats.interpreted < 4000


def test_an_event_is_not_passed_by() -> None:
    """Wrong: a kernel that unmasks events and calls xen_version to have them delivered, as Linux does, would go on without its upcall."""
    with MachineHost(virtual=False, engine="bt") as host:
        g = boot(host, """
            callback 0, upcall
            mov $100, %ebx
        again:
            movb $1, SHARED + 1             # mask, mark as pending, unmask
            movb $1, SHARED
            movb $0, SHARED + 1
            xor %edi, %edi
            hypercall xen_version
            save rax, 0
            dec %ebx
            jnz again
            exit
        upcall:
            incq RESULT + 8
            movb $0, SHARED
            trap_return
        """).run()
        assert g.reason == lib.SHUTDOWN_poweroff
        assert g.results(2) == [4 << 16 | 17, 100]


@pytest.mark.parametrize("change", [lambda x: setattr(x, "size", 0), lambda x: setattr(x, "size", 1), lambda x: setattr(x, "drops", False),
                                    lambda x: setattr(x, "off", x.off + 1)], ids=["size 0", "syscall", "keeps spans", "elsewhere"])
def test_the_verifier_sees_a_wrong_record(change) -> None:
    """Wrong: the routine would take the instruction for another, or the block rely on what the call may have changed."""
    with MachineHost(virtual=False, engine="bt") as host:
        g = host.play("mov $200, %ebx; again: xor %edi, %edi; hypercall xen_version; dec %ebx; jnz again; exit")
        code = Code(lib.xl_bt_of_vcpu(g.vcpus[0]))
        block = record(lib.XL_BT_EXIT_STEP, lambda x: None)(code)
        assert code.why(block) is None
        assert record(lib.XL_BT_EXIT_STEP, change)(code) == block
        assert code.why(block) is not None
