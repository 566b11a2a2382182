"""Code that changes while it runs, on several vCPUs and real threads: tests/guests/pc_guests/crossmod checks from inside, here the host writes too.

Not run under QEMU: version 7.2's translator fails the guest's part with interrupts now and then.
"""

from __future__ import annotations

import os
import re
import struct

import pytest
from pc_images import SUCCESS, guest

from xenlike import Host
from xenlike.engine import ffi, lib

ROUNDS = int(os.environ.get("XENLIKE_SMC_ROUNDS", "20"))        # each of some 40 ways to write, so often
SAYS = [f"crossmod: {what}" for what in ("flag and cpuid", "flag", "interrupt", "own code in one page", "remapped pages")]
TRANSLATES = lib.xl_bt_unavailable() == ffi.NULL
needs_translator = pytest.mark.skipif(not TRANSLATES, reason="this host cannot translate (no BMI2, FSGSBASE, LAHF, or not x86-64)")
ENGINES = [pytest.param("bt", marks=needs_translator), "interp"]


def lines(domain) -> list[str]:
    return domain.console.text.replace("\r", "").splitlines()


def run(*, vcpus: int, rounds: int, clock: str = "real", engine: str | None = None) -> None:
    with Host(clock=clock, pcpus=2, engine=engine) as host:
        domain = host.create(guest("crossmod"), vcpus=vcpus, extra=f"rounds={rounds} cpus={vcpus}")
        result = domain.wait(timeout=300)
        assert (result.reason, result.exit_code, lines(domain)) == ("poweroff", SUCCESS, [f"crossmod: {vcpus} processors", *SAYS]), result
        assert lib.xl_check_tlbs(host.c) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processors(engine: str) -> None:
    """Wrong if a processor runs code that another has replaced: after a flag and a serializing instruction, after a flag alone (as processors
    do it), after an interrupt; or its own old code, because a neighbour in the same page changed something; or a page that was remapped."""
    run(vcpus=2, rounds=ROUNDS, engine=engine)


@needs_translator
@pytest.mark.parametrize("options", [lib.XL_BARE_BT_ONE, lib.XL_BARE_BT_NO_CHAIN, lib.XL_BARE_BT_FLUSH, lib.XL_BARE_BT_TINY_TLB])
def test_two_processors_forced_slow(options: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if it was only chance, or the length of blocks, that hid a stale one. With the verifier."""
    monkeypatch.setenv("XENLIKE_BT_OPTIONS", str(options | 16))
    run(vcpus=2, rounds=max(2, ROUNDS // 10), engine="bt")


@needs_translator
def test_more_processors_than_threads() -> None:
    """Wrong if who is off his thread when code changes runs the old code when he comes back."""
    run(vcpus=4, rounds=max(1, ROUNDS // 20), engine="bt")


@pytest.mark.parametrize("engine", ENGINES)
def test_on_the_virtual_clock(engine: str) -> None:
    """Wrong if one thread that takes turns forgets to look, or waits for itself."""
    run(vcpus=3, rounds=max(1, ROUNDS // 20), clock="virtual", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_host_writes(engine: str) -> None:
    """Wrong if what a debugger or a device writes into code is not run, by processors that never rest meanwhile."""
    with Host(clock="real", pcpus=2, engine=engine) as host:
        domain = host.create(guest("crossmod"), vcpus=2, extra=f"rounds={ROUNDS} cpus=2 host",
                             on_poweroff="preserve")     # its memory can be read when it has ended
        found = domain.console.expect(r"host: rounds (\d+) target (\w+) round (\w+) seen (\w+) cpus (\d+)", timeout=60)
        rounds, cpus = int(found[1]), int(found[5])
        target, number, seen = (int(found[k], 16) for k in (2, 3, 4))

        def seen_by_all() -> set[int]:
            words = ffi.new("u32[8]")
            assert lib.xl_pc_read(host.c, domain.domid, seen, words, ffi.sizeof(words)) == 0
            return set(words[0:cpus])

        for n in range(1, rounds + 1):
            for address, content in ((target, b"\xb8" + struct.pack("<I", n) + b"\xc3"), (number, struct.pack("<I", n))):
                assert lib.xl_pc_write(host.c, domain.domid, address, content, len(content)) == 0
            host.wait_until(lambda n=n: domain.ended or seen_by_all() == {n}, timeout=60)
            assert not domain.ended or n == rounds, domain.console.text
        assert domain.wait(timeout=60).exit_code == SUCCESS and re.search("the host's writes", domain.console.text)
