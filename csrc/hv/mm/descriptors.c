/* Descriptor tables: set_gdt, update_descriptor, and the checks that make a page PGT_seg_desc_page.
 *
 * Owns: vcpu->arch.gdt_mfns and gdt_ents, ldt_mfns, ldt_base and ldt_ents. Called by: hypercalls, VCPUOP_initialise (mm_set_gdt,
 * mm_set_ldt), death, segment loads of machine code (mm_descriptor). Lock: mm.lock of the domain. Section 3.12: no descriptor that a
 * guest can load may give it more than ring 3, and a page of checked descriptors cannot be mapped writable.
 */
#include "hv/mm/mm_internal.h"

enum { GDT_PAGES = 14, DESCRIPTORS_PER_PAGE = PAGE_SIZE / sizeof(u64) };

#define DESC_TYPE       (0xful << 40)
#define DESC_TYPE_GATE  (0xcul << 40)
#define DESC_S          (1ul << 44)
#define DESC_DPL        (3ul << 45)
#define DESC_P          (1ul << 47)
#define DESC_GATE_ZERO  (0xfful << 32)          /* must be 0 in a 64-bit call gate */

/* Selectors a call gate may lead to: the guest's own descriptors, or the kernel code segment. */
static bool gate_selector_ok(u16 selector)
{
    return (selector & 4) || selector >> 3 < FIRST_RESERVED_GDT_ENTRY || selector == FLAT_KERNEL_CS;
}

/* False: refused. May change the privilege level in *desc. */
static bool descriptor_check(u64 *desc)
{
    u64 d = *desc;
    if (!(d & DESC_P))                  /* faults when used, whatever it says */
        return true;
    d |= DESC_DPL;
    if (!(d & DESC_S) && (d & DESC_TYPE)) {     /* type 0: the second half of a gate, harmless */
        if ((d & DESC_TYPE) != DESC_TYPE_GATE || !gate_selector_ok((u16)(d >> 16)) || (d & DESC_GATE_ZERO))
            return false;
        d &= ~DESC_DPL;                 /* its use faults and can be emulated */
    }
    *desc = d;
    return true;
}

int segdesc_validate(struct host *h, u32 mfn)
{
    u64 *desc = table_of(h, mfn);
    for (unsigned i = 0; i < DESCRIPTORS_PER_PAGE; i++)
        if (!descriptor_check(&desc[i]))
            return -XEN_EINVAL;
    return 0;
}

static void gdt_drop(struct vcpu *v)
{
    for (unsigned i = 0; i < GDT_PAGES; i++)
        if (v->arch.gdt_mfns[i]) {
            put_page_and_type(v->host, v->arch.gdt_mfns[i]);
            v->arch.gdt_mfns[i] = 0;
        }
    v->arch.gdt_ents = 0;
}

int mm_set_gdt(struct vcpu *v, const u64 *frames, u32 entries)
{
    struct domain *d = v->domain;
    struct host *h = v->host;
    if (entries > FIRST_RESERVED_GDT_ENTRY)
        return -XEN_EINVAL;
    u32 n = (entries + DESCRIPTORS_PER_PAGE - 1) / DESCRIPTORS_PER_PAGE, i = 0;

    spin_lock(&d->mm.lock);
    while (i < n && !get_page_and_type(h, frames[i], d, PGT_seg_desc_page))
        i++;
    int rc = i == n ? 0 : -XEN_EINVAL;
    if (rc) {
        while (i--)
            put_page_and_type(h, frames[i]);
    } else {
        gdt_drop(v);
        for (i = 0; i < n; i++)
            v->arch.gdt_mfns[i] = (u32)frames[i];
        v->arch.gdt_ents = (u16)entries;
    }
    spin_unlock(&d->mm.lock);
    return rc;
}

s64 do_set_gdt(struct vcpu *v, u64 frame_list, u64 entries)
{
    u64 frames[GDT_PAGES];
    u32 n = (u32)entries;               /* an unsigned int in the ABI */
    if (n > FIRST_RESERVED_GDT_ENTRY)
        return -XEN_EINVAL;
    u32 pages = (n + DESCRIPTORS_PER_PAGE - 1) / DESCRIPTORS_PER_PAGE;
    if (copy_from_guest(v, frames, frame_list, pages * sizeof *frames))
        return -XEN_EFAULT;
    return mm_set_gdt(v, frames, n);
}

s64 do_update_descriptor(struct vcpu *v, u64 maddr, u64 desc)
{
    struct domain *d = v->domain;
    struct host *h = v->host;
    u64 mfn = maddr >> PAGE_SHIFT;
    unsigned i = maddr / sizeof desc % DESCRIPTORS_PER_PAGE;
    int rc = 0;
    if (maddr % sizeof desc || !descriptor_check(&desc) || !get_page(h, mfn, d))
        return -XEN_EINVAL;

    spin_lock(&d->mm.lock);             /* keeps a page of descriptors what it is */
    u64 type_info = read_once(mfn_frame(&h->machine, mfn)->type_info), *page;
    if (pgt_type(type_info) == PGT_seg_desc_page && pgt_count(type_info)) {
        write_once(table_of(h, mfn)[i], desc);
        frame_mark_dirty(&h->machine, mfn);
    } else if ((page = frame_write_begin(h, mfn, NULL))) {
        write_once(page[i], desc);
        frame_write_end(h, mfn);
    } else {
        rc = -XEN_EINVAL;
    }
    spin_unlock(&d->mm.lock);
    put_page(h, mfn);
    return rc;
}

/* ---- the LDT: its pages become descriptor pages when they are first used ----------------------------------------- */

void ldt_pages_drop(struct vcpu *v)
{
    for (unsigned i = 0; i < ARRAY_SIZE(v->arch.ldt_mfns); i++)
        if (v->arch.ldt_mfns[i]) {
            put_page_and_type(v->host, v->arch.ldt_mfns[i]);
            v->arch.ldt_mfns[i] = 0;
        }
}

void mm_set_ldt(struct vcpu *v, u64 base, u32 entries)
{
    spin_lock(&v->domain->mm.lock);
    ldt_pages_drop(v);
    v->arch.ldt_base = entries ? base : 0;
    v->arch.ldt_ents = entries;
    spin_unlock(&v->domain->mm.lock);
}

/* The frame behind page `i` of the LDT in v's kernel tables, typed and kept. 0: it is not mapped, or may not hold descriptors. */
static u32 ldt_page(struct vcpu *v, unsigned i)
{
    struct host *h = v->host;
    u32 *mfn = &v->arch.ldt_mfns[i], table;
    if (*mfn)
        return *mfn;
    u64 *slot = l1_slot_of_va(v, v->arch.ldt_base + i * (u64)PAGE_SIZE, &table), pte = slot ? read_once(*slot) : 0;
    if ((pte & PTE_P) && !get_page_and_type(h, pte_mfn(pte), v->domain, PGT_seg_desc_page))
        *mfn = (u32)pte_mfn(pte);
    return *mfn;
}

/* ---- what a selector names --------------------------------------------------------------------------------------- */

static u64 xen_descriptor(unsigned i)
{
    switch (i) {
    case FLAT_RING3_CS32 >> 3:
        return 0x00cffb000000ffff;
    case FLAT_RING3_DS32 >> 3:
        return 0x00cff3000000ffff;
    case FLAT_RING3_CS64 >> 3:
        return 0x00affb000000ffff;
    default:
        return 0;
    }
}

enum descriptor_result mm_descriptor(struct vcpu *v, u16 sel, u64 *desc)
{
    unsigned i = sel >> 3, page = i / DESCRIPTORS_PER_PAGE;
    bool local = sel & 4;
    *desc = 0;
    if (local && i >= v->arch.ldt_ents)
        return DESC_BEYOND;
    if (!local && page >= GDT_PAGES) {
        *desc = xen_descriptor(i);
        return DESC_OK;
    }
    spin_lock(&v->domain->mm.lock);
    u32 mfn = local ? ldt_page(v, page) : v->arch.gdt_mfns[page];
    if (mfn)
        *desc = read_once(table_of(v->host, mfn)[i % DESCRIPTORS_PER_PAGE]);
    spin_unlock(&v->domain->mm.lock);
    return mfn || !local ? DESC_OK : DESC_UNMAPPED;
}

void descriptor_tables_drop(struct vcpu *v)
{
    gdt_drop(v);
    ldt_pages_drop(v);
    v->arch.ldt_base = 0;
    v->arch.ldt_ents = 0;
}

void mm_drop_descriptor_tables(struct vcpu *v)
{
    spin_lock(&v->domain->mm.lock);
    descriptor_tables_drop(v);
    spin_unlock(&v->domain->mm.lock);
}
