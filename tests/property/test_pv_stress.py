"""Machine-code kernels that misbehave on several real threads at once, beside domains that must not notice.

A hostile domain has four vCPUs, each of which picks at random what to do next: map and unmap the same few pages, turn frames into
page tables and descriptor tables and back, store to page tables, give memory up and take it again, run code that the others are
writing, bring each other down and up, switch address spaces and modes, have themselves interrupted. A fault only makes it go on
with the next. Meanwhile the lane pauses, stops by the debugger, destroys and replaces those domains, and a victim takes and returns
frames of the same pool. What must hold: frames come zeroed and keep what their owner wrote, the frame table agrees with what
tables and vCPUs hold, no TLB can write where it may not, every vCPU comes to rest, and nothing is left in the end.

    XENLIKE_PV_STRESS=60 XENLIKE_PV_STRESS_SEED=1 pytest tests/property/test_pv_stress.py     # a minute, from seed 1
"""

from __future__ import annotations

import os
import pathlib
import random
import struct
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "unit"))

from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW, CoreGuest
from machine_guests import KERNEL_CS, KERNEL_SS, MachineGuest, MachineHost
from script_guests import ScriptHost, Stalled, Timeout

from xenlike.engine import NR, check, ffi, lib

SECONDS = float(os.environ.get("XENLIKE_PV_STRESS", "3"))
SEED = int(os.environ.get("XENLIKE_PV_STRESS_SEED", "1"))
VCPUS, PAGES = 4, 66
SELF = 0x7FF0
ENTRY = PRESENT | RW | ACCESSED | DIRTY
SHARED, VIEW, CONTEXTS, ARGS, STACKS, PLAY = 16, 17, 18, 26, 30, 34     # pfns; the program ends before SHARED; PLAY: pages that are played with

#: What a vCPU may do next. r12: its number, r13: top of its stack, r14: its page for arguments, r15: its random numbers; all others are
#: free (rbp: its vcpu_info). `some_va`, `some_mfn` leave one of those played with in rax.
OPERATIONS = r"""
map:        some_mfn; mov %rax, %rsi; shl $12, %rsi; rnd; and $0x63, %eax; or %rax, %rsi; rnd; bt $5, %rax; jnc 1f; bts $63, %rsi
1:          some_va; mov %rax, %rdi; rnd; mov $flush_kinds, %edx; and $3, %eax; mov (%rdx, %rax, 8), %rdx; hypercall update_va_mapping
map_rw:     some_mfn; mov %rax, %rsi; shl $12, %rsi; or $0x63, %rsi; some_va; mov %rax, %rdi; xor %edx, %edx; hypercall update_va_mapping
unmap:      some_va; mov %rax, %rdi; xor %esi, %esi; rnd; and $2, %eax; mov %rax, %rdx; hypercall update_va_mapping
write:      some_va; mov %r15, (%rax); mov %r15b, 77(%rax); lock addl $1, 1024(%rax); xchg %rcx, 4088(%rax)
read:       some_va; mov (%rax), %rcx; add 4000(%rax), %rcx
straddle:   some_va; lock cmpxchg %rcx, 4092(%rax); movups %xmm0, 4090(%rax); lock xadd %rcx, 4093(%rax); push 4094(%rax)
copy:       some_va; mov %rax, %rsi; some_va; mov %rax, %rdi; mov $4096, %ecx; cld; rep movsb; mov $600, %ecx; rep stosq
compare:    some_va; mov %rax, %rsi; some_va; mov %rax, %rdi; mov $2000, %ecx; repe cmpsb; mov $600, %ecx; repne scasq
code:       some_va; movq $0xc390, (%rax); movb $0xc3, 4095(%rax); call *%rax
code_else:  some_va; call *%rax
code_edge:  some_va; movw $0x9090, 4094(%rax); add $4094, %rax; call *%rax
patch:      mov %r15b, patched_byte; call patched
reuse:      some_va; mov %rax, %rbp; mov %rax, %rdi; some_mfn; mov %rax, %rsi; shl $12, %rsi; or $0x63, %rsi; bts $63, %rsi; xor %edx, %edx
            hypercall update_va_mapping; mov %r15, 24(%rbp)     # the right to write, and then another page to execute
            mov %rbp, %rdi; some_mfn; mov %rax, %rsi; shl $12, %rsi; or $1, %rsi; xor %edx, %edx; hypercall update_va_mapping
            call *%rbp; mov %r15, 16(%rbp)
table:      some_mfn; mov %rax, %rbx; mov %rax, %rsi; mov $16, %edi; mmuext; mov %rbx, %rdi; shl $12, %rdi; mov %rdi, (%r14)
            movq $0xc390, 8(%r14); mov %r14, %rdi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d; hypercall mmu_update
            mov %rbx, %rsi; xor %edi, %edi; mmuext  # an L1 table whose first, absent, entry is nop; ret
pin:        some_mfn; mov %rax, %rsi; rnd; and $3, %eax; mov %rax, %rdi; mmuext
unpin:      some_mfn; mov %rax, %rsi; mov $4, %edi; mmuext
clear:      some_mfn; mov %rax, %rsi; mov $16, %edi; mmuext; call page_ops
flushes:    rnd; and $3, %eax; mov flush_ops(, %rax, 8), %rdi; some_va; mov %rax, %rsi; movq $-1, 32(%r14); lea 32(%r14), %rdx; mmuext_args
base:       mov l4s, %rsi; rnd; bt $3, %rax; jnc 1f; mov l4s + 8, %rsi
1:          mov $5, %edi; mmuext
user_base:  mov l4s, %rsi; rnd; bt $3, %rax; jnc 1f; mov l4s + 8, %rsi
1:          mov %rsi, 32(%r14); movq $15, 24(%r14); movq $15, (%r14); movq $0, 8(%r14); mov %r14, %rdi; mov $2, %esi; xor %edx, %edx
            mov $0x7ff0, %r10d; hypercall mmuext_op
ptwr:       some_slot; mov %rax, %rbx; some_mfn; shl $12, %rax; or $0x61, %rax; mov %rax, (%rbx)
ptwr_rw:    some_slot; mov %rax, %rbx; some_mfn; shl $12, %rax; or $0x63, %rax; xchg %rax, (%rbx)
ptwr_bits:  some_slot; lock btrq $1, (%rax); lock btcq $6, (%rax); lock andb $0, (%rax); movl $0, 4(%rax)
ptwr_swap:  some_slot; mov %rax, %rbx; mov (%rbx), %rax; mov %rax, %rcx; xor $0x42, %rcx; lock cmpxchg %rcx, (%rbx); mov (%rbx), %eax
            lock cmpxchg %ecx, (%rbx)
update:     some_mfn; shl $12, %rax; mov %rax, %rbx; rnd; and $0xff8, %eax; or %rax, %rbx; mov %rbx, (%r14)
            some_mfn; shl $12, %rax; or $0x61, %rax; mov %rax, 8(%r14); mov %r14, %rdi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d; hypercall mmu_update
give_up:    some_frame; mov (%rbx), %rax; mov %rax, 64(%r14); lea 64(%r14), %rax; reservation; mov $1, %edi; mov %r14, %rsi; hypercall memory_op
            xor %edi, %edi; movq $0, (%r14); lea (%rbx), %rax; reservation; mov %r14, %rsi; hypercall memory_op
exchange:   some_frame; mov %rbx, %rax; reservation; mov $6, %edi; mov %r14, %rsi; hypercall memory_op
gdt:        some_mfn; mov %rax, (%r14); mov %r14, %rdi; mov $512, %esi; hypercall set_gdt
ldt:        some_va; mov %rax, %rsi; mov $512, %edx; mov $13, %edi; mmuext_args; mov $0x7f, %eax; mov %eax, %fs
select:     rnd; and $0xff7, %eax; or $3, %eax; mov %eax, %gs; mov %gs:(%rcx), %rcx
descriptor: some_mfn; mov %rax, %rdi; shl $12, %rdi; rnd; and $0xff8, %eax; or %rax, %rdi; mov $0x00cff3000000ffff, %rsi; hypercall update_descriptor
other_down: test %r12d, %r12d; jz loop; mov %r12, %rsi; mov $2, %edi; hypercall vcpu_op
other_up:   rnd; and $3, %eax; mov %rax, %rsi; mov $1, %edi; hypercall vcpu_op
initialise: rnd; and $3, %eax; mov %rax, %rsi; shl $13, %rax; lea contexts(%rax), %rdx; xor %edi, %edi; hypercall vcpu_op
nmi:        rnd; and $3, %eax; mov %rax, %rsi; mov $11, %edi; xor %edx, %edx; hypercall vcpu_op
runstate:   rnd; and $3, %eax; mov %rax, %rsi; some_va; mov %rax, (%r14); mov %r14, %rdx; mov $5, %edi; hypercall vcpu_op
info:       some_mfn; mov %rax, (%r14); movq $256, 8(%r14); mov %r12, %rsi; mov %r14, %rdx; mov $10, %edi; hypercall vcpu_op
event:      movl $1, (%r14); mov %r14, %rsi; mov $4, %edi; hypercall event_channel_op
unmask:     movb $0, 1(%rbp)
block:      soon; mov %rax, %rdi; hypercall set_timer_op; movb $0, 1(%rbp); mov $1, %edi; xor %esi, %esi; hypercall sched_op
poll:       soon; movq $0, (%r14); movq $0, 8(%r14); mov %rax, 16(%r14); mov $3, %edi; mov %r14, %rsi; hypercall sched_op
yield:      xor %edi, %edi; hypercall sched_op
assist:     rnd; and $1, %eax; mov %rax, %rdi; mov $2, %esi; hypercall vm_assist; mov $0, %edi; mov $2, %esi; hypercall vm_assist
cold:       mov $99, %edi; hypercall physdev_op
user:       to_user user_code, rsp=USER_STACK
user_steps: to_user user_code, rflags=0x300
step:       push $0x340; popf; nop; mov (%rbp), %eax; mov %ss, %ecx; mov %ecx, %ss; push $0x200; popf
watch:      some_va; mov %rax, %rsi; xor %edi, %edi; hypercall set_debugreg
            rnd; and $0x3, %eax; or $0xd0000, %eax; mov %rax, %rsi; mov $7, %edi; hypercall set_debugreg
cr3:        mov %cr3, %rax; mov %rax, %cr3; mov %cr0, %rax; mov %cr2, %rcx; clts; rdtsc; cpuid
fpu:        fldpi; fldz; fdivrp; fnstenv (%r14); fldenv (%r14); fninit; addps %xmm1, %xmm0; divpd %xmm3, %xmm2
m2p:        mov $0xffff800000000000, %rax; rnd; and $0xffff8, %eax; mov $0xffff800000000000, %rcx; mov (%rcx, %rax), %rdx
multi:      movq $17, (%r14); movq $0, 16(%r14); movq $17, 64(%r14); movq $23, 128(%r14); mov %r14, %rdi; mov $2, %esi; hypercall multicall
"""
NAMES = [line.split(":")[0] for line in OPERATIONS.splitlines() if line[:1].isalpha()]

MACROS = r"""
.macro rnd
    mov %r15, %rax; shl $13, %rax; xor %rax, %r15; mov %r15, %rax; shr $7, %rax; xor %rax, %r15; mov %r15, %rax; shl $17, %rax
    xor %rax, %r15; mov %r15, %rax; shr $11, %rax
.endm
.macro soon                 # system time in some microseconds
    rdtsc; shl $32, %rdx; or %rdx, %rax; add $3000, %rax
.endm
.macro some_va
    rnd; and $15, %eax; shl $12, %eax; add $play, %rax
.endm
.macro some_frame           # rbx: its place in the list
    rnd; and $31, %eax; lea frames(, %rax, 8), %rbx
.endm
.macro some_mfn
    some_frame; mov (%rbx), %rax
.endm
.macro some_slot            # of the L1 table, as the kernel may see it
    rnd; and $15, %eax; lea play_slots(, %rax, 8), %rax
.endm
.macro mmuext_args
    mov %rdi, (%r14); mov %rsi, 8(%r14); mov %rdx, 16(%r14); mov %r14, %rdi; mov $1, %esi; xor %edx, %edx; mov $0x7ff0, %r10d; hypercall mmuext_op
.endm
.macro mmuext
    mmuext_args
.endm
.macro reservation          # of one extent, in the list at rax
    mov %rax, (%r14); movq $1, 8(%r14); movq $0, 16(%r14); movq $0x7ff0, 24(%r14)
.endm
"""


def program(rng: random.Random) -> str:
    """The kernel: one entry a vCPU, one set of handlers a vCPU."""
    chosen = rng.choices(NAMES, k=200) + NAMES
    rng.shuffle(chosen)
    text = [MACROS, f".set play, {BASE + PLAY * PAGE}; .set contexts, {BASE + CONTEXTS * PAGE}",
            f".set play_slots, {BASE + VIEW * PAGE + PLAY * 8}"]
    for n in range(VCPUS):
        text.append(f"""
        entry_{n}: mov ${n}, %r12d; mov ${BASE + (STACKS + n + 1) * PAGE}, %r13; mov ${BASE + (ARGS + n) * PAGE}, %r14
            mov ${rng.getrandbits(40) + 1}, %r15
            jmp loop
        upcall_{n}: movb $0, {BASE + SHARED * PAGE + n * 64}; movq $0, {BASE + SHARED * PAGE + n * 64 + 8}
            movq $0, {BASE + SHARED * PAGE + 2048}      # every port
        resume_{n}: mov ${BASE + (STACKS + n + 1) * PAGE}, %rsp
            mov ${n}, %r12d; mov %rsp, %r13; mov ${BASE + (ARGS + n) * PAGE}, %r14; jmp loop
        traps_{n}: .irp v, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,16,17,19,0x80
            trap_entry \\v, 3, resume_{n}
            .endr
            .quad 0, 0""")
    text.append(f"""
    loop: mov %r13, %rsp; mov %r12d, %ebp; shl $6, %ebp; add ${BASE + SHARED * PAGE}, %ebp; incq counters(, %r12, 8); test %r15, %r15; jnz 1f; rdtsc; mov %rax, %r15; or $1, %r15
    1:  rnd; xor %edx, %edx; mov ${len(chosen)}, %ecx; div %rcx; jmp *jumps(, %rdx, 8)
    user_code: mov $play, %eax; mov (%rax), %ecx; mov %rcx, 8(%rax); mov %cs, %eax; int $0x80; syscall
    page_ops: mov %rsi, %rdx; some_mfn; mov %rax, %rsi; mov $17, %edi; mmuext_args; ret
    patched: nop; .byte 0xb0; patched_byte: .byte 0; ret
    """)
    for line in OPERATIONS.splitlines():
        name, colon, body = line.partition(":")
        if line[:1].isalpha() and colon:
            text.append(f"    jmp loop\ndo_{name}: {body}")
        else:
            text.append(line)
    text.append("    jmp loop\n.balign 8\njumps: " + "\n".join(f".quad do_{name}" for name in chosen))
    text.append("""
    flush_kinds: .quad 0, 1, 2, 6       # none, local flush, local invlpg, invlpg everywhere
    flush_ops: .quad 6, 7, 8, 10
    .balign 64
    counters: .fill 4, 8
    l4s: .fill 2, 8
    frames: .fill 32, 8
    """)
    return "\n".join(text)


class Hostile(MachineGuest):
    """A domain that plays such a program."""

    def __init__(self, host: MachineHost, rng: random.Random) -> None:
        super().__init__(host, program(rng), VCPUS, True, PAGES, {"max_evtchn_port": 64})
        table = ffi.new("u32[1]")
        check(lib.xl_domain_populate(host.ptr, self.id, 0, 1, table), "xl_domain_populate")
        second = table[0]               # an L4 like the first
        host.write_frame(second, 0, host.read_frame(self.l4, 0, PAGE))
        self.write(self.labels["l4s"], struct.pack("<2Q", self.l4, second))
        self.write(self.labels["frames"], struct.pack("<32Q", *self.mfns[PLAY:PAGES]))
        for pfn, entry in ((SHARED, self.info().shared_info_mfn << 12 | ENTRY), (VIEW, self.l1 << 12 | PRESENT)):
            check(self.call(NR.update_va_mapping, self.va(pfn), entry, 2), "update_va_mapping")
        check(self.call(NR.vm_assist, 0, 2), "vm_assist")
        for n in range(VCPUS):
            self.put("struct evtchn_bind_virq", virq=0, vcpu=n)
            check(self.call(NR.event_channel_op, 1, BASE), "bind_virq")
            self.write(self.va(CONTEXTS + 2 * n), bytes(ffi.buffer(self.context(n))))
            if n:
                check(self.call(NR.vcpu_op, 0, n, self.va(CONTEXTS + 2 * n)), "initialise")
                check(self.call(NR.vcpu_op, 1, n, 0), "up")
        check(lib.xl_vcpu_set_regs(self.vcpus[0], self.labels["entry_0"], self.va(STACKS + 1), 0), "xl_vcpu_set_regs")
        check(lib.xl_vcpu_set_bases(self.vcpus[0], self.l4, self.l4), "xl_vcpu_set_bases")
        check(self.call(NR.set_trap_table, self.labels["traps_0"]), "set_trap_table")
        check(self.call(NR.set_callbacks, self.labels["upcall_0"], *[self.labels["resume_0"]] * 2), "set_callbacks")

    def context(self, n: int) -> object:
        """What VCPUOP_initialise is given for vCPU n."""
        c = ffi.new("struct vcpu_guest_context *")
        c.user_regs.rip, c.user_regs.rsp, c.kernel_sp = self.labels[f"entry_{n}"], self.va(STACKS + n + 1), self.va(STACKS + n + 1)
        c.user_regs.cs, c.user_regs.ss, c.kernel_ss = KERNEL_CS, KERNEL_SS, KERNEL_SS
        c.user_regs.rflags, c.flags, c.ctrlreg[3], c.ctrlreg[1] = 0x202, lib.VGCF_in_kernel, self.l4 << 12, self.l4 << 12
        for vector in (*range(20), 0x80):
            c.trap_ctxt[vector].flags, c.trap_ctxt[vector].address = 3, self.labels[f"resume_{n}"]
        c.event_callback_eip = self.labels[f"upcall_{n}"]
        c.failsafe_callback_eip = c.syscall_callback_eip = self.labels[f"resume_{n}"]
        return c

    @property
    def over(self) -> bool:
        return self.info().state >= lib.DOM_shutdown

    def operations(self) -> int:
        """What its vCPUs have done so far; the counter's page is not among those played with. A plain read: some may be running."""
        pfn, offset = divmod(self.labels["counters"] - BASE, PAGE)
        return sum(struct.unpack("<4Q", self.host.read_frame(self.mfns[pfn], offset, 32)))


class Host(MachineHost):
    """A lane that takes cold hypercalls of domains that are gone for what they are."""

    def _handle(self, e: object, until: int) -> None:
        if e.kind == lib.EXIT_HYPERCALL:
            vcpu = lib.xl_vcpu(self.ptr, e.domid, e.vcpu)
            if vcpu == ffi.NULL or not vcpu.pause_flags & lib.VPF_lane:
                return
        super()._handle(e, until)

    def sound(self) -> None:
        assert lib.xl_check_tlbs(self.ptr) == 0, "a TLB can write to a frame that is not typed writable"
        assert lib.xl_check_frames(self.ptr, 0) == 0, "references disagree"


class Victim(CoreGuest):
    """Takes frames that others gave up, writes on all of them, and looks whether that stays."""

    def __init__(self, host: MachineHost, stamp: int) -> None:
        super().__init__(host, 1, False, 256, {})
        self.stamp = struct.pack("<Q", stamp) * (PAGE // 8)
        for mfn in self.mfns:
            assert host.read_frame(mfn, 0, PAGE) == bytes(PAGE), "another domain's bytes, or somebody still writes"
            host.write_frame(mfn, 0, self.stamp)

    def look(self) -> None:
        for mfn in self.mfns:
            assert self.host.read_frame(mfn, 0, PAGE) == self.stamp, "somebody else has written to it"


class Lane:
    """What the host's owner does meanwhile."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.host, self.rng = host, rng
        self.guests = [self.start() for _ in range(3)]
        self.victim = Victim(host, 1)
        self.done = self.ended = 0

    def start(self) -> Hostile:
        guest = Hostile(self.host, self.rng)
        guest.unpause()
        return guest

    def turn(self) -> None:
        guest = self.rng.choice(self.guests)
        if guest.over or self.rng.random() < 0.02:
            self.done += guest.operations()
            self.ended += 1
            guest.destroy()             # in the middle of whatever its vCPUs do
            self.guests[self.guests.index(guest)] = self.start()
        else:
            self.rng.choice([self.inspect, self.inspect, self.debug, self.replace_victim, self.wake])(guest)

    def wake(self, guest: Hostile) -> None:
        """A domain that got stuck with all but blocked vCPUs goes on."""
        for vcpu in guest.vcpus:
            lib.xl_vcpu_up(vcpu)

    def inspect(self, guest: Hostile) -> None:
        for one in self.guests:
            check(lib.xl_domain_pause(self.host.ptr, one.id), "xl_domain_pause")
        self.host.sound()
        self.victim.look()
        for one in self.guests:
            one.unpause()

    def debug(self, guest: Hostile) -> None:
        host, where = self.host.ptr, guest.labels[self.rng.choice(["loop", "do_write", "do_read", "patched"])]
        check(lib.xl_debug_attach(host, guest.id), "attach")
        check(lib.xl_debug_break(host, guest.id, 1, self.rng.randrange(4), self.rng.choice([where, guest.va(PLAY)]), 8), "break")
        for _ in range(self.rng.randrange(1, 20)):
            if self.rng.random() < 0.5:
                check(lib.xl_debug_step(guest.vcpus[self.rng.randrange(VCPUS)]), "step")
            else:
                check(lib.xl_debug_continue(host, guest.id), "continue")
            lib.xl_run(host, self.host._exits, 16)
        check(lib.xl_debug_stop(host, guest.id), "stop")
        check(lib.xl_debug_detach(host, guest.id), "detach")

    def replace_victim(self, guest: Hostile) -> None:
        self.victim.look()
        self.victim.destroy()
        self.victim = Victim(self.host, self.rng.getrandbits(64) | 1)

    def end(self) -> None:
        self.inspect(self.guests[0])
        for guest in self.guests:
            self.done += guest.operations()
            guest.destroy()
        self.victim.destroy()


def stress(seed: int, seconds: float) -> None:
    """Plays for so long. Called by test_bt_fuzz.py too, with the other engine."""
    rng = random.Random(seed)
    host = Host.__new__(Host)
    ScriptHost.__init__(host, virtual=False, pcpus=3, memory=32 << 20)
    with host:
        before = host.usage()
        lane = Lane(host, rng)
        end = time.monotonic() + seconds
        last = 0.0

        def turn() -> bool:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.005:
                last = now
                lane.turn()
            return now >= end

        while time.monotonic() < end:           # host.run has a limit of its own
            try:
                host.run(turn)
            except Timeout:
                pass
        lane.end()
        assert lane.done > 1000, "the hostile kernels did not get to do anything"
        while lib.xl_run(host.ptr, host._exits, 16) and host._exits[0].kind != lib.EXIT_IDLE:
            pass
        host.sound()
        assert host.usage() == before, "frames, hypervisor memory or domains leaked"
        print(f"{lane.done} operations, {lane.ended} domains ended on their own or by force")


def test_hostile_kernels_on_threads() -> None:
    """A TLB entry, a code page or a host pointer that outlives what it stood for; a lock taken twice or never given back; a vCPU that
    never comes to rest: see above."""
    stress(SEED, SECONDS)


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_hostile_kernel_repeats(seed: int) -> None:
    """With the virtual clock the same kernel must do the same: what depends on host addresses, on uninitialised memory or on the
    order of a cache would show in the digest of trace and memory."""
    def once() -> tuple[int, int, int]:
        with Host() as host:
            guest = Hostile(host, random.Random(seed))
            guest.unpause()
            try:
                host.run(lambda: guest.over, ns=3_000_000)
            except Stalled:
                pass
            host.sound()
            done = guest.operations()
            guest.destroy()
            assert lib.xl_check_frames(host.ptr, 1) == 0
            return lib.xl_trace_digest(host.ptr, 1), host.now(), done

    first = once()
    assert first[2] > 100, "it did not get to do anything"
    assert once() == first
