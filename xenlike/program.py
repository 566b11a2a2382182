"""What a domain runs, as the host sees it: a guest in Python, a PV image of machine code, or a PC with an image that knows nothing of Xen.

Owns ``Program`` and its three kinds. Called by ``Host``, on the lane: it has the domain built, installs the program in it,
gives it its exits and its crash, and closes it. Nothing else in the host knows which kind it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from xenlike.backends import PythonVcpu
from xenlike.engine import check, ffi, lib
from xenlike.loaders.errors import LoadError
from xenlike.loaders.image import ImageCache, KernelImage, read_file
from xenlike.loaders.pc import PcImage
from xenlike.loaders.python import load_class
from xenlike.toolstack import DomainConfig
from xenlike.toolstack.builder import Built, Image, build, largest_image
from xenlike.toolstack.pc_builder import Modules, build_pc

if TYPE_CHECKING:
    from xenlike.domain import Domain
    from xenlike.host import Host

__all__ = ["ImageProgram", "PcProgram", "Program", "PythonProgram", "load_program"]

_PYTHON_BASE = 0xFFFFFFFF80000000       # of Python guests: where Linux has its kernel, so that 0 stays unmapped
_MAPPED_LIMIT = 0x70000000 // 4096      # of the linear mapping above it


class Program(Protocol):
    """What a domain runs. ``backend`` executes its vCPUs, ``guest`` is the Python guest (None: none), ``paravirtual``: it has Xen's
    rings and pages, else a serial port."""

    backend: int
    guest: Any
    paravirtual: bool

    def build(self, host_c: Any, domid: int, config: DomainConfig, *, store_port: int, console_port: int) -> Built:
        """Gives the domain its memory and lays out in it what runs. Raises BuildError, XenError."""

    def install(self, host: "Host", domid: int, built: Built, *, nr_vcpus: int, args: str) -> None:
        """The domain is built: vCPU 0 gets its first instruction, and comes up. Raises XenError."""

    def run(self, vcpu: int) -> None:
        """EXIT_PYTHON: the scheduler gave vCPU ``vcpu`` the lane."""

    def waits(self) -> list[str]:
        """For people: what each vCPU waits for."""

    def crash_report(self, domain: "Domain") -> str:
        """For people: the state in which the domain crashed, beyond its reason; the domain still exists."""

    def close(self) -> None:
        """The domain is about to be destroyed, or was never finished. Lets go of what it holds."""


class PythonProgram:
    """A guest in Python: each vCPU is a kernel of the SDK, run on the lane."""

    backend = lib.BACKEND_PYTHON
    paravirtual = True

    def __init__(self, guest: Any) -> None:
        self.guest = guest
        self._vcpus: list[PythonVcpu] = []

    def image(self, pages: int) -> Image:
        """What the builder lays out in a domain of so many pages."""
        return largest_image(_PYTHON_BASE, pages, _MAPPED_LIMIT)

    def build(self, host_c: Any, domid: int, config: DomainConfig, *, store_port: int, console_port: int) -> Built:
        return _build_pv(host_c, domid, config, self.image(_pages(config)), store_port, console_port)

    def install(self, host: "Host", domid: int, built: Built, *, nr_vcpus: int, args: str) -> None:
        self.guest.install(domid=domid, start_info_va=built.start_info, virt_base=built.virt_base, image_pages=0,
                           mapped_pages=built.mapped_pages, nr_vcpus=nr_vcpus, args=args)
        self._vcpus = [PythonVcpu(host, domid, n, self.guest.kernels[n]) for n in range(nr_vcpus)]
        lib.xl_vcpu_up(self._vcpus[0].c)

    def run(self, vcpu: int) -> None:
        if vcpu < len(self._vcpus):     # else it was closed meanwhile
            self._vcpus[vcpu].resume()

    def waits(self) -> list[str]:
        return [vcpu.program.describe_wait(vcpu.c.pause_flags) for vcpu in self._vcpus]     # type: ignore[attr-defined]

    def crash_report(self, domain: "Domain") -> str:
        return ""                       # the traceback says it

    def close(self) -> None:
        self._vcpus = []
        self.guest.close()


class ImageProgram:
    """An image of machine code, run by the x86 engine on whatever pCPU there is."""

    backend = lib.BACKEND_INTERP
    guest = None
    paravirtual = True

    def __init__(self, kernel: KernelImage, ramdisk: bytes = b"") -> None:
        self.kernel, self.ramdisk = kernel, ramdisk
        self._vcpus: list[Any] = []

    def build(self, host_c: Any, domid: int, config: DomainConfig, *, store_port: int, console_port: int) -> Built:
        return _build_pv(host_c, domid, config, Image.of_kernel(self.kernel), store_port, console_port, self.ramdisk)

    def install(self, host: "Host", domid: int, built: Built, *, nr_vcpus: int, args: str) -> None:
        self._vcpus = [lib.xl_vcpu(host.c, domid, n) for n in range(nr_vcpus)]
        self._set_entry(domid, built)
        lib.xl_vcpu_up(self._vcpus[0])

    def _set_entry(self, domid: int, built: Built) -> None:
        check(lib.xl_vcpu_set_regs(self._vcpus[0], self.kernel.entry, built.stack_top, built.start_info), "set registers", domid)

    def run(self, vcpu: int) -> None:
        raise AssertionError("a vCPU of machine code on the lane")

    def waits(self) -> list[str]:
        return [_wait_of(vcpu.pause_flags) for vcpu in self._vcpus]

    def crash_report(self, domain: "Domain") -> str:
        from xenlike.debugger.report import crash_report    # with capstone: not needed until something crashes
        try:
            info = ffi.new("struct xl_domain_info *")
            check(lib.xl_domain_info(domain.host.c, domain.domid, info), "domain info", domain.domid)
            return crash_report(domain, info.last_vcpu)
        except Exception as error:  # noqa: BLE001 - on the lane, and the guest's state is whatever it made of it
            return f"no report could be made: {type(error).__name__}: {error}"

    def close(self) -> None:
        self._vcpus = []


class PcProgram(ImageProgram):
    """An image for a plain PC (docs/pc.md). Its console is the serial port."""

    paravirtual = False

    def __init__(self, kernel: PcImage, modules: Modules) -> None:
        self.image, self.modules = kernel, modules
        self.backend = lib.BACKEND_PC
        self._vcpus = []

    def build(self, host_c: Any, domid: int, config: DomainConfig, *, store_port: int, console_port: int) -> Built:
        return build_pc(host_c, domid, self.image, config.memory, nr_vcpus=config.maxvcpus, cmdline=config.command_line, modules=self.modules)

    def _set_entry(self, domid: int, built: Built) -> None:
        """The builder did."""


def _pages(config: DomainConfig) -> int:
    return config.memory // 4096


def _build_pv(host_c: Any, domid: int, config: DomainConfig, image: Image, store_port: int, console_port: int, ramdisk: bytes = b"") -> Built:
    pages = _pages(config)
    return build(host_c, domid, image, pages, max_pages=max(pages, config.maxmem // 4096), privileged=False, cmdline=config.command_line,
                 store_port=store_port, console_port=console_port, ramdisk=ramdisk)


def _wait_of(pause_flags: int) -> str:
    for flag, text in ((lib.VPF_down, "down"), (lib.VPF_paused, "paused"), (lib.VPF_lane, "in a hypercall that Python answers"),
                       (lib.VPF_blocked, "blocked until an event comes")):
        if pause_flags & flag:
            return text
    return "runs"


def load_program(config: DomainConfig, images: ImageCache) -> Program:
    """What ``config.kernel`` names. Raises ConfigError."""
    kernel = config.kernel
    assert kernel is not None           # check_supported
    if kernel.kind == "python":
        return PythonProgram(_python_guest(config))
    kind = config.type if "type" in config.source else None
    try:
        image = images.get(kernel.path, kind)
    except LoadError as error:
        raise config.error("kernel", str(error)) from error
    try:
        ramdisk = read_file(config.ramdisk, config.memory) if config.ramdisk is not None else b""
    except LoadError as error:
        raise config.error("ramdisk", str(error), hint="it must fit the domain's memory") from error
    if isinstance(image, KernelImage):
        return ImageProgram(image, ramdisk)
    if config.maxvcpus > lib.PC_MAX_VCPUS:
        raise config.error(config.vcpus_key, f"{config.maxvcpus} vCPUs: {lib.PC_MAX_VCPUS} is the most that a PC has")
    return PcProgram(image, [] if config.ramdisk is None else [(str(config.ramdisk), ramdisk)])


def _python_guest(config: DomainConfig) -> Any:
    kernel = config.kernel
    assert kernel is not None
    try:
        guest_class = kernel.guest or load_class(kernel.path, kernel.classname or "")
        guest = guest_class()
    except LoadError as error:
        raise config.error("kernel", str(error)) from error
    if not hasattr(guest, "kernels"):   # what Guest.__init__ makes
        raise config.error("kernel", f"{guest_class.__name__} is not a guest", hint="derive it from guest_sdk.Guest, and call "
                           "super().__init__() if it has an __init__ of its own")
    return guest
