"""``xenlike run``: consoles, exit statuses, reports, input, signals, as a shell sees them."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import time

import pytest
from commands import PATIENCE, environment, guest, start, xenlike


# ---- how a run ends --------------------------------------------------------------------------------------------------

def test_one_console_is_stdout_byte_for_byte(tmp_path):
    """Output would be changed on its way: decoded, translated, or mixed with notes."""
    cfg = guest(tmp_path, r"""
        self.console.write(bytes(range(256)) + b"\r\n")
        await self.sleep(0.01)
        self.console.write(b"no newline at the end")
    """)
    done = xenlike("run", cfg.name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, bytes(range(256)) + b"\r\nno newline at the end")
    assert re.fullmatch(rb"xenlike: g: domain 1, 4M, 1 vCPU\nxenlike: g: poweroff at \d+\.\d{3} s\n", done.stderr)


def test_much_output_arrives_whole_and_in_order(tmp_path):
    """Something would be lost between a 2 KiB ring and a pipe."""
    cfg = guest(tmp_path, """
        for n in range(20000):
            self.console.print(n)
            if n % 100 == 0:
                await self.console.drain()
    """)
    done = xenlike("run", "-q", cfg, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(b"%d\n" % n for n in range(20000))


def test_a_crash_is_reported_with_traceback_and_events(tmp_path):
    """Exit status 3 without a reason, or none at all: a user could not find the defect."""
    cfg = guest(tmp_path, """
        self.console.print("before")
        await self.sleep(0.01)
        raise ValueError("oops")
    """)
    done = xenlike("run", "-q", cfg, cwd=tmp_path)
    report = done.stderr.decode()
    assert (done.returncode, done.stdout) == (3, b"before\n")
    assert "xenlike: g (domain 1) crashed: vcpu 0: ValueError: oops\n" in report
    assert re.search(r'g\.py", line 7, in main\n\s+raise ValueError\("oops"\)', report)
    events = re.findall(r"^ +(\d+) d(\d+)v0 +(\w+)", report, re.M)
    assert {domid for _, domid, _ in events} == {"1"} and "crash" in {kind for *_, kind in events}
    assert [int(t) for t, *_ in events] == sorted(int(t) for t, *_ in events)


def test_several_domains_with_one_that_crashes(tmp_path):
    """Lines could not be told apart, or one domain's good end would hide another's crash."""
    good = guest(tmp_path, 'await self.sleep(0.05)\nself.console.write(b"good\\r\\nlast")', name="good")
    bad = guest(tmp_path, 'self.console.write(b"unfinished")\nself.shutdown(3)\nawait self.halt()', name="bad")
    done = xenlike("run", good, bad, cwd=tmp_path)
    assert done.returncode == 3
    assert sorted(done.stdout.splitlines()) == [b"bad: unfinished", b"good: good", b"good: last"]
    assert b"bad (domain 2) crashed: it asked for it" in done.stderr and b"good: poweroff" in done.stderr


def test_timeout(tmp_path):
    """A hanging guest would hang the caller, or not say where it hangs."""
    cfg = guest(tmp_path, 'self.console.print("up")\nawait self.console.readline()')
    done = xenlike("run", cfg, "--timeout", "0.3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, b"up\n")
    assert b"time is over after 0.3 s" in done.stderr and b"domain 1 (g) vcpu 0: blocked; task 'main' at g.py:6" in done.stderr


def test_virtual_time_and_stall(tmp_path):
    """A day's sleep would take a day; a guest that waits for nothing would never end."""
    cfg = guest(tmp_path, 'await self.sleep(86400)\nself.console.print(self.now() // 10**9)\nawait self.console.readline()')
    done = xenlike("run", "--clock", "virtual", cfg, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, b"86400\n")
    assert b"nothing can happen any more" in done.stderr and b"at g.py:7" in done.stderr
    assert xenlike("run", "--clock=virtual", "--timeout=3600", cfg, cwd=tmp_path).returncode == 4


def test_reboot_restarts_and_is_followed(tmp_path):
    """on_reboot would not be obeyed, or the new domain's console would be lost."""
    cfg = guest(tmp_path, 'self.console.print("boot", self.domid)\nself.shutdown(1 if self.domid < 3 else 0)\nawait self.halt()')
    done = xenlike("run", cfg, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"boot 1\nboot 2\nboot 3\n")
    assert done.stderr.count(b"g: reboot at") == 2
    once = xenlike("run", cfg, 'on_reboot="destroy"', cwd=tmp_path)
    assert (once.returncode, once.stdout) == (0, b"boot 1\n")


# ---- input -----------------------------------------------------------------------------------------------------------

ECHO = """\
while (line := await self.console.readline()) != "quit":
    self.console.print("got", line)
"""


def test_stdin_is_the_guests_input_and_its_end_only_ends_it(tmp_path):
    """Typed lines would not reach the guest, or the end of a pipe would kill it."""
    cfg = guest(tmp_path, ECHO + "await self.sleep(0.2)\nself.console.print('after')")
    done = xenlike("run", "-q", cfg, cwd=tmp_path, input=b"one\ntwo\nquit\n")
    assert (done.returncode, done.stdout) == (0, b"got one\ngot two\nafter\n")


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_much_input_arrives_whole(tmp_path, kind):
    """Input faster than the guest would be dropped or would pile up (the ring has 1 KiB)."""
    cfg = guest(tmp_path, """
        import hashlib
        digest, count = hashlib.sha256(), 0
        while count < 200_000:
            data = await self.console.read(500)
            digest.update(data)
            count += len(data)
        self.console.print(digest.hexdigest())
    """)
    data = random.Random(1).randbytes(200_000)
    wanted = hashlib.sha256(data).hexdigest().encode() + b"\n"
    if kind == "pipe":
        done = xenlike("run", "-q", cfg, cwd=tmp_path, input=data)
    else:
        (tmp_path / "input").write_bytes(data)
        with open(tmp_path / "input", "rb") as file:
            done = xenlike("run", "-q", cfg, cwd=tmp_path, stdin=file)
    assert (done.returncode, done.stdout) == (0, wanted)


def test_virtual_runs_repeat(tmp_path):
    """Two runs of one seed would differ: by hash order, by when input from a file is read, by anything of the host."""
    cfg = guest(tmp_path, ECHO + "self.console.print(await self.xenstore.read('vm'))\nawait self.sleep(len(self.args) / 1000)")
    (tmp_path / "input").write_bytes(b"hello\n" * 500 + b"quit\n")

    def run(hash_seed: str, *words: str) -> tuple[bytes, bytes]:
        with open(tmp_path / "input", "rb") as file:
            done = xenlike("run", "-q", cfg, "--clock", "virtual", "--trace-digest", *words, cwd=tmp_path, stdin=file,
                           env=environment(PYTHONHASHSEED=hash_seed))
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    first = run("1", "--seed", "7")
    assert re.fullmatch(rb"trace digest: [0-9a-f]{16}\n", first[1])
    assert run("2", "--seed", "7") == first
    assert run("1", "--seed", "8")[0] != first[0]                      # another UUID
    assert run("1", "--seed", "7", 'extra="x"')[1] != first[1]         # a sleep more


# ---- the outside -----------------------------------------------------------------------------------------------------

def wait_for(stream, text: bytes) -> bytes:
    """Reads a stream up to a text."""
    seen = b""
    while text not in seen:
        part = os.read(stream.fileno(), 4096)
        assert part, f"ended before {text!r}: {seen!r}"
        seen += part
    return seen


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_destroy_and_say_so(tmp_path, number, status):
    """Ctrl-C would leave a traceback, or a run that goes on."""
    cfg = guest(tmp_path, 'self.console.print("up")\nawait self.sleep(3600)')
    with start("run", cfg, cwd=tmp_path) as process:
        wait_for(process.stdout, b"up\n")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert err.endswith(f"xenlike: {number.name}: g destroyed\n".encode()), err


def test_second_interrupt_ends_a_guest_that_never_awaits(tmp_path):
    """A guest in an endless loop could not be interrupted."""
    cfg = guest(tmp_path, 'open("looping", "w").close()\nwhile True:\n    pass')
    with start("run", "-q", cfg, cwd=tmp_path) as process:
        while not (tmp_path / "looping").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, b"")


def test_reader_of_stdout_goes_away(tmp_path):
    """`xenlike run ... | head` would end in a traceback, or never."""
    cfg = guest(tmp_path, 'while True:\n    self.console.print("line")\n    await self.sleep(0.001)')
    with start("run", "-q", cfg, cwd=tmp_path) as process:
        wait_for(process.stdout, b"line\n")
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (1, b"")


def test_full_disk(tmp_path):
    """Lost output would go unnoticed."""
    cfg = guest(tmp_path, 'self.console.print("x")')
    with open("/dev/full", "wb") as full:
        done = xenlike("run", "-q", cfg, cwd=tmp_path, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"xenlike: the console cannot be written to stdout: No space left on device\n")


def test_logs_and_xenstore_socket(tmp_path):
    """--log-dir or --xenstore-socket would do nothing."""
    pyxs = pytest.importorskip("pyxs")
    cfg = guest(tmp_path, """
        self.console.print("waiting")
        self.console.print(await self.xenstore.wait_for("data/go", lambda value: value is not None))
    """)
    socket = tmp_path / "run" / "xs"
    with start("run", "-q", cfg, "--xenstore-socket", socket, "--log-dir", tmp_path / "logs", cwd=tmp_path) as process:
        wait_for(process.stdout, b"waiting\n")
        with pyxs.Client(unix_socket_path=str(socket)) as client:
            assert client.read(b"/local/domain/1/name") == b"g"
            client.write(b"/local/domain/1/data/go", b"from outside")
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, b"from outside\n", b"")
    assert not socket.exists()
    assert (tmp_path / "logs" / "guest-g.log").read_bytes() == b"waiting\nfrom outside\n"


# ---- mistakes --------------------------------------------------------------------------------------------------------

def test_mistakes_in_a_file_name_line_and_key(tmp_path):
    """A user would not know what to change."""
    cfg = guest(tmp_path, "pass", config='memry = 3\ndisk = [ "root.img,raw,xvda,rw" ]')
    done = xenlike("run", cfg.name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines()[-1] == \
        "xenlike: g.cfg:5: disk: file 'root.img' does not exist (paths are relative to the config file)"
    done = xenlike("run", cfg.name, "disk=[]", cwd=tmp_path)
    assert done.returncode == 0
    assert b"xenlike: g.cfg:4: warning: memry: is not a known key, and is not used (did you mean 'memory'?)\n" in done.stderr
    done = xenlike("run", "-q", cfg.name, "disk=[]", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words, message", [
    (["nope.cfg"], "nope.cfg: cannot be read: No such file or directory"),
    (["g.cfg", 'kernel="g.py:Nope"'], "command line: kernel: '{folder}/g.py' has no class Nope (it has G)"),
    (["g.cfg", "g.cfg"], "g.cfg:1: name: a domain named 'g' runs already (give it another name)"),
    (["g.cfg", "--memory", "12M"],
     "g.cfg:3: memory: the machine has no 4 MiB free for domain 1: raise the host's memory, or lower the domain's"),
    (["g.cfg", "--log-dir", "g.py"], "g.py: File exists"),
    (["g.cfg", "vcpus=200"], "command line: vcpus: 200 vCPUs: 128 is the most"),
    *(([word], f'{word}: a guest in Python is started by a configuration, a file with the lines name = "g" and kernel = "g.py:{named}" '
               '(xenlike new writes one)') for word, named in (("g.py", "ClassName"), ("g.py:G", "G"))),
])
def test_what_cannot_be_done(tmp_path, words, message):
    """A traceback, or another exit status than 1."""
    guest(tmp_path, "pass")
    done = xenlike("run", "-q", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.decode()) == (1, f"xenlike: {message.format(folder=tmp_path)}\n")


@pytest.mark.parametrize("words", [
    ["run"], ["run", "memory=3"], ["run", "g.cfg", "--clock", "lunar"], ["run", "g.cfg", "--timeout", "soon"],
    ["run", "g.cfg", "--trace-digest"], ["run", "g.cfg", "--memory", "10Q"], ["run", "g.cfg", "--nope"],
])
def test_usage_errors(tmp_path, words):
    """A wrong command line would do something, or not be told from a failure."""
    guest(tmp_path, 'self.console.print("ran")')
    done = xenlike(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"") and b"usage: xenlike run" in done.stderr
