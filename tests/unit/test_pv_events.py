"""When a PV guest of machine code takes its upcalls and NMIs (csrc/pv; xen-abi 3.4, 3.9, 11 no. 3)."""

from __future__ import annotations

import struct

import pytest
from machine_guests import MachineHost, boot
from script_guests import Timeout

from xenlike.engine import ffi

TIMER = """
    movq $0, ARGS                   # VIRQ_TIMER, vCPU 0
    mov $1, %edi; mov $ARGS, %esi
    hypercall event_channel_op
"""
NOW = "rdtsc; shl $32, %rdx; or %rdx, %rax\n"


@pytest.fixture
def host():
    with MachineHost() as h:
        yield h


def test_clearing_the_mask_delivers_nothing(host: MachineHost) -> None:
    """A plain store to the mask byte must not deliver, the next hypercall must, and its result must be in rax already."""
    g = boot(host, """
        callback 0, upcall
        movb $1, SHARED                 # pending, as a sender sets it
        movb $0, SHARED + 1
        nop
        mov $1, %ebx
        xor %edi, %edi
        hypercall xen_version
    after:
        exit 3
    upcall:
        save_frame 0, 7
        save rbx, 7; save rax, 8
        movzbl SHARED + 1, %eax; save rax, 9
        exit
    """).run()
    assert g.reason == 0
    frame = g.results(10)
    assert frame[2:4] == [g.labels["after"], 0xe030], "mask was 0"
    assert frame[7:] == [1, 4 << 16 | 17, 1]
    assert g.stat("upcalls") == 1


def test_event_while_it_computes(host: MachineHost) -> None:
    """A kernel that never makes a hypercall must still get its timer, in the middle of a loop, at the right time."""
    g = boot(host, TIMER + "callback 0, upcall\n" + NOW + """
        mov %rax, %r14
        lea 50000(%rax), %rdi
        hypercall set_timer_op
        movb $0, SHARED + 1
    1:  inc %rbx
        jmp 1b
    upcall:
    """ + NOW + """
        sub %r14, %rax
        save rax, 0
        exit
    """).run()
    assert 50000 <= g.results(1)[0] < 50300


def test_masked_until_iret(host: MachineHost) -> None:
    """While the handler runs nothing nests; what came meanwhile is delivered when iret unmasks, onto the interrupted frame."""
    g = boot(host, """
        callback 0, upcall
        xor %r15d, %r15d
        movb $1, SHARED
        movb $0, SHARED + 1
        xor %edi, %edi
        hypercall xen_version
    after:
        save r15, 0
        exit
    upcall:
        inc %r15d
        mov 16(%rsp), %rax
        save rax, 1
        mov 40(%rsp), %rax
        save rax, 2
        movb $0, SHARED
        cmp $3, %r15d
        je 1f
        movb $1, SHARED                 # another one: waits
        xor %edi, %edi
        hypercall xen_version
    1:  trap_return
    """).run()
    assert g.reason == 0
    count, rip, rsp = g.results(3)
    assert (count, rip) == (3, g.labels["after"])
    assert rsp == g.labels["_start"], "the stack did not grow"


def test_upcall_on_top_of_a_trap(host: MachineHost) -> None:
    """A trap whose handler does not mask is an exit too: a pending upcall comes before the handler's first instruction."""
    g = boot(host, """
        set_traps traps
        callback 0, upcall
        movb $1, SHARED
        movb $0, SHARED + 1
        ud2
    handler:
        exit 3
    upcall:
        mov 16(%rsp), %rax; save rax, 0
        exit
    traps:
        trap_entry 6, 0, handler
        .fill 16, 1, 0
    """).run()
    assert g.reason == 0 and g.results(1) == [g.labels["handler"]]


def test_upcall_without_callback(host: MachineHost) -> None:
    """Nowhere to deliver it: the domain ends, and the reason says why."""
    g = boot(host, "movb $1, SHARED; movb $0, SHARED + 1; xor %edi, %edi; hypercall xen_version; exit").run()
    assert "an event is pending and unmasked, and the guest has set no handler" in g.crash


def test_upcall_from_user_mode(host: MachineHost) -> None:
    """User code that computes is interrupted onto the kernel stack, in kernel mode."""
    g = boot(host, TIMER + "callback 0, upcall\n" + NOW + """
        lea 20000(%rax), %rdi
        hypercall set_timer_op
        to_user user
    user:
        jmp user
    upcall:
        save_frame 0, 7
        xor %edi, %edi
        hypercall xen_version               # only a kernel can
        save rax, 7
        exit
    """).run()
    assert g.reason == 0
    frame = g.results(8)
    assert frame[2:4] == [g.labels["user"], 0xe033] and frame[7] == 4 << 16 | 17


def test_nmi(host: MachineHost) -> None:
    """An NMI comes whatever the upcall mask says, masks upcalls, and does not nest before the next iret."""
    g = boot(host, """
        set_traps traps
        xor %r15d, %r15d
        mov $11, %edi; xor %esi, %esi; xor %edx, %edx           # VCPUOP_send_nmi
        hypercall vcpu_op
    after:
        save r15, 0
        exit
    nmi:
        inc %r15d
        movzbl SHARED + 1, %eax; save rax, 1
        cmp $1, %r15d
        jne 1f
        mov $11, %edi; xor %esi, %esi; xor %edx, %edx
        hypercall vcpu_op
        save r15, 2
    1:  trap_return
    traps:
        trap_entry 2, 0, nmi
        .fill 16, 1, 0
    """).run()
    assert g.reason == 0 and g.results(3) == [2, 1, 1]


def test_second_vcpu(host: MachineHost) -> None:
    """VCPUOP_initialise gives another vCPU its registers, stack and callbacks; it comes up, runs, and sends an event to the first."""
    g = host.boot("""
        callback 0, upcall
        movl $0, ARGS                       # bind_ipi: vcpu 0
        mov $7, %edi; mov $ARGS, %esi
        hypercall event_channel_op
        xor %edi, %edi; mov $1, %esi; mov CONTEXT, %rdx
        hypercall vcpu_op
        save rax, 0
        mov $1, %edi; mov $1, %esi; xor %edx, %edx
        hypercall vcpu_op
        mov $1, %edi; xor %esi, %esi
        hypercall sched_op
        exit 3
    upcall:
        exit
    second:
        save rbx, 1; save rsp, 2
        mov %gs:8, %rax; save rax, 3
        mov %cs, %eax; save rax, 4
        mov ARGS + 4, %eax                  # evtchn_bind_ipi.port
        mov %eax, ARGS + 32
        mov $4, %edi; mov $ARGS + 32, %esi
        hypercall event_channel_op
        save rax, 5
    1:  mov $1, %edi; xor %esi, %esi
        hypercall sched_op
        jmp 1b
    .set CONTEXT, ARGS + 2048
    """, vcpus=2)
    context = g.put("struct vcpu_guest_context", g.va(8), flags=4, user_regs__rip=g.labels["second"],
                    user_regs__rsp=g.va(3), user_regs__rbx=0xb0b,
                    user_regs__cs=0xe033, user_regs__ss=0xe02b, kernel_ss=0xe02b, kernel_sp=g.va(3), gs_base_kernel=g.va(12))
    context.ctrlreg[3] = g.l4 << 12
    g.write(g.va(8), bytes(ffi.buffer(context)))
    g.write(g.va(0) + 2048, struct.pack("<Q", g.va(8)))
    g.write(g.va(12) + 8, struct.pack("<Q", 0x1234))
    assert g.run().reason == 0
    assert g.results(6) == [0, 0xb0b, g.va(3), 0x1234, 0xe033, 0]


def test_second_vcpu_with_bad_selectors(host: MachineHost) -> None:
    """VCPUOP_initialise takes any selectors (XSA-296); if the vCPU comes up it starts in the failsafe callback, or ends the domain."""
    for failsafe, reason in ((True, 0), (False, 3)):
        g = host.boot("""
            xor %edi, %edi; mov $1, %esi; mov $FREE, %edx
            hypercall vcpu_op
            save rax, 0
            mov $1, %edi; mov $1, %esi; xor %edx, %edx
            hypercall vcpu_op
        1:  mov $1, %edi; xor %esi, %esi
            hypercall sched_op
            jmp 1b
        failsafe:
            save_frame 1, 11
            exit
        """, vcpus=2)
        context = g.put("struct vcpu_guest_context", g.va(8), flags=4, user_regs__rip=0x5678, user_regs__rsp=g.va(3),
                        user_regs__cs=0x1234, user_regs__ds=0xe02b, user_regs__es=0x7777,
                        failsafe_callback_eip=g.labels["failsafe"] if failsafe else 0)
        context.ctrlreg[3] = g.l4 << 12
        g.write(g.va(8), bytes(ffi.buffer(context)))
        g.run()
        assert g.info().shutdown_code == reason and g.results(1) == [0]
        if failsafe:
            assert g.results(11, first=1) == [0, 0, 0xe02b, 0, 0, 0, 0x5678, 0x1234 | 1 << 32, 0x2, g.va(3), 3]
        else:
            assert "vCPU 1, kernel mode, rip 0x5678: selectors that cannot be loaded" in g.crash


def test_real_clock() -> None:
    """With the real clock the vCPU runs on a thread of its own; its timer must reach it there in the middle of a loop."""
    with MachineHost(virtual=False, pcpus=1) as host:
        g = boot(host, TIMER + "callback 0, upcall\n" + NOW + """
            lea 2000000(%rax), %rdi
            hypercall set_timer_op
            movb $0, SHARED + 1
        1:  inc %rbx
            jmp 1b
        upcall:
            save rbx, 0
            exit
        """)
        try:
            g.run()
        except Timeout:
            pytest.fail("the timer never interrupted the loop")
        assert g.reason == 0 and g.results(1)[0] > 0
