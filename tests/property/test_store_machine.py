"""The store against its model: any requests of several clients, any interleaving, same replies, same events, same tree.

If this fails, `xenlike.store` and the protocol's text (`xenlike.testing.models.store`) disagree about some history of
reads, writes, permissions, transactions, watches, deaths and quotas; Hypothesis prints the shortest it found.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from xenlike.store import Store, paths, tree, wire
from xenlike.store.wire import Type
from xenlike.testing.models.store import LETTERS, Refused, StoreModel

#: Small, so that histories run into them.
QUOTAS = {"nodes": 6, "watches": 3, "transactions": 2, "transaction-nodes": 9, "node-permissions": 3, "node-size": 12,
          "path-max": 15}

#: Who is there: (domain, privileged). Two of them twice, to see which state is the connection's, which the domain's.
CAST = [(0, True), (1, False), (0, True), (1, False), (2, False)]

names = st.sampled_from(["a", "a", "b"])
relative = st.lists(names, min_size=1, max_size=3).map("/".join)
own_root = st.lists(names, min_size=1, max_size=2).map(lambda parts: "/" + "/".join(parts))
homes = relative.map("/local/domain/1/".__add__)
stems = st.sampled_from(["/", "/local/domain", "/local/domain/1", "/local/domain/2"])
malformed = st.sampled_from(["", "//", "/a/", "a//b", "/a b", "@a", "/longer-than-path-max"])
spelled = st.one_of(own_root, own_root, relative, homes, stems, malformed)
specials = st.sampled_from(["@introduceDomain", "@releaseDomain", "@releaseDomain/1", "@introduceDomain/2", "@other"])
#: A number stands for one of the nodes that exist by then.
existing = st.integers(0, 20)
node_paths = st.one_of(existing, existing, spelled)
watch_paths = st.one_of(existing, existing, spelled, spelled, specials)
values = st.sampled_from(["", "v", "w", "twelve-bytes", "more-than-twelve"])
tokens = st.sampled_from(["s", "t"])
depths = st.one_of(st.none(), st.none(), st.integers(0, 3))
entries = st.tuples(st.sampled_from([0, 1, 2, 0x7FF5]), st.sampled_from([0, 1, 2, 3]))
permissions = st.lists(entries, min_size=1, max_size=4)
clients = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3, 4])
#: Which of its open transactions a client uses: none, the oldest, the next, or one that does not exist.
transactions = st.sampled_from([0] * 6 + [None] * 4 + [1, "bogus"])
domids = st.sampled_from([1, 2])
kinds = st.sampled_from([Type.READ, Type.WRITE, Type.MKDIR, Type.RM])
happenings = st.sampled_from(["introduce", "ask", "target", "release", "die"])

LETTER = {access: letter for letter, access in LETTERS.items()}


def entry_text(perms) -> list[str]:
    return [f"{LETTER[access]}{domid}" for domid, access in perms]


class Side:
    """A client on both sides."""

    def __init__(self, store: Store, model: StoreModel, domid: int, privileged: bool) -> None:
        self.conn = store.connect(domid, privileged=privileged)
        self.model = model.connect(domid, privileged)
        self.parser = wire.Parser()
        self.req_id = 0

    def take(self) -> tuple[list[wire.Message], list[tuple[str, str]]]:
        """What waits on the wire: replies, and events."""
        self.parser.feed(self.conn.take_output(1 << 24))
        replies, events = [], []
        while (message := self.parser.next()) is not None:
            if message.type == Type.WATCH_EVENT:
                path, token, _ = message.payload.decode().split("\0")
                events.append((path, token))
            else:
                replies.append(message)
        return replies, events


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.store = Store()
        self.model = StoreModel()
        for name, value in {**QUOTAS, "outstanding": 0, "memory": 0}.items():
            self.store.domains.set_quota(None, name, value)
        self.model.quotas = dict(QUOTAS)
        self.sides = [Side(self.store, self.model, domid, privileged) for domid, privileged in CAST]
        for domid in (1, 2):
            home = f"/local/domain/{domid}"
            self.request(0, Type.MKDIR, lambda c: self.model.mkdir(c, home), home)
            self.give(home, [(domid, 0)])
        self.request(0, Type.WRITE, lambda c: self.model.write(c, "/a/a", "v"), "/a/a", raw="v")
        self.give("/a", [(0, LETTERS["b"])])
        self.give("/a/a", [(0, LETTERS["r"])])

    def give(self, path: str, perms) -> None:
        self.request(0, Type.SET_PERMS, lambda c: self.model.set_perms(c, path, perms), path, *entry_text(perms))

    # One request on both sides.

    def request(self, who: int, kind: Type, ask, *arguments: str, raw: str | None = None, tx: int = 0) -> None:
        """`ask(model client)` answers what the reply to the request must be: None for OK, text, or `Refused`."""
        side = self.sides[who]
        try:
            expected = ask(side.model)
            expected = "OK\0" if expected is None else expected
            expected_type = kind
        except Refused as refused:
            expected, expected_type = refused.name + "\0", Type.ERROR
        side.req_id += 1
        payload = "".join(argument + "\0" for argument in arguments) + (raw or "")
        side.conn.feed(wire.pack(kind, side.req_id, tx, payload.encode()))
        replies, events = side.take()
        assert replies == [(expected_type, side.req_id, tx, expected.encode())]
        assert events == self.model.take_events(side.model)

    def tx(self, who: int, choice) -> int:
        open_ = list(self.sides[who].model.transactions)
        if choice == "bogus":
            return 777
        return open_[choice] if choice is not None and choice < len(open_) else 0

    def path(self, path: str | int) -> str:
        if isinstance(path, int):
            nodes = [node for node in self.model.nodes if node.startswith("/")]
            return nodes[path % len(nodes)]
        return path

    # Nodes.

    @rule(who=clients, path=watch_paths, choice=transactions, what=st.sampled_from(["value", "children", "perms"]))
    def look(self, who, path, choice, what):
        path, tx = self.path(path), self.tx(who, choice)
        if what == "value":
            self.request(who, Type.READ, lambda c: self.model.read(c, path, tx), path, tx=tx)
        elif what == "children":
            listing = lambda c: "".join(name + "\0" for name in self.model.directory(c, path, tx))
            self.request(who, Type.DIRECTORY, listing, path, tx=tx)
        else:
            answer = lambda c: "".join(entry + "\0" for entry in entry_text(self.model.get_perms(c, path, tx)))
            self.request(who, Type.GET_PERMS, answer, path, tx=tx)

    @rule(who=clients, path=node_paths, value=values, choice=transactions)
    def write(self, who, path, value, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.WRITE, lambda c: self.model.write(c, path, value, tx), path, raw=value, tx=tx)

    @rule(who=clients, path=node_paths, choice=transactions)
    def mkdir(self, who, path, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.MKDIR, lambda c: self.model.mkdir(c, path, tx), path, tx=tx)

    @rule(who=clients, path=node_paths, choice=transactions)
    def rm(self, who, path, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.RM, lambda c: self.model.rm(c, path, tx), path, tx=tx)

    @rule(who=clients, path=watch_paths, perms=permissions, choice=transactions)
    def set_perms(self, who, path, perms, choice):
        path, tx = self.path(path), self.tx(who, choice)
        ask = lambda c: self.model.set_perms(c, path, perms, tx)
        self.request(who, Type.SET_PERMS, ask, path, *entry_text(perms), tx=tx)

    # Transactions.

    @rule(who=clients, choice=st.sampled_from([None, None, None, 0, "bogus"]))
    def transaction_start(self, who, choice):
        tx = self.tx(who, choice)
        ask = lambda c: f"{self.model.transaction_start(c, tx)}\0"
        self.request(who, Type.TRANSACTION_START, ask, "", tx=tx)

    @rule(who=clients, choice=transactions, commit=st.sampled_from([True, True, True, False]))
    def transaction_end(self, who, choice, commit):
        tx = self.tx(who, choice)
        ask = lambda c: self.model.transaction_end(c, commit, tx)
        self.request(who, Type.TRANSACTION_END, ask, "T" if commit else "F", tx=tx)

    @rule(
        who=clients,
        inside=st.lists(st.tuples(kinds, existing), min_size=1, max_size=3),
        outside=st.lists(st.tuples(kinds, existing), min_size=1, max_size=2),
    )
    def race(self, who, inside, outside):
        """A whole transaction with somebody else's requests in its middle: the history that conflicts are made of."""
        if len(self.sides[who].model.transactions) >= QUOTAS["transactions"]:
            return
        self.transaction_start(who, None)
        tx = list(self.sides[who].model.transactions)[-1]
        for kind, path in inside:
            self.simple(who, kind, self.path(path), tx)
        for kind, path in outside:
            self.simple(2 if who == 0 else 0, kind, self.path(path), 0)
        self.request(who, Type.TRANSACTION_END, lambda c: self.model.transaction_end(c, True, tx), "T", tx=tx)

    def simple(self, who: int, kind: Type, path: str, tx: int) -> None:
        model = self.model
        if kind == Type.MKDIR:
            path = path.rstrip("/") + "/n"
        ask = {
            Type.READ: lambda c: model.read(c, path, tx),
            Type.WRITE: lambda c: model.write(c, path, "", tx),
            Type.MKDIR: lambda c: model.mkdir(c, path, tx),
            Type.RM: lambda c: model.rm(c, path, tx),
        }[kind]
        self.request(who, kind, ask, path, tx=tx)

    # Watches.

    @rule(who=clients, path=watch_paths, token=tokens, depth=depths)
    def watch(self, who, path, token, depth):
        path = self.path(path)
        arguments = [path, token] if depth is None else [path, token, str(depth)]
        self.request(who, Type.WATCH, lambda c: self.model.watch(c, path, token, depth), *arguments)

    @rule(who=clients, which=st.integers(0, 3), path=spelled, token=tokens, all_=st.sampled_from([False, False, True]))
    def unwatch(self, who, which, path, token, all_):
        if all_:
            self.request(who, Type.RESET_WATCHES, lambda c: self.model.reset_watches(c), "")
            return
        mine = [watch for watch in self.model.watches if watch.client is self.sides[who].model]
        if which < len(mine):
            path, token = mine[which].spelled, mine[which].token
        self.request(who, Type.UNWATCH, lambda c: self.model.unwatch(c, path, token), path, token)

    @rule(who=clients)
    def take_events(self, who):
        """The others' events wait, and merge, until their receiver looks."""
        side = self.sides[who]
        assert side.take() == ([], self.model.take_events(side.model))

    # Domains.

    @rule(who=clients, domid=domids, whose=domids, what=happenings)
    def domain(self, who, domid, whose, what):
        model = self.model
        if what == "introduce":
            self.request(who, Type.INTRODUCE, lambda c: model.introduce(c, domid), str(domid), "1", "1")
        elif what == "ask":
            answer = lambda c: "T\0" if model.is_domain_introduced(c, domid) else "F\0"
            self.request(who, Type.IS_DOMAIN_INTRODUCED, answer, str(domid))
        elif what == "target":
            self.request(who, Type.SET_TARGET, lambda c: model.set_target(c, domid, whose), str(domid), str(whose))
        elif what == "release":
            self.request(who, Type.RELEASE, lambda c: model.release(c, domid), str(domid))
        else:
            self.store.domain_died(domid)
            model.domain_died(domid)
        for who, (domid, privileged) in enumerate(CAST):  # the number of a dead domain is used again
            side = self.sides[who]
            assert side.conn.closed == side.model.closed
            if side.model.closed:
                self.sides[who] = Side(self.store, model, domid, privileged)

    # The whole.

    @invariant()
    def same_tree(self):
        if not hasattr(self, "store"):
            return
        ours = {}
        for where, node in tree.walk((), self.store.top):
            if where:
                ours[paths.join(where).decode()] = (node.value.decode(), node.perms)
        assert ours == {path: (node.value, node.perms) for path, node in self.model.nodes.items()}

    @invariant()
    def books_agree(self):
        if hasattr(self, "store"):
            assert self.store.check() == []


StoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestStoreMachine = StoreMachine.TestCase
