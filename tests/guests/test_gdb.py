"""gdb on a guest of machine code, driven by scripts as a person would type them (docs/debugging.md)."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from commands import tool_environment

from guest_sdk.c import makefile
from xenlike import Host
from xenlike.debugger import GdbServer

SOURCE = r"""
#include <guest.h>

volatile unsigned long counter;
volatile unsigned long *bad = (unsigned long *)0xdead0000ul;

__attribute__((noinline)) unsigned long step_me(unsigned long n) { counter += n; return counter * 2; }

int main(int argc, char **argv)
{
    char mode = argc > 1 ? argv[1][0] : 0;

    printf("before\n");
    for (unsigned long n = 1; n <= 5; n++)
        step_me(n);
    printf("counter %lu\n", counter);
    if (mode == 'c')
        *bad = 1;
    while (mode == 's')
        counter++;
    return 0;
}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest above, with symbols."""
    folder = tmp_path_factory.mktemp("gdb")
    (folder / "debugged.c").write_text(SOURCE)
    (folder / "Makefile").write_text(f"GUEST = debugged\nSRCS = debugged.c\ninclude {makefile()}\n")
    subprocess.run(["make", "-s", "-C", str(folder)], env=tool_environment(), check=True)
    return folder / "debugged"


def gdb(image: Path, server: GdbServer, *commands: str, timeout: float = 60) -> str:
    """What gdb prints for ``commands`` once it is connected."""
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    words = ["gdb", "-q", "-nx", "-batch", "-ex", "set confirm off", "-ex", "set pagination off", "-ex", f"target remote 127.0.0.1:{server.port}"]
    for command in commands:
        words += ["-ex", command]
    done = subprocess.run([*words, str(image)], env=tool_environment(), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


@pytest.fixture
def run(image: Path):
    """run(extra, vcpus) -> (host, domain, server), stopped before the first instruction."""
    opened = []

    def start(extra: str = "", **settings):
        host = Host(clock="real")
        domain = host.create(str(image), name="debugged", memory="16M", extra=extra, paused=True, on_crash="preserve", **settings)
        server = GdbServer(domain, 0, wait=True)
        domain.unpause()
        opened.append((host, server))
        return host, domain, server

    yield start
    for host, server in opened:
        server.close()
        host.close()


def test_breakpoint_step_and_registers(run, image) -> None:
    """A breakpoint would not stop the guest, or the registers, variables and code that gdb shows there would be others'."""
    _, domain, server = run()
    out = gdb(image, server, "break step_me", "continue", "print n", "print counter", "stepi", "info registers rip", "continue", "print n",
              "delete", "continue")
    assert "Breakpoint 1, step_me" in out
    assert "= 1\n" in out and "= 0\n" in out and "= 2\n" in out
    assert re.search(r"rip\s+0x[0-9a-f]+\s+0x[0-9a-f]+ <step_me", out)
    assert "exited normally" in out
    assert "counter 15" in domain.console.text


def test_watchpoint(run, image) -> None:
    """A write to a watched variable would go unseen, or be shown with wrong values."""
    _, _, server = run()
    out = gdb(image, server, "watch counter", "continue", "continue", "delete", "continue")
    assert "Old value = 0" in out and "New value = 1" in out and "New value = 3" in out


def test_memory_and_registers_can_be_set(run, image) -> None:
    """What a user sets at a breakpoint would not reach the guest."""
    _, domain, server = run()
    gdb(image, server, "break step_me", "continue", "set var counter = 1000", "set $rdi = 500", "delete", "continue")
    assert "counter 1514" in domain.console.text


def test_interrupt_a_running_guest(run, image) -> None:
    """Ctrl-C would not stop a guest that loops; gdb would wait for good."""
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    _, domain, server = run("spin")
    process = subprocess.Popen(["gdb", "-q", "-nx", "-ex", "set confirm off", "-ex", f"target remote 127.0.0.1:{server.port}",
                                "-ex", "continue", str(image)], env=tool_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        domain.console.expect("counter 15")
        spinning = domain.statistics().counters["instructions"] + 1_000_000     # far behind its last line
        while domain.statistics().counters["instructions"] < spinning:
            time.sleep(0.01)
        process.send_signal(2)
        out, _ = process.communicate("print counter > 15\nkill\nquit\n", timeout=30)
    finally:
        process.kill()
    assert "SIGINT" in out and "= 1" in out


def test_vcpus_are_threads(run, image) -> None:
    """gdb would not list the vCPUs, or not know which are up."""
    _, _, server = run(vcpus=1, maxvcpus=3)
    out = gdb(image, server, "info threads", "continue")
    assert re.search(r"Thread 1 .*vCPU 0 of debugged, runnable, kernel mode", out)
    assert re.search(r"Thread 3 .*vCPU 2 of debugged, down", out)


def test_a_crash_stops_in_gdb(run, image) -> None:
    """A crashing guest would be gone before anybody could look at it."""
    _, domain, server = run("crash")
    out = gdb(image, server, "continue", "print bad", "monitor walk 0xdead0000", "monitor events 5", "monitor vcpu", "continue")
    assert "SIGABRT" in out
    assert "0xdead0000" in out and "not present" in out
    assert "cr2 00000000dead0000" in out


def test_detaching_lets_the_guest_run(run, image) -> None:
    """A guest would stay stopped, or keep its breakpoints, when gdb goes away."""
    _, domain, server = run()
    gdb(image, server, "break step_me", "continue", "detach")
    assert domain.wait(timeout=30).reason == "poweroff"
    assert "counter 15" in domain.console.text


def test_nonsense_on_the_port(run, image) -> None:
    """Whatever somebody sends to the port, the host would not survive it, or gdb could not connect afterwards."""
    import socket

    _, domain, server = run()
    for junk in (b"GET / HTTP/1.0\r\n\r\n", b"$zz#00", b"$" + b"x" * 100000, b"\x03\x03$m#6d$m1,#00$Zq#cb$G00#00$Hg999#00", b"$vCont;s:99#00"):
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.settimeout(5)
            try:
                peer.sendall(junk)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass
            except OSError:
                pass
    assert domain.wait(timeout=30).reason == "poweroff"


def test_packets_that_no_gdb_sends(run):
    """A packet with a number of any size or sign, or with anything else in it, must be answered with an error: an exception on the
    lane would stop every domain of the host."""
    _, _, server = run()
    big = b"f" * 40
    bodies = [form % number for number in (big, b"-1", b"-" + big, b"", b"zz", b"\xff\xfe", b"8000000000000000", b"100000000")
              for form in (b"Z0,%s,1", b"Z2,1000,%s", b"z1,%s,1", b"m%s,8", b"m1000,%s", b"M%s,1:00", b"M1000,%s:00", b"X%s,0:", b"p%s",
                           b"P%s=00", b"P0=%s", b"G%s", b"Hg%s", b"T%s", b"qThreadExtraInfo,%s", b"vCont;s:%s", b"qRcmd,%s", b"Z%s",
                           b"qXfer:features:read:target.xml:%s,10", b"qXfer:features:read:target.xml:0,%s")
              if not form.startswith(b"vCont") or number in (big, b"zz")]
    bodies += [b"qRcmd," + text.encode().hex().encode() for text in (
        f"walk {1 << 99}", "walk -1", "walk x", f"events {1 << 99}", "events -9", "vcpu 1", "")]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as peer:
        for body in [*bodies, b"qC"]:
            peer.sendall(b"$%b#%02x" % (body, sum(body) & 255))
            reply = b""
            while not re.search(rb"\$[^#]*#..", reply):
                part = peer.recv(65536)
                assert part, f"no answer to {body!r}"
                reply += part
    assert b"$QC1#" in reply
