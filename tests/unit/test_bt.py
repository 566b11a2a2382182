"""The binary translator against the interpreter: code that changes itself, pages that change, time, faults.

Both run the same machine; registers, memory, the way a run ends and the count of instructions must be the same. Each program runs with the
translator's options for tests too: blocks of one instruction, no chains, a flush every few blocks, a TLB of one page.
"""

from __future__ import annotations

import pytest

from bt_kit import MARKS, OPTIONS, calling_loop, stats
from x86_kit import Machine, assemble

from xenlike.engine import ffi, lib

pytestmark = MARKS
REGS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired"]


def machine(engine: str, source: str, options: int = 0, **regs: int) -> Machine:
    m = Machine(64, engine=engine, options=options)
    m.code(source)
    for name, value in regs.items():
        m[name] = value
    return m


def outcome(m: Machine, budget: int) -> tuple[object, ...]:
    end = m.run(budget)
    return end, {name: m[name] for name in REGS}, m.read(0, 0x20000)


def same(source: str, *, budget: int = 100_000, options: int = 0, **regs: int) -> Machine:
    """Both engines come to the same end; the translator's machine."""
    m = machine("bt", source, options, **regs)
    assert outcome(m, budget) == outcome(machine("interp", source, **regs), budget)
    assert stats(m).translated > 0, "nothing was translated"
    return m


LOOP = calling_loop(64, 500, 0x9000, sometimes="""
    add r13, [0x9000 + rcx * 8]
    adc r15, r13
""", double="""
    lea r14, [rax + rax]
    cmp r14, rbx
    setl r12b
""")


@pytest.mark.parametrize("options", OPTIONS)
def test_a_program_has_the_same_result(options: int) -> None:
    """A loop with calls, memory, flags across blocks and r13-r15 would end otherwise than in the interpreter."""
    same(LOOP, options=options)


def test_a_budget_ends_at_the_same_instruction_wherever_it_ends() -> None:
    """A run that is cut after n instructions would stand elsewhere, with other registers or flags, for some n."""
    for budget in [*range(1, 150), *range(4000, 4100)]:
        m, i = machine("bt", LOOP), machine("interp", LOOP)
        for _ in range(3):              # the second time the blocks are there and chained
            assert outcome(m, budget)[:2] == outcome(i, budget)[:2], budget


@pytest.mark.parametrize("options", OPTIONS)
def test_an_interrupt_comes_between_the_same_instructions(options: int) -> None:
    """An interrupt raised after n instructions would find other flags or another rip on its way in."""
    for budget in range(1, 60):
        ends = []
        for engine in ("bt", "interp"):
            m = machine(engine, LOOP, options, rflags=0x202)
            m.run(budget)
            m.interrupt(0x40)
            m.run(1)
            ends.append([m[name] for name in REGS])
        assert ends[0] == ends[1], budget


@pytest.mark.parametrize("options", OPTIONS)
def test_a_store_into_the_next_instructions_is_seen_at_once(options: int) -> None:
    """The rest of a block that has overwritten itself would run stale; so would an older translation of it the next time round."""
    source = """
        mov edi, 20
    top:
        mov byte ptr [rip + patched + 1], dil
        nop
    patched:
        mov al, 0x55
        movzx eax, al
        add rbx, rax
        dec edi
        jnz top
        hlt
    """
    assert same(source, options=options)["rbx"] == sum(range(1, 21))


@pytest.mark.parametrize("options", OPTIONS)
def test_code_that_a_string_instruction_or_a_chained_caller_overwrites(options: int) -> None:
    """A function replaced by rep movsb would go on as it was for callers whose jump is patched to its translation."""
    source = """
        mov ebp, 6
    top:
        call f
        add rbx, rax
        lea rdi, [rip + f]
        lea rsi, [rip + one]
        test ebp, 1
        jz copy
        lea rsi, [rip + two]
    copy:
        mov ecx, 6
        rep movsb
        dec ebp
        jnz top
        hlt
    f:  mov eax, 0
        ret
    one: mov eax, 1
        ret
    two: mov eax, 2
        ret
    """
    assert same(source, options=options)["rbx"] == 0 + 1 + 2 + 1 + 2 + 1


def test_data_beside_code_leaves_its_blocks_alone() -> None:
    """Stores to another line of a page with code would throw its blocks away each time: slow, though not wrong."""
    m = same("mov ecx, 1000; top: mov [rip + data], rcx; dec ecx; jnz top; hlt; .balign 64; data: .quad 0")
    assert stats(m).invalidated == 0


@pytest.mark.parametrize("size, register", [(1, "al"), (2, "ax"), (4, "eax"), (8, "rax")])
@pytest.mark.parametrize("store", [False, True])
def test_an_access_that_begins_before_a_known_page(size: int, register: str, store: bool) -> None:
    """After accesses to a page by one instruction, those that begin in the page before it would be taken for accesses to it alone."""
    page, before = ffi.new("char[]", 3 * 4096), ffi.new("char[]", 3 * 4096)
    host = [int(ffi.cast("uintptr_t", p)) + 4095 & ~4095 for p in (page, before)]
    operation = f"mov [rdi], {register}" if store else f"mov {register}, [rdi]"
    code = assemble(f"top: {operation}; inc rdi; dec ecx; jnz top; lea rdi, [rdi - 3 * {size} - 13]; mov ecx, 20; jmp top", at=0x100000)
    ends = []
    for engine in ("interp", "bt"):
        ffi.memmove(ffi.cast("char *", host[0]), bytes(range(256)) * 16, 4096)
        ffi.memmove(ffi.cast("char *", host[1]), bytes(4096), 4096)
        m = Machine(64, engine=engine)
        text = ffi.new("char[]", 2 * 4096)
        at = int(ffi.cast("uintptr_t", text)) + 4095 & ~4095
        ffi.memmove(ffi.cast("char *", at), code, len(code))
        lib.xl_bare_map(m.c, 0x100000, ffi.cast("void *", at), 4096, 5)
        lib.xl_bare_map(m.c, 0x201000, ffi.cast("void *", host[0]), 4096, 3)
        for name, value in {"rip": 0x100000, "rdi": 0x201000, "rcx": 3, "rax": 0x1122334455667788}.items():
            m[name] = value
        ends.append((m.trap(), [m[name] for name in REGS], bytes(ffi.buffer(ffi.cast("char *", host[0]), 4096))))
    assert ends[0] == ends[1]
    assert ends[0][0].vector == 14 and ends[0][0].cr2 < 0x201000


@pytest.mark.parametrize("options", OPTIONS)
def test_a_page_that_is_mapped_elsewhere_has_other_code(options: int) -> None:
    """After a change of page tables and invlpg, calls would still reach the translation of the page that was mapped before."""
    source = """
        call 0x40000
        add rbx, rax
        dec ecx
        jz done
        mov rax, [rsi]
        xor rax, 0x3000     # 0x51000 <-> 0x52000
        mov [rsi], rax
        invlpg [0x40000]
        jmp 0x1000
    done:
        hlt
    """
    ends = []
    for engine in ("bt", "interp"):
        m = machine(engine, source, options, rcx=9)
        tables = m.system + lib.XL_BARE_PD
        pt = 0x60000
        for n in range(512):
            m.put(pt + 8 * n, n << 12 | 7)
        m.put(pt + 8 * 0x40, 0x51000 | 7)
        m.put(tables, pt | 7)
        m.write(0x51000, assemble("mov eax, 1; ret", at=0x40000))
        m.write(0x52000, assemble("mov eax, 100; ret", at=0x40000))
        m["rsi"], m["cr3"] = pt + 8 * 0x40, m["cr3"]
        ends.append(outcome(m, 10_000))
    assert ends[0] == ends[1]
    assert ends[0][1]["rbx"] == 5 * 1 + 4 * 100


@pytest.mark.parametrize("flushes", [4094, 4095, 4096, 2 * 4095])
def test_flushes_that_the_interpreter_does_are_counted(flushes: int) -> None:
    """Generations of the TLB come round after 4,095 flushes: who did so many where nothing is translated (here: with a data breakpoint set) could go on
    with what translated code knew of pages before, a PV guest with the right to write to what has become a page table."""
    m = machine("bt", """
        mov ecx, 3
    again:
        mov qword ptr [0x40000], 1      # translated code knows the page
        mov rbx, [0x40008]
        dec ecx
        jnz again
        mov rax, 0x52007
        mov [rsi], rax                  # it becomes another one
        mov eax, 0x10402                # breakpoint 0 on writes of a byte at 0, where nobody writes
        mov dr7, rax
        mov rax, cr3
        mov ecx, edi
    flush:
        mov cr3, rax
        loop flush
        mov eax, 0x400
        mov dr7, rax
        mov qword ptr [0x40000], 2
        mov rbx, [0x40008]
        hlt
    """, rdi=flushes)
    pt = 0x60000
    for n in range(512):
        m.put(pt + 8 * n, n << 12 | 7)
    m.put(pt + 8 * 0x40, 0x51000 | 7)
    m.put(m.system + lib.XL_BARE_PD, pt | 7)
    m.put(0x51008, 11)
    m.put(0x52008, 22)
    m["rsi"], m["cr3"] = pt + 8 * 0x40, m["cr3"]
    m.run(100_000)
    assert (m["rbx"], m.read(0x51000, 1), m.read(0x52000, 1)) == (22, b"\1", b"\2")


def test_flags_are_seen_by_a_fault_although_the_next_instruction_overwrites_them() -> None:
    """The frame of a page fault would show flags of the translator's own compare."""
    for producer in ("cmp rax, rbx", "add rax, rbx", "sub rax, 5", "xor eax, eax", "and rax, rbx", "test bl, 7", "shr rax, 3", "inc rax", "imul rax, rbx",
                     "bt rax, 3", "stc", "add al, bl", "sub ax, bx", "mul rbx"):
        source = f"{producer}; mov rdx, [rdi]; mov rdx, [rdi + 8]; mov [rsi], rdx; cmp rdx, rdi; hlt"
        ends = [(machine(engine, source, rax=0xFFFFFFF0, rbx=0x80000011, rdi=0x9000, rsi=1 << 46)) for engine in ("bt", "interp")]
        for m in ends:
            m.trap()
        undefined = 0x8D5 & ~{"shr rax, 3": 0x10, "imul rax, rbx": 0xD4, "bt rax, 3": 0x894, "mul rbx": 0xD4}.get(producer, 0)
        assert [m["rflags"] & undefined for m in ends][0] == [m["rflags"] & undefined for m in ends][1], producer
        assert [m["rdx"] for m in ends][0] == [m["rdx"] for m in ends][1]
