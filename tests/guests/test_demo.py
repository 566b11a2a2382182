"""``make demo``: what it prints is so, and it fails when something is not."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from xenlike import demo
from xenlike.demo import guests


def test_all_checks_hold(capsys):
    """The demonstration would show something else than what the disk holds, or not say so."""
    assert demo.main(["--size", "1M", "--rounds", "20"]) == 0
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
    monkeypatch.setattr(demo, which, fake)
    monkeypatch.setattr(demo, "_PATIENCE", 1.0)
    assert demo.main(["--size", "1M", "--rounds", "20"]) == 1
    out = capsys.readouterr().out
    assert re.search(text, out), out
    assert re.search(r"\d checks FAILED\.$", out)


@pytest.mark.parametrize("words", [["--size", "512K"], ["--size", "plenty"], ["--rounds", "0"]])
def test_usage(words, capsys):
    """A wrong argument would run something else."""
    with pytest.raises(SystemExit) as end:
        demo.main(words)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err
