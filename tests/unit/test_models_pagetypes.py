"""The page type model against the words of the ABI: validation, adjustment, counts, reservations."""

import pytest

from xenlike.testing.models.abi import (DOMID_SELF, EACCES, EBUSY, EFAULT, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM,
                                        ESRCH)
from xenlike.testing.models.frames import (ACCESSED, DIRTY, GLOBAL, GUEST_KERNEL, INVALID_M2P, L1, L2, L3, L4, NO_MFN,
                                           NONE, NX, PAT_PSE, PCD, PRESENT, PWT, RW, USER, WRITABLE, adjust)
from xenlike.testing.models.pagetypes import PageTypes

DOM0, A, B = 0, 1, 2
P, PW = PRESENT, PRESENT | RW
TABLE = PRESENT | RW | USER | ACCESSED | DIRTY


def entry(mfn, flags):
    return mfn << 12 | flags


class Host(PageTypes):
    """Three domains; A has free frames 1..16 and no page tables yet."""

    def __init__(self, linear=False):
        super().__init__(256, linear=linear)
        for domid in (DOM0, A, B):
            self.add_owner(domid, 2, privileged=domid == DOM0, max_pages=24)
        self.a = [self.allocate(A, 0)[0] for _ in range(16)]
        self.b = [self.allocate(B, 0)[0] for _ in range(4)]
        self.zero = [self.allocate(DOM0, 0)[0] for _ in range(4)]

    def set(self, mfn, slot, value):
        self.frames[mfn].set_entry(slot, value)

    def tower(self):
        """A linear tower l4 → l3 → l2 → l1 that maps one data frame at VA 0, pinned; data is a[4]."""
        l4, l3, l2, l1, data = self.a[:5]
        for table, child in ((l4, l3), (l3, l2), (l2, l1)):
            self.set(table, 0, entry(child, TABLE))
        self.set(l1, 0, entry(data, PW))
        assert self.pin(l4, L4, A) == 0
        return l4, l3, l2, l1, data

    def counts(self, mfn):
        frame = self.frames[mfn]
        return frame.refs, frame.type if frame.type_refs else NONE, frame.type_refs


@pytest.fixture
def host():
    model = Host()
    yield model
    model.check()


def test_adjustment():
    """Guests compare what they read back: U everywhere, bit 52 for kernel pages, G for user ones, A in L4."""
    assert adjust(L1, P) == P | USER | GUEST_KERNEL
    assert adjust(L1, P | USER) == P | USER | GLOBAL
    assert adjust(L1, P | USER | GUEST_KERNEL) == P | USER | GUEST_KERNEL
    assert adjust(L2, P) == adjust(L3, P) == P | USER
    assert adjust(L4, P) == P | USER | ACCESSED
    assert adjust(L1, RW | 1 << 20) == RW | 1 << 20         # not present: untouched


def test_pinning_a_tower_counts_everything_once(host):
    """The safety model stands on these counts."""
    l4, l3, l2, l1, data = host.tower()
    assert host.counts(l4) == (2, L4, 1) and host.frames[l4].pinned
    assert host.counts(l3) == (2, L3, 1) and host.counts(l2) == (2, L2, 1) and host.counts(l1) == (2, L1, 1)
    assert host.counts(data) == (2, WRITABLE, 1)
    assert host.unpin(l4, A) == 0
    assert all(host.counts(mfn) == (1, NONE, 0) for mfn in (l4, l3, l2, l1, data))


@pytest.mark.parametrize("level", [L1, L2, L3, L4])
@pytest.mark.parametrize("flags", [PAT_PSE, PWT, PCD])
def test_bad_flags_are_einval_at_every_level(host, level, flags):
    """A domain without devices could map superpages or change cache attributes."""
    host.set(host.a[0], 3, entry(host.a[1], P | flags))
    assert host.pin(host.a[0], level, A) == -EINVAL
    assert host.counts(host.a[0]) == host.counts(host.a[1]) == (1, NONE, 0)


def test_global_only_in_l1(host):
    """G in an L1 entry is a guest's right, above it is not."""
    host.set(host.a[0], 0, entry(host.a[1], P | GLOBAL | NX | 7 << 9 | 1 << 60))
    assert host.pin(host.a[0], L1, A) == 0
    host.set(host.a[2], 0, entry(host.a[0], P | GLOBAL))
    assert host.pin(host.a[2], L2, A) == -EINVAL


@pytest.mark.parametrize("case, rc", [
    ("another domain's", -EBUSY), ("free", -EBUSY), ("no RAM", -EPERM), ("all ones", -EINVAL), ("a table, RW", -EBUSY),
    ("a table, RO", 0), ("garbage, not present", 0)])
def test_l1_entries(host, case, rc):
    """XTF and Linux tell these codes apart."""
    l1 = host.a[0]
    assert host.pin(host.a[1], L1, A) == 0
    host.set(l1, 7, {"another domain's": entry(host.b[0], P), "free": entry(200, P), "no RAM": entry(1 << 20, P),
                     "all ones": entry(NO_MFN, P), "a table, RW": entry(host.a[1], PW),
                     "a table, RO": entry(host.a[1], P), "garbage, not present": (1 << 63) - 2}[case])
    assert host.pin(l1, L1, A) == rc


def test_a_failed_promotion_leaves_nothing_behind(host):
    """Counts would drift with every failing pin."""
    l2, l1, data = host.a[:3]
    host.set(l2, 0, entry(l1, TABLE))
    host.set(l2, 1, entry(host.b[0], TABLE))
    host.set(l1, 0, entry(data, PW))
    assert host.pin(l2, L2, A) == -EINVAL
    assert all(host.counts(mfn) == (1, NONE, 0) for mfn in (l2, l1, data, host.b[0]))


def test_an_l1s_error_comes_through(host):
    """A failing L1 deep below must give its own code, not a general one."""
    l4, l3, l2, l1 = host.a[:4]
    for table, child in ((l4, l3), (l3, l2), (l2, l1)):
        host.set(table, 511, entry(child, TABLE))
    host.set(l1, 0, entry(host.b[0], PW))
    assert host.pin(l4, L4, A) == -EBUSY


def test_a_table_cannot_become_writable_nor_a_writable_page_a_table(host):
    """The whole safety model."""
    l4, _, _, l1, data = host.tower()
    assert host.pin(data, L1, A) == -EINVAL
    assert host.mmu_update(A, [(l1 << 12 | 8, entry(l1, PW))]) == (-EBUSY, 0)
    assert host.mmu_update(A, [(l1 << 12 | 8, entry(l4, PW))]) == (-EBUSY, 0)
    assert host.mmu_update(A, [(l1 << 12 | 8, entry(l1, P))]) == (0, 1)


def test_mmu_update_stops_at_the_first_error_and_says_how_far(host):
    """A guest would not know which of its requests took effect."""
    *_, l1, data = host.tower()
    other = host.a[5]
    assert host.mmu_update(A, [(l1 << 12 | 8, entry(other, PW)), (l1 << 12 | 16, entry(host.b[0], PW)),
                               (l1 << 12 | 24, entry(other, P))]) == (-EBUSY, 1)
    assert host.frames[l1].entry(1) == entry(other, adjust(L1, PW)) and host.frames[l1].entry(3) == 0
    assert host.counts(other) == (2, WRITABLE, 1)
    assert host.mmu_update(A, []) == (0, 0)


def test_replacing_an_entry_moves_the_references(host):
    """Frames would leak, or be freed while mapped."""
    *_, l1, data = host.tower()
    other = host.a[5]
    assert host.mmu_update(A, [(l1 << 12, entry(other, P))]) == (0, 1)
    assert host.counts(data) == (1, NONE, 0) and host.counts(other) == (2, NONE, 0)
    assert host.mmu_update(A, [(l1 << 12, entry(other, PW))]) == (0, 1)
    assert host.counts(other) == (2, WRITABLE, 1)
    assert host.mmu_update(A, [(l1 << 12, 0)]) == (0, 1)
    assert host.counts(other) == (1, NONE, 0)


def test_mmu_update_of_data_is_a_plain_store(host):
    """A guest may prepare a page table by hypercall before it is one."""
    page = host.a[6]
    assert host.mmu_update(A, [(page << 12 | 80, 0x1234567)]) == (0, 1)
    assert host.frames[page].entry(10) == 0x1234567 and host.counts(page) == (1, NONE, 0)


def test_preserve_ad(host):
    """Linux's mprotect would lose accessed and dirty bits set meanwhile."""
    *_, l1, data = host.tower()
    host.mmu_update(A, [(l1 << 12, entry(data, PW | ACCESSED | DIRTY))])
    assert host.mmu_update(A, [(l1 << 12 | 2, entry(data, P))]) == (0, 1)
    assert host.frames[l1].entry(0) == entry(data, adjust(L1, P) | ACCESSED | DIRTY)
    assert host.mmu_update(A, [(l1 << 12 | 3, entry(data, P))]) == (0, 1)
    assert host.frames[l1].entry(0) == entry(data, adjust(L1, P))


def test_mmu_update_errors(host):
    """Each misuse has its own code."""
    l4, *_ = host.tower()
    assert host.mmu_update(A, [(host.b[0] << 12, 0)]) == (-EINVAL, 0)
    assert host.mmu_update(A, [(1 << 40, 0)]) == (-EINVAL, 0)
    assert host.mmu_update(A, [(l4 << 12 | 4, 0)]) == (-ENOSYS, 0)
    assert host.mmu_update(A, [(l4 << 12 | 256 * 8, 0)]) == (-EINVAL, 0)        # Xen's slots
    assert host.mmu_update(A, [(l4 << 12 | 271 * 8, entry(host.a[1], TABLE))]) == (-EINVAL, 0)
    assert host.mmu_update(A, [(l4 << 12 | 272 * 8, entry(host.a[1], TABLE))]) == (0, 1)
    assert host.mmu_update(A, [(l4 << 12, 0)], 99) == (-ESRCH, 0)
    assert host.mmu_update(A, [(l4 << 12, 0)], B) == (-EPERM, 0)
    assert host.mmu_update(A, [(l4 << 12, 0)], DOMID_SELF | (B + 1) << 16) == (-EPERM, 0)
    assert host.mmu_update(A, [(l4 << 12, 0)], DOMID_SELF | 100 << 16) == (-ESRCH, 0)
    assert host.mmu_update(A, [], A) == (-ESRCH, 0)         # oneself is DOMID_SELF


def test_machphys_update(host):
    """The M2P could be corrupted for frames of others."""
    assert host.mmu_update(A, [(host.a[0] << 12 | 1, 4242)]) == (0, 1) and host.frames[host.a[0]].m2p == 4242
    assert host.mmu_update(A, [(host.b[0] << 12 | 1, 1)]) == (-EINVAL, 0)
    assert host.mmu_update(DOM0, [(host.b[0] << 12 | 1, 7)], B) == (0, 1) and host.frames[host.b[0]].m2p == 7


def test_pin_and_unpin_errors(host):
    """Double pins would leak references for ever."""
    l4, l3, *_ = host.tower()
    assert host.pin(l4, L4, A) == -EINVAL
    assert host.pin(l3, L2, A) == -EINVAL                   # in use as an L3
    assert host.pin(host.b[0], L1, A) == host.pin(1 << 30, L1, A) == -EINVAL
    assert host.unpin(l3, A) == host.unpin(host.b[0], A) == -EINVAL
    assert host.pin(l3, L3, A) == 0 and host.counts(l3) == (3, L3, 2)
    assert host.unpin(l4, A) == 0 and host.counts(l3) == (2, L3, 1)
    assert host.unpin(l3, A) == 0


def test_base_pointers(host):
    """A table in use as a root could be taken apart under the vCPU."""
    l4, *_ = host.tower()
    ext = lambda *op: host.mmuext_op(A, 0, [op])[0]         # noqa: E731
    assert ext(5, l4, 0) == 0 and ext(5, l4, 0) == 0 and host.counts(l4) == (3, L4, 2)
    assert ext(15, l4, 0) == 0 and host.counts(l4) == (4, L4, 3)
    assert ext(4, l4, 0) == 0 and host.counts(l4) == (3, L4, 2)     # unpinned, still a table
    assert host.mmu_update(A, [(host.a[3] << 12, entry(l4, PW))]) == (-EBUSY, 0)
    other = host.a[8]
    assert ext(5, other, 0) == 0 and host.counts(l4) == (2, L4, 1)
    assert ext(15, 0, 0) == 0 and host.counts(l4) == (1, NONE, 0)
    assert ext(5, 0, 0) == -EINVAL and ext(5, host.b[0], 0) == -EINVAL
    assert host.mmuext_op(DOM0, 0, [(5, other, 0)], A)[0] == -EPERM


@pytest.mark.parametrize("cmd, rc", [(6, 0), (7, 0), (10, 0), (11, 0), (12, -EACCES), (18, -EACCES), (14, -ENOSYS),
                                     (19, -EOPNOTSUPP), (20, -EOPNOTSUPP), (21, -ENOSYS), (99, -ENOSYS)])
def test_other_mmuext_commands(host, cmd, rc):
    """XTF compares these codes literally."""
    assert host.mmuext_op(A, 0, [(cmd, 0, 0)])[0] == rc


def test_vcpu_bitmaps(host):
    """An unreadable bitmap would be followed, or its update undone."""
    l4, *_ = host.tower()
    host.new_base(A, 0, l4)
    assert host.mmuext_op(A, 0, [(8, 0, 64)])[0] == 0
    assert host.mmuext_op(A, 0, [(8, 0, 0x7000)])[0] == host.mmuext_op(A, 0, [(9, 0, 1 << 63)])[0] == -EINVAL
    assert host.update_va_mapping(A, 0, 0x1000, entry(host.a[9], PW), 0x7000 | 1) == -EFAULT
    assert host.counts(host.a[9]) == (2, WRITABLE, 1)       # the update took effect all the same


def test_set_ldt_arguments(host):
    """A descriptor table could lie across the hypervisor."""
    for args, rc in (((0x1000, 8192), 0), ((0x1000, 8193), -EINVAL), ((0x1008, 1), -EINVAL), ((1 << 63, 1), -EINVAL),
                     ((0x1008, 0), 0)):
        assert host.mmuext_op(A, 0, [(13, *args)])[0] == rc


def test_clear_and_copy_page(host):
    """Page tables could be overwritten through CLEAR_PAGE."""
    l4, *_, data = host.tower()
    host.set(data, 5, 99)
    assert host.mmuext_op(A, 0, [(17, host.a[9], data)])[0] == 0 and host.frames[host.a[9]].entry(5) == 99
    assert host.mmuext_op(A, 0, [(16, data, 0)])[0] == 0 and host.frames[data].entry(5) == 0
    assert host.mmuext_op(A, 0, [(16, l4, 0)])[0] == host.mmuext_op(A, 0, [(17, l4, data)])[0] == -EINVAL
    assert host.mmuext_op(A, 0, [(17, data, host.b[0])])[0] == -EINVAL
    assert host.mmuext_op(A, 0, [(17, host.a[9], l4)])[0] == 0      # reading a table is anybody's right


def test_mmuext_on_another_domain(host):
    """Only a privileged caller may pin for others."""
    assert host.mmuext_op(A, 0, [(0, host.b[0], 0)], B) == (-EPERM, 0)
    assert host.mmuext_op(A, 0, [(0, host.b[0], 0)], 99) == (-ESRCH, 0)
    assert host.mmuext_op(DOM0, 0, [(0, host.b[0], 0), (0, host.a[0], 0)], B) == (-EINVAL, 1)
    assert host.frames[host.b[0]].pinned


def test_update_va_mapping(host):
    """The everyday call: it walks the current tables."""
    l4, _, _, l1, data = host.tower()
    assert host.update_va_mapping(A, 0, 0, 0) == -EINVAL            # no base table yet
    host.new_base(A, 0, l4)
    assert host.update_va_mapping(A, 0, 0x5000, entry(host.a[9], PW), 2) == 0
    assert host.frames[l1].entry(5) == entry(host.a[9], adjust(L1, PW))
    assert host.update_va_mapping(A, 0, 0x200000, 0) == -EINVAL     # no L1 there
    assert host.update_va_mapping(A, 0, 1 << 63, 0, 6) == -EINVAL
    assert host.update_va_mapping(A, 0, 0xFFFF_8000_0000_0000, 0) == -EINVAL
    assert host.update_va_mapping(A, 0, 0, entry(host.b[0], P)) == -EBUSY
    assert host.update_va_mapping(A, 0, 0, entry(host.b[0], P), 0, 99) == -ESRCH
    assert host.update_va_mapping(A, 0, 0, entry(host.b[0], P), 0, B) == -EPERM


def test_foreign_mapping_keeps_a_dead_domains_frame(host):
    """A frame that dom0 still maps would be handed to somebody else."""
    l4, l3, l2, l1 = host.zero
    for table, child in ((l4, l3), (l3, l2), (l2, l1)):
        host.set(table, 0, entry(child, TABLE))
    assert host.pin(l4, L4, DOM0) == 0 and host.new_base(DOM0, 0, l4) == 0
    assert host.update_va_mapping(DOM0, 0, 0, entry(host.b[0], PW), 0, B) == 0
    host.destroy_owner(B)
    assert host.counts(host.b[0]) == (1, WRITABLE, 1) and host.alive(B) is None and B in host.owners
    assert host.update_va_mapping(DOM0, 0, 0, 0) == 0
    assert host.frames[host.b[0]].owner is None and B not in host.owners


@pytest.mark.parametrize("linear, rc", [(False, -EINVAL), (True, 0)])
def test_linear_tables(linear, rc):
    """Recursive entries are refused outright, or taken by Xen's rules; adding RW to one never works (XSA-182)."""
    host = Host(linear)
    l4, l3, l2, l1, data = host.tower()
    assert host.mmu_update(A, [(l4 << 12 | 8, entry(l4, P))])[0] == rc
    assert host.mmu_update(A, [(l4 << 12 | 8, entry(l4, PW))])[0] == -EINVAL
    other = host.a[9]
    assert host.pin(other, L4, A) == 0
    assert host.mmu_update(A, [(other << 12, entry(l4, P))])[0] == rc
    assert host.mmu_update(A, [(l4 << 12 | 16, entry(other, P))])[0] == -EINVAL     # one step deep only
    host.check()
    host.destroy_owner(A)
    host.check()
    assert A not in host.owners


def test_special_frames_never_become_tables(host):
    """shared_info could be made a page table."""
    special = host.lowest_free(0)
    host.assign(special, A, special=True)
    assert host.pin(special, L1, A) == -EINVAL
    assert host.mmu_update(A, [(special << 12, 5)]) == (0, 1)
    assert host.current_reservation(A, DOMID_SELF) == 16


def test_populate(host):
    """The count, the M2P, the limit and the refusals of memory_op's extent commands."""
    made = host.populate_physmap(A, DOMID_SELF, [100, 101, 102])
    assert len(made) == 3 and [host.frames[m].m2p for m in made] == [100, 101, 102]
    assert host.current_reservation(A, DOMID_SELF) == 19 and host.maximum_reservation(A, DOMID_SELF) == 24
    assert len(host.populate_physmap(A, DOMID_SELF, range(200, 210))) == 5          # the limit
    assert host.populate_physmap(B, A, [1]) == host.populate_physmap(B, 99, [1]) == []
    assert host.populate_physmap(B, DOMID_SELF, [1], 10) == []
    assert host.populate_physmap(B, DOMID_SELF, [1], start=1) == []
    assert host.populate_physmap(B, DOMID_SELF, [1, 2], start=1)
    assert host.populate_physmap(B, B, [1], on_demand=True) == []


def test_an_extent_is_contiguous(host):
    """Larger orders would hand out scattered frames."""
    first, = host.populate_physmap(B, DOMID_SELF, [64], 2)
    assert first % 4 == 0 and [host.frames[first + n].m2p for n in range(4)] == [64, 65, 66, 67]


def test_decrease(host):
    """Ballooning: a frame still mapped survives until it is unmapped; twice is harmless."""
    *_, l1, data = host.tower()
    free = host.a[9]
    assert host.decrease_reservation(A, DOMID_SELF, [free, host.b[0], host.a[10]]) == 1
    assert host.frames[free].owner is None and host.frames[free].m2p == INVALID_M2P
    assert host.decrease_reservation(A, DOMID_SELF, [free]) == 0
    assert host.decrease_reservation(A, DOMID_SELF, [data, data]) == 2
    assert host.counts(data) == (1, WRITABLE, 1) and host.current_reservation(A, DOMID_SELF) == 15
    assert host.mmu_update(A, [(l1 << 12, 0)]) == (0, 1)
    assert host.frames[data].owner is None and host.current_reservation(A, DOMID_SELF) == 14
    assert host.decrease_reservation(A, B, [host.b[0]]) == 0


def test_reservation_queries(host):
    """A guest could spy on others' sizes."""
    assert host.current_reservation(A, B) == -EPERM and host.current_reservation(DOM0, B) == 4
    assert host.maximum_reservation(A, 99) == -ESRCH


def test_exchange(host):
    """Frames in use would be pulled from under the guest, or pages lost on an error."""
    *_, data = host.tower()
    gone = host.a[9]
    rc, done, made = host.exchange(A, [gone], [500])
    assert (rc, done) == (0, 1) and [host.frames[m].m2p for m in made] == [500] and gone not in made
    assert host.frames[gone].owner is None and len(host.owners[A].frames) == 16
    keep = host.a[11]
    assert host.exchange(A, [keep, data], [1, 2])[:2] == (-EINVAL, 1)
    assert host.exchange(A, [host.a[12]] * 2, [1, 2])[:2] == (-EINVAL, 1)
    assert host.exchange(A, [host.b[0]], [1])[:2] == (-EINVAL, 0)
    assert host.exchange(A, [1], [1], in_order=10)[0] == -EPERM
    assert host.exchange(A, [1], [1, 2])[0] == host.exchange(A, [1], [1], nr_exchanged=2)[0] == -EINVAL
    assert host.exchange(A, [1], [1], in_domid=A)[0] == -EINVAL
    assert host.exchange(A, [1], [1], in_domid=B, out_domid=B)[0] == -EPERM
    assert host.exchange(A, [], [])[0] == 0
    host.allocator = lambda order: None
    assert host.exchange(A, [host.a[13]], [1])[:2] == (-ENOMEM, 0) and host.frames[host.a[13]].owner == A


def test_exchange_for_a_larger_extent(host):
    """Chunks: four single pages against one contiguous extent, or none of them."""
    rc, done, (first,) = host.exchange(A, host.a[4:8], [64], out_order=2)
    assert (rc, done) == (0, 4) and [host.frames[first + n].m2p for n in range(4)] == [64, 65, 66, 67]
    assert host.exchange(A, [*host.a[8:11], host.b[0]], [64], out_order=2)[:2] == (-EINVAL, 0)
    assert host.counts(host.a[8]) == (1, NONE, 0)


def test_death_frees_everything():
    """Whatever shape its tables are in, a domain's memory must come back."""
    host = Host()
    l4, l3, *_ = host.tower()
    host.new_base(A, 0, l4)
    host.new_base(A, 1, l4, user=True)
    host.pin(l3, L3, A)
    host.decrease_reservation(A, DOMID_SELF, [l4, host.a[9]])
    host.destroy_owner(A)
    host.check()
    assert all(host.frames[mfn].owner is None for mfn in host.a) and A not in host.owners


def test_check_finds_a_wrong_count():
    """The invariant would prove nothing."""
    for spoil in (lambda h: setattr(h.frames[h.a[4]], "type_refs", 2), lambda h: setattr(h.frames[h.a[4]], "refs", 3),
                  lambda h: h.frames[h.a[3]].set_entry(9, entry(h.a[9], adjust(L1, P))),
                  lambda h: h.owners[A].frames.discard(h.a[9])):
        host = Host()
        host.tower()
        host.check()
        spoil(host)
        with pytest.raises(AssertionError):
            host.check()
