"""A machine whose page table puts the pages of a window where a test wants them, on both engines: for tests of translated accesses.

Owns: ``machine``, ``pair``, ``check``, ``same``; ``identity`` and ``elsewhere``, entries of the page table; ``MANNERS``. Used by:
``test_bt_spans.py``, ``test_bt_mappings.py``, ``test_bt_pages.py``. Registers, faults, all memory with the page table's own accessed and
dirty bits, and the count of instructions must be the same; no block is refused by the verifier.
"""

from __future__ import annotations

from bt_kit import VERIFIED, VERIFY, stats, trap
from x86_kit import Machine

from xenlike.engine import lib

REGS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired", "cr2"]
CODE, HANDLER, STACK, LOG, TABLE = 0x1000, 0x4000, 0x8000, 0xA000, 0x60000
WINDOW, PAGES = 0x40000, 16             # linear: pages that tests put elsewhere
ACCESSED, DIRTY = 0x20, 0x40
SLOW = lib.XL_BT_ONE | lib.XL_BT_NO_CHAIN | lib.XL_BT_FLUSH | lib.XL_BT_TINY_TLB
FILLING = bytes(k * 7 + k // 251 & 255 for k in range(0x20000))
IN_PLACE = b"".join((n << 12 | 7).to_bytes(8, "little") for n in range(512))
MANNERS = [*VERIFIED, VERIFY | SLOW]

# Notes of each fault: cr2, error code (16 bytes further a word of the frame if there is none), rip, flags; and goes on at r15.
NOTE = f"""
    push rax
    push rcx
    mov rcx, [{LOG}]
    mov rax, cr2
    mov [{LOG} + 8 + rcx], rax
    mov rax, [rsp + 16]
    mov [{LOG} + 16 + rcx], rax
    mov rax, [rsp + 24]
    mov [{LOG} + 24 + rcx], rax
    mov rax, [rsp + 40]
    mov [{LOG} + 32 + rcx], rax
    add rcx, 32
    and rcx, 0x7ff
    mov [{LOG}], rcx
    mov [rsp + 24], r15
    pop rcx
    pop rax
    add rsp, 8
    iretq
"""


def identity(n: int) -> int:
    return WINDOW + n * 0x1000 | 7


def elsewhere(n: int) -> int:
    """Each page at another distance, all of them within the window and the one behind."""
    return WINDOW + 0x10000 + (n * 7 + 3 & 15) * 0x1000 | 7


def machine(engine: str, source: str, options: int, *, pages: dict[int, int] | None = None, deliver: bool = False, **regs: int) -> Machine:
    """pages: entries of the page table by page number within the window; the others are where their addresses say. The stack has been used before, so that
    bt->slide is that of such pages."""
    m = Machine(64, engine=engine, options=options, deliver=deliver)
    m.write(TABLE, IN_PLACE)
    for n, entry in (pages or {}).items():
        m.put(TABLE + 8 * (WINDOW // 0x1000 + n), entry)
    m.put(m.system + lib.XL_BARE_PD, TABLE | 7)
    m.write(WINDOW, FILLING)
    for vector in (13, 14):
        m.gate(vector, HANDLER)
    m.code(NOTE, at=HANDLER)
    m.code("push rax; pop rax; hlt", at=0x3000)
    m["rsp"] = STACK
    m.run(10)
    m.code(source)
    m["halted"] = 0
    for name, value in regs.items():
        m[name] = value
    return m


def outcome(m: Machine, budget: int) -> tuple[object, ...]:
    end = m.run(budget)
    return end, trap(m), {name: m[name] for name in REGS}


def pair(source: str, options: int, **how: object) -> list[Machine]:
    return [machine(engine, source, options if engine == "bt" else 0, **how) for engine in ("bt", "interp")]


def check(machines: list[Machine], budget: int = 20_000) -> tuple[object, ...]:
    """Both come to the same end, in the same state; the outcome."""
    bt, interp = (outcome(m, budget) for m in machines)
    assert bt == interp
    ours, theirs = (m.read(0, 0x100000) for m in machines)
    assert ours == theirs, [hex(k) for k in range(len(ours)) if ours[k] != theirs[k]][:16]
    assert stats(machines[0]).rejected == 0
    return bt


def same(source: str, options: int = VERIFY, *, budget: int = 20_000, **how: object) -> list[Machine]:
    machines = pair(source, options, **how)
    check(machines, budget)
    assert stats(machines[0]).translated > 0
    return machines
