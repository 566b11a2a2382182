/* PV64 page tables.
 *
 * Owns: validation and promotion of L1..L4, mmu_update, mmuext_op, update_va_mapping, memory_op, a domain's page list.
 * Called by: hypercalls, get_page_type/put_page_type (machine/frame.h), grants that map by PTE, the builder.
 * Locks: mm.lock of the tables' owner serialises type changes to and from table types and every write to a table; references are
 * counted by cmpxchg, so other domains need no lock. mm.list_lock guards the page list and tot_pages.
 */
#ifndef XL_HV_MM_H
#define XL_HV_MM_H

#include "machine/frame.h"
#include "xen/memory.h"

enum {
    L1_PAGETABLE_SHIFT = 12, L2_PAGETABLE_SHIFT = 21, L3_PAGETABLE_SHIFT = 30, L4_PAGETABLE_SHIFT = 39,
    L4_XEN_FIRST = 256, L4_XEN_LAST = 271,      /* the hypervisor's slots */
};

static const u64 PTE_P = 1, PTE_RW = 2, PTE_U = 4, PTE_PWT = 8, PTE_PCD = 16, PTE_A = 32, PTE_D = 64, PTE_PSE = 128, PTE_G = 256;
static const u64 PTE_GUEST_KERNEL = 1ul << 52, PTE_NX = 1ul << 63;
static const u64 PTE_MFN_MASK = 0x000ffffffffff000ul;
static inline u64 pte_mfn(u64 pte) { return (pte & PTE_MFN_MASK) >> PAGE_SHIFT; }

struct mm_state {
    spinlock_t lock;
    spinlock_t list_lock;
    u32 pages;                  /* first frame of the domain's page list, 0: none. [list_lock] */
    u32 tot_pages, max_pages;   /* [list_lock] */
    u64 work;                   /* page-table entries and the like looked at so far: bounds what one hypercall costs. [lock] */
    u32 nr_e820;                /* XENMEM_memory_map entries set by the toolstack */
    struct { u64 addr, size; u32 type; } e820[4];
};

s64 do_mmu_update(struct vcpu *v, u64 reqs, u64 count, u64 pdone, u64 foreigndom);
s64 do_mmuext_op(struct vcpu *v, u64 ops, u64 count, u64 pdone, u64 foreigndom);
s64 do_update_va_mapping(struct vcpu *v, u64 va, u64 pte, u64 flags);
s64 do_update_va_mapping_otherdomain(struct vcpu *v, u64 va, u64 pte, u64 flags, u64 domid);
s64 do_memory_op(struct vcpu *v, u64 cmd, u64 arg);

/* Validation of a whole table at its first type reference / its undoing at the last. Caller: get/put_page_type, mm.lock held. */
int  mm_validate_table(struct host *h, u32 mfn, unsigned type);
void mm_devalidate_table(struct host *h, u32 mfn, unsigned type);

/* Grant mappings by PTE (section 6.3). host_addr is a VA (or a machine address of a PTE with GNTMAP_contains_pte).
 * Caller holds a general reference to mfn, and a writable type reference unless readonly; on GNTST_okay they are the PTE's, else
 * still the caller's. Both take mm.lock of v's domain: call them without any grant lock. Return GNTST_*; the caller flushes TLBs. */
int mm_map_grant(struct vcpu *v, u64 host_addr, u32 mfn, u32 gntmap_flags);
/* Clears (or, new_addr != 0, replaces by new_addr's PTE, which is cleared) the PTE that maps mfn at host_addr. On GNTST_okay the
 * PTE's references were dropped. */
int mm_unmap_grant(struct vcpu *v, u64 host_addr, u64 new_addr, u32 mfn, u32 gntmap_flags);

/* Life cycle. */
int  mm_init(struct domain *d, u32 max_pages);
/* vCPU's base pointers, for the builder and VCPUOP_initialise: takes the L4 type references. 0: none (user only). */
int  mm_set_vcpu_bases(struct vcpu *v, u32 kernel_l4, u32 user_l4);
void mm_drop_vcpu_bases(struct vcpu *v);
/* MMUEXT_PIN_L<type>_TABLE for the builder: -EINVAL (not its frame, used otherwise, pinned already), or what validation says. */
int  mm_pin_table(struct domain *d, u64 mfn, unsigned type);
/* Death: unpins, drops bases and allocation references. Frames that others still reference survive until those go. */
void mm_destroy(struct domain *d);

/* Recounts every reference that page tables, pins, base pointers and vCPUs hold, over the whole host: how many frames and entries
 * disagree with the frame table (0, or there is a bug), or -ENOMEM. exact: no grant, window or back end holds any besides. For tests. */
s64 mm_audit(struct host *h, bool exact);

/* set_gdt and LDT pages: take / drop PGT_seg_desc_page references. */
s64 do_set_gdt(struct vcpu *v, u64 frame_list, u64 entries);
int mm_set_gdt(struct vcpu *v, const u64 *frames, u32 entries);        /* its kernel half, for VCPUOP_initialise. -EINVAL */
s64 do_update_descriptor(struct vcpu *v, u64 maddr, u64 desc);
void mm_drop_descriptor_tables(struct vcpu *v);
void mm_set_ldt(struct vcpu *v, u64 base, u32 entries);         /* arguments were checked; the old one's pages are given up */

/* The descriptor that sel (not null) names for v, in the guest's tables or the hypervisor's own (section 3.12). Not in guest mode. */
enum descriptor_result {
    DESC_OK,
    DESC_BEYOND,                /* not in the table */
    DESC_UNMAPPED,              /* its page of the LDT is not mapped, or cannot hold descriptors: a page fault there */
};
enum descriptor_result mm_descriptor(struct vcpu *v, u16 sel, u64 *desc);

/* MMUEXT_NEW_BASEPTR, NEW_USER_BASEPTR (mfn 0: none), mov to cr3. By v itself. */
int mm_new_base(struct vcpu *v, bool user, u64 mfn);

/* Writable page tables (section 4.9b): a store of v's kernel to va, which is mapped read-only. size 1, 2, 4, 8. compare: *old must be
 * there, else *old := what is there and nothing is stored. True: done as by an instruction. False: not a table of L1 entries, or an
 * entry that may not stand there: a page fault. Not in guest mode. */
bool mm_ptwr(struct vcpu *v, u64 va, unsigned size, bool compare, u64 *old, u64 value);

#endif
