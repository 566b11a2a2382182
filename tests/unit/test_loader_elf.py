"""ELF images: what of a file is loaded where, and each thing for which a file is refused."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from image_files import BASE, PT_NOTE, PT_TLS, Load, elf, phdr
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import ImageCache, is_pc_file, load_image, looks_like_image, parse_image, read_file


def refused(data: bytes) -> str:
    with pytest.raises(LoadError) as info:
        parse_image(data)
    return str(info.value)


def test_an_image_is_placed_by_physical_addresses() -> None:
    """Linux's per-CPU segment (virtual address 0) would land on page 0, or a gap between segments would be squeezed out."""
    image = parse_image(elf([Load(0x2000, b"text", 0x1000, vaddr=BASE + 0x2000), Load(0x8010, b"percpu", 0x3000, vaddr=0)],
                            {"VIRT_BASE": BASE, "ENTRY": BASE + 0x2000}))
    assert [(at, bytes(data)) for at, data in image.segments] == [(0x2000, b"text"), (0x8010, b"percpu")]
    assert (image.virt_base, image.kstart, image.kend, image.entry) == (BASE, BASE + 0x2000, BASE + 0xB010, BASE + 0x2000)
    assert image.pages == 0xC


def test_without_notes_about_addresses_base_is_0_and_entry_the_files() -> None:
    """Mini-OS, XTF and GRUB say no VIRT_BASE; Mini-OS and GRUB begin at address 0."""
    image = parse_image(elf([Load(0, b"\xf4" * 100)], entry=0))
    assert (image.virt_base, image.entry, image.pages) == (0, 0, 1)
    image = parse_image(elf([Load(0x100000, b"\xf4" * 100)], entry=0x100000))
    assert (image.virt_base, image.entry, image.kstart, image.pages) == (0, 0x100000, 0x100000, 0x101)


def test_paddr_offset_is_subtracted() -> None:
    """An image linked with physical = virtual addresses (old kernels) would be placed 2^64 bytes up."""
    image = parse_image(elf([Load(BASE + 0x1000, b"text")], {"VIRT_BASE": BASE, "PADDR_OFFSET": BASE}, entry=BASE + 0x1000))
    assert image.kstart == BASE + 0x1000 and image.segments[0][0] == 0x1000


def test_headers_that_load_nothing_are_passed_over() -> None:
    """TLS headers, LOADs of no size (also at address 0) and LOADs without permissions must not move or extend the image."""
    empty = [phdr(1, 6, 0, 0, 0, 0, 0), phdr(1, 0, 0, 0, 1 << 40, 16, 16), phdr(PT_TLS, 4, 0, 0, 0, 1 << 50, 1 << 50)]
    image = parse_image(elf([Load(0x5000, b"text")], headers=empty))
    assert (image.kstart, image.kend, len(image.segments)) == (0x5000, 0x5004, 1)


def test_segments_in_any_order_and_zeroed_only() -> None:
    """bss-only segments count for the size and not for the bytes; the table need not be sorted."""
    image = parse_image(elf([Load(0x3000, b"", 0x2000), Load(0x1000, b"text")], entry=0x1000))
    assert [at for at, _ in image.segments] == [0x1000] and (image.kstart, image.kend) == (0x1000, 0x5000)


def at(field: int, *values: bytes) -> dict[int, bytes]:
    return {field: b"".join(values)}


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


P0 = 64                                 # the first program header
FILE = elf()
TOO_FAR = "is it truncated?"


@pytest.mark.parametrize("data, says", [
    (b"", "is empty"),
    (b"#!/bin/sh\n", "begins with '#!/bin/s': neither an ELF image nor a Linux bzImage"),
    (FILE[:10], "e_ident"),
    (FILE[:40], "ELF header: the file has 40 bytes and its header alone 64"),
    (FILE[:100], "e_phoff: 0x40 with 2 entries is beyond the end of the file (0x64)"),
    (FILE[:3000], TOO_FAR),
    (elf(patch=at(4, b"\1")), "EI_CLASS: 1: this is a 32-bit image, and only 64-bit PV guests run here"),
    (elf(patch=at(5, b"\2")), "not a little-endian 64-bit file"),
    (elf(patch=at(18, struct.pack("<H", 183))), "e_machine: 183 (AArch64): only x86-64 (62) runs here"),
    (elf(patch=at(16, struct.pack("<H", 1))), "a relocatable object (link it first)"),
    (elf(patch=at(16, struct.pack("<H", 4))), "a core dump"),
    (elf(patch=at(54, struct.pack("<H", 55))), "e_phentsize: 55"),
    (elf(patch=at(56, struct.pack("<H", 0))), "e_phnum: 0"),
    (elf(patch=at(56, struct.pack("<H", 0xFFFF))), "e_phnum: 65535"),
    (elf(patch=at(32, u64(2**64 - 8))), "e_phoff: 0xfffffffffffffff8"),
    (elf([]), "program headers: none is of type LOAD"),
    (elf([Load(0x1000, b"a" * 64, 32)]), "program header 0: p_filesz 0x40 is more than p_memsz 0x20"),
    (elf(patch=at(P0 + 8, u64(1 << 60))), "program header 0: offset 0x1000000000000000, size 0x1000 is beyond the end of the file"),
    (elf(patch=at(P0 + 32, u64(2**64 - 1), u64(2**64 - 1))), "program header 0: offset"),
    (elf(patch=at(P0 + 40, u64(2**64 - 1))), "is beyond the address space"),
    (elf([Load(0x1000, b"a", 0x1001), Load(0x2000, b"b")]), "program header 1: p_paddr 0x2000 lies inside program header 0 (0x1000 to 0x2001)"),
    (elf(entry=0x500), "e_entry: 0x500 is outside: the image is at 0x1000 to 0x2000"),
    (elf(values={"ENTRY": 0x2001}), "note ENTRY: 0x2001 is outside"),
    (elf(values={"VIRT_BASE": 0x800}), "note VIRT_BASE: 0x800 is not on a page"),
    (elf(values={"PADDR_OFFSET": 0}), "note PADDR_OFFSET: 0x0, and there is no VIRT_BASE"),
    (elf(values={"VIRT_BASE": BASE, "PADDR_OFFSET": 0x2000}), "note VIRT_BASE: 0xffffffff80000000 is behind the image's start"),
    (elf(values={"VIRT_BASE": 0x10000, "PADDR_OFFSET": 0x20000}, entry=0x10000), "program headers: 0x10000 to 0xffffffffffff2000"),
    (elf([Load(1 << 46, b"a", 1 << 46)]), "program headers: 0x0 to 0x800000000000"[:30]),
    (elf([Load(0xFFFF800000000000, b"a")], {"VIRT_BASE": 0xFFFF800000000000, "PADDR_OFFSET": 0xFFFF800000000000}), "not a guest's to use"),
    (elf([Load(1 << 47, b"a")]), "is not a guest's to use"),
    (elf(values={"HYPERCALL_PAGE": 0x1800}), "note HYPERCALL_PAGE: 0x1800 is no page of the image"),
    (elf(values={"HYPERCALL_PAGE": 0x2000}), "note HYPERCALL_PAGE: 0x2000 is no page of the image"),
    (elf(where="none"), "has no Xen notes and no __xen_guest section: it is not a Xen guest"),
    (elf(headers=[phdr(PT_NOTE, 4, 1 << 40, 0, 0, 64, 64)]), "program header 2 (NOTE): offset 0x10000000000"),
    (elf(where="none", sections=[("x", 7, b"")], patch=at(58, struct.pack("<H", 32))), "e_shentsize: 32"),
    (elf(where="none", sections=[("x", 7, b"")], patch=at(40, u64(1 << 62))), "e_shoff: 0x4000000000000000"),
])
def test_refused_with_field_and_value(data: bytes, says: str) -> None:
    """A file that cannot run would be started, or its author not told which field of it is wrong."""
    if says.startswith("program headers: 0x0 to"):
        assert parse_image(data).kend == 1 << 47        # exactly up to the end of the lower half is canonical
    else:
        assert says in refused(data)


def test_end_of_the_address_space_is_refused() -> None:
    """The end would wrap to 0 and the image look empty."""
    assert "beyond the address space" in refused(elf([Load(0x1000, b"a", 0x7FFFF000)], {"VIRT_BASE": BASE}, entry=BASE + 0x1000))
    assert "not a guest's" in refused(elf([Load(0x1000, b"a", 1 << 47)], {"VIRT_BASE": 0x1000, "PADDR_OFFSET": 0x1000}))


def test_many_headers_of_one_area_are_bounded() -> None:
    """65,000 headers that name the same megabyte of notes would be 65 GB of work."""
    area = b"".join((struct.pack("<III", 4, 0, 1) + b"GNU\0") for _ in range(1 << 14))
    data = elf(area=area, headers=[phdr(PT_NOTE, 4, 0x20000, 0, 0, 0x40000, 0)] * 2000, loads=[Load(0x1000, bytes(1 << 19))])
    assert "1048576 is the most" in refused(data)


def test_files_that_are_none(tmp_path) -> None:
    """A pipe or a device would hang the host, a directory give a traceback."""
    import os

    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "is not an ordinary file"), ("/dev/zero", "is not an ordinary file"), (tmp_path / "none", "cannot be read"),
                       (tmp_path, "ordinary file")):
        with pytest.raises(LoadError, match=says) as info:
            load_image(path)
        assert info.value.file == str(path) and not looks_like_image(path)
    (tmp_path / "big").write_bytes(b"x" * 100)
    with pytest.raises(LoadError, match="has 100 bytes; 99 is the most"):
        read_file(tmp_path / "big", 99)
    assert not looks_like_image(tmp_path / "big")


def test_a_file_that_nothing_starts_is_told_what_it_lacks_for_either(tmp_path) -> None:
    """Who has built an image for a PC would only read that it is no Xen guest."""
    import gzip

    path, pvh = tmp_path / "image", elf(values={"XEN_VERSION": None, "PHYS32_ENTRY": 0x1000})
    for data, kind, says in (
            (elf(where="none"), None, r"has no Xen notes .*; nor is it a PC's: it has no multiboot header in its first 8192 bytes, "
                                      r"and no note XEN_ELFNOTE_PHYS32_ENTRY \(18\) \(.*CONFIG_XEN_PV; guest_sdk/c/pc makes images for a PC\)"),
            (elf(where="none"), "pv", r"it is not a Xen guest \(a PV kernel has them .*CONFIG_XEN_PV\)$"),
            (elf(where="none"), "hvm", "nothing says how to start it: no multiboot header in the first 8192 bytes, and no note"),
            (elf(where="none", patch=at(4, b"\1") | at(18, b"\3\0")), None,
             "only 64-bit PV guests .*multiboot header in their first 8192 bytes, or the note"),
            (pvh, "pv", r'only PVH, not PV: type = "hvm" runs it on a plain PC'),
            (gzip.compress(pvh), "hvm", r"a PC's image is not compressed: unpack it \(gzip\)")):
        path.write_bytes(data)
        with pytest.raises(LoadError, match=says):
            load_image(path, kind)
        assert looks_like_image(path) and is_pc_file(path) == (data is pvh)
    path.write_bytes(pvh)
    assert is_pc_file(path) and not is_pc_file(tmp_path)


def test_cache_gives_the_file_as_it_is_now(tmp_path) -> None:
    """A rebuilt kernel would not be run, or an unchanged one be unpacked for every domain."""
    path, cache = tmp_path / "kernel", ImageCache(limit=20000)
    path.write_bytes(elf())
    first = cache.get(path)
    assert cache.get(path) is first and looks_like_image(path)
    path.write_bytes(elf([Load(0x3000, b"other")]))
    assert cache.get(path).kstart == 0x3000
    for n in range(4):                              # the oldest go when there are too many bytes
        (tmp_path / str(n)).write_bytes(elf([Load(0x1000, bytes(9000))]))
        cache.get(tmp_path / str(n))
    assert len(cache._images) == 2


SOURCE = """
asm(".section .note.Xen, \\"a\\", @note\\n .long 4, 8, 5\\n .asciz \\"Xen\\"\\n .asciz \\"xen-3.0\\"\\n"
    ".long 4, 8, 8\\n .asciz \\"Xen\\"\\n .asciz \\"generic\\"\\n .long 4, 8, 2\\n .asciz \\"Xen\\"\\n .quad hypercall_page\\n"
    ".text\\n .globl _start\\n_start: hlt\\n .p2align 12\\n .globl hypercall_page\\nhypercall_page: .skip 4096\\n");
char bss[12345];
__thread int tls = 7;
"""


def test_what_a_real_linker_makes(tmp_path) -> None:
    """Our own ELF files could share a misunderstanding with the loader; gcc and ld do not."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc here")
    (tmp_path / "guest.c").write_text(SOURCE)
    command = ["gcc", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-Wl,-Ttext-segment=0x200000", "-Wl,--build-id", "-o", "guest", "guest.c"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    image = load_image(tmp_path / "guest")
    symbols = dict(reversed(line.split()[0::2]) for line in
                   subprocess.run(["nm", "guest"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines())
    assert image.entry == int(symbols["_start"], 16) and image.hypercall_page == int(symbols["hypercall_page"], 16) >> 12
    assert image.kend >= int(symbols["bss"], 16) + 12345 and image.notes.source == "PT_NOTE"
    code = next(bytes(data)[image.entry - at:] for at, data in image.segments if at <= image.entry < at + len(data))
    assert code[0] == 0xF4
