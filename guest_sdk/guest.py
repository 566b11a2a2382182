"""The class that Python guests derive from.

Owns: a guest's kernels (one a vCPU) and its devices. Called by: the toolstack (makes it, boots it), the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from xenlike.engine import NR, ffi, lib

from guest_sdk.console import Console
from guest_sdk.events import Events, Port
from guest_sdk.grants import Grants
from guest_sdk.hypercall import Hypercalls
from guest_sdk.kernel import NSEC, Future, GuestError, Kernel, Task
from guest_sdk.memory import Memory
from guest_sdk.xenstore import Xenstore

__all__ = ["Guest"]


class Guest:
    """A paravirtual guest in Python: derive from it, and write ``async def main(self)``.

    ``main`` runs on vCPU 0. Its return (None or 0) powers the domain off; an exception, or another value, is a crash with that
    as its reason. Attributes: ``domid``, ``memory``, ``events``, ``grants``, ``console``, ``xenstore``, ``hypercall``, and
    ``args``, what the configuration's ``extra``/``cmdline`` says.
    """

    def __init__(self) -> None:
        self.domid = -1                 # learned from xenstore at boot, as any guest does
        self.current: Kernel
        self.kernels: dict[int, Kernel] = {}
        self.events = Events(self)
        self.hypercall = Hypercalls(self)
        self.args = ""
        self.devices: list[Callable[[], None]] = []     # what lets go of each device's ring pages

    async def main(self) -> Any:
        """The guest's program."""
        raise GuestError(f"{type(self).__name__} has no main(): write `async def main(self)`")

    # ---- set up by the toolstack -------------------------------------------------------------------------------------

    def install(self, *, domid: int, start_info_va: int, virt_base: int, image_pages: int, mapped_pages: int,
                nr_vcpus: int, args: str = "") -> None:
        """What a boot loader leaves in registers and symbols: where start_info is, how the image is mapped."""
        self.domid, self.args = domid, args
        self.start_info_va, self.virt_base = start_info_va, virt_base
        self.image_pages, self.mapped_pages = image_pages, mapped_pages
        self.kernels = {n: Kernel(self, n) for n in range(nr_vcpus)}
        self.current = self.kernels[0]
        self.kernels[0].start(self._main)

    def boot(self, vcpu: Any) -> None:
        """The first instructions on vCPU 0: memory, shared_info, console, xenstore. Called by the kernel."""
        self.shared_info = vcpu.shared_info()
        self.memory = Memory(self, vcpu, self.start_info_va)
        self.grants = Grants(self)
        info = self.memory.start_info
        if info.console.domU.mfn:
            self.console = Console(self, self._ring(info.console.domU.mfn), self.events.attach(info.console.domU.evtchn))
        if info.store_mfn:
            self.xenstore = Xenstore(self, self._ring(info.store_mfn), self.events.attach(info.store_evtchn))

    def _ring(self, mfn: int) -> memoryview:
        """The page of a ring whose frame start_info names: by the M2P, as C guests find it."""
        pfn = self.memory.read_u64(lib.MACH2PHYS_VIRT_START + mfn * 8)
        return self.memory.window(self.memory.virt_base + pfn * 4096)

    async def _main(self) -> None:
        result = await self.main()
        if result not in (None, 0):
            raise GuestError(f"main() returned {result!r}: 0 or None power off, anything else is a crash")
        if hasattr(self, "console"):
            await self.console.drain()
        self.shutdown()
        await self.current.rest()

    def close(self) -> None:
        """The domain is gone: coroutines end, and the SDK lets go of its windows on the domain's frames. A view that the guest's
        own code still holds keeps its frame (and the domain's id) taken until it is dropped."""
        for kernel in self.kernels.values():
            kernel.close()
        while self.devices:
            self.devices.pop()()
        for name in ("console", "xenstore", "grants"):
            part = self.__dict__.get(name)
            if part is not None:
                part.close()

    def task_ended(self, task: Task, value: Any) -> None:
        """A task came to its end; a vCPU whose first task ended goes down."""
        kernel = task.kernel
        if task.name == f"vcpu {kernel.index}":
            self.hypercall(NR.vcpu_op, lib.VCPUOP_down, kernel.index)

    def allocate_arguments(self, count: int, size: int) -> list[int]:
        """``count`` areas of ``size`` bytes in guest memory for hypercall arguments; none crosses needlessly."""
        if size < 4096:
            page = self.memory.alloc_page()
            return [page.va + size * i for i in range(count)]
        pages = [self.memory.alloc_page() for _ in range(count * (size // 4096))]
        pages.sort(key=lambda p: p.va)
        runs = [p.va for p, q in zip(pages[::2], pages[1::2]) if q.va == p.va + 4096] if size > 4096 else [p.va for p in pages]
        if len(runs) < count:
            raise MemoryError("no adjacent pages left for hypercall arguments")
        return runs[::-1]

    def vcpu_info(self, index: int) -> tuple[memoryview, int]:
        """Where vCPU ``index``'s vcpu_info lies: a view and an offset."""
        return self.shared_info, index * 64

    # ---- time --------------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """System time in ns since the host was made: the guest's TSC, which runs at 1 GHz."""
        return self.current.vcpu.now()

    async def sleep(self, seconds: float) -> None:
        """Blocks the task; the vCPU too if nothing else is to do (set_timer_op, SCHEDOP_block)."""
        future: Future[None] = Future()
        self.current.alarm(self.now() + round(seconds * NSEC), future)
        await future

    async def compute(self, ns: int) -> None:
        """Burns ns of CPU time."""
        await self.current.rest(burn=ns)

    # ---- scheduling --------------------------------------------------------------------------------------------------

    def spawn(self, coro: Coroutine[Any, None, Any], *, name: str = "") -> Task:
        """Runs a coroutine beside the others on this vCPU; await the task for its result."""
        return self.current.spawn(coro, name=name)

    async def yield_(self) -> None:
        """SCHEDOP_yield."""
        self.hypercall(NR.sched_op, lib.SCHEDOP_yield, 0)
        await self.current.rest()

    async def halt(self) -> None:
        """SCHEDOP_block: the whole vCPU waits for an event."""
        self.hypercall(NR.sched_op, lib.SCHEDOP_block, 0)
        await self.current.rest()

    async def poll(self, ports: Iterable[Port | int], timeout: float | None = None) -> int:
        """SCHEDOP_poll: the vCPU waits until one of the ports is pending (masked or not) or the time is over; returns rax."""
        numbers = [p.number if isinstance(p, Port) else p for p in ports]
        data = b"".join(n.to_bytes(4, "little") for n in numbers)
        deadline = 0 if timeout is None else self.now() + max(1, round(timeout * NSEC))
        with self.hypercall.buffer(data or b"\0") as va:
            arg = ffi.new("struct sched_poll *")
            arg.ports, arg.nr_ports, arg.timeout = va, len(numbers), deadline
            with self.hypercall.buffer(bytes(ffi.buffer(arg))) as arg_va:
                rc = self.hypercall(NR.sched_op, lib.SCHEDOP_poll, arg_va)
        await self.current.rest()
        return rc

    def shutdown(self, reason: int = 0) -> None:
        """SCHEDOP_shutdown: SHUTDOWN_poweroff 0, reboot 1, suspend 2, crash 3."""
        self.hypercall.sched_op(lib.SCHEDOP_shutdown, {"reason": reason})

    def start_vcpu(self, index: int, entry: Callable[[], Coroutine[Any, None, Any]]) -> Port:
        """Brings vCPU ``index`` up with ``entry()`` as its first task (VCPUOP_initialise, VCPUOP_up). Returns a port whose
        ``notify`` interrupts it. Raises XenError."""
        if index not in self.kernels:
            raise GuestError(f"there is no vcpu {index}: the configuration says vcpus={len(self.kernels)}")
        self.kernels[index].start(entry)
        for n in (0, index):                # each end can wake the other
            if self.kernels[n].wake_port is None:
                self.kernels[n].wake_port = self.events.bind_ipi(n).on_event(lambda: None)
        context = ffi.new("struct vcpu_guest_context *")
        context.flags = lib.VGCF_in_kernel | lib.VGCF_online
        context.ctrlreg[3] = self.memory.page_of(self.memory.start_info.pt_base).mfn << 12
        context.user_regs.rip = self.virt_base
        context.user_regs.cs, context.user_regs.ss = lib.FLAT_KERNEL_CS, lib.FLAT_KERNEL_SS
        with self.hypercall.buffer(bytes(ffi.buffer(context))) as va:
            self.hypercall.checked("vcpu_op/initialise", NR.vcpu_op, lib.VCPUOP_initialise, index, va)
        self.hypercall.checked("vcpu_op/up", NR.vcpu_op, lib.VCPUOP_up, index, 0)
        return self.kernels[index].wake_port

    # ---- devices -----------------------------------------------------------------------------------------------------

    async def block(self, name: str = "xvda") -> Any:
        """Connects the disk of that name (blkfront); see guest_sdk.block.Disk."""
        from guest_sdk.block import connect

        return await connect(self, name)
