"""``make demo``, ``python -m xenlike.demo``: two paravirtual guests on one host, with a real disk image file.

Owns the demonstration: it makes the image, runs the guests of ``guests``, checks each thing they say against what the host
finds itself, and prints both. Called by people; the exit status is 0 only if every check held.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from xenlike.demo.guests import SECTOR, Ping, Pong, pattern
from xenlike.domain import Domain, WaitTimeout
from xenlike.host import Host
from xenlike.toolstack import SpecError, format_size, parse_size

__all__ = ["main"]

_MIB = 1 << 20
_PATIENCE = 120.0       # seconds for any one step
_COUNTERS = (("hypercalls", "hypercalls"), ("events sent", "events_sent"), ("events received", "events_received"),
             ("upcalls", "upcalls"), ("times put on a CPU", "switches"), ("grants mapped", "grant_maps"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; 0 if all its checks held."""
    parser = argparse.ArgumentParser(prog="python -m xenlike.demo", description="Two paravirtual guests on one host, with a real disk.")
    parser.add_argument("--size", default="16M", help="of the disk image (default: %(default)s; at least 1M)")
    parser.add_argument("--rounds", type=int, default=2000, help="of ping and pong (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        size = parse_size(args.size)
    except SpecError as error:
        parser.error(f"--size: {error}")
    if size < _MIB or args.rounds < 1:
        parser.error("--size must be 1M at least, and --rounds 1")
    with tempfile.TemporaryDirectory(prefix="xenlike-demo-") as folder:
        return _Demo(Path(folder) / "disk.img", size, args.rounds).run()


class _Demo:
    """One run. ``check`` remembers whether everything held."""

    def __init__(self, image: Path, size: int, rounds: int) -> None:
        self.image, self.size, self.rounds = image, size, rounds
        self.written = min(_MIB, size // 4)
        self.failed = 0

    def check(self, label: str, host: object, guest: object) -> None:
        """Prints what the host and the guest say beside each other."""
        same = host == guest
        self.failed += not same
        print(f"  {label}\n    host   {host}\n    guest  {guest}\n    {'the same' if same else 'NOT THE SAME'}")

    def run(self) -> int:
        content = random.Random(0).randbytes(self.size)
        self.image.write_bytes(content)
        print(f"One host, two paravirtual guests in Python, a disk of {format_size(self.size)} in {self.image}\n")
        begin = time.perf_counter()
        with Host(threaded=False) as host:
            pong = host.create(Pong, memory="16M")
            ping = host.create(Ping, memory="16M", disk=[f"{self.image},raw,xvda,rw"],
                               extra=f"peer={pong.domid} rounds={self.rounds} write={self.written}")
            made = time.perf_counter()
            try:
                self._disk(ping, content)
                self._ping_pong(host, ping, pong)
            except WaitTimeout as error:
                self.failed += 1
                print(f"\nIt did not go on: {error}")
            for domain in (ping, pong):
                if domain.result is None or domain.result.reason != "poweroff":
                    self.failed += 1
                    print(f"\n{domain.name} did not power off: {domain.result}\n{domain.traceback}")
            self._table(ping, pong)
        print(f"\nhost and two domains made in {(made - begin) * 1e3:.1f} ms; everything took {time.perf_counter() - begin:.2f} s")
        print("All checks hold." if not self.failed else f"{self.failed} checks FAILED.")
        return 1 if self.failed else 0

    def _disk(self, ping: Domain, content: bytes) -> None:
        print("Disk: the guest reads all of it through blkfront, then writes to the middle and flushes")
        said = ping.console.expect(r"read (\d+) sectors in (\d+) ns, sha256 ([0-9a-f]{64})\n", timeout=_PATIENCE)
        sectors, read_ns = int(said[1]), int(said[2])
        self.check("sectors", self.size // SECTOR, sectors)
        self.check("SHA-256 of the disk", hashlib.sha256(content).hexdigest(), said[3])

        said = ping.console.expect(r"wrote (\d+) bytes at sector (\d+) in (\d+) ns, flushed, sha256 ([0-9a-f]{64})\n", timeout=_PATIENCE)
        length, at, write_ns = int(said[1]), int(said[2]) * SECTOR, int(said[3])
        with open(self.image, "rb") as file:        # the flush has been acknowledged; the guest still runs
            now = file.read()
        self.check(f"SHA-256 of the {format_size(length)} written at sector {said[2]}, as the file has them",
                   hashlib.sha256(now[at:at + length]).hexdigest(), said[4])
        mine = content[:at] + pattern(ping.domid, self.written) + content[at + self.written:]
        self.check("SHA-256 of the whole file against what it should be now", hashlib.sha256(now).hexdigest(),
                   hashlib.sha256(mine).hexdigest())
        for what, amount, ns in (("read", sectors * SECTOR, read_ns), ("written and flushed", length, write_ns)):
            print(f"  {amount / _MIB:.1f} MiB {what} in {ns / 1e6:.1f} ms by the guest's clock: {amount / _MIB / (ns / 1e9):.0f} MiB/s")

    def _ping_pong(self, host: Host, ping: Domain, pong: Domain) -> None:
        print("\nPing/pong: an event channel and a page that ping granted and pong mapped")
        xs, node = host.dom0.xs, f"/local/domain/{ping.domid}/data/pingpong"
        if not host.wait_until(lambda: xs.exists(node) or ping.ended, timeout=_PATIENCE):
            raise WaitTimeout(f"ping wrote no {node}")
        if not ping.ended:
            xs.write(f"/local/domain/{pong.domid}/data/peer", xs.read(node))
        said = ping.console.expect(r"(\d+) round trips in (\d+) ns\n", timeout=_PATIENCE)
        answered = pong.console.expect(r"answered (\d+)\n", timeout=_PATIENCE)
        self.check("round trips asked for, and answered by pong", self.rounds, int(answered[1]))
        rounds, ns = int(said[1]), int(said[2])
        print(f"  {rounds} round trips in {ns / 1e6:.1f} ms by ping's clock: {ns / rounds / 1e3:.1f} us each, of two events and two domain switches")
        host.wait([ping, pong], timeout=_PATIENCE)

    def _table(self, *domains: Domain) -> None:
        """The hypervisor's own counters."""
        stats = [domain.statistics() for domain in domains]
        rows = [("", *(domain.name for domain in domains))]
        rows += [(label, *(f"{s.counters[name]}" for s in stats)) for label, name in _COUNTERS]
        names = sorted({name for s in stats for name in s.hypercalls}, key=lambda name: -sum(s.hypercalls.get(name, 0) for s in stats))
        rows[2:2] = [(f"  {name}", *(f"{s.hypercalls.get(name, 0)}" for s in stats)) for name in names]
        rows.append(("CPU time, ms", *(f"{s.cpu_ns / 1e6:.1f}" for s in stats)))
        print("\nWhat the hypervisor counted")
        for label, *cells in rows:
            print(f"  {label:<24}" + "".join(f"{cell:>12}" for cell in cells))
