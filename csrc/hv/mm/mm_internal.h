/* What the files of hv/mm/ share: entry flags, the references an entry holds, owners named by a hypercall.
 *
 * Owns: nothing. Called by: hv/mm/ only. Locks: everything here that takes or drops a table's reference wants the mm.lock of
 * the tables' owner; references that L1 entries hold on data need none.
 *
 * A present entry holds, until it is replaced:
 *   L1            a general reference to the frame, and a writable type reference if RW
 *   L2, L3, L4    a general and a type reference to the next table; or, as a linear ("recursive") entry, to a validated
 *                 table of its own level; or nothing at all, where a table refers to itself
 */
#ifndef XL_HV_MM_INTERNAL_H
#define XL_HV_MM_INTERNAL_H

#include "hv/hypercall.h"
#include "machine/frame_type.h"

enum { PT_ENTRIES = PAGE_SIZE / sizeof(u64) };

#define PTE_PAT             PTE_PSE         /* bit 7 is PAT in an L1 entry */
#define PTE_AVAIL           (7ul << 9)
#define PTE_AVAIL_HIGH      (0x7fful << 52)
#define PTE_AD              (PTE_A | PTE_D)

/* Section 4.2. Everything else is allowed or part of the frame number. */
#define L1_DISALLOWED       (PTE_PWT | PTE_PCD | PTE_PAT)
#define TABLE_DISALLOWED    (PTE_PWT | PTE_PCD | PTE_PSE | PTE_G)
/* A present entry may change in these without being looked at again. */
#define FREE_TO_CHANGE      (PTE_NX | PTE_AVAIL | PTE_AVAIL_HIGH | PTE_G | PTE_D | PTE_A | PTE_U)

static inline bool pte_only_flags_change(u64 old, u64 new) { return (old & PTE_P) && !((old ^ new) & ~FREE_TO_CHANGE); }
static inline bool pte_maps_writable(u64 pte) { return (pte & (PTE_P | PTE_RW)) == (PTE_P | PTE_RW); }
static inline u64 *table_of(struct host *h, u64 mfn) { return mfn_ptr(&h->machine, mfn); }
static inline struct domain *frame_owner(struct host *h, const struct frame *f) { return h->domain_by_id[f->owner]; }

/* Section 4.3: what is stored for a present entry. Every one is open to ring 3, where the guest kernel runs too. */
static inline u64 l1_adjust(u64 pte)
{
    if (!(pte & PTE_U))
        return pte | PTE_U | PTE_GUEST_KERNEL;
    return pte & PTE_GUEST_KERNEL ? pte : pte | PTE_G;
}

static inline u64 table_entry_adjust(u64 pte, unsigned level)
{
    return pte | PTE_U | (level == 4 ? PTE_A : 0);
}

/* Section 4.4 for an L1 entry of a table of `tables`. pg_owner: whose frame it may map; NULL: DOMID_IO, which has no frames. */
static inline int l1e_get(struct host *h, const struct domain *tables, const struct domain *pg_owner, u64 pte)
{
    struct machine *m = &h->machine;
    u64 mfn = pte_mfn(pte);
    if (unlikely(pte & L1_DISALLOWED))
        return -XEN_EINVAL;
    if (unlikely(!mfn_valid(m, mfn)))           /* not memory; no domain has been given any MMIO */
        return mfn == PTE_MFN_MASK >> PAGE_SHIFT ? -XEN_EINVAL : -XEN_EPERM;
    struct frame *f = mfn_frame(m, mfn);
    if (unlikely(!pg_owner || !frame_get(h, f, mfn, pg_owner->id)))
        return -XEN_EBUSY;
    if ((pte & PTE_RW) && unlikely(!frame_get_writable(h, f, mfn))) {
        put_page(h, mfn);
        return -XEN_EBUSY;
    }
    if (unlikely(pg_owner != tables) && !(read_once(f->count_info) & PGC_FOREIGN))
        atomic_or(&f->count_info, PGC_FOREIGN);
    return 0;
}

/* Drops what a present L1 entry held. It was removed by a locked instruction if it was RW. */
static inline void l1e_put(struct host *h, u64 pte)
{
    u64 mfn = pte_mfn(pte);
    if (pte & PTE_RW)
        frame_put_writable(h, mfn_frame(&h->machine, mfn));
    put_page(h, mfn);
}

/* The same for an entry of the L<level> table `table`, level 2 to 4 (validate.c). */
int  table_entry_get(struct host *h, struct domain *d, u32 table, u64 pte, unsigned level);
void table_entry_put(struct host *h, u32 table, u64 pte, unsigned level);

/* Checks a present L1 entry for (tables, pg_owner), stores it in *slot, drops the old one's references (update.c).
 * preserve_ad: A and D of the old entry stay. table: the frame of *slot. */
int  l1e_write(struct host *h, const struct domain *tables, const struct domain *pg_owner, u32 table, u64 *slot, u64 new,
               bool preserve_ad);

/* The slot of the L1 entry that maps va for v, or that lies at machine address maddr. NULL: no L1 there, or the walk ended in a
 * table of another level (a linear mapping). *table: its frame. mm.lock of v's domain held. */
u64 *l1_slot_of_va(struct vcpu *v, u64 va, u32 *table);
u64 *l1_slot_of_maddr(struct vcpu *v, u64 maddr, u32 *table);

/* Descriptors (descriptors.c): the checks of PGT_seg_desc_page. */
int  segdesc_validate(struct host *h, u32 mfn);

/* The first pointer of an array in guest memory may be used at all; faults behind it show when it is copied. */
static inline bool guest_addr_ok(u64 va)
{
    return va < 1ul << 47 || va >= HYPERVISOR_VIRT_END;
}

/* Words of a vCPU bitmap that domain d needs, read from the guest; bits beyond nr_vcpus are ignored. -EFAULT. */
struct vcpu_mask { u64 word[MAX_VCPUS / 64]; };
int  vcpu_mask_read(struct vcpu *v, struct vcpu_mask *m, u64 va);
void vcpu_mask_flush(struct domain *d, const struct vcpu_mask *m);

/* "foreigndom": whose frames a page-table hypercall names. 0 and *d (NULL: DOMID_IO), or -ESRCH, also for one's own id in place of
 * DOMID_SELF, as in Xen. What the caller may do to that domain is another question: -EPERM, and asked later. */
int  pg_owner_get(struct vcpu *v, u16 domid, struct domain **d);
void pg_owner_put(struct vcpu *v, struct domain *d);
static inline bool may_control(const struct vcpu *v, const struct domain *d) { return d == v->domain || v->domain->privileged; }

/* mm.lock held. */
int  pin_table(struct domain *d, u64 mfn, unsigned type);       /* -EINVAL, or what validation says */
int  unpin_table(struct domain *d, u64 mfn);                    /* -EINVAL: not its frame, or not pinned */
void bases_drop(struct vcpu *v);
void descriptor_tables_drop(struct vcpu *v);
void ldt_pages_drop(struct vcpu *v);

/* Commands of memory_op that move no memory (memory_query.c). start: the extent in the command's upper bits, which none of them takes. */
s64  memory_query(struct vcpu *v, unsigned op, u64 start, u64 arg);

/* Towards HYPERCALL_WORK_LIMIT, in page-table entries looked at; the limit is more than any one honest call needs (a pin of 256 GiB). */
enum { WORK_ENTRY = 1, WORK_REQUEST = 4, WORK_PAGE = 64 };
static inline bool work_exceeded(const struct domain *d, u64 start) { return unlikely(read_once(d->mm.work) - start > HYPERCALL_WORK_LIMIT); }
int  call_too_long(struct vcpu *v, const char *call);           /* crashes v's domain. -EINVAL, which nobody will see */

/* d gives the frame up; it is freed when its last reference goes. mm.lock held. False: not its frame, or a special one. */
bool frame_give_up(struct domain *d, u64 mfn);

#endif
