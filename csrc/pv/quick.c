/* Hypercalls that translated code has done without being left, and without leaving guest mode: those that only look at their arguments and
 * set what is the vCPU's own. They wait for nobody, take no lock, touch no memory of the guest, and cannot fail in a way that ends anything.
 *
 * Owns: which they are (QUICK). Called by: bt/light.c, which see about registers. With the virtual clock, while an event can be delivered or
 * other work is due, and wherever the answer is not here, the ordinary way is taken (traps.c, hv/hypercall.c): what a guest, the counters
 * and the trace see is the same.
 */
#include "base/general_regs.h"

#include "hv/hypercall.h"
#include "pv/pv.h"
#include "xen/version.h"

#if GENERAL_REGS

enum { NOT_QUICK = 1 };         /* no hypercall here has this result */

static s64 xen_version(struct vcpu *v, u64 cmd, u64 arg) { return cmd == XENVER_version ? XEN_VERSION : NOT_QUICK; }

static s64 stack_switch(struct vcpu *v, u64 ss, u64 sp) { return set_kernel_stack(v, ss, sp); }

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

static s64 (*const QUICK[])(struct vcpu *v, u64 a, u64 b) = {
    [__HYPERVISOR_stack_switch] = stack_switch, [__HYPERVISOR_xen_version] = xen_version,
    [__HYPERVISOR_set_segment_base] = set_segment_base,
};

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
    if (nr >= ARRAY_SIZE(QUICK) || !QUICK[nr] || unlikely(!is_usual(v)))
        return false;
    s64 rc = QUICK[nr](v, a, c->r[X86_RSI]);
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
