"""The demo's two guests. What they find they say on their consoles, as any guest would."""

from __future__ import annotations

import hashlib

from guest_sdk import Guest

__all__ = ["PIECE", "Ping", "Pong", "pattern"]

SECTOR = 512
PIECE = 2048            # sectors read at a time: 1 MiB, which blkfront cuts into requests of 44 KiB
_DONE = b"\xff\xff\xff\xff"


def pattern(domid: int, size: int) -> bytes:
    """What domain ``domid`` writes to the disk: numbered lines, so that a piece out of place shows."""
    line = "{:012d} written by domain {:<10d} through a block ring\n"
    one = len(line.format(0, domid))
    return "".join(line.format(n, domid) for n in range(size // one + 1)).encode()[:size]


class Ping(Guest):
    """Reads its disk, writes to the middle of it, then plays ping with the domain ``peer=`` of its command line."""

    async def main(self) -> None:
        options = dict(word.split("=") for word in self.args.split())
        await self.use_disk(int(options["write"]))
        await self.ping(int(options["peer"]), int(options["rounds"]))

    async def use_disk(self, size: int) -> None:
        disk = await self.block("xvda")
        digest, start = hashlib.sha256(), self.now()
        for at in range(0, disk.sectors, PIECE):
            digest.update(await disk.read(at, min(PIECE, disk.sectors - at)))
        spent = self.now() - start
        self.console.print(f"read {disk.sectors} sectors in {spent} ns, sha256 {digest.hexdigest()}")

        data, at, start = pattern(self.domid, size), disk.sectors // 2, self.now()
        await disk.write(at, data)
        written = self.now()
        await disk.flush()
        self.console.print(f"wrote {len(data)} bytes at sector {at} in {written - start} ns, flushed in {self.now() - written} ns, "
                           f"sha256 {hashlib.sha256(data).hexdigest()}")
        await disk.close()

    async def ping(self, peer: int, rounds: int) -> None:
        page = self.memory.alloc_zeroed()
        ref = self.grants.access(peer, page)
        port = self.events.alloc_unbound(peer)
        await self.xenstore.write("data/pingpong", f"{self.domid} {ref} {port.number}")     # the toolstack tells our peer
        await port.wait()                       # the peer is there
        start = self.now()
        for n in range(1, rounds + 1):
            asked = n.to_bytes(4, "little")
            page.write(asked)
            port.notify()
            while page.read(4, 4) != asked:     # an event says "look", not "done"
                await port.wait()
        spent = self.now() - start
        page.write(_DONE)
        port.notify()
        self.console.print(f"{rounds} round trips in {spent} ns")


class Pong(Guest):
    """Answers: maps the page that its peer granted and copies each number back."""

    async def main(self) -> None:
        peer = await self.xenstore.wait_for("data/peer", lambda value: value is not None)
        domid, ref, number = map(int, str(peer).split())
        mapping = self.grants.map(domid, ref)
        port = self.events.bind_interdomain(domid, number)
        answered = 0
        port.notify()
        while (asked := mapping.read(0, 4)) != _DONE:
            if mapping.read(4, 4) != asked:
                mapping.write(asked, 4)
                answered += 1
                port.notify()
            else:
                await port.wait()
        mapping.unmap()
        self.console.print(f"answered {answered}")
