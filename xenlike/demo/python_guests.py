"""The demo's first part: two guests in Python, a disk, an event channel and a shared page.

Owns the checks: what the guests of ``guests`` say is compared with what the host finds in the image file itself.
"""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

from xenlike.demo import stage
from xenlike.demo.guests import SECTOR, Ping, Pong, pattern
from xenlike.demo.stage import Stage
from xenlike.domain import Domain, WaitTimeout
from xenlike.host import Host
from xenlike.toolstack import format_size

__all__ = ["show"]

_MIB = 1 << 20
_COUNTERS = (("hypercalls", "hypercalls"), ("events sent", "events_sent"), ("events received", "events_received"),
             ("upcalls", "upcalls"), ("times put on a CPU", "switches"), ("grants mapped", "grant_maps"))


def show(on: Stage, folder: Path, size: int, rounds: int) -> None:
    """Runs the part: a disk of ``size`` bytes in ``folder``, ``rounds`` of ping and pong."""
    image = folder / "disk.img"
    content = random.Random(0).randbytes(size)
    image.write_bytes(content)
    on.title(f"1. Two guests in Python, and a disk of {format_size(size)}: {image}")
    begin, written = time.perf_counter(), min(_MIB, size // 4)
    with Host(threaded=False) as host:
        pong = host.create(Pong, name="pong", memory="16M")
        ping = host.create(Ping, name="ping", memory="16M", disk=[f"{image},raw,xvda,rw"], extra=f"peer={pong.domid} rounds={rounds} write={written}")
        on.domains = ping, pong
        print(f"Host and two domains made in {(time.perf_counter() - begin) * 1e3:.1f} ms.\n")
        try:
            _disk(on, ping, image, content, written)
            _ping_pong(on, host, ping, pong, rounds)
            host.wait(timeout=stage.PATIENCE)
        except WaitTimeout as error:
            on.stuck(error)
        on.ends((ping, pong))
        _counters(ping, pong)


def _disk(on: Stage, ping: Domain, image: Path, content: bytes, written: int) -> None:
    """What the guest read is what the file holds, and the file has what the guest wrote."""
    print("Disk: the guest reads all of it through blkfront, then writes to the middle and flushes")
    said = on.said(ping, r"read (\d+) sectors in (\d+) ns, sha256 ([0-9a-f]{64})\n")
    sectors, read_ns = int(said[1]), int(said[2])
    on.check("sectors", len(content) // SECTOR, sectors)
    on.check("SHA-256, whole disk", hashlib.sha256(content).hexdigest(), said[3])

    said = on.said(ping, r"wrote (\d+) bytes at sector (\d+) in (\d+) ns, flushed in (\d+) ns, sha256 ([0-9a-f]{64})\n")
    length, at = int(said[1]), int(said[2]) * SECTOR
    now = image.read_bytes()            # the flush was acknowledged: it must be there
    on.check(f"SHA-256, {format_size(length)} written", hashlib.sha256(now[at:at + length]).hexdigest(), said[5])
    expected = content[:at] + pattern(ping.domid, written) + content[at + written:]
    on.check("nothing else changed", hashlib.sha256(now).hexdigest() == hashlib.sha256(expected).hexdigest(), True, sides=False)
    print("  by the guest's clock:")
    for what, amount, ns in (("read", sectors * SECTOR, read_ns), ("written", length, int(said[3]))):
        print(f"    {what:<8} {amount / _MIB:8.1f} MiB in {ns / 1e6:8.1f} ms {amount / _MIB / (ns / 1e9):8.0f} MiB/s")
    print(f"    flushed               in {int(said[4]) / 1e6:8.1f} ms")


def _ping_pong(on: Stage, host: Host, ping: Domain, pong: Domain, wanted: int) -> None:
    """The toolstack's part is to tell pong what ping has written for it; the rest is between the two."""
    print("\nPing/pong: an event channel, and a page that ping grants and pong maps")
    xs, node = host.dom0.xs, f"/local/domain/{ping.domid}/data/pingpong"
    if not host.wait_until(lambda: xs.exists(node) or on.crashed(), timeout=stage.PATIENCE) or on.crashed():
        raise WaitTimeout(f"{ping} did not write {node}")
    xs.write(f"/local/domain/{pong.domid}/data/peer", xs.read(node))
    rounds, ns = map(int, on.said(ping, r"(\d+) round trips in (\d+) ns\n").groups())
    answered = on.said(pong, r"answered (\d+)\n")
    on.check("numbers there and back", rounds, wanted, sides=False)
    on.check("numbers that pong answered", int(answered[1]), wanted, sides=False)
    print(f"  {rounds} round trips in {ns / 1e6:.1f} ms by ping's clock: {ns / rounds / 1e3:.1f} us each (two events sent, two domain switches)")


def _counters(*domains: Domain) -> None:
    """The hypervisor's own."""
    stats = [domain.statistics() for domain in domains]
    rows = [("", *(domain.name for domain in domains))]
    rows += [(label, *(f"{s.counters[name]}" for s in stats)) for label, name in _COUNTERS]
    names = sorted({name for s in stats for name in s.hypercalls}, key=lambda name: -sum(s.hypercalls.get(name, 0) for s in stats))
    rows[2:2] = [(f"  {name}", *(f"{s.hypercalls.get(name, 0)}" for s in stats)) for name in names]
    rows.append(("CPU time, ms", *(f"{s.cpu_ns / 1e6:.1f}" for s in stats)))
    print("\nWhat the hypervisor counted")
    for label, *cells in rows:
        print(f"  {label:<24}" + "".join(f"{cell:>12}" for cell in cells))
