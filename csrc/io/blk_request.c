/* See blk_request.h. */
#define _GNU_SOURCE
#include "io/blk_request.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hv/host.h"

enum {
    SECTOR_SHIFT = 9,
    SECTORS_PER_PAGE = PAGE_SIZE >> SECTOR_SHIFT,
    MAX_SEGMENTS = XL_BLK_MAX_INDIRECT_SEGMENTS,
    REFUSAL_NS = 2000,          /* virtual clock: for what no row below knows */
};

STATIC_ASSERT(MAX_SEGMENTS * sizeof(struct blkif_request_segment) <= PAGE_SIZE);       /* one indirect page holds them all */

/* ---- operations: one row each ------------------------------------------------------------------------------------ */

typedef s16 blk_fn(struct blk_disk *d, const struct blk_request *q);
static blk_fn disk_read, disk_write, disk_write_through, disk_discard;

static const struct blk_op {
    blk_fn *fn;                 /* NULL: not supported */
    bool segments;              /* carries data segments */
    bool empty_ok;              /* and may have none */
    bool writes;                /* refused by a read-only disk, unless empty */
    bool indirect_ok;           /* may stand inside an indirect request */
    u32 base_ns, sector_ns;     /* virtual clock: how long it takes */
    u8 counter;                 /* offset in struct xl_blk_stats */
} ops[] = {
#define COUNT(name) .counter = offsetof(struct xl_blk_stats, name)
    [BLKIF_OP_READ] =            { disk_read, .segments = true, .indirect_ok = true,
                                   .base_ns = 20000, .sector_ns = 250, COUNT(reads) },
    [BLKIF_OP_WRITE] =           { disk_write, .segments = true, .writes = true, .indirect_ok = true,
                                   .base_ns = 20000, .sector_ns = 250, COUNT(writes) },
    [BLKIF_OP_WRITE_BARRIER] =   { disk_write_through, .segments = true, .empty_ok = true, .writes = true,
                                   .base_ns = 200000, .sector_ns = 250, COUNT(flushes) },
    [BLKIF_OP_FLUSH_DISKCACHE] = { disk_write_through, .segments = true, .empty_ok = true, .writes = true,
                                   .base_ns = 100000, .sector_ns = 250, COUNT(flushes) },
    [BLKIF_OP_DISCARD] =         { disk_discard, .writes = true, .base_ns = 50000, COUNT(discards) },
#undef COUNT
};

static const struct blk_op *op_row(u8 op)
{
    return op < ARRAY_SIZE(ops) && ops[op].fn ? &ops[op] : NULL;
}

/* ---- from ring slot to struct blk_request ------------------------------------------------------------------------ */

/* Fills q->seg from the page of segments that an indirect request points at. */
static bool copy_indirect(struct blk_disk *d, u32 gref, struct blk_request *q)
{
    u32 mfn;
    if (grant_io_begin(d->host, d->back, d->front, gref, true, &mfn) != GNTST_okay)
        return false;
    const void *page = frame_read_begin(d->host, mfn, NULL);
    if (page) {
        memcpy(q->seg, page, q->nr_segs * sizeof q->seg[0]);
        __asm__ volatile("" ::: "memory");      /* as in io/ring.c: checked below is what was copied */
        frame_read_end(d->host, mfn);
    }
    grant_io_end(d->host, d->back, d->front, gref, true, mfn);
    return page != NULL;
}

/* Checks a request's segments and adds up its length. */
static bool segments_valid(struct blk_request *q)
{
    q->nr_sectors = 0;
    for (unsigned i = 0; i < q->nr_segs; i++) {
        const struct blkif_request_segment *s = &q->seg[i];
        if (s->first_sect > s->last_sect || s->last_sect >= SECTORS_PER_PAGE)
            return false;
        q->nr_sectors += s->last_sect - s->first_sect + 1u;
    }
    return true;
}

static s16 parse_segments(const struct blkif_request *raw, const struct blk_op *op, struct blk_request *q)
{
    q->nr_segs = raw->nr_segments;
    if (q->nr_segs > BLKIF_MAX_SEGMENTS_PER_REQUEST || (q->nr_segs == 0 && !op->empty_ok))
        return BLKIF_RSP_ERROR;
    memcpy(q->seg, raw->seg, q->nr_segs * sizeof q->seg[0]);
    return segments_valid(q) ? BLKIF_RSP_OKAY : BLKIF_RSP_ERROR;
}

static s16 parse_indirect(struct blk_disk *d, const struct blkif_request_indirect *raw, struct blk_request *q)
{
    const struct blk_op *op = op_row(raw->indirect_op);
    q->op = raw->indirect_op;   /* what front ends expect to see echoed */
    if (!op || !op->indirect_ok)
        return BLKIF_RSP_ERROR;
    q->nr_segs = raw->nr_segments;
    if (q->nr_segs == 0 || q->nr_segs > MAX_SEGMENTS || !copy_indirect(d, raw->indirect_grefs[0], q))
        return BLKIF_RSP_ERROR;
    return segments_valid(q) ? BLKIF_RSP_OKAY : BLKIF_RSP_ERROR;
}

void blk_request_parse(struct blk_disk *d, const struct blkif_request *raw, struct blk_request *q)
{
    const struct blkif_request_indirect *indirect = (const void *)raw;
    const struct blkif_request_discard *discard = (const void *)raw;
    const struct blk_op *op = op_row(raw->operation);

    q->op = raw->operation;
    q->id = raw->id;            /* id and sector stand at the same place in all three layouts */
    q->sector = raw->sector_number;
    q->nr_sectors = q->nr_segs = 0;
    if (raw->operation == BLKIF_OP_INDIRECT) {
        q->status = parse_indirect(d, indirect, q);
        op = op_row(q->op);
    } else if (!op) {
        q->status = BLKIF_RSP_EOPNOTSUPP;
    } else if (op->segments) {
        q->status = parse_segments(raw, op, q);
    } else {
        q->nr_sectors = discard->nr_sectors;
        q->status = d->flags & XL_BLK_NO_DISCARD || discard->flag & BLKIF_DISCARD_SECURE ? BLKIF_RSP_EOPNOTSUPP :
                    q->nr_sectors ? BLKIF_RSP_OKAY : BLKIF_RSP_ERROR;
    }
    if (q->status != BLKIF_RSP_OKAY || q->nr_sectors == 0)
        return;
    if (q->nr_sectors > d->sectors || q->sector > d->sectors - q->nr_sectors)
        q->status = BLKIF_RSP_ERROR;
    else if (op->writes && d->flags & XL_BLK_READONLY)
        q->status = BLKIF_RSP_ERROR;
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

struct blk_pages {              /* a request's guest pages while they are held */
    unsigned n;
    u32 mfn[MAX_SEGMENTS];
    struct iovec iov[MAX_SEGMENTS];
};

/* to_guest: the pages are written to. */
static void pages_drop(struct blk_disk *d, const struct blk_request *q, struct blk_pages *p, bool to_guest)
{
    while (p->n) {
        unsigned i = --p->n;
        if (to_guest)
            frame_write_end(d->host, p->mfn[i]);
        else
            frame_read_end(d->host, p->mfn[i]);
        grant_io_end(d->host, d->back, d->front, q->seg[i].gref, !to_guest, p->mfn[i]);
    }
}

static bool pages_take(struct blk_disk *d, const struct blk_request *q, struct blk_pages *p, bool to_guest)
{
    for (p->n = 0; p->n < q->nr_segs; p->n++) {
        unsigned i = p->n;
        const struct blkif_request_segment *s = &q->seg[i];
        if (grant_io_begin(d->host, d->back, d->front, s->gref, !to_guest, &p->mfn[i]) != GNTST_okay)
            break;
        u8 *page = to_guest ? frame_write_begin(d->host, p->mfn[i], NULL)
                            : (u8 *)frame_read_begin(d->host, p->mfn[i], NULL);
        if (!page) {
            grant_io_end(d->host, d->back, d->front, s->gref, !to_guest, p->mfn[i]);
            break;
        }
        p->iov[i].iov_base = page + (s->first_sect << SECTOR_SHIFT);
        p->iov[i].iov_len = (size_t)(s->last_sect - s->first_sect + 1) << SECTOR_SHIFT;
    }
    if (p->n == q->nr_segs)
        return true;
    pages_drop(d, q, p, to_guest);
    return false;
}

static bool ram_rw(const struct blk_backing *f, struct iovec *iov, unsigned n, u64 at, bool to_guest)
{
    for (; n; n--, iov++) {
        if (to_guest)
            memcpy(iov->iov_base, f->ram + at, iov->iov_len);
        else
            memcpy(f->ram + at, iov->iov_base, iov->iov_len);
        at += iov->iov_len;
    }
    return true;
}

/* Reads or writes all of iov at byte `at`, however many calls it takes. Consumes iov. */
static bool file_rw(const struct blk_backing *f, struct iovec *iov, unsigned n, u64 at, bool to_guest)
{
    while (n) {
        ssize_t done = to_guest ? preadv(f->fd, iov, (int)n, (off_t)at) : pwritev(f->fd, iov, (int)n, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 || (done == 0 && !to_guest))
            return false;
        if (done == 0) {
            /* The file ends here. Where it was never longer, the disk is larger than its file and reads as zeros; where it
             * was, somebody has cut the file and the data is lost, which the guest must hear. */
            if (at < f->file_bytes)
                return false;
            for (; n; n--, iov++)
                memset(iov->iov_base, 0, iov->iov_len);
            return true;
        }
        at += (u64)done;
        for (; n && (size_t)done >= iov->iov_len; n--, iov++)
            done -= (ssize_t)iov->iov_len;
        if (n) {
            iov->iov_base = (u8 *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return true;
}

static s16 disk_transfer(struct blk_disk *d, const struct blk_request *q, bool to_guest)
{
    struct blk_pages p;
    if (!pages_take(d, q, &p, to_guest))
        return BLKIF_RSP_ERROR;
    const struct blk_backing *f = d->backing;
    bool ok = (f->fd < 0 ? ram_rw : file_rw)(f, p.iov, p.n, q->sector << SECTOR_SHIFT, to_guest);
    pages_drop(d, q, &p, to_guest);
    if (!ok)
        return BLKIF_RSP_ERROR;
    *(to_guest ? &d->stats.sectors_read : &d->stats.sectors_written) += q->nr_sectors;
    return BLKIF_RSP_OKAY;
}

static s16 disk_sync(struct blk_disk *d)
{
    int rc = 0;
    if (d->backing->fd >= 0)
        while ((rc = fdatasync(d->backing->fd)) < 0 && errno == EINTR)
            ;
    return rc ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY;
}

static s16 disk_read(struct blk_disk *d, const struct blk_request *q) { return disk_transfer(d, q, true); }
static s16 disk_write(struct blk_disk *d, const struct blk_request *q) { return disk_transfer(d, q, false); }

/* Flush and barrier alike: what was acknowledged before is on the disk before this request's data, and all of it before the
 * answer. A flush with data is more than front ends need; a barrier is exactly this. */
static s16 disk_write_through(struct blk_disk *d, const struct blk_request *q)
{
    s16 status = BLKIF_RSP_OKAY;
    if (q->nr_segs) {
        status = disk_sync(d);
        if (status == BLKIF_RSP_OKAY)
            status = disk_transfer(d, q, false);
    }
    return status == BLKIF_RSP_OKAY ? disk_sync(d) : status;
}

static s16 disk_discard(struct blk_disk *d, const struct blk_request *q)
{
    const struct blk_backing *f = d->backing;
    u64 at = q->sector << SECTOR_SHIFT, bytes = q->nr_sectors << SECTOR_SHIFT;
    if (f->fd < 0) {
        memset(f->ram + at, 0, bytes);
        return BLKIF_RSP_OKAY;
    }
    while (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes)) {
        if (errno == EINTR)
            continue;
        return errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
    }
    return BLKIF_RSP_OKAY;
}

/* ---- the request as a whole -------------------------------------------------------------------------------------- */

void blk_request_execute(struct blk_disk *d, struct blk_request *q)
{
    const struct blk_op *op = op_row(q->op);
    if (q->status == BLKIF_RSP_OKAY)
        q->status = op->fn(d, q);
    d->stats.requests++;
    if (op)
        (*(u64 *)((u8 *)&d->stats + op->counter))++;
    if (q->status != BLKIF_RSP_OKAY)
        d->stats.errors++;
}

u64 blk_request_latency(const struct blk_request *q)
{
    const struct blk_op *op = op_row(q->op);
    return op && q->status == BLKIF_RSP_OKAY ? op->base_ns + q->nr_sectors * op->sector_ns : REFUSAL_NS;
}

/* ---- backing ----------------------------------------------------------------------------------------------------- */

void blk_backing_close(void *p)
{
    struct blk_backing *f = p;
    if (f->fd >= 0)
        close(f->fd);
    if (f->ram)
        munmap(f->ram, f->bytes);
    free(f);
}

struct blk_backing *blk_backing_open(const struct xl_blk_config *c, int *err)
{
    struct blk_backing *f = calloc(1, sizeof *f);
    *err = -XEN_ENOMEM;
    if (!f)
        return NULL;
    f->fd = -1;
    if (c->kind == XL_BLK_RAM) {
        f->bytes = c->sectors << SECTOR_SHIFT;
        f->ram = mmap(NULL, f->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->ram == MAP_FAILED)
            f->ram = NULL;
    } else {
        struct stat st;
        *err = -XEN_EBADF;
        f->fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 3);
        if (f->fd >= 0 && fstat(f->fd, &st) == 0)       /* a block device does not shrink: EOF is where it always was */
            f->file_bytes = S_ISREG(st.st_mode) ? (u64)st.st_size : 0;
        else if (f->fd >= 0)
            close(f->fd), f->fd = -1;
    }
    if (f->fd >= 0 || f->ram)
        return f;
    free(f);
    return NULL;
}

