"""The examples of the C SDK run, under both clocks, and say what they should."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from c_images import example, need_tools
from commands import PLUGIN, environment, xenlike as command

import xenlike
from guest_sdk.examples.pingpong import Ping, Pong


@pytest.fixture(params=["virtual", "real"])
def host(request):
    with xenlike.Host(clock=request.param, seed=7) as host:
        yield host


def run(host, name, **settings):
    """Boots an example to its end; its lines. A crash shows what it said."""
    domain = host.create(example(name), **{"memory": "16M", **settings})
    result = domain.wait(timeout=120)
    assert result.reason == "poweroff", f"{result.reason}: {result.crash_reason}\n{domain.console.text}"
    return domain.console.lines


def test_hello(host):
    """A C guest's start, print, event or xenstore client would not work."""
    assert run(host, "hello", extra="one two") == [
        "hello from domain 1", "my name is hello", "argument 1: one", "argument 2: two"]


@pytest.mark.parametrize("memory", ["4M", "5M", "64M", "600M"])
def test_sizes(host, memory):
    """The guest would lose its way where the builder's mapping ends before, at, or long before the end of memory."""
    assert run(host, "hello", memory=memory)[0] == "hello from domain 1"


def test_traps(host):
    """A fault would come with another vector, error code or address than on Xen, or a page table could be written."""
    lines = run(host, "traps")
    assert lines[:3] == [
        "read of address 8: vector 14, error 0, address 0x8",
        lines[1], lines[2]]
    text = "\n".join(lines)
    assert re.search(r"^write to \.rodata: vector 14, error 0x3, address 0xffffffff80[0-9a-f]+$", text, re.M)
    assert re.search(r"^jump into data: vector 14, error 0x11, address 0xffffffff80[0-9a-f]+010$", text, re.M)
    assert lines[3:9] == [
        "read of a non-canonical address: vector 13, error 0", "read of MSR 0xdeadbeef: vector 13, error 0", "ud2: vector 6, error 0",
        "int3: handled 1 times, rax 42", "repairing 0xffffc00000000000", "repaired: 7"]
    assert re.sub("0x[0-9a-f]{9,}", "ADDRESS", "\n".join(lines[9:])).splitlines() == [
        "through a read-only alias: one page", "write to the alias: vector 14, error 0x3, address ADDRESS",
        "pin of a writable page: EINVAL", "pin of a read-only page: success",
        "its first entry is now ADDRESS: Xen has set U and a software bit", "mapping a table writable: EBUSY",
        "store to a table: vector 14, error 0x3, address ADDRESS", "entry by hypercall: success",
        "entry that maps the table writable: EBUSY", "stored entry: taken", "unpin: success", "mapping it writable again: success"]


@pytest.mark.parametrize("ping, pong", [("c", "c"), ("c", "python"), ("python", "c")])
def test_pingpong(host, ping, pong):
    """Events between guests, or a shared page, would lose something; or C and Python guests would not speak the same ABI."""
    def create(language, role, guest, peer, **settings):
        if language == "python":
            return host.create(guest, memory="8M", extra=f"peer={peer}", **settings)
        return host.create(example("pingpong"), memory="8M", extra=f"{role} peer={peer}", **settings)

    first = create(ping, "ping", Ping, 2, paused=True)
    second = create(pong, "pong", Pong, first.domid)
    first.unpause()
    assert host.wait([first, second], timeout=120), (first.console.text, second.console.text)
    assert (first.result.reason, second.result.reason) == ("poweroff", "poweroff"), (first.result, second.result)
    assert re.fullmatch(r"1000 round trips, [0-9.]+ us each\n", first.console.text)
    assert second.console.text in ("answered 1000\n", "answered 1000, unmap: success\n")


@pytest.mark.parametrize("vcpus", [2, 4])
def test_smp(host, vcpus):
    """A second vCPU would not come up, an atomic instruction would not be one, or an interrupt between vCPUs would be lost."""
    assert run(host, "smp", vcpus=vcpus) == [f"{vcpus} vcpus counted to {vcpus * 10000}", "all were woken, and interrupted us",
                                             "all are down"]


def test_disk(host, tmp_path):
    """blkfront in C would read or write other bytes than the image has."""
    disk = tmp_path / "disk.img"
    data = bytes(i * 7 + (i >> 8) & 255 for i in range(100 * 1024 + 512))
    disk.write_bytes(data)
    digest = 0xcbf29ce484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001b3 & (1 << 64) - 1
    assert run(host, "disk", disk=[f"{disk},raw,xvda,rw"]) == [
        f"201 sectors, fnv1a {digest:016x}, success", "write of the last sector: success", "read behind the end: EIO",
        'opened again: success, "written by a C guest"']
    assert disk.read_bytes() == data[:-512] + b"written by a C guest".ljust(512, b"\0")


def test_user(host):
    """User mode would see the kernel's memory, or a system call, a fault or a timer would not find its way into the kernel and back."""
    assert run(host, "user") == [
        "hello from user mode", "program(12) = 42, 4 system calls", "user reads kernel data: user mode, vector 14, error 0x4",
        "user reads cr3: user mode, vector 13, error 0", "the timer reached spin(): 7", "the pages are back"]


def busy(seed, tmp_path):
    """One run of a busy host of C guests with the virtual clock, and what can be compared of it."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(64 * 1024))
    with xenlike.Host(clock="virtual", seed=seed) as host:
        ping = host.create(example("pingpong"), memory="8M", extra="ping peer=2", paused=True, on_poweroff="preserve")
        host.create(example("pingpong"), memory="8M", extra="pong peer=1", on_poweroff="preserve")
        host.create(example("smp"), memory="8M", vcpus=4, on_poweroff="preserve")
        host.create(example("disk"), memory="8M", disk=[f"{disk},raw,xvda,rw"], on_poweroff="preserve")
        host.create(example("user"), memory="8M", on_poweroff="preserve")
        ping.unpause()
        domains = host.domains
        host.wait(timeout=120)
        assert [d.result.reason for d in domains] == ["poweroff"] * 5, [d.console.text for d in domains]
        return host.trace_digest(), host.now(), [d.console.text for d in domains], [dict(d.statistics().counters) for d in domains]


def test_runs_repeat(tmp_path):
    """With the virtual clock, machine code would take another course the second time: other events, instructions, or times."""
    first, second = busy(5, tmp_path), busy(5, tmp_path)
    assert first == second
    assert all(counters["instructions"] > 10000 for counters in first[3])


def test_crash_is_told(host, tmp_path):
    """A guest that returns failure would look like one that powered off, or its last words would be lost."""
    domain = host.create(example("pingpong"), memory="8M")
    assert domain.wait(timeout=60).reason == "crash"
    assert domain.console.lines[-1] == "panic: say: ping peer=DOMID or pong peer=DOMID"


def test_a_new_project_builds_runs_and_passes_its_own_test(tmp_path):
    """The first thing that a newcomer does in C would fail."""
    need_tools()
    made = command("new", "--lang", "c", "web-server", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.decode().splitlines()[-1] == "next: cd web-server && make && xenlike run web-server.cfg"
    project = tmp_path / "web-server"
    tested = subprocess.run([sys.executable, "-m", "pytest", *PLUGIN], cwd=project, env=environment(), capture_output=True, text=True,
                            timeout=300)
    assert tested.returncode == 0 and " 1 passed" in tested.stdout, tested.stdout
    ran = command("run", "web-server.cfg", cwd=project)     # the test has built it
    assert (ran.returncode, ran.stdout) == (0, b"hello from domain 1\nmy name is web-server\n"), ran.stderr
