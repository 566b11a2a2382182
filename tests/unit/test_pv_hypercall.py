"""Hypercalls from machine code (csrc/pv/traps.c, run.c): registers, results of all kinds, the hypercall page, the clock."""

from __future__ import annotations

import struct

import pytest
from core_guests import BASE, PAGE
from machine_guests import CODE, RESULT, STACK, MachineHost, assemble

from xenlike.engine import NR, ffi, lib


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def test_registers_of_a_hypercall(host: MachineHost) -> None:
    """A guest that keeps values in registers over an inline `syscall` (GRUB does, in r8 and r9) would lose them; or rcx and r11
    would not be what SYSCALL makes them."""
    g = host.play("""
        mov $0x1001, %rbx; mov $0x1002, %rdx; mov $0x1003, %rbp; mov $0x1008, %r8; mov $0x1009, %r9; mov $0x1010, %r10
        mov $0x1012, %r12; mov $0x1013, %r13; mov $0x1014, %r14; mov $0x1015, %r15
        xor %edi, %edi
        mov $0x77, %esi
        stc
        hypercall xen_version
    after:
        save rax, 0; save rcx, 1; save r11, 2; save rbx, 3; save rdx, 4; save rbp, 5; save r8, 6; save r9, 7; save r10, 8
        save r12, 9; save r13, 10; save r14, 11; save r15, 12; save rsi, 13; save rdi, 14
        pushf; pop RESULT + 8 * 15
        exit 0
    """)
    assert g.reason == lib.SHUTDOWN_poweroff
    rax, rcx, r11, *rest = g.results(16)
    assert rax == 4 << 16 | 17
    assert rcx == g.labels["after"]
    assert r11 & 0x201 == 0x201 and r11 == rest[-1], "flags, with IF shown as 1"
    assert rest[:-1] == [0x1001, 0x1002, 0x1003, 0x1008, 0x1009, 0x1010, 0x1012, 0x1013, 0x1014, 0x1015, 0x77, 0]


def test_first_instruction_finds_the_start_state(host: MachineHost) -> None:
    """Kernels read selectors, flags and rsi (start_info) before anything else (section 1.7)."""
    g = host.play("""
        save rsi, 0; save rsp, 1
        mov %cs, %eax; save rax, 2; mov %ss, %eax; save rax, 3; mov %ds, %eax; save rax, 4; mov %gs, %eax; save rax, 5
        pushf; pop RESULT + 8 * 6
        fnstcw RESULT + 8 * 7
        stmxcsr RESULT + 8 * 8
        mov %rbx, %rax; or %r15, %rax; or %rbp, %rax; save rax, 9
        exit
    """)
    assert g.results(10) == [0x1234, STACK, 0xe033, 0xe02b, 0, 0, 0x202, 0x37f, 0x1f80, 0]


def test_numbers_without_a_call(host: MachineHost) -> None:
    """The number is the whole of rax; 11, 4000 and 2^32 + 17 are -ENOSYS, not a wild jump."""
    g = host.play("""
        mov $11, %eax; syscall; save rax, 0
        mov $4000, %eax; syscall; save rax, 1
        mov $0x100000011, %rax; syscall; save rax, 2
        exit
    """)
    assert g.results(3) == [2**64 - lib.XEN_ENOSYS] * 3


def test_cold_hypercall(host: MachineHost) -> None:
    """The answer that Python gives to a hypercall, alone or in a multicall, would not reach rax or the entry."""
    host.cold_result = -13
    g = host.boot("""
        mov $0x10, %edi; mov $0x20, %esi
        hypercall physdev_op
        save rax, 0
        mov $list, %edi; mov $2, %esi
        hypercall multicall
        save rax, 1
        mov list + 8, %rax; save rax, 2
        mov list + 64 + 8, %rax; save rax, 3
        exit
    .balign 8
    list:
        .quad NR_physdev_op, 1, 0, 0, 0, 0, 0, 0
        .quad NR_xen_version, 1, 0, 0, 0, 0, 0, 0
    """).run()
    assert g.reason == 0
    assert g.results(4) == [2**64 - 13, 0, 2**64 - 13, 4 << 16 | 17]
    assert [(nr, args[:2]) for nr, args in host.cold] == [(NR.physdev_op, [0x10, 0x20]), (NR.physdev_op, [0, 0])]


def test_hypercall_page(host: MachineHost) -> None:
    """The page that a guest has written by WRMSR 0x40000000 must hold stubs that work, and its iret stub must build the frame of 3.6."""
    g = host.boot("""
        mov $0x40000000, %ecx
        mov ARGS, %eax; xor %edx, %edx
        wrmsr
        xor %edi, %edi
        mov $3, %ecx; mov $4, %r11d
        call FREE + 17 * 32
        save rax, 0; save rcx, 1; save r11, 2
        xor %eax, %eax; mov $0x40000000, %ecx
        rdmsr
        save rax, 3
        exit
    """)
    g.write(BASE, struct.pack("<Q", g.mfns[8] << 12))
    g.run()
    assert g.reason == 0
    assert g.results(4) == [4 << 16 | 17, 3, 4, 0]
    page = bytearray(PAGE)
    lib.xl_hypercall_page(ffi.from_buffer(page))
    assert g.read(g.va(8), PAGE) == bytes(page)
    assert page[23 * 32:23 * 32 + 11] == bytes.fromhex("51415350b8170000000f05")
    assert page[:14] == bytes.fromhex("514153b8000000000f05415b59c3")


def test_hypercall_page_elsewhere_faults(host: MachineHost) -> None:
    """A hypercall page in another domain's frame, or with an index, would be written; both are #GP."""
    other = host.boot("exit")
    for value in (other.mfns[9] << 12, 0x1):
        g = host.boot("mov $0x40000000, %ecx; mov ARGS, %eax; mov ARGS + 4, %edx; wrmsr; exit")
        g.write(BASE, struct.pack("<Q", value))
        assert "#GP" in g.run().crash


def test_iret_ends_a_multicall(host: MachineHost) -> None:
    """XSA-213: entries after an iret would run, or its registers would be overwritten by the call's result."""
    g = host.play("""
        push $0xe02b; push $STACK; push $0x200; push $0xe030; push $landed
        push $0; push $0; push $0; push $0xdead
        mov $list, %edi; mov $2, %esi
        hypercall multicall
        exit 3
    landed:
        save rax, 0; save rsp, 1
        mov list + 8, %rax; save rax, 2
        mov list + 64 + 8, %rax; save rax, 3
        exit 0
    .balign 8
    list:
        .quad NR_iret, 0x55, 0, 0, 0, 0, 0, 0
        .quad NR_xen_version, 0x66, 0, 0, 0, 0, 0, 0
    """)
    assert g.reason == 0
    assert g.results(4) == [0xdead, STACK, 0x55, 0x66]


def test_instructions_are_nanoseconds(host: MachineHost) -> None:
    """On the virtual clock work must take its time: 1 ns an instruction, and the TSC counts the same."""
    g = host.play("""
        rdtsc; shl $32, %rdx; or %rdx, %rax; save rax, 0
        mov $100000, %ecx
    1:  dec %ecx
        jnz 1b
        rdtsc; shl $32, %rdx; or %rdx, %rax; save rax, 1
        exit
    """)
    before, after = g.results(2)
    assert after - before == 200005
    assert g.stat("instructions") >= 200000


def test_blocked_until_a_timer(host: MachineHost) -> None:
    """A guest that blocks would not be woken by its timer, or would go on with a wrong result."""
    g = host.play("""
        movq $0x0000000000000000, ARGS      # VIRQ_TIMER of vCPU 0
        mov $1, %edi; mov $ARGS, %esi
        hypercall event_channel_op
        callback 0, upcall
        rdtsc; shl $32, %rdx; or %rdx, %rax
        save rax, 0
        lea 1000000(%rax), %rdi
        hypercall set_timer_op
        mov $1, %edi; xor %esi, %esi
        hypercall sched_op
        save rax, 1
        exit 1
    upcall:
        rdtsc; shl $32, %rdx; or %rdx, %rax
        save rax, 2
        exit 0
    """)
    assert g.reason == 0
    start, _, end = g.results(3)
    assert 1000000 <= end - start < 1002000


def test_m2p_is_readable(host: MachineHost) -> None:
    """Guests look up frames in the M2P all the time: their own frames' entries, read-only, a fault beyond the machine."""
    g = host.boot("""
        mov ARGS, %rbx
        mov $0xffff800000000000, %rax
        mov (%rax, %rbx, 8), %rcx
        save rcx, 0
        mov %rcx, (%rax, %rbx, 8)
        exit
    """)
    g.write(BASE, struct.pack("<Q", g.mfns[5]))
    g.run()
    assert g.results(1) == [5]
    assert "#PF, error code 0x3, write to 0xffff8000" in g.crash
    g = host.boot("mov $0xffff803ffffffff8, %rax; mov (%rax), %rax; exit").run()
    assert "#PF" in g.crash


def test_syscall_before_the_hole(host: MachineHost) -> None:
    """XSA-7: a return address that is not canonical must fault in the guest, and the crash says where."""
    g = host.boot("""
        mov $0x7ffffffffffe, %rax
        jmp *%rax
    """)
    # The last page below the hole: L4 slot 255, L3 511, L2 511, L1 511, on three fresh tables.
    l1, l2, l3 = (g.mfns[n] for n in (10, 11, 12))
    flags = 0x67
    g.write(g.va(13) + PAGE - 2, b"\x0f\x05")
    host.write_frame(l1, 511 * 8, struct.pack("<Q", g.mfns[13] << 12 | flags))
    host.write_frame(l2, 511 * 8, struct.pack("<Q", l1 << 12 | flags))
    host.write_frame(l3, 511 * 8, struct.pack("<Q", l2 << 12 | flags))
    for pfn in (10, 11, 12):            # tables may not be mapped writable
        assert g.call(NR.update_va_mapping, g.va(pfn), 0, 2) == 0
    g.put("struct mmu_update", ptr=g.l4 << 12 | 255 * 8, val=l3 << 12 | flags)
    assert g.call(NR.mmu_update, BASE, 1, 0, lib.DOMID_SELF) == 0
    g.run()
    assert "rip 0x800000000000: #GP" in g.crash


def test_program_text_is_ours() -> None:
    """The helper would assemble at another place than where the guest runs."""
    code, labels = assemble("nop\nhere: hlt")
    assert code.startswith(b"\x90\xf4") and labels["here"] == CODE + 1 and RESULT == BASE + PAGE
