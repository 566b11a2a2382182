"""The back end of one disk: the xenbus state machine of domain 0's side.

Owns one disk's connection: event channel, data path id, and the back end's ``state`` node. Called by xenstore watches, and
by ``service`` for what the hypervisor reports. Runs on the Python lane; needs no lock. Steps come from ``negotiate``; what
touches the hypervisor goes through ``BlockOps``, so that all of this runs without one.

A front end is a guest's, and hostile: whatever it writes ends in an error node and state Closing, never in an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from .image import DiskImage
from .negotiate import NegotiationError, Step, features, next_step, parse_front, properties
from .nodes import backend_dir, error_dir, frontend_dir, remove_path
from .xenbus import XenbusState, parse_state

_log = logging.getLogger("xenlike.block")
_EIO = 5
_OPEN = (XenbusState.INITIALISING, XenbusState.INIT_WAIT, XenbusState.CONNECTED)

#: Why the data path has stopped (csrc/io/blk.h, enum xl_blk_stop) → what the error node says.
STOP_REASONS = {1: "the ring's request index is out of range", 2: "out of memory for timers"}


@dataclass(frozen=True)
class AttachConfig:
    """What the data path needs: the fields of ``struct xl_blk_config``."""

    front: int                      #: domid
    port: int                       #: domain 0's
    ring_refs: tuple[int, ...]
    image: DiskImage
    cookie: int                     #: comes back when the data path stops by itself


class BlockOps(Protocol):
    """What a back end asks of the hypervisor."""

    def bind_interdomain(self, front_domid: int, remote_port: int) -> int:
        """Bind a port of domain 0 to the front end's; returns it. Raises an exception with Xen's ``errno``."""
        ...

    def close_port(self, port: int) -> None:
        """Close a port of domain 0. Does not raise if it is closed already."""
        ...

    def attach(self, config: AttachConfig) -> int:
        """Serve the ring (``xl_blk_attach``); returns an id. Raises an exception with Xen's ``errno``."""
        ...

    def detach(self, ident: int) -> None:
        """Stop serving (``xl_blk_detach``). Does not raise if it is detached already."""
        ...


class Store(Protocol):
    """What a back end asks of xenstore: the methods of ``xenlike.store.Direct`` that it uses."""

    def read(self, path: str, *, default: str | None) -> str | None: ...
    def exists(self, path: str) -> bool: ...
    def ls(self, path: str) -> list[str]: ...
    def write(self, path: str, value: str) -> None: ...
    def rm(self, path: str) -> None: ...
    def set_perms(self, path: str, entries: Sequence[str]) -> None: ...
    def watch(self, path: str, token: str, callback: Callable[[str, str], None]) -> Any: ...
    def unwatch(self, path: str, token: str) -> None: ...
    def transaction(self) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class _Connection:
    port: int
    ident: int
    ring_refs: tuple[int, ...]
    front_port: int


class BlockBackend:
    """One disk of one domain, from ``start`` to ``close``.

    ``image`` None is an empty drive: it announces itself and never connects. ``cookie`` goes into the attach configuration.
    ``on_finished`` is called once the disk has been taken away (offline and closed, or its nodes removed); whoever is
    called then removes what nodes are left.
    """

    def __init__(self, xs: Store, ops: BlockOps, *, domid: int, device: int, image: DiskImage | None, cookie: int = 0,
                 backend: int = 0, on_finished: Callable[[BlockBackend], None] | None = None) -> None:
        self.domid, self.device, self.image = domid, device, image
        self.front_path = frontend_dir(domid, device)
        self.path = backend_dir(domid, device, backend=backend)
        self.error_path = error_dir(domid, device, backend=backend)
        self.state = XenbusState.INITIALISING
        self._xs, self._ops, self._cookie = xs, ops, cookie
        self._connection: _Connection | None = None
        self._on_finished = on_finished
        self._watches: list[tuple[str, str]] = []
        self._closed = False

    # Life.

    def start(self) -> None:
        """Announce the disk and begin to follow the front end. The nodes of ``nodes.disk_nodes`` exist by now."""
        self._take(Step.ANNOUNCE)
        token = f"block {self.path}"
        for path, callback in ((f"{self.front_path}/state", self._follow_front), (f"{self.path}/state", self._follow_back),
                               (f"{self.path}/online", self._follow_back)):
            self._watches.append((path, token))
            self._xs.watch(path, token, callback)

    def close(self) -> None:
        """Let go of ring, port and watches at once, without a word to the front end: it is dead, or the host ends."""
        if self._closed:
            return
        self._closed = True
        self._disconnect()
        for path, token in self._watches:
            self._xs.unwatch(path, token)
        self._watches.clear()

    def stopped(self, why: int) -> None:
        """The data path reports (EXIT_IO) that it has stopped, for a reason of ``STOP_REASONS``."""
        if self._connection is not None:
            self._fail(_EIO, STOP_REASONS.get(why, f"the data path stopped (reason {why})"))

    def request_removal(self) -> None:
        """Ask the front end to give the disk up, as ``block-detach`` does; ``on_finished`` follows when it has."""
        with self._xs.transaction() as t:
            t.write(f"{self.path}/online", "0")
            t.write(f"{self.path}/state", str(int(XenbusState.CLOSING)))

    @property
    def ident(self) -> int | None:
        """The data path's id while connected."""
        return self._connection.ident if self._connection else None

    @property
    def front_port(self) -> int | None:
        """The guest's port while connected."""
        return self._connection.front_port if self._connection else None

    @property
    def ring_refs(self) -> tuple[int, ...]:
        """Grant references of the ring while connected."""
        return self._connection.ring_refs if self._connection else ()

    # Watches.

    def _follow_front(self, path: str, token: str) -> None:
        if self._closed:
            return
        text = self._xs.read(f"{self.front_path}/state", default=None)
        front = parse_state(text)
        if front is None:
            if self.state in _OPEN:
                self._fail(22, f"front end's state {ascii(text[:40])} is no xenbus state")
            return
        online = self._online()
        self._take(next_step(front, self.state, online=online))
        if self.state is XenbusState.CLOSED and (front is XenbusState.UNKNOWN or not online):
            self._finish()

    def _follow_back(self, path: str, token: str) -> None:
        """Our own state or ``online`` was written: by the toolstack, or by us."""
        if self._closed:
            return
        text = self._xs.read(f"{self.path}/state", default=None)
        if text is None:                                    # removed by force
            self._disconnect()
            self.state = XenbusState.CLOSED
            self._finish()
            return
        if parse_state(text) is XenbusState.CLOSING and (self.state in _OPEN or not self._online()):
            self.state = XenbusState.CLOSING                # the toolstack's wish; the front end sees it as well
            if not self._front_is_in_use():
                self._take(Step.CLOSE)
        self._follow_front(path, token)

    def _online(self) -> bool:
        """Whether the disk is to stay: the toolstack writes 0 to take it away."""
        return self._xs.read(f"{self.path}/online", default="0") != "0"

    def _front_is_in_use(self) -> bool:
        """Whether a driver is there that will see Closing and answer."""
        front = parse_state(self._xs.read(f"{self.front_path}/state", default=None))
        return front in (XenbusState.INITIALISED, XenbusState.CONNECTED, XenbusState.CLOSING)

    # Steps.

    def _take(self, step: Step) -> None:
        if step is Step.ANNOUNCE:
            self._disconnect()
            remove_path(self._xs, self.error_path)
            self._publish(XenbusState.INIT_WAIT, features(self.image) | {"hotplug-status": "connected"})
        elif step is Step.CONNECT:
            self._connect()
        elif step is Step.CLOSING:
            self._publish(XenbusState.CLOSING)
        elif step is Step.CLOSE:
            self._disconnect()
            self._publish(XenbusState.CLOSED)

    def _connect(self) -> None:
        if self.image is None:
            return
        try:
            ring = parse_front(lambda key: self._xs.read(f"{self.front_path}/{key}", default=None))
        except NegotiationError as error:
            self._fail(error.errno, error.message)
            return
        port = None
        try:
            port = self._ops.bind_interdomain(self.domid, ring.port)
            ident = self._ops.attach(AttachConfig(self.domid, port, ring.refs, self.image, self._cookie))
        except Exception as error:      # whatever the hypervisor objects to, it is this front end that is refused
            if port is not None:
                self._ops.close_port(port)
            what = f"binding event channel {ring.port}" if port is None else f"mapping ring references {list(ring.refs)}"
            self._fail(getattr(error, "errno", None) or _EIO, f"{what}: {error}")
            return
        self._connection = _Connection(port, ident, ring.refs, ring.port)
        self._publish(XenbusState.CONNECTED, properties(self.image))

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._ops.detach(connection.ident)          # before its port goes: the data path still listens on it
            self._ops.close_port(connection.port)

    def _publish(self, state: XenbusState, keys: dict[str, str] | None = None) -> None:
        """Set our state, with keys that must be there when it is seen."""
        self.state = state
        with self._xs.transaction() as t:
            for key, value in (keys or {}).items():
                t.write(f"{self.path}/{key}", value)
            t.write(f"{self.path}/state", str(int(state)))

    def _fail(self, errno: int, message: str) -> None:
        """Refuse this front end; it may close and begin anew."""
        _log.info("domain %d: disk %d: %s", self.domid, self.device, message)
        self._disconnect()
        self._xs.write(f"{self.error_path}/error", f"{errno} {message}")
        self._publish(XenbusState.CLOSING)

    def _finish(self) -> None:
        self.close()
        if self._on_finished is not None:
            self._on_finished(self)
