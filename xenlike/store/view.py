"""What the node operations mean: permission, creation of parents, quotas, and which events a change causes.

A `View` is a tree that a session may read and edit. `Live` is the store itself: an edit takes effect at once.
`transaction.Transaction` is the other: the same operations on a private tree. A subclass says only how a node is
found and what becomes of an edit, so that an operation behaves alike in and out of a transaction.
Rules: docs/misc/xenstore.txt. Called by `connection` (wire) and `direct` (Python). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import tree
from .errors import StoreError
from .paths import ROOT, Names, join
from .perms import OWNER, READ, WRITE, Perms, inherit
from .tree import Change, Node

if TYPE_CHECKING:
    from .server import Store
    from .session import Session


class View:
    """Node operations for one tree. Every method takes the session that asks, and names from `Session.resolve`."""

    store: Store

    # What a subclass says.

    def top(self) -> Node:
        """The tree's present top."""
        raise NotImplementedError

    def find(self, names: Names) -> Node | None:
        """The node at `names`, or None; a transaction remembers that its outcome depends on it."""
        raise NotImplementedError

    def owned_nodes(self, session: Session) -> int:
        """How many nodes the session's domain owns in this tree."""
        raise NotImplementedError

    def apply(self, session: Session, top: Node, changes: list[Change], where: Names, removed: bool) -> None:
        """Make `top`, which differs from the present top by `changes`, the tree; its event is at `where`."""
        raise NotImplementedError

    # The operations.

    def require(self, session: Session, names: Names, need: int = READ) -> Node:
        """The node at `names` if the session has all of `need` on it.

        EACCES: not permitted. ENOENT: no such node; but EACCES where the session may not `need` the nearest
        existing ancestor either, so that errors do not tell what exists.
        """
        node = self.find(names)
        if node is None:
            if not session.privileged:
                self._ancestor(session, names, need)
            raise StoreError("ENOENT", f"{join(names)!r} does not exist")
        if session.privileged or session.allowed(node.perms) & need == need:
            return node
        raise _denied(names)

    def write(self, session: Session, names: Names, value: bytes) -> None:
        """Set the value, creating the node and its missing parents. EACCES, ENOSPC."""
        node = self.find(names)
        if node is None:
            self._create(session, names, value)
            return
        if not session.privileged:
            if not session.allowed(node.perms) & WRITE:
                raise _denied(names)
            growth = len(value) - len(node.value)
            if growth > 0:
                _check_size(session, names, tree.own_size(node) + growth)
        new = Node(value, node.perms, node.children, self.store.next_generation())
        top = tree.graft(self.top(), names, new)
        self.apply(session, top, [(names, node, new)], names, False)

    def mkdir(self, session: Session, names: Names) -> None:
        """Make the node exist; nothing happens when it does. EACCES, ENOSPC."""
        node = self.find(names)
        if node is None:
            self._create(session, names, b"")
        elif not session.privileged and not session.allowed(node.perms) & WRITE:
            raise _denied(names)

    def remove(self, session: Session, names: Names) -> None:
        """Remove the node with all below it; nothing happens when only the node is missing.

        EACCES: no write permission on it. ENOENT: its parent is missing too. EINVAL: it is "/".
        """
        node = self.find(names)
        if node is None:
            if not session.privileged:
                self._ancestor(session, names, WRITE)
            if self.find(names[:-1]) is None:
                raise StoreError("ENOENT", f"neither {join(names)!r} nor its parent exists")
            return
        if not session.privileged and not session.allowed(node.perms) & WRITE:
            raise _denied(names)
        if names == ROOT:
            raise StoreError("EINVAL", "'/' cannot be removed")
        top, changes = tree.remove(self.top(), names, self.store.next_generation())
        self.apply(session, top, changes, names, True)

    def set_perms(self, session: Session, names: Names, perms: Perms) -> None:
        """Replace the permission list.

        ENOSPC: too many entries. EACCES: the session does not own the node. EPERM: an unprivileged one names
        another owner.
        """
        if not session.privileged and session.limits.exceeded("node-permissions", len(perms)):
            raise StoreError("ENOSPC", f"{len(perms)} permission entries; quota {session.limits['node-permissions']}")
        node = self.require(session, names, WRITE | OWNER)
        if not session.privileged and perms[0][0] != node.perms[0][0]:
            raise StoreError("EPERM", f"{join(names)!r} is domain {node.perms[0][0]}'s, not {perms[0][0]}'s")
        new = Node(node.value, perms, node.children, self.store.next_generation())
        top = tree.graft(self.top(), names, new)
        self.apply(session, top, [(names, node, new)], names, False)

    # Shared steps.

    def _ancestor(self, session: Session, names: Names, need: int) -> tuple[int, Node]:
        """Depth and node of the nearest existing ancestor of `names`. EACCES: the session has none of `need` there."""
        depth = len(names)
        node = None
        while node is None:
            depth -= 1
            node = self.find(names[:depth] or ROOT)  # above an unknown special there is "/", as for errors
        if session.privileged or session.allowed(node.perms) & need:
            return depth, node
        raise _denied(names)

    def _create(self, session: Session, names: Names, value: bytes) -> None:
        depth, ancestor = self._ancestor(session, names, WRITE)
        owner = None
        if not session.privileged:
            owner = session.domid
            nodes = self.owned_nodes(session) + len(names) - depth
            if session.limits.exceeded("nodes", nodes):
                raise StoreError("ENOSPC", f"{join(names)!r} would make {nodes} nodes; quota {session.limits['nodes']}")
            _check_size(session, names, len(value))
            _check_size(session, names[:depth], tree.own_size(ancestor) + len(names[depth]) + 1)
        perms = inherit(ancestor.perms, owner)
        top, changes = tree.create(self.top(), names, depth, value, perms, self.store.next_generation())
        self.apply(session, top, changes, names, False)


class Live(View):
    """The store's own tree."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def top(self) -> Node:
        return self.store.top

    def find(self, names: Names) -> Node | None:
        return tree.lookup(self.store.top, names)

    def owned_nodes(self, session: Session) -> int:
        return session.domain.usage.nodes

    def apply(self, session: Session, top: Node, changes: list[Change], where: Names, removed: bool) -> None:
        before = self.store.top
        if not session.privileged:
            check_memory(session, changes)
        self.store.install(top, changes)
        self.store.emit(where, before, top, removed)


def check_memory(session: Session, changes: list[Change]) -> None:
    """ENOSPC if `changes` would take the session's domain over its memory quota."""
    growth = 0
    for names, old, new in changes:
        if old is not None and new is not None and old.perms is new.perms:
            growth += len(new.value) - len(old.value) if new.perms[0][0] == session.domid else 0
            continue
        if new is not None and new.perms[0][0] == session.domid:
            growth += tree.memory(names, new)
        if old is not None and old.perms[0][0] == session.domid:
            growth -= tree.memory(names, old)
    if growth > 0 and session.limits.exceeded("memory", session.domain.usage.memory + growth):
        raise StoreError("ENOSPC", f"{growth} bytes more; memory quota {session.limits['memory']}")


def _check_size(session: Session, names: Names, size: int) -> None:
    if session.limits.exceeded("node-size", size):
        raise StoreError("ENOSPC", f"{join(names)!r} would have {size} bytes; quota {session.limits['node-size']}")


def _denied(names: Names) -> StoreError:
    return StoreError("EACCES", f"no permission for {join(names)!r}")
