"""Xen's notes: where they are looked for, what each means, what an absent or malformed one does."""

from __future__ import annotations

import struct

import pytest

from image_files import BASE, PT_NOTE, Load, elf, note, notes, phdr
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import KernelImage, parse_image
from xenlike.loaders.notes import NOTES, Features


def image(values: dict | None = None, **options) -> KernelImage:
    return parse_image(elf([Load(0x1000, bytes(0x4000))], values, **options))


def refused(values: dict | None = None, **options) -> str:
    with pytest.raises(LoadError) as info:
        image(values, **options)
    return str(info.value)


def test_every_note_is_read_by_its_number() -> None:
    """The numbers are the ABI; what tools print for them is not."""
    values = {0: "text", 1: BASE + 0x1000, 2: BASE + 0x2000, 3: BASE, 4: 0, 5: "xen-3.0", 6: "linux", 7: "2.6", 8: "generic", 9: "yes",
              10: "!writable_page_tables|pae_pgdir_above_4gb", 11: "yes", 12: 0xFFFF800000000000, 13: struct.pack("<QQ", 1, 1), 14: 1,
              15: 0x8000000000, 16: 1, 17: 0x8801, 18: struct.pack("<I", 0x1000), 19: struct.pack("<III", 0x1000, 0, 1 << 30)}
    found = image(values)
    assert [found.notes[NOTES[n].name] for n in range(20)] == [
        "text", BASE + 0x1000, BASE + 0x2000, BASE, 0, "xen-3.0", "linux", "2.6", "generic", "yes", "!writable_page_tables|pae_pgdir_above_4gb",
        "yes", 0xFFFF800000000000, (1, 1), 1, 0x8000000000, 1, 0x8801, 0x1000, (0x1000, 0, 1 << 30)]
    assert (found.entry, found.hypercall_page, found.virt_base, found.init_p2m) == (BASE + 0x1000, 2, BASE, 0x8000000000)
    assert found.mod_start_pfn and found.suspend_cancel and found.features == Features(0x8801 | 1 << 4 | 1, 1)


def test_absent_notes_have_their_defaults() -> None:
    """A note that an image may leave out would be demanded, or taken for 0 where it is not."""
    found = image()
    assert (found.virt_base, found.hypercall_page, found.init_p2m) == (0, None, None)
    assert not found.mod_start_pfn and not found.suspend_cancel and found.features == Features(0, 0)
    assert found.notes["HV_START_LOW"] is None and found.notes["L1_MFN_VALID"] == () and found.notes["PAE_MODE"] == "no"


def test_numbers_have_4_or_8_bytes_and_texts_need_no_nul() -> None:
    """Linux's FEATURES ends without a NUL; 32-bit assemblers write .long."""
    found = image({"VIRT_BASE": struct.pack("<I", 0), "FEATURES": b"pae_pgdir_above_4gb", "GUEST_VERSION": b"1\0garbage"})
    assert found.features.supported == 1 << 4 and found.notes["GUEST_VERSION"] == "1"
    for size in (0, 1, 3, 5, 16):
        assert f"note VIRT_BASE (3): has {size} bytes; a number has 4 or 8" in refused({"VIRT_BASE": bytes(size)})


@pytest.mark.parametrize("memsz", [None, 0])
def test_pt_note_by_file_offset(memsz) -> None:
    """GRUB's note segment has a memory size of 0."""
    assert image({"GUEST_OS": "GRUB"}, note_memsz=memsz).notes["GUEST_OS"] == "GRUB"


def test_sections_when_no_segment_has_them() -> None:
    """Mini-OS and Unikraft have their notes in sections only; other notes in segments (build ids) do not stop the search."""
    build_id = note(3, b"x" * 20, owner=b"GNU\0")
    found = image({"GUEST_OS": "Mini-OS"}, where="SHT_NOTE")
    assert (found.notes["GUEST_OS"], found.notes.source) == ("Mini-OS", "SHT_NOTE")
    both = elf([Load(0x1000, b"a")], area=build_id, sections=[(".note", 7, notes({"GUEST_OS": "Unikraft"}))])
    assert parse_image(both).notes["GUEST_OS"] == "Unikraft"
    both = elf([Load(0x1000, b"a")], {"GUEST_OS": "a"}, sections=[(".note", 7, notes({"GUEST_OS": "b"}))])
    assert parse_image(both).notes["GUEST_OS"] == "a"


def test_pt_note_at_offset_0_is_no_note() -> None:
    """Some linkers leave an empty note header; the ELF header is not a note."""
    assert image(headers=[phdr(PT_NOTE, 4, 0, 0, 0, 64, 64)]).notes.source == "PT_NOTE"


def test_legacy_section() -> None:
    """Kernels before 2007 say it in a string, where the hypercall page is a page's number and physical addresses are virtual ones."""
    text = (b"GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x2,FEATURES=writable_page_tables,PAE=yes,"
            b"LOADER=generic\0x")
    found = parse_image(elf([Load(0xC0001000, bytes(0x4000))], where="none", sections=[("__xen_guest", 1, text)], entry=0xC0001000))
    assert (found.virt_base, found.kstart, found.hypercall_page, found.features.supported) == (0xC0000000, 0xC0001000, 2, 1)
    assert found.notes["GUEST_VERSION"] == "2.6" and found.notes.source == "__xen_guest"
    with pytest.raises(LoadError, match="section __xen_guest, VIRT_BASE: '0xzz' is no address"):
        parse_image(elf(where="none", sections=[("__xen_guest", 1, b"VIRT_BASE=0xzz")]))


def test_unknown_notes_are_passed_over() -> None:
    """A note of a later Xen would keep an image from starting."""
    assert image({77: 1, 20: "later"}).notes.unknown == [77, 20]


@pytest.mark.parametrize("values, says", [
    ({"XEN_VERSION": None}, "note XEN_VERSION: is missing"),
    ({"XEN_VERSION": None, "PHYS32_ENTRY": 0x1000}, "note XEN_VERSION: is missing (only PVH, not PV: type"),
    ({"XEN_VERSION": "xen-4.0"}, "note XEN_VERSION: 'xen-4.0'"),
    ({"LOADER": None}, "note LOADER: ''"),
    ({"LOADER": "special"}, "note LOADER: 'special'"),
    ({"FEATURES": "!writable_page_tables|!teleport"}, "note FEATURES: the image requires 'teleport', which is no known feature"),
])
def test_images_for_something_else_are_refused(values, says) -> None:
    """The image would be started by a hypervisor that lacks what it needs."""
    assert says in refused(values)


def test_what_else_is_accepted() -> None:
    """GUEST_OS linux stands for LOADER generic; versions may go on; unknown features matter only if required."""
    assert image({"LOADER": None, "GUEST_OS": "linux-2.6"}).entry == 0x1000
    assert image({"XEN_VERSION": "xen-3.0-x86_64", "FEATURES": "teleport|dom0"}).features == Features(1 << 11, 0)


@pytest.mark.parametrize("init_p2m, used", [(0x8000000000, True), (0x8000000800, False), (BASE, False), (BASE + 0x2000, False)])
def test_init_p2m_only_below_virt_base_and_on_a_page(init_p2m, used) -> None:
    """Xen ignores what it cannot use, and the image then finds the P2M behind itself."""
    found = parse_image(elf([Load(0x1000, b"a")], {"VIRT_BASE": BASE, "INIT_P2M": init_p2m, "ENTRY": BASE + 0x1000}))
    assert found.init_p2m == (init_p2m if used else None)


def test_a_note_larger_than_its_area() -> None:
    """Bytes behind the notes would be read as a descriptor."""
    whole = notes({})
    assert "program header 1 (NOTE): the note at 0x0 (namesz 0xffffffff" in refused(area=b"\xff\xff\xff\xff" + whole[4:])
    assert "descsz 0xfffffff0" in refused(area=whole[:4] + b"\xf0\xff\xff\xff" + whole[8:])
    assert image(area=whole + bytes(8)).entry == 0x1000      # a tail too short for a note is padding
