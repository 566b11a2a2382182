"""``make demo``, ``python -m xenlike.demo``: two paravirtual guests on one host, with a real disk image file.

Owns the demonstration: it makes the image, runs the guests of ``guests``, checks each thing they say against what the host
finds itself, and prints both. Called by people; the exit status is 0 only if every check held.
"""

from __future__ import annotations

import argparse
import hashlib
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
    """One run. ``failed`` counts the checks that did not hold."""

    def __init__(self, image: Path, size: int, rounds: int) -> None:
        self.image, self.size, self.rounds = image, size, rounds
        self.written = min(_MIB, size // 4)
        self.failed = 0
        self.domains: tuple[Domain, ...] = ()

    def run(self) -> int:
        """All of it; the exit status."""
        content = random.Random(0).randbytes(self.size)
        self.image.write_bytes(content)
        print(f"One host, two paravirtual guests written in Python, a disk of {format_size(self.size)}: {self.image}\n")
        begin = time.perf_counter()
        with Host(threaded=False) as host:
            pong = host.create(Pong, name="pong", memory="16M")
            ping = host.create(Ping, name="ping", memory="16M", disk=[f"{self.image},raw,xvda,rw"],
                               extra=f"peer={pong.domid} rounds={self.rounds} write={self.written}")
            self.domains = ping, pong
            made = time.perf_counter()
            try:
                self.disk(ping, content)
                self.ping_pong(host, ping, pong)
                host.wait(timeout=_PATIENCE)
            except WaitTimeout as error:
                print(f"\nIt does not go on: {error}")
            for domain in self.domains:
                if domain.result is None or domain.result.reason != "poweroff":
                    self.failed += 1
                    print(f"\n{domain.name} did not power off: {domain.result}")
            self.counters()
        print(f"\nHost and two domains made in {(made - begin) * 1e3:.1f} ms, all done in {time.perf_counter() - begin:.2f} s.")
        print("All checks hold." if not self.failed else f"{self.failed} checks FAILED.")
        return 1 if self.failed else 0

    # ---- what is looked at -------------------------------------------------------------------------------------------

    def disk(self, ping: Domain, content: bytes) -> None:
        """What the guest read is what the file holds, and the file has what the guest wrote."""
        print("Disk: the guest reads all of it through blkfront, then writes to the middle and flushes")
        said = self.said(ping, r"read (\d+) sectors in (\d+) ns, sha256 ([0-9a-f]{64})\n")
        sectors, read_ns = int(said[1]), int(said[2])
        self.check("sectors", self.size // SECTOR, sectors)
        self.check("SHA-256, whole disk", hashlib.sha256(content).hexdigest(), said[3])

        said = self.said(ping, r"wrote (\d+) bytes at sector (\d+) in (\d+) ns, flushed in (\d+) ns, sha256 ([0-9a-f]{64})\n")
        length, at = int(said[1]), int(said[2]) * SECTOR
        now = self.image.read_bytes()           # the flush was acknowledged: it must be there
        self.check(f"SHA-256, {format_size(length)} written", hashlib.sha256(now[at:at + length]).hexdigest(), said[5])
        expected = content[:at] + pattern(ping.domid, self.written) + content[at + self.written:]
        self.check("nothing else changed", hashlib.sha256(now).hexdigest() == hashlib.sha256(expected).hexdigest(), True, sides=False)
        print("  by the guest's clock:")
        for what, amount, ns in (("read", sectors * SECTOR, read_ns), ("written", length, int(said[3]))):
            print(f"    {what:<8} {amount / _MIB:8.1f} MiB in {ns / 1e6:8.1f} ms {amount / _MIB / (ns / 1e9):8.0f} MiB/s")
        print(f"    flushed               in {int(said[4]) / 1e6:8.1f} ms")

    def ping_pong(self, host: Host, ping: Domain, pong: Domain) -> None:
        """The toolstack's part is to tell pong what ping has written for it; the rest is between the two."""
        print("\nPing/pong: an event channel, and a page that ping grants and pong maps")
        xs, node = host.dom0.xs, f"/local/domain/{ping.domid}/data/pingpong"
        if not host.wait_until(lambda: xs.exists(node) or self.crashed(), timeout=_PATIENCE) or self.crashed():
            raise WaitTimeout(f"{ping} did not write {node}")
        xs.write(f"/local/domain/{pong.domid}/data/peer", xs.read(node))
        rounds, ns = map(int, self.said(ping, r"(\d+) round trips in (\d+) ns\n").groups())
        answered = self.said(pong, r"answered (\d+)\n")
        self.check("numbers there and back", rounds, self.rounds, sides=False)
        self.check("numbers that pong answered", int(answered[1]), self.rounds, sides=False)
        print(f"  {rounds} round trips in {ns / 1e6:.1f} ms by ping's clock: {ns / rounds / 1e3:.1f} us each "
              "(two events sent, two domain switches)")

    def counters(self) -> None:
        """The hypervisor's own."""
        stats = [domain.statistics() for domain in self.domains]
        rows = [("", *(domain.name for domain in self.domains))]
        rows += [(label, *(f"{s.counters[name]}" for s in stats)) for label, name in _COUNTERS]
        names = sorted({name for s in stats for name in s.hypercalls}, key=lambda name: -sum(s.hypercalls.get(name, 0) for s in stats))
        rows[2:2] = [(f"  {name}", *(f"{s.hypercalls.get(name, 0)}" for s in stats)) for name in names]
        rows.append(("CPU time, ms", *(f"{s.cpu_ns / 1e6:.1f}" for s in stats)))
        print("\nWhat the hypervisor counted")
        for label, *cells in rows:
            print(f"  {label:<24}" + "".join(f"{cell:>12}" for cell in cells))

    # ---- how ---------------------------------------------------------------------------------------------------------

    def check(self, label: str, host: object, guest: object, *, sides: bool = True) -> None:
        """Prints a check, with both sides of it if ``sides``, and counts it if it fails."""
        same = host == guest
        self.failed += not same
        verdict = "ok" if same else f"FAILED: {host} is not {guest}"
        if not sides:
            print(f"  {label:<28}{verdict}")
            return
        print(f"  {label:<28}host   {host}")
        print(f"  {'':<28}guest  {guest}  {verdict}")

    def said(self, domain: Domain, pattern: str) -> re.Match[str]:
        """Waits for a line on a console, but not for one that cannot come any more. Raises WaitTimeout."""
        log, looked_until = domain.console.log, -1

        def ready() -> bool:            # asked after each step of the host, which is being timed
            nonlocal looked_until
            if log.end == looked_until:
                return self.crashed()
            looked_until = log.end
            return re.search(pattern, domain.console.text) is not None or self.crashed()

        domain.host.wait_until(ready, timeout=_PATIENCE)
        return domain.console.expect(pattern, timeout=0)

    def crashed(self) -> bool:
        """A domain has ended otherwise than by powering off."""
        return any(domain.result and domain.result.reason != "poweroff" for domain in self.domains)
