/* Promotion and demotion of page tables.
 *
 * Owns: what the entries of L1..L4 tables must look like, and the references they hold. Called by: machine/frame_type.c at the
 * first and last type reference, hv/mm/update.c for single entries. Lock: mm.lock of the tables' owner.
 *
 * While a table is checked it has its new type already, so nobody can map it writable, no TLB holds a write entry, and no walk
 * comes through it: its entries stand still and may be adjusted by plain stores.
 *
 * Depth: an L4 leads to L3, L2, L1, each with at most one hop to a linear table of its own level (a table that linear entries
 * refer to makes none itself): eight calls at most. There is no preemption: a whole tree is one critical section of its owner's
 * mm.lock, bounded by the number of tables the domain owns, because a table that is validated already is only counted.
 *
 * The hypervisor's slots of an L4, 256 to 271, are never looked at and set to 0: the soft MMU serves that range itself, and a
 * linear mapping, through which a guest can read its L4 as an L1, must find nothing there.
 */
#include "hv/mm/mm_internal.h"

#include <string.h>

/* ---- L1 ---------------------------------------------------------------------------------------------------------- */

static int l1_validate(struct host *h, struct domain *d, u32 mfn)
{
    u64 *t = table_of(h, mfn);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 pte = t[i];
        if (!(pte & PTE_P))
            continue;
        int rc = l1e_get(h, d, d, pte);
        if (unlikely(rc)) {
            while (i--)
                if (t[i] & PTE_P)
                    l1e_put(h, t[i]);
            return rc;
        }
        t[i] = l1_adjust(pte);
    }
    return 0;
}

static void l1_devalidate(struct host *h, u32 mfn)
{
    const u64 *t = table_of(h, mfn);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 pte = read_once(t[i]);
        if (pte & PTE_P)
            l1e_put(h, pte);
    }
}

/* ---- L2, L3, L4 -------------------------------------------------------------------------------------------------- */

/* A linear entry: read-only, to a validated table of the same level and owner. A table either makes such entries or is what
 * they refer to, never both, so chains end after one hop. Caller holds a general reference to target, which passes to the entry. */
static bool linear_get(struct host *h, u32 table, u64 target, u64 pte, unsigned level)
{
    struct frame *maker = mfn_frame(&h->machine, table), *used = mfn_frame(&h->machine, target);
    u64 type = read_once(used->type_info);
    if ((pte & PTE_RW) || pgt_type(type) != level || !(type & PGT_VALIDATED) || maker->linear < 0 || used->linear > 0)
        return false;
    if (get_page_type(h, target, level))
        return false;
    maker->linear++;
    used->linear--;
    return true;
}

int table_entry_get(struct host *h, struct domain *d, u32 table, u64 pte, unsigned level)
{
    u64 target = pte_mfn(pte);
    if (pte & TABLE_DISALLOWED)
        return -XEN_EINVAL;
    if (target == table)                /* to itself: holds nothing, so that it can still go */
        return pte & PTE_RW ? -XEN_EINVAL : 0;
    if (!get_page(h, target, d))
        return -XEN_EINVAL;
    int rc = get_page_type(h, target, level - 1);
    if (rc == -XEN_EINVAL && linear_get(h, table, target, pte, level))
        rc = 0;
    if (rc)
        put_page(h, target);
    return rc;
}

void table_entry_put(struct host *h, u32 table, u64 pte, unsigned level)
{
    u64 target = pte_mfn(pte);
    if (target == table)
        return;
    struct frame *f = mfn_frame(&h->machine, target);
    if (pgt_type(read_once(f->type_info)) == level) {
        mfn_frame(&h->machine, table)->linear--;
        f->linear++;
    }
    put_page_and_type(h, target);
}

static inline bool xen_slot(unsigned level, unsigned slot)
{
    return level == 4 && slot >= L4_XEN_FIRST && slot <= L4_XEN_LAST;
}

static int table_validate(struct host *h, struct domain *d, u32 mfn, unsigned level)
{
    u64 *t = table_of(h, mfn);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 pte = t[i];
        if (!(pte & PTE_P) || xen_slot(level, i))
            continue;
        int rc = table_entry_get(h, d, mfn, pte, level);
        if (rc) {
            while (i--)
                if ((t[i] & PTE_P) && !xen_slot(level, i))
                    table_entry_put(h, mfn, t[i], level);
            return rc;
        }
        t[i] = table_entry_adjust(pte, level);
    }
    if (level == 4)                     /* only now: a page that is refused keeps what the guest wrote */
        memset(&t[L4_XEN_FIRST], 0, (L4_XEN_LAST - L4_XEN_FIRST + 1) * sizeof *t);
    return 0;
}

static void table_devalidate(struct host *h, u32 mfn, unsigned level)
{
    const u64 *t = table_of(h, mfn);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 pte = read_once(t[i]);
        if (pte & PTE_P)
            table_entry_put(h, mfn, pte, level);
    }
}

/* ---- the face to frame_type.c ------------------------------------------------------------------------------------ */

int mm_validate_table(struct host *h, u32 mfn, unsigned type)
{
    struct domain *d = frame_owner(h, mfn_frame(&h->machine, mfn));
    host_stat_inc(h, pt_validations);
    d->mm.work += PT_ENTRIES * WORK_ENTRY;
    frame_mark_touched(&h->machine, mfn);
    switch (type) {
    case PGT_l1_page_table:
        return l1_validate(h, d, mfn);
    case PGT_seg_desc_page:
        return segdesc_validate(h, mfn);
    default:                            /* PGT_lN_page_table is N */
        return table_validate(h, d, mfn, type);
    }
}

void mm_devalidate_table(struct host *h, u32 mfn, unsigned type)
{
    frame_owner(h, mfn_frame(&h->machine, mfn))->mm.work += PT_ENTRIES * WORK_ENTRY;
    switch (type) {
    case PGT_l1_page_table:
        l1_devalidate(h, mfn);
        break;
    case PGT_seg_desc_page:
        break;
    default:
        table_devalidate(h, mfn, type);
    }
}
