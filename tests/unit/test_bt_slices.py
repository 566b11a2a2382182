"""Slices of real time: translated code is left every so many instructions, and goes on where it was, with next to nothing interpreted."""

from __future__ import annotations

from bt_kit import needs_translator
from machine_guests import MachineHost

from xenlike.engine import ffi, lib

pytestmark = needs_translator

SLICE = 65536           # SLICE_BT in csrc/hv/native.c
ROUNDS = 3_000_000
#: Nine instructions a round, which no number of rounds brings to the end of a slice exactly; a call, so that there are three blocks.
LOOP = f"""
    mov ${ROUNDS}, %ecx
again:
    lea 3(%rax, %rcx), %rdx
    xor %rdx, %rax
    call more
    dec %ecx
    jnz again
    save rax, 0
    exit
more:
    rol $5, %rax
    add %rcx, %rbx
    add %rbx, %rax
    ret
"""


def play(engine: str, *, virtual: bool) -> tuple[int, int, int]:
    """The result, instructions, and of them those that the interpreter did."""
    with MachineHost(virtual=virtual, engine=engine) as host:
        g = host.play(LOOP)
        assert g.reason == lib.SHUTDOWN_poweroff
        stats = ffi.new("struct xl_bt_stats *")
        if engine == "bt":
            lib.xl_bt_stats(lib.xl_bt_of_vcpu(g.vcpus[0]), stats)
        return g.results(1)[0], g.stat("instructions"), stats.interpreted


def test_the_end_of_a_slice_is_not_interpreted() -> None:
    """Wrong: what does not fit into blocks at the end of each slice would be interpreted, as code that the interpreter has never seen: a fifth
    of the time."""
    _, _, interpreted = play("bt", virtual=False)
    slices = 9 * ROUNDS // SLICE
    assert slices > 400 and interpreted < 200 + 2 * slices


def test_it_does_the_same() -> None:
    """Wrong: an instruction would be lost or done twice where a slice ends; or the virtual clock, which counts instructions, would end early."""
    results = [play(engine, virtual=virtual) for engine in ("interp", "bt") for virtual in (False, True)]
    assert len({result for result, _, _ in results}) == 1, results
    assert results[1][1] == results[3][1] > 9 * ROUNDS
