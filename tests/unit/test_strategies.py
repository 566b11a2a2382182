"""The hypercall strategies: their tables, and what they draw."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlike.testing import strategies
from xenlike.testing.machines.layouts import LAYOUTS
from xenlike.testing.machines.model_driver import ModelDriver
from xenlike.testing.models.abi import U64
from xenlike.testing.strategies import Hypercall, SubCommand, World

DEFS = Path(__file__).resolve().parents[2] / "csrc" / "include" / "xen"
TABLE = [
    Hypercall("event_channel_op", 32, ("cmd", "arg"), (SubCommand("close", 3, "evtchn_close"),
                                                       SubCommand("send", 4, "evtchn_send"))),
    Hypercall("mmu_update", 1, strategies.SHAPES["mmu_update"]),
    Hypercall("grant_table_op", 20, strategies.SHAPES["grant_table_op"], (SubCommand("copy", 5, "gnttab_copy"),)),
    Hypercall("stack_switch", 3, ("any", "address")),
]


def test_rows_of_a_def_file():
    """Numbers would be read from comments, or notes with commas split a row."""
    text = """/* HYPERCALL(9, no, 1, C, "x") */
HYPERCALL(1, mmu_update, 4, C, "one, two")
  HYPERCALL(0x2, b, 0, PY, "three") /* note */
"""
    assert strategies.parse_rows(text, "HYPERCALL") == [("1", "mmu_update", "4", "C", "one, two"),
                                                        ("0x2", "b", "0", "PY", "three")]


def test_read_tables():
    """Strategies would miss hypercalls that exist, or pass a wrong number."""
    if not DEFS.is_dir():
        pytest.skip("no csrc/include/xen beside the tests: not a source tree")
    table = {row.name: row for row in strategies.read_tables(DEFS)}
    assert table["event_channel_op"].number == 32 and table["mmuext_op"].number == 26
    commands = {sub.name: sub for sub in table["grant_table_op"].commands}
    assert commands["copy"] == SubCommand("copy", 5, "gnttab_copy")
    assert {sub.structure for sub in table["event_channel_op"].commands} <= LAYOUTS.keys()
    assert all(row.shape == strategies.SHAPES[row.name] for row in table.values())


def test_read_tables_of_the_wrong_folder(tmp_path):
    """An empty table would make every fuzz test pass."""
    (tmp_path / "hypercalls.def").write_text("nothing")
    with pytest.raises(ValueError, match="no HYPERCALL"):
        strategies.read_tables(tmp_path)


def test_tables_from_constants():
    """A compiled core without its source tree could not be fuzzed."""
    table = strategies.tables_from_constants({"__HYPERVISOR_event_channel_op": 32, "__HYPERVISOR_odd": 55,
                                              "EVTCHNOP_send": 4, "EVTCHNOP_close": 3, "ELSE_x": 1})
    assert table == [Hypercall("event_channel_op", 32, ("cmd", "arg"), (
        SubCommand("close", 3, "evtchn_close"), SubCommand("send", 4, "evtchn_send"))),
        Hypercall("odd", 55, ("any",) * 5)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from((None, True, False)))
def test_calls_are_well_formed(data, hostile):
    """A driver could not make the call: registers of 64 bits, structures inside the scratch pages."""
    world = World(scratch=0x10000)
    call = data.draw(strategies.calls(TABLE, world, hostile=hostile))
    row = next(row for row in TABLE if row.name == call.name)
    assert call.number == row.number and len(call.args) == len(row.shape)
    assert all(0 <= arg <= U64 for arg in call.args)
    assert all(offset + len(data) <= strategies.SCRATCH_SIZE for offset, data in call.memory)
    if hostile is False and call.name == "mmu_update":
        assert world.scratch <= call.args[0] < world.scratch + strategies.SCRATCH_SIZE


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_without(data):
    """A test that must not shut its domain down would do so by chance."""
    call = data.draw(strategies.calls(TABLE, World(scratch=0), without=("mmu_update", "event_channel_op.close")))
    assert call.name != "mmu_update" and (call.name != "event_channel_op" or call.args[0] != 3)


def test_without_everything():
    """An empty choice would be an obscure error from deep inside Hypothesis."""
    with pytest.raises(ValueError, match="left to draw"):
        strategies.calls(TABLE, World(scratch=0), without=[row.name for row in TABLE])


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_unknown_calls(data):
    """A known number would be called with garbage and its answer called wrong."""
    call = data.draw(strategies.unknown_calls(TABLE))
    assert call.number not in {row.number for row in TABLE}
    driver = ModelDriver()
    driver.create_domain()
    if call.number not in driver.calls:
        assert driver.hypercall(0, 0, call.number, call.args) == -38


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_structures_of_every_layout(name):
    """A field name without a strategy, or a value too wide for its field, would stop a fuzz run."""
    layout = LAYOUTS[name]

    @settings(max_examples=5, database=None)
    @given(strategies.structures(layout, World(scratch=0x1000)),
           strategies.structures(layout, World(scratch=0x1000), hostile=True))
    def drawn(plausible, hostile):
        assert len(plausible) == len(hostile) == layout.size

    drawn()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_storm_of_calls_leaves_the_model_consistent(data):
    """Hostile arguments would upset the counts: whatever the answers, they must add up, and nothing may leak."""
    driver = ModelDriver()
    before = driver.counts()
    domid = driver.create_domain()
    other = driver.create_domain(privileged=True)
    world = World(scratch=driver.scratch(domid), domids=(domid, other),
                  mfns=tuple(driver.layout[domid]["mfns"][4:20]), addresses=(driver.va_of(domid, 8),))
    for _ in range(8):
        call = data.draw(strategies.calls(TABLE, world))
        try:
            call.place(driver, domid)
        except MemoryError:
            break                                   # it has unmapped its own scratch pages
        driver.hypercall(domid, 0, call.number, call.args)
    driver.memory.check()
    driver.grants.check()
    driver.destroy_domain(domid)
    driver.destroy_domain(other)
    assert driver.counts() == before
