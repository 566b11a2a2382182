/* Physical CPUs: what each does in its loop, and their host threads.
 *
 * Owns: struct pcpu, the pCPU threads. Called by: the lane (pcpu_run on pCPU 0), the threads themselves, whoever has news for
 * a pCPU (pcpu_kick). Locks: none of its own; see the orderings in core.c and timer.c.
 *
 * A vCPU of a C backend stays `held` when pcpu_run returns: the next call rests it and picks its successor in one locked
 * section with one clock read, or lets it run on if only a timer was due. So the caller may look after other things between
 * two calls (the lane queue, a stop request), and the switch from one vCPU to the next stays short.
 *
 * Compute time of Python vCPUs (vcpu.burn_ns) occupies the modelled pCPU like any other work, preemptible by slice, timers and
 * wakes. With the virtual clock it is added to the clock. With the real clock the lane's thread has better things to do than
 * to spin: the vCPU runs formally, on p->held, and pcpu_run says PCPU_IDLE until the time is over or something wants the
 * pCPU. Only what is shorter than a sleep (BURN_SPIN) is spun.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hv/sched/private.h"

static const u64 BURN_SPIN = 20000;             /* ns */
static const u64 LONGEST_SLEEP = 3600ul * 1000000000ul;

static struct host *pcpu_host(struct pcpu *p)
{
    return (struct host *)((char *)(p - p->id) - offsetof(struct host, pcpu));
}

static inline u64 earlier_of(u64 a, u64 b) { return a < b ? a : b; }

/* ---- news for a pCPU --------------------------------------------------------------------------------------------- */

static void futex_wake(u32 *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void pcpu_kick(struct host *h, struct pcpu *p)
{
    atomic_add(&p->kick, 1);
    if (!p->threaded)
        lane_kick(h);
    else if (load_acquire(p->idle))
        futex_wake(&p->kick);
}

void pcpu_timer_changed(struct host *h, struct pcpu *p, u64 when)
{
    smp_mb();
    atomic_lower(&p->stop_at, when);
    if (load_acquire(p->idle))
        pcpu_kick(h, p);
}

/* Says until when the backend may run from now on. */
static void pcpu_arm(struct host *h, struct pcpu *p)
{
    xchg(&p->stop_at, NEVER);           /* full barrier: what is lowered from here on stays lowered */
    atomic_lower(&p->stop_at, earlier_of(load_acquire(p->slice_end), timers_next(h, p->id)));
}

/* ---- the loop's body --------------------------------------------------------------------------------------------- */

/* v was put on a pCPU: what it has to do first, as itself. */
static void switch_in(struct vcpu *v)
{
    if (unlikely(read_once(v->poll_nr)))
        vcpu_poll_end(v);
    vcpu_runstate_publish(v);
}

static bool burn_virtual(struct host *h, struct pcpu *p, struct vcpu *v, u64 now)
{
    u64 end = load_acquire(p->stop_at);
    u64 ns = end > now ? earlier_of(v->burn_ns, end - now) : 0;
    clock_advance(&h->clock, ns);
    v->burn_ns -= ns;
    return v->burn_ns == 0;
}

static bool burn_spin(struct host *h, struct pcpu *p, struct vcpu *v, u64 now)
{
    u64 end = now + v->burn_ns;
    while (now < end && now < load_acquire(p->stop_at) && !vcpu_must_park(v)) {
        cpu_relax();
        now = host_now(h);
    }
    v->burn_ns = end > now ? end - now : 0;
    return v->burn_ns == 0;
}

/* Burns time of v, which runs on p. True: all of it. False: p->held is v, and *result says what pcpu_run returns. */
static bool burn(struct host *h, struct pcpu *p, struct vcpu *v, u64 now, enum pcpu_result *result, u64 *deadline)
{
    bool virtual = h->clock.kind == CLOCK_VIRTUAL;
    *result = PCPU_RAN;
    if (virtual ? burn_virtual(h, p, v, now) : v->burn_ns <= BURN_SPIN && burn_spin(h, p, v, now))
        return true;
    p->held = &v->unit;
    if (!virtual && v->burn_ns > BURN_SPIN) {
        p->burning_since = now;
        xchg(&p->idle, 1);              /* who sets WORK_park or lowers stop_at looks at idle after that */
        if (!vcpu_must_park(v)) {
            *result = PCPU_IDLE;
            *deadline = earlier_of(now + v->burn_ns, load_acquire(p->stop_at));
        }
    }
    return false;
}

void burn_account(struct pcpu *p, u64 now)
{
    struct vcpu *v = p->held->vcpu;
    v->burn_ns -= earlier_of(v->burn_ns, now - p->burning_since);
    p->burning_since = 0;
}

enum pcpu_result pcpu_run(struct host *h, struct pcpu *p, struct vcpu **out, u64 *deadline)
{
    p->kick_seen = load_acquire(p->kick);
    if (read_once(p->idle))
        write_once(p->idle, 0);
    u64 now = host_now(h);
    if (timers_run(h, p->id, now))
        now = host_now(h);

    if (p->burning_since)
        burn_account(p, now);
    struct sched_unit *u = p->held, *prev = NULL;
    p->held = NULL;
    if (u && (vcpu_must_park(u->vcpu) || now >= load_acquire(p->slice_end))) {
        vcpu_runstate_publish_rest(u->vcpu);
        prev = u;
        u = NULL;
    }
    if (!u) {
        u = sched_switch(h, p, prev, now);
        if (!u) {
            *deadline = timers_next(h, p->id);
            return PCPU_IDLE;
        }
        switch_in(u->vcpu);
    }

    struct vcpu *v = u->vcpu;
    pcpu_arm(h, p);
    if (v->backend == BACKEND_PYTHON) {
        enum pcpu_result result;
        if (v->burn_ns && !burn(h, p, v, now, &result, deadline))
            return result;
        *out = v;
        return PCPU_PYTHON;
    }
    h->backend[v->backend]->run(v, &p->stop_at);
    p->held = u;
    return PCPU_RAN;
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static void idle_wait(struct host *h, struct pcpu *p, u64 deadline)
{
    u64 now = host_now(h);
    if (deadline <= now || load_acquire(h->os->stopping))       /* looked at behind kick_seen: sched_stop sets it, then kicks */
        return;
    u64 until = h->clock.epoch + earlier_of(deadline, now + LONGEST_SLEEP);
    struct timespec ts = { .tv_sec = (time_t)(until / 1000000000ul), .tv_nsec = (long)(until % 1000000000ul) };
    syscall(SYS_futex, &p->kick, FUTEX_WAIT_BITSET_PRIVATE, p->kick_seen, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
}

static void *pcpu_thread(void *arg)
{
    struct pcpu *p = arg;
    struct host *h = pcpu_host(p);
    struct vcpu *v;
    u64 deadline;
    char name[16];

    snprintf(name, sizeof name, "xl-pcpu%u", p->id);
    pthread_setname_np(pthread_self(), name);
    while (!load_acquire(h->os->stopping))
        if (pcpu_run(h, p, &v, &deadline) == PCPU_IDLE)
            idle_wait(h, p, deadline);

    if (p->held) {
        struct vcpu *held = p->held->vcpu;
        p->held = NULL;
        sched_put_back(held);
    }
    spin_lock(&p->queue->lock);
    p->queue->idle_mask &= ~(1ul << p->id);
    spin_unlock(&p->queue->lock);
    write_once(p->idle, 0);
    return NULL;
}

int sched_start(struct host *h)
{
    sigset_t all, old;
    int rc = 0;

    if (h->os->nr_threads)
        return 0;
    store_release(h->os->stopping, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);   /* signals are for the threads of the program we live in */
    for (unsigned id = 0; id < h->nr_pcpus && !rc; id++) {
        if (!h->pcpu[id].threaded)
            continue;
        rc = pthread_create(&h->os->thread[id], NULL, pcpu_thread, &h->pcpu[id]);
        if (!rc)
            h->os->nr_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        sched_stop(h);
        return -XEN_EAGAIN;
    }
    return 0;
}

void sched_stop(struct host *h)
{
    store_release(h->os->stopping, 1);
    for (unsigned id = 0; id < h->nr_pcpus; id++) {
        struct pcpu *p = &h->pcpu[id];
        if (!p->threaded)
            continue;
        spin_lock(&p->queue->lock);
        if (p->current)
            atomic_or(&p->current->vcpu->exit_work, WORK_park);
        spin_unlock(&p->queue->lock);
        pcpu_kick(h, p);
    }
    for (unsigned id = 0; id < h->nr_pcpus && h->os->nr_threads; id++)
        if (h->pcpu[id].threaded) {
            pthread_join(h->os->thread[id], NULL);
            h->os->nr_threads--;
        }
}

/* ---- layout ------------------------------------------------------------------------------------------------------ */

static void queue_init(struct runqueue *rq, u16 first, u16 n)
{
    *rq = (struct runqueue){ .max_weight = 1, .first_pcpu = first, .nr_pcpus = n };
    rq->queued.next = rq->queued.prev = &rq->queued;
    rq->all.next = rq->all.prev = &rq->all;
}

int sched_init(struct host *h, u32 nr_threads)
{
    bool virtual = h->clock.kind == CLOCK_VIRTUAL;
    u32 threads = virtual ? 0 : nr_threads;
    if (!virtual && (threads < 1 || threads >= MAX_PCPUS))
        return -XEN_EINVAL;

    h->sched = &sched_credit2;
    h->nr_pcpus = 1 + threads;
    queue_init(&h->queues[0], 0, 1);
    queue_init(&h->queues[1], 1, (u16)threads);
    for (unsigned id = 0; id < h->nr_pcpus; id++) {
        h->pcpu[id] = (struct pcpu){ .id = (u16)id, .threaded = id > 0, .queue = &h->queues[id > 0], .stop_at = NEVER };
        if (id && !(h->pcpu[id].trace = arena_alloc(&h->arena, sizeof(struct trace_ring))))
            return -XEN_ENOMEM;
        int rc = timers_init(h, id);
        if (rc)
            return rc;
    }
    return 0;
}
