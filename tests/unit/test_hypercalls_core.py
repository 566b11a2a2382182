"""Hypercalls that are neither events, grants, memory nor scheduling: what each returns, by the words of the ABI.

Driven as a guest would: structures in its own memory, numbers in registers.
"""
# covers: hypercall set_trap_table, hypercall stack_switch, hypercall set_callbacks, hypercall fpu_taskswitch
# covers: hypercall set_debugreg, hypercall get_debugreg, hypercall set_segment_base, hypercall callback_op, hypercall nmi_op
# covers: hypercall iret, hypercall xen_version, hypercall vm_assist, hypercall multicall, hypercall console_io
# covers: hypercall physdev_op, hypercall physdev_op_compat, hypercall sysctl, hypercall domctl, hypercall platform_op
# covers: hypercall xsm_op, hypercall hvm_op, hypercall kexec_op, hypercall argo_op, hypercall xenpmu_op, hypercall dm_op
# covers: hypercall hypfs_op, hypercall mca, hypercall arch_1, hypercall tmem_op, hypercall xenoprof_op

import pathlib
import re
import struct

import pytest

from xenlike.engine import NR, lib
from xenlike.hypercalls import find
from xenlike.testing.machines.core_driver import CoreDriver

EPERM, ENOENT, EFAULT, EACCES, ENODEV, EINVAL, ENOSYS, EOPNOTSUPP = 1, 2, 14, 13, 19, 22, 38, 95
XEN = 0xFFFF800000000000        # the hypervisor's range: never an argument's place
WILD = 0x1000                   # not mapped
NONCANONICAL = 1 << 63


class Caller:
    """One guest vCPU and its scratch page."""

    def __init__(self, driver, domid):
        self.driver, self.domid, self.page = driver, domid, driver.scratch(domid)

    def __call__(self, nr, *args):
        return self.driver.hypercall(self.domid, 0, nr, args)

    def put(self, data, at=0):
        self.driver.write_mem(self.domid, self.page + at, data)
        return self.page + at

    def get(self, n, at=0):
        return self.driver.read_mem(self.domid, self.page + at, n)


@pytest.fixture
def driver():
    driver = CoreDriver()
    yield driver
    driver.close()


@pytest.fixture
def dom0(driver):
    return Caller(driver, driver.create_domain(64, privileged=True))


@pytest.fixture
def guest(driver, dom0):
    return Caller(driver, driver.create_domain(64))


def test_numbers_that_are_not_there(guest):
    """Guests probe for hypercalls by -ENOSYS; the number is the whole of rax."""
    for nr in (11, 43, 47, 50, 63, 64, 65, 2**32 + 17, 2**64 - 1, NR.tmem_op, NR.xenoprof_op):
        assert guest(nr, 0, 0) == -ENOSYS, nr


# ---- what a vCPU is (3.2, 3.5, 3.7) ----------------------------------------------------------------------------------

def trap(vector, address, flags=0, cs=0xE033):
    return struct.pack("<BBHxxxxQ", vector, flags, cs, address)


def test_set_trap_table(guest):
    """A table is read to its end, entries before a bad one stay, NULL clears, and an endless one does not hang."""
    table = trap(3, 0x1000, 3) + trap(14, 0x2000, 4) + trap(0, 0)
    assert guest(NR.set_trap_table, guest.put(table)) == 0
    assert guest(NR.set_trap_table, 0) == 0
    assert guest(NR.set_trap_table, guest.put(trap(3, NONCANONICAL) + trap(0, 0))) == -EINVAL
    assert guest(NR.set_trap_table, WILD) == -EFAULT
    assert guest(NR.set_trap_table, XEN) == -EFAULT
    end = guest.page + 4096 * 4 - 16
    guest.driver.write_mem(guest.domid, end, trap(1, 0x1000))
    assert guest(NR.set_trap_table, guest.put(trap(1, 0x1000) * 257)) == 0


def test_callbacks(guest):
    """callback_op tells bad addresses, types and commands apart; set_callbacks takes what it can and never fails."""
    def register(kind, address, flags=0):
        return guest(NR.callback_op, 0, guest.put(struct.pack("<HHxxxxQ", kind, flags, address)))

    for kind in (0, 1, 2, 4, 5, 7):
        assert register(kind, 0x1000) == 0, kind
        assert register(kind, NONCANONICAL) == -EINVAL, kind
        assert guest(NR.callback_op, 1, guest.put(struct.pack("<HH", kind, 0))) == (0 if kind == 4 else -EINVAL), kind
    for kind in (3, 6, 8, 0xFFFF):
        assert register(kind, 0x1000) == -ENOSYS, kind
        assert guest(NR.callback_op, 1, guest.put(struct.pack("<HH", kind, 0))) == -ENOSYS, kind
    assert guest(NR.callback_op, 2, guest.page) == -ENOSYS
    assert guest(NR.callback_op, 0, WILD) == -EFAULT
    assert guest(NR.set_callbacks, 0x1000, NONCANONICAL, 0x2000) == 0


def test_nmi_op(guest):
    """An NMI handler is registered by structure and removed without one."""
    assert guest(NR.nmi_op, 0, guest.put(struct.pack("<QQ", 0x1000, 0))) == 0
    assert guest(NR.nmi_op, 0, guest.put(struct.pack("<QQ", NONCANONICAL, 0))) == -EINVAL
    assert guest(NR.nmi_op, 0, WILD) == -EFAULT
    assert guest(NR.nmi_op, 1, 0) == 0
    assert guest(NR.nmi_op, 2, 0) == -ENOSYS


def test_stack_switch_and_taskswitch(guest):
    """Both take anything: what is wrong shows when it is used."""
    assert guest(NR.stack_switch, 0xE02B, NONCANONICAL) == 0
    assert guest(NR.fpu_taskswitch, 1) == guest(NR.fpu_taskswitch, 0) == 0


def test_set_segment_base(guest):
    """Bases must be canonical; only the four targets exist."""
    for which in (0, 1, 2):
        assert guest(NR.set_segment_base, which, 0x7FFFFFFFF000) == 0
        assert guest(NR.set_segment_base, which, NONCANONICAL) == -EINVAL
    assert guest(NR.set_segment_base, 3, 0) == 0
    assert guest(NR.set_segment_base, 4, 0) == -EINVAL


def test_debug_registers(guest):
    """A breakpoint on the hypervisor, reserved bits or an unknown register would be taken (XSA-444)."""
    for reg in range(4):
        assert guest(NR.set_debugreg, reg, 0x1234) == 0
        assert guest(NR.get_debugreg, reg) == 0x1234
        assert guest(NR.set_debugreg, reg, XEN) == guest(NR.set_debugreg, reg, NONCANONICAL) == -EPERM
    assert guest(NR.set_debugreg, 6, 1 << 32) == guest(NR.set_debugreg, 7, 1 << 32) == -EINVAL
    assert guest(NR.set_debugreg, 7, 1 << 13) == -EPERM                # GD
    assert guest(NR.set_debugreg, 7, 2 << 16 | 1) == -EPERM            # an I/O breakpoint
    assert guest(NR.set_debugreg, 6, 0) == guest(NR.set_debugreg, 7, 0) == 0
    assert (guest(NR.get_debugreg, 6), guest(NR.get_debugreg, 7)) == (0xFFFF0FF0, 0x400)
    assert (guest(NR.get_debugreg, 4), guest(NR.get_debugreg, 5)) == (0xFFFF0FF0, 0x400)
    assert guest(NR.set_debugreg, 8, 0) == guest(NR.get_debugreg, 8) == -ENODEV


def test_iret_without_a_native_frame(guest):
    """A Python guest has no registers to return to: the number is not there for it, and nothing crashes."""
    assert guest(NR.iret) == -ENOSYS


# ---- version and assists (8.6, 3.11) ---------------------------------------------------------------------------------

def test_xen_version(guest):
    """Guests read version, features and strings; nothing of ours may stand behind a string's end (XSA-122)."""
    assert guest(NR.xen_version, 0) == 0x00040011
    sizes = {1: 16, 2: 144, 3: 1024, 4: 64, 9: 1024}
    for cmd, size in sizes.items():
        guest.put(b"\xff" * (size + 8))
        assert guest(NR.xen_version, cmd, guest.page) == 0, cmd
        data = guest.get(size + 8)
        assert data[size:] == b"\xff" * 8, f"command {cmd} wrote beyond its structure"
        if cmd != 2:
            text, _, rest = data[:size].partition(b"\0")
            assert text and not rest.strip(b"\0"), cmd
        assert guest(NR.xen_version, cmd, WILD) == -EFAULT, cmd
    assert guest.get(8) == b"<denied>"
    assert guest(NR.xen_version, 3, guest.page) == 0 and guest.get(15) == b"xen-3.0-x86_64 "
    assert guest(NR.xen_version, 5, guest.page) == 0 and guest.get(8) == struct.pack("<Q", XEN)
    assert guest(NR.xen_version, 6, guest.put(struct.pack("<II", 0, 0))) == 0
    assert struct.unpack("<II", guest.get(8))[1] == 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17
    assert guest(NR.xen_version, 6, guest.put(struct.pack("<II", 1, 0))) == -EINVAL
    assert guest(NR.xen_version, 7, 0) == 4096
    assert guest(NR.xen_version, 7, guest.page) == -EINVAL
    assert guest(NR.xen_version, 8, guest.page) == 0 and guest.get(16) == bytes(16)
    assert guest(NR.xen_version, 10, 0) == -EPERM
    assert guest(NR.xen_version, 11, guest.page) == -ENOSYS


def test_dom0_has_its_feature(dom0):
    """A kernel learns by it that it is domain 0."""
    assert dom0(NR.xen_version, 6, dom0.put(struct.pack("<II", 0, 0))) == 0
    assert struct.unpack("<II", dom0.get(8))[1] & 1 << 11


def test_vm_assist(guest):
    """Types and commands are told apart; type 3 shows as a feature."""
    for kind in (0, 1, 2, 3, 4, 5, 32):
        assert guest(NR.vm_assist, 0, kind) == guest(NR.vm_assist, 1, kind) == 0, kind
    assert guest(NR.vm_assist, 0, 6) == guest(NR.vm_assist, 0, 33) == guest(NR.vm_assist, 0, 2**40) == -EINVAL
    assert guest(NR.vm_assist, 2, 0) == -ENOSYS
    guest(NR.vm_assist, 0, 3)
    assert guest(NR.xen_version, 6, guest.put(struct.pack("<II", 0, 0))) == 0
    assert struct.unpack("<II", guest.get(8))[1] & 1 << 4


# ---- multicall (8.5) -------------------------------------------------------------------------------------------------

def entry(op, *args):
    return struct.pack("<Qq6Q", op, 0x5A5A, *args, *(0,) * (6 - len(args)))


def results(guest, n):
    return [struct.unpack_from("<Qq", guest.get(64, 64 * i))[1] for i in range(n)]


def test_multicall(guest):
    """Each entry gets its own result, a bad one does not stop the rest, nesting is refused, cold ones are done too."""
    text = guest.put(b"from a multicall", 2048)
    calls = [entry(NR.xen_version, 0), entry(99), entry(NR.multicall, guest.page, 1), entry(NR.console_io, 0, 16, text),
             entry(NR.vm_assist, 0, 6), entry(NR.platform_op, text), entry(NR.xen_version, 7)]
    said = []
    guest.driver.console_text = lambda domid, data: said.append((domid, data))
    assert guest(NR.multicall, guest.put(b"".join(calls)), len(calls)) == 0
    assert results(guest, len(calls)) == [0x00040011, -ENOSYS, -EINVAL, 0, -EINVAL, -EPERM, 4096]
    assert said == [(guest.domid, b"from a multicall")]
    assert guest(NR.multicall, 0, 0) == 0


def test_multicall_that_ends_in_nowhere(guest):
    """Entries before the fault are done, the call as a whole is -EFAULT."""
    at = guest.page + 4 * 4096 - 64
    guest.driver.write_mem(guest.domid, at, entry(NR.xen_version, 0))
    last_mapped = guest.driver.va_of(guest.domid, 63)
    guest.driver.write_mem(guest.domid, last_mapped + 4096 - 64, entry(NR.xen_version, 0))
    assert guest(NR.multicall, last_mapped + 4096 - 64, 2) == -EFAULT
    assert struct.unpack("<Qq", guest.driver.read_mem(guest.domid, last_mapped + 4096 - 64, 16))[1] == 0x00040011
    assert guest(NR.multicall, WILD, 1) == guest(NR.multicall, XEN, 1) == -EFAULT


def test_every_cold_row_has_its_handler():
    """A row that says PY and has no function would end the lane when a guest calls it."""
    rows = (pathlib.Path(__file__).parents[2] / "csrc/include/xen/hypercalls.def").read_text()
    cold = re.findall(r"^HYPERCALL\((\d+), \w+, \d, PY,", rows, re.M)
    assert len(cold) > 10 and all(callable(find(int(nr))) for nr in cold)


# ---- cold hypercalls -------------------------------------------------------------------------------------------------

def test_console_io(guest, dom0):
    """Text of any length arrives, unreadable text is -EFAULT, reading is dom0's."""
    said = []
    guest.driver.console_text = lambda domid, data: said.append(data)
    assert guest(NR.console_io, 0, 5, guest.put(b"hello")) == 0
    assert guest(NR.console_io, 0, 4096 * 3, guest.page) == 0
    assert said[0] == b"hello" and sum(map(len, said[1:])) == 4096 * 3
    assert guest(NR.console_io, 0, 5, WILD) == guest(NR.console_io, 0, 5, XEN) == -EFAULT
    assert guest(NR.console_io, 1, 5, guest.page) == -EPERM
    assert dom0(NR.console_io, 1, 5, dom0.page) == 0
    assert guest(NR.console_io, 2, 5, guest.page) == -ENOSYS


def test_physdev_op(guest):
    """I/O privilege is set, everything about devices is refused."""
    assert guest(NR.physdev_op, 6, guest.put(struct.pack("<I", 3))) == 0
    assert guest(NR.physdev_op, 6, guest.put(struct.pack("<I", 4))) == -EINVAL
    assert guest(NR.physdev_op, 6, WILD) == -EFAULT
    assert guest(NR.physdev_op, 7, guest.put(struct.pack("<QI", 0, 65536))) == 0
    assert guest(NR.physdev_op, 7, guest.put(struct.pack("<QI", 0, 65537))) == -EINVAL
    assert guest(NR.physdev_op, 12, guest.put(struct.pack("<I", 1))) == -EINVAL
    assert guest(NR.physdev_op, 13, guest.page) == -EPERM
    assert guest(NR.physdev_op, 23, guest.page) == -ENOSYS
    assert guest(NR.physdev_op_compat, guest.put(struct.pack("<IxxxxI", 6, 1))) == 0
    assert guest(NR.physdev_op_compat, WILD) == -EFAULT


def test_control_interfaces_are_probed_by_version(guest, dom0):
    """Tools find the version by -EACCES, whoever asks; then guests are refused."""
    for nr, version in ((NR.sysctl, lib.XEN_SYSCTL_INTERFACE_VERSION), (NR.domctl, lib.XEN_DOMCTL_INTERFACE_VERSION)):
        assert version == 0x15
        for caller, refusal in ((guest, -EPERM), (dom0, -ENOSYS)):
            assert caller(nr, caller.put(struct.pack("<II", 1, 0x14))) == -EACCES
            assert caller(nr, caller.put(struct.pack("<II", 1, version))) == refusal
        assert guest(nr, WILD) == -EFAULT


def test_what_guests_are_refused(guest, dom0):
    """Guests select behaviour by these errors."""
    for nr in (NR.platform_op, NR.mca, NR.dm_op, NR.kexec_op, NR.hypfs_op, NR.arch_1):
        assert guest(nr, guest.page) == -EPERM and dom0(nr, dom0.page) == -ENOSYS, nr
    assert guest(NR.xsm_op, guest.page) == -ENOSYS
    assert guest(NR.argo_op) == guest(NR.xenpmu_op) == -EOPNOTSUPP
    assert guest(NR.hvm_op, 1, guest.page) == -EINVAL and guest(NR.hvm_op, 9, guest.page) == -ENOSYS


# ---- what a guest asks about memory (4.10) ---------------------------------------------------------------------------

# covers: memory_op/maximum_ram_page, memory_op/current_reservation, memory_op/maximum_reservation, memory_op/machphys_mapping
# covers: memory_op/maximum_gpfn, memory_op/machphys_mfn_list
def test_memory_questions(guest, dom0):
    """A balloon driver would learn wrong sizes, a kernel a wrong place for the M2P."""
    own, other = struct.pack("<H", 0x7FF0), struct.pack("<H", 0)
    frames = guest.driver.nr_frames()
    assert guest(NR.memory_op, 2, 0) in (frames - 1, frames)
    assert guest(NR.memory_op, 3, guest.put(own)) == 64
    assert guest(NR.memory_op, 4, guest.put(own)) == 128
    for cmd in (3, 4):
        assert guest(NR.memory_op, cmd, guest.put(other)) == -EPERM
        assert guest(NR.memory_op, cmd, guest.put(struct.pack("<H", 77))) == -3
        assert guest(NR.memory_op, cmd, WILD) == -EFAULT
        assert dom0(NR.memory_op, cmd, dom0.put(struct.pack("<H", guest.domid))) == (64 if cmd == 3 else 128)
    assert guest(NR.memory_op, 12, guest.page) == 0
    start, end, max_mfn = struct.unpack("<QQQ", guest.get(24))
    assert (start, max_mfn) == (XEN, (end - start) // 8 - 1)
    assert guest(NR.memory_op, 12, WILD) == -EFAULT
    assert guest(NR.memory_op, 5, guest.put(struct.pack("<IxxxxQI", 4, guest.page + 64, 0))) == 0
    assert guest(NR.memory_op, 14, guest.put(own)) >= -1
    assert guest(NR.memory_op, 63, guest.page) == -ENOSYS
