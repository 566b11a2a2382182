"""Argument structures and call numbers of the guest ABI, as a guest would lay them out in its memory.

The machines, the model driver and the strategies take every offset from here. The numbers are written down once more
rather than read from the C headers, because these tests judge what was built from those headers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping


class Layout:
    """A structure: `fields` in order, `fmt` in struct's notation with padding written out (little endian, packed)."""

    __slots__ = ("name", "fields", "widths", "signed", "struct", "size")

    def __init__(self, name: str, fmt: str, fields: str) -> None:
        self.name = name
        self.fields = tuple(fields.split())
        self.struct = struct.Struct("<" + fmt)
        self.size = self.struct.size
        codes = "".join(code * int(count or 1) for count, code in re.findall(r"(\d*)([a-zA-Z])", fmt) if code != "x")
        self.widths = tuple(8 * struct.calcsize("<" + code) for code in codes)      # bits of each field
        self.signed = tuple(code.islower() for code in codes)

    def pack(self, **values: int) -> bytes:
        """The bytes of the structure; a field not named is 0."""
        unknown = values.keys() - set(self.fields)
        if unknown:
            raise TypeError(f"{self.name} has no field {sorted(unknown)}: it has {', '.join(self.fields)}")
        return self.struct.pack(*(values.get(field, 0) for field in self.fields))

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, int]:
        return dict(zip(self.fields, self.struct.unpack_from(data, offset)))


def _table(rows: str) -> dict[str, Layout]:
    layouts = {}
    for row in rows.strip().splitlines():
        name, fmt, fields = (part.strip() for part in row.split("|"))
        layouts[name] = Layout(name, fmt, fields)
    return layouts


LAYOUTS: Mapping[str, Layout] = _table("""\
    evtchn_bind_interdomain   | H2xII     | remote_dom remote_port local_port
    evtchn_bind_virq          | III       | virq vcpu port
    evtchn_bind_pirq          | III       | pirq flags port
    evtchn_close              | I         | port
    evtchn_send               | I         | port
    evtchn_status             | H2xIIIII  | dom port status vcpu union0 union1
    evtchn_alloc_unbound      | HHI       | dom remote_dom port
    evtchn_bind_ipi           | II        | vcpu port
    evtchn_bind_vcpu          | II        | port vcpu
    evtchn_unmask             | I         | port
    evtchn_reset              | H         | dom
    evtchn_init_control       | QIIB7x    | control_gfn offset vcpu link_bits
    evtchn_expand_array       | Q         | array_gfn
    evtchn_set_priority       | II        | port priority
    sched_poll                | QI4xQ     | ports nr_ports timeout
    sched_shutdown            | I         | reason
    sched_remote_shutdown     | H2xI      | domain_id reason
    sched_watchdog            | II        | id timeout
    sched_pin_override        | i         | pcpu
    vcpu_register_vcpu_info   | QII       | mfn offset rsvd
    gnttab_map_grant_ref      | QIIHhIQ   | host_addr flags ref dom status handle dev_bus_addr
    gnttab_unmap_grant_ref    | QQIh2x    | host_addr dev_bus_addr handle status
    gnttab_setup_table        | H2xIh6xQ  | dom nr_frames status frame_list
    gnttab_dump_table         | Hh        | dom status
    gnttab_transfer           | QH2xIh6x  | mfn domid ref status
    gnttab_copy               | QHH4xQHH4xHHh2x | source src_domid src_offset \
                                dest dest_domid dest_offset len flags status
    gnttab_query_size         | H2xIIh2x  | dom nr_frames max_nr_frames status
    gnttab_unmap_and_replace  | QQIh2x    | host_addr new_addr handle status
    gnttab_set_version        | I         | version
    gnttab_get_status_frames  | IHhQ      | nr_frames dom status frame_list
    gnttab_get_version        | H2xI      | dom version
    gnttab_swap_grant_ref     | IIh2x     | ref_a ref_b status
    gnttab_cache_flush        | QHHI      | a offset length op
    mmu_update                | QQ        | ptr val
    mmuext_op                 | I4xQQ     | cmd arg1 arg2
    xen_memory_reservation    | QQIIH6x   | extent_start nr_extents extent_order mem_flags domid
    xen_memory_exchange       | QQIIH6xQQIIH6xQ | in_start in_nr in_order in_flags in_domid \
                                                  out_start out_nr out_order out_flags out_domid nr_exchanged
    xen_memory_domain         | H         | domid
    multicall_entry           | QqQQQQQQ  | op result arg0 arg1 arg2 arg3 arg4 arg5
""")

# Hypercalls the machines make.
HYPERCALL_MMU_UPDATE, HYPERCALL_MEMORY_OP, HYPERCALL_MULTICALL, HYPERCALL_UPDATE_VA_MAPPING = 1, 12, 13, 14
HYPERCALL_GRANT_TABLE_OP, HYPERCALL_UPDATE_VA_MAPPING_OTHERDOMAIN, HYPERCALL_VCPU_OP = 20, 22, 24
HYPERCALL_MMUEXT_OP, HYPERCALL_SCHED_OP, HYPERCALL_EVENT_CHANNEL_OP = 26, 29, 32

EVTCHNOP = ("bind_interdomain", "bind_virq", "bind_pirq", "close", "send", "status", "alloc_unbound", "bind_ipi",
            "bind_vcpu", "unmask", "reset", "init_control", "expand_array", "set_priority")
GNTTABOP = ("map_grant_ref", "unmap_grant_ref", "setup_table", "dump_table", "transfer", "copy", "query_size",
            "unmap_and_replace", "set_version", "get_status_frames", "get_version", "swap_grant_ref", "cache_flush")
SCHEDOP_YIELD, SCHEDOP_BLOCK, SCHEDOP_SHUTDOWN, SCHEDOP_POLL = range(4)
VCPUOP_REGISTER_VCPU_INFO = 10
XENMEM_INCREASE, XENMEM_DECREASE, XENMEM_CURRENT, XENMEM_MAXIMUM, XENMEM_POPULATE, XENMEM_EXCHANGE = 0, 1, 3, 4, 6, 11

# Offsets in shared_info and vcpu_info.
VCPU_INFO_SIZE, EVTCHN_PENDING, EVTCHN_MASK, EVTCHN_END = 64, 2048, 2560, 3072
UPCALL_PENDING, UPCALL_MASK, PENDING_SEL = 0, 1, 8


def event_op(name: str) -> tuple[int, Layout]:
    """Number and argument structure of an EVTCHNOP command."""
    return EVTCHNOP.index(name), LAYOUTS["evtchn_" + name]


def grant_op(name: str) -> tuple[int, Layout]:
    """Number and element structure of a GNTTABOP command."""
    return GNTTABOP.index(name), LAYOUTS["gnttab_" + name]
