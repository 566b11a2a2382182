/* See lane.h. */
#include "hv/lane.h"

#include <unistd.h>

#include "hv/host.h"

enum { LANE_INITIAL = 256 };

int lane_init(struct host *h)
{
    h->lane.queue = arena_alloc(&h->arena, LANE_INITIAL * sizeof(struct lane_exit));
    h->lane.capacity = h->lane.queue ? LANE_INITIAL : 0;
    return h->lane.queue ? 0 : -XEN_ENOMEM;
}

/* [lane.lock] */
static bool grow(struct host *h)
{
    struct lane *l = &h->lane;
    struct lane_exit *bigger = arena_alloc(&h->arena, 2ul * l->capacity * sizeof *bigger);
    if (!bigger)
        return false;
    for (u32 i = l->head; i != l->tail; i++)
        bigger[i & (2 * l->capacity - 1)] = l->queue[i & (l->capacity - 1)];
    arena_free(&h->arena, l->queue, l->capacity * sizeof *l->queue);
    l->queue = bigger;
    l->capacity *= 2;
    return true;
}

void lane_push(struct host *h, struct lane_exit e)
{
    struct lane *l = &h->lane;
    spin_lock(&l->lock);
    if (l->tail - l->head < l->capacity || grow(h)) {
        l->queue[l->tail & (l->capacity - 1)] = e;
        store_release(l->tail, l->tail + 1);    /* looked at without the lock */
    }
    spin_unlock(&l->lock);
    lane_kick(h);
}

bool lane_pop(struct host *h, struct lane_exit *e)
{
    struct lane *l = &h->lane;
    if (read_once(l->head) == read_once(l->tail))
        return false;
    spin_lock(&l->lock);
    bool some = l->head != l->tail;
    if (some) {
        *e = l->queue[l->head & (l->capacity - 1)];
        store_release(l->head, l->head + 1);
    }
    spin_unlock(&l->lock);
    return some;
}

void lane_kick(struct host *h)
{
    smp_mb();                           /* what was queued is visible before `sleeping` is looked at; xl_wait does the reverse */
    if (load_acquire(h->lane.sleeping)) {
        u64 one = 1;
        ssize_t n = write(h->os->eventfd, &one, sizeof one);
        (void)n;                        /* EAGAIN: it is readable already */
    }
}
