"""What runs by translation takes the course that it takes interpreted: the same events at the same times, in every manner of translation.

Each guest runs once on each engine of ENGINES with the virtual clock; what is compared is its whole course: the digest of the trace (every hypercall, event, trap and
decision of the scheduler, with its time), the bytes of its console, its instructions and what else is counted, and the time at the end. The soft TLB's own counters
are not: the translator flushes when a page becomes code.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from c_images import _folder, example, make, need_tools
from pc_images import example as pc_example

import xenlike
from xenlike.debugger.target import Target
from xenlike.engine import ffi, lib

#: Engine, and the translator's options: what makes it slow, each alone and all at once; with every block verified.
ENGINES = {"interp": None, "bt": 0, "one": lib.XL_BT_ONE, "no-chain": lib.XL_BT_NO_CHAIN, "flush": lib.XL_BT_FLUSH, "tiny-tlb": lib.XL_BT_TINY_TLB,
           "forced-slow": lib.XL_BT_ONE | lib.XL_BT_NO_CHAIN | lib.XL_BT_FLUSH | lib.XL_BT_TINY_TLB, "verified": lib.XL_BT_VERIFY}


@pytest.fixture(autouse=True)
def _translator() -> None:
    if lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip(f"no translator on this host: {ffi.string(lib.xl_bt_unavailable()).decode()}")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], xenlike.Host]:
    """host(name): one with the virtual clock and that engine."""
    def make_host(name: str) -> xenlike.Host:
        options = ENGINES[name]
        monkeypatch.setenv("XENLIKE_BT_OPTIONS", str(options or 0))
        return xenlike.Host(clock="virtual", seed=11, engine="interp" if options is None else "bt")
    return make_host


def course(host: xenlike.Host, domain: xenlike.Domain) -> dict[str, object]:
    """What is compared of a run. Each vCPU that ran must have run on the engine that was asked for."""
    stats = ffi.new("struct xl_bt_stats *")
    for n in range(domain.config.maxvcpus):
        t = lib.xl_bt_of_vcpu(lib.xl_vcpu(host.c, domain.domid, n))
        assert (t != ffi.NULL) == (host.engine == "bt")
        if t != ffi.NULL:
            lib.xl_bt_stats(t, stats)
            assert stats.rejected == 0 and (stats.blocks > 0 or "32" in domain.name)       # 32-bit code may be the interpreter's
    counters = {name: n for name, n in domain.statistics().counters.items() if not name.startswith("tlb_")}
    return {"console": domain.console.text, "instructions": counters["instructions"], "counters": counters, "now": host.now(),
            "digest": host.trace_digest()}


def whole(host: xenlike.Host, image: Path, **settings: object) -> dict[str, object]:
    """A guest that ends by itself."""
    domain = host.create(str(image), **{"memory": "16M", "on_poweroff": "preserve", **settings})
    result = domain.wait(timeout=1000)
    assert result.reason == "poweroff", domain.console.text + str(result)
    return course(host, domain)


#: By name: image, settings, and a line that it prints once it has come to what it is about.
GUESTS = {
    "pv-timer-and-user": (lambda: example("user"), {}, "the timer reached spin()"),
    "pv-traps": (lambda: example("traps"), {}, "ud2: vector 6"),
    "pv-smp": (lambda: example("smp"), {"vcpus": 3}, "all were woken, and interrupted us"),
    "pc-ticks": (lambda: pc_example("ticks"), {}, "apic: 20 ticks"),
    "pc-smp": (lambda: pc_example("smp"), {"vcpus": 4}, "smp: interrupts arrived"),
    "pc-smc": (lambda: pc_example("smc"), {}, "smc: across pages"),
    "pc-32": (lambda: pc_example("hello32"), {}, "Hello from 32 bits"),
}


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_takes_the_same_course(name: str, host: Callable[[str], xenlike.Host]) -> None:
    """Wrong if a timer fires at another instruction, an interrupt, a fault or a changed instruction is seen elsewhere, or one retires unseen."""
    image, settings, line = GUESTS[name]
    found = {}
    for engine in ENGINES:
        with host(engine) as h:
            found[engine] = whole(h, image(), **settings)
    assert line in found["interp"]["console"] and found["interp"]["instructions"] > 1000
    assert [engine for engine in ENGINES if found[engine] != found["interp"]] == []


def grub_boots(host: xenlike.Host, image: Path) -> dict[str, object]:
    domain = host.create(str(image), name="grub", memory="64M")
    domain.console.expect(r"grub> ", timeout=60)
    domain.console.send("echo one two\r")
    domain.console.expect(r"one two[^$]*grub> ", timeout=60)
    return course(host, domain)


def test_grub_takes_the_same_course(grub: Path, host: Callable[[str], xenlike.Host]) -> None:
    """Wrong if a stock image (1.7 million instructions to its prompt, decompression among them) differs anywhere."""
    found = {}
    for engine in ("interp", "bt", "no-chain", "forced-slow", "verified"):
        with host(engine) as h:
            found[engine] = grub_boots(h, grub)
    assert found["interp"]["instructions"] > 1_000_000
    assert [engine for engine in found if found[engine] != found["interp"]] == []


# ---- under a debugger ------------------------------------------------------------------------------------------------

SOURCE = r"""
#include <guest.h>

volatile unsigned long counter, other;

__attribute__((noinline)) unsigned long step_me(unsigned long n) { counter += n; return counter * 2; }

int main(int argc, char **argv)
{
    for (unsigned long n = 1; n <= 400; n++)
        other += step_me(n) ^ n << 3;
    printf("counter %lu, other %lu\n", counter, other);
    return 0;
}
"""


@pytest.fixture(scope="module")
def debugged() -> tuple[Path, dict[str, int]]:
    """The guest above, and the addresses of its symbols."""
    from guest_sdk.c import makefile

    need_tools()
    folder = Path(_folder().name) / "traced"
    folder.mkdir()
    (folder / "traced.c").write_text(SOURCE)
    (folder / "Makefile").write_text(f"GUEST = traced\nSRCS = traced.c\ninclude {makefile()}\n")
    done = make(cwd=folder)
    assert done.returncode == 0, done.stderr
    names = subprocess.run(["nm", folder / "traced"], capture_output=True, text=True, check=True).stdout
    return folder / "traced", {line.split()[2]: int(line.split()[0], 16) for line in names.splitlines() if len(line.split()) == 3}


class Session:
    """A debugger at work, and what it saw at each stop."""

    def __init__(self, host: xenlike.Host, image: Path) -> None:
        self.host = host
        self.domain = host.create(str(image), memory="16M", paused=True, on_poweroff="preserve")
        self.seen: list[tuple] = []
        self.target = Target(self.domain, lambda stop: None)
        self.domain.unpause()

    def go(self, act: Callable[[], None]) -> None:
        act()
        self.host.wait_until(lambda: not self.target.running, timeout=100)
        stop, state = self.target.stop, self.target.registers(0)
        self.seen.append((stop.kind, stop.address, state.retired, self.host.now(), bytes(ffi.buffer(ffi.addressof(state, "regs")))))


def debug(host: xenlike.Host, image: Path, symbols: dict[str, int]) -> dict[str, object]:
    """Breakpoint, single steps out of the function and around its loop, a watchpoint hit in the middle of a hot loop, and on to the end."""
    s = Session(host, image)
    t = s.target
    t.breakpoint(lib.DEBUG_EXEC, symbols["step_me"], 1, add=True)
    for _ in range(3):
        s.go(t.resume)
    for _ in range(60):
        s.go(lambda: t.step(0))
    t.breakpoint(lib.DEBUG_EXEC, symbols["step_me"], 1, add=False)
    t.breakpoint(lib.DEBUG_WRITE, symbols["other"], 8, add=True)
    for _ in range(5):
        s.go(t.resume)
    t.breakpoint(lib.DEBUG_WRITE, symbols["other"], 8, add=False)
    t.breakpoint(lib.DEBUG_READ, symbols["counter"], 8, add=True)
    for _ in range(5):
        s.go(t.resume)
    t.breakpoint(lib.DEBUG_READ, symbols["counter"], 8, add=False)
    t.resume()
    s.host.wait_until(lambda: t.ended is not None, timeout=1000)
    found = course(host, s.domain)
    t.detach()
    return {**found, "stops": s.seen}


def test_a_debugger_sees_the_same(debugged: tuple[Path, dict[str, int]], host: Callable[[str], xenlike.Host]) -> None:
    """Wrong if a point is passed or met at another instruction, a step is longer than one, or a debugger's presence changes the course."""
    found = {}
    for engine in ENGINES:
        with host(engine) as h:
            found[engine] = debug(h, *debugged)
    assert len(found["interp"]["stops"]) == 73 and {stop[0] for stop in found["interp"]["stops"]} > {lib.DEBUG_EXEC, lib.DEBUG_WRITE}
    assert "counter 80200," in found["interp"]["console"]
    assert [engine for engine in ENGINES if found[engine] != found["interp"]] == []
    with host("bt") as h:               # the course without a debugger, but for the trace's own entries of stops
        assert whole(h, debugged[0])["instructions"] == found["bt"]["instructions"]
