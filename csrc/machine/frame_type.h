/* Fast paths of frame references, inlined into the page-table code.
 *
 * Owns: nothing; the same protocol as get_page() and get_page_type(), written once and used by frame_type.c and hv/mm/.
 * Called by: those two. Locks: none here; the rules for table types stand in frame_type.c.
 */
#ifndef XL_MACHINE_FRAME_TYPE_H
#define XL_MACHINE_FRAME_TYPE_H

#include "hv/host.h"

/* Bits 48-63 of type_info count how often the frame has stopped being a table. They make a compare-and-swap fail when the
 * frame went through a whole life as a table between its load and its swap. */
#define PGT_LIFE_SHIFT  48
#define PGT_LIFE_MASK   (0xfffful << PGT_LIFE_SHIFT)

static inline bool pgt_is_table(unsigned type) { return type - PGT_l1_page_table <= PGT_l4_page_table - PGT_l1_page_table; }
static inline bool pgt_is_checked(unsigned type) { return type - PGT_l1_page_table <= PGT_seg_desc_page - PGT_l1_page_table; }

static inline u64 pgt_make(u64 old, unsigned type, u64 flags_and_count)
{
    return (old & PGT_LIFE_MASK) | ((u64)type << PGT_TYPE_SHIFT) | flags_and_count;
}

/* get_page() for a valid mfn. */
static inline bool frame_get(struct host *h, struct frame *f, u64 mfn, u16 owner)
{
    u64 old = read_once(f->count_info);
    do {
        if (unlikely((u32)old - 1 >= PGC_COUNT_MASK - 2 || read_once(f->owner) != owner))      /* none, or too many */
            return false;
    } while (!cmpxchg(&f->count_info, &old, old + 1));
    if (unlikely(read_once(f->owner) != owner)) {       /* it changed hands between the check and the count */
        put_page(h, mfn);
        return false;
    }
    return true;
}

bool frame_make_writable(struct host *h, struct frame *f, u64 mfn);     /* the slow path: another type, count 0 */

/* A writable type reference. False while the frame is a table or holds descriptors. */
static inline bool frame_get_writable(struct host *h, struct frame *f, u64 mfn)
{
    u64 old = read_once(f->type_info);
    do {
        if (unlikely(pgt_type(old) != PGT_writable_page || pgt_count(old) == PGT_COUNT_MASK))
            return frame_make_writable(h, f, mfn);
    } while (!cmpxchg(&f->type_info, &old, (old & ~PGT_STAMPING) + 1));
    return true;
}

/* Drops a writable type reference. A caller that removed a PTE did so with a locked instruction: the clock must be read after
 * the PTE is gone for everybody, or a walk could still use it behind a flush that the stamp counts as later.
 * The last one writes the stamp before the count says 0, because whoever takes the frame next reads it. Between the look at the
 * clock and the swap another mapping may come, be cached by a TLB that has just been flushed, and go again: the count would be
 * the same and the stamp too old for that TLB. PGT_STAMPING, gone since then, tells. */
static inline void frame_put_writable(struct host *h, struct frame *f)
{
    u64 old = read_once(f->type_info);
    for (;;) {
        if (pgt_count(old) > 1) {
            if (cmpxchg(&f->type_info, &old, old - 1))
                return;
        } else if (cmpxchg(&f->type_info, &old, old | PGT_STAMPING)) {
            write_once(f->tlb_stamp, load_acquire(h->tlb_clock));
            old |= PGT_STAMPING;
            if (cmpxchg(&f->type_info, &old, (old & ~PGT_STAMPING) - 1))
                return;
        }
    }
}

/* A raw store is coming (a page table's entry, a descriptor). Caller holds a reference. */
static inline void frame_mark_touched(struct machine *m, u64 mfn)
{
    frame_mark_stored(m, mfn);
    frame_mark_dirty(m, mfn);
}

#endif
