/* See xenlike.h: domains, their memory, events and grants for the toolstack. Thin: finds what Python names by number, calls the core. */
#include "xenlike.h"

#include <string.h>

/* ---- domains ----------------------------------------------------------------------------------------------------- */

int xl_domain_create(struct host *h, const struct domain_config *c)
{
    int err;
    struct domain *d = domain_create(h, c, &err);
    return d ? d->id : err;
}

/* `expr`, an int, with d the domain; -ESRCH if there is none. */
#define ON_DOMAIN(h, domid, expr)                                                                                       \
    ({                                                                                                                  \
        struct domain *d = domain_get(h, domid);                                                                        \
        int rc_ = -XEN_ESRCH;                                                                                           \
        if (d) {                                                                                                        \
            rc_ = (expr);                                                                                               \
            domain_put(d);                                                                                              \
        }                                                                                                               \
        rc_;                                                                                                            \
    })

static int populate(struct domain *d, u64 first_pfn, u32 n, u32 *mfns)
{
    int rc = frames_alloc(d->host, d, n, false, mfns);
    for (u32 i = 0; !rc && i < n; i++)
        m2p_set(&d->host->machine, mfns[i], first_pfn + i);
    return rc;
}

static int set_e820(struct domain *d, u64 bytes)
{
    d->mm.e820[0].addr = 0;
    d->mm.e820[0].size = bytes;
    d->mm.e820[0].type = 1;             /* RAM */
    d->mm.nr_e820 = 1;
    return 0;
}

int xl_domain_populate(struct host *h, u16 domid, u64 first_pfn, u32 n, u32 *mfns)
{
    return ON_DOMAIN(h, domid, populate(d, first_pfn, n, mfns));
}

int xl_domain_pin_l4(struct host *h, u16 domid, u64 mfn) { return ON_DOMAIN(h, domid, mm_pin_table(d, mfn, PGT_l4_page_table)); }
int xl_domain_set_e820(struct host *h, u16 domid, u64 bytes) { return ON_DOMAIN(h, domid, set_e820(d, bytes)); }
int xl_domain_unpause(struct host *h, u16 domid) { return ON_DOMAIN(h, domid, (domain_unpause(d), 0)); }
int xl_domain_pause(struct host *h, u16 domid) { return ON_DOMAIN(h, domid, (domain_pause(d), 0)); }
int xl_domain_shutdown(struct host *h, u16 domid, u8 reason) { return ON_DOMAIN(h, domid, (domain_shutdown(d, reason), 0)); }
int xl_domain_crash(struct host *h, u16 domid, const char *reason) { return ON_DOMAIN(h, domid, (domain_crash(d, "%s", reason), 0)); }
int xl_domain_destroy(struct host *h, u16 domid) { return ON_DOMAIN(h, domid, (domain_kill(d), 0)); }

int xl_domain_info(struct host *h, u16 domid, struct xl_domain_info *out)
{
    struct domain *d = host_domain(h, domid);
    if (!d)
        return -XEN_ESRCH;
    *out = (struct xl_domain_info){
        .domid = d->id, .state = d->state, .shutdown_code = d->shutdown_code, .nr_vcpus = d->nr_vcpus,
        .tot_pages = d->mm.tot_pages, .max_pages = d->mm.max_pages, .nr_ports = d->ev.nr_used,
        .nr_grants_pinned = d->gt.nr_pinned, .nr_maptrack = d->gt.nr_maptrack, .refcount = d->refcount,
        .shared_info_mfn = d->shared_info_mfn, .exit_code = d->exit_code,
    };
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        if (!v)
            continue;
        out->cpu_ns += vcpu_run_time(v);
        for (unsigned s = 0; s < STAT_NR; s++)
            out->stats[s] += v->stats[s];
    }
    memcpy(out->uuid, d->uuid, sizeof out->uuid);
    out->last_vcpu = d->last_vcpu;
    memcpy(out->crash_reason, d->crash_reason, sizeof out->crash_reason);
    return 0;
}

int xl_domain_list(struct host *h, u16 *domids, int n)
{
    int count = 0;
    spin_lock(&h->domains_lock);
    for (struct domain *d = h->domains; d && count < n; d = d->next)
        domids[count++] = d->id;
    spin_unlock(&h->domains_lock);
    return count;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The domain named, or NULL for "any owner" with DOMID_INVALID; *rc is -ESRCH when it is neither. */
static struct domain *owner(struct host *h, u16 domid, int *rc)
{
    struct domain *d = domid == DOMID_INVALID ? NULL : host_domain(h, domid);
    *rc = d || domid == DOMID_INVALID ? 0 : -XEN_ESRCH;
    return d;
}

/* The same for n bytes at `offset` of a frame: *rc is -EINVAL when they do not lie within it. */
static struct domain *owner_of_bytes(struct host *h, u16 domid, u32 offset, u32 n, int *rc)
{
    struct domain *d = owner(h, domid, rc);
    if (!*rc && (offset > PAGE_SIZE || n > PAGE_SIZE - offset))
        *rc = -XEN_EINVAL;
    return d;
}

int xl_frame_read(struct host *h, u16 domid, u64 mfn, u32 offset, void *buf, u32 n)
{
    int rc;
    struct domain *d = owner_of_bytes(h, domid, offset, n, &rc);
    if (rc)
        return rc;
    const u8 *p = frame_read_begin(h, mfn, d);
    if (!p)
        return -XEN_EINVAL;
    memcpy(buf, p + offset, n);
    frame_read_end(h, mfn);
    return 0;
}

int xl_frame_write(struct host *h, u16 domid, u64 mfn, u32 offset, const void *buf, u32 n)
{
    int rc;
    struct domain *d = owner_of_bytes(h, domid, offset, n, &rc);
    if (rc)
        return rc;
    u8 *p = frame_write_begin(h, mfn, d);
    if (!p)
        return -XEN_EINVAL;
    memcpy(p + offset, buf, n);
    frame_write_end(h, mfn);
    return 0;
}

void *xl_window_open(struct host *h, u16 domid, u64 mfn)
{
    int rc;
    struct domain *d = owner(h, domid, &rc);
    return rc ? NULL : frame_write_begin(h, mfn, d);
}

void xl_window_close(struct host *h, u64 mfn)
{
    frame_write_end(h, mfn);
}

void *xl_shared_info(struct host *h, u16 domid)
{
    struct domain *d = host_domain(h, domid);
    return d ? d->shared_info : NULL;
}

u64 xl_m2p(struct host *h, u64 mfn) { return m2p_get(&h->machine, mfn); }

int xl_frame_info(struct host *h, u64 mfn, struct xl_frame_info *out)
{
    if (!mfn_valid(&h->machine, mfn))
        return -XEN_EINVAL;
    const struct frame *f = mfn_frame(&h->machine, mfn);
    u64 t = load_acquire(f->type_info), c = load_acquire(f->count_info);
    *out = (struct xl_frame_info){
        .owner = f->owner, .type = (u8)pgt_type(t), .allocated = !!(c & PGC_ALLOCATED), .special = !!(c & PGC_SPECIAL),
        .validated = !!(t & PGT_VALIDATED), .pinned = !!(t & PGT_PINNED), .type_count = pgt_count(t),
        .count = (u32)(c & PGC_COUNT_MASK),
    };
    return 0;
}

/* ---- events and grants ------------------------------------------------------------------------------------------- */

static int send_virq(struct domain *d, u32 vcpu, u32 virq)
{
    if (virq >= NR_VIRQS || vcpu >= d->nr_vcpus)
        return -XEN_EINVAL;
    send_guest_vcpu_virq(d->vcpu[vcpu], virq);
    return 0;
}

int xl_evtchn_alloc_unbound(struct host *h, u16 domid, u16 remote) { return ON_DOMAIN(h, domid, evtchn_alloc_unbound(d, remote)); }
int xl_grant_seed(struct host *h, u16 domid, u32 ref, u16 to, u64 mfn) { return ON_DOMAIN(h, domid, grant_seed(d, ref, to, mfn)); }
int xl_send_virq(struct host *h, u16 domid, u32 vcpu, u32 virq) { return ON_DOMAIN(h, domid, send_virq(d, vcpu, virq)); }
