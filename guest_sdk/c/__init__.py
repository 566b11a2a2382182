"""The SDK for guests in C, paravirtual and bare metal: where its files are, and the compiler's options.

Owns: nothing at run time; guests are built by ``guest.mk`` here, which ``python -m guest_sdk.c --mk`` names. docs/c-sdk.md is the
tutorial. The ABI headers lie in ``include/xen`` of an installed package, and in the hypervisor's sources in its repository.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["abi_include", "cflags", "directory", "makefile"]


def directory() -> Path:
    """The SDK's folder: ``include``, ``src``, ``guest.mk``, ``guest.lds``, ``examples``."""
    return Path(__file__).resolve().parent


def abi_include() -> Path:
    """The folder to give the compiler for ``#include <xen/xen.h>``. Raises FileNotFoundError."""
    for folder in (directory() / "include", directory().parents[1] / "csrc" / "include"):
        if (folder / "xen" / "xen.h").exists():
            return folder
    raise FileNotFoundError(f"the ABI headers (xen/xen.h) are neither below '{directory()}' nor in a source tree: reinstall xenlike")


def makefile(kind: str = "pv") -> Path:
    """The file that a guest's Makefile includes: of a paravirtual guest, or ("pc") of one for a plain PC."""
    return directory() / {"pv": "guest.mk", "pc": "pc/pc.mk"}[kind]


def cflags(cc: str = "cc") -> list[str]:
    """The options that ``guest.mk`` compiles guests with, for another build system or an editor. Raises RuntimeError if make fails."""
    make = shutil.which("make")
    if make is None:
        raise RuntimeError("GNU make is not installed: it builds guests, and knows the compiler's options")
    show = ["-s", "-f", str(makefile()), "-f", "-", "GUEST=guest", f"CC={cc}", "--eval", ".DEFAULT_GOAL := show-cflags"]
    done = subprocess.run([make, *show, "show-cflags"], input="show-cflags:\n\t@echo $(GUEST_CFLAGS)\n", capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise RuntimeError(f"make could not tell the options: {done.stderr.strip()}")
    return done.stdout.split()
