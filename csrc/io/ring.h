/* The back end's side of a shared ring (xen/io/ring.h), on one granted page or several.
 *
 * Owns: struct io_ring: the granted pages and the private indices. Called by: data paths of io/. Lock: none, a ring belongs to
 * whoever runs its device.
 *
 * The guest can change every byte at any time. Shared indices are therefore only ever compared with the private ones, requests
 * are copied out once, and what a shared producer index claims beyond the ring's size is an overrun, after which a device
 * serves the ring no more. Pages of a ring need not be neighbours, so a slot may stretch over two of them.
 */
#ifndef XL_IO_RING_H
#define XL_IO_RING_H

#include "base/types.h"

struct domain;
struct host;

enum { IO_RING_MAX_PAGES = 4 };

struct io_ring {
    struct host *host;
    struct domain *back;        /* who maps the grants */
    u16 front;
    u16 nr_pages;
    u32 slot_size, nr_slots;    /* bytes; power of two */
    u32 req_cons, rsp_prod;     /* private: only published copies of them are in the page */
    u32 rsp_pushed;             /* what was published last */
    u32 gref[IO_RING_MAX_PAGES], mfn[IO_RING_MAX_PAGES];
    u8 *page[IO_RING_MAX_PAGES];
};

/* Takes hold of the pages that `front` granted, and starts at the indices that stand there (a front end may attach a back end
 * to a ring in use). -EINVAL: a bad grant or number of pages; -EIO: more requests than slots. */
int io_ring_attach(struct io_ring *r, struct host *h, struct domain *back, u16 front, const u32 *grefs, u32 nr_pages,
                   u32 slot_size);
void io_ring_detach(struct io_ring *r);

/* Copies the next request (slot_size bytes) and consumes it. 1, 0: there is none, -EIO: the producer index is beyond the ring. */
int io_ring_next(struct io_ring *r, void *request);
/* Before sleeping: asks to be notified of the next request, then looks once more. As io_ring_next, without consuming. */
int io_ring_final_check(struct io_ring *r);
/* Puts a response of n bytes into the next slot; not visible until pushed. At most one for each request consumed. */
void io_ring_respond(struct io_ring *r, const void *response, u32 n);
/* Publishes the responses. True: the front end asked to be notified. */
bool io_ring_push(struct io_ring *r);

#endif
