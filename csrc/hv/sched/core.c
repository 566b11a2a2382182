/* Scheduler core: see hv/sched.h.
 *
 * Owns: the transitions of sched_unit.{queued, running} and of a vCPU's run state. Called by: pcpu.c (switch), events,
 * timers, hypercalls, toolstack (wake, pause). Lock: the unit's run queue; inside it only the timer heap's.
 *
 * States of a unit, all changes under the queue's lock:
 *      at rest   !queued !running    pause_flags != 0, or a waker is on its way (rule 1)
 *      queued     queued !running    waits for a pCPU
 *      running   !queued  running    from the pick until its context is saved: the backend has returned and sched_switch or
 *                                    sched_put_back rests it
 *
 * Orderings.
 * 1. Wake against rest. pause_flags change without the lock, but whoever changes them takes the lock *afterwards*. A waker
 *    that finds the unit running does nothing: the rest comes later under the same lock, sees pause_flags == 0, and queues
 *    it. A waker that finds it at rest queues it. So a wake is never lost, and as only a unit that is not running is ever
 *    queued, a vCPU that was woken while still running (its hypercall blocks, an event comes at once) is not run twice.
 *    Pausing is the mirror image: flag first, then the lock; found running, it gets WORK_park, found queued, it is
 *    dequeued; picked before, the pauser finds it running, as WORK_park is cleared in the pick's locked section.
 * 2. Block against event (Dekker). The blocker sets VPF_blocked and then, behind a full barrier (the atomic or), looks for
 *    events. A sender sets the pending bits, and then, behind a full barrier (its atomic or), looks at VPF_blocked. One of
 *    the two sees the other; if both do, both clear the flag, which is harmless. SCHEDOP_poll: the same, with
 *    evtchn_poll_begin's announcement as the first write.
 * 3. Sleep against wake. A pCPU that found nothing sets its bit in idle_mask and `idle` in the locked section of the failed
 *    pick; who queues a unit later takes a bit out of idle_mask under the lock and kicks that pCPU after unlocking. The
 *    kick counter is read before the pick, and the futex refuses to sleep if it has moved since: a kick that comes before
 *    the sleep is not lost. Timers: see timer.c.
 * 4. Giving way. slice_end and stop_at are only lowered by others (compare-and-swap), and pcpu_arm sets stop_at to NEVER
 *    before it reads what it has to respect, so that a lowering either comes before the read or survives it. WORK_park is
 *    set by atomic or and cleared only in a pick.
 * 5. exit_work's WORK_upcall: vcpu_kick always sets it *after* the event is pending; who clears it must look for events
 *    after clearing.
 */
#include <sched.h>
#include <time.h>

#include "hv/sched/private.h"

static inline u64 later_of(u64 a, u64 b) { return a > b ? a : b; }

static inline struct pcpu *pcpu_of(const struct sched_unit *u) { return &u->vcpu->host->pcpu[u->pcpu]; }

/* A threaded unit is brought to rest by another thread; a unit of the lane's pCPU by the lane itself, which calls us. */
static inline bool unit_is_threaded(const struct sched_unit *u) { return pcpu_of(u)->threaded; }

/* ---- queueing [runqueue lock] ------------------------------------------------------------------------------------ */

/* Makes p's current vCPU park. True if p has to be kicked as well: it sleeps while its vCPU formally runs (burn, pcpu.c). */
static bool give_way(struct pcpu *p)
{
    atomic_or(&p->current->vcpu->exit_work, WORK_park);
    return load_acquire(p->idle);
}

/* u was queued: finds the pCPU that should look at it. Returns one that must be kicked, or NULL. */
static struct pcpu *find_pcpu(struct host *h, struct runqueue *rq, struct sched_unit *u, u64 now)
{
    if (rq->idle_mask) {
        unsigned id = rq->idle_mask >> u->pcpu & 1 ? u->pcpu : (unsigned)__builtin_ctzl(rq->idle_mask);
        rq->idle_mask &= ~(1ul << id);
        return &h->pcpu[id];
    }

    struct pcpu *best = NULL;
    u64 best_at = NEVER;
    for (unsigned i = 0; i < rq->nr_pcpus; i++) {
        struct pcpu *p = &h->pcpu[rq->first_pcpu + i];
        if (!p->current)                /* kicked before and not yet there: it will look at the queue anyway */
            continue;
        u64 at = h->sched->preempt_at(h, u, p->current, now);
        if (at < best_at) {
            best = p;
            best_at = at;
        }
    }
    if (!best)
        return NULL;
    if (best_at <= now)
        return give_way(best) ? best : NULL;
    atomic_lower(&best->slice_end, best_at);
    smp_mb();                           /* ordering 4: slice_end, then stop_at; pcpu_arm writes and reads the other way */
    atomic_lower(&best->stop_at, best_at);
    return load_acquire(best->idle) ? best : NULL;
}

static void enqueue(struct host *h, struct sched_unit *u, u64 now, bool woken)
{
    h->sched->enqueue(h, u, now, woken);
    u->queued = true;
    u->yielded = false;
    u->queue->nr_queued++;
}

static void dequeue(struct host *h, struct sched_unit *u)
{
    h->sched->dequeue(h, u);
    u->queued = false;
    u->queue->nr_queued--;
}

/* The context of u, which ran on p, is saved. */
static void rest(struct host *h, struct pcpu *p, struct sched_unit *u, u64 now)
{
    struct vcpu *v = u->vcpu;

    u->charged = later_of(u->charged, p->last_rest);    /* several Python vCPUs may be out at once: they ran one by one */
    now = later_of(now, u->charged);
    h->sched->charge(h, u, now);
    p->last_rest = now;
    store_release(u->running, false);           /* vcpu_wait_rest looks without the lock */
    if (p->current == u)
        p->current = NULL;

    u32 flags = load_acquire(v->pause_flags);   /* and what was done for v before it was unpaused */
    vcpu_runstate_change(v, vcpu_rest_state(flags), now);
    if (flags == 0)
        enqueue(h, u, now, false);
    else
        vcpu_trace(v, BLOCK, flags, 0);
}

struct sched_unit *sched_switch(struct host *h, struct pcpu *p, struct sched_unit *prev, u64 now)
{
    struct runqueue *rq = p->queue;
    struct pcpu *kick = NULL;
    u64 slice = 0;

    spin_lock(&rq->lock);
    if (prev)
        rest(h, p, prev, now);
    rq->idle_mask &= ~(1ul << p->id);
    struct sched_unit *u = rq->nr_queued ? h->sched->pick(h, p, now, &slice) : NULL;
    if (u) {
        struct vcpu *v = u->vcpu;
        rq->nr_queued--;
        u->queued = false;
        write_once(u->running, true);
        u->pcpu = p->id;
        v->trace = p->trace;
        u->start = u->charged = now;
        p->current = u;
        store_release(p->slice_end, now + slice);
        if (read_once(v->exit_work) & WORK_park)
            atomic_and(&v->exit_work, ~(u32)WORK_park);
        vcpu_runstate_change(v, RUNSTATE_running, now);
        stat_inc(v, switches);
        vcpu_trace(v, RUN, slice, 0);
        if (unlikely(rq->nr_queued && rq->idle_mask)) {         /* more work than pCPUs awake */
            unsigned id = (unsigned)__builtin_ctzl(rq->idle_mask);
            rq->idle_mask &= ~(1ul << id);
            kick = &h->pcpu[id];
        }
    } else {
        p->current = NULL;
        rq->idle_mask |= 1ul << p->id;
        xchg(&p->idle, 1);              /* full barrier: timers are looked at after this */
    }
    spin_unlock(&rq->lock);
    if (kick)
        pcpu_kick(h, kick);
    return u;
}

void sched_put_back(struct vcpu *v)
{
    struct host *h = v->host;
    struct sched_unit *u = &v->unit;
    struct pcpu *p = pcpu_of(u);
    u64 now = host_now(h);

    vcpu_runstate_publish_rest(v);
    spin_lock(&u->queue->lock);
    if (u->running)
        rest(h, p, u, now);
    spin_unlock(&u->queue->lock);
}

/* ---- waking and pausing: any thread ------------------------------------------------------------------------------ */

void vcpu_unpause(struct vcpu *v, u32 flags)
{
    struct host *h = v->host;
    struct sched_unit *u = &v->unit;
    struct runqueue *rq = u->queue;

    u32 old = atomic_and(&v->pause_flags, ~flags);
    if (!(old & flags))
        return;

    struct pcpu *kick = NULL;
    u64 now = host_now(h);
    spin_lock(&rq->lock);
    if (!u->running && !u->queued) {
        u32 left = read_once(v->pause_flags);
        vcpu_runstate_change(v, vcpu_rest_state(left), now);
        if (left == 0) {
            stat_inc(v, wakes);
            vcpu_trace(v, WAKE, old, 0);
            enqueue(h, u, now, true);
            kick = find_pcpu(h, rq, u, now);
        }
    }
    spin_unlock(&rq->lock);
    if (kick)
        pcpu_kick(h, kick);
    if (flags & ~(u32)(VPF_blocked | VPF_lane))
        vcpu_periodic_resume(v);
}

void vcpu_pause(struct vcpu *v, u32 flags)
{
    struct host *h = v->host;
    struct sched_unit *u = &v->unit;
    struct runqueue *rq = u->queue;
    struct pcpu *kick = NULL;

    atomic_or(&v->pause_flags, flags);
    if (!rq)                            /* a domain that dies half made */
        return;
    u64 now = host_now(h);
    spin_lock(&rq->lock);
    u32 left = read_once(v->pause_flags);
    if (u->running) {
        atomic_or(&v->exit_work, WORK_park);
        if (load_acquire(pcpu_of(u)->idle))
            kick = pcpu_of(u);
    } else if (left) {                  /* it may have been unpaused again meanwhile */
        if (u->queued)
            dequeue(h, u);
        vcpu_runstate_change(v, vcpu_rest_state(left), now);
    }
    spin_unlock(&rq->lock);
    if (kick)
        pcpu_kick(h, kick);
}

/* The lane's pCPU, by the lane: a vCPU that pcpu_run left on it comes to rest here and now. */
static void rest_held(struct sched_unit *u)
{
    struct pcpu *p = pcpu_of(u);

    if (p->held != u)
        return;
    if (p->burning_since)
        burn_account(p, host_now(u->vcpu->host));
    p->held = NULL;
    sched_put_back(u->vcpu);
}

void vcpu_wait_rest(struct vcpu *v)
{
    struct sched_unit *u = &v->unit;

    if (!u->queue)
        return;
    if (!unit_is_threaded(u)) {
        rest_held(u);
        return;
    }
    for (unsigned spins = 0; load_acquire(u->running); spins++) {
        if (spins < 1000)
            cpu_relax();
        else if (spins < 2000)
            sched_yield();              /* the thread that runs it may want this host CPU */
        else
            nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
    }
}

/* It polls for one port only: an event that is not that port and cannot be delivered does not wake it (section 8.1). */
static bool polls_for_one(const struct vcpu *v)
{
    return load_acquire(v->poll_nr) == 1 && read_once(v->info->evtchn_upcall_mask);
}

void vcpu_kick(struct vcpu *v)
{
    atomic_or(&v->exit_work, WORK_upcall);      /* also the barrier of ordering 2 */
    if (read_once(v->in_guest) && v->host->clock.kind == CLOCK_REAL)
        vcpu_nudge(v);
    if (read_once(v->pause_flags) & VPF_blocked && !polls_for_one(v))
        vcpu_unpause(v, VPF_blocked);
}

u64 vcpu_run_time(struct vcpu *v)
{
    struct sched_unit *u = &v->unit;
    if (!u->queue)
        return 0;
    u64 now = host_now(v->host);
    spin_lock(&u->queue->lock);
    u64 total = u->run_total, from = later_of(u->charged, pcpu_of(u)->last_rest);       /* as rest() would charge it */
    if (u->running && now > from)
        total += now - from;
    spin_unlock(&u->queue->lock);
    return total;
}

/* ---- what a running vCPU does to itself -------------------------------------------------------------------------- */

void vcpu_block(struct vcpu *v)
{
    if (unlikely(read_once(v->poll_nr)))        /* a poll that was woken; its ports wake nobody from here on */
        vcpu_poll_end(v);
    frame_mark_dirty(&v->host->machine, v->info_mfn ? v->info_mfn : v->domain->shared_info_mfn);
    write_once(v->info->evtchn_upcall_mask, 0);
    atomic_or(&v->pause_flags, VPF_blocked);
    if (vcpu_event_deliverable(v))
        atomic_and(&v->pause_flags, ~(u32)VPF_blocked);
    else
        atomic_or(&v->exit_work, WORK_park);
}

void vcpu_yield(struct vcpu *v)
{
    v->unit.yielded = true;
    atomic_or(&v->exit_work, WORK_park);
}

void vcpu_check_slice(struct vcpu *v)
{
    if (host_now(v->host) >= load_acquire(pcpu_of(&v->unit)->stop_at))
        atomic_or(&v->exit_work, WORK_park);
}

/* ---- coming and going -------------------------------------------------------------------------------------------- */

int sched_vcpu_init(struct vcpu *v)
{
    struct host *h = v->host;
    bool lane = h->clock.kind == CLOCK_VIRTUAL || v->backend == BACKEND_PYTHON;
    struct runqueue *rq = &h->queues[!lane];

    v->unit = (struct sched_unit){
        .vcpu = v, .queue = rq, .weight = v->domain->weight ? v->domain->weight : SCHED_DEFAULT_WEIGHT,
        .pcpu = (u16)(rq->first_pcpu + (v->domain->id + v->id) % rq->nr_pcpus),
    };
    vcpu_runstate_init(v);
    spin_lock(&rq->lock);
    h->sched->insert(h, &v->unit);
    spin_unlock(&rq->lock);
    return 0;
}

void sched_vcpu_destroy(struct vcpu *v)
{
    struct host *h = v->host;
    struct sched_unit *u = &v->unit;
    struct runqueue *rq = u->queue;

    if (!rq)
        return;
    vcpu_wait_rest(v);
    vcpu_time_destroy(v);
    spin_lock(&rq->lock);
    if (u->queued)
        dequeue(h, u);
    if (u->running)                     /* a Python vCPU in the middle of its turn: the lane, our caller, will not resume it */
        rest(h, pcpu_of(u), u, host_now(h));
    h->sched->remove(h, u);
    spin_unlock(&rq->lock);
}
