/* What the files of grant/ share. Nobody else includes it. Locks: see hv/grant.h; all of these take what they need. */
#ifndef XL_HV_GRANT_PRIVATE_H
#define XL_HV_GRANT_PRIVATE_H

#include "hv/host.h"

/* table.c: the entry protocol. pin adds `incr` (GNTPIN_*, one or two) to an entry for `mapper` and gives its mfn; the frame is not
 * referenced yet. `mapping`: sub-page grants are refused. Returns GNTST_*. unpin undoes it, the entry's in-use bits with it. */
int  grant_pin(struct domain *granter, u32 gref, u16 mapper, u32 incr, bool readonly, bool mapping, u32 *mfn);
void grant_unpin(struct domain *granter, u32 gref, u32 incr, bool readonly);
/* A general reference to a frame of `owner`, allocated or merely still referenced (as Xen's get_page). */
bool grant_hold_frame(struct host *h, u64 mfn, const struct domain *owner);
/* The bytes of a frame of `owner` through the choke point, to be ended by frame_read_end / frame_write_end. NULL and *status:
 * bad_page (not the owner's), general_error (not writable now). */
const void *grant_read_frame(struct host *h, u64 mfn, const struct domain *owner, int *status);
void *grant_write_frame(struct host *h, u64 mfn, const struct domain *owner, int *status);

/* Makes the table at least n frames long. False: over the limit, dead, or no memory. */
bool grant_grow(struct domain *d, u32 n);
/* Exchanges two entries of d. GNTST_* */
int  grant_swap(struct domain *d, u32 a, u32 b);

/* The domain that elements of a batch name: a run of equal domids is looked up once. */
struct granter_cache {
    struct domain *d;                   /* with a reference, or NULL */
};
struct domain *granter_find(struct vcpu *v, struct granter_cache *c, u16 domid);        /* no DOMID_SELF. NULL: none, or dying */
static inline void granter_drop(struct granter_cache *c)
{
    if (c->d)
        domain_put(c->d);
    c->d = NULL;
}

/* map.c, copy.c: one element each, result in op->status; unmaps take effect in the guest's eyes at grant_unmap_finish. */
void grant_map(struct vcpu *v, struct granter_cache *c, struct gnttab_map_grant_ref *op);

struct grant_unmap {
    u64 host_addr, dev_bus_addr, new_addr;
    u32 handle;
    s16 status;
    /* what was undone, for grant_unmap_finish */
    struct domain *granter;
    u32 gref, mfn;
    u16 done;                           /* GNTMAP_device_map, GNTMAP_host_map */
    bool readonly, last;                /* last: the handle is gone and gave us its reference on the granter */
};
void grant_unmap_begin(struct vcpu *v, struct grant_unmap *u);
/* Flushes the TLBs and then lets go of frames and entries, so that a granter never sees "not in use" while a stale translation
 * can still reach the frame. */
void grant_unmap_finish(struct vcpu *v, struct grant_unmap *u, unsigned n);

struct copy_side {
    struct granter_cache granter;
    struct domain *d;                   /* whose frame: the caller, or the one in `granter` */
    u64 where;                          /* gref, or mfn of an own frame */
    u16 domid;                          /* as the element says */
    bool by_ref, write;
    u8 *bytes;                          /* open: pinned (by_ref), referenced, typed writable (write); NULL: closed */
    u32 mfn;                            /* of bytes */
};
struct grant_copy_batch {               /* { .dest.write = true } */
    struct copy_side source, dest;
};
void grant_copy(struct vcpu *v, struct grant_copy_batch *b, struct gnttab_copy *op);
void grant_copy_finish(struct vcpu *v, struct grant_copy_batch *b);

#endif
