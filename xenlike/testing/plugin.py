"""The pytest plugin: the fixture ``xen``, a host of its own for each test.

    def test_it(xen):
        dom = xen.create(Hello, memory="16M")
        assert dom.console.expect("hello")
        assert dom.wait().reason == "poweroff"

Owns: options ``--xenlike-clock`` and ``--xenlike-seed``, the marker ``xenlike``, and what is attached to the report of a test that
failed: consoles, crashes, what waits, the last trace events, the seed, the line that repeats it. Called by pytest (entry point
``pytest11``). Importing it costs nothing and needs no C core: that comes with the first use of the fixture.

The clock is virtual unless a test or the command line says otherwise, so timeouts in tests are virtual too: they cost no time and
do not depend on the machine's load. The marker takes arguments of ``xenlike.Host`` and counts more than the command line, because
a test that has it needs it.

A guest that crashed fails its test, unless the test looked at how it ended (``Domain.wait()`` or ``Domain.result``): a test that
only reads one guest's console must not pass while another guest died.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import os

    from xenlike.domain import Domain, ShutdownInfo
    from xenlike.host import Host
    from xenlike.toolstack import DomainConfig

__all__ = ["Xen", "xen"]

_TRACE_EVENTS = 50
_CONSOLE_LINES = 200
_CRASHES = ("crash", "watchdog")
_key = pytest.StashKey["Xen"]()
_failed = pytest.StashKey[bool]()


class Xen:
    """What the fixture ``xen`` gives: a host, made for this test and closed after it.

    Attributes:
        host: the ``xenlike.Host``.
        clock: "virtual" or "real".
        seed: of the host; printed when the test fails.
    """

    def __init__(self, *, clock: str, seed: int, **settings: Any) -> None:
        from xenlike.host import Host

        self.clock, self.seed = clock, seed
        self.host: Host = Host(clock=clock, seed=seed, **settings)
        self._created: list[Domain] = []
        self._evidence: list[tuple[str, str]] | None = None

    def create(self, guest: "type | DomainConfig", *, memory: str | int = "16M", **settings: Any) -> "Domain":
        """Builds and starts a domain from a guest's class; ``settings`` as for ``Host.create``. Raises ConfigError, XenError."""
        domain = self.host.create(guest, memory=memory, **settings)
        self._created.append(domain)
        return domain

    def load(self, path: "str | os.PathLike[str]", *overrides: str, paused: bool = False) -> "Domain":
        """Builds and starts the domain of a configuration file; ``overrides`` are "key=value", as for ``xenlike run``.
        Raises ConfigError, XenError."""
        from xenlike.toolstack import load_config

        domain = self.host.create(load_config(path, overrides, seed=self.seed)[0], paused=paused)
        self._created.append(domain)
        return domain

    def run(self, guest: "type | DomainConfig", *, timeout: float = 60.0, **settings: Any) -> "Domain":
        """``create``, then waits for the domain's end. Raises WaitTimeout after ``timeout`` seconds of the host's clock."""
        from xenlike.domain import WaitTimeout

        domain = self.create(guest, **settings)
        if not self.host.wait([domain], timeout=timeout):
            raise WaitTimeout(f"{domain} still runs after {timeout} s")
        return domain

    @property
    def domains(self) -> list["Domain"]:
        """Every domain of this test, also those that have ended, by id."""
        alive: list[Domain] = []
        if not self.host.closed and self.host.lane.error is None:
            alive = self.host.domains               # also those that were made past us, with host.create
        return sorted({*self._created, *self.host.restarts, *alive}, key=lambda d: d.domid)

    # ---- at the end --------------------------------------------------------------------------------------------------

    def unnoticed_crashes(self) -> list[str]:
        """A line for each domain that crashed and whose end the test did not look at."""
        lines = []
        for domain in self.domains:
            result = _peek(domain)
            if result and result.reason in _CRASHES and not domain.looked_at:
                lines.append(f"domain {domain.domid} ({domain.name}): {result.reason}: {result.crash_reason or 'no reason given'}")
        return lines

    def close(self) -> None:
        """Keeps what a report may need, then closes the host."""
        self.evidence()
        self.host.close()

    def evidence(self) -> list[tuple[str, str]]:
        """(title, text) of everything that helps to understand a failure. Collected once, at the latest by ``close``."""
        if self._evidence is None:
            self._evidence = []
            try:
                self._evidence.extend(self._collect())
            except Exception as error:  # noqa: BLE001 - a host that is broken must not hide the failure that is being reported
                self._evidence.append(("xenlike", f"the host could not be asked further: {type(error).__name__}: {error}"))
        return self._evidence

    def _collect(self) -> Iterator[tuple[str, str]]:
        domains = self.domains
        for domain in domains:
            lines = domain.console.lines
            cut = [f"... {len(lines) - _CONSOLE_LINES} lines before"] if len(lines) > _CONSOLE_LINES else []
            yield f"console of {_describe(domain)}", "\n".join([*cut, *lines[-_CONSOLE_LINES:]]) or "(nothing printed)"
        for domain in domains:
            result = _peek(domain)
            if result and result.reason in _CRASHES:
                yield f"{result.reason} of {_describe(domain)}", "\n".join(filter(None, (result.crash_reason, result.traceback.rstrip(), result.report)))
        yield ("last trace events (time in ns, domain and vCPU, event)",
               "\n".join(map(str, self.host.trace(_TRACE_EVENTS))))
        if waits := self.host.lane.call(self.host.waits):
            yield "what waits", "\n".join(waits)


def _peek(domain: "Domain") -> "ShutdownInfo | None":
    """How it ended, without counting as the test's look."""
    return domain._result


def _describe(domain: "Domain") -> str:
    result = _peek(domain)
    return f"{domain.name} (domain {domain.domid}, {result.reason if result else 'running'})"


# ---- pytest ----------------------------------------------------------------------------------------------------------

def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xenlike", "xenlike, paravirtual guests under test")
    group.addoption("--xenlike-clock", choices=("virtual", "real"), default=None,
                    help="clock of the `xen` fixture's hosts (default: virtual)")
    group.addoption("--xenlike-seed", type=lambda text: int(text, 0), default=None, metavar="N",
                    help="seed of the `xen` fixture's hosts (default: another one each time, which is printed)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xenlike(clock=, seed=, memory=, ...): arguments of xenlike.Host for the `xen` fixture's host")
    if config.option.xenlike_seed is None:      # drawn once, before workers (pytest-xdist) inherit the options
        config.option.xenlike_seed = random.SystemRandom().randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"xenlike: clock {config.option.xenlike_clock or 'virtual'}, seed {config.option.xenlike_seed}"


@pytest.fixture
def xen(request: pytest.FixtureRequest) -> Iterator[Xen]:
    """A Xen host for this test: xen.create(GuestClass, memory="16M"), xen.load("web.cfg"), xen.run(...), xen.host."""
    try:
        found = Xen(**_settings(request.node))
    except ImportError as error:                # the core is not built; the text says what to do
        pytest.fail(str(error), pytrace=False)
    request.node.stash[_key] = found
    try:
        yield found
    finally:
        found.close()
    crashes = found.unnoticed_crashes()
    if crashes and not request.node.stash.get(_failed, False):
        pytest.fail("a guest crashed, and the test did not look at how it ended (Domain.wait() or Domain.result):\n"
                    + "\n".join(f"  {line}" for line in crashes), pytrace=False)


def _settings(item: pytest.Item) -> dict[str, Any]:
    """Arguments for ``Xen``: the command line's, and the markers' over them, the nearest counting most."""
    settings: dict[str, Any] = {"clock": item.config.option.xenlike_clock or "virtual", "seed": item.config.option.xenlike_seed}
    for marker in reversed(list(item.iter_markers("xenlike"))):
        if marker.args:
            pytest.fail(f"@pytest.mark.xenlike takes keywords only, such as clock=\"real\", not {marker.args[0]!r}", pytrace=False)
        settings |= marker.kwargs
    return settings


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Attaches the evidence to the first report of a failure."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    found = item.stash.get(_key, None)
    if found is None or not report.failed or item.stash.get(_failed, False):
        return
    item.stash[_failed] = True
    report.sections += [(f"xenlike: {title}", text) for title, text in found.evidence()]
    report.sections.append(("xenlike: repeat it", f"clock {found.clock}, seed {found.seed}\n{_repeat_line(item, found)}"))


def _repeat_line(item: pytest.Item, found: Xen) -> str:
    cwd_relative = getattr(item.config, "cwd_relative_nodeid", lambda nodeid: nodeid)
    words = ["pytest", cwd_relative(item.nodeid), f"--xenlike-seed={found.seed}"]
    if item.config.option.xenlike_clock:
        words.append(f"--xenlike-clock={item.config.option.xenlike_clock}")
    return shlex.join(words)
