"""Domains as xenstore knows them: introduced or not, features, quotas, target, and what is left when one dies.

Rules: docs/misc/xenstore.txt, "Domain management". Called by `connection`, `direct` and, when a domain dies or
shuts down, by the toolstack through `Store`. Pure: pages and ports are the hooks' affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import tree
from .errors import StoreError
from .paths import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Names
from .perms import without
from .quota import Limits, Usage
from .tree import Node
from .wire import FEATURES

if TYPE_CHECKING:
    from .server import Store
    from .session import Session

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0


class Domain:
    """The record of one domain; exists from the first use of its id until it dies."""

    __slots__ = ("domid", "introduced", "shut_down", "target", "features", "limits", "usage", "sessions")

    def __init__(self, domid: int, limits: Limits) -> None:
        self.domid = domid
        self.introduced = domid == 0
        self.shut_down = False
        self.target: int | None = None
        self.features = FEATURES
        self.limits = limits
        self.usage = Usage()
        self.sessions: dict[Session, None] = {}


class Domains:
    """The records of all domains of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: dict[int, Domain] = {}

    def record(self, domid: int) -> Domain:
        """The record of `domid`, made if there is none."""
        domain = self._records.get(domid)
        if domain is None:
            domain = self._records[domid] = Domain(domid, Limits(self._store.limits))
        return domain

    def get(self, domid: int) -> Domain | None:
        """The record of `domid`, or None."""
        return self._records.get(domid)

    def all(self) -> list[Domain]:
        """Every record, by domain id."""
        return [self._records[domid] for domid in sorted(self._records)]

    def is_introduced(self, domid: int) -> bool:
        """Whether the store is in communication with `domid` (DOMID_SELF: always)."""
        domain = self._records.get(domid)
        return domid in (0, DOMID_SELF) or (domain is not None and domain.introduced)

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Begin, or begin anew, to serve `domid`. EINVAL: not a domain that can be introduced, or no port."""
        if not 0 < domid < DOMID_FIRST_RESERVED:
            raise StoreError("EINVAL", f"domain {domid} cannot be introduced; real domains are 1..0x7fef")
        if not 0 < port <= 0xFFFFFFFF:
            raise StoreError("EINVAL", f"{port} is not an event-channel port")
        domain = self.record(domid)
        if domain.introduced:
            for session in list(domain.sessions):
                session.restart()
        self._store.hooks.introduce(domid, gfn, port)
        if not domain.introduced:
            domain.introduced = True
            domain.shut_down = False
            self._announce(INTRODUCE_DOMAIN, domid)

    def release(self, domid: int) -> None:
        """Stop serving `domid`, as if it had died. ENOENT: not introduced. EINVAL: dom0."""
        self.died(self._known(domid).domid)

    def resume(self, domid: int) -> None:
        """Let @releaseDomain fire again at the next shutdown of `domid`. ENOENT, EINVAL."""
        domain = self._known(domid)
        self._store.hooks.resume(domid)
        domain.shut_down = False

    def set_target(self, domid: int, target: int) -> None:
        """Give `domid` the rights of `target`. ENOENT: one of them is not introduced."""
        for known in (domid, target):
            if not self.is_introduced(known) or known == DOMID_SELF:
                raise StoreError("ENOENT", f"domain {known} is not introduced")
        self.record(domid).target = target

    def set_features(self, domid: int, features: int) -> None:
        """Choose the server features offered to `domid`. EBUSY: introduced already. EINVAL: unknown bits."""
        domain = self.record(domid)
        if domain.introduced:
            raise StoreError("EBUSY", f"domain {domid} is introduced; features are set before that")
        if features & ~FEATURES:
            raise StoreError("EINVAL", f"features {features:#x} are not all among {FEATURES:#x}")
        domain.features = features

    def set_quota(self, domid: int | None, name: str, value: int) -> None:
        """Set a quota of `domid`, or the global one that domains without their own follow. Zero: no limit."""
        if domid is not None:
            self.record(domid).limits.set(name, value)
            return
        self._store.limits.set(name, value)
        for domain in self._records.values():
            domain.limits.follow(name, value)

    def shutdown(self, domid: int) -> None:
        """The domain shut down or crashed and still exists: @releaseDomain, once until `resume`."""
        domain = self._records.get(domid)
        if domain is not None and domain.introduced and domid and not domain.shut_down:
            domain.shut_down = True
            self._announce(RELEASE_DOMAIN, domid)

    def died(self, domid: int) -> None:
        """The domain is gone: close its sessions, remove its nodes and its permissions, @releaseDomain."""
        if domid == 0:
            raise ValueError("dom0 does not die while its xenstore runs")
        store = self._store
        domain = self._records.get(domid)
        if domain is not None:
            for session in list(domain.sessions):
                session.close()
            introduced, domain.introduced = domain.introduced, False
            if introduced:
                store.hooks.release(domid)
        self._forget(domid)
        for other in self._records.values():
            if other.target == domid:
                other.target = None
        if domain is not None and not domain.sessions:
            del self._records[domid]
        self._announce(RELEASE_DOMAIN, domid)

    def _known(self, domid: int) -> Domain:
        if domid == 0:
            raise StoreError("EINVAL", "dom0 cannot be released or resumed")
        domain = self._records.get(domid)
        if domain is None or not domain.introduced:
            raise StoreError("ENOENT", f"domain {domid} is not introduced")
        return domain

    def _forget(self, domid: int) -> None:
        """Remove the nodes that `domid` owns, with what is below them, and its entries in others' permissions.

        In order of path, so parents come first and each removed subtree is one event.
        """
        store = self._store
        for names in store.nodes_naming(domid):
            before = store.top
            node = tree.lookup(before, names)
            if node is None:  # went with a parent
                continue
            if node.perms[0][0] == domid and not _is_root(names):
                top, changes = tree.remove(before, names, store.next_generation())
                store.install(top, changes)
                store.emit(names, before, top, True)
            else:
                perms = without(node.perms, domid)
                if node.perms[0][0] == domid:
                    perms = ((0, perms[0][1]), *perms[1:])
                new = Node(node.value, perms, node.children, store.next_generation())
                store.install(tree.graft(before, names, new), [(names, node, new)])

    def _announce(self, special: Names, domid: int) -> None:
        self._store.emit_special(special)
        self._store.emit_special((*special, b"%d" % domid))


def _is_root(names: Names) -> bool:
    """Whether `names` is "/" or a special node, which outlive whoever owns them."""
    return len(names) == 1
