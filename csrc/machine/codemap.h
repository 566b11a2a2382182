/* Which memory holds code that a translator has translated, so that who writes there can say so.
 *
 * Owns: struct codemap. Used by: bt/ (claims lines, looks for news), and every writer of guest memory that does not go through a TLB's
 * write entry: x86/mem.c and paging.c, machine/mmu.c, frame_write_end and frame_mark_dirty, bare.c. Lock: codemap.lock, a leaf, around
 * every change of a page's word and generation together; both may be read without it.
 *
 * Rules. docs/engine.md, "Stores into code", has the argument that they suffice.
 * 1. The translator claims the lines it is about to translate, then compares the bytes it has translated with memory, behind a full
 *    barrier.
 * 2. A writer stores, then, behind a full barrier, tells (codemap_wrote). If one of the lines is claimed, the page's claims go, and
 *    generation and epoch move before that can be seen. Telling only before the store would not do: the line may be claimed, and the old
 *    bytes read, between.
 * 3. While a page has claims no TLB gets a write entry for it; the first claim of a generation does not count until every TLB that may
 *    have one was flushed (x86_ops.code_page): until then the page is not sealed, and whoever claims there sees to the flush himself.
 *    A writer in guest mode that found no claim when it began needs not tell: that flush waits until it has left guest mode.
 * 4. A translator looks at the epoch before it enters translated code, before it looks a block up, and behind every walk of page tables,
 *    which may grant a right to write that a loss of claims has set free; at the generations of its pages when the epoch has moved. Code
 *    that goes round in translated code does neither: a vCPU whose store took claims away makes the others come out
 *    (x86_ops.code_changed) before its next instruction. Other writers do not: it looks when its slice of instructions is over.
 * 5. Between a store and its telling an interpreter may run the new bytes, and would then meet the old ones in translated code: time would
 *    run backwards for the guest. So a vCPU's store is counted from before it happens until it is told (codemap_write_begin), and whoever
 *    goes from the interpreter to translated code waits until none is under way, then looks at the epoch. The wait is for a few
 *    instructions, in which nobody waits for anything.
 */
#ifndef XL_MACHINE_CODEMAP_H
#define XL_MACHINE_CODEMAP_H

#include "base/lock.h"
#include "base/types.h"

enum { CODEMAP_LINE_SHIFT = 6 };        /* 64 lines of 64 bytes a page: a word */
enum { CODEMAP_SEALED = 1, CODEMAP_GENERATION = 2 };    /* in generation: a flag; one loss of claims */

struct codemap {
    const u8 *base;
    u64 pages;
    u64 *lines;                 /* a word a page: the lines that are translated. [lock] */
    u32 *generation;            /* a word a page: how often its claims were taken away, and whether it is sealed now. [lock] */
    u32 epoch;                  /* how often any page's were. [lock] */
    u32 writing;                /* vCPUs' stores into pages with claims that have begun and are not told yet (rule 5). Of a CPU's first map only */
    spinlock_t lock;
    struct codemap *next;       /* other memory of the same CPU */
};

static inline u64 codemap_lines(u64 in_page, u64 n)
{
    u64 first = in_page >> CODEMAP_LINE_SHIFT, last = (in_page + n - 1) >> CODEMAP_LINE_SHIFT;
    return (~0ul >> (63 - (last > 63 ? 63 : last))) & (~0ul << first);
}

/* The map that has p, and in *page its page there; NULL: none. */
static inline struct codemap *codemap_find(struct codemap *m, const void *p, u64 *page)
{
    for (; m; m = m->next) {
        u64 n = (u64)((const u8 *)p - m->base) >> PAGE_SHIFT;
        if (n < m->pages) {
            *page = n;
            return m;
        }
    }
    return NULL;
}

static inline bool codemap_page_has(const struct codemap *m, u64 page) { return m->lines && read_once(m->lines[page]) != 0; }

/* The page at p holds translated code: no write entry for it. */
static inline bool codemap_has(struct codemap *m, const void *p)
{
    u64 page;
    m = codemap_find(m, p, &page);
    return m && codemap_page_has(m, page);
}

/* ---- translators --------------------------------------------------------------------------------------------------- */

static inline u32 codemap_generation(const struct codemap *m, u64 page)
{
    return load_acquire(m->generation[page]) & ~(u32)CODEMAP_SEALED;
}

/* Of all memory of a CPU. */
static inline u32 codemap_epoch(const struct codemap *m)
{
    u32 epoch = 0;
    for (; m; m = m->next)
        epoch += load_acquire(m->epoch);
    return epoch;
}

/* Claims lines of a page; *generation: the one that the claim belongs to. True: the page is sealed, so the claim counts. False: it does not until
 * the TLBs were flushed and codemap_seal was called. A full barrier. */
static inline bool codemap_claim(struct codemap *m, u64 page, u64 lines, u32 *generation)
{
    spin_lock(&m->lock);
    write_once(m->lines[page], m->lines[page] | lines);
    u32 now = m->generation[page];
    spin_unlock(&m->lock);
    smp_mb();
    *generation = now & ~(u32)CODEMAP_SEALED;
    return now & CODEMAP_SEALED;
}

static inline void codemap_seal(struct codemap *m, u64 page, u32 generation)
{
    spin_lock(&m->lock);
    if (m->generation[page] == generation)      /* else its claims were taken away meanwhile */
        write_once(m->generation[page], generation | CODEMAP_SEALED);
    spin_unlock(&m->lock);
}

static inline void codemap_wait_for_writers(const struct codemap *m)
{
    while (unlikely(m && load_acquire(m->writing)))
        cpu_relax();
}

/* ---- writers ------------------------------------------------------------------------------------------------------- */

static inline void codemap_write_begin(struct codemap *m) { atomic_add(&m->writing, 1u); }
static inline void codemap_write_end(struct codemap *m) { atomic_add(&m->writing, -1u); }

/* Bytes of these lines have changed, and a full barrier has followed. True: translations of the page have become invalid by this. */
static inline bool codemap_wrote_page(struct codemap *m, u64 page, u64 lines)
{
    if (likely(!codemap_page_has(m, page)) || !(read_once(m->lines[page]) & lines))
        return false;
    spin_lock(&m->lock);
    bool hit = m->lines[page] & lines;
    if (hit) {                          /* in this order: who sees no claims sees the rest, or is told of it by another CPU that does */
        write_once(m->generation[page], (m->generation[page] & ~(u32)CODEMAP_SEALED) + CODEMAP_GENERATION);
        store_release(m->epoch, m->epoch + 1);
        store_release(m->lines[page], 0);
    }
    spin_unlock(&m->lock);
    return hit;
}

/* The same of n bytes at p, which lie in one page. */
static inline bool codemap_wrote(struct codemap *m, const void *p, u64 n)
{
    u64 page;
    m = codemap_find(m, p, &page);
    return m && codemap_wrote_page(m, page, codemap_lines((u64)((const u8 *)p - m->base) % PAGE_SIZE, n));
}

#endif
