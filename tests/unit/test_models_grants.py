"""The grant model against the words of the ABI: pins, mappings, copies, what death leaves."""

import pytest

from xenlike.testing.models import grants as spec
from xenlike.testing.models.abi import DOMID_SELF, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenlike.testing.models.frames import ACCESSED, DIRTY, GLOBAL, GUEST_KERNEL, L1, L4, NX, PRESENT, RW, USER
from xenlike.testing.models.grants import (APPLICATION_MAP, CONTAINS_PTE, DEST_GREF, DEVICE_MAP, HOST_MAP, MAP_READONLY,
                                           PERMIT_ACCESS, READING, READONLY, SOURCE_GREF, SUB_PAGE, WRITING)
from xenlike.testing.models.pagetypes import PageTypes

DOM0, A, B = 0, 1, 2
TABLE = PRESENT | RW | USER | ACCESSED | DIRTY
REF = 8


class Host:
    """A grants to B; B maps at VA 0x0…0x7000, whose L1 is `l1`. `frame` is A's frame in question."""

    def __init__(self):
        self.memory = PageTypes(512)
        self.model = spec.GrantModel(self.memory)
        self.frames = {}
        for domid in (DOM0, A, B):
            self.memory.add_owner(domid, 1, privileged=domid == DOM0)
            self.frames[domid] = [self.memory.allocate(domid, 0)[0] for _ in range(16)]
            l4, l3, l2, l1 = tables = self.frames[domid][:4]
            for table, child in zip(tables, tables[1:]):
                self.memory.frames[table].set_entry(0, child << 12 | TABLE)
            assert self.memory.pin(l4, L4, domid) == 0 and self.memory.new_base(domid, 0, l4) == 0
            grant_frame = self.memory.lowest_free(0)
            self.memory.assign(grant_frame, domid, special=True)
            self.model.create_domain(domid, [grant_frame])
        self.frame, self.l1 = self.frames[A][8], self.frames[B][3]

    def grant(self, flags=PERMIT_ACCESS, *, to=B, frame=None, ref=REF, by=A):
        self.model.write_entry(by, ref, flags, to, self.frame if frame is None else frame)

    def map(self, flags=HOST_MAP, *, addr=0, ref=REF, dom=A, by=B):
        return self.model.map(by, 0, addr, flags, ref, dom)

    def flags(self, ref=REF, by=A):
        return self.model.read_entry(by, ref)[0]

    def counts(self, mfn=None):
        frame = self.memory.frames[self.frame if mfn is None else mfn]
        return frame.refs, frame.type_refs

    def pte(self, slot=0):
        return self.memory.frames[self.l1].entry(slot)


@pytest.fixture
def host():
    found = Host()
    yield found
    found.memory.check()
    found.model.check()


def test_map_and_unmap(host):
    """The everyday case: entry pinned, frame held, page table entry as documented, and all of it undone."""
    host.grant()
    status, handle, bus = host.map()
    assert status == 0 and bus == host.frame << 12
    assert host.flags() == PERMIT_ACCESS | READING | WRITING
    assert host.pte() == host.frame << 12 | PRESENT | RW | USER | ACCESSED | DIRTY | GUEST_KERNEL | NX
    assert host.counts() == (2, 1)
    assert host.model.unmap(B, 0, 0, 0, handle) == 0            # no address: nothing is dropped
    assert host.counts() == (2, 1)
    assert host.model.unmap(B, 0, 0x1000, 0, handle) == spec.GENERAL_ERROR


def test_unmap_releases_everything(host):
    """Revoking would stay busy for ever, and the frame could never be reused."""
    host.grant()
    _, handle, _ = host.map(addr=0x1000)
    assert not host.model.revoke(A, REF)
    assert host.model.unmap(B, 0, 0x1000, 0, handle) == 0
    assert host.flags() == PERMIT_ACCESS and host.counts() == (1, 0) and host.pte(1) == 0
    assert host.model.unmap(B, 0, 0x1000, 0, handle) == spec.BAD_HANDLE
    assert host.model.revoke(A, REF) and host.flags() == 0


@pytest.mark.parametrize("flags, bits", [
    (HOST_MAP | MAP_READONLY, USER | GUEST_KERNEL), (HOST_MAP | APPLICATION_MAP, USER | GLOBAL | RW),
    (HOST_MAP | 5 << 16, USER | GUEST_KERNEL | RW | 5 << 9)])
def test_mapping_flags_show_in_the_entry(host, flags, bits):
    """User space mappings, read-only ones and a kernel's own markers would be wrong."""
    host.grant()
    assert host.map(flags)[0] == 0
    assert host.pte() == host.frame << 12 | PRESENT | ACCESSED | DIRTY | NX | bits


def test_readonly(host):
    """A read-only grant could be written, or a read-only mapping would hold the frame writable."""
    host.grant(PERMIT_ACCESS | READONLY)
    assert host.map()[0] == spec.GENERAL_ERROR and host.flags() == PERMIT_ACCESS | READONLY
    assert host.map(HOST_MAP | MAP_READONLY)[0] == 0
    assert host.flags() == PERMIT_ACCESS | READONLY | READING and host.counts() == (2, 0)
    assert host.map(addr=0x1000)[0] == spec.GENERAL_ERROR       # the first write looks at the entry again
    assert host.counts() == (2, 0)


def test_later_pins_do_not_look_at_the_entry(host):
    """A granter that changes its mind must revoke, not scribble: a pinned entry stays usable by its mapper."""
    host.grant()
    host.map()
    host.grant(0, to=DOM0, frame=host.frames[A][9])
    assert host.map(addr=0x1000)[0] == 0
    assert host.pte(1) >> 12 & 0xFFFF == host.frame


@pytest.mark.parametrize("case, status", [
    ("no mapping asked for", -3), ("unknown domain", -2), ("SELF is no domain here", -2),
    ("reference out of range", -3),
    ("not granted", -1), ("granted to another", -1), ("transfer entry", -1), ("sub-page", -1), ("frame of another", -1),
    ("no RAM", -1), ("frame is a page table", -1), ("no L1 there", -1), ("hypervisor address", -1)])
def test_map_errors(host, case, status):
    """Back ends tell these apart, and a failing map must leave nothing behind."""
    entry = {"not granted": dict(flags=0), "granted to another": dict(to=DOM0), "transfer entry": dict(flags=2),
             "sub-page": dict(flags=PERMIT_ACCESS | SUB_PAGE), "frame of another": dict(frame=host.frames[B][9]),
             "no RAM": dict(frame=1 << 31), "frame is a page table": dict(frame=host.frames[A][3])}
    host.grant(**entry.get(case, {}))
    call = {"no mapping asked for": dict(flags=MAP_READONLY), "unknown domain": dict(dom=77),
            "SELF is no domain here": dict(dom=DOMID_SELF), "reference out of range": dict(ref=512),
            "no L1 there": dict(addr=0x200000), "hypervisor address": dict(addr=0xFFFF_8000_0000_0000)}
    before = host.flags()
    assert host.map(**call.get(case, {}))[0] == status
    assert host.flags() == before and host.counts() == (1, 0)
    assert not host.model.tables[B].mappings


def test_unowned_frame_status():
    """Xen itself answers -9 where the ABI description says -1: a driver may choose."""
    host = Host()
    host.model.unowned_frame = spec.BAD_PAGE
    host.grant(frame=host.frames[B][9])
    assert host.map()[0] == spec.BAD_PAGE


def test_contains_pte(host):
    """The machine address of an entry: misaligned ones would tear two entries (XSA-227)."""
    host.grant()
    address = host.l1 << 12 | 3 * 8
    assert host.map(HOST_MAP | CONTAINS_PTE, addr=address - 2)[0] == spec.GENERAL_ERROR
    assert host.map(HOST_MAP | CONTAINS_PTE, addr=host.frames[B][8] << 12)[0] == spec.GENERAL_ERROR
    assert host.map(HOST_MAP | CONTAINS_PTE, addr=host.frames[A][3] << 12)[0] == spec.GENERAL_ERROR
    status, handle, _ = host.map(HOST_MAP | CONTAINS_PTE, addr=address)
    assert status == 0 and host.pte(3) & PRESENT
    assert host.model.unmap_and_replace(B, 0, address, 0x1000, handle) == spec.GENERAL_ERROR
    assert host.model.unmap(B, 0, address, 0, handle) == 0 and host.pte(3) == 0


def test_device_and_host_halves(host):
    """Each half is dropped by its own address, the handle goes with the last one (XSA-224)."""
    host.grant()
    status, handle, bus = host.map(HOST_MAP | DEVICE_MAP)
    assert status == 0 and host.counts() == (3, 2)
    assert host.model.unmap(B, 0, 0, bus + 4096, handle) == spec.BAD_DEV_ADDR
    assert host.model.unmap(B, 0, 0, bus, handle) == 0 and host.counts() == (2, 1)
    assert host.model.unmap(B, 0, 0, bus, handle) == 0 and host.counts() == (2, 1)
    assert host.flags() == PERMIT_ACCESS | READING | WRITING
    host.memory.update_va_mapping(A, 0, 0, 0)
    assert host.memory.pin(host.frame, L1, A) == -EINVAL        # still mapped writable
    assert host.model.unmap(B, 0, 0x0, 0, handle) == 0


def test_device_only(host):
    """A device mapping needs no page table entry."""
    host.grant()
    status, handle, bus = host.map(DEVICE_MAP | MAP_READONLY, addr=0x200000)
    assert status == 0 and host.counts() == (2, 0) and host.flags() == PERMIT_ACCESS | READING
    assert host.model.unmap(B, 0, 0, bus, handle) == 0 and host.counts() == (1, 0)


def test_writing_goes_with_the_last_writer(host):
    """The granter's "writing" bit would be wrong while readers remain."""
    host.grant()
    _, reader, _ = host.map(HOST_MAP | MAP_READONLY, addr=0x1000)
    _, writer, _ = host.map(addr=0x2000)
    assert host.model.unmap(B, 0, 0x2000, 0, writer) == 0
    assert host.flags() == PERMIT_ACCESS | READING
    assert host.model.unmap(B, 0, 0x1000, 0, reader) == 0 and host.flags() == PERMIT_ACCESS


def test_pin_counters_do_not_overflow(host):
    """128 mappings of a kind is all a counter takes; the next must fail, not wrap."""
    host.grant()
    assert [host.map(addr=n << 12)[0] for n in range(128)] == [0] * 128
    assert host.map(addr=130 << 12)[0] == spec.GENERAL_ERROR
    assert host.map(HOST_MAP | MAP_READONLY, addr=130 << 12)[0] == 0


def test_a_mapping_over_another(host):
    """What was mapped there before would leak, or be freed while in use."""
    own = host.frames[B][9]
    host.memory.update_va_mapping(B, 0, 0, own << 12 | PRESENT | RW)
    host.grant()
    assert host.map()[0] == 0 and host.counts(own) == (1, 0)
    host.grant(ref=9, frame=host.frames[A][9])
    assert host.map(ref=9)[0] == 0
    assert host.counts() == (1, 0)                              # its entry is gone …
    assert host.flags() & WRITING                               # … but the pin stays
    assert not host.model.revoke(A, REF)


def test_overwritten_entry_cannot_be_unmapped(host):
    """A guest that clears a grant's entry by itself must not get the references dropped twice."""
    host.grant()
    _, handle, _ = host.map()
    assert host.memory.update_va_mapping(B, 0, 0, 0) == 0 and host.counts() == (1, 0)
    assert host.model.unmap(B, 0, 0, 0, handle) == 0            # address 0 means "not this half"
    _, second, _ = host.map(addr=0x1000)
    assert host.memory.update_va_mapping(B, 0, 0x1000, 0) == 0
    assert host.model.unmap(B, 0, 0x1000, 0, second) == spec.GENERAL_ERROR
    assert host.flags() & READING


def test_unmap_checks_the_entry_against_the_grant(host):
    """A guest could have another frame's references dropped by pointing at its entry."""
    host.grant()
    host.grant(ref=9, frame=host.frames[A][9])
    _, first, _ = host.map(addr=0x1000)
    _, second, _ = host.map(ref=9, addr=0x2000)
    assert host.model.unmap(B, 0, 0x2000, 0, first) == spec.GENERAL_ERROR
    _, reader, _ = host.map(HOST_MAP | MAP_READONLY, addr=0x3000)
    assert host.model.unmap(B, 0, 0x1000, 0, reader) == spec.GENERAL_ERROR      # writable there, read-only here
    assert host.model.unmap(B, 0, 0x1000, 0, first) == host.model.unmap(B, 0, 0x2000, 0, second) == 0


def test_unmap_and_replace(host):
    """The other address's entry moves, references and all; when it fails, that entry is lost (XSA-234)."""
    own = host.frames[B][9]
    host.memory.update_va_mapping(B, 0, 0x5000, own << 12 | PRESENT | RW)
    moved = host.pte(5)
    host.grant()
    _, handle, _ = host.map(addr=0x1000)
    assert host.model.unmap_and_replace(B, 0, 0x1000, 0x200000, handle) == spec.GENERAL_ERROR
    assert host.model.unmap_and_replace(B, 0, 0x1000, 0x5000, handle) == 0
    assert (host.pte(1), host.pte(5)) == (moved, 0) and host.counts(own) == (2, 1) and host.counts() == (1, 0)
    _, handle, _ = host.map(addr=0x2000)
    assert host.model.unmap_and_replace(B, 0, 0x3000, 0x1000, handle) == spec.GENERAL_ERROR
    assert host.pte(1) == 0 and host.counts(own) == (1, 0) and host.counts() == (2, 1)


def test_maptrack_runs_out(host):
    """A guest could make the hypervisor track without limit."""
    host.model.tables[B].max_mappings = 1
    host.grant()
    assert host.map()[0] == 0 and host.map(addr=0x1000)[0] == spec.NO_SPACE


def test_self_grant(host):
    """XTF grants to itself."""
    host.grant(to=A)
    assert host.map(by=A)[0] == 0 and host.counts() == (2, 1)


def copied(host, flags, source=None, dest=None, length=16, by=B, **domids):
    source = source or (REF, domids.get("source_dom", A), 0)
    dest = dest or (host.frames[B][9], domids.get("dest_dom", DOMID_SELF), 32)
    return host.model.copy(by, source, dest, length, flags)


def test_copy_in_and_out(host):
    """Network and block data would end up elsewhere, or the entry stay marked in use."""
    host.memory.frames[host.frame].write(0, bytes(range(16)))
    host.grant(PERMIT_ACCESS | READONLY)
    assert copied(host, SOURCE_GREF) == 0
    assert host.memory.frames[host.frames[B][9]].data[32:48] == bytes(range(16))
    assert host.flags() == PERMIT_ACCESS | READONLY and host.counts() == (1, 0)
    out = (host.frames[B][9], DOMID_SELF, 32), (REF, A, 100)
    assert host.model.copy(B, *out, 16, DEST_GREF) == spec.GENERAL_ERROR        # a read-only grant
    host.grant()
    assert host.model.copy(B, *out, 16, DEST_GREF) == 0
    assert host.memory.frames[host.frame].data[100:116] == bytes(range(16))


@pytest.mark.parametrize("case, status", [
    ("a frame by number of another", -8), ("its own id instead of SELF", -8), ("unknown domain", -2),
    ("reference out of range", -3), ("not granted", -1), ("source off the page", -10), ("dest off the page", -10),
    ("a frame not owned", -9), ("granted frame not owned", -9), ("into a page table", -1), ("nothing at all", 0)])
def test_copy_errors(host, case, status):
    """Each with its own code, and nothing left pinned or held."""
    granted = {"not granted": dict(flags=0), "granted frame not owned": dict(frame=host.frames[B][9])}
    host.grant(**granted.get(case, {}))
    mine = host.frames[B][9]
    call = {"a frame by number of another": dict(dest=(mine, A, 0)),
            "its own id instead of SELF": dict(dest=(mine, B, 0)),
            "unknown domain": dict(source_dom=99), "reference out of range": dict(source=(512, A, 0)),
            "source off the page": dict(source=(REF, A, 4090)),
            "dest off the page": dict(dest=(mine, DOMID_SELF, 4081)),
            "a frame not owned": dict(dest=(host.frame, DOMID_SELF, 0)),
            "into a page table": dict(dest=(host.l1, DOMID_SELF, 0)),
            "nothing at all": dict(source=(9999, 99, 0), length=0)}
    assert copied(host, SOURCE_GREF, **call.get(case, {})) == status
    assert not host.flags() & (READING | WRITING) and host.counts() == (1, 0) and host.counts(mine) == (1, 0)


def test_copy_between_two_grants(host):
    """A back end copies from one guest to another without mapping either."""
    host.memory.frames[host.frame].write(0, b"payload")
    host.grant(to=DOM0)
    host.grant(to=DOM0, by=B, frame=host.frames[B][9])
    assert host.model.copy(DOM0, (REF, A, 0), (REF, B, 2048), 7, SOURCE_GREF | DEST_GREF) == 0
    assert host.memory.frames[host.frames[B][9]].data[2048:2055] == b"payload"


def test_setup_table(host):
    """A guest would not find its table, or grow it without limit."""
    assert host.model.setup_table(A, DOMID_SELF, 1, count=2)[0] == -EINVAL
    rc, status, frames = host.model.setup_table(A, DOMID_SELF, 3)
    assert (rc, status, len(frames)) == (0, 0, 3) and len(set(frames)) == 3
    assert host.model.query_size(A, DOMID_SELF) == (0, 0, 3, 64)
    assert host.model.setup_table(A, DOMID_SELF, 2)[2] == frames[:2]
    assert host.model.setup_table(A, DOMID_SELF, 65)[1] == spec.GENERAL_ERROR
    assert host.model.setup_table(A, B, 1)[1] == spec.PERMISSION_DENIED
    assert host.model.setup_table(A, 99, 1)[1] == spec.BAD_DOMAIN
    assert host.model.setup_table(DOM0, A, 1)[1:] == (0, frames[:1])
    host.grant(ref=1500)
    assert host.map(ref=1500)[0] == 0 and host.map(ref=1536)[0] == spec.BAD_GNTREF


def test_versions(host):
    """Linux falls back to version 1 on -ENOSYS only."""
    assert host.model.set_version(A, 1) == (0, 1) and host.model.set_version(A, 2) == (-ENOSYS, 1)
    assert host.model.set_version(A, 0) == host.model.set_version(A, 3) == (-EINVAL, 1)
    assert host.model.get_version(A, DOMID_SELF) == (0, 1) and host.model.get_version(DOM0, A) == (0, 1)
    assert host.model.get_version(A, B)[0] == -EPERM and host.model.get_version(A, 99)[0] == -ESRCH
    assert host.model.get_status_frames(A, DOMID_SELF, 1) == (0, spec.GENERAL_ERROR)
    assert host.model.get_status_frames(A, DOMID_SELF, 0, count=2)[0] == -EINVAL


def test_query_size_and_others(host):
    """Management of a table that is not one's own."""
    assert host.model.query_size(A, DOMID_SELF, count=0)[0] == -EINVAL
    assert host.model.query_size(A, B)[1] == spec.PERMISSION_DENIED
    assert host.model.dump_table(A, DOMID_SELF) == 0 and host.model.dump_table(A, 99) == spec.BAD_DOMAIN
    assert host.model.transfer() == host.model.cache_flush() == -EOPNOTSUPP


def test_swap(host):
    """An entry in use would move away under its mapper."""
    host.grant()
    assert host.model.swap_grant_ref(A, REF, 20) == 0
    assert host.flags() == 0 and host.flags(20) == PERMIT_ACCESS
    assert host.model.swap_grant_ref(A, REF, REF) == 0 and host.model.swap_grant_ref(A, 512, REF) == spec.BAD_GNTREF
    host.map(ref=20)
    assert host.model.swap_grant_ref(A, 20, REF) == spec.EAGAIN and host.flags(20) & WRITING


def test_death_of_the_granter(host):
    """A frame that is still mapped would be given to somebody else."""
    host.grant()
    _, handle, _ = host.map(addr=0x1000)
    host.model.destroy_domain(A)
    host.memory.destroy_owner(A)
    assert host.counts() == (1, 1) and host.memory.frames[host.frame].owner == A
    assert host.map(addr=0x2000)[0] == spec.BAD_DOMAIN
    assert host.model.unmap(B, 0, 0x1000, 0, handle) == 0
    assert host.memory.frames[host.frame].owner is None and A not in host.memory.owners


@pytest.mark.parametrize("flags", [HOST_MAP, DEVICE_MAP, HOST_MAP | DEVICE_MAP, HOST_MAP | MAP_READONLY])
def test_death_of_the_mapper(host, flags):
    """The granter could never revoke, and its frame never become a page table again."""
    host.grant()
    assert host.map(flags)[0] == 0
    host.model.destroy_domain(B)
    host.memory.destroy_owner(B)
    assert host.counts() == (1, 0) and host.model.revoke(A, REF)
    assert host.memory.pin(host.frame, L1, A) == 0


def test_a_table_cannot_be_granted_writable_nor_a_granted_frame_become_one(host):
    """The page table safety model would have a hole through grants."""
    host.grant()
    host.map(HOST_MAP | MAP_READONLY)
    assert host.memory.pin(host.frame, L1, A) == 0              # read-only mappings of a table are harmless
    assert host.map(addr=0x1000)[0] == spec.GENERAL_ERROR
    assert host.counts() == (3, 1)                              # allocation, pin, and the reader


def test_checks_find_a_lost_pin():
    """The invariant would prove nothing."""
    host = Host()
    host.grant()
    host.map()
    host.model.check()
    host.model.tables[B].mappings.clear()
    with pytest.raises(AssertionError):
        host.model.check()
