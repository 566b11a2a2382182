/* See mmu.h. */
#include "machine/mmu.h"

#include <sched.h>
#include <string.h>

#include "hv/host.h"

static inline bool in_m2p(u64 va) { return va - MACH2PHYS_VIRT_START < MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START; }

/* ---- flushing and shootdown -------------------------------------------------------------------------------------- */

void tlb_flush_local(struct vcpu *v)
{
    struct tlb *t = v->tlb;
    u64 stamp = atomic_add(&v->host->tlb_clock, 1) + 1;
    if (t->used) {
        tlb_next_generation(t);
        if (v->cpu)
            v->cpu->code.tag = 0;               /* its generation comes round too */
        stat_inc(v, tlb_flushes);
    }
    store_release(t->stamp, stamp);
}

void tlb_flush_page_local(struct vcpu *v, u64 va)
{
    for (unsigned set = 0; set < 2; set++) {
        struct tlb_entry *e = tlb_slot(v->tlb, set, va);
        if (e->read_tag == tlb_tag(v->tlb, va))
            e->read_tag = e->write_tag = e->exec_tag = 0;
    }
    v->tlb->flushed_va = va;
    v->tlb->page_flushes++;
    if (v->cpu)
        v->cpu->code.tag = 0;
}

/* Only one thread exists with the virtual clock: no barrier needed. */
static inline bool threaded(const struct host *h) { return h->clock.kind == CLOCK_REAL; }

void vcpu_enter_guest(struct vcpu *v)
{
    if (v->in_guest) {
        v->in_guest++;
        return;
    }
    if (threaded(v->host)) {
        write_once(v->guest_entries, v->guest_entries + 1);
        xchg(&v->in_guest, 1);          /* full barrier: announce, then look for a wanted flush */
    } else {
        v->in_guest = 1;
    }
    if (unlikely(load_acquire(v->tlb_flush_wanted))) {
        xchg(&v->tlb_flush_wanted, 0);
        tlb_flush_local(v);
    }
}

void vcpu_leave_guest(struct vcpu *v)
{
    store_release(v->in_guest, v->in_guest - 1);
}

/* One round of waiting for v to leave guest mode. Machine code would stay there for long: it is told, and again, as a nudge may be lost. */
static void wait_for(struct vcpu *v, unsigned spins)
{
    if (v->cpu && spins % 128 == 0) {
        atomic_or(&v->exit_work, WORK_flush);
        vcpu_nudge(v);
    }
    if (spins % 128 == 127)
        sched_yield();                  /* its thread may have lost the host CPU in the middle of a copy */
    else
        cpu_relax();
}

/* Makes v flush before it next uses its TLB, and waits while it is using it now. */
static void want_flush(struct vcpu *v)
{
    xchg(&v->tlb_flush_wanted, 1);
    if (!threaded(v->host))
        return;
    for (unsigned spins = 0; load_acquire(v->in_guest) && load_acquire(v->tlb_flush_wanted); spins++)
        wait_for(v, spins);
}

static void guest_mode_wait_domain(struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = load_acquire(d->vcpu[i]);
        if (!v || !v->cpu)
            continue;
        u32 entries = load_acquire(v->guest_entries);
        for (unsigned spins = 0; load_acquire(v->in_guest) && load_acquire(v->guest_entries) == entries; spins++)
            wait_for(v, spins);
    }
}

void guest_mode_wait(struct host *h, struct domain *d)
{
    if (!threaded(h))
        return;
    smp_mb();
    if (d) {
        guest_mode_wait_domain(d);
        return;
    }
    spin_lock(&h->domains_lock);
    for (d = h->domains; d; d = d->next)
        guest_mode_wait_domain(d);
    spin_unlock(&h->domains_lock);
}

static void shootdown_domain(struct domain *d, u64 stamp)
{
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = load_acquire(d->vcpu[i]);      /* NULL: the domain is being made */
        if (v && load_acquire(v->tlb->stamp) <= stamp)
            want_flush(v);
    }
}

void tlb_shootdown_since(struct host *h, u64 stamp)
{
    smp_mb();
    spin_lock(&h->domains_lock);        /* keeps the list and its vCPUs; nobody in guest mode ever takes it */
    for (struct domain *d = h->domains; d; d = d->next)
        shootdown_domain(d, stamp);
    spin_unlock(&h->domains_lock);
}

void tlb_shootdown_frame(struct host *h, u64 mfn)
{
    struct frame *f = mfn_frame(&h->machine, mfn);
    smp_mb();
    if (read_once(f->count_info) & PGC_FOREIGN)
        tlb_shootdown_since(h, f->tlb_stamp);
    else
        shootdown_domain(h->domain_by_id[f->owner], f->tlb_stamp);
}

void tlb_flush_domain(struct domain *d)
{
    shootdown_domain(d, NEVER);
}

void tlb_flush_vcpus(struct domain *d, u64 vcpu_mask)
{
    for (u32 i = 0; i < d->nr_vcpus && i < 64; i++)
        if ((vcpu_mask >> i & 1) && d->vcpu[i])
            want_flush(d->vcpu[i]);
}

u64 tlb_audit(struct host *h)
{
    u64 bad = 0;
    for (struct domain *d = h->domains; d; d = d->next)
        for (u32 i = 0; i < d->nr_vcpus; i++) {
            struct vcpu *v = d->vcpu[i];
            if (!v || !v->tlb->used || load_acquire(v->tlb_flush_wanted))
                continue;               /* will flush before it looks at an entry again */
            for (unsigned k = 0; k < 2 * TLB_ENTRIES; k++) {
                const struct tlb_entry *e = &v->tlb->e[k / TLB_ENTRIES][k % TLB_ENTRIES];
                if (e->write_tag % PAGE_SIZE != v->tlb->generation)
                    continue;
                const struct frame *f = mfn_frame(&h->machine, (u64)(e->page - h->machine.ram) >> PAGE_SHIFT);
                if (f->owner != DOMID_INVALID &&        /* a free frame is shot down before it is used again */
                    pgt_type(read_once(f->type_info)) != PGT_writable_page)
                    bad++;
            }
        }
    return bad;
}

/* ---- walking ----------------------------------------------------------------------------------------------------- */

static u64 *table_entry(struct host *h, u64 mfn, u64 va, unsigned shift)
{
    return (u64 *)mfn_ptr(&h->machine, mfn) + (va >> shift & 511);
}

static inline u32 root(const struct vcpu *v) { return v->kernel_mode ? v->cr3_mfn : v->user_cr3_mfn; }

/* Sets `bits` in *pte if it still is `seen`, as hardware sets accessed and dirty. */
static bool set_ad(struct host *h, u64 table_mfn, u64 *pte, u64 seen, u64 bits)
{
    if ((seen & bits) == bits)
        return true;
    bool done = cmpxchg(pte, &seen, seen | bits);       /* a full barrier; then the codemap is told */
    frame_mark_dirty(&h->machine, table_mfn);
    return done;
}

/* One walk. Returns 0 and the leaf in *out, with RW only if every level has it and NX if any has, or -EFAULT with *error_code. Tables
 * reached from a typed L4 are validated, so every present entry names a frame of ours. Caller is in guest mode, so no table is freed
 * under it. */
static int walk(struct vcpu *v, u64 va, enum mmu_access access, u64 *out, u32 *error_code)
{
    struct host *h = v->host;
    u32 mode = (access & (PFEC_write | PFEC_insn)) | (v->kernel_mode ? 0 : PFEC_user);
again:;
    u64 table = root(v), rights = PTE_RW, nx = 0, pte = 0, *slot = NULL;
    if (!table) {
        *error_code = mode;
        return -XEN_EFAULT;
    }
    for (unsigned shift = L4_PAGETABLE_SHIFT; ; shift -= 9) {
        slot = table_entry(h, table, va, shift);
        pte = read_once(*slot);
        if (!(pte & PTE_P)) {
            *error_code = mode;
            return -XEN_EFAULT;
        }
        rights &= pte;
        nx |= pte & PTE_NX;
        if (shift == L1_PAGETABLE_SHIFT)
            break;
        if (!set_ad(h, table, slot, pte, PTE_A))
            goto again;
        table = pte_mfn(pte);
    }
    if ((access == MMU_WRITE && !(rights & PTE_RW)) || (access == MMU_EXEC && nx)) {
        *error_code = mode | PFEC_present;
        return -XEN_EFAULT;
    }
    if (!set_ad(h, table, slot, pte, access == MMU_WRITE ? PTE_A | PTE_D : PTE_A))
        goto again;
    *out = (pte & ~PTE_RW) | (rights & PTE_RW) | nx;
    return 0;
}

static int fault(struct vcpu *v, struct mmu_fault *f, u64 va, u32 error_code)
{
    stat_inc(v, page_faults);
    if (f)
        *f = (struct mmu_fault){ va, error_code };
    return -XEN_EFAULT;
}

/* The read-only M2P at MACH2PHYS_VIRT_START. Entries of frames never used read as invalid; beyond the machine it faults. */
static int m2p_read(struct vcpu *v, u8 *dst, u64 va, u64 n, struct mmu_fault *f)
{
    const struct machine *m = &v->host->machine;
    for (u64 i = 0; i < n; i++) {
        u64 off = va + i - MACH2PHYS_VIRT_START, mfn = off / sizeof(u64);
        if (mfn >= m->nr_frames)
            return fault(v, f, va + i, 0);
        u64 entry = m2p_get(m, mfn);
        dst[i] = (u8)(entry >> (off % sizeof(u64) * 8));
    }
    return 0;
}

/* The entry for va, with the rights that were found for another page invalid: of another address, or one that va had before the guest
 * changed its tables without a flush. */
static struct tlb_entry *entry_take(struct vcpu *v, u64 va, u8 *page)
{
    u64 tag = tlb_tag(v->tlb, va);
    struct tlb_entry *e = tlb_slot(v->tlb, !v->kernel_mode, va);
    if (e->read_tag != tag || e->page != page)
        e->write_tag = e->exec_tag = 0;
    e->read_tag = tag;
    e->page = page;
    v->tlb->used = true;
    return e;
}

/* A page of the M2P: read-only, to user mode too unless the domain asked for m2p_strict (section 1.9). NULL: a fault, as where no frame
 * was ever used. */
static u8 *m2p_page(struct vcpu *v, u64 va, enum mmu_access access)
{
    const struct machine *m = &v->host->machine;
    u64 first = (va - MACH2PHYS_VIRT_START) / PAGE_SIZE * (PAGE_SIZE / sizeof(u64));
    bool hidden = !v->kernel_mode && (read_once(v->domain->vm_assist) >> VMASST_TYPE_m2p_strict & 1);
    if (access != MMU_READ || hidden || first + PAGE_SIZE / sizeof(u64) > load_acquire(m->m2p_valid))
        return NULL;
    return entry_take(v, va, (u8 *)&m->m2p[first])->page;
}

static u8 *tlb_fill(struct vcpu *v, u64 va, enum mmu_access access, struct mmu_fault *f)
{
    struct host *h = v->host;
    u32 error_code;
    u64 pte;

    if (!va_canonical(va) || in_hypervisor_range(va)) {
        u8 *page = in_m2p(va) ? m2p_page(v, va, access) : NULL;
        if (!page)
            fault(v, f, va, access | (v->kernel_mode ? 0 : PFEC_user) | PFEC_present);
        return page;
    }
    if (walk(v, va, access, &pte, &error_code)) {
        fault(v, f, va, error_code);
        return NULL;
    }
    stat_inc(v, tlb_fills);
    u64 mfn = pte_mfn(pte);
    struct tlb_entry *e = entry_take(v, va, mfn_ptr(&h->machine, mfn));
    if (!(pte & PTE_NX))
        e->exec_tag = e->read_tag;
    /* As in hardware, a read serves later writes too where the page is dirty already: hypercall arguments are read, then written.
     * The L1 was validated: an RW entry holds a writable type reference. */
    if (access == MMU_WRITE || (pte & (PTE_RW | PTE_D)) == (PTE_RW | PTE_D)) {
        frame_mark_stored(&h->machine, mfn);
        if (likely(!codemap_page_has(&h->machine.codemap, mfn)))        /* else each store to it is to be seen (machine/codemap.h) */
            e->write_tag = e->read_tag;
    }
    return e->page;
}

u8 *mmu_page(struct vcpu *v, u64 va, enum mmu_access access, struct mmu_fault *f)
{
    const struct tlb_entry *e = tlb_slot(v->tlb, !v->kernel_mode, va);
    u64 has = access == MMU_WRITE ? e->write_tag : access == MMU_EXEC ? e->exec_tag : e->read_tag;
    return likely(has == tlb_tag(v->tlb, va)) ? e->page : tlb_fill(v, va, access, f);
}

/* ---- access ------------------------------------------------------------------------------------------------------ */

static inline u64 bytes_in_page(u64 va, u64 n)
{
    u64 left = PAGE_SIZE - va % PAGE_SIZE;
    return n < left ? n : left;
}

/* Aligned words are moved whole: rings and shared_info are read and written by other CPUs meanwhile. */
static inline void move(void *dst, const void *src, u64 n)
{
    if (n == 8 && !(((u64)dst | (u64)src) & 7))
        write_once(*(u64 *)dst, read_once(*(const u64 *)src));
    else if (n == 4 && !(((u64)dst | (u64)src) & 3))
        write_once(*(u32 *)dst, read_once(*(const u32 *)src));
    else
        memcpy(dst, src, n);
}

int mmu_read(struct vcpu *v, void *dst, u64 va, u64 n, struct mmu_fault *f)
{
    u8 *out = dst;
    int rc = 0;
    vcpu_enter_guest(v);
    while (n && !rc) {
        u64 part = bytes_in_page(va, n);
        if (unlikely(in_m2p(va))) {
            rc = m2p_read(v, out, va, part, f);
        } else {
            const u8 *page = mmu_page(v, va, MMU_READ, f);
            if (page)
                move(out, page + va % PAGE_SIZE, part);
            else
                rc = -XEN_EFAULT;
        }
        out += part, va += part, n -= part;
    }
    vcpu_leave_guest(v);
    return rc;
}

int mmu_write(struct vcpu *v, u64 va, const void *src, u64 n, struct mmu_fault *f)
{
    const u8 *in = src;
    int rc = 0;
    vcpu_enter_guest(v);
    while (n) {
        u64 part = bytes_in_page(va, n);
        u8 *page = mmu_page(v, va, MMU_WRITE, f);
        if (!page) {
            rc = -XEN_EFAULT;
            break;
        }
        bool code = codemap_has(&v->host->machine.codemap, page);       /* no: a first claim waits until we have left guest mode */
        move(page + va % PAGE_SIZE, in, part);
        if (unlikely(code)) {
            smp_mb();
            codemap_wrote(&v->host->machine.codemap, page + va % PAGE_SIZE, part);
        }
        in += part, va += part, n -= part;
    }
    vcpu_leave_guest(v);
    return rc;
}

int mmu_translate(struct vcpu *v, u64 va, enum mmu_access access, u64 *mfn, struct mmu_fault *f)
{
    u32 error_code = access | PFEC_present;
    u64 pte;
    vcpu_enter_guest(v);
    int rc = va_canonical(va) && !in_hypervisor_range(va) ? walk(v, va, access, &pte, &error_code) : -XEN_EFAULT;
    vcpu_leave_guest(v);
    if (rc)
        return fault(v, f, va, error_code);
    *mfn = pte_mfn(pte);
    return 0;
}

bool mmu_find_l1e(struct vcpu *v, u64 va, u64 *pte_maddr)
{
    struct host *h = v->host;
    u64 table = v->cr3_mfn;
    if (!va_canonical(va) || in_hypervisor_range(va))
        return false;
    for (unsigned shift = L4_PAGETABLE_SHIFT; table && shift > L1_PAGETABLE_SHIFT; shift -= 9) {
        u64 pte = read_once(*table_entry(h, table, va, shift));
        if (!(pte & PTE_P))
            return false;
        table = pte_mfn(pte);
    }
    *pte_maddr = (table << PAGE_SHIFT) | ((va >> L1_PAGETABLE_SHIFT & 511) * sizeof(u64));
    return table != 0;
}

/* Hypercall pointers are kernel addresses; the hypervisor range is refused even where a guest may read it (2.1). A runstate area may
 * be written while v is in user mode. */
int copy_from_guest(struct vcpu *v, void *dst, u64 va, u64 n)
{
    if (unlikely(in_hypervisor_range(va) || in_hypervisor_range(va + n)))
        return -XEN_EFAULT;
    bool mode = v->kernel_mode;
    v->kernel_mode = true;
    int rc = mmu_read(v, dst, va, n, NULL);
    v->kernel_mode = mode;
    return rc;
}

int copy_to_guest(struct vcpu *v, u64 va, const void *src, u64 n)
{
    if (unlikely(in_hypervisor_range(va) || in_hypervisor_range(va + n)))
        return -XEN_EFAULT;
    bool mode = v->kernel_mode;
    v->kernel_mode = true;
    int rc = mmu_write(v, va, src, n, NULL);
    v->kernel_mode = mode;
    return rc;
}
