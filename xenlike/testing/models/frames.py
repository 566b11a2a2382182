"""The frame table: who owns a frame, who refers to it, and what it may be used as.

A frame carries two counts. The general count keeps it allocated: one for the allocation itself, one for every page
table entry that maps it, for a pin, a base pointer, a grant mapping. The type count says how many of those need the
frame to be what its type says: writable data, or a page table of one level. A frame has one type while its type count
is not zero, which is the whole safety model: a page table is never writable to its guest.

`check` recomputes both counts from the contents of the page tables and the other recorded reasons, and compares.
The hypercalls that use this table are in pagetypes.py and grants.py.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .abi import EBUSY, EINVAL, EPERM, PAGE_SIZE, U64, address_ok

# Types, by the numbers of the ABI description.
NONE, L1, L2, L3, L4, SEGDESC, SHARED, WRITABLE = range(8)
TABLE_ENTRIES = 512
XEN_SLOTS = range(256, 272)                 # of an L4: never the guest's

PRESENT, RW, USER, PWT, PCD, ACCESSED, DIRTY, PAT_PSE, GLOBAL = (1 << n for n in range(9))
AVAIL = 7 << 9
AVAIL_HIGH = 0x7FF << 52
GUEST_KERNEL = 1 << 52
NX = 1 << 63
CACHE_ATTRIBUTES = PWT | PCD | PAT_PSE
FRAME_MASK = ((1 << 52) - 1) & ~(PAGE_SIZE - 1)
FLAG_MASK = U64 & ~FRAME_MASK
NO_MFN = (1 << 40) - 1                      # the frame field all ones: "invalid", not a device
INVALID_M2P = U64

_ALLOWED = PRESENT | RW | USER | ACCESSED | DIRTY | AVAIL | AVAIL_HIGH | NX
BAD_FLAGS = {L1: FLAG_MASK & ~(_ALLOWED | GLOBAL), **{level: FLAG_MASK & ~_ALLOWED for level in (L2, L3, L4)}}
# Flags of a present entry that may change without looking at the frame again.
HARMLESS = NX | AVAIL | AVAIL_HIGH | GLOBAL | DIRTY | ACCESSED | USER


def entry_mfn(entry: int) -> int:
    return (entry & FRAME_MASK) >> 12


def adjust(level: int, entry: int) -> int:
    """What Xen stores for a guest's entry: every present entry is user-accessible, and bit 52 remembers that a
    kernel page was meant."""
    if not entry & PRESENT:
        return entry
    if level == L1:
        if not entry & USER:
            entry |= USER | GUEST_KERNEL
        if not entry & GUEST_KERNEL:
            entry |= GLOBAL
        return entry
    return entry | USER | (ACCESSED if level == L4 else 0)


@dataclass(slots=True)
class Frame:
    """One machine frame. `words` is None while the contents are all zero."""

    mfn: int
    owner: int | None = None
    allocated: bool = False
    special: bool = False               # Xen's own, shared with a guest: shared_info, grant frames
    refs: int = 0
    type: int = NONE
    type_refs: int = 0
    validated: bool = False
    pinned: bool = False
    linear: int = 0                     # > 0 same-level entries made, < 0 uses as such a target
    m2p: int = INVALID_M2P
    words: array | None = None
    last_owner: int | None = None
    recycled: bool = False              # given to the domain that had it before: its contents may be the old ones
    # A promotion that failed half-way leaves adjusted entries behind; how many is nobody's promise.
    half_adjusted: bool = False

    def entry(self, index: int) -> int:
        return self.words[index] if self.words else 0

    def set_entry(self, index: int, value: int) -> None:
        if self.words is None:
            if not value:
                return
            self.words = array("Q", bytes(PAGE_SIZE))
        self.words[index] = value

    @property
    def data(self) -> bytes:
        return self.words.tobytes() if self.words else bytes(PAGE_SIZE)

    def write(self, offset: int, data: bytes) -> None:
        if self.words is None:
            self.words = array("Q", bytes(PAGE_SIZE))
        memoryview(self.words).cast("B")[offset:offset + len(data)] = data


@dataclass(slots=True)
class Owner:
    """A domain as the frame table sees it. Base pointers are mfns by vCPU, 0 for none."""

    id: int
    privileged: bool
    max_pages: int
    kernel_base: list[int]
    user_base: list[int]
    dying: bool = False
    frames: set[int] = field(default_factory=set)       # ordinary frames, which count against max_pages


class FrameTable:
    """Frames, owners and the two counts.

    `linear` allows same-level ("recursive") entries by Xen's rules; without it they are refused with -EINVAL, which
    the ABI permits. `allocator(order)` returns the first mfn of a free extent or None; the default takes the lowest.
    """

    def __init__(self, nr_frames: int, *, linear: bool = False) -> None:
        self.nr_frames = nr_frames
        self.linear = linear
        self.frames: dict[int, Frame] = {}
        self.owners: dict[int, Owner] = {}
        self.holds: Counter[int] = Counter()            # general references that no page table explains
        self.type_holds: Counter[int] = Counter()       # the same for writable types
        self.touched: set[int] = set()                  # frames whose counts, owner or contents changed
        self.allocator: Callable[[int], int | None] = self.lowest_free

    # --- frames and owners --------------------------------------------------------------------------------------

    def frame(self, mfn: int) -> Frame | None:
        """The frame, or None where no RAM is."""
        found = self.frames.get(mfn)
        if found is None and 0 <= mfn < self.nr_frames:
            found = self.frames[mfn] = Frame(mfn)
        return found

    def add_owner(self, domid: int, vcpus: int, *, privileged: bool = False, max_pages: int = 1 << 40) -> Owner:
        owner = self.owners[domid] = Owner(domid, privileged, max_pages, [0] * vcpus, [0] * vcpus)
        return owner

    def alive(self, domid: int) -> Owner | None:
        owner = self.owners.get(domid)
        return None if owner is None or owner.dying else owner

    def lowest_free(self, order: int) -> int | None:
        size = 1 << order
        for first in range(size, self.nr_frames - size + 1, size):
            if all(not (found := self.frames.get(mfn)) or not found.refs for mfn in range(first, first + size)):
                return first
        return None

    def assign(self, mfn: int, domid: int, *, special: bool = False) -> Frame:
        """Give a free frame to a domain, zeroed. A special frame is born writable for good."""
        frame = self.frame(mfn)
        assert frame is not None and not frame.refs, f"frame {mfn:#x} is not free"
        frame.recycled = frame.last_owner == domid
        frame.owner = frame.last_owner = domid
        frame.allocated, frame.special, frame.refs, frame.words = True, special, 1, None
        frame.half_adjusted = False
        if special:
            frame.type, frame.type_refs, frame.validated = WRITABLE, 1, True
        else:
            self.owners[domid].frames.add(mfn)
        self.touched.add(mfn)
        return frame

    def allocate(self, domid: int, order: int) -> list[int]:
        """An extent for a domain, or [] when the limit or memory is reached."""
        owner, size = self.owners[domid], 1 << order
        if len(owner.frames) + size > owner.max_pages:
            return []
        first = self.allocator(order)
        if first is None:
            return []
        for mfn in range(first, first + size):
            self.assign(mfn, domid)
        return list(range(first, first + size))

    # --- references ---------------------------------------------------------------------------------------------

    def get_page(self, mfn: int, domid: int) -> Frame | None:
        """Take a general reference if the frame is allocated and belongs to `domid`."""
        frame = self.frame(mfn)
        if frame is None or not frame.refs or frame.owner != domid:
            return None
        frame.refs += 1
        self.touched.add(mfn)
        return frame

    def put_page(self, frame: Frame) -> None:
        """Drop a general reference; the last one frees the frame and forgets its M2P entry."""
        assert frame.refs > 0, f"frame {frame.mfn:#x}: reference count below zero"
        frame.refs -= 1
        self.touched.add(frame.mfn)
        if frame.refs:
            return
        assert not frame.type_refs, f"frame {frame.mfn:#x} freed with {frame.type_refs} type references"
        owner = self.owners.get(frame.owner)
        if owner is not None:
            owner.frames.discard(frame.mfn)
            self._bury(owner)
        frame.owner, frame.type, frame.validated, frame.special = None, NONE, False, False
        frame.m2p, frame.words, frame.linear = INVALID_M2P, None, 0

    def put_allocation(self, frame: Frame) -> None:
        """Drop the allocation's own reference, once."""
        if frame.allocated:
            frame.allocated = False
            self.put_page(frame)

    def hold(self, frame: Frame, *, writable: bool = False) -> None:
        """Account for a reference (already taken) that lives outside page tables: a grant mapping, a vcpu_info."""
        self.holds[frame.mfn] += 1
        if writable:
            self.type_holds[frame.mfn] += 1

    def release(self, frame: Frame, *, writable: bool = False) -> None:
        """Undo `hold` and drop the references it accounted for."""
        self.holds[frame.mfn] -= 1
        if writable:
            self.type_holds[frame.mfn] -= 1
            self.put_type(frame)
        self.put_page(frame)

    # --- types --------------------------------------------------------------------------------------------------

    def get_type(self, frame: Frame, kind: int) -> int:
        """Take a type reference: -EINVAL if the frame is in use as something else, or what validation says."""
        self.touched.add(frame.mfn)
        if frame.type_refs:
            if frame.type != kind or not frame.validated:
                return -EINVAL
            frame.type_refs += 1
            return 0
        frame.type, frame.type_refs, frame.validated = kind, 1, False
        rc = 0
        if kind != WRITABLE:
            frame.linear = 0
            rc = self._promote(frame)
        if rc:
            frame.type, frame.type_refs = NONE, 0
        else:
            frame.validated = True
        return rc

    def put_type(self, frame: Frame) -> None:
        """Drop a type reference; the last one of a page table drops what its entries refer to."""
        assert frame.type_refs > 0, f"frame {frame.mfn:#x}: type count below zero"
        self.touched.add(frame.mfn)
        if frame.type_refs == 1 and frame.type in (L1, L2, L3, L4) and frame.validated:
            frame.validated = False
            self._demote(frame)
        frame.type_refs -= 1

    def get_page_and_type(self, mfn: int, kind: int, domid: int) -> int:
        """Take both references, or neither: -EINVAL if the frame is not the domain's."""
        frame = self.get_page(mfn, domid)
        if frame is None:
            return -EINVAL
        rc = self.get_type(frame, kind)
        if rc:
            self.put_page(frame)
        return rc

    def put_page_and_type(self, frame: Frame) -> None:
        self.put_type(frame)
        self.put_page(frame)

    def slots(self, level: int) -> Iterator[int]:
        return (n for n in range(TABLE_ENTRIES) if level != L4 or n not in XEN_SLOTS)

    def _promote(self, table: Frame) -> int:
        """Validate every entry of a page and take the references it needs; undo all of it on the first error."""
        level, words = table.type, table.words
        if words is None:
            return 0
        done: list[tuple[int, int]] = []
        for slot in self.slots(level):
            entry = words[slot]
            if not entry & PRESENT:
                continue
            rc = self.get_entry(level, entry, table, table.owner)
            if rc:
                table.half_adjusted = True
                for _, taken in reversed(done):
                    self.put_entry(level, taken, table)
                return rc
            words[slot] = adjust(level, entry)
            done.append((slot, words[slot]))
        table.half_adjusted = False
        return 0

    def _demote(self, table: Frame) -> None:
        if table.words is None:
            return
        for slot in self.slots(table.type):
            self.put_entry(table.type, table.words[slot], table)

    # --- entries ------------------------------------------------------------------------------------------------

    def get_entry(self, level: int, entry: int, table: Frame, page_owner: int) -> int:
        """Validate one present entry of `table` and take what it refers to. `page_owner` matters for L1 only."""
        if entry & BAD_FLAGS[level]:
            return -EINVAL
        if level == L1:
            return self._get_data(entry, page_owner)
        rc = self.get_page_and_type(entry_mfn(entry), level - 1, table.owner)
        if rc == -EINVAL and self._get_linear(level, entry, table):
            return 0
        return rc

    def _get_data(self, entry: int, page_owner: int) -> int:
        mfn = entry_mfn(entry)
        frame = self.frame(mfn)
        if frame is None:                       # not RAM: nobody here may map devices
            return -EINVAL if mfn == NO_MFN else -EPERM
        if not frame.refs or frame.owner != page_owner:
            return -EBUSY
        frame.refs += 1
        self.touched.add(mfn)
        if entry & RW and self.get_type(frame, WRITABLE):
            self.put_page(frame)
            return -EBUSY
        return 0

    def _get_linear(self, level: int, entry: int, table: Frame) -> bool:
        """An entry that points to a page of its own level: read-only, one step deep, to itself for free."""
        if not self.linear or entry & RW:
            return False
        mfn = entry_mfn(entry)
        if mfn == table.mfn:
            return True
        target = self.get_page(mfn, table.owner)
        if target is None:
            return False
        if table.linear < 0 or target.linear > 0 or target.type != level or not target.validated \
                or not target.type_refs:
            self.put_page(target)
            return False
        table.linear += 1
        target.linear -= 1
        target.type_refs += 1
        return True

    def put_entry(self, level: int, entry: int, table: Frame) -> None:
        """Drop what an entry of `table` refers to."""
        mfn = entry_mfn(entry)
        if not entry & PRESENT or (level != L1 and mfn == table.mfn):
            return
        frame = self.frames[mfn]
        if level == L1:
            if entry & RW:
                self.put_type(frame)
        else:
            if frame.type == level:             # a linear entry
                table.linear -= 1
                frame.linear += 1
            self.put_type(frame)
        self.put_page(frame)

    # --- walking ------------------------------------------------------------------------------------------------

    def l1_slot(self, domid: int, vcpu: int, va: int) -> tuple[Frame, int] | None:
        """The L1 page and index that map `va` in a vCPU's kernel tables, present or not; None if there is no L1."""
        if not address_ok(va):
            return None
        table = self.frames.get(self.owners[domid].kernel_base[vcpu])
        for shift in (39, 30, 21):
            entry = table.entry(va >> shift & 511) if table is not None else 0
            if not entry & PRESENT:
                return None
            table = self.frames.get(entry_mfn(entry))
        return table, va >> 12 & 511

    def translate(self, domid: int, vcpu: int, va: int, *, write: bool = False) -> tuple[Frame, int] | None:
        """The frame and offset that a kernel access to `va` reaches, or None for a page fault."""
        slot = self.l1_slot(domid, vcpu, va)
        if slot is None:
            return None
        entry = slot[0].entry(slot[1])
        if not entry & PRESENT or (write and not entry & RW):
            return None
        return self.frames[entry_mfn(entry)], va & PAGE_SIZE - 1

    # --- death --------------------------------------------------------------------------------------------------

    def destroy_owner(self, domid: int) -> None:
        """A domain dies: base pointers, pins and allocations go. Frames that others still map stay until unmapped."""
        owner = self.owners[domid]
        owner.dying = True
        for bases in (owner.kernel_base, owner.user_base):
            for vcpu, mfn in enumerate(bases):
                if mfn:
                    bases[vcpu] = 0
                    self.put_page_and_type(self.frames[mfn])
        mine = sorted(mfn for mfn, frame in self.frames.items() if frame.owner == domid)
        for kind in (L4, L3, L2, L1):
            for mfn in mine:
                frame = self.frames[mfn]
                if frame.pinned and frame.type == kind and frame.owner == domid:
                    frame.pinned = False
                    self.put_page_and_type(frame)
        if self.linear:
            self._break_circles(mine, domid)
        for mfn in mine:
            frame = self.frames[mfn]
            if frame.owner == domid and frame.allocated:
                if frame.special:
                    self.put_type(frame)
                self.put_allocation(frame)
        self._bury(owner)

    def _break_circles(self, mine: list[int], domid: int) -> None:
        # Tables that only linear entries keep alive: empty them from the top.
        for kind in (L4, L3, L2):
            for mfn in mine:
                frame = self.frames[mfn]
                if frame.owner == domid and frame.type == kind and frame.type_refs and frame.validated:
                    frame.validated = False
                    self._demote(frame)

    def _bury(self, owner: Owner) -> None:
        if owner.dying and not owner.frames:
            self.owners.pop(owner.id, None)

    # --- the invariant ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless every count equals what the tables and the recorded reasons add up to."""
        refs, types = Counter(self.holds), Counter(self.type_holds)
        for owner in self.owners.values():
            for mfn in (*owner.kernel_base, *owner.user_base):
                if mfn:
                    refs[mfn] += 1
                    types[mfn] += 1
        for frame in self.frames.values():
            refs[frame.mfn] += frame.allocated + frame.pinned
            types[frame.mfn] += frame.pinned + (frame.special and frame.allocated)
            if not (frame.validated and frame.type_refs and frame.type in (L1, L2, L3, L4) and frame.words):
                continue
            for slot in self.slots(frame.type):
                entry = frame.words[slot]
                if not entry & PRESENT or (frame.type != L1 and entry_mfn(entry) == frame.mfn):
                    continue
                assert entry == adjust(frame.type, entry), f"{frame.mfn:#x}[{slot}] holds an unadjusted entry"
                refs[entry_mfn(entry)] += 1
                if frame.type != L1 or entry & RW:
                    types[entry_mfn(entry)] += 1
                if frame.type == L1 and entry & RW:
                    assert self.frames[entry_mfn(entry)].type == WRITABLE, \
                        f"{frame.mfn:#x}[{slot}] maps a page table writable"
        for frame in self.frames.values():
            where = f"frame {frame.mfn:#x} of {frame.owner}"
            assert frame.refs == refs[frame.mfn], f"{where}: {frame.refs} references kept, {refs[frame.mfn]} counted"
            assert frame.type_refs == types[frame.mfn], \
                f"{where}: {frame.type_refs} type references kept, {types[frame.mfn]} counted"
            assert not frame.type_refs or frame.refs >= 1, f"{where}: typed without a reference"
            assert (frame.owner is None) == (frame.refs == 0), f"{where}: owner without references"
        for owner in self.owners.values():
            owned = {f.mfn for f in self.frames.values() if f.owner == owner.id and not f.special}
            assert owner.frames == owned, f"domain {owner.id}: page list differs from the frame table"

