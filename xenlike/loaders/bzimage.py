"""Linux's bzImage: the setup header, and the payload in it, which is the kernel as an ELF file.

Owns the format (Linux's boot protocol, Documentation/arch/x86/boot.rst). Called by ``image``. The 16-bit part and the decompressor
in the file are not used: a PV guest starts at the ELF file's own entry.
"""

from __future__ import annotations

from .errors import LoadError
from .unpack import decompress

__all__ = ["is_bzimage", "payload"]

_SECTOR = 512
_SETUP_SECTS, _BOOT_FLAG, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x1FE, 0x202, 0x206, 0x248
_LEAST_VERSION = 0x208                  # the first whose header says where the payload is


def is_bzimage(data: memoryview) -> bool:
    """It has the setup header's two magic numbers."""
    return data[_BOOT_FLAG:_BOOT_FLAG + 2] == b"\x55\xaa" and data[_MAGIC:_MAGIC + 4] == b"HdrS"


def payload(data: memoryview, limit: int) -> bytes:
    """The kernel in a bzImage, decompressed, at most ``limit`` bytes. Raises LoadError."""
    if len(data) < _PAYLOAD + 8:
        raise LoadError(f"the file ends inside its setup header, after {len(data)} bytes", field="setup header", hint="is it truncated?")
    word = lambda at, size=4: int.from_bytes(data[at:at + size], "little")  # noqa: E731
    version = word(_VERSION, 2)
    if version < _LEAST_VERSION:
        raise LoadError(f"{version >> 8}.{version & 255:02}: 2.08 is the oldest that says where the kernel is", field="boot protocol",
                        hint="use the kernel's vmlinux")
    offset, length = word(_PAYLOAD), word(_PAYLOAD + 4)
    start = ((word(_SETUP_SECTS, 1) or 4) + 1) * _SECTOR + offset
    if not length or start + length > len(data):
        raise LoadError(f"payload_offset {offset:#x}, payload_length {length:#x}: {start:#x} to {start + length:#x} is not in the file "
                        f"({len(data):#x})", field="setup header", hint="is it truncated?")
    packed = data[start:start + length]
    if packed[:4] == b"\x7fELF":        # CONFIG_KERNEL_UNCOMPRESSED
        return packed.tobytes()
    if length < 8:
        raise LoadError(f"{length} bytes hold no kernel", field="payload_length")
    # The build puts the size behind all formats; gzip ends in it by itself.
    size = int.from_bytes(packed[-4:], "little")
    if size > limit:
        raise LoadError(f"says that it decompresses to {size} bytes; {limit} is the most that an image may have", field="payload",
                        hint="is the file truncated or damaged?")
    return decompress(packed, size, field="payload", exact=True)
