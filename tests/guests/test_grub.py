"""GRUB's own Xen image, as Debian ships it: an image that nobody here wrote boots, takes input and reads a disk through our back end."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import tool_environment

from xenlike import Host

TEXT = "read by GRUB from a disk of ours\n"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with two files, one of 300 KiB; ext2, or a tar archive (GRUB reads both) where mke2fs is missing."""
    folder = tmp_path_factory.mktemp("disk")
    files = folder / "files"
    (files / "boot").mkdir(parents=True)
    (files / "hello.txt").write_text(TEXT)
    (files / "boot" / "big.txt").write_text("".join(f"line {n:05}\n" for n in range(25_000)))
    image = folder / "disk.img"
    mke2fs = shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")
    if mke2fs:
        subprocess.run([mke2fs, "-q", "-t", "ext2", "-d", str(files), str(image), "4M"], env=tool_environment(), check=True)
    else:
        subprocess.run(["tar", "-C", str(files), "-cf", str(image), "."], env=tool_environment(), check=True)
    return image


def shown(text: str) -> str:
    """Console text without the terminal's escape sequences: GRUB moves the cursor for each character."""
    return _ESCAPES.sub("", text).replace("\r", "")


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_grub_reads_a_disk(grub: Path, disk: Path, clock: str) -> None:
    """A stock image would not reach its prompt, not take input, or not read what is on its disk. # covers: grant_table_op event_channel_op"""
    with Host(clock=clock) as host:
        domain = host.create(str(grub), name="grub", memory="64M", disk=[f"{disk},raw,xvda,r"])

        def command(line: str) -> str:
            seen = len(domain.console.text)
            domain.console.send(line + "\r")
            domain.console.expect(r"grub> ", timeout=60)
            return shown(domain.console.text[seen:])

        domain.console.expect(r"grub> ", timeout=60)
        assert "GNU GRUB" in shown(domain.console.text)
        assert "(xen/xvda)" in command("ls")
        assert "hello.txt" in command("ls (xen/xvda)/")
        assert TEXT.strip() in command("cat (xen/xvda)/hello.txt")
        out = command("sha256sum (xen/xvda)/boot/big.txt")
        assert hashlib.sha256((disk.parent / "files/boot/big.txt").read_bytes()).hexdigest() in out.replace("\n", "")
        domain.console.send("halt\r")
        assert domain.wait(timeout=60).reason == "poweroff"


def test_grub_is_repeatable(grub: Path, disk: Path) -> None:
    """With the virtual clock the same image, disk and seed would not execute the same instructions in two runs."""

    def run() -> tuple[int, int]:
        with Host(clock="virtual", seed=7) as host:
            domain = host.create(str(grub), name="grub", memory="64M", disk=[f"{disk},raw,xvda,r"])
            domain.console.expect(r"grub> ", timeout=60)
            return domain.statistics().counters["instructions"], host.trace_digest()

    first = run()
    assert first[0] > 1_000_000
    assert run() == first
