/* Paging of a CPU that walks its own page tables (bare.c, pc/): none, 32-bit, PAE, 4-level (vol. 3, chapter 4).
 *
 * Owns: the walk, its error codes, accessed and dirty bits, what a walk puts into the soft TLB; flushing that TLB.
 * Called by: x86_ops.page, the handlers of mov cr, invlpg, wrmsr. Locks: none; A and D are set by compare-and-swap, as other CPUs
 * may be changing the entry.
 */
#include "machine/codemap.h"
#include "machine/frame.h"
#include "x86/cpu.h"

#include <string.h>

enum { P = 1 << 0, RW = 1 << 1, US = 1 << 2, A = 1 << 5, D = 1 << 6, PS = 1 << 7 };
#define NX (1ul << 63)
#define ADDR_MASK ((1ul << X86_PHYS_BITS) - PAGE_SIZE)
#define ABOVE_PHYS (((1ul << 52) - 1) & ~((1ul << X86_PHYS_BITS) - 1))

/* ---- formats ----------------------------------------------------------------------------------------------------- */

struct level {
    u8 shift;           /* of the linear address */
    u8 bits;            /* of the index */
    bool large;         /* PS makes it a leaf, if `large_if` allows */
    u64 reserved;       /* without PS */
    u64 reserved_large; /* with PS */
};
struct format { unsigned levels, entry_size; struct level level[4]; };

static const struct format FORMAT_32 = { 2, 4, {
    { 22, 10, true, 0, 0x3fe000 },                                      /* bits 21-13: no PSE-36 (table 4-4) */
    { 12, 10, false, 0, 0 } } };
static const struct format FORMAT_PAE = { 2, 8, {                       /* below the PDPTE registers */
    { 21, 9, true, 0x7ff0000000000000 | ABOVE_PHYS, 0x7ff0000000000000 | ABOVE_PHYS | 0x1fe000 },
    { 12, 9, false, 0x7ff0000000000000 | ABOVE_PHYS, 0 } } };
static const struct format FORMAT_LONG = { 4, 8, {
    { 39, 9, false, ABOVE_PHYS | PS, 0 },
    { 30, 9, true, ABOVE_PHYS, ABOVE_PHYS | 0x3fffe000 },
    { 21, 9, true, ABOVE_PHYS, ABOVE_PHYS | 0x1fe000 },
    { 12, 9, false, ABOVE_PHYS, 0 } } };

/* ---- the walk ---------------------------------------------------------------------------------------------------- */

/* Entries are naturally aligned, so they do not cross a page. NULL: no memory there. */
static u8 *entry_ptr(struct x86_cpu *c, x86_phys_fn *phys, u64 pa, bool write)
{
    u8 *page = phys(c, pa & ~(u64)(PAGE_SIZE - 1), write);
    return page ? page + pa % PAGE_SIZE : NULL;
}

static u64 entry_read(const u8 *p, unsigned size)
{
    return size == 8 ? read_once(*(const u64 *)p) : read_once(*(const u32 *)p);
}

static __attribute__((noinline)) bool entry_change(struct x86_cpu *c, x86_phys_fn *phys, u64 pa, unsigned size, u64 seen, u64 bits)
{
    u8 *p = entry_ptr(c, phys, pa, true);
    u32 seen32 = (u32)seen;
    if (!p)
        return true;
    bool done = size == 8 ? cmpxchg((u64 *)p, &seen, seen | bits) : cmpxchg((u32 *)p, &seen32, (u32)(seen | bits));
    codemap_wrote(c->codemap, p, size);         /* the exchange is the barrier before it */
    return done;
}

/* Sets `bits` in the entry if it still is `seen`; false: it changed meanwhile, walk again. */
static inline bool entry_set(struct x86_cpu *c, x86_phys_fn *phys, u64 pa, unsigned size, u64 seen, u64 bits)
{
    return likely((seen & bits) == bits) || entry_change(c, phys, pa, size, seen, bits);
}

static u8 *fault(struct x86_fault *f, u64 va, u32 error)
{
    *f = (struct x86_fault){ va, error };
    return NULL;
}

/* The walk went well, and there is no memory at pa: a device's registers, or nothing at all. */
static u8 *no_memory(struct x86_fault *f, u64 va, u64 pa, u32 error)
{
    *f = (struct x86_fault){ .va = va, .error = error, .mmio = true, .pa = pa };
    return NULL;
}

static u8 *fill(struct x86_cpu *c, u64 va, u8 *page, bool write, bool exec)
{
    u64 tag = tlb_tag(c->tlb, va);
    struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, va);
    e->read_tag = tag;
    e->write_tag = write && !codemap_has(c->codemap, page) ? tag : 0;
    e->exec_tag = exec ? tag : 0;
    e->page = page;
    c->tlb->used = true;
    return page;
}

/* The page of va, size bytes of it, is being looked at. */
static void note_large(struct tlb *t, u64 va, u64 size)
{
    unsigned half = va >> 63;
    u64 first = va & ~(size - 1), last = first + size - 1;
    if (first < t->large[half].first)
        t->large[half].first = first;
    if (last > t->large[half].last)
        t->large[half].last = last;
}

/* Once for each format, of which the compiler knows the constants. */
static inline __attribute__((always_inline)) u8 *walk(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f, x86_phys_fn *phys,
                                                      const struct format *format)
{
    bool user = c->tlb_set != 0, write = access == MMU_WRITE, exec = access == MMU_EXEC;
    bool pae = format != &FORMAT_32, nxe = pae && c->efer & X86_EFER_NXE;
    u32 error = (write ? PFEC_write : 0) | (user ? PFEC_user : 0) | (exec && nxe ? PFEC_insn : 0);      /* 4.7 */
again:;
    u64 table = c->cr3 & (pae ? ADDR_MASK : 0xfffff000), entry = 0, entry_pa = 0, rights = RW | US, nx = 0, size = 0;
    if (format == &FORMAT_PAE) {
        u64 pdpte = c->pdpte[va >> 30 & 3];
        if (!(pdpte & P))
            return fault(f, va, error);
        table = pdpte & ADDR_MASK;
    }
#pragma GCC unroll 4
    for (unsigned n = 0; n < format->levels; n++) {
        const struct level *l = &format->level[n];
        entry_pa = table + (va >> l->shift & ((1u << l->bits) - 1)) * format->entry_size;
        const u8 *p = entry_ptr(c, phys, entry_pa, false);
        if (!p)
            return fault(f, va, error);
        entry = entry_read(p, format->entry_size);
        if (!(entry & P))
            return fault(f, va, error);
        bool leaf = l->shift == PAGE_SHIFT || (l->large && entry & PS && (pae || c->cr4 & X86_CR4_PSE));
        u64 reserved = (leaf && l->shift != PAGE_SHIFT ? l->reserved_large : l->reserved) | (pae && !nxe ? NX : 0);
        if (entry & reserved)
            return fault(f, va, error | PFEC_present | PFEC_reserved);
        rights &= entry;
        nx |= entry & NX;
        size = 1ul << l->shift;
        if (leaf)
            break;
        if (!entry_set(c, phys, entry_pa, format->entry_size, entry, A))
            goto again;
        table = entry & (pae ? ADDR_MASK : 0xfffff000);
    }
    bool writable = rights & RW || (!user && !(c->cr0 & X86_CR0_WP));
    if ((user && !(rights & US)) || (write && !writable) || (exec && nx))
        return fault(f, va, error | PFEC_present);
    if (!entry_set(c, phys, entry_pa, format->entry_size, entry, write ? A | D : A))
        goto again;

    if (size > PAGE_SIZE)
        note_large(c->tlb, va, size);
    bool dirty = write || entry & D;
    u64 pa = (entry & (pae ? ADDR_MASK : 0xfffff000) & ~(size - 1)) | (va & (size - 1) & ~(u64)(PAGE_SIZE - 1));
    u8 *page = phys(c, pa, write);
    if (!page)
        return no_memory(f, va, pa, error);
    /* As hardware does, a read may enable later writes where the page is dirty already; but only if phys would agree. */
    if (!write && writable && dirty)
        dirty = phys(c, pa, true) == page;
    return fill(c, va, page, writable && dirty, !nx);
}

u8 *x86_page_walk(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f, x86_phys_fn *phys)
{
    bool write = access == MMU_WRITE;
    if (unlikely(!(c->cr0 & X86_CR0_PG))) {
        u32 pa = (u32)va & ~(u32)(PAGE_SIZE - 1);
        u8 *page = phys(c, pa, write);
        return page ? fill(c, va, page, write, true) : no_memory(f, va, pa, write ? PFEC_write : 0);
    }
    if (likely(c->long_mode))
        return walk(c, va, access, f, phys, &FORMAT_LONG);
    return c->cr4 & X86_CR4_PAE ? walk(c, va, access, f, phys, &FORMAT_PAE) : walk(c, va, access, f, phys, &FORMAT_32);
}

bool x86_load_pdptes(struct x86_cpu *c, u64 cr3)
{
    u64 pdpte[4], pa = cr3 & 0xffffffe0;
    const u8 *p = entry_ptr(c, c->ops->phys, pa, false);
    for (unsigned n = 0; n < 4; n++) {
        pdpte[n] = p ? entry_read(p + 8 * n, 8) : 0;
        if (pdpte[n] & P && pdpte[n] & (0xfff0000000000000 | ABOVE_PHYS | 0x1e6))       /* bits 1-2, 5-8 (table 4-8) */
            return false;
    }
    memcpy(c->pdpte, pdpte, sizeof pdpte);
    return true;
}

/* ---- flushing ---------------------------------------------------------------------------------------------------- */

void x86_tlb_flush(struct x86_cpu *c)
{
    struct tlb *t = c->tlb;
    if (t->used || !t->generation)
        tlb_next_generation(t);
    for (unsigned half = 0; half < 2; half++)
        t->large[half].first = ~0ul, t->large[half].last = 0;
    c->code.tag = 0;
}

/* A large page goes as a whole, but the soft TLB has it in pieces and does not know them: where there may be one, everything goes (vol. 3, 4.10.4.1
 * allows more than the page). */
void x86_tlb_flush_linear(struct x86_cpu *c, u64 va)
{
    const struct tlb *t = c->tlb;
    unsigned half = va >> 63;
    if (va >= t->large[half].first && va <= t->large[half].last)
        x86_tlb_flush(c);
    else
        x86_tlb_flush_page(c, va);
}

void x86_tlb_flush_page(struct x86_cpu *c, u64 va)
{
    u64 tag = tlb_tag(c->tlb, va);
    for (unsigned set = 0; set < 2; set++) {
        struct tlb_entry *e = tlb_slot(c->tlb, set, va);
        if (e->read_tag == tag)
            e->read_tag = e->write_tag = e->exec_tag = 0;
    }
    c->tlb->flushed_va = va;
    c->tlb->page_flushes++;
    c->code.tag = 0;
}
