/* Mapping grants: handles, map, unmap, unmap_and_replace, a mapper's death (xen-abi 6.3).
 *
 * Owns: the maptrack of a mapper. Called by: op.c, domain life cycle.
 * Locks: maptrack_lock guards handles. A handle is claimed (busy) by the one vCPU that unmaps it, because the page-table work
 * in between takes mm.lock, which may not be waited for under maptrack_lock.
 *
 * A mapping is built in this order and undone in the other: pin, frame references, page-table entry, handle.
 */
#include "hv/grant/private.h"

static const u32 NO_HANDLE = ~0u;

static inline struct maptrack *maptrack_entry(const struct grant_state *gt, u32 handle)
{
    return &gt->maptrack[handle / MAPTRACK_PER_FRAME][handle % MAPTRACK_PER_FRAME];
}

/* ---- handles ----------------------------------------------------------------------------------------------------- */

/* One more page of handles, all on the free list, lowest first. [maptrack_lock] */
static bool maptrack_grow(struct domain *d)
{
    struct grant_state *gt = &d->gt;
    u32 first = gt->nr_maptrack_frames * MAPTRACK_PER_FRAME;

    if (gt->nr_maptrack_frames == gt->max_maptrack_frames)
        return false;
    struct maptrack *page = arena_alloc(&d->host->arena, PAGE_SIZE);
    if (!page)
        return false;
    for (u32 i = 0; i < MAPTRACK_PER_FRAME; i++)
        page[i].gref = i + 1 < MAPTRACK_PER_FRAME ? first + i + 1 : NO_HANDLE;
    gt->maptrack[gt->nr_maptrack_frames++] = page;
    gt->free_maptrack = first;
    return true;
}

/* A handle nobody can name yet (flags 0), or NO_HANDLE. The free list is empty when all handles are in use. */
static u32 handle_alloc(struct domain *d)
{
    struct grant_state *gt = &d->gt;
    u32 handle = NO_HANDLE;

    spin_lock(&gt->maptrack_lock);
    if (gt->nr_maptrack < gt->nr_maptrack_frames * MAPTRACK_PER_FRAME || maptrack_grow(d)) {
        handle = gt->free_maptrack;
        gt->free_maptrack = maptrack_entry(gt, handle)->gref;
        gt->nr_maptrack++;
    }
    spin_unlock(&gt->maptrack_lock);
    return handle;
}

/* [maptrack_lock] */
static void handle_free_locked(struct grant_state *gt, u32 handle)
{
    *maptrack_entry(gt, handle) = (struct maptrack){ .gref = gt->free_maptrack };
    gt->free_maptrack = handle;
    gt->nr_maptrack--;
}

static void handle_free(struct grant_state *gt, u32 handle)
{
    spin_lock(&gt->maptrack_lock);
    handle_free_locked(gt, handle);
    spin_unlock(&gt->maptrack_lock);
}

/* Takes over the caller's reference on the granter. */
static void handle_publish(struct grant_state *gt, u32 handle, struct domain *granter, u32 gref, u16 flags)
{
    spin_lock(&gt->maptrack_lock);
    *maptrack_entry(gt, handle) = (struct maptrack){ .granter = granter, .gref = gref, .flags = flags };
    spin_unlock(&gt->maptrack_lock);
}

/* ---- map --------------------------------------------------------------------------------------------------------- */

static u32 pins_for(u32 flags)
{
    bool readonly = flags & GNTMAP_readonly;
    u32 incr = 0;

    if (flags & GNTMAP_device_map)
        incr |= readonly ? GNTPIN_devr_inc : GNTPIN_devw_inc;
    if (flags & GNTMAP_host_map)
        incr |= readonly ? GNTPIN_hstr_inc : GNTPIN_hstw_inc;
    return incr;
}

/* n general references to the granter's frame, and as many writable types unless readonly; all or none. */
static bool hold_frame(struct host *h, u32 mfn, const struct domain *granter, unsigned n, bool readonly)
{
    unsigned held = 0;

    for (; held < n && grant_hold_frame(h, mfn, granter); held++) {
        if (!readonly && get_page_type(h, mfn, PGT_writable_page)) {
            put_page(h, mfn);
            break;
        }
    }
    if (held == n)
        return true;
    while (held--)
        readonly ? put_page(h, mfn) : put_page_and_type(h, mfn);
    return false;
}

static void drop_frame(struct host *h, u32 mfn, unsigned n, bool readonly)
{
    while (n--)
        readonly ? put_page(h, mfn) : put_page_and_type(h, mfn);
}

/* References and page-table entry for a pinned grant. GNTST_* */
static int install(struct vcpu *v, struct domain *granter, u32 mfn, const struct gnttab_map_grant_ref *op)
{
    struct host *h = v->host;
    bool readonly = op->flags & GNTMAP_readonly;
    unsigned kinds = !!(op->flags & GNTMAP_device_map) + !!(op->flags & GNTMAP_host_map);

    if (!hold_frame(h, mfn, granter, kinds, readonly))
        return GNTST_general_error;
    if (!(op->flags & GNTMAP_host_map))
        return GNTST_okay;
    struct frame *f = mfn_frame(&h->machine, mfn);
    if (granter != v->domain && !(read_once(f->count_info) & PGC_FOREIGN))
        atomic_or(&f->count_info, PGC_FOREIGN);         /* before any TLB of ours can hold it */
    int rc = mm_map_grant(v, op->host_addr, mfn, op->flags);
    if (rc)
        drop_frame(h, mfn, kinds, readonly);
    return rc;
}

void grant_map(struct vcpu *v, struct granter_cache *c, struct gnttab_map_grant_ref *op)
{
    struct grant_state *gt = &v->domain->gt;
    bool readonly = op->flags & GNTMAP_readonly;
    u32 incr = pins_for(op->flags), mfn;

    if (!incr) {
        op->status = GNTST_bad_gntref;
        return;
    }
    struct domain *granter = granter_find(v, c, op->dom);
    if (!granter) {
        op->status = GNTST_bad_domain;
        return;
    }
    u32 handle = handle_alloc(v->domain);
    if (handle == NO_HANDLE) {
        op->status = GNTST_no_space;
        return;
    }
    int rc = grant_pin(granter, op->ref, v->domain->id, incr, readonly, true, &mfn);
    if (!rc) {
        rc = install(v, granter, mfn, op);
        if (rc)
            grant_unpin(granter, op->ref, incr, readonly);
    }
    op->status = (s16)rc;
    if (rc) {
        handle_free(gt, handle);
        return;
    }
    atomic_add(&granter->refcount, 1);  /* the handle's; the cache holds one, so it cannot be 0 */
    handle_publish(gt, handle, granter, op->ref, (u16)op->flags);
    op->handle = handle;
    op->dev_bus_addr = (u64)mfn << PAGE_SHIFT;
    stat_inc(v, grant_maps);
    vcpu_trace(v, GRANT_MAP, (u64)granter->id << 32 | op->ref, mfn);
}

/* ---- unmap ------------------------------------------------------------------------------------------------------- */

/* Claims a handle for one unmapper. False: none such, or another vCPU is at it. */
static bool handle_claim(struct grant_state *gt, u32 handle, struct maptrack *copy)
{
    bool claimed = false;

    spin_lock(&gt->maptrack_lock);
    if (handle < gt->nr_maptrack_frames * MAPTRACK_PER_FRAME) {
        struct maptrack *m = maptrack_entry(gt, handle);
        claimed = m->flags && !m->busy;
        if (claimed) {
            m->busy = true;
            *copy = *m;
        }
    }
    spin_unlock(&gt->maptrack_lock);
    return claimed;
}

/* Ends the claim, less what was undone. True: nothing is left, the handle is free and its reference on the granter ours. */
static bool handle_release(struct grant_state *gt, u32 handle, u16 done)
{
    spin_lock(&gt->maptrack_lock);
    struct maptrack *m = maptrack_entry(gt, handle);
    m->busy = false;
    m->flags &= (u16)~done;
    bool last = !(m->flags & (GNTMAP_device_map | GNTMAP_host_map));
    if (last)
        handle_free_locked(gt, handle);
    spin_unlock(&gt->maptrack_lock);
    return last;
}

/* The mapped frame: the pin that the claimed handle holds keeps the entry from changing. */
static u32 pinned_mfn(const struct domain *granter, u32 gref)
{
    return granter->gt.active[gref / GRANT_ENTRIES_PER_FRAME][gref % GRANT_ENTRIES_PER_FRAME].mfn;
}

void grant_unmap_begin(struct vcpu *v, struct grant_unmap *u)
{
    struct grant_state *gt = &v->domain->gt;
    struct maptrack m;

    u->done = 0;
    u->last = false;
    if (!handle_claim(gt, u->handle, &m)) {
        u->status = GNTST_bad_handle;
        return;
    }
    u->granter = m.granter;
    u->gref = m.gref;
    u->mfn = pinned_mfn(m.granter, m.gref);
    u->readonly = m.flags & GNTMAP_readonly;
    u->status = GNTST_okay;

    bool device = u->dev_bus_addr && (m.flags & GNTMAP_device_map);
    if (device && u->dev_bus_addr != (u64)u->mfn << PAGE_SHIFT)
        u->status = GNTST_bad_dev_addr;
    else if (u->host_addr && (m.flags & GNTMAP_host_map)) {
        u->status = (s16)mm_unmap_grant(v, u->host_addr, u->new_addr, u->mfn, m.flags);
        if (!u->status)
            u->done |= GNTMAP_host_map;
    }
    if (device && !u->status)
        u->done |= GNTMAP_device_map;
    u->last = handle_release(gt, u->handle, u->done);
    if (u->done) {
        stat_inc(v, grant_unmaps);
        vcpu_trace(v, GRANT_UNMAP, u->handle, u->mfn);
    }
}

void grant_unmap_finish(struct vcpu *v, struct grant_unmap *u, unsigned n)
{
    bool flush = false;

    for (unsigned i = 0; i < n; i++)
        flush |= u[i].done & GNTMAP_host_map;
    if (flush)                          /* an entry may be cached under other addresses that reach the same L1: flush all */
        tlb_flush_domain(v->domain);
    for (unsigned i = 0; i < n; i++) {
        if (!u[i].done)
            continue;
        if (u[i].done & GNTMAP_device_map)
            drop_frame(v->host, u[i].mfn, 1, u[i].readonly);
        grant_unpin(u[i].granter, u[i].gref, pins_for(u[i].done | (u[i].readonly ? GNTMAP_readonly : 0)), u[i].readonly);
        if (u[i].last)
            domain_put(u[i].granter);
    }
}

/* ---- death of a mapper ------------------------------------------------------------------------------------------- */

/* No vCPU of d runs any more. PTEs keep their references until mm_destroy; nobody can use them. */
void grant_release_mappings(struct domain *d)
{
    struct grant_state *gt = &d->gt;

    for (u32 handle = gt->nr_maptrack_frames * MAPTRACK_PER_FRAME; handle--; ) {
        struct maptrack m;
        if (!handle_claim(gt, handle, &m))
            continue;
        bool readonly = m.flags & GNTMAP_readonly;
        if (m.flags & GNTMAP_device_map)
            drop_frame(d->host, pinned_mfn(m.granter, m.gref), 1, readonly);
        grant_unpin(m.granter, m.gref, pins_for(m.flags), readonly);
        handle_free(gt, handle);
        domain_put(m.granter);
    }
}
