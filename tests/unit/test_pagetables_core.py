"""Page tables and memory_op of the real core, call by call: what is refused, with which error, and what is left behind.

The random histories are in tests/property; here stands one test for each promise that a guest author would look up.
"""
# covers: hypercall mmu_update, hypercall mmuext_op, hypercall set_gdt, hypercall update_descriptor
# covers: hypercall update_va_mapping, hypercall update_va_mapping_otherdomain, memory_op/acquire_resource
# covers: memory_op/add_to_physmap, memory_op/add_to_physmap_batch, memory_op/claim_pages
# covers: memory_op/decrease_reservation, memory_op/exchange, memory_op/get_pod_target, memory_op/get_vnumainfo
# covers: memory_op/increase_reservation, memory_op/machine_memory_map, memory_op/memory_map
# covers: memory_op/populate_physmap, memory_op/remove_from_physmap, mmuext_op/PIN_L1_TABLE, mmuext_op/PIN_L2_TABLE
# covers: mmuext_op/PIN_L3_TABLE, mmuext_op/PIN_L4_TABLE, mmuext_op/UNPIN_TABLE, mmuext_op/NEW_BASEPTR
# covers: mmuext_op/NEW_USER_BASEPTR, mmuext_op/CLEAR_PAGE, mmuext_op/FLUSH_CACHE, mmuext_op/FLUSH_CACHE_GLOBAL
# covers: mmuext_op/INVLPG_MULTI, mmuext_op/TLB_FLUSH_MULTI, mmuext_op/MARK_SUPER, mmuext_op/UNMARK_SUPER
# covers: mmuext_op/SET_LDT

import struct

import pytest
from core_guests import BASE, PAGE, CoreGuest, CoreHost

from xenlike.engine import ffi, lib

P, RW, USER, PWT, A, D, PSE, G = 1, 2, 4, 8, 32, 64, 128, 256
KERNEL, NX = 1 << 52, 1 << 63
EPERM, ESRCH, EACCES, EFAULT, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP = 1, 3, 13, 14, 16, 22, 38, 95
HUGE = (1 << 40) - 1                    # the frame field of an entry, all ones
BAD = 0xFFFF_8000_0000_1000             # an address of the hypervisor
ARGS, LIST, DONE = BASE, BASE + 2048, BASE + 4088
INVLPG = lib.UVMF_INVLPG


@pytest.fixture
def host():
    with CoreHost() as h:
        before = h.usage()
        yield h
        assert lib.xl_check_tlbs(h.ptr) == 0
        for domid in range(16):
            lib.xl_domain_destroy(h.ptr, domid)
        assert h.usage() == before, "frames, arena memory or domains leaked"


@pytest.fixture
def guest(host):
    return host.guest(vcpus=2)


def entry(g: CoreGuest, page: int, flags: int) -> int:
    return g.mfns[page] << 12 | flags


def map_at(g: CoreGuest, page: int, value: int, flags: int = INVLPG) -> int:
    return g.call(lib.__HYPERVISOR_update_va_mapping, g.va(page), value, flags)


def stored(g: CoreGuest, page: int) -> int:
    return struct.unpack("<Q", g.host.read_frame(g.l1, page * 8, 8))[0]


def update(g: CoreGuest, *requests: tuple[int, int], foreigndom: int = lib.DOMID_SELF) -> tuple[int, int]:
    """mmu_update → (rc, done)."""
    g.write(ARGS, b"".join(struct.pack("<QQ", *r) for r in requests))
    g.write(DONE, bytes(4))
    rc = g.call(lib.__HYPERVISOR_mmu_update, ARGS, len(requests), DONE, foreigndom)
    return rc, struct.unpack("<I", g.read(DONE, 4))[0]


def ext(g: CoreGuest, cmd: int, arg1: int = 0, arg2: int = 0, *, foreigndom: int = lib.DOMID_SELF) -> int:
    g.write(ARGS, struct.pack("<QQQ", cmd, arg1, arg2))
    return g.call(lib.__HYPERVISOR_mmuext_op, ARGS, 1, 0, foreigndom)


def reserve(g: CoreGuest, op: int, values: list[int], *, order: int = 0, start: int = 0,
            domid: int = lib.DOMID_SELF) -> tuple[int, list[int]]:
    """An extent operation → (extents done, the list afterwards)."""
    g.write(LIST, struct.pack(f"<{len(values)}Q", *values))
    g.put("struct xen_memory_reservation", ARGS, extent_start=LIST, nr_extents=len(values), extent_order=order, domid=domid)
    rc = g.call(lib.__HYPERVISOR_memory_op, op | start << 6, ARGS)
    return rc, list(struct.unpack(f"<{len(values)}Q", g.read(LIST, 8 * len(values))))


def free_page(g: CoreGuest, page: int, words: dict[int, int] | None = None) -> int:
    """A page with these words in it and no mapping: ready to become a table."""
    g.write(g.va(page), bytes(PAGE))
    for slot, word in (words or {}).items():
        g.write(g.va(page) + slot * 8, struct.pack("<Q", word))
    assert map_at(g, page, 0) == 0
    return g.mfns[page]


# ---- L1 entries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, error", [
    (lambda g: g.l4 << 12 | P | RW, EBUSY),             # a page table, writable: the one thing that must never be
    (lambda g: entry(g, 5, P | PWT), EINVAL),
    (lambda g: entry(g, 5, P | PSE), EINVAL),
    (lambda g: HUGE << 12 | P, EINVAL),
    (lambda g: 3 << 12 | P, EPERM),                     # below 1 MiB: MMIO
    (lambda g: 1 << 39 | 1 << 45 | P, EPERM),           # beyond the machine
    (lambda g: g.host.guest().mfns[3] << 12 | P, EBUSY),
])
def test_refused_l1_entries(guest, value, error):
    """An entry that breaks a rule would be stored, or get another error than Xen's."""
    before = stored(guest, 5)
    assert map_at(guest, 5, value(guest)) == -error
    assert stored(guest, 5) == before


@pytest.mark.parametrize("given, kept", [
    (P | RW, P | RW | USER | KERNEL), (P | USER, P | USER | G), (P | USER | KERNEL, P | USER | KERNEL),
    (P | NX | 7 << 9, P | NX | 7 << 9 | USER | KERNEL), (D | RW, D | RW),
])
def test_stored_flags(guest, given, kept):
    """A guest that reads its entry back would not find what Xen stores."""
    assert map_at(guest, 5, entry(guest, 5, given)) == 0
    assert stored(guest, 5) == entry(guest, 5, kept)


@pytest.mark.parametrize("va", [1 << 63, BAD, BASE + (1 << 21), 1 << 39])
def test_no_l1_for_the_address(guest, va):
    """xsa-279, and addresses without tables: an error, not a walk off the edge."""
    assert guest.call(lib.__HYPERVISOR_update_va_mapping, va, 0, INVLPG | lib.UVMF_ALL) == -EINVAL


def test_a_bad_flush_bitmap_is_reported_after_the_update(guest):
    """The entry changes first; the error speaks of the flush alone."""
    assert map_at(guest, 5, 0, lib.UVMF_TLB_FLUSH | 1 << 62) == -EFAULT
    assert stored(guest, 5) == 0


def test_writes_stop_at_once(guest):
    """Another vCPU would still write through its TLB into what has become a page table."""
    page = guest.va(5)
    for vcpu in guest.vcpus:
        assert lib.xl_guest_write(vcpu, page, b"x" * 8, 8, ffi.NULL) == 0
    guest.write(page, bytes(8))
    assert map_at(guest, 5, entry(guest, 5, P), 0) == 0         # no flush asked for
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, guest.mfns[5]) == 0
    assert lib.xl_check_tlbs(guest.host.ptr) == 0
    for vcpu in guest.vcpus:
        assert lib.xl_guest_write(vcpu, page, b"x" * 8, 8, ffi.NULL) == -EFAULT


# ---- mmu_update -----------------------------------------------------------------------------------------------------


def test_batch_stops_at_the_first_error(guest):
    """The count would not say how far it came."""
    l1 = guest.l1 << 12
    assert update(guest, (l1 | 40, 0), (l1 | 48, 0), (l1 | 56, guest.l4 << 12 | P | RW), (l1 | 64, 0)) == (-EBUSY, 2)
    assert (stored(guest, 6), stored(guest, 7), stored(guest, 8)) == (0, entry(guest, 7, P | RW | USER | A | D | KERNEL),
                                                                      entry(guest, 8, P | RW | USER | A | D | KERNEL))


@pytest.mark.parametrize("command, kept", [(0, 0), (2, A | D), (3, 0)])
def test_preserve_ad(guest, command, kept):
    """Accessed and dirty bits that hardware set meanwhile would be lost, or kept where they should not."""
    assert update(guest, (guest.l1 << 12 | 40 | command, entry(guest, 5, P | RW))) == (0, 1)
    assert stored(guest, 5) & (A | D) == kept


def test_commands_and_owners(host, guest):
    """Unknown commands and foreign domains have errors of their own."""
    other = host.guest()
    l1 = guest.l1 << 12
    assert update(guest, (l1 | 4, 0)) == (-ENOSYS, 0)
    assert update(guest, (other.l1 << 12, 0)) == (-EINVAL, 0)
    assert update(guest, (l1, 0), foreigndom=0x7000) == (-ESRCH, 0)
    assert update(guest, (l1, 0), foreigndom=guest.id) == (-ESRCH, 0)          # oneself is DOMID_SELF
    assert update(guest, (l1, 0), foreigndom=other.id) == (-EPERM, 0)
    assert update(guest, (l1, 0), foreigndom=lib.DOMID_SELF | other.id + 1 << 16) == (-EPERM, 0)
    assert update(guest, (guest.mfns[9] << 12 | 1, 4711)) == (0, 1) and lib.xl_m2p(host.ptr, guest.mfns[9]) == 4711
    assert update(guest, (other.mfns[9] << 12 | 1, 4711)) == (-EINVAL, 0)
    assert guest.call(lib.__HYPERVISOR_mmu_update, BAD, 1, 0, lib.DOMID_SELF) == -EFAULT
    assert guest.call(lib.__HYPERVISOR_mmu_update, 0, 1 << 31, 0, 77) == 77    # how a continuation looks


def test_control_domain_may_map_foreign_pages(host):
    """Domain 0's tools map a guest's page; the guest cannot make it a page table meanwhile, nor lose it."""
    control, other = host.guest(privileged=True), host.guest()
    mfn = free_page(other, 7)
    assert control.call(lib.__HYPERVISOR_update_va_mapping_otherdomain, control.va(5), mfn << 12 | P | RW, 0, other.id) == 0
    control.write(control.va(5), b"hello")
    assert ext(other, lib.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL
    other.destroy()
    assert control.read(control.va(5), 5) == b"hello"
    free = host.usage()[0]
    assert map_at(control, 5, 0) == 0 and host.usage()[0] == free + 1


def test_l4_slots_of_the_hypervisor(guest):
    """A guest would reach into the hypervisor's part of the address space."""
    l4 = guest.l4 << 12
    for slot in (256, 271):
        assert update(guest, (l4 | slot * 8, guest.l1 << 12 | P)) == (-EINVAL, 0)
    for slot in (255, 272):
        assert update(guest, (l4 | slot * 8, 0)) == (0, 1)


def test_linear_table(guest):
    """xsa-182: a root that maps itself is allowed, read-only, and must not become writable by a change of flags."""
    slot, l4 = 300, guest.l4 << 12
    where = l4 | slot * 8
    assert update(guest, (where, l4 | P | RW)) == (-EINVAL, 0)
    assert update(guest, (where, l4 | P)) == (0, 1)
    assert update(guest, (where, l4 | P | RW)) == (-EINVAL, 0)
    linear = 0xFFFF << 48 | slot << 39
    l1_0 = linear | (BASE >> 12) * 8
    assert struct.unpack("<Q", guest.read(l1_0, 8))[0] & ~(A | D) == entry(guest, 0, P | RW | USER | KERNEL)
    assert lib.xl_guest_write(guest.vcpus[0], l1_0, bytes(8), 8, ffi.NULL) == -EFAULT
    # An address inside the linear mapping is mapped by an L2, L3 or L4: no L1 that could be updated.
    assert guest.call(lib.__HYPERVISOR_update_va_mapping, l1_0, 0, 0) == -EINVAL
    assert guest.call(lib.__HYPERVISOR_update_va_mapping, linear | slot << 30 | slot << 21, 0, 0) == -EINVAL
    assert lib.xl_check_tlbs(guest.host.ptr) == 0


# ---- mmuext_op ------------------------------------------------------------------------------------------------------


def test_pin_and_unpin(guest):
    """Pins would be counted twice, taken of anything, or forgotten."""
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, guest.mfns[5]) == -EINVAL       # mapped writable
    mfn = free_page(guest, 5, {0: entry(guest, 6, P | RW)})
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, mfn) == 0
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL
    assert ext(guest, lib.MMUEXT_PIN_L2_TABLE, mfn) == -EINVAL
    assert map_at(guest, 5, mfn << 12 | P | RW) == -EBUSY
    assert ext(guest, lib.MMUEXT_CLEAR_PAGE, mfn) == -EINVAL
    assert guest.host.frame(guest.mfns[6]).type_count == 2
    assert ext(guest, lib.MMUEXT_UNPIN_TABLE, mfn) == 0
    assert ext(guest, lib.MMUEXT_UNPIN_TABLE, mfn) == -EINVAL
    assert guest.host.frame(guest.mfns[6]).type_count == 1
    assert map_at(guest, 5, mfn << 12 | P | RW) == 0


@pytest.mark.parametrize("word, error", [(P | PSE, EINVAL), (3 << 12 | P, EPERM), (None, EBUSY)])
def test_failed_promotion_leaves_nothing(guest, word, error):
    """References of the entries before the bad one would stay."""
    word = guest.l4 << 12 | P | RW if word is None else word
    mfn = free_page(guest, 5, {0: entry(guest, 6, P | RW), 3: entry(guest, 6, P), 4: word, 5: entry(guest, 7, P)})
    counts = [(f.count, f.type_count) for f in (guest.host.frame(guest.mfns[n]) for n in (6, 7))]
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, mfn) == -error
    assert counts == [(f.count, f.type_count) for f in (guest.host.frame(guest.mfns[n]) for n in (6, 7))]
    assert guest.host.frame(mfn).type_count == 0 and map_at(guest, 5, mfn << 12 | P | RW) == 0


def test_base_pointers(guest):
    """A vCPU would run on what is no root table, or a root in use would go away under it."""
    assert ext(guest, lib.MMUEXT_NEW_BASEPTR, guest.mfns[5]) == -EINVAL
    assert ext(guest, lib.MMUEXT_NEW_BASEPTR, guest.l1) == -EINVAL
    assert ext(guest, lib.MMUEXT_NEW_BASEPTR, 0) == -EINVAL
    root = guest.host.read_frame(guest.l4, 0, 8)
    mfn = free_page(guest, 5, {0: struct.unpack("<Q", root)[0]})
    assert ext(guest, lib.MMUEXT_NEW_USER_BASEPTR, mfn) == 0
    assert ext(guest, lib.MMUEXT_NEW_BASEPTR, mfn) == 0
    assert guest.host.frame(mfn).type_count == 2
    guest.write(guest.va(6), b"alive")                          # through the new tables
    assert ext(guest, lib.MMUEXT_NEW_BASEPTR, guest.l4) == 0
    assert ext(guest, lib.MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert guest.host.frame(mfn).type_count == 0


@pytest.mark.parametrize("cmd, arg1, arg2, error", [
    (lib.MMUEXT_FLUSH_CACHE, 0, 0, EACCES), (lib.MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0, EACCES), (14, 0, 0, ENOSYS), (21, 0, 0, ENOSYS),
    (0xFFFF_FFFF, 0, 0, ENOSYS), (lib.MMUEXT_MARK_SUPER, 0, 0, EOPNOTSUPP), (lib.MMUEXT_UNMARK_SUPER, 0, 0, EOPNOTSUPP),
    (lib.MMUEXT_TLB_FLUSH_MULTI, 0, BAD, EINVAL), (lib.MMUEXT_INVLPG_MULTI, BASE, 1 << 62, EINVAL),
    (lib.MMUEXT_SET_LDT, BASE, 8193, EINVAL), (lib.MMUEXT_SET_LDT, BASE + 8, 1, EINVAL), (lib.MMUEXT_SET_LDT, BAD & ~0xFFF, 1, EINVAL),
    (lib.MMUEXT_CLEAR_PAGE, HUGE, 0, EINVAL), (lib.MMUEXT_PIN_L4_TABLE, HUGE, 0, EINVAL), (lib.MMUEXT_UNPIN_TABLE, 7, 0, EINVAL),
])
def test_refused_mmuext(guest, cmd, arg1, arg2, error):
    """Error numbers choose what a guest does next."""
    assert ext(guest, cmd, arg1, arg2) == -error


def test_descriptor_tables(guest):
    """A guest could write descriptors that were checked, or load one of more privilege than ring 3."""
    mfn, args = guest.mfns[5], guest.va(1)
    guest.write(args, struct.pack("<Q", mfn))
    assert guest.call(lib.__HYPERVISOR_set_gdt, args, 512) == -EINVAL           # mapped writable
    assert map_at(guest, 5, mfn << 12 | P) == 0
    assert guest.call(lib.__HYPERVISOR_set_gdt, args, 512) == 0
    assert map_at(guest, 5, mfn << 12 | P | RW) == -EBUSY
    code, tss = 0x00AF9B000000FFFF, 0x0000890000000067
    assert guest.call(lib.__HYPERVISOR_update_descriptor, mfn << 12 | 8, code) == 0
    assert struct.unpack("<Q", guest.read(guest.va(5) + 8, 8))[0] == code | 3 << 45
    assert guest.call(lib.__HYPERVISOR_update_descriptor, mfn << 12 | 8, tss) == -EINVAL
    assert guest.call(lib.__HYPERVISOR_update_descriptor, mfn << 12 | 4, code) == -EINVAL
    assert guest.call(lib.__HYPERVISOR_set_gdt, args, 7169) == -EINVAL
    assert guest.call(lib.__HYPERVISOR_set_gdt, BAD, 1) == -EFAULT
    assert guest.call(lib.__HYPERVISOR_set_gdt, 0, 0) == 0 and map_at(guest, 5, mfn << 12 | P | RW) == 0


# ---- memory_op ------------------------------------------------------------------------------------------------------


def test_balloon(guest):
    """A guest that shrinks and grows again would lose pages, or get more than its limit."""
    pages = guest.info().tot_pages
    mfns = [free_page(guest, n) for n in (5, 6)]
    assert reserve(guest, lib.XENMEM_decrease_reservation, [*mfns, HUGE, guest.mfns[7]])[0] == 2
    assert guest.info().tot_pages == pages - 2
    rc, out = reserve(guest, lib.XENMEM_populate_physmap, [900, 901])
    assert rc == 2 and [lib.xl_m2p(guest.host.ptr, m) for m in out] == [900, 901]
    room = guest.info().max_pages - pages
    rc, _ = reserve(guest, lib.XENMEM_increase_reservation, [0] * (room + 3))
    assert rc == room and reserve(guest, lib.XENMEM_populate_physmap, [1])[0] == 0


def test_a_page_given_up_lives_while_it_is_mapped(guest):
    """Another domain would get a page that this one can still write."""
    mfn, free = guest.mfns[5], guest.host.usage()[0]
    assert reserve(guest, lib.XENMEM_decrease_reservation, [mfn])[0] == 1
    guest.write(guest.va(5), b"still mine")
    assert guest.host.usage()[0] == free
    assert map_at(guest, 5, 0) == 0 and guest.host.usage()[0] == free + 1


def test_a_pinned_table_given_up_dies_with_its_domain(guest):
    """The pin's reference would keep the frame for ever. (The fixture counts the frames.)"""
    mfn = free_page(guest, 5)
    assert ext(guest, lib.MMUEXT_PIN_L1_TABLE, mfn) == 0
    assert reserve(guest, lib.XENMEM_decrease_reservation, [mfn])[0] == 1


@pytest.mark.parametrize("change", [
    {"extent_order": 10}, {"nr_extents": 1 << 40}, {"extent_start": BAD}, {"domid": 0x7000}, {"mem_flags": 12}, {"mem_flags": 1 << 16},
])
def test_hostile_reservations_do_nothing(guest, change):
    """Argument errors of extent operations are a count of 0, never an errno."""
    pages = guest.info().tot_pages
    guest.put("struct xen_memory_reservation", ARGS, **{"extent_start": LIST, "nr_extents": 1, "domid": lib.DOMID_SELF, **change})
    assert guest.call(lib.__HYPERVISOR_memory_op, lib.XENMEM_populate_physmap, ARGS) == 0
    assert guest.call(lib.__HYPERVISOR_memory_op, lib.XENMEM_populate_physmap | 5 << 6, ARGS) == 5
    assert guest.info().tot_pages == pages


def exchange(g: CoreGuest, mfns: list[int], pfns: list[int], **change: int) -> tuple[int, int, list[int]]:
    g.write(LIST, struct.pack(f"<{len(mfns)}Q", *mfns))
    g.write(LIST + 512, struct.pack(f"<{len(pfns)}Q", *pfns))
    fields = {"in__extent_start": LIST, "in__nr_extents": len(mfns), "in__domid": lib.DOMID_SELF, "out__extent_start": LIST + 512,
              "out__nr_extents": len(pfns), "out__domid": lib.DOMID_SELF, **change}
    value = ffi.new("struct xen_memory_exchange *")
    for name, field in fields.items():
        outer, _, inner = name.partition("__")
        setattr(getattr(value, outer) if inner else value, inner or outer, field)
    g.write(ARGS, bytes(ffi.buffer(value)))
    rc = g.call(lib.__HYPERVISOR_memory_op, lib.XENMEM_exchange, ARGS)
    after = g.get("struct xen_memory_exchange", ARGS)
    return rc, after.nr_exchanged, list(struct.unpack(f"<{len(pfns)}Q", g.read(LIST + 512, 8 * len(pfns))))


def test_exchange(guest):
    """Pages in use would be taken away, or the count lie about how far it came."""
    pages = guest.info().tot_pages
    a, b = free_page(guest, 5), free_page(guest, 6)
    rc, done, out = exchange(guest, [a, b, guest.mfns[7]], [700, 701, 702])     # the third is mapped
    assert (rc, done) == (-EINVAL, 2) and [lib.xl_m2p(guest.host.ptr, m) for m in out[:2]] == [700, 701]
    assert guest.info().tot_pages == pages
    assert exchange(guest, [out[0], out[0]], [1, 2])[:2] == (-EINVAL, 1)


@pytest.mark.parametrize("change, error", [
    ({"in__extent_order": 10}, EPERM), ({"in__nr_extents": 3}, EINVAL), ({"nr_exchanged": 2}, EINVAL), ({"out__domid": 0x7000}, EINVAL),
    ({"in__domid": 0x7000, "out__domid": 0x7000}, ESRCH), ({"out__extent_start": BAD}, EFAULT),
])
def test_refused_exchange(guest, change, error):
    """xsa-212 among them: an output array in the hypervisor's range."""
    mfn = free_page(guest, 5)
    assert exchange(guest, [mfn], [700], **change)[0] == -error
    assert guest.host.frame(mfn).owner == guest.id


@pytest.mark.parametrize("op, error", [
    (lib.XENMEM_memory_map, ENOSYS), (lib.XENMEM_machine_memory_map, EPERM), (lib.XENMEM_add_to_physmap, EACCES),
    (lib.XENMEM_remove_from_physmap, EACCES), (lib.XENMEM_add_to_physmap_batch, EACCES), (lib.XENMEM_claim_pages, EPERM),
    (lib.XENMEM_get_vnumainfo, EOPNOTSUPP), (lib.XENMEM_acquire_resource, EPERM), (lib.XENMEM_get_pod_target, EPERM), (8, ENOSYS), (63, ENOSYS),
])
def test_refused_memory_ops(guest, op, error):
    """What a PV guest cannot have. The argument names the caller at every place where a domain id may stand."""
    guest.write(ARGS, bytes(256))
    at = {lib.XENMEM_get_vnumainfo: 0, lib.XENMEM_get_pod_target: 32}.get(op, 0)
    guest.write(ARGS + at, struct.pack("<H", lib.DOMID_SELF))
    assert guest.call(lib.__HYPERVISOR_memory_op, op, ARGS) == -error


def test_memory_map(guest):
    """The table that the toolstack set, cut to the guest's room."""
    lib.xl_domain_set_e820(guest.host.ptr, guest.id, 16 << 20)
    guest.put("struct xen_memory_map", ARGS, nr_entries=8, buffer=LIST)
    assert guest.call(lib.__HYPERVISOR_memory_op, lib.XENMEM_memory_map, ARGS) == 0
    assert guest.get("struct xen_memory_map", ARGS).nr_entries == 1
    assert struct.unpack("<QQI", guest.read(LIST, 20)) == (0, 16 << 20, 1)


# ---- hostile --------------------------------------------------------------------------------------------------------


def test_a_call_without_end_ends_the_domain(host, guest):
    """A few pages make an array of 512 GiB: one hypercall would keep a CPU for hours."""
    request = guest.mfns[12] << 12
    guest.write(guest.va(5), struct.pack("<QQ", request, 0) * 256)
    lower = guest.mfns[5]
    for page in (6, 7, 8):                                      # L1, L2, L3 of one entry 512 times
        guest.write(guest.va(page), struct.pack("<Q", lower << 12 | P) * 512)
        assert map_at(guest, page, 0) == 0
        lower = guest.mfns[page]
    assert update(guest, (guest.l4 << 12 | 8, lower << 12 | P)) == (0, 1)
    guest.call(lib.__HYPERVISOR_mmu_update, 1 << 39, 0x7FFF_FFFF, 0, lib.DOMID_SELF)
    assert "mmu_update" in ffi.string(guest.info().crash_reason).decode()
