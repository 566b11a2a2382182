/* See blk.h. What a request does is in blk_request.c; here are rings, notifications, clocks, life cycle. */
#include "io/blk.h"

#include <string.h>

#include "hv/host.h"
#include "io/blk_request.h"
#include "io/ring.h"
#include "io/worker.h"

enum {
    BATCH_NS = 50000,           /* a response waits for those behind it no longer than this */
    NOTICE_NS = 2000,           /* virtual clock: from the front end's notification until we look */
};

struct blk {
    struct host *host;
    struct domain *back;        /* domain 0; referenced */
    u16 front;
    u32 port;                   /* domain 0's */
    s32 id;                     /* from io_attach */
    u32 stopped;                /* enum xl_blk_stop. atomic */
    u32 leaving;                /* atomic: the lane waits to detach */
    u64 cookie;
    struct timer timer;         /* virtual clock: notice, or completion of `request` */
    bool busy;                  /* virtual clock: `request` is under way */
    struct io_ring ring;        /* this and what follows: [runner]; readers of statistics tolerate tearing */
    struct blk_disk disk;
    struct blk_request request;
};

/* ---- the ring ---------------------------------------------------------------------------------------------------- */

static void blk_stop(struct blk *b, enum xl_blk_stop why)
{
    store_release(b->stopped, why);
    lane_push(b->host, (struct lane_exit){ .kind = EXIT_IO, .domid = b->front, .a = b->cookie, .b = why });
}

static bool blk_serving(const struct blk *b) { return !load_acquire(b->stopped) && !load_acquire(b->leaving); }

/* Takes the next request into b->request. False: there is none, and the front end will notify when there is; or the ring is
 * bad, and the device stopped. */
static bool blk_take(struct blk *b)
{
    struct blkif_request raw;
    int rc = io_ring_next(&b->ring, &raw);
    if (rc == 0 && (rc = io_ring_final_check(&b->ring)) > 0)
        rc = io_ring_next(&b->ring, &raw);
    if (rc < 0)
        blk_stop(b, XL_BLK_BAD_RING);
    if (rc <= 0)
        return false;
    blk_request_parse(&b->disk, &raw, &b->request);
    return true;
}

/* Does b->request and puts its response on the ring, not yet visible. */
static void blk_answer(struct blk *b)
{
    struct host *h = b->host;
    struct blk_request *q = &b->request;
    blk_request_execute(&b->disk, q);

    struct blkif_response response;
    memset(&response, 0, sizeof response);      /* padding too: the guest reads it */
    response.id = q->id;
    response.operation = q->op;
    response.status = q->status;
    io_ring_respond(&b->ring, &response, sizeof response);
    host_trace(h, TRACE_IO, b->front, 0, (u64)q->op << 56 | (q->sector & ~(0xfful << 56)), (u64)(s64)q->status);
}

static void blk_push(struct blk *b)
{
    if (io_ring_push(&b->ring)) {
        b->disk.stats.notifications++;
        evtchn_send(b->back, b->port);          /* an unbound or closed port drops it: the front end is gone */
    }
}

/* The host's counters get what `before` does not have yet. */
static void blk_count(struct blk *b, const struct xl_blk_stats *before)
{
    u64 *stats = b->host->stats;
    const struct xl_blk_stats *now = &b->disk.stats;
    atomic_add(&stats[STAT_blk_requests], now->requests - before->requests);
    atomic_add(&stats[STAT_blk_errors], now->errors - before->errors);
    atomic_add(&stats[STAT_blk_sectors], now->sectors_read - before->sectors_read +
                                         now->sectors_written - before->sectors_written);
}

/* Real clock, in the worker: all that is on the ring, then one notification; but fast answers do not wait for slow ones, and
 * after a ring full the other disks have their turn. */
static bool blk_run(struct host *h, void *dev)
{
    struct blk *b = dev;
    struct xl_blk_stats before = b->disk.stats;
    u64 since = 0;
    u32 left = b->ring.nr_slots;

    while (left && blk_serving(b) && blk_take(b)) {
        u64 now = host_now(h);
        if (since && (now - since > BATCH_NS || blk_request_latency(&b->request) > BATCH_NS)) {
            blk_push(b);
            since = 0;
        }
        blk_answer(b);
        if (!since)
            since = now;
        left--;
    }
    blk_push(b);
    blk_count(b, &before);
    return left == 0;
}

/* ---- virtual clock: a timer in place of a worker ------------------------------------------------------------------ */

static void blk_arm(struct blk *b, u64 delay)
{
    if (timer_set(b->host, &b->timer, 0, host_now(b->host) + delay))
        blk_stop(b, XL_BLK_NO_MEMORY);
}

static void blk_timer(struct host *h, struct timer *t)
{
    struct blk *b = t->data;
    struct xl_blk_stats before = b->disk.stats;
    if (b->busy) {
        b->busy = false;
        blk_answer(b);
        blk_push(b);
        blk_count(b, &before);
    }
    if (!blk_serving(b) || !blk_take(b))
        return;
    b->busy = true;
    blk_arm(b, blk_request_latency(&b->request));
}

/* ---- life cycle -------------------------------------------------------------------------------------------------- */

/* Domain 0's port was notified (evtchn_consumer_fn: a port lock is held). */
static void blk_notified(struct host *h, void *data)
{
    struct blk *b = data;
    if (h->clock.kind == CLOCK_REAL)
        io_kick(h, b->id);
    else if (!b->busy && !timer_pending(&b->timer) && blk_serving(b))
        blk_arm(b, NOTICE_NS);
}

static bool config_valid(const struct xl_blk_config *c)
{
    return c->kind <= XL_BLK_RAM && c->sectors && c->sectors <= (u64)INT64_MAX / 512 &&
           c->nr_ring_pages && !(c->nr_ring_pages & (c->nr_ring_pages - 1)) &&
           c->nr_ring_pages <= 1 << XL_BLK_MAX_RING_PAGE_ORDER &&
           !(c->flags & ~(u32)(XL_BLK_READONLY | XL_BLK_NO_DISCARD));
}

STATIC_ASSERT(1 << XL_BLK_MAX_RING_PAGE_ORDER == IO_RING_MAX_PAGES);

int xl_blk_attach(struct host *h, const struct xl_blk_config *c)
{
    int rc = -XEN_EINVAL;
    if (!config_valid(c))
        return rc;
    struct blk *b = arena_alloc(&h->arena, sizeof *b);
    if (!b)
        return -XEN_ENOMEM;
    b->host = h;
    b->front = c->front;
    b->port = c->port;
    b->cookie = c->cookie;
    timer_init(&b->timer, blk_timer, b);

    rc = -XEN_ESRCH;
    b->back = domain_get(h, 0);
    if (!b->back)
        goto no_domain;
    b->disk = (struct blk_disk){ .host = h, .back = b->back, .front = c->front, .flags = c->flags, .sectors = c->sectors };
    b->disk.backing = blk_backing_open(c, &rc);
    if (!b->disk.backing)
        goto no_backing;
    rc = io_ring_attach(&b->ring, h, b->back, c->front, c->ring_ref, c->nr_ring_pages, sizeof(struct blkif_request));
    if (rc)
        goto no_ring;
    b->disk.stats.nr_slots = b->ring.nr_slots;
    b->id = rc = io_attach(h, blk_run, b, b->disk.backing, blk_backing_close);
    if (rc < 0)
        goto no_slot;
    rc = evtchn_set_consumer(b->back, b->port, blk_notified, b);
    if (rc)
        goto no_port;
    blk_notified(h, b);         /* what the front end put on the ring before it could notify us */
    return b->id;

no_port:
    io_detach(h, b->id);      /* closes the backing */
    io_ring_detach(&b->ring);
    goto no_backing;
no_slot:
    io_ring_detach(&b->ring);
no_ring:
    blk_backing_close(b->disk.backing);
no_backing:
    domain_put(b->back);
no_domain:
    arena_free(&h->arena, b, sizeof *b);
    return rc;
}

static void blk_detach(struct blk *b)
{
    struct host *h = b->host;
    evtchn_set_consumer(b->back, b->port, NULL, NULL);
    store_release(b->leaving, 1);
    timer_kill(h, &b->timer);
    io_detach(h, b->id);
    io_ring_detach(&b->ring);
    domain_put(b->back);
    arena_free(&h->arena, b, sizeof *b);
}

int xl_blk_detach(struct host *h, s32 id)
{
    struct blk *b = io_device(h, id, blk_run);
    if (!b)
        return -XEN_ENOENT;
    blk_detach(b);
    return 0;
}

int xl_blk_stats(struct host *h, s32 id, struct xl_blk_stats *out)
{
    const struct blk *b = io_device(h, id, blk_run);
    if (!b)
        return -XEN_ENOENT;
    *out = b->disk.stats;
    out->stopped = load_acquire(b->stopped);
    return 0;
}

void blk_shutdown(struct host *h)
{
    u32 slot = 0;
    io_stop(h);
    for (struct blk *b; (b = io_device_next(h, blk_run, &slot));)
        blk_detach(b);
    io_free(h);
}
