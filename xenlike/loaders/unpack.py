"""Compressed images: which format the first bytes name, and decompression within a limit.

Owns the table of formats. Called by ``image`` and ``bzimage``. What is compressed is hostile: output never grows beyond ``limit``
bytes, and decoders that allocate by what a header says get a memory limit too. lz4 and zstandard come with the extra ``images``;
the others are in Python.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .errors import LoadError

__all__ = ["FORMATS", "Format", "compression_of", "decompress"]

_CHUNK = 1 << 20                        # of output asked for at a time
_DECODER_MEMORY = 256 << 20             # of an xz or lzma decoder: Linux's own images need 33 MiB
_ZSTD_WINDOW = 128 << 20                # what zstd --ultra -22 uses, as Linux does
_ZSTD_CHUNK = 256                       # of input: its decoder has no limit for output, and 4 bytes can make a block of 128 KiB
_LZ4_BLOCK = 8 << 20                    # of the legacy format, decompressed
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_SIZE_WORD = 4                          # behind a Linux payload


def _missing(format_name: str, module: str) -> LoadError:
    return LoadError(f"is compressed with {format_name}, and the Python package {module} is not installed", field="compression",
                     hint="pip install 'xenlike[images]'")


def _fed(decoder: Any, data: memoryview) -> Iterator[bytes]:
    """Pieces from a decoder of the standard library's kind: ``decompress(data, max_length)``, ``eof``, ``needs_input``."""
    at = 0
    while not decoder.eof:
        piece = b""
        if decoder.needs_input:
            piece = data[at:at + _CHUNK]
            at += len(piece)
            if not piece:
                raise EOFError("it ends too early")
        yield decoder.decompress(piece, _CHUNK)


def _gzip(data: memoryview) -> Iterator[bytes]:
    decoder, rest = zlib.decompressobj(31), bytes(data)
    while not decoder.eof:
        piece = decoder.decompress(rest, _CHUNK)
        rest = decoder.unconsumed_tail
        if not piece and not rest and not decoder.eof:
            raise EOFError("it ends too early")
        yield piece


def _lz4_legacy(data: memoryview) -> Iterator[bytes]:
    try:
        import lz4.block
    except ImportError:
        raise _missing("lz4", "lz4") from None
    at = len(_LZ4_MAGIC)
    while at + 4 < len(data):           # four bytes at the end are Linux's length word
        size = int.from_bytes(data[at:at + 4], "little")
        at += 4
        if size == int.from_bytes(_LZ4_MAGIC, "little"):
            continue                    # streams may follow each other
        if not size or at + size > len(data):
            raise EOFError(f"a block of {size} bytes at {at - 4:#x} is larger than what is left")
        yield lz4.block.decompress(data[at:at + size], uncompressed_size=_LZ4_BLOCK)
        at += size


def _lz4_frame(data: memoryview) -> Iterator[bytes]:
    try:
        import lz4.frame
    except ImportError:
        raise _missing("lz4", "lz4") from None
    yield from _fed(lz4.frame.LZ4FrameDecompressor(), data)


def _zstd(data: memoryview) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise _missing("zstd", "zstandard") from None
    window = zstandard.get_frame_parameters(data).window_size
    if window > _ZSTD_WINDOW:
        raise ValueError(f"a window of {window} bytes; {_ZSTD_WINDOW} is the most")
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    for at in range(0, len(data), _ZSTD_CHUNK):
        yield decoder.decompress(data[at:at + _ZSTD_CHUNK])
        if decoder.eof:
            return
    raise EOFError("it ends too early")


class Format(NamedTuple):
    """A row of the table: the name people know, the first bytes, and what decompresses in pieces (None: not supported)."""

    name: str
    magic: bytes
    pieces: Callable[[memoryview], Iterator[bytes]] | None


FORMATS = (
    Format("gzip", b"\x1f\x8b", _gzip),
    Format("xz", b"\xfd7zXZ\0", lambda data: _fed(lzma.LZMADecompressor(lzma.FORMAT_XZ, _DECODER_MEMORY), data)),
    Format("bzip2", b"BZh", lambda data: _fed(bz2.BZ2Decompressor(), data)),
    Format("lz4", _LZ4_MAGIC, _lz4_legacy),
    Format("lz4", b"\x04\x22\x4d\x18", _lz4_frame),
    Format("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Format("LZO", b"\x89LZO", None),
    Format("lzma", b"\x5d\0\0", lambda data: _fed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, _DECODER_MEMORY), data)),
)


def compression_of(data: memoryview) -> Format | None:
    """The format that the first bytes name, or None."""
    return next((f for f in FORMATS if data[:len(f.magic)] == f.magic), None)


def decompress(data: memoryview, limit: int, *, field: str, exact: bool = False) -> bytes:
    """What ``data`` holds, compressed in the format that its first bytes name; what follows the compressed stream is not looked at.

    More than ``limit`` bytes are refused, as soon as they are more; with ``exact`` fewer too. ``field`` names the data in messages.
    Raises LoadError: format unknown or not supported, package missing, data damaged, too much.
    """
    form = compression_of(data)
    if form is None:
        raise LoadError(f"begins with {data[:6].hex(' ')}: no compression that is known ({', '.join(dict.fromkeys(f.name for f in FORMATS))})",
                        field=field)
    if form.pieces is None:
        raise LoadError(f"is compressed with {form.name}, which is not supported", field=field,
                        hint="configure the kernel with CONFIG_KERNEL_ZSTD, _XZ, _LZ4 or _GZIP")
    out = bytearray()
    try:
        for piece in form.pieces(data):
            out += piece
            if len(out) > limit:
                what = f"the {limit} bytes that its length word says" if exact else f"{limit} bytes, the most that an image may have"
                raise LoadError(f"decompresses ({form.name}) to more than {what}", field=field)
    except LoadError:
        raise
    except (MemoryError, EOFError, ValueError, OSError, RuntimeError, lzma.LZMAError, zlib.error) as error:
        raise LoadError(f"cannot be decompressed as {form.name}: {error or type(error).__name__}", field=field,
                        hint="is the file truncated or damaged?") from None
    except Exception as error:          # zstandard.ZstdError, lz4.block.LZ4BlockError: of modules that may not be there
        if type(error).__module__.partition(".")[0] not in ("zstandard", "lz4", "_block"):
            raise
        raise LoadError(f"cannot be decompressed as {form.name}: {error}", field=field, hint="is the file truncated or damaged?") from None
    if exact and len(out) != limit:
        raise LoadError(f"decompresses ({form.name}) to {len(out)} bytes; its length word says {limit}", field=field,
                        hint="is the file truncated or damaged?")
    return bytes(out)
