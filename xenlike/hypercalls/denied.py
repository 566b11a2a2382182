"""Hypercalls that a guest of this hypervisor is refused, each with the error that Xen's guests know how to take.

xen-abi: an unprivileged caller gets -EPERM from dom0's own calls; what Xen does not offer answers -ENOSYS or -EOPNOTSUPP.
"""

from __future__ import annotations

from collections.abc import Callable

from xenlike.engine import lib
from xenlike.hypercalls import HypercallContext


def _dom0_only(ctx: HypercallContext, *_args: int) -> int:
    """dom0's: -EPERM for others; dom0 itself gets -ENOSYS, as no such operation is there."""
    return -lib.XEN_ENOSYS if ctx.privileged else -lib.XEN_EPERM


def _not_offered(error: int) -> Callable[..., int]:
    return lambda ctx, *_args: -error


platform_op = mca = dm_op = kexec_op = hypfs_op = arch_1 = _dom0_only
xsm_op = _not_offered(lib.XEN_ENOSYS)
argo_op = xenpmu_op = _not_offered(lib.XEN_EOPNOTSUPP)


def hvm_op(ctx: HypercallContext, cmd: int, _arg: int, *_rest: int) -> int:
    """HVM parameters of a PV domain: set_param (0) and get_param (1) find no HVM domain, the rest is not there."""
    return -lib.XEN_EINVAL if cmd in (0, 1) else -lib.XEN_ENOSYS
