"""console_io: the emergency console (Xen public header xen.h, CONSOLEIO_*).

write: any domain's text goes to its log, as a Xen built with debugging prints it; read: domain 0 only, nothing ever to read.
"""

from __future__ import annotations

from xenlike.engine import lib
from xenlike.hypercalls import HypercallContext

_CHUNK = 4096
_LIMIT = 1 << 20        # of one call; a longer count is cut (a guest must not make the host print for minutes)


def handle(ctx: HypercallContext, cmd: int, count: int, ptr: int, *_rest: int) -> int:
    """-EFAULT (text not readable), -EPERM (read by a guest), -ENOSYS (other commands)."""
    if cmd == lib.CONSOLEIO_read:
        return 0 if ctx.privileged else -lib.XEN_EPERM
    if cmd != lib.CONSOLEIO_write:
        return -lib.XEN_ENOSYS
    left = min(count & 0xFFFFFFFF, _LIMIT)
    while left:
        part = min(left, _CHUNK)
        ctx.host.console_text(ctx.domid, ctx.read(ptr, part))
        ptr += part
        left -= part
    return 0
