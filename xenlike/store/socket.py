"""Xenstore's unix socket: privileged clients on the host, driven by somebody else's event loop.

Whoever may open the socket acts as dom0, so it is created 0600, in a directory of ours that nobody else may write.
Nothing here blocks or starts threads. `register` takes any loop with ``add_reader(fd, callback)``,
``remove_reader(fd)``, ``add_writer(fd, callback)``, ``remove_writer(fd)``: an asyncio loop, or a few lines around
`selectors`. A client that does not read its replies is not read from; one that lets events pile up is dropped.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .connection import Connection

if TYPE_CHECKING:
    from .server import Store

RECEIVE_SIZE = 8192  #: bytes read at once; small, because 20 bytes of request may ask for 4096 of reply
OUTPUT_PAUSE = 65536  #: bytes of waiting output from which a client's requests are left unread
OUTPUT_MAX = 4 * 1024 * 1024  #: bytes of waiting output at which a client is dropped
_BACKLOG = 64


class Loop(Protocol):
    """What is asked of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], object]) -> object:
        """Call `callback` whenever `fd` is readable."""

    def remove_reader(self, fd: int) -> object:
        """Stop that."""

    def add_writer(self, fd: int, callback: Callable[[], object]) -> object:
        """Call `callback` whenever `fd` is writable."""

    def remove_writer(self, fd: int) -> object:
        """Stop that."""


class SocketServer:
    """Listens at `path` and serves `store` to whoever connects; ends at `close`, which removes the socket.

    output_max: bytes of waiting output at which a client that does not read is dropped.
    OSError: the socket cannot be made, another server listens there, or others could replace it.
    """

    def __init__(self, store: Store, path: str | os.PathLike[str], *, output_max: int = OUTPUT_MAX) -> None:
        self.store = store
        self.path = os.fspath(path)
        self.output_max = output_max
        self.clients: dict[int, SocketClient] = {}
        self._loop: Loop | None = None
        _prepare(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            os.fchmod(listener.fileno(), 0o600)  # before bind: the socket file never has other permissions
            listener.bind(self.path)
            os.chmod(self.path, 0o600)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    def fileno(self) -> int:
        """The listening socket."""
        return self._listener.fileno()

    def register(self, loop: Loop) -> None:
        """Have `loop` serve the socket and its clients."""
        self._loop = loop
        loop.add_reader(self.fileno(), self.on_readable)
        for client in self.clients.values():
            client.attach(loop)

    def on_readable(self) -> list[SocketClient]:
        """Accept whoever waits; the new clients."""
        accepted = []
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    break  # the listener stays readable: tried again when the loop comes round
                raise
            client = SocketClient(self, sock)
            self.clients[sock.fileno()] = client
            if self._loop is not None:
                client.attach(self._loop)
            accepted.append(client)
        return accepted

    def close(self) -> None:
        """Drop all clients, stop listening, remove the socket; harmless when repeated."""
        for client in list(self.clients.values()):
            client.close()
        if self._listener.fileno() >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self.fileno())
            self._listener.close()
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass


class SocketClient:
    """One accepted client. Who has no loop calls `on_readable` and `on_writable`, by `wants_read` and `wants_write`."""

    def __init__(self, server: SocketServer, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._server = server
        self._socket = sock
        self._unsent = b""
        self._loop: Loop | None = None
        self._reading = self._writing = False  # what the loop is asked for
        self._in_settle = False
        self.connection: Connection = server.store.connect(0, wake=self._woken)

    def fileno(self) -> int:
        """The client's socket, -1 when closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether the client is gone."""
        return self._socket.fileno() < 0

    @property
    def wants_read(self) -> bool:
        """Whether requests may be read now."""
        return not self.closed and self.connection.output_bytes + len(self._unsent) < OUTPUT_PAUSE

    @property
    def wants_write(self) -> bool:
        """Whether output waits."""
        return not self.closed and (bool(self._unsent) or self.connection.has_output)

    def attach(self, loop: Loop) -> None:
        """Have `loop` call us."""
        self._loop = loop
        self._arm()

    def on_readable(self) -> None:
        """Read, serve, and send what can be sent at once."""
        if not self.wants_read:
            return
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.connection.feed(data)
        self.on_writable()

    def on_writable(self) -> None:
        """Send as much waiting output as the socket takes."""
        while not self.closed:
            if not self._unsent:
                self._unsent = self.connection.take_output(OUTPUT_PAUSE)
                if self.closed:
                    return
                if not self._unsent:
                    break
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.close()
                return
            self._unsent = self._unsent[sent:]
        if not self.closed:
            waiting = self.connection.output_bytes + len(self._unsent)
            if self.connection.closed or waiting > self._server.output_max:
                self.close()
            else:
                self._arm()

    def close(self) -> None:
        """Drop the client with its watches and transactions; harmless when repeated."""
        if self.closed:
            return
        fd = self.fileno()
        if self._loop is not None:
            if self._reading:
                self._loop.remove_reader(fd)
            if self._writing:
                self._loop.remove_writer(fd)
        self._socket.close()
        self._server.clients.pop(fd, None)
        self.connection.close()
        self._server.store.settle()

    def _woken(self) -> None:
        self.on_writable()

    def _arm(self) -> None:
        """Ask the loop for just what is wanted."""
        loop, fd = self._loop, self.fileno()
        if loop is None:
            return
        if self.wants_read != self._reading:
            self._reading = not self._reading
            if self._reading:
                loop.add_reader(fd, self.on_readable)
            else:
                loop.remove_reader(fd)
        if self.wants_write != self._writing:
            self._writing = not self._writing
            if self._writing:
                loop.add_writer(fd, self.on_writable)
            else:
                loop.remove_writer(fd)


def _prepare(path: str) -> None:
    """See to the directory of `path`, and clear away a socket that a dead server left."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            errno.EPERM, "others may write the xenstore socket's directory; use one of mode 0700 that is yours", folder
        )
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket; xenstore will not replace it", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, "a busy xenstore server listens there already", path) from None
        else:
            raise OSError(errno.EADDRINUSE, "a xenstore server listens there already", path)
