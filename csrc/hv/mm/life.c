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
    bool special = read_once(mfn_frame(&h->machine, mfn)->count_info) & PGC_SPECIAL;
    if (!special)
        frame_release_allocation(h, mfn);       /* nothing to do if it was given up before and is still mapped */
    put_page(h, mfn);
    return !special;
}

int call_too_long(struct vcpu *v, const char *call)
{
    domain_crash(v->domain, "%s: one call did the work of %lu page-table entries and had not ended", call, HYPERCALL_WORK_LIMIT);
    return -XEN_EINVAL;
}

/* The page after mfn (0: the first) in d's list, with a reference, which keeps it in the list; 0: none. mfn is referenced too.
 * Pages that another domain is freeing just now, unmapping the last of them, are passed over. */
static u32 page_after(struct domain *d, u32 mfn)
{
    struct host *h = d->host;
    spin_lock(&d->mm.list_lock);
    u32 next = mfn ? mfn_frame(&h->machine, mfn)->next : d->mm.pages;
    while (next && !get_page_any(h, next))
        next = mfn_frame(&h->machine, next)->next;
    spin_unlock(&d->mm.list_lock);
    return next;
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
    for (u32 mfn = page_after(d, 0), next; mfn; mfn = next) {
        if (read_once(mfn_frame(m, mfn)->type_info) & PGT_PINNED)
            (void)unpin_table(d, mfn);
        next = page_after(d, mfn);
        put_page(h, mfn);
    }
    for (u32 mfn = page_after(d, 0), next; mfn; mfn = next) {
        next = page_after(d, mfn);
        frame_release_allocation(h, mfn);
        put_page(h, mfn);
    }
    spin_unlock(&d->mm.lock);
}
