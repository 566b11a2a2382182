"""Hostile guests in the binary translator, every block through the verifier: any bytes in any mode with any state on the bare machine, compared with
the interpreter as far as the architecture defines what happens; hostile PV kernels; hostile PV kernels on several real threads.

XENLIKE_BT_MACHINES, XENLIKE_BT_PROGRAMS, XENLIKE_BT_STRESS (seconds) and XENLIKE_BT_SEED say how much and which; `make fuzz` sets them.
"""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "unit"))

import test_pv_fuzz
import test_pv_stress
from core_guests import CoreGuest
from machine_guests import MachineHost

from xenlike.engine import ffi, lib

MACHINES = int(os.environ.get("XENLIKE_BT_MACHINES", "400"))
PROGRAMS = int(os.environ.get("XENLIKE_BT_PROGRAMS", "10"))
SECONDS = float(os.environ.get("XENLIKE_BT_STRESS", "1"))
SEED = int(os.environ.get("XENLIKE_BT_SEED", "1"))
SLOW = [0, lib.XL_BARE_BT_ONE, lib.XL_BARE_BT_NO_CHAIN, lib.XL_BARE_BT_FLUSH, lib.XL_BARE_BT_TINY_TLB]

pytestmark = pytest.mark.skipif(lib.xl_bt_unavailable() != ffi.NULL, reason="this host cannot translate (no BMI2, FSGSBASE, LAHF, or not x86-64)")


def fuzz(seed: int, machines: int) -> tuple[int, str, int]:
    """How many machines ran, what went wrong, how many instructions were compared."""
    report, compared = ffi.new("char[]", 512), ffi.new("u64 *")
    ran = lib.xl_bt_fuzz(seed, machines, ffi.new("u8[]", 2 << 20), report, 512, compared)
    return ran, ffi.string(report).decode(), compared[0]


def test_hostile_machines() -> None:
    """A guest could crash the host, make the translator emit what the verifier refuses, or tell the engines apart."""
    ran, report, compared = fuzz(SEED << 24, MACHINES)
    assert not report, report
    assert ran == MACHINES and compared > 5 * MACHINES


class Seen:
    """What the translators of destroyed domains had done."""

    translated = refused = 0

    def look(self, vcpus: list) -> None:
        stats = ffi.new("struct xl_bt_stats *")
        for vcpu in vcpus:
            translator = lib.xl_bt_of_vcpu(vcpu)
            if translator != ffi.NULL:
                lib.xl_bt_stats(translator, stats)
                self.translated += stats.translated
                self.refused += stats.rejected


@pytest.fixture
def seen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Machine code runs in the translator with the verifier, and with what the test's parameter makes slow."""
    monkeypatch.setenv("XENLIKE_ENGINE", "bt")
    monkeypatch.setenv("XENLIKE_BT_OPTIONS", str(lib.XL_BARE_BT_VERIFY | request.param))
    seen, destroy = Seen(), CoreGuest.destroy

    def look_and_destroy(guest: CoreGuest) -> None:
        seen.look(guest.vcpus)
        destroy(guest)

    monkeypatch.setattr(CoreGuest, "destroy", look_and_destroy)
    return seen


@pytest.mark.parametrize("seen", SLOW, indirect=True)
def test_hostile_pv_programs(seen: Seen) -> None:
    """A PV kernel in translated code could corrupt the hypervisor's accounting, keep a right to write, leak, or bring the process down."""
    with MachineHost() as host:
        before = host.usage()
        for seed in range(SEED * 1_000_000, SEED * 1_000_000 + PROGRAMS):
            test_pv_fuzz.play(host, seed)
            assert host.usage() == before and not seen.refused, f"seed {seed}"
    assert seen.translated


@pytest.mark.parametrize("seen", [0], indirect=True)
def test_hostile_pv_threads(seen: Seen) -> None:
    """Threads of translated code could do what one cannot: run what another has changed, write where a page table has come to be."""
    test_pv_stress.stress(SEED, SECONDS)
    assert seen.translated and not seen.refused
