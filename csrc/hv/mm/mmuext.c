/* mmuext_op: pins, base pointers, TLB flushes, clear and copy, the LDT register.
 *
 * Owns: the pin flag of tables, vcpu->cr3_mfn and user_cr3_mfn. Called by: the hypercall, the builder and VCPUOP_initialise
 * (mm_set_vcpu_bases, mm_pin_table). Lock: mm.lock of the tables' owner around each operation; arguments are copied outside.
 */
#include "hv/mm/mm_internal.h"

#include <string.h>

enum { CHUNK = 32 };
static const u32 MMU_UPDATE_PREEMPTED = 1u << 31;

/* ---- pins -------------------------------------------------------------------------------------------------------- */

int pin_table(struct domain *d, u64 mfn, unsigned type)
{
    struct host *h = d->host;
    int rc = get_page_and_type(h, mfn, d, type);
    if (rc)
        return rc;
    if (atomic_or(&mfn_frame(&h->machine, mfn)->type_info, PGT_PINNED) & PGT_PINNED) {
        put_page_and_type(h, mfn);
        return -XEN_EINVAL;
    }
    return 0;                           /* both references are the pin's now */
}

int unpin_table(struct domain *d, u64 mfn)
{
    struct host *h = d->host;
    if (!get_page(h, mfn, d))
        return -XEN_EINVAL;
    bool pinned = atomic_and(&mfn_frame(&h->machine, mfn)->type_info, ~PGT_PINNED) & PGT_PINNED;
    if (pinned)
        put_page_and_type(h, mfn);
    put_page(h, mfn);
    return pinned ? 0 : -XEN_EINVAL;
}

int mm_pin_table(struct domain *d, u64 mfn, unsigned type)
{
    if (!pgt_is_table(type))
        return -XEN_EINVAL;
    spin_lock(&d->mm.lock);
    int rc = pin_table(d, mfn, type);
    spin_unlock(&d->mm.lock);
    return rc;
}

/* ---- base pointers ----------------------------------------------------------------------------------------------- */

static int base_get(struct vcpu *v, u64 mfn)
{
    return mfn ? get_page_and_type(v->host, mfn, v->domain, PGT_l4_page_table) : 0;
}

/* The exchange is a full barrier: a walk that begins later cannot find the old root. */
static void base_replace(struct vcpu *v, u32 *base, u64 mfn)
{
    u32 old = xchg(base, (u32)mfn);
    if (old)
        put_page_and_type(v->host, old);
}

void bases_drop(struct vcpu *v)
{
    base_replace(v, &v->cr3_mfn, 0);
    base_replace(v, &v->user_cr3_mfn, 0);
}

int mm_set_vcpu_bases(struct vcpu *v, u32 kernel_l4, u32 user_l4)
{
    struct domain *d = v->domain;
    if (!kernel_l4)
        return -XEN_EINVAL;
    spin_lock(&d->mm.lock);
    int rc = base_get(v, kernel_l4);
    if (!rc) {
        rc = base_get(v, user_l4);
        if (rc)
            put_page_and_type(v->host, kernel_l4);
    }
    if (!rc) {
        base_replace(v, &v->cr3_mfn, kernel_l4);
        base_replace(v, &v->user_cr3_mfn, user_l4);
    }
    spin_unlock(&d->mm.lock);
    if (!rc)
        tlb_flush_domain(d);
    return rc;
}

void mm_drop_vcpu_bases(struct vcpu *v)
{
    spin_lock(&v->domain->mm.lock);
    bases_drop(v);
    spin_unlock(&v->domain->mm.lock);
}

/* ---- the operations ---------------------------------------------------------------------------------------------- */

static int op_pin(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    unsigned type = op->cmd - MMUEXT_PIN_L1_TABLE + PGT_l1_page_table;
    int rc = mm_pin_table(d, op->arg1.mfn, type);
    if (!rc)
        vcpu_trace(v, PT_TYPE, op->arg1.mfn, type);
    return rc;
}

static int op_unpin(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    spin_lock(&d->mm.lock);
    int rc = unpin_table(d, op->arg1.mfn);
    spin_unlock(&d->mm.lock);
    if (!rc)
        vcpu_trace(v, PT_TYPE, op->arg1.mfn, PGT_none);
    return rc;
}

int mm_new_base(struct vcpu *v, bool user, u64 mfn)
{
    struct domain *d = v->domain;
    u32 *base = user ? &v->user_cr3_mfn : &v->cr3_mfn;
    int rc = 0;
    spin_lock(&d->mm.lock);
    if (mfn != *base) {
        rc = !mfn && !user ? -XEN_EINVAL : base_get(v, mfn);
        if (!rc) {
            if (!user)
                ldt_pages_drop(v);      /* they were found by the old tables */
            base_replace(v, base, mfn);
        }
    }
    spin_unlock(&d->mm.lock);
    if (!rc)
        tlb_flush_local(v);
    return rc;
}

static int op_new_base(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    return mm_new_base(v, op->cmd == MMUEXT_NEW_USER_BASEPTR, op->arg1.mfn);
}

static int op_flush_local(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    tlb_flush_local(v);
    return 0;
}

static int op_invlpg_local(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    tlb_flush_page_local(v, op->arg1.linear_addr);
    return 0;
}

/* Other vCPUs forget everything, also for a single page. */
static int op_flush_multi(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    struct vcpu_mask mask;
    if (vcpu_mask_read(v, &mask, (u64)op->arg2.vcpumask))
        return -XEN_EINVAL;
    vcpu_mask_flush(d, &mask);
    return 0;
}

static int op_flush_all(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    tlb_flush_domain(d);
    return 0;
}

static int op_flush_cache(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    return -XEN_EACCES;                 /* no domain has a device */
}

static int op_set_ldt(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    u64 base = op->arg1.linear_addr, entries = op->arg2.nr_ents;
    if (entries > 8192 || (entries && (base % PAGE_SIZE || !guest_addr_ok(base))))
        return -XEN_EINVAL;
    mm_set_ldt(v, base, (u32)entries);
    return 0;
}

static int op_clear_page(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    void *page = frame_write_begin(v->host, op->arg1.mfn, d);
    if (!page)
        return -XEN_EINVAL;
    memset(page, 0, PAGE_SIZE);
    frame_write_end(v->host, op->arg1.mfn);
    return 0;
}

static int op_copy_page(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    struct host *h = v->host;
    const void *from = frame_read_begin(h, op->arg2.src_mfn, d);
    void *to = from ? frame_write_begin(h, op->arg1.mfn, d) : NULL;
    if (to) {
        memmove(to, from, PAGE_SIZE);   /* a page onto itself is legal */
        frame_write_end(h, op->arg1.mfn);
    }
    if (from)
        frame_read_end(h, op->arg2.src_mfn);
    return to ? 0 : -XEN_EINVAL;
}

static int op_super(struct vcpu *v, struct domain *d, const struct mmuext_op *op)
{
    return -XEN_EOPNOTSUPP;
}

typedef int mmuext_fn(struct vcpu *v, struct domain *d, const struct mmuext_op *op);

/* SELF: about the calling vCPU or domain, so that another pg_owner makes no sense: -EPERM.
 * FRAMES: about frames of pg_owner, of which DOMID_IO has none: -EINVAL. */
enum { SELF = 1, FRAMES = 2 };
static const struct { mmuext_fn *fn; unsigned about; } mmuext_ops[] = {
    [MMUEXT_PIN_L1_TABLE]       = { op_pin, FRAMES },
    [MMUEXT_PIN_L2_TABLE]       = { op_pin, FRAMES },
    [MMUEXT_PIN_L3_TABLE]       = { op_pin, FRAMES },
    [MMUEXT_PIN_L4_TABLE]       = { op_pin, FRAMES },
    [MMUEXT_UNPIN_TABLE]        = { op_unpin, FRAMES },
    [MMUEXT_NEW_BASEPTR]        = { op_new_base, SELF },
    [MMUEXT_TLB_FLUSH_LOCAL]    = { op_flush_local, SELF },
    [MMUEXT_INVLPG_LOCAL]       = { op_invlpg_local, SELF },
    [MMUEXT_TLB_FLUSH_MULTI]    = { op_flush_multi, SELF },
    [MMUEXT_INVLPG_MULTI]       = { op_flush_multi, SELF },
    [MMUEXT_TLB_FLUSH_ALL]      = { op_flush_all, SELF },
    [MMUEXT_INVLPG_ALL]         = { op_flush_all, SELF },
    [MMUEXT_FLUSH_CACHE]        = { op_flush_cache, SELF },
    [MMUEXT_SET_LDT]            = { op_set_ldt, SELF },
    [MMUEXT_NEW_USER_BASEPTR]   = { op_new_base, SELF },
    [MMUEXT_CLEAR_PAGE]         = { op_clear_page, FRAMES },
    [MMUEXT_COPY_PAGE]          = { op_copy_page, FRAMES },
    [MMUEXT_FLUSH_CACHE_GLOBAL] = { op_flush_cache, SELF },
    [MMUEXT_MARK_SUPER]         = { op_super, 0 },
    [MMUEXT_UNMARK_SUPER]       = { op_super, 0 },
};

static int mmuext_one(struct vcpu *v, struct domain *pg_owner, const struct mmuext_op *op)
{
    if (op->cmd >= ARRAY_SIZE(mmuext_ops) || !mmuext_ops[op->cmd].fn)
        return -XEN_ENOSYS;
    if (mmuext_ops[op->cmd].about == SELF && pg_owner != v->domain)
        return -XEN_EPERM;
    if (mmuext_ops[op->cmd].about == FRAMES && !pg_owner)
        return -XEN_EINVAL;
    return mmuext_ops[op->cmd].fn(v, pg_owner, op);
}

static int mmuext_all(struct vcpu *v, struct domain *pg_owner, u64 ops, u32 count, u32 *done)
{
    struct mmuext_op op[CHUNK];
    struct domain *d = pg_owner ? pg_owner : v->domain;
    u64 start = read_once(d->mm.work);
    u32 limit = CHUNK;
    int rc = 0;
    while (!rc && *done < count) {
        u32 n = count - *done < limit ? count - *done : limit, i = 0;
        if (copy_from_guest(v, op, ops + *done * sizeof *op, n * sizeof *op)) {
            if (n == 1)
                return -XEN_EFAULT;
            limit = 1;
            continue;
        }
        while (i < n && !(rc = mmuext_one(v, pg_owner, &op[i]))) {
            i++;
            if (!hypercall_charge(v, WORK_PAGE))        /* what each operation costs besides */
                return -XEN_EINVAL;
            if (work_exceeded(d, start))
                return call_too_long(v, "mmuext_op");
        }
        *done += i;
    }
    return rc;
}

s64 do_mmuext_op(struct vcpu *v, u64 ops, u64 count_arg, u64 pdone, u64 foreigndom)
{
    u32 count = (u32)count_arg, before = 0, done = 0;

    if (count == MMU_UPDATE_PREEMPTED && !ops)
        return (s32)foreigndom;
    if (count & MMU_UPDATE_PREEMPTED) {
        count &= ~MMU_UPDATE_PREEMPTED;
        if (pdone)
            (void)copy_from_guest(v, &before, pdone, sizeof before);
    }
    if (!guest_addr_ok(ops))
        return -XEN_EFAULT;

    struct domain *pg_owner;
    int rc = pg_owner_get(v, (u16)foreigndom, &pg_owner);
    if (rc)
        return rc;
    bool allowed = may_control(v, pg_owner);
    rc = allowed ? mmuext_all(v, pg_owner, ops, count, &done) : -XEN_EPERM;
    pg_owner_put(v, pg_owner);
    if (pdone && allowed) {
        before += done;
        (void)copy_to_guest(v, pdone, &before, sizeof before);
    }
    return rc;
}
