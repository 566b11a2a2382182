"""Quotas: what an unprivileged domain may use of xenstore, and the account of what it uses.

Owns the one table of quotas (names as GET_QUOTA and SET_QUOTA spell them), the limits derived from it (global
defaults, overrides a domain) and the `Usage` record. Who is unprivileged, and which error a full quota gives, is
for the callers to say: `view` and `session` for nodes, watches and transactions, `server` for what is queued.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import StoreError

#: name → (default, meaning). Zero switches a check off. "soft-" quotas only warn, in `quota` reports.
QUOTAS: dict[str, tuple[int, str]] = {
    "nodes": (1000, "nodes owned"),
    "watches": (128, "watches set"),
    "outstanding": (20, "requests whose reply or watch events are still to be taken; more stall the connection"),
    "transactions": (10, "open transactions"),
    "transaction-nodes": (1024, "nodes used in one transaction"),
    "node-permissions": (5, "permission entries of a node"),
    "path-max": (2048, "bytes of a path below the domain's home"),
    "node-size": (2048, "bytes of a node: its value and its children's names"),
    "memory": (2_621_440, "bytes of nodes, watches, transactions and queued messages"),
    "soft-memory": (2_097_152, "bytes of memory from which reports warn"),
}


class Limits(dict[str, int]):
    """Quota values by name: the global ones, or one domain's, which follow the global ones until set themselves.

    Flat dictionaries, because a request looks up several; so a global change is written to each follower.
    """

    def __init__(self, values: dict[str, int]) -> None:
        super().__init__(values)
        self._own: set[str] = set()

    def set(self, name: str, value: int) -> None:
        """Give this domain, or all, a value of its own."""
        self._own.add(name)
        self[name] = value

    def follow(self, name: str, value: int) -> None:
        """The global value changed."""
        if name not in self._own:
            self[name] = value

    def exceeded(self, name: str, amount: int) -> bool:
        """Whether `amount` is more than the quota `name` allows."""
        limit = self[name]
        return 0 < limit < amount


def default_limits() -> Limits:
    """The global limits of a new store."""
    return Limits({name: value for name, (value, _) in QUOTAS.items()})


def check_name(name: str) -> str:
    """`name` if it is a quota's. EINVAL otherwise."""
    if name not in QUOTAS:
        raise StoreError("EINVAL", f"no quota {name[:30]!r}; there are {' '.join(QUOTAS)}")
    return name


def parse_value(text: str) -> int:
    """A quota value, decimal 0..2³²−2. EINVAL otherwise."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) >= 0xFFFFFFFF:
        raise StoreError("EINVAL", f"quota value {text[:20]!r} is not a decimal number below 2**32-1")
    return int(text)


@dataclass(slots=True)
class Usage:
    """What one domain uses now. Kept by the store's bookkeeping; never negative."""

    nodes: int = 0
    watches: int = 0
    outstanding: int = 0
    transactions: int = 0
    memory: int = 0

    def copy(self) -> Usage:
        """A snapshot that later bookkeeping does not change."""
        return replace(self)
