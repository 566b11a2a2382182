"""Cold hypercalls: those that Python answers, one module each.

Owns: the table from number to module, ``HypercallContext``. Called by: the Python backend and the lane, when C hands a
hypercall over. A module has one function ``handle(ctx, *args) -> int`` with as many register arguments as
csrc/include/xen/hypercalls.def says; it returns what goes to rax. Guest memory is reached through ``ctx`` only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from xenlike.engine import NR, ffi, lib

__all__ = ["GuestMemoryFault", "HypercallContext", "dispatch", "find", "name_of"]


_ADDRESS = (1 << 64) - 1        # addresses wrap: a pointer may stand at the very end, and what follows it at 0


class GuestMemoryFault(Exception):
    """An argument pointer was not readable or writable; the hypercall returns -EFAULT."""


class HypercallContext:
    """The calling vCPU, for a handler."""

    __slots__ = ("host", "vcpu", "domid")

    def __init__(self, host: Any, vcpu: Any, domid: int) -> None:
        self.host = host
        self.vcpu = vcpu
        self.domid = domid

    @property
    def privileged(self) -> bool:
        """The caller is domain 0."""
        return self.domid == 0

    def read(self, va: int, n: int) -> bytes:
        """n bytes of the caller's memory; GuestMemoryFault (-EFAULT) if they are not readable."""
        buf = ffi.new("char[]", n)
        self._load(va, buf, n)
        return ffi.unpack(buf, n)

    def write(self, va: int, data: bytes) -> None:
        """Writes to the caller's memory; GuestMemoryFault (-EFAULT) if it is not writable."""
        if lib.xl_guest_write(self.vcpu, va & _ADDRESS, data, len(data), ffi.NULL):
            raise GuestMemoryFault

    def read_struct(self, va: int, ctype: str) -> Any:
        """A copy of an ABI structure in the caller's memory, as a cffi value."""
        value = ffi.new(f"{ctype} *")
        self._load(va, value, ffi.sizeof(ctype))
        return value

    def _load(self, va: int, into: Any, n: int) -> None:
        va &= _ADDRESS
        if lib.HYPERVISOR_VIRT_START <= va < lib.HYPERVISOR_VIRT_END:       # refused even where a guest may read: the M2P
            raise GuestMemoryFault
        if lib.xl_guest_read(self.vcpu, va, into, n, ffi.NULL):
            raise GuestMemoryFault


#: Hypercalls that share a module.
_MODULES = {"physdev_op_compat": "physdev_op"} | dict.fromkeys(
    ["platform_op", "xsm_op", "hvm_op", "kexec_op", "argo_op", "xenpmu_op", "dm_op", "hypfs_op", "mca", "arch_1"], "denied"
) | dict.fromkeys(["sysctl", "domctl"], "control")

_ALL = {number: name for name, number in vars(NR).items()}


def name_of(nr: int) -> str:
    """The hypercall's name, e.g. ``"sched_op"``."""
    return _ALL.get(nr, f"hypercall {nr}")


_handlers: dict[int, Callable[..., int]] = {}


def find(nr: int) -> Callable[..., int]:
    """The handler of a cold hypercall, by its name in hypercalls.def; its module is imported at first use."""
    handler = _handlers.get(nr)
    if handler is None:
        name = name_of(nr)
        module = importlib.import_module(f"xenlike.hypercalls.{_MODULES.get(name, name)}")
        handler = _handlers[nr] = getattr(module, name, None) or module.handle
    return handler


_cold = ffi.new("struct xl_cold *")


def dispatch(host: Any, vcpu: Any, domid: int) -> int:
    """Answers the cold hypercall that ``vcpu`` (cdata) waits for. Returns rax."""
    lib.xl_cold_args(vcpu, _cold)
    handler = find(_cold.nr)
    args = list(_cold.args)
    try:
        return handler(HypercallContext(host, vcpu, domid), *args)
    except GuestMemoryFault:
        return -lib.XEN_EFAULT
