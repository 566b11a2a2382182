/* The way back from the guest kernel: hypercall 23, the switch between kernel and user mode, segments by selector.
 *
 * Owns: vcpu.kernel_mode and what goes with it. Called by: dispatch (do_iret), traps.c, the engine's segment loads. Lock: mm.lock inside
 * mm_descriptor. Sources: sections 3.6, 3.7, 3.12.
 */
#include "pv/pv.h"

#include "hv/hypercall.h"

enum { SEG_WRITABLE = 2, SEG_CONFORMING = 4, SEG_CODE = 8 };    /* bits of a code or data segment's type; readable is WRITABLE's */

static const struct x86_seg KERNEL_CS = { .sel = FLAT_KERNEL_CS64, .attr = 0xafb, .limit = 0xffffffff };
static const struct x86_seg KERNEL_SS = { .sel = FLAT_KERNEL_SS64, .attr = 0xcf3, .limit = 0xffffffff };

void pv_set_kernel_segments(struct x86_cpu *c)
{
    c->seg[X86_CS] = KERNEL_CS;
    c->seg[X86_SS] = KERNEL_SS;
}

void pv_toggle_mode(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    u64 base = c->seg[X86_GS].base;
    v->kernel_mode = !v->kernel_mode;
    c->tlb_set = !v->kernel_mode;
    c->seg[X86_GS].base = c->lin_base[X86_GS] = c->kernel_gs_base;
    c->kernel_gs_base = base;
}

/* ---- segments ---------------------------------------------------------------------------------------------------- */

static bool usable(unsigned seg, u16 attr)
{
    unsigned type = x86_attr_type(attr);
    bool conforming = (type & (SEG_CODE | SEG_CONFORMING)) == (SEG_CODE | SEG_CONFORMING), level = conforming || x86_attr_dpl(attr) == 3;
    if (!(attr & X86_ATTR_P) || !(attr & X86_ATTR_S))
        return false;
    if (seg == X86_CS)
        return (type & SEG_CODE) && (attr & (X86_ATTR_L | X86_ATTR_DB)) != (X86_ATTR_L | X86_ATTR_DB) && level;
    if (seg == X86_SS)
        return !(type & SEG_CODE) && (type & SEG_WRITABLE) && level;
    return (!(type & SEG_CODE) || (type & SEG_WRITABLE)) && level;
}

bool pv_segment(struct vcpu *v, unsigned seg, u16 sel, struct x86_seg *out)
{
    u64 desc;
    if (seg == X86_CS ? sel == KERNEL_CS.sel : seg == X86_SS && sel == KERNEL_SS.sel) {        /* nearly always */
        *out = seg == X86_CS ? KERNEL_CS : KERNEL_SS;
        return true;
    }
    if (!(sel & ~3)) {                  /* null: what 64-bit code has in ds, es, and with us in ss (3.1) */
        *out = seg == X86_SS ? KERNEL_SS : (struct x86_seg){ .attr = X86_ATTR_UNUSABLE };
        out->sel = sel;
        return seg != X86_CS;
    }
    if (mm_descriptor(v, sel, &desc) != DESC_OK)
        return false;
    x86_seg_from_descriptor(out, sel, desc);
    return usable(seg, out->attr);
}

/* A page of the LDT that cannot be had is a page fault at its place in the table, as if the CPU had found it missing there. */
bool pv_descriptor(struct x86_cpu *c, u16 sel, bool two, u64 desc[2])
{
    struct vcpu *v = pv_vcpu(c);
    desc[0] = desc[1] = 0;
    vcpu_leave_guest(v);
    enum descriptor_result rc = mm_descriptor(v, sel, &desc[0]);
    if (rc == DESC_OK && two)
        rc = mm_descriptor(v, sel + 8, &desc[1]);
    vcpu_enter_guest(v);
    if (rc == DESC_UNMAPPED)
        x86_raise_page_fault(c, &(struct x86_fault){ .va = v->arch.ldt_base + (sel & ~7u) });
    return rc == DESC_OK;
}

/* The selector register is there once; only its base is kept apart for user mode. A bad selector becomes null. */
void pv_load_user_gs(struct vcpu *v, u16 sel)
{
    struct x86_cpu *c = v->cpu;
    struct x86_seg gs;
    u64 kernel_base = c->seg[X86_GS].base;
    if (!sel || !pv_segment(v, X86_GS, sel | 3, &gs))
        gs = (struct x86_seg){ .attr = X86_ATTR_UNUSABLE };
    c->kernel_gs_base = gs.base;
    c->seg[X86_GS] = gs;
    c->seg[X86_GS].base = kernel_base;
}

/* ---- hypercall 23 (section 3.6) ---------------------------------------------------------------------------------- */

s64 pv_iret(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    struct iret_context f;
    struct x86_seg cs, ss;

    if (copy_from_guest(v, &f, c->r[X86_RSP], sizeof f)) {
        pv_crash(v, "iret: its frame at %#lx cannot be read", c->r[X86_RSP]);
        return -XEN_EFAULT;
    }
    bool to_user = (f.cs & 3) == 3;
    if (to_user && !v->user_cr3_mfn) {
        pv_crash(v, "iret to user mode, for which the guest has set no page table");
        return -XEN_EINVAL;
    }
    bool ok = pv_segment(v, X86_CS, (u16)f.cs | 3, &cs) & pv_segment(v, X86_SS, (u16)f.ss | 3, &ss);

    if (to_user)
        pv_toggle_mode(v);
    if (pv_assist(v, VMASST_TYPE_architectural_iopl))
        v->arch.iopl = f.rflags >> 12 & 3;
    c->rflags = (f.rflags & PV_RFLAGS & ~(u64)(X86_IOPL | X86_VM)) | X86_IF | X86_FLAG1;
    c->r[X86_RIP] = f.rip;
    c->r[X86_RSP] = f.rsp;
    c->r[X86_RAX] = f.rax;
    c->r[X86_RCX] = f.flags & VGCF_in_syscall ? f.rip : f.rcx;
    c->r[X86_R11] = f.flags & VGCF_in_syscall ? c->rflags : f.r11;
    if (ok) {
        c->seg[X86_CS] = cs;
        c->seg[X86_SS] = ss;
    } else {
        c->seg[X86_CS].sel = (u16)f.cs | 3;
        c->seg[X86_SS].sel = (u16)f.ss | 3;
    }
    frame_mark_dirty(&v->host->machine, v->info_mfn ? v->info_mfn : v->domain->shared_info_mfn);
    write_once(v->info->evtchn_upcall_mask, !(f.rflags & X86_IF));
    pv_cpu_of(c)->nmi_masked = false;
    v->iret_done = true;
    x86_derive(c);
    if (!ok)
        pv_failsafe(v);
    return 0;
}
