"""The C core as a `Driver`: what the state machines drive beside their models.

Owns one host with the virtual clock a driver. Its domains have Python vCPUs that the scheduler never picks: the driver is their
instruction stream, and hypercalls run on the caller's thread. After every hypercall each TLB of the host is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xenlike import hypercalls
from xenlike.engine import check, ffi, lib
from xenlike.testing.machines.driver import Abi, Driver
from xenlike.toolstack.builder import Built, build, largest_image

__all__ = ["CoreDriver"]

_VIRT_BASE = 0xFFFFFFFF80000000
_SCRATCH_PAGES = 4


@dataclass
class _Guest:
    built: Built
    mfns: Sequence[int]
    vcpus: list
    playground: Sequence[int]


class CoreDriver(Driver):
    """See the module. ``memory`` is the machine's, in bytes."""

    abi = Abi(linear_tables=True, replace_steals=False)

    def __init__(self, *, memory: int = 64 << 20) -> None:
        config = ffi.new("struct xl_host_config *", {"memory": memory, "nr_pcpus": 1, "virtual_clock": 1, "seed": 1})
        error = ffi.new("int *")
        self.c = lib.xl_host_create(config, error)
        check(error[0], "create host")
        self._guests: dict[int, _Guest] = {}
        self._info = ffi.new("struct xl_domain_info *")
        self._frame = ffi.new("struct xl_frame_info *")

    def close(self) -> None:
        if self.c != ffi.NULL:
            lib.xl_host_destroy(self.c)
            self.c = ffi.NULL

    # --- domains ------------------------------------------------------------------------------------------------

    def create_domain(self, nr_pages: int = 64, vcpus: int = 1, *, privileged: bool = False, max_pages: int | None = None,
                      max_evtchn_port: int = 1023) -> int:
        config = ffi.new("struct domain_config *", {
            "domid": 0 if privileged else -1, "nr_vcpus": vcpus, "max_pages": max_pages or nr_pages + 64,
            "backend": lib.BACKEND_PYTHON, "max_evtchn_port": max_evtchn_port, "privileged": privileged})
        domid = check(lib.xl_domain_create(self.c, config), "create domain")
        image = largest_image(_VIRT_BASE, nr_pages, nr_pages)
        # "privileged" in the builder's sense: no rings are granted to anybody.
        built = build(self.c, domid, image, nr_pages, max_pages=config.max_pages, privileged=True, cmdline="", store_port=0,
                      console_port=0)
        handles = [lib.xl_vcpu(self.c, domid, n) for n in range(vcpus)]
        for n, vcpu in enumerate(handles):
            if n:
                check(lib.xl_vcpu_set_bases(vcpu, built.l4_mfn, 0), "set base pointer", domid)
            lib.xl_vcpu_up(vcpu)
        check(lib.xl_domain_unpause(self.c, domid), "unpause", domid)
        mfns = [lib.xl_guest_translate(handles[0], _VIRT_BASE + pfn * 4096, 0, ffi.NULL) for pfn in range(nr_pages)]
        self._guests[domid] = _Guest(built, mfns, handles, range(_SCRATCH_PAGES, image.pages))
        return domid

    def destroy_domain(self, domid: int) -> None:
        check(lib.xl_domain_destroy(self.c, domid), "destroy", domid)
        del self._guests[domid]
        news = ffi.new("struct lane_exit *")            # the queue would grow for ever; its last entry is this death
        while news.kind != lib.EXIT_DOMAIN or (news.domid, news.a) != (domid, lib.DOM_dead):
            check(lib.xl_run(self.c, news, 1), "take news of domains")

    def crash_reason(self, domid: int) -> str | None:
        if lib.xl_domain_info(self.c, domid, self._info) or self._info.state != lib.DOM_shutdown:
            return None
        return ffi.string(self._info.crash_reason).decode() or f"shutdown {self._info.shutdown_code}"

    # --- the guest's own acts -----------------------------------------------------------------------------------

    def hypercall(self, domid: int, vcpu: int, number: int, args: tuple[int, ...]) -> int:
        v = self._guests[domid].vcpus[vcpu]
        rc = lib.xl_hypercall(v, number, *args, *(0,) * (5 - len(args)))
        while rc == lib.HYPERCALL_COLD:
            rc = lib.xl_hypercall_complete(v, hypercalls.dispatch(self, v, domid))
        assert lib.xl_check_tlbs(self.c) == 0, "a TLB holds a write entry for a frame that is not typed writable"
        return rc

    def console_text(self, domid: int, data: bytes) -> None:
        """console_io's output is nobody's here."""

    def read_mem(self, domid: int, va: int, size: int) -> bytes:
        buf = ffi.new("char[]", size)
        if lib.xl_guest_read(self._guests[domid].vcpus[0], va, buf, size, ffi.NULL):
            raise MemoryError(f"{va:#x} is not readable")
        return ffi.unpack(buf, size)

    def write_mem(self, domid: int, va: int, data: bytes) -> None:
        if lib.xl_guest_write(self._guests[domid].vcpus[0], va, data, len(data), ffi.NULL):
            raise MemoryError(f"{va:#x} is not writable")

    def write_shared_info(self, domid: int, offset: int, data: bytes) -> None:
        ffi.buffer(lib.xl_shared_info(self.c, domid), 4096)[offset:offset + len(data)] = data

    # --- where things are ---------------------------------------------------------------------------------------

    def scratch(self, domid: int) -> int:
        return _VIRT_BASE

    def playground(self, domid: int) -> Sequence[int]:
        return self._guests[domid].playground

    def pfn_to_mfn(self, domid: int, pfn: int) -> int:
        return self._guests[domid].mfns[pfn]

    def va_of(self, domid: int, pfn: int) -> int:
        return _VIRT_BASE + pfn * 4096

    def special_frames(self, domid: int) -> Mapping[str, Sequence[int]]:
        check(lib.xl_domain_info(self.c, domid, self._info), "domain info", domid)
        shared_info = self._info.shared_info_mfn
        special = [mfn for mfn in range(self.nr_frames()) if lib.xl_frame_info(self.c, mfn, self._frame) == 0
                   and self._frame.special and self._frame.owner == domid]
        return {"shared_info": [shared_info], "grant": [mfn for mfn in special if mfn != shared_info]}

    def nr_frames(self) -> int:
        usage = self._usage()
        return usage.frames_total + 256         # the low 1 MiB is no RAM

    # --- behind the curtain -------------------------------------------------------------------------------------

    def shared_info(self, domid: int) -> bytes:
        return bytes(ffi.buffer(lib.xl_shared_info(self.c, domid), 4096))

    def vcpu_state(self, domid: int, vcpu: int) -> Mapping[str, object]:
        v = self._guests[domid].vcpus[vcpu]
        return {"blocked": bool(v.pause_flags & lib.VPF_blocked), "kernel_base": v.cr3_mfn, "user_base": v.user_cr3_mfn}

    def frame_read(self, mfn: int, offset: int, size: int) -> bytes:
        buf = ffi.new("char[]", size)
        check(lib.xl_frame_read(self.c, lib.DOMID_INVALID, mfn, offset, buf, size), "frame read")
        return ffi.unpack(buf, size)

    def frame_write(self, mfn: int, offset: int, data: bytes) -> None:
        check(lib.xl_frame_write(self.c, lib.DOMID_INVALID, mfn, offset, data, len(data)), "frame write")

    def frame_info(self, mfn: int) -> Mapping[str, object]:
        check(lib.xl_frame_info(self.c, mfn, self._frame), "frame info")
        f = self._frame
        return {"owner": f.owner if f.owner < 0x7FF0 else None, "type": f.type, "type_count": f.type_count, "refcount": f.count,
                "pinned": bool(f.pinned), "validated": bool(f.validated), "m2p": lib.xl_m2p(self.c, mfn)}

    def _usage(self) -> object:
        usage = ffi.new("struct xl_usage *")
        lib.xl_usage(self.c, usage)
        return usage

    def counts(self) -> Mapping[str, int]:
        ids = ffi.new("u16[]", 1024)
        ports = grants = 0
        for i in range(lib.xl_domain_list(self.c, ids, 1024)):
            check(lib.xl_domain_info(self.c, ids[i], self._info), "domain info", ids[i])
            ports += self._info.nr_ports - 1         # port 0 is reserved, not in use
            grants += self._info.nr_grants_pinned
        return {"free_frames": self._usage().frames_free, "ports": ports, "grants": grants}

    def raise_virq(self, domid: int, vcpu: int, virq: int) -> None:
        check(lib.xl_send_virq(self.c, domid, vcpu, virq), "send virq", domid)

    # --- optional -----------------------------------------------------------------------------------------------

    def scratch_view(self, domid: int) -> memoryview | None:
        return None                             # four frames, not one run of host memory

    def shared_info_view(self, domid: int) -> memoryview | None:
        return memoryview(ffi.buffer(lib.xl_shared_info(self.c, domid), 4096))
