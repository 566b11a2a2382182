"""The demo's guests of machine code: the C SDK's pingpong, built here, and GRUB, as Debian ships it.

Owns how they are found: a compiler on PATH; GRUB's image by ``--grub``, where its package is installed, or in a source tree
by its tests' cache of Debian packages. What cannot be had is named with what to do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from guest_sdk.c import directory
from guest_sdk.examples.pingpong import ROUNDS, Pong
from xenlike.demo import stage
from xenlike.demo.stage import Stage
from xenlike.domain import WaitTimeout
from xenlike.host import Host

__all__ = ["ROOT", "find_grub", "missing_tools", "plain", "show_c", "show_grub"]

_TOOLS = ("make", "gcc", "ld", "ar")
ROOT = Path(__file__).resolve().parents[2]
_GRUB = Path("usr/lib/grub-xen/grub-x86_64-xen.bin")
_PROGRESS = re.compile(r"\x1b\[\d+;\d+H +\[ [^\]\n]* \](?=\x1b)")         # GRUB's file progress, in the right corner
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# ---- a guest in C ----------------------------------------------------------------------------------------------------

def missing_tools() -> str:
    """What is missing to build guests in C, in words; or nothing."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"C guests are built with gcc and make; not installed: {', '.join(missing)} (Debian: apt install gcc make)" if missing else ""


def show_c(on: Stage, folder: Path) -> None:
    """Builds the example ``pingpong`` and lets it play with itself, and with the Python guest of the same protocol."""
    on.title("2. A guest in C")
    if why := missing_tools():
        on.leave_out("the guest in C", why)
        return
    source, image, begin = directory() / "examples" / "pingpong", folder / "pingpong", time.perf_counter()
    shown = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source
    print(f"gcc builds {shown} with the SDK ...", end="", flush=True)
    made = subprocess.run(["make", "-s", "-j2", "-C", str(source), f"PYTHON={sys.executable}", "CC=gcc", "CFLAGS=-O2",
                           f"BUILD={folder / 'build'}", f"GUEST={image}"], capture_output=True, text=True)
    if made.returncode:
        on.failed += 1
        print(f" FAILED\n{made.stderr}")
        return
    print(f" {time.perf_counter() - begin:.1f} s\nIt is an ELF kernel of {image.stat().st_size >> 10} KiB with Xen's notes, and follows the public "
          "ABI alone.\n")
    for title, pong, extra in (("C with C", str(image), "pong peer=1"), ("C with Python", Pong, "peer=1")):
        with Host(threaded=False) as host:      # of its own, so that the domains are 1 and 2
            ping = host.create(str(image), name="ping", memory="16M", extra="ping peer=2", paused=True)
            on.domains = ping, host.create(pong, name="pong", memory="16M", extra=extra)
            ping.unpause()
            try:
                rounds = on.said(ping, r"(\d+) round trips, ([\d.]+ us) each\n")
                answered = on.said(on.domains[1], r"answered (\d+)")
                host.wait(timeout=stage.PATIENCE)
            except WaitTimeout as error:
                on.stuck(error)
            else:
                on.check(f"{title}: there and back", (int(rounds[1]), int(answered[1])), (ROUNDS, ROUNDS), sides=False)
                ran = ping.statistics()
                print(f"    {rounds[1]} round trips, {rounds[2]} each; ping ran {ran.counters['instructions']:,} instructions and made "
                      f"{ran.counters['hypercalls']} hypercalls")
            on.ends(on.domains)


# ---- GRUB ------------------------------------------------------------------------------------------------------------

def find_grub(chosen: str | None) -> Path | str:
    """GRUB's image; or, in words, why there is none."""
    if chosen is not None:
        return Path(chosen) if Path(chosen).is_file() else f"there is no file {chosen}"
    if (installed := "/" / _GRUB).is_file():
        return installed
    peers = ROOT / "tests" / "tools" / "peers.py"
    if not peers.is_file():
        return "it needs Debian's package grub-xen-host: apt install grub-xen-host, or name its grub-x86_64-xen.bin with --grub"
    spec = importlib.util.spec_from_file_location("_demo_peers", peers)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.path("grub-xen-host") / _GRUB
    except module.PeerUnavailable as error:
        return f"{error} (or name grub-x86_64-xen.bin with --grub)"


def plain(text: str) -> str:
    """Console text without what only a terminal understands."""
    return re.sub(r" +$", "", _ESCAPES.sub("", _PROGRESS.sub("", text)).replace("\r", ""), flags=re.M)


def _tar(path: Path, files: dict[str, bytes]) -> None:
    """A disk that GRUB can read: a tar archive is a file system to it."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def show_grub(on: Stage, folder: Path, chosen: str | None) -> None:
    """Boots GRUB to its prompt and lets it read a disk."""
    on.title("4. GRUB, a guest that nobody here wrote")
    image = find_grub(chosen)
    if isinstance(image, str):
        on.leave_out("GRUB", image)
        return
    poem = b"Every domain has a console,\na disk, and somebody who listens.\n"
    big, disk = b"".join(b"line %05d\n" % n for n in range(10_000)), folder / "grub.img"
    _tar(disk, {"poem.txt": poem, "boot/big": big})
    print(f"Debian's {image.name}, unmodified, boots as a PV domain; what follows is its console.\n")
    with Host(threaded=False) as host:
        begin = time.perf_counter()
        grub = host.create(str(image), name="grub", memory="64M", disk=[f"{disk},raw,xvda,r"])
        on.domains = grub,
        try:
            grub.console.expect("grub> ", timeout=stage.PATIENCE)
            booted, said = time.perf_counter() - begin, {}
            for command in ("ls", "ls (xen/xvda)/", "cat (xen/xvda)/poem.txt", "sha256sum (xen/xvda)/boot/big"):
                seen = len(grub.console.text)
                grub.console.send(command + "\r")
                grub.console.expect("grub> ", timeout=stage.PATIENCE)
                _, _, out = plain(grub.console.text[seen:]).partition("\n")      # the first line is the command's echo
                said[command] = out.removesuffix("grub>").strip()
                print(f"  | grub> {command}\n  | " + said[command].replace("\n", "\n  | "))
            grub.console.send("halt\r")
            print("  | grub> halt\n")
            grub.wait(timeout=stage.PATIENCE)
        except WaitTimeout as error:
            on.stuck(error)
        else:
            on.check("what cat shows is in the file", poem.decode().strip(), said["cat (xen/xvda)/poem.txt"], sides=False)
            on.check(f"SHA-256 of a file of {len(big) >> 10} KiB", hashlib.sha256(big).hexdigest(), said["sha256sum (xen/xvda)/boot/big"].split()[0], sides=False)
            ran = grub.statistics()
            print(f"  at its prompt in {booted:.2f} s; {ran.counters['instructions'] / 1e6:.0f} million instructions in {ran.cpu_ns / 1e9:.2f} s "
                  f"of CPU time: {ran.counters['instructions'] / max(ran.cpu_ns, 1) * 1e3:.0f} MIPS")
        on.ends((grub,))
