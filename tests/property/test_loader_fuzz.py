"""Hostile images: files that were whole and then had bytes, fields and lengths changed. Whatever they say, the answer is an image that
can be built, or a LoadError or BuildError; in memory that does not depend on what the file claims."""

from __future__ import annotations

import bz2
import lzma
import os
import pathlib
import struct
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xenlike.engine import check, ffi, lib
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import parse_image
from xenlike.toolstack.builder import BuildError, Image, build

sys.path.append(str(pathlib.Path(__file__).parents[1] / "unit"))
from image_files import BASE, Load, bzimage, elf, gzipped, note, notes  # noqa: E402

EXAMPLES = int(os.environ.get("XENLIKE_EXAMPLES", "150"))
LIMIT = 1 << 20
PAGES = 1024

_LOADS = [Load(0x1000, b"text" * 300, 3000), Load(0x4000, b"data" * 100, 0x3000), Load(0x9010, b"", 64)]
_LINUX = {"VIRT_BASE": BASE, "ENTRY": BASE + 0x1000, "INIT_P2M": 0x8000000000, "MOD_START_PFN": 1, "SUPPORTED_FEATURES": 0x8801,
          "FEATURES": b"!writable_page_tables|pae_pgdir_above_4gb", "L1_MFN_VALID": struct.pack("<QQ", 1, 1), "SUSPEND_CANCEL": 1}
_LEGACY = b"LOADER=generic,XEN_VER=xen-3.0,VIRT_BASE=0x0,ELF_PADDR_OFFSET=0x0,VIRT_ENTRY=0x1000,FEATURES=!writable_page_tables"
ELFS = [elf(_LOADS), elf(_LOADS, _LINUX), elf(_LOADS, where="SHT_NOTE"), elf(_LOADS, where="none", sections=[("__xen_guest", 1, _LEGACY)]),
        elf(_LOADS, {"GUEST_OS": "x"}, area=note(3, b"x" * 20, owner=b"GNU\0") + notes({}), note_memsz=0)]
PACKED = [gzipped(ELFS[0]), bzimage(gzipped(ELFS[1])), bzimage(bz2.compress(ELFS[0]), size=len(ELFS[0])),
          bzimage(lzma.compress(ELFS[1]), size=len(ELFS[1])), bzimage(lzma.compress(ELFS[0], lzma.FORMAT_ALONE), size=len(ELFS[0])),
          bzimage(ELFS[0])]
try:
    import lz4.block
    import lz4.frame
    import zstandard

    _block = lz4.block.compress(ELFS[0], store_size=False)
    PACKED += [bzimage(b"\x02\x21\x4c\x18" + len(_block).to_bytes(4, "little") + _block, size=len(ELFS[0])),
               bzimage(lz4.frame.compress(ELFS[0]), size=len(ELFS[0])), bzimage(zstandard.compress(ELFS[1]), size=len(ELFS[1]))]
except ImportError:
    pass                                # the extra "images" is not installed: these formats are then not read at all

NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 0x7F, 0xFF, 0x100, 0xFFF, 0x1000, 0xFFFE, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 46,
                           1 << 47, 0xFFFF800000000000, 0xFFFF880000000000, BASE, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]) | st.integers(0, 2**64 - 1)


def broken(wholes: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of ``wholes``, changed in a few places. (The files are no argument of the strategy: Hypothesis would print them all.)"""
    return st.composite(lambda draw: _break(draw, wholes))()


def _break(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    data = bytearray(wholes[draw(st.integers(0, len(wholes) - 1))])
    for _ in range(draw(st.integers(1, 5))):
        if not data:
            break
        # Where fields are: the headers, the notes and sections at the end, the setup header of a bzImage. Else anywhere.
        low, high = {0: (0, min(len(data), 0x260)), 1: (max(0, len(data) - 0x200), len(data)), 2: (0, len(data))}[draw(st.integers(0, 2))]
        at = draw(st.integers(low, high - 1))
        kind = draw(st.sampled_from(["field", "field", "byte", "cut", "remove", "insert", "repeat"]))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        if kind == "field":
            data[at // size * size:at // size * size + size] = (draw(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif kind == "byte":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at:at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=32))
        else:
            data[at:at] = data[at:at + draw(st.integers(1, 256))] * draw(st.sampled_from([1, 2, 100]))
    return bytes(data)


@pytest.fixture(scope="module")
def host() -> Iterator[object]:
    error = ffi.new("int *")
    made = lib.xl_host_create(ffi.new("struct xl_host_config *", {"memory": 32 << 20, "nr_pcpus": 1, "virtual_clock": 1}), error)
    check(error[0], "create host")
    yield made
    lib.xl_host_destroy(made)


def survive(host: object, data: bytes) -> bool:
    """Loads and builds it. True if it was taken."""
    tracemalloc.start()
    try:
        image = parse_image(data, limit=LIMIT)
        assert sum(len(part) for _, part in image.segments) <= max(len(data), LIMIT) and image.kstart <= image.entry <= image.kend
    except LoadError as error:
        assert str(error)
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (40 << 20) + 4 * len(data), "lzma may have a dictionary, lz4 a block of 8 MiB and its copy"
    config = ffi.new("struct domain_config *", {"domid": -1, "nr_vcpus": 1, "max_pages": PAGES, "backend": lib.BACKEND_PYTHON,
                                                "max_evtchn_port": 1023, "max_grant_frames": 1})
    domid = check(lib.xl_domain_create(host, config), "create domain")
    try:
        build(host, domid, Image.of_kernel(image), PAGES, max_pages=PAGES, privileged=False, cmdline="x", store_port=1, console_port=2, ramdisk=bytes(5000))
        assert lib.xl_check_frames(host, 1) == 0
        return True
    except BuildError as error:
        assert str(error)
        return False
    finally:
        lib.xl_domain_destroy(host, domid)


def test_the_whole_files_are_taken(host) -> None:
    """The fuzzers below would break files that no one would read anyway."""
    assert all(survive(host, data) for data in ELFS + PACKED)


@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=broken(ELFS))
@example(data=ELFS[0][:64])
def test_broken_elf_files(host, data: bytes) -> None:
    """A traceback, a hang, or a domain whose memory is not what its page tables say."""
    survive(host, data)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=broken(PACKED))
def test_broken_packed_files(host, data: bytes) -> None:
    """The same behind each decompressor, and its own errors."""
    survive(host, data)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(inner=broken(ELFS))
def test_broken_elf_files_packed_whole(host, inner: bytes) -> None:
    """What is inside a sound bzImage is as hostile as any file."""
    survive(host, bzimage(gzipped(inner)))


@settings(max_examples=EXAMPLES, deadline=None)
@given(area=st.lists(st.tuples(st.integers(0, 21), st.binary(max_size=24) | NUMBERS), max_size=12))
def test_any_notes(host, area: list[tuple[int, bytes | int]]) -> None:
    """Notes of every number with every value, beside those that make it an image at all."""
    survive(host, elf(_LOADS, area=notes({}) + b"".join(note(number, value) for number, value in area)))
