"""What a state machine asks of the hypervisor under test.

`Driver` is the seam: subclass it to test a hypervisor. A machine makes one driver an example, creates domains through
it, makes hypercalls with real structures in guest memory, and closes it. Everything a guest can do goes through
`hypercall`, `read_mem`, `write_mem` and the views; the rest lets a test look behind the curtain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Abi:
    """Points where the ABI leaves a choice, or sources disagree. A driver states what its hypervisor does.

    fixed_ports      ports valid without being allocated; None: they come in buckets of 64, as in Xen
    linear_tables    same-level page table entries are accepted by Xen's rules rather than refused
    unowned_frame    status of mapping a grant whose frame is not the granter's: -1, or Xen's own -9
    replace_steals   a failing unmap_and_replace loses the entry it was to move, as in Xen
    dump_table       rc of GNTTABOP_dump_table: 0, or -38 where the command is gone
    """

    fixed_ports: int | None = None
    linear_tables: bool = False
    unowned_frame: int = -1
    replace_steals: bool = True
    dump_table: int = 0


class Mismatch(AssertionError):
    """The hypervisor and the model disagree."""


class Driver(ABC):
    """The hypervisor under test, and enough of its inside to compare.

    Domain ids are given by the hypervisor. A domain is created ready to run: the usual boot page tables (RAM mapped
    linearly and writable, page tables read-only), every vCPU up and runnable, vCPU n sharing the boot tables. It
    does not run by itself: its instruction stream is this driver.
    """

    abi = Abi()

    # --- domains ------------------------------------------------------------------------------------------------

    @abstractmethod
    def create_domain(self, nr_pages: int = 64, vcpus: int = 1, *, privileged: bool = False,
                      max_pages: int | None = None, max_evtchn_port: int = 1023) -> int:
        """Create a domain and return its id. `max_pages` defaults to nr_pages + 64."""

    @abstractmethod
    def destroy_domain(self, domid: int) -> None:
        """Kill a domain; everything that no other domain holds is released before this returns."""

    @abstractmethod
    def crash_reason(self, domid: int) -> str | None:
        """Why a domain was crashed, None while it is well."""

    # --- the guest's own acts -----------------------------------------------------------------------------------

    @abstractmethod
    def hypercall(self, domid: int, vcpu: int, number: int, args: tuple[int, ...]) -> int:
        """Make a hypercall as that vCPU and return rax as a signed number.

        A call that puts the vCPU to sleep returns what the guest will see when it wakes (0); `vcpu_state` tells
        that it is blocked. The machine makes no call on a blocked vCPU."""

    @abstractmethod
    def read_mem(self, domid: int, va: int, size: int) -> bytes:
        """Read guest memory through vCPU 0's kernel tables. Raises MemoryError where the guest would fault."""

    @abstractmethod
    def write_mem(self, domid: int, va: int, data: bytes) -> None:
        """Write guest memory likewise."""

    @abstractmethod
    def write_shared_info(self, domid: int, offset: int, data: bytes) -> None:
        """A guest's plain store into its shared_info page."""

    # --- where things are ---------------------------------------------------------------------------------------

    @abstractmethod
    def scratch(self, domid: int) -> int:
        """Virtual address of four contiguous writable pages that are the machine's to use for arguments."""

    @abstractmethod
    def playground(self, domid: int) -> Sequence[int]:
        """Pfns, at least 16, whose frames are ordinary RAM, each mapped writable once, at `va_of`."""

    @abstractmethod
    def pfn_to_mfn(self, domid: int, pfn: int) -> int:
        """The frame behind a pfn of the domain as it was built."""

    @abstractmethod
    def va_of(self, domid: int, pfn: int) -> int:
        """The virtual address where the builder mapped a pfn."""

    @abstractmethod
    def special_frames(self, domid: int) -> Mapping[str, Sequence[int]]:
        """{"shared_info": [mfn], "grant": [mfn, …]}."""

    @abstractmethod
    def nr_frames(self) -> int:
        """Frames of the machine: no RAM at this mfn or above."""

    # --- behind the curtain -------------------------------------------------------------------------------------

    @abstractmethod
    def shared_info(self, domid: int) -> bytes:
        """The whole shared_info page."""

    @abstractmethod
    def vcpu_state(self, domid: int, vcpu: int) -> Mapping[str, object]:
        """At least {"blocked": bool, "kernel_base": mfn, "user_base": mfn or 0}."""

    @abstractmethod
    def frame_read(self, mfn: int, offset: int, size: int) -> bytes:
        """Contents of a machine frame."""

    @abstractmethod
    def frame_write(self, mfn: int, offset: int, data: bytes) -> None:
        """Write a frame as a guest with a writable mapping of it would."""

    @abstractmethod
    def frame_info(self, mfn: int) -> Mapping[str, object]:
        """{"owner": domid or None, "type": 0–7, "type_count", "refcount", "pinned", "validated", "m2p"}.

        Types have the numbers of the ABI description (1–4 page tables, 5 descriptors, 7 writable). `refcount`
        counts the allocation's own reference."""

    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """Resources of the whole host, for leak checks: at least "free_frames", "ports" (channels in use, reserved
        port 0 of a domain not among them) and "grants" (entries that are pinned)."""

    @abstractmethod
    def raise_virq(self, domid: int, vcpu: int, virq: int) -> None:
        """Raise a VIRQ from the hypervisor's side."""

    # --- optional -----------------------------------------------------------------------------------------------

    def scratch_view(self, domid: int) -> memoryview | None:
        """A writable view of the scratch pages, if there can be one: it saves a call a step. Valid until the domain
        dies."""
        return None

    def shared_info_view(self, domid: int) -> memoryview | None:
        """A readable and writable view of shared_info, likewise."""
        return None

    def close(self) -> None:
        """Release the host."""
