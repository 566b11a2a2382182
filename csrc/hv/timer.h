/* Timers: one heap a pCPU, ordered by (expiry, sequence).
 *
 * Owns: struct timer. Called by: scheduler, vcpu_op, poll, watchdogs, I/O latency with the virtual clock, Python's call_at.
 * Lock: timer_heap.lock, innermost but for the arena's; expiry functions run on that pCPU's thread without it. A timer may
 * be set and stopped from any thread. timer_stop does not wait for an expiry function that is running (those are written to
 * be harmless when late); timer_kill does, and comes before the timer's memory goes.
 *
 * Real and virtual clock use the same code: only where `now` comes from differs, and who waits for timers_next().
 */
#ifndef XL_HV_TIMER_H
#define XL_HV_TIMER_H

#include "base/lock.h"

struct host;
struct timer;
typedef void timer_fn(struct host *h, struct timer *t);

struct timer {
    u64 expires;                /* system time, ns. [lock of its heap] */
    u64 seq;                    /* order among equal expiries: virtual-clock runs repeat */
    timer_fn *fn;
    void *data;
    u32 heap_index;             /* 1-based place in the heap, 0: not set. [lock of its heap] */
    u16 pcpu;                   /* whose heap it is on, or was on last. [lock of that heap] */
};

struct timer_heap {
    spinlock_t lock;
    u32 count, capacity;        /* [lock] */
    struct timer **slot;        /* 1-based binary heap, arena memory. [lock] */
    u64 earliest;               /* expiry of slot[1], NEVER: empty. Written under the lock, read without */
    struct timer *running;      /* whose expiry function runs now. Written under the lock, read without */
};

/* Makes the heap of `pcpu` empty. 0 or -ENOMEM. */
int timers_init(struct host *h, unsigned pcpu);

/* fn(h, t) will run when t is due; data is the caller's. Not to be called on a timer that is set. */
void timer_init(struct timer *t, timer_fn *fn, void *data);
/* Arms (or re-arms) t for system time `when` (ns; a past one is due at once) on the heap of `pcpu`, and makes that pCPU
 * look if this is its new earliest. 0 or -ENOMEM, and then t is not set. */
int timer_set(struct host *h, struct timer *t, unsigned pcpu, u64 when);
/* Disarms t; harmless if it is not set. */
void timer_stop(struct host *h, struct timer *t);
/* Disarms t for good: when it returns, its expiry function does not run and will not. Not from an expiry function, and not
 * with a lock held that one takes. */
void timer_kill(struct host *h, struct timer *t);
static inline bool timer_pending(const struct timer *t) { return read_once(t->heap_index) != 0; }
/* Earliest expiry on a pCPU's heap, NEVER if none. */
u64 timers_next(struct host *h, unsigned pcpu);
/* Runs every timer of the pCPU that is due at `now`, earliest first; only by the pCPU's own thread. Returns how many ran. */
unsigned timers_run(struct host *h, unsigned pcpu, u64 now);
/* Timers set, on all heaps. */
u32 timers_count(struct host *h);

#endif
