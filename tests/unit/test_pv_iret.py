"""Returns from the guest kernel and system calls into it (csrc/pv/iret.c, traps.c; xen-abi 3.5, 3.6, 3.7)."""

from __future__ import annotations

import pytest
from machine_guests import STACK, USER_STACK, MachineHost

from xenlike.engine import check, lib

IF, DF, NT = 0x200, 0x400, 0x4000


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def test_iret_to_kernel(host: MachineHost) -> None:
    """All of the frame's registers, and nothing else; the upcall mask is IF's complement; IOPL and VM cannot be had."""
    g = host.play("""
        mov $0x77, %ebx; mov $0x88, %r15d
        push $0xe02b; push $STACK - 64; push $0x23801; push $0xe030; push $on; push $0; push $3; push $2; push $1
        hypercall iret
    on:
        save rax, 0; save r11, 1; save rcx, 2; save rsp, 3; save rbx, 4; save r15, 5
        pushf; pop RESULT + 8 * 6
        exit
    """)
    assert g.results(6) == [1, 2, 3, STACK - 64, 0x77, 0x88]
    flags = g.results(1, first=6)[0]
    assert flags & 0x27a01 == IF | 0x801 & flags and flags & 0x801 == 0x801, "CF and OF as asked, IF always, IOPL 0, no VM"
    assert g.shared[1] == 1, "IF was 0: masked"


def test_iret_in_syscall(host: MachineHost) -> None:
    """VGCF_in_syscall: rcx and r11 are those of a SYSRET, not the frame's."""
    g = host.play("""
        push $0xe02b; push $STACK; push $0x246; push $0xe030; push $on; push $0x100; push $3; push $2; push $1
        hypercall iret
    on: save rcx, 0; save r11, 1
        exit
    """)
    assert g.results(2) == [g.labels["on"], 0x246]
    assert g.shared[1] == 0


def test_native_iretq(host: MachineHost) -> None:
    """Mini-OS and XTF return by IRETQ with cs and ss or'ed with 3: the mask stays as it is, and so does the mode."""
    g = host.play("""
        push $0xe02b; push $STACK - 8; push $0x1; push $0xe033; push $on
        iretq
    on: save rsp, 0
        pushf; pop RESULT + 8
        xor %edi, %edi; hypercall xen_version
        save rax, 2
        exit
    """)
    rsp, flags, version = g.results(3)
    assert (rsp, flags & (IF | 1), version) == (STACK - 8, IF | 1, 4 << 16 | 17)
    assert g.shared[1] == 1


def test_system_call(host: MachineHost) -> None:
    """User mode's `syscall` enters the callback as the hardware would: return address and flags in rcx, r11 and the frame, DF clear, stack
    switched; the way back restores the user's registers."""
    g = host.play("""
        mov $0xe02b, %edi; mov $STACK - 512, %esi; hypercall stack_switch
        callback 2, entry
        to_user user
    user:
        mov $0x99, %ebx
        std
        mov $42, %eax
        syscall
    back:
        pushf; pop %rdx
        mov %rsp, %rsi
        mov %cs, %edi
        mov $43, %eax
        syscall
    entry:
        cmp $43, %eax
        je second
        save_frame 0, 7
        save rsp, 7; save rcx, 8; save r11, 9; save rbx, 10
        pushf; pop RESULT + 8 * 11
        mov $0x4242, %eax
        pop %rcx; pop %r11
        push $0x100; push %rcx; push %r11; push %rax
        hypercall iret
    second:
        save rdx, 12; save rsi, 13; save rdi, 14
        exit
    """)
    rcx, r11, rip, cs, flags, rsp, ss, sp, rcx2, r11_2, rbx, now = g.results(12)
    back = g.labels["back"]
    assert (rcx, rip, rcx2) == (back, back, back)
    assert (cs, ss, rsp, sp) == (0xe033, 0xe02b, USER_STACK, STACK - 512 - 56)
    assert r11 == r11_2 == flags and flags & (IF | DF) == IF | DF
    assert now & DF == 0 and rbx == 0x99
    after_flags, after_rsp, after_cs = g.results(3, first=12)
    assert (after_flags & DF, after_rsp, after_cs) == (DF, USER_STACK, 0xe033)


def test_system_call_masks_events(host: MachineHost) -> None:
    """CALLBACKF_mask_events decides whether the system call handler starts with upcalls masked; the frame keeps what was before."""
    for flag in (0, 1):
        g = host.play(f"""
            callback 2, entry, {flag}
            to_user user
        user:
            syscall
        entry:
            save_frame 0, 4
            exit
        """)
        assert g.shared[1] == flag
        assert g.results(4)[3] == 0xe033


def test_system_call_without_callback(host: MachineHost) -> None:
    """#UD at the `syscall` itself."""
    g = host.play("to_user user\nuser: std\n it: syscall")
    assert f"user mode, rip {g.labels['it']:#x}: #UD" in g.crash


@pytest.mark.parametrize("instruction,kind", [("sysenter", 5), ("int $0x80", 0), ("syscall", 6)])
def test_32_bit_user_code(host: MachineHost, instruction: str, kind: int) -> None:
    """cs 0xe023 is 32-bit code; its system calls come in by sysenter or int 0x80, each with its own frame. `syscall` is #UD there, as
    on the Intel CPU that CPUID names."""
    g = host.play("""
        set_traps traps
        callback 7, entry32
        callback 5, enter
        push $0xe02b; push $USER_STACK; push $0x4200; push $0xe023; push $user; push $0; push $0; push $0; push $0
        hypercall iret
        .code32
    user:
        mov $0x12345678, %eax
        inc %eax                    # 40: a REX prefix in 64-bit code
        push %eax
        INSTRUCTION
    back:
        .code64
    entry32:
        mov $7, %r15d
        jmp both
    enter:
        mov $5, %r15d
        jmp both
    int80:
        mov $0, %r15d
        jmp both
    invalid:
        mov $6, %r15d
    both:
        save_frame 0, 7
        save rax, 7; save r15, 8
        mov USER_STACK - 4, %ebx; save rbx, 9
        exit
    traps:
        trap_entry 0x80, 3, int80
        trap_entry 6, 3, invalid
        .fill 16, 1, 0
    """.replace("INSTRUCTION", instruction))
    rcx, r11, rip, cs, flags, rsp, ss, rax, which, pushed = g.results(10)
    assert (which, rax, pushed) == (kind, 0x12345679, 0x12345679)
    if kind == 5:
        assert (rip, cs, rsp, ss, flags & NT) == (0, 3, 0, 0xe02b, 0)
    else:
        assert (rip, cs, rsp, ss) == (g.labels["back"] - (2 if kind == 6 else 0), 0xe023, USER_STACK - 4, 0xe02b)
        assert kind or flags & NT


def test_gs_bases(host: MachineHost) -> None:
    """The kernel's GS base and the user's are two, and every change of mode swaps them; %gs-relative accesses must use the right one."""
    g = host.play("""
        callback 2, entry
        mov $2, %edi; mov $ARGS + 64, %esi; hypercall set_segment_base      # kernel
        mov $1, %edi; mov $ARGS + 128, %esi; hypercall set_segment_base     # user
        mov $0, %edi; mov $ARGS + 192, %esi; hypercall set_segment_base     # fs
        movq $0x11, ARGS + 64; movq $0x22, ARGS + 128; movq $0x33, ARGS + 192
        mov %gs:0, %rax; save rax, 0
        mov $0xc0000101, %ecx; rdmsr; save rax, 1
        mov $0xc0000102, %ecx; rdmsr; save rax, 2
        to_user user
    user:
        mov %gs:0, %rbx
        mov %fs:0, %rbp
        syscall
    entry:
        save rbx, 3; save rbp, 4
        mov %gs:0, %rax; save rax, 5
        exit
    """)
    base = 0x200000
    assert g.results(6) == [0x11, base + 64, base + 128, 0x22, 0x33, 0x11]


def test_user_gs_selector(host: MachineHost) -> None:
    """SEGBASE_GS_USER_SEL loads the user's base from a descriptor, and a bad selector gives base 0 instead of an error."""
    g = host.play("""
        mov $3, %edi; mov $0xe02b, %esi; hypercall set_segment_base; save rax, 0
        mov %gs, %eax; save rax, 1
        mov $3, %edi; mov $0x1234, %esi; hypercall set_segment_base; save rax, 2
        mov %gs, %eax; save rax, 3
        mov $4, %edi; hypercall set_segment_base; save rax, 4
        mov $0, %edi; mov $0x8000000000000000, %rsi; hypercall set_segment_base; save rax, 5
        exit
    """)
    einval = 2**64 - lib.XEN_EINVAL
    assert g.results(6) == [0, 0xe02b, 0, 0, einval, einval]


def test_failsafe(host: MachineHost) -> None:
    """A frame with selectors that cannot be loaded must not end the domain if the guest has a failsafe callback: that gets the frame, with
    the data selectors."""
    g = host.play("""
        callback 1, failsafe
        mov $0xe02b, %eax; mov %eax, %ds
        push $0xe02b; push $STACK - 128; push $0x200; push $0x1230; push $0x5678; push $0; push $3; push $2; push $1
        hypercall iret
    failsafe:
        save_frame 0, 11
        exit
    """)
    assert g.results(11) == [3, 2, 0xe02b, 0, 0, 0, 0x5678, 0x1230, 0x202, STACK - 128, 0xe02b]


@pytest.mark.parametrize("program,why", [
    ("mov $0x7000000, %esp; hypercall iret", "iret: its frame at 0x7000000 cannot be read"),
    ("push $0xe02b; push $STACK; push $0; push $0x1233; push $0; push $0; push $0; push $0; push $0; hypercall iret",
     "selectors that cannot be loaded"),
])
def test_bad_frames(host: MachineHost, program: str, why: str) -> None:
    """There is nowhere to return to: the domain ends, with the reason."""
    assert why in host.play(program).crash


def test_iret_to_user_without_tables(host: MachineHost) -> None:
    """User mode without a page table of its own would run on the kernel's."""
    assert "no page table" in host.play("to_user user\nuser: ud2", user=False).crash


def test_user_mode_has_its_own_tables(host: MachineHost) -> None:
    """NEW_USER_BASEPTR: what the user's tables do not map, user mode cannot touch, though the kernel can."""
    g = host.boot("""
        set_traps traps
        push $0xe02b; push $USER_STACK; push $0x200; push $0xe033; push $user; push $0; push $0; push $0; push $0
        movq $1, FREE
        hypercall iret
    user:
        mov FREE, %rax
        ud2
    handler:
        save_frame 0, 4
        mov FREE, %rax; save rax, 4
        exit
    traps:
        trap_entry 14, 4, handler
        .fill 16, 1, 0
    """, user=False)
    # A second L1 without pfn 8, under tables of its own.
    tables = [g.mfns[n] for n in (20, 21, 22, 23)]
    l1, l2, l3, l4 = tables
    g.write(g.va(20), host.read_frame(g.l1, 0, 4096))
    for pfn in (8, 20, 21, 22, 23):
        g.write(g.va(20) + 8 * pfn, bytes(8))
    g.write(g.va(21) + 8, (l1 << 12 | 0x67).to_bytes(8, "little"))
    g.write(g.va(22), (l2 << 12 | 0x67).to_bytes(8, "little"))
    g.write(g.va(23), (l3 << 12 | 0x67).to_bytes(8, "little"))
    for pfn in (20, 21, 22, 23):
        assert g.call(14, g.va(pfn), 0, 2) == 0
    check(lib.xl_vcpu_set_bases(g.vcpus[0], g.l4, l4), "xl_vcpu_set_bases")
    g.run()
    assert g.reason == 0
    frame = g.results(5)
    assert frame[2:4] == [4, g.labels["user"]] and frame[4] == 1
