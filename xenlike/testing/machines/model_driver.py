"""The models dressed up as a hypervisor: a `Driver` that needs no C core.

It lets the machines be tested themselves, and shows what a driver has to do: fetch arguments from guest memory through
the caller's page tables, call the model, write results back. Mutants of it (tests/property) prove that the machines
notice a wrong hypervisor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from ..models import grants
from ..models.abi import EFAULT, EINVAL, ENOSYS, PAGE_SHIFT, PAGE_SIZE, U64, address_ok
from ..models.events import LEGACY_VCPUS, EventModel, VCpu
from ..models.frames import ACCESSED, DIRTY, PRESENT, RW, USER, WRITABLE
from ..models.pagetypes import PageTypes
from . import layouts
from .driver import Driver
from .layouts import EVTCHNOP, GNTTABOP, LAYOUTS

VIRT_BASE = 0xFFFF_FFFF_8000_0000
SCRATCH_PAGES = 4
TABLE_PAGES = 4                             # L4, L3, L2, L1, the last frames of a domain


class GuestFault(Exception):
    """A guest pointer that the hypervisor cannot follow: -EFAULT."""


class ModelDriver(Driver):
    """A host of models: `events`, `memory` and `grants` may be looked at, and broken, by tests."""

    def __init__(self, nr_frames: int = 4096) -> None:
        self.events = EventModel(fixed_ports=self.abi.fixed_ports)
        self.memory = PageTypes(nr_frames, linear=self.abi.linear_tables)
        self.grants = grants.GrantModel(self.memory, unowned_frame=self.abi.unowned_frame,
                                        replace_steals=self.abi.replace_steals)
        self.layout: dict[int, dict[str, list[int]]] = {}
        self.calls: dict[int, Callable[..., int]] = {
            layouts.HYPERCALL_MMU_UPDATE: self._mmu_update,
            layouts.HYPERCALL_MEMORY_OP: self._memory_op,
            layouts.HYPERCALL_UPDATE_VA_MAPPING: self._update_va_mapping,
            layouts.HYPERCALL_UPDATE_VA_MAPPING_OTHERDOMAIN: self._update_va_mapping,
            layouts.HYPERCALL_GRANT_TABLE_OP: self._grant_table_op,
            layouts.HYPERCALL_VCPU_OP: self._vcpu_op,
            layouts.HYPERCALL_MMUEXT_OP: self._mmuext_op,
            layouts.HYPERCALL_SCHED_OP: self._sched_op,
            layouts.HYPERCALL_EVENT_CHANNEL_OP: self._event_channel_op,
        }

    # --- domains ------------------------------------------------------------------------------------------------

    def create_domain(self, nr_pages: int = 64, vcpus: int = 1, *, privileged: bool = False,
                      max_pages: int | None = None, max_evtchn_port: int = 1023) -> int:
        assert SCRATCH_PAGES + TABLE_PAGES + 16 <= nr_pages <= 512, "one L1 page maps all the RAM"
        domid = len(self.layout)
        memory = self.memory
        memory.add_owner(domid, vcpus, privileged=privileged,
                         max_pages=nr_pages + 64 if max_pages is None else max_pages)
        mfns = [memory.allocate(domid, 0)[0] for _ in range(nr_pages)]
        for pfn, mfn in enumerate(mfns):
            memory.frames[mfn].m2p = pfn
        tables = mfns[-TABLE_PAGES:]
        for mfn, child, va_shift in zip(tables, tables[1:], (39, 30, 21)):
            memory.frames[mfn].set_entry(VIRT_BASE >> va_shift & 511,
                                         child << PAGE_SHIFT | PRESENT | RW | USER | ACCESSED | DIRTY)
        for pfn, mfn in enumerate(mfns):
            writable = 0 if mfn in tables else RW
            memory.frames[tables[-1]].set_entry(pfn, mfn << PAGE_SHIFT | PRESENT | ACCESSED | writable)
        assert memory.pin(tables[0], 4, domid) == 0
        for vcpu in range(vcpus):
            assert memory.new_base(domid, vcpu, tables[0]) == 0
        special = []
        for _ in range(2):
            mfn = memory.allocator(0)
            memory.assign(mfn, domid, special=True)
            special.append(mfn)
        self.grants.create_domain(domid, special[1:])
        self.events.create_domain(domid, vcpus, privileged=privileged, max_port=max_evtchn_port)
        self.layout[domid] = {"mfns": mfns, "shared_info": special[:1]}
        return domid

    def destroy_domain(self, domid: int) -> None:
        infos = [v.info for v in self.events.domains[domid].vcpus if v.info]
        self.events.destroy_domain(domid)
        self.grants.destroy_domain(domid)
        for mfn, _ in infos:
            self.memory.release(self.memory.frames[mfn], writable=True)
        self.memory.destroy_owner(domid)

    def crash_reason(self, domid: int) -> str | None:
        return None

    # --- memory -------------------------------------------------------------------------------------------------

    def copy_in(self, domid: int, vcpu: int, va: int, size: int) -> bytes:
        parts = []
        for offset, length in _pieces(va, size):
            where = self.memory.translate(domid, vcpu, va + offset) if address_ok(va + offset) else None
            if where is None:
                raise GuestFault(va + offset)
            parts.append(self.frame_read(where[0].mfn, where[1], length))
        return b"".join(parts)

    def copy_out(self, domid: int, vcpu: int, va: int, data: bytes) -> None:
        for offset, length in _pieces(va, len(data)):
            where = self.memory.translate(domid, vcpu, va + offset, write=True) if address_ok(va + offset) else None
            if where is None:
                raise GuestFault(va + offset)
            self.frame_write(where[0].mfn, where[1], data[offset:offset + length])

    def read_mem(self, domid: int, va: int, size: int) -> bytes:
        try:
            return self.copy_in(domid, 0, va, size)
        except GuestFault as fault:
            raise MemoryError(f"domain {domid} faults at {fault.args[0]:#x}") from None

    def write_mem(self, domid: int, va: int, data: bytes) -> None:
        try:
            self.copy_out(domid, 0, va, data)
        except GuestFault as fault:
            raise MemoryError(f"domain {domid} faults at {fault.args[0]:#x}") from None

    def frame_read(self, mfn: int, offset: int, size: int) -> bytes:
        frame = self.memory.frames[mfn]
        data = memoryview(frame.words).cast("B")[offset:offset + size].tobytes() if frame.words else bytes(size)
        for v, at in self._infos_in(mfn, offset, size):
            data = data[:at - offset] + _upcall_words(v) + data[at - offset + 16:]
        return data

    def frame_write(self, mfn: int, offset: int, data: bytes) -> None:
        self.memory.frames[mfn].write(offset, data)
        for v, at in self._infos_in(mfn, offset, len(data)):
            v.upcall_pending, v.upcall_mask, v.pending_sel = struct.unpack_from("<BB6xQ", data, at - offset)

    def _infos_in(self, mfn: int, offset: int, size: int) -> list[tuple[VCpu, int]]:
        """vCPUs whose registered event words lie in that part of a frame, with their offsets."""
        dom = self.events.domains.get(self.memory.frames[mfn].owner)
        return [(v, v.info[1]) for v in dom.vcpus
                if v.info and v.info[0] == mfn and offset <= v.info[1] and v.info[1] + 16 <= offset + size] \
            if dom else []

    def shared_info(self, domid: int) -> bytes:
        dom = self.events.domains[domid]
        page = bytearray(PAGE_SIZE)
        for v in dom.vcpus[:LEGACY_VCPUS]:
            page[v.id * 64:v.id * 64 + 16] = _upcall_words(v)
        page[layouts.EVTCHN_PENDING:layouts.EVTCHN_MASK] = dom.pending.to_bytes(512, "little")
        page[layouts.EVTCHN_MASK:layouts.EVTCHN_END] = dom.mask.to_bytes(512, "little")
        return bytes(page)

    def write_shared_info(self, domid: int, offset: int, data: bytes) -> None:
        dom = self.events.domains[domid]
        page = bytearray(self.shared_info(domid))
        page[offset:offset + len(data)] = data
        dom.pending = int.from_bytes(page[layouts.EVTCHN_PENDING:layouts.EVTCHN_MASK], "little")
        dom.mask = int.from_bytes(page[layouts.EVTCHN_MASK:layouts.EVTCHN_END], "little")
        for v in dom.vcpus[:LEGACY_VCPUS]:
            if not v.info:
                v.upcall_pending, v.upcall_mask, v.pending_sel = struct.unpack_from("<BB6xQ", page, v.id * 64)

    # --- the rest of a driver -----------------------------------------------------------------------------------

    def scratch(self, domid: int) -> int:
        return VIRT_BASE

    def playground(self, domid: int) -> Sequence[int]:
        return range(SCRATCH_PAGES, len(self.layout[domid]["mfns"]) - TABLE_PAGES)

    def pfn_to_mfn(self, domid: int, pfn: int) -> int:
        return self.layout[domid]["mfns"][pfn]

    def va_of(self, domid: int, pfn: int) -> int:
        return VIRT_BASE + (pfn << PAGE_SHIFT)

    def special_frames(self, domid: int) -> Mapping[str, Sequence[int]]:
        return {"shared_info": self.layout[domid]["shared_info"], "grant": self.grants.tables[domid].frames}

    def nr_frames(self) -> int:
        return self.memory.nr_frames

    def vcpu_state(self, domid: int, vcpu: int) -> Mapping[str, object]:
        owner = self.memory.owners[domid]
        return {"blocked": self.events.domains[domid].vcpus[vcpu].blocked,
                "kernel_base": owner.kernel_base[vcpu], "user_base": owner.user_base[vcpu]}

    def frame_info(self, mfn: int) -> Mapping[str, object]:
        frame = self.memory.frame(mfn)
        return {"owner": frame.owner, "type": frame.type, "type_count": frame.type_refs, "refcount": frame.refs,
                "pinned": frame.pinned, "validated": frame.validated, "m2p": frame.m2p}

    def counts(self) -> Mapping[str, int]:
        used = sum(frame.refs > 0 for frame in self.memory.frames.values())
        return {"free_frames": self.memory.nr_frames - used,
                "ports": sum(dom.active for dom in self.events.domains.values()),
                "grants": sum(active.pinned for table in self.grants.tables.values()
                              for active in table.active.values())}

    def raise_virq(self, domid: int, vcpu: int, virq: int) -> None:
        self.events.raise_virq(domid, vcpu, virq)

    # --- hypercalls ---------------------------------------------------------------------------------------------

    def hypercall(self, domid: int, vcpu: int, number: int, args: tuple[int, ...]) -> int:
        call = self.calls.get(number)
        try:
            return call(domid, vcpu, *args) if call else -ENOSYS
        except GuestFault:
            return -EFAULT

    def _event_channel_op(self, domid: int, vcpu: int, cmd: int, arg: int) -> int:
        if not 0 <= cmd < len(EVTCHNOP):
            return -ENOSYS
        name, events = EVTCHNOP[cmd], self.events
        layout = LAYOUTS["evtchn_" + name]
        a = layout.unpack(self.copy_in(domid, vcpu, arg, layout.size))
        if name == "alloc_unbound":
            rc, a["port"] = events.alloc_unbound(domid, a["dom"], a["remote_dom"])
        elif name == "bind_interdomain":
            rc, a["local_port"] = events.bind_interdomain(domid, a["remote_dom"], a["remote_port"])
        elif name == "bind_virq":
            rc, a["port"] = events.bind_virq(domid, a["virq"], a["vcpu"])
        elif name == "bind_pirq":
            rc, a["port"] = events.bind_pirq(domid, a["pirq"])
        elif name == "bind_ipi":
            rc, a["port"] = events.bind_ipi(domid, a["vcpu"])
        elif name == "status":
            rc, a["status"], a["vcpu"], (a["union0"], a["union1"]) = events.status(domid, a["dom"], a["port"])
        else:
            rc = {"close": lambda: events.close(domid, a["port"]),
                  "send": lambda: events.send(domid, a["port"]),
                  "bind_vcpu": lambda: events.bind_vcpu(domid, a["port"], a["vcpu"]),
                  "unmask": lambda: events.unmask(domid, a["port"]),
                  "reset": lambda: events.reset(domid, a["dom"]),
                  "init_control": lambda: events.init_control(domid),
                  "expand_array": lambda: events.expand_array(domid),
                  "set_priority": lambda: events.set_priority(domid, a["port"])}[name]()
            return rc
        if rc == 0:
            self.copy_out(domid, vcpu, arg, layout.pack(**a))
        return rc

    def _sched_op(self, domid: int, vcpu: int, cmd: int, arg: int) -> int:
        if cmd == layouts.SCHEDOP_YIELD:
            return 0
        if cmd == layouts.SCHEDOP_BLOCK:
            return self.events.block(domid, vcpu)
        if cmd != layouts.SCHEDOP_POLL:
            return -ENOSYS
        poll = LAYOUTS["sched_poll"].unpack(self.copy_in(domid, vcpu, arg, LAYOUTS["sched_poll"].size))
        if poll["nr_ports"] > 128:
            return -EINVAL
        if not address_ok(poll["ports"]):
            return -EFAULT
        if self.events.domains[domid].vcpus[vcpu].deliverable:
            return 0
        ports = self.copy_in(domid, vcpu, poll["ports"], 4 * poll["nr_ports"])
        return self.events.poll(domid, vcpu, list(struct.unpack(f"<{poll['nr_ports']}I", ports)))

    def _vcpu_op(self, domid: int, vcpu: int, cmd: int, target: int, arg: int) -> int:
        if cmd != layouts.VCPUOP_REGISTER_VCPU_INFO:
            return -ENOSYS
        layout = LAYOUTS["vcpu_register_vcpu_info"]
        a = layout.unpack(self.copy_in(domid, vcpu, arg, layout.size))
        frame = self.memory.get_page(a["mfn"], domid)
        writable = frame is not None and not self.memory.get_type(frame, WRITABLE)
        rc = self.events.register_vcpu_info(domid, vcpu, target, a["mfn"], a["offset"],
                                            owned=frame is not None, writable=writable)
        if rc == 0:
            self.memory.hold(frame, writable=True)
        elif frame is not None:
            if writable:
                self.memory.put_type(frame)
            self.memory.put_page(frame)
        return rc

    def _update_va_mapping(self, domid: int, vcpu: int, va: int, entry: int, flags: int,
                           page_domid: int | None = None) -> int:
        return self.memory.update_va_mapping(domid, vcpu, va, entry, flags, page_domid)

    def _mmu_update(self, domid: int, vcpu: int, requests: int, count: int, done_out: int, foreigndom: int) -> int:
        return self._batch(domid, vcpu, "mmu_update", requests, count, done_out,
                           lambda ops: self.memory.mmu_update(domid, ops, foreigndom))

    def _mmuext_op(self, domid: int, vcpu: int, ops: int, count: int, done_out: int, foreigndom: int) -> int:
        return self._batch(domid, vcpu, "mmuext_op", ops, count, done_out,
                           lambda batch: self.memory.mmuext_op(domid, vcpu, batch, foreigndom))

    def _batch(self, domid: int, vcpu: int, name: str, array: int, count: int, done_out: int,
               apply: Callable[[list[tuple[int, ...]]], tuple[int, int]]) -> int:
        """An array of requests, each fetched only when its turn comes: an earlier one may have unmapped it."""
        layout, done = LAYOUTS[name], 0
        if not address_ok(array) or not address_ok(array + count * layout.size & U64):
            return -EFAULT
        rc = apply([])[0]
        for n in range(count) if not rc else ():
            try:
                request = layout.struct.unpack(self.copy_in(domid, vcpu, array + n * layout.size, layout.size))
                rc = apply([request])[0]
            except GuestFault:
                rc = -EFAULT
            if rc:
                break
            done += 1
        if done_out:
            try:
                self.copy_out(domid, vcpu, done_out, struct.pack("<I", done))
            except GuestFault:
                pass
        return rc

    def _memory_op(self, domid: int, vcpu: int, cmd: int, arg: int) -> int:
        op, start = cmd & 63, cmd >> 6
        if start and op in (layouts.XENMEM_CURRENT, layouts.XENMEM_MAXIMUM, layouts.XENMEM_EXCHANGE):
            return -EINVAL                  # only extent lists have a start
        if op in (layouts.XENMEM_CURRENT, layouts.XENMEM_MAXIMUM):
            target = LAYOUTS["xen_memory_domain"].unpack(self.copy_in(domid, vcpu, arg, 2))["domid"]
            call = self.memory.current_reservation if op == layouts.XENMEM_CURRENT else self.memory.maximum_reservation
            return call(domid, target)
        if op == layouts.XENMEM_EXCHANGE:
            return self._exchange(domid, vcpu, arg)
        if op not in (layouts.XENMEM_INCREASE, layouts.XENMEM_DECREASE, layouts.XENMEM_POPULATE):
            return -ENOSYS
        layout = LAYOUTS["xen_memory_reservation"]
        try:
            a = layout.unpack(self.copy_in(domid, vcpu, arg, layout.size))
            count, extents = a["nr_extents"], a["extent_start"]
            if count > 0x3FF_FFFF or start >= count:
                return start
            values: list[int] = []
            if op != layouts.XENMEM_INCREASE:
                values = list(struct.unpack(f"<{count}Q", self.copy_in(domid, vcpu, extents, 8 * count)))
        except GuestFault:
            return start
        order = a["extent_order"]
        if op == layouts.XENMEM_DECREASE:
            return self.memory.decrease_reservation(domid, a["domid"], values, order, start=start)
        if op == layouts.XENMEM_INCREASE:
            made = self.memory.increase_reservation(domid, a["domid"], count, order, start=start)
        else:
            made = self.memory.populate_physmap(domid, a["domid"], values, order, start=start,
                                                on_demand=bool(a["mem_flags"] >> 16 & 1))
        if extents:
            self.copy_out(domid, vcpu, extents + 8 * start, struct.pack(f"<{len(made)}Q", *made))
        return start + len(made)

    def _exchange(self, domid: int, vcpu: int, arg: int) -> int:
        layout = LAYOUTS["xen_memory_exchange"]
        a = layout.unpack(self.copy_in(domid, vcpu, arg, layout.size))
        before = a["nr_exchanged"]
        if max(a["in_nr"], a["out_nr"]) > 4096:
            rc, a["nr_exchanged"], made = -EINVAL, a["nr_exchanged"], []
        else:
            in_mfns = struct.unpack(f"<{a['in_nr']}Q", self.copy_in(domid, vcpu, a["in_start"], 8 * a["in_nr"]))
            out_pfns = struct.unpack(f"<{a['out_nr']}Q", self.copy_in(domid, vcpu, a["out_start"], 8 * a["out_nr"]))
            rc, a["nr_exchanged"], made = self.memory.exchange(
                domid, in_mfns, out_pfns, in_order=a["in_order"], out_order=a["out_order"],
                in_domid=a["in_domid"], out_domid=a["out_domid"], nr_exchanged=a["nr_exchanged"])
        self.copy_out(domid, vcpu, arg, layout.pack(**a))
        first = before << a["in_order"] >> a["out_order"] if made else 0
        self.copy_out(domid, vcpu, a["out_start"] + 8 * first, struct.pack(f"<{len(made)}Q", *made))
        return rc

    # --- grant_table_op -----------------------------------------------------------------------------------------

    def _grant_table_op(self, domid: int, vcpu: int, cmd: int, array: int, count: int) -> int:
        if count >> 31 or cmd >> 12:
            return -EINVAL
        if not 0 <= cmd < len(GNTTABOP):
            return -ENOSYS
        name = GNTTABOP[cmd]
        layout = LAYOUTS["gnttab_" + name]
        if name in ("transfer", "cache_flush"):
            return self.grants.transfer() if name == "transfer" else self.grants.cache_flush()
        if name in ("setup_table", "query_size", "get_status_frames") and count != 1:
            return -EINVAL
        if name in ("set_version", "get_version"):
            count = 1
        if not address_ok(array) or not address_ok(array + count * layout.size & U64):
            return -EFAULT
        for va in range(array, array + count * layout.size, layout.size):
            a = layout.unpack(self.copy_in(domid, vcpu, va, layout.size))
            rc = getattr(self, "_grant_" + name)(domid, vcpu, a)
            self.copy_out(domid, vcpu, va, layout.pack(**a))
            if rc:
                return rc
        return 0

    def _grant_map_grant_ref(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        status, handle, bus = self.grants.map(domid, vcpu, a["host_addr"], a["flags"], a["ref"], a["dom"])
        a["status"] = status
        if not status:
            a["handle"], a["dev_bus_addr"] = handle, bus
        return 0

    def _grant_unmap_grant_ref(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        a["status"] = self.grants.unmap(domid, vcpu, a["host_addr"], a["dev_bus_addr"], a["handle"])
        return 0

    def _grant_unmap_and_replace(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        a["status"] = self.grants.unmap_and_replace(domid, vcpu, a["host_addr"], a["new_addr"], a["handle"])
        return 0

    def _grant_copy(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        a["status"] = self.grants.copy(domid, (a["source"], a["src_domid"], a["src_offset"]),
                                       (a["dest"], a["dest_domid"], a["dest_offset"]), a["len"], a["flags"])
        return 0

    def _grant_setup_table(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        rc, a["status"], frames = self.grants.setup_table(domid, a["dom"], a["nr_frames"])
        try:
            self.copy_out(domid, vcpu, a["frame_list"], struct.pack(f"<{len(frames)}Q", *frames))
        except GuestFault:
            a["status"] = grants.BAD_VIRT_ADDR
        return rc

    def _grant_query_size(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        rc, a["status"], nr_frames, most = self.grants.query_size(domid, a["dom"])
        if not rc and not a["status"]:
            a["nr_frames"], a["max_nr_frames"] = nr_frames, most
        return rc

    def _grant_set_version(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        rc, a["version"] = self.grants.set_version(domid, a["version"])
        return rc

    def _grant_get_version(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        rc, version = self.grants.get_version(domid, a["dom"])
        if not rc:
            a["version"] = version
        return rc

    def _grant_get_status_frames(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        rc, a["status"] = self.grants.get_status_frames(domid, a["dom"], a["nr_frames"])
        return rc

    def _grant_dump_table(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        a["status"] = self.grants.dump_table(domid, a["dom"])
        return self.abi.dump_table

    def _grant_swap_grant_ref(self, domid: int, vcpu: int, a: dict[str, int]) -> int:
        a["status"] = self.grants.swap_grant_ref(domid, a["ref_a"], a["ref_b"])
        return 0


def _upcall_words(v: VCpu) -> bytes:
    return struct.pack("<BB6xQ", v.upcall_pending, v.upcall_mask, v.pending_sel)


def _pieces(va: int, size: int):
    """(offset, length) of the parts of [va, va + size) that lie in one page each."""
    offset = 0
    while offset < size:
        length = min(size - offset, PAGE_SIZE - (va + offset & PAGE_SIZE - 1))
        yield offset, length
        offset += length
