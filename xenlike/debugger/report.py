"""What a guest of machine code looked like when it crashed: text for people.

Owns: the wording. Called by: ``Host`` when a domain of machine code crashes (``Domain.crash_report``), gdb's ``monitor`` commands. Reads
registers and memory of a domain that stands still, and never fails: what cannot be read is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlike.engine import ffi, lib

if TYPE_CHECKING:
    from xenlike.domain import Domain

__all__ = ["crash_report", "events_text", "vcpu_text", "walk_text"]

_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_FLAGS = ((11, "OF"), (10, "DF"), (9, "IF"), (8, "TF"), (7, "SF"), (6, "ZF"), (4, "AF"), (2, "PF"), (0, "CF"), (14, "NT"), (18, "AC"))
_ENTRY_FLAGS = ((1, "RW"), (2, "U"), (5, "A"), (6, "D"), (7, "PSE"), (8, "G"), (63, "NX"))
_TYPES = {0: "untyped", 1: "L1", 2: "L2", 3: "L3", 4: "L4", 5: "descriptors", 6: "shared", 7: "writable"}
_CODE_BEFORE, _CODE_AFTER, _STACK_WORDS, _EVENTS = 48, 32, 16, 20


def _regs(domain: "Domain", number: int) -> Any:
    vcpu = lib.xl_vcpu(domain.host.c, domain.domid, number)
    state = ffi.new("struct xl_cpu_state *")
    return None if vcpu == ffi.NULL or lib.xl_vcpu_state(vcpu, state) else state


def _read(domain: "Domain", number: int, va: int, n: int) -> bytes:
    buf = ffi.new("u8[]", n)
    return b"" if lib.xl_guest_read(lib.xl_vcpu(domain.host.c, domain.domid, number), va, buf, n, ffi.NULL) else bytes(ffi.buffer(buf))


def vcpu_text(domain: "Domain", number: int) -> str:
    """Registers of a vCPU."""
    r = _regs(domain, number)
    if r is None:
        return f"vCPU {number} has no registers: it does not run machine code"
    g = r.regs
    flags = " ".join(name for bit, name in _FLAGS if g.rflags >> bit & 1)
    rows = [f"vCPU {number}, {'kernel' if r.kernel_mode else 'user'} mode",
            f"rip {g.cs:04x}:{g.rip:016x}   rflags {g.rflags:08x} {flags}"]
    for row in range(0, 16, 4):
        rows.append("  ".join(f"{name:>3} {getattr(g, name):016x}" for name in _NAMES[row:row + 4]))
    rows.append(f"ss {g.ss:04x}  ds {g.ds:04x}  es {g.es:04x}  fs {g.fs:04x} base {r.fs_base:016x}  gs {g.gs:04x} base {r.gs_base:016x}")
    rows.append(f"cr0 {r.cr0:08x}  cr2 {r.cr2:016x}  cr3 {r.cr3:016x}  cr4 {r.cr4:08x}  kernel gs base {r.kernel_gs_base:016x}")
    return "\n".join(rows)


def _decoder(domain: "Domain", number: int) -> Any:
    import capstone

    r = _regs(domain, number)
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32}.get(r.mode if r else 64, capstone.CS_MODE_64)
    return capstone.Cs(capstone.CS_ARCH_X86, mode)


def code_text(domain: "Domain", number: int, rip: int) -> str:
    """The instructions around ``rip``, which is marked."""
    after = next((data for n in range(_CODE_AFTER, 0, -1) if (data := _read(domain, number, rip, n))), b"")
    if not after:
        return f"{rip:#x} cannot be read"
    md, lines = _decoder(domain, number), []
    for back in range(_CODE_BEFORE, 0, -1):     # the farthest start whose instructions end exactly at rip
        before = _read(domain, number, rip - back, back) if rip >= back else b""
        found = list(md.disasm(before, rip - back)) if before else []
        if found and found[-1].address + found[-1].size == rip:
            lines = [f"   {i.address:16x}  {i.bytes.hex(' '):<32} {i.mnemonic} {i.op_str}".rstrip() for i in found[-4:]]
            break
    shown = [f"   {i.address:16x}  {i.bytes.hex(' '):<32} {i.mnemonic} {i.op_str}".rstrip() for i in md.disasm(after, rip)][:5]
    shown = shown or [f"   {rip:16x}  {after[:15].hex(' ')}  (no instruction)"]
    return "\n".join([*lines, "=>" + shown[0][2:], *shown[1:]])


def stack_text(domain: "Domain", number: int, rsp: int) -> str:
    """The words from ``rsp`` up."""
    rows = []
    for at in range(rsp & ~7, (rsp & ~7) + 8 * _STACK_WORDS, 32):
        words = [_read(domain, number, at + n & 2**64 - 1, 8) for n in range(0, 32, 8)]
        rows.append(f"   {at:16x}  " + " ".join(f"{int.from_bytes(w, 'little'):016x}" if w else "-" * 16 for w in words))
    return "\n".join(rows)


def walk_text(domain: "Domain", number: int, va: int) -> str:
    """The page-table entries that translate ``va`` for a vCPU in its current mode."""
    r = _regs(domain, number)
    if r is None or va != (va & 2**47 - 1) and va >> 47 != 2**17 - 1:
        return f"{va:#x} is not canonical"
    host, table, rows, pc = domain.host.c, r.cr3 >> 12 & 0xFFFFFFFFFF, [], not domain.program.paravirtual
    if pc and not r.efer & 1 << 10:
        return f"   {va:#x}: no 4-level paging (cr0 {r.cr0:#x}, cr4 {r.cr4:#x})"
    frame = "page" if pc else "mfn"
    for level in range(4, 0, -1):
        index = va >> (12 + 9 * (level - 1)) & 511
        buf = ffi.new("u8[8]")
        if lib.xl_pc_read(host, domain.domid, table * 4096 + index * 8, buf, 8) if pc else (
                lib.xl_frame_read(host, lib.DOMID_INVALID, table, index * 8, buf, 8)):
            rows.append(f"   L{level} {frame} {table:#x} cannot be read")
            break
        entry = int.from_bytes(ffi.buffer(buf), "little")
        present = entry & 1
        flags = " ".join(name for bit, name in _ENTRY_FLAGS if entry >> bit & 1)
        rows.append(f"   L{level}[{index:3}] in {frame} {table:#7x}: {entry:016x} {flags if present else 'not present'}")
        if not present or level > 1 and entry >> 7 & 1:
            break
        table = entry >> 12 & 0xFFFFFFFFFF
    else:
        info = ffi.new("struct xl_frame_info *")
        if not pc and not lib.xl_frame_info(host, table, info):
            rows.append(f"   mfn {table:#x}: domain {info.owner}'s, {_TYPES.get(info.type, info.type)} x{info.type_count}, {info.count} references")
    return "\n".join(rows)


def events_text(domain: "Domain", n: int) -> str:
    """The domain's last ``n`` trace events."""
    return "\n".join(f"   {event}" for event in [e for e in domain.host.trace(8192) if e.domid == domain.domid][-n:])


def crash_report(domain: "Domain", number: int = 0) -> str:
    """Registers, code, stack, the page walk of the faulting address, the last events. ``number``: the vCPU that crashed it."""
    r = _regs(domain, number)
    if r is None:
        return ""
    parts = [vcpu_text(domain, number), "code:", code_text(domain, number, r.regs.rip), "stack:", stack_text(domain, number, r.regs.rsp)]
    if r.cr2:
        parts += [f"page walk of cr2 {r.cr2:#x}:", walk_text(domain, number, r.cr2)]
    return "\n".join([*parts, "last events (time in ns, vCPU, event):", events_text(domain, _EVENTS)])
