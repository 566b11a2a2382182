/* See ring.h. */
#include "io/ring.h"

#include <string.h>

#include "hv/host.h"
#include "xen/io/ring.h"

static struct xen_sring_hdr *header(const struct io_ring *r) { return (struct xen_sring_hdr *)r->page[0]; }

/* How far the requests run ahead of the responses. Honest front ends have at most a ring full under way. */
static int unconsumed(const struct io_ring *r)
{
    u32 prod = load_acquire(header(r)->req_prod);
    if (unlikely(prod - r->rsp_prod > r->nr_slots))
        return -XEN_EIO;
    return (s32)(prod - r->req_cons) > 0;       /* it may also have gone back: nothing new then */
}

/* Copies between a buffer and n bytes of the slot with (free-running) index `idx`, piece by piece where pages meet. */
static void slot_copy(struct io_ring *r, u32 idx, void *buf, u32 n, bool out)
{
    u32 at = XEN_RING_HEADER_SIZE + (idx & (r->nr_slots - 1)) * r->slot_size;
    for (u8 *p = buf; n;) {
        u32 page = at / PAGE_SIZE, offset = at % PAGE_SIZE, part = n < PAGE_SIZE - offset ? n : PAGE_SIZE - offset;
        if (out) {
            memcpy(r->page[page] + offset, p, part);
            frame_mark_dirty(&r->host->machine, r->mfn[page]);
        } else {
            memcpy(p, r->page[page] + offset, part);
        }
        at += part, p += part, n -= part;
    }
    __asm__ volatile("" ::: "memory");          /* the copy is made here, once, whatever the compiler sees around it */
}

int io_ring_attach(struct io_ring *r, struct host *h, struct domain *back, u16 front, const u32 *grefs, u32 nr_pages,
                   u32 slot_size)
{
    *r = (struct io_ring){ .host = h, .back = back, .front = front, .slot_size = slot_size };
    if (nr_pages < 1 || nr_pages > IO_RING_MAX_PAGES || slot_size == 0)
        return -XEN_EINVAL;
    u32 fit = (nr_pages * PAGE_SIZE - XEN_RING_HEADER_SIZE) / slot_size;
    if (fit == 0)
        return -XEN_EINVAL;
    r->nr_slots = 1u << (31 - __builtin_clz(fit));

    for (; r->nr_pages < nr_pages; r->nr_pages++) {
        u32 i = r->nr_pages;
        r->gref[i] = grefs[i];
        if (grant_io_begin(h, back, front, grefs[i], false, &r->mfn[i]) != GNTST_okay)
            goto bad_grant;
        r->page[i] = frame_write_begin(h, r->mfn[i], NULL);
        if (!r->page[i]) {
            grant_io_end(h, back, front, grefs[i], false, r->mfn[i]);
            goto bad_grant;
        }
    }
    r->req_cons = r->rsp_prod = r->rsp_pushed = load_acquire(header(r)->rsp_prod);
    if (unconsumed(r) < 0) {
        io_ring_detach(r);
        return -XEN_EIO;
    }
    return 0;

bad_grant:
    io_ring_detach(r);
    return -XEN_EINVAL;
}

void io_ring_detach(struct io_ring *r)
{
    while (r->nr_pages) {
        u32 i = --r->nr_pages;
        frame_write_end(r->host, r->mfn[i]);
        grant_io_end(r->host, r->back, r->front, r->gref[i], false, r->mfn[i]);
    }
}

int io_ring_next(struct io_ring *r, void *request)
{
    int rc = unconsumed(r);
    if (rc > 0)
        slot_copy(r, r->req_cons++, request, r->slot_size, false);
    return rc;
}

int io_ring_final_check(struct io_ring *r)
{
    int rc = unconsumed(r);
    if (rc)
        return rc;
    write_once(header(r)->req_event, r->req_cons + 1);
    frame_mark_dirty(&r->host->machine, r->mfn[0]);
    smp_mb();                   /* the wish is visible before we look: else the request and the notification could both be missed */
    return unconsumed(r);
}

void io_ring_respond(struct io_ring *r, const void *response, u32 n)
{
    slot_copy(r, r->rsp_prod++, (void *)response, n, true);
}

bool io_ring_push(struct io_ring *r)
{
    struct xen_sring_hdr *ring = header(r);
    u32 old = r->rsp_pushed, new = r->rsp_prod;
    if (new == old)
        return false;
    store_release(ring->rsp_prod, new);
    r->rsp_pushed = new;
    frame_mark_dirty(&r->host->machine, r->mfn[0]);
    smp_mb();
    return (u32)(new - read_once(ring->rsp_event)) < (u32)(new - old);
}
