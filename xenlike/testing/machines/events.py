"""Event channels: a random history of several domains, checked against `models.events` after every step.

`EventsRunner` holds the driver, the model and the operations. It is used two ways:

    machine(make_driver)            a Hypothesis state machine, one rule an operation
    run_script(driver, choices)     without Hypothesis, from choices drawn beforehand (`draw_choices`)

The inner loop is kept lean, with views instead of calls where the driver offers them: it is a benchmark too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..models import events as spec
from ..models.abi import DOMID_IO, DOMID_SELF, EFAULT, ENOSYS, PAGE_SIZE, U64
from . import base
from .base import BAD_POINTERS, NOBODY, Guest, Runner
from .driver import Driver, Mismatch
from .layouts import (EVTCHN_END, EVTCHN_MASK, EVTCHN_PENDING, HYPERCALL_EVENT_CHANNEL_OP, HYPERCALL_SCHED_OP,
                      HYPERCALL_VCPU_OP, LAYOUTS, SCHEDOP_BLOCK, SCHEDOP_POLL, VCPUOP_REGISTER_VCPU_INFO,
                      VCPU_INFO_SIZE, EVTCHNOP, event_op)

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

# Operations and how often each is drawn. "recreate" costs most hypervisors a thousand times a send.
OPERATIONS: dict[str, int] = {
    "send": 72, "alloc_unbound": 14, "bind_interdomain": 22, "bind_ipi": 8, "bind_virq": 8, "close": 18,
    "bind_vcpu": 8, "status": 10, "unmask": 16, "mask": 14, "clear": 8, "upcall": 24, "upcall_mask": 6,
    "raise_virq": 8, "poll": 8, "block": 6, "nap": 3, "hostile": 6, "refused": 3, "reset": 1, "register_vcpu_info": 1,
    "recreate": 1,
}
_OPS = {name: event_op(name) for name in EVTCHNOP}
_UPCALL = struct.Struct("<BB6xQ")


class EventGuest(Guest):
    """A domain and its side of the model."""

    __slots__ = ("dom",)

    def __init__(self, driver: Driver, dom: spec.Domain) -> None:
        super().__init__(driver, dom.id)
        self.dom = dom


class EventsRunner(Runner):
    """`domains` domains of `vcpus` vCPUs; the first is privileged and its vCPU 0 never sleeps, so that somebody can
    always act. Everything is compared every `check_all_every` steps, and what a step touched after that step."""

    operations = OPERATIONS

    def __init__(self, driver: Driver, *, domains: int = 3, vcpus: int = 2, check_all_every: int = 2048) -> None:
        super().__init__(driver)
        self.check_all_every = check_all_every
        self.model = spec.EventModel(fixed_ports=driver.abi.fixed_ports)
        self.guests: list[EventGuest] = []
        self.by_id: dict[int, EventGuest] = {}
        self.vcpus = vcpus
        for n in range(domains):
            self._create(privileged=n == 0)
        self.running: list[tuple[EventGuest, spec.VCpu]] = []
        self._schedule()

    # --- the driver's side --------------------------------------------------------------------------------------

    def _create(self, *, privileged: bool) -> None:
        domid = self.driver.create_domain(64, self.vcpus, privileged=privileged)
        dom = self.model.create_domain(domid, self.vcpus, privileged=privileged)
        g = self.by_id[domid] = EventGuest(self.driver, dom)
        self.guests.append(g)

    def _schedule(self) -> None:
        self.running = [(g, v) for g in self.guests for v in g.dom.vcpus if not v.blocked]

    def _call(self, g: EventGuest, v: spec.VCpu, name: str, *values: int, offset: int = 0) -> int:
        cmd, layout = _OPS[name]
        arg = g.write(offset, layout.struct.pack(*values))
        return self.driver.hypercall(g.id, v.id, HYPERCALL_EVENT_CHANNEL_OP, (cmd, arg))

    def _store(self, g: EventGuest, offset: int, data: bytes) -> None:
        """A guest's store into shared_info."""
        if g.shared is not None:
            g.shared[offset:offset + len(data)] = data
        else:
            self.driver.write_shared_info(g.id, offset, data)
        self.model.touched.add(g.id)

    def _store_word(self, g: EventGuest, base: int, bits: int, port: int) -> None:
        word = port >> 6
        self._store(g, base + word * 8, (bits >> word * 64 & U64).to_bytes(8, "little"))

    def _store_upcall(self, g: EventGuest, v: spec.VCpu) -> None:
        data = _UPCALL.pack(v.upcall_pending, v.upcall_mask, v.pending_sel)
        if v.info is None:
            self._store(g, v.id * VCPU_INFO_SIZE, data)
        else:
            self.driver.frame_write(*v.info, data)
            self.model.touched.add(g.id)

    # --- comparing ----------------------------------------------------------------------------------------------

    def _done(self, what: str, got: int, want: int) -> None:
        """Close a step: the results must agree, and everything the model says changed must have changed so."""
        if got != want:
            raise Mismatch(f"step {self.steps}: {what} returned {got}, not {want}")
        self.steps += 1
        model = self.model
        if model.touched:
            for domid in model.touched:
                self._compare(self.by_id[domid], what)
            model.touched.clear()
        if model.woken:
            model.woken.clear()
            self._schedule()
        if self.steps % self.check_all_every == 0:
            self.check_all()

    def _compare(self, g: EventGuest, what: str) -> None:
        dom, shared = g.dom, g.shared
        page = shared if shared is not None else self.driver.shared_info(g.id)
        want = (dom.pending | dom.mask << 4096).to_bytes(1024, "little")
        if bytes(page[EVTCHN_PENDING:EVTCHN_END]) != want:
            raise Mismatch(f"step {self.steps}: after {what}, domain {g.id} {_difference(page, dom)}")
        for v in dom.vcpus:
            at = (page, v.id * VCPU_INFO_SIZE) if v.info is None else (self.driver.frame_read(*v.info, 16), 0)
            got = _UPCALL.unpack_from(*at)
            if got != (v.upcall_pending, v.upcall_mask, v.pending_sel):
                raise Mismatch(f"step {self.steps}: after {what}, domain {g.id} vCPU {v.id} has (pending, mask, "
                               f"selector) {got}, not {(v.upcall_pending, v.upcall_mask, v.pending_sel)}")
            if v.blocked or (g.id, v.id) in self.model.woken:
                self._compare_sleep(g, v, what)

    def _compare_sleep(self, g: EventGuest, v: spec.VCpu, what: str) -> None:
        blocked = self.driver.vcpu_state(g.id, v.id)["blocked"]
        if blocked != v.blocked and not (blocked and self.model.sleep_on(g.id, v.id)):
            raise Mismatch(f"step {self.steps}: after {what}, domain {g.id} vCPU {v.id} "
                           f"{'sleeps' if blocked else 'runs'}, and should not")

    def check_all(self) -> None:
        """Compare every word, every sleeper and every port of every domain."""
        for g in self.guests:
            self._compare(g, "all")
            for v in g.dom.vcpus:
                self._compare_sleep(g, v, "all")
        active = sum(g.dom.active for g in self.guests) + self.before["ports"]
        if self.driver.counts()["ports"] != active:
            raise Mismatch(f"step {self.steps}: {self.driver.counts()['ports']} ports in use, not {active}")
        g, v = self.running[0]
        for other in self.guests:
            for number in range(min(len(other.dom.ports), other.dom.lowest_free + 8)):
                self._status(g, v, other.id, number)

    def kill_all(self) -> None:
        while self.guests:
            self._destroy(self.guests[-1])

    def _destroy(self, g: EventGuest) -> None:
        self.guests.remove(g)
        del self.by_id[g.id]
        g.drop_views()
        self.driver.destroy_domain(g.id)
        self.model.destroy_domain(g.id)

    # --- choosing -----------------------------------------------------------------------------------------------

    def _port(self, g: EventGuest, b: int) -> int:
        """Mostly a port in use, sometimes a free one, rarely nonsense."""
        if b < 248:
            return b % (g.dom.lowest_free + 2)
        return (0, 63, 64, 1023, 1024, 4095, 4096, U64 >> 32)[b - 248]

    # --- operations: three small integers each ------------------------------------------------------------------

    def send(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        self._send(g, v, self._port(g, b))

    def _send(self, g: EventGuest, v: spec.VCpu, port: int) -> None:
        self._done("send", self._call(g, v, "send", port), self.model.send(g.id, port))

    def alloc_unbound(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        if g.dom.lowest_free > 60 and b < 250:
            return self.close(a, b, c)          # keep tables small; bursts may still fill a second bucket
        target = DOMID_SELF if b < 230 else self._domid(b)
        remote = self._domid(c)
        # Every so often the structure lies across two pages.
        offset = PAGE_SIZE - 6 if c == 255 else 0
        rc = self._call(g, v, "alloc_unbound", target, remote, 0, offset=offset)
        want, port = self.model.alloc_unbound(g.id, target, remote)
        if not want:
            self._result(g, "alloc_unbound", (target, remote, port), offset)
        self._done("alloc_unbound", rc, want)

    def bind_interdomain(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        other = self.guests[b % len(self.guests)]
        # Look for an unbound port that waits for us, as xenstore would tell a real guest.
        waiting = [n for n, p in enumerate(other.dom.ports[:64]) if p.state == spec.UNBOUND and p.remote_dom == g.id]
        port = waiting[c % len(waiting)] if waiting and c < 240 else self._port(other, c)
        domid = other.id if c < 250 else self._domid(b)
        rc = self._call(g, v, "bind_interdomain", domid, port, 0)
        want, local = self.model.bind_interdomain(g.id, domid, port)
        if not want:
            self._result(g, "bind_interdomain", (domid, port, local))
        self._done("bind_interdomain", rc, want)

    def bind_ipi(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        vcpu = b % (self.vcpus + 1) if b < 250 else U64 >> 32
        rc = self._call(g, v, "bind_ipi", vcpu, 0)
        want, port = self.model.bind_ipi(g.id, vcpu)
        if not want:
            self._result(g, "bind_ipi", (vcpu, port))
        self._done("bind_ipi", rc, want)

    def bind_virq(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        virq, vcpu = (b % 26, c % (self.vcpus + 1)) if c < 250 else (U64 >> 32, 0)
        # A global VIRQ of another domain is -EBUSY in newer Xen: only domain 0 asks for those.
        if g is not self.guests[0] and virq not in spec.PER_VCPU_VIRQS and virq != 11 and virq < spec.NR_VIRQS:
            virq = 0
        rc = self._call(g, v, "bind_virq", virq, vcpu, 0)
        want, port = self.model.bind_virq(g.id, virq, vcpu)
        if not want:
            self._result(g, "bind_virq", (virq, vcpu, port))
        self._done("bind_virq", rc, want)

    def close(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        port = self._port(g, b)
        self._done("close", self._call(g, v, "close", port), self.model.close(g.id, port))

    def bind_vcpu(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        port, vcpu = self._port(g, b), c % (self.vcpus + 1)
        self._done("bind_vcpu", self._call(g, v, "bind_vcpu", port, vcpu), self.model.bind_vcpu(g.id, port, vcpu))

    def status(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        other = self.guests[c % len(self.guests)]
        domid = DOMID_SELF if c < 128 else other.id if c < 250 else self._domid(c)
        self._status(g, v, domid, self._port(g if c < 128 else other, b))
        self.steps += 1

    def _status(self, g: EventGuest, v: spec.VCpu, domid: int, port: int) -> None:
        rc = self._call(g, v, "status", domid, port, 0, 0, 0, 0)
        want, state, vcpu, union = self.model.status(g.id, domid, port)
        if rc != want:
            raise Mismatch(f"step {self.steps}: status of {domid}:{port} returned {rc}, not {want}")
        if not want:
            self._result(g, "status", (domid, port, state, vcpu, *union))

    def unmask(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        port = self._port(g, b)
        want = self.model.unmask(g.id, port)
        self.model.touched.add(g.id)
        self._done("unmask", self._call(g, v, "unmask", port), want)

    def mask(self, a: int, b: int, c: int) -> None:
        """The guest masks, or one time in four unmasks by a plain store."""
        g, _ = self.running[a % len(self.running)]
        port = self._port(g, b) & 4095
        self.model.guest_mask(g.id, port, c & 3 != 0)
        self._store_word(g, EVTCHN_MASK, g.dom.mask, port)
        self._done("mask", 0, 0)

    def clear(self, a: int, b: int, c: int) -> None:
        g, _ = self.running[a % len(self.running)]
        port = self._port(g, b) & 4095
        self.model.guest_clear(g.id, port)
        self._store_word(g, EVTCHN_PENDING, g.dom.pending, port)
        self._done("clear", 0, 0)

    def upcall(self, a: int, b: int, c: int) -> None:
        """The guest runs its upcall handler."""
        g, v = self.running[a % len(self.running)]
        handled = self.model.guest_upcall(g.id, v.id)
        self._store_upcall(g, v)
        for port in {n >> 6: n for n in handled}.values():
            self._store_word(g, EVTCHN_PENDING, g.dom.pending, port)
        self._done("upcall", 0, 0)

    def upcall_mask(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        self.model.guest_upcall_mask(g.id, v.id, b & 1)
        self._store_upcall(g, v)
        self._done("upcall_mask", 0, 0)

    def raise_virq(self, a: int, b: int, c: int) -> None:
        """From the hypervisor: per-vCPU ones anywhere, global ones where they belong."""
        per_vcpu = b & 1
        g = self.guests[a % len(self.guests)] if per_vcpu else self.guests[0]
        virq, vcpu = (c & 2) >> 1 if per_vcpu else 2 + c % 3, a % self.vcpus if per_vcpu else 0
        self.driver.raise_virq(g.id, vcpu, virq)
        self.model.raise_virq(g.id, vcpu, virq)
        self._done("raise_virq", 0, 0)

    def poll(self, a: int, b: int, c: int) -> None:
        """SCHEDOP_poll on up to three ports, without a timeout: somebody has to wake us."""
        g, v = self._tired(a, b)
        self._poll(g, v, [self._port(g, b + n * 7 & 255) for n in range(c & 3)], c)

    def _poll(self, g: EventGuest, v: spec.VCpu, ports: list[int], c: int = 0) -> None:
        count = len(ports) if c < 252 else 129
        g.write(64, struct.pack(f"<{len(ports)}I", *ports))
        pointer = g.scratch + 64 if c != 251 else BAD_POINTERS[0]
        g.write(0, LAYOUTS["sched_poll"].struct.pack(pointer, count, 0))
        if not self._may_sleep(g, v):
            return
        rc = self.driver.hypercall(g.id, v.id, HYPERCALL_SCHED_OP, (SCHEDOP_POLL, g.scratch))
        if c == 251 and rc == 0 and v.deliverable:
            return                              # with an upcall due, the ports need not be looked at
        want = -EFAULT if c == 251 else self.model.poll(g.id, v.id, ports if c < 252 else [0] * 129)
        self._sleep(g, v, "poll", rc, want)

    def block(self, a: int, b: int, c: int) -> None:
        self._block(*self._tired(a, b))

    def _block(self, g: EventGuest, v: spec.VCpu) -> None:
        if self._may_sleep(g, v):
            rc = self.driver.hypercall(g.id, v.id, HYPERCALL_SCHED_OP, (SCHEDOP_BLOCK, 0))
            self._sleep(g, v, "block", rc, self.model.block(g.id, v.id))

    def nap(self, a: int, b: int, c: int) -> None:
        """A vCPU polls for one port, is woken by another's upcall, and goes to bed: its poll must be forgotten by then,
        or the first port wakes it."""
        g, v = self._tired(a, 1)
        if not self._may_sleep(g, v):
            return
        others = [w for h, w in self.running if h is g and w is not v]
        ipis = [n for n, p in enumerate(g.dom.ports) if p.state == spec.IPI and p.vcpu == v.id]
        if not others or not ipis:
            return self.bind_ipi(a, v.id, 0)
        self.model.guest_upcall_mask(g.id, v.id, 0)
        self._store_upcall(g, v)
        port, waker = self._port(g, b % 248), ipis[c % len(ipis)]
        self._poll(g, v, [port])
        if v.blocked and port != waker:
            self._send(g, others[0], waker)
        if not v.blocked:
            self._block(*self._tired(self.running.index((g, v)), 1))
        self._send(g, others[0], port)

    def _tired(self, a: int, b: int) -> tuple[EventGuest, spec.VCpu]:
        """Who goes to sleep: mostly somebody who has handled all upcalls, or it would wake at once."""
        g, v = self.running[a % len(self.running)]
        if b & 3:
            self.model.guest_upcall(g.id, v.id)
            self._store_upcall(g, v)
            self._store(g, EVTCHN_PENDING, g.dom.pending.to_bytes(512, "little"))
        return g, v

    def _may_sleep(self, g: EventGuest, v: spec.VCpu) -> bool:
        return not (g is self.guests[0] and v.id == 0)

    def _sleep(self, g: EventGuest, v: spec.VCpu, what: str, rc: int, want: int) -> None:
        self.model.touched.add(g.id)
        self._compare_sleep(g, v, what)
        if v.blocked:
            self._schedule()
        self._done(what, rc, want)

    def hostile(self, a: int, b: int, c: int) -> None:
        """Bad pointers with every command, and commands that do not exist: an error, and nothing changes."""
        g, v = self.running[a % len(self.running)]
        cmd = b % len(EVTCHNOP) if b < 200 else (15, 99, 0x7FFFFFFF)[b % 3]
        rc = self.driver.hypercall(g.id, v.id, HYPERCALL_EVENT_CHANNEL_OP, (cmd, BAD_POINTERS[c % len(BAD_POINTERS)]))
        self.model.touched.add(g.id)
        self._done(f"command {cmd} with a bad pointer", rc, -EFAULT if cmd < len(EVTCHNOP) else -ENOSYS)

    def refused(self, a: int, b: int, c: int) -> None:
        """Commands that a domain without FIFO and without devices cannot have."""
        g, v = self.running[a % len(self.running)]
        name = ("init_control", "expand_array", "set_priority", "bind_pirq")[b & 3]
        if name == "init_control":
            rc, want = self._call(g, v, name, 1, 0, 0, 0), self.model.init_control(g.id)
        elif name == "expand_array":
            rc, want = self._call(g, v, name, 1), self.model.expand_array(g.id)
        elif name == "set_priority":
            port = self._port(g, c)
            rc, want = self._call(g, v, name, port, c & 15), self.model.set_priority(g.id, port)
        else:
            pirq = (0, U64 >> 32)[c & 1]
            rc, (want, _) = self._call(g, v, name, pirq, 0, 0), self.model.bind_pirq(g.id, pirq)
        self.model.touched.add(g.id)
        self._done(name, rc, want)

    def reset(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        domid = DOMID_SELF if b < 128 else self._domid(b)
        self._done("reset", self._call(g, v, "reset", domid), self.model.reset(g.id, domid))

    def register_vcpu_info(self, a: int, b: int, c: int) -> None:
        g, v = self.running[a % len(self.running)]
        pfn = self.driver.playground(g.id)[v.id]
        mfn, offset = self.driver.pfn_to_mfn(g.id, pfn), (0, 64, 4032, 4040, 4)[b % 5]
        owned = c < 250
        mfn = mfn if owned else self.driver.nr_frames() + 1
        g.write(0, LAYOUTS["vcpu_register_vcpu_info"].struct.pack(mfn, offset, 0))
        rc = self.driver.hypercall(g.id, v.id, HYPERCALL_VCPU_OP, (VCPUOP_REGISTER_VCPU_INFO, v.id, g.scratch))
        want = self.model.register_vcpu_info(g.id, v.id, v.id, mfn, offset, owned=owned)
        self.model.touched.add(g.id)
        self._done("register_vcpu_info", rc, want)

    def recreate(self, a: int, b: int, c: int) -> None:
        """A domain other than 0 dies and a new one takes its place: peers keep unbound ports to the dead one."""
        if len(self.guests) > 1:
            dead = self.guests[1 + a % (len(self.guests) - 1)]
            self._destroy(dead)
            zero, its_vcpu = self.guests[0], self.guests[0].dom.vcpus[0]
            for g in self.guests:
                self._compare(g, "death")
                for number, port in enumerate(g.dom.ports):
                    if port.state == spec.UNBOUND and port.remote_dom == dead.id:
                        self._status(zero, its_vcpu, g.id, number)
            self.model.touched.clear()
        self._create(privileged=False)
        self.model.woken.clear()
        self._schedule()
        self._done("recreate", 0, 0)

    # --- inside -------------------------------------------------------------------------------------------------

    def _domid(self, b: int) -> int:
        if b < 240:
            return self.guests[b % len(self.guests)].id
        return (DOMID_SELF, DOMID_IO, NOBODY, 0xFFFF)[b & 3]

    def _result(self, g: EventGuest, name: str, values: tuple[int, ...], offset: int = 0) -> None:
        """The structure must hold the results, and the arguments as they were."""
        layout = _OPS[name][1]
        got = layout.struct.unpack(g.read(offset, layout.size))
        if got != values:
            raise Mismatch(f"step {self.steps}: {name} wrote {dict(zip(layout.fields, got))}, "
                           f"not {dict(zip(layout.fields, values))}")


def _difference(page: Sequence[int], dom: spec.Domain) -> str:
    pending = int.from_bytes(bytes(page[EVTCHN_PENDING:EVTCHN_MASK]), "little")
    mask = int.from_bytes(bytes(page[EVTCHN_MASK:EVTCHN_END]), "little")
    ports = [n for n in range(4096) if (pending ^ dom.pending | mask ^ dom.mask) >> n & 1]
    return "; ".join(f"port {n}: pending {pending >> n & 1} for {dom.pending >> n & 1}, "
                     f"masked {mask >> n & 1} for {dom.mask >> n & 1}" for n in ports[:4])


def draw_choices(seed: int, count: int, *, deaths: bool = False) -> list[base.Choice]:
    """`count` steps for `run_script`: (operation, three bytes). `deaths` lets domains die and be replaced."""
    return base.draw(EventsRunner, seed, count, without=() if deaths else ("recreate",))


def run_script(driver: Driver, choices: Iterable[base.Choice], **options: int) -> int:
    """Run choices drawn beforehand and return the number of steps. Raises `Mismatch` at the first disagreement.
    `options` are `EventsRunner`'s."""
    return base.run(EventsRunner(driver, **options), choices)


def machine(make_driver: Callable[[], Driver], **options: int) -> type[RuleBasedStateMachine]:
    """A state machine class; `make_driver` is called once an example. `options` are `EventsRunner`'s."""
    return base.machine(make_driver, lambda driver: EventsRunner(driver, **options), EventsRunner)
