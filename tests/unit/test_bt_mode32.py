"""32-bit code in the translator against the interpreter: random sequences, segments that are flat or not, wrap, faults, modes that change.

Each sequence runs on the interpreter and on the translator with the verifier on; registers, memory, the way a run ends and the count of
instructions must be the same, cut short by a budget as well as to the end.
"""

from __future__ import annotations

import os
import random
import re

import pytest
import x86_rig
from bt_kit import MARKS, VERIFIED, VERIFY, calling_loop, stats, trap
from x86_kit import Machine, assemble

pytestmark = MARKS
NAMES = "eax ecx edx ebx esp ebp esi edi".split()
REGS = [*(f"r{n[1:]}" for n in NAMES), *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired"]
DATA, CODE, STACK = 0x20000, 0x1000, 0x18000
DEFINES = b"\x39\xd8"            # cmp eax, ebx: see no_undefined
SEQUENCES = int(os.environ.get("XENLIKE_MODE32", "150"))


def machine(engine: str, code: str | bytes, options: int = VERIFY, *, at: int = CODE, **regs: int) -> Machine:
    m = Machine(32, engine=engine, options=options)
    m.write(at, code if isinstance(code, bytes) else assemble(code, bits=32, at=at))
    m["rip"] = at
    for name, value in regs.items():
        m[name.replace("_", ".")] = value
    return m


def outcome(m: Machine, budget: int) -> tuple[object, ...]:
    end = m.run(budget)
    state = {name: m[name] for name in REGS}
    if m.read(min(state["rip"] & 0xFFFFF, 0xFFFFE), 2) == DEFINES:
        state["rflags"] &= ~0x8D5
    return end, trap(m), state


def same(code: str | bytes, budgets: list[int], options: int = VERIFY, *, at: int = CODE, prepare=lambda m: None, **regs: int) -> Machine:
    m, i = machine("bt", code, options, at=at, **regs), machine("interp", code, at=at, **regs)
    prepare(m), prepare(i)
    for budget in budgets:
        ours, theirs = outcome(m, budget), outcome(i, budget)
        what = code if isinstance(code, str) else code.rstrip(b"\xf4").hex()
        assert ours == theirs, f"{what} {regs} {options}"
        if ours[0] != "budget":
            break
    assert m.read(0, 0x40000) == i.read(0, 0x40000), f"{what} {regs} {options}: memory"
    assert stats(m).rejected == 0, f"the verifier refused a block of {what}"
    return m


LOOP = calling_loop(32, 300, DATA, enter="sub esp, 16", push="""
    inc edi
    push dword ptr [0x20000 + ecx * 8]
    push 0x11223344
    push -5
""", pop="add esp, 12", sometimes="""
    add esi, [0x20000 + ecx * 8]
    adc ebp, esi
    .byte 0x82, 0xc3, 0x07      # add bl, 7
    movzx edx, ah
    add dh, bl
    mov [esp + 3], dl
    mov edx, offset over
    jmp edx
    nop
over:
    mov edx, offset table
    call [edx + 4]
""", end="""
    mov ecx, 9
rounds:
    mov [esp + ecx], cl
    loop rounds
    jecxz end
    hlt
end:
    mov eax, [0x20010]
    mov [0x20014], al
    mov [0x20018], eax
""", double="""
    push ebp
    mov ebp, esp
    lea eax, [eax + eax]
    cmp eax, [ebp + 8]
    setl byte ptr [0x21000 + ecx]
    leave
""") + """
popper:
    ret 0
table: .long double, popper
"""


@pytest.mark.parametrize("options", VERIFIED)
def test_a_program_has_the_same_result(options: int) -> None:
    """Wrong: a loop with calls, the stack, memory and one-byte inc and dec ends otherwise than in the interpreter, or none of it is translated."""
    for budget in ([100_000], [1] * 60 + [7] * 40 + [100_000]):
        m = same(LOOP, budget, options, rsp=STACK)
    assert options != VERIFY or stats(m).translated > 50
    watched = 512                       # instructions at most of a loop, before it is made anew
    assert options != VERIFY or stats(same(LOOP, [100_000], options, rsp=STACK)).interpreted < 40 + watched


#: What the random sequences are made of; %r a register, %b one of 8 bits, %w of 16, %m a memory operand, %i an immediate, %c a condition.
KINDS = """
    add %r, %m|add %m, %r|adc %r, %r|sbb dword ptr %m, %i|sub %r, %i|and %b, %m|or %m, %b|xor %r, %r|cmp %r, %m|test %m, %r|inc %r|dec %r|inc %w|inc dword ptr %m
    neg %r|not word ptr %m|imul %r, %m, 77|imul %r, %r|mul %r|shl %r, 3|shr dword ptr %m, 1|sar %r, cl|rol %b, 1|shld %r, %r, 5|xchg %r, %r|xchg %m, %r
    lock xadd %m, %r|lock cmpxchg %m, %r|bts %r, 7|bt %r, %r|bsf %r, %m|popcnt %r, %m|movzx %r, %b|movsx %r, byte ptr %m|mov %r, %m|mov %m, %r
    mov %m, %b|mov %b, %m|mov %w, %m|mov %r, %i|mov dword ptr %m, %i|lea %r, %m|lea %w, %m|push %r|pop %r|push %i|push dword ptr %m|push %w|pop %w
    pushad|popad|cmov%c %r, %m|set%c %b|set%c byte ptr %m|cdq|cwde|cbw|lahf|sahf|cmc|stc|clc|bswap %r|daa|aas|aam 10|.byte 0xd6|xlatb|les eax, [edi]
    mov eax, [0x20044]|mov [0x20048], al|mov ax, [0x2004c]|add dword ptr fs:[0x20050], 3|mov %r, gs:[esi]|mov %r, cs:[0x20060]|mov cs:[0x20064], %r
    addr16 mov %r, [0x70]|addr16 add [bx + si], %b|pushfd|popfd|enter 16, 0|leave|lodsd|stosb|rep stosb|andn %r, %r, %m|mulx %r, %r, %m|crc32 %r, %b
    mov es, bx|movd xmm1, %r|movups xmm0, %m|paddd xmm0, xmm1|movups %m, xmm0|movaps xmm2, %m|addps xmm0, xmm2|cvtsi2sd xmm1, %r|ucomisd xmm0, xmm1
    div %r|idiv %r|bound %r, %m|fld1|fstp qword ptr %m|prefetcht0 %m|mov %b, %b|xchg eax, %r|sete ah|lock inc dword ptr %m
    push es|push cs|push gs|push ss; pop %r|mov %r, ds|mov %r, gs|mov %w, ss|sldt %r|str %r|smsw %r|cli|sti|cld|std|mov %r, cr0|mov %r, cr2|mov %r, cr3|pushfd; pop %r
""".replace("\n", "|").split("|")
ALL = [k.strip() for k in KINDS if k.strip()]


def operand(rng: random.Random) -> str:
    base, index = rng.choice(["esi", "edi", "ebp", "ebx"]), rng.choice(["", "", " + ecx * 4", " + eax * 1"])
    segment = rng.choice([""] * 12 + ["fs:", "gs:", "es:", "ss:"])
    return rng.choice([f"{segment}[{base} + {rng.randrange(-64, 256)}{index}]", f"{segment}[{base}]", f"{segment}[esp + {rng.randrange(64)}]",
                       f"{segment}[{DATA + rng.randrange(0x1000):#x}]"])


def sequence(rng: random.Random, length: int) -> str:
    lines = []
    for n in range(length):
        line = rng.choice(ALL)
        while "%" in line:
            k = line.index("%")
            value = {"r": lambda: rng.choice(NAMES[:4] + NAMES[5:] + NAMES[:4]), "b": lambda: rng.choice("al ah bl bh cl ch dl dh".split()),
                     "w": lambda: rng.choice("ax cx dx bx bp si di".split()), "m": lambda: operand(rng),
                     "i": lambda: str(rng.choice([1, -1, 0x7F, 0x12345678, 5, -100])), "c": lambda: rng.choice("o no b e be s p l le".split())}[line[k + 1]]()
            line = line[:k] + value + line[k + 2:]
        lines.append(line)
        if rng.random() < 0.12:
            lines.append(f"j{rng.choice('o b e be s p l le ne a'.split())} t{n}; inc eax; xor edx, ebx; t{n}:")
    return "\n".join([*lines, "hlt"])


def no_undefined(lines: str) -> str:
    """Behind what leaves flags undefined, in translated code those of this host, an instruction that defines them all."""
    undefined = ("imul", "mul", "shl", "shr", "sar", "shld", "rol", "bt", "bsf", "div", "idiv", "and", "or", "xor", "test", "andn", "daa", "aas", "aam", "popcnt")
    return "\n".join(line + "\ncmp eax, ebx" if line.split()[0] in undefined else line for line in lines.split("\n"))


def test_random_sequences() -> None:
    """Wrong: an instruction of 32-bit code is translated to something else than the interpreter does, or finds other upper halves."""
    rng = random.Random(32)
    sources = [no_undefined(sequence(rng, rng.randrange(4, 24))) for _ in range(SEQUENCES)]
    # One call of the assembler for all: each begins at a multiple of 1024.
    whole = "".join(f".balign 1024, 0xf4\n{_own_labels(source, n)}\n" for n, source in enumerate(sources))
    code = assemble(whole, bits=32, at=0)
    translated = interpreted = 0
    for n, source in enumerate(sources):
        high = rng.choice([0, 0, 0xABCD << 32])
        regs = {name: rng.choice([rng.getrandbits(32), rng.randrange(64)]) | high for name in ("rax", "rcx", "rdx")}
        regs |= {name: DATA + rng.randrange(0x800) | high for name in ("rbx", "rbp", "rsi", "rdi")}
        regs |= {"rsp": STACK + rng.choice([0, 2]) | high, "rflags": 2 | rng.choice([0, 0x8D5, 0x400]), "r8": 0x1122334455667788, "r15": 1 << 63 | n}
        if rng.random() < 0.3:
            regs["rcx"] = rng.randrange(40) | high
        if rng.random() < 0.2:
            regs |= {"fs_base": 0xFFFFF000 if rng.random() < 0.5 else 0x1000, "gs_base": 0x123}
        if rng.random() < 0.1:
            regs["gs_limit"] = 0x200FF
        if rng.random() < 0.15:
            regs[rng.choice(["rsi", "rbp", "rdi"])] = rng.choice([0xFFFFFFF0, 0xFFFFF, 0xFFFFE, 0x100000])
        budgets = [rng.choice([3, 7, 1000]), rng.choice([1, 4, 1000]), 1000]

        def prepare(m: Machine) -> None:
            m.write(DATA, bytes(k * 7 + k // 256 * 3 & 255 for k in range(4096)))
            m.write(DATA + 0x1000, bytes(range(256)) * 16)

        m = same(code[n * 1024:n * 1024 + 1024], budgets, rng.choice(VERIFIED), prepare=prepare, **regs)
        translated, interpreted = translated + stats(m).translated, interpreted + stats(m).interpreted
    assert translated > interpreted


def _own_labels(source: str, n: int) -> str:
    return re.sub(r"\bt(\d+)\b", rf"t{n}_\1", source)


@pytest.mark.parametrize("segment, change", [
    ("ds", {"ds_base": 0x100}), ("ds", {"ds_limit": 0x200FF}), ("ss", {"ss_limit": 0x17FFF}), ("es", {"es_base": 16}), ("cs", {"cs_base": 0x10}),
    ("cs", {"cs_limit": 0x1FFF}), ("ds", {"ds_attr": 0xC91}), ("ds", {"ds_attr": 0xC97, "ds_limit": 0xFFF}), ("fs", {"fs_limit": 0x1FFFF}),
    ("gs", {"gs_attr": 0xC91}), ("gs", {"gs_base": 0x40}), ("fs", {"fs_base": 0xFFFFFF00}), ("ss", {"ss_attr": 0x893}),
])
def test_segments_that_are_not_flat(segment: str, change: dict[str, int]) -> None:
    """Wrong: translated code reads or writes beside a segment's base or beyond its limit, or writes where it is read-only."""
    source = """
        mov ecx, 3
    top:
        mov eax, ds:[0x20010]
        add ds:[0x20020], eax
        push eax
        mov ebx, es:[0x20030]
        mov edx, fs:[0x20100]
        mov gs:[0x20104], edx
        pop edi
        mov esi, ds:[0x20200]
        dec ecx
        jnz top
        hlt
    """
    base = change.get("cs_base", 0)

    def prepare(m: Machine) -> None:
        m.write(DATA, bytes(k * 7 + k // 256 * 3 & 255 for k in range(4096)))
        m["rip"] = CODE - base

    for budgets in ([1000], [3, 4, 1000]):
        same(source, budgets, rsp=STACK, prepare=prepare, **change)


@pytest.mark.parametrize("options", VERIFIED)
def test_addresses_wrap_at_4_gib(options: int) -> None:
    """Wrong: base + displacement beyond 4 GiB goes to other memory, or an upper half of a register counts."""
    source = """
        mov ecx, 5
    top:
        mov eax, [ebx + 0x20]
        mov [ebx + edi * 4 + 0x30], ecx
        lea edx, [ebx + 0x20]
        push eax
        pop esi
        call next
    next:
        pop ebp
        dec ecx
        jnz top
        mov eax, [ebx - 2]
        hlt
    """
    high = 0x7777 << 32
    same(source, [1000], options, rbx=0xFFFFFFF0 + 0x20000 | high, rdi=0x40000000 | high, rsp=STACK | high)
    same(source, [1000], options, rbx=(0xFFFFFFFF & -0x20) | high, rdi=0x40004000 | high, rsp=STACK | high)
    same(source, [1000], options, rbx=0x20000, rdi=4, rsp=2 | high)         # the stack wraps


def test_eip_wraps() -> None:
    """Wrong: a branch beyond 4 GiB, or the next instruction after the last byte, is looked for above 4 GiB or shown there."""
    body = {
        "next": (0x3FFFFC, "inc eax; inc ebx; inc ecx; inc edx"),
        "jump": (0x3FFFF0, "jmp 0x400100"),
        "call": (0x3FFFF8, "call 0x400040"),
        "condition": (0x3FFFF0, "cmp eax, eax; je 0x400100"),
    }
    for name, (at, source) in body.items():
        ends = []
        for engine in ("bt", "interp"):
            m = Machine(32, engine=engine, options=VERIFY, size=8 << 20)
            for n in range(1024):       # 4 MiB pages; the first and the last are the same memory
                m.put(0x30000 + 4 * n, 0x83 | (n == 1) << 22, 4)
            m["cr4"], m["cr3"] = 0x10, 0x30000
            m["cr0"] = m["cr0"] | 1 << 31 | 1
            m.write(at, assemble(source, bits=32, at=at))
            m.write(0, b"\xf4" * 0x200)
            m["rip"], m["rsp"] = 0xFFC00000 + at, 0x20000
            out: list[object] = []
            for _ in range(6):
                out.append((m.run(1), [m[r] for r in REGS]))
            ends.append((out, m.read(0x1FFF0, 16)))
        assert ends[0] == ends[1], name


def test_modes_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: the same bytes at the same address run as they were translated for the other code size."""
    ends = []
    for engine in ("bt", "interp"):
        monkeypatch.setenv("XENLIKE_ENGINE", engine)
        monkeypatch.setenv("XENLIKE_BT_OPTIONS", str(VERIFY))
        m = x86_rig.Rig(64)
        m.gdt(x86_rig.FREE, x86_rig.descriptor(access=0x9A, flags=0xC))
        m.write(0x20000, (0x12000).to_bytes(4, "little") + x86_rig.FREE.to_bytes(2, "little"))
        m.load("shared: dec eax; inc eax; push ebp; inc ecx; push ebp; pop ebp; jmp ebp", bits=32, at=0x14000)     # 64: inc rax; push rbp; push r13; pop rbp; ..
        m.load("mov ebp, offset next; jmp 0x14000; next: add esp, 4; mov edi, [esp + 8]; add edx, eax; retf", bits=32, at=0x12000)
        m.start("""
            mov ebx, 7
            mov r13, 0x11111111
        top:
            call fword ptr [0x20000]
            lea rbp, [rip + next]
            mov r13, rbp
            mov r12, 0x14000
            jmp r12
        next:
            add rsp, 8
            add rdx, rax
            dec ebx
            jnz top
            int 0x20
        """)
        end = m.go()
        frame = m.frame()
        ends.append((end, frame, [m[r] for r in REGS]))
        assert frame.vector == 0x20, frame
        if engine == "bt":
            assert stats(m).rejected == 0 and stats(m).translated > 20
    assert ends[0] == ends[1]


def test_a_fault_is_precise() -> None:
    """Wrong: flags, esp or what was stored before a page fault in the middle of a block are those of another instruction."""
    for fault in ("mov eax, [0x500000]", "push dword ptr [0x500000]", "add [0x500000], eax", "call [0x500000]", "pop ebp", "leave", "ret", "mov gs:[0x500000], bl"):
        source = f"mov [0x20000], eax; sub eax, ebx; inc dword ptr [0x20004]; stc; {fault}; mov ecx, 7; hlt"
        for bad_stack in (False, True):
            same(source, [100], rsp=0x700000 if bad_stack else STACK, rbp=0x600000, rax=5, rbx=9)


def test_a_branch_that_would_wrap_ends_its_block() -> None:
    """Code behind a conditional branch that the interpreter has to do, as its target is cut to 32 bits, would run as if nothing had been asked: MMX registers
    not loaded, say."""
    code = bytes.fromhex("0f77 0f82000000e0 0ffddb f4".replace(" ", ""))       # emms; jc -0x20000000; paddw mm3, mm3; hlt
    for carry in (0, 1):
        same(code, [1, 2, 3, 10], rflags=2 | carry)
