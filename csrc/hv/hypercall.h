/* Hypercall dispatch.
 *
 * Owns: the table made from xen/hypercalls.def, multicall. Called by: execution backends. No lock.
 */
#ifndef XL_HV_HYPERCALL_H
#define XL_HV_HYPERCALL_H

#include "hv/host.h"

/* Every C handler has this shape; unused arguments are ignored. */
typedef s64 hypercall_fn(struct vcpu *v, const u64 *a);

/* Not an errno: Python has to finish this hypercall; v->cold holds number and arguments. A vCPU of a C backend has been paused
 * with VPF_lane and EXIT_HYPERCALL queued: it must come to rest, and finds v->cold.result when it runs again. */
static const s64 HYPERCALL_COLD = -0x7fffffff00000000l;

/* Executes hypercall nr of v. Returns what goes to rax, or HYPERCALL_COLD. Afterwards v->exit_work says whether v must
 * park or take an upcall. nr is the whole of rax. Guest mode, if v is in it, is left meanwhile. */
s64 hypercall(struct vcpu *v, u64 nr, const u64 args[5]);
/* Python finished v's cold hypercall with result rc. Returns what goes to rax, or HYPERCALL_COLD again when it was an entry of a
 * multicall and a further one is cold too. Lets a C backend's vCPU run on. */
s64 hypercall_complete(struct vcpu *v, s64 rc);

/* What one hypercall may cost, a multicall as a whole: about half a second, counted in page-table entries looked at or as much
 * work of another kind, not in time, for the sake of repeatable runs. There is no preemption, and from a few pages a guest can
 * make arrays of any length. hv/mm counts for itself. False: v's domain was crashed for it, end the call soon. */
static const u64 HYPERCALL_WORK_LIMIT = 1ul << 26;
bool hypercall_charge(struct vcpu *v, u64 work);

/* What the trace has of a call: number, and as much as goes beside it of the first argument, or of a digest of all. */
static inline u64 hypercall_traced(u64 nr, u64 args) { return nr << 48 ^ (args & 0xffffffffffff); }

/* Whose behaviour this is. */
enum { XEN_VERSION_MAJOR = 4, XEN_VERSION_MINOR = 17, XEN_VERSION = XEN_VERSION_MAJOR << 16 | XEN_VERSION_MINOR };
s64 do_xen_version(struct vcpu *v, u64 cmd, u64 arg);
s64 do_vm_assist(struct vcpu *v, u64 cmd, u64 type);
s64 do_multicall(struct vcpu *v, u64 list, u64 count);

/* Entry points, descriptors' bases and debug registers of the calling vCPU (hv/pv_state.c). */
s64 do_set_trap_table(struct vcpu *v, u64 traps);
s64 do_stack_switch(struct vcpu *v, u64 ss, u64 sp);
static inline s64 set_kernel_stack(struct vcpu *v, u64 ss, u64 sp)
{
    v->arch.kernel_ss = (u16)ss | 3;
    v->arch.kernel_sp = sp;
    return 0;
}
s64 do_set_callbacks(struct vcpu *v, u64 event, u64 failsafe, u64 syscall);
s64 do_fpu_taskswitch(struct vcpu *v, u64 set);
s64 do_set_debugreg(struct vcpu *v, u64 reg, u64 value);
s64 do_get_debugreg(struct vcpu *v, u64 reg);
s64 do_set_segment_base(struct vcpu *v, u64 which, u64 base);
s64 do_callback_op(struct vcpu *v, u64 cmd, u64 arg);
s64 do_nmi_op(struct vcpu *v, u64 cmd, u64 arg);
s64 do_iret(struct vcpu *v);

#endif
