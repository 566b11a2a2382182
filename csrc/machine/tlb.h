/* The soft TLB: what the last page walks found.
 *
 * Owns: struct tlb and the rule for its tags. Used by: machine/mmu.c (hypercall arguments, Python guests), x86/ (machine code). An entry
 * belongs to the vCPU whose TLB it is; others only ask for a flush (machine/mmu.h, "shootdown").
 */
#ifndef XL_MACHINE_TLB_H
#define XL_MACHINE_TLB_H

#include <string.h>

#include "base/types.h"

enum { TLB_ENTRIES = 256 };

struct tlb_entry {
    u64 read_tag, write_tag, exec_tag;      /* va page | tlb.generation; 0: invalid. Write: valid only while the frame is typed writable */
    u8 *page;                               /* host address of the frame's first byte */
};

struct tlb {
    struct tlb_entry e[2][TLB_ENTRIES];     /* PV: [0] kernel-mode root, [1] user-mode root; otherwise [0] CPL 0-2, [1] CPL 3 */
    u64 stamp;                              /* host->tlb_clock at the last full flush */
    u32 generation;                         /* 1..4095, in the tags' low bits: a full flush is an increment */
    u32 page_flushes;                       /* single entries cleared by command, */
    u64 flushed_va;                         /* the last of them; */
    u64 flushes;                            /* full flushes: who keeps copies of entries looks at these. Generations come round */
    struct { u64 first, last; } large[2];   /* x86/paging.c: linear addresses of large pages seen since, in each half of the address space */
    bool used;                              /* holds entries of this generation */
};

static inline u64 tlb_tag(const struct tlb *t, u64 va) { return (va & ~(u64)(PAGE_SIZE - 1)) | t->generation; }

/* A full flush: entries of older generations do not count. */
static inline void tlb_next_generation(struct tlb *t)
{
    if (t->generation == PAGE_SIZE - 1)         /* old tags would become valid again */
        memset(t->e, 0, sizeof t->e);
    t->generation = t->generation % (PAGE_SIZE - 1) + 1;
    t->flushes++;
    t->used = false;
}

static inline struct tlb_entry *tlb_slot(struct tlb *t, unsigned set, u64 va)
{
    return &t->e[set][(va >> PAGE_SHIFT) % TLB_ENTRIES];
}

#endif
