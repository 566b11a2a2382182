"""A user of a virtual disk: reads it whole, writes a line at its end, flushes.

disk = ["disk.img,raw,xvda,rw"]
"""

import hashlib

from guest_sdk import Guest


class DiskUser(Guest):
    async def main(self):
        disk = await self.block("xvda")
        digest = hashlib.sha256()
        for sector in range(0, disk.sectors, 88):
            digest.update(await disk.read(sector, min(88, disk.sectors - sector)))
        self.console.print(f"{disk.sectors} sectors, sha256 {digest.hexdigest()}")
        if not disk.readonly:
            await disk.write(disk.sectors - 1, b"written by a guest".ljust(512, b"\0"))
            await disk.flush()
            self.console.print("wrote the last sector")
        await disk.close()
