/* The data path of virtual disks: requests of a blkif ring, done on a file.
 *
 * Owns: struct blk, one a connected front end. Called by: Python's block back end, which has negotiated with the front end
 * through xenstore (xenlike/devices/block), by the I/O worker, by timers (virtual clock), by event channels.
 * Locks: none of its own. A device is run by one thread at a time (io/worker.h, or the only thread of a virtual clock); the lane
 * attaches and detaches. References and ports are taken under their owners' locks.
 *
 * Real clock: the worker does what it finds on the ring and notifies once. Virtual clock: a request is taken, and done when a
 * timer says that a disk would have done it; one at a time, so that runs repeat.
 * cffi reads this file.
 */
#ifndef XL_IO_BLK_H
#define XL_IO_BLK_H

#include "base/types.h"

struct host;

enum xl_blk_kind {
    XL_BLK_FILE = 0,            /* a file or block device */
    XL_BLK_RAM = 1,             /* memory, zero at first and lost at the end: to measure rings without a disk */
};

enum {                          /* xl_blk_config.flags */
    XL_BLK_READONLY = 1,        /* writes and discards fail */
    XL_BLK_NO_DISCARD = 2,      /* discards are answered "not supported" */
};

enum {
    XL_BLK_MAX_RING_PAGE_ORDER = 2,
    XL_BLK_MAX_INDIRECT_SEGMENTS = 256,         /* what feature-max-indirect-segments may offer */
};

struct xl_blk_config {
    u64 sectors;                /* size in units of 512 bytes, at least 1 */
    u64 cookie;                 /* given back as lane_exit.a of EXIT_IO */
    u32 kind;                   /* enum xl_blk_kind */
    u32 flags;                  /* XL_BLK_* */
    s32 fd;                     /* XL_BLK_FILE: open descriptor; a duplicate is kept, the caller keeps this one */
    u32 port;                   /* domain 0's, bound to the front end's port */
    u16 front;                  /* the front end's domid */
    u16 nr_ring_pages;          /* 1, 2 or 4 */
    u32 ring_ref[4];            /* their grant references */
};

/* lane_exit.b of EXIT_IO: why a device has stopped serving its ring. It stays attached until Python detaches it. */
enum xl_blk_stop {
    XL_BLK_RUNNING = 0,
    XL_BLK_BAD_RING = 1,        /* the front end's producer index is beyond the ring */
    XL_BLK_NO_MEMORY = 2,       /* virtual clock: no room for a timer */
};

struct xl_blk_stats {
    u64 requests;               /* answered, errors included */
    u64 errors;                 /* answered with another status than OKAY */
    u64 reads, writes, flushes, discards;
    u64 sectors_read, sectors_written;
    u64 notifications;          /* sent to the front end */
    u32 stopped;                /* enum xl_blk_stop */
    u32 nr_slots;               /* of the ring */
};

/* Connects a front end's ring to a disk and begins to serve it. Returns an id >= 0 that is not used again soon, or -EINVAL
 * (configuration, port, or ring grants), -EIO (the ring's indices make no sense), -ESRCH (no domain 0), -EBADF, -ENOMEM,
 * -ENOSPC, -EAGAIN (no worker thread). */
int xl_blk_attach(struct host *h, const struct xl_blk_config *c);
/* Waits for the request under way, then lets go of ring, port and file. Also right when the front end is dead or dying; to be
 * called before the port is closed. -ENOENT: no such id. */
int xl_blk_detach(struct host *h, s32 id);
int xl_blk_stats(struct host *h, s32 id, struct xl_blk_stats *out);        /* -ENOENT */

#ifndef XL_CDEF
/* Host destruction: stops the worker, detaches every disk. Domains must still be there, or be zombies at most. */
void blk_shutdown(struct host *h);
#endif

#endif
