/* See trace.h. */
#include "base/trace.h"

/* A ring, read backwards. */
struct tail {
    const struct trace_ring *ring;
    u64 at;                     /* `last` is the record before this; 0: there is none */
    struct trace_record last;
};

/* What is overwritten has only overwritten ones before it. */
static void fetch(struct tail *t)
{
    if (!t->at)
        return;
    t->last = t->ring->record[(t->at - 1) % TRACE_RING];
    smp_rmb();
    if (read_once(t->ring->next) >= t->at - 1 + TRACE_RING)     /* its writer may be in it */
        t->at = 0;
}

int trace_merge(const struct trace_ring *const *rings, unsigned nr_rings, struct trace_record *out, int n)
{
    struct tail tail[TRACE_RINGS];
    int count = 0;
    for (unsigned k = 0; k < nr_rings; k++) {
        tail[k] = (struct tail){ .ring = rings[k], .at = load_acquire(rings[k]->next) };
        fetch(&tail[k]);
    }
    for (; count < n; count++) {
        struct tail *newest = NULL;
        for (unsigned k = 0; k < nr_rings; k++)
            if (tail[k].at && (!newest || tail[k].last.time >= newest->last.time))
                newest = &tail[k];
        if (!newest)
            break;
        out[count] = newest->last;
        newest->at--;
        fetch(newest);
    }
    for (int a = 0, b = count - 1; a < b; a++, b--) {
        struct trace_record r = out[a];
        out[a] = out[b];
        out[b] = r;
    }
    for (int i = 1; i < count; i++) {           /* everybody's ring is not quite in order: a stamp is taken before its place is */
        struct trace_record r = out[i];
        int k = i;
        for (; k && out[k - 1].time > r.time; k--)
            out[k] = out[k - 1];
        out[k] = r;
    }
    return count;
}
