"""The order of memory accesses between vCPUs on real threads (tests/guests/pc_guests/litmus): what x86 forbids never happens."""

from __future__ import annotations

import os
import re

import pytest
from pc_images import SUCCESS, guest

from xenlike import Host
from xenlike.engine import ffi, lib

TIMES = int(os.environ.get("XENLIKE_LITMUS", "1000"))
needs_translator = pytest.mark.skipif(lib.xl_bt_unavailable() != ffi.NULL, reason="this host cannot translate (no BMI2, FSGSBASE, LAHF, or not x86-64)")
ENGINES = [pytest.param("bt", marks=needs_translator), "interp"]
NAMES = ["SB", "SB+own", "SB+mfence", "SB+lock", "SB+xchg", "SB+xchg-other", "SB+cmpxchg", "SB+cmpxchg8b", "SB+cmpxchg16b", "SB+cpuid", "SB+cr3",
         "SB+iret", "SB+in", "own-store", "MP", "MP+rep-stos", "LB", "CoRR", "wide"]


def outcomes(text: str) -> dict[str, dict[str, int]]:
    """What the guest printed: test -> outcome -> how often."""
    found = re.findall(r"^litmus: (\S+)((?: [0-3]{2}:\d+)+)$", text.replace("\r", ""), re.M)
    return {name: {o: int(n) for o, n in re.findall(r"(\d\d):(\d+)", counts)} for name, counts in found}


def run(engine: str, vcpus: int, times: int, clock: str = "real") -> dict[str, dict[str, int]]:
    with Host(clock=clock, pcpus=min(vcpus, max(2, os.cpu_count() or 1)), engine=engine) as host:
        domain = host.create(guest("litmus"), vcpus=vcpus, extra=f"times={times}")
        result = domain.wait(timeout=600)
        assert (result.reason, result.exit_code) == ("poweroff", SUCCESS), domain.console.text + str(result)
        assert "litmus: locked instructions" in domain.console.text
        return outcomes(domain.console.text)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processors(engine: str, record_property) -> None:
    """Wrong if a load passes one that it may not pass, a store becomes visible too early or torn, a fence or a locked or serializing instruction
    orders nothing, or an addition is lost: the guest ends with 1 then."""
    seen = run(engine, 2, TIMES)
    assert list(seen) == NAMES and all(sum(counts.values()) >= TIMES for counts in seen.values())
    record_property("store buffering", seen["SB"])      # 00 is allowed, and shows that the test can see anything at all


@pytest.mark.parametrize("engine", ENGINES)
def test_four_processors(engine: str) -> None:
    """Wrong if two processors see two others' stores in different orders (IRIW). Four threads, on fewer CPUs where there are no more."""
    seen = run(engine, 4, TIMES if (os.cpu_count() or 1) >= 4 else max(1, TIMES // 50))
    assert list(seen) == [*NAMES, "IRIW"]


def test_the_virtual_clock_interleaves_only() -> None:
    """Wrong if one thread could see what only store buffers make: on the virtual clock a run is sequentially consistent."""
    seen = run(None, 2, 30, clock="virtual")
    assert "00" not in seen["SB"]
