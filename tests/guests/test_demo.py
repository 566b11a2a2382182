"""``make demo``: what it prints is so, and it fails when something is not."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import replace

import pytest
from c_images import need_tools

from xenlike import demo
from xenlike.demo import guests, native, python_guests, stage, unmodified
from xenlike.engine import ffi, lib

PYTHON = ["--parts", "python", "--size", "1M", "--rounds", "20"]


def test_all_checks_hold(capsys):
    """The demonstration would show something else than what the disk holds, or not say so."""
    assert demo.main(PYTHON) == 0
    out = capsys.readouterr().out
    assert out.endswith("All checks hold.\n") and "FAILED" not in out
    content = random.Random(0).randbytes(1 << 20)
    assert out.count(hashlib.sha256(content).hexdigest()) == 2           # the host's and the guest's
    written = hashlib.sha256(guests.pattern(2, 1 << 18)).hexdigest()
    assert out.count(written) == 2
    assert re.search(r"^  20 round trips in \d+\.\d ms by ping's clock: \d+\.\d us each", out, re.M)
    counted = {m[1].strip(): (int(m[2]), int(m[3])) for m in re.finditer(r"^ {2,4}(\w[\w ]+?) +(\d+) +(\d+)$", out, re.M)}
    assert counted["events sent"][0] >= 21 and counted["events received"][1] >= 20 and counted["grants mapped"] == (0, 1)
    calls = [pair for name, pair in counted.items() if name.endswith("_op") or name.startswith("update_")]
    assert (sum(c[0] for c in calls), sum(c[1] for c in calls)) == counted["hypercalls"]


class WritesElsewhere(guests.Ping):
    async def use_disk(self, size):
        disk = await self.block("xvda")
        await disk.write(3, b"\0" * 512)
        await disk.flush()
        await disk.close()
        await super().use_disk(size)


class Lies(guests.Ping):
    async def use_disk(self, size):
        self.console.print(f"read 2048 sectors in 5 ns, sha256 {'0' * 64}")
        self.console.print(f"wrote 262144 bytes at sector 1024 in 5 ns, flushed in 5 ns, sha256 {'0' * 64}")


class Crashes(guests.Pong):
    async def main(self):
        raise ValueError("oops")


class DoesNotWait(guests.Pong):
    async def main(self):
        self.console.print("answered 7")


@pytest.mark.parametrize("which, fake, text", [
    ("Ping", WritesElsewhere, r"nothing else changed +FAILED"), ("Ping", Lies, r"guest  0{64}  FAILED"),
    ("Pong", Crashes, r"pong did not power off: .*oops"), ("Pong", DoesNotWait, r"It does not go on"),
])
def test_it_notices(monkeypatch, capsys, which, fake, text):
    """Its checks could not fail."""
    monkeypatch.setattr(python_guests, which, fake)
    monkeypatch.setattr(stage, "PATIENCE", 1.0)
    assert demo.main(PYTHON) == 1
    out = capsys.readouterr().out
    assert re.search(text, out), out
    assert re.search(r"\d checks FAILED\.$", out)


def test_a_guest_in_c(capsys):
    """The guest in C would not be built, not run, or not speak the ABI of the one in Python."""
    need_tools()
    assert demo.main(["--parts", "c"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"C with C: there and back +ok\n    1000 round trips, .* ping ran \d+,\d{3} instructions", out), out
    assert re.search(r"C with Python: there and back +ok", out), out


def test_a_guest_in_c_that_is_wrong_is_noticed(monkeypatch, capsys):
    """Its checks could not fail."""
    need_tools()
    monkeypatch.setattr(native, "ROUNDS", 999)
    assert demo.main(["--parts", "c"]) == 1
    assert "there and back             FAILED" in re.sub(r" +FAILED", "             FAILED", capsys.readouterr().out)


@pytest.fixture
def translator():
    why = lib.xl_bt_unavailable()
    if why != ffi.NULL:
        pytest.skip(f"no translator on this host: {ffi.string(why).decode()}")


def test_unmodified_guests(capsys, translator):
    """The guests for a plain PC would not be built, not run by translation, or not be compared with the interpreter and with Linux."""
    need_tools()
    assert demo.main(["--parts", "pc"]) == 0
    out = capsys.readouterr().out
    assert "  | smp: counted 40000\n  | smp: interrupts arrived\n" in out, out
    runs = re.findall(r"^    instructions +([\d,]+) +([\d,]+)\n      of them interpreted +([\d,]+) +all\n    blocks translated +([\d,]+)\n", out, re.M)
    numbers = [[int(n.replace(",", "")) for n in run] for run in runs]
    assert len(numbers) == 2 and all(fast == slow and 0 <= interpreted < fast // 10 and blocks > 50 for fast, slow, interpreted, blocks in numbers), out
    assert len(re.findall(r"^  same (?:console|number of instructions|digest of all events) +ok$", out, re.M)) == 6
    checksum = re.search(r"^  \| sha256 \d+ \d+ ([0-9a-f]{16})$", out, re.M)
    assert checksum and re.search(rf"^  checksum of the same code on Linux +ok\n    {checksum[1]} after", out, re.M), out


@pytest.mark.parametrize("field, value, text", [
    ("console", "smp: counted 39999\n", r"same console +FAILED"), ("instructions", 700, r"same number of instructions +FAILED: 1000 is not 700"),
    ("digest", 5, r"same digest of all events +FAILED: [0-9a-f]{16} is not 0000000000000005"), ("blocks", 0, r"most instructions were translated +FAILED"),
])
def test_a_difference_between_engines_is_noticed(monkeypatch, capsys, tmp_path, translator, field, value, text):
    """Its checks could not fail."""
    def run(on, image, engine, **config):
        good = unmodified.Run("smp: counted 40000\n", 1000, 4, 0.5, *((10, 5, 50) if engine == "bt" else ()))
        return replace(good, **{field: value}) if engine == "bt" else good

    monkeypatch.setattr(unmodified, "run", run)
    on = stage.Stage()
    unmodified._compare(on, tmp_path, "a guest")
    assert on.failed == 1 and re.search(text, capsys.readouterr().out)


def test_grub(capsys):
    """GRUB would not come to its prompt, or what it reads would not be what the disk holds; or its console would be unreadable."""
    if isinstance(why := native.find_grub(None), str):
        pytest.skip(why)
    assert demo.main(["--parts", "grub"]) == 0
    out = capsys.readouterr().out
    assert "  | grub> ls\n  | (memdisk) (proc) (xen/xvda)\n" in out and "  | poem.txt boot/\n" in out, out
    assert "\x1b" not in out and "\r" not in out
    assert re.search(r"what cat shows is in the file +ok\n  SHA-256 of a file of 107 KiB +ok\n", out), out


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    """On a machine without gcc or GRUB the demo would fail, or leave them out silently."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "ROOT", tmp_path)             # as if installed: no tests beside it
    monkeypatch.setattr(native, "_GRUB", native.Path("no/such/grub.bin"))
    assert demo.main(["--parts", "c,pc,grub"]) == 0
    out = capsys.readouterr().out
    assert "not installed: make, gcc, ld, ar" in out and "apt install grub-xen-host, or name its grub-x86_64-xen.bin with --grub" in out
    assert "Left out: the guest in C, unmodified guests, GRUB." in out


@pytest.mark.parametrize("words", [["--size", "512K"], ["--size", "plenty"], ["--rounds", "0"], ["--parts", "java"]])
def test_usage(words, capsys):
    """A wrong argument would run something else."""
    with pytest.raises(SystemExit) as end:
        demo.main(words)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err
