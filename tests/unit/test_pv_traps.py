"""Entries into the guest kernel (csrc/pv/traps.c): frames, masks, software interrupts, debug traps, and the crashes of those that cannot be
made (xen-abi 3.2, 3.3)."""

from __future__ import annotations

import pytest
from machine_guests import CODE, STACK, MachineHost

from xenlike.engine import NR

UNMAPPED = 0x7000000
IF, TF, RF, DF, AC = 0x200, 0x100, 0x10000, 0x400, 0x40000


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def test_frame_without_error_code(host: MachineHost) -> None:
    """The layout every PV kernel's entry code knows: rcx, r11, rip, cs with RPL 0 and the saved mask, flags, old rsp, ss; 16-byte
    aligned before it is pushed."""
    g = host.play("""
        set_traps traps
        mov $0x11, %ecx; mov $0x22, %r11d
        lea -3(%rsp), %rsp
        std
    fault:
        ud2
    handler:
        save_frame 0, 7
        save rsp, 7; save rcx, 8
        mov %cs, %eax; save rax, 9; mov %ss, %eax; save rax, 10
        pushf; pop RESULT + 88
        exit
    traps:
        trap_entry 6, 0, handler
        .fill 16, 1, 0
    """)
    rcx, r11, rip, cs, flags, rsp, ss, sp, rcx_now, cs_now, ss_now, flags_now = g.results(12)
    assert (rcx, r11, rip, rcx_now) == (0x11, 0x22, g.labels["fault"], 0x11)
    assert cs == 0xe030 | 1 << 32, "RPL 0: from the kernel; upcalls were masked"
    assert flags & (IF | DF | 0x3000) == DF, "IF is the mask's complement"
    assert (rsp, ss, sp) == (STACK - 3, 0xe02b, (STACK - 16) - 56)
    assert (cs_now, ss_now, flags_now & (IF | DF)) == (0xe033, 0xe02b, IF | DF)


def test_page_fault_frame(host: MachineHost) -> None:
    """#PF has an error code without U for kernel accesses, cr2 in vcpu_info and the virtual cr2; the frame leaves rsp 16-byte aligned."""
    g = host.play("""
        set_traps traps
        mov $0x7000000, %ebx
    fault:
        mov %eax, 5(%rbx)
    handler:
        save_frame 0, 8
        save rsp, 8
        mov %cr2, %rax; save rax, 9
        exit
    traps:
        trap_entry 14, 4, handler
        .fill 16, 1, 0
    """)
    frame = g.results(10)
    assert frame[2:4] == [2, g.labels["fault"]]
    assert frame[6:9] == [STACK, 0xe02b, STACK - 64]
    assert frame[9] == UNMAPPED + 5
    assert int.from_bytes(g.shared[16:24], "little") == UNMAPPED + 5
    assert g.stat("traps") == 1 and g.stat("page_faults") >= 1


@pytest.mark.parametrize("access,error", [("mov 0x7000000, %al", 4), ("movb $1, 0x7000000", 6), ("mov $0x7000000, %eax; jmp *%rax", 0x14)])
def test_page_fault_from_user_mode(host: MachineHost, access: str, error: int) -> None:
    """From user mode the frame stands on the kernel stack that stack_switch set, cs has RPL 3, and the error code has U."""
    g = host.play("""
        set_traps traps
        mov $0xe02b, %edi; mov $STACK - 256, %esi
        hypercall stack_switch
        to_user user
    user:
        ACCESS
    handler:
        save_frame 0, 8
        save rsp, 8
        exit
    traps:
        trap_entry 14, 0, handler
        .fill 16, 1, 0
    """.replace("ACCESS", access))
    frame = g.results(9)
    assert frame[2] == error
    assert frame[4] == 0xe033, "RPL 3, upcalls were not masked in user mode"
    assert frame[5] & IF
    assert frame[6] == g.labels["_start"] - 0x1000 and frame[8] == STACK - 256 - 64


def test_mask_events_flag(host: MachineHost) -> None:
    """A handler registered with "mask events" must run with upcalls masked, one without must not."""
    for flags, masked in ((4, 1), (0, 0)):
        g = host.play("""
            set_traps traps
            callback 0, upcall
            push $0xe02b; push $STACK; push $0x200; push $0xe030; push $on; push $0; push $0; push $0; push $0
            hypercall iret
        on: ud2
        upcall: exit 3
        handler:
            save_frame 0, 4
            exit
        traps:
            trap_entry 6, FLAGS, handler
            .fill 16, 1, 0
        """.replace("FLAGS", str(flags)))
        assert g.results(4)[3] == 0xe030
        assert g.shared[1] == masked


def test_software_interrupts(host: MachineHost) -> None:
    """`int n` obeys the handler's DPL: the kernel counts as ring 1, user mode as 3; a refusal is #GP with the vector, at the `int`."""
    g = host.play("""
        set_traps traps
        xor %r15d, %r15d
        int $0x40               # DPL 1: allowed
    a:  int $0x41               # DPL 0: #GP
    b:  int $0x42               # no handler: #GP
    c:  to_user user
    user:
        int $0x43               # DPL 3: allowed
    d:  int $0x40               # DPL 1: #GP
    e:
    allowed:
        mov 16(%rsp), %rax
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        trap_return
    refused:
        mov 16(%rsp), %eax      # error code
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        mov 24(%rsp), %rax
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        addq $2, 24(%rsp)
        cmp $7, %r15
        jae done
        pop %rcx; pop %r11; mov %r11, (%rsp); push %rcx         # without the error code
        trap_return
    done:
        exit
    traps:
        trap_entry 0x40, 1, allowed
        trap_entry 0x41, 0, allowed
        trap_entry 0x43, 3, allowed
        trap_entry 13, 0, refused
        .fill 16, 1, 0
    """)
    labels = g.labels
    assert g.results(9) == [labels["a"], 0x41 << 3 | 2, labels["a"], 0x42 << 3 | 2, labels["b"],
                            labels["d"], 0x40 << 3 | 2, labels["d"], 0] and g.reason == 0


def test_int3_and_int80(host: MachineHost) -> None:
    """int3 reaches vector 3 whatever its DPL; int 0x80 without a handler is #GP(0x402) at the instruction (XSA-259)."""
    g = host.play("""
        set_traps traps
    a:  int3
    b:  int $0x80
    bp: mov 16(%rsp), %rax
        save rax, 0
        add $56, %rsp
        jmp b
    gp: save_frame 1, 4
        exit
    traps:
        trap_entry 3, 0, bp
        trap_entry 13, 0, gp
        .fill 16, 1, 0
    """)
    assert g.results(1) == [g.labels["b"]]
    assert g.results(4, first=1)[2:] == [0x402, g.labels["b"]]


def test_nm_clears_ts(host: MachineHost) -> None:
    """Lazy FPU switching: fpu_taskswitch sets TS, the next FPU instruction is #NM, and TS is clear in its handler."""
    g = host.play("""
        set_traps traps
        mov $1, %edi
        hypercall fpu_taskswitch
        mov %cr0, %rax; save rax, 0
    fault:
        fld1
        mov %cr0, %rax; save rax, 2
        exit
    handler:
        save_frame 3, 3
        mov %cr0, %rax; save rax, 1
        mov 16(%rsp), %rax
        mov 40(%rsp), %rsp
        jmp *%rax
    traps:
        trap_entry 7, 0, handler
        .fill 16, 1, 0
    """)
    before, inside, after = g.results(3)
    assert (before & 8, inside & 8, after & 8) == (8, 0, 0)
    assert g.results(3, first=3)[2] == g.labels["fault"]


def test_single_step(host: MachineHost) -> None:
    """TF: #DB after the next instruction with BS in the virtual dr6, TF off in the handler; also after an emulated instruction."""
    g = host.play("""
        set_traps traps
        xor %r15d, %r15d
        pushf; orl $0x100, (%rsp); popf
    a:  nop
    b:  mov %cr0, %rax
    c:  pushf; andl $~0x100, (%rsp); popf
        mov %dr6, %rax; save rax, 8
        exit
    handler:
        mov 16(%rsp), %rax
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        pushf; pop RESULT + 8 * 9
        trap_return
    traps:
        trap_entry 1, 0, handler
        .fill 16, 1, 0
    """)
    assert g.results(2) == [g.labels["b"], g.labels["c"]]
    dr6, flags = g.results(2, first=8)
    assert dr6 == 0xffff4ff0 and not flags & TF


def test_breakpoints(host: MachineHost) -> None:
    """The guest's own debug registers: a fault at an instruction, a trap after a data access; each with its bit in dr6."""
    g = host.play("""
        set_traps traps
        mov $0, %edi; mov $spot, %esi; hypercall set_debugreg
        mov $1, %edi; mov $ARGS + 16, %esi; hypercall set_debugreg
        mov $7, %edi; mov $0xd0000a, %esi; hypercall set_debugreg           # G0, G1; 1: write, 4 bytes
        xor %r15d, %r15d
    spot:
        nop
        movl $1, ARGS + 16
    data:
        movb $1, ARGS + 20
        exit
    handler:
        mov 16(%rsp), %rax
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        mov %dr6, %rax
        mov %rax, RESULT(, %r15, 8)
        inc %r15
        mov $6, %edi; mov $0, %esi; hypercall set_debugreg
        orl $0x10000, 32(%rsp)
        trap_return
    traps:
        trap_entry 1, 0, handler
        .fill 16, 1, 0
    """)
    assert g.reason == 0
    assert g.results(5) == [g.labels["spot"], 0xffff0ff1, g.labels["data"], 0xffff0ff2, 0]


@pytest.mark.parametrize("follows,delivered", [("nop", True), ("syscall", False), ("int3", False)])
def test_data_breakpoint_on_mov_ss(host: MachineHost, follows: str, delivered: bool) -> None:
    """The #DB of a `mov ss` waits for the next instruction. If that one enters the hypervisor, it is the hypervisor that meets the #DB, and
    drops it (XSA-260); it must not end the domain, or spoil the call."""
    g = host.play("""
        set_traps traps
        xor %r15d, %r15d
        mov $0, %edi; mov $ARGS + 16, %esi; hypercall set_debugreg
        movl $0xe02b, ARGS + 16
        mov $7, %edi; mov $0xf0002, %esi; hypercall set_debugreg            # G0: read or write, 4 bytes
        mov $NR_xen_version, %eax; xor %edi, %edi
        mov ARGS + 16, %ss
        FOLLOWS
    after:
        save r15, 0; save rax, 1
        exit
    db: inc %r15
        mov 16(%rsp), %rcx; save rcx, 2
        trap_return
    bp: trap_return
    traps:
        trap_entry 1, 0, db
        trap_entry 3, 0, bp
        .fill 16, 1, 0
    """.replace("FOLLOWS", follows))
    assert g.reason == 0
    count, rax, where = g.results(3)
    assert (count, where) == ((1, g.labels["after"]) if delivered else (0, 0))
    assert rax == (4 << 16 | 17 if follows == "syscall" else NR.xen_version)


# ---- what ends the domain -----------------------------------------------------------------------------------------------


def test_no_handler(host: MachineHost) -> None:
    """An exception that the guest takes no interest in: a crash that says which, where and of what mode, registers as they were."""
    g = host.play("mov $0x5555, %ebx; xor %eax, %eax; div %eax")
    assert g.crash == f"vCPU 0, kernel mode, rip {CODE + 7:#x}: #DE, and the guest has set no handler for it"
    s = g.state()
    assert (s.regs.rbx, s.regs.rip, s.regs.cs, s.kernel_mode, s.mode) == (0x5555, CODE + 7, 0xe033, 1, 64)


def test_no_handler_in_user_mode(host: MachineHost) -> None:
    """Also from user mode, and the state shows it."""
    g = host.play("to_user user\nuser: ud2")
    assert "user mode" in g.crash and "#UD" in g.crash
    assert g.state().kernel_mode == 0


def test_frame_that_cannot_be_written(host: MachineHost) -> None:
    """No #DF for PV guests: a stack that is not there ends the domain, at once and for good (XTF's arch_crash_hard)."""
    for sp in ("0x0", "0xffff800000001000", "0x800000001000"):
        g = host.play("set_traps traps\nmov $" + sp + """, %rsp
            ud2
        handler: exit
        traps:
            trap_entry 6, 0, handler
            .fill 16, 1, 0
        """)
        assert "#UD, and its frame cannot be written to the kernel's stack" in g.crash
        assert g.state().regs.rip == g.labels["handler"] - 2


def test_faults_without_end_use_time(host: MachineHost) -> None:
    """A guest that only faults, and never completes an instruction, would hang the host: time must pass for it too."""
    g = host.boot("""
        set_traps traps
    1:  ud2
    handler:
        ud2
    traps:
        trap_entry 6, 0, handler
        .fill 16, 1, 0
    """).run()
    assert "frame cannot be written" in g.crash and host.now() > 50 * 60


def test_undecoded_is_counted(host: MachineHost) -> None:
    """An instruction that the engine does not have would be taken for one that no CPU has, and nobody could tell."""
    g = host.play(".byte 0xc5, 0xf8, 0x77")         # vzeroupper
    assert "#UD" in g.crash and g.stat("undecoded") == 1
