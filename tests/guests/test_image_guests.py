"""Guests of machine code as users run them: Host.create() with a path, configuration files, `xenlike run IMAGE`.

The images are made here, a few instructions each; what the instructions mean is tested elsewhere.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

from xenlike import Host
from xenlike.toolstack import ConfigError

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from image_files import Load, elf, gzipped  # noqa: E402

CODE, DATA = 0x1000, 0x2000             # where code and data lie
SYSCALL = b"\x0f\x05"
UD2 = b"\x0f\x0b"


def hypercall(number: int) -> bytes:
    return b"\xb8" + struct.pack("<I", number) + SYSCALL                        # mov eax, number; syscall


def console_write(n: int, rdx: bytes) -> bytes:
    """console_io(CONSOLEIO_write, n, rdx); ``rdx`` are the instructions that set it."""
    return rdx + b"\x31\xff" + b"\xbe" + struct.pack("<I", n) + hypercall(18)   # xor edi, edi; mov esi, n


def shutdown(reason_at: int) -> bytes:
    return b"\xbf\x02\0\0\0\xbe" + struct.pack("<I", reason_at) + hypercall(29)     # mov edi, SCHEDOP_shutdown; mov esi, address


def image(text: bytes = b"Hello from machine code\n", *, reason: int = 0, code: bytes | None = None, **notes) -> bytes:
    """An image that prints ``text`` and shuts down for ``reason``."""
    if code is None:
        code = console_write(len(text), b"\xba" + struct.pack("<I", DATA + 16)) + shutdown(DATA) + UD2     # mov edx, address
    return elf([Load(CODE, code), Load(DATA, struct.pack("<I", reason).ljust(16, b"\0") + text, 4096)], notes, entry=CODE)


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    path = tmp_path / "hello.elf"
    path.write_bytes(image())
    return path


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("as_text", [True, False])
def test_an_image_runs(hello: Path, clock: str, as_text: bool) -> None:
    """Host.create() would not take a path, or the guest not run and end like any other."""
    with Host(clock=clock) as host:
        first = host.create(str(hello) if as_text else hello)
        assert first.wait(timeout=60).reason == "poweroff" and first.console.text == "Hello from machine code\n"
        second = host.create(hello)
        assert (first.name, second.name, second.guest) == ("hello", "hello", None)
        assert second.wait(timeout=60).reason == "poweroff"
        before = host.usage()
        assert host.create(hello).wait(timeout=60).reason == "poweroff" and host.usage() == before, "all is given back"


def test_compressed_and_beside_a_python_guest(tmp_path: Path) -> None:
    """Guests of both kinds would not live on one host."""
    from guest_sdk.examples.hello import Hello

    (tmp_path / "packed.gz").write_bytes(gzipped(image()))
    with Host(clock="virtual") as host:
        domains = [host.create(Hello, on_poweroff="preserve"), host.create(tmp_path / "packed.gz", on_poweroff="preserve")]
        assert host.wait(domains, timeout=60)
        assert [d.result.reason for d in domains] == ["poweroff"] * 2 and domains[1].name == "packed"
        assert domains[1].console.lines == ["Hello from machine code"]


def test_start_info_reaches_the_guest(tmp_path: Path) -> None:
    """rsi would not be start_info, its RAM disk and command line not be there, or the stack not be one."""
    (tmp_path / "initrd").write_bytes(b"RAMDISK!")
    code = (b"\x50\x48\x89\xf3"                                                 # push rax; mov rbx, rsi
            + console_write(8, b"\x48\x8b\x53\x70")                             # mov rdx, [rbx + mod_start]
            + console_write(5, b"\x48\x8d\x93\x80\0\0\0")                       # lea rdx, [rbx + cmd_line]
            + console_write(14, b"\x48\x89\xda")                                # mov rdx, rbx
            + shutdown(DATA))
    (tmp_path / "image").write_bytes(image(code=code))
    with Host(clock="virtual") as host:
        domain = host.create(tmp_path / "image", ramdisk=str(tmp_path / "initrd"), extra="a=b c")
        assert domain.wait(timeout=60).reason == "poweroff" and domain.console.text == "RAMDISK!a=b cxen-3.0-x86_64"


def test_hypercall_page(tmp_path: Path) -> None:
    """An image that calls into its hypercall page would run into zeros."""
    page = 0x4000
    code = b"\xbf\x02\0\0\0\xbe" + struct.pack("<I", DATA)
    code += b"\xe8" + struct.pack("<i", page + 29 * 32 - (CODE + len(code) + 5)) + UD2
    data = elf([Load(CODE, code), Load(DATA, bytes(4096)), Load(page, b"\xcc" * 4096)], {"HYPERCALL_PAGE": page}, entry=CODE)
    (tmp_path / "image").write_bytes(data)
    with Host(clock="virtual") as host:
        assert host.create(tmp_path / "image").wait(timeout=60).reason == "poweroff"


def test_reboot_builds_it_again(tmp_path: Path) -> None:
    """A guest that asks for a reboot would be gone, or start from memory that its last life left."""
    path = tmp_path / "image"
    path.write_bytes(image(b"again\n", reason=1))
    with Host(clock="virtual") as host:
        domain = host.create(path)
        assert domain.wait(timeout=60).reason == "reboot"
        assert host.wait_until(lambda: len(host.restarts) >= 2, timeout=60)
        assert host.restarts[0].console.text == "again\n" and host.restarts[0].name == "image"


def test_a_crash_is_told(tmp_path: Path) -> None:
    """A guest that dies of its own instruction would take the host along, or leave its author without a word."""
    path = tmp_path / "image"
    path.write_bytes(image(code=UD2))
    with Host(clock="virtual") as host:
        domain = host.create(path, on_crash="preserve")
        result = domain.wait(timeout=60)
        assert result.reason == "crash" and result.crash_reason and result.traceback == "" and "report" not in repr(result)
        assert result.report == domain.crash_report() and "rip" in result.report and "ud2" in result.report
        assert host.create(tmp_path / "image", name="next", paused=True).result is None


def test_waits_names_the_vcpus_of_images(tmp_path: Path) -> None:
    """A stalled host would not say that a guest of machine code is what it waits for."""
    code = b"\xbf\x01\0\0\0\x31\xf6" + hypercall(29) + UD2                      # SCHEDOP_block, and nothing ever comes
    (tmp_path / "image").write_bytes(image(code=code))
    with Host(clock="virtual") as host:
        host.create(tmp_path / "image", vcpus=2)
        host.wait_until(lambda: False, timeout=1e-3)
        assert host.waits() == ["domain 1 (image) vcpu 0: blocked until an event comes", "domain 1 (image) vcpu 1: down"]


@pytest.mark.parametrize("name, content, settings, says", [
    ("none", None, {}, "kernel: "),
    ("text", b"name = 'web'\n", {}, "text': begins with"),
    ("bits32", image()[:4] + b"\1" + image()[5:], {}, "bits32': EI_CLASS: 1: this is a 32-bit image"),
    ("big", elf([Load(0x1000, b"x", 64 << 20)]), {}, "memory: the image needs 16385 pages"),
    ("ok", image(), {"extra": "x" * 2000}, "cmdline: the command line has 2000 bytes"),
    ("ok", image(), {"ramdisk": "/dev/null"}, "ramdisk"),
])
def test_errors_name_the_setting(tmp_path: Path, name, content, settings, says) -> None:
    """A user would get a traceback of ours instead of what is wrong with the file or setting; and the host must not leak."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with Host(clock="virtual") as host:
        before = host.usage()
        with pytest.raises(ConfigError, match="(?s)" + says.replace("(", r"\(")):
            host.create(tmp_path / name, **settings)
        assert host.usage() == before and host.domains == []


# ---- the command -----------------------------------------------------------------------------------------------------

def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xenlike", "run", *map(str, words)], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120, check=False, env=environment())


def test_run_an_image_and_a_configuration(hello: Path, tmp_path: Path) -> None:
    """`xenlike run ./image memory=16M` and a file that names the image would not do the same."""
    done = run("./hello.elf", "memory=16M", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Hello from machine code\n"), done.stderr
    assert "hello: domain 1, 16M, 1 vCPU" in done.stderr
    (tmp_path / "web.cfg").write_text('name = "web"\nkernel = "hello.elf"\nmemory = 16\n')
    done = run("web.cfg", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Hello from machine code\n"), done.stderr
    done = run("web.cfg", "hello.elf", "--clock", "virtual", cwd=tmp_path)
    assert sorted(done.stdout.splitlines()) == ["hello: Hello from machine code", "web: Hello from machine code"]


def test_run_tells_of_crashes_and_bad_files(tmp_path: Path) -> None:
    """The exit status would be 0, or the message not say which file and field."""
    (tmp_path / "crash").write_bytes(image(code=UD2))
    done = run("crash", "-q", cwd=tmp_path)
    assert done.returncode == 3 and "crash (domain 1) crashed: " in done.stderr
    (tmp_path / "cut").write_bytes(image()[:100])
    done = run("cut", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("xenlike: command line: kernel: ") and "e_phoff" in done.stderr
