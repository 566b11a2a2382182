"""Transactions: a view of the store as it was at the start, edited privately, committed if nothing collides.

A transaction is an old top, a new top, and the names it used. At its end every used name must still have the
generation it had at the start (a missing node has none); then the changes are brought into the live tree and
their events follow, one a changed node, in order of first change. Otherwise: EAGAIN, and nothing happened. A
directory counts as changed when its set of names changes. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import tree
from .errors import StoreError
from .paths import Names
from .tree import Change, Node
from .view import View, check_memory

if TYPE_CHECKING:
    from .session import Session


class Transaction(View):
    """One open transaction of `session`."""

    def __init__(self, session: Session, ident: int) -> None:
        self.store = session.store
        self.session = session
        self.ident = ident
        self.base = session.store.top
        self.failed = False  #: an operation stopped halfway; the end can only be ENOMEM
        self._top = self.base
        self._used: dict[Names, None] = {}
        self._modified: dict[Names, None] = {}
        self._events: dict[Names, bool] = {}  # where → removed, ordered by first change
        self._nodes = 0  # growth of the session's domain in nodes
        self._memory = 0  # growth of the private tree, in bytes
        self.charged = 0  #: bytes of it that the domain's memory quota holds

    def top(self) -> Node:
        return self._top

    def find(self, names: Names) -> Node | None:
        self._use(names)
        return tree.lookup(self._top, names)

    def owned_nodes(self, session: Session) -> int:
        return session.domain.usage.nodes + self._nodes

    def apply(self, session: Session, top: Node, changes: list[Change], where: Names, removed: bool) -> None:
        domid = session.domid
        growth = 0
        nodes = 0
        for names, old, new in changes:
            self._use(names)
            if old is not None:
                growth -= tree.memory(names, old)
                nodes -= old.perms[0][0] == domid
            if new is not None:
                growth += tree.memory(names, new)
                nodes += new.perms[0][0] == domid
        self._charge(growth)
        self._nodes += nodes
        self._top = top
        for names, _, _ in changes:
            self._modified[names] = None
        self._events[where] = self._events.get(where, False) or removed

    def commit(self) -> None:
        """Bring the changes into the store. EAGAIN: a used node changed meanwhile. ENOMEM: failed. ENOSPC: quota."""
        store = self.store
        if self.failed:
            raise StoreError("ENOMEM", "an operation of the transaction failed halfway")
        before = store.top
        if before is not self.base:
            for names in self._used:
                if _generation(self.base, names) != _generation(before, names):
                    store.counters["conflicts"] += 1
                    raise StoreError("EAGAIN", f"{names[-1]!r} changed since the transaction started")
        changes = [(names, tree.lookup(self.base, names), tree.lookup(self._top, names)) for names in self._modified]
        if not self.session.privileged:
            self._check_quotas(changes)
        if before is self.base:
            after = self._top
        else:
            after = before
            for names, _, new in changes:
                if new is not None:  # a removal is in the change of its parent's children
                    after = tree.merge(after, names, new)
        store.install(after, changes)
        store.counters["commits"] += 1
        for names, removed in self._events.items():
            store.emit(names, before, after, removed)

    def discharge(self) -> None:
        """Return the memory that the open transaction was charged with; called once, when it ends in any way."""
        if not self.session.privileged:
            self.session.domain.usage.memory -= self.charged

    def _use(self, names: Names) -> None:
        if names in self._used:
            return
        session = self.session
        if not session.privileged:
            if session.limits.exceeded("transaction-nodes", len(self._used) + 1):
                self.failed = True
                raise StoreError("ENOSPC", f"quota {session.limits['transaction-nodes']} of nodes in a transaction")
            self._charge(tree.NODE_OVERHEAD + tree.NAME_OVERHEAD * len(names))
        self._used[names] = None

    def _charge(self, growth: int) -> None:
        """Charge the domain with the private tree while the transaction is open, else it could hoard outside quotas."""
        if self.session.privileged:
            return
        usage = self.session.domain.usage
        charged = max(0, self._memory + growth)
        more = charged - self.charged
        if more > 0 and self.session.limits.exceeded("memory", usage.memory + more):
            raise StoreError("ENOSPC", f"{more} bytes more; memory quota {self.session.limits['memory']}")
        self._memory += growth
        self.charged = charged
        usage.memory += more

    def _check_quotas(self, changes: list[Change]) -> None:
        session = self.session
        nodes = session.domain.usage.nodes + self._nodes
        if self._nodes > 0 and session.limits.exceeded("nodes", nodes):
            raise StoreError("ENOSPC", f"the transaction would make {nodes} nodes; quota {session.limits['nodes']}")
        check_memory(session, changes)


def _generation(top: Node, names: Names) -> int | None:
    node = tree.lookup(top, names)
    return None if node is None else node.generation
