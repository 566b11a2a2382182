"""The domain builder: what a guest finds in its memory, page tables and start_info, compared with the ABI's text (and not with the plan)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_files import BASE, Load, elf
from xenlike.engine import check, ffi, lib
from xenlike.loaders.image import parse_image
from xenlike.toolstack.builder import BuildError, Built, Image, build, plan

PAGE = 4096
MIB = 256               # pages
P2M_VA = 0x8000000000


class Rig:
    """A C host without lane or domain 0; ``build`` makes a domain and looks at it as its vCPU would."""

    def __init__(self) -> None:
        config = ffi.new("struct xl_host_config *", {"memory": 256 << 20, "nr_pcpus": 1, "virtual_clock": 1})
        error = ffi.new("int *")
        self.c = lib.xl_host_create(config, error)
        check(error[0], "create host")

    def build(self, image: Image, pages: int, *, ramdisk: bytes = b"", cmdline: str = "", privileged: bool = False) -> "Domain":
        config = ffi.new("struct domain_config *", {"domid": -1, "nr_vcpus": 1, "max_pages": pages, "backend": lib.BACKEND_PYTHON,
                                                    "max_evtchn_port": 1023, "max_grant_frames": 4})
        domid = check(lib.xl_domain_create(self.c, config), "create domain")
        try:
            built = build(self.c, domid, image, pages, max_pages=pages, privileged=privileged, cmdline=cmdline, store_port=1, console_port=2,
                          ramdisk=ramdisk)
            return Domain(self, domid, built, image)
        except BaseException:
            lib.xl_domain_destroy(self.c, domid)
            raise


class Domain:
    """A built domain, read through its own page tables."""

    def __init__(self, rig: Rig, domid: int, built: Built, image: Image) -> None:
        self.rig, self.id, self.built, self.image = rig, domid, built, image
        self.vcpu = lib.xl_vcpu(rig.c, domid, 0)
        self.fault = ffi.new("u64[2]")
        raw = self.read(built.start_info, 1168)
        info = ffi.new("struct start_info *")
        ffi.memmove(info, raw, 1168)
        self.info = SimpleNamespace(**{name: getattr(info, name) for name in (
            "nr_pages", "shared_info", "flags", "store_mfn", "store_evtchn", "pt_base", "nr_pt_frames", "mfn_list", "mod_start", "mod_len",
            "first_p2m_pfn", "nr_p2m_frames")}, magic=ffi.string(info.magic), cmd_line=ffi.string(info.cmd_line),
            console_mfn=info.console.domU.mfn, console_port=info.console.domU.evtchn)
        self.p2m = memoryview(self.read(self.info.mfn_list, built.nr_pages * 8)).cast("Q").tolist()

    def read(self, va: int, n: int) -> bytes:
        buf = ffi.new("char[]", n)
        check(lib.xl_guest_read(self.vcpu, va, buf, n, self.fault), f"read {va:#x}", self.id)
        return bytes(ffi.buffer(buf))

    def translate(self, va: int, write: bool = False) -> int | None:
        mfn = lib.xl_guest_translate(self.vcpu, va, lib.PFEC_write if write else 0, self.fault)
        return None if mfn < 0 else mfn

    def frame(self, pfn: int, n: int = PAGE) -> bytes:
        buf = ffi.new("char[]", n)
        check(lib.xl_frame_read(self.rig.c, self.id, self.p2m[pfn], 0, buf, n), "read", self.id)
        return bytes(ffi.buffer(buf))

    def type(self, pfn: int) -> int:
        info = ffi.new("struct xl_frame_info *")
        check(lib.xl_frame_info(self.rig.c, self.p2m[pfn], info), "frame info")
        return info.type if info.type_count else 0

    def destroy(self) -> None:
        lib.xl_domain_destroy(self.rig.c, self.id)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    lib.xl_host_destroy(made.c)


def pages_of(data: bytes) -> int:
    return -(-len(data) // PAGE)


def examine(d: Domain, ramdisk: bytes) -> None:
    """Sections 1.4 to 1.6 and 1.11 of the ABI, as far as they hold for every domain."""
    image, info, built = d.image, d.info, d.built
    base, end = image.virt_base, built.mapped_pages
    va = lambda pfn: base + pfn * PAGE  # noqa: E731
    assert info.magic == b"xen-3.0-x86_64" and info.nr_pages == built.nr_pages == len(set(d.p2m))
    assert info.flags & 31 == 16 | (8 if image.mod_start_pfn and ramdisk else 0)
    # [virt_base, end) maps pfn 0.. in order and nothing behind it; page tables read-only, all else writable; M2P is P2M's inverse.
    tables = {(info.pt_base - base) // PAGE + n for n in range(info.nr_pt_frames)}
    for pfn in range(end):
        assert d.translate(va(pfn)) == d.p2m[pfn]
        assert (d.translate(va(pfn), write=True) is None) == (pfn in tables)
    assert d.translate(va(end)) is None and (base == 0 or d.translate(base - PAGE) is None)
    assert all(lib.xl_m2p(d.rig.c, mfn) == pfn for pfn, mfn in enumerate(d.p2m))
    kinds = [d.type(pfn) for pfn in sorted(tables)]
    assert kinds[0] == 4 and sorted(kinds, reverse=True) == kinds and 0 not in kinds, "L4, then L3s, L2s, L1s"
    # The order of the parts.
    cursor = image.pages
    if ramdisk and not image.mod_start_pfn:
        assert info.mod_start == va(cursor)
        cursor += pages_of(ramdisk)
    if image.init_p2m is None:
        assert info.mfn_list == va(cursor) and info.first_p2m_pfn == info.nr_p2m_frames == 0
        cursor += -(-built.nr_pages * 8 // PAGE)
    assert built.start_info == va(cursor)
    assert (info.store_mfn, info.console_mfn) == (d.p2m[cursor + 1], d.p2m[cursor + 2])
    assert not any(d.read(va(cursor + 1), PAGE)), "an empty xenstore ring"
    assert [at for at, byte in enumerate(d.read(va(cursor + 2), PAGE)) if byte] == [3088], "the console ring says disconnected"
    assert info.pt_base == va(cursor + 3)
    stack = cursor + 3 + info.nr_pt_frames
    assert built.stack_top == va(stack + 1) and not any(d.read(va(stack), PAGE))
    assert end - stack - 1 >= image.pad
    # The image, zero where it says nothing.
    memory = bytearray(image.pages * PAGE)
    for at, data in image.segments:
        memory[at:at + len(data)] = data
    assert d.read(base, len(memory)) == memory if memory else True
    # What is behind the mapping.
    cursor = end
    if ramdisk and image.mod_start_pfn:
        assert info.mod_start == cursor
        cursor += pages_of(ramdisk)
    if image.init_p2m is not None:
        count = -(-built.nr_pages * 8 // PAGE)
        assert (info.mfn_list, info.first_p2m_pfn) == (image.init_p2m, cursor)
        assert [d.translate(image.init_p2m + n * PAGE, write=True) for n in range(count)] == d.p2m[cursor:cursor + count]
        behind = [d.type(pfn) for pfn in range(cursor + count, built.nr_pages)]
        own = [kind for kind in behind if kind in (1, 2, 3, 4)]
        assert behind[:len(own)] == own and info.nr_p2m_frames == count + len(own) and 4 not in own
    if ramdisk:
        at = info.mod_start if image.mod_start_pfn else (info.mod_start - base) // PAGE
        assert b"".join(d.frame(at + n) for n in range(pages_of(ramdisk))) == ramdisk.ljust(pages_of(ramdisk) * PAGE, b"\0")
        assert info.mod_len == pages_of(ramdisk) * PAGE
    else:
        assert info.mod_start == info.mod_len == 0
    assert lib.xl_check_frames(d.rig.c, 1) == 0


BASES = st.sampled_from([0, BASE, 0xFFFFFFFF80200000, 0x100000, 0x8000000000, 0xFFFF880000000000, 0x7FFFFF000, 0x40000000 - 8 * PAGE])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=BASES, first=st.integers(0, 300), size=st.integers(0, 300 * PAGE), tail=st.integers(0, PAGE), megabytes=st.integers(1, 24),
       ramdisk=st.integers(0, 40 * PAGE), mod_start_pfn=st.booleans(), p2m=st.sampled_from([None, 0, 0x4000000000, P2M_VA, BASE - (1 << 30), BASE]),
       pad=st.sampled_from([0, 128]))
def test_layout(rig, base, first, size, tail, megabytes, ramdisk, mod_start_pfn, p2m, pad) -> None:
    """A guest would find its stack, rings, P2M, RAM disk or tables elsewhere than start_info and the ABI say, or not mapped as it may assume."""
    image = Image(base, first + pages_of(bytes(size)) + 1, [(first * PAGE + tail % PAGE, b"\xa5" * (size - tail % PAGE if size > PAGE else 0))], None,
                  p2m if p2m is not None and p2m + PAGE <= base else None, mod_start_pfn, pad)
    disk = b"\x5a" * ramdisk
    try:
        d = rig.build(image, megabytes * MIB, ramdisk=disk)
    except BuildError as error:
        assert error.key == "memory", error
        words = str(error).split()
        assert int(words[words.index("them") + 1].rstrip(",")) > megabytes * MIB
        wanted = int(str(error).rpartition('"')[0].rpartition('"')[2].removesuffix("M"))
        assert wanted > megabytes and plan(image, wanted * MIB, pages_of(disk)), "the advice works"
        return
    try:
        examine(d, disk)
    finally:
        d.destroy()


def test_the_mapping_ends_on_4_mib_with_512_kib_free(rig) -> None:
    """Guests take the memory behind the boot stack for their first allocations (Linux: its first page tables)."""
    for pages in (1, 700, 860, 1000):
        d = rig.build(dataclasses.replace(Image(BASE, pages), pad=128), 32 * MIB)
        end = BASE + d.built.mapped_pages * PAGE
        assert end % (4 << 20) == 0 and end - d.built.stack_top >= 512 << 10 and d.built.mapped_pages == (1024 if pages <= 860 else 2048)
        d.destroy()


def test_images_of_every_shape(rig) -> None:
    """The file's notes would not reach the layout: base, gap below the image, P2M address, RAM disk's place."""
    linux = parse_image(elf([Load(0x1000000, b"\x90" * 5000, 9000)], {
        "VIRT_BASE": BASE, "INIT_P2M": P2M_VA, "MOD_START_PFN": 1, "ENTRY": BASE + 0x1000010}))
    d = rig.build(Image.of_kernel(linux), 64 * MIB, ramdisk=b"initrd" * 1000, cmdline="console=hvc0")
    assert d.info.flags & lib.SIF_MOD_START_PFN and d.info.mfn_list == P2M_VA and d.info.cmd_line == b"console=hvc0"
    assert (d.info.store_evtchn, d.info.console_port) == (1, 2)
    assert d.info.nr_p2m_frames == 32 + 3                           # 128 KiB of P2M; an L3, an L2 and an L1 of its own
    assert d.read(BASE + 0x1000000, 5000) == b"\x90" * 5000 and not any(d.read(BASE + 0x1000000 + 5000, 4000))
    examine(d, b"initrd" * 1000)
    d.destroy()
    xtf = parse_image(elf([Load(0x100000, b"\xf4" * 100)], entry=0x100000))
    d = rig.build(Image.of_kernel(xtf), 16 * MIB, ramdisk=b"module")
    assert d.translate(0, write=True) == d.p2m[0] and d.read(0x100000, 2) == b"\xf4\xf4", "pages below the image are there, and mapped"
    assert d.info.mod_start == 0x101000 and not d.info.flags & lib.SIF_MOD_START_PFN
    examine(d, b"module")
    d.destroy()


def test_the_hypercall_page_is_filled(rig) -> None:
    """A guest's first hypercall would run into what the linker left there."""
    kernel = parse_image(elf([Load(0x1000, b"\xcc" * 3 * PAGE)], {"HYPERCALL_PAGE": 0x2000}))
    d = rig.build(Image.of_kernel(kernel), 16 * MIB)
    stubs = d.read(0x2000, PAGE)
    assert d.read(0x1000, PAGE) == d.read(0x3000, PAGE) == b"\xcc" * PAGE
    for number in (0, 17, 29, 48):                                  # mov eax, number; syscall: section 2.1
        stub = stubs[number * 32:number * 32 + 32]
        assert (0xB8).to_bytes(1, "little") + number.to_bytes(4, "little") in stub and b"\x0f\x05" in stub
    d.destroy()


def test_a_shared_page_of_two_segments(rig) -> None:
    """The second segment of a page would wipe the first one's bytes."""
    kernel = parse_image(elf([Load(0x1000, b"a" * 100), Load(0x1100, b"b" * 5000)]))
    d = rig.build(Image.of_kernel(kernel), 8 * MIB)
    assert d.read(0x1000, 0x1100) == (b"a" * 100).ljust(0x100, b"\0") + b"b" * 0x1000
    d.destroy()


@pytest.mark.parametrize("image, pages, options, key, says", [
    (Image(BASE, 300), 256, {}, "memory", "the image needs 300 pages"),
    (Image(BASE, 100, pad=128), 256, {"ramdisk": bytes(1 << 20)}, "memory", "the RAM disk 256"),
    (Image(0, 1 << 40), 256, {}, "memory", "the image needs 1099511627776 pages"),
    (Image(BASE, 1), 256, {"cmdline": "x" * 1024}, "cmdline", "the command line has 1024 bytes; 1023 is the most"),
    (Image((1 << 47) - 16 * PAGE, 1), 256, {}, "kernel", "note VIRT_BASE: 0x7fffffff0000 to"),
    (Image((1 << 64) - 16 * PAGE, 1), 256, {}, "kernel", "note VIRT_BASE"),
    (Image(BASE, 1, init_p2m=BASE - PAGE), 4096, {}, "kernel", "note INIT_P2M: 0xffffffff7ffff000: a P2M of 8 pages there reaches VIRT_BASE"),
    (Image(BASE, 1, init_p2m=0xFFFF800000000000), 4096, {}, "kernel", "note INIT_P2M: 0xffff800000000000"),
    (Image(BASE, 1), 1 << 20, {}, "memory", "the machine has no 4096 MiB free"),
])
def test_what_does_not_fit_is_said(rig, image, pages, options, key, says) -> None:
    """The domain would be built wrongly, or the user not told which setting to change; and a refused domain must leave nothing."""
    usage = ffi.new("struct xl_usage *")
    lib.xl_usage(rig.c, usage)
    before = usage.frames_free
    with pytest.raises(BuildError) as info:
        rig.build(image, pages, **options)
    assert says in str(info.value) and info.value.key == key
    lib.xl_usage(rig.c, usage)
    assert usage.frames_free == before
