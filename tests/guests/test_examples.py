"""The examples of the SDK run, under both clocks, and say what they should."""

import hashlib

import pytest

import xenlike
from guest_sdk.examples.disk import DiskUser
from guest_sdk.examples.hello import Hello
from guest_sdk.examples.pagetables import PageTables
from guest_sdk.examples.pingpong import Ping, Pong
from guest_sdk.examples.smp import Smp


@pytest.fixture(params=["virtual", "real"])
def host(request):
    with xenlike.Host(clock=request.param, seed=7) as host:
        host.create(Hello, memory="4M", name="first").wait(timeout=30)      # dom0's own tables have grown to what one guest needs
        free = host.usage()
        yield host
        for domain in host.domains:
            domain.destroy()
        after = host.usage()
        assert (after["frames_free"], after["arena_in_use"]) == (free["frames_free"], free["arena_in_use"]), "something leaked"


def test_hello(host):
    """A guest's print, xenstore or timer would not work."""
    domain = host.create(Hello, memory="16M")
    assert domain.wait(timeout=30).reason == "poweroff"
    assert domain.console.lines[:2] == ["hello from domain 2", "my name is hello"]


def test_pingpong(host):
    """Events between guests, or a shared page, would lose something."""
    ping = host.create(Ping, memory="4M", extra="peer=3", paused=True)
    pong = host.create(Pong, memory="4M", extra=f"peer={ping.domid}")
    ping.unpause()
    assert host.wait([ping, pong], timeout=60), (ping.console.text, pong.console.text)
    assert (ping.result.reason, pong.result.reason) == ("poweroff", "poweroff"), (ping.result, pong.result)
    assert ping.console.text.startswith("1000 round trips")
    assert pong.console.text == "answered 1000\n"


def test_disk(host, tmp_path):
    """blkfront would read or write other bytes than the image has."""
    image = tmp_path / "disk.img"
    data = bytes(i * 7 & 255 for i in range(256 * 1024))
    image.write_bytes(data)
    domain = host.create(DiskUser, memory="8M", disk=[f"{image},raw,xvda,rw"])
    assert domain.wait(timeout=60).reason == "poweroff", domain.console.text
    assert domain.console.lines == [f"512 sectors, sha256 {hashlib.sha256(data).hexdigest()}", "wrote the last sector"]
    assert image.read_bytes() == data[:-512] + b"written by a guest".ljust(512, b"\0")


def test_page_tables(host):
    """A guest's own page tables would not be taken, or not be checked."""
    domain = host.create(PageTables, memory="16M")
    assert domain.wait(timeout=30).reason == "poweroff", domain.result
    assert domain.console.lines[1:] == [
        "read through it: seen through two addresses", "and back: SEEN through two addresses",
        "a writable mapping of a page table: EBUSY", "an entry in the hypervisor's slots: EINVAL", "all undone"]


def test_smp(host):
    """A second vCPU would not come up, or its wake-up would be lost."""
    domain = host.create(Smp, memory="8M", vcpus=4)
    assert domain.wait(timeout=30).reason == "poweroff", domain.result
    assert domain.console.lines == [f"vcpu {n} has computed for 1 ms" for n in (1, 2, 3)]
