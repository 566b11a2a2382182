/* Registers of a PV vCPU from outside: at the start, by VCPUOP_initialise, for debuggers and crash reports.
 *
 * Owns: nothing. Called by: run.c (creation), vcpu_op through pv_backend, xenlike.h. The vCPU is at rest. Lock: mm.lock inside pv_segment.
 */
#include <string.h>

#include "pv/pv.h"

/* ---- the start (section 1.7) ------------------------------------------------------------------------------------- */

static void fpu_init(struct x86_fx *fx)
{
    *fx = (struct x86_fx){ .fcw = 0x37f, .mxcsr = 0x1f80, .mxcsr_mask = 0xffff };
}

void pv_reset(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    x86_reset(c);
    memset(c->r, 0, sizeof c->r);
    c->rflags = X86_IF | X86_FLAG1;
    c->cr0 = PV_CR0;
    c->cr4 = PV_CR4;
    c->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    c->cpl = 3;
    for (unsigned s = 0; s < X86_NR_SEGS; s++)
        c->seg[s] = (struct x86_seg){ .attr = X86_ATTR_UNUSABLE };
    pv_set_kernel_segments(c);
    c->ldtr = c->tr = (struct x86_seg){ .attr = X86_ATTR_UNUSABLE };    /* the hypervisor's; the guest has none */
    c->gdtr = (struct x86_dtr){ .limit = 16 * PAGE_SIZE - 1 };
    c->tlb_set = !v->kernel_mode;
    fpu_init(&c->fx);
    x86_derive(c);
}

/* ---- cpu_user_regs ----------------------------------------------------------------------------------------------- */

#define GENERAL(X) X(RAX, rax) X(RCX, rcx) X(RDX, rdx) X(RBX, rbx) X(RSP, rsp) X(RBP, rbp) X(RSI, rsi) X(RDI, rdi) X(R8, r8) X(R9, r9) \
    X(R10, r10) X(R11, r11) X(R12, r12) X(R13, r13) X(R14, r14) X(R15, r15) X(RIP, rip)

void pv_get_regs(const struct vcpu *v, struct cpu_user_regs *r)
{
    const struct x86_cpu *c = v->cpu;
    *r = (struct cpu_user_regs){
#define X(slot, name) .name = c->r[X86_##slot],
        GENERAL(X)
#undef X
        .rflags = c->rflags, .cs = c->seg[X86_CS].sel, .ss = c->seg[X86_SS].sel, .ds = c->seg[X86_DS].sel, .es = c->seg[X86_ES].sel,
        .fs = c->seg[X86_FS].sel, .gs = c->seg[X86_GS].sel, .saved_upcall_mask = v->info->evtchn_upcall_mask,
    };
}

void pv_set_regs(struct vcpu *v, const struct cpu_user_regs *r)
{
    struct x86_cpu *c = v->cpu;
#define X(slot, name) c->r[X86_##slot] = r->name;
    GENERAL(X)
#undef X
    c->rflags = (r->rflags & PV_RFLAGS & ~(u64)(X86_IOPL | X86_VM)) | X86_IF | X86_FLAG1;
    x86_derive(c);
}

/* ---- VCPUOP_initialise ------------------------------------------------------------------------------------------- */

static void load_data_segment(struct vcpu *v, unsigned seg, u16 sel, u64 base)
{
    struct x86_seg s;
    if (!pv_segment(v, seg, sel, &s))
        s = (struct x86_seg){ .attr = X86_ATTR_UNUSABLE };
    if (s.attr & X86_ATTR_UNUSABLE)
        s.base = base;
    v->cpu->seg[seg] = s;
}

void pv_set_context(struct vcpu *v, const struct vcpu_guest_context *ctx)
{
    struct x86_cpu *c = v->cpu;
    const struct cpu_user_regs *r = &ctx->user_regs;
    struct x86_seg cs, ss;
    u64 dr[8];

    memcpy(dr, c->dr, sizeof dr);       /* were checked and set one by one */
    pv_reset(v);
    memcpy(c->dr, dr, sizeof dr);
    if (pv_segment(v, X86_CS, r->cs | 3, &cs) & pv_segment(v, X86_SS, r->ss | 3, &ss)) {
        c->seg[X86_CS] = cs;
        c->seg[X86_SS] = ss;
    } else {
        pv_cpu_of(c)->failsafe = true;
        c->seg[X86_CS].sel = r->cs | 3;
        c->seg[X86_SS].sel = r->ss | 3;
    }
    load_data_segment(v, X86_DS, r->ds, 0);
    load_data_segment(v, X86_ES, r->es, 0);
    load_data_segment(v, X86_FS, r->fs, ctx->fs_base);
    load_data_segment(v, X86_GS, r->gs, v->kernel_mode ? ctx->gs_base_kernel : ctx->gs_base_user);
    c->kernel_gs_base = v->kernel_mode ? ctx->gs_base_user : ctx->gs_base_kernel;
    c->cr0 |= ctx->ctrlreg[0] & X86_CR0_TS;
    c->cr4 |= ctx->ctrlreg[4] & PV_CR4_GUEST;
    if (ctx->flags & VGCF_i387_valid) {
        STATIC_ASSERT(sizeof c->fx == sizeof ctx->fpu_ctxt);
        memcpy(&c->fx, &ctx->fpu_ctxt, sizeof c->fx);
        x86_fx_sanitize(&c->fx);
    }
    pv_set_regs(v, r);
}
