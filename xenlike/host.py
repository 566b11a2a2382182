"""A host: one hypervisor with its domain 0, in this process.

Owns: the C host, the lane, dom0, the domains' life cycle. Called by: users (any thread), the command line, the pytest fixture.
Everything that touches the hypervisor happens on the lane; methods carry themselves there.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from xenlike import hypercalls, translation
from xenlike.backends import Watchdog
from xenlike.devices.block import ImageError
from xenlike.devices.console.log import ConsoleLog
from xenlike.dom0 import Dom0
from xenlike.domain import REASONS, Domain, ShutdownInfo, sleep_until
from xenlike.engine import XenError, check, ffi, lib
from xenlike.lane import NEVER, Lane
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import ImageCache
from xenlike.program import Program, PythonProgram, load_program
from xenlike.store.socket import SocketServer
from xenlike.toolstack import DomainConfig, check_supported, config_from_values, name_for, parse_size
from xenlike.toolstack.builder import BuildError, build
from xenlike.toolstack.nodes import domain_nodes, remove_domain_nodes

__all__ = ["Host", "TraceEvent"]

_DOM0_PAGES = 2048
_PYTHON_SPARE = 8                       # frames a guest may have beyond its memory (LIBXL_MAXMEM_CONSTANT is 1 MiB; see create)
_TRACE_KINDS = {getattr(lib, n): n.removeprefix("TRACE_").lower() for n in dir(lib)
                if n.startswith("TRACE_") and n != "TRACE_NR_KINDS" and n != "TRACE_RING"}


@dataclass(frozen=True)
class TraceEvent:
    """One event of the trace ring (csrc/base/trace.h says what a and b are): time in ns of system time."""

    time: int
    kind: str
    domid: int
    vcpu: int
    a: int
    b: int

    def __str__(self) -> str:
        where = f"d{self.domid}v{self.vcpu}"
        if self.kind == "hypercall":
            name = hypercalls.name_of(self.a >> 48)
            rc = self.b - 2**64 if self.b >> 63 else self.b
            return f"{self.time:>12} {where:<6} {name} -> {'(to Python)' if rc == lib.HYPERCALL_COLD else rc}"
        if self.kind == "trap":
            return f"{self.time:>12} {where:<6} trap, vector {self.a >> 32}, error {self.a & 0xffffffff:#x}, rip {self.b:#x}"
        return f"{self.time:>12} {where:<6} {self.kind} {self.a:#x} {self.b:#x}"


class Host:
    """One hypervisor. Use it as a context manager, or ``close()`` it.

    Args:
        memory: machine memory, bytes or "1G" (sparse: untouched memory costs nothing).
        clock: "real", or "virtual": time is guest work plus skipped idleness, and a run repeats bit for bit.
        seed: of what is chosen and not said: UUIDs and MAC addresses.
        pcpus: threads that run vCPUs of C backends (real clock).
        threaded: whether the lane gets a thread of its own. Default: yes with the real clock. Without, the host runs only
            inside ``wait_until`` and what uses it (``Domain.wait``, ``Console.expect``).
        xenstore_socket: path of a unix socket for xenstore clients; None: no socket.
        log_dir: folder for console logs, one file a domain.
        watchdog: seconds of real time after which a Python guest that does not await is crashed; 0: never.
        engine: what runs machine code: "bt", the binary translator, or "interp", the interpreter. Both give the same results. Default:
            the environment's XENLIKE_ENGINE, else the translator where the host can have it. Where it cannot, one RuntimeWarning a process
            says why; ``host.engine`` is what was chosen.

    Raises XenError (no memory), ConfigError for a bad size.
    """

    def __init__(self, *, memory: int | str = "1G", clock: str = "real", seed: int = 0, pcpus: int = 1,
                 threaded: bool | None = None, xenstore_socket: str | os.PathLike[str] | None = None,
                 log_dir: str | os.PathLike[str] | None = None, watchdog: float = 10.0, engine: str | None = None) -> None:
        if clock not in ("real", "virtual"):
            raise ValueError(f"clock={clock!r}: 'real' or 'virtual'")
        if threaded and clock == "virtual":
            raise ValueError("threaded=True needs the real clock: with the virtual one everything is one thread")
        self.clock, self.seed = clock, seed
        config = ffi.new("struct xl_host_config *")
        config.memory = memory if isinstance(memory, int) else parse_size(memory)
        config.nr_pcpus, config.virtual_clock, config.seed = pcpus, clock == "virtual", seed & (2**64 - 1)
        self.engine = translation.choose(engine)
        config.translate = self.engine == "bt"
        config.bt_options = int(os.environ.get("XENLIKE_BT_OPTIONS") or "0", 0)
        error = ffi.new("int *")
        self.c = lib.xl_host_create(config, error)
        if self.c == ffi.NULL:
            raise XenError(-error[0], f"create host with {config.memory >> 20} MiB and {pcpus} pCPU threads")
        self.closed = False
        self._pid = os.getpid()
        self._alive = [self.c]          # emptied at close: windows that die later do nothing
        self._changed = threading.Condition()
        self.log_dir = pathlib.Path(log_dir) if log_dir else None
        self.watchdog = Watchdog(watchdog)
        self._domains: dict[int, Domain] = {}
        self._programs: dict[int, Program] = {}
        self.debuggers: dict[int, Any] = {}     # by domid: xenlike.debugger.target.Target, which enters itself
        self._images = ImageCache()
        self._socket: SocketServer | None = None
        self.restarts: list[Domain] = []
        self.lane = Lane(self.c, virtual=clock == "virtual", describe_waits=self.waits)
        self.lane.handlers |= {lib.EXIT_PYTHON: self._run_python, lib.EXIT_HYPERCALL: self._cold_hypercall,
                               lib.EXIT_DOMAIN: self._domain_changed, lib.EXIT_IO: self._io_stopped,
                               lib.EXIT_DEBUG: self._debug_stopped, lib.EXIT_SERIAL: self._serial_output,
                               lib.EXIT_ENGINE: self._not_translated}
        try:
            self._start_dom0()
            if xenstore_socket is not None:
                self._socket = SocketServer(self.dom0.store, xenstore_socket)
                self._socket.register(self.lane)
        except BaseException:
            self.close()
            raise
        if threaded if threaded is not None else clock == "real":
            self.lane.start()

    # ---- life cycle of the host --------------------------------------------------------------------------------------

    def _start_dom0(self) -> None:
        config = ffi.new("struct domain_config *")
        config.domid, config.nr_vcpus, config.max_pages = 0, 1, _DOM0_PAGES + _PYTHON_SPARE
        config.backend, config.privileged = lib.BACKEND_PYTHON, 1
        config.max_evtchn_port, config.max_maptrack_frames = 4095, 1024
        check(lib.xl_domain_create(self.c, config), "create domain 0")
        self.dom0 = Dom0(self)
        program = self._programs[0] = PythonProgram(self.dom0)
        built = build(self.c, 0, program.image(_DOM0_PAGES), _DOM0_PAGES, max_pages=_DOM0_PAGES, privileged=True, cmdline="",
                      store_port=0, console_port=0)
        program.install(self, 0, built, nr_vcpus=1, args="")
        xs = self.dom0.xs
        for path, value in (("/local/domain/0/name", "Domain-0"), ("/local/domain/0/domid", "0")):
            xs.write(path, value)
        lib.xl_domain_unpause(self.c, 0)
        self.lane.run(lambda: self.dom0.kernels[0].booted)

    def close(self) -> None:
        """Destroys every domain and frees everything. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._pid != os.getpid():    # a fork's child: threads and mappings are the parent's
            return
        self.lane.call(self._close_on_lane)
        self.lane.stop()
        self.watchdog.stop()
        self._alive.clear()
        lib.xl_host_destroy(self.c)
        self._notify()

    def _close_on_lane(self) -> None:
        for domain in list(self._domains.values()):
            self.destroy(domain)
        if self._socket:
            self._socket.close()
        if hasattr(self, "dom0"):
            self.dom0.block_service.close()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- creating domains --------------------------------------------------------------------------------------------

    def create(self, guest: "type | str | os.PathLike[str] | DomainConfig", *, name: str | None = None, paused: bool = False,
               **settings: Any) -> Domain:
        """Builds and starts a domain.

        Args:
            guest: a class derived from ``guest_sdk.Guest``; what ``kernel`` names in a configuration file: an image's path, or
                "guest.py:ClassName"; or a configuration from ``xenlike.toolstack.load_config``.
            name: default: the class's name in small letters, or the image's without its suffix, with a number if it is taken.
            paused: leave it paused.
            settings: keys of a configuration file: ``memory="16M"``, ``vcpus=2``, ``disk=["disk.img,raw,xvda,rw"]``, ``extra="..."``,
                ``ramdisk="initrd.img"``.

        Raises ConfigError (bad settings, a kernel that cannot be loaded, what does not fit, a disk), XenError.
        """
        self._load_ahead(guest, settings)
        return self.lane.call(lambda: self._create(guest, name, paused, settings))

    def _load_ahead(self, guest: Any, settings: dict[str, Any]) -> None:
        """An image is unpacked here, on the caller's thread, so that the other guests need not wait for it."""
        kind = settings.get("type")
        if isinstance(guest, DomainConfig):
            kind = guest.type if "type" in guest.source else None
            guest = guest.kernel.path if guest.kernel is not None and guest.kernel.kind == "image" else None
        if isinstance(guest, (str, os.PathLike)):
            with contextlib.suppress(LoadError):        # said again, with the setting that it concerns
                self._images.get(guest, kind)

    def _create(self, guest: Any, name: str | None, paused: bool, settings: dict[str, Any]) -> Domain:
        if isinstance(guest, DomainConfig):
            config = guest
        elif isinstance(guest, (type, str, os.PathLike)):
            base = guest.__name__.lower() if isinstance(guest, type) else name_for(guest)
            config, found = config_from_values({"name": name or self._free_name(base), "kernel": guest, **settings}, seed=self.seed)
            for warning in found:
                warnings.warn(str(warning), stacklevel=4)
        else:
            raise TypeError(f"Host.create() takes a guest's class, an image's path or a configuration, not {guest!r}")
        check_supported(config)
        if config.maxvcpus > lib.MAX_VCPUS:
            raise config.error(config.vcpus_key, f"{config.maxvcpus} vCPUs: {lib.MAX_VCPUS} is the most")
        if any(d.name == config.name for d in self._domains.values()):
            raise config.error("name", f"a domain named {config.name!r} runs already", hint="give it another name")
        program = load_program(config, self._images)
        pages = config.memory // 4096
        domid = self._create_c(config, program, pages)
        try:
            domain = self._build(domid, config, program)
        except BaseException:
            self._domains.pop(domid, None)
            self.dom0.abandon(domid)
            remove_domain_nodes(self.dom0.xs, domid, config)
            self._forget_program(domid)
            lib.xl_domain_destroy(self.c, domid)
            raise
        if not paused:
            check(lib.xl_domain_unpause(self.c, domid), "unpause", domid)
        return domain

    def _free_name(self, base: str) -> str:
        taken = {d.name for d in self._domains.values()}
        return next(n for n in (base if i == 0 else f"{base}-{i + 1}" for i in range(len(taken) + 1)) if n not in taken)

    def _create_c(self, config: DomainConfig, program: Program, pages: int) -> int:
        c = ffi.new("struct domain_config *")
        c.domid, c.nr_vcpus, c.backend = -1, config.maxvcpus, program.backend
        c.max_pages = max(pages, config.maxmem // 4096) + 256       # LIBXL_MAXMEM_CONSTANT: 1024 KiB of slack
        c.max_evtchn_port, c.max_grant_frames = config.max_event_channels, config.max_grant_frames
        c.max_maptrack_frames, c.weight = config.max_maptrack_frames, config.cpu_weight
        ffi.buffer(c.uuid)[:] = config.uuid.bytes
        return check(lib.xl_domain_create(self.c, c), f"create domain {config.name!r}")

    def _build(self, domid: int, config: DomainConfig, program: Program) -> Domain:
        self._programs[domid] = program
        store_port = check(lib.xl_evtchn_alloc_unbound(self.c, domid, 0), "alloc_unbound", domid)
        console_port = check(lib.xl_evtchn_alloc_unbound(self.c, domid, 0), "alloc_unbound", domid)
        try:
            built = program.build(self.c, domid, config, store_port=store_port, console_port=console_port)
        except BuildError as error:
            raise config.error(error.key, str(error)) from error
        log = ConsoleLog(self._log_path(config.name))
        if self.lane.threaded:
            log.listen(lambda _data: self._notify())
        domain = self._domains[domid] = Domain(self, domid, config, log, program)
        domain_nodes(self.dom0.xs, domid, config, store_port=store_port, store_mfn=built.store_mfn, console_port=console_port,
                     console_mfn=built.console_mfn)
        program.install(self, domid, built, nr_vcpus=config.maxvcpus, args=config.command_line)
        if program.paravirtual:
            self.dom0.adopt(domid, log, store_port=store_port, store_mfn=built.store_mfn, console_port=console_port)
        else:
            self.dom0.adopt_serial(domid, log)
        for number, disk in enumerate(config.disk):
            try:
                self.dom0.block_service.add(domid, device=disk.device, vdev=disk.vdev, path=disk.target, writable=disk.writable,
                                            cdrom=disk.cdrom, discard=disk.discard, trusted=disk.trusted)
            except (ImageError, ValueError) as error:
                raise config.error(f"disk[{number}]", str(error)) from error
        return domain

    def _log_path(self, name: str) -> pathlib.Path | None:
        if self.log_dir is None:
            return None
        self.log_dir.mkdir(parents=True, exist_ok=True)
        return self.log_dir / f"guest-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.log"

    # ---- exits of the lane -------------------------------------------------------------------------------------------

    def _run_python(self, e: Any) -> None:
        program = self._programs.get(e.domid)
        if program is not None:
            program.run(e.vcpu)

    def _cold_hypercall(self, e: Any) -> None:
        vcpu = lib.xl_vcpu(self.c, e.domid, e.vcpu)
        if vcpu != ffi.NULL and vcpu.pause_flags & lib.VPF_lane:        # else another domain has the id by now
            lib.xl_hypercall_complete(vcpu, hypercalls.dispatch(self, vcpu, e.domid))

    def _serial_output(self, e: Any) -> None:
        self.dom0.drain_console(e.domid)

    def _not_translated(self, e: Any) -> None:
        translation.say_why_not(lib.xl_bt_unavailable())

    def _io_stopped(self, e: Any) -> None:
        self.dom0.block_service.io_stopped(e.a, e.b)

    def _domain_changed(self, e: Any) -> None:
        domain = self._domains.get(e.domid)
        if domain is None or e.a != lib.DOM_shutdown or domain.ended:
            return
        self.dom0.drain_console(domain.domid)
        info = ffi.new("struct xl_domain_info *")
        check(lib.xl_domain_info(self.c, domain.domid, info), "domain info", domain.domid)
        reason = REASONS.get(info.shutdown_code, str(info.shutdown_code))
        crash = ffi.string(info.crash_reason).decode(errors="replace")
        domain.freeze_statistics()
        report = domain.crash_report() if reason in ("crash", "watchdog") else ""
        ended = ShutdownInfo(reason, crash, domain.traceback, report, None if info.exit_code < 0 else info.exit_code)
        debugger = self.debuggers.get(domain.domid)
        if debugger is None or not debugger.domain_ended(ended):
            self.end(domain, ended)

    def end(self, domain: Domain, info: ShutdownInfo) -> None:
        """On the lane: the domain has stopped for good; what its configuration says about that happens. Called by a debugger too, when
        it lets go of a domain that crashed under it."""
        domain.result = info
        self._follow_action(domain, info.reason)
        self._notify()

    def _debug_stopped(self, e: Any) -> None:
        if e.domid in self.debuggers:
            self.debuggers[e.domid].stopped(e.vcpu, e.a, e.b)

    def _follow_action(self, domain: Domain, reason: str) -> None:
        """on_poweroff, on_reboot, on_crash, on_watchdog of the configuration."""
        config = domain.config
        action = {"reboot": config.on_reboot, "crash": config.on_crash, "watchdog": config.on_watchdog}.get(reason, config.on_poweroff)
        if reason == "suspend" or action == "preserve":
            return
        if action == "rename-restart":          # the old one stays to be looked at, under another name
            domain.name = self._free_name(f"{config.name}-{domain.domid}")
            self.dom0.xs.write(f"/local/domain/{domain.domid}/name", domain.name)
        else:
            self.destroy(domain)
        if action.endswith("restart") and config.kernel is not None:
            self.restarts.append(self._create(config, None, False, {}))

    def guest_crashed(self, domid: int, reason: str, text: str) -> None:
        """A Python guest's exception: its domain crashes with it as the reason. Called by the backend."""
        domain = self._domains.get(domid)
        if domain is None:              # dom0 itself: a defect of ours, not of a guest
            raise RuntimeError(f"domain {domid} crashed: {reason}\n{text}")
        domain.traceback = text
        lib.xl_domain_crash(self.c, domid, reason.encode(errors="replace")[:180])

    def console_text(self, domid: int, data: bytes) -> None:
        """console_io output of a domain: to the hypervisor's log of it, and to its console until that has something of its own."""
        domain = self._domains.get(domid)
        if domain is not None:
            domain.xen_log.append(data)
            if not self.dom0.console_used(domid):
                domain.console.log.append(data)

    # ---- domains -----------------------------------------------------------------------------------------------------

    def destroy(self, domain: Domain) -> None:
        """On the lane: ends a domain and frees what it holds."""
        if domain.destroyed:
            return
        domain.destroyed = True
        if not domain.ended:
            domain.freeze_statistics()
            domain.result = ShutdownInfo("destroyed")
        self._domains.pop(domain.domid, None)
        self.dom0.abandon(domain.domid)
        remove_domain_nodes(self.dom0.xs, domain.domid, domain.config)
        domain.console.log.close()
        self._forget_program(domain.domid)
        lib.xl_domain_destroy(self.c, domain.domid)
        self._notify()

    def _forget_program(self, domid: int) -> None:
        program = self._programs.pop(domid, None)
        if program is not None:
            program.close()

    @property
    def domains(self) -> list[Domain]:
        """The domains that exist, by id, without domain 0."""
        return self.lane.call(lambda: [self._domains[k] for k in sorted(self._domains)])

    def domain(self, which: int | str) -> Domain:
        """The domain of that id or name. Raises KeyError."""
        for domain in self.domains:
            if which in (domain.domid, domain.name):
                return domain
        raise KeyError(f"no domain {which!r}; there are {[d.name for d in self.domains]}")

    @property
    def xenstore(self) -> "_OnLane":
        """Domain 0's xenstore client (``xenlike.store.direct.Direct``: read, write, ls, ...), usable from any thread."""
        return _OnLane(self.lane, self.dom0.xs)

    # ---- running and waiting -----------------------------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], *, timeout: float | None = None) -> bool:
        """Waits (and, if the lane has no thread, runs the host) until ``condition()``; False when ``timeout`` seconds passed.

        With the virtual clock they are virtual seconds. Raises Stalled if nothing can happen any more.
        """
        if not self.lane.threaded:
            until = NEVER if timeout is None else self.lane.now() + round(timeout * 1e9)
            return self.lane.run(condition, until=until)
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        poll = lambda: condition() or self.lane.error is not None  # noqa: E731
        if not sleep_until(poll, deadline, self._changed) and not condition():
            return False
        if self.lane.error is not None:
            raise RuntimeError(f"the host's lane has ended: {self.lane.error}") from self.lane.error
        return condition()

    def wait(self, domains: Iterable[Domain] | None = None, *, timeout: float | None = None) -> bool:
        """Waits for the end of all of ``domains`` (default: those that exist now); False when the time is over."""
        waited = list(self.domains if domains is None else domains)
        return self.wait_until(lambda: all(d.ended for d in waited), timeout=timeout)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def now(self) -> int:
        """System time: ns since the host was made."""
        return lib.xl_now(self.c)

    def waits(self) -> list[str]:
        """For people: what each vCPU of each domain waits for, a line each."""
        return [f"domain {domid} ({domain.name}) vcpu {n}: {wait}" for domid, domain in sorted(self._domains.items())
                for n, wait in enumerate(domain.program.waits())]

    # ---- memory windows, trace ---------------------------------------------------------------------------------------

    def window(self, domid: int, mfn: int) -> memoryview:
        """A frame's 4096 bytes, typed writable for as long as any view of them lives. Raises XenError: not the domain's, or a page
        table. ``domid`` DOMID_INVALID: a frame of any domain, to which the caller holds a grant."""
        p = lib.xl_window_open(self.c, domid, mfn)
        if p == ffi.NULL:
            raise XenError(lib.XEN_EINVAL, f"window on frame {mfn:#x}", domid, "not the domain's frame, or in use as a page table")
        buffer = ffi.buffer(p, 4096)
        weakref.finalize(buffer, _close_window, self._alive, mfn).atexit = False
        return memoryview(buffer)

    def trace(self, n: int = 100) -> list[TraceEvent]:
        """The last n events of the trace ring, oldest first."""
        records = ffi.new("struct trace_record[]", n)
        count = lib.xl_trace_read(self.c, records, n)
        return [TraceEvent(r.time, _TRACE_KINDS.get(r.kind, str(r.kind)), r.domid, r.vcpu, r.a, r.b) for r in records[0:count]]

    def trace_digest(self, *, memory: bool = True) -> int:
        """Virtual clock: a digest of every event so far and of memory; two runs of one seed have the same."""
        return self.lane.call(lambda: lib.xl_trace_digest(self.c, memory))

    def usage(self) -> dict[str, int]:
        """What is in use, for leak checks: free frames, bytes of the hypervisor's arena, domains, timers."""
        u = ffi.new("struct xl_usage *")
        self.lane.call(lambda: lib.xl_usage(self.c, u))
        return {"frames_free": u.frames_free, "frames_total": u.frames_total, "arena_in_use": u.arena_in_use,
                "domains": u.domains, "timers": u.timers}


class _OnLane:
    """An object whose methods run on the lane, whoever calls them."""

    def __init__(self, lane: Lane, target: Any) -> None:
        self._lane = lane
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._target, name)
        return lambda *args, **options: self._lane.call(lambda: method(*args, **options))


def _close_window(alive: list[Any], mfn: int) -> None:
    if alive:
        lib.xl_window_close(alive[0], mfn)
