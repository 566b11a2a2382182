"""Builds the C core as the extension module ``xenlike._core`` (cffi, API mode).

There is no second declaration of anything: the C preprocessor runs over ``csrc/xenlike.h`` and the ABI headers with
``XL_CDEF`` defined, and what comes out is what cffi reads. Called by ``setup.py``; run it by hand to build in place.

Environment: ``XENLIKE_SANITIZE=1`` builds with AddressSanitizer and UBSan (see docs/sanitizers.md), ``XENLIKE_CFLAGS`` adds
flags, ``CC`` names the compiler.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess

import cffi

ROOT = pathlib.Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
INCLUDES = ["csrc", "csrc/include"]

#: What Python sees: the functions, then the guest-visible ABI.
HEADERS = ["base/types.h", "xenlike.h", "xenlike_x86.h", "x86/bare.h", "xenlike_bt.h"] + sorted(
    str(path.relative_to(CSRC / "include"))
    for path in (CSRC / "include" / "xen").rglob("*.h")
    if path.name not in {"xen-compat.h", "ring.h"}
)

#: Link-time optimisation inlines across files: a grant copy gets 15 % faster. gcc only: clang needs a plugin that is often missing.
LTO = ["-flto=auto", "-fvisibility=hidden"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def cdef_text() -> str:
    """The declarations for cffi: the headers after the preprocessor."""
    source = "".join(f'#include "{name}"\n' for name in HEADERS)
    command = shlex.split(os.environ.get("CC", "cc"))
    command += ["-E", "-P", "-x", "c", "-std=gnu11", "-DXL_CDEF", *(f"-I{ROOT / d}" for d in INCLUDES), "-"]
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise SystemExit(f"xenlike: no C compiler ('{command[0]}'): apt install gcc python3-dev, or set CC") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"xenlike: the C preprocessor failed:\n{error.stderr}") from None
    return done.stdout


def _is_gcc() -> bool:
    command = shlex.split(os.environ.get("CC", "cc"))
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    return "Free Software Foundation" in done.stdout


def ffibuilder() -> cffi.FFI:
    """The cffi builder, ready for ``setup(cffi_modules=...)`` and for ``compile()``."""
    extra = SANITIZERS if os.environ.get("XENLIKE_SANITIZE") == "1" else LTO if _is_gcc() else []
    ffi = cffi.FFI()
    ffi.cdef(cdef_text())
    # No SLP vectorizer: it reads two registers at once that a guest has just stored one by one, and the CPU must wait until they are in the cache.
    ffi.set_source(
        "xenlike._core",
        "#define XL_CORE 1\n" + "".join(f'#include "{name}"\n' for name in HEADERS),
        sources=sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.c") if "include" not in p.parts),
        include_dirs=INCLUDES,
        py_limited_api=False,       # one name for the module, however it is built: an abi3 one beside it would be stale
        define_macros=[("XL_CORE", "1")],
        extra_compile_args=["-std=gnu11", "-O2", "-g", "-pthread", "-fno-strict-aliasing", "-fno-tree-slp-vectorize", "-Wall", "-Wextra",
                            "-Wno-unused-parameter", "-Wno-unused-variable", "-Wno-unused-const-variable", "-Wno-missing-field-initializers",
                            *extra, *shlex.split(os.environ.get("XENLIKE_CFLAGS", ""))],
        extra_link_args=["-pthread", "-O2", *extra],
    )
    return ffi


if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder().compile(tmpdir=".", verbose=False)
