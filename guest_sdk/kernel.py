"""The Python guest's kernel: tasks, the idle loop, upcalls, time. One ``Kernel`` a vCPU.

Owns: what a real guest's kernel owns: the list of tasks, who waits for what, the timer. Called by: the vCPU's execution
backend (``run``), whenever the hypervisor gives the vCPU the CPU. All it knows of the hypervisor are hypercalls, its memory and
the upcall. A task may await only what this module (and its users) offer; anything else is an error that says so.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from xenlike.engine import NR, lib

__all__ = ["Future", "Kernel", "Task", "Timeout", "GuestError"]

T = TypeVar("T")
NSEC = 1_000_000_000


class GuestError(RuntimeError):
    """A guest used the SDK in a way that cannot work; the text says what to do instead."""


class Timeout(TimeoutError):
    """What was awaited did not happen in time."""


class Future(Generic[T]):
    """A result that is not there yet. ``await`` it from a task; ``set`` it once from anywhere in the guest."""

    __slots__ = ("_done", "_value", "_error", "_waiters")

    def __init__(self) -> None:
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[Task] = []

    def done(self) -> bool:
        """It was set."""
        return self._done

    def set(self, value: T) -> None:
        """Gives the result; later calls are ignored (a timeout may have come first)."""
        self._finish(value, None)

    def set_error(self, error: BaseException) -> None:
        """Makes ``await`` raise ``error``."""
        self._finish(None, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self._done:
            return
        self._done, self._value, self._error = True, value, error
        waiters, self._waiters = self._waiters, []
        for task in waiters:
            task.kernel.make_ready(task)

    def __await__(self) -> Generator[Any, None, T]:
        while not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class _Rest:
    """Yielded by a task to give the vCPU back at once; ``burn`` ns of computing are done before it goes on."""

    __slots__ = ("burn",)

    def __init__(self, burn: int = 0) -> None:
        self.burn = burn

    def __await__(self) -> Generator[Any, None, None]:
        yield self


class Task:
    """A coroutine that the kernel runs. Awaiting it waits for its end and gives its result."""

    __slots__ = ("kernel", "coro", "name", "result", "queued")

    def __init__(self, kernel: "Kernel", coro: Coroutine[Any, None, Any], name: str) -> None:
        self.kernel = kernel
        self.coro = coro
        self.name = name
        self.result: Future[Any] = Future()
        self.queued = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result.__await__()


def _where(coro: Any) -> str:
    """File and line of a suspended coroutine's innermost await in the guest's own code."""
    place = "?"
    while coro is not None and getattr(coro, "cr_frame", None) is not None:
        frame = coro.cr_frame
        if not frame.f_globals.get("__name__", "").startswith("guest_sdk"):
            place = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        coro = coro.cr_await
    return place


class Kernel:
    """What runs on one vCPU."""

    def __init__(self, guest: Any, index: int) -> None:
        self.guest = guest
        self.index = index
        self.vcpu: Any = None           # set when the vCPU first runs
        self.booted = False
        self.wake_port: Any = None      # an IPI by which other vCPUs make this one look at `ready`
        self._ready: deque[Task] = deque()
        self._tasks: list[Task] = []
        self._sleepers: list[tuple[int, int, Future[None]]] = []
        self._seq = 0
        self._timer_set = 0
        self._entry: Callable[[], Coroutine[Any, None, Any]] | None = None

    # ---- called by the backend ---------------------------------------------------------------------------------------

    def run(self, vcpu: Any) -> None:
        """The vCPU has the CPU: upcalls first, then tasks, until there is nothing to do or the hypervisor wants the CPU."""
        if not self.booted:
            self._boot(vcpu)
        c = vcpu.c
        self.guest.current = self
        upcall = vcpu.enter()
        while True:
            if upcall or c.exit_work & lib.WORK_upcall:
                if upcall or vcpu.enter():
                    self._upcall(vcpu)
                upcall = False
            if c.exit_work & lib.WORK_park:
                return
            if self._ready:
                vcpu.step()
                if self._step(self._ready.popleft()):
                    return
            elif self._idle(vcpu):
                return

    def start(self, entry: Callable[[], Coroutine[Any, None, Any]]) -> None:
        """Says what this vCPU runs when it comes up."""
        self._entry = entry

    def close(self) -> None:
        """The domain is gone: ends the coroutines (their finally blocks run, and may not reach the hypervisor)."""
        tasks, self._tasks = list(self._tasks), []
        for task in tasks:
            try:
                task.coro.close()
            except Exception:  # noqa: BLE001 - a dead guest's clean-up has nobody to complain to
                pass
        self._ready.clear()
        self._sleepers.clear()

    def describe_wait(self, pause_flags: int) -> str:
        """For people: why this vCPU does not run."""
        if not self.booted:
            return "down, never started"
        if not pause_flags & lib.VPF_blocked:
            return "not blocked" if not pause_flags else "down" if pause_flags & lib.VPF_down else "paused"
        waiting = [f"task {t.name!r} at {_where(t.coro)}" for t in self._tasks]
        return "blocked; " + ("; ".join(waiting) if waiting else "no task")

    def _boot(self, vcpu: Any) -> None:
        self.booted = True
        self.vcpu = vcpu
        self.guest.current = self
        if self.index == 0:
            self.guest.boot(vcpu)
        if self._entry is None:
            raise GuestError(f"vcpu {self.index} was brought up without start_vcpu(): nothing to run")
        self.spawn(self._entry(), name=f"vcpu {self.index}" if self.index else "main")
        self._unmask(vcpu)

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def spawn(self, coro: Coroutine[Any, None, Any], *, name: str = "") -> Task:
        """Runs a coroutine beside the others on this vCPU."""
        task = Task(self, coro, name or getattr(coro, "__name__", "task"))
        self._tasks.append(task)
        self.make_ready(task)
        return task

    def make_ready(self, task: Task) -> None:
        """``task`` can go on. From another vCPU this sends an IPI, as a real kernel's reschedule does."""
        if task.queued:
            return
        task.queued = True
        self._ready.append(task)
        if self.guest.current is not self and self.wake_port is not None:
            self.wake_port.notify()

    def _step(self, task: Task) -> bool:
        """Runs a task to its next await. True: the vCPU rests now."""
        task.queued = False
        try:
            wanted = task.coro.send(None)
        except StopIteration as end:
            self._tasks.remove(task)
            task.result.set(end.value)
            self.guest.task_ended(task, end.value)
            return False
        except Exception as error:
            if task.result._waiters:
                task.result.set_error(error)
                return False
            raise
        if type(wanted) is Future or isinstance(wanted, Future):
            if wanted.done():
                self.make_ready(task)
            else:
                wanted._waiters.append(task)
            return False
        if isinstance(wanted, _Rest):
            task.queued = True
            self._ready.appendleft(task)
            if wanted.burn:
                self.vcpu.burn(wanted.burn)
            return True
        task.coro.throw(GuestError(
            f"a guest awaited {wanted!r}, which is not the guest's own: only awaitables of guest_sdk work here "
            "(not asyncio's, trio's or threads' futures); use guest.sleep(), Port.wait(), Future"))
        return False

    # ---- upcalls -----------------------------------------------------------------------------------------------------

    def _upcall(self, vcpu: Any) -> None:
        """The event callback: runs port handlers with events masked, then unmasks."""
        while True:
            handlers = self.guest.events.handlers
            for port in vcpu.scan_events():
                handler = handlers.get(port)
                if handler is not None:
                    handler()
            if self._unmask(vcpu):
                return

    def _unmask(self, vcpu: Any) -> bool:
        """evtchn_upcall_mask = 0. False: an event came meanwhile and nobody will call us for it; masked again."""
        info, at = self.guest.vcpu_info(self.index)
        info[at + 1] = 0
        if not info[at]:
            return True
        info[at + 1] = 1
        return False

    # ---- idle and time -----------------------------------------------------------------------------------------------

    def _idle(self, vcpu: Any) -> bool:
        """Nothing is ready: wakes sleepers that are due, or blocks until an event. True: the vCPU rests now."""
        if self._sleepers:
            if self._wake_sleepers(vcpu.now()):
                return False
            when = self._sleepers[0][0]
            if when != self._timer_set:
                self._timer_set = when
                self.guest.hypercall(NR.set_timer_op, when)
        self.guest.hypercall(NR.sched_op, lib.SCHEDOP_block, 0)
        return vcpu.must_rest()

    def timer_fired(self) -> None:
        """VIRQ_TIMER."""
        self._timer_set = 0
        self._wake_sleepers(self.vcpu.now())

    def _wake_sleepers(self, now: int) -> bool:
        woken = False
        while self._sleepers and (self._sleepers[0][0] <= now or self._sleepers[0][2].done()):
            future = heapq.heappop(self._sleepers)[2]
            woken = woken or not future.done()
            future.set(None)
        return woken

    def alarm(self, when: int, future: Future[Any]) -> None:
        """Sets ``future`` to None at system time ``when`` (ns) unless it is set before."""
        self.guest.events.ensure_timer(self)
        self._seq += 1
        heapq.heappush(self._sleepers, (when, self._seq, future))

    async def rest(self, burn: int = 0) -> None:
        """Gives the CPU back; with ``burn``, after computing for that many ns."""
        await _Rest(burn)
