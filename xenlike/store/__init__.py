"""Xenstore: a pure store, its wire protocol, and the transports that serve it.

``paths perms tree`` (values) → ``quota watches`` (books) → ``view transaction`` (what operations mean) →
``session operations connection direct`` (ways in) → ``server`` (the whole state) → ``ring socket`` (I/O).
`client_ring` is the guest's side of the ring.
"""

from .client_ring import RingClient, RingError
from .connection import Connection
from .direct import Direct, DirectTransaction
from .errors import ERRNO, StoreError
from .hooks import Hooks
from .ring import RingTransport
from .server import Statistics, Store
from .socket import SocketServer

__all__ = [
    "ERRNO",
    "Connection",
    "Direct",
    "DirectTransaction",
    "Hooks",
    "RingClient",
    "RingError",
    "RingTransport",
    "SocketServer",
    "Statistics",
    "Store",
    "StoreError",
]
