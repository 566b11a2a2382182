"""Registers as gdb numbers them: one table, from which the target description, ``g`` packets and single registers derive.

Owns: the table. Called by: ``server``, ``target``. Feature names are gdb's own (GDB manual, "i386 Features"), so that gdb knows which
register is the stack pointer; the last feature is ours, for what a hypervisor's user wants to see besides.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from xenlike.engine import ffi

__all__ = ["REGISTERS", "Register", "read_all", "target_xml", "read_one", "write_one"]


@dataclass(frozen=True)
class Register:
    """One row. ``where``: the part of ``struct xl_cpu_state`` that holds it ("regs", "dr", "fx", or "" for itself), ``at`` the field
    there, or its index, or the offset in the FXSAVE image."""

    name: str
    bits: int
    where: str
    at: int | str = ""
    type: str = ""
    feature: str = "core"
    writable: bool = True

    @property
    def size(self) -> int:
        """Bytes."""
        return self.bits // 8


_GPR = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_FX_ST, _FX_XMM = 32, 160
#: The x87 environment: (gdb's name, offset in the FXSAVE image, bytes there). The tag word is expanded: gdb wants two bits a register.
_FX_ENV = (("fctrl", 0, 2), ("fstat", 2, 2), ("ftag", 4, 1), ("fiseg", 12, 2), ("fioff", 8, 4), ("foseg", 20, 2), ("fooff", 16, 4), ("fop", 6, 2))

REGISTERS: tuple[Register, ...] = (
    *(Register(name, 64, "regs", name, {"rbp": "data_ptr", "rsp": "data_ptr"}.get(name, "int64")) for name in _GPR),
    Register("rip", 64, "regs", "rip", "code_ptr"),
    Register("eflags", 32, "regs", "rflags", "i386_eflags"),
    *(Register(name, 32, "regs", name, "int32", writable=False) for name in ("cs", "ss", "ds", "es", "fs", "gs")),
    *(Register(f"st{n}", 80, "fx", _FX_ST + 16 * n, "i387_ext") for n in range(8)),
    *(Register(name, 32, "fx", at, "int", writable=False) for name, at, _ in _FX_ENV),
    *(Register(f"xmm{n}", 128, "fx", _FX_XMM + 16 * n, "vec128", "sse") for n in range(16)),
    Register("mxcsr", 32, "fx", 24, "i386_mxcsr", "sse"),
    *(Register(name, 64, "", name, "int64", "segments") for name in ("fs_base", "gs_base")),
    *(Register(name, 64, "", name, "int64", "xen", writable=False) for name in ("cr0", "cr2", "cr3", "cr4", "kernel_gs_base")),
    *(Register(f"dr{n}", 64, "dr", n, "int64", "xen", writable=False) for n in (0, 1, 2, 3, 6, 7)),
    Register("kernel_mode", 32, "", "kernel_mode", "int32", "xen", writable=False),
)

_FEATURES = {"core": "org.gnu.gdb.i386.core", "sse": "org.gnu.gdb.i386.sse", "segments": "org.gnu.gdb.i386.segments", "xen": "org.xenlike.vcpu"}
_EFLAGS = {"": 1, "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16, "VM": 17, "AC": 18, "ID": 21}
_MXCSR = {"IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8, "ZM": 9, "OM": 10, "UM": 11, "PM": 12, "FZ": 15}


def _flags_type(name: str, fields: dict[str, int]) -> str:
    return f'<flags id="{name}" size="4">' + "".join(f'<field name="{f}" start="{b}" end="{b}"/>' for f, b in fields.items()) + "</flags>"


_TYPES = {
    "core": _flags_type("i386_eflags", _EFLAGS),
    "sse": '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
           '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/><vector id="v4i32" type="int32" count="4"/>'
           '<vector id="v2i64" type="int64" count="2"/><union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
           '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>'
           '<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>' + _flags_type("i386_mxcsr", _MXCSR),
}


def target_xml() -> bytes:
    """The target description for ``qXfer:features:read:target.xml``."""
    out = ['<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386:x86-64</architecture>']
    for feature, name in _FEATURES.items():
        rows = "".join(f'<reg name="{r.name}" bitsize="{r.bits}" type="{r.type}" regnum="{n}"/>'
                       for n, r in enumerate(REGISTERS) if r.feature == feature)
        out.append(f'<feature name="{name}">{_TYPES.get(feature, "")}{rows}</feature>')
    return "".join([*out, "</target>"]).encode()


def _full_tag(fx: bytes) -> int:
    """FTW with two bits a physical register: 0 valid, 1 zero, 2 special, 3 empty (SDM vol. 1, 8.1.7)."""
    top, tag = fx[3] >> 3 & 7, 0
    for physical in range(8):
        value = fx[_FX_ST + 16 * ((physical - top) & 7):][:10]
        mantissa, exponent = struct.unpack("<QH", value)
        if not fx[4] >> physical & 1:
            bits = 3
        elif exponent & 0x7FFF == 0x7FFF or (exponent & 0x7FFF == 0 and mantissa) or (exponent & 0x7FFF and not mantissa >> 63):
            bits = 2
        else:
            bits = 0 if mantissa else 1
        tag |= bits << 2 * physical
    return tag


def read_one(state: Any, register: Register) -> bytes:
    """The register's bytes, little-endian, from a ``struct xl_cpu_state``."""
    if register.where == "fx":
        fx = bytes(ffi.buffer(state.fx))
        if register.name == "ftag":
            return struct.pack("<I", _full_tag(fx))
        stored = next((size for name, _, size in _FX_ENV if name == register.name), register.size)
        return fx[register.at:register.at + stored].ljust(register.size, b"\0")
    part = getattr(state, register.where) if register.where else state
    value = part[register.at] if register.where == "dr" else getattr(part, register.at)
    return int(value).to_bytes(8, "little")[:register.size]


def read_all(state: Any) -> bytes:
    """What a ``g`` packet holds."""
    return b"".join(read_one(state, register) for register in REGISTERS)


def write_one(state: Any, register: Register, data: bytes) -> None:
    """Sets a register in a ``struct xl_cpu_state``. Raises ValueError: its length is wrong, or it cannot be set."""
    if len(data) != register.size or not register.writable:
        raise ValueError(register.name)
    if register.where == "fx":
        ffi.buffer(state.fx)[register.at:register.at + len(data)] = data
    else:
        setattr(getattr(state, register.where) if register.where else state, register.at, int.from_bytes(data, "little"))
