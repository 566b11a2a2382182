"""The core of the interpreter on a bare machine: paging, breakpoints, single-step, fetching, exact counts, order of events."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_kit import AC, AC_FLAG, CF, DB, GP, IF, PF, RF, SS, TF, UD, ZF, Machine, assemble, needs_assembler

from xenlike.engine import ffi, lib

READ, WRITE, EXEC = 0, 2, 16
P, W, U, RSVD, INSN = 1, 2, 4, 8, 16                # of error codes
NX = 1 << 63
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


def map_page(m: Machine, va: int, entry: int) -> None:
    """4 KiB pages for the low 2 MiB of a 64-bit machine, identity at first; `entry` for va."""
    table, pd = 0x20000, m.system + lib.XL_BARE_PD
    if m.word(pd) & 0x80:
        for n in range(512):
            m.put(table + 8 * n, n << 12 | 0x67)
        m.put(pd, table | 0x67)
    m.put(table + 8 * (va >> 12), entry)
    m["cr3"] = m["cr3"]


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
    m.code(f"mov ecx, 3\n again: mov eax, 1\n add ebx, eax\n inc byte ptr [rip + again + 1]\n dec ecx\n jnz again\n hlt", at=at)
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
