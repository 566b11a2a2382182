"""A domain under a debugger: its vCPUs, memory and breakpoints, while it stands still.

Owns: the attachment (csrc/hv/debug.c) and what is remembered of the last stop. Called by: ``server``, on the lane. The core does the
checking of breakpoints; here is only what gdb asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xenlike.engine import check, ffi, lib

if TYPE_CHECKING:
    from xenlike.domain import Domain, ShutdownInfo

__all__ = ["Stop", "Target"]

PAGE = 4096


@dataclass(frozen=True)
class Stop:
    """Why the domain stands: ``kind`` is an ``enum debug_reason``, "asked" (attachment, Ctrl-C) or "ended" (``Target.ended`` says how)."""

    kind: int | str
    vcpu: int = 0
    address: int = 0


class Target:
    """Attaches to ``domain`` (its vCPUs stop) and stays until ``detach``. Raises XenError: not machine code, or attached already.

    on_stop: called on the lane with each ``Stop``.
    """

    def __init__(self, domain: "Domain", on_stop: Callable[[Stop], None]) -> None:
        self.domain = domain
        self.ended: "ShutdownInfo | None" = None
        self.running = False
        self._host = domain.host
        self._c = domain.host.c
        self._on_stop = on_stop
        check(lib.xl_debug_attach(self._c, domain.domid), "attach a debugger", domain.domid)
        self._host.debuggers[domain.domid] = self
        self.stop = Stop("asked")
        self.nr_vcpus: int = domain.config.maxvcpus

    # ---- what the host tells -----------------------------------------------------------------------------------------

    def stopped(self, vcpu: int, kind: int, address: int) -> None:
        """EXIT_DEBUG. Of several vCPUs that met something at once each tells; the domain may have been continued in between."""
        lib.xl_debug_stop(self._c, self.domain.domid)
        self.running, self.stop = False, Stop(kind, vcpu, address)
        self._on_stop(self.stop)

    def domain_ended(self, info: "ShutdownInfo") -> bool:
        """The domain shut down or crashed. True: a crash, which is kept to be looked at until ``detach``."""
        self.ended, self.running = info, False
        c_info = ffi.new("struct xl_domain_info *")
        check(lib.xl_domain_info(self._c, self.domain.domid, c_info), "domain info", self.domain.domid)
        self.stop = Stop("ended", c_info.last_vcpu)
        self._on_stop(self.stop)
        return info.reason in ("crash", "watchdog")

    # ---- running -----------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """All vCPUs go on."""
        self.running = True
        check(lib.xl_debug_continue(self._c, self.domain.domid), "continue", self.domain.domid)

    def step(self, vcpu: int) -> None:
        """One instruction of one vCPU; the others stay."""
        self.running = True
        check(lib.xl_debug_step(self.vcpu(vcpu)), "step", self.domain.domid)

    def interrupt(self) -> None:
        """Stops a running domain."""
        if self.running:
            check(lib.xl_debug_stop(self._c, self.domain.domid), "stop", self.domain.domid)
            self.running, self.stop = False, Stop("asked")
            self._on_stop(self.stop)

    def detach(self) -> None:
        """Lets the domain go, or what remains of it. Idempotent."""
        if self._host.debuggers.pop(self.domain.domid, None) is not self:
            return
        if self.ended is not None:
            if not self.domain.ended:
                self._host.end(self.domain, self.ended)
        elif not self.domain.destroyed:
            lib.xl_debug_detach(self._c, self.domain.domid)

    def kill(self) -> None:
        """Destroys the domain."""
        self._host.debuggers.pop(self.domain.domid, None)
        self._host.destroy(self.domain)

    # ---- state -------------------------------------------------------------------------------------------------------

    def vcpu(self, number: int) -> Any:
        """The C object. Raises XenError: there is none, or no more."""
        vcpu = ffi.NULL if self.domain.destroyed else lib.xl_vcpu(self._c, self.domain.domid, number)
        if vcpu == ffi.NULL:
            check(-lib.XEN_ENOENT, f"vCPU {number}", self.domain.domid)
        return vcpu

    def describe(self, number: int) -> str:
        """One line about a vCPU, for ``info threads``."""
        flags = self.vcpu(number).pause_flags
        state = "down" if flags & lib.VPF_down else "blocked" if flags & lib.VPF_blocked else "runnable"
        return f"vCPU {number} of {self.domain.name}, {state}, {'kernel' if self.registers(number).kernel_mode else 'user'} mode"

    def registers(self, number: int) -> Any:
        """A ``struct xl_cpu_state``. Raises XenError."""
        state = ffi.new("struct xl_cpu_state *")
        check(lib.xl_vcpu_state(self.vcpu(number), state), "read registers", self.domain.domid)
        return state

    def set_registers(self, number: int, state: Any) -> None:
        """Raises XenError."""
        check(lib.xl_vcpu_set_state(self.vcpu(number), state), "set registers", self.domain.domid)

    def read(self, number: int, va: int, n: int) -> bytes:
        """Up to ``n`` bytes at ``va`` as vCPU ``number`` sees memory now; those before the first that it cannot read."""
        out, vcpu = bytearray(), self.vcpu(number)
        while len(out) < n:
            part = min(n - len(out), PAGE - (va + len(out)) % PAGE)
            buf = ffi.new("u8[]", part)
            if lib.xl_guest_read(vcpu, (va + len(out)) & 2**64 - 1, buf, part, ffi.NULL):
                break
            out += ffi.buffer(buf)
        return bytes(out)

    def write(self, number: int, va: int, data: bytes) -> None:
        """Writes even where the guest itself may only read. Raises XenError: not mapped, a page table, or another domain's frame."""
        vcpu, fault = self.vcpu(number), ffi.new("u64[2]")
        done = 0
        while done < len(data):
            at = va + done & 2**64 - 1
            part = data[done:done + PAGE - at % PAGE]
            mfn = check(lib.xl_guest_translate(vcpu, at, lib.MMU_READ, fault), "translate", self.domain.domid)
            check(lib.xl_frame_write(self._c, self.domain.domid, mfn, at % PAGE, part, len(part)), "write memory", self.domain.domid)
            done += len(part)

    def breakpoint(self, kind: int, va: int, length: int, *, add: bool) -> None:
        """Raises XenError: no more room."""
        check(lib.xl_debug_break(self._c, self.domain.domid, add, kind, va, length), "set a breakpoint", self.domain.domid)
