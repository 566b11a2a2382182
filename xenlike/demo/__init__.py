"""``make demo``, ``python -m xenlike.demo``: guests in Python, a guest in C, unmodified guests by translation, and GRUB, on hosts in this process.

Owns the demonstration: it runs the parts (``python_guests``, ``native``, ``unmodified``), each of which checks what its guests say against what the host
finds itself, and prints both. Called by people; the exit status is 0 only if every check held. What a machine cannot show
(no compiler, no GRUB) is left out by name and is not a failure.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from xenlike.demo.native import show_c, show_grub
from xenlike.demo.python_guests import show
from xenlike.demo.stage import Stage
from xenlike.demo.unmodified import show_unmodified
from xenlike.toolstack import SpecError, parse_size

__all__ = ["main"]

_MIB = 1 << 20
_PARTS = ("python", "c", "pc", "grub")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; 0 if all its checks held."""
    parser = argparse.ArgumentParser(prog="python -m xenlike.demo", description="Paravirtual guests in Python and C, unmodified guests by translation, and GRUB, with real disks.")
    parser.add_argument("--size", default="16M", help="of the disk image (default: %(default)s; at least 1M)")
    parser.add_argument("--rounds", type=int, default=2000, help="of ping and pong in Python (default: %(default)s)")
    parser.add_argument("--grub", metavar="FILE", help="GRUB's grub-x86_64-xen.bin (default: that of Debian's package grub-xen-host)")
    parser.add_argument("--parts", default=",".join(_PARTS), help="what to show, with commas between (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        size = parse_size(args.size)
    except SpecError as error:
        parser.error(f"--size: {error}")
    if size < _MIB or args.rounds < 1:
        parser.error("--size must be 1M at least, and --rounds 1")
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in _PARTS]:
        parser.error(f"--parts: {', '.join(unknown)}; there are {', '.join(_PARTS)}")

    on, begin = Stage(), time.perf_counter()
    print("A hypervisor with the Xen ABI, and its domains, in this process: no root, no /dev/kvm.", flush=True)
    with tempfile.TemporaryDirectory(prefix="xenlike-demo-") as name:
        folder = Path(name)
        if "python" in parts:
            show(on, folder, size, args.rounds)
        if "c" in parts:
            show_c(on, folder)
        if "pc" in parts:
            show_unmodified(on, folder)
        if "grub" in parts:
            show_grub(on, folder, args.grub)
    print(f"\nAll done in {time.perf_counter() - begin:.2f} s." + (f" Left out: {', '.join(on.left_out)}." if on.left_out else ""))
    print("All checks hold." if not on.failed else f"{on.failed} checks FAILED.")
    return 1 if on.failed else 0
