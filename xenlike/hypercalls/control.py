"""sysctl and domctl: control interfaces for tools of Xen's own build. Guests only probe them.

The interface version is checked before privilege (Xen 4.17, common/{sysctl,domctl}.c): a wrong one is -EACCES for anybody, which
is how tools find the right one; then an unprivileged caller is refused. dom0's tools talk to xenlike's own API, not to these.
"""

from __future__ import annotations

from xenlike.engine import lib
from xenlike.hypercalls import HypercallContext


def _probe(ctx: HypercallContext, arg: int, version: int) -> int:
    header = ctx.read(arg, 8)           # u32 cmd, u32 interface_version
    if int.from_bytes(header[4:8], "little") != version:
        return -lib.XEN_EACCES
    return -lib.XEN_ENOSYS if ctx.privileged else -lib.XEN_EPERM


def sysctl(ctx: HypercallContext, arg: int, *_rest: int) -> int:
    """-EACCES (version), -EPERM (unprivileged), -ENOSYS (dom0), -EFAULT."""
    return _probe(ctx, arg, lib.XEN_SYSCTL_INTERFACE_VERSION)


def domctl(ctx: HypercallContext, arg: int, *_rest: int) -> int:
    """-EACCES (version), -EPERM (unprivileged), -ENOSYS (dom0), -EFAULT."""
    return _probe(ctx, arg, lib.XEN_DOMCTL_INTERFACE_VERSION)
