/* See xenlike.h: vCPUs that run machine code, and debuggers on them. */
#include <string.h>

#include "pc/pc.h"
#include "pv/pv.h"
#include "xenlike.h"

/* ---- registers --------------------------------------------------------------------------------------------------- */

int xl_vcpu_set_regs(struct vcpu *v, u64 rip, u64 rsp, u64 rsi)
{
    if (v->backend != BACKEND_INTERP)
        return -XEN_EINVAL;
    if (vcpu_runnable(v))
        return -XEN_EBUSY;
    pv_reset(v);
    v->cpu->r[X86_RIP] = rip;
    v->cpu->r[X86_RSP] = v->arch.kernel_sp = rsp;
    v->arch.kernel_ss = FLAT_KERNEL_SS64;
    v->cpu->r[X86_RSI] = rsi;
    return 0;
}

/* 0: v has registers and is at rest. */
static int settled(struct vcpu *v)
{
    if (!v->cpu)
        return -XEN_EINVAL;
    if (vcpu_runnable(v))
        return -XEN_EBUSY;
    vcpu_wait_rest(v);
    return 0;
}

int xl_vcpu_state(struct vcpu *v, struct xl_cpu_state *out)
{
    int rc = settled(v);
    if (rc)
        return rc;
    const struct x86_cpu *c = v->cpu;
    bool pc = v->backend == BACKEND_PC;
    *out = (struct xl_cpu_state){
        .fs_base = c->seg[X86_FS].base, .gs_base = c->seg[X86_GS].base, .kernel_gs_base = c->kernel_gs_base, .cr0 = c->cr0, .cr2 = c->cr2,
        .cr3 = pc ? c->cr3 : (u64)(v->kernel_mode ? v->cr3_mfn : v->user_cr3_mfn) << PAGE_SHIFT, .cr4 = c->cr4, .efer = c->efer, .retired = c->retired,
        .kernel_mode = pc ? c->cpl < 3 : v->kernel_mode, .mode = c->mode,
    };
    pv_get_regs(v, &out->regs);
    memcpy(out->dr, c->dr, sizeof out->dr);
    memcpy(out->fx, &c->fx, sizeof out->fx);
    return 0;
}

int xl_vcpu_set_state(struct vcpu *v, const struct xl_cpu_state *in)
{
    int rc = settled(v);
    if (rc)
        return rc;
    if (!va_canonical(in->fs_base) || !va_canonical(in->gs_base) || !va_canonical(in->kernel_gs_base))
        return -XEN_EINVAL;
    struct x86_cpu *c = v->cpu;
    c->seg[X86_FS].base = in->fs_base;
    c->seg[X86_GS].base = in->gs_base;
    c->kernel_gs_base = in->kernel_gs_base;
    memcpy(&c->fx, in->fx, sizeof c->fx);
    x86_fx_sanitize(&c->fx);
    if (v->backend == BACKEND_PC)
        pc_set_regs(pc_cpu_of(c), &in->regs);
    else
        pv_set_regs(v, &in->regs);
    return 0;
}

void xl_hypercall_page(u8 *page) { pv_hypercall_page(page); }

/* ---- debuggers --------------------------------------------------------------------------------------------------- */

/* *d, with a reference, if its vCPUs run machine code and a debugger is (attached) or is not on it. */
static int debug_get(struct host *h, u16 domid, bool attached, struct domain **d)
{
    *d = domain_get(h, domid);
    if (!*d)
        return -XEN_ESRCH;
    int rc = !(*d)->vcpu[0]->cpu ? -XEN_EINVAL : (*d)->debug.attached == attached ? 0 : attached ? -XEN_EINVAL : -XEN_EBUSY;
    if (rc)
        domain_put(*d);
    return rc;
}

static bool stopped(const struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (!(read_once(d->vcpu[i]->pause_flags) & VPF_debug))
            return false;
    return true;
}

int xl_debug_attach(struct host *h, u16 domid)
{
    struct domain *d;
    int rc = debug_get(h, domid, false, &d);
    if (rc)
        return rc;
    debug_attach(d, true);
    domain_put(d);
    return 0;
}

int xl_debug_detach(struct host *h, u16 domid)
{
    struct domain *d;
    int rc = debug_get(h, domid, true, &d);
    if (rc)
        return rc;
    debug_attach(d, false);
    domain_put(d);
    return 0;
}

int xl_debug_stop(struct host *h, u16 domid)
{
    struct domain *d;
    int rc = debug_get(h, domid, true, &d);
    if (rc)
        return rc;
    debug_stop(d);
    domain_put(d);
    return 0;
}

int xl_debug_break(struct host *h, u16 domid, u32 add, u32 kind, u64 va, u32 len)
{
    struct domain *d;
    int rc = debug_get(h, domid, true, &d);
    if (rc)
        return rc;
    if (!stopped(d)) {
        rc = -XEN_EBUSY;
    } else {
        debug_stop(d);               /* told to stop by another's breakpoint, they may still be on their way */
        rc = debug_point_change(d, add, kind, va, len);
    }
    domain_put(d);
    return rc;
}

int xl_debug_step(struct vcpu *v)
{
    struct domain *d = v->domain;
    if (!v->cpu || !d->debug.attached)
        return -XEN_EINVAL;
    debug_stop(d);
    debug_go(d, v, true);
    return 0;
}

int xl_debug_continue(struct host *h, u16 domid)
{
    struct domain *d;
    int rc = debug_get(h, domid, true, &d);
    if (rc)
        return rc;
    debug_stop(d);                   /* their registers are about to be touched */
    debug_go(d, NULL, false);
    domain_put(d);
    return 0;
}
