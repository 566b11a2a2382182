"""Hostile PV kernels, one attack a test: what machine code could do to the hypervisor's tables, its process or another domain.

Each is the shortest program that does harm where the defence it names is missing.
"""

from __future__ import annotations

import struct

import pytest
from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW
from machine_guests import CODE, KERNEL_CS, KERNEL_SS, RESULT, STACK, MachineGuest, MachineHost

from xenlike.engine import NR, check, ffi, lib

NX = 1 << 63
ENTRY = PRESENT | RW | ACCESSED | DIRTY
SELF = 0x7FF0
INITIALISE, UP = 0, 1


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def sound(host: MachineHost) -> None:
    assert lib.xl_check_tlbs(host.ptr) == 0, "a TLB can write to a frame that is not typed writable"
    assert lib.xl_check_frames(host.ptr, 0) == 0, "references disagree"


def context(g: MachineGuest, rip: int, **fields: int) -> object:
    """A vcpu_guest_context that VCPUOP_initialise takes."""
    c = ffi.new("struct vcpu_guest_context *")
    c.user_regs.rip, c.user_regs.rsp, c.user_regs.cs, c.user_regs.ss = rip, STACK - 0x800, KERNEL_CS, KERNEL_SS
    c.user_regs.rflags, c.flags, c.ctrlreg[3] = 0x202, lib.VGCF_in_kernel, g.l4 << 12
    for name, value in fields.items():
        setattr(c, name, value)
    return c


# --- the soft TLB -------------------------------------------------------------------------------------------------------

def test_write_right_of_the_page_before(host):
    """A page that was written, then remapped to a page table and executed without a flush: if the entry that the fetch fills keeps the
    right to write of the page before it, the guest writes its page tables, and so all of the host's memory."""
    g = host.boot("""
        .set PLAY, FREE + 12 * 4096
        movq $1, PLAY               # the TLB has the right to write
        mov $PLAY, %edi; mov RESULT, %rsi; xor %edx, %edx
        hypercall update_va_mapping
        call PLAY + 31 * 8          # nop; ret
        movq $0x1234560, PLAY + 30 * 8
        exit 0
    """)
    pfn = 20
    check(g.call(NR.update_va_mapping, g.va(pfn), g.mfns[pfn] << 12 | ENTRY | NX, 2), "update_va_mapping")
    for page in (30, 31):
        check(g.call(NR.update_va_mapping, g.va(page), 0, 2), "update_va_mapping")
    g.write(BASE, struct.pack("<QQ", g.l1 << 12 | 31 * 8, 0xc390))     # an absent entry whose bytes are code
    check(g.call(NR.mmu_update, BASE, 1, 0, SELF), "mmu_update")
    g.write(RESULT, struct.pack("<Q", g.l1 << 12 | PRESENT))
    g.run()
    assert host.read_frame(g.l1, 30 * 8, 8) == bytes(8), "the guest wrote to its page table"
    assert "#PF" in g.crash
    sound(host)


def test_code_page_of_4095_flushes_ago(host):
    """TLB generations come round after 4095 flushes. If the page that instructions are fetched from survives that, a guest goes on in
    memory that it has given up and another domain has got."""
    n = 4095
    program = """
        .set CALL, FREE + 100 * 4096
        .set AWAY, FREE + 99 * 4096
        mov $LIST, %edi; mov $COUNT, %esi; mov $NR_multicall, %eax
        jmp AWAY
    """.replace("LIST", str(BASE + 10 * PAGE)).replace("COUNT", str(n + 1))
    g = host.boot(program, pages=120)
    call, away = 108, 107
    for page, code in ((away, b"\xb8\x0d\0\0\0\x0f\x05" + b"\xeb\xfe"), (call, b"\x90" * 7 + b"\x0f\x0b")):
        g.write(g.va(page), code)
    flush = BASE + 9 * PAGE
    g.write(flush, struct.pack("<IIQQ", lib.MMUEXT_TLB_FLUSH_LOCAL, 0, 0, 0))
    entries = struct.pack("<8Q", NR.update_va_mapping, 0, g.va(away), g.mfns[call] << 12 | ENTRY, 0, 0, 0, 0)
    entries += struct.pack("<8Q", NR.mmuext_op, 0, flush, 1, 0, SELF, 0, 0) * n
    g.write(BASE + 10 * PAGE, entries)
    g.unpause()
    host.run(lambda: g.info().state >= lib.DOM_shutdown, ns=20_000_000)
    assert "#UD" in g.crash, "it runs on in the page that was there before"


# --- registers from outside -------------------------------------------------------------------------------------------------

def test_fpu_image_with_an_exception_pending(host):
    """VCPUOP_initialise with an x87 exception pending and unmasked, but the summary bit clear: the host's own FPU would raise it, and
    SIGFPE is the end of the process."""
    g = host.boot("1: pause; jmp 1b; .balign 16; ap: fld1; fld1; exit 5", vcpus=2)
    c = context(g, g.labels["ap"])
    c.flags |= lib.VGCF_i387_valid
    fx = bytearray(512)
    struct.pack_into("<HH", fx, 0, 0x0000, 0x0001)          # invalid operation: unmasked, raised
    struct.pack_into("<II", fx, 24, 0xffffffff, 0)
    ffi.buffer(ffi.addressof(c.fpu_ctxt))[:] = fx
    g.write(BASE, bytes(ffi.buffer(c)))
    check(g.call(NR.vcpu_op, INITIALISE, 1, BASE), "initialise")
    check(g.call(NR.vcpu_op, UP, 1, 0), "up")
    assert "#MF" in g.run().crash


def test_fpu_image_from_the_debugger(host):
    """The same by xl_vcpu_set_state: a crash report or a debugger script with such an image would end the process."""
    g = host.boot("fld1; exit 0")
    state = g.state()
    struct.pack_into("<HHBB", ffi.buffer(state.fx), 0, 0, 1, 0, 0xff)
    check(lib.xl_vcpu_set_state(g.vcpus[0], state), "xl_vcpu_set_state")
    assert "#MF" in g.run().crash
