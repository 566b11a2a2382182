"""Hypothesis strategies for every hypercall: arguments that a guest might mean, and ones that only an attacker would.

What exists is data. `Hypercall` rows say name, number, argument kinds and sub-commands with their structures; they come
from the project's .def files (`read_tables`), from the constants of a compiled core (`tables_from_constants`), or from
anywhere: a plain list is all that the strategies ask for.

    table = read_tables("csrc/include/xen")
    world = World(scratch=driver.scratch(domid), domids=(0, domid), mfns=tuple(mfns))
    @given(st.data())
    def test(data):
        call = data.draw(calls(table, world))
        call.place(driver, domid)
        driver.hypercall(domid, 0, call.number, call.args)

A drawn `Call` carries the bytes to put into the guest's scratch pages first, so that it can be repeated and shrunk.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from .machines.driver import Driver
from .machines.layouts import LAYOUTS, Layout
from .models.abi import DOMID_IO, DOMID_SELF, DOMID_XEN, HYPERVISOR_END, HYPERVISOR_START, PAGE_SIZE, U64

SCRATCH_SIZE = 4 * PAGE_SIZE
_LISTS = 2 * PAGE_SIZE                      # where in the scratch pages embedded pointers lead
_OPAQUE = 192                               # bytes given for a structure without a layout


@dataclass(frozen=True)
class SubCommand:
    """One command of a multiplexed hypercall. `structure` names its argument, None if it takes none."""

    name: str
    number: int
    structure: str | None = None


@dataclass(frozen=True)
class Hypercall:
    """One hypercall. `shape` is the kind of each register: see `SHAPES`."""

    name: str
    number: int
    shape: tuple[str, ...]
    commands: tuple[SubCommand, ...] = ()


@dataclass(frozen=True)
class World:
    """Where a caller lives, so that arguments can be plausible: addresses, frames, ports and domains it knows."""

    scratch: int
    domids: Sequence[int] = (0, 1)
    mfns: Sequence[int] = (1,)
    addresses: Sequence[int] = ()
    ports: Sequence[int] = (1, 2, 3)
    refs: Sequence[int] = (0, 8, 9)
    vcpus: int = 1


@dataclass(frozen=True)
class Call:
    """A drawn hypercall: put `memory` (offset, bytes) into the scratch pages, then call with `args`."""

    name: str
    number: int
    args: tuple[int, ...]
    memory: tuple[tuple[int, bytes], ...] = field(default=())

    def place(self, driver: Driver, domid: int) -> None:
        """Write the argument structures into the domain's scratch pages."""
        for offset, data in self.memory:
            driver.write_mem(domid, driver.scratch(domid) + offset, data)


# Kinds of registers. cmd: a sub-command; arg: pointer to its structure; array: pointer to `count` of them; array:NAME
# and arg:NAME: of that structure; other kinds name the strategy of `_numbers`.
SHAPES: Mapping[str, tuple[str, ...]] = {name: tuple(kinds.split()) for name, kinds in {
    "set_trap_table": "arg", "mmu_update": "array:mmu_update count address foreigndom", "set_gdt": "address count",
    "stack_switch": "any address", "set_callbacks": "address address address", "fpu_taskswitch": "flag",
    "sched_op_compat": "cmd any", "platform_op": "arg", "set_debugreg": "small address", "get_debugreg": "small",
    "update_descriptor": "machine any", "memory_op": "cmd arg", "multicall": "array:multicall_entry count",
    "update_va_mapping": "address entry flush", "set_timer_op": "any", "event_channel_op_compat": "arg",
    "xen_version": "cmd arg", "console_io": "small count address", "physdev_op_compat": "arg",
    "grant_table_op": "cmd array count", "vm_assist": "small small",
    "update_va_mapping_otherdomain": "address entry flush domid", "iret": "", "vcpu_op": "cmd vcpu arg",
    "set_segment_base": "small address", "mmuext_op": "array:mmuext_op count address foreigndom", "xsm_op": "arg",
    "nmi_op": "small address", "sched_op": "cmd arg", "callback_op": "small arg", "xenoprof_op": "small arg",
    "event_channel_op": "cmd arg", "physdev_op": "cmd arg", "hvm_op": "small arg", "sysctl": "arg", "domctl": "arg",
    "kexec_op": "small arg", "tmem_op": "arg", "argo_op": "small address address any any", "xenpmu_op": "small arg",
    "dm_op": "domid count address", "hypfs_op": "small address count address count", "mca": "arg", "arch_1": "arg",
}.items()}

# .def file and macro of a hypercall's commands.
COMMAND_FILES = {"event_channel_op": ("evtchnop.def", "EVTCHNOP"), "grant_table_op": ("gnttabop.def", "GNTTABOP"),
                 "sched_op": ("schedop.def", "SCHEDOP"), "vcpu_op": ("vcpuop.def", "VCPUOP"),
                 "memory_op": ("xenmem.def", "XENMEM"), "physdev_op": ("physdevop.def", "PHYSDEVOP"),
                 "xen_version": ("xenver.def", "XENVER")}


# --- tables ---------------------------------------------------------------------------------------------------------

def parse_rows(text: str, macro: str) -> list[tuple[str, ...]]:
    """The rows MACRO(a, b, "c") of a .def file, as tuples of strings without quotes."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    rows = re.findall(rf"^\s*{macro}\((.*)\)\s*$", text, flags=re.M)
    return [tuple(part.strip().strip('"') for part in re.findall(r'\s*("[^"]*"|[^,"]+)', row)) for row in rows]


def read_tables(folder: str | Path) -> list[Hypercall]:
    """All hypercalls and their commands from the .def files of `folder` (csrc/include/xen).

    Raises ValueError for a folder whose hypercalls.def has no rows, and OSError where files are missing."""
    folder = Path(folder)
    calls = parse_rows((folder / "hypercalls.def").read_text(), "HYPERCALL")
    if not calls:
        raise ValueError(f"{folder / 'hypercalls.def'}: no HYPERCALL(…) row found")
    commands = {}
    for name, (file, macro) in COMMAND_FILES.items():
        rows = parse_rows((folder / file).read_text(), macro)
        commands[name] = tuple(SubCommand(row[1], int(row[0], 0), _structure(*row[2:3])) for row in rows)
    return [Hypercall(name, int(number, 0), SHAPES.get(name, ("any",) * int(nargs)), commands.get(name, ()))
            for number, name, nargs, *_ in calls]


def tables_from_constants(constants: Mapping[str, int]) -> list[Hypercall]:
    """The same from Xen's public names: __HYPERVISOR_*, EVTCHNOP_*, GNTTABOP_*, SCHEDOP_*, VCPUOP_*, XENMEM_*, …

    For a compiled core: {name: getattr(lib, name) for name in dir(lib) if name.startswith(…)}. Structures follow from
    the naming convention where there is one."""
    commands: dict[str, tuple[SubCommand, ...]] = {}
    for name, (_, macro) in COMMAND_FILES.items():
        found = sorted((number, key[len(macro) + 1:]) for key, number in constants.items()
                       if key.startswith(macro + "_"))
        commands[name] = tuple(SubCommand(sub, number, _conventional(macro, sub)) for number, sub in found)
    calls = sorted((number, key[len("__HYPERVISOR_"):]) for key, number in constants.items()
                   if key.startswith("__HYPERVISOR_"))
    return [Hypercall(name, number, SHAPES.get(name, ("any",) * 5), commands.get(name, ())) for number, name in calls]


def _structure(name: str | None = None) -> str | None:
    return None if name in (None, "none") else name


def _conventional(macro: str, command: str) -> str | None:
    prefix = {"EVTCHNOP": "evtchn_", "GNTTABOP": "gnttab_", "SCHEDOP": "sched_", "VCPUOP": "vcpu_"}.get(macro)
    return prefix + command if prefix and prefix + command in LAYOUTS else None


# --- values ---------------------------------------------------------------------------------------------------------

def numbers(bits: int = 64) -> st.SearchStrategy[int]:
    """Unsigned integers of a width, the edges of smaller types and of pages among them."""
    top = (1 << bits) - 1
    edges = {0, 1, 2, 7, 8, top, top - 1, top >> 1, (top >> 1) + 1}
    edges |= {value + delta for shift in (7, 8, 12, 15, 16, 20, 31, 32, 39, 47, 48, 52, 63) for delta in (-1, 0, 1)
              if (value := 1 << shift) + delta <= top}
    return st.one_of(st.sampled_from(sorted(edges)), st.integers(0, min(top, 64)), st.integers(0, top))


def domids(world: World) -> st.SearchStrategy[int]:
    """Domain ids: known ones, DOMID_SELF, the reserved ones, nobody's."""
    return st.one_of(st.just(DOMID_SELF), st.sampled_from((*world.domids, DOMID_IO, DOMID_XEN, 0x7FEF, 0x7FFF, 0xFFFF)))


def mfns(world: World) -> st.SearchStrategy[int]:
    """Machine frames: the caller's, others', none at all."""
    return st.one_of(st.sampled_from(tuple(world.mfns)), st.sampled_from((0, (1 << 40) - 1, 1 << 40, U64)),
                     st.integers(0, 1 << 20))


def entries(world: World) -> st.SearchStrategy[int]:
    """Page table entries, with allowed and forbidden flags."""
    flags = st.sampled_from((0x67, 0x63, 0x61, 0x25, 0x27, 0x1, 0x3, 0x80, 0xE7, 0x167, 0x6F, 0x77, 0, 0x66,
                             1 << 52 | 5, 1 << 63 | 3, 0x7FF << 52 | 1))
    return st.one_of(st.builds(lambda mfn, flag: (mfn << 12 | flag) & U64, mfns(world), flags), numbers())


def addresses(world: World) -> st.SearchStrategy[int]:
    """Virtual addresses: the scratch pages and their edges, other mapped ones, the hypervisor's range, no addresses."""
    scratch = st.integers(0, SCRATCH_SIZE - 1).map(lambda offset: world.scratch + offset)
    bad = st.sampled_from((0, 1, world.scratch + SCRATCH_SIZE - 1, 1 << 47, (1 << 47) - 4, HYPERVISOR_START,
                           HYPERVISOR_START - 1, HYPERVISOR_END - 1, HYPERVISOR_END, 1 << 63, U64, U64 - 7))
    known = [scratch, st.sampled_from(tuple(world.addresses))] if world.addresses else [scratch]
    return st.one_of(*known, bad, numbers())


def counts() -> st.SearchStrategy[int]:
    """Element counts: few, none, absurdly many, and the bits that continuations use."""
    return st.one_of(st.integers(0, 4), st.sampled_from((128, 129, 512, 0xFFFF, 1 << 26, 0x7FFFFFFF, 0x80000000,
                                                         0x80000001, 0xFFFFFFFF, 1 << 32, U64)))


_POINTERS = ("frame_list", "extent_start", "in_start", "out_start", "ports", "result")
_FIELDS = (        # a field's name → what goes into it
    (re.compile(r"dom(id)?$|^dom|domain_id"), "domid"), (re.compile(r"port$"), "port"),
    (re.compile(r"ref"), "ref"), (re.compile(r"mfn|gfn|^arg1$"), "mfn"), (re.compile(r"handle|vcpu$"), "small"),
    (re.compile(r"_addr$|^source$|^dest$|^arg"), "address"), (re.compile(r"^(val)$"), "entry"),
    (re.compile(r"^(ptr)$"), "machine"), (re.compile(r"nr|count|len"), "count"),
    (re.compile(r"order|cmd|op$"), "small"),
)


def _numbers(kind: str, world: World) -> st.SearchStrategy[int]:
    """The strategy of a kind of register or field."""
    if kind == "foreigndom":
        return st.one_of(domids(world), st.builds(lambda a, b: a | b << 16, domids(world), domids(world)))
    if kind == "flush":
        return st.one_of(st.integers(0, 7), addresses(world))
    if kind == "machine":
        return st.builds(lambda mfn, offset: (mfn << 12 | offset) & U64, mfns(world), st.integers(0, PAGE_SIZE - 1))
    if kind == "vcpu":
        return st.one_of(st.integers(0, world.vcpus), numbers(32))
    if kind in ("small", "cmd"):
        return st.one_of(st.integers(0, 7), st.integers(0, 40), numbers(32))
    if kind == "flag":
        return st.one_of(st.integers(0, 1), numbers())
    if kind == "port":
        return st.one_of(st.sampled_from(tuple(world.ports)),
                         st.sampled_from((0, 63, 64, 1023, 4095, 4096, 0xFFFFFFFF)))
    if kind == "ref":
        return st.one_of(st.sampled_from(tuple(world.refs)), st.sampled_from((511, 512, 1 << 15, 0xFFFFFFFF)))
    simple = {"domid": lambda: domids(world), "mfn": lambda: mfns(world), "entry": lambda: entries(world),
              "address": lambda: addresses(world), "count": counts, "any": numbers}
    return simple[kind]()


def structures(layout: Layout, world: World, *, hostile: bool = False) -> st.SearchStrategy[bytes]:
    """The bytes of an argument structure: each field by what its name says, or with `hostile` any number."""
    parts = []
    for name, bits, signed in zip(layout.fields, layout.widths, layout.signed):
        if hostile:
            values = numbers(bits)
        elif name in _POINTERS:
            values = st.one_of(st.just(world.scratch + _LISTS), addresses(world))
        else:
            kind = next((kind for pattern, kind in _FIELDS if pattern.search(name)), None)
            values = _numbers(kind, world) if kind else numbers(bits)
        parts.append(values.map(lambda value, bits=bits, signed=signed: _fit(value, bits, signed)))
    return st.tuples(*parts).map(lambda values: layout.struct.pack(*values))


def _fit(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


# --- calls ----------------------------------------------------------------------------------------------------------

def calls(table: Sequence[Hypercall], world: World, *, without: Iterable[str] = (), hostile: bool | None = None,
          layouts: Mapping[str, Layout] = LAYOUTS) -> st.SearchStrategy[Call]:
    """Hypercalls of a table with arguments for a caller in `world`.

    `without` leaves out hypercalls or commands ("iret", "sched_op.shutdown"). `hostile` True draws only nonsense,
    False only plausible arguments, None both. Structures without a layout get arbitrary bytes."""
    without = frozenset(without)
    kept = [row for row in table if row.name not in without]
    if not kept:
        raise ValueError("no hypercall is left to draw: the table is empty or `without` names all of it")

    @st.composite
    def call(draw: st.DrawFn) -> Call:
        row = draw(st.sampled_from(kept))
        wild = draw(st.booleans()) if hostile is None else hostile
        return draw(_wild(row)) if wild and draw(st.booleans()) else _build(draw, row, wild)

    def _wild(row: Hypercall) -> st.SearchStrategy[Call]:
        """Registers full of anything."""
        registers = [st.one_of(addresses(world), numbers())] * max(1, len(row.shape))
        if without:
            # A random register might spell a command that is not wanted.
            registers = [_commands(row, any_number=False) if kind == "cmd" else registers[0] for kind in row.shape] \
                or registers
        return st.tuples(*registers).map(lambda args: Call(row.name, row.number, args))

    def _commands(row: Hypercall, *, any_number: bool) -> st.SearchStrategy[int]:
        wanted = [command.number for command in row.commands if f"{row.name}.{command.name}" not in without]
        beyond = 1 + max((command.number for command in row.commands), default=0)
        # Mostly commands that exist: with others the call ends before it has looked at anything.
        known = st.sampled_from((*wanted * 2, beyond, 0x7FFFFFFF))
        return st.one_of(known, numbers(32)) if any_number and not without else known

    def _build(draw: st.DrawFn, row: Hypercall, wild: bool) -> Call:
        """Registers by their kinds, structures in the scratch pages."""
        args: list[int] = []
        memory: list[tuple[int, bytes]] = []
        command = None
        for kind in row.shape:
            if kind == "cmd":
                args.append(draw(_commands(row, any_number=wild)))
                command = next((sub for sub in row.commands if sub.number == args[0]), None)
            elif kind.partition(":")[0] in ("arg", "array"):
                name = kind.partition(":")[2] or (command.structure if command else None)
                copies = draw(st.integers(1, 3)) if kind.startswith("array") else 1
                layout = layouts.get(name) if name else None
                one = structures(layout, world, hostile=wild) if layout else st.binary(min_size=_OPAQUE,
                                                                                       max_size=_OPAQUE)
                # Sometimes across the edge of two pages, sometimes off the end of the last one.
                offset = draw(st.sampled_from((0, 0, 0, 8, PAGE_SIZE - 4)))
                memory.append((offset, b"".join(draw(one) for _ in range(copies))))
                pointer = world.scratch + offset
                args.append(draw(addresses(world)) if wild and draw(st.booleans()) else pointer)
            else:
                args.append(draw(_numbers(kind, world)) & U64)
        if memory:
            memory.append((_LISTS, struct.pack("<8Q", *draw(st.lists(mfns(world), min_size=8, max_size=8)))))
        return Call(row.name, row.number, tuple(args), tuple(memory))

    return call()


def unknown_calls(table: Sequence[Hypercall]) -> st.SearchStrategy[Call]:
    """Numbers that are no hypercall: the answer is -ENOSYS whatever the registers hold."""
    taken = {row.number for row in table}
    free = st.one_of(st.integers(0, 200), numbers()).filter(lambda number: number not in taken)
    return st.builds(lambda number, args: Call("unknown", number, tuple(args)), free,
                     st.lists(numbers(), min_size=5, max_size=5))
