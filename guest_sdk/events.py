"""Event channels for Python guests.

Owns: a guest's ports and their handlers. Called by: the kernel's upcall, drivers, guests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenlike.engine import NR, XenError, lib

from guest_sdk.kernel import NSEC, Future, Kernel, Timeout

__all__ = ["Events", "Port"]


class Port:
    """One event channel. ``await wait()`` takes the next event; ``notify()`` sends one; ``close()`` gives it back."""

    __slots__ = ("_events", "number", "_pending", "_waiters")

    def __init__(self, events: "Events", number: int) -> None:
        self._events = events
        self.number = number
        self._pending = 0
        self._waiters: list[Future[None]] = []
        events.handlers[number] = self._fired

    def _fired(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for future in waiters:
                future.set(None)
        else:
            self._pending += 1

    def on_event(self, handler: Callable[[], None] | None) -> "Port":
        """Runs ``handler()`` in the upcall, events masked, for each event; it must not wait. None: back to ``wait``."""
        self._events.handlers[self.number] = handler or self._fired
        return self

    async def wait(self, timeout: float | None = None) -> None:
        """The next event, or one that came since the last wait. Raises Timeout after ``timeout`` seconds."""
        if self._pending:
            self._pending = 0
            return
        future: Future[None] = Future()
        self._waiters.append(future)
        if timeout is None:
            await future
            return
        kernel: Kernel = self._events.guest.current
        kernel.alarm(kernel.vcpu.now() + round(timeout * NSEC), future)
        await future
        if future in self._waiters:         # the alarm set it, no event did
            self._waiters.remove(future)
            raise Timeout(f"no event on port {self.number} within {timeout} s")

    def notify(self) -> None:
        """Sends an event to the other end (EVTCHNOP_send). Raises XenError."""
        self._events.send(self.number)

    def close(self) -> None:
        """EVTCHNOP_close. Raises XenError."""
        self._events.handlers.pop(self.number, None)
        self._events.call("close", lib.EVTCHNOP_close, {"port": self.number})

    def mask(self) -> None:
        """Holds events back; they stay pending."""
        self._events.set_mask(self.number, True)

    def unmask(self) -> None:
        """EVTCHNOP_unmask: lets events through, and delivers one that is pending."""
        self._events.call("unmask", lib.EVTCHNOP_unmask, {"port": self.number})

    def __repr__(self) -> str:
        return f"<Port {self.number} of domain {self._events.guest.domid}>"


class Events:
    """``guest.events``."""

    def __init__(self, guest: Any) -> None:
        self.guest = guest
        self.handlers: dict[int, Callable[[], None]] = {}
        self._timers: dict[int, Port] = {}
        self._send_va = 0

    def call(self, what: str, cmd: int, arg: dict[str, int]) -> dict[str, int]:
        """One event_channel_op; returns the structure with the results. Raises XenError."""
        rc = self.guest.hypercall.event_channel_op(cmd, arg)
        if rc < 0:
            raise XenError(-rc, f"event_channel_op/{what}", self.guest.domid, ", ".join(f"{k}={v}" for k, v in arg.items()))
        return arg

    def send(self, port: int) -> None:
        """EVTCHNOP_send on a port number. Raises XenError."""
        guest = self.guest
        if not self._send_va:               # a structure of its own: this is the hot one
            self._send_va = guest.allocate_arguments(1, 64)[0]
        vcpu = guest.current.vcpu
        vcpu.write(self._send_va, port.to_bytes(4, "little"))
        rc = vcpu.hypercall(NR.event_channel_op, lib.EVTCHNOP_send, self._send_va)
        if rc < 0:
            raise XenError(-rc, "event_channel_op/send", guest.domid, f"port={port}")

    def alloc_unbound(self, remote: int) -> Port:
        """A port that domain ``remote`` may bind to."""
        return Port(self, self.call("alloc_unbound", lib.EVTCHNOP_alloc_unbound,
                                    {"dom": lib.DOMID_SELF, "remote_dom": remote, "port": 0})["port"])

    def bind_interdomain(self, remote: int, remote_port: int) -> Port:
        """Connects a new port to an unbound one of domain ``remote``."""
        return Port(self, self.call("bind_interdomain", lib.EVTCHNOP_bind_interdomain,
                                    {"remote_dom": remote, "remote_port": remote_port, "local_port": 0})["local_port"])

    def bind_virq(self, virq: int, vcpu: int | None = None) -> Port:
        """A port for VIRQ_*; per-vCPU ones on the vCPU that asks, or ``vcpu``."""
        index = self.guest.current.index if vcpu is None else vcpu
        return Port(self, self.call("bind_virq", lib.EVTCHNOP_bind_virq, {"virq": virq, "vcpu": index, "port": 0})["port"])

    def bind_ipi(self, vcpu: int) -> Port:
        """A port whose ``notify`` interrupts one of the guest's own vCPUs."""
        return Port(self, self.call("bind_ipi", lib.EVTCHNOP_bind_ipi, {"vcpu": vcpu, "port": 0})["port"])

    def attach(self, number: int) -> Port:
        """A Port object for a port that exists already (the console's and xenstore's in start_info)."""
        return Port(self, number)

    def status(self, port: int, domid: int | None = None) -> dict[str, int]:
        """EVTCHNOP_status of a port: ``status`` (EVTCHNSTAT_*) and ``vcpu``, the one that is notified."""
        arg = {"dom": lib.DOMID_SELF if domid is None else domid, "port": port, "status": 0, "vcpu": 0}
        return self.call("status", lib.EVTCHNOP_status, arg)

    def set_mask(self, port: int, masked: bool) -> None:
        """Sets or clears the port's bit in shared_info.evtchn_mask by a store; use ``Port.unmask`` to have events delivered."""
        words = self.guest.shared_info[2560:3072].cast("Q")
        bit = 1 << (port & 63)
        words[port >> 6] = words[port >> 6] | bit if masked else words[port >> 6] & ~bit

    def ensure_timer(self, kernel: Kernel) -> None:
        """Binds VIRQ_TIMER of a kernel's vCPU once."""
        if kernel.index not in self._timers:
            self._timers[kernel.index] = self.bind_virq(lib.VIRQ_TIMER).on_event(kernel.timer_fired)
