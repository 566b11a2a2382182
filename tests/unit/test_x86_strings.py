"""String instructions in bulk against the same element by element: wrap, overlap, direction, faults in the middle, rounds and the budget.

A data breakpoint on an address that nobody touches makes every access take the slow road, one element at a time: that is the reference. On the
interpreter and on the translator.
"""

from __future__ import annotations

import random

import pytest
from x86_kit import Machine, needs_assembler

from xenlike.engine import ffi, lib

pytestmark = needs_assembler
ENGINES = ["interp", "bt"]
REGS = ["rax", "rcx", "rsi", "rdi", "rip", "rflags", "retired"]
DF = 1 << 10
RAM = 0x40000


def machine(engine: str, bits: int, source: str, *, slow: bool, memory: bytes, regs: dict[str, int]) -> Machine:
    if engine == "bt" and lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip("this host cannot translate (no BMI2, FSGSBASE, LAHF, or not x86-64)")
    m = Machine(bits, engine=engine)
    m.write(0x8000, memory)
    m.code(f"nop; {source}; hlt")
    for name, value in regs.items():
        m[name] = value
    if slow:
        m["dr0"], m["dr7"] = 0xFFFF0000, 0x2 | 1 << 16      # writes
    return m


def run(m: Machine, budgets: list[int]) -> list[object]:
    """How each of several runs in a row ended."""
    out: list[object] = []
    for budget in budgets:
        end = m.run(budget)
        exception = ffi.new("u64[5]")
        vector = int(exception[0]) if lib.xl_bare_exception(m.c, exception) else None
        out.append((end, vector, *(m[name] for name in REGS)))
        if vector is not None or end == "halted":
            break
    return out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [32, 64])
def test_bulk_is_the_sum_of_its_elements(engine: str, bits: int) -> None:
    """Wrong: overlap, direction, sizes that do not divide a page, wrap of 16- and 32-bit addresses, the end of RAM, or what a budget cuts."""
    rng = random.Random(bits)
    memory = rng.randbytes(0x28000)
    top = 0x100000                              # RAM ends there: a page fault, or nothing behind the segment
    cut = 0
    for _ in range(300):
        op = rng.choice(["movsb", "movsw", "movsd", "stosb", "stosw", "stosd", "lodsb", "cmpsb", "cmpsw", "scasb", "scasw"] + (["movsq", "stosq"] if bits == 64 else []))
        prefix = rng.choice(["repe", "repne"]) if op[:4] in ("cmps", "scas") else "rep"
        narrow = rng.random() < 0.25            # 16-bit addresses, or 32-bit ones in 64-bit mode
        source = ("addr16 " if bits == 32 else "addr32 ") * narrow + f"{prefix} {op}"
        start = rng.choice([0x9000, 0xC000, 0xF000, 0xFFF0, 0x10000, 0x11FF8, top - 0x1800]) + rng.randrange(64)
        distance = rng.choice([0, 1, 2, 3, 7, 8, 31, 4096, 8192, 5000, -1, -2, -9, -4096, -6000])
        regs = {"rsi": start, "rdi": start + distance, "rcx": rng.choice([0, 1, 5, 1023, 1024, 1025, 2048, 3000, 4096, 5000, 9000]),
                "rax": rng.choice([0, 0x4141414141414141, 0x1122334455667788 if bits == 64 else 0x11223344]), "rflags": 2 | DF * (rng.random() < 0.4)}
        if narrow and bits == 32:
            regs["rsi"], regs["rdi"] = regs["rsi"] | 0x50000, regs["rdi"] | 0x60000     # upper halves stay
            regs["rsi"], regs["rdi"] = (regs["rsi"] & 0x5FFFF) | 0x50000, (regs["rdi"] & 0x6FFFF) | 0x60000
        if op[:4] in ("cmps", "scas") and rng.random() < 0.5:
            regs["rax"] = 0
        budgets = [rng.choice([1, 2, 3, 4, 5, 20]) for _ in range(6)]
        text = bytes(0x28000) if rng.random() < 0.3 else memory
        fast = machine(engine, bits, source, slow=False, memory=text, regs=regs)
        slow = machine("interp", bits, source, slow=True, memory=text, regs=regs)
        ours, theirs = run(fast, budgets), run(slow, budgets)
        assert ours == theirs, (source, {k: hex(v) for k, v in regs.items()}, budgets)
        assert fast.read(0, top) == slow.read(0, top), (source, regs)
        cut += len(ours) > 2
    assert cut > 20, "no run was cut by its budget"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("down", [False, True])
def test_a_repetition_that_overwrites_itself(engine: str, down: bool) -> None:
    """Wrong: what a round has overwritten runs on as it was, in rounds that were done with it at once."""
    source = "rep stosb; .skip 3000, 0x90"      # hlt over itself in its second round
    ends = []
    for slow in (False, True):
        start = 0x1001 + 1500 if down else 0x1001 - 1500
        m = machine(engine if not slow else "interp", 64, source, slow=slow, memory=b"", regs={"rdi": start, "rcx": 4000, "rax": 0xF4, "rflags": 2 | DF * down})
        ends.append((run(m, [100]), m.read(0, RAM)))
    assert ends[0] == ends[1]
    assert ends[0][0][0][0] == "halted" and ends[0][0][0][3] == 4000 - 2048
