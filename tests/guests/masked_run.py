"""One process on a host that lacks something; prints what happened. Run by test_bt_masked in processes of its own.

    masked_run.py HOW IMAGE...      HOW: plain, mdwe, no-exec, no-exec-later, no-memory

mdwe and no-exec take the thing away before the host is made, no-exec-later and no-memory after that: then it is the vCPU's own translator that
cannot be made.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import warnings
from pathlib import Path

import xenlike
import xenlike.loaders.image  # noqa: F401 - what is loaded later would need executable memory itself
import xenlike.toolstack.pc_builder  # noqa: F401
from xenlike.engine import ffi, lib

PR_SET_MDWE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 65, 38, 22
SYS_mmap, SYS_mprotect, PROT_EXEC = 9, 10, 4
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
_libc = ctypes.CDLL(None, use_errno=True)
ctypes.CDLL("libgcc_s.so.1")          # which the C library would load when a thread ends, and abort where it may not


def prctl(*words: int) -> None:
    """prctl, or exit status 77: this kernel does not have it."""
    if _libc.prctl(*(ctypes.c_ulong(word) for word in (*words, 0, 0, 0, 0)[:5])):
        print(f"prctl{words}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(77)


def refuse(*rules: tuple[int, int]) -> None:
    """From now on system call n fails with EPERM if its third argument has one of the bits given."""
    code = [(0x20, 0, 0, 0)]                                    # A = the call's number
    for number, bits in rules:
        body = [(0x20, 0, 0, 16 + 2 * 8), (0x45, 0, 1, bits), (0x06, 0, 0, ERRNO | 1), (0x06, 0, 0, ALLOW)]       # A = args[2]; any bit?
        code += [(0x15, 0, len(body), number), *body]
    code.append((0x06, 0, 0, ALLOW))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(filters)))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program))


def no_memory() -> None:
    """8 MiB of addresses are left: a translator's tables need more."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))


BEFORE = {"mdwe": lambda: prctl(PR_SET_MDWE, 1), "no-exec": lambda: refuse((SYS_mmap, PROT_EXEC), (SYS_mprotect, PROT_EXEC))}
AFTER = {"no-exec-later": BEFORE["no-exec"], "no-memory": no_memory}


def one(image: str, engine: str | None, how: str) -> dict:
    """A guest from start to end."""
    with xenlike.Host(clock="virtual", seed=3, engine=engine, memory="256M") as host:
        domain = host.create(image, memory="16M", vcpus=2, paused=True, on_poweroff="preserve")
        if engine is None and how in AFTER:
            AFTER.pop(how)()            # once
        domain.unpause()
        result = domain.wait(timeout=60)
        translated = lib.xl_bt_of_vcpu(lib.xl_vcpu(host.c, domain.domid, 0)) != ffi.NULL
        return {"chosen": host.engine, "translated": translated, "reason": result.reason, "text": domain.console.text, "digest": host.trace_digest(),
                "instructions": domain.statistics().counters["instructions"]}


def main(how: str, *images: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reference = [one(image, "interp", how) for image in images]
        quiet = len(caught)
        BEFORE.get(how, lambda: None)()
        found = [one(image, None, how) for image in images]
    said = [(str(w.message), w.category.__name__, os.path.basename(w.filename)) for w in caught]
    print(json.dumps({"reference": reference, "found": found, "said": said, "said_for_interp": quiet}))


if __name__ == "__main__":
    main(*sys.argv[1:])
