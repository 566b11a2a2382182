/* See xenlike.h: host, lane, trace. Domains are in xenlike_domain.c, vCPUs in xenlike_vcpu.c. */
#define _GNU_SOURCE
#include "xenlike.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "bt/bt.h"
#include "pc/pc.h"
#include "pv/pv.h"
#include "snapshot.h"

enum { RUN_BEFORE_SIGNALS = 4096 };     /* scheduling rounds after which xl_run returns so that Python can look at signals */
static const u64 ARENA_SIZE = 32ul << 30;

/* ---- host -------------------------------------------------------------------------------------------------------- */

static void deadline_passed(struct host *h, struct timer *t)
{
    lane_push(h, (struct lane_exit){ .kind = EXIT_TIMER });
}

static const struct vcpu_backend python_backend = { .name = "python" };         /* the lane runs them */

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
    h->translate = c->translate;
    h->bt_options = c->bt_options;
    h->backend[BACKEND_PYTHON] = &python_backend;
    h->backend[BACKEND_SCRIPT] = &script_backend;
    h->backend[BACKEND_INTERP] = &pv_backend;
    h->backend[BACKEND_PC] = &pc_backend;
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

const char *xl_bt_unavailable(void) { return bt_unavailable(); }

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
    if (v && read_once(v->pause_flags) & VPF_lane)      /* else the id is another domain's by now, which may never rest */
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

/* ---- what is in use ------------------------------------------------------------------------------------------------ */

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

/* ---- trace, snapshot --------------------------------------------------------------------------------------------- */

int xl_trace_read(struct host *h, struct trace_record *out, int n)
{
    STATIC_ASSERT((int)TRACE_RINGS == (int)MAX_PCPUS);  /* the lane's pCPU has none of its own */
    const struct trace_ring *rings[TRACE_RINGS] = { &h->trace.shared };
    unsigned nr = 1;
    for (u32 id = 0; id < h->nr_pcpus; id++)
        if (h->pcpu[id].trace)
            rings[nr++] = h->pcpu[id].trace;
    int count = trace_merge(rings, nr, out, n);
    u64 ticks = clock_ticks() - h->tsc_epoch, now = host_now(h);
    for (int i = 0; h->clock.kind == CLOCK_REAL && i < count; i++)      /* host ticks to ns, by the two clocks' progress since the start */
        out[i].time = (u64)((unsigned __int128)(out[i].time - h->tsc_epoch) * now / (ticks ? ticks : 1));
    return count;
}

u64 xl_trace_digest(struct host *h, u32 with_memory)
{
    const struct machine *m = &h->machine;
    u64 d = digest_mix(h->trace.digest, h->trace.shared.next);
    for (u32 mfn = m->first_mfn; with_memory && mfn < m->heap.fresh; mfn++)
        if (m->frames[mfn].count_info & PGC_ALLOCATED)
            d = frame_digest(m, mfn, d);
    return d;
}

void xl_trace_mark(struct host *h, u64 a, u64 b) { host_trace(h, TRACE_MARK, DOMID_INVALID, 0, a, b); }
void xl_trace_off(struct host *h, u32 off) { h->trace.off = off; }

int xl_snapshot(struct host *h) { return snapshot_take(h); }
int xl_reset(struct host *h) { return snapshot_reset(h); }
void xl_snapshot_drop(struct host *h) { snapshot_drop(h); }
