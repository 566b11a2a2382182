"""Code that the translator has emitted, to be looked at and changed; and a program whose translations have something of every kind.

Owns: ``Code``, the translations of a machine; ``edit`` and ``record``, changes of a host instruction and of an exit's record, with what
they change it to (``nops``, ``xor``, ``add32`` ...); ``PROGRAM`` and its ``machine``. Used by: ``test_bt*.py``, ``test_pv_quick.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import capstone
from x86_kit import Machine

from xenlike.engine import ffi, lib

CODE, DATA, STACK = 0x1000, 0x20000, 0x8000
MOVED, TABLE = 0x30000, 0x60000         # physical: DATA's page where it is moved; a page table
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired")
START = {"rax": 0x1122334455667788, "rbx": DATA, "rcx": 3, "rdx": 0x8000000000000001, "rsi": DATA + 0x100, "rdi": DATA + 0x200, "rbp": DATA + 0x300,
         "rsp": STACK, "r8": 5, "r9": 0xFFFFFFFFFFFFFFFF, "r10": 2, "r11": 0x11, "r12": 0x12, "r13": 0x13, "r14": DATA + 0x400, "r15": 0x15,
         "rflags": 2}
WHOLE = 400             # instructions: the whole program
BUDGETS = (WHOLE, WHOLE, 5, 12, 25, 31, 46, 70)     # of the runs that are compared: cut short, so that time is what matters
GS = r"qword ptr gs:\[0x[0-9a-f]+\]"             # a field of struct bt, in capstone's words
_md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


class Code:
    """The translations of a machine, or a translator's, to be looked at and changed."""

    def __init__(self, of: Machine | object) -> None:
        self.t = lib.xl_bt_of_bare(of.c) if isinstance(of, Machine) else of
        self.stats = ffi.new("struct xl_bt_stats *")
        lib.xl_bt_stats(self.t, self.stats)

    def blocks(self) -> list[int]:
        row = ffi.new("struct xl_bt_block *")
        return [n for n in range(1, self.stats.nr_blocks) if not lib.xl_bt_block(self.t, n, row) and row.nr and not row.invalid]

    def row(self, n: int) -> object:
        row = ffi.new("struct xl_bt_block *")
        assert not lib.xl_bt_block(self.t, n, row)
        return row

    def at(self, va: int) -> int:
        """The block that begins at va."""
        return next(n for n in self.blocks() if self.row(n).va == va)

    def host(self, n: int) -> tuple[int, bytes]:
        row, buf = self.row(n), ffi.new("u8[]", 1 << 16)
        return row.code, bytes(buf[0:lib.xl_bt_code(self.t, row.code, buf, row.code_len)])

    def instructions(self, n: int) -> list:
        at, code = self.host(n)
        return list(_md.disasm(code, at))

    def why(self, n: int) -> str | None:
        why = lib.xl_bt_verify(self.t, n, ffi.new("u32 *"))
        return None if why == ffi.NULL else ffi.string(why).decode()

    def plant(self, at: int, code: bytes) -> None:
        assert lib.xl_bt_plant_code(self.t, at, bytes(code), len(code)) == 0

    def exits(self, n: int, kind: int) -> list[int]:
        row, x = self.row(n), ffi.new("struct xl_bt_exit *")
        numbers = range(row.first_exit + 1, row.first_exit + row.nr_exits)
        return [e for e in numbers if not lib.xl_bt_exit(self.t, e, x) and x.kind == kind]

    def names(self, i: object) -> str:
        """The field of struct bt that a host instruction uses, or ""."""
        found, out = re.search(r"gs:\[(0x[0-9a-f]+|\d+)\]", i.op_str), ffi.new("char[]", lib.XL_BT_NAME)
        return ffi.string(out).decode() if found and lib.xl_bt_field_name(self.t, int(found[1], 0), out) else ""

    def field(self, name: str) -> int:
        """Offset of a field of struct bt by its name, as code says it."""
        out = ffi.new("char[]", lib.XL_BT_NAME)
        for offset in range(0, 0x1000, 4):
            if lib.xl_bt_field_name(self.t, offset, out) and ffi.string(out).decode() == name:
                return offset
        raise AssertionError(name)


# ---- changes ---------------------------------------------------------------------------------------------------------

def by_entry(code: Code, listing: list, k: int) -> bool:
    """Host instruction k stands in a sequence that goes by an L0 entry, with an addend of its own."""
    names = [name for i in listing[max(k - 4, 0):k + 1] if (name := code.names(i)) and ("l0." in name or "slid" in name)]
    return bool(names) and "l0." in names[-1]


def edit(pattern: str, new: Callable[[object, Code], bytes], *, nth: int = 0, apart: bool = False) -> Callable[[Code], int]:
    """Replaces the nth host instruction whose text (capstone's) matches, over all blocks in their order, by ``new`` of it. ``apart``: of those that stand
    in a sequence for a page that is not like most."""
    def plant(code: Code) -> int:
        found = []
        for n in code.blocks():
            listing = list(code.instructions(n))
            found += [(n, i) for k, i in enumerate(listing) if re.match(pattern, f"{i.mnemonic} {i.op_str}".strip())
                      and (not apart or by_entry(code, listing, k))]
        assert len(found) > nth, f"no host instruction is like {pattern}: the translator has changed, so must the defect"
        block, i = found[nth]
        code.plant(i.address, bytes(new(i, code)))
        return block
    return plant


def record(kind: int, change: Callable[[object], None], *, nth: int = 0) -> Callable[[Code], int]:
    """Changes the record of the nth exit of a kind."""
    def plant(code: Code) -> int:
        block, number = [(n, e) for n in code.blocks() for e in code.exits(n, kind)][nth]
        x = ffi.new("struct xl_bt_exit *")
        assert lib.xl_bt_exit(code.t, number, x) == 0
        change(x)
        assert lib.xl_bt_plant_exit(code.t, number, x) == 0
        return block
    return plant


def nops(i: object, _c: Code) -> bytes:
    return b"\x90" * i.size


def xor(byte: int, mask: int) -> Callable[[object, Code], bytes]:
    """The instruction with one byte changed; negative: from its end."""
    def new(i: object, _c: Code) -> bytes:
        code = bytearray(i.bytes)
        code[byte] ^= mask
        return bytes(code)
    return new


def add32(n: int, *, end: int = 0) -> Callable[[object, Code], bytes]:
    """The instruction with n added to its 32-bit field, which ends ``end`` bytes before its end."""
    def new(i: object, _c: Code) -> bytes:
        code = bytearray(i.bytes)
        to = len(code) - end
        code[to - 4:to] = (int.from_bytes(code[to - 4:to], "little") + n & 0xFFFFFFFF).to_bytes(4, "little")
        return bytes(code)
    return new


def never(i: object, _c: Code) -> bytes:
    """A conditional jump that never jumps."""
    return i.bytes[:-4] + bytes(4)


def other_field(name: str) -> Callable[[object, Code], bytes]:
    return lambda i, c: i.bytes[:-4] + c.field(name).to_bytes(4, "little")


# ---- the program -----------------------------------------------------------------------------------------------------

#: The program: each kind of access, flags that are kept, saved and made again, slots of r13-r15, a loop, calls, an indirect jump. It runs on two machines:
#: where all pages are at one distance from their place in the host, so that spans fit; and where DATA's is not (``machine``).
PROGRAM = """
    mov rdx, [rbx]
    add rdx, r8
    mov [rsi + rcx*8 + 16], rdx
    movzx r12d, byte ptr [rdi + 7]
    cmp r8, 5
    mov r9, [rbp + 24]
    sete al
    inc r10
    mov [rsi], r9
    mov [rsi + 8], r9
    adc r11, 0
    xchg r13, r12
    add [r14], r15
    lea r15, [r13 + r10*4 + 9]
    or r9, r8
    mov r9, [rbp + 32]
    movaps xmm1, [rbx + 0x40]
    mov r12, [rbx + 0x48]
    movaps [rbx + 0x50], xmm1
    push r13
    pop rdx
    imul r12, r8, 7
    call 2f
    dec rcx
    jnz 3f
    hlt
2:  sub rdi, 8
    push ax
    pop ax
    mov rax, [rdi]
    ret
3:  test rcx, rcx
    jz 4f
    xor r10, [rbx + rcx*8 + 64]
    mov [rbx + rcx*8 + 72], r10
    mov rbp, 0x20300
4:  jmp 5f
5:  lea rax, [rip + 6f]
    jmp rax
6:  jmp 7f
    .org 0x1000
7:  jmp 0x1000
"""


def machine(source: str, *, translate: bool, options: int = 0, moved: bool = False) -> Machine:
    """moved: the page of data is not where all others are, from its address, so that no span fits there; the stack has been used before."""
    m = Machine(64, 0)
    assert lib.xl_bare_engine(m.c, translate, options) == 0
    if moved:
        for n in range(512):
            m.put(TABLE + 8 * n, (MOVED if n == DATA >> 12 else n << 12) | 7)
        m.put(m.system + lib.XL_BARE_PD, TABLE | 7)
        m["cr3"] = m["cr3"]
        m.code("push rax; pop rax; hlt", at=CODE)
        m["rsp"] = STACK
        assert m.run(WHOLE) == "halted"
    m.code(source, at=CODE)
    reset(m)
    return m


def reset(m: Machine) -> None:
    for name, value in START.items():
        m[name] = value
    m["rip"] = CODE
    m["halted"] = 0
    data = bytes(k * 7 + k // 256 * 3 & 255 for k in range(4096))
    m.write(DATA, data)
    m.write(MOVED, data[::-1])
    m.write(STACK - 64, bytes(128))


def outcome(m: Machine, budget: int) -> tuple:
    before = m["retired"]
    exit = m.run(budget)
    state = [m[name] for name in REGISTERS]
    state[-1] -= before
    return exit, *state, m.read(DATA, 0x600), m.read(MOVED, 0x600), m.read(STACK - 64, 128)


def translated(*, moved: bool = False) -> tuple[Machine, Code]:
    """A machine that has run the program once, by translation, and is ready to run it again."""
    m = machine(PROGRAM, translate=True, moved=moved)
    m.run(WHOLE)
    reset(m)
    return m, Code(m)


def outcomes(m: Machine) -> list[tuple]:
    found = []
    for budget in BUDGETS:
        reset(m)
        found.append(outcome(m, budget))
    return found
