"""Guests of machine code: instructions a second in a C guest, from the command to its first line, creation, and event round trips.

The guests are built with the C SDK; without gcc and make there are no rows.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "guests"))

import bench_x86  # noqa: E402
import c_images  # noqa: E402
from harness import Case, Size  # noqa: E402

from xenlike import Host  # noqa: E402
from xenlike.engine import ffi, lib  # noqa: E402

PATIENCE = 120.0


def build(source: Path, folder: Path) -> Path:
    """A C guest's image; its name is the folder's."""
    image = folder / source.name
    done = c_images.make(f"BUILD={folder / (source.name + '.build')}", f"SDK_BUILD={folder / 'sdk'}", f"GUEST={image}", "CFLAGS=-O2", cwd=source)
    if done.returncode:
        raise RuntimeError(f"{source.name} cannot be built: {done.stderr.strip()[-2000:]}")
    return image


def pcpu_ns() -> int:
    """CPU time that pCPU threads of this process have used: what the guest's own clock cannot tell from waiting for a CPU."""
    tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().startswith("xl-pcpu")]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def kernels(image: Path, engine: str, size: Size) -> Callable[[], float]:
    """A `measure`: million instructions a second of the pCPU's CPU time, all kernels one after the other, boot included."""
    words = [f"{number}={size.of(full // 2 if number != 2 else full - 1, quick)}" for number, full, quick in bench_x86.KERNELS.values()]

    def measure() -> float:
        others = pcpu_ns()                      # of hosts that other cases keep, idle meanwhile
        with Host(threaded=False, engine=engine) as host:
            domain = host.create(str(image), memory="16M", extra=" ".join(words))
            ended = domain.wait(timeout=PATIENCE)
            spent = pcpu_ns() - others
            assert ended.reason == "poweroff" and len(domain.console.lines) == len(words), (ended, domain.console.text)
            return domain.statistics().counters["instructions"] / spent * 1e3
    return measure


def first_line(words: list[str], wanted: bytes, folder: Path, *, status: int = 0) -> Callable[[], float]:
    """A `measure`: ms from starting a command until its first line of output can be read. Modules are compiled, as from the second time on:
    `folder` has their bytecode. `status`: with which it exits in the end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "PYTHONPYCACHEPREFIX": str(folder / "pycache")}

    def measure() -> float:
        start = time.perf_counter()
        with open(folder / "stderr", "w+") as errors, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment) as process:
            assert process.stdout is not None
            said = process.stdout.read(len(wanted))
            spent = time.perf_counter() - start
            process.stdout.read()
            process.wait()
            errors.seek(0)
            assert said == wanted and process.returncode == status, (words, said, process.returncode, errors.read())
        return spent * 1000
    measure()
    return measure


def create(host: Host, image: Path, count: int) -> Callable[[], float]:
    """A `measure`: ms of `Host.create` alone, the median of `count`: the image is in the host's cache, as from its second guest on."""
    def once() -> float:
        start = time.perf_counter()
        domain = host.create(str(image), memory="16M", paused=True)
        spent = time.perf_counter() - start
        domain.destroy()
        return spent * 1000
    return lambda: statistics.median(once() for _ in range(count))


def come_and_go(host: Host, image: Path, count: int) -> Callable[[], float]:
    """A `measure`: ms from create over the console's first line to the end of destroy."""
    def once() -> float:
        start = time.perf_counter()
        domain = host.create(str(image), memory="16M")
        domain.console.expect("hello from domain")
        domain.destroy()
        return (time.perf_counter() - start) * 1000
    return lambda: statistics.median(once() for _ in range(count))


def round_trip(image: Path, pcpus: int) -> Callable[[], float]:
    """A `measure`: ns of one of pingpong's thousand round trips, by the guest's clock."""
    def measure() -> float:
        with Host(threaded=False, pcpus=pcpus) as host:
            ping = host.create(str(image), memory="8M", extra="ping peer=2", paused=True)
            pong = host.create(str(image), memory="8M", extra="pong peer=1")
            ping.unpause()
            host.wait([ping, pong], timeout=PATIENCE)
            found = re.fullmatch(r"1000 round trips, ([\d.]+) us each\n", ping.console.text)
            assert found, (ping.console.text, pong.console.text)
            return float(found[1]) * 1000
    return measure


def cases(stack: ExitStack, size: Size) -> list[Case]:
    if os.uname().machine != "x86_64" or not all(map(shutil.which, ("make", "gcc", "ld", "ar"))):
        return []
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    hello, pingpong = (build(c_images.EXAMPLES / name, folder) for name in ("hello", "pingpong"))
    work = build(Path(__file__).parent / "kernels_guest", folder)
    config = folder / "hello.cfg"
    config.write_text(f'name = "hello"\nkernel = "{hello}"\nmemory = "16M"\n')
    host, each = stack.enter_context(Host(threaded=False)), size.of(10, 1)
    return [
        Case("floor: python -c print", "ms", first_line([sys.executable, "-c", "print('hello')"], b"hello", folder)),
        Case("xenlike run of a C guest, to its first line", "ms", first_line(
            [sys.executable, "-m", "xenlike", "run", "-q", str(config)], b"hello from domain 1\n", folder), 300),
        Case("interpreter, all kernels in a C guest", "M insns/s", kernels(work, "interp", size), bench_x86.GOAL, runs=5),
        *([Case("translator, all kernels in a C guest", "M insns/s", kernels(work, "bt", size))] if lib.xl_bt_unavailable() == ffi.NULL else []),
        Case("create a C guest (16 MiB)", "ms", create(host, hello, each), 5, digits=2),
        Case("create, first line, destroy a C guest", "ms", come_and_go(host, hello, each), digits=2),
        Case("event round trip of two C guests, one pCPU", "ns", round_trip(pingpong, 1), digits=0),
        Case("event round trip of two C guests, two pCPUs", "ns", round_trip(pingpong, 2), digits=0),
    ]
