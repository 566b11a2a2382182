/* See xenlike.h. Thin: finds the objects that Python names by number, and calls the core. */
#define _GNU_SOURCE
#include "xenlike.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "snapshot.h"

enum { RUN_BEFORE_SIGNALS = 4096 };     /* scheduling rounds after which xl_run returns so that Python can look at signals */
static const u64 ARENA_SIZE = 32ul << 30;

/* ---- host -------------------------------------------------------------------------------------------------------- */

static void deadline_passed(struct host *h, struct timer *t)
{
    lane_push(h, (struct lane_exit){ .kind = EXIT_TIMER });
}

static int host_init(struct host *h, const struct xl_host_config *c)
{
    h->os = calloc(1, sizeof *h->os);
    if (!h->os)
        return -XEN_ENOMEM;
    h->machine.memfd = -1;
    h->os->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (h->os->eventfd < 0)
        return -XEN_ENOMEM;
    clock_init(&h->clock, c->virtual_clock ? CLOCK_VIRTUAL : CLOCK_REAL, c->wall_ns);
    h->tsc_epoch = clock_ticks();
    h->rng.state = c->seed;
    h->trace.digesting = c->virtual_clock;
    h->tlb_clock = 1;
    int rc = machine_init(&h->machine, c->memory);
    if (!rc)
        rc = lane_init(h);
    if (!rc)
        rc = sched_init(h, c->nr_pcpus);
    if (!rc && !c->virtual_clock)
        rc = sched_start(h);
    timer_init(&h->deadline, deadline_passed, NULL);
    return rc;
}

struct host *xl_host_create(const struct xl_host_config *c, int *err)
{
    *err = -XEN_EINVAL;
    if (c->memory < PAGE_SIZE || (!c->virtual_clock && (c->nr_pcpus < 1 || c->nr_pcpus >= MAX_PCPUS)))
        return NULL;
    *err = -XEN_ENOMEM;
    u8 *base = arena_map(ARENA_SIZE);
    if (!base)
        return NULL;
    struct host *h = (struct host *)base;
    arena_init(&h->arena, base, ARENA_SIZE, sizeof *h);
    *err = host_init(h, c);
    if (*err) {
        xl_host_destroy(h);
        return NULL;
    }
    return h;
}

void xl_host_destroy(struct host *h)
{
    if (h->os) {
        blk_shutdown(h);
        for (struct domain *d = h->domains, *next; d; d = next) {
            atomic_add(&d->refcount, 1);        /* so that d's link still holds after the kill, which may free other zombies */
            domain_kill(d);
            next = d->next;
            domain_put(d);
        }
        sched_stop(h);
        snapshot_drop(h);
        if (h->os->eventfd >= 0)
            close(h->os->eventfd);
        free(h->os);
    }
    machine_destroy(&h->machine);
    arena_unmap(h->arena.base, h->arena.size);
}

u64 xl_now(struct host *h) { return host_now(h); }
void xl_advance(struct host *h, u64 ns) { clock_advance(&h->clock, ns); }
void xl_skip_to(struct host *h, u64 when) { clock_skip_to(&h->clock, when); }
u64 xl_random(struct host *h) { return rng_u64(&h->rng); }

/* ---- the lane ---------------------------------------------------------------------------------------------------- */

/* A vCPU queues its cold hypercall while its thread still runs it: Python must not touch it before it rests. */
static void settle(struct host *h, const struct lane_exit *e)
{
    struct vcpu *v = e->kind == EXIT_HYPERCALL ? xl_vcpu(h, e->domid, e->vcpu) : NULL;
    if (v)
        vcpu_wait_rest(v);
}

int xl_run(struct host *h, struct lane_exit *exits, int n)
{
    for (unsigned round = 0; round < RUN_BEFORE_SIGNALS; round++) {
        int count = 0;
        while (count < n && lane_pop(h, &exits[count]))
            settle(h, &exits[count++]);
        if (count)
            return count;

        struct vcpu *v;
        u64 deadline;
        switch (pcpu_run(h, &h->pcpu[0], &v, &deadline)) {
        case PCPU_RAN:
            break;
        case PCPU_PYTHON:
            exits[0] = (struct lane_exit){ .kind = EXIT_PYTHON, .domid = v->domain->id, .vcpu = v->id };
            return 1;
        case PCPU_IDLE:
            if (lane_pop(h, &exits[0])) {       /* a timer that was due queued it */
                settle(h, &exits[0]);
                return 1;
            }
            bool stalled = h->clock.kind == CLOCK_VIRTUAL && deadline == NEVER;
            exits[0] = (struct lane_exit){ .kind = stalled ? EXIT_STALLED : EXIT_IDLE, .a = deadline };
            return 1;
        }
    }
    return 0;
}

static bool lane_has_work(struct host *h)
{
    return read_once(h->lane.head) != read_once(h->lane.tail) || pcpu_kicked(&h->pcpu[0]) || read_once(h->queues[0].nr_queued);
}

int xl_wait(struct host *h, int fd, u64 deadline)
{
    struct pollfd fds[2] = { { .fd = h->os->eventfd, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
    struct timespec wait, *timeout = NULL;

    xchg(&h->lane.sleeping, 1);         /* full barrier: then look; lane_kick queues, then looks at `sleeping` */
    bool readable = false;
    if (!lane_has_work(h)) {
        if (deadline != NEVER) {
            u64 now = host_now(h), ns = deadline > now ? deadline - now : 0;
            wait = (struct timespec){ (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
            timeout = &wait;
        }
        ppoll(fds, fd >= 0 ? 2 : 1, timeout, NULL);
    }
    write_once(h->lane.sleeping, 0);
    u64 drained;
    ssize_t r = read(h->os->eventfd, &drained, sizeof drained);
    (void)r;
    if (fd >= 0)
        readable = poll(&fds[1], 1, 0) == 1;
    return readable;
}

int xl_eventfd(struct host *h) { return h->os->eventfd; }

void xl_kick(struct host *h)
{
    u64 one = 1;
    ssize_t r = write(h->os->eventfd, &one, sizeof one);
    (void)r;
}

int xl_set_deadline(struct host *h, u64 when)
{
    if (when != NEVER)
        return timer_set(h, &h->deadline, 0, when);
    timer_stop(h, &h->deadline);
    return 0;
}

/* ---- domains ----------------------------------------------------------------------------------------------------- */

int xl_domain_create(struct host *h, const struct domain_config *c)
{
    int err;
    struct domain *d = domain_create(h, c, &err);
    return d ? d->id : err;
}

int xl_domain_populate(struct host *h, u16 domid, u64 first_pfn, u32 n, u32 *mfns)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    int rc = frames_alloc(h, d, n, false, mfns);
    for (u32 i = 0; !rc && i < n; i++)
        m2p_set(&h->machine, mfns[i], first_pfn + i);
    domain_put(d);
    return rc;
}

int xl_domain_pin_l4(struct host *h, u16 domid, u64 mfn)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    int rc = mm_pin_table(d, mfn, PGT_l4_page_table);
    domain_put(d);
    return rc;
}

int xl_domain_unpause(struct host *h, u16 domid)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    domain_unpause(d);
    domain_put(d);
    return 0;
}

int xl_domain_pause(struct host *h, u16 domid)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    domain_pause(d);
    domain_put(d);
    return 0;
}

int xl_domain_shutdown(struct host *h, u16 domid, u8 reason)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    domain_shutdown(d, reason);
    domain_put(d);
    return 0;
}

int xl_domain_crash(struct host *h, u16 domid, const char *reason)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    domain_crash(d, "%s", reason);
    domain_put(d);
    return 0;
}

int xl_domain_destroy(struct host *h, u16 domid)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    domain_kill(d);
    domain_put(d);
    return 0;
}

int xl_domain_set_e820(struct host *h, u16 domid, u64 bytes)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    d->mm.e820[0].addr = 0;
    d->mm.e820[0].size = bytes;
    d->mm.e820[0].type = 1;             /* RAM */
    d->mm.nr_e820 = 1;
    domain_put(d);
    return 0;
}

/* Zombies too: what is left of them is what a leak check wants to see. */
static struct domain *find_any(struct host *h, u16 domid)
{
    return domid < DOMID_LIMIT ? h->domain_by_id[domid] : NULL;
}

int xl_domain_info(struct host *h, u16 domid, struct xl_domain_info *out)
{
    struct domain *d = find_any(h, domid);
    if (!d)
        return -XEN_ESRCH;
    *out = (struct xl_domain_info){
        .domid = d->id, .state = d->state, .shutdown_code = d->shutdown_code, .nr_vcpus = d->nr_vcpus,
        .tot_pages = d->mm.tot_pages, .max_pages = d->mm.max_pages, .nr_ports = d->ev.nr_used,
        .nr_grants_pinned = d->gt.nr_pinned, .nr_maptrack = d->gt.nr_maptrack, .refcount = d->refcount,
        .shared_info_mfn = d->shared_info_mfn,
    };
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        const struct vcpu *v = d->vcpu[i];
        if (!v)
            continue;
        out->cpu_ns += v->unit.run_total;
        for (unsigned s = 0; s < STAT_NR; s++)
            out->stats[s] += v->stats[s];
    }
    memcpy(out->uuid, d->uuid, sizeof out->uuid);
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
    struct domain *d = domid == DOMID_INVALID ? NULL : find_any(h, domid);
    *rc = d || domid == DOMID_INVALID ? 0 : -XEN_ESRCH;
    return d;
}

int xl_frame_read(struct host *h, u16 domid, u64 mfn, u32 offset, void *buf, u32 n)
{
    int rc;
    struct domain *d = owner(h, domid, &rc);
    if (rc)
        return rc;
    if (offset > PAGE_SIZE || n > PAGE_SIZE - offset)
        return -XEN_EINVAL;
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
    struct domain *d = owner(h, domid, &rc);
    if (rc)
        return rc;
    if (offset > PAGE_SIZE || n > PAGE_SIZE - offset)
        return -XEN_EINVAL;
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
    struct domain *d = find_any(h, domid);
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

void xl_usage(struct host *h, struct xl_usage *out)
{
    *out = (struct xl_usage){ .frames_free = h->machine.heap.nr_free, .frames_total = h->machine.nr_frames - h->machine.first_mfn,
                              .arena_in_use = h->arena.in_use, .timers = timers_count(h) };
    spin_lock(&h->domains_lock);
    for (struct domain *d = h->domains; d; d = d->next)
        out->domains++;
    spin_unlock(&h->domains_lock);
}

u64 xl_check_tlbs(struct host *h) { return tlb_audit(h); }
s64 xl_check_frames(struct host *h, u32 exact) { return mm_audit(h, exact); }

/* ---- vCPUs ------------------------------------------------------------------------------------------------------- */

struct vcpu *xl_vcpu(struct host *h, u16 domid, u32 id)
{
    struct domain *d = find_any(h, domid);
    return d && id < d->nr_vcpus ? d->vcpu[id] : NULL;
}

s64 xl_hypercall(struct vcpu *v, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4)
{
    const u64 a[5] = { a0, a1, a2, a3, a4 };
    return hypercall(v, nr, a);
}

void xl_cold_args(struct vcpu *v, struct xl_cold *out)
{
    out->nr = v->cold.nr;
    memcpy(out->args, v->cold.args, sizeof out->args);
}

s64 xl_hypercall_complete(struct vcpu *v, s64 rc) { return hypercall_complete(v, rc); }

static int report(int rc, const struct mmu_fault *f, u64 *fault)
{
    if (rc && fault) {
        fault[0] = f->va;
        fault[1] = f->error_code;
    }
    return rc;
}

int xl_guest_read(struct vcpu *v, u64 va, void *buf, u64 n, u64 *fault)
{
    struct mmu_fault f;
    return report(mmu_read(v, buf, va, n, &f), &f, fault);
}

int xl_guest_write(struct vcpu *v, u64 va, const void *buf, u64 n, u64 *fault)
{
    struct mmu_fault f;
    return report(mmu_write(v, va, buf, n, &f), &f, fault);
}

s64 xl_guest_translate(struct vcpu *v, u64 va, u32 access, u64 *fault)
{
    struct mmu_fault f;
    u64 mfn;
    int rc = report(mmu_translate(v, va, access, &mfn, &f), &f, fault);
    return rc ? rc : (s64)mfn;
}

int xl_vcpu_enter(struct vcpu *v)
{
    vcpu_runstate_publish(v);
    atomic_and(&v->exit_work, ~(u32)WORK_upcall);
    if (!vcpu_event_deliverable(v))
        return 0;
    write_once(v->info->evtchn_upcall_mask, 1);
    stat_inc(v, upcalls);
    vcpu_trace(v, UPCALL, v->info->evtchn_pending_sel, 0);
    return 1;
}

void xl_vcpu_check_slice(struct vcpu *v) { vcpu_check_slice(v); }
void xl_vcpu_park(struct vcpu *v) { sched_put_back(v); }

int xl_vcpu_set_bases(struct vcpu *v, u64 kernel_l4, u64 user_l4)
{
    int rc = mm_set_vcpu_bases(v, (u32)kernel_l4, (u32)user_l4);
    if (!rc)
        v->initialised = true;
    return rc;
}

int xl_vcpu_set_iopl(struct vcpu *v, u32 iopl)
{
    if (iopl > 3)
        return -XEN_EINVAL;
    v->arch.iopl = (u8)iopl;
    return 0;
}

int xl_vcpu_set_iobitmap(struct vcpu *v, u64 bitmap, u32 nr_ports)
{
    if (nr_ports > 65536)
        return -XEN_EINVAL;
    v->arch.io_bitmap = bitmap;
    v->arch.io_bitmap_ports = nr_ports;
    return 0;
}

void xl_vcpu_up(struct vcpu *v) { vcpu_unpause(v, VPF_down); }

/* The guest's half of the 2-level ABI (section 5.3): clear, collect, acknowledge. What does not fit stays pending. */
int xl_scan_events(struct vcpu *v, u32 *ports, int max)
{
    struct shared_info *s = v->domain->shared_info;
    int n = 0;
    xchg(&v->info->evtchn_upcall_pending, 0);
    u64 sel = xchg(&v->info->evtchn_pending_sel, 0ul);
    for (; sel; sel &= sel - 1) {
        unsigned word = (unsigned)__builtin_ctzl(sel);
        u64 bits = read_once(s->evtchn_pending[word]) & ~read_once(s->evtchn_mask[word]);
        for (; bits; bits &= bits - 1) {
            if (n == max) {             /* no room: leave word and rest as found */
                atomic_or(&v->info->evtchn_pending_sel, sel);
                xchg(&v->info->evtchn_upcall_pending, 1);
                return n;
            }
            unsigned bit = (unsigned)__builtin_ctzl(bits);
            test_and_clear_bit((u64 *)&s->evtchn_pending[word], bit);
            ports[n++] = word * 64 + bit;
        }
    }
    return n;
}

int xl_cmpxchg16(void *p, u16 old, u16 new_value) { return cmpxchg((u16 *)p, &old, new_value); }

void xl_vcpu_stats(struct vcpu *v, u64 *stats, u64 *hypercalls64)
{
    memcpy(stats, v->stats, sizeof v->stats);
    memcpy(hypercalls64, v->hypercall_count, sizeof v->hypercall_count);
}

void xl_vcpu_runstate(struct vcpu *v, u64 *out6)
{
    struct vcpu_runstate_info r;
    vcpu_runstate_get(v, &r);
    out6[0] = (u64)r.state;
    out6[1] = r.state_entry_time;
    for (unsigned i = 0; i < 4; i++)
        out6[2 + i] = r.time[i];
}

/* ---- events, grants, scripts ------------------------------------------------------------------------------------- */

int xl_evtchn_alloc_unbound(struct host *h, u16 domid, u16 remote)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    int port = evtchn_alloc_unbound(d, remote);
    domain_put(d);
    return port;
}

int xl_grant_seed(struct host *h, u16 domid, u32 ref, u16 to, u64 mfn)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    int rc = grant_seed(d, ref, to, mfn);
    domain_put(d);
    return rc;
}

int xl_send_virq(struct host *h, u16 domid, u32 vcpu, u32 virq)
{
    struct domain *d = domain_get(h, domid);
    if (!d)
        return -XEN_ESRCH;
    int rc = virq < NR_VIRQS && vcpu < d->nr_vcpus ? 0 : -XEN_EINVAL;
    if (!rc)
        send_guest_vcpu_virq(d->vcpu[vcpu], virq);
    domain_put(d);
    return rc;
}

/* ---- trace, snapshot --------------------------------------------------------------------------------------------- */

int xl_trace_read(struct host *h, struct trace_record *out, int n)
{
    const struct trace *t = &h->trace;
    u64 end = load_acquire(t->next);
    u64 first = end > (u64)n ? end - (u64)n : 0;
    if (end - first > TRACE_RING)
        first = end - TRACE_RING;
    u64 ticks = clock_ticks() - h->tsc_epoch, now = host_now(h);
    int count = 0;
    for (u64 i = first; i < end; i++) {
        out[count] = t->ring[i % TRACE_RING];
        if (h->clock.kind == CLOCK_REAL)        /* host ticks to ns, by the two clocks' progress since the start */
            out[count].time = (u64)((unsigned __int128)(out[count].time - h->tsc_epoch) * now / (ticks ? ticks : 1));
        count++;
    }
    return count;
}

static u64 digest_frame(const struct machine *m, u64 d, u32 mfn)
{
    const u64 *w = mfn_ptr(m, mfn);
    d = digest_mix(d, mfn);
    for (unsigned i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        d = digest_mix(d, w[i]);
    return d;
}

u64 xl_trace_digest(struct host *h, u32 with_memory)
{
    const struct machine *m = &h->machine;
    u64 d = digest_mix(h->trace.digest, h->trace.next);
    for (u32 mfn = m->first_mfn; with_memory && mfn < m->heap.fresh; mfn++)
        if ((m->frames[mfn].count_info & (PGC_TOUCHED | PGC_ALLOCATED)) == (PGC_TOUCHED | PGC_ALLOCATED))
            d = digest_frame(m, d, mfn);
    return d;
}

void xl_trace_mark(struct host *h, u64 a, u64 b) { trace_add(&h->trace, trace_now(h), TRACE_MARK, DOMID_INVALID, 0, a, b); }
void xl_trace_off(struct host *h, u32 off) { h->trace.off = off; }

int xl_snapshot(struct host *h) { return snapshot_take(h); }
int xl_reset(struct host *h) { return snapshot_reset(h); }
void xl_snapshot_drop(struct host *h) { snapshot_drop(h); }
