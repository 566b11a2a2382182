"""Xenstore for Python code in the same process: dom0, the toolstack, back ends, tests.

The same operations, permissions and events as on the wire, without the wire. Paths and values are text
(UTF-8, undecodable bytes kept by surrogateescape); `read_bytes` and bytes arguments are there for the rest. Refusals
are `StoreError`. Watch callbacks run before the call that caused the event returns, or, if that call was itself made
in a callback, after the callbacks already waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from . import perms
from .errors import StoreError
from .session import Session
from .transaction import Transaction
from .view import View
from .watches import Watch
from .wire import PAYLOAD_MAX

if TYPE_CHECKING:
    from .connection import Request
    from .server import Store

WatchCallback = Callable[[str, str], None]
P = ParamSpec("P")
T = TypeVar("T")

_RAISE = object()


def encode(value: str | bytes) -> bytes:
    """Bytes of a path or value."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)


def decode(value: bytes) -> str:
    """Text of a path or value; `encode` gives the same bytes back."""
    return value.decode("utf-8", "surrogateescape")


def _asks(op: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a method a request: names domain and operation in its errors, then delivers the events it caused."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def request(*args: P.args, **options: P.kwargs) -> T:
            session: Session = args[0]._session  # type: ignore[attr-defined]  # a method of Operations
            if session.closed:
                raise ValueError(f"xenstore: {op} on a closed session of domain {session.domid}; open another")
            try:
                result = method(*args, **options)
            except StoreError as error:
                error.domid, error.op = session.domid, op
                raise
            session.store.settle()
            return result

        return request

    return decorate


class Operations:
    """The node operations, on the live store (`Direct`) or in a transaction (`DirectTransaction`).

    All take absolute paths, or paths relative to /local/domain/<own>. Errors common to all: EINVAL for a malformed
    path, EACCES without permission.
    """

    _session: Session

    @property
    def _view(self) -> View:
        raise NotImplementedError

    def read(self, path: str | bytes, *, default: str | None | object = _RAISE) -> str:
        """The value at `path` as text. ENOENT unless a `default` is given."""
        try:
            return decode(self.read_bytes(path))
        except StoreError as error:
            if default is _RAISE or error.name != "ENOENT":
                raise
            return default

    @_asks("READ")
    def read_bytes(self, path: str | bytes) -> bytes:
        """The value at `path`. ENOENT."""
        return self._view.require(self._session, self._session.resolve(encode(path))).value

    @_asks("DIRECTORY")
    def ls(self, path: str | bytes) -> list[str]:
        """Names of the children of `path`, in order of creation. ENOENT."""
        node = self._view.require(self._session, self._session.resolve(encode(path)))
        return [decode(name) for name in node.children]

    def exists(self, path: str | bytes) -> bool:
        """Whether there is a node at `path` that may be read."""
        try:
            self.ls(path)
        except StoreError as error:
            if error.name in ("ENOENT", "EACCES"):
                return False
            raise
        return True

    @_asks("WRITE")
    def write(self, path: str | bytes, value: str | bytes) -> None:
        """Set the value at `path`, making it and missing parents. ENOSPC. E2BIG: no wire client could send that."""
        where, what = encode(path), encode(value)
        if len(where) + 1 + len(what) > PAYLOAD_MAX:
            raise StoreError("E2BIG", f"{len(what)} bytes for {where[:80]!r}; {PAYLOAD_MAX} fit, with the path")
        self._view.write(self._session, self._session.resolve(where), what)

    @_asks("MKDIR")
    def mkdir(self, path: str | bytes) -> None:
        """Make `path` exist, with its parents, empty if new. ENOSPC."""
        self._view.mkdir(self._session, self._session.resolve(encode(path)))

    @_asks("RM")
    def rm(self, path: str | bytes) -> None:
        """Remove `path` and all below it; missing is fine. ENOENT: its parent is missing too. EINVAL: "/"."""
        self._view.remove(self._session, self._session.resolve(encode(path)))

    @_asks("GET_PERMS")
    def get_perms(self, path: str | bytes) -> list[str]:
        """Permission entries of `path`, such as ["n0", "r5"]; the first names the owner. ENOENT."""
        names = self._session.resolve(encode(path), special=True)
        return perms.format_entries(self._view.require(self._session, names).perms)

    @_asks("SET_PERMS")
    def set_perms(self, path: str | bytes, entries: Sequence[str]) -> None:
        """Set the permission entries of `path`. ENOENT, EPERM, ENOSPC."""
        names = self._session.resolve(encode(path), special=True)
        self._view.set_perms(self._session, names, perms.parse(entries))



class DirectTransaction(Operations):
    """A transaction opened by `Direct.transaction`."""

    def __init__(self, session: Session, transaction: Transaction) -> None:
        self._session = session
        self._transaction = transaction

    @property
    def _view(self) -> View:
        if self._transaction.ident not in self._session.transactions:
            raise StoreError("ENOENT", f"transaction {self._transaction.ident} has ended")
        return self._transaction

    def abort(self) -> None:
        """Discard the transaction; leaving its `with` block then does nothing more."""
        if self._transaction.ident in self._session.transactions:
            self._session.end_transaction(self._transaction, commit=False)


class Direct(Session, Operations):
    """In-process access as domain `domid`; made by `Store.direct`. `close` drops its watches and transactions."""

    def __init__(self, store: Store, domid: int, privileged: bool) -> None:
        super().__init__(store, domid, privileged)
        self._session = self
        self._callbacks: dict[Watch, WatchCallback] = {}

    @property
    def _view(self) -> View:
        return self.store.live

    # Watches.

    @_asks("WATCH")
    def watch(
        self, path: str | bytes, token: str | bytes, callback: WatchCallback, *, depth: int | None = None
    ) -> Watch:
        """Call `callback(path, token)` now, and at each change at or below `path`, at most `depth` levels below.

        EEXIST: the same path and token are watched. ENOSPC.
        """
        watch = self.add_watch(encode(path), encode(token), depth)
        self._callbacks[watch] = callback
        return watch

    @_asks("UNWATCH")
    def unwatch(self, path: str | bytes, token: str | bytes) -> None:
        """End a watch; its callback is not called again, not even for events that wait. ENOENT."""
        self.remove_watch(encode(path), encode(token))

    def drop_watch(self, watch: Watch) -> None:
        super().drop_watch(watch)
        self._callbacks.pop(watch, None)

    def deliver(self, watch: Watch, path: bytes, request: Request | None) -> None:
        self.store.counters["events"] += 1
        self.store.call_later(lambda: self._call(watch, decode(path)))

    def _call(self, watch: Watch, path: str) -> None:
        callback = self._callbacks.get(watch)
        if callback is None:
            return
        token = decode(watch.token)
        try:
            callback(path, token)
        except Exception as error:  # the store must go on, whatever a callback does
            self.store.hooks.callback_failed(path, token, error)

    # Transactions.

    @_asks("TRANSACTION_START")
    def _start(self) -> Transaction:
        return self.start_transaction()

    @_asks("TRANSACTION_END")
    def _commit(self, transaction: Transaction) -> None:
        self.end_transaction(transaction, commit=True)

    @contextmanager
    def transaction(self) -> Iterator[DirectTransaction]:
        """`with store.transaction() as t:` commits at the end of the block, discards on an exception.

        EAGAIN out of the `with`: something else, such as a callback or another lane step within the block, changed
        what the transaction used; `transact` retries.
        """
        transaction = self._start()
        handle = DirectTransaction(self, transaction)
        try:
            yield handle
        except BaseException:
            handle.abort()
            raise
        if transaction.ident in self.transactions:
            self._commit(transaction)

    def transact(self, body: Callable[[DirectTransaction], T], *, attempts: int = 10) -> T:
        """Run `body` in a transaction, again after EAGAIN, at most `attempts` times; its result."""
        for attempt in range(attempts):
            try:
                with self.transaction() as handle:
                    result = body(handle)
                return result
            except StoreError as error:
                if error.name != "EAGAIN" or attempt == attempts - 1:
                    raise
        raise ValueError("attempts must be at least 1")

    # Domains; all need privilege.

    @_asks("INTRODUCE")
    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Have the store serve `domid`; fires @introduceDomain the first time. EACCES, EINVAL."""
        self.demand_privilege()
        self.store.domains.introduce(domid, gfn, port)

    @_asks("RELEASE")
    def release(self, domid: int) -> None:
        """Have the store drop `domid`, with its nodes; fires @releaseDomain. EACCES, ENOENT, EINVAL."""
        self.demand_privilege()
        self.store.domains.release(domid)

    @_asks("RESUME")
    def resume(self, domid: int) -> None:
        """Let @releaseDomain fire again when `domid` shuts down next. EACCES, ENOENT, EINVAL."""
        self.demand_privilege()
        self.store.domains.resume(domid)

    @_asks("SET_TARGET")
    def set_target(self, domid: int, target: int) -> None:
        """Give `domid` the rights of `target`. EACCES, ENOENT."""
        self.demand_privilege()
        self.store.domains.set_target(domid, target)

    def is_introduced(self, domid: int) -> bool:
        """Whether the store serves `domid`."""
        return self.store.domains.is_introduced(domid)

    def domain_path(self, domid: int) -> str:
        """/local/domain/`domid`."""
        return f"/local/domain/{domid}"
