/* memory_op: reservations, ballooning, exchange. The commands that move no memory are in memory_query.c.
 *
 * Owns: nothing; frames come and go through machine/frame.c and frame_give_up(). Called by: the hypercall. Lock: mm.lock of the
 * domain whose memory changes, a batch of extents at a time: it makes "check, then give up" one step and keeps two allocations of
 * a domain apart. Guest memory is copied before it is taken and after it is dropped.
 *
 * Extent operations return how many extents are done, from 0, and never an error (4.10). cmd carries the extent to start at in its
 * upper bits, which is how Xen continues a long call; here a call is never cut, but a guest may still pass it.
 */
#include "hv/hypercall.h"
#include "hv/mm/mm_internal.h"

enum {
    MEMOP_EXTENT_SHIFT = 6,
    MAX_ORDER = 9,                      /* largest extent there is here, log2 pages, and the largest a domain may ask for */
    MAX_ORDER_PRIVILEGED = 18,
    EXTENT_PAGES = 1 << MAX_ORDER,
    BATCH = 64,                         /* order-0 extents done at once */
    WORK_RELEASE = 4,
};
/* Xen's limit: a larger count could not be encoded in a continuation. */
static const u64 MAX_EXTENTS = 0xffffffffu >> MEMOP_EXTENT_SHIFT;

static unsigned max_order(const struct vcpu *v) { return v->domain->privileged ? MAX_ORDER_PRIVILEGED : MAX_ORDER; }

/* ---- frames in extents ------------------------------------------------------------------------------------------- */

/* An array [first, first + n) of 8-byte elements may be touched as far as addresses go. */
static bool array_ok(u64 va, u64 first, u64 n)
{
    if (n == 0)
        return guest_addr_ok(va);
    u64 last;
    if (__builtin_mul_overflow(first + n - 1, sizeof(u64), &last) || __builtin_add_overflow(va, last, &last))
        return false;
    va += first * sizeof(u64);
    return guest_addr_ok(va) && guest_addr_ok(last) && (va < HYPERVISOR_VIRT_START) == (last < HYPERVISOR_VIRT_START);
}

/* Address width in mem_flags: 0 means any. True: n frames from mfn on lie below. */
static bool below_limit(u64 mfn, u64 n, unsigned address_bits)
{
    return !address_bits || address_bits >= 64 || (mfn + n) <= 1ul << (address_bits - PAGE_SHIFT);
}

/* n extents of 2^order contiguous frames each into mfns[n << order]. All or nothing; mm.lock held. */
static int extents_alloc(struct domain *d, u32 n, unsigned order, unsigned address_bits, u32 *mfns)
{
    struct host *h = d->host;
    for (u32 i = 0; i < n; i++) {
        u32 *m = mfns + (i << order), count = 1u << order, k;
        if (order == 0) {               /* any frames do: all of them at once */
            m = mfns;
            count = n;
        }
        int rc = frames_alloc(h, d, count, false, m);
        bool good = !rc;
        for (k = 0; good && k < count; k++)
            good = below_limit(m[k], 1, address_bits) && (order == 0 || m[k] == m[0] + k);
        if (!good) {
            u32 taken = (u32)(m - mfns) + (rc ? 0 : count);
            while (taken--)
                frame_give_up(d, mfns[taken]);
            return -XEN_ENOMEM;
        }
        if (order == 0)
            break;
    }
    return 0;
}

/* ---- increase, populate, decrease -------------------------------------------------------------------------------- */

struct extents {
    struct vcpu *v;
    struct domain *d;
    u64 list;                           /* guest array of frame numbers */
    u32 order, address_bits;
    bool silent;                        /* increase_reservation without an array */
};

/* Allocates n extents (n << order <= EXTENT_PAGES) for elements from `first` on; pfns NULL: increase_reservation. Returns how many. */
static u32 allocate(struct extents *e, u64 first, u32 n, const u64 *pfns)
{
    struct host *h = e->d->host;
    u32 mfns[EXTENT_PAGES], done = 0;
    u64 out[BATCH];

    spin_lock(&e->d->mm.lock);
    int rc = extents_alloc(e->d, n, e->order, e->address_bits, mfns);
    if (!rc && pfns)
        for (u32 i = 0; i < n << e->order; i++)
            m2p_set(&h->machine, mfns[i], pfns[i >> e->order] + (i & ((1u << e->order) - 1)));
    spin_unlock(&e->d->mm.lock);
    if (rc)
        return 0;
    if (e->silent)
        return n;

    for (u32 i = 0; i < n; i++)
        out[i] = mfns[i << e->order];
    if (!copy_to_guest(e->v, e->list + first * sizeof *out, out, n * sizeof *out))
        return n;
    while (done < n && !copy_to_guest(e->v, e->list + (first + done) * sizeof *out, &out[done], sizeof *out))
        done++;
    spin_lock(&e->d->mm.lock);          /* the guest does not learn of the others */
    for (u32 i = done << e->order; i < n << e->order; i++)
        frame_give_up(e->d, mfns[i]);
    spin_unlock(&e->d->mm.lock);
    return done;
}

static u32 release(struct extents *e, u32 n, const u64 *first_mfns)
{
    u32 done = 0;
    spin_lock(&e->d->mm.lock);
    for (; done < n; done++)
        for (u64 k = 0; k < 1ul << e->order; k++)
            if (!frame_give_up(e->d, first_mfns[done] + k))
                goto out;
out:
    spin_unlock(&e->d->mm.lock);
    return done;
}

/* How many extents are done, counted from 0. */
static u64 extents_run(struct extents *e, unsigned op, u64 start, u64 nr)
{
    u64 in[BATCH], done = start;
    u32 limit = e->order ? EXTENT_PAGES >> e->order : BATCH;
    if (limit > BATCH)
        limit = BATCH;
    while (done < nr) {
        u32 n = nr - done < limit ? (u32)(nr - done) : limit, did;
        if (op == XENMEM_decrease_reservation && !hypercall_charge(e->v, (u64)WORK_RELEASE * n << e->order))
            break;                      /* a frame that is still mapped can be given up again and again */
        if (op != XENMEM_increase_reservation && copy_from_guest(e->v, in, e->list + done * sizeof *in, n * sizeof *in)) {
            if (n == 1)
                break;
            limit = 1;
            continue;
        }
        if (op == XENMEM_decrease_reservation)
            did = release(e, n, in);
        else
            did = allocate(e, done, n, op == XENMEM_populate_physmap ? in : NULL);
        done += did;
        if (did == n)
            continue;
        if (op == XENMEM_decrease_reservation || did || n == 1)
            break;
        limit = 1;                      /* no room for a whole batch: as many as there are */
    }
    return done;
}

static s64 reservation_op(struct vcpu *v, unsigned op, u64 start, u64 arg)
{
    struct xen_memory_reservation r;
    int err;
    if (copy_from_guest(v, &r, arg, sizeof r))
        return (s64)start;
    struct extents e = { .v = v, .list = (u64)r.extent_start, .order = r.extent_order,
                         .address_bits = XENMEMF_get_address_bits(r.mem_flags) };
    e.silent = op == XENMEM_increase_reservation && !e.list;

    if (r.nr_extents > MAX_EXTENTS || start >= r.nr_extents || e.order > max_order(v) ||
        (!e.silent && !array_ok(e.list, start, r.nr_extents - start)))
        return (s64)start;
    if (e.address_bits && e.address_bits <= PAGE_SHIFT)
        return (s64)start;
    if ((r.mem_flags & XENMEMF_exact_node_request) && XENMEMF_get_node(r.mem_flags) != 0)
        return (s64)start;              /* one node, number 0 */
    if (op == XENMEM_populate_physmap && (r.mem_flags & XENMEMF_populate_on_demand))
        return (s64)start;              /* translated guests only */

    e.d = domain_get_remote(v, r.domid, &err);
    if (!e.d)
        return (s64)start;
    u64 done = e.order <= MAX_ORDER ? extents_run(&e, op, start, r.nr_extents) : start;
    domain_put(e.d);
    return (s64)done;
}

/* ---- exchange ---------------------------------------------------------------------------------------------------- */

/* Takes a reference to a frame that nobody but its allocation refers to. */
static bool hold_unused(struct domain *d, u64 mfn)
{
    struct host *h = d->host;
    if (!get_page(h, mfn, d))
        return false;
    const struct frame *f = mfn_frame(&h->machine, mfn);
    u64 count = read_once(f->count_info);
    if ((count & PGC_COUNT_MASK) == 2 && (count & PGC_ALLOCATED) && !(count & PGC_SPECIAL) && pgt_count(read_once(f->type_info)) == 0)
        return true;
    put_page(h, mfn);
    return false;
}

/* Replaces the n frames of in[] by fresh ones in extents of 2^order, in out[]. All or nothing: -EINVAL, -ENOMEM. */
static int swap_chunk(struct domain *d, u32 n, const u64 *in, unsigned order, unsigned address_bits, u32 *out)
{
    struct host *h = d->host;
    u32 held = 0;
    spin_lock(&d->mm.lock);
    d->mm.work += n * WORK_PAGE;
    while (held < n && hold_unused(d, in[held]))
        held++;
    int rc = held == n ? 0 : -XEN_EINVAL;
    if (!rc) {                          /* old and new are the domain's for a moment: the limit must not stand in the way */
        spin_lock(&d->mm.list_lock);
        d->mm.max_pages += n;
        spin_unlock(&d->mm.list_lock);
        rc = extents_alloc(d, n >> order, order, address_bits, out);
        spin_lock(&d->mm.list_lock);
        d->mm.max_pages -= n;
        spin_unlock(&d->mm.list_lock);
    }
    for (u32 i = 0; i < held; i++) {
        if (!rc)
            frame_release_allocation(h, in[i]);
        put_page(h, in[i]);
    }
    spin_unlock(&d->mm.lock);
    return rc;
}

/* The guest's new pfns into the M2P, the new mfns to the guest. -EFAULT: the frames are the domain's all the same. */
static int publish_chunk(struct vcpu *v, u64 list, u64 first, u32 n, unsigned order, const u32 *mfns)
{
    struct machine *m = &v->host->machine;
    int rc = 0;
    for (u32 i = 0; i < n; i++) {
        u64 va = list + (first + i) * sizeof(u64), pfn, mfn = mfns[i << order];
        if (copy_from_guest(v, &pfn, va, sizeof pfn)) {
            rc = -XEN_EFAULT;
            continue;
        }
        for (u64 k = 0; k < 1ul << order; k++)
            m2p_set(m, mfn + k, pfn + k);
        if (copy_to_guest(v, va, &mfn, sizeof mfn))
            rc = -XEN_EFAULT;
    }
    return rc;
}

static int exchange_check(const struct xen_memory_exchange *x, unsigned in_chunk, unsigned out_chunk)
{
    const struct xen_memory_reservation *in = &x->in, *out = &x->out;
    if (x->nr_exchanged > in->nr_extents || in->domid != out->domid || ~0ul >> in->extent_order < in->nr_extents ||
        ~0ul >> out->extent_order < out->nr_extents ||
        in->nr_extents << in->extent_order != out->nr_extents << out->extent_order)
        return -XEN_EINVAL;
    if (in->nr_extents == x->nr_exchanged)
        return 0;
    u64 first_out = x->nr_exchanged >> in_chunk << out_chunk;
    if (!array_ok((u64)in->extent_start, x->nr_exchanged, in->nr_extents - x->nr_exchanged) ||
        (first_out < out->nr_extents && !array_ok((u64)out->extent_start, first_out, out->nr_extents - first_out)))
        return -XEN_EFAULT;
    return 0;
}

static int exchange_run(struct vcpu *v, struct domain *d, struct xen_memory_exchange *x, unsigned in_chunk, unsigned out_chunk)
{
    unsigned in_order = x->in.extent_order, out_order = x->out.extent_order;
    unsigned address_bits = XENMEMF_get_address_bits(x->out.mem_flags);
    if (in_order > MAX_ORDER || out_order > MAX_ORDER || (address_bits && address_bits <= PAGE_SHIFT))
        return x->nr_exchanged == x->in.nr_extents ? 0 : -XEN_ENOMEM;
    u32 pages = 1u << (in_order > out_order ? in_order : out_order), out[EXTENT_PAGES];
    u64 in[EXTENT_PAGES], chunks = x->in.nr_extents >> in_chunk, i = x->nr_exchanged >> in_chunk;
    u64 start = read_once(d->mm.work);
    int rc = 0;

    for (; !rc && i < chunks; i++) {
        u64 list[EXTENT_PAGES];
        u32 n = 1u << in_chunk;
        if (copy_from_guest(v, list, (u64)x->in.extent_start + (i << in_chunk) * sizeof *list, n * sizeof *list)) {
            rc = -XEN_EFAULT;
            break;
        }
        for (u32 k = 0; k < pages; k++)
            in[k] = list[k >> in_order] + (k & ((1u << in_order) - 1));
        rc = swap_chunk(d, pages, in, out_order, address_bits, out);
        if (!rc && work_exceeded(d, start))
            rc = call_too_long(v, "memory_op/exchange");
        if (rc)
            break;
        rc = publish_chunk(v, (u64)x->out.extent_start, i << out_chunk, 1u << out_chunk, out_order, out);
    }
    x->nr_exchanged = i << in_chunk;
    return rc;
}

static s64 exchange(struct vcpu *v, u64 arg)
{
    struct xen_memory_exchange x;
    struct domain *d = NULL;
    if (copy_from_guest(v, &x, arg, sizeof x))
        return -XEN_EFAULT;
    unsigned in_order = x.in.extent_order, out_order = x.out.extent_order;
    unsigned in_chunk = out_order > in_order ? out_order - in_order : 0, out_chunk = in_order > out_order ? in_order - out_order : 0;
    int rc = in_order > max_order(v) || out_order > max_order(v) ? -XEN_EPERM : exchange_check(&x, in_chunk, out_chunk);
    if (!rc)
        d = domain_get_remote(v, x.in.domid, &rc);
    if (d) {
        rc = exchange_run(v, d, &x, in_chunk, out_chunk);
        domain_put(d);
    }
    if (copy_to_guest(v, arg + offsetof(struct xen_memory_exchange, nr_exchanged), &x.nr_exchanged, sizeof x.nr_exchanged))
        rc = -XEN_EFAULT;
    return rc;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

s64 do_memory_op(struct vcpu *v, u64 cmd, u64 arg)
{
    unsigned op = cmd & ((1u << MEMOP_EXTENT_SHIFT) - 1);
    u64 start = cmd >> MEMOP_EXTENT_SHIFT;
    switch (op) {
    case XENMEM_increase_reservation:
    case XENMEM_decrease_reservation:
    case XENMEM_populate_physmap:
        return reservation_op(v, op, start, arg);
    case XENMEM_exchange:
        return start ? -XEN_EINVAL : exchange(v, arg);
    }
    return memory_query(v, op, start, arg);
}
