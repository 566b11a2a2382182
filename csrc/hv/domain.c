/* See domain.h. */
#include "hv/domain.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "hv/host.h"
#include "xen/sched.h"

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static bool try_get(struct domain *d)
{
    u32 old = load_acquire(d->refcount);
    do {
        if (old == 0)
            return false;
    } while (!cmpxchg(&d->refcount, &old, old + 1));
    return true;
}

struct domain *domain_get(struct host *h, u16 domid)
{
    if (domid >= DOMID_LIMIT)
        return NULL;
    spin_lock(&h->domains_lock);
    struct domain *d = h->domain_by_id[domid];
    if (d && (load_acquire(d->dying) || !try_get(d)))
        d = NULL;
    spin_unlock(&h->domains_lock);
    return d;
}

struct domain *domain_get_remote(struct vcpu *caller, u16 domid, int *err)
{
    struct domain *self = caller->domain;
    if (domid == DOMID_SELF)
        domid = self->id;
    struct domain *d = domain_get(caller->host, domid);
    *err = !d ? -XEN_ESRCH : (d != self && !self->privileged) ? -XEN_EPERM : 0;
    if (d && *err) {
        domain_put(d);
        d = NULL;
    }
    return d;
}

static void domain_free(struct domain *d);

void domain_put(struct domain *d)
{
    if (atomic_sub(&d->refcount, 1) == 1)
        domain_free(d);
}

/* Puts d into the list, ordered by id. -EEXIST: the id is taken (perhaps by a zombie). */
static int list_insert(struct host *h, struct domain *d, s32 want)
{
    int rc = 0;
    spin_lock(&h->domains_lock);
    u32 id = want >= 0 ? (u32)want : h->next_domid;
    if (want >= 0) {
        rc = h->domain_by_id[id] ? -XEN_EEXIST : 0;
    } else {
        u32 tries = 0;
        for (; tries < DOMID_LIMIT && h->domain_by_id[id]; tries++)
            id = id + 1 < DOMID_LIMIT ? id + 1 : 1;
        rc = tries == DOMID_LIMIT ? -XEN_ENOMEM : 0;
    }
    if (!rc) {
        d->id = (u16)id;
        h->next_domid = id + 1 < DOMID_LIMIT ? (u16)(id + 1) : 1;
        h->domain_by_id[id] = d;
        struct domain **at = &h->domains;
        while (*at && (*at)->id < id)
            at = &(*at)->next;
        d->next = *at;
        *at = d;
    }
    spin_unlock(&h->domains_lock);
    return rc;
}

static void list_remove(struct host *h, struct domain *d)
{
    spin_lock(&h->domains_lock);
    struct domain **at = &h->domains;
    while (*at && *at != d)
        at = &(*at)->next;
    if (*at)
        *at = d->next;
    h->domain_by_id[d->id] = NULL;
    spin_unlock(&h->domains_lock);
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static void vcpu_free(struct vcpu *v)
{
    struct arena *a = &v->host->arena;
    if (vcpu_backend(v)->destroy)
        vcpu_backend(v)->destroy(v);
    arena_free(a, v->dummy_info, sizeof *v->dummy_info);
    arena_free(a, v->arch.traps, 256 * sizeof *v->arch.traps);
    arena_free(a, v->tlb, sizeof *v->tlb);
    arena_free(a, v, sizeof *v);
}

static int vcpu_create(struct domain *d, u32 id, u32 backend)
{
    struct host *h = d->host;
    struct vcpu *v = arena_alloc(&h->arena, sizeof *v);
    if (!v)
        return -XEN_ENOMEM;
    *v = (struct vcpu){ .host = h, .domain = d, .id = (u16)id, .backend = (u8)backend, .kernel_mode = true,
                        .pause_flags = VPF_down | VPF_paused, .unit.weight = d->weight };
    v->tlb = arena_alloc(&h->arena, sizeof *v->tlb);
    if (id < XEN_LEGACY_MAX_VCPUS) {
        v->info = &d->shared_info->vcpu_info[id];
    } else {                            /* no place in shared_info: nothing is delivered until it registers one */
        v->info = v->dummy_info = arena_alloc(&h->arena, sizeof *v->info);
    }
    if (v->tlb)
        v->tlb->generation = 1;
    if (!v->tlb || !v->info || (vcpu_backend(v)->create && vcpu_backend(v)->create(v))) {
        vcpu_free(v);
        return -XEN_ENOMEM;
    }
    v->info->evtchn_upcall_mask = 1;
    store_release(d->vcpu[id], v);      /* a shootdown may look at it from here on */
    vcpu_time_init(v);
    return sched_vcpu_init(v);
}

/* Frees what domain_kill left, when the last reference goes: from now on the id may be used again. */
static void domain_free(struct domain *d)
{
    struct host *h = d->host;
    list_remove(h, d);
    evtchn_free(d);
    grant_free(d);
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i])
            vcpu_free(d->vcpu[i]);
    arena_free(&h->arena, d, sizeof *d);
}

static int alloc_shared_info(struct domain *d)
{
    struct host *h = d->host;
    if (frames_alloc(h, d, 1, true, &d->shared_info_mfn))
        return -XEN_ENOMEM;
    d->shared_info = frame_write_begin(h, d->shared_info_mfn, d);       /* open for the domain's whole life */
    frame_write_end(h, d->shared_info_mfn);
    for (u32 i = 0; i < XEN_LEGACY_MAX_VCPUS; i++)
        d->shared_info->vcpu_info[i].evtchn_upcall_mask = 1;
    d->shared_info->wc_version = 2;
    d->shared_info->wc_sec = (u32)h->clock.wall_sec;
    d->shared_info->wc_sec_hi = (u32)(h->clock.wall_sec >> 32);
    d->shared_info->wc_nsec = h->clock.wall_nsec;
    return 0;
}

struct domain *domain_create(struct host *h, const struct domain_config *c, int *err)
{
    *err = -XEN_EINVAL;
    if (c->nr_vcpus < 1 || c->nr_vcpus > MAX_VCPUS || c->backend >= NR_BACKENDS || c->domid >= DOMID_LIMIT || c->domid < -1 ||
        c->weight > 65535)
        return NULL;

    *err = -XEN_ENOMEM;
    struct domain *d = arena_alloc(&h->arena, sizeof *d);
    if (!d)
        return NULL;
    *d = (struct domain){ .host = h, .privileged = c->privileged, .state = DOM_paused_new, .refcount = 1, .pause_count = 1,
                          
                          .exit_code = -1, .nr_vcpus = c->nr_vcpus, .weight = c->weight ? (u16)c->weight : 256 };
    memcpy(d->uuid, c->uuid, sizeof d->uuid);
    domain_watchdogs_init(d);
    d->dying = true;                    /* nobody finds it before it is whole */
    d->ev.max_port = c->max_evtchn_port ? c->max_evtchn_port : 1023;
    int rc = list_insert(h, d, c->domid);
    if (rc) {
        arena_free(&h->arena, d, sizeof *d);
        *err = rc;
        return NULL;
    }

    rc = mm_init(d, c->max_pages);
    if (!rc)
        rc = alloc_shared_info(d);
    if (!rc)
        rc = evtchn_init(d);
    if (!rc)
        rc = grant_init(d, c->max_grant_frames ? c->max_grant_frames : 64, c->max_maptrack_frames ? c->max_maptrack_frames : 1024);
    for (u32 i = 0; !rc && i < d->nr_vcpus; i++)
        rc = vcpu_create(d, i, c->backend);
    if (rc) {
        *err = rc;
        domain_kill(d);
        return NULL;
    }
    store_release(d->dying, false);
    host_trace(h, TRACE_CREATE, d->id, 0, c->max_pages, d->nr_vcpus);
    *err = 0;
    return d;
}

/* ---- pausing ----------------------------------------------------------------------------------------------------- */

/* The vCPUs' VPF_paused follows state and pause_count, and changes under d->lock with them: or an unpause that was overtaken by a
 * shutdown would set vCPUs going in a domain that has ended. [lock] */
static void pause_vcpus(struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i])
            vcpu_pause(d->vcpu[i], VPF_paused);
}

/* Waits until none of them is on a pCPU any more. No lock held. */
static void wait_rest(struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i])
            vcpu_wait_rest(d->vcpu[i]);
}

void domain_pause(struct domain *d)
{
    spin_lock(&d->lock);
    d->pause_count++;
    pause_vcpus(d);
    spin_unlock(&d->lock);
    wait_rest(d);
}

void domain_unpause(struct domain *d)
{
    spin_lock(&d->lock);
    if (d->pause_count && --d->pause_count == 0 && d->state <= DOM_running) {
        d->state = DOM_running;
        for (u32 i = 0; i < d->nr_vcpus; i++)
            vcpu_unpause(d->vcpu[i], VPF_paused);
    }
    spin_unlock(&d->lock);
}

/* ---- death ------------------------------------------------------------------------------------------------------- */

static void tell_lane(struct domain *d)
{
    lane_push(d->host, (struct lane_exit){ .kind = EXIT_DOMAIN, .domid = d->id, .a = d->state, .b = d->shutdown_code });
}

/* Moves d to "shut down" with `code` once, and stops its vCPUs; later calls change nothing. True for the call that did it. */
static bool set_shutdown(struct domain *d, u8 code, const char *reason)
{
    spin_lock(&d->lock);
    bool first = d->state <= DOM_running;
    if (first) {
        d->state = DOM_shutdown;
        if (!d->shutdown_code_set)
            d->shutdown_code = code;
        if (reason) {
            d->shutdown_code = code;    /* whatever SCHEDOP_shutdown_code promised */
            snprintf(d->crash_reason, sizeof d->crash_reason, "%s", reason);
        }
        pause_vcpus(d);
    }
    spin_unlock(&d->lock);
    return first;
}

void domain_shutdown(struct domain *d, u8 reason)
{
    if (!set_shutdown(d, reason, NULL))
        return;
    host_trace(d->host, TRACE_SHUTDOWN, d->id, 0, d->shutdown_code, 0);
    tell_lane(d);
    send_global_virq(d->host, VIRQ_DOM_EXC);
}

void domain_crash(struct domain *d, const char *fmt, ...)
{
    char reason[CRASH_REASON_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof reason, fmt, ap);
    va_end(ap);
    if (!set_shutdown(d, SHUTDOWN_crash, reason))
        return;
    host_trace(d->host, TRACE_CRASH, d->id, 0, 0, 0);
    tell_lane(d);
    send_global_virq(d->host, VIRQ_DOM_EXC);
}

/* A run's digest has its domains' last memory in it, also of those that are gone when it is asked for. Virtual clock: one thread. */
static void digest_memory(struct domain *d)
{
    struct host *h = d->host;
    if (!h->trace.digesting)
        return;
    for (u32 mfn = d->mm.pages; mfn; mfn = mfn_frame(&h->machine, mfn)->next)
        h->trace.digest = frame_digest(&h->machine, mfn, h->trace.digest);
}

void domain_kill(struct domain *d)
{
    struct host *h = d->host;
    spin_lock(&d->lock);
    bool first = d->state < DOM_dying;
    d->state = DOM_dying;
    pause_vcpus(d);
    spin_unlock(&d->lock);
    if (!first)
        return;
    wait_rest(d);
    digest_memory(d);

    spin_lock(&d->mm.list_lock);        /* whoever allocates under this lock has either finished or sees dying */
    store_release(d->dying, true);
    spin_unlock(&d->mm.list_lock);

    for (u32 i = 0; i < 2; i++)
        timer_kill(h, &d->watchdog[i]);
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i])
            sched_vcpu_destroy(d->vcpu[i]);
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i] && vcpu_backend(d->vcpu[i])->stop)
            vcpu_backend(d->vcpu[i])->stop(d->vcpu[i]);
    evtchn_destroy(d);
    grant_release_mappings(d);
    grant_destroy(d);
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        if (!v)
            continue;
        mm_drop_descriptor_tables(v);
        mm_drop_vcpu_bases(v);
        if (v->info_mfn)                /* VCPUOP_register_vcpu_info's reference */
            put_page_and_type(h, v->info_mfn);
    }
    mm_destroy(d);
    if (d->shared_info_mfn)
        frame_release_allocation(h, d->shared_info_mfn);
    host_trace(h, TRACE_DESTROY, d->id, 0, 0, 0);
    d->state = DOM_dead;
    tell_lane(d);
    send_global_virq(h, VIRQ_DOM_EXC);
    domain_put(d);
}
