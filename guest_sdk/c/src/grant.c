/*
 * Grants, version 1. The table grows a frame at a time; free references form a list through the `frame` field of their entries,
 * which nobody reads while flags are 0.
 */
#include <guest.h>

#define MAX_FRAMES 32
#define PER_FRAME (PAGE_SIZE / sizeof(struct grant_entry_v1))

static struct grant_entry_v1 *table; /* MAX_FRAMES pages of the VMAP window */
static u32 frames, first_free;       /* 0: none, which is a reserved reference */
static spinlock_t lock;

static s64 grow(void)
{
    xen_pfn_t list[MAX_FRAMES];
    struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = frames + 1};
    s64 rc;

    if (frames == MAX_FRAMES || (!table && !(table = vmap_alloc(MAX_FRAMES))))
        return -XEN_ENOSPC;
    set_xen_guest_handle(op.frame_list, list);
    rc = HYPERVISOR_grant_table_op(GNTTABOP_setup_table, &op, 1);
    if (!rc && op.status)
        rc = -XEN_ENOSPC;
    if (!rc)
        rc = kernel_map((u64)table + frames * PAGE_SIZE, list[frames] << PAGE_SHIFT | PTE_DATA | PTE_NX);
    if (rc)
        return rc;
    for (u32 ref = (frames + 1) * PER_FRAME; ref-- > frames * PER_FRAME && ref >= GNTTAB_NR_RESERVED_ENTRIES;) {
        table[ref].frame = first_free;
        first_free = ref;
    }
    frames++;
    return 0;
}

struct grant_entry_v1 *grant_entry(u32 ref)
{
    while (ref >= frames * PER_FRAME)
        if (grow())
            return NULL;
    return &table[ref];
}

s64 grant_access(domid_t domid, u64 mfn, bool readonly)
{
    bool masked = spin_lock_events(&lock);
    s64 ref = first_free ? 0 : grow();

    if (!ref) {
        struct grant_entry_v1 *entry = &table[ref = first_free];

        first_free = entry->frame;
        entry->frame = mfn;
        entry->domid = domid;
        __atomic_store_n(&entry->flags, GTF_permit_access | (readonly ? GTF_readonly : 0), __ATOMIC_RELEASE);
    }
    spin_unlock_events(&lock, masked);
    return ref;
}

s64 grant_end(u32 ref)
{
    struct grant_entry_v1 *entry = &table[ref];
    u16 flags = READ_ONCE(entry->flags);
    bool masked;

    do
        if (flags & (GTF_reading | GTF_writing))
            return -XEN_EBUSY;
    while (!__atomic_compare_exchange_n(&entry->flags, &flags, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    masked = spin_lock_events(&lock);
    entry->frame = first_free;
    first_free = ref;
    spin_unlock_events(&lock, masked);
    return 0;
}

s64 grant_map(struct grant_map *map, domid_t domid, u32 ref, bool readonly)
{
    void *va = vmap_alloc(1);
    struct gnttab_map_grant_ref op = {.host_addr = (u64)va, .flags = GNTMAP_host_map | (readonly ? GNTMAP_readonly : 0),
                                      .ref = ref, .dom = domid};
    s64 rc;

    if (!va)
        return -XEN_ENOMEM;
    rc = HYPERVISOR_grant_table_op(GNTTABOP_map_grant_ref, &op, 1);
    *map = (struct grant_map){va, op.handle};
    if (!rc && op.status) {
        *map = (struct grant_map){NULL, -op.status};
        rc = -XEN_EINVAL;
    }
    if (rc)
        vmap_free(va, 1);
    return rc;
}

s64 grant_unmap(struct grant_map *map)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = (u64)map->va, .handle = map->handle};
    s64 rc = HYPERVISOR_grant_table_op(GNTTABOP_unmap_grant_ref, &op, 1);

    if (!rc && op.status)
        rc = -XEN_EINVAL;
    if (!rc)
        vmap_free(map->va, 1);
    return rc;
}
