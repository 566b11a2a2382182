"""Debian's xenstore tools and pyxs against our unix socket: what works for them works for scripts written for Xen.

The tools are fetched by `peers`, never installed; where they cannot be had the tests skip with the reason. The server
runs on a thread with a loop of its own, as it would beside a host; the tests touch the store through the socket only.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import subprocess
import threading
import time

import pytest

from xenlike.store import SocketServer, Store, wire

TIMEOUT = 30


class ServerThread:
    """A `SocketServer` served by one thread until `stop`."""

    def __init__(self, path: str) -> None:
        self.store = Store()
        self.path = path
        self._selector = selectors.DefaultSelector()
        self._calls: dict[int, dict[int, object]] = {}
        self._stop, self._stopped = socket.socketpair()
        self.server = SocketServer(self.store, path)
        self.server.register(self)
        self.add_reader(self._stopped.fileno(), lambda: None)
        self.failure: BaseException | None = None
        self._running = True
        self._thread = threading.Thread(target=self._run, name="xenstored", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running = False
        self._stop.send(b"x")
        self._thread.join(TIMEOUT)
        self.server.close()
        self._selector.close()
        self._stop.close(), self._stopped.close()
        assert self.failure is None, self.failure

    def _run(self) -> None:
        try:
            while self._running:
                for key, mask in self._selector.select():
                    for event, callback in list(self._calls.get(key.fd, {}).items()):
                        if mask & event:
                            callback()
        except BaseException as error:
            self.failure = error

    def _set(self, fd: int, event: int, callback: object) -> None:
        calls = self._calls.setdefault(fd, {})
        known = bool(calls)
        calls.pop(event, None)
        if callback is not None:
            calls[event] = callback
        if not calls:
            self._selector.unregister(fd)
            del self._calls[fd]
        elif known:
            self._selector.modify(fd, sum(calls))
        else:
            self._selector.register(fd, sum(calls))

    def add_reader(self, fd, callback):
        self._set(fd, selectors.EVENT_READ, callback)

    def remove_reader(self, fd):
        self._set(fd, selectors.EVENT_READ, None)

    def add_writer(self, fd, callback):
        self._set(fd, selectors.EVENT_WRITE, callback)

    def remove_writer(self, fd):
        self._set(fd, selectors.EVENT_WRITE, None)


@pytest.fixture
def server(tmp_path):
    server = ServerThread(str(tmp_path / "socket"))
    yield server
    server.stop()


def start(server: ServerThread, tool: str, *arguments: str) -> subprocess.Popen[str]:
    """The Debian tool, running against `server`."""
    import peers

    try:
        program, environment = peers.xenstore_tool(tool)
    except peers.PeerUnavailable as reason:
        pytest.skip(str(reason))
    environment = {**environment, "XENSTORED_PATH": server.path, "LC_ALL": "C"}
    return subprocess.Popen(
        [program, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(server: ServerThread, tool: str, *arguments: str, status: int = 0) -> str:
    """The tool's output; it must end with `status`."""
    process = start(server, tool, *arguments)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, errors
    return output if status == 0 else errors


def test_write_read_exists(server):
    """The plainest round trip, and the exit statuses that scripts branch on."""
    run(server, "xenstore-write", "/vm/a/name", "web server", "/vm/a/image", "x")
    assert run(server, "xenstore-read", "/vm/a/name") == "web server\n"
    assert run(server, "xenstore-read", "/vm/a/name", "/vm/a/image") == "web server\nx\n"
    run(server, "xenstore-exists", "/vm/a")
    run(server, "xenstore-exists", "/vm/b", status=1)
    assert "couldn't read path /vm/b" in run(server, "xenstore-read", "/vm/b", status=1)


def test_long_values_and_binary(server):
    """A value near the payload limit passes; bytes that the tools escape on their command line arrive unescaped."""
    value = "v" * 4000
    run(server, "xenstore-write", "/long", value)
    assert run(server, "xenstore-read", "/long") == value + "\n"
    run(server, "xenstore-write", "/odd", r"a\tb\\c\x01")
    assert run(server, "xenstore-read", "-R", "/odd") == "a\tb\\c\x01"
    assert run(server, "xenstore-read", "/odd") == r"a\tb\\c\001" + "\n"


def test_list_and_ls(server):
    """Listing shows children in order of creation; ls shows the tree with values, -f full paths, -p permissions."""
    run(server, "xenstore-write", "/d/z", "1", "/d/a/deep", "2")
    assert run(server, "xenstore-list", "/d") == "z\na\n"
    assert run(server, "xenstore-list", "-p", "/d") == "/d/z\n/d/a\n"
    assert run(server, "xenstore-ls", "/d") == 'z = "1"\na = ""\n deep = "2"\n'
    full = run(server, "xenstore-ls", "-f", "-p", "/d")
    assert full.splitlines()[0].split() == ["/d/z", "=", '"1"', "(n0)"]
    whole = run(server, "xenstore-ls")
    assert 'tool = ""' in whole and ' xenstored = ""' in whole


def test_ls_of_a_directory_too_long_for_one_message(server):
    """libxenstore falls back to DIRECTORY_PART after E2BIG; every child must be there once."""
    names = [f"child-with-a-long-name-{i:05d}" for i in range(400)]
    for first in range(0, 400, 50):
        run(server, "xenstore-write", *[word for name in names[first : first + 50] for word in (f"/d/{name}", "v")])
    assert run(server, "xenstore-ls", "/d") == "".join(f'{name} = "v"\n' for name in names)


def test_rm(server):
    """Recursive; -t also takes parents left empty."""
    run(server, "xenstore-write", "/d/a/b", "1", "/d/c", "2")
    run(server, "xenstore-rm", "/d/a")
    assert run(server, "xenstore-list", "/d") == "c\n"
    run(server, "xenstore-rm", "-t", "/d/c")
    run(server, "xenstore-exists", "/d", status=1)
    run(server, "xenstore-rm", "/no/such", status=1)


def test_chmod(server):
    """Permissions set by the tool are what ls shows and what a guest is held to; -r descends."""
    run(server, "xenstore-write", "/p/x/y", "v")
    run(server, "xenstore-chmod", "-r", "/p", "n0", "r5")
    lines = run(server, "xenstore-ls", "-f", "-p", "/p").splitlines()
    assert len(lines) == 2 and all(line.endswith("(n0,r5)") for line in lines)
    run(server, "xenstore-chmod", "/p", "w7")
    assert run(server, "xenstore-ls", "-f", "-p", "/").splitlines()[-3].endswith("(w7)")


def test_watch(server):
    """One event at registration, one a change; a watch on a leaf hears of its parent's removal."""
    run(server, "xenstore-write", "/w/leaf", "v")
    watcher = start(server, "xenstore-watch", "-n", "4", "/w", "/w/leaf")
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line.strip()) for line in watcher.stdout], daemon=True).start()
    try:
        assert [lines.get(timeout=TIMEOUT) for _ in range(2)] == ["/w", "/w/leaf"]
        run(server, "xenstore-rm", "/w")
        assert sorted(lines.get(timeout=TIMEOUT) for _ in range(2)) == ["/w", "/w/leaf"]
        assert watcher.wait(TIMEOUT) == 0
    finally:
        watcher.kill()
        watcher.wait()
        watcher.stdout.close(), watcher.stderr.close()


def test_one_program_with_a_link_for_each_tool(server):
    """Debian's tools are one program called `xenstore`; its own verbs must work too."""
    run(server, "xenstore", "write", "/a", "1")
    assert run(server, "xenstore", "read", "/a") == "1\n"


# pyxs.


@pytest.fixture
def pyxs_client(server, monkeypatch):
    pyxs = pytest.importorskip("pyxs", reason="pyxs is not installed")
    monkeypatch.setattr(pyxs.Client, "SU", True)  # it looks in /proc/xen for whether this is dom0; here it acts as dom0
    with pyxs.Client(unix_socket_path=server.path) as client:
        yield client


def test_pyxs_operations(pyxs_client):
    """Every operation that pyxs has."""
    c = pyxs_client
    c.write(b"/a/b", b"value")
    c[b"/a/c"] = b"other"
    assert c.read(b"/a/b") == b"value" and c[b"/a/c"] == b"other"
    assert c.list(b"/a") == [b"b", b"c"]
    assert c.exists(b"/a") and not c.exists(b"/z")
    assert c.read(b"/z", b"default") == b"default"
    c.mkdir(b"/a/d")
    assert [path for path, _, _ in c.walk(b"/a")] == [b"/a", b"/a/b", b"/a/c", b"/a/d"]
    c.set_perms(b"/a/b", [b"r0", b"b7"])
    assert c.get_perms(b"/a/b") == [b"r0", b"b7"]
    c.delete(b"/a/b")
    del c[b"/a/c"]
    assert c.list(b"/a") == [b"d"]
    assert c.get_domain_path(7) == b"/local/domain/7"
    assert c.is_domain_introduced(7) is False
    c.introduce_domain(7, 1000, 1)
    assert c.is_domain_introduced(7) is True
    c.set_target(7, 0)
    c.resume_domain(7)
    c.release_domain(7)
    assert c.is_domain_introduced(7) is False


def test_pyxs_errors_are_numbers(pyxs_client):
    """pyxs turns names into errno; ours must be names that it knows."""
    import errno

    import pyxs

    for code, call in (
        (errno.ENOENT, lambda: pyxs_client.read(b"/none")),
        (errno.EINVAL, lambda: pyxs_client.delete(b"/")),
        (errno.ENOENT, lambda: pyxs_client.release_domain(99)),
    ):
        with pytest.raises(pyxs.PyXSError) as caught:
            call()
        assert caught.value.args[0] == code


def test_pyxs_transactions_conflict(server, pyxs_client):
    """Two clients, one node: one commit wins, the other is told to try again, and can."""
    import pyxs

    pyxs_client.write(b"/n", b"0")
    with pyxs.Client(unix_socket_path=server.path) as other:
        for client in (pyxs_client, other):
            client.transaction()
            client.write(b"/n", client.read(b"/n") + b"+")
        assert pyxs_client.commit() is True
        assert other.commit() is False
        other.transaction()
        other.write(b"/n", other.read(b"/n") + b"+")
        assert other.commit() is True
    assert pyxs_client.read(b"/n") == b"0++"


def test_pyxs_monitor(server, pyxs_client):
    """Watch events reach a pyxs monitor with the path of the change."""
    monitor = pyxs_client.monitor()
    monitor.watch(b"/w", b"token")
    events = monitor.wait()
    assert next(events) == (b"/w", b"token")
    pyxs_client.write(b"/w/x", b"v")
    assert next(events) == (b"/w/x", b"token")
    monitor.unwatch(b"/w", b"token")


def test_tools_and_a_pipelining_client_at_the_same_time(server):
    """A busy raw client must neither starve nor disturb the tools."""
    busy = socket.socket(socket.AF_UNIX)
    busy.connect(server.path)
    stream = b"".join(wire.pack(11, i, 0, b"/busy/%d\0v" % (i % 50)) for i in range(5000))
    received = []

    def reader() -> None:
        while sum(map(len, received)) < 5000 * 19:
            data = busy.recv(65536)
            if not data:
                return
            received.append(data)

    threads = [threading.Thread(target=busy.sendall, args=(stream,)), threading.Thread(target=reader)]
    for thread in threads:
        thread.start()
    for i in range(3):
        run(server, "xenstore-write", "/mine", str(i))
        assert run(server, "xenstore-read", "/mine") == f"{i}\n"
    for thread in threads:
        thread.join(TIMEOUT)
    assert sum(map(len, received)) == 5000 * 19
    busy.close()
    deadline = time.monotonic() + TIMEOUT
    while server.store.statistics().connections and time.monotonic() < deadline:
        os.sched_yield()
    assert server.store.statistics().connections == 0
