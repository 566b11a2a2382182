"""bzImages and compressed images: every format, the length word, and data that is not what it says."""

from __future__ import annotations

import bz2
import lzma
import sys
import tracemalloc

import pytest

from image_files import Load, bzimage, elf, gzipped
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import parse_image
from xenlike.loaders.unpack import FORMATS

IMAGE = elf([Load(0x1000, b"the kernel's own bytes" * 3000)])
TEXT = b"the kernel's own bytes"


def lz4_legacy(data: bytes) -> bytes:
    block = pytest.importorskip("lz4.block", reason="the extra 'images' is not installed")
    packed = [block.compress(data[at:at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(len(p).to_bytes(4, "little") + p for p in packed)


def lz4_frame(data: bytes) -> bytes:
    return pytest.importorskip("lz4.frame", reason="the extra 'images' is not installed").compress(data)


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="the extra 'images' is not installed").ZstdCompressor(level=3).compress(data)


def zstd_stream(data: bytes) -> bytes:
    """As Linux's build has it, from a pipe: the frame does not say its size, and the window is large."""
    zstandard = pytest.importorskip("zstandard", reason="the extra 'images' is not installed")
    packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(19, window_log=27)).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS = {
    "gzip": gzipped, "bzip2": bz2.compress, "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]),
    "lz4 legacy": lz4_legacy, "lz4 frame": lz4_frame, "zstd": zstd, "zstd stream": zstd_stream,
}


def refused(data: bytes, **options) -> str:
    with pytest.raises(LoadError) as info:
        parse_image(data, **options)
    return str(info.value)


@pytest.mark.parametrize("packer", PACKERS)
def test_every_format_as_payload_and_alone(packer: str) -> None:
    """A distribution's kernel would not start because of how it is packed."""
    packed = PACKERS[packer](IMAGE)
    size = None if packer == "gzip" else len(IMAGE)             # gzip has it in itself
    for data in (bzimage(packed, size=size), packed, gzipped(bzimage(packed, size=size))):
        assert bytes(parse_image(data).segments[0][1]).startswith(TEXT)


def test_payload_that_is_not_compressed() -> None:
    """CONFIG_KERNEL_UNCOMPRESSED."""
    assert bytes(parse_image(bzimage(IMAGE)).segments[0][1]).startswith(TEXT)


@pytest.mark.parametrize("packer", PACKERS)
def test_damage_is_an_error(packer: str) -> None:
    """Half a kernel, or one with a wrong byte, would be started."""
    packed = PACKERS[packer](IMAGE)
    size = None if packer == "gzip" else len(IMAGE)
    for cut in (len(packed) // 2, len(packed) - 9, 20):
        assert "payload: " in refused(bzimage(packed[:cut], size=len(IMAGE)))
    if size is not None:
        assert f"to {len(IMAGE)} bytes; its length word says {len(IMAGE) + 1}" in refused(bzimage(packed, size=size + 1))
        assert f"to more than the {len(IMAGE) - 1} bytes" in refused(bzimage(packed, size=size - 1))
        assert "says that it decompresses to 4294967295 bytes" in refused(bzimage(packed, size=0xFFFFFFFF))


@pytest.mark.parametrize("packer", PACKERS)
def test_bombs_are_stopped_at_the_limit(packer: str) -> None:
    """A small file would fill the host's memory: what is held may be the limit and the decoder's own, not what the file unfolds to."""
    bomb = PACKERS[packer](bytes(32 << 20))
    tracemalloc.start()
    try:
        assert "to more than 1048576 bytes, the most that an image may have" in refused(bomb, limit=1 << 20)
        # An lz4 block is unpacked whole, twice 8 MiB with its copy; the others in pieces of 1 MiB.
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_lzo_and_unknown_are_said() -> None:
    """The user would be told that the file is damaged."""
    assert "payload: is compressed with LZO, which is not supported (configure the kernel with CONFIG_KERNEL_ZSTD" in refused(
        bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(64), size=0))
    assert "payload: begins with 61 62 63 64 65 66: no compression that is known (gzip, xz, bzip2, lz4, zstd, LZO, lzma)" in refused(
        bzimage(b"abcdefghij", size=100))


@pytest.mark.parametrize("packer, module", [("lz4 legacy", "lz4.block"), ("lz4 frame", "lz4.frame"), ("zstd", "zstandard")])
def test_a_missing_package_is_named(packer: str, module: str, monkeypatch) -> None:
    """The user would see an ImportError and not know that it is an extra."""
    packed = PACKERS[packer](IMAGE)
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'xenlike[images]'" in refused(bzimage(packed, size=len(IMAGE)))


@pytest.mark.parametrize("data, says", [
    (bzimage(gzipped(IMAGE), version=0x207), "boot protocol: 2.07: 2.08 is the oldest that says where the kernel is"),
    (bzimage(gzipped(IMAGE), length=0), "setup header: payload_offset 0x20, payload_length 0x0"),
    (bzimage(gzipped(IMAGE), length=1 << 31), "is not in the file"),
    (bzimage(gzipped(IMAGE))[:0x24A], "setup header: the file ends inside its setup header, after 586 bytes"),
    (bzimage(b"abcd"), "payload_length: 4 bytes hold no kernel"),
    (bzimage(gzipped(b"not an ELF file")), "begins with 'not an E'"),
    (gzipped(gzipped(IMAGE)), "neither an ELF image nor a Linux bzImage"),
])
def test_headers_are_checked(data: bytes, says: str) -> None:
    """A field of the setup header would be followed out of the file."""
    assert says in refused(data)


def test_setup_sectors_0_are_4() -> None:
    """Very old boot sectors leave the count 0."""
    data = bytearray(bzimage(gzipped(IMAGE), sectors=4))
    data[0x1F1] = 0
    assert bytes(parse_image(bytes(data)).segments[0][1]).startswith(TEXT)


def test_decoders_memory_is_bounded() -> None:
    """A header that asks for a dictionary of 4 GiB would get it."""
    packed = bytearray(lzma.compress(IMAGE, lzma.FORMAT_ALONE))
    packed[1:5] = (0xE0000000).to_bytes(4, "little")
    packed[1:3] = b"\0\0"               # so that the magic number stays
    assert "cannot be decompressed as lzma" in refused(bytes(packed))
    zstandard = pytest.importorskip("zstandard", reason="the extra 'images' is not installed")
    packer = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=30)).compressobj()
    assert "a window of 1073741824 bytes" in refused(packer.compress(IMAGE) + packer.flush())


def test_formats_begin_differently() -> None:
    """A format would shadow another."""
    for n, a in enumerate(FORMATS):
        assert not any(b.magic.startswith(a.magic) for b in FORMATS[n + 1:])
