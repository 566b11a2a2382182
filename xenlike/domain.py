"""A domain, as users hold it.

Owns: what the toolstack remembers of one domain: configuration, console log, how it ended. Called by: users (any thread), ``Host``.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xenlike.devices.console.log import ConsoleLog, ConsoleReader
from xenlike.engine import check, ffi, lib
from xenlike.hypercalls import name_of

if TYPE_CHECKING:
    from xenlike.host import Host
    from xenlike.program import Program
    from xenlike.toolstack import DomainConfig

__all__ = ["Console", "Domain", "DomainStatistics", "ShutdownInfo", "WaitTimeout"]

#: SHUTDOWN_* -> what `xl list` and users call it (Xen public header sched.h).
REASONS = {lib.SHUTDOWN_poweroff: "poweroff", lib.SHUTDOWN_reboot: "reboot", lib.SHUTDOWN_suspend: "suspend",
           lib.SHUTDOWN_crash: "crash", lib.SHUTDOWN_watchdog: "watchdog", lib.SHUTDOWN_soft_reset: "soft-reset"}
STATISTICS = [n.removeprefix("STAT_") for n in sorted(
    (n for n in dir(lib) if n.startswith("STAT_") and n != "STAT_NR"), key=lambda n: getattr(lib, n))]


class WaitTimeout(TimeoutError):
    """What was waited for did not happen in time (virtual time if the host's clock is virtual)."""


@dataclass(frozen=True)
class ShutdownInfo:
    """How a domain ended: ``reason`` (poweroff, reboot, suspend, crash, watchdog, destroyed), and of a crash what happened: the
    reason, a Python guest's ``traceback``, and the ``report`` of registers, code and stack of machine code. ``exit_code``: what a PC guest gave its debug-exit port."""

    reason: str
    crash_reason: str = ""
    traceback: str = ""
    report: str = field(default="", repr=False)
    exit_code: int | None = None


@dataclass(frozen=True)
class DomainStatistics:
    """A snapshot of a domain's counters; ``counters`` by name (csrc/base/stats.h), ``hypercalls`` by hypercall name."""

    domid: int
    name: str
    state: str
    vcpus: int
    memory: int
    cpu_ns: int
    event_ports: int
    grants_in_use: int
    counters: dict[str, int]
    hypercalls: dict[str, int]


class Console:
    """``domain.console``: the text so far, waiting for text, input."""

    def __init__(self, domain: "Domain", log: ConsoleLog) -> None:
        self._domain = domain
        self.log = log
        self._seen = 0                  # how far expect() has read

    @property
    def text(self) -> str:
        """Everything printed so far (the last MiB)."""
        return self.log.since(0).decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The text in lines."""
        return self.text.splitlines()

    def reader(self) -> ConsoleReader:
        """A reader of its own, which starts at the beginning and sees every byte once."""
        return ConsoleReader(self.log)

    def expect(self, pattern: str, *, timeout: float = 10.0) -> re.Match[str]:
        """Waits until the regular expression is found in the text behind the last match; returns the match.

        ``timeout`` is in seconds, virtual if the host's clock is. Raises WaitTimeout, with the text seen, when the time is over or
        the domain has ended without printing it.
        """
        compiled = re.compile(pattern)

        found, looked_until = None, -1

        def find() -> re.Match[str] | None:     # asked after each step of the host: looks at a text once
            nonlocal found, looked_until
            if looked_until != self.log.end:
                looked_until = self.log.end
                found = compiled.search(self.log.since(self._seen).decode(errors="replace"))
            return found

        if not self._domain.host.wait_until(lambda: find() is not None or self._domain.ended, timeout=timeout) or find() is None:
            why = f"domain ended ({self._domain._result})" if self._domain.ended else f"{timeout} s passed"
            raise WaitTimeout(f"console of {self._domain}: {pattern!r} did not come before {why}; the text was:\n"
                              + "\n".join(filter(None, (self.log.since(self._seen).decode(errors="replace"),
                                                       self._domain._result.report if self._domain._result else ""))))
        match = find()
        assert match is not None
        start = max(self._seen, self.log.end - len(self.log.since(self._seen)))
        self._seen = start + len(self.log.since(start).decode(errors="replace")[:match.end()].encode())
        return match

    def send(self, text: str | bytes) -> int:
        """Input for the guest. Returns how many bytes wait here because the guest's ring is full: who sends much waits for 0."""
        data = text.encode() if isinstance(text, str) else text
        return self._domain.host.lane.call(lambda: self._domain.host.dom0.send_console(self._domain.domid, data))


class Domain:
    """One domain of a host. Safe to use from any thread."""

    def __init__(self, host: "Host", domid: int, config: "DomainConfig", log: ConsoleLog, program: "Program") -> None:
        self.host = host
        self.program = program
        self.domid = domid
        self.config = config
        self.name = config.name
        self.console = Console(self, log)
        self.xen_log = ConsoleLog()     # what it said by console_io, past its console
        self._result: ShutdownInfo | None = None
        self.looked_at = False          # somebody has read the result
        self.traceback = ""
        self._final: DomainStatistics | None = None
        self.destroyed = False

    @property
    def ended(self) -> bool:
        """It shut down, crashed or was destroyed."""
        return self._result is not None

    @property
    def result(self) -> ShutdownInfo | None:
        """How it ended; None while it runs. Reading it counts as having looked: the pytest fixture reports crashes at which
        nobody did."""
        self.looked_at = self.looked_at or self._result is not None
        return self._result

    @result.setter
    def result(self, info: ShutdownInfo) -> None:
        self._result = info

    @property
    def guest(self) -> Any:
        """The instance of a guest in Python; None of an image."""
        return self.program.guest

    def crash_report(self) -> str:
        """For people: the state of a domain that stands still: registers, code, stack. "" of a guest in Python."""
        return self.host.lane.call(lambda: self.program.crash_report(self))

    def wait(self, timeout: float | None = None) -> ShutdownInfo:
        """Waits for the domain's end and says how it ended. Raises WaitTimeout after ``timeout`` seconds."""
        if not self.host.wait_until(lambda: self.ended, timeout=timeout):
            raise WaitTimeout(f"{self} still runs after {timeout} s")
        result = self.result
        assert result is not None
        return result

    def pause(self) -> None:
        """Stops its vCPUs until ``unpause``. Raises XenError."""
        self.host.lane.call(lambda: check(lib.xl_domain_pause(self.host.c, self.domid), "pause", self.domid))

    def unpause(self) -> None:
        """Undoes one ``pause``. Raises XenError."""
        self.host.lane.call(lambda: check(lib.xl_domain_unpause(self.host.c, self.domid), "unpause", self.domid))

    def shutdown(self, reason: str = "poweroff") -> None:
        """Asks the guest to shut down by control/shutdown in xenstore; it may take its time, or never do it."""
        self.host.lane.call(lambda: self.host.dom0.xs.write(f"/local/domain/{self.domid}/control/shutdown", reason))

    def destroy(self) -> None:
        """Ends it at once and frees what it holds. Idempotent."""
        self.host.lane.call(lambda: self.host.destroy(self))

    def statistics(self) -> DomainStatistics:
        """Counters now, or as they were at its end."""
        return self.host.lane.call(self._statistics)

    def _statistics(self) -> DomainStatistics:
        if self._final is not None:
            return self._final
        info = ffi.new("struct xl_domain_info *")
        check(lib.xl_domain_info(self.host.c, self.domid, info), "domain info", self.domid)
        stats, calls = ffi.new("u64[]", lib.STAT_NR), ffi.new("u64[64]")
        total: dict[str, int] = {}
        for n in range(info.nr_vcpus):
            lib.xl_vcpu_stats(lib.xl_vcpu(self.host.c, self.domid, n), stats, calls)
            for nr in range(64):
                if calls[nr]:
                    name = name_of(nr)
                    total[name] = total.get(name, 0) + calls[nr]
        state = {lib.DOM_paused_new: "paused", lib.DOM_running: "running", lib.DOM_shutdown: "shutdown"}.get(info.state, "dying")
        return DomainStatistics(self.domid, self.name, state, info.nr_vcpus, info.tot_pages * 4096, info.cpu_ns, info.nr_ports,
                                info.nr_grants_pinned, {n: info.stats[i] for i, n in enumerate(STATISTICS)}, total)

    def freeze_statistics(self) -> None:
        """Keeps the counters: the domain is about to be destroyed."""
        self._final = self._statistics()

    def __repr__(self) -> str:
        return f"<domain {self.domid} {self.name!r}{' ' + self._result.reason if self._result else ''}>"


def sleep_until(condition: Any, deadline: float, event: threading.Condition) -> bool:
    """Waits on ``event`` (notified by the lane) until ``condition()`` or monotonic time ``deadline``."""
    with event:
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return condition()
            event.wait(min(left, 0.02))       # conditions may be about anything; the common ones notify
    return True
