/*
 * Grants that a domain gives to itself, used against the rules.
 */
#include "abitest.h"

static s64 map(struct gnttab_map_grant_ref *op, u64 va, u32 flags, u32 ref)
{
    s64 rc;

    *op = (struct gnttab_map_grant_ref){.host_addr = va, .flags = flags, .ref = ref, .dom = domain_id()};
    rc = HYPERVISOR_grant_table_op(GNTTABOP_map_grant_ref, op, 1);
    return rc ? rc : op->status;
}

static s64 unmap(u64 va, u64 bus, u32 handle)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = va, .dev_bus_addr = bus, .handle = handle};
    s64 rc = HYPERVISOR_grant_table_op(GNTTABOP_unmap_grant_ref, &op, 1);

    return rc ? rc : op.status;
}

const char *xsa_224(void)
{
    void *page = page_alloc(1);
    u64 va = (u64)vmap_alloc(1);
    s64 ref = grant_access(domain_id(), virt_to_mfn(page), false), rc;
    struct gnttab_map_grant_ref op;

    rc = map(&op, va, GNTMAP_host_map | GNTMAP_device_map, ref);
    CHECK(!rc, "map: %ld", rc);
    CHECK(grant_end(ref) == -XEN_EBUSY, "the grant is not in use");
    rc = unmap(va, 0, op.handle);
    CHECK(!rc, "unmap of the host's half: %ld", rc);
    rc = unmap(0, op.dev_bus_addr, op.handle);
    CHECK(!rc, "unmap of the device's half: %ld", rc);
    CHECK(unmap(0, op.dev_bus_addr, op.handle), "a third unmap succeeds");
    rc = mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(page), 0); /* it still has our own writable mapping */
    CHECK(rc == -XEN_EINVAL, "pin of a page that is mapped writable: %s", error_name(rc));
    CHECK(!grant_end(ref), "the grant stays in use");
    page_protect(page, PTE_RO);
    rc = mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(page), 0);
    CHECK(!rc, "pin once it is read-only: %s", error_name(rc));
    mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(page), 0);
    return NULL;
}

const char *xsa_227(void)
{
    u64 va = (u64)vmap_alloc(1), *entry = space_entry(&kernel_space, va, 1, true);
    u64 machine = virt_to_mfn(entry) << PAGE_SHIFT | ((u64)entry & ~PAGE_MASK);
    s64 ref = grant_access(domain_id(), virt_to_mfn(page_alloc(1)), false), rc;
    struct gnttab_map_grant_ref op;

    for (u32 off = 1; off < 8; off++) {
        rc = map(&op, machine - off, GNTMAP_host_map | GNTMAP_contains_pte, ref);
        CHECK(rc, "an entry %u bytes off is taken", off);
    }
    CHECK(!grant_end(ref), "the grant is in use");
    return NULL;
}

const char *xsa_232(void)
{
    for (u64 at = 0; at < 1 << 20; at += PAGE_SIZE) {
        struct gnttab_cache_flush op = {.a.dev_bus_addr = at, .length = PAGE_SIZE, .op = GNTTAB_CACHE_CLEAN};

        CHECK(HYPERVISOR_grant_table_op(GNTTABOP_cache_flush, &op, 1), "frame %#lx is flushed", at);
    }
    return NULL;
}

const char *xsa_234(void)
{
    void *a = page_alloc(1), *b = page_alloc(1);
    u64 va_a = (u64)vmap_alloc(1), va_b = (u64)vmap_alloc(1);
    s64 ref_a = grant_access(domain_id(), virt_to_mfn(a), false), ref_b = grant_access(domain_id(), virt_to_mfn(b), false), rc;
    struct gnttab_map_grant_ref map_a, map_b;
    struct gnttab_unmap_and_replace op;

    rc = map(&map_a, va_a, GNTMAP_host_map, ref_a);
    CHECK(!rc, "map a: %ld", rc);
    rc = map(&map_b, va_b, GNTMAP_host_map, ref_b);
    CHECK(!rc, "map b: %ld", rc);
    page_protect(b, PTE_RO); /* now only the grant's mapping of b is writable */
    op = (struct gnttab_unmap_and_replace){.host_addr = va_a, .new_addr = va_b, .handle = map_a.handle};
    rc = HYPERVISOR_grant_table_op(GNTTABOP_unmap_and_replace, &op, 1);
    if (!rc && !op.status) { /* b's entry has moved to va_a, with its writable reference */
        rc = unmap(va_b, 0, map_b.handle);
        CHECK(rc, "unmap of b where it is no more");
        *(volatile u32 *)va_a = 1;
        CHECK(*(volatile u32 *)b == 1, "b is not at va_a");
    }
    rc = mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(b), 0);
    CHECK(rc, "a page that is mapped writable became a page table");
    kernel_unmap(va_a);
    return NULL;
}

const char *xsa_255(void)
{
    struct gnttab_set_version version = {2};
    uint64_t frame;
    struct gnttab_get_status_frames op = {.nr_frames = 1, .dom = DOMID_SELF};
    u64 va;
    s64 rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);

    if (rc == -XEN_ENOSYS)
        return SKIP("no grant table version 2");
    CHECK(!rc, "set_version(2): %s", error_name(rc));
    set_xen_guest_handle(op.frame_list, &frame);
    rc = HYPERVISOR_grant_table_op(GNTTABOP_get_status_frames, &op, 1);
    CHECK(!rc && !op.status, "get_status_frames: %ld, %d", rc, op.status);
    va = (u64)vmap_alloc(1);
    CHECK(!kernel_map(va, frame << PAGE_SHIFT | PTE_DATA), "a status frame cannot be mapped");
    version.version = 1;
    rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);
    CHECK(rc == -XEN_EBUSY, "set_version(1) with a status frame mapped: %s", error_name(rc));
    kernel_unmap(va);
    version.version = 1;
    rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);
    CHECK(!rc, "set_version(1): %s", error_name(rc));
    return NULL;
}

const char *xsa_316(void)
{
    u64 va = (u64)vmap_alloc(1);
    s64 ref = grant_access(domain_id(), virt_to_mfn(page_alloc(1)), false), rc;
    struct gnttab_map_grant_ref op;

    CHECK(!grant_end(ref), "grant_end");
    for (u32 i = 0; i < 3; i++) { /* a failure leaves nothing locked: the next call answers too */
        op = (struct gnttab_map_grant_ref){.host_addr = va, .flags = GNTMAP_host_map, .ref = ref, .dom = domain_id()};
        rc = HYPERVISOR_grant_table_op(GNTTABOP_map_grant_ref, &op, 1);
        CHECK(!rc && op.status == GNTST_general_error, "map of a grant that is none: %ld, status %d", rc, op.status);
    }
    return NULL;
}
