"""Comparing a hypervisor's frame table with a model's: used by the page table and the grant machine.

`MemoryRunner` takes over freshly built domains into a `PageTypes` model (the model validates the builder's page tables
itself, so a builder that miscounts is found at once), compares the frames that a step touched, and knows which entries
must survive for the guests to go on making hypercalls.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from ..models.abi import PAGE_SIZE
from ..models.frames import (ACCESSED, DIRTY, GLOBAL, GUEST_KERNEL, L1, L2, L3, L4, PRESENT, USER, XEN_SLOTS, Frame,
                             entry_mfn)
from ..models.pagetypes import PageTypes
from .base import Guest, Runner
from .driver import Driver, Mismatch

TABLES = (L1, L2, L3, L4)
_ADJUSTED = USER | GUEST_KERNEL | GLOBAL | ACCESSED
SCRATCH_PAGES = 4


class MemoryGuest(Guest):
    """A domain, the frames it was built with, and those that are the machine's to play with."""

    __slots__ = ("vcpus", "mfns", "pfns", "play", "boot_tables", "scratch_mfns", "shared_info", "privileged")

    def __init__(self, driver: Driver, domid: int, nr_pages: int, vcpus: int, privileged: bool) -> None:
        super().__init__(driver, domid)
        self.vcpus, self.privileged = vcpus, privileged
        self.mfns = [driver.pfn_to_mfn(domid, pfn) for pfn in range(nr_pages)]
        self.pfns = list(driver.playground(domid))[:16]
        self.play = [self.mfns[pfn] for pfn in self.pfns]
        self.boot_tables: list[int] = []
        self.scratch_mfns: set[int] = set()
        self.shared_info = driver.special_frames(domid)["shared_info"][0]

    def va(self, index: int) -> int:
        """Where the builder mapped the playground page of that index."""
        return self.driver.va_of(self.id, self.pfns[index % len(self.pfns)])


class MemoryRunner(Runner):
    """Base of the machines over frames: `model` is the `PageTypes`, `guests` the domains alive."""

    width = 4

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.model = PageTypes(driver.nr_frames(), linear=driver.abi.linear_tables)
        self.guests: list[MemoryGuest] = []
        self.unknown: set[int] = set()      # scratch frames: their contents are the machine's, and not in the model

    # --- taking over --------------------------------------------------------------------------------------------

    def create(self, nr_pages: int = 64, vcpus: int = 2, *, privileged: bool = False) -> MemoryGuest:
        """Create a domain in the hypervisor and rebuild it in the model, from what is found there."""
        driver, model = self.driver, self.model
        domid = driver.create_domain(nr_pages, vcpus, privileged=privileged, max_pages=nr_pages + 24)
        g = MemoryGuest(driver, domid, nr_pages, vcpus, privileged)
        model.add_owner(domid, vcpus, privileged=privileged, max_pages=nr_pages + 24)
        for mfn in g.mfns:
            frame = model.assign(mfn, domid)
            frame.m2p = driver.frame_info(mfn)["m2p"]
            self.adopt_contents(frame)
        for mfns in driver.special_frames(domid).values():
            for mfn in mfns:
                model.assign(mfn, domid, special=True)
        for mfn in g.mfns:
            info = driver.frame_info(mfn)
            if info["pinned"]:
                self.expect(f"validating the pinned table {mfn:#x}", model.pin(mfn, info["type"], domid), 0)
        for vcpu in range(vcpus):
            state = driver.vcpu_state(domid, vcpu)
            for mfn, user in ((state["kernel_base"], False), (state["user_base"], True)):
                if mfn:
                    self.expect("validating a base table", model.new_base(domid, vcpu, mfn, user=user), 0)
        g.boot_tables = [mfn for mfn in g.mfns if model.frames[mfn].type in TABLES]
        for page in range(SCRATCH_PAGES):
            where = model.translate(domid, 0, g.scratch + page * PAGE_SIZE, write=True)
            if where is None:
                raise Mismatch(f"domain {domid}: scratch page {page} is not mapped writable")
            g.scratch_mfns.add(where[0].mfn)
            self.unknown.add(where[0].mfn)
        self.guests.append(g)
        self.compare("creation")
        model.check()
        return g

    def destroy(self, g: MemoryGuest) -> None:
        self.guests.remove(g)
        g.drop_views()
        self.driver.destroy_domain(g.id)
        self.destroy_in_model(g)
        self.compare("death")

    def destroy_in_model(self, g: MemoryGuest) -> None:
        self.model.destroy_owner(g.id)

    def kill_all(self) -> None:
        while self.guests:
            self.destroy(self.guests[-1])

    def adopt_contents(self, frame: Frame) -> None:
        data = self.driver.frame_read(frame.mfn, 0, PAGE_SIZE)
        frame.words = array("Q", data) if any(data) else None

    # --- comparing ----------------------------------------------------------------------------------------------

    def compare(self, what: str) -> None:
        """Close a step: every frame the model touched must be the same in the hypervisor."""
        for mfn in sorted(self.model.touched):
            if self.model.frames[mfn].last_owner is not None:
                self.compare_frame(mfn, what)
        self.model.touched.clear()
        self.steps += 1

    def check_all(self) -> None:
        """Compare every frame that ever was in use, the base pointers, and the model with itself."""
        self.model.check()
        for mfn, frame in list(self.model.frames.items()):
            if frame.last_owner is not None:
                self.compare_frame(mfn, "all")
        for g in self.guests:
            owner = self.model.owners[g.id]
            for vcpu in range(g.vcpus):
                state = self.driver.vcpu_state(g.id, vcpu)
                self.expect(f"domain {g.id} vCPU {vcpu}'s base pointers", (state["kernel_base"], state["user_base"]),
                            (owner.kernel_base[vcpu], owner.user_base[vcpu]))

    def compare_frame(self, mfn: int, what: str) -> None:
        frame, info = self.model.frames[mfn], self.driver.frame_info(mfn)
        want = {"refcount": frame.refs, "pinned": frame.pinned, "m2p": frame.m2p, "type_count": frame.type_refs}
        if frame.refs == 0 or self.model.alive(frame.owner):
            want["owner"] = frame.owner
        if frame.type_refs:
            want.update(type=frame.type, validated=frame.validated)
        if frame.special or frame.refs == 0:
            del want["m2p"], want["type_count"]
        wrong = {key: (info[key], value) for key, value in want.items() if info[key] != value}
        if wrong:
            raise Mismatch(f"step {self.steps}: after {what}, frame {mfn:#x} of domain {frame.owner} has " +
                           ", ".join(f"{key} {got}, not {value}" for key, (got, value) in wrong.items()))
        if not frame.refs:
            self.unknown.discard(mfn)
        elif not frame.special and mfn not in self.unknown:
            self._compare_contents(frame, what)

    def _compare_contents(self, frame: Frame, what: str) -> None:
        data = self.driver.frame_read(frame.mfn, 0, PAGE_SIZE)
        if frame.recycled:
            # The domain gave it away and got it back: whether it was cleared is the hypervisor's affair.
            frame.recycled = False
            frame.words = array("Q", data)
        if data == frame.data:
            return
        got, kept = array("Q", data), frame.words or array("Q", bytes(PAGE_SIZE))
        if frame.type == L4 and frame.validated:
            # Xen's own slots of a root table hold what it likes.
            kept[XEN_SLOTS.start:XEN_SLOTS.stop] = got[XEN_SLOTS.start:XEN_SLOTS.stop]
            frame.words = kept
        in_use = frame.type in TABLES and frame.validated
        for slot in range(512):
            if got[slot] == kept[slot] or (frame.half_adjusted and _plain(got[slot]) == _plain(kept[slot])):
                continue
            if in_use and kept[slot] & PRESENT and got[slot] == kept[slot] | got[slot] & (ACCESSED | DIRTY):
                kept[slot] = got[slot]          # the MMU has used it since
                continue
            raise Mismatch(f"step {self.steps}: after {what}, frame {frame.mfn:#x} (type {frame.type}) slot {slot} "
                           f"holds {got[slot]:#x}, not {kept[slot]:#x}")

    # --- what must survive --------------------------------------------------------------------------------------

    def lifeline(self, g: MemoryGuest) -> Iterator[tuple[int, int]]:
        """(table mfn, slot) of every entry through which some vCPU reaches the scratch pages."""
        for base in set(self.model.owners[g.id].kernel_base):
            for page in range(SCRATCH_PAGES):
                yield from self.path(base, g.scratch + page * PAGE_SIZE)

    def path(self, root: int, va: int) -> Iterable[tuple[int, int]]:
        table = self.model.frames.get(root)
        for shift in (39, 30, 21, 12):
            if table is None:
                return
            slot = va >> shift & 511
            yield table.mfn, slot
            entry = table.entry(slot)
            if not entry & PRESENT:
                return
            table = self.model.frames.get(entry_mfn(entry))

    def reaches_scratch(self, g: MemoryGuest, root: int) -> bool:
        """Would the domain still reach its scratch pages with `root` as its base table?"""
        return all(len(list(self.path(root, g.scratch + page * PAGE_SIZE))) == 4 and
                   self.model.frames[list(self.path(root, g.scratch + page * PAGE_SIZE))[-1][0]].type == L1
                   for page in range(SCRATCH_PAGES))


def _plain(word: int) -> int:
    return word & ~_ADJUSTED if word & PRESENT else word
