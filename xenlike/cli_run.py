"""``xenlike run CFG|IMAGE...``: an embedded host, the guests' consoles on stdout.

Owns: one run's terminal side: console output, input, signals, reports on stderr, the exit status. Called by: ``cli``. All is one
thread: the host's lane runs inside ``Host.wait_until``, and between its steps ``_Run.step`` moves output and input. Nothing that
can fail (a closed pipe, a full disk) is done in the lane's own callbacks, where it would look like a defect of domain 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xenlike.cli import Failure
from xenlike.cli_words import check_environment, common_arguments, load, note, number, seconds, split
from xenlike.domain import Domain
from xenlike.engine import XenError
from xenlike.host import Host
from xenlike.lane import Stalled
from xenlike.toolstack import DomainConfig, SpecError, format_size, parse_size

__all__ = ["arguments", "run"]

CRASHED, TIMED_OUT = 3, 4
_MIB = 1 << 20
_INPUT_CHUNK = 4096         # bytes of input read ahead of the guest, at most twice this
_PARTIAL_LINE = 4096        # bytes without a newline after which a line is shown all the same
_CRASH_EVENTS = 20
_SPARE_MEMORY = 256 * _MIB  # machine memory beside what the domains may have


# ---- command line ----------------------------------------------------------------------------------------------------

def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    common_arguments(parser, clock="real", quiet="no warnings and no notes on stderr, only errors and crashes",
                     words="xl.cfg files or kernel images, and settings (memory=64M) that count after those in the files, in all of them",
                     clock_help="virtual: time is the guests' work and skipped idleness, and a run repeats bit for bit (default: real)")
    add = parser.add_argument
    add("--timeout", type=seconds, metavar="SECONDS", help="give up after so long (virtual seconds with the virtual clock)")
    add("--engine", choices=("bt", "interp"), help="what runs machine code: the binary translator, or the interpreter (default: the "
        "environment's XENLIKE_ENGINE, else the translator where the host can have it)")
    add("--memory", type=_size, metavar="SIZE", help="machine memory, e.g. 4G (default: what the domains need, at least 1G)")
    add("--trace-digest", action="store_true", help="at the end print a digest of all that happened (needs --clock virtual)")
    add("--xenstore-socket", metavar="PATH", help="serve xenstore on this unix socket: XENSTORED_PATH=PATH xenstore-ls")
    add("--log-dir", metavar="DIR", help="also append each console to DIR/guest-NAME.log")
    add("--gdb", type=number, metavar="PORT", help="let gdb debug the first domain: target remote :PORT (0: any free one)")
    add("--wait", action="store_true", help="with --gdb: start when gdb says so")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- the command -----------------------------------------------------------------------------------------------------

def run(args: argparse.Namespace) -> int:
    """Does it; returns the exit status. Raises ConfigError, OSError, Failure."""
    files, settings = split(args.words)
    if not files:
        args.usage_error("no configuration file and no image is named")
    if args.wait and args.gdb is None:
        args.usage_error("--wait needs --gdb PORT")
    if args.trace_digest and args.clock != "virtual":
        args.usage_error("--trace-digest needs --clock virtual: with the real one no two runs are alike")
    check_environment()
    configs = [load(file, settings, seed=args.seed, quiet=args.quiet) for file in files]
    memory = args.memory or max(1 << 30, _SPARE_MEMORY + sum(config.maxmem for config in configs))
    with _warnings_as_notes(args), _host(args, memory) as host:
        return _Run(host, args, several=len(configs) > 1).go(configs)


@contextmanager
def _warnings_as_notes(args: argparse.Namespace) -> Iterator[None]:
    """What the library warns of (that there is no translator) is one line, as everything else that this command says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if args.quiet else "always", RuntimeWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RuntimeWarning):
                note(str(message))
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show     # catch_warnings puts it back
        yield


def _host(args: argparse.Namespace, memory: int) -> Host:
    try:
        return Host(memory=memory, clock=args.clock, seed=args.seed, engine=args.engine, threaded=False, xenstore_socket=args.xenstore_socket,
                    log_dir=args.log_dir)
    except XenError:
        raise
    except OSError as error:            # those of sockets do not say which
        raise Failure(f"--xenstore-socket {args.xenstore_socket}: {error.strerror or error}") from None


class _Run:
    """The domains of one command, and the terminal they share."""

    def __init__(self, host: Host, args: argparse.Namespace, *, several: bool) -> None:
        self._host = host
        self._args = args
        self._several = several
        self._running: list[Domain] = []
        self._restarts_seen = 0
        self._output = _Output()
        self._input: _Input | None = None
        self._status = 0
        self._signal = 0

    def go(self, configs: list[DomainConfig]) -> int:
        host = self._host
        with self._signals():
            for config in configs:
                debugged = self._args.gdb is not None and not self._running
                domain = host.create(config, paused=debugged)
                self._adopt(domain)
                if debugged:
                    self._debug(domain)
            if not self._several and _stdin_is_ours():
                self._input = _Input(host, self._running[0])
            try:
                done = host.wait_until(self.step, timeout=self._args.timeout)
                self._flush(last=True)
                if not done:
                    self._gave_up(f"time is over after {self._args.timeout:g} s; what waits:\n", host.waits())
            except Stalled as stalled:
                self._flush(last=True)
                self._gave_up("nothing can happen any more; what waits:\n", stalled.waits)
        if self._signal:
            note(f"{signal.Signals(self._signal).name}: {', '.join(d.name for d in self._running) or 'no domain'} destroyed")
            return 128 + self._signal
        if self._args.trace_digest:
            print(f"trace digest: {host.trace_digest():016x}", file=sys.stderr)
        return self._status

    def _debug(self, domain: Domain) -> None:
        from xenlike.debugger import GdbServer
        try:
            server = GdbServer(domain, self._args.gdb, wait=self._args.wait)
        except XenError as error:
            raise Failure(f"--gdb: {domain.name} cannot be debugged: {error}") from None
        except (OSError, OverflowError) as error:
            raise Failure(f"--gdb {self._args.gdb}: {getattr(error, 'strerror', None) or error}") from None
        note(f"{domain.name}: {'waits for gdb' if self._args.wait else 'gdb may connect'}: target remote :{server.port}")
        domain.unpause()

    def _gave_up(self, why: str, waits: list[str]) -> None:
        note(why + "\n".join(f"  {line}" for line in waits))
        self._status = self._status or TIMED_OUT

    # ---- between two steps of the lane -------------------------------------------------------------------------------

    def step(self) -> bool:
        """Moves output and input, reports ends. True: it is over."""
        self._output.flush()
        if any(domain.ended for domain in self._running):
            self._collect_ended()
        for domain in self._host.restarts[self._restarts_seen:]:
            self._restarts_seen += 1
            self._adopt(domain)
            if self._input:
                self._input.domain = domain
        if self._input and self._running:
            self._input.feed()
        return not self._running or self._signal != 0

    def _flush(self, *, last: bool) -> None:
        if last:
            for domain in self._running:
                self._output.finish(domain.domid)
        self._output.flush()

    def _adopt(self, domain: Domain) -> None:
        self._running.append(domain)
        sink = self._output.sink(domain.domid, domain.name if self._several else None)
        sink(domain.console.log.since(0))
        domain.console.log.listen(sink)
        if not self._args.quiet:
            config = domain.config
            note(f"{domain.name}: domain {domain.domid}, {format_size(config.memory)}, {config.vcpus} "
                  f"{'vCPU' if config.vcpus == 1 else 'vCPUs'}")

    def _collect_ended(self) -> None:
        ended = [domain for domain in self._running if domain.ended]
        self._running = [domain for domain in self._running if not domain.ended]
        for domain in ended:
            self._output.finish(domain.domid)
        self._output.flush()
        for domain in ended:
            self._report(domain)

    def _report(self, domain: Domain) -> None:
        """Says how a domain ended, and lets the exit status know."""
        result = domain.result
        assert result is not None
        if result.reason in ("crash", "watchdog"):
            self._status = CRASHED
            note(_crash_report(self._host, domain))
        elif result.reason == "suspend":
            self._status = self._status or 1
            note(f"{domain.name}: suspended itself, and this command cannot resume it")
        if result.exit_code is not None:        # as under qemu -device isa-debug-exit
            self._status = self._status or result.exit_code & 0xFF
        if result.reason not in ("crash", "watchdog", "suspend") and not self._args.quiet:
            code = "" if result.exit_code is None else f" (debug exit, status {result.exit_code})"
            note(f"{domain.name}: {result.reason}{code} at {self._host.now() / 1e9:.3f} s")

    # ---- signals -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run between two steps, so that everything is put away; a second one at once."""
        kinds = (signal.SIGINT, signal.SIGTERM)

        def handler(number: int, _frame: Any) -> None:
            if self._signal:
                raise KeyboardInterrupt
            self._signal = number

        before = {kind: signal.signal(kind, handler) for kind in kinds}
        try:
            with self._wakeup():
                yield
        finally:
            for kind, old in before.items():
                signal.signal(kind, old)

    @contextmanager
    def _wakeup(self) -> Iterator[None]:
        """A signal that comes just before the lane goes to sleep wakes it through a pipe. The virtual clock sleeps only for a
        descriptor of its own, and must not see one of ours: with none it knows that it has stalled."""
        if self._host.clock == "virtual":
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._host.lane.add_reader(reader, lambda: os.read(reader, 64))
        old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            self._host.lane.remove_reader(reader)
            os.close(reader)
            os.close(writer)


def _crash_report(host: Host, domain: Domain) -> str:
    """What a crash looks like to a user: reason, traceback, what the domain did last."""
    result = domain.result
    assert result is not None
    lines = [f"{domain.name} (domain {domain.domid}) {'was ended by its watchdog' if result.reason == 'watchdog' else 'crashed'}: "
             + (result.crash_reason or f"it asked for it (SCHEDOP_shutdown, reason {result.reason})")]
    lines += [f"  {line}" for line in (result.traceback or result.report).rstrip().splitlines()]
    events = [event for event in host.trace(8192) if event.domid == domain.domid][-_CRASH_EVENTS:]
    if events and not result.report:    # which has them already
        lines.append("  its last events (time in ns, vCPU, event):")
        lines += [f"  {event}" for event in events]
    return "\n".join(lines)


# ---- the terminal ----------------------------------------------------------------------------------------------------

class _Output:
    """stdout. Consoles put their bytes here on the lane; ``flush`` writes them between its steps."""

    def __init__(self) -> None:
        self._ready = bytearray()
        self._partial: dict[int, tuple[bytes, bytearray]] = {}

    def sink(self, domid: int, name: str | None) -> Callable[[bytes], None]:
        """Where domain ``domid``'s console goes: as it is, or in lines that begin with ``name``."""
        if name is None:
            return self._ready.extend
        prefix, partial = f"{name}: ".encode(), bytearray()
        self._partial[domid] = prefix, partial

        def lines(data: bytes) -> None:
            partial.extend(data)
            *whole, rest = partial.split(b"\n")
            if len(rest) > _PARTIAL_LINE:
                whole.append(rest)
                rest = bytearray()
            for line in whole:
                self._ready.extend(prefix + line.rstrip(b"\r") + b"\n")
            partial[:] = rest

        return lines

    def finish(self, domid: int) -> None:
        """The domain has ended: a line without its end is one all the same."""
        prefix, partial = self._partial.pop(domid, (b"", b""))
        if partial:
            self._ready.extend(prefix + partial + b"\n")

    def flush(self) -> None:
        """Raises OSError."""
        if self._ready:
            data = bytes(self._ready)
            self._ready.clear()
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise Failure(f"the console cannot be written to stdout: {error.strerror}") from None


def _stdin_is_ours() -> bool:
    """There is one, and reading it would not stop us (a background job may not read its terminal)."""
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class _Input:
    """stdin for a guest's console, read no faster than the guest takes it.

    Pipes and terminals are watched by the lane. What cannot be watched (files, /dev/null) is always ready and is read
    between the lane's steps: with the virtual clock, input from a file is as repeatable as the rest.
    """

    def __init__(self, host: Host, domain: Domain) -> None:
        self._lane = host.lane
        self.domain = domain
        self._watched = False
        self._done = False
        try:
            os.fstat(0)
            self._watch()
            self._always = False
        except PermissionError:         # epoll: not a kind of file that can be watched
            self._always = True
        except OSError:
            self._done = True

    def _watch(self) -> None:
        self._lane.add_reader(0, self._read)
        self._watched = True

    def feed(self) -> None:
        """Between the lane's steps."""
        if self._done or self._watched or self.domain.console.send(b"") >= _INPUT_CHUNK:
            return
        if self._always:
            self._read()
        else:
            self._watch()

    def _read(self) -> None:
        try:
            data = os.read(0, _INPUT_CHUNK)
        except BlockingIOError:
            return
        except OSError:                 # the terminal has gone
            data = b""
        waiting = self.domain.console.send(data)
        self._done = not data
        if self._watched and (self._done or waiting >= _INPUT_CHUNK):
            self._lane.remove_reader(0)
            self._watched = False
