"""The PV64 domain builder: lays an image out in pseudo-physical memory, builds page tables and start_info (xen-abi section 1).

Owns: nothing; works on a domain that is paused and has no memory yet. Called by: ``Host.create``. The frames it fills are the
domain's own, written through the choke point; the L4 is pinned before the domain runs, so Xen's checks hold from the start.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

from xenlike.engine import check, ffi, lib
from xenlike.toolstack.errors import ToolstackError

__all__ = ["BuildError", "Built", "Image", "build"]

PAGE = 4096
PAGE_SHIFT = 12
_LEAF, _LEAF_TABLE, _TABLE = 0x23, 0x21, 0x67       # P|RW|A; P|A (a table maps read-only); P|RW|U|A|D   (1.5)
_PAD_PAGES = 128                                    # 512 KiB mapped behind the boot stack
_END_ALIGN = 1024                                   # the mapping ends on 4 MiB
_STORE_REF, _CONSOLE_REF = 1, 0                     # GNTTAB_RESERVED_XENSTORE, GNTTAB_RESERVED_CONSOLE


class BuildError(ToolstackError):
    """The image does not fit the memory, or the hypervisor refused; the text says what to change."""


@dataclass(frozen=True)
class Image:
    """What is to be laid out: ``pages`` pages from pfn 0, of which ``segments`` [(pfn, bytes)] are filled."""

    virt_base: int
    pages: int
    segments: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(frozen=True)
class Built:
    """Where everything went. Addresses are virtual unless named mfn."""

    virt_base: int
    nr_pages: int
    image_pages: int
    mapped_pages: int
    start_info: int
    stack_top: int
    store_mfn: int
    console_mfn: int
    l4_mfn: int


@dataclass(frozen=True)
class _Layout:
    """Section 1.4, as pfns."""

    p2m: int
    start_info: int
    store: int
    console: int
    tables: int
    nr_tables: int
    stack: int
    end: int


def _tables_for(virt_base: int, pages: int) -> tuple[int, int, int]:
    """How many L3, L2 and L1 tables map ``pages`` pages from ``virt_base``."""
    last = virt_base + pages * PAGE - 1
    return (last >> 39) - (virt_base >> 39) + 1, (last >> 30) - (virt_base >> 30) + 1, (last >> 21) - (virt_base >> 21) + 1


def plan(image: Image, nr_pages: int) -> _Layout:
    """Places the parts behind the image. Raises BuildError."""
    p2m = image.pages
    start_info = p2m + -(-nr_pages * 8 // PAGE)
    tables = start_info + 3
    extra = _PAD_PAGES + 1
    nr_tables = 0
    while True:                                     # more tables need more mapping, which may need more tables
        end = -(-(tables + nr_tables + extra) // _END_ALIGN) * _END_ALIGN
        if end > nr_pages:                          # small domains: no rounding, and as much of the pad as there is
            end = nr_pages
        need = 1 + sum(_tables_for(image.virt_base, end))
        if need == nr_tables:
            break
        nr_tables = need
    stack = tables + nr_tables
    if stack >= end:
        raise BuildError(f"the image needs {stack + 1} pages and the domain has {nr_pages}: give it at least "
                         f"memory = \"{(stack + 1 + 255) // 256}M\"")
    return _Layout(p2m, start_info, start_info + 1, start_info + 2, tables, nr_tables, stack, end)


def largest_image(virt_base: int, nr_pages: int, limit: int) -> Image:
    """An empty image that leaves all but a little of the memory mapped (at most ``limit`` pages): a Python guest's heap."""
    mapped = min(nr_pages, limit)
    if mapped >= _END_ALIGN:
        mapped = mapped // _END_ALIGN * _END_ALIGN
    behind = -(-nr_pages * 8 // PAGE) + 3 + 1 + sum(_tables_for(virt_base, mapped)) + 1
    pad = _PAD_PAGES if mapped > behind + 2 * _PAD_PAGES else 0
    return Image(virt_base, max(0, mapped - behind - pad))


def build(host_c: Any, domid: int, image: Image, nr_pages: int, *, max_pages: int, privileged: bool, cmdline: str,
          store_port: int, console_port: int) -> Built:
    """Gives the domain its memory and lays the image out. Raises BuildError, XenError."""
    layout = plan(image, nr_pages)
    mfns_c = ffi.new("u32[]", nr_pages)
    rc = lib.xl_domain_populate(host_c, domid, 0, nr_pages, mfns_c)
    if rc == -lib.XEN_ENOMEM:
        raise BuildError(f"the machine has no {nr_pages * PAGE >> 20} MiB free for domain {domid}: raise the host's memory, or "
                         "lower the domain's")
    check(rc, "populate", domid)
    mfns = array("I", bytes(ffi.buffer(mfns_c)))

    def write(pfn: int, data: bytes) -> None:
        for at in range(0, len(data), PAGE):
            part = data[at:at + PAGE]
            check(lib.xl_frame_write(host_c, domid, mfns[pfn + at // PAGE], 0, part, len(part)), "build", domid)

    for pfn, data in image.segments:
        write(pfn, data)
    write(layout.p2m, array("Q", mfns).tobytes())
    # Nobody serves the rings yet: connection stays "disconnected" until the back end attaches.
    check(lib.xl_frame_write(host_c, domid, mfns[layout.console], 3088, b"\1", 1), "build", domid)
    l4_mfn = _page_tables(image, layout, mfns, write)
    write(layout.start_info, _start_info(host_c, domid, image, layout, mfns, nr_pages=nr_pages, privileged=privileged,
                                         cmdline=cmdline, store_port=store_port, console_port=console_port))

    check(lib.xl_domain_pin_l4(host_c, domid, l4_mfn), "pin the initial page tables", domid)
    check(lib.xl_vcpu_set_bases(lib.xl_vcpu(host_c, domid, 0), l4_mfn, 0), "set base pointer", domid)
    check(lib.xl_domain_set_e820(host_c, domid, max_pages * PAGE), "set memory map", domid)
    if not privileged:
        for ref, pfn in ((_CONSOLE_REF, layout.console), (_STORE_REF, layout.store)):
            check(lib.xl_grant_seed(host_c, domid, ref, 0, mfns[pfn]), "seed grants", domid)
    va = lambda pfn: image.virt_base + pfn * PAGE  # noqa: E731
    return Built(image.virt_base, nr_pages, image.pages, layout.end, va(layout.start_info), va(layout.stack + 1),
                 mfns[layout.store], mfns[layout.console], l4_mfn)


def _page_tables(image: Image, layout: _Layout, mfns: array, write: Any) -> int:
    """L4, L3s, L2s, L1s, contiguous from ``layout.tables``. Returns the L4's mfn."""
    leaves = array("Q", [mfn << PAGE_SHIFT | _LEAF for mfn in mfns[:layout.end]])
    for pfn in range(layout.tables, layout.tables + layout.nr_tables):
        leaves[pfn] = mfns[pfn] << PAGE_SHIFT | _LEAF_TABLE
    counts = [1, *_tables_for(image.virt_base, layout.end)]
    first = [layout.tables]
    for count in counts[:-1]:
        first.append(first[-1] + count)
    entries = leaves
    for level in range(3, -1, -1):                  # L1s, then what maps them, up to the L4
        shift = 12 + 9 * (3 - level)
        start = image.virt_base >> shift & 511
        table = array("Q", bytes(counts[level] * PAGE))
        table[start:start + len(entries)] = entries
        write(first[level], table.tobytes())
        entries = array("Q", [mfns[first[level] + i] << PAGE_SHIFT | _TABLE for i in range(counts[level])])
    return mfns[layout.tables]


def _start_info(host_c: Any, domid: int, image: Image, layout: _Layout, mfns: array, *, nr_pages: int, privileged: bool,
                cmdline: str, store_port: int, console_port: int) -> bytes:
    """Section 1.6."""
    info = ffi.new("struct start_info *")
    out = ffi.new("struct xl_domain_info *")
    check(lib.xl_domain_info(host_c, domid, out), "domain info", domid)
    info.magic = b"xen-3.0-x86_64"
    info.nr_pages = nr_pages
    info.shared_info = out.shared_info_mfn << PAGE_SHIFT
    info.flags = (lib.SIF_PRIVILEGED | lib.SIF_INITDOMAIN if privileged else 0) | lib.SIF_VIRT_P2M_4TOOLS
    info.store_mfn = 0 if privileged else mfns[layout.store]
    info.store_evtchn = store_port
    info.console.domU.mfn = 0 if privileged else mfns[layout.console]
    info.console.domU.evtchn = console_port
    info.pt_base = image.virt_base + layout.tables * PAGE
    info.nr_pt_frames = layout.nr_tables
    info.mfn_list = image.virt_base + layout.p2m * PAGE
    line = cmdline.encode()
    if len(line) > 1023:
        raise BuildError(f"the command line has {len(line)} bytes; 1023 is the most a guest can be given")
    info.cmd_line = line
    return bytes(ffi.buffer(info))
