"""The unix socket: permissions of the file, stale sockets, slow and rude clients, any loop."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import stat

import pytest

from xenlike.store import SocketServer, Store, wire
from xenlike.store.wire import Type


class Loop:
    """A loop of the four methods around `selectors`, turned by hand."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()

    def _change(self, fd: int, event: int, callback) -> None:
        calls = dict(self.selector.get_map()[fd].data) if fd in self.selector.get_map() else {}
        calls.pop(event, None)
        if callback is not None:
            calls[event] = callback
        if fd in self.selector.get_map():
            self.selector.unregister(fd)
        if calls:
            self.selector.register(fd, sum(calls), calls)

    def add_reader(self, fd, callback):
        self._change(fd, selectors.EVENT_READ, callback)

    def remove_reader(self, fd):
        self._change(fd, selectors.EVENT_READ, None)

    def add_writer(self, fd, callback):
        self._change(fd, selectors.EVENT_WRITE, callback)

    def remove_writer(self, fd):
        self._change(fd, selectors.EVENT_WRITE, None)

    def turn(self, timeout: float = 0) -> bool:
        """Serve what is ready; whether anything was."""
        ready = self.selector.select(timeout)
        for key, mask in ready:
            for event, callback in list(key.data.items()):
                if mask & event:
                    callback()
        return bool(ready)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def server(store, loop, tmp_path):
    server = SocketServer(store, tmp_path / "run" / "socket")
    server.register(loop)
    yield server
    server.close()


def connect(server: SocketServer, loop: Loop) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.path)
    client.setblocking(False)
    loop.turn()
    return client


def drain(client: socket.socket, loop: Loop) -> bytes:
    """Everything that the server has to say to `client`."""
    data, idle = b"", 0
    while idle < 3:
        busy = loop.turn()
        try:
            piece = client.recv(1 << 20)
        except BlockingIOError:
            piece = None
        if piece == b"":
            return data
        if piece:
            data += piece
        idle = 0 if piece or busy else idle + 1
    return data


def test_only_the_owner_can_open_it(server):
    """Whoever opens the socket is dom0: file 0600, directory 0700."""
    assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(server.path)).st_mode) == 0o700


def test_directory_that_others_may_write_is_refused(store, tmp_path):
    """In such a directory anybody could put another socket in our place."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="0700"):
        SocketServer(store, folder / "socket")


def test_stale_socket_is_replaced_and_live_one_is_not(store, tmp_path):
    """A crash must not prevent the next start; two servers on one path must."""
    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    first = SocketServer(store, path)
    with pytest.raises(OSError, match="listens there already"):
        SocketServer(store, path)
    first.close()
    first.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        SocketServer(store, path)
    assert path.read_text() == "precious"


def test_requests_cut_anywhere(server, loop):
    """Header and payload arrive in separate sends from pyxs, or byte by byte."""
    client = connect(server, loop)
    for byte in wire.pack(Type.WRITE, 1, 0, b"/a\0v") + wire.pack(Type.READ, 2, 0, b"/a\0"):
        client.send(bytes([byte]))
        loop.turn()
    assert drain(client, loop) == wire.pack(Type.WRITE, 1, 0, b"OK\0") + wire.pack(Type.READ, 2, 0, b"v")


def test_events_are_sent_unasked(server, loop, store):
    """`xenstore-watch` only waits: an event must be written without any further request."""
    client = connect(server, loop)
    client.send(wire.pack(Type.WATCH, 1, 0, b"/w\0t\0"))
    drain(client, loop)
    store.direct().write("/w/x", "v")
    assert drain(client, loop) == wire.pack(Type.WATCH_EVENT, 0, 0, b"/w/x\0t\0")


def test_client_that_does_not_read_replies_is_not_read_from(server, loop, store):
    """Replies are bounded by leaving requests in the client's own socket; all come when it reads."""
    store.direct().write("/big", "x" * 4000)
    client = connect(server, loop)
    request = wire.pack(Type.READ, 1, 0, b"/big\0")
    sent = 0
    for _ in range(3000):
        try:
            sent += client.send(request)
        except BlockingIOError:
            break
        loop.turn()
    peer = next(iter(server.clients.values()))
    assert not peer.wants_read and peer.wants_write
    assert peer.connection.output_bytes < 2 << 20
    complete = sent // len(request)
    assert drain(client, loop) == wire.pack(Type.READ, 1, 0, b"x" * 4000) * complete
    assert peer.wants_read and not peer.wants_write


def test_client_that_lets_events_pile_up_is_dropped(store, loop, tmp_path):
    """A suspended `xenstore-watch /` must not grow the host for ever."""
    server = SocketServer(store, tmp_path / "socket", output_max=100_000)
    server.register(loop)
    client = connect(server, loop)
    client.send(wire.pack(Type.WATCH, 1, 0, b"/\0t\0"))
    loop.turn()
    xs = store.direct()
    for i in range(20_000):
        xs.write(f"/flood/{i % 5000}-{'x' * 200}", "v")
        if not server.clients:
            break
    assert server.clients == {}
    assert store.index._top.branches == {}
    server.close()


@pytest.mark.parametrize("rude", [b"", b"\x02\0\0", wire.HEADER.pack(2, 0, 0, 5000), b"\xff" * 100])
def test_rude_clients_leave_nothing(server, loop, store, rude):
    """Hanging up in mid-message, or sending nonsense, ends that client and leaves the store clean."""
    client = connect(server, loop)
    client.send(wire.pack(Type.WATCH, 1, 0, b"/w\0t\0") + wire.pack(Type.TRANSACTION_START, 2, 0, b"\0"))
    loop.turn()
    if rude:
        client.send(rude)
        loop.turn()
    client.close()
    for _ in range(5):
        loop.turn()
    assert server.clients == {}
    assert store.statistics().watches == store.statistics().transactions == 0
    assert store.check() == []
    other = connect(server, loop)
    other.send(wire.pack(Type.READ, 1, 0, b"/tool\0"))
    assert drain(other, loop) == wire.pack(Type.READ, 1, 0, b"")


def test_many_clients_at_once(server, loop):
    """Connections are independent: same request ids, interleaved."""
    clients = [connect(server, loop) for _ in range(40)]
    for i, client in enumerate(clients):
        client.send(wire.pack(Type.WRITE, 1, 0, b"/c/%d\0%d" % (i, i)))
    for i, client in enumerate(clients):
        assert drain(client, loop) == wire.pack(Type.WRITE, 1, 0, b"OK\0")
        client.send(wire.pack(Type.READ, 1, 0, b"/c/%d\0" % (39 - i)))
    for i, client in enumerate(clients):
        assert drain(client, loop) == wire.pack(Type.READ, 1, 0, b"%d" % (39 - i))


def test_asyncio_loop_will_do(store, tmp_path):
    """The four methods are asyncio's names: a host that runs asyncio needs no adapter."""

    async def main() -> bytes:
        server = SocketServer(store, tmp_path / "socket")
        server.register(asyncio.get_running_loop())
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(wire.pack(Type.WRITE, 1, 0, b"/a\0v") + wire.pack(Type.READ, 2, 0, b"/a\0"))
        data = await reader.readexactly(16 + 3 + 16 + 1)
        writer.close()
        server.close()
        return data

    assert asyncio.run(main()).endswith(b"v")


def test_without_a_loop_the_methods_are_enough(store, tmp_path):
    """A host with its own poll calls the methods itself."""
    server = SocketServer(store, tmp_path / "socket")
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.path)
    (peer,) = server.on_readable()
    client.send(wire.pack(Type.READ, 1, 0, b"/tool\0"))
    assert peer.wants_read
    peer.on_readable()
    assert client.recv(100) == wire.pack(Type.READ, 1, 0, b"")
    peer.close()
    peer.close()
    assert peer.closed and client.recv(100) == b""
    server.close()
