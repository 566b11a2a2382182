"""CPU lists and CPUID policies.

Owns the value syntax of ``cpus``, ``cpus_soft`` and ``cpuid``. Called by ``config`` and by ``vcpu-pin``. Pure: which
CPUs a host has is only known later, so a list stays symbolic until it is asked with ``CpuList.select``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .errors import SpecError, show
from .sizes import parse_integer

MAX_CPU = 4095          # Xen's own limit (NR_CPUS)


class CpuRange(NamedTuple):
    """One step of a list: add, or with ``exclude`` take away, CPUs (or the CPUs of NUMA nodes) first to last."""

    first: int
    last: int
    exclude: bool = False
    nodes: bool = False


@dataclass(frozen=True)
class CpuList:
    """A set of physical CPUs as written, ``0-3,^1`` or ``all,^node:1``; steps count in order. ``str()`` writes it."""

    steps: tuple[CpuRange, ...]

    def select(self, cpus: int, *, nodes: Mapping[int, frozenset[int]] | None = None) -> frozenset[int]:
        """The CPUs meant on a host with CPUs 0 to ``cpus``-1 and NUMA ``nodes`` (node 0 has all if None)."""
        present = frozenset(range(cpus))
        nodes = {0: present} if nodes is None else nodes
        chosen: set[int] = set()
        for first, last, exclude, by_node in self.steps:
            meant = frozenset(range(first, last + 1))
            if by_node:
                meant = frozenset().union(*(members for node, members in nodes.items() if node in meant))
            chosen = chosen - meant if exclude else chosen | (meant & present)
        return frozenset(chosen)

    def __str__(self) -> str:
        return ",".join(
            "all" if (step.first, step.last, step.exclude) == (0, MAX_CPU, False) else
            ("^" if step.exclude else "") + ("nodes:" if step.nodes else "") + str(step.first)
            + (f"-{step.last}" if step.last != step.first else "") for step in self.steps)


_RANGE = re.compile(r"(\^)?(nodes?:)?(?:(all)|([0-9]{1,9})(?:-([0-9]{1,9}))?)", re.ASCII)


def parse_cpu_list(text: str) -> CpuList:
    """``all``, ``0-3,5,^1``, ``nodes:0-1,^node:2`` and combinations, as xl has them. Raises ``SpecError``."""
    steps = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise SpecError(f"{show(part)} is no CPU or range of CPUs", hint='for example "all", "0-3,5,^1", "node:0"')
        exclude, nodes, everything, first, last = match.groups()
        if everything:
            if exclude:
                raise SpecError(f"{show(part)} would leave no CPU")
            steps.append(CpuRange(0, MAX_CPU))
            continue
        low, high = int(first), int(last or first)
        if low > high:
            raise SpecError(f"{show(part)} runs backwards", hint=f"{high}-{low}")
        if high > MAX_CPU:
            raise SpecError(f"{show(part)} is beyond the last possible CPU, {MAX_CPU}")
        steps.append(CpuRange(low, high, bool(exclude), bool(nodes)))
    cpus = CpuList(tuple(steps))
    if not any(step.nodes for step in steps) and not cpus.select(MAX_CPU + 1):
        raise SpecError(f"{show(text)} leaves no CPU to run on")
    return cpus


# --- CPUID ----------------------------------------------------------------------------------------------------------

REGISTERS = ("eax", "ebx", "ecx", "edx")
_NUMERIC_FEATURES = frozenset("apicidsize brandid clflush family localapicid maxleaf maxhvleaf model nc proccount "
                              "procpkg stepping".split())


class CpuidLeaf(NamedTuple):
    """Bits of one leaf: ``registers`` pairs a register's name with 32 characters of 0 1 x k s, bit 31 first."""

    leaf: int
    subleaf: int | None
    registers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CpuidPolicy:
    """What ``cpuid`` asks for: ``features`` (libxl form: name, value) or ``leaves`` (xend form)."""

    features: tuple[tuple[str, str], ...] = ()
    leaves: tuple[CpuidLeaf, ...] = ()


def parse_cpuid_features(text: str) -> CpuidPolicy:
    """libxl's form, ``host,tm=0,family=6``. Raises ``SpecError``."""
    first, *rest = (part.strip() for part in text.split(","))
    if first != "host":
        raise SpecError(f"{show(text)} does not start with 'host'", hint='for example "host,tm=0,sse3=0"')
    features = []
    for part in filter(None, rest):
        name, _, value = part.partition("=")
        if not re.fullmatch(r"[a-z0-9][-._a-z0-9]*", name, re.ASCII):
            raise SpecError(f"{show(part)} is no feature=value")
        if name in _NUMERIC_FEATURES and value[:1].isdigit():
            parse_integer(value)
        elif value not in ("0", "1", "x", "k", "s"):
            raise SpecError(f"{show(part)}: a feature is set to 0, 1, x, k or s")
        features.append((name, value))
    return CpuidPolicy(features=tuple(features))


def parse_cpuid_leaf(text: str) -> CpuidLeaf:
    """xend's form, one leaf: ``1:ecx=xxxx…,edx=…`` or ``7,0:ebx=…``. Raises ``SpecError``."""
    address, colon, assignments = text.partition(":")
    if not colon:
        raise SpecError(f"{show(text)} has no colon", hint='for example "0x80000001:ecx=" and 32 characters')
    leaf, comma, subleaf = address.partition(",")
    numbers = [parse_integer(leaf), parse_integer(subleaf) if comma else None]
    if any(number is not None and not 0 <= number < 1 << 32 for number in numbers):
        raise SpecError(f"{show(address)} is no CPUID leaf")
    registers = []
    for part in map(str.strip, assignments.split(",")):
        register, _, bits = part.partition("=")
        if register not in REGISTERS:
            raise SpecError(f"{show(register)} is no register of CPUID", hint=", ".join(REGISTERS))
        if not re.fullmatch(r"[01xks]{32}", bits):
            raise SpecError(f"{show(bits)} must be 32 characters of 0, 1, x, k and s", hint=f"it has {len(bits)}")
        registers.append((register, bits))
    return CpuidLeaf(numbers[0], numbers[1], tuple(registers))
