"""A machine for tests of the x86 system part: descriptor tables, gates, and handlers that stop.

Every vector's handler is one ``hlt`` at ``HANDLERS + 16 * vector``, so a run ends where the first event was delivered, and its frame
can be read from the stack. Vector 0x20 has DPL 3: ``int 0x20`` is how test code ends at any privilege level.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

import x86_kit
from xenlike.engine import lib
from x86_kit import DB, BP, UD, DF, TS, NP, SS, GP, PF, assemble  # noqa: F401 - the tests have them from here

SIZE = 0x200000
SYSTEM = SIZE - lib.XL_BARE_SYSTEM
GDT, IDT, TSS = 0x2000, 0x3000, SYSTEM + lib.XL_BARE_TSS
CODE, HANDLERS, STACK, EXIT, OF = 0x10000, 0x5000, lib.XL_BARE_STACK, 0x20, 4
CODE0, DATA0, CODE3, DATA3, TR, CODE64, CODE16, DATA16 = 0x08, 0x10, 0x1b, 0x23, 0x28, 0x38, 0x40, 0x48      # of xl_bare_setup's GDT
FREE = 0x50                         # the first selector that is a test's own
HALTED, SHUTDOWN = "halted", "shutdown"
END = f"int {EXIT}"
DONE = (EXIT, None)
IF, TF, NT, RF, VM, AC, IOPL3 = 1 << 9, 1 << 8, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 3 << 12
_WITH_ERROR = frozenset([8, 10, 11, 12, 13, 14, 17])
_STOPS = (b"\xf4" + bytes(15)) * 256


def descriptor(base: int = 0, limit: int = 0xfffff, access: int = 0x92, flags: int = 0xc) -> int:
    """A segment descriptor. access: bits 40-47 (P, DPL, S, type); flags: bits 52-55 (G, D/B, L, AVL)."""
    return (limit & 0xffff) | (base & 0xffffff) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24 & 0xff) << 56


def gate(selector: int, offset: int, kind: int, dpl: int = 0, present: bool = True, low: int = 0) -> int:
    """A gate's first 8 bytes. kind: its type; low: bits 32-39 (parameters, IST)."""
    return (offset & 0xffff) | selector << 16 | low << 32 | kind << 40 | dpl << 45 | present << 47 | (offset >> 16 & 0xffff) << 48


@functools.lru_cache(maxsize=None)
def _idt(bits: int) -> bytes:
    """The table in which every vector leads to its handler."""
    handlers = [HANDLERS + 16 * vector for vector in range(256)]
    if bits == 16:
        return b"".join(struct.pack("<HH", handler, 0) for handler in handlers)
    return b"".join(struct.pack("<Q", gate(CODE0, handler, 14, 3 if vector == EXIT else 0)) + bytes(8 * (bits == 64))
                    for vector, handler in enumerate(handlers))


class Frame(NamedTuple):
    """What a handler found on its stack. vector None: no handler; the code ended in a hlt of its own. rsp, ss None: not in the frame."""

    vector: int | None
    error: int | None = None
    rip: int = 0
    cs: int = 0
    rflags: int = 0
    rsp: int | None = None
    ss: int | None = None

    @property
    def what(self) -> tuple[int | None, int | None]:
        """Vector and error code."""
        return self.vector, self.error


class Rig(x86_kit.Machine):
    """A machine in a flat mode (16, 32, 64) that delivers events, with a GDT and an IDT of the test's own."""

    def __init__(self, bits: int, cpl: int = 0) -> None:
        super().__init__(bits, cpl, deliver=True, size=SIZE)
        self.again(cpl)

    def again(self, cpl: int) -> None:
        """All as at the beginning, except for memory outside of the tables."""
        assert lib.xl_bare_setup(self.c, self.bits, cpl) == 0
        self.write(GDT, self.read(SYSTEM + lib.XL_BARE_GDT, 0x50))
        self.write(HANDLERS, _STOPS)
        self.write(0 if self.bits == 16 else IDT, _idt(self.bits))
        self["gdtr.base"], self["gdtr.limit"] = GDT, 0x1ff
        if self.bits != 16:
            self["idtr.base"] = IDT

    def poke(self, address: int, size: int, value: int) -> None:
        self.put(address, value, size)

    def gdt(self, selector: int, *values: int) -> None:
        """Writes descriptors from `selector` on."""
        for n, value in enumerate(values):
            self.put(GDT + (selector & ~7) + 8 * n, value)

    def access(self, selector: int) -> int:
        """Byte 5 of a descriptor: P, DPL, S, type."""
        return self.read(GDT + (selector & ~7) + 5, 1)[0]

    def set_gate(self, vector: int, *, offset: int | None = None, selector: int = CODE0, kind: int = 14, dpl: int = 0, present: bool = True,
                 ist: int = 0) -> None:
        """Writes an IDT gate; as the rig has them if nothing else is said."""
        offset = HANDLERS + 16 * vector if offset is None else offset
        low = gate(selector, offset, kind, dpl, present, ist)
        if self.bits == 64:
            self.write(IDT + 16 * vector, struct.pack("<QQ", low, offset >> 32))
        else:
            self.put(IDT + 8 * vector, low)

    def load(self, source: str, bits: int | None = None, at: int = CODE) -> None:
        self.code(source, at=at, bits=bits or self.bits, enter=False)

    def start(self, source: str, bits: int | None = None, at: int = CODE) -> None:
        """Puts code there and rip to it (by the base of CS)."""
        self.load(source, bits, at)
        self["rip"] = at - self["cs.base"]
        self["halted"] = 0

    def go(self, budget: int = 10_000) -> str:
        """Runs on; how it ended."""
        return self.run(budget)

    def frame(self) -> Frame:
        """The frame of the handler that the last run ended in."""
        vector, rest = divmod(self["rip"] + self["cs.base"] - 1 - HANDLERS, 16)
        if rest or not 0 <= vector < 256:
            return Frame(None)
        at, size = self["rsp"], self.bits // 8
        if self.bits != 64:
            at = self["ss.base"] + (at if self["ss.attr"] & 0x400 else at & 0xffff)
        error = None
        if vector in _WITH_ERROR and self.bits != 16:
            error = self.word(at, size)
            at += size
        rip, cs, flags = (self.word(at + size * n, size) for n in range(3))
        rsp = ss = None
        if self.bits == 64 or (self.bits == 32 and self["cpl"] == 0 and (cs & 3 or flags & VM)):
            rsp, ss = self.word(at + 3 * size, size), self.word(at + 4 * size, size) & 0xffff
        return Frame(vector, error, rip, cs & 0xffff, flags, rsp, ss)

    def catch(self, source: str, bits: int | None = None, at: int = CODE, budget: int = 10_000) -> Frame:
        """Runs assembly until the first event's handler, or its own hlt."""
        self.start(source, bits, at)
        exit = self.go(budget)
        assert exit == HALTED, f"the run ended in {exit}, rip {self['rip']:#x}"
        return self.frame()
