"""Modes (virtual-8086 too), ports, control registers, MSRs, CPUID, privileged and sensitive instructions; hostile tables.

Oracle: SDM vol. 2, vol. 3 (chapters 2, 4, 9, 17, 20), vol. 4; x86_rig.py is the machine.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x86_rig import (
    CODE, CODE3, DATA0, DB, DONE, END, EXIT, FREE, GDT, GP, HALTED, IDT, IF, IOPL3, RF, SYSTEM, TR, TSS, UD, VM, Rig, descriptor,
)
from xenlike.engine import lib


# ---- virtual-8086 mode --------------------------------------------------------------------------------------------------------

def enter_vm86(source: str, *, iopl: int = 3, flags: int = IF, tss: bytes | None = None) -> Rig:
    """Protected mode that enters virtual-8086 code at 0x1000:0 by IRETD; returns after the first event."""
    m = Rig(32)
    m.load(source, 16, CODE)
    frame = struct.pack("<9I", 0, 0x1000, VM | iopl << 12 | flags | 2, 0xfff0, 0x3000, 0x111, 0x222, 0x333, 0x444)
    m.write(0x6000, frame)
    m["rsp"] = 0x6000
    if tss is not None:
        m.write(TSS + 0x66, tss)
        m["tr.limit"] = 0x66 + len(tss) - 1
    m.start("iretd", at=0x7000)
    assert m.go() == HALTED
    return m


def vm86_frame(m: Rig, error: bool) -> tuple:
    at = m["rsp"] + 4 * error
    return struct.unpack("<9I", m.read(at, 36))


def test_vm86_entry_and_exit() -> None:
    """Wrong: IRETD does not load the segments as real mode would, or an interrupt does not push and clear them."""
    m = enter_vm86("mov ax, ds; mov bx, ss; mov cx, fs; mov dx, gs; mov si, es; int 0x21")
    assert [m[r] & 0xffff for r in ("rax", "rbx", "rcx", "rdx", "rsi")] == [0x222, 0x3000, 0x333, 0x444, 0x111]
    assert m.frame().vector == GP, "a gate of DPL 0 is not for level 3"
    m = enter_vm86("int 0x20")
    assert m.frame().vector == EXIT
    assert vm86_frame(m, False) == (2, 0x1000, VM | IOPL3 | IF | 2, 0xfff0, 0x3000, 0x111, 0x222, 0x333, 0x444)
    assert [m[f"{s}.sel"] for s in ("es", "ds", "fs", "gs")] == [0, 0, 0, 0] and m["cpl"] == 0
    assert not m["rflags"] & (VM | IF) and m["rsp"] == SYSTEM + lib.XL_BARE_RING0_STACK - 36


@pytest.mark.parametrize("source", ["cli", "sti", "pushf", "popf", "int 0x20", "iret"])
def test_vm86_iopl_sensitive(source: str) -> None:
    """Wrong: an IOPL-sensitive instruction of virtual-8086 mode (vol. 3, 20.2.7) does not give #GP(0) below IOPL 3."""
    m = enter_vm86(source, iopl=0)
    assert m.frame().what == (GP, 0) and vm86_frame(m, True)[:2] == (0, 0x1000)


def test_vm86_runs_16_bit_code() -> None:
    """Wrong: segment arithmetic, far calls, IRET or the 64 KiB limit in virtual-8086 mode are not those of an 8086."""
    m = enter_vm86("""start: .byte 0x9a; .word sub - start, 0x1000
        pushf; push cs; push offset back - start; iret
        back: int 0x20
        sub: mov ax, 0x2000; mov ds, ax; mov word ptr [0x10], 0x55aa; retf""")
    assert m.frame().vector == EXIT and m.word(0x20010, 2) == 0x55aa and vm86_frame(m, False)[3] == 0xfff0
    assert enter_vm86("mov ebx, 0x10000; mov al, [ebx]").frame().what == (GP, 0)
    for source in ("hlt", "mov eax, cr0", "lgdt [0]", "clts"):
        assert enter_vm86(source).frame().what == (GP, 0), source
    for source in ("lldt ax", "str ax", "lar ax, ax", "verr ax", "arpl ax, ax"):
        assert enter_vm86(source).frame().vector == UD, source


def test_vm86_interrupt_needs_level_0() -> None:
    """Wrong: an interrupt leaves virtual-8086 mode for a level other than 0 or for conforming code."""
    for access, selector in ((0xfa, FREE), (0x9e, FREE), (0xba, FREE)):
        m = Rig(32)
        m.gdt(FREE, descriptor(access=access))
        m.set_gate(EXIT, selector=selector, dpl=3)
        m.write(CODE, b"\xcd\x20")
        m.write(0x6000, struct.pack("<9I", 0, 0x1000, VM | IOPL3 | 2, 0xfff0, 0x3000, 0, 0, 0, 0))
        m["rsp"] = 0x6000
        m.start("iretd", at=0x7000)
        assert m.go() == HALTED and m.frame().what == (GP, FREE), hex(access)


# ---- I/O permission ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("source,port,size", [("in al, 0x71", 0x71, 1), ("mov dx, 0x3f7; out dx, ax", 0x3f7, 2),
                                              ("mov dx, 0x100; in eax, dx", 0x100, 4)])
def test_io_permission_bitmap(bits: int, source: str, port: int, size: int) -> None:
    """Wrong: IN or OUT at level 3 ignores a bit of the bitmap, one that belongs to the access's last byte too, or reads beyond the TSS."""
    def attempt(denied: int | None, limit: int = 0x68 + 0x2000, iopl: int = 0, base: int = 0x68) -> tuple:
        m = Rig(bits, 3)
        m["rflags"] = iopl << 12 | 2
        m["tr.base"] = 0x6000
        m.write(0x6000, m.read(TSS, 0x66) + struct.pack("<H", base) + bytes(0x1000))
        m["tr.limit"] = limit
        if denied is not None:
            m.poke(0x6000 + 0x68 + denied // 8, 1, 1 << denied % 8)
        return m.catch(f"{source}; {END}").what
    assert attempt(None) == DONE
    for n in range(size):
        assert attempt(port + n) == (GP, 0)
        assert attempt(port + n, iopl=3) == DONE
    assert attempt(port - 1) == DONE and attempt(port + size) == DONE
    assert attempt(None, limit=0x68 + port // 8) == (GP, 0), "two bytes are read"
    assert attempt(None, limit=0x68 + port // 8 + 1) == DONE
    assert attempt(None, base=0xffff) == (GP, 0)
    assert attempt(None, limit=0x66) == (GP, 0)


def test_io_in_vm86_ignores_iopl() -> None:
    """Wrong: in virtual-8086 mode IOPL 3 grants ports without the bitmap."""
    assert enter_vm86("in al, 0x10", tss=struct.pack("<H", 0xffff)).frame().what == (GP, 0)
    m = enter_vm86("in al, 0x10; int 0x20", tss=struct.pack("<H", 0x68) + bytes(0x20))
    assert m.frame().vector == EXIT


# ---- switching modes -------------------------------------------------------------------------------------------------------------

def test_real_to_long_mode_and_back() -> None:
    """Wrong: the road of every boot loader: real mode, protected mode, long mode by CR4.PAE, EFER.LME and CR0.PG, compatibility mode, and
    back to real mode (vol. 3, 9.8, 9.9)."""
    m = Rig(16)
    m.write(GDT, bytes(8))
    m.gdt(8, descriptor(access=0x9a), descriptor(access=0x92), descriptor(access=0x9a, flags=0xa), descriptor(0, 0xffff, 0x9a, 0),
          descriptor(0, 0xffff, 0x92, 0))
    m.write(0x6000, struct.pack("<HI", 0x2f, GDT))
    m.poke(0xa000, 8, 0xb003)
    m.poke(0xb000, 8, 0x83 | 0)          # a page of 1 GiB
    m["gdtr.base"], m["gdtr.limit"] = 0, 0
    m.load("""
        cli; data32 lgdt [0x6000]
        mov eax, cr0; or al, 1; mov cr0, eax
        .byte 0x66, 0xea; .long prot; .word 8
    .code32
    prot: mov ax, 0x10; mov ds, ax; mov ss, ax; mov esp, 0x7000
        mov eax, cr4; or eax, 0x20; mov cr4, eax
        mov eax, 0xa000; mov cr3, eax
        mov ecx, 0xc0000080; rdmsr; or eax, 0x100; wrmsr
        mov eax, cr0; or eax, 0x80000000; mov cr0, eax
        rdmsr; mov [0x6100], eax
        .byte 0xea; .long long_; .word 0x18
    .code64
    long_: mov rax, 0x123456789abcdef0; mov [0x6108], rax
        lea rax, [rip + compat]; push 8; push rax; rex.w retf
    .code32
    compat: mov eax, cr0; and eax, 0x7fffffff; mov cr0, eax
        mov ecx, 0xc0000080; rdmsr; mov [0x6110], eax
        .byte 0xea; .long sixteen; .word 0x20
    .code16
    sixteen: mov ax, 0x28; mov ds, ax; mov ss, ax
        mov eax, cr0; and al, 0xfe; mov cr0, eax
        .byte 0xea; .word real - 0x7000, 0x700
    real: xor ax, ax; mov ds, ax; mov ss, ax
        mov word ptr [0x6118], cs; hlt""", 16, 0x7c00)
    m["rip"] = 0x7c00
    assert m.go() == HALTED and m.frame().vector is None
    assert m.word(0x6100, 4) == 0x500, "LMA and LME"
    assert m.word(0x6108, 8) == 0x123456789abcdef0
    assert m.word(0x6110, 4) == 0x100, "LMA goes with paging"
    assert m.word(0x6118, 2) == 0x700 and m["mode"] == 16 and not m["cr0"] & 1


# ---- control registers --------------------------------------------------------------------------------------------------------------

PE, NW, CD, PG = 1, 1 << 29, 1 << 30, 1 << 31
CR_RULES = [
    # bits, register, value, allowed
    (64, "cr0", 1 << 32, False), (64, "cr0", PG | PE | NW, False), (64, "cr0", PG | PE | NW | CD, True), (64, "cr0", PG, False), (64, "cr0", PE, False),
    (32, "cr0", PE | 0xfffa, True), (32, "cr0", PG, False), (32, "cr0", PE | NW, False),
    (64, "cr3", 1 << 40, False), (64, "cr3", 1 << 63, False), (64, "cr3", SYSTEM + lib.XL_BARE_PML4 | 0x18, True),
    (64, "cr4", 0, False), (64, "cr4", 0x20, True), (64, "cr4", 0x6ac, True), (64, "cr4", 0x21, False), (64, "cr4", 1 << 13 | 0x20, False),
    (64, "cr4", 1 << 17 | 0x20, False), (64, "cr4", 1 << 18 | 0x20, False), (64, "cr4", 1 << 20 | 0x20, False), (64, "cr4", 1 << 32 | 0x20, False),
    (32, "cr4", 0, True), (32, "cr4", 0x40, False), (32, "cr4", 0x800, False),
    (64, "cr8", 15, True), (64, "cr8", 16, False), (64, "cr2", 1 << 63, True),
    (64, "dr7", 0xffff2fff & ~(1 << 13), True), (64, "dr7", 1 << 32, False), (64, "dr6", 1 << 32, False), (64, "dr0", 1 << 63, True),
]


@pytest.mark.parametrize("bits,register,value,allowed", CR_RULES)
def test_control_register_rules(bits: int, register: str, value: int, allowed: bool) -> None:
    """Wrong: a reserved bit or a forbidden combination is accepted, or a good value is refused with #GP; or a refused one is half loaded."""
    m = Rig(bits)
    before = m[register]
    m["rax"] = value
    trap = m.catch(f"mov {register}, {'rax' if bits == 64 else 'eax'}; {END}")
    assert trap.what == (DONE if allowed else (GP, 0))
    if not allowed:
        assert m[register] == before


@pytest.mark.parametrize("source", ["mov eax, cr0", "mov cr0, eax", "mov eax, cr3", "mov eax, dr0", "mov dr7, eax", "lgdt [0x6000]",
                                    "lidt [0x6000]", "lldt ax", "ltr ax",
                                    "lmsw ax", "clts", "invlpg [0]", "invd", "wbinvd", "hlt", "rdmsr", "wrmsr", ".byte 0x0f, 0x35", "rdpmc"])
def test_privileged_instructions(source: str) -> None:
    """Wrong: a privileged instruction runs at level 3, or looks at its operands before its level."""
    for bits in (32, 64):
        m = Rig(bits, 3)
        code = source.replace("eax", "rax") if bits == 64 and (" cr" in source or " dr" in source) else source
        assert m.catch(code).what == (GP, 0), bits


@pytest.mark.parametrize("modrm", [0xc8, 0xe8, 0xf0, 0xf8])
def test_absent_control_registers(modrm: int) -> None:
    """Wrong: CR1, CR5-7 exist; CR9-15 and DR8-15 exist with REX; CR8 exists outside of 64-bit mode."""
    for opcode in (0x20, 0x22):
        assert Rig(32).catch(f".byte 0x0f, {opcode}, {modrm}").vector == UD
    assert Rig(64).catch(f".byte 0x44, 0x0f, 0x20, {modrm}").vector == UD
    assert Rig(64).catch(f".byte 0x44, 0x0f, 0x21, {modrm}").vector == UD


def test_cr_reads_and_lmsw() -> None:
    """Wrong: MOV from CR, SMSW, LMSW or CLTS show or change other bits than they should; LMSW clears PE."""
    m = Rig(64)
    m["cr8"] = 5
    assert m.catch(f"""mov rax, cr8; mov rbx, cr4; mov rcx, cr3; mov rdx, cr0; smsw rsi; smsw edi; mov r8d, -1; smsw r8w
        smsw [0x6000]; {END}""").what == DONE
    cr0 = m["cr0"]
    assert (m["rax"], m["rbx"], m["rcx"], m["rdx"]) == (5, m["cr4"], m["cr3"], cr0)
    assert (m["rsi"], m["rdi"], m["r8"], m.word(0x6000, 2)) == (cr0, cr0, 0xffff0000 | cr0 & 0xffff, cr0 & 0xffff)
    assert m.catch(f"mov eax, 0xfffe; lmsw ax; {END}").what == DONE and m["cr0"] == cr0 | 0xe | PE
    assert m.catch(f"clts; {END}").what == DONE and m["cr0"] == (cr0 | 6) & ~8


def test_entering_long_mode_needs_pae_and_a_32_bit_code_segment() -> None:
    """Wrong: CR0.PG with EFER.LME is accepted without CR4.PAE, from a code segment with L, or with a 16-bit TSS."""
    def attempt(prepare) -> tuple:
        m = Rig(32)
        m["efer"], m["cr4"], m["cr3"] = 0x100, 0x20, SYSTEM + lib.XL_BARE_PML4
        m["rax"] = m["cr0"] | PG
        m["idtr.limit"] = 0x7ff
        prepare(m)
        trap = m.catch("mov cr0, eax; hlt")
        return trap.what
    assert attempt(lambda m: None) == (None, None)
    assert attempt(lambda m: m.__setitem__("cr4", 0)) == (GP, 0)
    assert attempt(lambda m: m.__setitem__("cs.attr", m["cs.attr"] | 0x200)) == (GP, 0)
    assert attempt(lambda m: m.__setitem__("tr.attr", 0x83)) == (GP, 0)


def test_pae_pdptes_are_checked() -> None:
    """Wrong: PAE paging is entered, or CR3 loaded, with reserved bits in a PDPTE; or PDPTEs are read anew at each walk."""
    m = Rig(32)
    m["cr4"] = 0x20
    for n in range(4):
        m.poke(0xa000 + 8 * n, 8, 0)
    m.poke(0xa000, 8, 0xb001)
    m.poke(0xb000, 8, 0x83)              # 2 MiB
    assert m.catch(f"""mov eax, 0xa000; mov cr3, eax; mov eax, cr0; bts eax, 31; mov cr0, eax
        mov dword ptr [0xa000], 0; mov eax, [0x6000]; {END}""").what == DONE
    m.poke(0xa000, 8, 0xb001)
    m.poke(0xa018, 8, 0x3)
    assert m.catch("mov eax, 0xa000; mov cr3, eax").what == (GP, 0)


def test_invlpg_drops_all_of_a_large_page() -> None:
    """Wrong: after INVLPG of an address in a 2 MiB page, other addresses of that page still have the old translation."""
    m = Rig(64)
    entry = SYSTEM + lib.XL_BARE_PD + 8
    m.poke(0x101000, 8, 0x1111)
    m.poke(entry, 8, 0x87)              # 2 MiB from address 0x200000 on: physical 0
    assert m.catch(f"""mov rax, [0x301000]; mov rbx, [0x300000]; mov dword ptr [{entry}], 0x80000087
        invlpg [0x300000]; mov rcx, [0x301000]; {END}""").what == DONE
    assert m["rax"] == 0x1111 and m["rcx"] == 2 ** 64 - 1, "no RAM there: ones"


def test_invlpg_of_a_small_page() -> None:
    """Wrong: INVLPG does not drop the page's translation, at any privilege level's set of the TLB."""
    m = Rig(32)
    directory, table = 0xa000, 0xb000
    m.poke(directory, 4, table | 7)
    m.write(table, b"".join(struct.pack("<I", n << 12 | 7) for n in range(512)))
    m.poke(0x12000, 4, 1)
    m.poke(0x13000, 4, 2)
    m["cr3"], m["cr4"] = directory, 0
    m["cr0"] |= PG
    assert m.catch(f"mov eax, [0x12000]; mov dword ptr [{table + 4 * 0x12}], 0x13007; invlpg [0x12000]; mov ecx, [0x12000]; {END}").what == DONE
    assert (m["rax"], m["rcx"]) == (1, 2)


def test_debug_register_rules() -> None:
    """Wrong: DR4/5 are not aliases (or exist with CR4.DE), fixed bits are stored, or general detect does not catch MOV DR."""
    m = Rig(32)
    m["rax"] = 0xffffffff & ~(1 << 13)
    assert m.catch(f"""mov ecx, 0x5a; mov dr0, ecx; .byte 0x0f, 0x23, 0xe0; mov dr7, eax; .byte 0x0f, 0x21, 0xe3; mov edx, dr7
        xor eax, eax; mov dr7, eax; {END}""").what == DONE
    assert (m["dr0"], m["rbx"], m["rdx"], m["dr7"]) == (0x5a, 0xffffcfff, 0xffff07ff, 0x400)
    m = Rig(32)
    m["cr4"] = 8
    assert m.catch(".byte 0x0f, 0x23, 0xe0").vector == UD
    m = Rig(32)
    trap = m.catch("mov eax, 0x2400; mov dr7, eax; mov ecx, dr0")
    assert trap.vector == DB and trap.rip == CODE + 8 and m["dr6"] & 1 << 13 and m["dr7"] == 0x400, "the handler may use them"


# ---- MSRs ------------------------------------------------------------------------------------------------------------------------------

NONCANONICAL, CANONICAL = 1 << 47, 0xffff800000000000
MSR_RULES = [
    (0xc0000080, 0xd01, True), (0xc0000080, 0x901, True), (0xc0000080, 0x1001, False), (0xc0000080, 0xc01, False),
    (0xc0000080, 1 << 40, False),
    (0xc0000081, (1 << 64) - 1, True), (0xc0000082, CANONICAL, True), (0xc0000082, NONCANONICAL, False), (0xc0000083, NONCANONICAL, False),
    (0xc0000084, 0x47700, True), (0xc0000100, NONCANONICAL, False), (0xc0000101, CANONICAL, True), (0xc0000101, NONCANONICAL, False),
    (0xc0000102, NONCANONICAL, False), (0xc0000102, 0x1234, True), (0xc0000103, 7, True), (0xc0000103, 1 << 32, False),
    (0x174, 0x10, True), (0x175, NONCANONICAL, False), (0x176, NONCANONICAL, False), (0x176, CANONICAL, True),
    (0x277, 0x0007040600070406, True), (0x277, 0x02, False), (0x277, 0x08, False), (0x1b, 0xfee00900, True), (0x1b, 0xfee00d00, False),
    (0x1b, 1 << 45, False),
    (0x10, 12345, True), (0x8b, 0, True), (0x1a0, 0x1801, True), (0xfe, 0, False), (0x12345, 0, False), (0x40000000, 0, False), (0xc0000104, 0, False),
]


@pytest.mark.parametrize("msr,value,allowed", MSR_RULES)
def test_msr_rules(msr: int, value: int, allowed: bool) -> None:
    """Wrong: an MSR accepts a reserved bit or a non-canonical address, does not read back what was written, or an unknown one exists."""
    m = Rig(64)
    m["rcx"], m["rax"], m["rdx"] = msr, value & 0xffffffff, value >> 32
    trap = m.catch(f"wrmsr; xor eax, eax; xor edx, edx; rdmsr; {END}")
    assert trap.what == (DONE if allowed else (GP, 0))
    if allowed:
        read = m["rdx"] << 32 | m["rax"]
        assert abs(read - (value | (0x400 if msr == 0xc0000080 else 0))) <= (16 if msr == 0x10 else 0)


def test_segment_base_msrs() -> None:
    """Wrong: FS or GS base MSRs are not what addresses use; SWAPGS does not swap; it runs outside of 64-bit mode or level 0."""
    m = Rig(64)
    m["kernel_gs_base"] = 0x6000
    m.poke(0x6008, 8, 0x1122334455667788)
    assert m.catch(f"mov ecx, 0xc0000100; mov eax, 0x6000; xor edx, edx; wrmsr; mov rbx, fs:[8]; swapgs; mov rsi, gs:[8]; {END}").what == DONE
    assert m["rbx"] == m["rsi"] == 0x1122334455667788 and (m["gs.base"], m["kernel_gs_base"]) == (0x6000, 0)
    assert Rig(64, 3).catch("swapgs").what == (GP, 0)
    assert Rig(32).catch(".byte 0x0f, 0x01, 0xf8").vector == UD


def test_lma_is_read_only_and_lme_is_fixed_under_paging() -> None:
    """Wrong: WRMSR changes EFER.LMA, or LME while paging is on."""
    m = Rig(64)
    assert m.catch(f"mov ecx, 0xc0000080; mov eax, 0x901; xor edx, edx; wrmsr; {END}").what == DONE and m["efer"] == 0xd01
    assert m.catch("mov ecx, 0xc0000080; mov eax, 0x801; xor edx, edx; wrmsr").what == (GP, 0)


# ---- the rest -------------------------------------------------------------------------------------------------------------------------------

def test_descriptor_table_registers() -> None:
    """Wrong: LGDT takes 32 bits of base with a 16-bit operand, or takes a non-canonical one; SGDT stores another size than the mode's."""
    m = Rig(32)
    m.write(0x6000, struct.pack("<HI", 0x1ff, 0xff000000 | GDT))
    assert m.catch(f"data16 lgdt [0x6000]; mov eax, {DATA0}; mov ds, eax; sgdt [0x6010]; sidt [0x6020]; {END}").what == DONE
    assert struct.unpack("<HIH", m.read(0x6010, 8)) == (0x1ff, GDT, 0) and struct.unpack("<HI", m.read(0x6020, 6)) == (0x7ff, IDT)
    m = Rig(64)
    m.write(0x6000, struct.pack("<HQ", 0xfff, NONCANONICAL))
    assert m.catch("lidt [0x6000]").what == (GP, 0)
    m.write(0x6000, struct.pack("<HQ", 0xfff, CANONICAL))
    assert m.catch("lgdt [0x6000]; sgdt [0x6010]; hlt").what == (None, None)
    assert struct.unpack("<HQ", m.read(0x6010, 10)) == (0xfff, CANONICAL)


def test_sensitive_but_unprivileged_instructions() -> None:
    """Wrong: one of the instructions that level 3 may run though they show or touch system state (the reason why x86 needed paravirtualization)
    faults, lies, or does what only level 0 may: SGDT SIDT SLDT SMSW STR, PUSHF POPF, LAR LSL VERR VERW, POP PUSH MOV of segments, CALL JMP INT RET."""
    m = Rig(32, 3)
    m["rflags"] = IF | 2
    m["ldtr.sel"] = 0x48
    m.load(END, at=CODE + 0x200)
    trap = m.catch(f"""sgdt [0x6000]; sidt [0x6008]; sldt eax; mov [0x6010], eax; smsw eax; mov [0x6014], eax; str eax; mov [0x6018], eax
        pushfd; pop dword ptr [0x601c]; push 0x3002; popfd; pushfd; pop dword ptr [0x6020]
        push ds; pop es; mov eax, cs; mov [0x6024], eax
        mov eax, {CODE3}; lar ebx, eax; lsl ecx, eax; verr ax; setz dl; verw ax; setz dh
        .byte 0x9a; .long next; .word {CODE3}; jmp over; next: retf
        over: .byte 0xea; .long {CODE + 0x200}; .word {CODE3}""")
    assert trap.what == DONE
    assert struct.unpack("<HI", m.read(0x6000, 6)) == (0x1ff, GDT) and struct.unpack("<HI", m.read(0x6008, 6)) == (0x7ff, IDT)
    assert m.word(0x6010, 4) == 0x48 and m.word(0x6014, 4) == m["cr0"] and m.word(0x6018, 4) == TR
    assert m.word(0x601c, 4) == IF | 2, "PUSHF shows IF"
    assert m.word(0x6020, 4) == IF | 2, "POPF silently keeps IF and IOPL"
    assert m.word(0x6024, 4) == CODE3
    assert (m["rbx"], m["rcx"], m["rdx"] & 0xffff) == (0xcffb00 & 0xf0ff00, 0xffffffff, 1)


def test_rdtsc_rules() -> None:
    """Wrong: RDTSC ignores CR4.TSD at level 3 or keeps it at level 0; RDTSCP does not show TSC_AUX; a written TSC is not what is read."""
    m = Rig(64, 3)
    m["tsc_aux"] = 42
    assert m.catch(f"rdtsc; mov ebx, eax; rdtscp; {END}").what == DONE and m["rcx"] == 42 and m["rax"] > m["rbx"]
    for source in ("rdtsc", "rdtscp"):
        m = Rig(64, 3)
        m["cr4"] |= 4
        assert m.catch(source).what == (GP, 0)
    m = Rig(64)
    m["cr4"] |= 4
    assert m.catch(f"rdtsc; {END}").what == DONE
    assert m.catch(f"mov ecx, 0x10; xor eax, eax; mov edx, 5; wrmsr; rdtsc; {END}").what == DONE and m["rdx"] == 5


def cpuid(leaf: int, subleaf: int = 0, without: int = 0) -> list[int]:
    m = Rig(64)
    m["features"] &= ~without
    m["rax"], m["rcx"] = leaf, subleaf
    assert m.catch(f"cpuid; {END}").what == DONE
    return [m[r] for r in ("rax", "rbx", "rcx", "rdx")]


def test_cpuid() -> None:
    """Wrong: CPUID offers what decode does not take (a feature taken away must go from it), or its shape is not Intel's."""
    vendor = cpuid(0)
    assert vendor[0] == 7 and struct.pack("<III", vendor[1], vendor[3], vendor[2]) == b"GenuineIntel"
    _, _, ecx, edx = cpuid(1)
    assert edx & 1 << 6 and edx & 1 << 15 and edx & 1 << 8, "PAE, CMOV, CMPXCHG8B"
    for bit in (3, 5, 12, 26, 27, 28, 30, 31):
        assert not ecx >> bit & 1, "MONITOR, VMX, FMA, XSAVE, OSXSAVE, AVX, RDRAND, a hypervisor"
    popcnt = 1 << 8
    assert ecx >> 23 & 1 and not cpuid(1, without=popcnt)[2] >> 23 & 1
    m = Rig(64)
    m["features"] &= ~popcnt
    assert m.catch("popcnt eax, eax").vector == UD
    assert cpuid(7)[1] == 1 << 3 | 1 << 8 | 1 << 19 and cpuid(7, 1) == [0, 0, 0, 0]
    assert cpuid(0x80000000)[0] == 0x80000008 and cpuid(0x80000008)[0] == 48 << 8 | 40
    assert cpuid(0x80000001)[3] == 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29
    assert b"".join(struct.pack("<4I", *cpuid(leaf)) for leaf in range(0x80000002, 0x80000005)).rstrip(b"\0") == b"xenlike x86-64 interpreter"
    assert cpuid(0x40000000) == cpuid(7), "beyond the last leaf"


def test_external_interrupt_wakes_and_respects_if() -> None:
    """Wrong: an interrupt does not end HLT, is taken with IF clear, or is delivered as a software interrupt (the gate's DPL counts)."""
    m = Rig(64, 0)
    m.set_gate(0x40, dpl=0)
    m["rflags"] = 2
    m.start("hlt; nop; sti; nop; nop")
    assert m.go() == HALTED
    lib.xl_bare_interrupt(m.c, 0x40)
    assert m.go() == HALTED and m["rip"] == CODE + 1
    m["rflags"] = IF | 2
    assert m.go() == HALTED and m.frame()[:3] == (0x40, None, CODE + 1)
    assert not m.frame().rflags & RF


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([16, 32, 64]), st.sampled_from([0, 3]))
def test_hostile_tables(rng: random.Random, bits: int, cpl: int) -> None:
    """Wrong: garbage in the GDT, IDT, TSS and page tables, with code that uses them, makes the host crash, hang, or break the CPU's own rules."""
    m = Rig(bits, cpl if bits != 16 else 0)
    for at, n in ((GDT + 8, 0x1f8), (IDT, 0x1000), (TSS, 0x68), (0x6000, 0x100)):
        for _ in range(rng.randrange(12)):
            m.write(at + rng.randrange(n - 8), rng.randbytes(rng.randrange(1, 9)))
    pieces = [b"\x8e\xd8", b"\x8e\xd0", b"\x8e\xe0", b"\xcf", b"\x48\xcf", b"\xcb", b"\xcd\x30", b"\xff\x2d\0\0\0\0", b"\x0f\x00\xd8",
              b"\x0f\x00\xd0", b"\x0f\x22\xc0",
              b"\x0f\x22\xe0", b"\x0f\x30", b"\x0f\x05", b"\x0f\x34", b"\x0f\x35", b"\x48\x0f\x07", b"\x0f\x0b", b"\xf1",
              b"\x0f\x02\xc8", b"\x66\xcf", b"\xec"]
    for _ in range(20):
        code = b"".join(b"\xb8" + rng.randbytes(4) * (bits != 16) + rng.randbytes(2) * (bits == 16) + rng.choice(pieces) for _ in range(8))
        m.write(CODE, code)
        m["rip"] = CODE if bits != 16 else 0
        m["rsp"] = 0x6000 + rng.randrange(0x80)
        m["rflags"] = rng.getrandbits(22) & ~VM | 2 if bits != 64 else rng.getrandbits(17) | 2
        m.go(200)
        assert m["cpl"] <= 3 and m["mode"] in (16, 32, 64) and m["rflags"] & 2
        if m["shutdown"]:
            break
