/* Guest-physical memory of a PC: RAM from 0 up, frame by frame, and what is there where no RAM is.
 *
 * Owns: pc.p2m and the references behind it: each frame is held, and typed writable, from before the domain first runs until it dies. So the
 * frames may stand in a vCPU's TLB without further references, and can never become page tables of the hypervisor's own kind; other writers
 * (frame_write_begin: back ends, the debugger) work on them as on any. The guest's page tables are its own business: nothing is checked,
 * because a guest frame number that is not in p2m reaches nothing.
 * Called by: the x86 engine (pc_page, in guest mode), xenlike.h. Locks: none; p2m is fixed.
 */
#include "pc/pc.h"

#include "machine/frame_type.h"

enum { MAX_PAGES = 3u << 18 };          /* 3 GiB: above are the APICs, and no hole is cut into RAM for them */

int pc_populate(struct pc *pc, u32 n)
{
    struct domain *d = pc->domain;
    struct host *h = d->host;
    if (pc->nr_pages || !n || n > MAX_PAGES)
        return -XEN_EINVAL;
    u32 *p2m = arena_alloc(&h->arena, n * sizeof *p2m);
    if (!p2m)
        return -XEN_ENOMEM;
    int rc = frames_alloc(h, d, n, false, p2m);
    if (rc) {
        arena_free(&h->arena, p2m, n * sizeof *p2m);
        return rc;
    }
    for (u32 gfn = 0; gfn < n; gfn++) {
        m2p_set(&h->machine, p2m[gfn], gfn);
        (void)get_page_and_type(h, p2m[gfn], d, PGT_writable_page);     /* fresh frames of d: cannot fail */
    }
    pc->p2m = p2m;
    pc->nr_pages = n;
    rtc_tell_memory(pc);
    return 0;
}

void pc_release(struct pc *pc)
{
    u32 n = pc->nr_pages;
    pc->nr_pages = 0;
    for (u32 gfn = 0; gfn < n; gfn++)
        put_page_and_type(pc->domain->host, pc->p2m[gfn]);
    if (n)
        arena_free(&pc->domain->host->arena, pc->p2m, n * sizeof *pc->p2m);
}

u8 *pc_phys(struct x86_cpu *c, u64 pa, bool write)
{
    const struct pc_cpu *p = pc_cpu_of(c);
    const struct pc *pc = p->pc;
    struct machine *m = &pc_vcpu(p)->host->machine;
    u64 gfn = pa >> PAGE_SHIFT;
    if (unlikely(gfn >= pc->nr_pages || (c->apic_base & PC_APIC_ENABLE && gfn == c->apic_base >> PAGE_SHIFT)))
        return NULL;
    u32 mfn = pc->p2m[gfn];
    if (write)
        frame_mark_stored(m, mfn);
    return mfn_ptr(m, mfn);
}

u8 *pc_page(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f)
{
    struct pc_cpu *p = pc_cpu_of(c);
    u8 *page = x86_page_walk(c, va, access, f, pc_phys);
    if (page)
        stat_inc(pc_vcpu(p), tlb_fills);
    else if (f->mmio && access == MMU_EXEC)
        return p->pc->nowhere;          /* ones: #UD; not in the TLB, where data accesses would find it */
    else if (!f->mmio)
        stat_inc(pc_vcpu(p), page_faults);
    return page;
}

/* A walk with this sets no accessed bits: paging.c lets those be that stand where it may not write. */
static u8 *read_only(struct x86_cpu *c, u64 pa, bool write) { return write ? NULL : pc_phys(c, pa, false); }

bool pc_translate(struct vcpu *v, u64 va, u64 *mfn)
{
    struct x86_cpu *c = v->cpu;
    struct x86_fault f;
    u32 set = c->tlb_set;
    c->tlb_set = 0;                     /* by a supervisor's rights, and so into its set; the entry goes again */
    const u8 *page = x86_page_walk(c, va, MMU_READ, &f, read_only);
    x86_tlb_flush_page(c, va);
    c->tlb_set = set;
    if (page)
        *mfn = (u64)(page - v->host->machine.ram) >> PAGE_SHIFT;
    return page != NULL;
}
