"""Privileged instructions at CPL 3 (csrc/pv/emulate.c, msr.c, cpuid.c, ports.c; xen-abi 3.8, 3.10)."""

from __future__ import annotations

import struct

import pytest
from machine_guests import MachineHost

from xenlike.engine import NR, lib

#: Counts #GPs and goes on behind the faulting instruction, whose length is in r14.
SKIP_GP = """
    set_traps traps
    xor %r15d, %r15d
    jmp program
gp: cmpl $0, 16(%rsp)
    jne bad
    inc %r15d
    add %r14, 24(%rsp)
    pop %rcx; pop %r11; mov %r11, (%rsp); push %rcx
    trap_return
bad: exit 3
traps:
    trap_entry 13, 0, gp
    .fill 16, 1, 0
program:
"""


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def iopl(guest: object, level: int) -> None:
    """PHYSDEVOP_set_iopl's second half, which Python does."""
    assert lib.xl_vcpu_set_iopl(guest.vcpus[0], level) == 0


@pytest.mark.parametrize("level,faults", [(0, 4), (1, 0), (3, 0)])
def test_iopl_of_the_kernel(host: MachineHost, level: int, faults: int) -> None:
    """The kernel is ring 1 to IOPL: at 0 cli, sti and port accesses fault, from 1 on they do nothing (XTF pv-iopl)."""
    g = host.boot(SKIP_GP + """
        mov $1, %r14d
        cli
        sti
        mov $0x80, %edx
        out %al, %dx
        mov $-1, %rax
        mov $0, %al
        in %dx, %al
        save r15, 0; save rax, 1
        pushf; pop RESULT + 16
        exit
    """)
    iopl(g, level)
    assert g.run().reason == 0
    count, rax, flags = g.results(3)
    assert count == faults
    assert rax & 0xff == (0 if faults else 0xff), "a port where nothing is reads as ones"
    assert flags & 0x3200 == 0x200


def test_iopl_of_user_mode(host: MachineHost) -> None:
    """User mode needs IOPL 3; with architectural_iopl the kernel needs none, and iret sets the level."""
    for level, faults in ((1, 2), (3, 0)):
        g = host.boot(SKIP_GP + """
            mov $1, %r14d
            callback 2, entry
            to_user user
        user:
            cli
            sti
            syscall
        entry:
            save r15, 0
            exit
        """)
        iopl(g, level)
        g.run()
        assert g.results(1) == [faults]
    g = host.play(SKIP_GP + """
        mov $1, %r14d
        xor %edi, %edi; mov $4, %esi; hypercall vm_assist
        cli
        save r15, 0
        callback 2, entry
        to_user user, 0x3200
    user:
        cli
        syscall
    entry:
        save r15, 1
        save_frame 2, 5
        exit
    """)
    assert g.results(2) == [0, 0]
    assert g.results(5, first=2)[4] & 0x3000 == 0x3000, "the frame shows the level"


def test_port_bitmap(host: MachineHost) -> None:
    """A clear bit in the guest's bitmap allows a port without IOPL; one that is set, or beyond the bitmap's end, does not."""
    g = host.boot(SKIP_GP + """
        mov $1, %r14d
        mov $0x21, %edx; in %dx, %al
        save r15, 0
        mov $0x22, %edx; in %dx, %al
        save r15, 1
        mov $0x80, %edx; in %dx, %al
        save r15, 2
        mov $0x20, %edx; in %dx, %eax       # four ports, one of them closed
        save r15, 3
        exit
    """)
    bitmap = bytearray(b"\xff" * 16)
    bitmap[4] = 0b11111101
    g.write(g.va(8), bytes(bitmap))
    assert lib.xl_vcpu_set_iobitmap(g.vcpus[0], g.va(8), 128) == 0
    g.run()
    assert g.results(4) == [0, 1, 2, 3]


def test_ports_with_something_behind(host: MachineHost) -> None:
    """The CMOS clock tells the date, the timer's channel 2 counts, PCI's address register latches; rep outsb and insb move memory."""
    g = host.boot("""
        mov $0x09, %al; out %al, $0x70; in $0x71, %al; save rax, 0          # year
        mov $0x32, %al; out %al, $0x70; in $0x71, %al; save rax, 1          # century
        mov $0x80000004, %eax; mov $0xcf8, %edx; out %eax, %dx
        xor %eax, %eax; in %dx, %eax; save rax, 2
        mov $0xcfc, %edx; in %dx, %eax; save rax, 3
        mov $0xb0, %al; out %al, $0x43                                      # channel 2, both bytes, mode 0
        mov $100, %al; out %al, $0x42; mov $0, %al; out %al, $0x42
        mov $1, %al; out %al, $0x61
        in $0x61, %al; save rax, 4
        mov $200000, %ecx
    1:  dec %ecx; jnz 1b
        in $0x61, %al; save rax, 5
        cld
        mov $0x70, %edx; mov $bytes, %esi; mov $3, %ecx; rep outsb
        save rsi, 6; save rcx, 7
        mov $0x71, %edx; mov $FREE, %edi; mov $300, %ecx; rep insb
        save rdi, 8; save rcx, 9
        exit
    bytes: .byte 1, 2, 0x09
    """)
    iopl(g, 1)
    g.run()
    r = g.results(10)
    assert (r[0] & 0xff, r[1] & 0xff) == (0x20, 0x20), "the virtual clock begins in 2020"
    assert r[2] == 0x80000004 and r[3] == 0xffffffff
    assert (r[4] & 0x20, r[5] & 0x20) == (0, 0x20), "100 ticks of 838 ns"
    assert (r[6], r[7]) == (g.labels["bytes"] + 3, 0)
    assert (r[8], r[9]) == (g.va(8) + 300, 0)
    assert g.read(g.va(8), 301) == b"\x20" * 300 + b"\0"


def test_string_io_faults_in_guest(host: MachineHost) -> None:
    """A rep insb that runs off the mapped memory must stop there with #PF, its registers at the byte that faulted."""
    g = host.boot("""
        set_traps traps
        mov $0x80, %edx; mov $0x200000 + 32 * 4096 - 5, %edi; mov $10, %ecx
    it: rep insb
    pf: save rdi, 0; mov (%rsp), %rax; save rax, 1
        mov 24(%rsp), %rax; save rax, 2
        mov 16(%rsp), %rax; save rax, 3
        exit
    traps:
        trap_entry 14, 0, pf
        .fill 16, 1, 0
    """)
    iopl(g, 1)
    g.run()
    assert g.results(4) == [g.va(32), 5, g.labels["it"], 2]


def test_control_registers(host: MachineHost) -> None:
    """cr0 and cr4 as Xen shows them; only TS can change in cr0, only TSD and DE in cr4; cr3 is the L4's machine frame."""
    g = host.boot(SKIP_GP + """
        mov $3, %r14d
        mov %cr0, %rax; save rax, 0
        mov %cr3, %rbx; save rbx, 1
        mov %cr4, %rax; save rax, 2
        mov %cr0, %rax; or $8, %rax; mov %rax, %cr0; mov %cr0, %rax; save rax, 3
        clts; mov %cr0, %rax; save rax, 4
        mov %cr0, %rax; xor $0x10000, %rax; mov %rax, %cr0      # WP: refused
        save r15, 5
        mov $0xffffffff, %eax; mov %rax, %cr4; mov %cr4, %rax; save rax, 6
        mov $0x1234, %eax; mov %rax, %cr2; mov %cr2, %rax; save rax, 7
        mov %rbx, %cr3
        mov $0x123000, %eax; mov %rax, %cr3                     # no table of this domain
        save r15, 8
        mov $4, %r14d; mov %cr8, %rax
        save r15, 9
        exit
    """).run()
    assert g.reason == 0
    r = g.results(10)
    assert r[0] == 0x80050033 and r[3] == r[0] | 8 and r[4] == r[0]
    assert r[1] == g.l4 << 12
    assert r[2] == 0x660 and r[6] == 0x660 | 4 | 8
    assert (r[5], r[7], r[8], r[9]) == (1, 0x1234, 2, 3)


def test_tsc_disable(host: MachineHost) -> None:
    """CR4.TSD: the kernel still reads the TSC, user mode gets #GP."""
    g = host.play(SKIP_GP + """
        mov $2, %r14d
        mov $0x4, %eax; mov %rax, %cr4
        rdtsc; shl $32, %rdx; or %rdx, %rax; save rax, 0
        save r15, 1
        callback 2, entry
        to_user user
    user:
        rdtsc
        syscall
    entry:
        save r15, 2
        exit
    """)
    tsc, kernel, user = g.results(3)
    assert tsc > 0 and (kernel, user) == (0, 1)


@pytest.mark.parametrize("instruction,length", [
    ("hlt", 1), ("lgdt ARGS", 8), ("lidt ARGS", 8), ("invlpg ARGS", 8), ("swapgs", 3), ("invd", 2), ("ltr %ax", 3), ("lmsw %ax", 3),
    ("sysretq", 3), ("rdpmc", 2)])
def test_instructions_that_stay_faults(host: MachineHost, instruction: str, length: int) -> None:
    """What Xen does not emulate must be #GP(0), for the kernel too, and not take effect."""
    g = host.play(SKIP_GP + f"mov ${length}, %r14d\n{instruction}\nsave r15, 0\nexit")
    assert g.results(1) == [1]


def test_wbinvd_does_nothing(host: MachineHost) -> None:
    """A no-op for the kernel, #GP for user mode."""
    g = host.play(SKIP_GP + """
        mov $2, %r14d
        wbinvd
        save r15, 0
        callback 2, entry
        to_user user
    user: wbinvd
        syscall
    entry: save r15, 1
        exit
    """)
    assert g.results(2) == [0, 1]


MSRS = [  # (number, what reads, or None: #GP)
    (0x1b, 0xfee00900), (0xc0000080, 0xd01), (0x277, 0x0000050100070406), (0x345, 0), (0xce, 0), (0x140, 0), (0x8b, 0), (0x40000000, 0),
    (0xc0000081, None), (0xc0000082, None), (0x174, None), (0x12345, None), (0x4000ffff, None),
]


def test_msr_reads(host: MachineHost) -> None:
    """Kernels read MSRs early and by number: values of the policy, #GP for all others."""
    read = "mov $-1, %eax; mov $-1, %edx; rdmsr; shl $32, %rdx; or %rdx, %rax"
    program = "".join(f"mov ${nr}, %ecx; {read}; save rax, {n}; save r15, {n + 32}\n" for n, (nr, _) in enumerate(MSRS))
    g = host.play(SKIP_GP + "mov $2, %r14d\n" + program + "exit")
    assert g.reason == 0
    values, faults = g.results(len(MSRS)), g.results(len(MSRS), first=32)
    seen = 0
    for (nr, want), value, count in zip(MSRS, values, faults):
        assert (count != seen) == (want is None), hex(nr)
        seen = count
        assert want is None or value == want, hex(nr)


def test_unknown_msr_before_traps(host: MachineHost) -> None:
    """Before a kernel has a #GP handler an unknown MSR reads as 0, or it could not boot; the hypervisor's range still faults."""
    g = host.play("mov $0x12345, %ecx; rdmsr; save rax, 0; exit")
    assert g.reason == 0 and g.results(1) == [0]
    assert "#GP" in host.play("mov $0x40001234, %ecx; rdmsr; exit").crash


def test_bases_by_msr(host: MachineHost) -> None:
    """WRMSR of the bases takes effect at once, and a non-canonical address is #GP (XSA-193)."""
    program = ""
    for n, nr in enumerate((0xc0000100, 0xc0000101, 0xc0000102)):
        program += f"""
            mov ${nr}, %ecx; mov $ARGS + {64 * n}, %eax; xor %edx, %edx; wrmsr
            xor %eax, %eax; rdmsr; save rax, {n}
            xor %eax, %eax; mov $0x80000000, %edx; wrmsr
        """
    g = host.play(SKIP_GP + "mov $2, %r14d\n" + program + """
        movq $7, ARGS; movq $8, ARGS + 64
        mov %fs:0, %rax; save rax, 3
        mov %gs:0, %rax; save rax, 4
        save r15, 5
        exit
    """)
    base = 0x200000
    assert g.results(6) == [base, base + 64, base + 128, 7, 8, 3]


def test_msr_writes(host: MachineHost) -> None:
    """EFER must be written back as it is; PAT and the system call MSRs cannot be written; MISC_ENABLE takes anything (XSA-333)."""
    writes = [(0xc0000080, 0xd01, 0), (0xc0000080, 0xd00, 1), (0x277, 0x0000050100070406, 1), (0xc0000082, 1, 1), (0x1a0, 0x123, 0),
              (0x8b, 0, 0), (0x8b, 1, 1), (0xe7, 5, 0), (0x12345, 0, 1)]
    program = "".join(f"mov ${nr}, %ecx; mov ${value & 0xffffffff}, %eax; mov ${value >> 32}, %edx; wrmsr; save r15, {n}\n"
                      for n, (nr, value, _) in enumerate(writes))
    g = host.play(SKIP_GP + "mov $2, %r14d\n" + program + "exit")
    counts = [0, *g.results(len(writes))]
    assert [after - before for before, after in zip(counts, counts[1:])] == [fault for *_, fault in writes]


def cpuid(host: MachineHost, leaf: int, subleaf: int = 0, *, forced: bool = False) -> list[int]:
    prefix = ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n" if forced else ""
    results = "save rax, 0; save rbx, 1; save rcx, 2; save rdx, 3"
    return host.play(f"mov ${leaf}, %eax; mov ${subleaf}, %ecx\n{prefix}cpuid\n{results}\nexit").results(4)


@pytest.mark.parametrize("forced", [False, True])
def test_cpuid(host: MachineHost, forced: bool) -> None:
    """A guest finds Xen by its signature, and features that a PV guest may use, none that it may not; plain and by forced emulation."""
    assert cpuid(host, 0x40000000, forced=forced) == [0x40000005, *struct.unpack("<3I", b"XenVMMXenVMM")]
    assert cpuid(host, 0x40000001, forced=forced)[0] == 4 << 16 | 17
    assert cpuid(host, 0x40000002, forced=forced) == [1, 0x40000000, 1, 0]
    _, _, ecx, edx = cpuid(host, 1, forced=forced)
    assert ecx >> 31 & 1, "a hypervisor is present"
    for bit in (0, 4, 5, 6, 8, 15, 24, 25, 26):     # FPU TSC MSR PAE CX8 CMOV FXSR SSE SSE2
        assert edx >> bit & 1, bit
    for bit in (1, 3, 12, 13, 17):                  # VME PSE MTRR PGE PSE36
        assert not edx >> bit & 1, bit
    for bit in (3, 5, 17, 21, 24, 26, 27, 28):      # MONITOR VMX PCID x2APIC TSC-DEADLINE XSAVE OSXSAVE AVX
        assert not ecx >> bit & 1, bit
    _, _, _, edx = cpuid(host, 0x80000001, forced=forced)
    assert edx >> 29 & 1 and edx >> 20 & 1 and edx >> 11 & 1 and not edx >> 26 & 1     # LM NX SYSCALL; 1 GiB pages


def test_forced_emulation_of_others(host: MachineHost) -> None:
    """Behind the prefix only CPUID is emulated: any other instruction is #UD at the prefix."""
    g = host.play("it: .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\nnop")
    assert f"rip {g.labels['it']:#x}: #UD" in g.crash


def test_debug_registers(host: MachineHost) -> None:
    """mov to and from debug registers, as a kernel and XTF use them; dr4 and dr5 are #UD with CR4.DE."""
    g = host.boot(SKIP_GP + """
        mov $3, %r14d
        mov %rsp, %dr0; mov %dr0, %rax; save rax, 0
        mov %dr7, %rax; save rax, 1
        mov %dr5, %rax; save rax, 2
        mov $0xffff800000000000, %rax; mov %rax, %dr1
        save r15, 3
        mov %dr1, %rax; save rax, 4
        exit
    """).run()
    sp, dr7, dr5, faults, dr1 = g.results(5)
    assert (sp, dr7, dr5, faults, dr1) == (g.labels["_start"], 0x400, 0x400, 1, 0)
    assert "#UD" in host.play("mov $8, %eax; mov %rax, %cr4; mov %dr4, %rax").crash


def test_count_of_emulated(host: MachineHost) -> None:
    """The counter would say nothing about why a guest is slow."""
    g = host.play("mov %cr0, %rax; mov %cr0, %rax; clts; exit")
    assert g.stat("emulated") == 3
    assert g.call(NR.xen_version, 0) == 4 << 16 | 17
