"""Kernel images that others built, as the loader sees them: Debian's GRUB for Xen, and its Linux kernels.

If these failed, the loader would fit the files that our own tests make and not those that people have. The packages are fetched by
`peers`, never installed. GRUB is small; the kernels (30 and 70 MB) are used where the cache has them already.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peers  # noqa: E402

from xenlike.loaders.errors import LoadError  # noqa: E402
from xenlike.loaders.image import load_image  # noqa: E402
from xenlike.toolstack.builder import Image, plan  # noqa: E402

MIB = 256               # pages


def kernel(flavour: str) -> Path:
    """The newest kernel of Debian's meta package in the cache."""
    found = sorted(peers.cache().glob(f"linux-image-[0-9]*-{flavour}/boot/vmlinuz-*"))
    found = [path for path in found if ("cloud" in path.name) == ("cloud" in flavour)]
    if not found:
        pytest.skip(f"no Linux kernel in {peers.cache()}: tests/tools/peers.py fetch linux-image-VERSION-{flavour} gets one")
    return found[-1]


def test_grub(grub: Path) -> None:
    """Entry 0, base 0, and a note segment without a memory size: an image that begins at its first byte."""
    image = load_image(grub)
    assert (image.virt_base, image.kstart, image.entry, image.hypercall_page, image.init_p2m) == (0, 0, 0, None, None)
    assert image.notes["GUEST_OS"] == "GRUB" and image.notes["LOADER"] == "generic" and image.notes.unknown == []
    assert plan(Image.of_kernel(image), 64 * MIB).end % 1024 == 0
    for name in ("grub-i386-xen.bin", "grub-i386-xen_pvh.bin"):
        with pytest.raises(LoadError, match="EI_CLASS: 1: this is a 32-bit image"):
            load_image(grub.parent / name)


@pytest.mark.parametrize("flavour", ["amd64", "cloud-amd64"])
def test_linux(flavour: str) -> None:
    """One is packed with xz, the other with lz4; both must come out with the addresses at which Linux is linked."""
    if flavour.startswith("cloud"):
        pytest.importorskip("lz4", reason="the extra 'images' is not installed")
    image = load_image(kernel(flavour))
    notes = image.notes
    assert (image.virt_base, image.init_p2m, image.mod_start_pfn, image.suspend_cancel) == (0xFFFFFFFF80000000, 0x8000000000, True, True)
    assert image.kstart == 0xFFFFFFFF81000000 and image.kstart < image.entry < image.kend and image.hypercall_page is None
    assert image.features.required == 1 and image.features.supported == 0x8801 | 1 | 1 << 4
    assert (notes["GUEST_OS"], notes["LOADER"], notes["HV_START_LOW"], notes["L1_MFN_VALID"]) == ("linux", "generic", 0xFFFF800000000000, (1, 1))
    assert notes["PHYS32_ENTRY"] == 0x1000850 and notes.unknown == []
    percpu = [at for at, data in image.segments if 0x3000000 <= at < 0x3100000]
    assert percpu, "the per-CPU segment is at its physical address; its virtual one is 0"
    assert plan(Image.of_kernel(image), 256 * MIB, 100).p2m > plan(Image.of_kernel(image), 256 * MIB).end
