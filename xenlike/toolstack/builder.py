"""The PV64 domain builder: lays an image out in pseudo-physical memory, builds page tables and start_info (xen-abi section 1).

Owns: nothing; works on a domain that is paused and has no memory yet. Called by: ``Host.create``. The frames it fills are the
domain's own, written through the choke point; the L4 is pinned before the domain runs, so Xen's checks hold from the start.

pfn 0 is at ``virt_base``. From there up, mapped: the image, the RAM disk, the P2M, start_info, the two rings, the page tables, the boot
stack, and free memory to the next 4 MiB. Behind what is mapped: the RAM disk of an image with MOD_START_PFN; the P2M of one with
INIT_P2M, and the tables that map it there.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xenlike.engine import check, ffi, lib
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import KernelImage, check_range
from xenlike.toolstack.errors import ToolstackError

__all__ = ["BuildError", "Built", "Image", "build"]

PAGE = 4096
PAGE_SHIFT = 12
_LEAF, _LEAF_TABLE, _TABLE = 0x23, 0x21, 0x67       # P|RW|A; P|A (a table maps read-only); P|RW|U|A|D   (1.5)
_PAD_PAGES = 128                                    # 512 KiB mapped behind the boot stack
_END_ALIGN = 1024                                   # the mapping ends on 4 MiB
_STORE_REF, _CONSOLE_REF = 1, 0                     # GNTTAB_RESERVED_XENSTORE, GNTTAB_RESERVED_CONSOLE
_MAX_CMDLINE = 1023


class BuildError(ToolstackError):
    """The image does not fit the memory, or the hypervisor refused; the text says what to change. ``key`` is the setting to blame."""

    def __init__(self, message: str, key: str = "memory") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Image:
    """What is to be laid out: ``pages`` pages from ``virt_base``, of which ``segments`` [(offset in bytes, bytes)] are filled.

    ``hypercall_page`` is a page number. ``init_p2m`` is where the P2M is to be mapped, None: behind the image. ``mod_start_pfn``: the RAM
    disk need not be mapped. ``pad``: pages that must be mapped behind the boot stack.
    """

    virt_base: int
    pages: int
    segments: Sequence[tuple[int, bytes | memoryview]] = ()
    hypercall_page: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: bool = False
    pad: int = 0

    @classmethod
    def of_kernel(cls, kernel: KernelImage) -> "Image":
        """The layout that an image file asks for."""
        return cls(kernel.virt_base, kernel.pages, kernel.segments, kernel.hypercall_page, kernel.init_p2m, kernel.mod_start_pfn, _PAD_PAGES)


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
    """Section 1.4, as pfns. ``needed`` is how many pages the domain must have."""

    ramdisk: int
    p2m: int
    p2m_pages: int
    p2m_tables: int
    nr_p2m_tables: int
    start_info: int
    store: int
    console: int
    tables: int
    nr_tables: int
    stack: int
    end: int
    needed: int


def _table_counts(va: int, pages: int) -> list[int]:
    """How many L4, L3, L2 and L1 tables map ``pages`` pages from ``va``."""
    last = va + pages * PAGE - 1
    return [1, *((last >> shift) - (va >> shift) + 1 for shift in (39, 30, 21))]


def _nr_tables(virt_base: int, pages: int) -> int:
    return sum(_table_counts(virt_base, pages))


def _layout(image: Image, nr_pages: int, ramdisk_pages: int) -> _Layout:
    """Places the parts for a domain of ``nr_pages``, whether or not they fit."""
    cursor = image.pages
    ramdisk = p2m = -1
    if not image.mod_start_pfn:
        ramdisk, cursor = cursor, cursor + ramdisk_pages
    p2m_pages = -(-nr_pages * 8 // PAGE)
    if image.init_p2m is None:
        p2m, cursor = cursor, cursor + p2m_pages
    start_info, tables = cursor, cursor + 3
    behind = (ramdisk_pages if image.mod_start_pfn else 0) + (
        0 if image.init_p2m is None else p2m_pages + sum(_table_counts(image.init_p2m, p2m_pages)) - 1)
    base_pfn = image.virt_base >> PAGE_SHIFT
    nr_tables = 0
    while True:                                     # more tables need more mapping, which may need more tables
        least = tables + nr_tables + 1 + image.pad
        end = -(-(base_pfn + tables + nr_tables + 1 + _PAD_PAGES) // _END_ALIGN) * _END_ALIGN - base_pfn
        end = max(least, min(end, nr_pages - behind))       # small domains: no rounding, and as much of the pad as there is
        need = _nr_tables(image.virt_base, end)
        if need <= nr_tables:
            break
        nr_tables = need
    behind_at = end
    if image.mod_start_pfn:
        ramdisk, behind_at = end, end + ramdisk_pages
    nr_p2m_tables = 0
    if image.init_p2m is not None:
        p2m, behind_at = behind_at, behind_at + p2m_pages
        mapped = set(_table_keys(image.virt_base, end))
        nr_p2m_tables = sum(key not in mapped for key in _table_keys(image.init_p2m, p2m_pages))
    return _Layout(ramdisk, p2m, p2m_pages, behind_at, nr_p2m_tables, start_info, start_info + 1, start_info + 2, tables, nr_tables,
                   tables + nr_tables, end, max(end, least) + behind)


def plan(image: Image, nr_pages: int, ramdisk_pages: int = 0) -> _Layout:
    """Places the parts. Raises BuildError."""
    if image.pages + ramdisk_pages > nr_pages:      # before anything is counted in pages of it
        least = image.pages + ramdisk_pages
    elif (layout := _layout(image, nr_pages, ramdisk_pages)).needed > nr_pages:
        least = layout.needed
    else:
        _check_addresses(image, layout)
        return layout
    hint = ""
    if least < 1 << 28:
        for _ in range(4):                          # a larger domain has a larger P2M
            least = max(least, _layout(image, least, ramdisk_pages).needed)
        hint = f": give it at least memory = \"{(least + 255) // 256}M\""
    parts = f"the image needs {image.pages} pages" + (f", the RAM disk {ramdisk_pages}" if ramdisk_pages else "")
    raise BuildError(f"{parts}, with what belongs to them {least}, and the domain has {nr_pages}{hint}")


def _check_addresses(image: Image, layout: _Layout) -> None:
    try:
        check_range("note VIRT_BASE", image.virt_base, image.virt_base + layout.end * PAGE)
        if image.init_p2m is not None:
            end = image.init_p2m + layout.p2m_pages * PAGE
            check_range("note INIT_P2M", image.init_p2m, end)
            if end > image.virt_base:
                raise LoadError(f"{image.init_p2m:#x}: a P2M of {layout.p2m_pages} pages there reaches VIRT_BASE, {image.virt_base:#x}",
                                field="note INIT_P2M")
    except LoadError as error:
        raise BuildError(str(error), "kernel") from None


def largest_image(virt_base: int, nr_pages: int, limit: int) -> Image:
    """An empty image that leaves all but a little of the memory mapped (at most ``limit`` pages): a Python guest's heap."""
    mapped = min(nr_pages, limit)
    if mapped >= _END_ALIGN:
        mapped = mapped // _END_ALIGN * _END_ALIGN
    behind = -(-nr_pages * 8 // PAGE) + 3 + _nr_tables(virt_base, mapped) + 1
    pad = _PAD_PAGES if mapped > behind + 2 * _PAD_PAGES else 0
    return Image(virt_base, max(0, mapped - behind - pad))


class _Memory:
    """The domain's pages, by pfn, written through the choke point."""

    def __init__(self, host_c: Any, domid: int, mfns_c: Any, nr_pages: int) -> None:
        self._host_c, self._domid = host_c, domid
        self.mfns = array("I", bytes(ffi.buffer(mfns_c)))
        self.nr_pages = nr_pages

    def write(self, at: int, data: "bytes | memoryview") -> None:
        """Bytes at ``at`` of pseudo-physical memory."""
        source, total, done = ffi.from_buffer(data), len(data), 0
        while done < total:
            pfn, offset = divmod(at + done, PAGE)
            n = min(PAGE - offset, total - done)
            check(lib.xl_frame_write(self._host_c, self._domid, self.mfns[pfn], offset, source + done, n), "build", self._domid)
            done += n


def build(host_c: Any, domid: int, image: Image, nr_pages: int, *, max_pages: int, privileged: bool, cmdline: str,
          store_port: int, console_port: int, ramdisk: bytes = b"") -> Built:
    """Gives the domain its memory and lays the image out. Raises BuildError, XenError."""
    line = cmdline.encode(errors="surrogateescape")
    if len(line) > _MAX_CMDLINE:
        raise BuildError(f"the command line has {len(line)} bytes; {_MAX_CMDLINE} is the most a guest can be given", "cmdline")
    ramdisk_pages = -(-len(ramdisk) // PAGE)
    layout = plan(image, nr_pages, ramdisk_pages)
    mfns_c = ffi.new("u32[]", nr_pages)
    rc = lib.xl_domain_populate(host_c, domid, 0, nr_pages, mfns_c)
    if rc == -lib.XEN_ENOMEM:
        raise BuildError(f"the machine has no {nr_pages * PAGE >> 20} MiB free for domain {domid}: raise the host's memory, or "
                         "lower the domain's")
    check(rc, "populate", domid)
    memory = _Memory(host_c, domid, mfns_c, nr_pages)
    mfns = memory.mfns

    for offset, data in image.segments:
        memory.write(offset, data)
    if image.hypercall_page is not None:
        stubs = ffi.new("u8[]", PAGE)
        lib.xl_hypercall_page(stubs)
        memory.write(image.hypercall_page * PAGE, bytes(ffi.buffer(stubs)))
    if ramdisk:
        memory.write(layout.ramdisk * PAGE, ramdisk)
    memory.write(layout.p2m * PAGE, array("Q", mfns).tobytes())
    # Nobody serves the rings yet: connection stays "disconnected" until the back end attaches.
    memory.write(layout.console * PAGE + 3088, b"\1")
    _page_tables(image, layout, memory)
    l4_mfn = mfns[layout.tables]

    info = _start_info(host_c, domid, image, layout, mfns, privileged=privileged)
    info.cmd_line = line
    info.store_evtchn, info.console.domU.evtchn = store_port, console_port
    if ramdisk:
        info.mod_start = layout.ramdisk if image.mod_start_pfn else image.virt_base + layout.ramdisk * PAGE
        info.mod_len = ramdisk_pages * PAGE
        info.flags |= lib.SIF_MOD_START_PFN if image.mod_start_pfn else 0
    memory.write(layout.start_info * PAGE, bytes(ffi.buffer(info)))

    check(lib.xl_domain_pin_l4(host_c, domid, l4_mfn), "pin the initial page tables", domid)
    check(lib.xl_vcpu_set_bases(lib.xl_vcpu(host_c, domid, 0), l4_mfn, 0), "set base pointer", domid)
    check(lib.xl_domain_set_e820(host_c, domid, max_pages * PAGE), "set memory map", domid)
    if not privileged:
        for ref, pfn in ((_CONSOLE_REF, layout.console), (_STORE_REF, layout.store)):
            check(lib.xl_grant_seed(host_c, domid, ref, 0, mfns[pfn]), "seed grants", domid)
    va = lambda pfn: image.virt_base + pfn * PAGE  # noqa: E731
    return Built(image.virt_base, nr_pages, image.pages, layout.end, va(layout.start_info), va(layout.stack + 1),
                 mfns[layout.store], mfns[layout.console], l4_mfn)


# ---- page tables -----------------------------------------------------------------------------------------------------

_Key = tuple[int, int]      # a table: its level, and the virtual address it begins at in units of what it maps


def _table_keys(va: int, pages: int) -> list[_Key]:
    """The tables that map ``pages`` pages from ``va``, the L4 first, the L1s last."""
    last = va + pages * PAGE - 1
    return [(4, 0)] + [(level, index) for level, shift in ((3, 39), (2, 30), (1, 21)) for index in range(va >> shift, (last >> shift) + 1)]


def _leaves(mfns: array, flags: int) -> array:
    """L1 entries for frames. One addition of two long numbers: a Python loop would take a hundred times as long."""
    shifted = int.from_bytes(array("Q", mfns).tobytes(), "little") << PAGE_SHIFT
    each = int.from_bytes(flags.to_bytes(8, "little") * len(mfns), "little")
    return array("Q", (shifted | each).to_bytes(8 * len(mfns), "little"))


def _page_tables(image: Image, layout: _Layout, memory: _Memory) -> None:
    """The tables that map pages 0 to ``end`` at virt_base, contiguous with the L4 first; then those that map the P2M at INIT_P2M."""
    mfns = memory.mfns
    leaves = _leaves(mfns[:layout.end], _LEAF)
    for pfn in range(layout.tables, layout.tables + layout.nr_tables):
        leaves[pfn] = mfns[pfn] << PAGE_SHIFT | _LEAF_TABLE
    pfns = {key: layout.tables + n for n, key in enumerate(_table_keys(image.virt_base, layout.end))}
    mappings = [(image.virt_base, leaves)]
    if image.init_p2m is not None:
        new = [key for key in _table_keys(image.init_p2m, layout.p2m_pages) if key not in pfns]
        pfns.update((key, layout.p2m_tables + n) for n, key in enumerate(new))
        mappings.append((image.init_p2m, _leaves(mfns[layout.p2m:layout.p2m + layout.p2m_pages], _LEAF)))

    tables = {key: array("Q", bytes(PAGE)) for key in pfns}
    for (level, index), pfn in pfns.items():
        if level < 4:
            tables[level + 1, index >> 9 if level < 3 else 0][index & 511] = mfns[pfn] << PAGE_SHIFT | _TABLE
    for va, entries in mappings:
        done = 0
        while done < len(entries):
            index, slot = divmod((va >> PAGE_SHIFT) + done, 512)
            n = min(512 - slot, len(entries) - done)
            tables[1, index][slot:slot + n] = entries[done:done + n]
            done += n
    for key, table in tables.items():
        memory.write(pfns[key] * PAGE, table.tobytes())


def _start_info(host_c: Any, domid: int, image: Image, layout: _Layout, mfns: array, *, privileged: bool) -> Any:
    """Section 1.6, without command line, ports and RAM disk."""
    info = ffi.new("struct start_info *")
    out = ffi.new("struct xl_domain_info *")
    check(lib.xl_domain_info(host_c, domid, out), "domain info", domid)
    info.magic = b"xen-3.0-x86_64"
    info.nr_pages = len(mfns)
    info.shared_info = out.shared_info_mfn << PAGE_SHIFT
    info.flags = (lib.SIF_PRIVILEGED | lib.SIF_INITDOMAIN if privileged else 0) | lib.SIF_VIRT_P2M_4TOOLS
    info.store_mfn = 0 if privileged else mfns[layout.store]
    info.console.domU.mfn = 0 if privileged else mfns[layout.console]
    info.pt_base = image.virt_base + layout.tables * PAGE
    info.nr_pt_frames = layout.nr_tables
    if image.init_p2m is None:
        info.mfn_list = image.virt_base + layout.p2m * PAGE
    else:
        info.mfn_list = image.init_p2m
        info.first_p2m_pfn, info.nr_p2m_frames = layout.p2m, layout.p2m_pages + layout.nr_p2m_tables
    return info
