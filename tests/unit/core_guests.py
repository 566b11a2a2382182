"""Guests without a program, for tests that drive the real core call by call.

A `CoreHost` is a host with the virtual clock; a `CoreGuest` is a domain of it with a few pages mapped linearly at `BASE` and
one frame for each page-table level. Nothing runs by itself: the test makes the hypercalls, and reads and writes guest
memory, as the guest would. The domain stays paused, so that the scheduler keeps out of the picture; what would wake a
vCPU shows in its pause_flags. `host` and `dom0` are fixtures, which a test file takes by naming them as its own.
"""

from __future__ import annotations

import os
import struct

import pytest

from xenlike import translation
from xenlike.engine import check, ffi, lib

BASE = 0x200000                         # virtual address of pfn 0
PAGE = 4096
PRESENT, RW, ACCESSED, DIRTY = 1, 2, 32, 64
VPF_BLOCKED = 1
U64 = (1 << 64) - 1


def choose_engine(wanted: str | None = None, options: int | None = None) -> dict[str, int]:
    """Which engine runs the machine code of a test's host: the one rule, and that of xenlike.Host. What the test asks for, else the environment's
    XENLIKE_ENGINE and XENLIKE_BT_OPTIONS, else the translator where the host's CPU can have it. (A machine without a host, x86_kit.Machine, is the
    interpreter unless it or XENLIKE_ENGINE says "bt": most of its tests are the interpreter's own.)"""
    return {"translate": translation.choose(wanted) == "bt",
            "bt_options": int(os.environ.get("XENLIKE_BT_OPTIONS") or "0", 0) if options is None else options}


class CoreHost:
    """A host; a context manager. `memory` in bytes; `engine`, `bt_options`: see `choose_engine`."""

    def __init__(self, *, virtual: bool = True, pcpus: int = 1, seed: int = 1, memory: int = 16 << 20, wall_ns: int = 0,
                 engine: str | None = None, bt_options: int | None = None) -> None:
        config = ffi.new("struct xl_host_config *", {"memory": memory, "nr_pcpus": pcpus, "virtual_clock": virtual, "seed": seed, "wall_ns": wall_ns,
                                                     **choose_engine(engine, bt_options)})
        err = ffi.new("int *")
        self.ptr = lib.xl_host_create(config, err)
        check(err[0], "xl_host_create")

    def __enter__(self) -> CoreHost:
        return self

    def __exit__(self, *_: object) -> None:
        lib.xl_host_destroy(self.ptr)

    def guest(self, *, vcpus: int = 1, privileged: bool = False, pages: int = 32, **limits: int) -> CoreGuest:
        """A new domain; `limits`: max_evtchn_port, max_grant_frames, max_maptrack_frames, domid."""
        return CoreGuest(self, vcpus, privileged, pages, limits)

    def usage(self) -> tuple[int, int, int]:
        """(free frames, arena bytes in use, domains): equal before and after unless something leaked."""
        out = ffi.new("struct xl_usage *")
        lib.xl_usage(self.ptr, out)
        return out.frames_free, out.arena_in_use, out.domains

    def frame(self, mfn: int) -> object:
        """The frame table's entry: owner, type, type_count, count, ..."""
        out = ffi.new("struct xl_frame_info *")
        check(lib.xl_frame_info(self.ptr, mfn, out), "xl_frame_info")
        return out

    def read_frame(self, mfn: int, offset: int, size: int) -> bytes:
        buf = bytearray(size)
        check(lib.xl_frame_read(self.ptr, lib.DOMID_INVALID, mfn, offset, ffi.from_buffer(buf), size), "xl_frame_read")
        return bytes(buf)

    def write_frame(self, mfn: int, offset: int, data: bytes) -> None:
        check(lib.xl_frame_write(self.ptr, lib.DOMID_INVALID, mfn, offset, data, len(data)), "xl_frame_write")


class CoreGuest:
    """A domain with `pages` pages mapped writable at BASE. Page 0 is for hypercall arguments. The first `up` vCPUs (None: all) are
    initialised and up."""

    def __init__(self, host: CoreHost, vcpus: int, privileged: bool, pages: int, limits: dict[str, int], *, up: int | None = None) -> None:
        config = ffi.new("struct domain_config *", {"domid": -1, "nr_vcpus": vcpus, "max_pages": pages + 16,
                                                    "backend": lib.BACKEND_PYTHON, "privileged": privileged, **limits})
        self.host = host
        self.id = check(lib.xl_domain_create(host.ptr, config), "xl_domain_create")
        mfns = ffi.new("uint32_t[]", pages + 4)
        check(lib.xl_domain_populate(host.ptr, self.id, 0, pages + 4, mfns), "xl_domain_populate")
        self.mfns = list(mfns)[:pages]
        self.l1, l2, l3, self.l4 = list(mfns)[pages:]
        flags = PRESENT | RW | ACCESSED | DIRTY
        host.write_frame(self.l1, 0, struct.pack(f"<{pages}Q", *(mfn << 12 | flags for mfn in self.mfns)))
        host.write_frame(l2, 8, struct.pack("<Q", self.l1 << 12 | flags | 4))
        for table, lower in ((l3, l2), (self.l4, l3)):
            host.write_frame(table, 0, struct.pack("<Q", lower << 12 | flags | 4))
        self.vcpus = [lib.xl_vcpu(host.ptr, self.id, n) for n in range(vcpus)]
        for vcpu in self.vcpus[:up]:
            check(lib.xl_vcpu_set_bases(vcpu, self.l4, 0), "xl_vcpu_set_bases")
            lib.xl_vcpu_up(vcpu)
        self.shared = memoryview(ffi.buffer(lib.xl_shared_info(host.ptr, self.id), PAGE)).cast("B")

    # --- the guest's own acts ---------------------------------------------------------------------------------------

    def call(self, number: int, *args: int, vcpu: int = 0) -> int:
        """A hypercall with raw registers."""
        return lib.xl_hypercall(self.vcpus[vcpu], number, *(a & U64 for a in args), *(0,) * (5 - len(args)))

    def write(self, va: int, data: bytes) -> None:
        check(lib.xl_guest_write(self.vcpus[0], va, data, len(data), ffi.NULL), "xl_guest_write")

    def read(self, va: int, size: int) -> bytes:
        buf = bytearray(size)
        check(lib.xl_guest_read(self.vcpus[0], va, ffi.from_buffer(buf), size, ffi.NULL), "xl_guest_read")
        return bytes(buf)

    def put(self, ctype: str, va: int = BASE, **fields: object) -> object:
        """Writes an ABI structure to guest memory and returns it."""
        value = ffi.new(f"{ctype} *")
        for name, field in fields.items():
            at = value
            *outer, last = name.split("__")
            for part in outer:
                at = getattr(at, part)
            setattr(at, last, field)
        self.write(va, bytes(ffi.buffer(value)))
        return value

    def get(self, ctype: str, va: int = BASE) -> object:
        """Reads an ABI structure from guest memory."""
        value = ffi.new(f"{ctype} *")
        ffi.buffer(value)[:] = self.read(va, ffi.sizeof(value[0]))
        return value

    def va(self, pfn: int) -> int:
        return BASE + pfn * PAGE

    # --- behind the curtain -----------------------------------------------------------------------------------------

    def destroy(self) -> None:
        check(lib.xl_domain_destroy(self.host.ptr, self.id), "xl_domain_destroy")

    def info(self) -> object:
        out = ffi.new("struct xl_domain_info *")
        check(lib.xl_domain_info(self.host.ptr, self.id, out), "xl_domain_info")
        return out

    def blocked(self, vcpu: int = 0) -> bool:
        return bool(self.vcpus[vcpu].pause_flags & VPF_BLOCKED)


@pytest.fixture
def host():
    with CoreHost() as h:
        yield h


@pytest.fixture
def dom0(host):
    return host.guest(privileged=True, domid=0)
