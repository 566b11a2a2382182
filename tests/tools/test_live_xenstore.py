"""Debian's xenstore tools and pyxs against a running host: what a person with Xen's tools would see."""

import subprocess

import pytest

import xenlike
from guest_sdk import Guest


class Talks(Guest):
    """Waits for a question in xenstore and answers it."""

    async def main(self):
        await self.xenstore.write("data/ready", "1")
        question = await self.xenstore.wait_for("data/question", lambda v: v is not None)
        await self.xenstore.write("data/answer", question[::-1])
        await self.xenstore.wait_for("control/shutdown", lambda v: v == "poweroff")


@pytest.fixture
def live(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    with xenlike.Host(xenstore_socket=folder / "socket") as host:
        yield host, str(folder / "socket")


def tool(name, socket, *args):
    peers = pytest.importorskip("peers")
    try:
        argv0, env = peers.xenstore_tool(name)
    except peers.PeerUnavailable as why:
        pytest.skip(f"Debian's xenstore-utils: {why}")
    done = subprocess.run([argv0, *args], env={**env, "XENSTORED_PATH": socket}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (name, args, done.stderr)
    return done.stdout


def test_tools_talk_with_a_guest(live):
    """A person could not see a guest's nodes, or the guest not a person's."""
    host, socket = live
    domain = host.create(Talks, memory="4M", name="talks")
    home = f"/local/domain/{domain.domid}"
    assert tool("xenstore-read", socket, f"{home}/name") == "talks\n"
    assert host.wait_until(lambda: host.xenstore.exists(f"{home}/data/ready"), timeout=30)
    tool("xenstore-write", socket, f"{home}/data/question", "stressed")
    assert host.wait_until(lambda: host.xenstore.exists(f"{home}/data/answer"), timeout=30)
    assert tool("xenstore-read", socket, f"{home}/data/answer") == "desserts\n"
    listing = tool("xenstore-ls", socket, home)
    assert 'name = "talks"' in listing and "ring-ref" in listing
    assert str(domain.domid) in tool("xenstore-list", socket, "/local/domain").split()
    tool("xenstore-write", socket, f"{home}/control/shutdown", "poweroff")
    assert domain.wait(timeout=30).reason == "poweroff"
    assert str(domain.domid) not in tool("xenstore-list", socket, "/local/domain").split()


def test_pyxs_watches_a_guest(live):
    """A Python client of real Xen would not work unchanged."""
    pyxs = pytest.importorskip("pyxs")
    host, socket = live
    with pyxs.Client(unix_socket_path=socket) as client:
        watcher = client.monitor()
        watcher.watch(b"/local/domain", b"mine")
        events = watcher.wait()
        assert next(events).path == b"/local/domain"
        domain = host.create(Talks, memory="4M", name="watched")
        path = f"/local/domain/{domain.domid}/name".encode()
        while next(events).path != path:
            pass
        assert client[path] == b"watched"
        domain.destroy()
        assert not client.exists(path)
