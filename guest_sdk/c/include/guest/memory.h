/*
 * Memory: the linear mapping, pages, page tables.
 *
 * Every page of the domain is mapped at VIRT_BASE + pfn * 4096 (the builder maps the first few MiB, memory_init the rest, up to
 * 2 GiB). Frame numbers: pfn, the guest's own; mfn, the machine's, which page tables and grants hold. P2M and M2P translate.
 * A page that is a page table may be mapped writable nowhere: page_protect, then link it.
 */
#ifndef GUEST_MEMORY_H
#define GUEST_MEMORY_H

#include <guest/hypercall.h>

#define VIRT_BASE 0xffffffff80000000ul /* guest.lds and the VIRT_BASE note agree */
#define VMAP_BASE 0xffffc00000000000ul /* window for frames that are not the domain's own */
#define VMAP_PAGES 32768ul

enum {
    PTE_P = 1 << 0, PTE_RW = 1 << 1, PTE_U = 1 << 2, PTE_A = 1 << 5, PTE_D = 1 << 6,
    PTE_TABLE = PTE_P | PTE_RW | PTE_U | PTE_A | PTE_D, /* what an entry that points to a table has */
    PTE_DATA = PTE_P | PTE_RW | PTE_A | PTE_D,
    PTE_RO = PTE_P | PTE_A,
};
#define PTE_NX (1ul << 63)
#define PTE_FRAME 0x000ffffffffff000ul

extern struct start_info *start_info;
extern u64 *p2m; /* [pfn] */

static inline void *pfn_to_virt(u64 pfn)
{
    return (void *)(VIRT_BASE + (pfn << PAGE_SHIFT));
}

static inline u64 virt_to_pfn(const void *va) /* of an address in the linear mapping */
{
    return ((u64)va - VIRT_BASE) >> PAGE_SHIFT;
}

static inline u64 pfn_to_mfn(u64 pfn)
{
    return p2m[pfn];
}

static inline u64 mfn_to_pfn(u64 mfn) /* of a frame that is ours */
{
    return machine_to_phys_mapping[mfn];
}

static inline u64 virt_to_mfn(const void *va)
{
    return pfn_to_mfn(virt_to_pfn(va));
}

static inline void *mfn_to_virt(u64 mfn)
{
    return pfn_to_virt(mfn_to_pfn(mfn));
}

/* ---- Pages ------------------------------------------------------------------------------------------------------- */

/* n adjacent pages of the linear mapping, filled with zeros; NULL if there are none. */
void *page_alloc(u64 n);
void page_free(void *va, u64 n);
u64 page_free_count(void);

/* Sets what a page of the linear mapping may be used for: flags PTE_DATA, PTE_RO, PTE_NX. 0 or -XEN_E<error>. */
s64 page_protect(const void *va, u64 flags);

/* ---- Page tables ------------------------------------------------------------------------------------------------- */

/* A tree of tables. Its pages are in the linear mapping, read-only. */
struct space {
    u64 *l4;
};

extern struct space kernel_space;

/*
 * The entry of level 1 to 4 that translates va, or NULL where a table is missing (or, with create, no page is left for one).
 * Entries are read there and written with pte_write.
 */
u64 *space_entry(const struct space *space, u64 va, u32 level, bool create);

/* mmu_update of one entry in the linear mapping. Does not flush: a replaced translation wants tlb_flush. */
s64 pte_write(const u64 *entry, u64 value);

/* Maps one page: pte is mfn << 12 | PTE_*. Makes missing tables. */
s64 space_map(const struct space *space, u64 va, u64 pte);

/* In the kernel's space, with a flush on all vCPUs. unmap is map of 0. */
s64 kernel_map(u64 va, u64 pte);
s64 kernel_unmap(u64 va);

/* An empty L4 with no L1 to L3, and the end of it: unpinned, all its tables freed (not the data pages). */
s64 space_create(struct space *space);
void space_destroy(struct space *space);

/* One mmuext_op: MMUEXT_PIN_L1_TABLE and the like. */
s64 mmuext(u32 cmd, u64 arg1, u64 arg2);

static inline s64 tlb_flush(void)
{
    return mmuext(MMUEXT_TLB_FLUSH_ALL, 0, 0);
}

/* Addresses in the VMAP window whose L1 tables exist, with nothing mapped: for kernel_map and grant mappings. */
void *vmap_alloc(u64 pages);
void vmap_free(void *va, u64 pages); /* after unmapping */

void memory_init(void); /* also: text read-only, data not executable */

#endif
