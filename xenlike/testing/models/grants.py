"""Grant tables, version 1: who may use whose frame, and what keeps it alive meanwhile.

A granter writes entries into its grant frames; a mapper names one by (domain, reference). The hypervisor copies an
entry once, pins it (sets "reading" and "writing" in the guest's own word) and remembers in an active entry how often
and for what it is pinned. A mapping through a page table entry also holds the frame by the frame table's counts, so
this model works on a `PageTypes` and its frames; entries are real words in real grant frames.

Results are GNTST_* for one element, or (rc, …) where the call as a whole answers. Transfer is not offered and
version 2 does not exist here. Where the ABI description is silent the model does what Xen 4.17 does, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .abi import (DOMID_SELF, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, PAGE_SHIFT, PAGE_SIZE)
from .frames import ACCESSED, DIRTY, L1, NX, PRESENT, RW, USER, WRITABLE, Frame, adjust, entry_mfn
from .pagetypes import PageTypes

OKAY, GENERAL_ERROR, BAD_DOMAIN, BAD_GNTREF, BAD_HANDLE, BAD_VIRT_ADDR, BAD_DEV_ADDR, NO_DEVICE_SPACE, \
    PERMISSION_DENIED, BAD_PAGE, BAD_COPY_ARG, ADDRESS_TOO_BIG, EAGAIN, NO_SPACE = range(0, -14, -1)

# Entry flags.
TYPE_MASK, PERMIT_ACCESS, READONLY, READING, WRITING, SUB_PAGE = 3, 1, 4, 8, 16, 256
# Mapping flags.
DEVICE_MAP, HOST_MAP, MAP_READONLY, APPLICATION_MAP, CONTAINS_PTE = 1, 2, 4, 8, 16
SOURCE_GREF, DEST_GREF = 1, 2

ENTRIES_PER_FRAME = 512
MAPPINGS_PER_FRAME = 256
PIN_LIMIT = 128             # each counter has 8 bits, and a counter whose top bit is set takes no more
DEV_R, DEV_W, HOST_R, HOST_W = "device read", "device write", "host read", "host write"


def grant_pte(mfn: int, flags: int) -> int:
    """The page table entry of a host mapping, as stored: never executable, already accessed and dirty."""
    entry = mfn << PAGE_SHIFT | PRESENT | ACCESSED | DIRTY | NX
    entry |= USER if flags & APPLICATION_MAP else 0
    entry |= 0 if flags & MAP_READONLY else RW
    return adjust(L1, entry | (flags >> 16 & 7) << 9)


@dataclass(slots=True)
class Active:
    """What the hypervisor knows of a pinned entry, whatever the guest writes there meanwhile."""

    domid: int = 0
    mfn: int = 0
    pins: Counter[str] = field(default_factory=Counter)

    @property
    def pinned(self) -> bool:
        return any(self.pins.values())

    @property
    def written(self) -> bool:
        return bool(self.pins[HOST_W] or self.pins[DEV_W])


@dataclass(slots=True)
class Mapping:
    """A maptrack entry: which grant a handle stands for, and which halves of it are still mapped."""

    granter: int
    ref: int
    flags: int


@dataclass(slots=True)
class Table:
    """A domain's grant table and the mappings it has of others'."""

    domid: int
    max_frames: int
    max_mappings: int
    frames: list[int] = field(default_factory=list)
    active: dict[int, Active] = field(default_factory=dict)
    mappings: dict[int, Mapping] = field(default_factory=dict)
    dead: bool = False

    @property
    def entries(self) -> int:
        return len(self.frames) * ENTRIES_PER_FRAME


class GrantModel:
    """Grant tables of a whole host, over `memory`'s frames.

    `unowned_frame` is the status of mapping an entry whose frame is not the granter's: the ABI description says
    -1, Xen 4.17 answers -9 (bad_page). `replace_steals`: an unmap_and_replace that fails after it took the entry of its
    new address away does not put it back, as in Xen.
    """

    def __init__(self, memory: PageTypes, *, unowned_frame: int = GENERAL_ERROR, replace_steals: bool = True) -> None:
        self.memory = memory
        self.unowned_frame, self.replace_steals = unowned_frame, replace_steals
        self.tables: dict[int, Table] = {}

    # --- life and death -----------------------------------------------------------------------------------------

    def create_domain(self, domid: int, frames: Sequence[int], *, max_frames: int = 64,
                      max_maptrack_frames: int = 1024) -> Table:
        """`frames` are the grant frames it starts with: already the domain's special frames in `memory`."""
        table = Table(domid, max_frames, max_maptrack_frames * MAPPINGS_PER_FRAME, list(frames))
        self.tables[domid] = table
        return table

    def destroy_domain(self, domid: int) -> None:
        """Call before the domain's memory goes. Its mappings end: pins are released and device mappings put; the page
        table entries of host mappings are put with the page tables. Its own grants stay pinned by whoever maps them."""
        table = self.tables[domid]
        for handle in sorted(table.mappings, reverse=True):
            mapping = table.mappings.pop(handle)
            granter = self.tables[mapping.granter]
            active = granter.active[mapping.ref]
            readonly = bool(mapping.flags & MAP_READONLY)
            if mapping.flags & DEVICE_MAP:
                self._unpin(granter, mapping.ref, DEV_R if readonly else DEV_W)
                self.memory.release(self.memory.frames[active.mfn], writable=not readonly)
            if mapping.flags & HOST_MAP:
                self._unpin(granter, mapping.ref, HOST_R if readonly else HOST_W)
        table.dead = True

    # --- map ----------------------------------------------------------------------------------------------------

    def map(self, caller: int, vcpu: int, host_addr: int, flags: int, ref: int, domid: int,
            handle: int | None = None) -> tuple[int, int, int]:
        """GNTTABOP_map_grant_ref, one element → (status, handle, dev_bus_addr).

        The choice of a free handle is the hypervisor's: `handle` says which it took, None lets the model choose."""
        pins = self._pins_for(flags)
        if not pins:
            return BAD_GNTREF, 0, 0
        granter, mine = self._alive(domid), self.tables[caller]
        if granter is None:
            return BAD_DOMAIN, 0, 0
        if len(mine.mappings) >= mine.max_mappings:
            return NO_SPACE, 0, 0
        if ref >= granter.entries:
            return BAD_GNTREF, 0, 0
        status, frame, fresh = self._pin(granter, ref, caller, pins, bool(flags & MAP_READONLY), mapping=True)
        if status:
            return status, 0, 0
        active = granter.active[ref]
        status = self._hold(caller, vcpu, frame, fresh, granter.domid, flags, host_addr)
        if status:
            for pin in pins:
                self._unpin(granter, ref, pin)
            return status, 0, 0
        if handle is None:
            handle = next(n for n in range(len(mine.mappings) + 1) if n not in mine.mappings)
        assert handle not in mine.mappings, f"handle {handle} given out twice to domain {caller}"
        mine.mappings[handle] = Mapping(granter.domid, ref, flags)
        return OKAY, handle, active.mfn << PAGE_SHIFT

    def _hold(self, caller: int, vcpu: int, frame: Frame, fresh: bool, owner: int, flags: int, host_addr: int) -> int:
        """Take a mapping's references to the frame, and write its page table entry. `fresh` says that a general
        reference came along from reading the entry."""
        memory, writable = self.memory, not flags & MAP_READONLY
        # One general reference a kind of mapping, and a writable type for each that may write.
        wanted = bool(flags & DEVICE_MAP) + bool(flags & HOST_MAP)
        held = int(fresh)
        while held < wanted and memory.get_page(frame.mfn, owner):
            held += 1
        types = 0
        if held == wanted:
            while writable and types < wanted and not memory.get_type(frame, WRITABLE):
                types += 1
        status = OKAY if held == wanted and (types == wanted or not writable) else GENERAL_ERROR
        if not status and flags & HOST_MAP:
            status = self._install(caller, vcpu, host_addr, frame.mfn, flags)
        if status:
            for _ in range(types):
                memory.put_type(frame)
            for _ in range(held):
                memory.put_page(frame)
        elif flags & DEVICE_MAP:
            memory.hold(frame, writable=writable)
        return status

    def _install(self, caller: int, vcpu: int, host_addr: int, mfn: int, flags: int) -> int:
        """Write the entry of a host mapping over whatever was there, and let that go."""
        slot = self._slot(caller, vcpu, host_addr, flags)
        if slot is None:
            return GENERAL_ERROR
        table, index = slot
        old = table.entry(index)
        table.set_entry(index, grant_pte(mfn, flags))
        self.memory.touched.add(table.mfn)
        self.memory.put_entry(L1, old, table)
        return OKAY

    def _slot(self, caller: int, vcpu: int, host_addr: int, flags: int) -> tuple[Frame, int] | None:
        """The caller's own, validated L1 page and index that a host address names."""
        if flags & CONTAINS_PTE:
            table = self.memory.frame(host_addr >> PAGE_SHIFT)
            slot = (table, (host_addr & PAGE_SIZE - 1) >> 3) if table is not None and not host_addr % 8 else None
        else:
            slot = self.memory.l1_slot(caller, vcpu, host_addr)
        if slot is None or slot[0].owner != caller:
            return None
        table = slot[0]
        return slot if table.type == L1 and table.type_refs and table.validated else None

    # --- unmap --------------------------------------------------------------------------------------------------

    def unmap(self, caller: int, vcpu: int, host_addr: int, dev_bus_addr: int, handle: int) -> int:
        """GNTTABOP_unmap_grant_ref, one element: each half whose address is given and which is mapped."""
        return self._unmap(caller, vcpu, host_addr, dev_bus_addr, 0, handle)

    def unmap_and_replace(self, caller: int, vcpu: int, host_addr: int, new_addr: int, handle: int) -> int:
        """GNTTABOP_unmap_and_replace: the entry that maps `new_addr` moves to `host_addr`."""
        return self._unmap(caller, vcpu, host_addr, 0, new_addr, handle)

    def _unmap(self, caller: int, vcpu: int, host_addr: int, dev_bus_addr: int, new_addr: int, handle: int) -> int:
        mappings = self.tables[caller].mappings
        mapping = mappings.get(handle)
        if mapping is None:
            return BAD_HANDLE
        granter = self.tables[mapping.granter]
        mfn, flags = granter.active[mapping.ref].mfn, mapping.flags
        readonly = bool(flags & MAP_READONLY)
        device = bool(dev_bus_addr and flags & DEVICE_MAP)
        if device and dev_bus_addr != mfn << PAGE_SHIFT:
            return BAD_DEV_ADDR
        frame = self.memory.frames[mfn]
        if host_addr and flags & HOST_MAP:
            if not self._remove(caller, vcpu, host_addr, new_addr, mfn, flags):
                return GENERAL_ERROR
            mapping.flags &= ~HOST_MAP
            if not readonly:
                self.memory.put_type(frame)
            self.memory.put_page(frame)
            self._unpin(granter, mapping.ref, HOST_R if readonly else HOST_W)
        if device:
            mapping.flags &= ~DEVICE_MAP
            self.memory.release(frame, writable=not readonly)
            self._unpin(granter, mapping.ref, DEV_R if readonly else DEV_W)
        if not mapping.flags & (DEVICE_MAP | HOST_MAP):
            del mappings[handle]
        return OKAY

    def _remove(self, caller: int, vcpu: int, host_addr: int, new_addr: int, mfn: int, flags: int) -> bool:
        """Take the entry of a host mapping away, or put the one of `new_addr` in its place. The caller drops the
        granted frame's references.

        The entry of `new_addr` is stolen first; when the rest fails, it is lost and what it mapped is let go, or with
        `replace_steals` off put back."""
        memory, replacement = self.memory, 0
        if new_addr:
            stolen = None if flags & CONTAINS_PTE else self._slot(caller, vcpu, new_addr, 0)
            if stolen is None:
                return False
            replacement = stolen[0].entry(stolen[1])
            stolen[0].set_entry(stolen[1], 0)
            memory.touched.add(stolen[0].mfn)
        slot = self._slot(caller, vcpu, host_addr, flags)
        old = slot[0].entry(slot[1]) if slot is not None else 0
        if slot is None or entry_mfn(old) != mfn or (old ^ grant_pte(mfn, flags)) & (PRESENT | RW):
            if replacement and self.replace_steals:
                memory.put_entry(L1, replacement, stolen[0])
            elif replacement:
                stolen[0].set_entry(stolen[1], replacement)
            return False
        slot[0].set_entry(slot[1], replacement)
        memory.touched.add(slot[0].mfn)
        return True

    # --- copy ---------------------------------------------------------------------------------------------------

    def copy(self, caller: int, source: tuple[int, int, int], dest: tuple[int, int, int], length: int,
             flags: int) -> int:
        """GNTTABOP_copy, one element. `source` and `dest` are (reference or mfn, domid, offset)."""
        if not length:
            return OKAY
        sides = ((source, bool(flags & SOURCE_GREF)), (dest, bool(flags & DEST_GREF)))
        domids = []
        for (_, domid, _), by_ref in sides:
            if domid != DOMID_SELF and not by_ref:
                return PERMISSION_DENIED
            domid = caller if domid == DOMID_SELF else domid
            if self._alive(domid) is None:
                return BAD_DOMAIN
            domids.append(domid)
        taken: list[tuple[Frame, Table | None, int, str]] = []
        status = OKAY
        for ((where, _, _), by_ref), domid, pin in zip(sides, domids, (HOST_R, HOST_W)):
            status, frame = self._claim(caller, domid, where, by_ref, pin)
            if status:
                break
            taken.append((frame, self.tables[domid] if by_ref else None, where, pin))
            if pin == HOST_W and self.memory.get_type(frame, WRITABLE):
                status = GENERAL_ERROR
                break
            if pin == HOST_W:
                status = self._copy_bytes(taken[0][0], source[2], frame, dest[2], length)
                self.memory.put_type(frame)
        for frame, table, ref, pin in taken:
            if table is not None:
                self._unpin(table, ref, pin)
            self.memory.put_page(frame)
        return status

    def _claim(self, caller: int, domid: int, where: int, by_ref: bool, pin: str) -> tuple[int, Frame | None]:
        """One side of a copy: the frame with a general reference, and a pin if it was named by reference."""
        if not by_ref:
            frame = self.memory.get_page(where, domid)
            return (OKAY if frame else BAD_PAGE), frame
        granter = self.tables[domid]
        if where >= granter.entries:
            return BAD_GNTREF, None
        status, frame, fresh = self._pin(granter, where, caller, (pin,), pin == HOST_R, mapping=False)
        if not status and not fresh and self.memory.get_page(frame.mfn, domid) is None:
            # Pinned, but gone: a mapper overwrote its page table entry and the granter gave the frame back.
            self._unpin(granter, where, pin)
            return BAD_DOMAIN, None
        return status, frame

    def _copy_bytes(self, source: Frame, source_offset: int, dest: Frame, dest_offset: int, length: int) -> int:
        if source_offset + length > PAGE_SIZE or dest_offset + length > PAGE_SIZE:
            return BAD_COPY_ARG
        dest.write(dest_offset, source.data[source_offset:source_offset + length])
        self.memory.touched.add(dest.mfn)
        return OKAY

    # --- table management ---------------------------------------------------------------------------------------

    def setup_table(self, caller: int, domid: int, nr_frames: int, count: int = 1,
                    new_frames: Sequence[int] = ()) -> tuple[int, int, list[int]]:
        """GNTTABOP_setup_table → (rc, status, the first `nr_frames` grant frames).

        `new_frames` are the mfns the hypervisor added, if the table had to grow; without them the model allocates."""
        if count != 1:
            return -EINVAL, 0, []
        status, table = self._managed(caller, domid)
        if status:
            return 0, status, []
        if nr_frames > table.max_frames:
            return 0, GENERAL_ERROR, []
        added = iter(new_frames)
        while len(table.frames) < nr_frames:
            mfn = next(added, None)
            mfn = self.memory.allocator(0) if mfn is None else mfn
            if mfn is None:
                return 0, GENERAL_ERROR, []
            self.memory.assign(mfn, table.domid, special=True)
            table.frames.append(mfn)
        return 0, OKAY, table.frames[:nr_frames]

    def query_size(self, caller: int, domid: int, count: int = 1) -> tuple[int, int, int, int]:
        """GNTTABOP_query_size → (rc, status, frames, most frames)."""
        if count != 1:
            return -EINVAL, 0, 0, 0
        status, table = self._managed(caller, domid)
        return (0, status, 0, 0) if status else (0, OKAY, len(table.frames), table.max_frames)

    def set_version(self, caller: int, version: int) -> tuple[int, int]:
        """GNTTABOP_set_version → (rc, version in use): always 1, which is written back even with an error."""
        return {1: 0, 2: -ENOSYS}.get(version, -EINVAL), 1

    def get_version(self, caller: int, domid: int) -> tuple[int, int]:
        """GNTTABOP_get_version → (rc, version)."""
        status, _ = self._managed(caller, domid)
        return {OKAY: 0, BAD_DOMAIN: -ESRCH, PERMISSION_DENIED: -EPERM}[status], 1

    def get_status_frames(self, caller: int, domid: int, nr_frames: int, count: int = 1) -> tuple[int, int]:
        """GNTTABOP_get_status_frames → (rc, status): version 1 has none."""
        if count != 1:
            return -EINVAL, 0
        status, _ = self._managed(caller, domid)
        return 0, status or (GENERAL_ERROR if nr_frames else OKAY)

    def dump_table(self, caller: int, domid: int) -> int:
        """GNTTABOP_dump_table → status. (Xen 4.17 itself has dropped the command and answers -ENOSYS.)"""
        return self._managed(caller, domid)[0]

    def swap_grant_ref(self, caller: int, a: int, b: int) -> int:
        """GNTTABOP_swap_grant_ref, one element."""
        table = self.tables[caller]
        if a >= table.entries or b >= table.entries:
            return BAD_GNTREF
        if a == b:
            return OKAY
        if any(ref in table.active and table.active[ref].pinned for ref in (a, b)):
            return EAGAIN
        word_a, word_b = self._word(table, a), self._word(table, b)
        self._set_word(table, a, word_b)
        self._set_word(table, b, word_a)
        return OKAY

    def transfer(self) -> int:
        """GNTTABOP_transfer: may be disabled, and is."""
        return -EOPNOTSUPP

    def cache_flush(self) -> int:
        """GNTTABOP_cache_flush: not for a domain without devices (-ENOSYS is as good)."""
        return -EOPNOTSUPP

    # --- the guest's own stores ---------------------------------------------------------------------------------

    def write_entry(self, domid: int, ref: int, flags: int, grantee: int, mfn: int) -> None:
        """The guest writes an entry; no check is made before someone uses it."""
        self._set_word(self.tables[domid], ref, flags & 0xFFFF | (grantee & 0xFFFF) << 16 | (mfn & 0xFFFFFFFF) << 32)

    def read_entry(self, domid: int, ref: int) -> tuple[int, int, int]:
        """(flags, domid, frame) as the guest reads them."""
        word = self._word(self.tables[domid], ref)
        return word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32

    def revoke(self, domid: int, ref: int) -> bool:
        """The guest ends a grant: flags become 0 unless the entry is in use."""
        table = self.tables[domid]
        word = self._word(table, ref)
        if word & (READING | WRITING):
            return False
        self._set_word(table, ref, word & ~0xFFFF)
        return True

    # --- pins ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _pins_for(flags: int) -> tuple[str, ...]:
        readonly = flags & MAP_READONLY
        return ((DEV_R if readonly else DEV_W,) if flags & DEVICE_MAP else ()) + \
            ((HOST_R if readonly else HOST_W,) if flags & HOST_MAP else ())

    def _pin(self, granter: Table, ref: int, domid: int, pins: Sequence[str], readonly: bool, *,
             mapping: bool) -> tuple[int, Frame | None, bool]:
        """Pin an entry → (status, frame, whether a general reference to it was taken).

        The guest's word is examined by the first pin and by the first one that writes; the frame by the first."""
        active = granter.active.setdefault(ref, Active())
        pinned = active.pinned
        if pinned and (active.domid != domid or any(active.pins[pin] >= PIN_LIMIT for pin in pins)):
            return GENERAL_ERROR, None, False
        fresh = False
        if not pinned or (not readonly and not active.written):
            word = self._word(granter, ref)
            flags, grantee, mfn = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32
            kind = flags & (TYPE_MASK | (SUB_PAGE if mapping else 0))
            if not pinned and (kind != PERMIT_ACCESS or grantee != domid):
                return GENERAL_ERROR, None, False
            if not readonly and flags & READONLY:
                return GENERAL_ERROR, None, False
            self._set_word(granter, ref, word | READING | (0 if readonly else WRITING))
            if not pinned:
                if self.memory.get_page(mfn, granter.domid) is None:
                    self._settle(granter, ref, readonly)
                    return (self.unowned_frame if mapping else BAD_PAGE), None, False
                active.domid, active.mfn, fresh = domid, mfn, True
        active.pins.update(pins)
        return OKAY, self.memory.frames[active.mfn], fresh

    def _unpin(self, granter: Table, ref: int, pin: str) -> None:
        active = granter.active[ref]
        assert active.pins[pin] > 0, f"grant {granter.domid}:{ref} unpinned too often"
        active.pins[pin] -= 1
        self._settle(granter, ref, pin in (DEV_R, HOST_R))

    def _settle(self, granter: Table, ref: int, readonly: bool) -> None:
        """Reduce the guest's word to what is still pinned."""
        if granter.dead:
            return
        active = granter.active[ref]
        clear = 0 if active.pinned else READING
        clear |= WRITING if not readonly and not active.written else 0
        self._set_word(granter, ref, self._word(granter, ref) & ~clear)

    # --- inside -------------------------------------------------------------------------------------------------

    def _word(self, table: Table, ref: int) -> int:
        return self.memory.frames[table.frames[ref // ENTRIES_PER_FRAME]].entry(ref % ENTRIES_PER_FRAME)

    def _set_word(self, table: Table, ref: int, word: int) -> None:
        frame = self.memory.frames[table.frames[ref // ENTRIES_PER_FRAME]]
        frame.set_entry(ref % ENTRIES_PER_FRAME, word)
        self.memory.touched.add(frame.mfn)

    def _alive(self, domid: int) -> Table | None:
        table = self.tables.get(domid)
        return None if table is None or table.dead else table

    def _managed(self, caller: int, domid: int) -> tuple[int, Table | None]:
        """The table a management command names: its own, or with privilege any domain's."""
        table = self._alive(caller if domid == DOMID_SELF else domid)
        if table is None:
            return BAD_DOMAIN, None
        return (OKAY, table) if self.memory.may_control(caller, table.domid) else (PERMISSION_DENIED, None)

    # --- the invariant ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless pins equal mappings, and guests' words show what is pinned."""
        counted: dict[tuple[int, int], Counter[str]] = {}
        for table in self.tables.values():
            for mapping in table.mappings.values():
                counted.setdefault((mapping.granter, mapping.ref), Counter()).update(self._pins_for(mapping.flags))
        for table in self.tables.values():
            for ref, active in table.active.items():
                expected = counted.pop((table.domid, ref), Counter())
                assert +active.pins == expected, f"grant {table.domid}:{ref} is pinned {active.pins}, not {expected}"
        assert not counted, f"mappings of grants that are not pinned: {counted}"
