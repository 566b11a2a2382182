"""The smallest guest: prints, reads its name from xenstore, sleeps, powers off."""

from guest_sdk import Guest


class Hello(Guest):
    async def main(self):
        self.console.print("hello from domain", self.domid)
        self.console.print("my name is", await self.xenstore.read("name"))
        before = self.now()
        await self.sleep(0.01)
        self.console.print(f"slept {(self.now() - before) / 1e6:.1f} ms")
