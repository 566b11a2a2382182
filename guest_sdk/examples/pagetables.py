"""A guest that builds its own page tables, has Xen check and pin them, and reads through them.

It makes an L1, an L2 and an L3 table of its own, hangs them into its L4 at a virtual address where nothing was mapped, and finds the
same page at both addresses. Then it tries what Xen forbids, and shows that it is refused.
"""

from guest_sdk import Guest, XenError
from guest_sdk.memory import PTE_A, PTE_P, PTE_RW, PTE_U

WINDOW = 1 << 40                        # 1 TiB: L4 slot 2


class PageTables(Guest):
    async def main(self):
        memory, out = self.memory, self.console.print
        data = memory.alloc_page()
        data.write(b"seen through two addresses")
        l1, l2, l3 = (memory.alloc_zeroed() for _ in range(3))
        l1.write((data.mfn << 12 | PTE_P | PTE_RW | PTE_A).to_bytes(8, "little"))
        l2.write((l1.mfn << 12 | PTE_P | PTE_RW | PTE_U).to_bytes(8, "little"))
        l3.write((l2.mfn << 12 | PTE_P | PTE_RW | PTE_U).to_bytes(8, "little"))
        for table in (l1, l2, l3):
            memory.make_readonly(table)         # nothing that is writable anywhere can be a page table
        memory.pin(l3, 3)                       # Xen validates the L3, and so the L2 and the L1
        out("pinned an L3 at mfn", hex(l3.mfn))

        l4_mfn = memory.page_of(memory.start_info.pt_base).mfn
        slot = WINDOW >> 39
        memory.mmu_update([(l4_mfn << 12 | slot * 8, l3.mfn << 12 | PTE_P | PTE_RW | PTE_U)])
        out("read through it:", memory.read(WINDOW, 26).decode())
        memory.write(WINDOW, b"SEEN")
        out("and back:", data.read(0, 26).decode())

        try:
            memory.make_writable(l1)
        except XenError as error:
            out("a writable mapping of a page table:", error.name)
        try:
            memory.mmu_update([(l4_mfn << 12 | 256 * 8, l3.mfn << 12 | PTE_P | PTE_RW | PTE_U)])
        except XenError as error:
            out("an entry in the hypervisor's slots:", error.name)

        memory.mmu_update([(l4_mfn << 12 | slot * 8, 0)])
        memory.unpin(l3)
        for table in (l1, l2, l3):
            memory.make_writable(table)
        out("all undone")
