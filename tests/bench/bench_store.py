"""Xenstore operations per second: in Python, through `feed`, on a ring page, over the unix socket.

`run()` returns, for each case, the median over `ROUNDS` interleaved rounds, in microseconds an operation (``*_us``)
and operations a second (``*_per_s``). The store holds the nodes of a host with `DOMAINS` guests. Nothing is asserted:
figures depend on the machine. The socket's floor, an echo of the same size over a socket pair to another thread, is
measured alongside.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from xenlike.store import RingClient, RingTransport, SocketServer, Store, wire
from xenlike.store.wire import Type

ROUNDS = 9
DOMAINS = 100
_PATH = b"/local/domain/7/device/vbd/51712/state"


def run() -> dict[str, float]:
    """Measure everything once; seconds of work, no state left behind."""
    cases: dict[str, tuple[Callable[[int], None], int]] = {}
    store = _populated()
    direct = store.direct()
    cases["direct_read"] = _repeat(lambda: direct.read(_PATH)), 2000
    cases["direct_write"] = _repeat(lambda: direct.write(_PATH, "4")), 1000
    cases["direct_transaction"] = _repeat(lambda: _transaction(direct)), 300
    for who, domid in (("dom0", 0), ("guest", 7)):
        connection = store.connect(domid)
        for kind, payload in ((Type.READ, _PATH + b"\0"), (Type.WRITE, _PATH + b"\x004")):
            request = wire.pack(kind, 1, 0, payload)
            cases[f"feed_{who}_{kind.name.lower()}"] = _repeat(lambda c=connection, r=request: _feed(c, r)), 1000
    watcher = store.direct()
    for domid in range(1, DOMAINS + 1):
        watcher.watch(f"/local/domain/{domid}/device", f"{domid}", lambda path, token: None)
    cases["direct_write_with_a_watcher"] = _repeat(lambda: direct.write(_PATH, "4")), 1000
    page = bytearray(4096)
    transport = RingTransport(store, 7, page, lambda: None)
    client = RingClient(page)
    cases["ring_read"] = _repeat(lambda: _ring(client, transport)), 500
    with _SocketThread(_populated()) as path, _EchoThread() as echo, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        request = wire.pack(Type.READ, 1, 0, _PATH + b"\0")
        write = wire.pack(Type.WRITE, 1, 0, _PATH + b"\x004")
        cases["socket_read"] = _repeat(lambda: _round_trip(sock, request, 17)), 200
        cases["socket_write"] = _repeat(lambda: _round_trip(sock, write, 19)), 200
        cases["socket_read_pipelined"] = lambda n: _pipelined(sock, request, 17, n), 1000
        cases["floor_socket_echo"] = _repeat(lambda: _round_trip(echo, request, len(request))), 200
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (work, count) in cases.items():
                begin = time.perf_counter_ns()
                work(count)
                samples[name].append((time.perf_counter_ns() - begin) / count / 1000)
    result: dict[str, float] = {}
    for name, values in samples.items():
        median = statistics.median(values)
        result[f"{name}_us"] = round(median, 2)
        result[f"{name}_per_s"] = round(1e6 / median)
    return result


def _populated() -> Store:
    store = Store()
    xs = store.direct()
    for domid in range(1, DOMAINS + 1):
        home = f"/local/domain/{domid}"
        xs.mkdir(home)
        xs.set_perms(home, [f"n{domid}"])
        for key in ("name", "memory/target", "store/port", "device/vbd/51712/state", "device/vif/0/state", "data/x"):
            xs.write(f"{home}/{key}", "1")
    return store


def _repeat(step: Callable[[], object]) -> Callable[[int], None]:
    def work(count: int) -> None:
        for _ in range(count):
            step()

    return work


def _transaction(direct) -> None:
    with direct.transaction() as t:
        t.read(_PATH)
        t.write(_PATH, "3")


def _feed(connection, request: bytes) -> bytes:
    connection.feed(request)
    return connection.take_output(4096)


def _ring(client: RingClient, transport: RingTransport) -> bytes:
    client.request(Type.READ, _PATH + b"\0")
    client.service()
    transport.service()
    client.service()
    return client.next_message().payload


def _round_trip(sock: socket.socket, request: bytes, reply: int) -> None:
    sock.sendall(request)
    while reply > 0:
        reply -= len(sock.recv(reply))


def _pipelined(sock: socket.socket, request: bytes, reply: int, count: int) -> None:
    for _ in range(count // 100):
        sock.sendall(request * 100)
        left = reply * 100
        while left:
            left -= len(sock.recv(left))


class _SocketThread:
    """A store served by an asyncio loop on its own thread."""

    def __init__(self, store: Store) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = os.path.join(self._folder.name, "socket")
        self._loop = asyncio.new_event_loop()
        self._server = SocketServer(store, self._path)
        self._server.register(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self._path

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.close()
        self._folder.cleanup()


class _EchoThread:
    """The least a server can do: send back what came."""

    def __enter__(self) -> socket.socket:
        self._near, self._far = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self._near

    def _run(self) -> None:
        while data := self._far.recv(4096):
            self._far.sendall(data)

    def __exit__(self, *exception: object) -> None:
        self._near.close()
        self._thread.join()
        self._far.close()


if __name__ == "__main__":
    for name, value in run().items():
        sys.stdout.write(f"{name:<34} {value:>12}\n")
