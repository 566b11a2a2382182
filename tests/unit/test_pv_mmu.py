"""Page tables, descriptors and shootdowns as machine code meets them (csrc/machine/mmu.c, csrc/hv/mm, csrc/pv; xen-abi 3.12, 4.9b)."""

from __future__ import annotations

import struct

import pytest
from machine_guests import MachineHost

from xenlike.engine import NR, check, ffi, lib

PRESENT, RW, USER, ACCESSED, DIRTY, NX = 1, 2, 4, 32, 64, 1 << 63
ASSIST = "xor %edi, %edi; mov $2, %esi; hypercall vm_assist\n"


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h
        assert lib.xl_check_tlbs(h.ptr) == 0
        assert lib.xl_check_frames(h.ptr, 0) == 0


def see_l1(guest: object, pfn: int = 9) -> int:
    """Maps the guest's L1 read-only at the place of page `pfn`; its address there."""
    assert guest.call(NR.update_va_mapping, guest.va(pfn), guest.l1 << 12 | PRESENT, 2) == 0
    return guest.va(pfn)


def test_writable_page_tables(host: MachineHost) -> None:
    """With the assist a kernel stores to its L1 like Linux does: mov, xchg, lock cmpxchg, lock and, btr; each is checked, adjusted and
    effective, and results and flags are the instruction's."""
    g = host.boot(ASSIST + """
        mov ARGS, %rbx              # a new entry: FREE + 4 pages shows page 20
        mov %rbx, L1 + 8 * 12
        movq $0x42, FREE + 4 * 4096
        xor %eax, %eax
        xchg %rax, L1 + 8 * 12      # ptep_get_and_clear
        save rax, 0
        mov L1 + 8 * 12, %rax; save rax, 1
        xor %eax, %eax
        lock cmpxchg %rbx, L1 + 8 * 12
        setz %al; movzx %al, %eax; save rax, 2
        mov $0x999, %eax
        lock cmpxchg %rbx, L1 + 8 * 12
        save rax, 3
        setz %al; movzx %al, %eax; save rax, 4
        lock andq $~2, L1 + 8 * 12  # ptep_set_wrprotect
        mov L1 + 8 * 12, %rax; save rax, 5
        lock btrq $5, L1 + 8 * 12   # test_and_clear_young
        setc %al; movzx %al, %eax; save rax, 6
        andb $~64, L1 + 8 * 12
        mov L1 + 8 * 12, %rax; save rax, 7
        exit
    .set L1, FREE + 4096
    """)
    see_l1(g)
    entry = g.mfns[20] << 12 | PRESENT | RW | ACCESSED | DIRTY | USER | NX
    g.write(g.va(0), struct.pack("<Q", entry))
    g.run()
    assert g.reason == 0
    G = 1 << 8                      # what Xen adds to a user entry
    r = g.results(8)
    assert r[0] == entry | G
    assert r[1:3] == [0, 1]
    assert r[3:5] == [entry | G, 0]
    assert r[5] == (entry | G) & ~RW
    assert r[6] == 1
    assert r[7] == (entry | G) & ~(RW | ACCESSED | DIRTY)
    assert g.read(g.va(20), 1) == b"\x42"
    assert g.stat("ptwr_writes") == 6, "a comparison that fails is none"


@pytest.mark.parametrize("store", ["mov %rax, L1 + 8 * 12 + 4", "movq %rax, L1 + 8 * 13", "movups %xmm0, L1 + 8 * 12",
                                   "mov %rax, L1 + 4092", "mov %rax, L1 - 4", "lock xadd %rax, L1 + 4092", "xchg %ax, L1 - 1"])
def test_stores_that_ptwr_refuses(host: MachineHost, store: str) -> None:
    """An entry that may not stand there (here: another page table, writable), an unaligned store, one of 16 bytes, one that
    only begins or ends in the table: an ordinary #PF."""
    g = host.boot(ASSIST + """
        set_traps traps
        mov ARGS, %rax
        movq %rax, %xmm0
    it: STORE
        exit 1
    pf: save_frame 0, 4
        exit
    traps:
        trap_entry 14, 0, pf
        .fill 16, 1, 0
    .set L1, FREE + 4096
    """.replace("STORE", store))
    see_l1(g)
    g.write(g.va(0), struct.pack("<Q", g.l4 << 12 | PRESENT | RW))
    assert g.run().reason == 0
    assert g.results(4)[2:] == [3, g.labels["it"]]


def test_page_tables_without_the_assist(host: MachineHost) -> None:
    """Without the assist, from user mode, or on another read-only page the store is #PF, error code present and write."""
    for program, error in (("movq $0, L1 + 8 * 12", 3), (ASSIST + "callback 2, pf; to_user u; u: movq $0, L1 + 8 * 12", 7),
                           (ASSIST + "movq $0, FREE + 2 * 4096", 3)):
        g = host.boot("""
            set_traps traps
            PROGRAM
            exit 1
        pf: save_frame 0, 4
            exit
        traps:
            trap_entry 14, 0, pf
            .fill 16, 1, 0
        .set L1, FREE + 4096
        """.replace("PROGRAM", program))
        see_l1(g)
        assert g.call(NR.update_va_mapping, g.va(10), g.mfns[10] << 12 | PRESENT, 2) == 0
        g.run()
        assert g.reason == 0 and g.results(4)[2] == error


def test_no_execute(host: MachineHost) -> None:
    """NX: a fetch is #PF with the instruction bit, data accesses are not touched; without NX the same page runs."""
    g = host.boot("""
        set_traps traps
        mov FREE, %rax; save rax, 0
        call FREE
        exit 1
    pf: save_frame 1, 4
        exit
    traps:
        trap_entry 14, 0, pf
        .fill 16, 1, 0
    """)
    g.write(g.va(8), b"\xc3")
    assert g.call(NR.update_va_mapping, g.va(8), g.mfns[8] << 12 | PRESENT | RW | NX, 2) == 0
    g.run()
    assert g.reason == 0
    assert g.results(5)[3:] == [0x11, g.va(8)]
    g = host.boot("call FREE\nexit 1")
    g.write(g.va(8), b"\xc3")
    assert g.run().reason == 1


def test_code_that_changes(host: MachineHost) -> None:
    """Self-modifying code, and a page that is replaced under the instruction pointer with INVLPG: what is executed is what stands there."""
    g = host.boot("""
        mov $1, %r12d
    1:  call FREE
        mov %rax, RESULT(, %r12, 8)
        incb FREE + 1
        inc %r12
        cmp $4, %r12
        jne 1b
        mov $FREE, %edi; mov ARGS, %rsi; mov $2, %edx
        hypercall update_va_mapping
        call FREE
        save rax, 0
        exit
    """)
    g.write(g.va(8), bytes.fromhex("b805000000c3"))
    g.write(g.va(9), bytes.fromhex("b877000000c3"))
    g.write(g.va(0), struct.pack("<Q", g.mfns[9] << 12 | 0x63))
    assert g.run().reason == 0
    assert g.results(4) == [0x77, 5, 6, 7]


@pytest.mark.parametrize("strict", [False, True])
def test_m2p_in_user_mode(host: MachineHost, strict: bool) -> None:
    """User mode may read the M2P, as on Xen, unless the guest asked for m2p_strict."""
    g = host.boot("""
        set_traps traps
        callback 2, entry
        PREPARE
        to_user user
    user:
        mov $0xffff800000000000, %rbx
        mov (%rbx), %rbx
        syscall
    entry: save rbx, 0
        exit
    pf: save_frame 0, 4
        exit 1
    traps:
        trap_entry 14, 0, pf
        .fill 16, 1, 0
    """.replace("PREPARE", "xor %edi, %edi; mov $32, %esi; hypercall vm_assist" if strict else "")).run()
    assert g.reason == strict
    assert g.results(3)[2 if strict else 0] == (5 if strict else 2**64 - 1)


# ---- descriptors -------------------------------------------------------------------------------------------------------


def descriptor(base: int, *, kind: int = 0x3, flags: int = 0xc, dpl: int = 3, present: int = 1, s: int = 1) -> int:
    """A segment of 4 GiB; kind: type field, flags: G, D/B, L, AVL."""
    return 0xffff | (base & 0xffffff) << 16 | kind << 40 | s << 44 | dpl << 45 | present << 47 | 0xf << 48 | flags << 52 | base >> 24 << 56


def install_gdt(guest: object, descriptors: list[int], pfn: int = 8) -> None:
    guest.write(guest.va(pfn), struct.pack(f"<{len(descriptors)}Q", *descriptors))
    assert guest.call(NR.update_va_mapping, guest.va(pfn), guest.mfns[pfn] << 12 | PRESENT, 2) == 0
    guest.write(guest.va(0), struct.pack("<Q", guest.mfns[pfn]))
    assert guest.call(NR.set_gdt, guest.va(0), 512) == 0


def test_gdt_segments(host: MachineHost) -> None:
    """%fs from the guest's GDT has the descriptor's base; not-present, system, code-only and far selectors fault with their number."""
    g = host.boot("""
        set_traps traps
        xor %r15d, %r15d
        mov $0x0b, %eax; mov %eax, %fs
        mov %fs:0, %rax; save rax, 0
        mov $0x13, %eax; mov %eax, %fs      # not present: #NP
        mov $0x1b, %eax; mov %eax, %gs      # execute-only code: #GP
        mov $0xe003, %eax; mov %eax, %gs    # Xen's, but nothing there
        mov $0x1007, %eax; mov %eax, %ds    # no LDT (XSA-298)
        mov $0xe02b, %eax; mov %eax, %ds; mov %eax, %es
        mov $0, %eax; mov %eax, %ds
        mov %fs, %eax; save rax, 1
        exit
    fault:
        mov 16(%rsp), %eax
        mov %rax, RESULT + 16(, %r15, 8)
        inc %r15
        addq $2, 24(%rsp)
        pop %rcx; pop %r11; mov %r11, (%rsp); push %rcx
        trap_return
    traps:
        trap_entry 11, 0, fault
        trap_entry 13, 0, fault
        .fill 16, 1, 0
    """)
    install_gdt(g, [0, descriptor(g.va(12)), descriptor(0, present=0), descriptor(0, kind=0x8, flags=0xa)])
    g.write(g.va(12), struct.pack("<Q", 0xabcdef))
    g.run()
    assert g.reason == 0
    assert g.results(6) == [0xabcdef, 0x0b, 0x10, 0x18, 0xe000, 0x1004]


def test_ldt(host: MachineHost) -> None:
    """The LDT's pages are taken when a selector first needs them: a page that is mapped writable is #PF at its address, a good one
    gives its descriptor, and a new LDT or base pointer gives it back."""
    g = host.boot("""
        set_traps traps
        movl $13, ARGS; movq $FREE, ARGS + 8; movl $1024, ARGS + 16
        mov $ARGS, %edi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d
        hypercall mmuext_op
        save rax, 0
        mov $0x0f, %eax; mov %eax, %fs      # entry 1
        mov %fs:0, %rax; save rax, 1
        mov $0x1007, %eax; mov %eax, %gs    # entry 512: on the second page, which is writable
        exit 1
    pf: save_frame 2, 4
        mov %cr2, %rax; save rax, 6
        movl $0, ARGS + 16
        mov $ARGS, %edi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d
        hypercall mmuext_op
        save rax, 7
        exit
    traps:
        trap_entry 14, 0, pf
        .fill 16, 1, 0
    """)
    g.write(g.va(8), struct.pack("<2Q", 0, descriptor(g.va(12))))
    assert g.call(NR.update_va_mapping, g.va(8), g.mfns[8] << 12 | PRESENT, 2) == 0
    g.write(g.va(12), struct.pack("<Q", 0xfeed))
    g.run()
    assert g.reason == 0
    r = g.results(8)
    assert r[:2] == [0, 0xfeed]
    assert r[4] & ~1 == 0 and r[6] == g.va(9) and r[7] == 0
    assert host.frame(g.mfns[8]).type_count == 0, "given back"


def test_far_jump_to_32_bit_code(host: MachineHost) -> None:
    """A kernel may run 32-bit code by its own descriptors, and come back by far return."""
    g = host.boot("""
        mov $0xe02b, %eax; mov %eax, %ds    # 32-bit code cannot use a null one
        push $0x0b; push $narrow
        lretq
        .code32
    narrow:
        mov $0x7fffffff, %eax
        inc %eax
        mov %eax, RESULT
        ljmp $0xe033, $wide
        .code64
    wide:
        mov $0x123456789, %rax
        save rax, 1
        exit
    """)
    install_gdt(g, [0, descriptor(0, kind=0xb)])
    assert g.run().reason == 0
    assert g.results(2) == [0x80000000, 0x123456789]


# ---- several vCPUs -----------------------------------------------------------------------------------------------------

SMP = """
    xor %edi, %edi; mov $1, %esi; mov CONTEXT, %rdx; hypercall vcpu_op
    mov $1, %edi; mov $1, %esi; xor %edx, %edx; hypercall vcpu_op
"""


def second_vcpu(guest: object, label: str) -> None:
    """The context that SMP hands to VCPUOP_initialise."""
    context = guest.put("struct vcpu_guest_context", guest.va(24), flags=4, user_regs__rip=guest.labels[label], user_regs__rsp=guest.va(28),
                        user_regs__cs=0xe033, user_regs__ss=0xe02b, kernel_ss=0xe02b, kernel_sp=guest.va(28))
    context.ctrlreg[3] = guest.l4 << 12
    guest.write(guest.va(24), bytes(ffi.buffer(context)))
    guest.write(guest.va(0) + 2048, struct.pack("<Q", guest.va(24)))


@pytest.mark.parametrize("virtual", [True, False])
def test_flush_reaches_running_code(virtual: bool) -> None:
    """One vCPU only computes and reads a page; the other unmaps it and asks for a flush. The first must fault soon, though it never
    makes a hypercall; with the real clock both run at once, and the flush must not wait for ever."""
    with MachineHost(virtual=virtual, pcpus=2) as host:
        g = host.boot(".set CONTEXT, ARGS + 2048\n" + SMP + """
        1:  cmpq $1000, RESULT + 8          # the other is at work
            pause
            jb 1b
            mov $FREE, %edi; xor %esi, %esi; mov $6, %edx               # INVLPG, all
            hypercall update_va_mapping
            save rax, 2
        1:  mov $1, %edi; xor %esi, %esi; hypercall sched_op
            jmp 1b
        second:
            set_traps traps
        1:  mov FREE, %rax
            incq RESULT + 8
            jmp 1b
        pf: save_frame 3, 4
            exit
        traps:
            trap_entry 14, 0, pf
            .fill 16, 1, 0
        """, vcpus=2)
        second_vcpu(g, "second")
        g.run()
        assert g.reason == 0
        assert g.results(1, first=2) == [0]
        assert g.results(4, first=3)[2] == 0
        assert lib.xl_check_tlbs(host.ptr) == 0


def test_locked_counter_on_two_threads() -> None:
    """lock inc and lock cmpxchg of two vCPUs that really run at once lose no count, also across a page boundary."""
    with MachineHost(virtual=False, pcpus=2) as host:
        loop = """
            mov $20000, %ecx
        1:  lock incq RESULT
            lock incq FREE + 4092           # across two pages
            dec %ecx
            jnz 1b
            lock incl RESULT + 16
        """
        g = host.boot(".set CONTEXT, ARGS + 2048\n" + SMP + loop + """
        2:  cmpl $2, RESULT + 16
            pause
            jne 2b
            mov FREE + 4092, %rax; save rax, 1
            exit
        second:
        """ + loop + "3: mov $1, %edi; xor %esi, %esi; hypercall sched_op; jmp 3b", vcpus=2)
        second_vcpu(g, "second")
        g.run()
        assert g.reason == 0
        assert g.results(2) == [40000, 40000]


def test_destroyed_domains_leave_nothing(host: MachineHost) -> None:
    """Frames, arena memory, or descriptor pages of a guest that ran machine code would stay taken."""
    before = host.usage()
    for _ in range(2):
        g = host.boot("mov $0x0f, %eax; mov %eax, %fs; exit", vcpus=3)
        g.write(g.va(8), struct.pack("<2Q", 0, descriptor(0)))
        assert g.call(NR.update_va_mapping, g.va(8), g.mfns[8] << 12 | PRESENT, 2) == 0
        g.put("struct mmuext_op", cmd=13, arg1__linear_addr=g.va(8), arg2__nr_ents=2)
        assert g.call(NR.mmuext_op, g.va(0), 1, 0, 0x7ff0) == 0
        assert g.run().reason == 0
        assert host.frame(g.mfns[8]).type_count == 1
        assert lib.xl_check_frames(host.ptr, 0) == 0
        g.destroy()
    assert host.usage() == before


def test_same_run_twice() -> None:
    """Two runs of one program on the virtual clock must agree to the last trace record and byte of memory; so must one after a reset."""
    program = """
        set_traps traps
        mov $3, %r12d
    1:  ud2
        mov $5000, %ecx
    2:  imul $77, %rbx, %rbx
        add %rcx, %rbx
        mov %rbx, FREE(, %rcx, 1)
        dec %ecx; jnz 2b
        xor %edi, %edi; hypercall xen_version
        dec %r12d; jnz 1b
        exit
    ud: addq $2, 16(%rsp)
        trap_return
    traps:
        trap_entry 6, 0, ud
        .fill 16, 1, 0
    """
    digests = []
    for _ in range(2):
        with MachineHost() as host:
            g = host.boot(program)
            check(lib.xl_snapshot(host.ptr), "xl_snapshot")
            g.run()
            assert g.reason == 0
            digests.append((lib.xl_trace_digest(host.ptr, 1), host.now()))
            check(lib.xl_reset(host.ptr), "xl_reset")
            g.run()
            digests.append((lib.xl_trace_digest(host.ptr, 1), host.now()))
    assert len(set(digests)) == 1
