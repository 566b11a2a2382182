"""Guests that run scripts: real vCPUs for tests of scheduling and time, with no Python in the way.

A `ScriptHost` is a host with either clock. `host.script(...)` makes a domain of script vCPUs; a program is a list of steps
made by the functions below (`compute(1000)`, `call(SCHED_OP, 0)`, `wait(3)` ...), an operand may be a register (`reg(2)`).
`host.run(...)` is the lane: it drives the host and collects what C hands over.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from core_guests import BASE, PAGE, CoreGuest, CoreHost
from xenlike.engine import check, ffi, lib

NEVER = 2**64 - 1
MS, US = 1_000_000, 1_000
SCHED_OP, VCPU_OP, EVENT_CHANNEL_OP, SET_TIMER_OP, VM_ASSIST, CONSOLE_IO = 29, 24, 32, 15, 21, 18
YIELD, BLOCK, SHUTDOWN, POLL, REMOTE_SHUTDOWN, SHUTDOWN_CODE, WATCHDOG, PIN_OVERRIDE = range(8)
RUNNING, RUNNABLE, BLOCKED, OFFLINE = range(4)
PENDING, MASK = 2048, 2560              # of shared_info
EVENTS = BASE + 8 * PAGE                # argument structures that programs use, out of the way of the test's own


class Register(int):
    """A register as an operand: the step uses what it holds."""


def reg(number: int) -> Register:
    return Register(number)


def step(op: str, *operands: int, r: int = 0) -> dict[str, int]:
    out = {"op": getattr(lib, f"SCRIPT_{op}"), "r": r, "regmask": 0}
    for i, (name, value) in enumerate(zip("abcdef", operands)):
        out["regmask"] |= isinstance(value, Register) << i
        out[name] = int(value) % 2**64
    return out


def _maker(op: str) -> Callable[..., dict[str, int]]:
    return lambda *operands, r=0: step(op, *operands, r=r)


end, compute, call, load, store = map(_maker, ("END", "COMPUTE", "HYPERCALL", "LOAD", "STORE"))
setreg, add, loop, jump_if, jump = map(_maker, ("SET", "ADD", "LOOP", "JUMP_IF", "JUMP"))
yield_, block, poll, ack, wait = map(_maker, ("YIELD", "BLOCK", "POLL", "ACK", "WAIT"))
stamp, mark, trace, now = map(_maker, ("STAMP", "MARK", "TRACE", "NOW"))


def send(at: int) -> dict[str, int]:
    """EVTCHNOP_send with the structure at guest address `at` (ScriptGuest.port_at)."""
    return call(EVENT_CHANNEL_OP, 4, at, r=15)


class Stalled(Exception):
    """Virtual clock: nothing runs and no timer is set."""


class Timeout(Exception):
    """The host did not get there in the time given. Real clock: far more than any machine needs."""


class ScriptHost(CoreHost):
    """A host with the virtual clock, or with the real one and `pcpus` threads. A context manager."""

    def __init__(self, *, virtual: bool = True, pcpus: int = 1, seed: int = 1, memory: int = 16 << 20, wall_ns: int = 0,
                 engine: str | None = None, bt_options: int | None = None) -> None:
        super().__init__(virtual=virtual, pcpus=pcpus, seed=seed, memory=memory, wall_ns=wall_ns, engine=engine, bt_options=bt_options)
        self.virtual = virtual
        self.shutdowns: list[tuple[int, int]] = []      # (domid, reason), in order
        self.cold: list[tuple[int, list[int]]] = []     # (number, arguments) of cold hypercalls, answered with `cold_result`
        self.cold_result = 0
        self.turn: Callable[[int, int], None] | None = None
        self._exits = ffi.new("struct lane_exit[16]")

    def script(self, *programs: list, up: int | None = None, **options: int) -> ScriptGuest:
        """A paused domain with one script vCPU a program. The first `up` of them (None: all) are initialised and up.
        `options`: weight, privileged, domid, max_evtchn_port, backend ..."""
        guest = ScriptGuest(self, len(programs), len(programs) if up is None else up,
                            {"backend": lib.BACKEND_SCRIPT, **options})
        for vcpu, program in enumerate(programs):
            guest.load(program, vcpu=vcpu)
        return guest

    def python(self, vcpus: int = 1, **options: int) -> ScriptGuest:
        """The same with Python vCPUs: `turn(domid, vcpu)` is called whenever one is given the CPU."""
        return ScriptGuest(self, vcpus, vcpus, {"backend": lib.BACKEND_PYTHON, **options})

    def now(self) -> int:
        return lib.xl_now(self.ptr)

    def run(self, done: Callable[[], bool] = lambda: False, *, ns: int = NEVER) -> bool:
        """The lane, until `done()`, or for `ns` (virtual clock), or until nothing can happen any more (Stalled)."""
        until = self.now() + ns if ns != NEVER else NEVER if self.virtual else self.now() + 60_000 * MS
        try:
            return self._run(done, until)
        finally:
            lib.xl_set_deadline(self.ptr, NEVER)

    def _run(self, done: Callable[[], bool], until: int) -> bool:
        while not done():
            if self.now() >= until:
                if not self.virtual:
                    raise Timeout
                return False
            if self.virtual and until != NEVER:
                check(lib.xl_set_deadline(self.ptr, until), "xl_set_deadline")
            for i in range(lib.xl_run(self.ptr, self._exits, 16)):
                if self._exits[i].kind == lib.EXIT_STALLED and not done():
                    raise Stalled
                self._handle(self._exits[i], until)
        return True

    def _handle(self, e: object, until: int) -> None:
        if e.kind == lib.EXIT_IDLE:
            if self.virtual:
                lib.xl_skip_to(self.ptr, min(e.a, until))
            else:
                lib.xl_wait(self.ptr, -1, min(e.a, self.now() + 20 * MS))
        elif e.kind == lib.EXIT_DOMAIN and e.a == lib.DOM_shutdown:
            self.shutdowns.append((e.domid, e.b))
        elif e.kind == lib.EXIT_PYTHON:
            self.turn(e.domid, e.vcpu)
            lib.xl_vcpu_park(lib.xl_vcpu(self.ptr, e.domid, e.vcpu))
        elif e.kind == lib.EXIT_HYPERCALL:
            vcpu = lib.xl_vcpu(self.ptr, e.domid, e.vcpu)
            args = ffi.new("struct xl_cold *")
            lib.xl_cold_args(vcpu, args)
            self.cold.append((args.nr, list(args.args)))
            lib.xl_hypercall_complete(vcpu, self.cold_result)

    def finish(self, *guests: ScriptGuest) -> list[int]:
        """Runs until all of them have shut down; their reasons."""
        for guest in guests:
            guest.unpause()
        ids = [guest.id for guest in guests]
        self.run(lambda: {domid for domid, _ in self.shutdowns} >= set(ids))
        reasons = dict(reversed(self.shutdowns))
        return [reasons[domid] for domid in ids]


class ScriptGuest(CoreGuest):
    """A domain whose vCPUs play programs. Memory as CoreGuest has it."""

    PAGES = 32

    def __init__(self, host: ScriptHost, vcpus: int, up: int, options: dict[str, int]) -> None:
        super().__init__(host, vcpus, False, self.PAGES, options, up=up)
        self.shared = ffi.buffer(lib.xl_shared_info(host.ptr, self.id), PAGE)

    def load(self, program: list[dict[str, int]], *, vcpu: int = 0, samples: int = 0) -> None:
        steps = ffi.new("struct script_step[]", program)
        check(lib.xl_script_load(self.vcpus[vcpu], steps, len(program), samples), "xl_script_load")

    def unpause(self) -> None:
        check(lib.xl_domain_unpause(self.host.ptr, self.id), "xl_domain_unpause")

    def pause(self) -> None:
        check(lib.xl_domain_pause(self.host.ptr, self.id), "xl_domain_pause")

    def regs(self, vcpu: int = 0) -> list[int]:
        """The registers, as signed numbers: hypercall results read as they are."""
        out, faults, steps = ffi.new("int64_t[16]"), ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.xl_script_regs(self.vcpus[vcpu], ffi.cast("uint64_t *", out), faults, steps)
        return list(out)

    def steps_run(self, vcpu: int = 0) -> int:
        out, faults, steps = ffi.new("uint64_t[16]"), ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.xl_script_regs(self.vcpus[vcpu], out, faults, steps)
        return steps[0]

    def samples(self, count: int, vcpu: int = 0) -> list[int]:
        out = ffi.new("uint64_t[]", count)
        check(lib.xl_script_samples(self.vcpus[vcpu], out, count), "xl_script_samples")
        return list(out)

    def stats(self, vcpu: int = 0) -> dict[str, int]:
        out, calls = ffi.new("uint64_t[]", lib.STAT_NR), ffi.new("uint64_t[64]")
        lib.xl_vcpu_stats(self.vcpus[vcpu], out, calls)
        names = {name.removeprefix("STAT_"): getattr(lib, name) for name in dir(lib) if name.startswith("STAT_")}
        return {name: out[n] for name, n in names.items() if name != "NR"}

    def cpu_ns(self) -> int:
        return self.info().cpu_ns

    def runstate(self, vcpu: int = 0) -> tuple[int, int, list[int]]:
        """(state, entry time, [ns by state]) by VCPUOP_get_runstate_info: times up to now."""
        check(self.call(VCPU_OP, 4, vcpu, BASE), "get_runstate_info")
        state, entry, *times = struct.unpack("<ixxxx5Q", self.read(BASE, 48))
        return state, entry, times

    # --- ports --------------------------------------------------------------------------------------------------------

    def _evtchn(self, command: int, name: str, **fields: int) -> object:
        self.put(f"struct evtchn_{name}", **fields)
        check(self.call(EVENT_CHANNEL_OP, command, BASE), name)
        return self.get(f"struct evtchn_{name}")

    def connect(self, peer: ScriptGuest) -> tuple[int, int]:
        """An interdomain pair: (own port, peer's), nothing pending."""
        theirs = peer._evtchn(6, "alloc_unbound", dom=0x7FF0, remote_dom=self.id).port
        ours = self._evtchn(0, "bind_interdomain", remote_dom=peer.id, remote_port=theirs).local_port
        self.drain()
        return ours, theirs

    def bind_virq(self, virq: int, vcpu: int = 0) -> int:
        return self._evtchn(1, "bind_virq", virq=virq, vcpu=vcpu).port

    def bind_ipi(self, vcpu: int) -> int:
        return self._evtchn(7, "bind_ipi", vcpu=vcpu).port

    def port_at(self, port: int) -> int:
        """Puts an evtchn_send for `port` where a program finds it; the address, for send()."""
        self.write(EVENTS + 4 * port, struct.pack("<I", port))
        return EVENTS + 4 * port

    def drain(self) -> None:
        """Forgets every event."""
        for vcpu in range(min(len(self.vcpus), 32)):
            struct.pack_into("<B", self.shared, vcpu * 64, 0)
            struct.pack_into("<Q", self.shared, vcpu * 64 + 8, 0)
        struct.pack_into("<64Q", self.shared, PENDING, *[0] * 64)

    def pending(self, port: int) -> bool:
        return bool(struct.unpack_from("<Q", self.shared, PENDING + port // 64 * 8)[0] >> port % 64 & 1)
