/* See timer.h.
 *
 * Lost expiries. A pCPU that goes idle, or starts a vCPU, publishes what it is about to do (pcpu->idle = 1, pcpu->slice_end)
 * and then reads timer_heap.earliest, with a full barrier between. timer_set writes `earliest` and then, again behind a full
 * barrier (in pcpu_timer_changed), reads idle and lowers slice_end. So at least one of the two sees the other.
 */
#include "hv/timer.h"

#include <sched.h>
#include <string.h>

#include "hv/host.h"

enum { FIRST_CAPACITY = 127 };          /* with the unused slot 0: one 1 KiB block of the arena */

static bool earlier(const struct timer *a, const struct timer *b)
{
    return a->expires != b->expires ? a->expires < b->expires : a->seq < b->seq;
}

static void place(struct timer_heap *th, u32 i, struct timer *t)
{
    th->slot[i] = t;
    write_once(t->heap_index, i);
}

static void sift_up(struct timer_heap *th, u32 i, struct timer *t)
{
    for (; i > 1 && earlier(t, th->slot[i / 2]); i /= 2)
        place(th, i, th->slot[i / 2]);
    place(th, i, t);
}

static void sift_down(struct timer_heap *th, u32 i, struct timer *t)
{
    for (u32 child; (child = 2 * i) <= th->count; i = child) {
        if (child < th->count && earlier(th->slot[child + 1], th->slot[child]))
            child++;
        if (!earlier(th->slot[child], t))
            break;
        place(th, i, th->slot[child]);
    }
    place(th, i, t);
}

static void note_earliest(struct timer_heap *th)
{
    store_release(th->earliest, th->count ? th->slot[1]->expires : NEVER);
}

/* [lock] Makes the array longer. The old one's contents move. */
static bool resize(struct host *h, struct timer_heap *th, u32 capacity)
{
    struct timer **slot = arena_alloc(&h->arena, (capacity + 1) * sizeof *slot);
    if (!slot)
        return false;
    if (th->slot) {
        memcpy(slot, th->slot, (th->count + 1) * sizeof *slot);
        arena_free(&h->arena, th->slot, (th->capacity + 1) * sizeof *slot);
    }
    th->slot = slot;
    th->capacity = capacity;
    return true;
}

static inline bool make_room(struct host *h, struct timer_heap *th)
{
    return th->count < th->capacity || resize(h, th, 2 * th->capacity + 1);
}

static void heap_remove(struct timer_heap *th, struct timer *t)
{
    u32 i = t->heap_index;
    struct timer *last = th->slot[th->count--];
    if (last != t) {
        if (i > 1 && earlier(last, th->slot[i / 2]))
            sift_up(th, i, last);
        else
            sift_down(th, i, last);
    }
    write_once(t->heap_index, 0);
    note_earliest(th);
}

/* Locks the heap that t belongs to just now; another thread may move t until we hold it. */
static struct timer_heap *lock_heap_of(struct host *h, struct timer *t)
{
    for (;;) {
        u16 pcpu = read_once(t->pcpu);
        struct timer_heap *th = &h->pcpu[pcpu].timers;
        spin_lock(&th->lock);
        if (t->pcpu == pcpu)
            return th;
        spin_unlock(&th->lock);
    }
}

int timers_init(struct host *h, unsigned pcpu)
{
    struct timer_heap *th = &h->pcpu[pcpu].timers;
    *th = (struct timer_heap){ .earliest = NEVER };
    return resize(h, th, FIRST_CAPACITY) ? 0 : -XEN_ENOMEM;
}

void timer_init(struct timer *t, timer_fn *fn, void *data)
{
    *t = (struct timer){ .fn = fn, .data = data };
}

int timer_set(struct host *h, struct timer *t, unsigned pcpu, u64 when)
{
    struct timer_heap *th = lock_heap_of(h, t);
    while (t->pcpu != pcpu) {           /* it moves: off the old heap, then onto the new one, never holding both locks */
        if (t->heap_index)
            heap_remove(th, t);
        write_once(t->pcpu, (u16)pcpu);
        spin_unlock(&th->lock);
        th = lock_heap_of(h, t);
    }

    if (t->heap_index)
        heap_remove(th, t);
    else if (!make_room(h, th)) {
        spin_unlock(&th->lock);
        return -XEN_ENOMEM;
    }
    t->expires = when;
    t->seq = __atomic_fetch_add(&h->timer_seq, 1, __ATOMIC_RELAXED);
    sift_up(th, ++th->count, t);
    bool first = t->heap_index == 1;
    if (first)
        note_earliest(th);
    spin_unlock(&th->lock);

    if (first)
        pcpu_timer_changed(h, &h->pcpu[pcpu], when);
    return 0;
}

void timer_stop(struct host *h, struct timer *t)
{
    if (!timer_pending(t))
        return;
    struct timer_heap *th = lock_heap_of(h, t);
    if (t->heap_index)
        heap_remove(th, t);
    spin_unlock(&th->lock);
}

void timer_kill(struct host *h, struct timer *t)
{
    for (bool again = true; again; ) {  /* once more if its function ran, because that may have set it again */
        struct timer_heap *th = lock_heap_of(h, t);
        if (t->heap_index)
            heap_remove(th, t);
        spin_unlock(&th->lock);

        again = false;
        for (unsigned i = 0; i < h->nr_pcpus; i++)
            while (load_acquire(h->pcpu[i].timers.running) == t) {
                again = true;
                sched_yield();
            }
        again |= timer_pending(t);
    }
}

u64 timers_next(struct host *h, unsigned pcpu)
{
    return load_acquire(h->pcpu[pcpu].timers.earliest);
}

unsigned timers_run(struct host *h, unsigned pcpu, u64 now)
{
    struct timer_heap *th = &h->pcpu[pcpu].timers;
    unsigned ran = 0;

    if (likely(load_acquire(th->earliest) > now))
        return 0;
    spin_lock(&th->lock);
    while (th->count && th->slot[1]->expires <= now) {
        struct timer *t = th->slot[1];
        timer_fn *fn = t->fn;
        store_release(th->running, t);  /* in the section that takes it off the heap: timer_kill sees one or the other */
        heap_remove(th, t);
        spin_unlock(&th->lock);
        fn(h, t);
        spin_lock(&th->lock);
        store_release(th->running, NULL);
        ran++;
    }
    spin_unlock(&th->lock);
    return ran;
}

u32 timers_count(struct host *h)
{
    u32 n = 0;
    for (unsigned i = 0; i < h->nr_pcpus; i++)
        n += read_once(h->pcpu[i].timers.count);
    return n;
}
