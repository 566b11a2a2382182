"""What the machines share: a domain seen through its scratch pages, and the two ways to run a history.

A machine is a `Runner` with an operation a method; each takes small integers and makes of them what the moment allows,
so that any list of choices is a valid history, and Hypothesis can shorten it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..models.abi import HYPERVISOR_START, PAGE_SIZE, U64
from .driver import Driver, Mismatch

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

# Pointers no hypervisor may follow for a PV guest: its own range, and what is not canonical.
BAD_POINTERS = (HYPERVISOR_START + PAGE_SIZE, 1 << 63, (1 << 47) + 8, U64 & ~7 & ~(1 << 50))
NOBODY = 0x7000                             # a domain id that is never given out

Choice = tuple[int, ...]


class Guest:
    """A domain: its id, and its scratch pages for arguments."""

    __slots__ = ("id", "driver", "scratch", "view", "shared")

    def __init__(self, driver: Driver, domid: int) -> None:
        self.id, self.driver = domid, driver
        self.scratch = driver.scratch(domid)
        self.view = driver.scratch_view(domid)
        self.shared = driver.shared_info_view(domid)

    def write(self, offset: int, data: bytes) -> int:
        """Put bytes at an offset of the scratch pages and return their address."""
        if self.view is not None:
            self.view[offset:offset + len(data)] = data
        else:
            self.driver.write_mem(self.id, self.scratch + offset, data)
        return self.scratch + offset

    def read(self, offset: int, size: int) -> bytes:
        if self.view is not None:
            return bytes(self.view[offset:offset + size])
        return self.driver.read_mem(self.id, self.scratch + offset, size)

    def drop_views(self) -> None:
        self.view = self.shared = None


class Runner:
    """One history of a driver and a model in step. Subclasses add the operations named in `operations`."""

    operations: Mapping[str, int] = {}      # name → how often it is drawn
    width = 3                               # integers an operation takes, each a byte

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.before = dict(driver.counts())
        self.steps = 0

    def check_all(self) -> None:
        """Compare everything."""
        raise NotImplementedError

    def kill_all(self) -> None:
        """Destroy every domain."""
        raise NotImplementedError

    def finish(self) -> None:
        """Compare everything once more, kill all domains, and find nothing left behind."""
        self.check_all()
        self.kill_all()
        after = dict(self.driver.counts())
        if after != self.before:
            raise Mismatch(f"leaked: {self.before} before, {after} after")

    def expect(self, what: str, got: object, want: object) -> None:
        if got != want:
            raise Mismatch(f"step {self.steps}: {what} gave {got}, not {want}")


def draw(runner: type[Runner], seed: int, count: int, *, without: Iterable[str] = ()) -> list[Choice]:
    """`count` steps for `run`: (operation, bytes…). `without` names operations never drawn."""
    rng = random.Random(seed)
    without = set(without)
    weights = [0 if name in without else weight for name, weight in runner.operations.items()]
    ops = rng.choices(range(len(weights)), weights, k=count)
    width = runner.width
    data = rng.randbytes(width * count)
    return [(op, *data[width * n:width * (n + 1)]) for n, op in enumerate(ops)]


def run(runner: Runner, choices: Iterable[Choice]) -> int:
    """Run choices drawn beforehand; returns the number of steps. Raises `Mismatch` at the first disagreement."""
    methods = [getattr(runner, name) for name in runner.operations]
    for op, *arguments in choices:
        methods[op](*arguments)
    runner.finish()
    return runner.steps


def machine(make_driver: Callable[[], Driver], make_runner: Callable[[Driver], Runner],
            runner: type[Runner]) -> type[RuleBasedStateMachine]:
    """A Hypothesis state machine: one rule an operation, a driver and a runner an example."""
    # Only here, so that scripts run where Hypothesis is not installed.
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, rule

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.driver = make_driver()
            self.runner = make_runner(self.driver)
            self.failed = False

        def step(self, name: str, arguments: Mapping[str, int]) -> None:
            try:
                getattr(self.runner, name)(*arguments.values())
            except BaseException:
                self.failed = True          # what finish() would say now is noise
                raise

        def teardown(self) -> None:
            try:
                if not self.failed:
                    self.runner.finish()
            finally:
                self.driver.close()

    byte = st.integers(0, 255)
    names = "abcdef"[:runner.width]
    for name in runner.operations:
        def operation(self, *, _name: str = name, **arguments: int) -> None:
            self.step(_name, arguments)
        operation.__name__ = name
        setattr(Machine, name, rule(**{letter: byte for letter in names})(operation))
    Machine.__name__ = Machine.__qualname__ = runner.__name__.replace("Runner", "Machine")
    return Machine
