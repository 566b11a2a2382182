"""vcpu_op of the real core, by the words of the ABI (section 8.2, Xen 4.17): bring-up, run state and vcpu_info areas, NMIs.

Error numbers and offsets are written out here: the test judges the headers too.
"""
# covers: vcpu_op/down, vcpu_op/get_physid, vcpu_op/get_runstate_info, vcpu_op/initialise, vcpu_op/is_up
# covers: vcpu_op/register_runstate_memory_area, vcpu_op/register_vcpu_info, vcpu_op/register_vcpu_time_memory_area
# covers: vcpu_op/send_nmi, vcpu_op/set_periodic_timer, vcpu_op/set_singleshot_timer, vcpu_op/up

from __future__ import annotations

import struct

import pytest

from core_guests import BASE, PAGE
from script_guests import (
    BLOCKED, EVENT_CHANNEL_OP, EVENTS, MS, OFFLINE, RUNNABLE, RUNNING, SCHED_OP, US, VCPU_OP, VM_ASSIST, ScriptHost, add,
    block, call, compute, end, jump, load, loop, now, send, setreg, wait, yield_,
)
from xenlike.engine import ffi, lib

ENOENT, ENXIO, EFAULT, EEXIST, EINVAL, ENOSYS = 2, 6, 14, 17, 22, 38
(INITIALISE, UP, DOWN, IS_UP, GET_RUNSTATE, REGISTER_RUNSTATE, SET_PERIODIC, STOP_PERIODIC, SET_SINGLESHOT, STOP_SINGLESHOT,
 REGISTER_INFO, SEND_NMI, GET_PHYSID, REGISTER_TIME) = range(14)
UNMAPPED = BASE + 500 * PAGE
ARG = EVENTS + PAGE
CONTEXT = BASE + 20 * PAGE
NON_CANONICAL = 0x0000_8000_0000_0000
HYPERVISOR = 0xFFFF_8000_0000_0000
IN_KERNEL = 1 << 2
ALL = 2**64 - 1


@pytest.fixture
def host():
    with ScriptHost() as h:
        yield h


def op(guest, command, vcpuid=0, arg=0, *, by=0):
    return guest.call(VCPU_OP, command, vcpuid, arg, vcpu=by)


# ---- which vCPU -------------------------------------------------------------------------------------------------------


def test_vcpus_that_do_not_exist(host):
    """Debian's Linux asks is_up for 8192 vCPUs and counts what answers: -ENOENT beyond the last one, before anything else is
    looked at."""
    guest = host.script([end()], [end()], up=1)
    assert [op(guest, IS_UP, n) for n in range(4)] == [1, 0, -ENOENT, -ENOENT]
    assert op(guest, IS_UP, 8191) == op(guest, IS_UP, 2**32 - 1) == -ENOENT
    assert op(guest, 99, 2) == op(guest, INITIALISE, 2, UNMAPPED) == -ENOENT


def test_other_commands(host):
    """Section 8.2: 14 and 15 came after 4.17; who probes must be told so."""
    guest = host.script([end()])
    for command in (14, 15, 16, 99, 2**31):
        assert op(guest, command) == -ENOSYS, command
    assert op(guest, GET_PHYSID, 0, BASE) == -EINVAL
    for command in (GET_RUNSTATE, REGISTER_RUNSTATE, SET_PERIODIC, SET_SINGLESHOT, REGISTER_INFO, REGISTER_TIME):
        assert op(guest, command, 0, UNMAPPED) == -EFAULT, command


# ---- initialise -------------------------------------------------------------------------------------------------------


def context(guest, change=lambda c: None, *, at=CONTEXT):
    """A context that is right, then changed, in guest memory."""
    c = ffi.new("struct vcpu_guest_context *")
    c.flags = IN_KERNEL
    c.user_regs.rip, c.user_regs.rsp, c.user_regs.rflags = 0x1000, 0x8000, 0x200
    c.user_regs.cs, c.user_regs.ss = 0xE033, 0xE02B
    c.kernel_ss, c.kernel_sp = 0xE02B, 0x8000
    c.ctrlreg[3] = guest.l4 << 12
    change(c)
    guest.write(at, bytes(ffi.buffer(c)))


def setter(path, value):
    """A change of one field: "user_regs.rip", "gdt_frames[0]", "trap_ctxt[255].address"."""
    def change(c):
        exec(f"c.{path} = value", {"c": c, "value": value})
    return change


def both(*changes):
    return lambda c: [change(c) for change in changes]


BAD_CONTEXTS = {
    **{path: setter(path, NON_CANONICAL) for path in (
        "user_regs.rip", "user_regs.rsp", "kernel_sp", "event_callback_eip", "failsafe_callback_eip", "syscall_callback_eip",
        "fs_base", "gs_base_kernel", "gs_base_user", "trap_ctxt[0].address", "trap_ctxt[255].address", "ldt_base")},
    "LDT not page aligned": both(setter("ldt_base", 0x1008), setter("ldt_ents", 1)),
    "LDT in the hypervisor": both(setter("ldt_base", HYPERVISOR), setter("ldt_ents", 1)),
    "LDT too long": setter("ldt_ents", 8193),
    "GDT too long": setter("gdt_ents", 14 * 512 + 1),
    "GDT of a foreign frame": both(setter("gdt_ents", 1), setter("gdt_frames[0]", 1 << 40)),
    "breakpoint in the hypervisor": setter("debugreg[0]", HYPERVISOR),
    "user mode without a user page table": setter("flags", 0),
    "no page table": setter("ctrlreg[3]", 0),
    "page table beyond memory": setter("ctrlreg[3]", 1 << 50),
    "user page table beyond memory": setter("ctrlreg[1]", 1 << 50),
    "user page table of frame 0": setter("ctrlreg[1]", 1),
}


@pytest.mark.parametrize("name", BAD_CONTEXTS)
def test_initialise_refuses(host, name):
    """Each of these, loaded, would fault in the hypervisor or hand the guest a page table that nobody checked. Refused, it
    leaves no reference behind, and a right context still works."""
    guest = host.script([end()], [end()], up=1)
    counts = [host.frame(m).count for m in (guest.l4, guest.mfns[0])]
    context(guest, BAD_CONTEXTS[name])
    assert op(guest, INITIALISE, 1, CONTEXT) == -EINVAL
    assert op(guest, UP, 1) == -EINVAL
    assert [host.frame(m).count for m in (guest.l4, guest.mfns[0])] == counts
    context(guest)
    assert op(guest, INITIALISE, 1, CONTEXT) == 0


def test_initialise_wants_real_page_tables(host):
    """A writable page, or another domain's table, as cr3: the guest would make its own mappings to anywhere."""
    guest, other = host.script([end()], [end()], up=1), host.script([end()])
    for mfn in (guest.mfns[3], other.l4, guest.l1):
        context(guest, setter("ctrlreg[3]", mfn << 12))
        assert op(guest, INITIALISE, 1, CONTEXT) == -EINVAL, mfn
        context(guest, setter("ctrlreg[1]", mfn << 12 | 1))
        assert op(guest, INITIALISE, 1, CONTEXT) == -EINVAL, mfn
    assert host.frame(guest.mfns[3]).type == lib.PGT_writable_page


def test_initialise_wants_descriptors_not_mapped_writable(host):
    """A GDT page that the guest can write could grow ring-0 descriptors after it was checked. With the mapping gone it is
    taken, and held as long as the vCPU lives."""
    guest = host.script([end()], [end()], up=1)
    mfn = guest.mfns[7]
    gdt = both(setter("gdt_ents", 512), setter("gdt_frames[0]", mfn))
    context(guest, gdt)
    assert op(guest, INITIALISE, 1, CONTEXT) == -EINVAL
    assert guest.call(14, guest.va(7), 0, 2) == 0                       # update_va_mapping: unmap
    assert op(guest, INITIALISE, 1, CONTEXT) == 0
    assert host.frame(mfn).type == lib.PGT_seg_desc_page and host.frame(mfn).type_count == 1


def test_initialise_errors_in_order(host):
    """-EFAULT for what cannot be read, -EEXIST for a vCPU that was made already, both before the context is judged."""
    guest = host.script([end()], [end()], up=1)
    assert op(guest, INITIALISE, 1, UNMAPPED) == -EFAULT
    assert op(guest, INITIALISE, 1, BASE + 32 * PAGE - 100) == -EFAULT, "cut off by the end of memory"
    context(guest)
    assert op(guest, INITIALISE, 1, CONTEXT) == 0
    assert op(guest, IS_UP, 1) == 0, "it stays down"
    context(guest, setter("user_regs.rip", NON_CANONICAL))
    assert op(guest, INITIALISE, 1, CONTEXT) == op(guest, INITIALISE, 0, CONTEXT) == -EEXIST


def test_initialise_holds_its_page_tables(host):
    """The tables of a vCPU must not be freed or made writable while it may run on them; destruction gives all back."""
    before = host.usage()
    guest = host.script([end()], [end()], up=1)
    count = host.frame(guest.l4).type_count
    context(guest, setter("ctrlreg[1]", guest.l4 << 12 | 1))
    assert op(guest, INITIALISE, 1, CONTEXT) == 0
    assert host.frame(guest.l4).type_count == count + 2
    guest.destroy()
    assert host.usage() == before


# ---- up and down ------------------------------------------------------------------------------------------------------


def test_bring_up_by_the_guest(host):
    """SMP boot: vCPU 0 initialises the others and brings them up; they run, and meet it by IPI."""
    guest = host.script([end()], *[[end()]] * 3, up=1)
    context(guest)
    home = guest.port_at(guest.bind_ipi(0))
    guest.load([*(call(VCPU_OP, command, n, CONTEXT, r=n) for command in (INITIALISE, UP) for n in (1, 2, 3)),
                wait(1, r=5), wait(1, r=5), wait(1, r=5), end()])
    for n in (1, 2, 3):
        guest.load([compute(n * MS), send(home), end()], vcpu=n)
    assert host.finish(guest) == [0]
    assert guest.regs()[1:4] == [0, 0, 0] and guest.regs()[5] == 3
    assert all(guest.stats(n)["switches"] for n in range(4))


def test_up_twice_and_before_initialise(host):
    """Hotplug scripts call it blindly."""
    guest = host.script([end()], [end()], up=1)
    assert op(guest, UP, 1) == -EINVAL
    context(guest)
    op(guest, INITIALISE, 1, CONTEXT)
    assert [op(guest, UP, 1), op(guest, UP, 1), op(guest, IS_UP, 1)] == [0, 0, 1]


def test_down_and_up_again(host):
    """CPU hotplug: a vCPU that took itself down goes on behind that call when it is brought up again; an event does not do
    that."""
    guest = host.script([end()], [end()])
    ipi = guest.port_at(guest.bind_ipi(1))
    guest.load([compute(MS), send(ipi), compute(MS), now(r=1), call(VCPU_OP, UP, 1), compute(MS), end()])
    guest.load([call(VCPU_OP, DOWN, 1, r=2), now(r=1), end()], vcpu=1)
    assert host.finish(guest) == [0]
    assert guest.regs(1)[2] == 0
    assert guest.regs(1)[1] >= guest.regs(0)[1]


def test_down_of_another(host):
    """A vCPU that spins elsewhere stops."""
    guest = host.script([compute(5 * MS), call(VCPU_OP, DOWN, 1, r=1), now(r=2), compute(50 * MS), end()],
                        [compute(10 * US), add(1, r=3), jump(0)])
    assert host.finish(guest) == [0]
    assert guest.regs()[1] == 0
    assert guest.cpu_ns() < 61 * MS, "vCPU 1 ran on"       # 55 and 5


def test_the_last_one_down_ends_the_domain(host):
    """A domain without a running vCPU could never do anything again, not even say so."""
    guest = host.script([end()], [end()], [end()], up=2)
    assert op(guest, DOWN, 1, by=1) == 0
    assert op(guest, DOWN, 0) == 0
    host.run(lambda: host.shutdowns)
    assert host.shutdowns == [(guest.id, 0)]


def test_all_go_down_at_once():
    """Real threads, two vCPUs whose last act is to go down: whoever is last must notice, every time."""
    with ScriptHost(virtual=False, pcpus=2, memory=64 << 20) as host:
        for _ in range(50):
            guest = host.script([compute(20 * US), end()], [compute(20 * US), end()])
            host.shutdowns.clear()
            assert host.finish(guest) == [0]
            guest.destroy()


# ---- run state --------------------------------------------------------------------------------------------------------


def read_area(guest, at):
    state, entry, *times = struct.unpack("<ixxxx5Q", guest.read(at, 48))
    return state, entry, times


def test_the_runstate_area_is_kept_current(host):
    """Linux's steal time comes from here: after each switch the area says when the vCPU began to run and how long it waited."""
    area = ARG + 512
    guest = host.script([setreg(20, r=1), compute(100 * US), yield_(), loop(1, r=1), now(r=2), block(), end()])
    hog = host.script([compute(3 * MS), jump(0)])
    guest.write(ARG, struct.pack("<Q", area))
    assert op(guest, REGISTER_RUNSTATE, 0, ARG) == 0
    assert read_area(guest, area)[0] == OFFLINE, "written at once"
    guest.unpause()
    hog.unpause()
    host.run(lambda: guest.runstate()[0] == BLOCKED)
    state, entry, times = read_area(guest, area)
    exact = guest.runstate()
    assert state == BLOCKED and exact[1] - entry <= 1 * US
    assert times[RUNNING] == pytest.approx(exact[2][RUNNING], abs=US) and times[RUNNABLE] == exact[2][RUNNABLE] > 0
    guest.write(ARG, struct.pack("<Q", 0))
    assert op(guest, REGISTER_RUNSTATE, 0, ARG) == 0                    # no more
    guest.write(area, bytes(48))
    host.run(ns=5 * MS)
    assert guest.read(area, 48) == bytes(48)


def test_the_runstate_area_while_running(host):
    """The running vCPU reads its own area: it must say "running", without the update bit, whether or not the guest asked for
    that bit."""
    area = ARG + 512
    for assist in (False, True):
        guest = host.script([end()])
        guest.write(ARG, struct.pack("<Q", area))
        if assist:
            assert guest.call(VM_ASSIST, 0, 5) == 0
        op(guest, REGISTER_RUNSTATE, 0, ARG)
        guest.load([compute(MS), yield_(), load(area, r=1), load(area + 8, r=2), now(r=3), end()])
        assert host.finish(guest) == [0]
        state, entry, when = guest.regs()[1:4]
        assert state & 0xFFFFFFFF == RUNNING
        assert entry >> 63 == 0 and 0 < entry <= when


def test_a_runstate_area_that_goes_away_is_ignored(host):
    """The guest unmaps the page (or never had one): no crash, no error later; but a bad address is refused at first."""
    guest = host.script([setreg(5, r=1), yield_(), loop(1, r=1), end()])
    guest.write(ARG, struct.pack("<QQQ", UNMAPPED, HYPERVISOR + 8, guest.va(9)))
    assert op(guest, REGISTER_RUNSTATE, 0, ARG) == op(guest, REGISTER_RUNSTATE, 0, ARG + 8) == -EFAULT
    assert op(guest, REGISTER_RUNSTATE, 0, ARG + 16) == 0
    assert guest.call(14, guest.va(9), 0, 2) == 0
    assert host.finish(guest) == [0]


def test_the_time_area(host):
    """vsyscall pages of Linux read the clock from here."""
    guest = host.script([end()], [end()])
    guest.write(ARG, struct.pack("<QQ", ARG + 512, UNMAPPED))
    for vcpu in range(2):
        guest.write(ARG + 512, bytes(32))
        assert op(guest, REGISTER_TIME, vcpu, ARG) == 0
        assert guest.read(ARG + 512, 32) == bytes(guest.shared[vcpu * 64 + 32:vcpu * 64 + 64])
    assert op(guest, REGISTER_TIME, 0, ARG + 8) == -EFAULT


# ---- vcpu_info --------------------------------------------------------------------------------------------------------


def register(guest, mfn, offset, vcpu=0, by=0):
    guest.put("struct vcpu_register_vcpu_info", mfn=mfn, offset=offset)
    return op(guest, REGISTER_INFO, vcpu, BASE, by=by)


def test_register_vcpu_info_errors(host):
    """Section 8.2, the 4.17 column."""
    guest, other = host.script([end()], [end()], [end()], up=2), host.script([end()])
    mfn = guest.mfns[5]
    for offset in (PAGE - 63, PAGE - 56, PAGE, 2**32 - 8, 1, 4, 12):
        assert register(guest, mfn, offset) == -ENXIO, offset
    for bad in (other.mfns[5], guest.l4, 1 << 40, 2**64 - 1, 2**32 + mfn, 0):
        assert register(guest, bad, 64) == -EINVAL, bad
    assert register(guest, mfn, 64, vcpu=1) == -EINVAL, "another vCPU that is up"
    assert register(guest, mfn, 0, vcpu=2) == 0, "another that is down"
    assert register(guest, mfn, PAGE - 64) == 0
    assert register(guest, mfn, 128) == -EINVAL, "only once"


def test_register_vcpu_info_moves_everything(host):
    """Per-CPU areas of Linux: contents move, nothing that was pending is lost (all is marked, section 5.5), later events go
    to the new place, the old one is dead."""
    guest = host.script([end()])
    at, va = guest.mfns[5], guest.va(5) + 256
    port = guest.bind_ipi(0)
    struct.pack_into("<BBxxxxxxQQ", guest.shared, 0, 0, 1, 0, 0x1234)
    assert register(guest, at, 256) == 0
    pending, mask, selector, cr2 = struct.unpack("<BB6xQQ", guest.read(va, 24))
    assert (pending, mask, selector, cr2) == (1, 1, ALL, 0x1234)
    assert guest.read(va + 32, 32) == bytes(guest.shared[32:64])
    guest.write(va, struct.pack("<BB6xQ", 0, 0, 0))
    guest.drain()
    guest.put("struct evtchn_send", port=port)
    assert guest.call(EVENT_CHANNEL_OP, 4, BASE) == 0
    assert struct.unpack("<BB6xQ", guest.read(va, 16)) == (1, 0, 1)
    assert struct.unpack_from("<BB6xQ", guest.shared, 0) == (0, 1, 0)
    assert guest.call(SCHED_OP, 1, 0) == 0 and not guest.blocked(), "block looks at the new place"


def test_a_registered_frame_stays_writable_typed(host):
    """Made a page table it would be written by the hypervisor: the reference is for good, until the domain dies."""
    before = host.usage()
    guest = host.script([end()])
    mfn = guest.mfns[5]
    assert register(guest, mfn, 0) == 0
    assert guest.call(14, guest.va(5), 0, 2) == 0                       # the guest's own mapping goes
    frame = host.frame(mfn)
    assert (frame.type, frame.type_count) == (lib.PGT_writable_page, 1)
    guest.put("struct mmuext_op", cmd=0)
    guest.write(BASE, struct.pack("<IIQQ", 0, 0, mfn, 0))               # MMUEXT_PIN_L1_TABLE
    assert guest.call(26, BASE, 1, 0, 0x7FF0) < 0
    guest.destroy()
    assert host.usage() == before


def test_vcpus_beyond_32_need_a_registered_area(host):
    """shared_info has room for 32. The others start with a clean, masked area of their own, or not at all; and destruction
    gives back both the area and what stood in for it before."""
    before = host.usage()
    guest = host.script(*[[end()]] * 34, up=1)
    context(guest)
    assert op(guest, INITIALISE, 31, CONTEXT) == 0
    assert op(guest, INITIALISE, 33, CONTEXT) == -EINVAL
    assert register(guest, guest.mfns[5], 64, vcpu=33) == 0
    pending, mask, selector, cr2 = struct.unpack("<BB6xQQ", guest.read(guest.va(5) + 64, 24))
    assert (pending, mask, selector, cr2) == (1, 1, ALL, 0)
    assert guest.read(guest.va(5) + 96, 32) == bytes(guest.shared[32:64]), "time works there, too"
    assert op(guest, INITIALISE, 33, CONTEXT) == 0 and op(guest, UP, 33) == 0
    guest.destroy()
    assert host.usage() == before


def test_a_guest_runs_on_its_registered_area():
    """Events by IPI between two vCPUs on two threads, both with moved areas."""
    rounds = 5000
    with ScriptHost(virtual=False, pcpus=2) as host:
        guest = host.script([end()], [end()])
        to = [guest.port_at(guest.bind_ipi(n)) for n in range(2)]
        for vcpu in range(2):
            assert register(guest, guest.mfns[5], 1024 * vcpu, vcpu=vcpu, by=vcpu) == 0
            guest.write(guest.va(5) + 1024 * vcpu, struct.pack("<BB6xQ", 0, 0, 0))
        guest.load([setreg(rounds, r=1), send(to[1]), wait(1, r=3), loop(1, r=1), end()])
        guest.load([setreg(rounds, r=1), wait(1, r=3), send(to[0]), loop(1, r=1), end()], vcpu=1)
        assert host.finish(guest) == [0]
        assert guest.regs(0)[3] == guest.regs(1)[3] == rounds


# ---- NMI --------------------------------------------------------------------------------------------------------------


def test_send_nmi(host):
    """Linux's backtrace on all CPUs: no argument, wakes whoever sleeps."""
    guest = host.script([block(), now(r=1), end()], [compute(MS), call(VCPU_OP, SEND_NMI, 0, 0, r=1), end()])
    assert op(guest, SEND_NMI, 0, BASE) == -EINVAL
    assert host.finish(guest) == [0]
    assert guest.regs(1)[1] == 0 and guest.regs(0)[1] > 0
