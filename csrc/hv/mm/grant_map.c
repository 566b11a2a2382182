/* Grant mappings as page-table entries.
 *
 * Owns: nothing. Called by: grant_table_op (map, unmap, unmap_and_replace), which must not hold any grant lock: lock order is
 * mm.lock, then grants. Lock: mm.lock of the mapper's domain.
 *
 * A grant PTE holds the same references as any L1 entry, taken by the caller from the granter's frame; so a guest that overwrites
 * it by mmu_update drops them, and the later unmap finds another entry and fails (6.3).
 */
#include "hv/mm/mm_internal.h"

#include "xen/grant_table.h"

/* Section 4.3. GNTMAP_application_map opens the entry to user mode: as everywhere, by the absence of GUEST_KERNEL. */
static u64 grant_pte(u32 mfn, u32 flags)
{
    u64 pte = ((u64)mfn << PAGE_SHIFT) | PTE_P | PTE_A | PTE_D | PTE_NX;
    if (!(flags & GNTMAP_readonly))
        pte |= PTE_RW;
    if (flags & GNTMAP_application_map)
        pte |= PTE_U;
    pte |= ((u64)flags >> _GNTMAP_guest_avail0 << 9) & PTE_AVAIL;
    return l1_adjust(pte);
}

static u64 *grant_slot(struct vcpu *v, u64 host_addr, u32 flags, u32 *table)
{
    return flags & GNTMAP_contains_pte ? l1_slot_of_maddr(v, host_addr, table) : l1_slot_of_va(v, host_addr, table);
}

static u64 replace(struct host *h, u64 *slot, u32 table, u64 pte)
{
    frame_mark_dirty(&h->machine, table);
    return xchg(slot, pte);
}

int mm_map_grant(struct vcpu *v, u64 host_addr, u32 mfn, u32 gntmap_flags)
{
    struct host *h = v->host;
    struct domain *d = v->domain;
    struct frame *f = mfn_frame(&h->machine, mfn);
    u32 table;

    if (f->owner != d->id && !(read_once(f->count_info) & PGC_FOREIGN))
        atomic_or(&f->count_info, PGC_FOREIGN);

    spin_lock(&d->mm.lock);
    u64 *slot = grant_slot(v, host_addr, gntmap_flags, &table);
    if (slot) {
        u64 old = replace(h, slot, table, grant_pte(mfn, gntmap_flags));
        if (old & PTE_P)
            l1e_put(h, old);
    }
    spin_unlock(&d->mm.lock);
    return slot ? GNTST_okay : GNTST_general_error;
}

int mm_unmap_grant(struct vcpu *v, u64 host_addr, u64 new_addr, u32 mfn, u32 gntmap_flags)
{
    struct host *h = v->host;
    struct domain *d = v->domain;
    u64 want = PTE_P | (gntmap_flags & GNTMAP_readonly ? 0 : PTE_RW), new = 0;
    u32 table, new_table;
    int status = GNTST_general_error;

    if (new_addr && (gntmap_flags & GNTMAP_contains_pte))
        return GNTST_general_error;

    spin_lock(&d->mm.lock);
    u64 *slot = grant_slot(v, host_addr, gntmap_flags, &table);
    if (!slot)
        goto out;
    u64 old = read_once(*slot);         /* but for A and D, it stays this while the lock is held */
    if (pte_mfn(old) != mfn || ((old ^ want) & (PTE_P | PTE_RW)))
        goto out;
    if (new_addr) {                     /* the entry moves, with what it holds */
        u64 *new_slot = l1_slot_of_va(v, new_addr, &new_table);
        if (!new_slot || new_slot == slot)
            goto out;
        new = replace(h, new_slot, new_table, 0);
    }
    l1e_put(h, replace(h, slot, table, new));
    status = GNTST_okay;
out:
    spin_unlock(&d->mm.lock);
    return status;
}
