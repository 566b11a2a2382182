/* Which memory holds code that a translator has translated, so that who writes there can say so.
 *
 * Owns: struct codemap. Used by: bt/ (claims lines, looks for news), and every writer of guest memory that does not go through a TLB's
 * write entry: x86/mem.c, machine/mmu.c, frame_write_end and frame_mark_dirty, bare.c. A page with any line set has no write entry in any TLB
 * (tlb_fill, paging.c and bare.c refuse one), so that a writer that needs none is the hypervisor itself. No locks: words change atomically.
 *
 * A write that meets a claimed line takes the page's claims away, then counts: the page's generation and, last, the epoch. A translator looks at
 * the epoch before it enters translated code, and at the generations of its pages when that has moved.
 */
#ifndef XL_MACHINE_CODEMAP_H
#define XL_MACHINE_CODEMAP_H

#include "base/lock.h"
#include "base/types.h"

enum { CODEMAP_LINE_SHIFT = 6 };        /* 64 lines of 64 bytes a page: a word */

struct codemap {
    const u8 *base;
    u64 pages;
    u64 *lines;                 /* a word a page: the lines that are translated */
    u32 *generation;            /* a word a page: how often its claims were taken away */
    u32 epoch;                  /* how often any page's were */
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

static inline void codemap_wrote_page(struct codemap *m, u64 page, u64 lines)
{
    if (likely(!codemap_page_has(m, page)) || !(read_once(m->lines[page]) & lines))
        return;
    xchg(&m->lines[page], 0);
    atomic_add(&m->generation[page], 1);
    atomic_add(&m->epoch, 1);
}

/* n bytes at p, which lie in one page, are about to change or have changed. */
static inline void codemap_wrote(struct codemap *m, const void *p, u64 n)
{
    u64 page;
    m = codemap_find(m, p, &page);
    if (m)
        codemap_wrote_page(m, page, codemap_lines((u64)((const u8 *)p - m->base) % PAGE_SIZE, n));
}

#endif
