"""System instructions in the translator, in line and called out, against the interpreter: all state of the CPU, after every number of instructions.

The machine of plain RAM runs the same program on both; interrupts come at the same places, and what is compared has rflags, the shadow of sti (in
``slow``), segments, control registers, memory and the count of instructions in it. Translations are checked by the verifier as they are made.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_code import GS, Code, add32, edit, nops, record
from bt_code import machine as plain_machine
from bt_kit import MARKS, VERIFIED, VERIFY, stats, trap
from x86_kit import AC, DB, GP, IF, NM, NP, PF, SS, TS, UD, Machine

from xenlike.engine import lib

pytestmark = MARKS
STATE = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired", "slow", "cpl", "cr0", "cr2",
         "cr3", "cr4", "cr8", "efer", "kernel_gs_base", "halted", "pending_db",
         *(f"{s}.{part}" for s in ("es", "cs", "ss", "ds", "fs", "gs") for part in ("sel", "base", "attr"))]
HANDLER, DEAD, LOG, STACK = 0x4000, 0x4800, 0x9000, 0x8000
ENGINES = ("bt", "interp")

# What comes in, and from where: a byte each of rip and of the flags' second byte, in the order of arrival.
LOGGING = f"""
    push rax
    push rbx
    mov rbx, [{LOG}]
    mov rax, [rsp + 16]
    mov [rbx + {LOG} + 8], al
    mov rax, [rsp + 32]
    mov [rbx + {LOG} + 9], ah
    add rbx, 2
    and rbx, 0xfff
    mov [{LOG}], rbx
    pop rbx
    pop rax
    iretq
"""
LOGGING32 = LOGGING.replace("rsp + 16", "esp + 8").replace("rsp + 32", "esp + 16").replace("iretq", "iretd").replace("rax", "eax").replace("rbx", "ebx")


NAMES = {f"{s}_{part}": f"{s}.{part}" for s in ("fs", "gs") for part in ("sel", "base")}


def machine(engine: str, source: str, options: int = VERIFY, *, bits: int = 64, cpl: int = 0, deliver: bool = True,
            **state: int) -> Machine:
    m = Machine(bits, cpl, engine=engine, options=options, deliver=deliver)
    for vector in (0x30, 0x40):
        m.gate(vector, HANDLER, dpl=3)
    for vector in (AC, DB, UD, NM, TS, NP, SS, GP, PF):
        m.gate(vector, DEAD)
    m.code("1: hlt; jmp 1b", at=DEAD)
    m.code(LOGGING if bits == 64 else LOGGING32, at=HANDLER)
    m.code(source)
    m["rsp"] = STACK
    for name, value in state.items():
        m[NAMES.get(name, name)] = value
    return m


def outcome(m: Machine, budget: int) -> tuple[object, ...]:
    end = m.run(budget)
    return end, trap(m), {name: m[name] for name in STATE}, m.read(0x7000, 0x3000), m.output()


def same(source: str, options: int = VERIFY, *, budgets: tuple[int, ...] = (5000,), interrupts: bool = False, **how: int) -> Machine:
    """Both engines come to the same state after each of the budgets; an interrupt is raised between two. The translator's machine."""
    machines = [machine(engine, source, options if engine == "bt" else 0, **how) for engine in ENGINES]
    for budget in budgets:
        bt, interp = (outcome(m, budget) for m in machines)
        assert bt == interp, budget
        for m in machines if interrupts else ():
            m.interrupt(0x40)
    assert stats(machines[0]).translated > 0 and stats(machines[0]).rejected == 0
    return machines[0]


# ---- one by one ------------------------------------------------------------------------------------------------------

ANYWHERE = ["cld", "std; cld", "pushfq; pop rax", "pushfq; popfq", "mov eax, ds", "mov rcx, ss", "mov r13, cs", "push fs; pop rax", "push gs; pop r14", "sldt eax",
            "sldt r13", "str ecx", "str r15", "smsw edx", "smsw r14"]
LEVEL_0 = ["cli", "sti; nop", "cli; sti; nop; cli", "push 0x46; popfq", "push 0x247; popfq", "push 0xad7; popfq", "push 0x402; popfq; cld", "mov rax, cr0",
           "mov r13, cr2", "mov rcx, cr3", "mov r15, cr4", "mov rsp, cr8; mov rsp, 0x8000", "swapgs", "swapgs; mov rax, gs:[0]; swapgs"]


@pytest.mark.parametrize("source,cpl", [*((s, 0) for s in LEVEL_0 + ANYWHERE), *((s, 3) for s in ANYWHERE)])
def test_an_instruction_in_line_does_what_the_interpreter_does(source: str, cpl: int) -> None:
    """Wrong: a register, a flag or a field of the CPU differs behind it; or it is not done in line at all, which nobody would see but by time."""
    for flags in (2, 2 | IF, 0xad7, 0x8d7 | 0x400, 0x3202, 0x202000):
        m = same("mov rbp, rsp; add r8, r9; " + source + "; jmp 1f; 1: hlt", cpl=cpl, deliver=False, rflags=flags, kernel_gs_base=0x9000, gs_base=0xa000, cr2=0x1234,
                 cr8=5, r8=2**63 + 7, r9=2**63 + 9)
        # popf that changes IOPL or ID is called out; so is hlt. An access that the TLB does not have yet begins again.
        assert flags & 0x203000 or stats(m).interpreted <= 1, source


FAR = "lea rax, [rip + 2f]; mov [0x9800], rax; mov word ptr [0x9808], cs; "       # where a far transfer by 0x9800 leads: rex.w call, jmp
NOT_IN_LINE = ["push 0x302; popfq; nop; nop", "push 0x4002; popfq; nop", "push 0x40002; popfq; nop", "push 0x200002; popfq; nop", "push 0x3002; popfq; nop",
               "pushfw; popfw; nop", "cli; nop", "sti; nop", "mov cr8, rax; mov rbx, cr8", "mov rax, cr0", "swapgs", "mov word ptr [0x9800], ds", "smsw word ptr [0x9800]",
               "mov rax, cr3; mov cr3, rax; mov rbx, [0x9000]", "rdtsc; rdtsc; mov r13, rax", "cpuid; mov r14, rdx", "sgdt [0x9800]; sidt [0x9810]", "in al, 0x71; nop",
               "mov al, 'x'; out 0xe9, al; nop", "hlt", "invlpg [0x9000]; mov rax, [0x9000]", "mov ecx, 0xc0000101; rdmsr; wrmsr; mov rax, gs:[0]", "int 0x30; nop",
               "clts; nop", "mov eax, ds; mov ds, eax; nop", "mov eax, ss; mov ss, eax; nop; nop", "mov eax, 0x1234; mov fs, eax", "lar eax, ecx; jz 2f; nop; 2:",
               "verr cx; setz al", "lsl eax, ecx; jz 2f; nop; 2:", "mov ecx, ds; lsl eax, ecx; lar edx, ecx; setz bl",
               "mov ecx, ds; verw cx; setz al", "mov ecx, cs; verw cx; setz al",
               "mov eax, ds; push rax; pop fs; push rax; pop gs; mov rbx, gs:[0]", "push 0; pop fs; nop", "push 0x1234; pop gs; nop",
               f"{FAR}.byte 0x48, 0xff, 0x1c, 0x25, 0, 0x98, 0, 0; 2: pop rax; pop rbx",
               f"{FAR}.byte 0x48, 0xff, 0x2c, 0x25, 0, 0x98, 0, 0; nop; 2: nop",
               "mov eax, cs; push rax; lea rax, [rip + 2f]; push rax; .byte 0x48, 0xcb; nop; 2: nop",
               "push 0x1234; push rax; .byte 0x48, 0xcb; nop", "sgdt [0x9801]; sidt [0x9ffc]", "rep movsb",
               "mov rax, 0x8000000000000000; push rax; popfq", "sysretq", "syscall", "iretq", "ud2", "mov rax, cr7",
               "mov rsp, 0x123456789; pushfq", "mov rsp, 0x123456789; popfq", "mov rsp, 0x8ffc; pushfq; popfq",
               "mov rsp, 0x8000800000000000; popfq", "push 0x246; popfq; int3"]


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("source", NOT_IN_LINE)
def test_what_is_called_out_faults_and_changes_as_in_the_interpreter(source: str, cpl: int) -> None:
    """Wrong: rules by level (IOPL 0 and 3), faults with their rip and error code, TF, the shadow of mov ss, or state that others use afterwards."""
    for flags in (2 | IF, 0x3002 | 0x8d5):
        for budgets in ((50,), (1,) * 6):
            same("add r8, r9; " + source + "; mov rbp, [0x9000]; jmp 1f; 1: hlt", budgets=budgets, cpl=cpl, deliver=False, rflags=flags, r8=2**63 + 7, r9=2**63 + 9,
                 rsi=0x7000, rdi=0x7100, rcx=5)


# ---- interrupts ------------------------------------------------------------------------------------------------------

OPENINGS = {
    "sti": "cli; nop; sti; inc rbx; inc rbx; cli",
    "sti twice": "cli; sti; sti; inc rbx; cli",
    "sti, then a branch": "cli; sti; jmp 2f; 2: inc rbx; cli",
    "sti, then a call": "cli; sti; call 3f; inc rbx; cli",
    "sti, then a return": "cli; lea rax, [rip + 2f]; push rax; sti; ret; 2: inc rbx; cli",
    "sti, then a miss": "cli; sti; mov rax, [0x7ff8]; inc rbx; cli",
    "sti, then a called out one": "cli; sti; verr ax; inc rbx; cli",
    "sti, then a system call's way": "cli; sti; int 0x30; inc rbx; cli",
    "sti and cli": "cli; sti; cli; inc rbx",
    "sti behind a branch not taken": "cli; sti; jc 2f; inc rbx; 2: cli",
    "popf": "cli; pushfq; or dword ptr [rsp], 0x200; popfq; inc rbx; inc rbx; cli",
    "popf that closes": "pushfq; and dword ptr [rsp], ~0x200; popfq; inc rbx; sti; inc rbx",
    "iret": "cli; mov rdi, rsp; push 0x10; push rdi; pushfq; or dword ptr [rsp], 0x200; push 8; lea rax, [rip + 2f]; push rax; iretq; 2: inc rbx; cli",
    "mov cr8": "cli; xor eax, eax; mov cr8, rax; sti; nop; cli",
    "sti, then mov ss": "cli; mov eax, ss; sti; mov ss, eax; inc rbx; inc rbx; cli",
}


def rounds(n: int, body: str) -> str:
    return f"mov ebp, {n}\n1: {body}\ndec ebp\njnz 1b\ncli\nhlt\n3: ret".replace("; ", "\n")


def interrupts_wait_alike(body: str, options: int, bits: int = 64) -> None:
    for first in range(1, 24, 1 if options == VERIFY else 5):
        same(rounds(3, body), options, bits=bits, budgets=(first, 7, 1, 1, 60, 300), interrupts=True)


def budgets_leave_the_shadow(body: str, bits: int = 64) -> None:
    for step in (1, 2, 3, 7):
        same(rounds(40, body), bits=bits, budgets=(step,) * 20)
        same(rounds(40, body), bits=bits, budgets=(67, *(step,) * 12), interrupts=True)


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("opening", OPENINGS)
def test_an_interrupt_waits_for_the_same_instruction(opening: str, options: int) -> None:
    """Wrong: an interrupt that waits with IF clear, or is raised after any number of instructions, comes in an instruction early (in the shadow of sti)
    or late (no look behind sti, popf, iret)."""
    interrupts_wait_alike(OPENINGS[opening], options)


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_budget_that_ends_in_the_shadow_leaves_it(opening: str) -> None:
    """Wrong: a run that is cut between sti and the next instruction forgets the shadow, so that what is raised meanwhile comes too early."""
    budgets_leave_the_shadow(OPENINGS[opening])


# ---- ways between levels ---------------------------------------------------------------------------------------------

#: What flags and selectors are, in r8 and r9.
SHOWN = """
    pushfq
    pop r10
    add r9, r10
    mov eax, ss
    mov edx, cs
    lea r8, [r8 + rax * 8]
    lea r8, [r8 + rdx]
"""
ROUND_TRIP = """
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    lea rcx, [rip + user]
    mov r11d, {flags}
    mov rbx, rsp
    mov rsp, 0x7800
    sysretq
user:
    mov r12d, 25
1:  {enter}
    add r15, r12
    dec r12
    jnz 1b
    hlt
kernel:
    swapgs
    mov r14, gs:[0]
    adc r13, r14
""" + SHOWN + """
    swapgs
    sysretq
"""


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("flags", [0x2, 0x202, 0xed7])
@pytest.mark.parametrize("enter", ["syscall", "int 0x30", "syscall; int 0x30"])
def test_round_trips_between_levels(enter: str, flags: int, options: int) -> None:
    """Wrong: a way in or out goes to another place, with other flags, or to a translation for the other level."""
    source = ROUND_TRIP.format(flags=flags, enter=enter)
    at = Machine(64)                    # where `kernel` is
    at.code(source)
    code = at.read(0x1000, 0x100)
    kernel = 0x1000 + code.index(b"\x0f\x01\xf8")
    m = same(source, options, budgets=(7, 11, 13, 2000), star=0x08 << 32 | 0x1b << 48, lstar=kernel, sfmask=0x600, kernel_gs_base=0x9000, gs_base=0xa000)
    if options == VERIFY and enter == "syscall":
        watched = 8 * 14                # the loop, before it is made anew
        assert stats(m).interpreted < 50 + watched, "light_call does most of 25 system calls and returns"


IRETS = """
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    mov r12d, {rounds}
again:
    mov esi, {cs0}
    mov edi, 0x7800
    mov r14d, {ss0}
    cmp r12d, {late}
    ja 2f
    mov esi, {cs}
    mov rdi, {rsp}
    mov r14d, {ss}
    {before}
2:  push r14
    push rdi
    pushfq
    cmp r12d, {late}
    ja 3f
    {flags}
3:  push rsi
    lea rax, [rip + there]
    push rax
    cmp r12, r13
    iretq
there:
    setc bl
""" + SHOWN + """
    mov eax, ds
    lea r8, [r8 + rax * 2]
    add r11, rsp
    mov rax, [0x9001]
    {back}
    .org 0x180
    mov rsp, {stack}
    cli
    dec r12
    jnz again
    hlt
"""
USER, KERNEL = {"cs": 0x1b, "ss": 0x23, "back": "syscall"}, {"cs": 8, "ss": 0x10, "back": "jmp 0x1180"}
GDT = "sgdt [0x9800]; mov rbx, [0x9802]; "
OUTER = "mov eax, 0x23; mov ds, eax; mov es, eax; mov fs, eax; mov gs, eax; "
LEVEL_1 = {"cs": 0x19, "ss": 0x21, "before": OUTER + GDT + "mov byte ptr [rbx + 0x1d], 0xbb; mov byte ptr [rbx + 0x25], 0xb3"}
#: What differs from the usual, and whether it is done without the interpreter all the same.
IRET_CASES = {
    "to level 3": (USER, True), "to level 0": (KERNEL, True), "to level 0 without a stack segment": (KERNEL | {"ss": 0}, True),
    "other flags": (USER | {"flags": "mov dword ptr [rsp], 0xed7"}, True), "IOPL, ID and AC": (USER | {"flags": "or dword ptr [rsp], 0x243000"}, True),
    "AC without AM": (USER | {"flags": "or dword ptr [rsp], 0x40000"}, True),
    "IF": (USER | {"flags": "or dword ptr [rsp], 0x200"}, True), "IF, at level 0": (KERNEL | {"flags": "or dword ptr [rsp], 0x200"}, True),
    "AM without AC": (USER | {"before": "mov rax, cr0; bts rax, 18; jc 1f; mov cr0, rax; 1:"}, True),
    "AM and AC": (USER | {"before": "mov rax, cr0; bts rax, 18; jc 1f; mov cr0, rax; 1:", "flags": "or dword ptr [rsp], 0x40000"}, False),
    "AM and AC, at level 0": (KERNEL | {"before": "mov rax, cr0; bts rax, 18; jc 1f; mov cr0, rax; 1:", "flags": "or dword ptr [rsp], 0x40000"}, True),
    "TF": (USER | {"flags": "or dword ptr [rsp], 0x100"}, False), "RF": (USER | {"flags": "or dword ptr [rsp], 0x10000"}, False),
    "NT, taken": (USER | {"flags": "or dword ptr [rsp], 0x4000"}, True), "VM in the image": (USER | {"flags": "or dword ptr [rsp], 0x20000"}, True),
    "NT, of level 0": (USER | {"before": "pushfq; or dword ptr [rsp], 0x4000; popfq"}, False),
    "a data segment of level 0": (USER | {"before": "mov eax, 0x10; mov ds, eax"}, False),
    "a data segment of level 3": (USER | {"before": "mov eax, 0x23; mov ds, eax; mov es, eax"}, False),
    "to level 1": (USER | LEVEL_1, False), "to level 1, where level 0 has been": (KERNEL | LEVEL_1, False),
    "to another level than the descriptor's": (USER | {"cs": 0x19, "ss": 0x21}, False), "another level's selector": (USER | {"cs": 0x18}, False), "no code": (USER | {"cs": 0x23}, False),
    "16-bit code": (USER | {"cs": 0x43}, False), "no selector": (USER | {"cs": 0}, False), "beyond the table": (USER | {"cs": 0x7fb}, False),
    "in the LDT": (USER | {"cs": 0x1f}, False), "a stack of another level": (USER | {"ss": 0x20}, False), "a stack that is code": (USER | {"ss": 0x1b}, False),
    "a null stack at level 3": (USER | {"ss": 3}, False), "a null stack of another level": (KERNEL | {"ss": 3}, False), "no stack in the table": (USER | {"ss": 0x7fb}, False),
    "code not marked": (USER | {"before": GDT + "and byte ptr [rbx + 0x1d], 0xfe"}, False), "a stack not marked": (USER | {"before": GDT + "and byte ptr [rbx + 0x25], 0xfe"}, False),
    "code not present": (USER | {"before": GDT + "and byte ptr [rbx + 0x1d], 0x7f"}, False), "a stack not present": (USER | {"before": GDT + "and byte ptr [rbx + 0x25], 0x7f"}, False),
    "a stack not writable": (USER | {"before": GDT + "and byte ptr [rbx + 0x25], 0xfd"}, False), "L and D": (USER | {"before": GDT + "or byte ptr [rbx + 0x1e], 0x40"}, False),
    "conforming code": (USER | {"before": GDT + "or byte ptr [rbx + 0x1d], 4"}, False), "a short table": (USER | {"before": GDT + "mov word ptr [0x9800], 0x1e; lgdt [0x9800]"}, False),
    "a stack with a base": (USER | {"before": GDT + "mov byte ptr [rbx + 0x22], 5; mov byte ptr [rbx + 0x27], 7"}, False),
    "a frame in two pages": (USER | {"stack": 0x9018}, False), "a frame at a page's end": (USER | {"stack": 0x9000}, True), "a frame that is not aligned": (USER | {"stack": 0x8ffd}, True),
    "a frame nowhere": (USER | {"before": "mov rsp, 0x123456789; iretq"}, False),
    "a stack pointer that is not canonical": (USER | {"rsp": "r15"}, True),
    "to where nothing is": (USER | {"flags": "push 0x1b; push r15; iretq"}, False),
}


def iret_source(rounds: int, how: dict[str, object], before: str = "", late: int = 1000) -> str:
    """late: only the last so many rounds are as ``how`` says, those before them as usual."""
    usual = USER if how["back"] == "syscall" else KERNEL
    values = {"before": before, "flags": "", "rsp": 0x7800, "stack": STACK, "rounds": rounds, "late": late, "cs0": usual["cs"], "ss0": usual["ss"]}
    return IRETS.format(**values | how).replace("; ", "\n")


IRET_STATE = {"star": 0x08 << 32 | 0x1b << 48, "lstar": 0x1180, "sfmask": 0x44700, "r15": 0x8000000000000000, "r13": 30}


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("case", IRET_CASES)
def test_iret(case: str, options: int) -> None:
    """Wrong: iret in a routine of translated code goes where the interpreter's would not, with other flags, segments or stack, or does what would fault."""
    how, quick = IRET_CASES[case]
    same(iret_source(60, how), options, budgets=(9, 1, 1, 23, 5000), **IRET_STATE)
    same(iret_source(60, how, late=3), options, budgets=(9, 1, 1, 23, 5000), **IRET_STATE)
    if options != VERIFY:
        return
    same(iret_source(5, how), options, budgets=(1,) * 150, **IRET_STATE)
    few, many = (stats(same(iret_source(rounds, how), options, budgets=(40000,), **IRET_STATE)).interpreted for rounds in (300, 700))
    assert not quick or many - few < 100, "the interpreter does most of them"


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("case", ["to level 3", "IF", "IF, at level 0", "to level 0"])
def test_iret_lets_interrupts_in(case: str, options: int) -> None:
    """Wrong: an interrupt that waits while IF is clear does not come where iret sets it, or comes where it does not."""
    for first in range(20, 60, 1 if options == VERIFY else 7):
        same(iret_source(60, IRET_CASES[case][0], "cli"), options, budgets=(first, 7, 1, 1, 60, 300, 33, 5000), interrupts=True, **IRET_STATE)


PAGES = """
    mov rax, [0x9000]
    mov rbx, [r8]
    mov [r8], rcx
    mov [r8 + 8], rbx
    mov [r9], r10
    {flush}
    mov rdx, [r8]
    mov [r8 + 16], rdx
    mov r13, [0x9000]
    call 1f
    hlt
1:  mov r14, [r8 + 8]
    {flush}
    mov r15, [r8 + 8]
    ret
"""


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("flush", ["invlpg [r8]", "invlpg [r8 + 0x800]", "mov rdi, cr3; mov cr3, rdi", "invlpg [r11]; invlpg [r8]", "mov rdi, cr4; xor rdi, 0x80; mov cr4, rdi"])
@pytest.mark.parametrize("large", [False, True])
def test_a_page_goes_elsewhere(flush: str, large: bool, options: int) -> None:
    """Wrong: after invlpg, or what flushes more, translated code still uses where the page was, a large page's pieces among them."""
    machines = []
    window, tables = 0x7_0020_0000, 0x60000
    for engine in ENGINES:
        m = machine(engine, PAGES.format(flush=flush), options if engine == "bt" else 0, deliver=False)
        root = m["cr3"]
        m.put(root + 8 * (window >> 39 & 511), m.word(root + 8 * (window >> 39 & 511)) or tables | 7)
        pdpt = m.word(root + 8 * (window >> 39 & 511)) & ~0xFFF
        m.put(pdpt + 8 * (window >> 30 & 511), tables + 0x1000 | 7)
        directory, table = tables + 0x1000 + 8 * (window >> 21 & 511), tables + 0x2000 + 8 * (window >> 12 & 511)
        m.put(directory, 0x87 if large else tables + 0x2000 | 7)
        m.put(table, 0x9007)
        # The tables are edited through the identity map; with a large page it becomes a table.
        m["r8"], m["r9"], m["r10"], m["r11"] = window, directory if large else table, tables + 0x2000 | 7 if large else 0xA007, 0x7000
        m["rcx"] = 0x1122
        m.put(0x0, 0x55), m.put(0x9000, 0x66), m.put(0xA000, 0x77)
        machines.append(m)
    bt, interp = (outcome(m, 200) for m in machines)
    assert bt == interp and bt[0] == "halted"
    assert machines[0]["rdx"] == (0x66 if large else 0x77) and stats(machines[0]).rejected == 0


@pytest.mark.parametrize("options", VERIFIED)
def test_two_pages_of_one_place_go_elsewhere(options: int) -> None:
    """Wrong: of two pages 2 MiB apart, which share a place in the translator's second table, invlpg of the one makes that of the other forget nothing."""
    machines = []
    window, tables = 0x7_0020_0000, 0x60000
    for engine in ENGINES:
        m = machine(engine, """
            mov ecx, 3
        1:  call 2f
            dec ecx
            jnz 1b
            mov qword ptr [r9 + 0x1000], 0xa007
            invlpg [r8 + 0x200000]
            mov qword ptr [r9], 0xa007
            invlpg [r8]
            call 2f
            hlt
        2:  mov rax, [r8]
            mov rdx, [r8 + 0x200000]
            ret
        """, options if engine == "bt" else 0, deliver=False)
        root = m["cr3"]
        m.put(root + 8 * (window >> 39 & 511), m.word(root + 8 * (window >> 39 & 511)) or tables | 7)
        pdpt = m.word(root + 8 * (window >> 39 & 511)) & ~0xFFF
        m.put(pdpt + 8 * (window >> 30 & 511), tables + 0x1000 | 7)
        for n in range(2):
            m.put(tables + 0x1000 + 8 * ((window >> 21 & 511) + n), tables + 0x2000 + 0x1000 * n | 7)
            m.put(tables + 0x2000 + 0x1000 * n + 8 * (window >> 12 & 511), 0x9007)
        m["r8"], m["r9"] = window, tables + 0x2000 + 8 * (window >> 12 & 511)
        m.put(0x9000, 0x66), m.put(0xA000, 0x77)
        machines.append(m)
    bt, interp = (outcome(m, 200) for m in machines)
    assert bt == interp and bt[0] == "halted"
    assert (machines[0]["rax"], machines[0]["rdx"]) == (0x77, 0x77) and stats(machines[0]).rejected == 0


# ---- any sequence ----------------------------------------------------------------------------------------------------

SNIPPETS = [*LEVEL_0, *ANYWHERE, "add rax, rcx", "cmp r8, r13", "adc r14, 7", "setc dl", "push rax; popfq", "mov [0x9800], rax", "jc 2f; inc rbx; 2:", "int 0x30",
            "lock xadd [0x9808], rcx", "out 0xe9, al", "in eax, 0x71", "mov eax, ds; mov es, eax", "mov rdi, cr3; mov cr3, rdi", "clts", "call 3f", "lar eax, ecx",
            "sgdt [0x9810]", "invlpg [0x9000]", "mov rdx, [0x7000]", "popcnt rcx, rax", "mov eax, ss; mov ss, eax"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=12), st.sampled_from([2, 2 | IF, 0xad7, 0x3606]), st.sampled_from([0, 0, 3]),
       st.sampled_from(VERIFIED), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_sequence_is_the_interpreters(snippets: list[str], flags: int, cpl: int, options: int, budgets: list[int]) -> None:
    """Wrong: state that one instruction leaves in another place than the interpreter, seen by a later one, a fault or an interrupt."""
    same(rounds(3, "\n".join(snippets)), options, budgets=(*budgets, 400), interrupts=True, cpl=cpl, rflags=flags, kernel_gs_base=0x9000, gs_base=0xa000)


# ---- the verifier ----------------------------------------------------------------------------------------------------

IN_LINE = "cli; sti; nop; std; cld; pushfq; popfq; mov rax, cr0; mov ecx, ds; swapgs; hlt"
CPU = r"\[r14 \+ 0x[0-9a-f]+\]"


def always(i: object, _c: Code) -> bytes:
    """jrcxz that always jumps."""
    return b"\xeb" + i.bytes[1:]


DEFECTS = {
    "cli clears another flag": edit(rf"pdep r15, r15, {GS}", add32(8)),
    "cli changes nothing": edit(rf"mov qword ptr {CPU}, r15", nops),
    "cli writes another field": edit(rf"mov qword ptr {CPU}, r15", add32(8)),
    "sti sets another flag": edit(r"lea r15, \[r15 \+ 0x200\]", add32(0x200)),
    "sti does not look for interrupts": edit(r"jrcxz", always),
    "sti looks at another field": edit(rf"mov ecx, dword ptr {CPU}", add32(4)),
    "sti does not note its shadow": edit(r"mov qword ptr gs:\[0x[0-9a-f]+\], r15", nops),
    "pushf shows the host's IF": edit(rf"pext r15, r15, {GS}", add32(8), nth=4),
    "pushf pops to another register": edit(r"pop r15", lambda i, c: b"\x41\x5e"),
    "pushf leaves the host's stack": edit(r"pop r15", nops),
    "popf does not compare": edit(r"jrcxz", always, nth=3),
    "popf does not look for interrupts": edit(r"jrcxz", always, nth=4),
    "popf compares less": edit(r"lea rcx, \[rcx \+ r15 \+ 1\]", lambda i, c: i.bytes[:-1] + b"\x02"),
    "popf takes IOPL": edit(rf"pdep r15, r15, {GS}", add32(-8), nth=5),
    "popf leaves the arithmetic flags": edit(r"sahf", nops),
    "popf without the overflow flag": edit(rf"pext r15, r15, {GS}", add32(-8), nth=7),
    "another control register": edit(rf"mov r15, qword ptr {CPU}", add32(16), nth=5),
    "another segment's selector": edit(rf"movzx r15d, word ptr {CPU}", add32(16)),
    "part of a selector's neighbour": edit(rf"movzx r15d, word ptr {CPU}", add32(2)),
    "swapgs does not tell translated code": edit(r"mov qword ptr gs:\[0x38\], rcx", nops),
    "swapgs forgets the kernel's base": edit(rf"mov qword ptr {CPU}, r15", nops, nth=4),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_verifier_sees_a_defect_of_what_is_in_line(name: str) -> None:
    """Wrong: an emitter with this defect would pass. Without one the same block must pass."""
    m = plain_machine(IN_LINE.replace("; ", "\n"), translate=True)
    m["rsp"] = STACK
    assert m.run(50) == "halted"
    code = Code(m)
    first = code.at(0x1000)
    assert code.why(first) is None
    assert DEFECTS[name](code) == first, "the pattern must match there"
    assert code.why(first) is not None


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("source", ["syscall", "sysretq", "iretq", "hlt; iretq", "iretd", "int 0x30"])
def test_the_verifier_sees_a_wrong_switch_of_levels(source: str, size: int) -> None:
    """Wrong: the routine light_call would do another instruction than the one that stands there, as the exit's record says."""
    m = machine("bt", f"jmp 1f; 1: {source}", 0)
    m.run(2)
    code = Code(m)
    block = next(n for n in code.blocks() if code.exits(n, lib.XL_BT_EXIT_BRANCH))
    right = {"syscall": 1, "sysretq": 2, "iretq": 3}.get(source.split("; ")[-1], 0)
    assert code.why(block) is None
    record(lib.XL_BT_EXIT_BRANCH, lambda x: setattr(x, "size", size))(code)
    assert (code.why(block) is None) == (size == right or not right), code.why(block)
