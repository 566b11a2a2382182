"""Xenstore, as a dictionary of paths: what every request answers, and which watch events it leaves.

A node is a value, a list of permissions and a generation, kept under its absolute path; siblings stand in the
dictionary in order of creation. A transaction is a copy of the whole dictionary and a note of what it looked at.
Nothing is shared, indexed or clever: this is the protocol's text (docs/misc/xenstore.txt) in the shape of a program,
to be read beside it and run beside `xenlike.store`. Paths, values and tokens are text. Where the text is silent the
model does as Xen's xenstored does, and says so in a comment. Left out: ring and socket, and the quotas of memory and
of outstanding requests, which depend on when a client reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NO_READ, READ, WRITE = 0, 1, 2
LETTERS = {"n": NO_READ, "r": READ, "w": WRITE, "b": READ | WRITE}
DOMID_ANY = 0x7FF5

SPECIALS = ("@introduceDomain", "@releaseDomain")

QUOTAS = {
    "nodes": 1000,
    "watches": 128,
    "transactions": 10,
    "transaction-nodes": 1024,
    "node-permissions": 5,
    "node-size": 2048,
    "path-max": 2048,
}


class Refused(Exception):
    """The request fails with the error `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Node:
    """`perms` holds (domid, access); the first entry is the owner and the access of everybody not named."""

    value: str
    perms: tuple[tuple[int, int], ...]
    generation: int


Nodes = dict[str, Node]


@dataclass(eq=False)
class Watch:
    """A watch: absolute `path`, how it was `spelled`, `token`, and `depth`, None for all levels."""

    client: Client
    path: str
    spelled: str
    token: str
    depth: int | None


@dataclass(eq=False)
class Transaction:
    """`base` is the store at the start, `nodes` the private copy, `used` every path that mattered."""

    base: Nodes
    nodes: Nodes
    used: set[str] = field(default_factory=set)
    modified: dict[str, None] = field(default_factory=dict)
    events: dict[str, bool] = field(default_factory=dict)  # path → was it a removal?
    failed: bool = False


@dataclass(eq=False)
class Client:
    """A connection. `waiting` are events not taken yet, as (path, token)."""

    domid: int
    privileged: bool
    transactions: dict[int, Transaction] = field(default_factory=dict)
    next_transaction: int = 1
    waiting: list[tuple[str, str]] = field(default_factory=list)
    closed: bool = False


def parent(path: str) -> str:
    """The path one level up. Above an unknown special, as in Xen, is "/"; above "/" as well."""
    return path.rpartition("/")[0] or "/"


def under(path: str, top: str) -> bool:
    """Whether `path` is `top` or below it."""
    return path == top or path.startswith(top if top.endswith("/") else top + "/")


def level(path: str) -> int:
    """How many names lead from "/" to `path`."""
    return 0 if path == "/" else path.count("/")


class StoreModel:
    """The whole store. Requests are methods whose first argument is the client, and raise `Refused`."""

    def __init__(self) -> None:
        private = ((0, NO_READ),)
        self.nodes: Nodes = {path: Node("", private, 0) for path in ("/", *SPECIALS, "/tool", "/tool/xenstored")}
        self.generation = 0
        self.clients: list[Client] = []
        self.watches: list[Watch] = []  # in order of registration
        self.introduced: set[int] = set()
        self.targets: dict[int, int] = {}
        self.quotas = dict(QUOTAS)

    # Clients.

    def connect(self, domid: int, privileged: bool | None = None) -> Client:
        client = Client(domid, domid == 0 if privileged is None else privileged)
        self.clients.append(client)
        return client

    def close(self, client: Client) -> None:
        self.reset_watches(client)
        client.waiting.clear()
        client.closed = True
        self.clients.remove(client)

    def take_events(self, client: Client) -> list[tuple[str, str]]:
        events, client.waiting = client.waiting, []
        return events

    # Nodes.

    def read(self, client: Client, path: str, tx: int = 0) -> str:
        return self._require(client, self._path(client, path, tx), tx, READ).value

    def directory(self, client: Client, path: str, tx: int = 0) -> list[str]:
        path = self._path(client, path, tx)
        self._require(client, path, tx, READ)
        return self._children(self._tree(client, tx), path)

    def get_perms(self, client: Client, path: str, tx: int = 0) -> tuple[tuple[int, int], ...]:
        return self._require(client, self._path(client, path, tx, special=True), tx, READ).perms

    def write(self, client: Client, path: str, value: str, tx: int = 0) -> None:
        path = self._path(client, path, tx)
        node = self._look(client, path, tx)
        if node is None:
            self._create(client, path, value, tx)
            return
        self._allow(client, node, WRITE)
        if not client.privileged and len(value) > len(node.value):
            size = len(value) + sum(len(name) + 1 for name in self._children(self._tree(client, tx), path))
            self._quota("node-size", size)
        self._commit(client, tx, {path: (value, node.perms)}, path)

    def mkdir(self, client: Client, path: str, tx: int = 0) -> None:
        path = self._path(client, path, tx)
        node = self._look(client, path, tx)
        if node is None:
            self._create(client, path, "", tx)
        else:
            self._allow(client, node, WRITE)

    def rm(self, client: Client, path: str, tx: int = 0) -> None:
        path = self._path(client, path, tx)
        node = self._look(client, path, tx)
        if node is None:
            if not client.privileged:
                self._nearest(client, path, tx, WRITE)
            if self._look(client, parent(path), tx) is None:
                raise Refused("ENOENT")
            return
        self._allow(client, node, WRITE)
        if path == "/":
            raise Refused("EINVAL")
        self._commit(client, tx, self._removal(self._tree(client, tx), path), path, removed=True)

    def set_perms(self, client: Client, path: str, perms: list[tuple[int, int]], tx: int = 0) -> None:
        path = self._path(client, path, tx, special=True)
        if not client.privileged:
            self._quota("node-permissions", len(perms))
        node = self._require(client, path, tx, READ | WRITE, owner=True)
        if not client.privileged and perms[0][0] != node.perms[0][0]:
            raise Refused("EPERM")
        self._commit(client, tx, {path: (node.value, tuple(perms))}, path)

    # Watches.

    def watch(self, client: Client, path: str, token: str, depth: int | None = None) -> None:
        absolute = self._path(client, path, special=True)
        mine = [watch for watch in self.watches if watch.client is client]
        if any((watch.path, watch.token) == (absolute, token) for watch in mine):
            raise Refused("EEXIST")
        if not client.privileged:
            self._quota("watches", len([watch for watch in self.watches if watch.client.domid == client.domid]) + 1)
        self.watches.append(Watch(client, absolute, path, token, depth))
        self._send(self.watches[-1], absolute)

    def unwatch(self, client: Client, path: str, token: str) -> None:
        absolute = self._path(client, path, special=True)
        for watch in self.watches:
            if (watch.client, watch.path, watch.token) == (client, absolute, token):
                self.watches.remove(watch)
                return
        raise Refused("ENOENT")

    def reset_watches(self, client: Client) -> None:
        self.watches = [watch for watch in self.watches if watch.client is not client]
        client.transactions.clear()

    # Transactions.

    def transaction_start(self, client: Client, tx: int = 0) -> int:
        self._tree(client, tx)
        if tx:
            raise Refused("EBUSY")
        if not client.privileged:
            self._quota("transactions", 1 + sum(len(c.transactions) for c in self.clients if c.domid == client.domid))
        ident = client.next_transaction
        client.next_transaction += 1
        client.transactions[ident] = Transaction(dict(self.nodes), dict(self.nodes))
        return ident

    def transaction_end(self, client: Client, commit: bool, tx: int) -> None:
        if tx not in client.transactions:
            raise Refused("ENOENT")
        transaction = client.transactions.pop(tx)
        if not commit:
            return
        if transaction.failed:
            raise Refused("ENOMEM")
        for path in transaction.used:
            then, now = transaction.base.get(path), self.nodes.get(path)
            if (then and then.generation) != (now and now.generation):
                raise Refused("EAGAIN")
        if not client.privileged:
            growth = self._owned(transaction.nodes, client) - self._owned(transaction.base, client)
            if growth > 0:
                self._quota("nodes", self._owned(self.nodes, client) + growth)
        before, after = self.nodes, dict(self.nodes)
        for path in transaction.modified:
            node = transaction.nodes.get(path)
            if node is None:
                after.pop(path, None)
            else:
                after[path] = node
        self.nodes = self._in_order(after, transaction)
        for path, removed in transaction.events.items():
            self._fire(path, before, after, removed)

    # Domains.

    def introduce(self, client: Client, domid: int) -> None:
        self._privileged(client)
        if domid not in self.introduced:
            self.introduced.add(domid)
            self._announce("@introduceDomain", domid)
        else:
            for other in [other for other in self.clients if other.domid == domid]:
                self.reset_watches(other)
                other.waiting.clear()

    def release(self, client: Client, domid: int) -> None:
        self._privileged(client)
        if domid == 0:
            raise Refused("EINVAL")
        if domid not in self.introduced:
            raise Refused("ENOENT")
        self.domain_died(domid)

    def set_target(self, client: Client, domid: int, target: int) -> None:
        self._privileged(client)
        for known in (domid, target):
            if known and known not in self.introduced:
                raise Refused("ENOENT")
        self.targets[domid] = target

    def is_domain_introduced(self, client: Client, domid: int) -> bool:
        return domid == 0 or domid in self.introduced

    def domain_died(self, domid: int) -> None:
        for client in [client for client in self.clients if client.domid == domid]:
            self.close(client)
        self.introduced.discard(domid)
        self.targets = {who: whom for who, whom in self.targets.items() if domid not in (who, whom)}
        for path in sorted(self.nodes, key=lambda path: path.split("/")):
            node = self.nodes.get(path)
            if node is None:
                continue
            if node.perms[0][0] == domid and path != "/" and path not in SPECIALS:
                self._apply(self._removal(self.nodes, path), path, removed=True)
                continue
            owner = 0 if node.perms[0][0] == domid else node.perms[0][0]
            perms = ((owner, node.perms[0][1]), *(entry for entry in node.perms[1:] if entry[0] != domid))
            if perms != node.perms:
                self.generation += 1
                self.nodes = {**self.nodes, path: Node(node.value, perms, self.generation)}
        self._announce("@releaseDomain", domid)

    # Paths.

    def _path(self, client: Client, path: str, tx: int = 0, *, special: bool = False) -> str:
        self._tree(client, tx)  # an unknown transaction is refused before anything else
        absolute = path.startswith("/")
        if not re.fullmatch(r"/|/?[A-Za-z0-9_@-]+(/[A-Za-z0-9_@-]+)*", path):
            raise Refused("EINVAL")
        if len(path) > (3072 if absolute else 2048):
            raise Refused("EINVAL")
        if path.startswith("@") and not special:
            raise Refused("EINVAL")
        if not absolute and not path.startswith("@"):
            path = f"/local/domain/{client.domid}/{path}"
        if not client.privileged and len(re.sub(r"^/local/domain/\d+/", "", path)) > self.quotas["path-max"]:
            raise Refused("EINVAL")
        return path

    # Permission.

    def _access(self, client: Client, node: Node) -> tuple[int, bool]:
        """What the client may do with the node, and whether it counts as its owner."""
        acting = {client.domid, self.targets.get(client.domid, client.domid)}
        if client.privileged or node.perms[0][0] in acting:
            return READ | WRITE, True
        for domid, access in node.perms[1:]:
            if domid in acting or domid == DOMID_ANY:
                return access, False
        return node.perms[0][1], False

    def _allow(self, client: Client, node: Node, need: int, *, owner: bool = False) -> None:
        access, owns = self._access(client, node)
        if access & need != need or (owner and not owns):
            raise Refused("EACCES")

    def _privileged(self, client: Client) -> None:
        if not client.privileged:
            raise Refused("EACCES")

    # Looking, in and out of transactions.

    def _tree(self, client: Client, tx: int) -> Nodes:
        if not tx:
            return self.nodes
        if tx not in client.transactions:
            raise Refused("ENOENT")
        return client.transactions[tx].nodes

    def _use(self, client: Client, path: str, tx: int) -> None:
        if not tx:
            return
        transaction = client.transactions[tx]
        if path not in transaction.used:
            if not client.privileged and len(transaction.used) >= self.quotas["transaction-nodes"]:
                transaction.failed = True
                raise Refused("ENOSPC")
            transaction.used.add(path)

    def _look(self, client: Client, path: str, tx: int) -> Node | None:
        nodes = self._tree(client, tx)
        self._use(client, path, tx)
        return nodes.get(path)

    def _nearest(self, client: Client, path: str, tx: int, need: int) -> str:
        """The nearest existing ancestor. EACCES if the client has nothing of `need` there."""
        while True:
            path = parent(path)
            node = self._look(client, path, tx)
            if node is not None:
                if not self._access(client, node)[0] & need:
                    raise Refused("EACCES")
                return path

    def _require(self, client: Client, path: str, tx: int, need: int, *, owner: bool = False) -> Node:
        node = self._look(client, path, tx)
        if node is None:
            if not client.privileged:
                self._nearest(client, path, tx, WRITE if owner else need)
            raise Refused("ENOENT")
        self._allow(client, node, need, owner=owner)
        return node

    def _children(self, nodes: Nodes, path: str) -> list[str]:
        return [below.rpartition("/")[2] for below in nodes if below not in ("/", *SPECIALS) and parent(below) == path]

    # Changing. A change maps paths to their new (value, perms), or to None.

    def _create(self, client: Client, path: str, value: str, tx: int) -> None:
        top = self._nearest(client, path, tx, WRITE)
        nodes = self._tree(client, tx)
        missing = [path]
        while parent(missing[0]) != top:
            missing.insert(0, parent(missing[0]))
        perms = nodes[top].perms
        if not client.privileged:
            if tx:
                base = client.transactions[tx].base
                owned = self._owned(self.nodes, client) + self._owned(nodes, client) - self._owned(base, client)
            else:
                owned = self._owned(nodes, client)
            self._quota("nodes", owned + len(missing))
            self._quota("node-size", len(value))
            names = [*self._children(nodes, top), missing[0].rpartition("/")[2]]
            self._quota("node-size", len(nodes[top].value) + sum(len(name) + 1 for name in names))
            perms = ((client.domid, perms[0][1]), *perms[1:])
        changes = {top: (nodes[top].value, nodes[top].perms)}
        changes.update({made: (value if made == path else "", perms) for made in missing})
        self._commit(client, tx, changes, path)

    def _removal(self, nodes: Nodes, path: str) -> dict[str, tuple | None]:
        changes: dict[str, tuple | None] = {}
        pending = [path]
        while pending:
            gone = pending.pop(0)
            changes[gone] = None
            pending = [f"{gone}/{name}" for name in self._children(nodes, gone)] + pending
        top = parent(path)
        changes[top] = (nodes[top].value, nodes[top].perms)
        return changes

    def _commit(self, client: Client, tx: int, changes: dict, path: str, *, removed: bool = False) -> None:
        """Make a checked change, live or in the transaction."""
        if not tx:
            self._apply(changes, path, removed=removed)
            return
        for changed in changes:
            self._use(client, changed, tx)
        transaction = client.transactions[tx]
        transaction.nodes = self._changed(transaction.nodes, changes)
        # As Xen's: only the node that the request named has an event, and that as if it happened first where it did.
        transaction.modified.update(dict.fromkeys(changes))
        transaction.events[path] = transaction.events.get(path, False) or removed

    def _apply(self, changes: dict, path: str, *, removed: bool = False) -> None:
        before = self.nodes
        self.nodes = self._changed(before, changes)
        self._fire(path, before, self.nodes, removed)

    def _changed(self, nodes: Nodes, changes: dict) -> Nodes:
        self.generation += 1
        nodes = dict(nodes)
        for path, new in changes.items():
            if new is None:
                del nodes[path]
            else:
                nodes[path] = Node(*new, self.generation)
        return nodes

    def _in_order(self, nodes: Nodes, transaction: Transaction) -> Nodes:
        """`nodes`, with the children of each directory that the transaction changed in the order that it left.

        Nobody else changed those directories, or it would be a conflict.
        """
        ordered: Nodes = {}
        pending = ["/", *SPECIALS]
        while pending:
            path = pending.pop(0)
            ordered[path] = nodes[path]
            source = transaction.nodes if path in transaction.modified else nodes
            pending += [path.rstrip("/") + "/" + name for name in self._children(source, path)]
        return ordered

    def _owned(self, nodes: Nodes, client: Client) -> int:
        return sum(node.perms[0][0] == client.domid for node in nodes.values())

    def _quota(self, name: str, amount: int) -> None:
        if amount > self.quotas[name]:
            raise Refused("ENOSPC")

    # Events.

    def _fire(self, path: str, before: Nodes, after: Nodes, removed: bool) -> None:
        """A change at `path`: watches on it and above hear of `path`; if it was removed, those below of themselves."""
        for watch in list(self.watches):
            if path.startswith("@") != watch.path.startswith("@"):
                continue
            if path.startswith("@"):  # the permissions of a special were set
                told = path if watch.path == path and watch.depth is None else None
            elif under(path, watch.path):
                told = path if watch.depth is None or level(path) - level(watch.path) <= watch.depth else None
            else:
                told = watch.path if removed and under(watch.path, path) else None
            if told is not None and self._may_know(watch.client, told, before, after):
                self._send(watch, told)

    def _may_know(self, client: Client, path: str, before: Nodes, after: Nodes) -> bool:
        """The node, or its parent, must be readable; before the change will do. Specials have no parent in this."""
        if client.privileged:
            return True
        looked_at = (path,) if path in ("/", *SPECIALS) else (path, parent(path))
        candidates = [nodes.get(where) for nodes in (before, after) for where in looked_at]
        return any(node is not None and self._access(client, node)[0] & READ for node in candidates)

    def _announce(self, special: str, domid: int) -> None:
        """A domain came or went: plain watches hear just that, those with a depth or for the domain hear which."""
        numbered = f"{special}/{domid}"
        plain = [watch for watch in self.watches if watch.path == special and watch.depth is None]
        which = [watch for watch in self.watches if watch.path == numbered or (watch.path == special and watch.depth)]
        for told, watches in ((special, plain), (numbered, which)):
            for watch in watches:
                if self._may_know(watch.client, special, self.nodes, self.nodes):
                    self._send(watch, told)

    def _send(self, watch: Watch, path: str) -> None:
        home = f"/local/domain/{watch.client.domid}/"
        if watch.spelled[0] not in "/@":
            path = path.removeprefix(home)
        event = (path, watch.token)
        # An event that waits already says it all; special events are counted, so each is sent.
        if event not in watch.client.waiting or path.startswith("@"):
            watch.client.waiting.append(event)
