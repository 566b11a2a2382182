"""The store: the live tree, who is connected, and the queue of events that changes leave behind.

`Store` owns every piece of xenstore state and does no I/O. Ways in: `connect` for a byte stream (ring or socket
transport), `direct` for Python code in this process. Everything runs on one thread and needs no locks; an operation
first takes effect and is answered, then `settle` delivers the events it caused. Nothing here consults a clock, a
random source or a hash order: the same requests give the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from . import paths, tree
from .connection import Connection, Request
from .direct import Direct
from .domains import Domains
from .hooks import Hooks
from .paths import Names
from .perms import PRIVATE, READ
from .quota import Usage, default_limits
from .tree import Change, Node
from .view import Live
from .watches import Watch, WatchIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .session import Session

#: Counter → meaning: what `Store.statistics` reports beside the gauges.
COUNTERS: dict[str, str] = {
    "requests": "wire requests served",
    "errors": "wire requests answered with ERROR",
    "commits": "transactions committed",
    "conflicts": "transactions refused with EAGAIN",
    "events": "watch events queued or called back",
    "events_merged": "watch events left out because the same one was still queued",
    "events_dropped": "watch events left out: too long, or the receiver's memory quota is full",
    "violations": "connections cut for breaking the protocol",
}

_FIRST_NODES = ((b"", b"tool"), (b"", b"tool", b"xenstored"))


class Statistics(NamedTuple):
    """A snapshot of `Store` counters and gauges."""

    counters: Mapping[str, int]
    nodes: int
    watches: int
    transactions: int
    connections: int


class _Event(NamedTuple):
    names: Names
    before: Node
    after: Node
    removed: bool
    request: Request | None


class Store:
    """A whole xenstore.

    hooks: what INTRODUCE, RELEASE, RESUME and CONTROL print call; see `Hooks`.
    """

    def __init__(self, hooks: Hooks | None = None) -> None:
        self.hooks = hooks or Hooks()
        self.limits = default_limits()
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.generation = 0
        self.index = WatchIndex()
        self.live = Live(self)
        self.domains = Domains(self)
        self.request: Request | None = None  #: the unprivileged wire request being served, blamed for its events
        self._events: deque[_Event | tuple[Watch, Request | None]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wakeups: dict[Connection, None] = {}
        self._settling = False
        self._watches_made = 0
        self._naming: dict[int, dict[Names, None]] = {}  # domid → nodes whose permissions name it; not dom0
        root = tree.leaf(b"", PRIVATE, 0)
        specials = {names[0]: tree.leaf(b"", PRIVATE, 0) for names in (paths.INTRODUCE_DOMAIN, paths.RELEASE_DOMAIN)}
        self.top = Node(b"", PRIVATE, {b"": root, **specials}, 0)
        for names, node in tree.walk((), self.top):
            if names:
                self._account(names, None, node)
        boot = self.direct()
        for names in _FIRST_NODES:
            boot.mkdir(paths.join(names))
        boot.close()

    # Ways in.

    def connect(
        self,
        domid: int,
        *,
        privileged: bool | None = None,
        send: Callable[[bytes], None] | None = None,
        wake: Callable[[], None] | None = None,
    ) -> Connection:
        """A new wire connection of domain `domid`.

        privileged: exempt from permissions and quotas; by default, dom0 is.
        send: takes every outgoing message at once; without it, output waits in `Connection.take_output`.
        wake: called when output arises, or input may be taken again, other than in answer to the connection's
        own `feed` or `take_output`.
        """
        return Connection(self, domid, domid == 0 if privileged is None else privileged, send=send, wake=wake)

    def direct(self, domid: int = 0, *, privileged: bool | None = None) -> Direct:
        """Python access for code in this process, by default as dom0."""
        return Direct(self, domid, domid == 0 if privileged is None else privileged)

    # Domains.

    def domain_died(self, domid: int) -> None:
        """The hypervisor destroyed `domid`: drop its connections, nodes and permissions, fire @releaseDomain."""
        self.domains.died(domid)
        self.settle()

    def domain_shutdown(self, domid: int) -> None:
        """`domid` shut down or crashed but still exists: fire @releaseDomain, once until it is resumed."""
        self.domains.shutdown(domid)
        self.settle()

    # Changes. Called by views and sessions.

    def next_generation(self) -> int:
        """A generation no node had before."""
        self.generation += 1
        return self.generation

    def next_watch(self) -> int:
        """The sequence number of a new watch."""
        self._watches_made += 1
        return self._watches_made

    def install(self, top: Node, changes: list[Change]) -> None:
        """Make `top` the live tree and account for `changes`, which are what differs."""
        self.top = top
        for names, old, new in changes:
            if old is not None and new is not None and old.perms is new.perms:
                self.domains.record(new.perms[0][0]).usage.memory += len(new.value) - len(old.value)
            else:
                self._account(names, old, new)

    def emit(self, names: Names, before: Node, after: Node, removed: bool) -> None:
        """Queue the event of a change at `names` that took the tree from `before` to `after`."""
        self._events.append(_Event(names, before, after, removed, self.request))

    def emit_special(self, names: Names) -> None:
        """Queue the special event `names`."""
        self._events.append(_Event(names, self.top, self.top, False, self.request))

    def emit_first(self, watch: Watch) -> None:
        """Queue the event that every new watch begins with."""
        self._events.append((watch, self.request))

    def call_later(self, call: Callable[[], None]) -> None:
        """Queue `call` for `settle`, behind what is queued already."""
        self._calls.append(call)

    def wake_later(self, connection: Connection) -> None:
        """Have `settle` wake `connection`."""
        self._wakeups[connection] = None

    def settle(self) -> None:
        """Deliver queued events, run callbacks, wake connections, until nothing is left.

        Does nothing when it is running already: what callbacks cause is delivered after what caused them.
        """
        if self._settling or not (self._events or self._calls or self._wakeups):
            return
        self._settling = True
        try:
            while True:
                if self._events:
                    event = self._events.popleft()
                    if type(event) is _Event:
                        self._fire(event)
                    else:
                        watch, request = event
                        if watch.session.holds(watch):
                            watch.session.deliver(watch, watch.path, request)
                elif self._calls:
                    self._calls.popleft()()
                elif self._wakeups:
                    connection = next(iter(self._wakeups))
                    del self._wakeups[connection]
                    connection.wake()
                else:
                    return
        finally:
            self._settling = False

    def tick(self) -> None:
        """Forgive clients for old events; the host calls it every ten seconds or so.

        A watch event counts as an outstanding request of the domain that caused it until its receiver takes it;
        a receiver that never does would stall that domain for good. Events that are still queued two ticks
        after they arose count no more.
        """
        for domain in self.domains.all():
            for session in list(domain.sessions):
                if isinstance(session, Connection):
                    session.forgive()
        self.settle()

    def nodes_naming(self, domid: int) -> list[Names]:
        """Where the permissions name `domid`, owner or not, in order of path. Not kept for dom0."""
        return sorted(self._naming.get(domid, ()))

    # Reports.

    def statistics(self) -> Statistics:
        """Counters and gauges, as of now."""
        domains = self.domains.all()
        return Statistics(
            counters=MappingProxyType(dict(self.counters)),
            nodes=sum(domain.usage.nodes for domain in domains),
            watches=sum(domain.usage.watches for domain in domains),
            transactions=sum(domain.usage.transactions for domain in domains),
            connections=sum(isinstance(session, Connection) for domain in domains for session in domain.sessions),
        )

    def check(self) -> list[str]:
        """Recount what the books say; returns what does not agree (nothing, unless the store has a bug)."""
        counted: dict[int, Usage] = {domain.domid: Usage() for domain in self.domains.all()}
        naming: dict[int, set[Names]] = {}
        for names, node in tree.walk((), self.top):
            if not names:
                continue
            usage = counted.setdefault(node.perms[0][0], Usage())
            usage.nodes += 1
            usage.memory += tree.memory(names, node)
            for domid, _ in node.perms:
                if domid:
                    naming.setdefault(domid, set()).add(names)
        for domain in self.domains.all():
            usage = counted[domain.domid]
            for session in domain.sessions:
                usage.watches += len(session.watches)
                usage.memory += sum(watch.memory for watch in session.watches.values())
                usage.transactions += len(session.transactions)
                usage.memory += sum(transaction.charged for transaction in session.transactions.values())
                if isinstance(session, Connection):
                    usage.memory += session.charged
        found = []
        for domid, usage in counted.items():
            domain = self.domains.get(domid)
            booked = Usage() if domain is None else domain.usage.copy()
            usage.outstanding = booked.outstanding
            if booked != usage:
                found.append(f"domain {domid}: booked {booked}, counted {usage}")
        booked_naming = {domid: set(where) for domid, where in self._naming.items()}
        if booked_naming != naming:
            found.append("the index of nodes by domain does not agree with the tree")
        return found

    # Internal.

    def _account(self, names: Names, old: Node | None, new: Node | None) -> None:
        if old is not None:
            usage = self.domains.record(old.perms[0][0]).usage
            usage.nodes -= 1
            usage.memory -= tree.memory(names, old)
            for domid, _ in old.perms:
                where = self._naming.get(domid)
                if where is not None:
                    where.pop(names, None)
                    if not where:
                        del self._naming[domid]
        if new is not None:
            usage = self.domains.record(new.perms[0][0]).usage
            usage.nodes += 1
            usage.memory += tree.memory(names, new)
            for domid, _ in new.perms:
                if domid:
                    self._naming.setdefault(domid, {})[names] = None

    def _fire(self, event: _Event) -> None:
        names, before, after, removed, request = event
        special = names[0] != b""
        watches = self.index.special_matches(names) if special else self.index.matches(names, removed)
        if not watches:
            return
        path = paths.join(names)
        for watch in watches:
            session = watch.session
            below = len(watch.names) > len(names)
            if not session.holds(watch):  # an earlier delivery closed the session
                continue
            if session.privileged or _visible(session, watch.names if below else names, before, after):
                session.deliver(watch, (paths.join(watch.names) if below else path)[watch.skip :], request)


def _visible(session: Session, names: Names, before: Node, after: Node) -> bool:
    """Whether `session` may hear of a change at `names`: it can read the node, or its parent, before or after."""
    for top in (after, before):
        for where in (names, names[:-1]):
            node = tree.lookup(top, where) if where else None
            if node is not None and session.allowed(node.perms) & READ:
                return True
    return False
