"""A host: one hypervisor with its domain 0, in this process.

Owns: the C host, the lane, dom0, the domains' life cycle. Called by: users (any thread), the command line, the pytest fixture.
Everything that touches the hypervisor happens on the lane; methods carry themselves there.
"""

from __future__ import annotations

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

from xenlike import hypercalls
from xenlike.backends import PythonVcpu, Watchdog
from xenlike.devices.block import ImageError
from xenlike.devices.console.log import ConsoleLog
from xenlike.dom0 import Dom0
from xenlike.domain import REASONS, Domain, ShutdownInfo, sleep_until
from xenlike.engine import XenError, check, ffi, lib
from xenlike.lane import NEVER, Lane
from xenlike.loaders.python import LoadError, load_class
from xenlike.store.socket import SocketServer
from xenlike.toolstack import DomainConfig, check_supported, config_from_values, parse_size
from xenlike.toolstack.builder import BuildError, build, largest_image
from xenlike.toolstack.nodes import domain_nodes, remove_domain_nodes

__all__ = ["Host", "TraceEvent"]

_DOM0_PAGES = 2048
_VIRT_BASE = 0xFFFFFFFF80000000         # of Python guests: where Linux has its kernel, so that 0 stays unmapped
_MAPPED_LIMIT = 0x70000000 // 4096      # of the linear mapping above it
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

    Raises XenError (no memory), ConfigError for a bad size.
    """

    def __init__(self, *, memory: int | str = "1G", clock: str = "real", seed: int = 0, pcpus: int = 1,
                 threaded: bool | None = None, xenstore_socket: str | os.PathLike[str] | None = None,
                 log_dir: str | os.PathLike[str] | None = None, watchdog: float = 10.0) -> None:
        if clock not in ("real", "virtual"):
            raise ValueError(f"clock={clock!r}: 'real' or 'virtual'")
        if threaded and clock == "virtual":
            raise ValueError("threaded=True needs the real clock: with the virtual one everything is one thread")
        self.clock, self.seed = clock, seed
        config = ffi.new("struct xl_host_config *")
        config.memory = memory if isinstance(memory, int) else parse_size(memory)
        config.nr_pcpus, config.virtual_clock, config.seed = pcpus, clock == "virtual", seed & (2**64 - 1)
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
        self._vcpus: dict[tuple[int, int], PythonVcpu] = {}
        self._socket: SocketServer | None = None
        self.restarts: list[Domain] = []
        self.lane = Lane(self.c, virtual=clock == "virtual", describe_waits=self.waits)
        self.lane.handlers |= {lib.EXIT_PYTHON: self._run_python, lib.EXIT_HYPERCALL: self._cold_hypercall,
                               lib.EXIT_DOMAIN: self._domain_changed, lib.EXIT_IO: self._io_stopped}
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
        image = largest_image(_VIRT_BASE, _DOM0_PAGES, _MAPPED_LIMIT)
        built = build(self.c, 0, image, _DOM0_PAGES, max_pages=_DOM0_PAGES, privileged=True, cmdline="", store_port=0,
                      console_port=0)
        self._install_python(0, self.dom0, built, nr_vcpus=1, args="")
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

    def create(self, guest: "type | DomainConfig", *, name: str | None = None, paused: bool = False, **settings: Any) -> Domain:
        """Builds and starts a domain.

        Args:
            guest: a class derived from ``guest_sdk.Guest``, or a configuration from ``xenlike.toolstack.load_config``.
            name: default: the class's name in small letters, with a number if it is taken.
            paused: leave it paused.
            settings: keys of a configuration file: ``memory="16M"``, ``vcpus=2``, ``disk=["disk.img,raw,xvda,rw"]``, ``extra="..."``.

        Raises ConfigError (bad settings), BuildError (does not fit), ImageError (disk), XenError.
        """
        return self.lane.call(lambda: self._create(guest, name, paused, settings))

    def _create(self, guest: "type | DomainConfig", name: str | None, paused: bool, settings: dict[str, Any]) -> Domain:
        if isinstance(guest, DomainConfig):
            config = guest
        elif isinstance(guest, type):
            config, found = config_from_values(
                {"name": name or self._free_name(guest.__name__.lower()), "kernel": guest, **settings}, seed=self.seed)
            for warning in found:
                warnings.warn(str(warning), stacklevel=4)
        else:
            raise TypeError(f"Host.create() takes a guest's class or a configuration, not {guest!r}")
        check_supported(config)
        if config.maxvcpus > lib.MAX_VCPUS:
            raise config.error("maxvcpus", f"{config.maxvcpus} vCPUs: {lib.MAX_VCPUS} is the most")
        if any(d.name == config.name for d in self._domains.values()):
            raise config.error("name", f"a domain named {config.name!r} runs already", hint="give it another name")
        instance = self._load(config)
        pages = config.memory // 4096
        domid = self._create_c(config, pages)
        try:
            domain = self._build(domid, config, instance, pages)
        except BaseException:
            self._domains.pop(domid, None)
            self.dom0.abandon(domid)
            remove_domain_nodes(self.dom0.xs, domid, config)
            self._forget_program(domid, instance)
            lib.xl_domain_destroy(self.c, domid)
            raise
        if not paused:
            check(lib.xl_domain_unpause(self.c, domid), "unpause", domid)
        return domain

    def _free_name(self, base: str) -> str:
        taken = {d.name for d in self._domains.values()}
        return next(n for n in (base if i == 0 else f"{base}-{i + 1}" for i in range(len(taken) + 1)) if n not in taken)

    def _load(self, config: DomainConfig) -> Any:
        kernel = config.kernel
        assert kernel is not None       # check_supported
        try:
            guest_class = kernel.guest or load_class(kernel.path, kernel.classname or "")
            instance = guest_class()
        except LoadError as error:
            raise config.error("kernel", str(error)) from error
        if not hasattr(instance, "kernels"):            # what Guest.__init__ makes
            raise config.error("kernel", f"{guest_class.__name__} is not a guest", hint="derive it from guest_sdk.Guest, and call "
                               "super().__init__() if it has an __init__ of its own")
        return instance

    def _create_c(self, config: DomainConfig, pages: int) -> int:
        c = ffi.new("struct domain_config *")
        c.domid, c.nr_vcpus, c.backend = -1, config.maxvcpus, lib.BACKEND_PYTHON
        c.max_pages = max(pages, config.maxmem // 4096) + 256       # LIBXL_MAXMEM_CONSTANT: 1024 KiB of slack
        c.max_evtchn_port, c.max_grant_frames = config.max_event_channels, config.max_grant_frames
        c.max_maptrack_frames, c.weight = config.max_maptrack_frames, config.cpu_weight
        ffi.buffer(c.uuid)[:] = config.uuid.bytes
        return check(lib.xl_domain_create(self.c, c), f"create domain {config.name!r}")

    def _build(self, domid: int, config: DomainConfig, instance: Any, pages: int) -> Domain:
        store_port = check(lib.xl_evtchn_alloc_unbound(self.c, domid, 0), "alloc_unbound", domid)
        console_port = check(lib.xl_evtchn_alloc_unbound(self.c, domid, 0), "alloc_unbound", domid)
        image = largest_image(_VIRT_BASE, pages, _MAPPED_LIMIT)
        try:
            built = build(self.c, domid, image, pages, max_pages=max(pages, config.maxmem // 4096), privileged=False,
                          cmdline=config.command_line, store_port=store_port, console_port=console_port)
        except BuildError as error:
            raise config.error("memory", str(error)) from error
        log = ConsoleLog(self._log_path(config.name))
        if self.lane.threaded:
            log.listen(lambda _data: self._notify())
        domain = self._domains[domid] = Domain(self, domid, config, log)
        domain.guest = instance
        domain_nodes(self.dom0.xs, domid, config, store_port=store_port, store_mfn=built.store_mfn, console_port=console_port,
                     console_mfn=built.console_mfn)
        self._install_python(domid, instance, built, nr_vcpus=config.maxvcpus, args=config.command_line)
        self.dom0.adopt(domid, log, store_port=store_port, store_mfn=built.store_mfn, console_port=console_port)
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

    def _install_python(self, domid: int, guest: Any, built: Any, *, nr_vcpus: int, args: str) -> None:
        guest.install(domid=domid, start_info_va=built.start_info, virt_base=built.virt_base, image_pages=0,
                      mapped_pages=built.mapped_pages, nr_vcpus=nr_vcpus, args=args)
        for n in range(nr_vcpus):
            self._vcpus[domid, n] = PythonVcpu(self, domid, n, guest.kernels[n])
        lib.xl_vcpu_up(self._vcpus[domid, 0].c)

    # ---- exits of the lane -------------------------------------------------------------------------------------------

    def _run_python(self, e: Any) -> None:
        vcpu = self._vcpus.get((e.domid, e.vcpu))
        if vcpu is not None:
            vcpu.resume()

    def _cold_hypercall(self, e: Any) -> None:
        vcpu = lib.xl_vcpu(self.c, e.domid, e.vcpu)
        if vcpu != ffi.NULL and vcpu.pause_flags & lib.VPF_lane:        # else another domain has the id by now
            lib.xl_hypercall_complete(vcpu, hypercalls.dispatch(self, vcpu, e.domid))

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
        domain.result = ShutdownInfo(reason, crash, domain.traceback)
        self._follow_action(domain, reason)
        self._notify()

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
        """console_io output of a domain."""
        domain = self._domains.get(domid)
        if domain is not None:
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
        self._forget_program(domain.domid, domain.guest)
        lib.xl_domain_destroy(self.c, domain.domid)
        self._notify()

    def _forget_program(self, domid: int, guest: Any) -> None:
        for key in [key for key in self._vcpus if key[0] == domid]:
            del self._vcpus[key]
        guest.close()

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
        lines = []
        for (domid, n), vcpu in sorted(self._vcpus.items()):
            if domid == 0:
                continue
            name = self._domains[domid].name if domid in self._domains else "?"
            lines.append(f"domain {domid} ({name}) vcpu {n}: {vcpu.program.describe_wait(vcpu.c.pause_flags)}")
        return lines

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
