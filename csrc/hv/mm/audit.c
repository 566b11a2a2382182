/* A recount of every reference, for tests.
 *
 * Owns: nothing. Called by: tests, through xenlike.h, while no hypercall is under way anywhere. No lock.
 *
 * Adds up what page tables, pins, base pointers, GDTs, LDTs and vcpu_info pages hold, and compares it with the frame table. Type counts
 * of tables and descriptor pages must agree to the last one. General and writable references may be more, because grants, back
 * ends and windows hold some that leave no trace in memory; `exact` says that there are none of these now.
 */
#include "hv/mm/mm_internal.h"

#include <stdlib.h>

struct tally { u32 general, writable, checked; s32 linear; };

struct audit {
    struct host *h;
    struct tally *t;
    u32 nr;                             /* frames ever used */
    u64 bad;                            /* entries that no table may contain */
};

static void tally_checked(struct audit *a, u32 mfn)
{
    if (mfn) {
        a->t[mfn].general++;
        a->t[mfn].checked++;
    }
}

static void count_l1(struct audit *a, u32 table)
{
    const u64 *t = table_of(a->h, table);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 mfn = pte_mfn(t[i]);
        if (!(t[i] & PTE_P))
            continue;
        if (mfn >= a->nr || (t[i] & L1_DISALLOWED) || !(t[i] & PTE_U)) {
            a->bad++;
            continue;
        }
        a->t[mfn].general++;
        a->t[mfn].writable += !!(t[i] & PTE_RW);
    }
}

static void count_table(struct audit *a, u32 table, unsigned level)
{
    const u64 *t = table_of(a->h, table);
    u16 owner = mfn_frame(&a->h->machine, table)->owner;
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        u64 mfn = pte_mfn(t[i]);
        if (!(t[i] & PTE_P))
            continue;
        const struct frame *f = mfn_frame(&a->h->machine, mfn);
        if (mfn >= a->nr || (t[i] & TABLE_DISALLOWED) || !(t[i] & PTE_U) || f->owner != owner ||
            (level == 4 && i >= L4_XEN_FIRST && i <= L4_XEN_LAST)) {
            a->bad++;
            continue;
        }
        unsigned type = pgt_type(f->type_info);
        if (type == level) {            /* linear */
            a->bad += !!(t[i] & PTE_RW);
            if (mfn == table)
                continue;
            a->t[table].linear++;
            a->t[mfn].linear--;
        } else if (type != level - 1) {
            a->bad++;
        }
        tally_checked(a, (u32)mfn);
    }
}

static void count_vcpus(struct audit *a)
{
    for (const struct domain *d = a->h->domains; d; d = d->next)
        for (u32 mfn = d->pc && !d->dying ? d->mm.pages : 0; mfn; mfn = mfn_frame(&a->h->machine, mfn)->next) {
            a->t[mfn].general++;                /* a PC's RAM is held, writable, for good (pc/memory.c) */
            a->t[mfn].writable++;
        }

    for (const struct domain *d = a->h->domains; d; d = d->next)
        for (u32 i = 0; i < d->nr_vcpus; i++) {
            const struct vcpu *v = d->vcpu[i];
            if (!v)
                continue;
            tally_checked(a, v->cr3_mfn);
            tally_checked(a, v->user_cr3_mfn);
            for (unsigned k = 0; k < ARRAY_SIZE(v->arch.gdt_mfns); k++)
                tally_checked(a, v->arch.gdt_mfns[k]);
            for (unsigned k = 0; k < ARRAY_SIZE(v->arch.ldt_mfns); k++)
                tally_checked(a, v->arch.ldt_mfns[k]);
            if (v->info_mfn) {
                a->t[v->info_mfn].general++;
                a->t[v->info_mfn].writable++;
            }
        }
}

static bool frame_agrees(const struct frame *f, const struct tally *t, bool exact)
{
    u64 type = f->type_info, count = f->count_info;
    u32 general = (u32)count, types = pgt_count(type);
    if (f->linear != t->linear || general < t->general || (exact && general > t->general) || (type & PGT_PARTIAL))
        return false;
    if (pgt_is_checked(pgt_type(type)))
        return t->writable == 0 && types == t->checked && !!(type & PGT_VALIDATED) == (types != 0);
    return t->checked == 0 && types >= t->writable && !(exact && types > t->writable) &&
           (types == 0 || pgt_type(type) == PGT_writable_page);
}

s64 mm_audit(struct host *h, bool exact)
{
    struct machine *m = &h->machine;
    struct audit a = { .h = h, .nr = m->heap.fresh };
    a.t = calloc(a.nr, sizeof *a.t);
    if (!a.t)
        return -XEN_ENOMEM;
    for (u32 mfn = m->first_mfn; mfn < a.nr; mfn++) {
        const struct frame *f = mfn_frame(m, mfn);
        unsigned type = pgt_type(f->type_info);
        if (pgt_count(f->type_info) && type == PGT_l1_page_table)
            count_l1(&a, mfn);
        else if (pgt_count(f->type_info) && pgt_is_table(type))
            count_table(&a, mfn, type);
        if (f->type_info & PGT_PINNED)
            tally_checked(&a, mfn);
        a.t[mfn].general += !!(f->count_info & PGC_ALLOCATED);
        a.t[mfn].writable += !!(f->count_info & PGC_SPECIAL);
    }
    count_vcpus(&a);
    for (u32 mfn = m->first_mfn; mfn < a.nr; mfn++)
        a.bad += !frame_agrees(mfn_frame(m, mfn), &a.t[mfn], exact);
    free(a.t);
    return (s64)a.bad;
}
