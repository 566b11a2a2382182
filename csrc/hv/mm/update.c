/* Changing single entries: mmu_update, update_va_mapping, writable page tables.
 *
 * Owns: the stores into validated tables. Called by: hypercalls, hv/mm/grant_map.c, pv/ (mm_ptwr). Lock: mm.lock of the tables'
 * owner, a chunk of requests at a time; guest memory is copied before it is taken and after it is dropped. Order of one change:
 * references of the new entry, the store, references of the old entry. At no moment does an entry stand without what it holds.
 *
 * The walker sets A and D by compare-and-swap at any time, without the lock. So a store that must keep them swaps, and any
 * other may simply win. Removing a writable mapping uses a locked instruction, see frame_put_writable().
 */
#include "hv/mm/mm_internal.h"

enum {
    CHUNK = 128,                        /* requests copied at once: 2 KiB of stack */
};
static const u32 MMU_UPDATE_PREEMPTED = 1u << 31;

/* ---- one entry --------------------------------------------------------------------------------------------------- */

static inline void entry_store(u64 *slot, u64 old, u64 new, bool preserve_ad, bool locked)
{
    if (preserve_ad)
        while (!cmpxchg(slot, &old, new | (old & PTE_AD)))
            ;
    else if (locked)
        xchg(slot, new);
    else
        write_once(*slot, new);
}

int l1e_write(struct host *h, const struct domain *tables, const struct domain *pg_owner, u32 table, u64 *slot, u64 new,
              bool preserve_ad)
{
    u64 old = read_once(*slot);
    bool same = false;
    if (new & PTE_P) {
        same = pte_only_flags_change(old, new);
        if (!same) {
            int rc = l1e_get(h, tables, pg_owner, new);
            if (unlikely(rc))
                return rc;
        }
        new = l1_adjust(new);
    }
    entry_store(slot, old, new, preserve_ad, pte_maps_writable(old));
    frame_mark_dirty(&h->machine, table);
    if ((old & PTE_P) && !same)
        l1e_put(h, old);
    return 0;
}

/* As l1e_write, but only if *slot still is `old`, which the walker's A and D count for too. */
static int l1e_cmpxchg(struct host *h, const struct domain *d, u32 table, u64 *slot, u64 old, u64 new)
{
    bool same = false;
    if (new & PTE_P) {
        same = pte_only_flags_change(old, new);
        if (!same) {
            int rc = l1e_get(h, d, d, new);
            if (rc)
                return rc;
        }
        new = l1_adjust(new);
    }
    u64 seen = old;
    if (!cmpxchg(slot, &seen, new)) {
        if ((new & PTE_P) && !same)
            l1e_put(h, new);
        return -XEN_EAGAIN;
    }
    frame_mark_dirty(&h->machine, table);
    if ((old & PTE_P) && !same)
        l1e_put(h, old);
    return 0;
}

static int table_entry_write(struct host *h, struct domain *d, u32 table, unsigned level, unsigned i, u64 new, bool preserve_ad)
{
    u64 *slot = table_of(h, table) + i, old = read_once(*slot);
    bool same = false;
    if (level == 4 && i >= L4_XEN_FIRST && i <= L4_XEN_LAST)
        return -XEN_EINVAL;
    if (new & PTE_P) {
        same = pte_only_flags_change(old, new) && !(new & TABLE_DISALLOWED);
        if (!same) {
            int rc = table_entry_get(h, d, table, new, level);
            if (rc)
                return rc;
        }
        new = table_entry_adjust(new, level);
    }
    entry_store(slot, old, new, preserve_ad, true);
    frame_mark_dirty(&h->machine, table);
    if ((old & PTE_P) && !same)
        table_entry_put(h, table, old, level);
    return 0;
}

/* ---- mmu_update -------------------------------------------------------------------------------------------------- */

struct update {
    struct host *h;
    struct domain *self, *pt_owner, *pg_owner;  /* pg_owner NULL: DOMID_IO */
    bool pages_allowed, tables_allowed;         /* may the caller do this to those domains? */
    u64 held;                                   /* frame of the last request, referenced; 0: none */
    bool flush;                                 /* an upper level changed */
};

static void hold(struct update *u, u64 mfn)
{
    if (u->held)
        put_page(u->h, u->held);
    u->held = mfn && get_page(u->h, mfn, u->pt_owner) ? mfn : 0;
}

static int update_entry(struct update *u, u64 ptr, u64 val, bool preserve_ad)
{
    struct host *h = u->h;
    u64 mfn = ptr >> PAGE_SHIFT;
    unsigned i = ptr / sizeof(u64) % PT_ENTRIES;

    if (mfn != u->held)
        hold(u, mfn);
    if (unlikely(!u->held))
        return -XEN_EINVAL;

    u64 type_info = read_once(mfn_frame(&h->machine, mfn)->type_info);
    unsigned type = pgt_type(type_info);
    if (likely(pgt_count(type_info))) {         /* the lock keeps a table a table */
        if (likely(type == PGT_l1_page_table))
            return l1e_write(h, u->pt_owner, u->pg_owner, (u32)mfn, table_of(h, mfn) + i, val, preserve_ad);
        if (pgt_is_table(type)) {
            if (u->pg_owner != u->pt_owner)
                return -XEN_EINVAL;
            int rc = table_entry_write(h, u->pt_owner, (u32)mfn, type, i, val, preserve_ad);
            u->flush |= !rc;
            return rc;
        }
    }
    u64 *page = frame_write_begin(h, mfn, NULL);        /* data, or what may become data: a plain store */
    if (!page)
        return -XEN_EINVAL;
    write_once(page[i], val);
    frame_write_end(h, mfn);
    return 0;
}

static int update_m2p(struct update *u, u64 ptr, u64 pfn)
{
    u64 mfn = ptr >> PAGE_SHIFT;
    if (!u->pg_owner || !get_page(u->h, mfn, u->pg_owner))
        return -XEN_EINVAL;
    m2p_set(&u->h->machine, mfn, pfn);
    put_page(u->h, mfn);
    return 0;
}

static inline int update_one(struct update *u, const struct mmu_update *r)
{
    unsigned cmd = r->ptr & 7;
    switch (cmd) {
    case MMU_NORMAL_PT_UPDATE:
    case MMU_PT_UPDATE_NO_TRANSLATE:
    case MMU_PT_UPDATE_PRESERVE_AD:
        if (unlikely(!u->pages_allowed || !u->tables_allowed))
            return -XEN_EPERM;
        return update_entry(u, r->ptr - cmd, r->val, cmd == MMU_PT_UPDATE_PRESERVE_AD);
    case MMU_MACHPHYS_UPDATE:
        if (!u->pages_allowed || u->pt_owner != u->self)
            return -XEN_EPERM;
        return update_m2p(u, r->ptr - cmd, r->val);
    }
    return -XEN_ENOSYS;
}

/* Applies requests until one fails; *done counts those that did not. A chunk that cannot be copied whole is copied one by one, so
 * that the requests before the fault take effect. */
static int update_all(struct vcpu *v, struct update *u, u64 reqs, u32 count, u32 *done)
{
    struct mmu_update req[CHUNK];
    struct mm_state *mm = &u->pt_owner->mm;
    u64 start = read_once(mm->work);
    u32 limit = CHUNK;
    int rc = 0;
    while (!rc && *done < count) {
        u32 n = count - *done < limit ? count - *done : limit, i = 0;
        if (copy_from_guest(v, req, reqs + *done * sizeof *req, n * sizeof *req)) {
            if (n == 1)
                return -XEN_EFAULT;
            limit = 1;
            continue;
        }
        bool too_long = false;
        spin_lock(&mm->lock);
        while (i < n && !too_long && !(rc = update_one(u, &req[i]))) {
            i++;
            too_long = work_exceeded(u->pt_owner, start);
        }
        mm->work += n * WORK_REQUEST;
        hold(u, 0);
        spin_unlock(&mm->lock);
        *done += i;
        if (too_long)
            return call_too_long(v, "mmu_update");
    }
    return rc;
}

/* foreigndom's high half: the tables' owner + 1, 0 for the caller. NULL: there is none such. */
static struct domain *pt_owner_get(struct vcpu *v, u32 id_plus_1)
{
    if (!id_plus_1 || id_plus_1 - 1 == v->domain->id)
        return v->domain;
    return domain_get(v->host, (u16)(id_plus_1 - 1));
}

s64 do_mmu_update(struct vcpu *v, u64 reqs, u64 count_arg, u64 pdone, u64 foreigndom_arg)
{
    u32 count = (u32)count_arg, foreigndom = (u32)foreigndom_arg, before = 0, done = 0;

    if (count == MMU_UPDATE_PREEMPTED && !reqs)         /* what the hypervisor's own continuation looks like */
        return (s32)foreigndom;
    if (count & MMU_UPDATE_PREEMPTED) {
        count &= ~MMU_UPDATE_PREEMPTED;
        if (pdone)
            (void)copy_from_guest(v, &before, pdone, sizeof before);
    }
    if (!guest_addr_ok(reqs))
        return -XEN_EFAULT;

    struct update u = { .h = v->host, .self = v->domain, .pt_owner = pt_owner_get(v, foreigndom >> 16) };
    if (!u.pt_owner)
        return -XEN_ESRCH;
    int rc = pg_owner_get(v, (u16)foreigndom, &u.pg_owner);
    if (!rc) {
        u.pages_allowed = !u.pg_owner || may_control(v, u.pg_owner);
        u.tables_allowed = may_control(v, u.pt_owner);
        rc = update_all(v, &u, reqs, count, &done);
        if (u.flush)
            tlb_flush_domain(u.pt_owner);
        pg_owner_put(v, u.pg_owner);
        stat_add(v, pt_updates, done);
        if (pdone) {
            before += done;
            (void)copy_to_guest(v, pdone, &before, sizeof before);
        }
    }
    pg_owner_put(v, u.pt_owner);
    return rc;
}

/* ---- update_va_mapping ------------------------------------------------------------------------------------------- */

u64 *l1_slot_of_va(struct vcpu *v, u64 va, u32 *table)
{
    u64 maddr;
    if (!mmu_find_l1e(v, va, &maddr))
        return NULL;
    *table = (u32)(maddr >> PAGE_SHIFT);
    u64 type_info = read_once(mfn_frame(&v->host->machine, *table)->type_info);
    if (pgt_type(type_info) != PGT_l1_page_table || !pgt_count(type_info))
        return NULL;
    return table_of(v->host, *table) + maddr / sizeof(u64) % PT_ENTRIES;
}

u64 *l1_slot_of_maddr(struct vcpu *v, u64 maddr, u32 *table)
{
    struct host *h = v->host;
    u64 mfn = maddr >> PAGE_SHIFT;
    if ((maddr & 7) || !get_page(h, mfn, v->domain))
        return NULL;
    u64 type_info = read_once(mfn_frame(&h->machine, mfn)->type_info);
    put_page(h, mfn);                   /* a table in use stays one while the lock is held */
    if (pgt_type(type_info) != PGT_l1_page_table || !pgt_count(type_info))
        return NULL;
    *table = (u32)mfn;
    return table_of(h, mfn) + maddr / sizeof(u64) % PT_ENTRIES;
}

/* ---- writable page tables ---------------------------------------------------------------------------------------- */

/* The L1 table that v's kernel sees read-only at va. 0: something else. mm.lock held. */
static u32 ptwr_table(struct vcpu *v, u64 va)
{
    struct host *h = v->host;
    u32 walked;
    u64 *slot = l1_slot_of_va(v, va, &walked), pte = slot ? read_once(*slot) : 0, mfn = pte_mfn(pte);
    if (!(pte & PTE_P) || (pte & PTE_RW) || !mfn_valid(&h->machine, mfn))
        return 0;
    const struct frame *f = mfn_frame(&h->machine, mfn);
    u64 type = read_once(f->type_info);
    bool l1 = read_once(f->owner) == v->domain->id && pgt_type(type) == PGT_l1_page_table && pgt_count(type) && (type & PGT_VALIDATED);
    return l1 ? (u32)mfn : 0;
}

bool mm_ptwr(struct vcpu *v, u64 va, unsigned size, bool compare, u64 *old, u64 value)
{
    struct domain *d = v->domain;
    unsigned shift = va % sizeof(u64) * 8;
    u64 mask = (size < 8 ? (1ul << size * 8) - 1 : ~0ul) << shift;
    if (size > 8 || (size & (size - 1)) || va % size)
        return false;

    spin_lock(&d->mm.lock);
    u32 table = ptwr_table(v, va);
    int rc = table ? -XEN_EAGAIN : -XEN_EINVAL;
    while (rc == -XEN_EAGAIN) {
        u64 *slot = table_of(v->host, table) + va / sizeof(u64) % PT_ENTRIES, seen = read_once(*slot);
        if (compare && (seen & mask) != (*old << shift & mask)) {
            *old = (seen & mask) >> shift;
            spin_unlock(&d->mm.lock);
            return true;
        }
        rc = l1e_cmpxchg(v->host, d, table, slot, seen, (seen & ~mask) | (value << shift & mask));
    }
    spin_unlock(&d->mm.lock);
    if (!rc) {
        stat_inc(v, pt_updates);
        stat_inc(v, ptwr_writes);
    }
    return !rc;
}

static int flush_after(struct vcpu *v, u64 va, u64 flags)
{
    unsigned what = flags & UVMF_FLUSHTYPE_MASK;
    u64 where = flags & ~(u64)UVMF_FLUSHTYPE_MASK;
    if (what != UVMF_TLB_FLUSH && what != UVMF_INVLPG)
        return 0;
    if (where == UVMF_LOCAL) {
        if (what == UVMF_INVLPG)
            tlb_flush_page_local(v, va);
        else
            tlb_flush_local(v);
    } else if (where == UVMF_ALL) {
        tlb_flush_domain(v->domain);
    } else {
        struct vcpu_mask mask;
        if (vcpu_mask_read(v, &mask, where))
            return -XEN_EFAULT;
        vcpu_mask_flush(v->domain, &mask);
    }
    return 0;
}

static int update_va(struct vcpu *v, u64 va, u64 pte, u64 flags, const struct domain *pg_owner)
{
    struct domain *d = v->domain;
    u32 table;
    spin_lock(&d->mm.lock);
    u64 *slot = l1_slot_of_va(v, va, &table);
    int rc = slot ? l1e_write(v->host, d, pg_owner, table, slot, pte, false) : -XEN_EINVAL;
    spin_unlock(&d->mm.lock);
    if (rc)
        return rc;
    stat_inc(v, pt_updates);
    return flush_after(v, va, flags);
}

s64 do_update_va_mapping(struct vcpu *v, u64 va, u64 pte, u64 flags)
{
    return update_va(v, va, pte, flags, v->domain);
}

s64 do_update_va_mapping_otherdomain(struct vcpu *v, u64 va, u64 pte, u64 flags, u64 domid)
{
    struct domain *pg_owner;
    int rc = pg_owner_get(v, (u16)domid, &pg_owner);
    if (rc)
        return rc;
    rc = may_control(v, pg_owner) ? update_va(v, va, pte, flags, pg_owner) : -XEN_EPERM;
    pg_owner_put(v, pg_owner);
    return rc;
}

/* ---- domains and vCPUs that a hypercall names -------------------------------------------------------------------- */

int pg_owner_get(struct vcpu *v, u16 domid, struct domain **d)
{
    *d = NULL;
    if (domid == DOMID_IO)
        return 0;
    if (likely(domid == DOMID_SELF))
        *d = v->domain;
    else if (domid != v->domain->id)
        *d = domain_get(v->host, domid);
    return *d ? 0 : -XEN_ESRCH;
}

void pg_owner_put(struct vcpu *v, struct domain *d)
{
    if (d && d != v->domain)
        domain_put(d);
}

int vcpu_mask_read(struct vcpu *v, struct vcpu_mask *m, u64 va)
{
    u32 nr = v->domain->nr_vcpus;
    *m = (struct vcpu_mask){ 0 };
    return copy_from_guest(v, m->word, va, (nr + 63) / 64 * sizeof(u64));
}

void vcpu_mask_flush(struct domain *d, const struct vcpu_mask *m)
{
    bool high = false;
    for (unsigned w = 1; w < ARRAY_SIZE(m->word); w++)
        high |= m->word[w] != 0;
    if (high)                           /* tlb_flush_vcpus knows the first 64; flushing more than asked for is harmless */
        tlb_flush_domain(d);
    else
        tlb_flush_vcpus(d, m->word[0]);
}
