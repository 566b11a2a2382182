"""The core of the interpreter on a bare machine: fetching, breakpoints, single-step, order of events, exact counts."""

from __future__ import annotations

import random

import pytest
from x86_kit import CF, DB, GP, IF, INSN, NX, PF, RF, TF, UD, Machine, P, W, assemble, map_page, needs_assembler

from xenlike.engine import ffi, lib

pytestmark = needs_assembler


# ---- fetching ----------------------------------------------------------------------------------------------------------

def test_instruction_across_pages() -> None:
    """An instruction at a page's end would take a fault of the next page that it does not need, or report a wrong address for one it does."""
    code = assemble("mov rax, 0x1122334455667788", bits=64)
    for first in range(1, len(code)):
        m = Machine()
        m.write(0x31000 - first, code[:first])
        m.write(0x40000, code[first:] + b"\xf4")
        map_page(m, 0x31000, 0)
        m["rip"] = 0x31000 - first
        assert m.trap() == (PF, INSN, 0x31000)
        assert (m["rip"], m["retired"]) == (0x31000 - first, 0)
        map_page(m, 0x31000, 0x40061 | NX)
        assert m.trap() == (PF, P | INSN, 0x31000)
        map_page(m, 0x31000, 0x40061)               # not the frame that follows: the bytes come by the mapping
        assert m.run() == "halted"
        assert m["rax"] == 0x1122334455667788
    for last in (b"\x90", b"\x0f\x0b", b"\x48\x89\xc3"):
        m = Machine()
        m.write(0x31000 - len(last), last)
        map_page(m, 0x31000, 0)
        m["rip"] = 0x31000 - len(last)
        assert m.trap() == ((UD, None, 0) if last == b"\x0f\x0b" else (PF, INSN, 0x31000))


def test_too_long_and_undefined() -> None:
    """Sixteen bytes would be executed, or #GP and #UD confused; what is undefined is counted."""
    m = Machine()
    m.write(0x1000, b"\x66" * 14 + b"\x90" + b"\x66" * 15 + b"\x90")
    m["rip"] = 0x1000
    assert m.trap() == (GP, 0, 0)
    assert (m["rip"], m["retired"]) == (0x100F, 1)
    m.write(0x100F, b"\x0f\x04")
    assert m.trap() == (UD, None, 0)
    assert m["undecoded"] == 1


@pytest.mark.parametrize("at", [0x1000, 0x1FF8, 0x1FFE])
def test_self_modifying_code(at: int) -> None:
    """A decoded instruction would outlive its bytes: changed by a store just before it, through another address, or by another page there."""
    m = Machine()
    m.code("mov ecx, 3\n again: mov eax, 1\n add ebx, eax\n inc byte ptr [rip + again + 1]\n dec ecx\n jnz again\n hlt", at=at)
    m.run()
    assert m["rbx"] == 1 + 2 + 3
    m = Machine()                                   # the same frame at 0x50000, written there
    map_page(m, 0x50000, 0x1067)
    m.code("mov ecx, 3\n again: mov eax, 1\n add ebx, eax\n inc byte ptr [again + 0x4f001]\n dec ecx\n jnz again\n hlt")
    m.run()
    assert m["rbx"] == 1 + 2 + 3
    m = Machine()                                   # another frame at the same address
    m.code("mov eax, 1\n ret", at=0x30000)
    m.code("mov eax, 2\n ret", at=0x31000)
    map_page(m, 0x30000, 0x30067)
    m.code(f"mov edi, 0x30000\n call rdi\n mov ebx, eax\n mov qword ptr [{0x20000 + 8 * 0x30}], 0x31067\n invlpg [rdi]\n call rdi\n hlt")
    m.run()
    assert (m["rbx"], m["rax"]) == (1, 2)


def test_same_bytes_in_other_modes() -> None:
    """A cached decode would be used for another code size, or for another privilege level."""
    m = Machine()
    m.write(0x3000, bytes.fromhex("b811223344"))    # mov eax, 0x44332211; 16-bit: mov ax, 0x2211
    for attr, rip, rax in ((0xA9B, 0x3005, 0x44332211), (0x09B, 0x3003, 0xFFFFFFFFFFFF2211), (0xC9B, 0x3005, 0x44332211)):
        m["cs.attr"], m["rip"], m["rax"] = attr, 0x3000, -1
        assert m.run(1) == "budget"
        assert (m["rip"], m["rax"]) == (rip, rax), hex(attr)
    m = Machine(64, 3)
    m.code("hlt")
    assert m.trap()[:2] == (GP, 0)
    m["cs.sel"], m["cpl"] = 8, 0
    assert m.run() == "halted"


# ---- debug registers and single-step -----------------------------------------------------------------------------------

def test_instruction_breakpoint_is_a_fault() -> None:
    """The instruction would run before its breakpoint, DR6 or RF be wrong, or RF not let it pass the second time."""
    m = Machine(deliver=True)
    m.gate(1, 0x2000)
    m.code("inc edi\n inc esi\n hlt")
    m["dr1"], m["dr7"] = 0x1002, 0x404
    m.code("mov rax, [rsp]\n mov rbx, [rsp + 16]\n mov rcx, dr6\n or dword ptr [rsp + 16], 0x10000\n inc ebp\n iretq", at=0x2000, enter=False)
    assert m.run() == "halted"
    assert (m["rax"], m["rdi"], m["rsi"], m["rbp"]) == (0x1002, 1, 1, 1)
    assert m["rbx"] & RF == 0 and m["rcx"] & 0xF == 2
    assert m["rflags"] & RF == 0                    # lasts for one instruction


def test_data_breakpoints_are_traps() -> None:
    """Reported before the access, at the wrong addresses, or for reads where only writes were wanted (vol. 3, table 17-2)."""
    #       R/W  LEN  access                          hits
    table = [(1, 3, "mov [0x4003], al", True), (1, 3, "mov [0x4004], al", False), (1, 3, "mov al, [0x4000]", False), (3, 3, "mov al, [0x4000]", True),
             (3, 0, "mov eax, [0x3ffd]", True), (3, 0, "mov eax, [0x3ffc]", False), (1, 2, "mov [0x4007], al", True), (1, 3, "lock inc dword ptr [0x4000]", True),
             (1, 3, "push rax", True), (3, 3, "lea rax, [0x4000]", False), (1, 3, "stosb", True), (1, 3, "movups [0x3ff4], xmm0", True)]
    for kind, length, access, hits in table:
        m = Machine(deliver=True)
        m.gate(1, 0x2000)
        m["dr2"], m["dr7"] = 0x4000, 0x420 | (kind | length << 2) << 24
        m["rdi"], m["rsp"] = 0x4000, 0x4008
        m.code(f"{access}\n after: hlt")
        m.code("mov rcx, dr6\n mov rax, [rsp]\n mov ebx, 0x1234\n hlt", at=0x2000, enter=False)
        assert m.run() == "halted"
        assert (m["rbx"] == 0x1234) is hits, access
        if hits:
            assert m["rcx"] & 0xF == 4 and m["rax"] == 0x1000 + len(assemble(access, bits=64)), access


def single_steps(source: str, *, setup: str = "", budget: int = 500) -> list[int]:
    """Runs with TF set by popf; the return addresses that a handler of #DB found, with BS in DR6."""
    m = Machine(deliver=True)
    m.gate(1, 0x2000), m.gate(0x20, 0x2800)
    m.put(0x9000, 0x9008)
    m.code(f"{setup}\n pushfq\n or dword ptr [rsp], 0x100\n popfq\n nop\n start:\n {source}\n out 0xf4, al")
    m.code("push rax\n push rbx\n mov rax, [rsp + 16]\n mov rbx, [0x9000]\n mov [rbx], rax\n mov rax, dr6\n and eax, 0x4000\n or [rbx], rax\n add rbx, 8\n"
           "mov [0x9000], rbx\n xor eax, eax\n mov dr6, rax\n pop rbx\n pop rax\n iretq", at=0x2000, enter=False)
    m.code("iretq", at=0x2800, enter=False)
    assert m.run(budget) == "stopped"
    start = 0x1000 + len(assemble(f"{setup}\n pushfq\n or dword ptr [rsp], 0x100\n popfq\n nop"))
    rips = [m.word(0x9008 + 8 * n) for n in range((m.word(0x9000) - 0x9008) // 8)]
    assert all(rip & 0x4000 for rip in rips)
    return [(rip & ~0x4000) - start for rip in rips]


def test_single_step() -> None:
    """A trap too many or too few: the instruction that sets TF is not traced, the one that clears it is; mov ss and its successor are one;
    a repeated string instruction stops after each iteration; int n is not followed by a trap."""
    assert single_steps("nop\n nop") == [0, 1, 2]
    assert single_steps("pushfq\n and dword ptr [rsp], ~0x100\n popfq\n nop\n nop") == [0, 1, 8, 9]
    assert single_steps("mov ss, eax\n nop\n nop", setup=f"mov eax, {lib.XL_BARE_DS0}") == [0, 3, 4]
    assert single_steps("rep stosb\n nop", setup="mov ecx, 3\n mov edi, 0xa000") == [0, 0, 0, 2, 3]
    assert single_steps("int 0x20\n nop") == [0, 3]         # iretq with TF set: the trap is after the nop
    assert single_steps("sti\n nop") == [0, 1, 2]           # sti's shadow is for interrupts alone


def test_single_step_stops_precisely() -> None:
    """Under TF, where exceptions stop the run, each instruction would not be one stop with rip behind it."""
    m = Machine()
    m["rflags"] = m["rflags"] | TF
    m.code("nop\n inc eax\n jmp over\n nop\n over: hlt")
    for rip in (0x1001, 0x1003, 0x1006):
        assert m.trap() == (DB, None, 0x4000)
        assert m["rip"] == rip


# ---- interrupts --------------------------------------------------------------------------------------------------------

def test_interrupts_wait_for_if_and_shadows() -> None:
    """Taken with IF clear, or between sti or mov ss and the next instruction: `sti; hlt` would sleep for ever."""
    for source, at in (("nop\n sti\n nop\n nop\n hlt", 0x1003), ("sti\n hlt", 0x1002), ("mov ss, eax\n nop\n hlt", 0x1003)):
        m = Machine(deliver=True)
        m.gate(0x40, 0x2000)
        m["rax"] = lib.XL_BARE_DS0
        m.code(source)
        m.code("mov rbx, [rsp]\n mov ecx, 0x1234\n hlt", at=0x2000, enter=False)
        if "sti" not in source:
            m["rflags"] = m["rflags"] | IF
            m.run(1)                                # mov ss; then the interrupt comes
        m.interrupt(0x40)
        assert m.run() == "halted"
        assert (m["rcx"], m["rbx"]) == (0x1234, at), source
        assert not m["rflags"] & IF


def test_halted_until_an_interrupt() -> None:
    """A halted CPU would go on by itself, or not wake."""
    m = Machine(deliver=True)
    m.gate(0x40, 0x2000)
    m.code("hlt\n mov eax, 1\n hlt")
    m.code("iretq", at=0x2000, enter=False)
    m["rflags"] = m["rflags"] | IF
    assert m.run() == m.run() == "halted"
    assert m["retired"] == 1
    m.interrupt(0x40)
    assert m.run() == "halted"
    assert (m["rax"], m["retired"]) == (1, 4)


def test_triple_fault_shuts_down() -> None:
    """No IDT, no double fault handler: the run would not end."""
    m = Machine(deliver=True)
    m["idtr.limit"] = 0
    m.code("ud2")
    assert m.run() == m.run() == "shutdown"
    assert m["retired"] == 0


# ---- counts ------------------------------------------------------------------------------------------------------------

PROGRAM = """
    mov ecx, 50
again:
    add eax, ecx
    imul ebx, eax, 17
    push rbx
    mov rdx, [rsp]
    pop rsi
    test ecx, 3
    jnz skip
    div r8d
skip:
    ud2
    dec ecx
    jnz again
    hlt
"""


def faulting_program() -> Machine:
    """PROGRAM with handlers that step over #DE and #UD."""
    m = Machine(deliver=True)
    m.gate(0, 0x2000), m.gate(6, 0x2100)
    m.code("add qword ptr [rsp], 3\n iretq", at=0x2000, enter=False)
    m.code("add qword ptr [rsp], 2\n iretq", at=0x2100, enter=False)
    m.code(PROGRAM)
    return m


def state(m: Machine) -> tuple[bytes, int, int]:
    regs = ffi.new("u64[18]")
    lib.xl_bare_get_regs(m.c, regs)
    return bytes(ffi.buffer(regs)), m["retired"], m["slow"]


def test_budget_is_exact_however_it_is_cut() -> None:
    """Counts or results would depend on where x86_run returns: replay and the virtual clock rest on that."""
    whole = faulting_program()
    assert whole.run(10**6) == "halted"
    faults, loops = 50 + 12, 50
    assert whole["retired"] == 1 + loops * 9 + 2 * faults + 1
    rng = random.Random(3)
    for _ in range(5):
        m, used = faulting_program(), 0
        while (exit := m.run(step := rng.randrange(1, 9))) == "budget":
            used += step
        assert exit == "halted" and state(m) == state(whole)
        assert used <= whole["retired"] + faults < used + 9     # a delivery is one unit as well
    m = faulting_program()
    assert m.run(0) == "budget" and m["retired"] == 0
    assert m.run(100) == "budget" and m["retired"] <= 100


def test_instructions_before_the_budget_are_all_there() -> None:
    """x86_run(n) of straight code would run n - 1 or n + 1."""
    m = Machine()
    m.write(0x1000, b"\xff\xc0" * 100)              # inc eax
    m["rip"] = 0x1000
    for n in (1, 7, 40):
        before = m["rax"]
        assert m.run(n) == "budget"
        assert (m["rax"] - before, m["rip"]) == (n, 0x1000 + 2 * m["rax"])


def test_faulting_loop_uses_its_budget() -> None:
    """A guest whose handler faults at once, for ever, would hold the host's thread."""
    m = Machine(deliver=True)
    m.gate(6, 0x1000)
    m["rsp"] = 0xE0000
    m.code("ud2")
    assert m.run(1000) == "budget"
    assert m["retired"] == 0


def test_cached_and_uncached_runs_agree() -> None:
    """The decode cache would change what a program does."""
    results = []
    for options in (0, lib.XL_BARE_NO_ICACHE):
        m = faulting_program()
        lib.xl_bare_options(m.c, options)
        m.run(10**6)
        results.append(state(m))
    assert results[0] == results[1]


# ---- the bare machine --------------------------------------------------------------------------------------------------

def test_ports_and_regions() -> None:
    """Output would be lost, the exit code wrong, or host memory appear at another address or with other rights than asked for."""
    m = Machine()
    m.code("mov al, 'h'\n out 0xe9, al\n mov al, 'i'\n out 0xe9, al\n mov al, 3\n out 0xf4, al\n ud2")
    assert m.run() == "stopped"
    code = ffi.new("u64 *")
    assert m.output() == b"hi" and lib.xl_bare_exited(m.c, code) and code[0] == 3

    m = Machine()
    memory = ffi.new("unsigned char[]", 4 * 4096)
    start = (int(ffi.cast("uintptr_t", memory)) + 4095) & ~4095
    page = ffi.cast("unsigned char *", start)
    program = assemble("mov byte ptr [rip + 0x1ff9], 7\n mov al, [rip + 0x1ff3]\n mov [rip], al", at=0)
    ffi.memmove(page, program, len(program))
    assert lib.xl_bare_map(m.c, 0x700000000000, page, 4096, 5) == 0
    assert lib.xl_bare_map(m.c, 0x700000002000, page + 8192, 4096, 3) == 0
    assert lib.xl_bare_map(m.c, 0x700000000001, page, 4096, 5) < 0
    m["rip"] = 0x700000000000
    assert m.trap() == (PF, P | W, 0x700000000000 + len(program))
    assert page[8192] == 7 and m["rax"] & 0xFF == 7


def test_flags_of_setup() -> None:
    """A flat mode would not be what it says: sizes of pushes, privileges, reserved flags."""
    for bits, cpl, size in ((16, 0, 2), (32, 0, 4), (32, 3, 4), (64, 0, 8), (64, 3, 8)):
        m = Machine(bits, cpl)
        m.code("pushf\n stc\n ud2" if bits != 64 else "pushfq\n stc\n ud2")
        assert m.trap()[0] == UD
        assert lib.XL_BARE_STACK - m["rsp"] == size and m["rflags"] & CF and m["cpl"] == cpl and m["mode"] == bits
