"""A session: who is asking, and the watches and transactions that belong to the asker.

Base of the two ways in, `connection.Connection` (bytes) and `direct.Direct` (Python calls); says everything about a
client but how its requests arrive and how its watch events leave. Pure. Belongs to one `Store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import paths
from .errors import StoreError
from .paths import Names
from .perms import ALL, Perms, access
from .transaction import Transaction
from .watches import Watch
from .wire import FEATURE_WATCHDEPTH

if TYPE_CHECKING:
    from .connection import Request
    from .server import Store


class Session:
    """One client of the store.

    domid: the domain it acts for.  privileged: exempt from permissions and quotas (dom0's tools).
    """

    def __init__(self, store: Store, domid: int, privileged: bool) -> None:
        self.store = store
        self.domid = domid
        self.privileged = privileged
        self.domain = store.domains.record(domid)
        self.limits = self.domain.limits
        self.home = paths.domain_home(domid)
        self.watches: dict[tuple[Names, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.closed = False
        self._next_transaction = 1
        self.domain.sessions[self] = None

    # Permission and paths.

    def allowed(self, perms: Perms) -> int:
        """What the session may do with a node of permissions `perms`: READ | WRITE | OWNER bits."""
        return ALL if self.privileged else access(perms, self.domid, self.domain.target)

    def demand_privilege(self) -> None:
        """EACCES unless privileged."""
        if not self.privileged:
            raise StoreError("EACCES", f"domain {self.domid} is not privileged")

    def resolve(self, path: bytes, *, special: bool = False) -> Names:
        """Names of `path`; a relative one starts at /local/domain/<own>. EINVAL: syntax, length, @ unless `special`."""
        names = paths.split(path)
        first = names[0]
        if first:
            if first[0] != 0x40:  # "@"
                names = self.home + names
            elif not special:
                raise StoreError("EINVAL", f"{path!r} is special and cannot be used here")
        if not self.privileged:
            limit = self.limits["path-max"]
            if limit and len(path) > limit and paths.domain_relative_length(names) > limit:
                raise StoreError("EINVAL", f"path of {len(path)} bytes; quota {limit}")
        return names

    # Watches.

    def add_watch(self, path: bytes, token: bytes, depth: int | None = None) -> Watch:
        """Set a watch; its first event is queued at once. EEXIST: same path and token. ENOSPC: quota. EINVAL."""
        names = self.resolve(path, special=True)
        if depth is not None and not self.domain.features & FEATURE_WATCHDEPTH:
            raise StoreError("EINVAL", f"domain {self.domid} does not have the watch-depth feature")
        if (names, token) in self.watches:
            raise StoreError("EEXIST", f"{path!r} is watched with token {token!r} already")
        usage = self.domain.usage
        if not self.privileged and self.limits.exceeded("watches", usage.watches + 1):
            raise StoreError("ENOSPC", f"{usage.watches} watches; quota {self.limits['watches']}")
        skip = 0 if path[:1] in (b"/", b"@") else len(paths.join(self.home)) + 1
        watch = Watch(self, names, path, token, depth, skip, self.store.next_watch())
        if not self.privileged and self.limits.exceeded("memory", usage.memory + watch.memory):
            raise StoreError("ENOSPC", f"{watch.memory} bytes for a watch; memory quota {self.limits['memory']}")
        self.watches[names, token] = watch
        self.store.index.add(watch)
        usage.watches += 1
        usage.memory += watch.memory
        self.store.emit_first(watch)
        return watch

    def remove_watch(self, path: bytes, token: bytes) -> None:
        """Remove a watch. ENOENT: no such watch. EINVAL."""
        watch = self.watches.get((self.resolve(path, special=True), token))
        if watch is None:
            raise StoreError("ENOENT", f"{path!r} is not watched with token {token!r}")
        self.drop_watch(watch)

    def drop_watch(self, watch: Watch) -> None:
        """Remove `watch`, which is registered."""
        del self.watches[watch.names, watch.token]
        self.store.index.discard(watch)
        self.domain.usage.watches -= 1
        self.domain.usage.memory -= watch.memory

    def holds(self, watch: Watch) -> bool:
        """Whether `watch` is still set."""
        return self.watches.get((watch.names, watch.token)) is watch

    def deliver(self, watch: Watch, path: bytes, request: Request | None) -> None:
        """Pass on the event at `path` of `watch`; `request` caused it, if an unprivileged client's request did."""
        raise NotImplementedError

    # Transactions.

    def find_transaction(self, ident: int) -> Transaction:
        """The open transaction `ident`. ENOENT."""
        try:
            return self.transactions[ident]
        except KeyError:
            raise StoreError("ENOENT", f"no transaction {ident}") from None

    def start_transaction(self) -> Transaction:
        """Open a transaction. ENOSPC: quota."""
        usage = self.domain.usage
        if not self.privileged and self.limits.exceeded("transactions", usage.transactions + 1):
            raise StoreError("ENOSPC", f"{usage.transactions} open transactions; quota {self.limits['transactions']}")
        while self._next_transaction in self.transactions or self._next_transaction == 0:
            self._next_transaction = (self._next_transaction + 1) & 0xFFFFFFFF
        transaction = Transaction(self, self._next_transaction)
        self._next_transaction = (self._next_transaction + 1) & 0xFFFFFFFF
        self.transactions[transaction.ident] = transaction
        usage.transactions += 1
        return transaction

    def end_transaction(self, transaction: Transaction, commit: bool) -> None:
        """Close `transaction`, whatever comes of it; commit it if asked. Errors: those of `Transaction.commit`."""
        del self.transactions[transaction.ident]
        self.domain.usage.transactions -= 1
        transaction.discharge()
        if commit:
            transaction.commit()

    # The end.

    def reset(self) -> None:
        """Drop all watches and transactions."""
        for watch in list(self.watches.values()):
            self.drop_watch(watch)
        for transaction in list(self.transactions.values()):
            self.end_transaction(transaction, commit=False)

    def restart(self) -> None:
        """Begin anew: as `reset`, and drop half-done input and output."""
        self.reset()

    def close(self) -> None:
        """End the session; harmless when repeated."""
        if not self.closed:
            self.reset()
            self.closed = True
            self.domain.sessions.pop(self, None)
