"""Hostile machine code: random programs of system calls, returns, selectors, page-table stores and noise against csrc/pv.

Nothing is expected of the guest but that it ends or is ended. What must hold afterwards: no TLB can write to what is not typed writable,
every reference is accounted for, destroying the domain gives everything back, and the host has not crashed on the way.

XENLIKE_PV_PROGRAMS and XENLIKE_PV_SEED say how many programs and which; `make fuzz` sets them.
"""

from __future__ import annotations

import os
import random
import struct

import pytest
from core_guests import BASE, PAGE, PRESENT
from machine_guests import CODE, STACK, MachineHost
from script_guests import Stalled

from xenlike.engine import NR, check, lib

SEEDS = int(os.environ.get("XENLIKE_PV_PROGRAMS", "40"))
FIRST = int(os.environ.get("XENLIKE_PV_SEED", "0"))
CODE_PAGES = 4
REGISTERS = range(8)


def codes(text: str) -> list[bytes]:
    """Instructions in hexadecimal."""
    return [bytes.fromhex(code) for code in text.split()]


class Programmer:
    """Random code that finds its way into the hypervisor more often than random bytes would."""

    def __init__(self, rng: random.Random, guest: object) -> None:
        self.rng = rng
        self.guest = guest
        self.snippets = [*[self.move, self.hypercall] * 3, *[self.store, self.page_table, self.stack] * 2, self.iret, self.interrupt,
                         self.segment, self.privileged, self.noise, self.flags]

    def value(self) -> int:
        """Something that means something somewhere."""
        r, g = self.rng, self.guest
        return r.choice([
            lambda: r.randrange(64), lambda: g.va(r.randrange(32)) + r.randrange(0, PAGE, 8), lambda: STACK - r.randrange(0, 512, 8),
            lambda: CODE + r.randrange(CODE_PAGES * PAGE), lambda: r.choice(g.mfns + [g.l1, g.l4]),
            lambda: r.choice(g.mfns + [g.l1, g.l4]) << 12 | r.choice([0, 1, 3, 7, 0x63, 0x67, 0x67 | 1 << 63, r.getrandbits(12)]),
            lambda: 1 << r.randrange(64), lambda: 0xffff800000000000 + r.getrandbits(16), lambda: 0x7ff0, lambda: r.getrandbits(64),
            lambda: 0x7fffffffe000 + r.randrange(0x3000), lambda: r.choice([0xe033, 0xe02b, 0xe023, 0xe030, 0x0f, 0x1007, 3, 0]),
        ])()

    def move(self, register: int | None = None) -> bytes:
        n = self.rng.choice(REGISTERS) if register is None else register
        if n == 4 and register is None and self.rng.random() < 0.9:     # rsp: mostly left alone
            n = 0
        return bytes([0x48, 0xb8 + n]) + struct.pack("<Q", self.value())

    def hypercall(self) -> bytes:
        number = self.rng.choice([0, 1, 2, 3, 4, 5, 8, 9, 10, 13, 14, 15, 17, 20, 21, 22, 23, 24, 25, 26, 28, 29, 30, 32])
        if number == NR.sched_op or number == NR.sched_op_compat:
            return b"\x31\xff\xb8" + struct.pack("<I", number) + b"\x0f\x05"        # yield
        setup = b"".join(self.move(n) for n in (7, 6, 2) if self.rng.random() < 0.7)
        return setup + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"

    def iret(self) -> bytes:
        cs = self.rng.choice([0xe033, 0xe030, 0xe023, 0xe02b, 0, self.rng.getrandbits(16)])
        code = b""
        rip = CODE + self.rng.randrange(CODE_PAGES * PAGE)
        for value in (self.rng.choice([0xe02b, 0xe02b, 0, 0x1234]), self.value(), self.rng.getrandbits(22), cs, rip,
                      self.rng.choice([0, 0x100]), 1, 2, 3):
            code += b"\x48\xb8" + struct.pack("<Q", value & (1 << 64) - 1) + b"\x50"
        return code + (b"\xb8\x17\0\0\0\x0f\x05" if self.rng.random() < 0.7 else b"\x48\x83\xc4\x20\x48\xcf")

    def interrupt(self) -> bytes:
        return self.rng.choice([b"\xcc", b"\xf1", b"\xcd\x80", b"\xcd" + bytes([self.rng.getrandbits(8)]), b"\x0f\x0b", b"\x0f\x34"])

    def segment(self) -> bytes:
        """mov sreg, eax; pop fs, gs; far return."""
        mov = bytes([0x8e, 0xc0 + 8 * self.rng.choice([0, 2, 3, 4, 5])])
        return self.move(0) + self.rng.choice([mov, *codes("500fa1 500fa9 5050cb")])

    def store(self) -> bytes:
        """To anywhere: plain, exchange, locked; 1 to 8 bytes."""
        stores = codes("8803 668903 8903 488903 488703 f0480fb10b f0482103 f0480fba3305 f348ab")
        return self.move(3) + self.move(0) + self.rng.choice(stores)

    def page_table(self) -> bytes:
        """An entry for one of the free pages, by way of the read-only view of the L1."""
        r, g = self.rng, self.guest
        slot = g.va(9) + r.choice([8, 13, 14, 20, 30]) * 8 + r.choice([0, 0, 0, 0, 1, 4])
        entry = r.choice([0, r.choice(g.mfns[8:] + [g.l1, g.l4]) << 12 | r.choice([1, 3, 0x63, 0x61, 0x67 | 1 << 63, r.getrandbits(9)])])
        op = r.choice(codes("488903 488903 488703 8903 8803 488b03f0480fb10b f0482103 f0480fba3305 f0480fba3301"))
        return b"\x48\xbb" + struct.pack("<Q", slot) + b"\x48\xb8" + struct.pack("<Q", entry) + op

    def stack(self) -> bytes:
        return b"\x48\xbc" + struct.pack("<Q", STACK - self.rng.randrange(0, 64))

    def privileged(self) -> bytes:
        return self.rng.choice(codes("""0f20c0 0f22c0 0f22d8 0f22e0 0f23c8 0f23f8 0f21f0 0f32 0f30 fa fb f4 e461 e670 f36c f36e 0fa2
                                        0f0b78656e0fa2 0f06 0f31 b9000100c00f30 b9000000400f30"""))

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, 12))

    def flags(self) -> bytes:
        """Trap and alignment flags on, breakpoints set."""
        return b"\x68" + struct.pack("<I", self.rng.choice([0x300, 0x40200, 0x10200, 0x200])) + b"\x9d"

    def program(self, size: int) -> bytes:
        code = b""
        while len(code) < size:
            code += self.rng.choice(self.snippets)()
        return code[:size]


def play(host: MachineHost, seed: int) -> None:
    rng = random.Random(seed)
    g = host.boot("nop", vcpus=2)
    if rng.random() < 0.7:              # a read-only view of the L1, and writable page tables
        check(g.call(NR.update_va_mapping, g.va(9), g.l1 << 12 | PRESENT, 2), "update_va_mapping")
        check(g.call(NR.vm_assist, 0, 2), "vm_assist")
    if rng.random() < 0.5:
        kinds = [0, 0x00cff3000000ffff, 0x00cffb000000ffff, 0x00affb000000ffff, 0x00cf7b000000ffff]
        g.write(g.va(12), struct.pack("<512Q", *rng.choices(kinds, k=512)))
        check(g.call(NR.update_va_mapping, g.va(12), g.mfns[12] << 12 | PRESENT, 2), "update_va_mapping")
        g.write(BASE, struct.pack("<Q", g.mfns[12]))
        check(g.call(NR.set_gdt, BASE, 512), "set_gdt")
    entry = lambda: CODE + rng.randrange(CODE_PAGES * PAGE)     # noqa: E731
    traps = b"".join(struct.pack("<BBHIQ", n, rng.choice([0, 3, 4, 7]), 0xe033, 0, entry())
                     for n in (*range(20), 0x80, 0x40) if rng.random() < 0.9)
    g.write(BASE, traps + bytes(16))
    check(g.call(NR.set_trap_table, BASE), "set_trap_table")
    check(g.call(NR.set_callbacks, entry(), entry(), entry()), "set_callbacks")
    g.write(BASE, rng.randbytes(256))
    g.write(CODE, Programmer(rng, g).program(CODE_PAGES * PAGE))
    lib.xl_vcpu_set_iopl(g.vcpus[0], rng.randrange(4))
    g.unpause()
    try:
        host.run(lambda: g.info().state >= lib.DOM_shutdown, ns=300_000)
    except Stalled:
        pass                            # it blocked, for ever
    assert lib.xl_check_tlbs(host.ptr) == 0
    g.destroy()
    assert lib.xl_check_frames(host.ptr, 1) == 0


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, 10))
def test_hostile_programs(first: int) -> None:
    """A guest could corrupt the hypervisor's own accounting, leak, or bring the process down."""
    with MachineHost() as host:
        before = host.usage()
        for seed in range(first, first + 10):
            play(host, seed)
            assert host.usage() == before, f"seed {seed}"
