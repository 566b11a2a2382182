"""Hostile PV kernels, one attack a test: what machine code could do to the hypervisor's tables, its process or another domain.

Each is the shortest program that does harm where the defence it names is missing.
"""

from __future__ import annotations

import struct

import pytest
from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW
from machine_guests import KERNEL_CS, KERNEL_SS, RESULT, STACK, MachineGuest, MachineHost

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


# --- rights that a TLB remembers ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["pin", "ldt", "base"])
def test_write_right_outlives_the_mapping(host, how):
    """A page is written, made read-only without a flush, and becomes a page table or a descriptor table by a hypercall or, in the
    middle of an instruction, by a segment load: the next store must fault although no flush was asked for."""
    become = {
        "pin": "mov $FREE, %edi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d; hypercall mmuext_op; save rax, 2",
        "ldt": "mov $0x7, %eax; mov %eax, %fs; movq $0, RESULT + 16",
        "base": "mov $FREE + 32, %edi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d; hypercall mmuext_op; save rax, 2",
    }[how]
    g = host.boot(f"""
        .set PLAY, FREE + 12 * 4096
        mov PLAY, %rbx
        mov %rbx, PLAY
        mov $PLAY, %edi; mov RESULT, %rsi; xor %edx, %edx
        hypercall update_va_mapping
        {become}
        movq $0x1234560, PLAY + 8
        exit 0
    """)
    pfn, command = 20, lib.MMUEXT_NEW_BASEPTR if how == "base" else lib.MMUEXT_PIN_L1_TABLE
    if how == "ldt":
        g.write(g.va(pfn), struct.pack("<Q", 0x00cff3000000ffff))
        g.write(BASE, struct.pack("<IIQQ", lib.MMUEXT_SET_LDT, 0, g.va(pfn), 512))
        check(g.call(NR.mmuext_op, BASE, 1, 0, SELF), "set_ldt")
    if how == "base":
        g.write(g.va(pfn), host.read_frame(g.l4, 0, PAGE))
    g.write(g.va(8), struct.pack("<IIQQ", lib.MMUEXT_PIN_L1_TABLE, 0, g.mfns[pfn], 0))
    g.write(g.va(8) + 32, struct.pack("<IIQQ", command, 0, g.mfns[pfn], 0))
    g.write(RESULT, struct.pack("<QQQ", g.mfns[pfn] << 12 | PRESENT, 0, 77))
    g.run()
    assert g.results(1, first=2) == [0], "it did not become one"
    assert "#PF, error code 0x3" in g.crash
    assert host.read_frame(g.mfns[pfn], 8, 8) == bytes(8)
    sound(host)


def test_code_page_given_to_another(host):
    """A kernel spins in a page that it has unmapped and given up. When another domain gets the frame, its bytes must not be what the
    kernel executes next."""
    g = host.boot("""
        .set PLAY, FREE + 12 * 4096
        movl $0x9090feeb, PLAY      # jmp .
        mov $list, %edi; mov $2, %esi; mov $NR_multicall, %eax
        movl $0xfeeb050f, PLAY      # syscall; jmp .
        jmp PLAY
    .balign 8
    list:
        .quad NR_update_va_mapping, 0, PLAY, 0, 0, 0, 0, 0
        .quad NR_memory_op, 0, 1, FREE, 0, 0, 0, 0
    """)
    mfn, other = g.mfns[20], host.guest()
    g.write(g.va(9), struct.pack("<Q", mfn))
    g.write(g.va(8), struct.pack("<QQIIHxxxxxx", g.va(9), 1, 0, 0, SELF))
    g.unpause()
    host.run(lambda: g.info().state >= lib.DOM_shutdown, ns=50_000)
    assert g.info().state == lib.DOM_running and not host.frame(mfn).allocated, "it spins in a frame that is free"
    got = ffi.new("u32[1]")
    check(lib.xl_domain_populate(host.ptr, other.id, 36, 1, got), "xl_domain_populate")
    assert got[0] == mfn
    host.write_frame(mfn, 0, b"\x0f\x0b" * (PAGE // 2))
    host.run(lambda: g.info().state >= lib.DOM_shutdown, ns=50_000)
    assert "#PF" in g.crash, "another domain's bytes were executed"
    sound(host)
