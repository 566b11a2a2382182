"""Hypercalls with random and hostile arguments: a documented error, at worst a domain crashed with a reason, nothing leaked.

Histories of calls are drawn from the project's own tables (xenlike.testing.strategies). After each history the attacker is
destroyed; a bystander must be as it was, and frames, ports, grants and hypervisor memory must be what they were.
`make fuzz` runs the same for longer, on the sanitizer build too.
"""

import os
import pathlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenlike.engine import ERRNO_NAMES, ffi, lib
from xenlike.testing.machines.core_driver import CoreDriver
from xenlike.testing.strategies import World, calls, read_tables

TABLE = read_tables(str(pathlib.Path(__file__).parents[2] / "csrc/include/xen"))
EXAMPLES = int(os.environ.get("XENLIKE_EXAMPLES", "60"))
CALLS = 40


def usage(driver):
    u = ffi.new("struct xl_usage *")
    lib.xl_usage(driver.c, u)
    return u.frames_free, u.arena_in_use, u.domains, u.timers


class Arena:
    """One host for all examples: a bystander that must not notice, and an attacker born anew each time."""

    def __init__(self):
        self.driver = CoreDriver()
        self.driver.create_domain(64, privileged=True)          # so that domain 0 is somebody
        self.bystander = self.driver.create_domain(64, 2)
        self.witness = self.picture()
        self.attack([])                                         # whatever is allocated once and kept

    def picture(self):
        d, g = self.driver, self.bystander
        frames = [d.pfn_to_mfn(g, pfn) for pfn in range(64)]
        return d.shared_info(g), [d.frame_read(m, 0, 4096) for m in frames], [dict(d.frame_info(m)) for m in frames]

    def attack(self, history):
        """Runs [(vcpu, call)] as a new domain; returns the results."""
        driver = self.driver
        attacker = driver.create_domain(96, 2)
        results = []
        for vcpu, call in history:
            if driver.crash_reason(attacker) is not None:
                break
            if driver.vcpu_state(attacker, vcpu)["blocked"]:
                continue
            try:
                call.place(driver, attacker)
            except MemoryError:
                pass                                            # it has taken its own scratch pages away
            results.append(driver.hypercall(attacker, vcpu, call.number, call.args))
        reason = driver.crash_reason(attacker)
        assert lib.xl_check_frames(driver.c, 0) == 0, "references disagree"
        driver.destroy_domain(attacker)
        assert lib.xl_check_frames(driver.c, 0) == 0, "references disagree after the death"
        return results, reason

    def world(self):
        driver = self.driver
        probe = driver.create_domain(96, 2)
        world = World(scratch=driver.scratch(probe), domids=(0, probe, self.bystander),
                      mfns=tuple(driver.pfn_to_mfn(probe, p) for p in range(96)) + tuple(
                          driver.pfn_to_mfn(self.bystander, p) for p in range(8)))
        driver.destroy_domain(probe)
        return world


ARENA = None


def arena():
    global ARENA
    if ARENA is None:
        ARENA = Arena()
    return ARENA


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_hypercalls_harm_nobody_else(data):
    """A hypercall would return nonsense, crash without a reason, change a bystander, or leak."""
    a = arena()
    before = usage(a.driver)
    history = data.draw(st.lists(st.tuples(st.integers(0, 1), calls(TABLE, a.world())), max_size=CALLS))
    results, reason = a.attack(history)
    for (_, call), rc in zip(history, results):
        assert rc >= 0 or -rc in ERRNO_NAMES or call.number in (9,), f"{call}: {rc}"        # get_debugreg returns a value
    assert reason != "", "a crash without a reason"
    assert usage(a.driver) == before, f"leaked after {history}"
    assert a.picture() == a.witness, f"the bystander changed after {history}"
