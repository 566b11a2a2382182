/* A domain's grant table: shared frames, active entries, the atomic protocol (xen-abi 6.1, 6.2; Xen's public grant_table.h).
 *
 * Owns: struct grant_state less its handles. Called by: map.c, copy.c, op.c, domain life cycle, toolstack, back ends.
 * Lock: gt.lock, a leaf here: no reference, page table or guest copy is touched under it.
 *
 * Shared frames are special frames (typed writable for good, never moved), so an entry's host address is stable while the
 * domain lives; after its death `dead` keeps everybody away from them.
 */
#include "hv/grant/private.h"

#include "machine/frame_type.h"

enum {
    PIN_RETRIES = 4,                    /* the guest may change the word meanwhile, but not for ever */
    MAX_TABLE_FRAMES = 1 << 20,         /* keeps sizes and grefs well within 32 bits */
};

STATIC_ASSERT(GRANT_ENTRIES_PER_FRAME * sizeof(struct grant_entry_v1) == PAGE_SIZE);
STATIC_ASSERT(MAPTRACK_PER_FRAME * sizeof(struct maptrack) == PAGE_SIZE);

static const u64 active_page_bytes = GRANT_ENTRIES_PER_FRAME * sizeof(struct active_grant);

static inline struct active_grant *active_entry(const struct grant_state *gt, u32 gref)
{
    return &gt->active[gref / GRANT_ENTRIES_PER_FRAME][gref % GRANT_ENTRIES_PER_FRAME];
}

/* The guest's word, about to be written by us. */
static inline struct grant_entry_v1 *shared_entry(struct domain *d, u32 gref)
{
    struct machine *m = &d->host->machine;
    u32 mfn = d->gt.frame_mfns[gref / GRANT_ENTRIES_PER_FRAME];

    frame_mark_dirty(m, mfn);
    return (struct grant_entry_v1 *)mfn_ptr(m, mfn) + gref % GRANT_ENTRIES_PER_FRAME;
}

/* ---- the pin protocol -------------------------------------------------------------------------------------------- */

/* flags and domid of an entry as one word, which is what the cmpxchg works on. */
union grant_head {
    u32 word;
    struct { u16 flags, domid; };
};
STATIC_ASSERT(offsetof(struct grant_entry_v1, domid) == 2 && offsetof(struct grant_entry_v1, frame) == 4);

/* Sets reading (and writing) in an entry that allows it. `fresh`: the first pin, which looks at type and domid. [gt.lock] */
static int set_in_use(struct grant_entry_v1 *shared, bool fresh, u16 mapper, bool readonly, bool mapping)
{
    const u16 type_mask = GTF_type_mask | (mapping ? GTF_sub_page : 0);
    union grant_head old = { .word = read_once(*(u32 *)shared) };

    for (unsigned tries = 0; tries <= PIN_RETRIES; tries++) {
        if (fresh && ((old.flags & type_mask) != GTF_permit_access || old.domid != mapper))
            return GNTST_general_error;
        if (!readonly && (old.flags & GTF_readonly))
            return GNTST_general_error;
        union grant_head new = old;
        new.flags |= readonly ? GTF_reading : GTF_reading | GTF_writing;
        if (cmpxchg((u32 *)shared, &old.word, new.word))
            return GNTST_okay;
    }
    return GNTST_general_error;
}

/* Reduces the guest's word to what is still pinned. [gt.lock] */
static void clear_in_use(struct domain *d, u32 gref, const struct active_grant *act, bool readonly)
{
    u16 clear = act->pin ? 0 : GTF_reading;

    if (!readonly && !(act->pin & GNTPIN_write_mask))
        clear |= GTF_writing;
    if (clear && !d->gt.dead)
        atomic_and(&shared_entry(d, gref)->flags, (u16)~clear);
}

/* [gt.lock] */
static int pin_locked(struct domain *d, u32 gref, u16 mapper, u32 incr, bool readonly, bool mapping, u32 *mfn)
{
    struct grant_state *gt = &d->gt;

    if (unlikely(gt->dead))
        return GNTST_bad_domain;
    if (unlikely(gref >= gt->nr_frames * GRANT_ENTRIES_PER_FRAME))
        return GNTST_bad_gntref;
    struct active_grant *act = active_entry(gt, gref);
    bool fresh = !act->pin;
    if (!fresh && (act->domid != mapper || (act->pin & incr << 7)))
        return GNTST_general_error;
    if (fresh || (!readonly && !(act->pin & GNTPIN_write_mask))) {
        struct grant_entry_v1 *shared = shared_entry(d, gref);
        int rc = set_in_use(shared, fresh, mapper, readonly, mapping);
        if (rc)
            return rc;
        if (fresh) {                    /* read behind the cmpxchg: the guest wrote the frame before the flags */
            act->domid = mapper;
            act->mfn = read_once(shared->frame);
            gt->nr_pinned++;
        }
    }
    act->pin += incr;
    *mfn = act->mfn;
    return GNTST_okay;
}

int grant_pin(struct domain *d, u32 gref, u16 mapper, u32 incr, bool readonly, bool mapping, u32 *mfn)
{
    spin_lock(&d->gt.lock);
    int rc = pin_locked(d, gref, mapper, incr, readonly, mapping, mfn);
    spin_unlock(&d->gt.lock);
    return rc;
}

void grant_unpin(struct domain *d, u32 gref, u32 incr, bool readonly)
{
    spin_lock(&d->gt.lock);
    struct active_grant *act = active_entry(&d->gt, gref);
    act->pin -= incr;
    if (!act->pin)
        d->gt.nr_pinned--;
    clear_in_use(d, gref, act, readonly);
    spin_unlock(&d->gt.lock);
}

/* ---- frames ------------------------------------------------------------------------------------------------------ */

bool grant_hold_frame(struct host *h, u64 mfn, const struct domain *owner)
{
    if (unlikely(!mfn_valid(&h->machine, mfn) || !get_page_any(h, mfn)))
        return false;
    if (likely(read_once(mfn_frame(&h->machine, mfn)->owner) == owner->id))     /* stable while referenced */
        return true;
    put_page(h, mfn);
    return false;
}

const void *grant_read_frame(struct host *h, u64 mfn, const struct domain *owner, int *status)
{
    const void *bytes = frame_read_begin(h, mfn, owner);

    if (unlikely(!bytes) && grant_hold_frame(h, mfn, owner)) {  /* given up, but still referenced: Xen lets it pass */
        bytes = frame_read_begin(h, mfn, NULL);
        put_page(h, mfn);
    }
    *status = bytes ? GNTST_okay : GNTST_bad_page;
    return bytes;
}

void *grant_write_frame(struct host *h, u64 mfn, const struct domain *owner, int *status)
{
    void *bytes = frame_write_begin(h, mfn, owner);

    *status = GNTST_okay;
    if (likely(bytes))
        return bytes;
    *status = GNTST_bad_page;
    if (grant_hold_frame(h, mfn, owner)) {      /* given up, or a page table */
        bytes = frame_write_begin(h, mfn, NULL);
        put_page(h, mfn);
        *status = bytes ? GNTST_okay : GNTST_general_error;
    }
    return bytes;
}

/* ---- life cycle -------------------------------------------------------------------------------------------------- */

/* Adds one frame. Frame and active page are made before the lock is taken (a frame that was another's may need a TLB
 * shootdown), so a racing grower may have been quicker: then ours go back. */
static bool grow_one(struct domain *d)
{
    struct host *h = d->host;
    struct grant_state *gt = &d->gt;
    struct active_grant *page = arena_alloc(&h->arena, active_page_bytes);
    u32 mfn;

    if (!page)
        return false;
    if (frames_alloc(h, d, 1, true, &mfn)) {
        arena_free(&h->arena, page, active_page_bytes);
        return false;
    }
    frame_mark_touched(&h->machine, mfn);

    spin_lock(&gt->lock);
    bool take = !gt->dead && gt->nr_frames < gt->max_frames;
    if (take) {
        gt->frame_mfns[gt->nr_frames] = mfn;
        gt->active[gt->nr_frames] = page;
        gt->nr_frames++;
    }
    spin_unlock(&gt->lock);
    if (!take) {
        frame_release_allocation(h, mfn);
        arena_free(&h->arena, page, active_page_bytes);
    }
    return take;
}

bool grant_grow(struct domain *d, u32 n)
{
    if (n > d->gt.max_frames)
        return false;
    while (read_once(d->gt.nr_frames) < n)
        if (!grow_one(d))
            return false;
    return true;
}

int grant_init(struct domain *d, u32 max_frames, u32 max_maptrack_frames)
{
    struct grant_state *gt = &d->gt;
    struct arena *a = &d->host->arena;

    if (max_frames < 1 || max_frames > MAX_TABLE_FRAMES || max_maptrack_frames > MAX_TABLE_FRAMES)
        return -XEN_EINVAL;
    gt->max_frames = max_frames;
    gt->max_maptrack_frames = max_maptrack_frames;
    gt->frame_mfns = arena_alloc(a, max_frames * sizeof *gt->frame_mfns);
    gt->active = arena_alloc(a, max_frames * sizeof *gt->active);
    gt->maptrack = arena_alloc(a, max_maptrack_frames * sizeof *gt->maptrack);
    if (!gt->frame_mfns || !gt->active || !gt->maptrack || !grow_one(d))
        return -XEN_ENOMEM;
    return 0;
}

void grant_destroy(struct domain *d)
{
    struct grant_state *gt = &d->gt;

    spin_lock(&gt->lock);
    gt->dead = true;                    /* from here on pins end without a look at the shared frames */
    spin_unlock(&gt->lock);
    for (u32 i = 0; i < gt->nr_frames; i++)
        frame_release_allocation(d->host, gt->frame_mfns[i]);
}

void grant_free(struct domain *d)
{
    struct grant_state *gt = &d->gt;
    struct arena *a = &d->host->arena;

    for (u32 i = 0; i < gt->nr_frames; i++)
        arena_free(a, gt->active[i], active_page_bytes);
    for (u32 i = 0; i < gt->nr_maptrack_frames; i++)
        arena_free(a, gt->maptrack[i], PAGE_SIZE);
    arena_free(a, gt->frame_mfns, gt->max_frames * sizeof *gt->frame_mfns);
    arena_free(a, gt->active, gt->max_frames * sizeof *gt->active);
    arena_free(a, gt->maptrack, gt->max_maptrack_frames * sizeof *gt->maptrack);
    *gt = (struct grant_state){ .dead = true };
}

/* ---- toolstack and table management ------------------------------------------------------------------------------ */

int grant_seed(struct domain *d, u32 ref, u16 domid, u64 mfn)
{
    struct host *h = d->host;
    int rc = -XEN_EINVAL;

    if (ref >= GNTTAB_NR_RESERVED_ENTRIES || !grant_hold_frame(h, mfn, d))
        return rc;
    spin_lock(&d->gt.lock);
    if (d->gt.nr_frames && !d->gt.dead) {
        rc = active_entry(&d->gt, ref)->pin ? -XEN_EBUSY : 0;
        if (!rc) {
            struct grant_entry_v1 *shared = shared_entry(d, ref);
            write_once(shared->flags, GTF_invalid);
            write_once(shared->frame, (u32)mfn);
            write_once(shared->domid, domid);
            store_release(shared->flags, (u16)GTF_permit_access);
        }
    }
    spin_unlock(&d->gt.lock);
    put_page(h, mfn);
    return rc;
}

int grant_swap(struct domain *d, u32 a, u32 b)
{
    struct grant_state *gt = &d->gt;
    int rc = GNTST_okay;

    spin_lock(&gt->lock);
    u32 limit = gt->nr_frames * GRANT_ENTRIES_PER_FRAME;
    if (a >= limit || b >= limit) {
        rc = GNTST_bad_gntref;
    } else if (a != b && (active_entry(gt, a)->pin || active_entry(gt, b)->pin)) {
        rc = GNTST_eagain;
    } else if (a != b) {                /* the guest's own table: only it can be confused by racing with itself */
        u64 *x = (u64 *)shared_entry(d, a), *y = (u64 *)shared_entry(d, b), was = read_once(*x);
        write_once(*x, read_once(*y));
        write_once(*y, was);
    }
    spin_unlock(&gt->lock);
    return rc;
}

struct domain *granter_find(struct vcpu *v, struct granter_cache *c, u16 domid)
{
    if (c->d && c->d->id == domid)
        return c->d;
    granter_drop(c);
    c->d = domain_get(v->host, domid);
    return c->d;
}

/* ---- back ends' data path ---------------------------------------------------------------------------------------- */

int grant_io_begin(struct host *h, struct domain *mapper, u16 granter, u32 gref, bool readonly, u32 *mfn)
{
    const u32 incr = readonly ? GNTPIN_devr_inc : GNTPIN_devw_inc;
    struct domain *rd = domain_get(h, granter);

    if (!rd)
        return GNTST_bad_domain;
    int rc = grant_pin(rd, gref, mapper->id, incr, readonly, true, mfn);
    if (!rc) {
        if (readonly)
            grant_read_frame(h, *mfn, rd, &rc);
        else
            grant_write_frame(h, *mfn, rd, &rc);
        if (rc)
            grant_unpin(rd, gref, incr, readonly);
    }
    if (rc)
        domain_put(rd);                 /* else grant_io_end's */
    return rc;
}

void grant_io_end(struct host *h, struct domain *mapper, u16 granter, u32 gref, bool readonly, u32 mfn)
{
    struct domain *rd = h->domain_by_id[granter];       /* dead perhaps, but begin's reference keeps it */

    if (readonly)
        frame_read_end(h, mfn);
    else
        frame_write_end(h, mfn);
    grant_unpin(rd, gref, readonly ? GNTPIN_devr_inc : GNTPIN_devw_inc, readonly);
    domain_put(rd);
}
