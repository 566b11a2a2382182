"""Page tables and memory reservations: random and hostile histories, checked against `models.pagetypes`.

Guests write entries into their pages, unmap pages so that they may become page tables, pin them, link them, switch to
them, and give frames back, in any order and mostly wrongly. After every step the counts, types, M2P entries and
contents of every frame the model touched are compared; at the end all of them, and then nothing may be left.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..models.abi import DOMID_IO, DOMID_SELF, EFAULT, EINVAL, ENOSYS, PAGE_SHIFT
from ..models.frames import (ACCESSED, DIRTY, GLOBAL, GUEST_KERNEL, L1, NO_MFN, NX, PAT_PSE, PCD, PRESENT, PWT, RW,
                             USER, WRITABLE)
from . import base, layouts
from .base import BAD_POINTERS, NOBODY
from .driver import Driver, Mismatch
from .layouts import LAYOUTS
from .memory import MemoryGuest, MemoryRunner

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

# Operations and how often each is drawn.
OPERATIONS: dict[str, int] = {
    "store_entry": 30, "unmap": 24, "remap": 14, "update_va": 14, "make_table": 16, "clone_root": 4, "pin": 20,
    "unpin": 12, "new_base": 8, "mmu_update": 40, "mmu_batch": 10, "machphys": 4, "mmuext_other": 8, "clear_copy": 8,
    "populate": 8, "decrease": 10, "increase": 3, "exchange": 4, "reservation": 2, "map_foreign": 6, "hostile": 8,
    "recreate": 1,
}
FLAGS = (PRESENT | RW | USER | ACCESSED | DIRTY, PRESENT | RW, PRESENT, PRESENT | USER, PRESENT | RW | USER,
         PRESENT | RW | ACCESSED, PRESENT | NX, PRESENT | RW | NX | 7 << 9, PRESENT | GUEST_KERNEL | USER,
         PRESENT | GLOBAL, PRESENT | PAT_PSE | RW, PRESENT | PWT, PRESENT | PCD | RW, PRESENT | 1 << 61, 0, 0,
         DIRTY | RW, PRESENT | USER | ACCESSED)
SLOTS = (0, 1, 2, 255, 256, 271, 272, 511)
_REQUEST, _OP = LAYOUTS["mmu_update"].struct, LAYOUTS["mmuext_op"].struct
_DONE, _LIST = 3072, 2048                   # offsets in the scratch pages


class PageTypesRunner(MemoryRunner):
    """Two domains, the first privileged, of two vCPUs each."""

    operations = OPERATIONS

    def __init__(self, driver: Driver, *, domains: int = 2, check_all_every: int = 512) -> None:
        super().__init__(driver)
        self.check_all_every = check_all_every
        for n in range(domains):
            self.create(privileged=n == 0)

    def compare(self, what: str) -> None:
        super().compare(what)
        if self.guests and self.steps % self.check_all_every == 0:
            self.check_all()

    # --- choosing -----------------------------------------------------------------------------------------------

    def _who(self, a: int) -> tuple[MemoryGuest, int]:
        g = self.guests[a % len(self.guests)]
        return g, a >> 4 & 1

    def _mfn(self, g: MemoryGuest, b: int) -> int:
        """Mostly a frame to play with, sometimes a boot table, scratch, another domain's, nonsense."""
        if b < 192:
            return g.play[b % len(g.play)]
        if b < 224:
            return g.boot_tables[b % len(g.boot_tables)]
        if b < 236:
            other = self.guests[(self.guests.index(g) + 1) % len(self.guests)]
            return other.play[b % len(other.play)]
        if b < 244:
            return sorted(g.scratch_mfns)[b & 3]
        return (g.shared_info, self.driver.nr_frames(), self.driver.nr_frames() + 77, NO_MFN)[b & 3]

    def _entry(self, g: MemoryGuest, b: int, c: int) -> int:
        return self._mfn(g, b) << PAGE_SHIFT | FLAGS[c % len(FLAGS)]

    def _safe(self, g: MemoryGuest, mfn: int, slot: int, val: int) -> int:
        """A value for an entry, made harmless where the domain would saw off the branch it sits on."""
        if (mfn, slot) in set(self.lifeline(g)):
            return self.model.frames[mfn].entry(slot) ^ 1 << 9
        return val

    def _domid(self, g: MemoryGuest, d: int) -> int:
        """Whose pages an operation is about: usually its own."""
        if d < 200:
            return DOMID_SELF
        return (g.id, self.guests[d % len(self.guests)].id, NOBODY, DOMID_IO)[d & 3] if d < 250 else DOMID_SELF

    # --- calling ------------------------------------------------------------------------------------------------

    def _mmu(self, g: MemoryGuest, vcpu: int, requests: list[tuple[int, int]], foreigndom: int = DOMID_SELF) -> None:
        want = self.model.mmu_update(g.id, requests, foreigndom)
        self._batch("mmu_update", layouts.HYPERCALL_MMU_UPDATE, _REQUEST, g, vcpu, requests, foreigndom, want)

    def _mmuext(self, g: MemoryGuest, vcpu: int, *ops: tuple[int, int, int], foreigndom: int = DOMID_SELF) -> None:
        want = self.model.mmuext_op(g.id, vcpu, ops, foreigndom)
        self._batch("mmuext_op", layouts.HYPERCALL_MMUEXT_OP, _OP, g, vcpu, ops, foreigndom, want)

    def _batch(self, what: str, number: int, layout: struct.Struct, g: MemoryGuest, vcpu: int,
               rows: Sequence[tuple[int, ...]], foreigndom: int, want: tuple[int, int]) -> None:
        g.write(0, b"".join(layout.pack(*row) for row in rows))
        g.write(_DONE, bytes(4))
        rc = self.driver.hypercall(g.id, vcpu, number, (g.scratch, len(rows), g.scratch + _DONE, foreigndom))
        done, = struct.unpack("<I", g.read(_DONE, 4))
        named = f"{what}({', '.join('/'.join(map(hex, row)) for row in rows)}) by {g.id} for {foreigndom:#x}"
        self.expect(named, (rc, done), want)
        self.compare(named)

    def _update_va(self, g: MemoryGuest, vcpu: int, va: int, entry: int, flags: int = 0,
                   domid: int | None = None) -> None:
        number = layouts.HYPERCALL_UPDATE_VA_MAPPING
        args: tuple[int, ...] = (va, entry, flags)
        if domid is not None:
            number, args = layouts.HYPERCALL_UPDATE_VA_MAPPING_OTHERDOMAIN, (*args, domid)
        rc = self.driver.hypercall(g.id, vcpu, number, args)
        want = self.model.update_va_mapping(g.id, vcpu, va, entry, flags, domid)
        if want == -EFAULT and rc == -EINVAL and self.model.touched:
            rc = want                           # the flush failed after the update: either code will do
        self.expect(f"update_va_mapping({va:#x}, {entry:#x}, {flags:#x}) by {g.id}", rc, want)
        self.compare("update_va_mapping")

    # --- page tables --------------------------------------------------------------------------------------------

    def store_entry(self, a: int, b: int, c: int, d: int) -> None:
        """A guest writes an entry into a page of data, as one does before making it a page table."""
        g, _ = self._who(a)
        mfn, slot = g.play[b % len(g.play)], SLOTS[a >> 5]
        frame = self.model.frames[mfn]
        if not frame.refs or frame.owner != g.id or (frame.type_refs and frame.type != WRITABLE):
            return
        entry = self._entry(g, c, d)
        self.driver.frame_write(mfn, slot * 8, entry.to_bytes(8, "little"))
        frame.set_entry(slot, entry)
        self.model.touched.add(mfn)
        self.compare("a store")

    def unmap(self, a: int, b: int, c: int, d: int) -> None:
        """The first step to a page table: its writable mapping goes."""
        g, vcpu = self._who(a)
        self._update_va(g, vcpu, g.va(b), 0, c % 3)

    def remap(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        mfn = g.mfns[g.pfns[b % len(g.pfns)]]
        self._update_va(g, vcpu, g.va(b), mfn << PAGE_SHIFT | PRESENT | (RW if c & 1 else 0), 2)

    def update_va(self, a: int, b: int, c: int, d: int) -> None:
        """Anything at an address of the playground, with every kind of flush."""
        g, vcpu = self._who(a)
        flush = (0, 1, 2, 5, 6, g.scratch + 1, g.scratch + 2, BAD_POINTERS[0] | 1)[d & 7]
        va = g.va(b) if d < 240 else (1 << 63, BAD_POINTERS[0], g.scratch ^ 1 << 40, 1 << 47)[d & 3]
        self._update_va(g, vcpu, va, self._entry(g, b ^ c, c), flush)

    def make_table(self, a: int, b: int, c: int, d: int) -> None:
        """What a kernel does for a new page table: unmap it, fill it with something plausible, pin it or link it."""
        g, vcpu = self._who(a)
        mfn, level = g.play[b % len(g.play)], c & 3
        for index, pfn in enumerate(g.pfns):
            if g.mfns[pfn] == mfn:
                self._update_va(g, vcpu, g.va(index), mfn << PAGE_SHIFT | PRESENT if d & 1 else 0, 2)
        self.store_entry(a, b, d, (0, 1, 2, 5)[c >> 2 & 3])
        self._mmuext(g, vcpu, (level, mfn, 0))

    def clone_root(self, a: int, b: int, c: int, d: int) -> None:
        """A second root table like the boot one, as for a new process, pinned and ready to switch to."""
        g, vcpu = self._who(a)
        mfn = g.play[b % len(g.play)]
        root = self.model.owners[g.id].kernel_base[vcpu]
        for index, pfn in enumerate(g.pfns):
            if g.mfns[pfn] == mfn:
                self._update_va(g, vcpu, g.va(index), 0, 2)
        self._mmuext(g, vcpu, (17, mfn, root))
        frame = self.model.frames[mfn]
        if not frame.refs or (frame.type_refs and frame.type != WRITABLE):
            return
        # The copy took Xen's own slots along; a guest that wants to pin an L4 need not clear them.
        self._mmuext(g, vcpu, (3, mfn, 0))

    def pin(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        self._mmuext(g, vcpu, (c & 3, self._mfn(g, b), 0), foreigndom=self._domid(g, d))

    def unpin(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        self._mmuext(g, vcpu, (4, self._mfn(g, b), 0), foreigndom=self._domid(g, d))

    def new_base(self, a: int, b: int, c: int, d: int) -> None:
        """Both base pointers; the kernel's only to a table that still reaches the arguments, or to no table at all."""
        g, vcpu = self._who(a)
        if c & 1:
            return self._mmuext(g, vcpu, (15, 0 if c & 2 else self._mfn(g, b), 0), foreigndom=self._domid(g, d))
        mfn = g.boot_tables[b % len(g.boot_tables)] if c & 2 else self._mfn(g, b)
        frame = self.model.frame(mfn)
        if frame is None or frame.owner != g.id or (frame.type_refs and frame.type != 4) or \
                self.reaches_scratch(g, mfn):
            self._mmuext(g, vcpu, (5, mfn, 0), foreigndom=self._domid(g, d))

    def mmu_update(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        self._mmu(g, vcpu, [self._request(g, a, b, c, d)], self._foreign(g, d))

    def mmu_batch(self, a: int, b: int, c: int, d: int) -> None:
        """Several at once: all up to the first error take effect."""
        g, vcpu = self._who(a)
        count = a >> 5
        requests = []
        lifeline = set(self.lifeline(g))
        for n in range(count):
            ptr, val = self._request(g, a + 32 * n & 255, b + 5 * n & 255, c + 11 * n & 255, d + 3 * n & 255)
            # A request must not cut a lifeline that an earlier one of the batch has moved: play it safe.
            if any(mfn == ptr >> 12 for mfn, _ in lifeline) and n:
                ptr = g.play[n % len(g.play)] << 12 | 8 * n
                if any(mfn == ptr >> 12 for mfn, _ in lifeline):
                    continue
            requests.append((ptr, val))
        self._mmu(g, vcpu, requests, self._foreign(g, d))

    def _request(self, g: MemoryGuest, a: int, b: int, c: int, d: int) -> tuple[int, int]:
        """One mmu_update request: any frame, any command, an entry that might do."""
        mfn, slot = self._mfn(g, b), SLOTS[a >> 5]
        if mfn in g.boot_tables and c & 1:
            # Slots of the boot tables that are in use: the playground's own mappings among them.
            path = list(self.path(self.model.owners[g.id].kernel_base[0], g.va(c)))
            mfn, slot = path[c // 2 % len(path)]
        if mfn in g.scratch_mfns:
            slot = 511                          # where no arguments lie
        cmd = (0, 0, 0, 2, 2, 3, 1, 4)[d & 7] if d & 64 else (0, 2)[d & 1]
        if cmd == 1:
            return mfn << PAGE_SHIFT | 1, c << 8 | d
        level = self.model.frame(mfn).type if self.model.frame(mfn) else 0
        # A likely target: for L2 and up a table of the next level, for others anything.
        target = c
        if level > L1 and c & 2:
            below = [n for n, m in enumerate(g.play) if self.model.frames[m].type == level - 1
                     and self.model.frames[m].type_refs]
            target = below[c % len(below)] if below else c
        val = self._safe(g, mfn, slot, self._entry(g, target, d >> 3))
        return mfn << PAGE_SHIFT | slot << 3 | cmd, val

    def _foreign(self, g: MemoryGuest, d: int) -> int:
        """A foreigndom argument: nearly always oneself."""
        if d % 16:
            return DOMID_SELF
        other = self.guests[(self.guests.index(g) + 1) % len(self.guests)].id
        return (other, g.id, NOBODY, DOMID_SELF | other + 1 << 16, DOMID_SELF | NOBODY + 1 << 16,
                DOMID_SELF | g.id + 1 << 16)[d // 16 % 6]

    def machphys(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        self._mmu(g, vcpu, [(self._mfn(g, b) << PAGE_SHIFT | 1, c << 8 | d)], self._foreign(g, d))

    def mmuext_other(self, a: int, b: int, c: int, d: int) -> None:
        """Flushes, LDT, unknown and superpage commands: nothing changes but the result."""
        g, vcpu = self._who(a)
        cmd = (6, 7, 8, 9, 10, 11, 12, 13, 14, 18, 19, 20, 21, 99)[b % 14]
        arg1 = (g.scratch, g.scratch + 8, 0, 1 << 63, BAD_POINTERS[0])[c % 5]
        arg2 = (g.scratch + 64, BAD_POINTERS[c & 3])[d & 1] if cmd in (8, 9) else (0, 1, 512, 8192, 8193)[d % 5]
        if cmd == 13 and arg2 and arg1 == g.scratch:
            arg2 = 8193                         # a descriptor table over the scratch pages would type them
        self._mmuext(g, vcpu, (cmd, arg1, arg2), foreigndom=self._domid(g, d))

    def clear_copy(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        dst, src = self._mfn(g, b), g.play[c % len(g.play)] if c < 240 else self._mfn(g, c | 246)
        if g.shared_info in (dst, src) or not self.unknown.isdisjoint((dst, src)):
            return
        op = (16, dst, 0) if d & 1 else (17, dst, src)
        self._mmuext(g, vcpu, op, foreigndom=self._domid(g, d))

    def map_foreign(self, a: int, b: int, c: int, d: int) -> None:
        """Another domain's frame: only for a privileged caller that names the owner."""
        g, vcpu = self._who(a)
        other = self.guests[(self.guests.index(g) + 1) % len(self.guests)]
        mfn = other.play[c % len(other.play)]
        domid = other.id if d < 200 else (g.id, NOBODY, DOMID_SELF, DOMID_IO)[d & 3]
        self._update_va(g, vcpu, g.va(b), mfn << PAGE_SHIFT | FLAGS[d % 6], 2, domid)

    # --- reservations -------------------------------------------------------------------------------------------

    def _reserve(self, g: MemoryGuest, vcpu: int, op: int, values: list[int], *, order: int = 0,
                 domid: int = DOMID_SELF, flags: int = 0, start: int = 0) -> tuple[int, list[int]]:
        extents = g.write(_LIST, struct.pack(f"<{len(values)}Q", *values))
        arg = g.write(0, LAYOUTS["xen_memory_reservation"].struct.pack(
            extents, len(values), order, flags, domid))
        rc = self.driver.hypercall(g.id, vcpu, layouts.HYPERCALL_MEMORY_OP, (op | start << 6, arg))
        return rc, list(struct.unpack(f"<{len(values)}Q", g.read(_LIST, 8 * len(values))))

    def _grown(self, g: MemoryGuest, what: str, rc: int, asked: int, order: int, start: int, out: list[int],
               act: Callable[[], list[int]]) -> None:
        """Memory was added: the model follows the hypervisor's choice of frames, and judges where it stopped."""
        given = iter(out[start:max(rc, start)])
        self.model.allocator = lambda order: next(given, None)
        free = self.driver.counts()["free_frames"]
        made = act()
        if rc != start + len(made):
            raise Mismatch(f"step {self.steps}: {what} made {rc - start} extents, {len(made)} are allowed")
        owner = self.model.owners[g.id]
        if made and start + len(made) < asked and order == 0 and len(owner.frames) < owner.max_pages and free:
            raise Mismatch(f"step {self.steps}: {what} stopped at {rc} of {asked} without a reason")
        for first in made:
            g.play += [first + n for n in range(1 << order)]
        self.compare(what)

    def populate(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        pfns = [1000 + b * 4 + n for n in range(c & 7)]
        # Orders above 9 are refused; small ones may fail for want of contiguous frames, so they are rare.
        order = 0 if d < 200 else 10 if not g.privileged else 19
        start = d & 3 if d & 16 else 0
        domid = self._domid(g, d) if d & 32 else DOMID_SELF
        if domid not in (DOMID_SELF, g.id) and g.privileged and domid != NOBODY:
            domid = NOBODY                      # whose frames would not be ours to play with
        flags = 1 << 16 if d & 64 else 0
        rc, out = self._reserve(g, vcpu, layouts.XENMEM_POPULATE, pfns, order=order, domid=domid, flags=flags,
                                start=start)
        self._grown(g, "populate_physmap", rc, len(pfns), order, start, out,
                    lambda: self.model.populate_physmap(g.id, domid, pfns, order, start=start, on_demand=bool(flags)))

    def increase(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        count = b & 3
        order = 10 if d > 250 and not g.privileged else 0
        rc, out = self._reserve(g, vcpu, layouts.XENMEM_INCREASE, [0] * count, order=order)
        self._grown(g, "increase_reservation", rc, count, order, 0, out,
                    lambda: self.model.increase_reservation(g.id, DOMID_SELF, count, order))

    def decrease(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        mfns = [self._mfn(g, b + 31 * n & 255) for n in range(c & 3)]
        mfns = [mfn if mfn != g.shared_info else g.play[0] for mfn in mfns]
        domid = self._domid(g, d)
        rc, _ = self._reserve(g, vcpu, layouts.XENMEM_DECREASE, mfns, domid=domid)
        self.expect("decrease_reservation", rc, self.model.decrease_reservation(g.id, domid, mfns))
        self.compare("decrease_reservation")
        self._forget_freed()

    def exchange(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        mfns = [self._mfn(g, b + 37 * n & 255) for n in range(c & 3)]
        pfns = [2000 + d + n for n in range(len(mfns) + (d > 240))]
        order, done = (10 if d == 1 and not g.privileged else 0), (c >> 2 & 1 if d & 4 else 0)
        in_list = g.write(_LIST, struct.pack(f"<{len(mfns)}Q", *mfns))
        out_list = g.write(_LIST + 64, struct.pack(f"<{len(pfns)}Q", *pfns))
        layout = LAYOUTS["xen_memory_exchange"].struct
        out_domid = DOMID_SELF if d != 2 else NOBODY
        arg = g.write(0, layout.pack(in_list, len(mfns), order, 0, DOMID_SELF, out_list, len(pfns), order, 0,
                                     out_domid, done))
        free = self.driver.counts()["free_frames"]
        rc = self.driver.hypercall(g.id, vcpu, layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_EXCHANGE, arg))
        nr_exchanged = layout.unpack(g.read(0, layout.size))[-1]
        given = iter(struct.unpack(f"<{len(pfns)}Q", g.read(_LIST + 64, 8 * len(pfns)))[done:])
        # Only frames that were handed out count: what was left in the list are still our pfns.
        self.model.allocator = lambda order: next(given, None) if free else None
        want = self.model.exchange(g.id, mfns, pfns, in_order=order, out_order=order, out_domid=out_domid,
                                   nr_exchanged=done)
        self.expect("exchange", (rc, nr_exchanged), want[:2])
        g.play += want[2]
        self.compare("exchange")
        self._forget_freed()

    def _forget_freed(self) -> None:
        for g in self.guests:
            kept = [mfn for mfn in g.play if self.model.frames[mfn].owner == g.id]
            g.play = (kept or g.play[:1])[:40]

    def reservation(self, a: int, b: int, c: int, d: int) -> None:
        g, vcpu = self._who(a)
        domid = self._domid(g, b)
        arg = g.write(0, LAYOUTS["xen_memory_domain"].pack(domid=domid))
        for op, call in ((layouts.XENMEM_CURRENT, self.model.current_reservation),
                         (layouts.XENMEM_MAXIMUM, self.model.maximum_reservation)):
            rc = self.driver.hypercall(g.id, vcpu, layouts.HYPERCALL_MEMORY_OP, (op, arg))
            self.expect(f"reservation {op} of {domid:#x}", rc, call(g.id, domid))
        self.steps += 1

    # --- hostile ------------------------------------------------------------------------------------------------

    def hostile(self, a: int, b: int, c: int, d: int) -> None:
        """Bad pointers and counts: an error, and nothing changes."""
        g, vcpu = self._who(a)
        bad = BAD_POINTERS[b % len(BAD_POINTERS)]
        number, args, want = (
            (layouts.HYPERCALL_MMU_UPDATE, (bad, 1, 0, DOMID_SELF), -EFAULT),
            (layouts.HYPERCALL_MMUEXT_OP, (bad, 1, 0, DOMID_SELF), -EFAULT),
            (layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_POPULATE, bad), 0),
            (layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_DECREASE | 7 << 6, bad), 7),
            (layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_EXCHANGE, bad), -EFAULT),
            (layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_EXCHANGE | 1 << 6, g.scratch), -EINVAL),
            (layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_CURRENT, bad), -EFAULT),
            (layouts.HYPERCALL_MEMORY_OP, (63, g.scratch), -ENOSYS),
            (layouts.HYPERCALL_MMU_UPDATE, (g.scratch, 0, 0, NOBODY), -3),
            (layouts.HYPERCALL_MMUEXT_OP, (g.scratch, 0, 0, NOBODY), -3),
        )[c % 10]
        self.expect(f"hypercall {number}{args}", self.driver.hypercall(g.id, vcpu, number, args), want)
        self.model.touched.update(g.play)
        self.compare("a bad call")

    def recreate(self, a: int, b: int, c: int, d: int) -> None:
        """The last domain dies, whatever state its tables are in, and another takes its place."""
        self.destroy(self.guests[-1])
        self.create(privileged=not self.guests)


def draw_choices(seed: int, count: int) -> list[base.Choice]:
    """`count` steps for `run_script`."""
    return base.draw(PageTypesRunner, seed, count)


def run_script(driver: Driver, choices: Iterable[base.Choice], **options: int) -> int:
    """Run choices drawn beforehand and return the number of steps."""
    return base.run(PageTypesRunner(driver, **options), choices)


def machine(make_driver: Callable[[], Driver], **options: int) -> type[RuleBasedStateMachine]:
    """A state machine class; `make_driver` is called once an example. `options` are `PageTypesRunner`'s."""
    return base.machine(make_driver, lambda driver: PageTypesRunner(driver, **options), PageTypesRunner)
