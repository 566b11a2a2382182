"""Any bytes as code, in any mode, with any register and page-table contents, on the bare machine (csrc/x86/bare_fuzz.c).

XENLIKE_X86_MACHINES and XENLIKE_X86_SEED say how many and which; `make fuzz` sets them. Meant above all for the sanitizer build.
"""

from __future__ import annotations

import os

from xenlike.engine import ffi, lib

MACHINES = int(os.environ.get("XENLIKE_X86_MACHINES", "2000"))
SEED = int(os.environ.get("XENLIKE_X86_SEED", "1"))


def fuzz(seed: int, machines: int) -> tuple[int, str]:
    report = ffi.new("char[]", 512)
    ran = lib.xl_bare_fuzz(seed, machines, ffi.new("u8[]", 2 << 20), report, 512)
    return ran, ffi.string(report).decode()


def test_hostile_machines() -> None:
    """A guest could crash the host, leave its machine, or behave differently with the decode cache, without it, and when it is run
    instruction by instruction."""
    ran, report = fuzz(SEED << 24, MACHINES)
    assert not report, report
    assert ran == MACHINES


def test_machines_are_repeatable() -> None:
    """A seed would not repeat its failure."""
    assert fuzz(SEED, 3) == fuzz(SEED, 3) == (3, "")
