"""The xenstore client of a Python guest, on its ring (xen public io/xs_wire.h).

Owns: the guest's half of the ring, outstanding requests, watches. Called by: guests and front ends.
"""

from __future__ import annotations

import errno as host_errno
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from xenlike.engine import XenError, lib
from xenlike.store.client_ring import RingClient
from xenlike.store.wire import Type

from guest_sdk.kernel import Future

__all__ = ["Transaction", "Watch", "Xenstore"]

T = TypeVar("T")


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class Watch:
    """A watch: ``await next()`` or ``async for path in watch``. Fires once at registration, as xenstore's do."""

    def __init__(self, store: "Xenstore", path: str, token: str) -> None:
        self._store = store
        self.path = path
        self.token = token
        self._events: deque[str] = deque()
        self._waiters: list[Future[None]] = []

    def _fired(self, path: str) -> None:
        self._events.append(path)
        while self._waiters:
            self._waiters.pop().set(None)

    async def next(self) -> str:
        """The path of the next change."""
        while not self._events:
            future: Future[None] = Future()
            self._waiters.append(future)
            await future
        return self._events.popleft()

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            yield await self.next()

    async def close(self) -> None:
        """Takes the watch back."""
        self._store._watches.pop(self.token, None)
        await self._store._request(Type.UNWATCH, _join(self.path, self.token))


def _join(*parts: str | bytes | int) -> bytes:
    return b"".join(_bytes(p) + b"\0" for p in parts)


class _Operations:
    """What a client and a transaction can both do. Failures raise XenError with xenstore's error."""

    _tx_id = 0

    async def _request(self, kind: int, payload: bytes) -> bytes:
        raise NotImplementedError

    async def read(self, path: str) -> str:
        """The value of a node (relative paths are under /local/domain/<own id>). Raises XenError ENOENT, EACCES."""
        return (await self.read_bytes(path)).decode(errors="replace")

    async def read_bytes(self, path: str) -> bytes:
        """The value as bytes."""
        return await self._request(Type.READ, _join(path))

    async def get(self, path: str, default: str | None = None) -> str | None:
        """The value, or ``default`` if the node is not there."""
        try:
            return await self.read(path)
        except XenError as error:
            if error.errno != lib.XEN_ENOENT:
                raise
            return default

    async def write(self, path: str, value: str | bytes | int) -> None:
        """Sets a node, making it and its parents if they are missing."""
        await self._request(Type.WRITE, _join(path) + _bytes(value))

    async def mkdir(self, path: str) -> None:
        """Makes an empty node."""
        await self._request(Type.MKDIR, _join(path))

    async def rm(self, path: str) -> None:
        """Removes a node and all below it."""
        await self._request(Type.RM, _join(path))

    async def ls(self, path: str) -> list[str]:
        """Names of the nodes below ``path``."""
        names = await self._request(Type.DIRECTORY, _join(path))
        return [n.decode() for n in names.split(b"\0") if n]

    async def get_perms(self, path: str) -> list[str]:
        """Permissions, e.g. ``["n0", "r5"]``."""
        perms = await self._request(Type.GET_PERMS, _join(path))
        return [p.decode() for p in perms.split(b"\0") if p]

    async def set_perms(self, path: str, perms: list[str]) -> None:
        """Sets them; the first names the owner and what others may do."""
        await self._request(Type.SET_PERMS, _join(path, *perms))


class Transaction(_Operations):
    """Inside ``Xenstore.transaction``."""

    def __init__(self, store: "Xenstore", tx_id: int) -> None:
        self._store = store
        self._tx_id = tx_id

    async def _request(self, kind: int, payload: bytes) -> bytes:
        return await self._store._request(kind, payload, tx_id=self._tx_id)


class Xenstore(_Operations):
    """``guest.xenstore``."""

    def __init__(self, guest: Any, page: memoryview, port: Any) -> None:
        self._guest = guest
        self._ring = RingClient(page)
        self._port = port.on_event(self._event)
        self._replies: dict[int, tuple[Future[bytes] | None, str]] = {}     # by request id: who waits, and for what
        self._watches: dict[str, Watch] = {}
        self._next_token = 0

    def _event(self) -> None:
        if self._ring.service():
            self._port.notify()
        while (message := self._ring.next_message()) is not None:
            if message.type == Type.WATCH_EVENT:
                path, token = message.payload.split(b"\0")[:2]
                watch = self._watches.get(token.decode())
                if watch:
                    watch._fired(path.decode())
                continue
            future, what = self._replies.pop(message.req_id, (None, ""))
            if future is None:
                continue
            if message.type == Type.ERROR:
                future.set_error(self._error(message.payload, what))
            else:
                future.set(message.payload)

    def _error(self, payload: bytes, what: str) -> XenError:
        name = payload.rstrip(b"\0").decode(errors="replace")
        number = getattr(lib, f"XEN_{name}", getattr(host_errno, name, lib.XEN_EIO))
        return XenError(number, f"xenstore {what}", self._guest.domid)

    async def _request(self, kind: int, payload: bytes, *, tx_id: int = 0) -> bytes:
        future: Future[bytes] = Future()
        what = f"{Type(kind).name.lower()} {payload.partition(bytes(1))[0].decode(errors='replace')}".rstrip()
        self._replies[self._ring.request(kind, payload, tx_id=tx_id)] = future, what
        if self._ring.service():
            self._port.notify()
        return await future

    async def watch(self, path: str) -> Watch:
        """Watches a node and all below it."""
        self._next_token += 1
        watch = Watch(self, path, f"sdk{self._next_token}")
        self._watches[watch.token] = watch
        try:
            await self._request(Type.WATCH, _join(path, watch.token))
        except XenError:
            self._watches.pop(watch.token, None)
            raise
        return watch

    async def transaction(self, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = 100) -> T:
        """Runs ``await body(t)`` in a transaction, again when it conflicted (EAGAIN), and returns its result.

        An exception in ``body`` aborts the transaction and goes on. Raises XenError EAGAIN after ``attempts`` conflicts.
        """
        for attempt in range(attempts):
            tx_id = int((await self._request(Type.TRANSACTION_START, b"\0")).rstrip(b"\0"))
            try:
                result = await body(Transaction(self, tx_id))
            except BaseException:
                await self._request(Type.TRANSACTION_END, b"F\0", tx_id=tx_id)
                raise
            try:
                await self._request(Type.TRANSACTION_END, b"T\0", tx_id=tx_id)
                return result
            except XenError as error:
                if error.errno != lib.XEN_EAGAIN or attempt == attempts - 1:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Lets the ring page go."""
        self._ring.release()

    async def domain_path(self, domid: int) -> str:
        """/local/domain/<domid>."""
        return (await self._request(Type.GET_DOMAIN_PATH, _join(domid))).rstrip(b"\0").decode()

    async def wait_for(self, path: str, wanted: Callable[[str | None], bool]) -> str | None:
        """Waits until ``wanted(value)`` holds for a node's value (None: no node); returns the value."""
        watch = await self.watch(path)
        try:
            while True:
                await watch.next()
                value = await self.get(path)
                if wanted(value):
                    return value
        finally:
            await watch.close()
