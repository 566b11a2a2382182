"""docs/hypercalls.md comes from the tables that the core is built from, and the tables agree with the headers.

If these failed, the page would lie about a call, a typing mistake in a marker would hide a test, or a row would name an
argument structure that does not exist.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import abi_headers
import abi_probe
import hypercall_table
from hypercall_table import COMMANDS, TABLES, TableError

# Written in two parts: a marker in this file would count as one.
MARK = "covers" + ":"


def test_the_page_is_current() -> None:
    page = hypercall_table.OUTPUT.read_text(encoding="utf-8")
    assert page == hypercall_table.render(), "run scripts/hypercall_table.py"


def test_hypercall_rows() -> None:
    """No more arguments than registers, an answer that somebody gives, a note, a number that fits the core's table."""
    for row in hypercall_table.rows(TABLES / "hypercalls.def"):
        nargs, where, note = row.columns
        assert 0 <= int(nargs) <= 5 and where in hypercall_table.ANSWERED_BY and note
        assert row.number < 64


@pytest.mark.parametrize("file", [file for _, file, columns in COMMANDS if columns and file != "mmuext.def"])
def test_rows_name_real_types(file: str) -> None:
    """The argument of a row is the tag of a structure, or the name of a type, in our headers."""
    found = abi_headers.declared(abi_headers.own_headers(), abi_headers.INCLUDE)
    for row in hypercall_table.rows(TABLES / file):
        (argument,) = row.columns
        assert argument == "none" or f"struct {argument}" in found.types or argument in found.types, row


def test_mmuext_rows_name_real_members() -> None:
    """The two arguments of an extended operation are members of the unions that they are read from."""
    members = abi_headers.declared(abi_headers.own_headers(), abi_headers.INCLUDE).fields["struct mmuext_op"]
    for row in hypercall_table.rows(TABLES / "mmuext.def"):
        for union, member in zip(("arg1", "arg2"), row.columns, strict=True):
            assert member == "none" or f"{union}.{member}" in members, row


def test_the_page_has_the_numbers_of_the_headers() -> None:
    """The page's reader of tables and the C compiler see the same numbers under the same names."""
    asked = {f"__HYPERVISOR_{row.name}": row.number for row in hypercall_table.rows(TABLES / "hypercalls.def")}
    for prefix, file in (("EVTCHNOP_", "evtchnop.def"), ("GNTTABOP_", "gnttabop.def"), ("XENMEM_", "xenmem.def"),
                         ("MMUEXT_", "mmuext.def"), ("MMU_", "mmu.def"), ("SCHEDOP_", "schedop.def"),
                         ("VCPUOP_", "vcpuop.def"), ("XENVER_", "xenver.def"), ("PHYSDEVOP_", "physdevop.def"),
                         ("VMASST_TYPE_", "vmasst.def"), ("XEN_SYSCTL_", "sysctl.def"),
                         ("XEN_DOMCTL_", "domctl.def")):
        asked |= {f"{prefix}{row.name}": row.number for row in hypercall_table.rows(TABLES / file)}
    assert len(asked) > 250
    flags = ["-I", str(abi_headers.INCLUDE)]
    assert abi_probe.integers(abi_headers.own_headers(), flags, {name: name for name in asked}) == asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    (tests / "unit").mkdir(parents=True)
    return tests


def test_markers_are_found(folder: Path) -> None:
    """Python and C files; one name or several; a command counts for its hypercall; text that only looks so does not."""
    (folder / "unit" / "test_a.py").write_text(f"# {MARK} hypercall set_gdt\nx = 1  # {MARK} multicall\n")
    (folder / "b.c").write_text(f"/* {MARK} event_channel_op/send, hypercall set_gdt */\n")
    assert hypercall_table.coverage(folder, ["set_gdt", "multicall", "event_channel_op", "event_channel_op/send"]) == {
        "set_gdt": ["tests/b.c", "tests/unit/test_a.py"],
        "event_channel_op": ["tests/b.c"],
        "event_channel_op/send": ["tests/b.c"],
    }


def test_markers_show_on_the_page(folder: Path) -> None:
    (folder / "unit" / "test_a.py").write_text(f"# {MARK} event_channel_op/send\n")
    link = "[test_a.py](../tests/unit/test_a.py)"
    lines = [line for line in hypercall_table.render(tests=folder).splitlines() if link in line]
    assert [line.split(" | ")[0] for line in lines] == ["| 32", "| 4"]


def test_a_misspelt_marker_is_an_error(folder: Path) -> None:
    (folder / "test_a.py").write_text(f"\n# {MARK} hypercall set_gtd\n")
    with pytest.raises(TableError, match=r"test_a.py:2: no hypercall or command 'set_gtd'"):
        hypercall_table.render(tests=folder)


@pytest.mark.parametrize("text, told", [
    ("ROW(1, a, 0, C) x\n", "t.def:1: not a row"),
    ("/* head\n */\nROW(1, a)\nROW(1, b)\n", "b .1. is not above a .1."),
    ("/* head */\n\nROW(one, a)\n", "t.def:3: not a row"),
], ids=["more", "twice", "number"])
def test_a_broken_table_is_an_error(tmp_path: Path, text: str, told: str) -> None:
    table = tmp_path / "t.def"
    table.write_text(text)
    with pytest.raises(TableError, match=told):
        hypercall_table.rows(table)
