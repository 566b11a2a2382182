"""Grant tables (version 1) for Python guests.

Owns: the guest's grant entries (as granter) and its mappings of others' (as mapper). Called by: drivers, guests.
Entries are written into the shared table as a C guest would: frame and domid first, then the flags (section 6.2).
"""

from __future__ import annotations

import struct
from typing import Any

from xenlike.engine import XenError, ffi, lib

from guest_sdk.memory import PAGE, PTE_A, PTE_P, PTE_RW, Page

__all__ = ["GrantBusy", "GrantMapping", "Grants"]

_STATUS = {getattr(lib, name): name.removeprefix("GNTST_") for name in dir(lib) if name.startswith("GNTST_")}
_ENTRY = struct.Struct("<HHI")
_PER_FRAME = PAGE // 8


class GrantBusy(RuntimeError):
    """The grant is in use by the other domain and cannot end now; try again later."""


class GrantMapping:
    """Another domain's page, mapped at ``page.va`` until ``unmap``."""

    __slots__ = ("_grants", "page", "handle", "readonly")

    def __init__(self, grants: "Grants", page: Page, handle: int, readonly: bool) -> None:
        self._grants = grants
        self.page = page
        self.handle = handle
        self.readonly = readonly

    def read(self, offset: int = 0, n: int = PAGE) -> bytes:
        """n bytes from ``offset``."""
        return self.page.read(offset, n)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Stores ``data`` at ``offset``; GuestFault if the grant is read-only."""
        self.page.write(data, offset)

    def unmap(self) -> None:
        """Gives the grant back; the page is the guest's own again."""
        self._grants.unmap(self)


class Grants:
    """``guest.grants``."""

    def __init__(self, guest: Any) -> None:
        self._guest = guest
        self._frames: list[memoryview] = []
        self._free: list[int] = []

    def _call(self, what: str, cmd: int, arg: dict[str, Any]) -> dict[str, Any]:
        """One grant_table_op with one element; raises XenError for rc and for the element's status."""
        rc = self._guest.hypercall.grant_table_op(cmd, arg)
        if rc < 0:
            raise XenError(-rc, f"grant_table_op/{what}", self._guest.domid)
        status = arg.get("status", 0)
        if status:
            raise XenError(lib.XEN_EINVAL, f"grant_table_op/{what}", self._guest.domid, f"status {_STATUS.get(status, status)}")
        return arg

    def close(self) -> None:
        """Lets the table's pages go."""
        while self._frames:
            self._frames.pop().release()

    # ---- granting ----------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """One more frame of entries (GNTTABOP_setup_table). Raises XenError at the limit."""
        memory, nr = self._guest.memory, len(self._frames) + 1
        with self._guest.hypercall.buffer(bytes(8 * nr)) as list_va:
            self._call("setup_table", lib.GNTTABOP_setup_table,
                       {"dom": lib.DOMID_SELF, "nr_frames": nr, "status": 0, "frame_list": list_va})
            mfn = memory.read_u64(list_va + 8 * (nr - 1))
        page = memory.alloc_page()                  # its virtual address is lent to the table's frame for good
        memory.remap(page.va, mfn << 12 | PTE_P | PTE_RW | PTE_A)
        self._frames.append(memory.window(page.va))
        first = (nr - 1) * _PER_FRAME
        self._free.extend(range(first + _PER_FRAME - 1, max(first, lib.GNTTAB_NR_RESERVED_ENTRIES) - 1, -1))

    def access(self, domid: int, page: Page | int, *, readonly: bool = False) -> int:
        """Lets ``domid`` map or copy a page (a Page, or an mfn); returns the grant reference."""
        if not self._free:
            self._grow()
        ref = self._free.pop()
        frame, at = self._frames[ref // _PER_FRAME], ref % _PER_FRAME * 8
        mfn = page.mfn if isinstance(page, Page) else page
        _ENTRY.pack_into(frame, at, 0, domid, mfn)
        frame[at] = lib.GTF_permit_access | (lib.GTF_readonly if readonly else 0)      # flags last; x86 keeps stores in order
        return ref

    def end_access(self, ref: int) -> None:
        """Takes a grant back. Raises GrantBusy while the other domain uses it."""
        frame, at = self._frames[ref // _PER_FRAME], ref % _PER_FRAME * 8
        flags = frame[at] | frame[at + 1] << 8
        busy = flags & (lib.GTF_reading | lib.GTF_writing)
        if busy or not lib.xl_cmpxchg16(ffi.from_buffer(frame[at:at + 2]), flags, 0):
            raise GrantBusy(f"grant {ref} of domain {self._guest.domid} is in use")
        self._free.append(ref)

    def in_use(self, ref: int) -> bool:
        """The other domain reads or writes it now (GTF_reading, GTF_writing)."""
        return bool(self._frames[ref // _PER_FRAME][ref % _PER_FRAME * 8] & (lib.GTF_reading | lib.GTF_writing))

    # ---- mapping -----------------------------------------------------------------------------------------------------

    def map(self, domid: int, ref: int, *, readonly: bool = False) -> GrantMapping:
        """Maps domain ``domid``'s grant at a virtual address of ours (GNTTABOP_map_grant_ref). Raises XenError."""
        page = self._guest.memory.alloc_page()
        flags = lib.GNTMAP_host_map | (lib.GNTMAP_readonly if readonly else 0)
        try:
            arg = self._call("map_grant_ref", lib.GNTTABOP_map_grant_ref,
                             {"host_addr": page.va, "flags": flags, "ref": ref, "dom": domid, "status": 0, "handle": 0,
                              "dev_bus_addr": 0})
        except XenError:
            page.free()
            raise
        return GrantMapping(self, page, arg["handle"], readonly)

    def unmap(self, mapping: GrantMapping) -> None:
        """GNTTABOP_unmap_grant_ref, then the page's own frame is mapped again. Raises XenError."""
        self._call("unmap_grant_ref", lib.GNTTABOP_unmap_grant_ref,
                   {"host_addr": mapping.page.va, "dev_bus_addr": 0, "handle": mapping.handle, "status": 0})
        self._guest.memory.make_writable(mapping.page)
        mapping.page.free()

    def copy_from(self, domid: int, ref: int, page: Page, *, offset: int = 0, length: int = PAGE, to: int = 0) -> None:
        """Copies ``length`` bytes at ``offset`` of a grant to ``page`` at ``to`` (GNTTABOP_copy). Raises XenError."""
        self._copy({"u": {"ref": ref}, "domid": domid, "offset": offset},
                   {"u": {"gmfn": page.mfn}, "domid": lib.DOMID_SELF, "offset": to}, length, lib.GNTCOPY_source_gref)

    def copy_to(self, domid: int, ref: int, page: Page, *, offset: int = 0, length: int = PAGE, start: int = 0) -> None:
        """Copies ``length`` bytes of ``page`` from ``start`` to a grant at ``offset`` (GNTTABOP_copy). Raises XenError."""
        self._copy({"u": {"gmfn": page.mfn}, "domid": lib.DOMID_SELF, "offset": start},
                   {"u": {"ref": ref}, "domid": domid, "offset": offset}, length, lib.GNTCOPY_dest_gref)

    def _copy(self, source: dict[str, Any], dest: dict[str, Any], length: int, flags: int) -> None:
        self._call("copy", lib.GNTTABOP_copy, {"source": source, "dest": dest, "len": length, "flags": flags, "status": 0})
