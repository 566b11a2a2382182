"""The Python execution backend: a vCPU whose instruction stream is a Python program.

Owns: ``PythonVcpu``, what a program may do with its vCPU (hypercalls, loads and stores through the soft MMU, windows), and the
watchdog. Called by: the lane, when the scheduler gives such a vCPU the CPU. The program is any object with
``run(vcpu)``, which returns when the vCPU should rest; ``guest_sdk`` provides one (its kernel).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import traceback
import weakref
from typing import Any, Protocol

from xenlike import hypercalls
from xenlike.engine import ffi, lib

__all__ = ["GuestFault", "GuestStuck", "Program", "PythonVcpu", "Watchdog"]


class GuestFault(RuntimeError):
    """A guest's load or store faulted.

    Attributes:
        va: the faulting virtual address.
        error_code: page-fault error code (SDM vol. 3, 4.7): bit 0 present, 1 write, 2 user, 4 instruction fetch.
    """

    def __init__(self, va: int, error_code: int) -> None:
        what = "write to" if error_code & lib.PFEC_write else "read of"
        why = "not allowed by its page-table entry" if error_code & lib.PFEC_present else "not mapped"
        super().__init__(f"page fault: {what} {va:#x} ({why}, error code {error_code:#x})")
        self.va = va
        self.error_code = error_code


class GuestStuck(BaseException):
    """Raised inside a guest that ran too long without an await. Not an Exception: guests must not swallow it."""


class Program(Protocol):
    """What a Python vCPU executes."""

    def run(self, vcpu: "PythonVcpu") -> None:
        """Goes on until the vCPU should rest. An exception crashes the domain with its traceback."""


class PythonVcpu:
    """One Python vCPU, as its program sees it."""

    def __init__(self, host: Any, domid: int, index: int, program: Program) -> None:
        self.host = host
        self.domid = domid
        self.index = index
        self.program = program
        self.c = lib.xl_vcpu(host.c, domid, index)
        self._fault = ffi.new("u64[2]")
        self._ports = ffi.new("u32[]", 512)
        self._small = ffi.new("char[]", 4096)
        self._small_view = memoryview(ffi.buffer(self._small))

    # ---- what a CPU can do -------------------------------------------------------------------------------------------

    def hypercall(self, nr: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0) -> int:
        """Executes hypercall ``nr`` with raw register values; returns rax as a signed number (-errno on error)."""
        rc = lib.xl_hypercall(self.c, nr, a0, a1, a2, a3, a4)
        while rc == lib.HYPERCALL_COLD:
            rc = lib.xl_hypercall_complete(self.c, hypercalls.dispatch(self.host, self.c, self.domid))
        return rc

    def read(self, va: int, n: int) -> bytes:
        """Loads n bytes at a virtual address. Raises GuestFault."""
        buf = self._small if n <= 4096 else ffi.new("char[]", n)
        if lib.xl_guest_read(self.c, va, buf, n, self._fault):
            raise GuestFault(self._fault[0], self._fault[1])
        return ffi.unpack(buf, n)

    def write(self, va: int, data: bytes) -> None:
        """Stores bytes at a virtual address. Raises GuestFault; bytes before the fault are stored."""
        if lib.xl_guest_write(self.c, va, ffi.from_buffer(data), len(data), self._fault):
            raise GuestFault(self._fault[0], self._fault[1])

    def translate(self, va: int, *, write: bool = False) -> int:
        """The machine frame number behind a virtual address, for an access of that kind. Raises GuestFault."""
        mfn = lib.xl_guest_translate(self.c, va, lib.PFEC_write if write else 0, self._fault)
        if mfn < 0:
            raise GuestFault(self._fault[0], self._fault[1])
        return mfn

    def window(self, va: int) -> memoryview:
        """The page that holds ``va``, writable, for as long as views of it live: meanwhile it cannot become a page table."""
        mfn = self.translate(va, write=True)
        return self.host.window(self.domid, mfn)

    def shared_info(self) -> memoryview:
        """The domain's shared_info page."""
        return memoryview(ffi.buffer(lib.xl_shared_info(self.host.c, self.domid), 4096))

    def now(self) -> int:
        """System time in ns: what RDTSC gives, as guests' TSC runs at 1 GHz (docs/design.md)."""
        return lib.xl_now(self.host.c)

    def enter(self) -> bool:
        """Return to guest mode: True if an upcall is to be run (events are then masked)."""
        return lib.xl_vcpu_enter(self.c) != 0

    def scan_events(self) -> list[int]:
        """Clears pending, returns the ports that were pending and not masked (the handler's half of section 5.3)."""
        n = lib.xl_scan_events(self.c, self._ports, 512)
        return [self._ports[i] for i in range(n)]

    def must_rest(self) -> bool:
        """Blocked, paused, down, or the slice is over."""
        return (self.c.exit_work & lib.WORK_park) != 0

    def step(self) -> None:
        """A step of the program, from an await to the next: costs 100 ns of virtual time, and may end the scheduler's slice."""
        lib.xl_vcpu_step(self.c)

    def burn(self, ns: int) -> None:
        """Computes for ns of CPU time before the program goes on: set it, then return from ``run``."""
        self.c.burn_ns = ns

    # ---- the lane's side ---------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """The scheduler gave this vCPU the CPU."""
        watchdog = self.host.watchdog
        watchdog.enter(self)
        try:
            self.program.run(self)
        except GuestStuck:
            self._crash("guest never awaited: it was stopped by the watchdog in\n" + _guest_traceback())
        except Exception:  # noqa: BLE001 - whatever a guest raises is its crash
            self._crash(_guest_traceback())
        finally:
            watchdog.leave()
            lib.xl_vcpu_park(self.c)

    def _crash(self, text: str) -> None:
        last = text.strip().splitlines()[-1]
        self.host.guest_crashed(self.domid, f"vcpu {self.index}: {last}", text)


def _guest_traceback() -> str:
    """The current exception's traceback without the frames of the lane and the guest kernel."""
    kind, error, tb = sys.exc_info()
    while tb and tb.tb_frame.f_globals.get("__name__", "").split(".")[0] in {"xenlike", "guest_sdk"} and tb.tb_next:
        tb = tb.tb_next
    return "".join(traceback.format_exception(kind, error, tb))


class Watchdog:
    """Stops a Python guest that runs for too long of real time without giving the CPU back.

    A thread looks once a second at the slice that runs; past the limit it raises GuestStuck inside it. It is off while a
    debugger traces, and for programs that C code holds (no bytecode runs there that could be interrupted).
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._since: float | None = None
        self._slice = 0
        self._thread: threading.Thread | None = None
        self._lane = 0
        self._traced = False
        self._stop = threading.Event()
        self._pid = os.getpid()

    def enter(self, vcpu: PythonVcpu) -> None:
        """A slice begins, on the calling thread."""
        self._slice += 1
        self._traced = sys.gettrace() is not None       # of this thread: a debugger, or coverage
        self._since = time.monotonic()
        self._lane = threading.get_ident()
        if self._thread is None and self.limit > 0:
            self._thread = threading.Thread(target=self._main, args=(weakref.ref(self),), name="xenlike-watchdog", daemon=True)
            self._thread.start()

    def leave(self) -> None:
        """The slice is over."""
        self._since = None

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()

    @staticmethod
    def _main(ref: "weakref.ref[Watchdog]") -> None:
        struck = -1
        while True:
            dog = ref()
            if dog is None or dog._stop.is_set():
                return
            since, number, limit, stop = dog._since, dog._slice, dog.limit, dog._stop
            if since is not None and number != struck and time.monotonic() - since > limit and not dog._traced:
                struck = number
                if dog._slice == number and dog._since is not None:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(dog._lane), ctypes.py_object(GuestStuck))
            del dog
            stop.wait(min(1.0, max(limit / 4, 0.01)))
