/* GNTTABOP_copy: one element (xen-abi 6.3).
 *
 * Owns: nothing. Called by: op.c. Lock: the granters' gt.lock within grant_pin and grant_unpin; the bytes move without a lock,
 * under references that keep both frames and the destination's type.
 */
#include <string.h>

#include "hv/grant/private.h"

struct side {
    const struct gnttab_copy_ptr *ptr;
    struct domain *d;                   /* whose frame */
    bool by_ref, write;
    u32 mfn;
};

/* Own frames are named by DOMID_SELF only; grants by any domid, SELF included. Xen checks both domids before either page. */
static int find_side(struct vcpu *v, struct granter_cache *c, struct side *s)
{
    u16 domid = s->ptr->domid;

    if (domid == DOMID_SELF)
        s->d = v->domain;
    else if (!s->by_ref)
        return GNTST_permission_denied;
    else
        s->d = granter_find(v, c, domid);
    return s->d ? GNTST_okay : GNTST_bad_domain;
}

static inline u32 side_pin(const struct side *s) { return s->write ? GNTPIN_hstw_inc : GNTPIN_hstr_inc; }

/* The side's bytes, or NULL and *status. */
static void *open_side(struct vcpu *v, struct side *s, int *status)
{
    u64 mfn = s->ptr->u.gmfn;
    void *bytes;

    if (s->by_ref) {
        *status = grant_pin(s->d, s->ptr->u.ref, v->domain->id, side_pin(s), !s->write, false, &s->mfn);
        if (*status)
            return NULL;
        mfn = s->mfn;
    }
    if (s->write)
        bytes = grant_write_frame(v->host, mfn, s->d, status);
    else
        bytes = (void *)grant_read_frame(v->host, mfn, s->d, status);
    s->mfn = (u32)mfn;
    if (!bytes && s->by_ref)
        grant_unpin(s->d, s->ptr->u.ref, side_pin(s), !s->write);
    return bytes;
}

static void close_side(struct vcpu *v, struct side *s)
{
    s->write ? frame_write_end(v->host, s->mfn) : frame_read_end(v->host, s->mfn);
    if (s->by_ref)
        grant_unpin(s->d, s->ptr->u.ref, side_pin(s), !s->write);
}

static int copy(struct vcpu *v, struct grant_copy_cache *c, const struct gnttab_copy *op)
{
    struct side source = { .ptr = &op->source, .by_ref = op->flags & GNTCOPY_source_gref };
    struct side dest = { .ptr = &op->dest, .by_ref = op->flags & GNTCOPY_dest_gref, .write = true };
    int rc;

    if (!op->len)
        return GNTST_okay;              /* before any check, as in Xen */
    if ((rc = find_side(v, &c->source, &source)) || (rc = find_side(v, &c->dest, &dest)))
        return rc;
    u8 *from = open_side(v, &source, &rc);
    if (!from)
        return rc;
    u8 *to = open_side(v, &dest, &rc);
    if (to) {
        if (op->source.offset + op->len > PAGE_SIZE || op->dest.offset + op->len > PAGE_SIZE)
            rc = GNTST_bad_copy_arg;
        else
            memmove(to + op->dest.offset, from + op->source.offset, op->len);   /* both may be one frame */
        close_side(v, &dest);
    }
    close_side(v, &source);
    return rc;
}

void grant_copy(struct vcpu *v, struct grant_copy_cache *c, struct gnttab_copy *op)
{
    op->status = (s16)copy(v, c, op);
    if (!op->status)
        stat_inc(v, grant_copies);
}
