"""Where an access of the interpreter goes on a bare machine, and which fault it has: paging, segments, canonical addresses, alignment."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_kit import AC, AC_FLAG, GP, INSN, NX, PF, RF, RSVD, SS, UD, ZF, Machine, P, U, W, map_page, needs_assembler

from xenlike.engine import lib

READ, WRITE, EXEC = 0, 2, 16
pytestmark = needs_assembler


# ---- paging ------------------------------------------------------------------------------------------------------------

FORMATS = {"32": 4, "pae": 8, "long": 8}            # entry size


class Paging:
    """Page tables of one format in a machine's RAM, and the SDM's rules again, written independently of the C."""

    def __init__(self, kind: str, *, wp: bool = True, nxe: bool = True, pse: bool = True) -> None:
        self.kind, self.size, self.wp, self.nxe, self.pse = kind, FORMATS[kind], wp, nxe and kind != "32", pse
        self.m = m = Machine(64 if kind == "long" else 32)
        self.tables = [0x10000, 0x11000, 0x12000, 0x13000] if kind == "long" else [0x11000, 0x13000] if kind == "32" else [0x10000, 0x11000, 0x13000]
        m["cr0"] = m["cr0"] & ~(1 << 16) | wp << 16 | 1 << 31
        m["cr4"] = (m["cr4"] & ~0x30) | (kind != "32") << 5 | pse << 4
        m["efer"] = m["efer"] & ~(1 << 11) | self.nxe << 11
        m["cr3"] = self.tables[0]
        self.bits = 10 if kind == "32" else 9
        self.shifts = {"32": [22, 12], "pae": [30, 21, 12], "long": [39, 30, 21, 12]}[kind]

    def entry_address(self, level: int, va: int) -> int:
        bits = 2 if self.kind == "pae" and level == 0 else self.bits
        return self.tables[level] + (va >> self.shifts[level] & ((1 << bits) - 1)) * self.size

    def set(self, level: int, va: int, entry: int) -> None:
        self.m.put(self.entry_address(level, va), entry, self.size)
        if self.kind == "pae" and level == 0:
            self.m[f"pdpte{va >> 30 & 3}"] = entry
        else:
            self.m["cr3"] = self.m["cr3"]           # flushes

    def entries(self, va: int) -> list[int]:
        return [self.m.word(self.entry_address(level, va), self.size) for level in range(len(self.shifts))]

    def expected(self, va: int, access: int, user: bool) -> tuple[int | None, int | None, list[int]]:
        """(pa, error, the entries afterwards) by vol. 3, 4.3-4.7."""
        entries, error = self.entries(va), (access & WRITE) | user * U | (INSN if access == EXEC and self.nxe else 0)
        writable = may_user = True
        no_exec = False
        for level, shift in enumerate(self.shifts):
            entry = entries[level]
            if not entry & 1:
                return None, error, entries
            if self.kind == "pae" and level == 0:
                continue                            # a register: no rights, no A
            last = shift == 12
            large = not last and entry >> 7 & 1 and {"32": self.pse, "pae": True, "long": True}[self.kind]
            reserved = 0
            if self.kind != "32":
                reserved = sum(1 << bit for bit in range(40, 52)) | (0 if self.nxe else NX)
                if self.kind == "pae":
                    reserved |= sum(1 << bit for bit in range(52, 63))
                if level == 0:
                    reserved |= 1 << 7
                    large = False
            if large:
                reserved |= sum(1 << bit for bit in range(13, shift))
            if entry & reserved:
                return None, error | P | RSVD, entries
            writable, may_user, no_exec = writable and bool(entry & 2), may_user and bool(entry & 4), no_exec or bool(entry & NX)
            if last or large:
                if user and not may_user or access == WRITE and not writable and (user or self.wp) or access == EXEC and no_exec:
                    return None, error | P, entries
                entries[level] |= 0x60 if access == WRITE else 0x20
                base = entry & 0xFFFFFFF000 & ~((1 << shift) - 1)
                return base | va & ((1 << shift) - 1), None, entries
            entries[level] |= 0x20
        raise AssertionError


def entry_values(kind: str, target: int, *, leaf: bool, ps: bool) -> st.SearchStrategy[int]:
    """Mostly present, with each rights bit, now and then a reserved one; PS where it means something."""
    wide = st.sampled_from([0] * 12 + [NX] * 4 + [1 << 40, 1 << 51, 1 << 52, 1 << 62, NX | 1 << 45]) if kind != "32" else st.just(0)
    flags = st.sampled_from([7] * 10 + [1, 3, 5, 6, 0])
    upper = st.sampled_from([0, 0x20, 0x60, 0x100] if leaf else [0, 0x20, 0x100])
    large = st.sampled_from([0] * 4 + ([] if leaf or not ps else [0x80, 0x80 | 1 << 13, 0x80 | 0x400000]))
    return st.builds(lambda f, u, w, ps: (ps | target & ~0x3FFFFF if ps else target) | f | u | w, flags, upper, wide, large)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_walks_agree_with_the_rules(kind: str, data: st.DataObject) -> None:
    """A wrong translation, error code, or accessed or dirty bit in one of the paging modes, large pages and reserved bits included."""
    paging = Paging(kind, wp=data.draw(st.booleans()), nxe=data.draw(st.booleans()), pse=data.draw(st.booleans()))
    va = 0x00403ABC if kind == "32" else 0x40203ABC
    for level in range(len(paging.shifts)):
        leaf = paging.shifts[level] == 12
        target = 0x23000 if leaf else paging.tables[level + 1]
        if kind == "pae" and level == 0:
            paging.set(0, va, target | data.draw(st.sampled_from([1, 1, 1, 0])))
        else:
            paging.set(level, va, data.draw(entry_values(kind, target, leaf=leaf, ps=kind != "32" or paging.pse)))
    access, user = data.draw(st.sampled_from([READ, WRITE, EXEC])), data.draw(st.booleans())
    pa, error, entries = paging.expected(va, access, user)
    got = paging.m.translate(va, access, user=user)
    assert got[1] == error, (got, error, [hex(e) for e in entries])
    if pa is not None and pa < paging.m.size:
        assert got[0] == pa
    if error is None:
        assert [hex(e) for e in paging.entries(va)] == [hex(e) for e in entries]
    elif error & P and not error & RSVD:            # refused for its rights: the leaf stays as it was
        assert paging.entries(va)[-1] == entries[-1]


def test_page_fault_is_delivered_with_its_error_code() -> None:
    """A handler would find a wrong error code, address, return address or stack on a user's write to a read-only page."""
    m = Machine(64, 3, deliver=True)
    m.gate(14, 0x2000)
    m.code("mov rdi, 0x30008\n fault: mov dword ptr [rdi], 1\n nop")
    m.code("pop rax\n mov rbx, cr2\n hlt", at=0x2000, enter=False)
    map_page(m, 0x30000, 0x30025)                   # P U A
    m["rflags"] = m["rflags"] | ZF
    assert m.run() == "halted"
    frame = m["rsp"]
    assert (m["rax"], m["rbx"]) == (P | W | U, 0x30008)
    assert frame == m.system + lib.XL_BARE_RING0_STACK - 40
    rip, cs, rflags, rsp, ss = (m.word(frame + 8 * n) for n in range(5))
    assert (rip, cs, rsp, ss) == (0x1007, lib.XL_BARE_CS3, lib.XL_BARE_STACK, lib.XL_BARE_DS3)
    assert rflags & (RF | ZF) == RF | ZF            # 17.3.1.1: RF is set in the image of a fault
    assert m["retired"] == 4                        # mov; pop, mov, hlt


def test_accessed_and_dirty_come_with_accesses() -> None:
    """A system that looks for dirty pages would miss those written after they had been read: the read's TLB entry must not serve."""
    m = Machine()
    m.code("mov eax, [0x30000]\n nop\n mov [0x30000], eax\n hlt")
    map_page(m, 0x30000, 0x30007)
    m.run(1)
    assert m.word(0x20000 + 8 * 0x30) == 0x30027
    m.run(2)
    assert m.word(0x20000 + 8 * 0x30) == 0x30067


def test_invlpg_and_cr3_forget_translations() -> None:
    """A page moved by the system would be read at its old place."""
    for flush in ("invlpg [0x30000]", "mov rdx, cr3\n mov cr3, rdx"):
        m = Machine()
        m.put(0x30000, 1), m.put(0x31000, 2)
        map_page(m, 0x30000, 0x30067)
        m.code(f"mov rax, [0x30000]\n mov qword ptr [{0x20000 + 8 * 0x30:#x}], 0x31067\n {flush}\n mov rbx, [0x30000]\n hlt")
        m.run()
        assert (m["rax"], m["rbx"]) == (1, 2), flush


def test_supervisor_accesses_of_the_cpu_ignore_cpl() -> None:
    """Loading a segment from user mode would fault where the GDT is in a supervisor page."""
    m = Machine(64, 3)
    m.code("mov eax, 0x23\n mov es, eax\n mov rax, [0xf0000]")
    map_page(m, 0xF0000, 0xF0063)
    assert m.trap() == (PF, P | U, 0xF0000)
    assert m["es.sel"] == 0x23


# ---- segments and addresses --------------------------------------------------------------------------------------------

def test_noncanonical_addresses() -> None:
    """#GP or #SS confused: vol. 3, 3.3.7.1."""
    for source, vector in (("mov rax, [rdi]", GP), ("mov [rdi], rax", GP), ("mov rax, [rbp]", SS), ("push rax", SS), ("mov rax, ds:[rbp]", SS),
                           ("lock inc qword ptr [rdi]", GP), ("mov rax, fs:[rbp]", GP)):
        m = Machine()
        m["rdi"] = m["rbp"] = 0x7FFFFFFFFFFC        # the last byte is beyond
        m["rsp"] = 0x8000_0000_0000 + 8
        m.code(source)
        assert m.trap() == (vector, 0, 0), source


@pytest.mark.parametrize("attr, limit, off, ok", [
    (0xC93, 0xFFFF, 0xFFFC, True), (0xC93, 0xFFFF, 0xFFFD, False), (0xC97, 0xFFF, 0x1000, True), (0xC97, 0xFFF, 0xFFF, False),
    (0xC97, 0xFFF, 0xFFFFFFFC, True), (0x897, 0xFFF, 0xFFFD, False), (0x897, 0xFFF, 0xFFFC, True), (0xC91, 0xFFFF, 0x1000, "read"),
    (0xC9B, 0xFFFF, 0x1000, "read"), (0xC99, 0xFFFF, 0x1000, False), (0x8C93, 0xFFFF, 0x1000, False)])
def test_segment_limits_and_types(attr: int, limit: int, off: int, ok: bool | str) -> None:
    """Limits off by one, expand-down segments, read-only and execute-only ones, null selectors (vol. 3, 5.3 and 5.5)."""
    for source, allowed in (("mov eax, es:[edi]", ok in (True, "read")), ("mov es:[edi], eax", ok is True), ("lock add es:[edi], eax", ok is True)):
        m = Machine(32)
        m["es.attr"], m["es.limit"], m["rdi"] = attr, limit, off
        m.code(source + "\n ud2", at=0x6000)
        assert m.trap()[:2] == ((UD, None) if allowed else (GP, 0)), source


def test_code_limit_cuts_instructions() -> None:
    """An instruction that ends beyond CS's limit would run, or one that ends at it would not."""
    for limit, vector in ((0x1006, UD), (0x1005, GP), (0x1001, GP), (0x1000, GP)):
        m = Machine(32)
        m.code("nop\n mov eax, 0x12345678\n nop")       # nop, 5 bytes, nop: 0x1000, 0x1001-0x1005, 0x1006
        m["cs.limit"] = limit
        if vector == UD:
            m.write(0x1006, b"\xf4")
            assert m.run(2) == "budget" and m["rax"] == 0x12345678
            assert m.run() == "halted"
        else:
            trap = m.trap()
            assert trap[:2] == (GP, 0)
            assert m["rip"] == (0x1006 if limit == 0x1005 else 0x1001)


def test_sixteen_bit_code_ends_at_its_limit() -> None:
    """IP would run on into the next 64 KiB in real mode instead of #GP."""
    m = Machine(16)
    m.write(0xFFFF, b"\x90")
    m["rip"] = 0xFFFF
    assert m.trap() == (GP, 0, 0)
    assert (m["rip"], m["retired"]) == (0x10000, 1)


def test_alignment_check() -> None:
    """#AC without AM, AC and CPL 3, or none with them; pages come first (vol. 3, table 6-2)."""
    for cpl, am, ac in ((3, 1, 1), (3, 0, 1), (3, 1, 0), (0, 1, 1)):
        m = Machine(64, cpl)
        m["cr0"] = m["cr0"] | am << 18
        m["rflags"] = m["rflags"] | ac * AC_FLAG
        m.code("mov eax, [0x4001]\n mov al, [0x4001]\n mov ax, [0x4002]\n lock add dword ptr [0x4002], 1\n ud2")
        assert m.trap()[:2] == ((AC, 0) if cpl and am and ac else (UD, None))
    m = Machine(64, 3)
    m["cr0"], m["rflags"] = m["cr0"] | 1 << 18, m["rflags"] | AC_FLAG
    map_page(m, 0x31000, 0)
    m.code("mov eax, [0x30ffd]")
    assert m.trap() == (PF, U, 0x31000)


def test_page_crossing_stores_are_all_or_nothing() -> None:
    """The first half of a store whose second page faults would be seen; or the pieces would land at the wrong places."""
    source = {"mov": "mov [0x30ffd], rax", "xchg": "xchg [0x30ffd], rax", "locked": "lock add [0x30ffd], rax", "vector": "movups [0x30ffd], xmm0"}
    for name, text in source.items():
        m = Machine()
        m.write(0x30FF0, bytes(16)), m.write(0x40000, bytes(16))
        map_page(m, 0x31000, 0x40061)               # present, read-only
        m["rax"] = 0x1122334455667788
        m.code(f"movq xmm0, rax\n {text}\n ud2")
        assert m.trap() == (PF, P | W, 0x31000), name
        assert m.read(0x30FF0, 16) == bytes(16)
        map_page(m, 0x31000, 0x40067)
        assert m.trap()[0] == UD
        assert m.read(0x30FFD, 3) + m.read(0x40000, 5) == bytes.fromhex("8877665544332211"), name
