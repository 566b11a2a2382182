"""The lane: the one Python thread of a host.

Owns: the loop that runs the lane's pCPU in C and handles what C hands over (Python vCPUs, cold hypercalls, domain events,
timers, devices), outside input (descriptors), and calls from other threads. Called by: ``Host``.

With the real clock the lane is a thread of its own and other threads' calls are carried to it; with the virtual clock, or
``inline``, it runs in the thread that calls ``run``. Sockets are watched with ``selectors``; there is no asyncio: a second
event loop would be a second order of events, and the order here is (virtual time, sequence).
"""

from __future__ import annotations

import heapq
import selectors
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from xenlike.engine import check, ffi, lib

__all__ = ["Lane", "Stalled", "Timer"]

NEVER = 2**64 - 1
_BATCH = 64


class Stalled(RuntimeError):
    """Virtual clock: every vCPU is blocked and no timer is set, so nothing can ever happen again.

    Attributes:
        waits: one line a vCPU: what it waits for.
    """

    def __init__(self, waits: list[str]) -> None:
        super().__init__("all vCPUs are blocked and no timer is set:\n" + "\n".join(f"  {w}" for w in waits))
        self.waits = waits


class Timer:
    """A pending ``Lane.call_at``; ``cancel()`` makes it not happen."""

    __slots__ = ("when", "callback")

    def __init__(self, when: int, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        """Idempotent."""
        self.callback = None


class Lane:
    """The loop of one host. ``handlers[kind]`` gets each ``struct lane_exit`` of that kind."""

    def __init__(self, host_c: Any, *, virtual: bool, describe_waits: Callable[[], list[str]]) -> None:
        self._h = host_c
        self.virtual = virtual
        self._describe_waits = describe_waits
        self.handlers: dict[int, Callable[[Any], None]] = {lib.EXIT_TIMER: self._run_timers}
        self._exits = ffi.new("struct lane_exit[]", _BATCH)
        self._selector = selectors.DefaultSelector()
        self._nr_fds = 0
        self._timers: list[tuple[int, int, Timer]] = []
        self._timer_seq = 0
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._depth = 0
        self.error: BaseException | None = None

    # ---- time --------------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """System time in ns since the host was made (always > 0)."""
        return lib.xl_now(self._h)

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Calls ``callback()`` on the lane at system time ``when`` (ns)."""
        timer = Timer(when, callback)
        self._timer_seq += 1
        heapq.heappush(self._timers, (when, self._timer_seq, timer))
        if self._timers[0][2] is timer:
            self._arm()
        return timer

    def _arm(self) -> None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        check(lib.xl_set_deadline(self._h, self._timers[0][0] if self._timers else NEVER), "set_deadline")

    def _run_timers(self, _exit: Any) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback:
                callback()
        self._arm()

    # ---- descriptors (names as in asyncio) ---------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls ``callback()`` on the lane whenever ``fd`` is readable."""
        self._watch(fd, 0, callback)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls ``callback()`` on the lane whenever ``fd`` is writable."""
        self._watch(fd, 1, callback)

    def remove_reader(self, fd: int) -> None:
        """Idempotent."""
        self._watch(fd, 0, None)

    def remove_writer(self, fd: int) -> None:
        """Idempotent."""
        self._watch(fd, 1, None)

    def _watch(self, fd: int, side: int, callback: Callable[[], None] | None) -> None:
        try:
            key = self._selector.get_key(fd)
            callbacks = list(key.data)
        except KeyError:
            key, callbacks = None, [None, None]
        callbacks[side] = callback
        events = (selectors.EVENT_READ if callbacks[0] else 0) | (selectors.EVENT_WRITE if callbacks[1] else 0)
        if not events:
            if key:
                self._selector.unregister(fd)
        elif key:
            self._selector.modify(fd, events, callbacks)
        else:
            self._selector.register(fd, events, callbacks)
        self._nr_fds = len(self._selector.get_map())

    def _poll_fds(self) -> bool:
        """Serves ready descriptors; True if there was one."""
        ready = self._selector.select(0)
        for key, events in ready:
            for side, bit in ((0, selectors.EVENT_READ), (1, selectors.EVENT_WRITE)):
                callback = key.data[side]
                if events & bit and callback:
                    callback()
        return bool(ready)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def run(self, done: Callable[[], bool], *, until: int = NEVER) -> bool:
        """Runs the host in this thread until ``done()`` or system time ``until`` (ns). Returns ``done()``.

        Raises:
            Stalled: virtual clock, and nothing is left that could happen.
        """
        if self._depth:
            raise RuntimeError("the lane is running already: a guest or callback may not wait for the host it runs on")
        self._depth += 1
        try:
            # A timer marks `until`, so that idle time is not skipped past it.
            guard = self.call_at(until, lambda: None) if until != NEVER else None
            spins = 0
            while not done():
                if until != NEVER and self.now() >= until:
                    break
                spins += 1
                if self._nr_fds and spins % 32 == 0:
                    self._poll_fds()
                self._step()
            if guard:
                guard.cancel()
            return done()
        finally:
            self._depth -= 1

    def _step(self) -> None:
        exits = self._exits
        for i in range(lib.xl_run(self._h, exits, _BATCH)):
            e = exits[i]
            kind = e.kind
            if kind == lib.EXIT_IDLE:
                self._idle(e.a)
            elif kind == lib.EXIT_STALLED:
                self._stalled()
            else:
                self.handlers[kind](e)
        while self._calls:
            self._run_call()

    def _idle(self, deadline: int) -> None:
        if self._calls:
            return
        if not self.virtual:
            fd = self._selector.fileno() if self._nr_fds else -1
            if lib.xl_wait(self._h, fd, deadline):
                self._poll_fds()
        elif not (self._nr_fds and self._poll_fds()):
            lib.xl_skip_to(self._h, deadline)

    def _stalled(self) -> None:
        if self._nr_fds:                # outside input may still come
            if lib.xl_wait(self._h, self._selector.fileno(), NEVER):
                self._poll_fds()
        elif not self._calls:
            raise Stalled(self._describe_waits())

    # ---- threads -----------------------------------------------------------------------------------------------------

    @property
    def threaded(self) -> bool:
        """The lane has a thread of its own."""
        return self._thread is not None

    def start(self) -> None:
        """Gives the lane a thread of its own (real clock)."""
        self._thread = threading.Thread(target=self._main, name="xenlike-lane", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.run(lambda: self._stopping)
        except BaseException as error:  # noqa: BLE001 - kept for whoever calls next
            self.error = error
        while self._calls:
            self._run_call()

    def stop(self) -> None:
        """Ends the lane's thread, after the calls that were queued."""
        if self._thread:
            self._stopping = True
            lib.xl_kick(self._h)
            self._thread.join()
            self._thread = None
        self._selector.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs ``function()`` on the lane and returns its result (or raises its exception). From any thread."""
        if not self._thread or threading.current_thread() is self._thread:
            return function()
        if self.error or not self._thread.is_alive():
            raise RuntimeError(f"the host's lane has ended: {self.error}") from self.error
        future: Future = Future()
        self._calls.append((future, function))
        lib.xl_kick(self._h)
        while True:
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if future.done():       # the function's own TimeoutError
                    raise
                if not self._thread or not self._thread.is_alive():
                    raise RuntimeError(f"the host's lane has ended: {self.error}") from self.error

    def _run_call(self) -> None:
        future, function = self._calls.popleft()
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            future.set_exception(error)
