/* GNTTABOP_copy: one element, and what a batch keeps between elements (xen-abi 6.3).
 *
 * Owns: nothing. Called by: op.c. Lock: the granters' gt.lock within grant_pin and grant_unpin; the bytes move without a lock,
 * under references that keep both frames and the destination's type.
 *
 * A side (source or destination) that the next element names again stays open: back ends pack many small copies into one page.
 */
#include <string.h>

#include "hv/grant/private.h"

static inline u32 side_pin(const struct copy_side *s) { return s->write ? GNTPIN_hstw_inc : GNTPIN_hstr_inc; }

static void close_side(struct vcpu *v, struct copy_side *s)
{
    if (!s->bytes)
        return;
    s->write ? frame_write_end(v->host, s->mfn) : frame_read_end(v->host, s->mfn);
    if (s->by_ref)
        grant_unpin(s->d, (u32)s->where, side_pin(s), !s->write);
    s->bytes = NULL;
}

/* Makes s stand for what the element names, still closed unless it did before. Xen checks both domids before either page. */
static int name_side(struct vcpu *v, struct copy_side *s, const struct gnttab_copy_ptr *ptr, bool by_ref)
{
    u64 where = by_ref ? ptr->u.ref : ptr->u.gmfn;

    if (s->bytes && s->by_ref == by_ref && s->where == where && s->domid == ptr->domid)
        return GNTST_okay;
    close_side(v, s);
    if (!by_ref && ptr->domid != DOMID_SELF)
        return GNTST_permission_denied; /* own frames only */
    s->by_ref = by_ref;
    s->where = where;
    s->domid = ptr->domid;
    s->d = ptr->domid == DOMID_SELF ? v->domain : granter_find(v, &s->granter, ptr->domid);
    return s->d ? GNTST_okay : GNTST_bad_domain;
}

static int open_side(struct vcpu *v, struct copy_side *s)
{
    u64 mfn = s->where;
    int status;

    if (s->bytes)
        return GNTST_okay;
    if (s->by_ref) {
        u32 granted;
        status = grant_pin(s->d, (u32)s->where, v->domain->id, side_pin(s), !s->write, false, &granted);
        if (status)
            return status;
        mfn = granted;
    }
    s->bytes = s->write ? grant_write_frame(v->host, mfn, s->d, &status) : (void *)grant_read_frame(v->host, mfn, s->d, &status);
    s->mfn = (u32)mfn;
    if (!s->bytes && s->by_ref)
        grant_unpin(s->d, (u32)s->where, side_pin(s), !s->write);
    return status;
}

static int copy(struct vcpu *v, struct copy_side *source, struct copy_side *dest, const struct gnttab_copy *op)
{
    int rc;

    if (!op->len)
        return GNTST_okay;              /* before any check, as in Xen */
    if ((rc = name_side(v, source, &op->source, op->flags & GNTCOPY_source_gref)) ||
        (rc = name_side(v, dest, &op->dest, op->flags & GNTCOPY_dest_gref)) ||
        (rc = open_side(v, source)) || (rc = open_side(v, dest)))
        return rc;
    if (op->source.offset + op->len > PAGE_SIZE || op->dest.offset + op->len > PAGE_SIZE)
        return GNTST_bad_copy_arg;
    memmove(dest->bytes + op->dest.offset, source->bytes + op->source.offset, op->len);     /* both may be one frame */
    return GNTST_okay;
}

void grant_copy(struct vcpu *v, struct grant_copy_batch *b, struct gnttab_copy *op)
{
    op->status = (s16)copy(v, &b->source, &b->dest, op);
    if (!op->status) {
        stat_inc(v, grant_copies);
        return;
    }
    close_side(v, &b->source);          /* an error leaves nothing open */
    close_side(v, &b->dest);
}

void grant_copy_finish(struct vcpu *v, struct grant_copy_batch *b)
{
    close_side(v, &b->source);
    close_side(v, &b->dest);
    granter_drop(&b->source.granter);
    granter_drop(&b->dest.granter);
}
