/* The type of a frame: what it is used as, and by how many.
 *
 * Owns: the changes of frame->type_info. Called by: everything that maps, pins or writes frames (get_page_type and
 * put_page_type of frame.h). Locks: a reference of a checked type (l1..l4, seg_desc) is taken and dropped under the mm.lock of
 * the frame's owner; a writable reference needs no lock, so that grants and back ends never meet the owner's mm.lock.
 *
 *                     get writable                                get l1..l4, seg_desc
 *   count 0           -> writable, 1                              -> T, 1, PARTIAL; checks; VALIDATED, or back to count 0
 *   writable, n > 0   n + 1                                       -EINVAL
 *   T, n > 0          -EINVAL                                     n + 1 for the same T, else -EINVAL
 *
 * A frame keeps its last type while its count is 0. Leaving "writable" or a table type therefore shows in the word, and is the
 * moment to make TLBs and walks under way forget the frame (tlb_shootdown_frame, filtered by frame->tlb_stamp):
 *   writable -> checked   after the claim: the claim keeps new writable references out, then stale write entries go, then the
 *                         contents are read. Nothing can change a byte from there on.
 *   table -> writable     before the claim: a walk under way may still read the frame as a table, and must end before the
 *                         first byte of data is stored. Nothing refers to a table of count 0, so no new walk can start on it;
 *                         the life number in the word catches a frame that became a table again meanwhile.
 *   table -> other table  after the claim, for the same reason: no check may adjust an entry under a walk of another level.
 *
 * Why a shootdown may wait while mm.lock is held: it waits for vCPUs in guest mode only. Guest mode is entered around uses of the
 * soft TLB (vcpu_enter_guest in machine/mmu.c and, later, translated code), where no lock is ever taken, no type reference is
 * taken, and no hypercall handler runs; so every wait ends by itself. For the same reason get_page_type() is never called in
 * guest mode. Handlers copy guest arguments before they take mm.lock and results after they drop it: not for the sake of this
 * argument (the copy takes no lock), but because a copy may have to wait for the host to provide memory.
 */
#include "machine/frame_type.h"

bool frame_make_writable(struct host *h, struct frame *f, u64 mfn)
{
    u64 old = load_acquire(f->type_info);
    for (;;) {
        u64 new = (old & ~PGT_STAMPING) + 1;
        if (pgt_count(old)) {
            if (pgt_type(old) != PGT_writable_page || pgt_count(old) == PGT_COUNT_MASK)
                return false;
        } else if (pgt_type(old) != PGT_writable_page) {
            if (pgt_is_table(pgt_type(old)))
                tlb_shootdown_frame(h, mfn);
            new = pgt_make(old, PGT_writable_page, PGT_VALIDATED | 1);
        }
        if (cmpxchg(&f->type_info, &old, new))
            return true;
    }
}

static int get_checked(struct host *h, struct frame *f, u64 mfn, unsigned type)
{
    u64 old = load_acquire(f->type_info);
    while (pgt_count(old)) {            /* in use: only as the same, and only when its checks are done */
        if (pgt_type(old) != type || !(old & PGT_VALIDATED) || pgt_count(old) == PGT_COUNT_MASK)
            return -XEN_EINVAL;
        if (cmpxchg(&f->type_info, &old, old + 1))
            return 0;
    }
    if (read_once(f->count_info) & PGC_SPECIAL)
        return -XEN_EINVAL;
    do {
        if (pgt_count(old))             /* a writable reference came first */
            return -XEN_EINVAL;
    } while (!cmpxchg(&f->type_info, &old, pgt_make(old, type, PGT_PARTIAL | 1)));

    if (pgt_type(old) == PGT_writable_page || (pgt_is_table(pgt_type(old)) && pgt_type(old) != type))
        tlb_shootdown_frame(h, mfn);

    int rc = mm_validate_table(h, (u32)mfn, type);
    xchg(&f->type_info, pgt_make(old, type, rc ? 0 : PGT_VALIDATED | 1));
    return rc;
}

int get_page_type(struct host *h, u64 mfn, unsigned type)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    if (type == PGT_writable_page)
        return frame_get_writable(h, f, mfn) ? 0 : -XEN_EINVAL;
    return pgt_is_checked(type) ? get_checked(h, f, mfn, type) : -XEN_EINVAL;
}

static void put_checked(struct host *h, struct frame *f, u64 mfn)
{
    u64 old = load_acquire(f->type_info);
    while (pgt_count(old) > 1)
        if (cmpxchg(&f->type_info, &old, old - 1))
            return;
    /* The last: under mm.lock, and held against writable references by its count, the word is now ours. */
    unsigned type = pgt_type(old);
    xchg(&f->type_info, pgt_make(old, type, PGT_PARTIAL | 1));
    mm_devalidate_table(h, (u32)mfn, type);
    write_once(f->tlb_stamp, load_acquire(h->tlb_clock));       /* behind the exchange: what referred to it is gone for all */
    xchg(&f->type_info, pgt_make(old + (1ul << PGT_LIFE_SHIFT), type, 0));
}

void put_page_type(struct host *h, u64 mfn)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    if (likely(pgt_type(read_once(f->type_info)) == PGT_writable_page))
        frame_put_writable(h, f);
    else
        put_checked(h, f, mfn);
}
