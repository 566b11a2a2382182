/* See frame.h. Type changes are in frame_type.c. */
#define _GNU_SOURCE
#include "machine/frame.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hv/host.h"

enum {
    FIRST_MFN = 256,                    /* the low 1 MiB is the PC's ROM and MMIO hole: DOMID_IO, never RAM */
    M2P_PER_PAGE = PAGE_SIZE / sizeof(u64),
};

static void *map_lazy(u64 bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static u64 m2p_bytes(const struct machine *m) { return ((u64)m->nr_frames * sizeof(u64) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1ul); }

int machine_init(struct machine *m, u64 bytes)
{
    *m = (struct machine){ .memfd = -1, .first_mfn = FIRST_MFN };
    u64 n = bytes / PAGE_SIZE + FIRST_MFN;
    if (bytes < PAGE_SIZE || n > 0xfffffffful)
        return -XEN_EINVAL;
    m->nr_frames = (u32)n;

    m->memfd = memfd_create("xenlike-ram", MFD_CLOEXEC);
    if (m->memfd < 0 || ftruncate(m->memfd, (off_t)(n * PAGE_SIZE)))
        goto fail;
    m->ram = mmap(NULL, n * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->memfd, 0);
    if (m->ram == MAP_FAILED) {
        m->ram = NULL;
        goto fail;
    }
    m->frames = map_lazy(n * sizeof(struct frame));
    m->m2p = map_lazy(m2p_bytes(m));
    m->dirty = map_lazy(n);
    m->codemap = (struct codemap){ .base = m->ram, .pages = n, .lines = map_lazy(n * sizeof(u64)), .generation = map_lazy(n * sizeof(u32)) };
    if (!m->frames || !m->m2p || !m->dirty || !m->codemap.lines || !m->codemap.generation)
        goto fail;

    for (u32 mfn = 0; mfn < FIRST_MFN; mfn++)
        m->frames[mfn].owner = DOMID_IO;
    m->heap.fresh = FIRST_MFN;
    m->heap.nr_free = m->nr_frames - FIRST_MFN;
    return 0;

fail:
    machine_destroy(m);
    return -XEN_ENOMEM;
}

void machine_destroy(struct machine *m)
{
    u64 n = m->nr_frames;
    if (m->ram)
        munmap(m->ram, n * PAGE_SIZE);
    if (m->frames)
        munmap(m->frames, n * sizeof(struct frame));
    if (m->m2p)
        munmap(m->m2p, m2p_bytes(m));
    if (m->dirty)
        munmap(m->dirty, n);
    if (m->codemap.lines)
        munmap(m->codemap.lines, n * sizeof(u64));
    if (m->codemap.generation)
        munmap(m->codemap.generation, n * sizeof(u32));
    if (m->memfd >= 0)
        close(m->memfd);
    *m = (struct machine){ .memfd = -1 };
}

/* ---- allocation -------------------------------------------------------------------------------------------------- */

/* Makes the M2P valid for mfns below `end`: whole pages of "no pfn" as frames come into use. [heap.lock] */
static void m2p_extend(struct machine *m, u32 end)
{
    u32 limit = (end + M2P_PER_PAGE - 1) / M2P_PER_PAGE * M2P_PER_PAGE;
    if (limit <= m->m2p_valid)
        return;
    memset(&m->m2p[m->m2p_valid], 0xff, (limit - m->m2p_valid) * sizeof(u64));
    store_release(m->m2p_valid, limit);
}

static void list_add(struct host *h, struct domain *d, struct frame *f)
{
    struct machine *m = &h->machine;
    f->prev = 0;
    f->next = d->mm.pages;
    if (f->next)
        m->frames[f->next].prev = frame_mfn(m, f);
    d->mm.pages = frame_mfn(m, f);
    d->mm.tot_pages++;
}

/* [list_lock] */
static void list_del(struct host *h, struct domain *d, struct frame *f)
{
    struct machine *m = &h->machine;
    if (f->next)
        m->frames[f->next].prev = f->prev;
    if (f->prev)
        m->frames[f->prev].next = f->next;
    else
        d->mm.pages = f->next;
    d->mm.tot_pages--;
}

static void heap_return(struct machine *m, const u32 *mfns, u32 n)
{
    spin_lock(&m->heap.lock);
    for (u32 i = 0; i < n; i++) {
        struct frame *f = &m->frames[mfns[i]];
        f->owner = DOMID_INVALID;
        f->next = m->heap.free_head;
        f->prev = 0;
        m->heap.free_head = mfns[i];
    }
    m->heap.nr_free += n;
    spin_unlock(&m->heap.lock);
}

/* d may own n frames more. [list_lock] */
static bool has_room(const struct domain *d, u32 n)
{
    return n <= d->mm.max_pages && d->mm.tot_pages <= d->mm.max_pages - n && !d->dying;
}

int frames_alloc(struct host *h, struct domain *d, u32 n, bool special, u32 *mfns)
{
    struct machine *m = &h->machine;

    if (!special) {                     /* refused early, before frames are taken; what counts is the look under the same lock below */
        spin_lock(&d->mm.list_lock);
        bool room = has_room(d, n);
        spin_unlock(&d->mm.list_lock);
        if (!room)
            return -XEN_ENOMEM;
    }

    u64 freed_at = 0;                   /* newest tlb_stamp among reused frames */
    spin_lock(&m->heap.lock);
    if (m->heap.nr_free < n) {
        spin_unlock(&m->heap.lock);
        return -XEN_ENOMEM;
    }
    for (u32 i = 0; i < n; i++) {
        if (m->heap.free_head) {
            mfns[i] = m->heap.free_head;
            struct frame *f = &m->frames[mfns[i]];
            m->heap.free_head = f->next;
            if (f->tlb_stamp > freed_at)
                freed_at = f->tlb_stamp;
        } else {
            mfns[i] = m->heap.fresh++;
        }
    }
    m->heap.nr_free -= n;
    m2p_extend(m, m->heap.fresh);
    spin_unlock(&m->heap.lock);

    if (freed_at)
        tlb_shootdown_since(h, freed_at);
    for (u32 i = 0; i < n; i++) {
        struct frame *f = &m->frames[mfns[i]];
        if (f->count_info & PGC_TOUCHED) {      /* another domain's bytes: the new owner must not see them */
            memset(mfn_ptr(m, mfns[i]), 0, PAGE_SIZE);
            frame_mark_dirty(m, mfns[i]);
        }
        *f = (struct frame){ .owner = d->id, .tlb_stamp = f->tlb_stamp };
        if (special)
            f->type_info = ((u64)PGT_writable_page << PGT_TYPE_SHIFT) | PGT_VALIDATED | 1;
    }

    if (!special) {                     /* onto the list before anybody can find, use and free them */
        spin_lock(&d->mm.list_lock);
        bool room = has_room(d, n);
        for (u32 i = 0; room && i < n; i++)
            list_add(h, d, &m->frames[mfns[i]]);
        spin_unlock(&d->mm.list_lock);
        if (!room) {                    /* lost the race against another allocation or against death */
            heap_return(m, mfns, n);
            return -XEN_ENOMEM;
        }
    }
    atomic_add(&d->refcount, n);
    for (u32 i = 0; i < n; i++)
        store_release(m->frames[mfns[i]].count_info, PGC_ALLOCATED | (special ? PGC_SPECIAL : 0) | 1);
    return 0;
}

static void frame_free(struct host *h, u32 mfn)
{
    struct machine *m = &h->machine;
    struct frame *f = &m->frames[mfn];
    struct domain *owner = h->domain_by_id[f->owner];

    if (!(f->count_info & PGC_SPECIAL)) {       /* given up or not, it counted as long as somebody used it (as on Xen) */
        spin_lock(&owner->mm.list_lock);
        list_del(h, owner, f);
        spin_unlock(&owner->mm.list_lock);
    }
    f->tlb_stamp = load_acquire(h->tlb_clock);  /* TLBs are made to forget the frame before its next owner gets it */
    m2p_set(m, mfn, INVALID_M2P);
    f->type_info = 0;
    atomic_and(&f->count_info, PGC_TOUCHED);    /* a vCPU that still has it in its TLB may be setting the bit just now */
    f->linear = 0;
    heap_return(m, &mfn, 1);
    domain_put(owner);                  /* each frame kept its owner's struct alive */
}

/* ---- references -------------------------------------------------------------------------------------------------- */

bool get_page(struct host *h, u64 mfn, const struct domain *d)
{
    struct machine *m = &h->machine;
    if (unlikely(!mfn_valid(m, mfn)))
        return false;
    struct frame *f = &m->frames[mfn];
    u64 old = load_acquire(f->count_info);
    do {
        u64 count = old & PGC_COUNT_MASK;
        if (unlikely(count == 0 || count >= PGC_COUNT_MASK - 1 || f->owner != d->id))
            return false;
    } while (!cmpxchg(&f->count_info, &old, old + 1));
    /* The frame may have been freed and handed to another domain between the owner check and the count. */
    if (unlikely(read_once(f->owner) != d->id)) {
        put_page(h, mfn);
        return false;
    }
    return true;
}

bool get_page_any(struct host *h, u64 mfn)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    u64 old = load_acquire(f->count_info);
    do {
        if (unlikely((old & PGC_COUNT_MASK) == 0 || (old & PGC_COUNT_MASK) >= PGC_COUNT_MASK - 1))
            return false;
    } while (!cmpxchg(&f->count_info, &old, old + 1));
    return true;
}

void put_page(struct host *h, u64 mfn)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    u64 old = atomic_sub(&f->count_info, 1);
    if (unlikely((old & PGC_COUNT_MASK) == 1))
        frame_free(h, (u32)mfn);
}

bool frame_release_allocation(struct host *h, u64 mfn)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    u64 old = load_acquire(f->count_info);
    do {
        if (!(old & PGC_ALLOCATED))
            return false;
    } while (!cmpxchg(&f->count_info, &old, old & ~PGC_ALLOCATED));
    put_page(h, mfn);
    return true;
}

/* ---- access from host code --------------------------------------------------------------------------------------- */

void *frame_write_begin(struct host *h, u64 mfn, const struct domain *d)
{
    struct machine *m = &h->machine;
    if (d ? !get_page(h, mfn, d) : !(mfn_valid(m, mfn) && get_page_any(h, mfn)))
        return NULL;
    if (get_page_type(h, mfn, PGT_writable_page)) {
        put_page(h, mfn);
        return NULL;
    }
    struct frame *f = &m->frames[mfn];
    if (!(read_once(f->count_info) & PGC_TOUCHED))
        atomic_or(&f->count_info, PGC_TOUCHED);
    frame_mark_dirty(m, mfn);
    return mfn_ptr(m, mfn);
}

void frame_write_end(struct host *h, u64 mfn)
{
    smp_mb();
    codemap_wrote_page(&h->machine.codemap, mfn, ~0ul);        /* again, behind the writes (machine/codemap.h, rule 2) */
    put_page_and_type(h, mfn);
}

const void *frame_read_begin(struct host *h, u64 mfn, const struct domain *d)
{
    struct machine *m = &h->machine;
    if (d ? !get_page(h, mfn, d) : !(mfn_valid(m, mfn) && get_page_any(h, mfn)))
        return NULL;
    return mfn_ptr(m, mfn);
}

void frame_read_end(struct host *h, u64 mfn)
{
    put_page(h, mfn);
}

u64 frame_digest(const struct machine *m, u64 mfn, u64 digest)
{
    if (!(m->frames[mfn].count_info & PGC_TOUCHED))
        return digest;
    const u64 *w = mfn_ptr(m, mfn);
    digest = digest_mix(digest, mfn);
    for (unsigned i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        digest = digest_mix(digest, w[i]);
    return digest;
}
