/* One block request: from the bytes of a ring slot to the disk and a status.
 *
 * Owns: struct blk_request, and struct blk_disk: what requests are done on. Called by: blk.c only, one thread a disk at a time.
 * Lock: none.
 *
 * The guest's bytes are copied once (by io_ring_next; segments of indirect requests by blk_request_parse), the copy is checked,
 * and only the copy is used. Data moves between the file and the guest's frames directly, under grants that are held for
 * just as long.
 */
#ifndef XL_IO_BLK_REQUEST_H
#define XL_IO_BLK_REQUEST_H

#include "io/blk.h"
#include "xen/io/blkif.h"

struct domain;

/* A disk's part outside the arena. */
struct blk_backing {
    int fd;                     /* -1: RAM */
    u8 *ram;
    u64 bytes;                  /* size of `ram` */
    u64 file_bytes;             /* length of the file when it was attached */
};

struct blk_disk {
    struct host *host;
    struct domain *back;        /* who maps grants: domain 0 */
    u16 front;                  /* who granted */
    u32 flags;                  /* XL_BLK_* */
    u64 sectors;
    struct blk_backing *backing;
    struct xl_blk_stats stats;
};

/* All kinds of request are brought into this form. */
struct blk_request {
    u64 id, sector, nr_sectors;
    u8 op;                      /* BLKIF_OP_*, to be echoed; of an indirect request: the operation inside */
    s16 status;                 /* BLKIF_RSP_*; other than OKAY: refused already */
    u16 nr_segs;
    struct blkif_request_segment seg[XL_BLK_MAX_INDIRECT_SEGMENTS];
};

/* Fills q from a copied slot. All checks that need neither data nor file are made here; q->status says how they came out. */
void blk_request_parse(struct blk_disk *d, const struct blkif_request *raw, struct blk_request *q);
/* Does q unless it is refused already; sets q->status, counts. */
void blk_request_execute(struct blk_disk *d, struct blk_request *q);
/* Virtual clock: how long a disk takes for q, ns. */
u64 blk_request_latency(const struct blk_request *q);

/* NULL and *err: -EBADF, -ENOMEM. */
struct blk_backing *blk_backing_open(const struct xl_blk_config *c, int *err);
void blk_backing_close(void *backing);

#endif
