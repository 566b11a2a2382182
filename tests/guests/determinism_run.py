"""One run of a busy host with the virtual clock; prints its digest. Run by test_determinism in processes of its own."""

import pathlib
import sys
import tempfile

import xenlike
from guest_sdk import Guest
from guest_sdk.examples.pingpong import Ping, Pong
from guest_sdk.examples.smp import Smp


class Busy(Guest):
    """Disk, xenstore and timers at once."""

    async def main(self):
        disk = await self.block("xvda")
        store = self.spawn(self.store_traffic())
        for n in range(40):
            await disk.write(n * 8, bytes([n]) * 4096)
            if await disk.read(n * 8, 8) != bytes([n]) * 4096:
                raise RuntimeError("the disk gave other bytes back")
            await self.sleep(1e-5 * (n % 3))
        await disk.flush()
        await store
        await disk.close()

    async def store_traffic(self):
        watch = await self.xenstore.watch("data")
        for n in range(50):
            await self.xenstore.write(f"data/k{n % 7}", n)

            async def body(t):
                await t.write("data/sum", int(await t.read(f"data/k{n % 7}")) * 2)

            await self.xenstore.transaction(body)
            await watch.next()


def main(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = pathlib.Path(folder) / "disk.img"
        image.write_bytes(bytes(1 << 20))
        with xenlike.Host(clock="virtual", seed=seed) as host:
            busy = host.create(Busy, memory="8M", disk=[f"{image},raw,xvda,rw"], on_poweroff="preserve")
            ping = host.create(Ping, memory="4M", extra="peer=3", paused=True, on_poweroff="preserve")
            host.create(Pong, memory="4M", extra="peer=2", on_poweroff="preserve")
            host.create(Smp, memory="4M", vcpus=4, on_poweroff="preserve")
            ping.unpause()
            domains = host.domains
            host.wait(timeout=100)
            assert all(d.result.reason == "poweroff" for d in domains), [d.result for d in domains]
            assert busy.ended
            print(f"{host.trace_digest():016x} {host.now()} {[d.statistics().counters['hypercalls'] for d in domains]}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
