"""Two guests, an event channel and a shared page.

Ping grants a page and allocates a port for its peer and says so in xenstore; Pong binds, maps, and answers. Which domain is the
peer, `extra` says: Ping gets ``peer=<domid>``; Pong learns everything from the node that ping wrote.
"""

from guest_sdk import Guest, XenError

ROUNDS = 1000


class Ping(Guest):
    async def main(self):
        peer = int(self.args.partition("peer=")[2].split()[0])
        page = self.memory.alloc_zeroed()
        ref = self.grants.access(peer, page)
        port = self.events.alloc_unbound(peer)
        await self.xenstore.write("data/pingpong", f"{ref} {port.number}")
        await self.xenstore.set_perms("data/pingpong", [f"n{self.domid}", f"r{peer}"])
        await port.wait()                       # pong says that it is there
        shared = page.view()
        before = self.now()
        for n in range(1, ROUNDS + 1):
            shared[0:4] = n.to_bytes(4, "little")
            port.notify()
            while shared[4:8] != shared[0:4]:   # an event says "look", not "done"
                await port.wait()
        spent = self.now() - before
        shared[8] = 1
        port.notify()
        self.console.print(f"{ROUNDS} round trips, {spent / ROUNDS / 1000:.1f} us each")


class Pong(Guest):
    async def main(self):
        peer = int(self.args.partition("peer=")[2].split()[0])
        node = f"/local/domain/{peer}/data/pingpong"
        while True:                             # ping may not have written it yet, or not let us read it yet
            try:
                ref, number = map(int, (await self.xenstore.read(node)).split())
                break
            except XenError:
                await self.sleep(0.001)
        shared = self.grants.map(peer, ref)
        port = self.events.bind_interdomain(peer, number)
        port.notify()
        answered = 0
        while not shared.read(8, 1)[0]:
            await port.wait()
            asked = shared.read(0, 4)
            if asked != shared.read(4, 4):
                shared.write(asked, 4)
                answered += 1
                port.notify()
        shared.unmap()
        self.console.print("answered", answered)
