"""The only importer of the compiled core: turns its return values into Python's.

Owns: ``ffi`` and ``lib`` (nobody else imports ``xenlike._core``), ``XenError``, names of error numbers.
Called by: everything in ``xenlike`` and ``guest_sdk`` that reaches the hypervisor.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

try:
    from xenlike._core import ffi, lib
except ImportError as error:  # pragma: no cover - depends on how the package was installed
    raise ImportError(
        f"xenlike's C core is not built ({error}). In a clone: `make build`; elsewhere: `pip install .` "
        "(needs a C compiler and Python's headers: apt install gcc python3-dev)"
    ) from None

__all__ = ["ERRNO_NAMES", "NR", "XenError", "ffi", "lib", "check", "errno_name", "struct_bytes"]

#: 22 -> "EINVAL": Xen's error numbers, from csrc/include/xen/errno.def.
ERRNO_NAMES: dict[int, str] = {
    getattr(lib, name): name.removeprefix("XEN_")
    for name in dir(lib)
    if re.fullmatch("XEN_E[A-Z0-9]+", name) and name != "XEN_EWOULDBLOCK"
}


#: Hypercall numbers by name: ``NR.sched_op`` is 29. (``lib.__HYPERVISOR_sched_op`` would be mangled inside classes.)
NR = SimpleNamespace(**{name.removeprefix("__HYPERVISOR_"): getattr(lib, name) for name in dir(lib)
                        if name.startswith("__HYPERVISOR_") and getattr(lib, name) < 64})


def errno_name(number: int) -> str:
    """``"EINVAL"`` for 22 (or -22); ``"E?<n>"`` for a number that Xen does not have."""
    return ERRNO_NAMES.get(abs(number), f"E?{abs(number)}")


class XenError(OSError):
    """A hypervisor operation failed.

    Attributes:
        errno: Xen's error number, positive (Xen public header ``errno.h``).
        op: what was tried, e.g. ``"event_channel_op/send"``.
        domid: the domain on whose behalf, or None.
    """

    def __init__(self, errno: int, op: str, domid: int | None = None, detail: str = "") -> None:
        where = "" if domid is None else f" (domain {domid})"
        super().__init__(abs(errno), f"{op}: {errno_name(errno)}{where}{': ' + detail if detail else ''}")
        self.op = op
        self.domid = domid

    @property
    def name(self) -> str:
        """The error's name, e.g. ``"EINVAL"``."""
        return errno_name(self.errno or 0)

    def __str__(self) -> str:
        return str(self.args[1])


def check(rc: int, op: str, domid: int | None = None, detail: str = "") -> int:
    """Returns ``rc`` if it is not negative; raises XenError otherwise."""
    if rc < 0:
        raise XenError(-rc, op, domid, detail)
    return rc


def struct_bytes(ctype: str, **fields: int) -> bytes:
    """An ABI structure as bytes: ``struct_bytes("struct evtchn_send", port=3)``. Unknown fields raise AttributeError."""
    value = ffi.new(f"{ctype} *")
    for name, field in fields.items():
        setattr(value, name, field)
    return bytes(ffi.buffer(value))
