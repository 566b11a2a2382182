"""The store against its model: any requests of several clients, any interleaving; same replies, events, and tree.

If this fails, `xenlike.store` and the protocol's text (`xenlike.testing.models.store`) disagree about some history of
reads, writes, permissions, transactions, watches, deaths and quotas. The same moves are driven in two ways: Hypothesis
looks for short histories and shrinks what it finds; long random walks from fixed seeds get to where short ones do not.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from xenlike.store import Store, paths, tree, wire
from xenlike.store.wire import Type
from xenlike.testing.models.store import LETTERS, Refused, StoreModel

#: Small, so that histories run into them.
QUOTAS = {"nodes": 6, "watches": 3, "transactions": 2, "transaction-nodes": 6, "node-permissions": 3, "node-size": 12,
          "path-max": 15}

#: Who is there: (domain, privileged). Two of them twice, to see which state is the connection's, which the domain's.
CAST = [(0, True), (1, False), (0, True), (1, False), (2, False)]

# What moves choose from. A number as a path stands for one of the nodes that exist by then.

WHO = [0, 0, 0, 1, 1, 1, 2, 3, 4]
SPELLED = ["/", "/a", "/a/a", "/a/b", "/a/a/b", "/b", "/b/a", "a", "b", "a/a", "a/b", "a/b/a", "/local/domain",
           "/local/domain/1", "/local/domain/2", "/local/domain/1/a", "/local/domain/1/a/b", "/local/domain/2/a"]
MALFORMED = ["", "//", "/a/", "a//b", "/a b", "@a", "/longer-than-path-max"]
SPECIALS = ["@introduceDomain", "@releaseDomain", "@releaseDomain/1", "@introduceDomain/2", "@other"]
EXISTING = list(range(14))
NODES = [*EXISTING * 2, *SPELLED, *SPELLED, *MALFORMED]
WATCHED = [*EXISTING, *SPELLED, *SPECIALS, "", "a//b"]
TOKENS = ["s", "t"]
DEPTHS = [None, None, 0, 1, 2]
VALUES = ["", "v", "w", "twelve-bytes", "more-than-twelve"]
ENTRIES = list(product([0, 1, 2, 0x7FF5], [0, 1, 2, 3]))
PERMS = [[first] for first in ENTRIES[:12]] + [[first, second] for first in ENTRIES[:12] for second in ENTRIES[::3]] + [
    [(1, 0), (2, 1), (2, 3)], [(0, 3), (1, 0), (2, 1), (2, 1)]]
OPEN = [0] * 6 + [None] * 4 + [1, "bogus"]  # which of its open transactions a client uses
KINDS = [Type.READ, Type.WRITE, Type.MKDIR, Type.RM]
DOMIDS = [1, 2]
HAPPENINGS = ["introduce", "introduce", "ask", "target", "target", "release", "die"]

#: Every move: (method's name, how often walks make it, argument → what it is chosen from).
MOVES: list[tuple[str, int, dict[str, list]]] = []


def move(weight: int, **pools: list):
    """Makes a method a rule for Hypothesis and a move for walks."""

    def decorate(method):
        MOVES.append((method.__name__, weight, pools))
        return rule(**{name: st.sampled_from(pool) for name, pool in pools.items()})(method)

    return decorate


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
    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.model = StoreModel()
        self.outcomes: Counter[tuple[int, str, str]] = Counter()  # (domain, operation, error or "OK")
        for name, value in {**QUOTAS, "outstanding": 0, "memory": 0}.items():
            self.store.domains.set_quota(None, name, value)
        self.model.quotas = dict(QUOTAS)
        self.sides = [Side(self.store, self.model, domid, privileged) for domid, privileged in CAST]

    @initialize()
    def furnish(self) -> None:
        """Homes for both domains, and a place where they meet."""
        for domid in DOMIDS:
            home = f"/local/domain/{domid}"
            self.request(0, Type.MKDIR, lambda c: self.model.mkdir(c, home), home)
            self.set_perms(0, home, [(domid, 0)], None)
        self.write(0, "/a/a", "v", None)
        self.set_perms(0, "/a", [(0, LETTERS["b"])], None)
        self.set_perms(0, "/a/a", [(0, LETTERS["r"])], None)

    # One request on both sides.

    def request(self, who: int, kind: Type, ask, *arguments: str, raw: str | None = None, tx: int = 0) -> None:
        """`ask(model client)` answers what the reply to the request must be: None for OK, text, or `Refused`."""
        side = self.sides[who]
        try:
            expected = ask(side.model)
            expected = "OK\0" if expected is None else expected
            expected_type, outcome = kind, "OK"
        except Refused as refused:
            expected, expected_type, outcome = refused.name + "\0", Type.ERROR, refused.name
        side.req_id += 1
        payload = "".join(argument + "\0" for argument in arguments) + (raw or "")
        side.conn.feed(wire.pack(kind, side.req_id, tx, payload.encode()))
        replies, events = side.take()
        assert replies == [(expected_type, side.req_id, tx, expected.encode())]
        assert events == self.model.take_events(side.model)
        self.outcomes[CAST[who][0], kind.name, outcome] += 1

    def tx(self, who: int, choice) -> int:
        open_ = list(self.sides[who].model.transactions)
        if choice == "bogus":
            return 777
        return open_[choice] if choice is not None and choice < len(open_) else 0

    def path(self, path: str | int) -> str:
        if isinstance(path, int):
            nodes = [node for node in self.model.nodes if node.startswith("/")]
            return nodes[-1 - path % len(nodes)]
        return path

    # Nodes.

    @move(8, who=WHO, path=WATCHED, choice=OPEN, what=["value", "children", "perms"])
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

    @move(8, who=WHO, path=NODES, value=VALUES, choice=OPEN)
    def write(self, who, path, value, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.WRITE, lambda c: self.model.write(c, path, value, tx), path, raw=value, tx=tx)

    @move(6, who=WHO, path=NODES, choice=OPEN)
    def mkdir(self, who, path, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.MKDIR, lambda c: self.model.mkdir(c, path, tx), path, tx=tx)

    @move(3, who=WHO, path=NODES, choice=OPEN)
    def rm(self, who, path, choice):
        path, tx = self.path(path), self.tx(who, choice)
        self.request(who, Type.RM, lambda c: self.model.rm(c, path, tx), path, tx=tx)

    @move(6, who=WHO, path=WATCHED, perms=PERMS, choice=OPEN)
    def set_perms(self, who, path, perms, choice):
        path, tx = self.path(path), self.tx(who, choice)
        ask = lambda c: self.model.set_perms(c, path, perms, tx)
        self.request(who, Type.SET_PERMS, ask, path, *entry_text(perms), tx=tx)

    # Transactions.

    @move(3, who=WHO, choice=[None] * 5 + [0, "bogus"])
    def transaction_start(self, who, choice):
        tx = self.tx(who, choice)
        ask = lambda c: f"{self.model.transaction_start(c, tx)}\0"
        self.request(who, Type.TRANSACTION_START, ask, "", tx=tx)

    @move(3, who=WHO, choice=OPEN, commit=[True, True, True, False])
    def transaction_end(self, who, choice, commit):
        tx = self.tx(who, choice)
        ask = lambda c: self.model.transaction_end(c, commit, tx)
        self.request(who, Type.TRANSACTION_END, ask, "T" if commit else "F", tx=tx)

    @move(8, who=WHO, kinds=list(product(KINDS, repeat=3)), here=EXISTING, there=EXISTING, theirs=EXISTING)
    def race(self, who, kinds, here, there, theirs):
        """A whole transaction with somebody else's request in its middle: the history that conflicts are made of."""
        before = len(self.sides[who].model.transactions)
        self.transaction_start(who, None)
        open_ = list(self.sides[who].model.transactions)
        if len(open_) == before:  # the domain's quota
            return
        tx = open_[-1]
        self.simple(who, kinds[0], self.path(here), tx)
        self.simple(who, kinds[1], self.path(there), tx)
        self.simple(2 if who == 0 else 0, kinds[2], self.path(theirs), 0)
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

    @move(6, who=WHO, path=WATCHED, token=TOKENS, depth=DEPTHS)
    def watch(self, who, path, token, depth):
        path = self.path(path)
        arguments = [path, token] if depth is None else [path, token, str(depth)]
        self.request(who, Type.WATCH, lambda c: self.model.watch(c, path, token, depth), *arguments)

    @move(2, who=WHO, which=[0, 1, 2, 3], path=SPELLED, token=TOKENS)
    def unwatch(self, who, which, path, token):
        mine = [watch for watch in self.model.watches if watch.client is self.sides[who].model]
        if which < len(mine):
            path, token = mine[which].spelled, mine[which].token
        self.request(who, Type.UNWATCH, lambda c: self.model.unwatch(c, path, token), path, token)

    @move(1, who=WHO)
    def reset_watches(self, who):
        self.request(who, Type.RESET_WATCHES, lambda c: self.model.reset_watches(c), "")

    @move(4, who=WHO)
    def take_events(self, who):
        """The others' events wait, and merge, until their receiver looks."""
        side = self.sides[who]
        assert side.take() == ([], self.model.take_events(side.model))

    # Domains.

    @move(3, who=WHO, domid=DOMIDS, whose=[0, *DOMIDS], what=HAPPENINGS)
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
        for number, (id_, privileged) in enumerate(CAST):  # the number of a dead domain is used again
            side = self.sides[number]
            assert side.conn.closed == side.model.closed
            if side.model.closed:
                self.sides[number] = Side(self.store, model, id_, privileged)

    # The whole.

    @invariant()
    def same_tree(self):
        ours = {}
        for where, node in tree.walk((), self.store.top):
            if where:
                ours[paths.join(where).decode()] = (node.value.decode(), node.perms)
        assert ours == {path: (node.value, node.perms) for path, node in self.model.nodes.items()}

    @invariant()
    def books_agree(self):
        assert self.store.check() == []


StoreMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestStoreMachine = StoreMachine.TestCase

# What walks must have come through, or they have lost their way and prove nothing: (privileged?, operation, outcome).
WAYPOINTS = {
    (True, "TRANSACTION_END", "EAGAIN"), (True, "TRANSACTION_START", "EBUSY"), (True, "RM", "ENOENT"),
    (False, "TRANSACTION_END", "OK"), (False, "TRANSACTION_END", "EAGAIN"), (False, "TRANSACTION_END", "ENOMEM"),
    (False, "TRANSACTION_START", "ENOSPC"), (False, "WATCH", "ENOSPC"), (False, "WATCH", "EEXIST"),
    (False, "SET_PERMS", "OK"), (False, "SET_PERMS", "EPERM"), (False, "SET_PERMS", "ENOSPC"), (False, "WRITE", "ENOSPC"),
    (False, "WRITE", "OK"), (False, "WRITE", "EACCES"), (False, "MKDIR", "ENOSPC"), (False, "RM", "OK"),
    (False, "READ", "ENOENT"), (False, "READ", "EACCES"), (False, "GET_PERMS", "OK"), (True, "RELEASE", "OK"),
    (True, "SET_TARGET", "OK"), (True, "SET_TARGET", "ENOENT"),
}


@pytest.mark.parametrize("seed", range(4))
def test_random_walk(seed):
    """Thousands of moves in a row, refurnished now and then; a failure names seed and step, and always comes again."""
    rng = random.Random(seed)
    weights = [weight for _, weight, _ in MOVES]
    reached: Counter[tuple[bool, str, str]] = Counter()
    for stretch in range(30):
        machine = StoreMachine()
        machine.furnish()
        for step in range(250):
            name, _, pools = rng.choices(MOVES, weights)[0]
            arguments = {argument: rng.choice(pool) for argument, pool in pools.items()}
            try:
                getattr(machine, name)(**arguments)
                if step % 10 == 9:
                    machine.same_tree()
                    machine.books_agree()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, stretch {stretch}, step {step}: {name}({arguments})") from error
        for (domid, operation, outcome), count in machine.outcomes.items():
            reached[domid == 0, operation, outcome] += count
    assert not WAYPOINTS - set(reached), WAYPOINTS - set(reached)
