"""Grant tables: domains grant, map, copy, revoke, unmap, lie and die, checked against `models.grants`.

Each domain has eight frames to grant and eight addresses to map at. After every step the frames, page table entries
and grant entries that the model touched are compared: a grant's flags, a mapping's references, a page table's words.
At the end all domains die in turn and nothing may be left, whoever still mapped whose frame.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models import grants as spec
from ..models.abi import DOMID_SELF, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, PAGE_SHIFT, PAGE_SIZE
from ..models.frames import L1, NO_MFN, PRESENT, RW, WRITABLE
from ..models.grants import (APPLICATION_MAP, CONTAINS_PTE, DEST_GREF, DEVICE_MAP, HOST_MAP, MAP_READONLY,
                             PERMIT_ACCESS, READONLY, SOURCE_GREF, SUB_PAGE)
from . import base, layouts
from .base import BAD_POINTERS, NOBODY
from .driver import Driver, Mismatch
from .layouts import GNTTABOP, HYPERCALL_GRANT_TABLE_OP, LAYOUTS, grant_op
from .memory import MemoryGuest, MemoryRunner

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

OPERATIONS: dict[str, int] = {
    "grant": 50, "revoke": 10, "map": 60, "map_batch": 8, "unmap": 44, "replace": 8, "copy": 40, "scribble": 6,
    "overwrite": 10, "pin": 8, "give_back": 4, "setup_table": 4, "swap": 6, "manage": 8, "hostile": 8, "recreate": 2,
}
MAP_FLAGS = (HOST_MAP, HOST_MAP, HOST_MAP | MAP_READONLY, DEVICE_MAP, DEVICE_MAP | MAP_READONLY, HOST_MAP | DEVICE_MAP,
             HOST_MAP | DEVICE_MAP | MAP_READONLY, HOST_MAP | CONTAINS_PTE, HOST_MAP | APPLICATION_MAP,
             HOST_MAP | MAP_READONLY | 5 << 16, HOST_MAP | CONTAINS_PTE | MAP_READONLY, 0, MAP_READONLY)
ENTRY_FLAGS = (PERMIT_ACCESS, PERMIT_ACCESS, PERMIT_ACCESS, PERMIT_ACCESS | READONLY, PERMIT_ACCESS | READONLY, 0, 2, 3,
               PERMIT_ACCESS | SUB_PAGE)
REFS, FIRST_REF = 10, 8
LENGTHS = (0, 1, 8, 64, 512, 4095, 4096, 4097)
_LIST = 2048                                # of the scratch pages: where frame lists go


@dataclass(slots=True, eq=False)
class Mapped:
    """A mapping somebody has. `lost`: its page table entry was overwritten, so it can never be unmapped."""

    g: MemoryGuest
    handle: int
    granter: int
    host_addr: int
    bus_addr: int
    flags: int
    lost: bool = False


class GrantsRunner(MemoryRunner):
    """Three domains of one vCPU, the first privileged."""

    operations = OPERATIONS

    def __init__(self, driver: Driver, *, domains: int = 3, check_all_every: int = 512) -> None:
        super().__init__(driver)
        self.check_all_every = check_all_every
        self.grants = spec.GrantModel(self.model, unowned_frame=driver.abi.unowned_frame,
                                      replace_steals=driver.abi.replace_steals)
        self.mapped: list[Mapped] = []
        for n in range(domains):
            self.create_granter(privileged=n == 0)

    def create_granter(self, *, privileged: bool) -> None:
        g = self.create(vcpus=1, privileged=privileged)
        frames = self.driver.special_frames(g.id)["grant"]
        self.grants.create_domain(g.id, frames)
        for mfn in frames:
            self.adopt_contents(self.model.frames[mfn])

    def destroy_in_model(self, g: MemoryGuest) -> None:
        self.grants.destroy_domain(g.id)
        super().destroy_in_model(g)
        self.mapped = [m for m in self.mapped if m.g is not g]

    # --- comparing ----------------------------------------------------------------------------------------------

    def compare(self, what: str) -> None:
        super().compare(what)
        if self.guests and self.steps % self.check_all_every == 0:
            self.check_all()

    def compare_frame(self, mfn: int, what: str) -> None:
        super().compare_frame(mfn, what)
        table = self.grants.tables.get(self.model.frames[mfn].owner)
        if table is not None and not table.dead and mfn in table.frames:
            got, want = self.driver.frame_read(mfn, 0, PAGE_SIZE), self.model.frames[mfn].data
            if got != want:
                first = table.frames.index(mfn) * 512
                ref = next(n for n in range(512) if got[8 * n:8 * n + 8] != want[8 * n:8 * n + 8])
                raise Mismatch(f"step {self.steps}: after {what}, grant {first + ref} of domain {table.domid} reads "
                               f"{struct.unpack_from('<HHI', got, 8 * ref)}, "
                               f"not {struct.unpack_from('<HHI', want, 8 * ref)}")

    def check_all(self) -> None:
        self.grants.check()
        super().check_all()

    # --- choosing and calling -----------------------------------------------------------------------------------

    def _who(self, a: int) -> MemoryGuest:
        return self.guests[a % len(self.guests)]

    def _ref(self, b: int) -> int:
        return FIRST_REF + b % REFS if b < 245 else (0, 511, 512, 1023, 1024, 1 << 31)[b % 6]

    def _frame(self, g: MemoryGuest, b: int) -> int:
        if b < 225:
            return g.play[b % 8]
        if b < 235:
            return self._who(self.guests.index(g) + 1).play[b % 8]
        return (g.boot_tables[b % len(g.boot_tables)], g.shared_info, self.driver.nr_frames() + 5,
                NO_MFN & 0xFFFFFFFF)[b & 3]

    def _address(self, g: MemoryGuest, b: int, flags: int) -> int:
        """Where to map: one of eight addresses, or the machine address of the entry for it."""
        va = g.va(8 + b % 8)
        if not flags & CONTAINS_PTE:
            return va if b < 250 else (1 << 63, BAD_POINTERS[0], 0x1000_0000_0000, 1)[b & 3]
        *_, (table, slot) = self.path(self.model.owners[g.id].kernel_base[0], va)
        address = table << PAGE_SHIFT | slot << 3
        return address if b < 240 else (address - 2, g.play[0] << PAGE_SHIFT, 1 << 50, address + 4)[b & 3]

    def _grant_op(self, g: MemoryGuest, name: str, *rows: dict[str, int]) -> tuple[int, list[dict[str, int]]]:
        """One grant_table_op on an array → (rc, the elements as they came back)."""
        cmd, layout = grant_op(name)
        array = g.write(0, b"".join(layout.pack(**row) for row in rows))
        rc = self.driver.hypercall(g.id, 0, HYPERCALL_GRANT_TABLE_OP, (cmd, array, len(rows)))
        data = g.read(0, layout.size * len(rows))
        return rc, [layout.unpack(data, n * layout.size) for n in range(len(rows))]

    # --- granting -----------------------------------------------------------------------------------------------

    def _store(self, g: MemoryGuest, ref: int) -> None:
        """Copy an entry that the model's guest wrote to the hypervisor's guest."""
        mfn = self.grants.tables[g.id].frames[ref // 512]
        word = self.model.frames[mfn].entry(ref % 512)
        self.driver.frame_write(mfn, ref % 512 * 8, word.to_bytes(8, "little"))

    def grant(self, a: int, b: int, c: int, d: int) -> None:
        """A guest writes an entry: mostly sensible, for one of the others or itself."""
        g = self._who(a)
        ref, grantee = FIRST_REF + b % REFS, self._who(c).id if c < 250 else NOBODY
        mfn, flags = self._frame(g, d), ENTRY_FLAGS[a >> 3 & 7] if c & 64 else PERMIT_ACCESS
        active = self.grants.tables[g.id].active.get(ref)
        if active is not None and active.pinned:
            mfn = active.mfn                    # in use: a guest that swaps the frame now gets what it deserves
        if mfn in self.unknown or (self.model.frame(mfn) and mfn in self.grants.tables[g.id].frames):
            mfn = g.play[0]                     # arguments and grant entries lie there: not to be written by copies
        self.grants.write_entry(g.id, ref, flags, grantee, mfn)
        self._store(g, ref)
        self.compare("writing a grant")

    def revoke(self, a: int, b: int, c: int, d: int) -> None:
        g, ref = self._who(a), FIRST_REF + b % REFS
        if self.grants.revoke(g.id, ref):
            self._store(g, ref)
        self.compare("revoking a grant")

    # --- mapping ------------------------------------------------------------------------------------------------

    def map(self, a: int, b: int, c: int, d: int) -> None:
        g = self._who(a)
        self._map(g, [self._map_request(g, a, b, c, d)])

    def map_batch(self, a: int, b: int, c: int, d: int) -> None:
        """Several in one call: each has its own status."""
        g = self._who(a)
        self._map(g, [self._map_request(g, a + 8 * n & 255, b + n & 255, c + 3 * n & 255, d + n & 255)
                      for n in range(1 + a % 4)])

    def _map_request(self, g: MemoryGuest, a: int, b: int, c: int, d: int) -> dict[str, int]:
        flags = MAP_FLAGS[c % len(MAP_FLAGS)]
        granter, ref = self._who(a >> 2).id, self._ref(b)
        # Half the time something that was granted to us.
        offers = [(t.domid, n) for t in self.grants.tables.values() if not t.dead
                  for n in range(FIRST_REF, FIRST_REF + REFS) if self._offered(t.domid, n, g.id)]
        if offers and d & 1:
            granter, ref = offers[b % len(offers)]
        if d == 254:
            granter = NOBODY if c & 1 else DOMID_SELF
        return {"host_addr": self._address(g, d, flags), "flags": flags, "ref": ref, "dom": granter}

    def _offered(self, domid: int, ref: int, grantee: int) -> bool:
        flags, domain, _ = self.grants.read_entry(domid, ref)
        return flags & 3 == PERMIT_ACCESS and domain == grantee

    def _map(self, g: MemoryGuest, rows: list[dict[str, int]]) -> None:
        rc, results = self._grant_op(g, "map_grant_ref", *rows)
        self.expect("map_grant_ref", rc, 0)
        for row, out in zip(rows, results):
            status, handle, bus = self.grants.map(g.id, 0, row["host_addr"], row["flags"], row["ref"], row["dom"],
                                                  out["handle"] if not out["status"] else None)
            named = f"map by {g.id} of {row['dom']}:{row['ref']} with {row['flags']:#x} at {row['host_addr']:#x}"
            self.expect(named, out["status"], status)
            if not status:
                self.expect(named + ": bus address", out["dev_bus_addr"], bus)
                self._overwritten(g, row["host_addr"], row["flags"])
                self.mapped.append(Mapped(g, handle, row["dom"], row["host_addr"], bus, row["flags"]))
        self.compare("map_grant_ref")

    def _overwritten(self, g: MemoryGuest, address: int, flags: int) -> None:
        """Whatever was mapped there by a grant can no longer be unmapped."""
        if not flags & HOST_MAP:
            return
        here = self._place(g, address, flags)
        for m in self.mapped:
            if m.g is g and m.flags & HOST_MAP and self._place(g, m.host_addr, m.flags) == here:
                m.lost = True

    def _place(self, g: MemoryGuest, address: int, flags: int) -> tuple[int, int] | None:
        if flags & CONTAINS_PTE:
            return address >> PAGE_SHIFT, (address & PAGE_SIZE - 1) >> 3
        where = self.model.l1_slot(g.id, 0, address)
        return (where[0].mfn, where[1]) if where else None

    def _pick(self, a: int, b: int) -> Mapped | None:
        """A mapping to take down. One that is lost and whose granter is dead is a mistake Xen punishes with a crash."""
        possible = [m for m in self.mapped if not m.lost or self.model.alive(m.granter)]
        return possible[(a + b) % len(possible)] if possible else None

    def unmap(self, a: int, b: int, c: int, d: int) -> None:
        """Mostly right; otherwise one half only, a wrong address, a wrong handle."""
        m = self._pick(a, b)
        if m is None:
            g, handle, host, bus = self._who(a), c, 0, 0
        else:
            g, handle = m.g, m.handle
            host = (m.host_addr, m.host_addr, m.host_addr, 0, self._address(m.g, d, m.flags))[c % 5]
            bus = (m.bus_addr, m.bus_addr, 0, m.bus_addr + PAGE_SIZE)[d & 3] if m.flags & DEVICE_MAP or d & 4 else 0
            if c > 250:
                handle = (1 << 31, 1 << 20, 0xFFFFFFFF)[c % 3]
        rc, (out,) = self._grant_op(g, "unmap_grant_ref", {"host_addr": host, "dev_bus_addr": bus, "handle": handle})
        self.expect("unmap_grant_ref", rc, 0)
        status = self.grants.unmap(g.id, 0, host, bus, handle)
        self.expect(f"unmap by {g.id} of handle {handle} at {host:#x}, {bus:#x}", out["status"], status)
        self._forget_unmapped()
        self.compare("unmap_grant_ref")

    def replace(self, a: int, b: int, c: int, d: int) -> None:
        """unmap_and_replace: the entry of another address moves over; sometimes that one is a grant too (XSA-234)."""
        m = self._pick(a, b)
        if m is None:
            return
        new = m.g.va(8 + c % 8) if c < 240 else (0, 1 << 63, m.g.scratch ^ 1 << 40, m.host_addr)[c & 3]
        for other in self.mapped:
            # A grant's entry moves: its mapping may be unmapped at its new place only.
            if other is not m and other.g is m.g and new and self._place(m.g, other.host_addr, other.flags) == \
                    self._place(m.g, new, 0):
                other.lost = True
        rc, (out,) = self._grant_op(m.g, "unmap_and_replace", {"host_addr": m.host_addr, "new_addr": new,
                                                               "handle": m.handle})
        self.expect("unmap_and_replace", rc, 0)
        status = self.grants.unmap_and_replace(m.g.id, 0, m.host_addr, new, m.handle)
        self.expect(f"unmap_and_replace of handle {m.handle} with {new:#x}", out["status"], status)
        if status and new:
            m.lost = m.lost or self._place(m.g, new, 0) == self._place(m.g, m.host_addr, m.flags)
        self._forget_unmapped()
        self.compare("unmap_and_replace")

    def _forget_unmapped(self) -> None:
        """Mappings the model no longer has are gone; of the others, keep which halves are left."""
        kept = []
        for m in self.mapped:
            mapping = self.grants.tables[m.g.id].mappings.get(m.handle)
            if mapping is not None:
                m.flags = mapping.flags
                kept.append(m)
        self.mapped = kept

    def overwrite(self, a: int, b: int, c: int, d: int) -> None:
        """A guest writes over a grant's page table entry: the frame is let go, the grant stays pinned."""
        g = self._who(a)
        va = g.va(8 + b % 8)
        entry = (0, g.play[8 + b % 8] << PAGE_SHIFT | PRESENT | RW, g.play[c % 8] << PAGE_SHIFT | PRESENT)[d % 3]
        want = self.model.update_va_mapping(g.id, 0, va, entry, 2)
        rc = self.driver.hypercall(g.id, 0, layouts.HYPERCALL_UPDATE_VA_MAPPING, (va, entry, 2))
        self.expect(f"update_va_mapping({va:#x}, {entry:#x})", rc, want)
        if not want:
            self._overwritten(g, va, HOST_MAP)
        self.compare("update_va_mapping")

    # --- copying ------------------------------------------------------------------------------------------------

    def copy(self, a: int, b: int, c: int, d: int) -> None:
        g = self._who(a)
        flags = (SOURCE_GREF, DEST_GREF, SOURCE_GREF | DEST_GREF, 0)[b & 3]
        sides = []
        for bit, n in ((SOURCE_GREF, c), (DEST_GREF, d)):
            if flags & bit:
                offers = [(t.domid, ref) for t in self.grants.tables.values() if not t.dead
                          for ref in range(FIRST_REF, FIRST_REF + REFS) if self._offered(t.domid, ref, g.id)]
                domid, where = offers[n % len(offers)] if offers and n < 200 else (self._who(n).id, self._ref(n))
                if n > 250:
                    domid = NOBODY
            else:
                domid, where = (DOMID_SELF, self._frame(g, n)) if n < 245 else (g.id, g.play[0])
            sides.append((where, domid))
        # From the lower half of a page to the upper one: a page may be copied onto itself.
        offsets = (b >> 2 & 7) * 8, 2048 + (b >> 5) * 8
        length = LENGTHS[(c ^ d) % len(LENGTHS)] if d & 32 else 64
        (source, src_domid), (dest, dest_domid) = sides
        row = {"source": source, "src_domid": src_domid, "src_offset": offsets[0], "dest": dest,
               "dest_domid": dest_domid, "dest_offset": offsets[1], "len": length, "flags": flags}
        if self._is_xens(g, flags & SOURCE_GREF, src_domid, source) or \
                self._is_xens(g, flags & DEST_GREF, dest_domid, dest):
            return
        rc, (out,) = self._grant_op(g, "copy", row)
        self.expect("copy", rc, 0)
        status = self.grants.copy(g.id, (source, src_domid, offsets[0]), (dest, dest_domid, offsets[1]), length, flags)
        self.expect(f"copy {row}", out["status"], status)
        self.compare("copy")

    def _is_xens(self, g: MemoryGuest, by_ref: int, domid: int, where: int) -> bool:
        """Would a copy read or write a frame whose contents are not the model's: shared_info, scratch, grants?"""
        if by_ref:
            table = self.grants.tables.get(domid)
            if table is None or table.dead or where >= table.entries:
                return False
            active = table.active.get(where)
            where = active.mfn if active and active.pinned else self.grants.read_entry(domid, where)[2]
        frame = self.model.frame(where)
        return where in self.unknown or (frame is not None and frame.special)

    def scribble(self, a: int, b: int, c: int, d: int) -> None:
        """A guest writes to one of its pages, so that copies have something to carry."""
        g = self._who(a)
        frame = self.model.frames[g.play[b % 8]]
        if frame.owner == g.id and (not frame.type_refs or frame.type == WRITABLE):
            data = bytes((c, d, b, a, self.steps & 255)) * 12
            self.driver.frame_write(frame.mfn, c * 8, data)
            frame.write(c * 8, data)
            self.model.touched.add(frame.mfn)
        self.compare("a store")

    # --- around grants ------------------------------------------------------------------------------------------

    def pin(self, a: int, b: int, c: int, d: int) -> None:
        """A granted frame becomes a page table, unless somebody may write it; and back."""
        g = self._who(a)
        index = b % 8
        mfn, va = g.play[index], g.va(index)
        if c & 1:
            entry = mfn << PAGE_SHIFT | PRESENT | RW if c & 2 else 0
            want = self.model.update_va_mapping(g.id, 0, va, entry, 2)
            self.expect("update_va_mapping", self.driver.hypercall(
                g.id, 0, layouts.HYPERCALL_UPDATE_VA_MAPPING, (va, entry, 2)), want)
        cmd = 4 if d & 1 else 0
        arg = g.write(0, LAYOUTS["mmuext_op"].pack(cmd=cmd, arg1=mfn))
        rc = self.driver.hypercall(g.id, 0, layouts.HYPERCALL_MMUEXT_OP, (arg, 1, 0, DOMID_SELF))
        want = self.model.unpin(mfn, g.id) if cmd else self.model.pin(mfn, L1, g.id)
        self.expect(f"{'un' if cmd else ''}pinning {mfn:#x}", rc, want)
        self.compare("pin")

    def give_back(self, a: int, b: int, c: int, d: int) -> None:
        """A granter balloons out a frame that others may have mapped, and never gets it back."""
        g = self._who(a)
        mfn = g.play[b % 8]
        extent = g.write(_LIST, mfn.to_bytes(8, "little"))
        arg = g.write(0, LAYOUTS["xen_memory_reservation"].pack(extent_start=extent, nr_extents=1, domid=DOMID_SELF))
        rc = self.driver.hypercall(g.id, 0, layouts.HYPERCALL_MEMORY_OP, (layouts.XENMEM_DECREASE, arg))
        self.expect("decrease_reservation", rc, self.model.decrease_reservation(g.id, DOMID_SELF, [mfn]))
        self.compare("decrease_reservation")

    def setup_table(self, a: int, b: int, c: int, d: int) -> None:
        g = self._who(a)
        domid = DOMID_SELF if d < 200 else (self._who(b).id, NOBODY)[d & 1]
        nr_frames = (0, 1, 2, 3, 65, 1 << 31)[c % 6] if domid == DOMID_SELF else 1
        g.write(_LIST, bytes(64))
        rc, (out,) = self._grant_op(g, "setup_table", {"dom": domid, "nr_frames": nr_frames,
                                                       "frame_list": g.scratch + _LIST})
        listed = list(struct.unpack("<3Q", g.read(_LIST, 24)))
        have = len(self.grants.tables[g.id].frames)
        want, status, frames = self.grants.setup_table(g.id, domid, nr_frames, new_frames=listed[have:nr_frames])
        self.expect(f"setup_table of {nr_frames} for {domid:#x}", (rc, out["status"]), (want, status))
        self.expect("grant frames", listed[:len(frames)], frames)
        self.compare("setup_table")

    def swap(self, a: int, b: int, c: int, d: int) -> None:
        g = self._who(a)
        ref_a, ref_b = self._ref(b), self._ref(c)
        # Beyond the first frame the table may have grown on one side only as far as entries go: both agree.
        rc, (out,) = self._grant_op(g, "swap_grant_ref", {"ref_a": ref_a, "ref_b": ref_b})
        self.expect("swap_grant_ref", (rc, out["status"]), (0, self.grants.swap_grant_ref(g.id, ref_a, ref_b)))
        self.compare("swap_grant_ref")

    def manage(self, a: int, b: int, c: int, d: int) -> None:
        """Versions, sizes, and what is not offered."""
        g = self._who(a)
        domid = (DOMID_SELF, g.id, self._who(d).id, NOBODY)[c & 3]
        model, name = self.grants, ("query_size", "set_version", "get_version", "get_status_frames", "dump_table",
                                    "transfer", "cache_flush")[b % 7]
        row = {"query_size": {"dom": domid}, "set_version": {"version": d % 4}, "get_version": {"dom": domid},
               "get_status_frames": {"dom": domid, "nr_frames": d & 1, "frame_list": g.scratch + _LIST},
               "dump_table": {"dom": domid}, "transfer": {}, "cache_flush": {"length": 8, "op": 1}}[name]
        rc, (out,) = self._grant_op(g, name, row)
        if name == "query_size":
            want, status, frames, most = model.query_size(g.id, domid)
            self.expect(name, (rc, out["status"]), (want, status))
            if not status:
                self.expect(name, (out["nr_frames"], out["max_nr_frames"]), (frames, most))
        elif name == "set_version":
            self.expect(name, (rc, out["version"]), model.set_version(g.id, d % 4))
        elif name == "get_version":
            want, version = model.get_version(g.id, domid)
            self.expect(name, (rc, out["version"] if not want else version), (want, version))
        elif name == "get_status_frames":
            self.expect(name, (rc, out["status"]), model.get_status_frames(g.id, domid, d & 1))
        elif name == "dump_table":
            self.expect(name, rc, self.driver.abi.dump_table)
            if not rc:
                self.expect(name, out["status"], model.dump_table(g.id, domid))
        else:
            want = model.transfer() if name == "transfer" else model.cache_flush()
            self.expect(name, -EOPNOTSUPP if name == "cache_flush" and rc == -ENOSYS else rc, want)
        self.steps += 1

    def hostile(self, a: int, b: int, c: int, d: int) -> None:
        """Bad arrays, counts and commands: an error for the whole call, and nothing changes."""
        g = self._who(a)
        cmd, bad = b % len(GNTTABOP), BAD_POINTERS[c % len(BAD_POINTERS)]
        args, want = (((cmd, bad, 1), -EFAULT), ((cmd, g.scratch, 0x80000000), -EINVAL),
                      ((13 + d, g.scratch, 1), -ENOSYS), ((cmd | 1 << 12, g.scratch, 1), -EINVAL),
                      ((2, g.scratch, 2), -EINVAL), ((6, g.scratch, 0), -EINVAL),
                      ((0, bad, 0x7FFFFFFF), -EFAULT))[d % 7]
        rc = self.driver.hypercall(g.id, 0, HYPERCALL_GRANT_TABLE_OP, args)
        # What is not offered may say so before it looks at anything.
        if GNTTABOP[cmd] in ("transfer", "cache_flush") and rc in (-EOPNOTSUPP, -ENOSYS):
            rc = want
        if GNTTABOP[cmd] == "dump_table" and rc == self.driver.abi.dump_table:
            rc = want
        self.expect(f"grant_table_op{args}", rc, want)
        self.compare("a bad call")

    def recreate(self, a: int, b: int, c: int, d: int) -> None:
        """Any domain but the first dies, as granter and as mapper, and another takes its place."""
        self.destroy(self.guests[1 + a % (len(self.guests) - 1)])
        self.create_granter(privileged=False)


def draw_choices(seed: int, count: int) -> list[base.Choice]:
    """`count` steps for `run_script`."""
    return base.draw(GrantsRunner, seed, count)


def run_script(driver: Driver, choices: Iterable[base.Choice], **options: int) -> int:
    """Run choices drawn beforehand and return the number of steps."""
    return base.run(GrantsRunner(driver, **options), choices)


def machine(make_driver: Callable[[], Driver], **options: int) -> type[RuleBasedStateMachine]:
    """A state machine class; `make_driver` is called once an example. `options` are `GrantsRunner`'s."""
    return base.machine(make_driver, lambda driver: GrantsRunner(driver, **options), GrantsRunner)
