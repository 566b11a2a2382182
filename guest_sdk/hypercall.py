"""Hypercalls from a Python guest: raw numbers, or by name with structures.

Owns: the argument page of each vCPU (structures must lie in guest memory: the hypervisor reads them by virtual address).
Called by: every other module of the SDK, and guests. A raw call returns rax as a signed number, as a C guest would see it;
``checked`` turns errors into XenError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from xenlike.engine import NR, XenError, ffi, lib

from guest_sdk.kernel import GuestError

__all__ = ["Hypercalls"]

#: (hypercall, command) -> argument structure, by Xen's public headers. The rows are those of csrc/include/xen/*op.def.
STRUCTS: dict[str, dict[int, str]] = {
    "event_channel_op": {
        lib.EVTCHNOP_bind_interdomain: "evtchn_bind_interdomain", lib.EVTCHNOP_bind_virq: "evtchn_bind_virq",
        lib.EVTCHNOP_bind_pirq: "evtchn_bind_pirq", lib.EVTCHNOP_close: "evtchn_close", lib.EVTCHNOP_send: "evtchn_send",
        lib.EVTCHNOP_status: "evtchn_status", lib.EVTCHNOP_alloc_unbound: "evtchn_alloc_unbound",
        lib.EVTCHNOP_bind_ipi: "evtchn_bind_ipi", lib.EVTCHNOP_bind_vcpu: "evtchn_bind_vcpu",
        lib.EVTCHNOP_unmask: "evtchn_unmask", lib.EVTCHNOP_reset: "evtchn_reset",
        lib.EVTCHNOP_init_control: "evtchn_init_control", lib.EVTCHNOP_expand_array: "evtchn_expand_array",
        lib.EVTCHNOP_set_priority: "evtchn_set_priority",
    },
    "grant_table_op": {
        lib.GNTTABOP_map_grant_ref: "gnttab_map_grant_ref", lib.GNTTABOP_unmap_grant_ref: "gnttab_unmap_grant_ref",
        lib.GNTTABOP_setup_table: "gnttab_setup_table", lib.GNTTABOP_dump_table: "gnttab_dump_table",
        lib.GNTTABOP_transfer: "gnttab_transfer", lib.GNTTABOP_copy: "gnttab_copy",
        lib.GNTTABOP_query_size: "gnttab_query_size", lib.GNTTABOP_unmap_and_replace: "gnttab_unmap_and_replace",
        lib.GNTTABOP_set_version: "gnttab_set_version", lib.GNTTABOP_get_version: "gnttab_get_version",
    },
    "sched_op": {
        lib.SCHEDOP_shutdown: "sched_shutdown", lib.SCHEDOP_poll: "sched_poll", lib.SCHEDOP_watchdog: "sched_watchdog",
        lib.SCHEDOP_remote_shutdown: "sched_remote_shutdown", lib.SCHEDOP_shutdown_code: "sched_shutdown",
    },
    "memory_op": {
        lib.XENMEM_increase_reservation: "xen_memory_reservation", lib.XENMEM_decrease_reservation: "xen_memory_reservation",
        lib.XENMEM_populate_physmap: "xen_memory_reservation", lib.XENMEM_exchange: "xen_memory_exchange",
        lib.XENMEM_memory_map: "xen_memory_map", lib.XENMEM_machphys_mapping: "xen_machphys_mapping",
    },
    "vcpu_op": {
        lib.VCPUOP_initialise: "vcpu_guest_context", lib.VCPUOP_get_runstate_info: "vcpu_runstate_info",
        lib.VCPUOP_register_vcpu_info: "vcpu_register_vcpu_info",
        lib.VCPUOP_register_runstate_memory_area: "vcpu_register_runstate_memory_area",
        lib.VCPUOP_register_vcpu_time_memory_area: "vcpu_register_time_memory_area",
        lib.VCPUOP_set_periodic_timer: "vcpu_set_periodic_timer", lib.VCPUOP_set_singleshot_timer: "vcpu_set_singleshot_timer",
    },
    "physdev_op": {lib.PHYSDEVOP_set_iopl: "physdev_set_iopl", lib.PHYSDEVOP_set_iobitmap: "physdev_set_iobitmap",
                   lib.PHYSDEVOP_eoi: "physdev_eoi", lib.PHYSDEVOP_irq_status_query: "physdev_irq_status_query"},
    "xen_version": {lib.XENVER_get_features: "xen_feature_info", lib.XENVER_compile_info: "xen_compile_info",
                    lib.XENVER_platform_parameters: "xen_platform_parameters"},
}

_RESTS = (lib.SCHEDOP_yield, lib.SCHEDOP_block, lib.SCHEDOP_poll)
_ARG_SLOTS = 4
_SLOT = 8192            # two pages each: the largest structure, vcpu_guest_context, has 5168 bytes


class Hypercalls:
    """``guest.hypercall``. Call it with numbers, or use a method per hypercall with a structure.

    ``rc = guest.hypercall(29, 1, 0)`` is the raw call. ``guest.hypercall.event_channel_op(4, {"port": 3})`` puts the structure
    of that command into guest memory, calls, and copies the results back into the dict. The structure may also be ``bytes``
    (used as they are; a ``bytearray`` also gets the results), an integer (a guest address) or None.
    """

    def __init__(self, guest: Any) -> None:
        self._guest = guest
        self._arg_va: dict[int, list[int]] = {}

    def __call__(self, nr: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0) -> int:
        """Hypercall ``nr`` with raw register values; returns rax, signed."""
        return self._guest.current.vcpu.hypercall(nr, a0, a1, a2, a3, a4)

    def checked(self, op: str, nr: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0) -> int:
        """As the raw call, but a negative result raises XenError(errno, op, domid)."""
        rc = self._guest.current.vcpu.hypercall(nr, a0, a1, a2, a3, a4)
        if rc < 0:
            raise XenError(-rc, op, self._guest.domid)
        return rc

    @contextmanager
    def buffer(self, data: bytes) -> Iterator[int]:
        """Guest memory that holds ``data`` for the length of a ``with`` block; gives its virtual address."""
        index = self._guest.current.index
        free = self._arg_va.get(index)
        if free is None:
            free = self._arg_va[index] = self._guest.allocate_arguments(_ARG_SLOTS, _SLOT)
        if not free or len(data) > _SLOT:
            raise GuestError(f"a hypercall argument of {len(data)} bytes ({_SLOT} is the most; they nest {_ARG_SLOTS} deep)")
        va = free.pop()
        try:
            self._guest.memory.write(va, data)
            yield va
        finally:
            free.append(va)

    def op(self, name: str, cmd: int, arg: Any, *more: int, before: tuple[int, ...] = ()) -> int:
        """Hypercall ``name`` with command ``cmd`` and one structure; see the class. Returns rax, signed."""
        nr = getattr(NR, name)
        if arg is None or isinstance(arg, int):
            return self(nr, cmd, *before, arg or 0, *more)
        if isinstance(arg, Mapping):
            ctype = f"struct {self._struct(name, cmd)}"
            value = ffi.new(f"{ctype} *")
            _fill(value, arg)
            with self.buffer(bytes(ffi.buffer(value))) as va:
                rc = self(nr, cmd, *before, va, *more)
                ffi.buffer(value)[:] = self._guest.memory.read(va, ffi.sizeof(ctype))
            _drain(value, arg)
            return rc
        with self.buffer(bytes(arg)) as va:
            rc = self(nr, cmd, *before, va, *more)
            if isinstance(arg, bytearray):
                arg[:] = self._guest.memory.read(va, len(arg))
        return rc

    @staticmethod
    def _struct(name: str, cmd: int) -> str:
        try:
            return STRUCTS[name][cmd]
        except KeyError:
            raise GuestError(f"{name} command {cmd} has no structure known here: pass bytes or a guest address") from None

    def event_channel_op(self, cmd: int, arg: Any) -> int:
        """EVTCHNOP_*."""
        return self.op("event_channel_op", cmd, arg)

    def grant_table_op(self, cmd: int, arg: Any, count: int = 1) -> int:
        """GNTTABOP_*; ``arg`` one structure, or bytes of ``count`` of them."""
        return self.op("grant_table_op", cmd, arg, count)

    def memory_op(self, cmd: int, arg: Any) -> int:
        """XENMEM_*."""
        return self.op("memory_op", cmd, arg)

    def vcpu_op(self, cmd: int, vcpu: int, arg: Any = None) -> int:
        """VCPUOP_*."""
        return self.op("vcpu_op", cmd, arg, before=(vcpu,))

    def physdev_op(self, cmd: int, arg: Any) -> int:
        """PHYSDEVOP_*."""
        return self.op("physdev_op", cmd, arg)

    def xen_version(self, cmd: int, arg: Any = None) -> int:
        """XENVER_*."""
        return self.op("xen_version", cmd, arg)

    def sched_op(self, cmd: int, arg: Any = None) -> int:
        """SCHEDOP_*, but for those after which the vCPU rests: await guest.yield_(), guest.halt(), guest.poll()."""
        if cmd in _RESTS:
            raise GuestError("sched_op yield, block and poll give the CPU away: await guest.yield_(), guest.halt() or guest.poll()")
        return self.op("sched_op", cmd, arg)


def _fill(value: Any, fields: Mapping[str, Any]) -> None:
    for name, field in fields.items():
        if isinstance(field, Mapping):
            _fill(getattr(value, name), field)
        else:
            setattr(value, name, field)


def _drain(value: Any, fields: Any) -> None:
    """Every scalar field of the structure, as the hypervisor left it, into the caller's dict."""
    for name, field in ffi.typeof(value).item.fields if ffi.typeof(value).kind == "pointer" else ffi.typeof(value).fields:
        found = getattr(value, name) if name else None
        if isinstance(found, int):
            fields[name] = found
        elif isinstance(fields.get(name), dict):
            _drain(found, fields[name])
