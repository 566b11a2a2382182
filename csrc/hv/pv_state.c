/* Hypercalls that set what a PV vCPU is beyond its memory: trap table, entry points, stack, segment bases, debug registers.
 *
 * Owns: struct vcpu_arch (but for GDT and LDT, which are page references: hv/mm). Called by: dispatch, on the vCPU's own
 * thread; no lock. The values are checked here and used by pv/. What is a register is set in v->cpu; a vCPU that has none
 * (Python, scripts) has the same checks made, and no effect but that of its debug registers, which it can read back.
 */
#include "hv/host.h"
#include "hv/hypercall.h"
#include "xen/callback.h"
#include "xen/nmi.h"

enum { NR_TRAPS = 256, WORK_TRAP = 8 };

/* Section 3.2. Entries before a bad one stay. */
s64 do_set_trap_table(struct vcpu *v, u64 traps)
{
    struct arena *arena = &v->host->arena;
    if (!v->arch.traps && !(v->arch.traps = arena_alloc(arena, NR_TRAPS * sizeof *v->arch.traps)))
        return -XEN_ENOMEM;
    if (!traps) {
        for (unsigned i = 0; i < NR_TRAPS; i++)
            v->arch.traps[i] = (struct trap_info){ .vector = (u8)i };
        return 0;
    }
    for (u64 n = 0; n <= NR_TRAPS; n++) {       /* a table that never ends overwrites entries; stop after a full one */
        struct trap_info t;
        hypercall_charge(v, WORK_TRAP);
        if (copy_from_guest(v, &t, traps + n * sizeof t, sizeof t))
            return -XEN_EFAULT;
        if (!t.address)
            return 0;
        if (!va_canonical(t.address))
            return -XEN_EINVAL;
        t.cs |= 3;
        v->arch.traps[t.vector] = t;
    }
    return 0;
}

s64 do_stack_switch(struct vcpu *v, u64 ss, u64 sp) { return set_kernel_stack(v, ss, sp); }

s64 do_fpu_taskswitch(struct vcpu *v, u64 set)
{
    if (v->cpu)
        v->cpu->cr0 = set ? v->cpu->cr0 | X86_CR0_TS : v->cpu->cr0 & ~X86_CR0_TS;
    return 0;
}

/* ---- entry points (section 3.5) ---------------------------------------------------------------------------------- */

static void set_flag(u32 *flags, u32 bit, bool on)
{
    *flags = on ? *flags | bit : *flags & ~bit;
}

static s64 register_callback(struct vcpu *v, unsigned type, u64 address, bool mask_events)
{
    struct vcpu_arch *a = &v->arch;
    if (!va_canonical(address))
        return -XEN_EINVAL;
    switch (type) {
    case CALLBACKTYPE_event:
        a->event_callback = address;
        return 0;
    case CALLBACKTYPE_failsafe:
        a->failsafe_callback = address;
        set_flag(&a->vgc_flags, VGCF_failsafe_disables_events, mask_events);
        return 0;
    case CALLBACKTYPE_syscall:
        a->syscall_callback = address;
        set_flag(&a->vgc_flags, VGCF_syscall_disables_events, mask_events);
        return 0;
    case CALLBACKTYPE_syscall32:
        a->syscall32_callback = address;
        a->syscall32_disables_events = mask_events;
        return 0;
    case CALLBACKTYPE_sysenter:
        a->sysenter_callback = address;
        a->sysenter_disables_events = mask_events;
        return 0;
    case CALLBACKTYPE_nmi:
        a->nmi_callback = address;
        return 0;
    default:
        return -XEN_ENOSYS;
    }
}

static s64 unregister_callback(struct vcpu *v, unsigned type)
{
    switch (type) {
    case CALLBACKTYPE_event:
    case CALLBACKTYPE_failsafe:
    case CALLBACKTYPE_syscall:
    case CALLBACKTYPE_syscall32:
    case CALLBACKTYPE_sysenter:
        return -XEN_EINVAL;
    case CALLBACKTYPE_nmi:
        v->arch.nmi_callback = 0;
        return 0;
    default:
        return -XEN_ENOSYS;
    }
}

s64 do_callback_op(struct vcpu *v, u64 cmd, u64 arg)
{
    if (cmd == CALLBACKOP_register) {
        struct callback_register r;
        if (copy_from_guest(v, &r, arg, sizeof r))
            return -XEN_EFAULT;
        return register_callback(v, r.type, r.address, r.flags & CALLBACKF_mask_events);
    }
    if (cmd == CALLBACKOP_unregister) {
        struct callback_unregister u;
        if (copy_from_guest(v, &u, arg, sizeof u))
            return -XEN_EFAULT;
        return unregister_callback(v, u.type);
    }
    return -XEN_ENOSYS;
}

/* Three registrations in one; a bad address is silently left out. */
s64 do_set_callbacks(struct vcpu *v, u64 event, u64 failsafe, u64 syscall)
{
    register_callback(v, CALLBACKTYPE_event, event, false);
    register_callback(v, CALLBACKTYPE_failsafe, failsafe, false);
    register_callback(v, CALLBACKTYPE_syscall, syscall, false);
    return 0;
}

s64 do_nmi_op(struct vcpu *v, u64 cmd, u64 arg)
{
    struct xennmi_callback cb;
    switch (cmd) {
    case XENNMI_register_callback:
        if (copy_from_guest(v, &cb, arg, sizeof cb))
            return -XEN_EFAULT;
        return register_callback(v, CALLBACKTYPE_nmi, cb.handler_address, true);
    case XENNMI_unregister_callback:
        return unregister_callback(v, CALLBACKTYPE_nmi);
    default:
        return -XEN_ENOSYS;
    }
}

/* ---- segment bases, debug registers (section 3.7) ---------------------------------------------------------------- */

/* A hypercall comes from kernel mode: its GS base is the active one, the user's is what swapgs would bring. */
s64 do_set_segment_base(struct vcpu *v, u64 which, u64 base)
{
    struct x86_cpu *c = v->cpu;
    if (which > SEGBASE_GS_USER_SEL || (which <= SEGBASE_GS_KERNEL && !va_canonical(base)))
        return -XEN_EINVAL;
    if (!c)
        return 0;
    switch (which) {
    case SEGBASE_FS:
        c->seg[X86_FS].base = base;
        break;
    case SEGBASE_GS_USER:
        c->kernel_gs_base = base;
        break;
    case SEGBASE_GS_KERNEL:
        c->seg[X86_GS].base = base;
        break;
    case SEGBASE_GS_USER_SEL:
        vcpu_backend(v)->load_user_gs(v, (u16)base);
        break;
    }
    x86_derive(c);
    return 0;
}

/* DR6: bits 4-11 and 16-31 read as 1, bit 12 as 0. DR7: bit 10 reads as 1; bits 11, 12, 14, 15 as 0 (SDM vol. 3, 17.2). */
static const u64 DR6_ONES = 0xffff0ff0, DR6_ZEROS = 1ul << 12;
static const u64 DR7_ONES = 0x400, DR7_ZEROS = 0xd800, DR7_GD = 1ul << 13;

/* CR4.DE: I/O breakpoints, and DR4 and DR5 are no names of DR6 and DR7 any more. */
static inline bool debug_extensions(const struct vcpu *v) { return v->cpu && (v->cpu->cr4 & X86_CR4_DE); }

/* A breakpoint of type "I/O" (10b) is among those that are enabled. */
static bool dr7_wants_io(u64 dr7)
{
    for (unsigned i = 0; i < 4; i++)
        if ((dr7 >> (2 * i) & 3) && (dr7 >> (16 + 4 * i) & 3) == 2)
            return true;
    return false;
}

static int set_debugreg(struct vcpu *v, u64 reg, u64 value)
{
    u64 *dr = vcpu_dr(v);
    if ((reg == 4 || reg == 5) && debug_extensions(v))
        return -XEN_ENODEV;
    switch (reg) {
    case 0: case 1: case 2: case 3:
        if (!va_canonical(value) || in_hypervisor_range(value))
            return -XEN_EPERM;
        dr[reg] = value;
        return 0;
    case 4: case 6:
        if (value >> 32)
            return -XEN_EINVAL;
        dr[6] = (value | DR6_ONES) & ~DR6_ZEROS;
        return 0;
    case 5: case 7:
        if (value >> 32)
            return -XEN_EINVAL;
        if ((value & DR7_GD) || (dr7_wants_io(value) && !debug_extensions(v)))
            return -XEN_EPERM;
        dr[7] = (value | DR7_ONES) & ~DR7_ZEROS;
        return 0;
    default:
        return -XEN_ENODEV;
    }
}

s64 do_set_debugreg(struct vcpu *v, u64 reg, u64 value)
{
    int rc = set_debugreg(v, reg, value);
    if (v->cpu)
        x86_derive(v->cpu);
    return rc;
}

s64 do_get_debugreg(struct vcpu *v, u64 reg)
{
    if (reg > 7 || ((reg == 4 || reg == 5) && debug_extensions(v)))
        return -XEN_ENODEV;
    return (s64)vcpu_dr(v)[reg == 4 || reg == 5 ? reg + 2 : reg];
}

/* Returns to a frame of registers. Python and script guests have none: for them the number is not there. */
s64 do_iret(struct vcpu *v)
{
    const struct vcpu_backend *b = vcpu_backend(v);
    return b->iret ? b->iret(v) : -XEN_ENOSYS;
}
