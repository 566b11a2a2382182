/* The default policy, after Xen's credit2 (xen-abi section 10).
 *
 * Owns: sched_unit.credit and the order of a run queue. Called by: core.c, always with the run queue's lock.
 *
 * A unit burns credit while it runs: a nanosecond costs max_weight / weight, so that the heaviest burns 1 a ns. Who has most
 * credit runs next. When the best candidate has none left, every unit of the run queue gets CREDIT_INIT more, up to a
 * ceiling, so that whoever slept cannot save up. Over any long time CPU is therefore shared by weight among those who want
 * it. There is one queue for all pCPU threads (and the lane's), so load needs no balancing. Caps are not offered.
 */
#include "hv/host.h"

static const s64 CREDIT_INIT = 10000000;        /* ns, also the longest slice */
static const s64 CREDIT_MIN = -10000000;        /* debts below are forgotten */
static const s64 CARRYOVER_MAX = 500000;        /* what a reset may leave above CREDIT_INIT */
static const s64 SLICE_MIN = 500000;
static const s64 RATELIMIT = 1000000;           /* nobody is preempted earlier */
static const s64 TOLERANCE = 50000;             /* advantage that a waiter needs, so that equals do not preempt each other */
static const s64 MIGRATION_RESISTANCE = 500000; /* and more, if it would have to leave the pCPU that knows it */

static void link_before(struct sched_link *at, struct sched_link *l)
{
    l->next = at;
    l->prev = at->prev;
    at->prev->next = l;
    at->prev = l;
}

static void unlink(struct sched_link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    l->next = l->prev = l;
}

static struct sched_unit *queued_unit(struct sched_link *l) { return container_of(l, struct sched_unit, queued_at); }

/* ---- credit ------------------------------------------------------------------------------------------------------ */

/* ns of running -> credit, and back. A second takes all the credit there is; no more keeps the products in range. */
static s64 time_to_credit(const struct sched_unit *u, u64 ns)
{
    const u64 second = 1000000000ul;
    return (s64)((ns < second ? ns : second) * u->queue->max_weight / u->weight);
}

static s64 credit_to_time(const struct sched_unit *u, s64 credit)
{
    return credit * u->weight / (s64)u->queue->max_weight;
}

static void credit2_charge(struct host *h, struct sched_unit *u, u64 now)
{
    if (now <= u->charged)
        return;
    s64 left = u->credit - time_to_credit(u, now - u->charged);
    u->credit = left > CREDIT_MIN ? left : CREDIT_MIN;
    u->run_total += now - u->charged;
    u->charged = now;
}

static void reset_credits(struct host *h, struct runqueue *rq, const struct sched_unit *best, u64 now)
{
    const s64 more = best->credit > CREDIT_MIN ? CREDIT_INIT : 2 * CREDIT_INIT;
    for (struct sched_link *l = rq->all.next; l != &rq->all; l = l->next) {
        struct sched_unit *u = container_of(l, struct sched_unit, all_at);
        if (u->running)
            credit2_charge(h, u, now);
        u->credit += more;
        if (u->credit > CREDIT_INIT + CARRYOVER_MAX)
            u->credit = CREDIT_INIT + CARRYOVER_MAX;
    }
}

/* How long u may run, having `credit`, before it has no more than `floor`. */
static s64 slice_until(const struct sched_unit *u, s64 credit, s64 floor)
{
    s64 t = credit_to_time(u, credit - floor);
    s64 shortest = SLICE_MIN > RATELIMIT ? SLICE_MIN : RATELIMIT;
    return t < shortest ? shortest : t > CREDIT_INIT ? CREDIT_INIT : t;
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

/* Heaviest of the queue; credits are in its nanoseconds, and stay as they are when it changes. */
static void find_max_weight(struct runqueue *rq)
{
    rq->max_weight = 1;
    for (struct sched_link *l = rq->all.next; l != &rq->all; l = l->next) {
        struct sched_unit *u = container_of(l, struct sched_unit, all_at);
        if (u->weight > rq->max_weight)
            rq->max_weight = u->weight;
    }
}

static void credit2_insert(struct host *h, struct sched_unit *u)
{
    u->credit = CREDIT_INIT;
    u->queued_at.next = u->queued_at.prev = &u->queued_at;
    link_before(&u->queue->all, &u->all_at);
    if (u->weight > u->queue->max_weight)
        u->queue->max_weight = u->weight;
}

static void credit2_remove(struct host *h, struct sched_unit *u)
{
    unlink(&u->all_at);
    if (u->weight == u->queue->max_weight)
        find_max_weight(u->queue);
}

/* By falling credit, first come first served among equals. Who yielded goes to the very end once: when those before it have
 * run, they have less credit and come behind it. */
static void credit2_enqueue(struct host *h, struct sched_unit *u, u64 now, bool woken)
{
    struct sched_link *head = &u->queue->queued, *at = u->yielded ? head : head->next;
    while (at != head && queued_unit(at)->credit >= u->credit)
        at = at->next;
    link_before(at, &u->queued_at);
}

static void credit2_dequeue(struct host *h, struct sched_unit *u)
{
    unlink(&u->queued_at);
}

static struct sched_unit *credit2_pick(struct host *h, struct pcpu *p, u64 now, u64 *slice)
{
    struct runqueue *rq = p->queue;
    if (rq->queued.next == &rq->queued)
        return NULL;

    struct sched_unit *u = queued_unit(rq->queued.next);
    if (u->credit <= 0)
        reset_credits(h, rq, u, now);
    unlink(&u->queued_at);
    s64 next_credit = rq->queued.next != &rq->queued ? queued_unit(rq->queued.next)->credit : 0;
    *slice = (u64)slice_until(u, u->credit, next_credit > 0 ? next_credit : 0);
    return u;
}

/* When cur's credit will have fallen below the waiter's, as if the waiter had stood in the queue when cur was picked. */
static u64 credit2_preempt_at(struct host *h, const struct sched_unit *waiting, const struct sched_unit *cur, u64 now)
{
    s64 margin = TOLERANCE + (waiting->pcpu != cur->pcpu ? MIGRATION_RESISTANCE : 0);
    s64 floor = waiting->credit > margin ? waiting->credit - margin : 0;
    s64 credit_at_start = cur->credit + time_to_credit(cur, cur->charged - cur->start);
    return cur->start + (u64)slice_until(cur, credit_at_start, floor);
}

const struct sched_ops sched_credit2 = {
    .name = "credit2",
    .id = 6,
    .insert = credit2_insert,
    .remove = credit2_remove,
    .enqueue = credit2_enqueue,
    .dequeue = credit2_dequeue,
    .pick = credit2_pick,
    .charge = credit2_charge,
    .preempt_at = credit2_preempt_at,
};
