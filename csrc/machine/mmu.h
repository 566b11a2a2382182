/* The soft MMU: guest loads and stores by virtual address.
 *
 * Owns: page walks, the soft TLB of a vCPU, TLB shootdown. Called by: guest copy (every hypercall argument), Python guests'
 * memory, pv/ for machine code. Locks: none; see "shootdown" for the ordering that replaces them.
 *
 * Shootdown. A vCPU announces itself with vcpu->in_guest = 1 before it uses its TLB and checks vcpu->tlb_flush_wanted behind a full
 * barrier; who changes a frame's type sets tlb_flush_wanted and waits only for vCPUs that are in guest. Parked, blocked and in-hypercall
 * vCPUs flush when they next enter; one that runs machine code is told by WORK_flush to leave and enter again: in translated code it looks
 * within SLICE instructions (bt/internal.h), or at once when it is nudged. What the translator knows of addresses it forgets when it next
 * looks (bt/run.c, settle), which is before translated code runs again; so when the initiator goes on, nothing runs by it any more. A frame
 * remembers in tlb_stamp when its last writable reference went: vCPUs that flushed since cannot hold a write entry and are left alone.
 */
#ifndef XL_MACHINE_MMU_H
#define XL_MACHINE_MMU_H

#include "machine/frame.h"
#include "machine/tlb.h"
#include "xen/xen.h"

/* L4 slots 256 to 271: never the guest's to map (xen-abi 1.9). */
static inline bool in_hypervisor_range(u64 va) { return va >= HYPERVISOR_VIRT_START && va < HYPERVISOR_VIRT_END; }

struct mmu_fault {
    u64 va;
    u32 error_code;             /* PFEC_*; kernel-mode accesses never show PFEC_user (PV: section 3.3) */
};

/* Copies between a host buffer and guest virtual memory of v in its current mode, page by page through the TLB.
 * Returns 0, or -EFAULT with *fault (may be NULL) filled; bytes before the fault are done. n bytes, any alignment.
 * Guest addresses inside the hypervisor range other than the read-only M2P fault. */
int mmu_read(struct vcpu *v, void *dst, u64 va, u64 n, struct mmu_fault *fault);
int mmu_write(struct vcpu *v, u64 va, const void *src, u64 n, struct mmu_fault *fault);
/* The host address of the page behind va for one access of v in its current mode, TLB filled. NULL: *f says why. Caller is in guest
 * mode, and the address is good until it leaves or the TLB is flushed. Of the hypervisor's range only the M2P can be read. */
u8 *mmu_page(struct vcpu *v, u64 va, enum mmu_access access, struct mmu_fault *f);
/* Walks to the frame behind va for an access; sets A/D as hardware does. 0 and *mfn, or -EFAULT and *fault. */
int mmu_translate(struct vcpu *v, u64 va, enum mmu_access access, u64 *mfn, struct mmu_fault *fault);
/* The machine address of the L1 entry that maps va in the kernel tables of v; false if an upper level is absent. */
bool mmu_find_l1e(struct vcpu *v, u64 va, u64 *pte_maddr);

/* Hypercall arguments, and areas that the kernel registered: as mmu_read/mmu_write in kernel mode, whichever v is in. -EFAULT. */
int copy_from_guest(struct vcpu *v, void *dst, u64 va, u64 n);
int copy_to_guest(struct vcpu *v, u64 va, const void *src, u64 n);

void tlb_flush_local(struct vcpu *v);                   /* this vCPU's TLB, by the thread that runs it */
void tlb_flush_page_local(struct vcpu *v, u64 va);
void tlb_flush_domain(struct domain *d);                /* every vCPU of d, waits for those in guest */
void tlb_flush_vcpus(struct domain *d, u64 vcpu_mask);  /* MULTI variants: bit n = vCPU n (< 64) */
/* Before a frame that was writable becomes a page table: no TLB may keep a write entry for it. */
void tlb_shootdown_frame(struct host *h, u64 mfn);
/* Before freed frames get a new owner: no TLB of any domain may hold entries from before `stamp` (host->tlb_clock at the free). */
void tlb_shootdown_since(struct host *h, u64 stamp);
/* Returns when every vCPU of d that runs machine code (NULL: of all domains) has been outside of guest mode since the call began. The
 * caller is. */
void guest_mode_wait(struct host *h, struct domain *d);
/* Write entries, over all TLBs, whose frame is not typed writable: 0, or the safety of paging is broken. For tests. */
u64 tlb_audit(struct host *h);

/* Enter / leave guest mode around direct use of the TLB (mmu_read and friends do it themselves; they nest). */
void vcpu_enter_guest(struct vcpu *v);
void vcpu_leave_guest(struct vcpu *v);

#endif
