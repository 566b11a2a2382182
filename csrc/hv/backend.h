/* What executes vCPUs of one kind, seen from below: the hypervisor calls it through this table and knows nothing else of it.
 *
 * Owns: the names. Filled in by: script.c, pv/run.c, pc/run.c; entered into host->backend by the top layer when a host is made. Called by: the
 * pCPU loop (run), domain creation and death, vcpu_op, dispatch. A member that is NULL: nothing to do for this kind.
 */
#ifndef XL_HV_BACKEND_H
#define XL_HV_BACKEND_H

#include "base/types.h"

struct vcpu;
struct vcpu_guest_context;

struct vcpu_backend {
    const char *name;
    int  (*create)(struct vcpu *v);             /* what it keeps of v; 0 or -ENOMEM. Undone by destroy, also when it failed */
    void (*destroy)(struct vcpu *v);
    /* The domain dies; none of its vCPUs will run again. Lets go of timers and frames; no lock is held. Harmless before all is made. */
    void (*stop)(struct vcpu *v);
    /* Runs v until it must park (WORK_park) or system time *stop_at, which others may lower meanwhile. NULL: Python runs it. */
    void (*run)(struct vcpu *v, const u64 *stop_at);
    /* VCPUOP_initialise: the registers in c, which was checked. v is at rest, its tables and vcpu_arch are set. */
    void (*set_context)(struct vcpu *v, const struct vcpu_guest_context *c);
    void (*load_user_gs)(struct vcpu *v, u16 sel);      /* SEGBASE_GS_USER_SEL; not NULL where there are registers */
    /* For debuggers: the frame behind va in v's current address space, whoever may access it; no side effects. v is at rest. False: none.
     * NULL: the page tables are the hypervisor's own kind (machine/mmu.h). */
    bool (*translate)(struct vcpu *v, u64 va, u64 *mfn);
    s64  (*iret)(struct vcpu *v);               /* hypercall 23: replaces v's registers and sets v->iret_done; NULL: -ENOSYS */
};

#endif
