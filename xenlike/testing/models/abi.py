"""Numbers that the models share: errors, domain ids, the page.

Used by every model and by the machines. The C headers are deliberately not read here: a model that takes its numbers
from the thing it judges cannot find a wrong number.
"""

from __future__ import annotations

EPERM, ENOENT, ESRCH, ENXIO, EAGAIN, ENOMEM, EACCES, EFAULT = 1, 2, 3, 6, 11, 12, 13, 14
EBUSY, EEXIST, EINVAL, ENOSPC, ERANGE, ENOSYS, EOPNOTSUPP = 16, 17, 22, 28, 34, 38, 95

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF, DOMID_IO, DOMID_XEN, DOMID_COW = 0x7FF0, 0x7FF1, 0x7FF2, 0x7FF3
DOMID_INVALID, DOMID_IDLE = 0x7FF4, 0x7FFF

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
U64 = (1 << 64) - 1

HYPERVISOR_START = 0xFFFF_8000_0000_0000
HYPERVISOR_END = 0xFFFF_8800_0000_0000
CANONICAL_LOW_END = 1 << 47


def address_ok(va: int) -> bool:
    """True when Xen would touch a guest's memory at `va` on its behalf: canonical and outside Xen's own range."""
    return va < CANONICAL_LOW_END or HYPERVISOR_END <= va <= U64
