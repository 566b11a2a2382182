/*
 * Page tables and reservations.
 */
#include "abitest.h"

#define RECURSIVE_SLOT 300ul /* an L4 slot that nobody uses */

static void store(void *arg)
{
    *(volatile u64 *)arg = 0;
}

static volatile u64 *bad_slot;

static void store_bad(void *entry)
{
    *bad_slot = (u64)entry;
}

const char *ptwr(void)
{
    u64 *data = page_alloc(1);
    volatile u64 *l1 = page_alloc(1); /* Xen changes what is stored there */
    u64 entry = virt_to_mfn(data) << PAGE_SHIFT | PTE_DATA, got;
    u64 self = virt_to_mfn((void *)l1) << PAGE_SHIFT;
    s64 rc;

    page_protect((void *)l1, PTE_RO);
    rc = mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn((void *)l1), 0);
    CHECK(!rc, "pin: %s", error_name(rc));
    CHECK_TRAP(TRAP_PF, PF_PRESENT | PF_WRITE, store, l1); /* without the assist: a read-only page */
    CHECK(!HYPERVISOR_vm_assist(VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), "no assist");
    l1[0] = entry;
    CHECK((l1[0] & (PTE_FRAME | PTE_P | PTE_RW)) == (entry & (PTE_FRAME | PTE_P | PTE_RW)), "mov: %#lx", l1[0]);
    CHECK(l1[0] & PTE_U, "Xen's adjustment is missing: %#lx", l1[0]);
    got = __atomic_exchange_n(&l1[0], 0, __ATOMIC_SEQ_CST);
    CHECK((got & PTE_FRAME) == (entry & PTE_FRAME) && !l1[0], "xchg: %#lx, left %#lx", got, l1[0]);
    got = 0;
    CHECK(__atomic_compare_exchange_n(&l1[0], &got, entry, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST), "cmpxchg fails, saw %#lx", got);
    got = 1;
    CHECK(!__atomic_compare_exchange_n(&l1[0], &got, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && (got & PTE_P),
          "cmpxchg succeeds with another value");
    __atomic_fetch_and(&l1[0], ~(u64)PTE_RW, __ATOMIC_SEQ_CST);
    CHECK((l1[0] & (PTE_P | PTE_RW)) == PTE_P, "lock and: %#lx", l1[0]);
    asm volatile("lock btrq $0, %0" : "+m"(l1[0]) : : "cc");
    CHECK(!(l1[0] & PTE_P), "lock btr: %#lx", l1[0]);
    l1[0] = 0;
    CHECK_TRAP(TRAP_PF, PF_PRESENT | PF_WRITE, store, (u64)kernel_space.l4); /* L1 tables only */
    l1[1] = self | PTE_RO;
    CHECK(l1[1] & PTE_P, "a read-only entry for the table itself");
    bad_slot = &l1[2]; /* an entry that Xen would refuse is a fault at the store */
    CHECK_TRAP(TRAP_PF, PF_PRESENT | PF_WRITE, store_bad, self | PTE_DATA);
    CHECK(!l1[2], "the refused entry is there: %#lx", l1[2]);
    HYPERVISOR_vm_assist(VMASST_CMD_disable, VMASST_TYPE_writable_pagetables);
    CHECK(!mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn((void *)l1), 0) && !page_protect((void *)l1, PTE_DATA), "the page does not come back");
    return NULL;
}

const char *xsa_167(void)
{
    s64 rc = mmuext(MMUEXT_MARK_SUPER, virt_to_mfn(page_alloc(1)), 0);

    if (rc == -XEN_EOPNOTSUPP || rc == -XEN_ENOSYS)
        return SKIP("no superpages: %s", error_name(rc));
    CHECK(rc == -XEN_EINVAL, "MARK_SUPER: %s", error_name(rc));
    return NULL;
}

const char *xsa_182(void)
{
    u64 l4 = virt_to_mfn(kernel_space.l4) << PAGE_SHIFT;
    u64 *slot = &kernel_space.l4[RECURSIVE_SLOT];
    void *alias = vmap_alloc(1);
    s64 rc = kernel_map((u64)alias, l4 | PTE_RO);

    CHECK(!rc, "a read-only mapping of the L4: %s", error_name(rc));
    CHECK(kernel_map((u64)alias, l4 | PTE_DATA), "a writable mapping of the L4");
    kernel_unmap((u64)alias);
    rc = pte_write(slot, l4 | PTE_RO);
    if (rc == -XEN_EINVAL)
        return SKIP("no linear page tables");
    CHECK(!rc, "a recursive entry: %s", error_name(rc));
    rc = pte_write(slot, l4 | PTE_RO | PTE_RW);
    CHECK(rc, "the recursive entry became writable");
    rc = pte_write(slot, l4 | PTE_RO | PTE_U);
    CHECK(!rc, "harmless flags: %s", error_name(rc));
    CHECK(!pte_write(slot, 0), "the entry stays");
    return NULL;
}

const char *xsa_212(void)
{
    xen_pfn_t in = virt_to_mfn(page_alloc(1));
    struct xen_memory_exchange op = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .domid = DOMID_SELF},
    };
    u64 *probe = (u64 *)(MACH2PHYS_VIRT_START + in * 8), before = *probe;
    s64 rc;

    set_xen_guest_handle(op.in.extent_start, &in);
    set_xen_guest_handle(op.out.extent_start, (xen_pfn_t *)probe); /* the M2P: readable, and not ours to write */
    rc = HYPERVISOR_memory_op(XENMEM_exchange, &op);
    CHECK(rc, "exchange with its output in the hypervisor succeeds");
    CHECK(*probe == before, "it wrote there");
    return NULL;
}

const char *xsa_231(void)
{
    for (u32 node = 0; node < 256; node++) {
        xen_pfn_t frame = 0;
        struct xen_memory_reservation op = {.nr_extents = 1, .mem_flags = node << 8, .domid = DOMID_SELF};
        s64 n;

        set_xen_guest_handle(op.extent_start, &frame);
        n = HYPERVISOR_memory_op(XENMEM_increase_reservation, &op);
        CHECK(n <= 1, "node %u: %ld extents of 1", node, n);
        if (n == 1)
            CHECK(HYPERVISOR_memory_op(XENMEM_decrease_reservation, &op) == 1, "frame %#lx does not go back", frame);
    }
    return NULL;
}

const char *xsa_279(void)
{
    s64 rc = HYPERVISOR_update_va_mapping((void *)(1ul << 63), 0, UVMF_INVLPG | UVMF_ALL);

    CHECK(rc < 0, "an entry for a non-canonical address: %ld", rc);
    rc = HYPERVISOR_update_va_mapping((void *)HYPERVISOR_VIRT_START, 0, UVMF_INVLPG | UVMF_ALL);
    CHECK(rc < 0, "an entry in the hypervisor's range: %ld", rc);
    return NULL;
}

/* The linear address at which a recursive slot shows the L1 entry of va. */
static volatile u64 *linear(u64 va)
{
    return (volatile u64 *)(0xffff000000000000ul | RECURSIVE_SLOT << 39 | (va & 0x0000fffffffff000ul) >> 9);
}

const char *xsa_286(void)
{
    u64 l4 = virt_to_mfn(kernel_space.l4) << PAGE_SHIFT, va = (u64)vmap_alloc(1024) + 0x200000ul, *l2, *first, *second, old;
    s64 rc;

    va &= ~0x1ffffful;
    rc = pte_write(&kernel_space.l4[RECURSIVE_SLOT], l4 | PTE_RO);
    if (rc == -XEN_EINVAL)
        return SKIP("no linear page tables");
    CHECK(!rc, "recursive entry: %s", error_name(rc));
    l2 = space_entry(&kernel_space, va, 2, true);
    first = mfn_to_virt((*l2 & PTE_FRAME) >> PAGE_SHIFT);
    second = page_alloc(1);
    second[0] = virt_to_mfn(page_alloc(1)) << PAGE_SHIFT | PTE_RO;
    page_protect(second, PTE_RO);
    kernel_map(va, virt_to_mfn(p2m) << PAGE_SHIFT | PTE_RO);
    CHECK(*linear(va) == first[0], "linear entry %#lx, not %#lx", *linear(va), first[0]);
    old = *l2;
    for (u32 i = 0; i < 4; i++) { /* replace the L1 and read through the linear mapping, in batches, without a flush of ours */
        u64 *now = i % 2 ? first : second;
        struct mmu_update update = {virt_to_mfn(l2) << PAGE_SHIFT | ((u64)l2 & ~PAGE_MASK),
                                    virt_to_mfn(now) << PAGE_SHIFT | (old & ~PTE_FRAME)};
        struct multicall_entry calls[] = {
            {.op = __HYPERVISOR_mmu_update, .args = {(u64)&update, 1, 0, DOMID_SELF}},
            {.op = __HYPERVISOR_xen_version, .args = {XENVER_version, 0}},
        };

        rc = HYPERVISOR_multicall(calls, ARRAY_SIZE(calls));
        CHECK(!rc && !calls[0].result, "multicall: %ld, %ld", rc, (s64)calls[0].result);
        CHECK(*linear(va) == now[0], "turn %u: linear entry %#lx, not %#lx", i, *linear(va), now[0]);
    }
    CHECK(!pte_write(&kernel_space.l4[RECURSIVE_SLOT], 0), "the recursive entry stays");
    return NULL;
}
