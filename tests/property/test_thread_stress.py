"""vCPUs of the real clock on real threads, several of them at once in the same hypervisor objects.

Programs come from a seed; the interleavings are the machine's, so a seed repeats the programs and not the run. What must hold
at the end, whatever happened between: every program came to its end (no wake-up was lost, nobody waits for ever), the frame
table agrees with what page tables and vCPUs hold, no TLB can write where it may not, and after the deaths frames, hypervisor
memory, domains and timers are what they were.

    XENLIKE_STRESS=50 XENLIKE_STRESS_SEED=1 pytest tests/property/test_thread_stress.py     # fifty seeds, from 1 on
"""

from __future__ import annotations

import os
import pathlib
import random
import struct
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "unit"))

import script_guests as s
from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW
from xenlike.engine import XenError, check, ffi, lib

FIRST_SEED = int(os.environ.get("XENLIKE_STRESS_SEED", "1"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("XENLIKE_STRESS", "1")))
SELF = 0x7FF0
MMU_UPDATE, MEMORY_OP, UPDATE_VA, GRANT_OP, MMUEXT = 1, 12, 14, 20, 26
BIND_INTERDOMAIN, BIND_VIRQ, CLOSE, SEND, STATUS, ALLOC_UNBOUND, BIND_IPI, BIND_VCPU, UNMASK, RESET = 0, 1, 3, 4, 5, 6, 7, 8, 9, 10
MAP, UNMAP, SETUP, COPY = 0, 1, 2, 5
STEPS = 100_000                             # of a program
ENTRY = PRESENT | ACCESSED | DIRTY
ARGS = 12                                   # pfns 12 to 19 hold what the programs' hypercalls point at
TABLES = (20, 21)                           # frames made up as L1 tables
PLAY = range(22, 32)                        # frames that page tables and grants are played with


class Host(s.ScriptHost):
    """A host with three threads."""

    def __init__(self) -> None:
        super().__init__(virtual=False, pcpus=3, memory=32 << 20)

    def everything(self) -> tuple[int, ...]:
        out = ffi.new("struct xl_usage *")
        lib.xl_usage(self.ptr, out)
        return out.frames_free, out.arena_in_use, out.domains, out.timers

    def ends(self, guests: list[s.ScriptGuest], meanwhile=lambda: None) -> None:
        """Runs until every guest has powered off, with `meanwhile` on the lane again and again; then all accounts must agree."""
        for guest in guests:
            guest.unpause()
        ids = {guest.id for guest in guests}

        def done() -> bool:
            meanwhile()
            return {domid for domid, _ in self.shutdowns} >= ids

        self.run(done)
        for guest in guests:
            guest.pause()
            assert ffi.string(guest.info().crash_reason) == b""
        self.agree()

    def agree(self) -> None:
        assert lib.xl_check_tlbs(self.ptr) == 0, "a TLB can write to a frame that is not typed writable"
        assert lib.xl_check_frames(self.ptr, 0) == 0, "references disagree"


@pytest.fixture
def host():
    with Host() as host:
        before = host.everything()
        yield host
        while lib.xl_run(host.ptr, host._exits, 16) and host._exits[0].kind != lib.EXIT_IDLE:
            pass
        assert host.everything() == before, "frames, hypervisor memory, domains or timers leaked"


class Arguments:
    """Puts structures into a guest's argument pages."""

    def __init__(self, guest: s.ScriptGuest) -> None:
        self.guest, self.at = guest, guest.va(ARGS)

    def put(self, data: bytes) -> int:
        at, self.at = self.at, self.at + (len(data) + 7 & ~7)
        assert self.at <= self.guest.va(TABLES[0])
        self.guest.write(at, data)
        return at

    def struct(self, name: str, **fields: object) -> int:
        value = ffi.new(f"struct {name} *")
        for field, number in fields.items():
            *outer, last = field.split("__")
            at = value
            for part in outer:
                at = getattr(at, part)
            setattr(at, last, number)
        return self.put(bytes(ffi.buffer(value)))


def looped(body: list, times: int) -> list:
    """body, `times` over, which has no jumps of its own. Register 14 counts."""
    return [s.setreg(times, r=14), *body, s.loop(1, r=14)]


def shuffled(rng: random.Random, steps: list, count: int) -> list:
    """A program of `count` random ones of these, steps or lists of steps, over and over."""
    body = [one for some in rng.choices(steps, k=count) for one in (some if isinstance(some, list) else [some])]
    return looped(body, STEPS // len(body))


# --- events -----------------------------------------------------------------------------------------------------------

def pinger(port: int, send: dict, guest: s.ScriptGuest, kind: str, rng: random.Random, rounds: int, *, first: bool) -> list:
    """Sends and waits, or the other way round: by SCHEDOP_block, or by polls that may time out, until an event was taken."""
    if kind == "block":
        hear = [s.wait(1, r=1)]
    else:
        timeout = [s.now(rng.choice((1, 20, 300)) * s.US, r=2)]
        hear = [s.setreg(0, r=1), *timeout, s.poll(port, s.reg(2), guest.va(4), r=3), s.ack(r=1)]
    body = [send, *hear] if first else [*hear, send]
    program = [s.setreg(rounds, r=14), *body, s.loop(1, r=14)]
    if kind == "poll":                                          # heard nothing: poll again
        at = next(i for i, step in enumerate(program) if step["op"] == lib.SCRIPT_NOW)
        taken = next(i for i, step in enumerate(program) if step["op"] == lib.SCRIPT_ACK)
        program.insert(taken + 1, s.jump_if(at, 0, r=1))
    return program


@pytest.mark.parametrize("seed", SEEDS)
def test_no_wakeup_is_lost(host, seed):
    """Pairs answer each other's events while the lane pauses and unpauses them. A wake-up lost between block or poll and event,
    timeout, or pause leaves a pair waiting: Timeout."""
    rng = random.Random(seed)
    guests = []
    for kind in ("block", "poll", rng.choice(("block", "poll"))):
        one, two = host.script([s.end()]), host.script([s.end()])
        mine, theirs = one.connect(two)
        one.load(pinger(mine, s.send(one.port_at(mine)), one, kind, rng, 5000, first=True))
        two.load(pinger(theirs, s.send(two.port_at(theirs)), two, kind, rng, 5000, first=False))
        guests += [one, two]

    records = ffi.new("struct trace_record[64]")

    def disturb() -> None:
        for guest in rng.sample(guests, 3):
            guest.pause()
        for n in range(lib.xl_trace_read(host.ptr, records, 64)):
            assert records[n].kind < lib.TRACE_NR_KINDS
        for guest in guests:
            while guest.info().state <= lib.DOM_running and guest.vcpus[0].pause_flags & lib.VPF_paused:
                guest.unpause()

    host.ends(guests, disturb)
    for guest in guests:
        guest.destroy()


@pytest.mark.parametrize("seed", SEEDS)
def test_ports_change_under_senders(host, seed):
    """Two domains of two vCPUs open, bind, close, move and send on the same few ports at once. A state change seen half done would
    crash the host, deadlock, or leave ports that belong to nobody."""
    rng = random.Random(seed)
    guests = [host.script([s.end()], [s.end()]) for _ in range(2)]
    for guest, other in (guests, guests[::-1]):
        args = Arguments(guest)

        def op(cmd: int, name: str, **fields: int) -> dict:
            return s.call(s.EVENT_CHANNEL_OP, cmd, args.struct(f"evtchn_{name}", **fields), r=1)

        steps = [op(ALLOC_UNBOUND, "alloc_unbound", dom=SELF, remote_dom=other.id)] * 3
        steps += [op(ALLOC_UNBOUND, "alloc_unbound", dom=SELF, remote_dom=guest.id)]
        steps += [op(RESET, "reset", dom=SELF), op(BIND_IPI, "bind_ipi", vcpu=1), op(BIND_VIRQ, "bind_virq", virq=0, vcpu=1)]
        for port in range(1, 8):
            steps += [op(BIND_INTERDOMAIN, "bind_interdomain", remote_dom=other.id, remote_port=port)] * 2
            steps += [op(BIND_INTERDOMAIN, "bind_interdomain", remote_dom=guest.id, remote_port=port)]
            steps += [op(SEND, "send", port=port)] * 4 + [op(CLOSE, "close", port=port), op(UNMASK, "unmask", port=port),
                                                         op(BIND_VCPU, "bind_vcpu", port=port, vcpu=port & 1),
                                                         op(STATUS, "status", dom=SELF, port=port)]
        steps += [s.ack(r=2), s.now(50 * s.US, r=3), s.call(s.SET_TIMER_OP, s.reg(3), r=1)]
        for vcpu in range(2):
            guest.load(shuffled(rng, steps, 200), vcpu=vcpu)
    host.ends(guests)
    for guest in guests:
        guest.destroy()


# --- page tables ------------------------------------------------------------------------------------------------------

def memory_steps(guest: s.ScriptGuest, args: Arguments, rng: random.Random) -> list:
    """What a kernel does to its page tables, and what it should not, on a few frames and two spare L1 tables."""
    def ext(cmd: int, arg1: int = 0, arg2: int = 0) -> dict:
        return s.call(MMUEXT, args.put(struct.pack("<IIQQ", cmd, 0, arg1, arg2)), 1, 0, SELF, r=1)

    def update(ptr: int, value: int) -> dict:
        return s.call(MMU_UPDATE, args.put(struct.pack("<QQ", ptr, value)), 1, 0, SELF, r=1)

    def extents(cmd: int, mfns: list[int]) -> dict:
        at = args.put(struct.pack(f"<{len(mfns)}Q", *mfns))
        return s.call(MEMORY_OP, cmd, args.put(struct.pack("<QQIIHHI", at, len(mfns), 0, 0, SELF, 0, 0)), r=1)

    l2 = guest.mfns[-1] + 2                                     # the builder's frames come one after the other
    assert host_type(guest, l2) == 2
    steps = []
    for pfn in (*TABLES, *PLAY):
        mfn, va = guest.mfns[pfn], guest.va(pfn)
        steps += [s.call(UPDATE_VA, va, mfn << 12 | ENTRY | rng.choice((0, RW)), flags, r=1) for flags in (0, 2, 5)]
        steps += [s.call(UPDATE_VA, va, rng.choice(guest.mfns[PLAY.start:]) << 12 | ENTRY | RW, 2, r=1), s.store(va + 64, 1, r=1),
                  s.load(va + 64, r=1), s.call(UPDATE_VA, va, 0, 5, r=1)]
    for pfn in TABLES:
        mfn, va = guest.mfns[pfn], guest.va(pfn)
        table = [s.call(UPDATE_VA, va, mfn << 12 | ENTRY, 5, r=1), ext(0, mfn), update(l2 << 12 | 16, mfn << 12 | ENTRY | RW | 4)]
        steps += [*table * 4, ext(4, mfn), update(l2 << 12 | 16, 0), ext(16, mfn), ext(17, guest.mfns[PLAY[0]], mfn), ext(1, mfn)]
        for i in range(6):
            value = rng.choice(guest.mfns[PLAY.start:]) << 12 | ENTRY | rng.choice((0, RW, RW))
            steps += [update(mfn << 12 | 8 * i, value), update(mfn << 12 | 8 * i | 2, value), s.store(va + 8 * i, value, r=1),
                      s.store(BASE + (512 + i) * PAGE, 7, r=1), s.load(BASE + (512 + i) * PAGE + 8, r=1)]
    steps += [ext(6), ext(10), ext(7, BASE), ext(5, guest.l4)]
    some = rng.sample(guest.mfns[PLAY.start:], 3)
    steps += [extents(1, some[:1]), extents(6, [5]), extents(0, [0, 0])]
    return steps


def host_type(guest: s.ScriptGuest, mfn: int) -> int:
    return guest.host.frame(mfn).type


@pytest.mark.parametrize("seed", SEEDS)
def test_page_tables_of_one_domain_from_four_vcpus(host, seed):
    """Four vCPUs map, unmap, pin, link and write the same frames and tables at once. A lost reference, a type taken twice, or a
    TLB entry that outlives its mapping would show in the recount."""
    rng = random.Random(seed)
    guest = host.script(*[[s.end()]] * 4)
    steps = memory_steps(guest, Arguments(guest), rng)
    for vcpu in range(4):
        guest.load(shuffled(rng, steps, 400), vcpu=vcpu)
    host.ends([guest])
    assert lib.xl_check_frames(host.ptr, 1) == 0, "references disagree to the last one"
    guest.destroy()


# --- grants -----------------------------------------------------------------------------------------------------------

def grant_frame(guest: s.ScriptGuest) -> int:
    """Makes the guest's grant table visible at its page 11; the frame."""
    guest.put("struct gnttab_setup_table", dom=SELF, nr_frames=1, frame_list=BASE + 512)
    assert guest.call(GRANT_OP, SETUP, BASE, 1) == 0
    mfn, = struct.unpack("<Q", guest.read(BASE + 512, 8))
    assert guest.call(UPDATE_VA, guest.va(11), mfn << 12 | ENTRY | RW, 5) == 0
    return mfn


def granter_steps(guest: s.ScriptGuest, peer: s.ScriptGuest, rng: random.Random) -> list:
    """Grants and ends grants in its table, and gives granted frames up or makes page tables of them."""
    steps = []
    for ref in range(8, 14):
        for flags in (1, 1, 5, 0):
            word = flags | rng.choice((peer.id, peer.id, guest.id)) << 16 | rng.choice(guest.mfns[TABLES[0]:]) << 32
            steps.append(s.store(guest.va(11) + 8 * ref, word, r=1))
    return steps


def mapper_steps(guest: s.ScriptGuest, granter: s.ScriptGuest, args: Arguments, rng: random.Random) -> list:
    """Maps, touches, copies, unmaps."""
    steps = []
    handle_at, = (field.offset for name, field in ffi.typeof("struct gnttab_map_grant_ref").fields if name == "handle")
    for ref in range(8, 14):
        where, flags = guest.va(rng.choice(PLAY)), rng.choice((2, 2, 6, 3, 1))
        dom = rng.choice((granter.id, granter.id, granter.id, guest.id))
        maps = args.struct("gnttab_map_grant_ref", host_addr=where, flags=flags, ref=ref, dom=dom)
        unmaps = args.struct("gnttab_unmap_grant_ref", host_addr=where)
        touch = [s.store(where + 8 * ref, 1, r=1), s.load(where, r=1)]
        unmap = s.call(GRANT_OP, UNMAP, unmaps, 1, r=1)
        steps += [touch, unmap] + [[s.call(GRANT_OP, MAP, maps, 1, r=1), s.load(maps + handle_at, r=4),
                                    s.store(unmaps + 16, s.reg(4)), *touch * rng.randrange(3), unmap]] * 4
        copy = args.struct("gnttab_copy", source__u__ref=ref, source__domid=granter.id, dest__u__gmfn=guest.mfns[rng.choice(PLAY)],
                           dest__domid=SELF, len=rng.choice((8, 4096)), flags=1)
        back = args.struct("gnttab_copy", source__u__gmfn=guest.mfns[rng.choice(PLAY)], source__domid=SELF, dest__u__ref=ref,
                           dest__domid=granter.id, len=64, flags=2)
        steps += [s.call(GRANT_OP, COPY, at, 1, r=1) for at in (copy, back)]
    for pfn in rng.sample(PLAY, 6):
        guess = args.struct("gnttab_unmap_grant_ref", host_addr=guest.va(pfn), handle=rng.randrange(4))
        steps.append(s.call(GRANT_OP, UNMAP, guess, 1, r=1))
    return steps


@pytest.mark.parametrize("seed", SEEDS)
def test_grants_while_the_granter_frees_and_dies(host, seed):
    """Two vCPUs map, copy and unmap what another domain grants, gives up, turns into page tables, and takes with it when it dies in
    the middle. A pin or reference too few or too many would leave a zombie, or free memory that is mapped."""
    rng = random.Random(seed)
    granter, mapper = host.script([s.end()], [s.end()]), host.script([s.end()], [s.end()])
    grant_frame(granter), grant_frame(mapper)
    own, other = Arguments(granter), Arguments(mapper)
    granter.load(shuffled(rng, granter_steps(granter, mapper, rng), 100))
    granter.load(shuffled(rng, granter_steps(granter, mapper, rng) + memory_steps(granter, own, rng), 300), vcpu=1)
    for vcpu in range(2):
        steps = mapper_steps(mapper, granter, other, rng) + granter_steps(mapper, mapper, rng)
        mapper.load(shuffled(rng, steps, 300), vcpu=vcpu)
    granter.unpause()
    mapper.unpause()
    patience = rng.choice((rng.randrange(30), s.NEVER))         # of the granter: when it dies
    dead = False

    def done() -> bool:
        nonlocal patience, dead
        patience -= 1
        if patience < 0 and not dead:
            granter.destroy()
            dead = True
        return {domid for domid, _ in host.shutdowns} >= {mapper.id} | ({granter.id} if not dead else set())

    host.run(done)
    mapper.pause()
    host.agree()
    if not dead:
        granter.destroy()
    mapper.destroy()


# --- birth and death --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", SEEDS)
def test_domains_come_and_go_while_others_talk_to_them(host, seed):
    """The lane creates and destroys domains. A privileged one runs all the time, sends to their ids, binds to them, allocates
    ports and memory for them, and looks at them. Somebody would be met half made or half dead."""
    rng = random.Random(seed)
    control = host.script([s.end()], [s.end()], privileged=True, domid=0)
    args = Arguments(control)
    ids = range(100, 104)
    steps = []
    for domid in ids:
        def op(cmd: int, name: str, **fields: int) -> dict:
            return s.call(s.EVENT_CHANNEL_OP, cmd, args.struct(f"evtchn_{name}", **fields), r=1)

        steps += [op(ALLOC_UNBOUND, "alloc_unbound", dom=domid, remote_dom=0)] * 4
        for port in range(1, 5):
            steps += [op(BIND_INTERDOMAIN, "bind_interdomain", remote_dom=domid, remote_port=port)] * 3
            steps += [op(SEND, "send", port=port)] * 4 + [op(STATUS, "status", dom=domid, port=port), op(CLOSE, "close", port=port)]
        extent = args.put(struct.pack("<2Q", 40, 41))
        for cmd in (6, 6, 1):
            reservation = struct.pack("<QQIIHHI", extent, 2, 0, 0, domid, 0, 0)
            steps.append(s.call(MEMORY_OP, cmd, args.put(reservation), r=1))
        steps.append(s.call(MEMORY_OP, 3, args.put(struct.pack("<H", domid)), r=1))
        steps.append(s.call(s.SCHED_OP, s.REMOTE_SHUTDOWN, args.put(struct.pack("<HHI", domid, 0, 1)), r=1))
    for vcpu in range(2):
        control.load(looped(rng.choices(steps, k=500), 100), vcpu=vcpu)

    others: dict[int, s.ScriptGuest] = {}

    def turn_over() -> None:
        domid = rng.choice(ids)
        if domid in others:
            others.pop(domid).destroy()
            return
        try:
            guest = host.script(looped([s.compute(2000), s.yield_()], 1000), looped([s.wait(1, r=1)], 5), domid=domid)
        except XenError:                # the id is a zombie's still, or its memory went to the other's populate_physmap
            lib.xl_domain_destroy(host.ptr, domid)
            return
        others[domid] = guest
        guest.unpause()

    control.unpause()

    def done() -> bool:
        for _ in range(20):
            turn_over()
        return any(domid == 0 for domid, _ in host.shutdowns)

    host.run(done)
    for guest in others.values():
        guest.destroy()
    control.pause()
    host.agree()
    control.destroy()


@pytest.mark.parametrize("seed", SEEDS)
def test_timers_stopped_while_they_expire(host, seed):
    """Periodic, single-shot and poll timers and watchdogs are set, stopped and moved between threads while they are due. A timer
    whose memory or function went under it would crash the host; a watchdog that was stopped must not end the domain."""
    rng = random.Random(seed)
    guests = [host.script([s.end()], [s.end()]) for _ in range(3)]
    for guest in guests:
        args = Arguments(guest)
        virq = guest.bind_virq(0)
        guest.bind_virq(0, vcpu=1)
        watchdog = [s.call(s.SCHED_OP, s.WATCHDOG, args.put(struct.pack("<II", id, seconds)), r=1)
                    for id, seconds in ((0, 60), (1, 0), (2, 0), (1, 60), (2, 60))]
        steps = watchdog * 2 + [s.ack(r=2), s.yield_(), s.compute(3000)]
        for vcpu in range(2):
            periodic = args.put(struct.pack("<Q", s.MS))
            steps += [s.call(s.VCPU_OP, 6, vcpu, periodic, r=1), s.call(s.VCPU_OP, 7, vcpu, 0, r=1)]
        for ns in (0, 1, 5, 50):
            steps += [s.now(ns * s.US, r=3), s.call(s.SET_TIMER_OP, s.reg(3), r=1), s.poll(virq, s.reg(3), guest.va(4), r=1)]
        steps += [s.call(s.SET_TIMER_OP, 0, r=1)]
        for vcpu in range(2):
            guest.load(looped([s.now(0, r=3), *rng.choices(steps, k=200)], 30), vcpu=vcpu)

    def disturb() -> None:
        guest = rng.choice(guests)
        if guest.info().state <= lib.DOM_running:
            guest.pause()
            check(lib.xl_domain_unpause(host.ptr, guest.id), "unpause")

    host.ends(guests, disturb)
    assert {reason for _, reason in host.shutdowns} == {0}
    for guest in guests:
        guest.destroy()


# --- block rings ------------------------------------------------------------------------------------------------------

RING, RING_REF, SLOT = 16, 1, 112           # page of the ring, its grant reference, bytes of a request


def block_requests(guest: s.ScriptGuest, port: int, rng: random.Random, *, honest: bool) -> list:
    """A front end that never ends: requests of all kinds one after the other, or a ring that is scribbled over."""
    ring = guest.va(RING)
    program = [s.setreg(0, r=5)]
    if not honest:
        words = [s.store(ring + 8 * rng.randrange(512), rng.choice((0, 1, rng.getrandbits(64))), r=1) for _ in range(100)]
        words += [s.store(ring, rng.choice((1, 5, 31, 32, 33, 2**32 - 1)), r=1) for _ in range(20)]
        rng.shuffle(words)
        return [*program, *words, s.send(guest.port_at(port)), s.jump(1)]
    for _ in range(32):                                         # one round of the ring: slot after slot
        at = ring + 64 + SLOT * len([step for step in program if step["op"] == lib.SCRIPT_ADD])
        segments = rng.choice((1, 2, 6, 11, 12))
        program += [s.store(at, rng.choice((0, 0, 1, 1, 2, 3, 5, 6, 99)) | segments << 8), s.store(at + 8, rng.getrandbits(64)),
                    s.store(at + 16, rng.choice((0, 8, 100, 2**60)))]
        for n in range(min(segments, 11)):
            first, last = rng.choice((0, 0, 3)), rng.choice((7, 7, 8))
            program.append(s.store(at + 24 + 8 * n, rng.randrange(2, 9) | first << 32 | last << 40))
        program += [s.add(1, r=5), s.store(ring, s.reg(5)), s.send(guest.port_at(port))]
        here = len(program)
        program += [s.store(ring + 8 + 4, 1), s.load(ring + 8, r=6), s.call(s.SCHED_OP, s.YIELD, r=1), s.add(-(1 << 32), r=6),
                    s.jump_if(here + 6, s.reg(5), r=6), s.jump(here + 1)]
    return [*program, s.jump(1)]


@pytest.mark.parametrize("seed", SEEDS)
def test_front_ends_die_while_their_disks_work(host, seed):
    """The I/O worker serves rings whose owners scribble over them, take grants back, and die; the lane detaches disks before or
    after. The worker would be seen in memory that is no longer the front end's, or keep some of it."""
    rng = random.Random(seed)
    control = host.script([s.end()], privileged=True, domid=0)
    served = 0
    for life in range(12):
        front = host.script([s.end()], [s.end()])
        theirs, port = control.connect(front)
        for ref in range(RING_REF, 8):
            check(lib.xl_grant_seed(host.ptr, front.id, ref, 0, front.mfns[RING + ref - RING_REF]), "xl_grant_seed")
        front.load(block_requests(front, port, rng, honest=life % 3 != 2))
        if life % 2:
            grant_frame(front)
            word = [s.store(front.va(11) + 8 * ref, flags | front.mfns[RING + ref - RING_REF] << 32, r=1)
                    for ref in range(2, 8) for flags in (0, 1, 1, 5)]
            rng.shuffle(word)
            front.load([*word, s.yield_(), s.jump(0)], vcpu=1)
        disk = check(lib.xl_blk_attach(host.ptr, ffi.new("struct xl_blk_config *", {
            "sectors": 1 << 10, "kind": lib.XL_BLK_RAM, "port": theirs, "front": front.id, "nr_ring_pages": 1,
            "ring_ref": [RING_REF]})), "xl_blk_attach")
        front.unpause()
        patience = rng.randrange(1, 6)

        def done() -> bool:
            nonlocal patience
            patience -= 1
            return patience < 0

        host.run(done)
        stats = ffi.new("struct xl_blk_stats *")
        check(lib.xl_blk_stats(host.ptr, disk, stats), "xl_blk_stats")
        served += stats.requests
        if life % 4 < 2:
            front.destroy()
            check(lib.xl_blk_detach(host.ptr, disk), "xl_blk_detach")
        else:
            check(lib.xl_blk_detach(host.ptr, disk), "xl_blk_detach")
            front.destroy()
        assert control._evtchn(CLOSE, "close", port=theirs).port == theirs
    assert served, "no disk ever answered"
    host.agree()
    control.destroy()
