"""The PV memory hypercalls over the frame table: mmu_update, update_va_mapping, mmuext_op, memory_op.

The frame table and its rules are in frames.py. Arguments arrive here already copied out of guest memory, as numbers
and lists; a pointer that a call itself must follow (a vCPU bitmap) is looked up through the model's own page tables.
Operations answer 0 or -errno, or (rc, done) where the call reports how far it came.
"""

from __future__ import annotations

from collections.abc import Sequence

from .abi import (DOMID_IO, DOMID_SELF, EACCES, EFAULT, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, PAGE_SHIFT,
                  U64, address_ok)
from .frames import (ACCESSED, BAD_FLAGS, DIRTY, HARMLESS, L1, L2, L3, L4, PRESENT, WRITABLE, XEN_SLOTS, Frame,
                     FrameTable, adjust)

# Commands of mmu_update, in the low bits of a request's pointer.
NORMAL_PT_UPDATE, MACHPHYS_UPDATE, PT_UPDATE_PRESERVE_AD, PT_UPDATE_NO_TRANSLATE = range(4)

# Commands of mmuext_op.
PIN_L1, PIN_L2, PIN_L3, PIN_L4, UNPIN, NEW_BASEPTR, TLB_FLUSH_LOCAL, INVLPG_LOCAL, TLB_FLUSH_MULTI, INVLPG_MULTI, \
    TLB_FLUSH_ALL, INVLPG_ALL, FLUSH_CACHE, SET_LDT = range(14)
NEW_USER_BASEPTR, CLEAR_PAGE, COPY_PAGE, FLUSH_CACHE_GLOBAL, MARK_SUPER, UNMARK_SUPER = range(15, 21)

UVMF_FLUSH_TYPE, UVMF_ALL = 3, 4
MAX_ORDER_DOMU, MAX_ORDER_CONTROL = 9, 18
MAX_EXTENTS = 0xFFFF_FFFF >> 6              # more cannot be encoded in a continuation


class PageTypes(FrameTable):
    """PV64 page tables and memory reservations of a whole host."""

    # --- mmu_update and update_va_mapping -----------------------------------------------------------------------

    def mmu_update(self, caller: int, requests: Sequence[tuple[int, int]],
                   foreigndom: int = DOMID_SELF) -> tuple[int, int]:
        """(ptr, val) requests in order until the first error → (rc, number completed)."""
        table_owner = caller
        if foreigndom >> 16:
            table_owner = (foreigndom >> 16) - 1
            if self.alive(table_owner) is None:
                return -ESRCH, 0
        page_owner = self.page_owner(caller, foreigndom & 0xFFFF)
        if page_owner is None:
            return -ESRCH, 0
        for done, (ptr, val) in enumerate(requests):
            rc = self._mmu_update_one(caller, table_owner, page_owner, ptr & 7, ptr & ~7, val)
            if rc:
                return rc, done
        return 0, len(requests)

    def _mmu_update_one(self, caller: int, table_owner: int, page_owner: int, cmd: int, ptr: int, val: int) -> int:
        mfn = ptr >> PAGE_SHIFT
        allowed = page_owner == DOMID_IO or self.may_control(caller, page_owner)
        if cmd == MACHPHYS_UPDATE:
            if table_owner != caller or not allowed:
                return -EPERM
            frame = self.get_page(mfn, page_owner)
            if frame is None:
                return -EINVAL
            frame.m2p = val
            self.put_page(frame)
            return 0
        if cmd not in (NORMAL_PT_UPDATE, PT_UPDATE_PRESERVE_AD, PT_UPDATE_NO_TRANSLATE):
            return -ENOSYS
        if not allowed or not self.may_control(caller, table_owner):
            return -EPERM
        frame = self.get_page(mfn, table_owner)
        if frame is None:
            return -EINVAL
        rc, slot = -EINVAL, ptr >> 3 & 511
        if frame.type_refs and frame.type in (L1, L2, L3, L4):
            if frame.type == L1 or page_owner == table_owner:
                rc = self.update_entry(frame, slot, val, page_owner, preserve_ad=cmd == PT_UPDATE_PRESERVE_AD)
        elif not frame.type_refs or frame.type == WRITABLE:
            if not frame.type_refs:
                frame.type, frame.validated = WRITABLE, True
            frame.set_entry(slot, val)
            rc = 0
        self.put_page(frame)
        return rc

    def update_entry(self, table: Frame, slot: int, new: int, page_owner: int, *, preserve_ad: bool = False) -> int:
        """Change one entry of a page table in use: take the new target's references, store, drop the old one's."""
        level, old = table.type, table.entry(slot)
        if level == L4 and slot in XEN_SLOTS:
            return -EINVAL
        harmless = False
        if new & PRESENT:
            if new & BAD_FLAGS[level]:
                return -EINVAL
            new = adjust(level, new)
            harmless = not (old ^ new) & ~HARMLESS
            rc = 0 if harmless else self.get_entry(level, new, table, page_owner)
            if rc:
                return rc
        table.set_entry(slot, new | (old & (ACCESSED | DIRTY) if preserve_ad else 0))
        self.touched.add(table.mfn)
        if not harmless:
            self.put_entry(level, old, table)
        return 0

    def update_va_mapping(self, caller: int, vcpu: int, va: int, entry: int, flags: int = 0,
                          page_domid: int | None = None) -> int:
        """update_va_mapping, or with `page_domid` update_va_mapping_otherdomain."""
        page_owner = caller
        if page_domid is not None:
            page_owner = self.page_owner(caller, page_domid)
            if page_owner is None:
                return -ESRCH
        if not self.may_control(caller, page_owner):
            return -EPERM
        where = self.l1_slot(caller, vcpu, va)
        if where is None or where[0].owner != caller or where[0].type != L1 or not where[0].validated:
            return -EINVAL
        rc = self.update_entry(*where, entry, page_owner)
        if rc:
            return rc
        # The flush comes after the update, so an unreadable bitmap is reported although the entry has changed.
        bitmap = flags & ~UVMF_FLUSH_TYPE
        if flags & UVMF_FLUSH_TYPE in (1, 2) and bitmap not in (0, UVMF_ALL):
            return 0 if self._bitmap_readable(caller, vcpu, bitmap) else -EFAULT
        return 0

    # --- mmuext_op ----------------------------------------------------------------------------------------------

    def mmuext_op(self, caller: int, vcpu: int, ops: Sequence[tuple[int, int, int]],
                  foreigndom: int = DOMID_SELF) -> tuple[int, int]:
        """(cmd, arg1, arg2) in order until the first error → (rc, number completed)."""
        page_owner = self.page_owner(caller, foreigndom & 0xFFFF)
        if page_owner is None:
            return -ESRCH, 0
        if not self.may_control(caller, page_owner):
            return -EPERM, 0
        for done, op in enumerate(ops):
            rc = self._mmuext_one(caller, vcpu, page_owner, *op)
            if rc:
                return rc, done
        return 0, len(ops)

    def _mmuext_one(self, caller: int, vcpu: int, page_owner: int, cmd: int, arg1: int, arg2: int) -> int:
        if PIN_L1 <= cmd <= PIN_L4:
            return self.pin(arg1, L1 + cmd, page_owner)
        if cmd == UNPIN:
            return self.unpin(arg1, page_owner)
        if cmd == CLEAR_PAGE:
            return self._clear_or_copy(arg1, None, page_owner)
        if cmd == COPY_PAGE:
            return self._clear_or_copy(arg1, arg2, page_owner)
        if cmd in (MARK_SUPER, UNMARK_SUPER):
            return -EOPNOTSUPP
        if not (NEW_BASEPTR <= cmd <= SET_LDT or cmd in (NEW_USER_BASEPTR, FLUSH_CACHE_GLOBAL)):
            return -ENOSYS
        if page_owner != caller:
            return -EPERM
        if cmd in (NEW_BASEPTR, NEW_USER_BASEPTR):
            return self.new_base(caller, vcpu, arg1, user=cmd == NEW_USER_BASEPTR)
        if cmd in (TLB_FLUSH_MULTI, INVLPG_MULTI):
            return 0 if self._bitmap_readable(caller, vcpu, arg2) else -EINVAL
        if cmd in (FLUSH_CACHE, FLUSH_CACHE_GLOBAL):
            return -EACCES                      # no domain here has a device
        if cmd == SET_LDT:
            entries = arg2 & 0xFFFF_FFFF
            return -EINVAL if entries > 8192 or (entries and (arg1 & 0xFFF or not address_ok(arg1))) else 0
        return 0                                # flushes: the model has no TLB

    def pin(self, mfn: int, level: int, domid: int) -> int:
        """MMUEXT_PIN_Ln_TABLE: the pin itself is a reference of both kinds."""
        frame = self.get_page(mfn, domid)
        if frame is None:
            return -EINVAL
        rc = self.get_type(frame, level)
        if rc:
            self.put_page(frame)
            return rc
        if frame.pinned:
            self.put_page_and_type(frame)
            return -EINVAL
        frame.pinned = True
        return 0

    def unpin(self, mfn: int, domid: int) -> int:
        """MMUEXT_UNPIN_TABLE. The page stays a table while something else needs it to be one."""
        frame = self.get_page(mfn, domid)
        if frame is None:
            return -EINVAL
        if not frame.pinned:
            self.put_page(frame)
            return -EINVAL
        frame.pinned = False
        self.put_page_and_type(frame)
        self.put_page(frame)
        return 0

    def new_base(self, domid: int, vcpu: int, mfn: int, *, user: bool = False) -> int:
        """MMUEXT_NEW_BASEPTR and NEW_USER_BASEPTR: the new table is taken before the old one is let go."""
        owner = self.owners[domid]
        bases = owner.user_base if user else owner.kernel_base
        old = bases[vcpu]
        if old == mfn:
            return 0
        if mfn or not user:
            rc = self.get_page_and_type(mfn, L4, domid)
            if rc:
                return rc
        bases[vcpu] = mfn
        if old:
            self.put_page_and_type(self.frames[old])
        return 0

    def _clear_or_copy(self, dst: int, src: int | None, domid: int) -> int:
        source = self.get_page(src, domid) if src is not None else None
        if src is not None and source is None:
            return -EINVAL
        target = self.get_page(dst, domid)
        rc = self.get_type(target, WRITABLE) if target else -EINVAL
        if not rc:
            # A copy of a page onto itself changes nothing.
            target.words = source.words[:] if source and source.words else None
            target.half_adjusted = bool(source and source.half_adjusted)
            self.put_type(target)
        if target:
            self.put_page(target)
        if source:
            self.put_page(source)
        return rc

    # --- memory_op ----------------------------------------------------------------------------------------------

    def increase_reservation(self, caller: int, domid: int, count: int, order: int = 0, *,
                             start: int = 0) -> list[int]:
        """XENMEM_increase_reservation → first mfn of each extent made; the call returns start + their number."""
        owner = self._reservation(caller, domid, count, order, start)
        extents = []
        for _ in range(start, count) if owner is not None else ():
            frames = self.allocate(owner, order)
            if not frames:
                break
            extents.append(frames[0])
        return extents

    def populate_physmap(self, caller: int, domid: int, pfns: Sequence[int], order: int = 0, *,
                         start: int = 0, on_demand: bool = False) -> list[int]:
        """XENMEM_populate_physmap: as above, and the M2P of each frame is set from `pfns`."""
        owner = self._reservation(caller, domid, len(pfns), order, start)
        extents = []
        # Populating on demand is for translated guests, never for oneself.
        for pfn in pfns[start:] if owner is not None and not on_demand else ():
            frames = self.allocate(owner, order)
            if not frames:
                break
            for n, mfn in enumerate(frames):
                self.frames[mfn].m2p = pfn + n & U64
            extents.append(frames[0])
        return extents

    def decrease_reservation(self, caller: int, domid: int, mfns: Sequence[int], order: int = 0, *,
                             start: int = 0) -> int:
        """XENMEM_decrease_reservation → extents done, including `start`.

        Giving back a frame that is still mapped succeeds and drops the allocation's reference; doing it again also
        succeeds and changes nothing, as in Xen. Xen would also take back a frame of its own (shared_info), which is
        then lost to the guest; here that stops the list."""
        owner = self._reservation(caller, domid, len(mfns), order, start)
        if owner is None:
            return start
        for done, first in enumerate(mfns[start:], start):
            for mfn in range(first, first + (1 << order)):
                frame = self.get_page(mfn, owner)
                if frame is None:
                    return done
                if not frame.special:
                    self.put_allocation(frame)
                self.put_page(frame)
                if frame.special:
                    return done
        return len(mfns)

    def current_reservation(self, caller: int, domid: int) -> int:
        """XENMEM_current_reservation: pages owned, those given back but still mapped among them."""
        return self._statistic(caller, domid, lambda owner: len(owner.frames))

    def maximum_reservation(self, caller: int, domid: int) -> int:
        """XENMEM_maximum_reservation."""
        return self._statistic(caller, domid, lambda owner: owner.max_pages)

    def exchange(self, caller: int, in_mfns: Sequence[int], out_pfns: Sequence[int], *, in_order: int = 0,
                 out_order: int = 0, in_domid: int = DOMID_SELF, out_domid: int = DOMID_SELF,
                 nr_exchanged: int = 0) -> tuple[int, int, list[int]]:
        """XENMEM_exchange → (rc, nr_exchanged to write back, first mfn of each new extent)."""
        largest = MAX_ORDER_CONTROL if self.owners[caller].privileged else MAX_ORDER_DOMU
        if max(in_order, out_order) > largest:
            return -EPERM, nr_exchanged, []
        if nr_exchanged > len(in_mfns) or in_domid != out_domid or \
                len(in_mfns) << in_order != len(out_pfns) << out_order:
            return -EINVAL, nr_exchanged, []
        if nr_exchanged == len(in_mfns):
            return 0, nr_exchanged, []
        domid = self._domain(caller, in_domid)
        if domid is None:
            return -ESRCH, nr_exchanged, []
        if not self.may_control(caller, domid):
            return -EPERM, nr_exchanged, []
        # Work goes in chunks of the larger extent size: all of a chunk is exchanged or none of it.
        in_per_chunk = 1 << max(0, out_order - in_order)
        out_per_chunk = 1 << max(0, in_order - out_order)
        made: list[int] = []
        for chunk in range(nr_exchanged // in_per_chunk, len(in_mfns) // in_per_chunk):
            stolen = [first + n for first in in_mfns[chunk * in_per_chunk:(chunk + 1) * in_per_chunk]
                      for n in range(1 << in_order)]
            rc = 0 if len(set(stolen)) == len(stolen) and all(self._stealable(m, domid) for m in stolen) else -EINVAL
            fresh = []
            while not rc and len(fresh) < out_per_chunk:
                first = self.allocator(out_order)
                if first is None:
                    rc = -ENOMEM
                else:
                    # Set aside, so that the allocator does not offer the extent twice.
                    fresh.append(first)
                    for mfn in range(first, first + (1 << out_order)):
                        self.frame(mfn).refs = 1
            for first in fresh:
                for mfn in range(first, first + (1 << out_order)):
                    self.frames[mfn].refs = 0
            if rc:
                return rc, chunk * in_per_chunk, made
            for mfn in stolen:
                self.put_allocation(self.frames[mfn])
            for first, pfn in zip(fresh, out_pfns[chunk * out_per_chunk:]):
                for n in range(1 << out_order):
                    self.assign(first + n, domid).m2p = pfn + n & U64
                made.append(first)
        return 0, len(in_mfns), made

    def _stealable(self, mfn: int, domid: int) -> bool:
        frame = self.frames.get(mfn)
        return frame is not None and frame.owner == domid and frame.allocated and frame.refs == 1 \
            and not frame.special

    def _reservation(self, caller: int, domid: int, count: int, order: int, start: int) -> int | None:
        """The domain an extent operation works on, or None where the call returns its start at once."""
        largest = MAX_ORDER_CONTROL if self.owners[caller].privileged else MAX_ORDER_DOMU
        target = self._domain(caller, domid)
        if count > MAX_EXTENTS or start >= count or order > largest or target is None:
            return None
        return target if self.may_control(caller, target) else None

    def _statistic(self, caller: int, domid: int, value) -> int:
        target = self._domain(caller, domid)
        if target is None:
            return -ESRCH
        return value(self.owners[target]) if self.may_control(caller, target) else -EPERM

    # --- who --------------------------------------------------------------------------------------------------

    def page_owner(self, caller: int, domid: int) -> int | None:
        """The domain that a foreigndom argument names. Xen refuses a caller's own number: itself is DOMID_SELF."""
        if domid == DOMID_SELF:
            return caller
        if domid == DOMID_IO:
            return DOMID_IO
        return None if domid == caller or self.alive(domid) is None else domid

    def may_control(self, caller: int, domid: int) -> bool:
        return caller == domid or self.owners[caller].privileged

    def _domain(self, caller: int, domid: int) -> int | None:
        domid = caller if domid == DOMID_SELF else domid
        return None if self.alive(domid) is None else domid

    def _bitmap_readable(self, domid: int, vcpu: int, va: int) -> bool:
        """One word of 64 vCPUs after the other, as many as the domain has."""
        words = (len(self.owners[domid].kernel_base) + 63) // 64
        return all(address_ok(va + n) and self.translate(domid, vcpu, va + n) is not None
                   for word in range(words) for n in (word * 8, word * 8 + 7))
