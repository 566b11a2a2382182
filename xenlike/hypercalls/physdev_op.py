"""physdev_op: I/O privilege of a PV vCPU; interrupts of devices that no guest here has (Xen public header physdev.h)."""

from __future__ import annotations

from collections.abc import Callable

from xenlike.engine import lib
from xenlike.hypercalls import HypercallContext


def _set_iopl(ctx: HypercallContext, arg: int) -> int:
    iopl = ctx.read_struct(arg, "struct physdev_set_iopl").iopl
    return lib.xl_vcpu_set_iopl(ctx.vcpu, iopl)


def _set_iobitmap(ctx: HypercallContext, arg: int) -> int:
    op = ctx.read_struct(arg, "struct physdev_set_iobitmap")
    return lib.xl_vcpu_set_iobitmap(ctx.vcpu, op.bitmap, op.nr_ports)


def _no_irq(ctx: HypercallContext, arg: int) -> int:
    ctx.read(arg, 4)
    return -lib.XEN_EINVAL          # no physical interrupt belongs to any guest


def _denied(ctx: HypercallContext, arg: int) -> int:
    return -lib.XEN_EPERM


_COMMANDS: dict[int, Callable[[HypercallContext, int], int]] = {
    lib.PHYSDEVOP_set_iopl: _set_iopl,
    lib.PHYSDEVOP_set_iobitmap: _set_iobitmap,
    lib.PHYSDEVOP_irq_status_query: _no_irq,
    lib.PHYSDEVOP_eoi: _no_irq,
    **dict.fromkeys((8, 9, 10, 13, 14, 15, 25, 26), _denied),       # APIC access, vectors, map and unmap, PCI
}


def physdev_op(ctx: HypercallContext, cmd: int, arg: int, *_rest: int) -> int:
    """-EFAULT, -EINVAL (no such interrupt, IOPL above 3), -EPERM (devices), -ENOSYS (other commands)."""
    handler = _COMMANDS.get(cmd)
    return handler(ctx, arg) if handler else -lib.XEN_ENOSYS


def physdev_op_compat(ctx: HypercallContext, uop: int, *_rest: int) -> int:
    """The old form: struct physdev_op {u32 cmd; union at offset 8}."""
    return physdev_op(ctx, int.from_bytes(ctx.read(uop, 4), "little"), uop + 8)
