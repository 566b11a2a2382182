"""The builder of plain PCs: memory, the image, and what its boot protocol hands over.

Owns the layout of low memory; works on a domain that is paused and has no memory yet. Called by ``xenlike.program``. Multiboot Specification
0.6.96, section 3.3; PVH's hvm_start_info (xen-abi 9.1); Intel's MultiProcessor Specification 1.4, chapter 4.

RAM is one piece from 0. What the memory map calls usable leaves out the last KiB below 640 KiB, where the MP table is, and the hole up to
1 MiB (which is RAM all the same: a guest that writes to a screen at 0xb8000 does no harm). Boot information is at 0x9000 of low memory, below
which and above which everything is free; modules lie behind the image, on pages.
"""

from __future__ import annotations

import struct

from xenlike.engine import check, ffi, lib
from xenlike.loaders.pc import PcImage
from xenlike.toolstack.builder import BuildError, Built

__all__ = ["Modules", "build_pc"]

PAGE, MIB = 4096, 1 << 20
_INFO, _INFO_END = 0x9000, 0xB000       # boot information
_LOW_END, _HIGH = 0x9FC00, MIB          # usable: [0, _LOW_END) and [_HIGH, memory)
_MP_FLOAT, _MP_TABLE = 0xF0000, 0xF0010
_MAX_CMDLINE = 4095
_APIC = 0xFEE00000
_MAX_MEMORY = 3 << 30
_LOADER = b"xenlike\0"
_PVH_MAGIC, _MULTIBOOT_MAGIC = 0x336EC578, 0x2BADB002
_RAM, _RESERVED = 1, 2

Modules = list[tuple[str, bytes]]       # (command line, contents)


def build_pc(host_c: object, domid: int, image: PcImage, memory: int, *, nr_vcpus: int, cmdline: str, modules: Modules) -> Built:
    """Gives the domain its memory, lays the image out, and sets vCPU 0 to its entry. Raises BuildError, XenError."""
    line = cmdline.encode(errors="surrogateescape")
    if len(line) > _MAX_CMDLINE:
        raise BuildError(f"the command line has {len(line)} bytes; {_MAX_CMDLINE} is the most a guest can be given", "cmdline")
    if memory > _MAX_MEMORY:
        raise BuildError(f"{memory >> 20} MiB: a PC has at most {_MAX_MEMORY >> 20}, as no hole is cut into its memory for devices")
    if image.start < _INFO_END and image.end > _INFO:
        raise BuildError(f"the image is at {image.start:#x} to {image.end:#x}: {_INFO:#x} to {_INFO_END:#x} holds the boot information", "kernel")
    if image.start < _HIGH and image.end > _LOW_END:
        raise BuildError(f"the image is at {image.start:#x} to {image.end:#x}: there is no RAM at {_LOW_END:#x} to {_HIGH:#x}", "kernel")
    placed, at = [], -(-max(image.end, _HIGH) // PAGE) * PAGE
    for text, data in modules:
        placed.append((at, len(data), text))
        at = -(-(at + len(data)) // PAGE) * PAGE
    if max(at, image.end) > memory:
        need = -(-max(at, image.end) // MIB)
        raise BuildError(f"the image ends at {image.end:#x}, with its modules at {at:#x}, and the domain has {memory:#x} bytes: give it at "
                         f"least memory = \"{need}M\"")
    rc = lib.xl_pc_populate(host_c, domid, memory // PAGE)
    if rc == -lib.XEN_ENOMEM:
        raise BuildError(f"the machine has no {memory >> 20} MiB free for domain {domid}: raise the host's memory, or lower the domain's")
    check(rc, "populate", domid)

    def write(pa: int, data: "bytes | memoryview") -> None:
        check(lib.xl_pc_write(host_c, domid, pa, ffi.from_buffer(data), len(data)), f"write at {pa:#x}", domid)

    for pa, data in image.segments:
        write(pa, data)
    for (pa, _, _), (_, data) in zip(placed, modules):
        write(pa, data)
    float_at, table = _mp_table(nr_vcpus)
    write(_MP_TABLE, table)
    write(_MP_FLOAT, float_at)
    make = _multiboot_info if image.protocol == "multiboot" else _pvh_info
    info = make(memory, (image.file.encode(errors="surrogateescape") + b" " if image.protocol == "multiboot" else b"") + line, placed)
    if len(info) > _INFO_END - _INFO:
        raise BuildError(f"the boot information has {len(info)} bytes; {_INFO_END - _INFO} is the most: shorten the command line", "cmdline")
    write(_INFO, info)
    check(lib.xl_pc_start(lib.xl_vcpu(host_c, domid, 0), image.entry, _MULTIBOOT_MAGIC if image.protocol == "multiboot" else 0, _INFO),
          "set the entry", domid)
    return Built(0, memory // PAGE, -(-image.end // PAGE), 0, 0, 0, 0, 0, 0)


def _memory_map(memory: int) -> list[tuple[int, int, int]]:
    """(address, size, type)."""
    return [(0, _LOW_END, _RAM), (_LOW_END, _HIGH - _LOW_END, _RESERVED), (_HIGH, memory - _HIGH, _RAM), (_APIC, PAGE, _RESERVED)]


class _Block:
    """Bytes that will stand at ``_INFO``: a header whose place is known, and parts behind it that it points to."""

    def __init__(self, header: int) -> None:
        self.bytes = bytearray(header)

    def add(self, data: bytes) -> int:
        """Appends ``data`` on 8 bytes; returns its guest-physical address."""
        self.bytes += bytes(-len(self.bytes) % 8)
        at = _INFO + len(self.bytes)
        self.bytes += data
        return at


def _multiboot_info(memory: int, line: bytes, modules: list[tuple[int, int, str]]) -> bytes:
    block = _Block(116)
    flags = 1 | 2 | 4 | 1 << 6 | 1 << 9 | (8 if modules else 0)         # mem, boot device, cmdline, mmap, loader name, modules
    cmdline = block.add(line + b"\0")
    rows = [struct.pack("<IIII", at, at + n, block.add(text.encode() + b"\0"), 0) for at, n, text in modules]
    mods = block.add(b"".join(rows))
    mmap = b"".join(struct.pack("<IQQI", 20, *row) for row in _memory_map(memory))
    mmap_at, name = block.add(mmap), block.add(_LOADER)
    struct.pack_into("<IIIIIII", block.bytes, 0, flags, _LOW_END >> 10, memory - _HIGH >> 10, 0xFFFFFFFF, cmdline, len(modules), mods)
    struct.pack_into("<II", block.bytes, 44, len(mmap), mmap_at)
    struct.pack_into("<I", block.bytes, 64, name)
    return bytes(block.bytes)


def _pvh_info(memory: int, line: bytes, modules: list[tuple[int, int, str]]) -> bytes:
    block = _Block(56)
    cmdline = block.add(line + b"\0")
    mods = block.add(b"".join(struct.pack("<QQQQ", at, n, block.add(text.encode() + b"\0"), 0) for at, n, text in modules))
    rows = _memory_map(memory)
    mmap = block.add(b"".join(struct.pack("<QQII", *row, 0) for row in rows))
    struct.pack_into("<IIIIQQQQII", block.bytes, 0, _PVH_MAGIC, 1, 0, len(modules), mods if modules else 0, cmdline, 0, mmap, len(rows), 0)
    return bytes(block.bytes)


def _summed(data: bytes, at: int) -> bytes:
    """``data`` with the byte at ``at`` such that all of them add up to 0."""
    return data[:at] + bytes([-sum(data) & 0xFF]) + data[at + 1:]


def _mp_table(nr_vcpus: int) -> tuple[bytes, bytes]:
    """The floating pointer and the table: the processors, the ISA bus; there is no I/O APIC."""
    cpus = b"".join(struct.pack("<BBBBIIII", 0, n, 0x14, 1 | (n == 0) << 1, 0x106CA, 0x201, 0, 0) for n in range(nr_vcpus))
    entries, count = cpus + struct.pack("<BB6s", 1, 0, b"ISA   "), nr_vcpus + 1
    table = struct.pack("<4sHBB8s12sIHHIHBB", b"PCMP", 44 + len(entries), 4, 0, b"XENLIKE ", b"PC          ", 0, 0, count, _APIC, 0, 0, 0)
    pointer = struct.pack("<4sIBBB5s", b"_MP_", _MP_TABLE, 1, 4, 0, bytes(5))
    return _summed(pointer, 10), _summed(table + entries, 7)
