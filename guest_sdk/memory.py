"""A guest's memory: pages, virtual addresses, its P2M, and the page tables it maps them with.

Owns: the guest's free pages and its copy of the P2M. Called by: the other modules of the SDK and guests. Loads and stores go
through the soft MMU by virtual address; tables change through hypercalls (update_va_mapping, mmu_update, mmuext_op).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from xenlike.engine import NR, ffi, lib

__all__ = ["Memory", "Page", "PTE_P", "PTE_RW", "PTE_U", "PTE_A", "PTE_D", "PTE_NX"]

PAGE = 4096
PTE_P, PTE_RW, PTE_U, PTE_A, PTE_D, PTE_NX = 1, 2, 4, 0x20, 0x40, 1 << 63


class Page:
    """One page of the guest's pseudo-physical memory, mapped at ``va``."""

    __slots__ = ("_memory", "pfn", "va")

    def __init__(self, memory: "Memory", pfn: int) -> None:
        self._memory = memory
        self.pfn = pfn
        self.va = memory.virt_base + pfn * PAGE

    @property
    def mfn(self) -> int:
        """Its machine frame, by the guest's P2M."""
        return self._memory.p2m[self.pfn]

    def read(self, offset: int = 0, n: int = PAGE) -> bytes:
        """n bytes from ``offset``."""
        return self._memory.read(self.va + offset, n)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Stores ``data`` at ``offset``."""
        self._memory.write(self.va + offset, data)

    def view(self) -> memoryview:
        """Its 4096 bytes, writable and shared with whoever maps the frame. While a view lives the page is typed writable:
        pinning it as a page table fails, as on Xen."""
        return self._memory.window(self.va)

    def free(self) -> None:
        """Gives the page back to the guest's allocator (not to the hypervisor)."""
        self._memory.free_page(self)

    def __repr__(self) -> str:
        return f"<Page pfn {self.pfn:#x} at {self.va:#x}>"


class Memory:
    """The memory of one guest. ``p2m[pfn]`` is a machine frame number."""

    def __init__(self, guest: Any, vcpu: Any, start_info_va: int) -> None:
        self._guest = guest
        self._vcpu = vcpu
        info = ffi.new("struct start_info *")
        ffi.buffer(info)[:] = vcpu.read(start_info_va, ffi.sizeof("struct start_info"))
        self.start_info = info
        self.nr_pages = info.nr_pages
        #: Virtual address of pfn 0: the page tables' first L1 maps pfn 0 onward, contiguously.
        self.virt_base = guest.virt_base
        self.p2m = array("Q", vcpu.read(info.mfn_list, info.nr_pages * 8))
        self._free = self._initial_free(info)

    def _initial_free(self, info: Any) -> array[int]:
        """Every mapped page but those that the builder uses (section 1.4): P2M .. boot stack lie behind the image."""
        first_used = (info.mfn_list - self.virt_base) // PAGE
        stack_pfn = (info.pt_base - self.virt_base) // PAGE + info.nr_pt_frames
        mapped = min(self.nr_pages, self._guest.mapped_pages)
        free = array("I", range(mapped - 1, stack_pfn, -1))         # 4 bytes a page; taken from the end, lowest pfn first
        free.extend(range(first_used - 1, self._guest.image_pages - 1, -1))
        return free

    # ---- loads and stores --------------------------------------------------------------------------------------------

    def read(self, va: int, n: int) -> bytes:
        """Loads n bytes at a virtual address. Raises GuestFault."""
        return self._guest.current.vcpu.read(va, n)

    def write(self, va: int, data: bytes) -> None:
        """Stores bytes at a virtual address. Raises GuestFault."""
        self._guest.current.vcpu.write(va, data)

    def read_u64(self, va: int) -> int:
        """An aligned 64-bit load."""
        return int.from_bytes(self.read(va, 8), "little")

    def write_u64(self, va: int, value: int) -> None:
        """An aligned 64-bit store."""
        self.write(va, value.to_bytes(8, "little"))

    def window(self, va: int) -> memoryview:
        """The page at ``va`` as shared memory; see ``Page.view``."""
        return self._guest.current.vcpu.window(va)

    # ---- pages -------------------------------------------------------------------------------------------------------

    def alloc_page(self) -> Page:
        """A free page (its bytes are what its last user left; fresh ones are zero). Raises MemoryError."""
        if not self._free:
            raise MemoryError("the guest has no free page: give it more with memory=")
        return Page(self, self._free.pop())

    def alloc_zeroed(self) -> Page:
        """A free page filled with zeros."""
        page = self.alloc_page()
        page.write(bytes(PAGE))
        return page

    def free_page(self, page: Page) -> None:
        """Back to the allocator."""
        self._free.append(page.pfn)

    @property
    def free_pages(self) -> int:
        """Pages that the guest could allocate now."""
        return len(self._free)

    def page_of(self, va: int) -> Page:
        """The page of the linear mapping that holds ``va``."""
        return Page(self, (va - self.virt_base) // PAGE)

    def set_p2m(self, pfn: int, mfn: int) -> None:
        """The guest's P2M is the guest's to keep: after ballooning or an exchange it says what backs ``pfn`` now."""
        self.p2m[pfn] = mfn
        self.write_u64(self.start_info.mfn_list + pfn * 8, mfn)

    # ---- page tables -------------------------------------------------------------------------------------------------

    def remap(self, va: int, pte: int, *, flush: bool = True) -> None:
        """Sets the L1 entry of ``va`` (update_va_mapping). Raises XenError."""
        self._guest.hypercall.checked("update_va_mapping", NR.update_va_mapping, va & ~(PAGE - 1), pte,
                                      lib.UVMF_INVLPG if flush else lib.UVMF_NONE)

    def make_readonly(self, page: Page) -> None:
        """Drops the guest's write right to a page, so that it can become a page table."""
        self.remap(page.va, page.mfn << 12 | PTE_P | PTE_A)

    def make_writable(self, page: Page) -> None:
        """The opposite; fails while the page is a page table."""
        self.remap(page.va, page.mfn << 12 | PTE_P | PTE_RW | PTE_A | PTE_D)

    def mmu_update(self, updates: Iterable[tuple[int, int]]) -> int:
        """Writes entries: (machine address | command, value) pairs, in one hypercall. Returns how many. Raises XenError."""
        pairs = array("Q", [word for pair in updates for word in pair])
        call = self._guest.hypercall
        count = len(pairs) // 2
        with call.buffer(pairs.tobytes()) as va:
            call.checked("mmu_update", NR.mmu_update, va, count, 0, lib.DOMID_SELF)
        return count

    def mmuext(self, cmd: int, arg1: int = 0, arg2: int = 0) -> None:
        """One extended operation: MMUEXT_* with its arguments (an mfn or a VA). Raises XenError."""
        op = ffi.new("struct mmuext_op *")
        op.cmd, op.arg1.mfn, op.arg2.src_mfn = cmd, arg1, arg2
        call = self._guest.hypercall
        with call.buffer(bytes(ffi.buffer(op))) as va:
            call.checked("mmuext_op", NR.mmuext_op, va, 1, 0, lib.DOMID_SELF)

    def pin(self, page: Page, level: int) -> None:
        """Pins a page (read-only mapped) as an L1..L4 table: Xen validates it and what it reaches."""
        self.mmuext((lib.MMUEXT_PIN_L1_TABLE, lib.MMUEXT_PIN_L2_TABLE, lib.MMUEXT_PIN_L3_TABLE,
                     lib.MMUEXT_PIN_L4_TABLE)[level - 1], page.mfn)

    def unpin(self, page: Page) -> None:
        """Undoes ``pin``."""
        self.mmuext(lib.MMUEXT_UNPIN_TABLE, page.mfn)

    def switch_to(self, l4_mfn: int) -> None:
        """Loads the kernel base pointer (MMUEXT_NEW_BASEPTR)."""
        self.mmuext(lib.MMUEXT_NEW_BASEPTR, l4_mfn)
