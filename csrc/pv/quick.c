/* Hypercalls that translated code has done without being left, and without leaving guest mode: those that only look at their arguments
 * and set what is the vCPU's own. They wait for nobody, take no lock, touch no memory of the guest, and cannot fail in a way that ends
 * anything.
 *
 * Owns: what they do. Called by: bt/light.c, which also says what becomes of registers. With the virtual clock, while an event can be
 * delivered or other work is due, and wherever the answer is not here, the ordinary way is taken (traps.c, hv/hypercall.c): what a guest,
 * the counters and the trace see is the same.
 */
#include "base/general_regs.h"

#include "hv/hypercall.h"
#include "pv/pv.h"
#include "xen/version.h"

#if GENERAL_REGS

enum { NOT_QUICK = 1 };         /* no hypercall here has this result */

static s64 set_segment_base(struct vcpu *v, u64 which, u64 base)
{
    struct x86_cpu *c = v->cpu;
    if (!va_canonical(base))
        return NOT_QUICK;
    switch (which) {
    case SEGBASE_FS:
        c->seg[X86_FS].base = c->lin_base[X86_FS] = base;
        return 0;
    case SEGBASE_GS_KERNEL:
        c->seg[X86_GS].base = c->lin_base[X86_GS] = base;
        return 0;
    case SEGBASE_GS_USER:
        c->kernel_gs_base = base;
        return 0;
    default:
        return NOT_QUICK;
    }
}

/* Those of PV_QUICK. */
static inline s64 quick(struct vcpu *v, u64 nr, u64 a, u64 b)
{
    switch (nr) {
    case __HYPERVISOR_xen_version:
        return a == XENVER_version ? XEN_VERSION : NOT_QUICK;
    case __HYPERVISOR_stack_switch:
        return set_kernel_stack(v, a, b);
    case __HYPERVISOR_set_segment_base:
        return set_segment_base(v, a, b);
    default:
        return NOT_QUICK;
    }
}

/* Nothing waits that a return to the guest would look at, and it is in the segments in which hypercalls return. */
static inline bool is_usual(const struct vcpu *v)
{
    const struct x86_cpu *c = v->cpu;
    return v->kernel_mode && v->host->clock.kind == CLOCK_REAL && !load_acquire(v->exit_work) && !vcpu_event_deliverable(v) &&
           !read_once(v->arch.nmi_pending) && c->seg[X86_CS].sel == FLAT_KERNEL_CS64 && c->seg[X86_SS].sel == FLAT_KERNEL_SS64;
}

bool pv_quick_syscall(struct x86_cpu *c, u64 next, u64 flags)
{
    struct vcpu *v = pv_vcpu(c);
    u64 nr = c->r[X86_RAX], a = c->r[X86_RDI];
    if (unlikely(!is_usual(v)))
        return false;
    s64 rc = quick(v, nr, a, c->r[X86_RSI]);
    if (rc == NOT_QUICK)
        return false;
    stat_inc(v, hypercalls);
    v->hypercall_count[nr]++;
    c->r[X86_RAX] = (u64)rc;
    c->r[X86_RCX] = next;
    c->r[X86_R11] = flags;
    vcpu_trace_self(v, HYPERCALL, hypercall_traced(nr, a), (u64)rc);
    return true;
}

#else

bool pv_quick_syscall(struct x86_cpu *c, u64 next, u64 flags) { return false; }

#endif
