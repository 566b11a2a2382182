/* A domain's memory from birth to death.
 *
 * Owns: mm_state's beginning and end, frames given up. Called by: hv/domain.c, memory_op. Lock: mm.lock of the domain.
 *
 * Death does not walk page tables. When pins, base pointers and descriptor tables are gone, no table has a type reference left
 * (references go from a level to the one below, or one hop sideways to a table that makes none: there is no cycle; a table's entry
 * to itself holds nothing), so every table has been devalidated and has dropped what it mapped, own and foreign. Then the
 * allocation references go, and what remains is what other domains hold.
 */
#include "hv/mm/mm_internal.h"

int mm_init(struct domain *d, u32 max_pages)
{
    d->mm = (struct mm_state){ .max_pages = max_pages };
    return 0;
}

bool frame_give_up(struct domain *d, u64 mfn)
{
    struct host *h = d->host;
    if (!get_page(h, mfn, d))
        return false;
    bool ok = !(read_once(mfn_frame(&h->machine, mfn)->count_info) & PGC_SPECIAL);
    if (ok) {
        (void)unpin_table(d, mfn);      /* or nobody could unpin it later: the frame is no longer d's */
        ok = frame_release_allocation(h, mfn);
    }
    put_page(h, mfn);
    return ok;
}

void mm_destroy(struct domain *d)
{
    struct host *h = d->host;
    struct machine *m = &h->machine;

    spin_lock(&d->mm.lock);
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (d->vcpu[i]) {
            bases_drop(d->vcpu[i]);
            descriptor_tables_drop(d->vcpu[i]);
        }
    /* The list changes only under mm.lock (frame_give_up) and by allocation, which a dying domain is refused. */
    for (u32 mfn = read_once(d->mm.pages); mfn; mfn = mfn_frame(m, mfn)->next)
        if (read_once(mfn_frame(m, mfn)->type_info) & PGT_PINNED)
            (void)unpin_table(d, mfn);
    for (u32 mfn; (mfn = read_once(d->mm.pages)); )
        if (!frame_release_allocation(h, mfn))
            break;
    spin_unlock(&d->mm.lock);
}
