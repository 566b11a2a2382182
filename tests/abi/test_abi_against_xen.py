"""Every constant, size, offset and sign in csrc/include/xen is Xen's own.

If these failed, a guest built for Xen would read a field of ours at the wrong place, or call the wrong hypercall. What
is compared comes from our headers through abi_headers; Xen's come from Debian's libxen-dev.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import abi_headers
import abi_probe

# What we declare and libxen-dev 4.17 does not, and why we have it all the same. Names that this list gives and that are
# not ours, or that Xen has, fail the test.
OURS_ONLY = {
    "XENCONSOLE_CONNECTED": "console page since Xen 4.18; guests read the byte",
    "XENCONSOLE_DISCONNECTED": "console page since Xen 4.18; guests read the byte",
    "XEN_EINTR": "Xen has it for its own use only",
    "XEN_ERESTART": "Xen has it for its own use only",
    "XEN_RING_HEADER_SIZE": "a ring's header without a ring macro, for the core and Python",
    "sizeof(struct xen_sring_hdr)": "a ring's header without a ring macro, for the core and Python",
}
OURS_ONLY_FIELDS = {
    "struct xen_sring_hdr": "a ring's header without a ring macro, for the core and Python",
    "struct xencons_interface, connection": "console page since Xen 4.18; guests read the byte",
}
# The one structure that is longer than in 4.17, by the field above and its padding.
LONGER = {"sizeof(struct xencons_interface)": (3092, 3088)}

# How both are read: as tools and as a guest see them, and ours as the core sees them, where guest handles are numbers.
VIEWS = {
    "tools": (abi_headers.AS_TOOLS, abi_headers.AS_TOOLS),
    "guest": (abi_headers.AS_GUEST, abi_headers.AS_GUEST),
    "core": (abi_headers.AS_CORE, abi_headers.AS_TOOLS),
}


class Side:
    """One set of headers in one view."""

    def __init__(self, include: Path, headers: Sequence[str], view: tuple[str, ...]) -> None:
        self.include, self.headers, self.view = include, headers, view
        self.flags = [*view, "-I", str(include)]

    def declared(self) -> abi_headers.Declared:
        return abi_headers.declared(self.headers, self.include, self.view)

    def integers(self, asked: Mapping[str, str]) -> dict[str, int]:
        return abi_probe.integers(self.headers, self.flags, asked)


@pytest.fixture
def own(view: str) -> Side:
    flags = VIEWS[view][0]
    return Side(abi_headers.INCLUDE, abi_headers.own_headers(flags), flags)


@pytest.fixture
def xen(view: str, xen_include: Path) -> Side:
    flags = VIEWS[view][1]
    return Side(xen_include, abi_headers.xen_headers(xen_include, flags), flags)


@pytest.fixture
def hidden(view: str, own: Side, xen_include: Path) -> set[str]:
    """Names that Xen has, but not for guests; we do not hide them."""
    if view != "guest":
        return set()
    found = own.declared()
    tools = Side(xen_include, abi_headers.xen_headers(xen_include), abi_headers.AS_TOOLS)
    return set(tools.integers({**constants(found), **abi_probe.sizes_and_offsets(found)}))


def constants(found: abi_headers.Declared) -> dict[str, str]:
    return {name: name for name in [*found.constants, *found.macros]}


def differences(own: Mapping[str, int], xens: Mapping[str, int]) -> list[str]:
    """What a reader needs to know about each name whose values differ, or which Xen has not. A kind of 0 is a type that
    has no sign: a guest handle or a pointer."""
    return [f"{name}: ours {value}, Xen's {xens.get(name, 'missing')}" for name, value in own.items()
            if xens.get(name) != value
            and not (name.startswith("kind(") and name in xens and 0 in (value, xens[name]))]


def allowed(name: str) -> bool:
    inner = name.partition("(")[2].rstrip(")")
    return name in OURS_ONLY or inner.startswith(tuple(OURS_ONLY_FIELDS))


def unexplained(own: Mapping[str, int], xens: Mapping[str, int], hidden: set[str]) -> str:
    """The differences that are mistakes, a line each."""
    return "\n".join(line for line in differences(own, xens)
                     if not allowed(name := line.partition(": ours")[0]) and not (name in hidden and name not in xens))


@pytest.mark.parametrize("view", ["tools", "guest"])
def test_constants(own: Side, xen: Side, hidden: set[str]) -> None:
    """A number that differs is another call, another error or another flag to a guest."""
    found = own.declared()
    values = own.integers(constants(found))
    assert set(found.constants) <= set(values)
    wrong = unexplained(values, xen.integers({name: name for name in values}), hidden)
    assert not wrong, wrong


@pytest.mark.parametrize("view", ["tools"])
def test_strings(own: Side, xen: Side) -> None:
    """Strings travel through xenstore and into assembler: they are compared byte by byte."""
    values = abi_probe.strings(own.headers, own.flags, own.declared().macros)
    assert "XEN_IO_PROTO_ABI_X86_64" in values
    assert values == abi_probe.strings(xen.headers, xen.flags, values)


@pytest.mark.parametrize("view", list(VIEWS))
def test_layouts(own: Side, xen: Side, hidden: set[str]) -> None:
    """Sizes, offsets and signs, as tools and guests see them and as the core does."""
    asked = abi_probe.sizes_and_offsets(own.declared())
    values = own.integers(asked)
    # Only a flexible array may be without a size.
    assert {name for name in asked if name not in values} <= {"sizeof(struct xen_build_id, buf)",
                                                             "sizeof(struct physdev_pci_device_add, optarr)"}
    xens = xen.integers(asked)
    for name, (own_size, xen_size) in LONGER.items():
        assert (values.pop(name), xens.pop(name)) == (own_size, xen_size)
    wrong = unexplained(values, xens, hidden)
    assert not wrong, wrong


@pytest.mark.parametrize("view", ["tools"])
def test_the_list_of_exceptions_is_short(own: Side, xen: Side) -> None:
    """An exception that Xen's headers no longer need would hide the next mistake under the same name."""
    found = own.declared()
    names = {name: name for name in OURS_ONLY if not name.startswith("sizeof")}
    assert set(names) <= set(found.constants)
    fields = {name: text for name, text in abi_probe.sizes_and_offsets(found).items()
              if name.startswith("offsetof") and allowed(name)}
    assert len(fields) == 7
    assert not xen.integers({**names, **fields})


@pytest.mark.parametrize("view", ["tools"])
@pytest.mark.parametrize("header, old, new, told", [
    ("errno.def", "XEN_ERRNO(EFAULT, 14)", "XEN_ERRNO(EFAULT, 15)", "XEN_EFAULT: ours 15, Xen's 14"),
    ("event_channel.h", "    uint32_t virq; /* VIRQ_* */\n    uint32_t vcpu;", "    uint32_t vcpu;\n    uint32_t virq;",
     "offsetof(struct evtchn_bind_virq, virq): ours 4, Xen's 0"),
    ("sched.h", "int32_t pcpu", "uint32_t pcpu", "kind(struct sched_pin_override, pcpu): ours 2, Xen's 1"),
    ("sched.h", "int32_t pcpu", "int32_t cpu", "offsetof(struct sched_pin_override, cpu): ours 0, Xen's missing"),
    ("nmi.h", "unsigned long pad;", "unsigned int pad;", "sizeof(struct xennmi_callback, pad): ours 4, Xen's 8"),
], ids=["value", "order", "sign", "name", "size"])
def test_a_mistake_is_found(xen: Side, tmp_path: Path, header: str, old: str, new: str, told: str) -> None:
    """The comparison itself: headers with one mistake in them are caught, and the message names it."""
    include = tmp_path / "include"
    shutil.copytree(abi_headers.INCLUDE, include)
    file = include / "xen" / header
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    wrong = Side(include, ["xen/errno.h", "xen/sched.h", "xen/nmi.h"], abi_headers.AS_TOOLS)
    found = wrong.declared()
    asked = {**constants(found), **abi_probe.sizes_and_offsets(found)}
    assert told in differences(wrong.integers(asked), xen.integers(asked))


def test_a_guest_source_means_the_same(xen_include: Path, tmp_path: Path) -> None:
    """C written for Xen's headers compiles against ours, and its ring macros do the same to the same page."""
    source = Path(__file__).with_name("ring_exercise.c")
    printed = []
    for name, include in (("ours", abi_headers.INCLUDE), ("xens", xen_include)):
        binary = tmp_path / name
        subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wno-unused-but-set-variable", "-I", str(include),
                        str(source), "-o", str(binary)], check=True)
        printed.append(subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout)
    assert len(printed[0].splitlines()) > 50
    assert printed[0] == printed[1]
