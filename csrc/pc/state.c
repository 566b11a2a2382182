/* How a vCPU of a PC starts, stops and starts again: boot protocols, INIT, start-up IPIs (SDM vol. 3, 8.4).
 *
 * Owns: pc_cpu.start. Called by: xenlike.h (pc_start, pc_set_regs), apic.c (pc_send_*), run.c. Lock: pc.lock for the start word.
 */
#include "pc/pc.h"

void pc_start(struct pc_cpu *p, u32 eip, u32 eax, u32 ebx)
{
    struct x86_cpu *c = &p->cpu;
    x86_reset(c);
    c->cr0 = X86_CR0_PE | X86_CR0_ET;
    for (unsigned s = 0; s < X86_NR_SEGS; s++)
        c->seg[s] = (struct x86_seg){ .sel = 0x10, .attr = 0xc93, .limit = 0xffffffff };
    c->seg[X86_CS] = (struct x86_seg){ .sel = 0x08, .attr = 0xc9b, .limit = 0xffffffff };
    c->tr = (struct x86_seg){ .attr = 0x8b, .limit = 0x67 };
    c->gdtr = c->idtr = (struct x86_dtr){ 0 };
    for (unsigned n = 0; n < 16; n++)
        c->r[n] = 0;
    c->r[X86_RAX] = eax;
    c->r[X86_RBX] = ebx;
    c->r[X86_RIP] = c->next_rip = eip;
    x86_derive(c);
}

/* Table 9-1, column INIT. */
void pc_init(struct pc_cpu *p)
{
    struct x86_cpu *c = &p->cpu;
    struct x86_fx fx = c->fx;
    u64 tsc_offset = c->tsc_offset, base = c->apic_base, efer = c->efer;
    u64 msr[] = { c->star, c->lstar, c->cstar, c->sfmask, c->sysenter_cs, c->sysenter_esp, c->sysenter_eip, c->tsc_aux, c->pat };
    u64 cache = c->cr0 & (X86_CR0_CD | X86_CR0_NW);
    x86_reset(c);
    c->fx = fx;
    c->tsc_offset = tsc_offset, c->apic_base = base;
    c->efer = efer & X86_EFER_SCE;
    c->star = msr[0], c->lstar = msr[1], c->cstar = msr[2], c->sfmask = msr[3], c->sysenter_cs = msr[4], c->sysenter_esp = msr[5];
    c->sysenter_eip = msr[6], c->tsc_aux = msr[7], c->pat = msr[8];
    c->cr0 = X86_CR0_ET | cache;
    apic_reset(p);
    x86_derive(c);
}

void pc_send_init(struct pc_cpu *p)
{
    store_release(p->start, (p->start & ~(u32)PC_SIPI) | PC_INIT);
    vcpu_kick(pc_vcpu(p));
}

/* Only one that waits for it takes it. */
void pc_send_sipi(struct pc_cpu *p, u8 vector)
{
    if (!(p->start & (PC_WAIT_SIPI | PC_INIT)) || p->start & PC_SIPI)
        return;
    p->sipi_vector = vector;
    store_release(p->start, p->start | PC_SIPI);
    vcpu_unpause(pc_vcpu(p), VPF_down);
    vcpu_kick(pc_vcpu(p));
}

bool pc_take_start(struct pc_cpu *p)
{
    struct x86_cpu *c = &p->cpu;
    bool runs = true;
    spin_lock(&p->pc->lock);
    if (p->start & PC_INIT) {
        pc_init(p);
        p->start = (p->start & ~(u32)PC_INIT) | (pc_bsp(p) ? 0 : PC_WAIT_SIPI);         /* the first one begins at the reset vector (8.4.2) */
    }
    if (p->start & PC_SIPI && p->start & PC_WAIT_SIPI) {
        c->seg[X86_CS].sel = (u16)(p->sipi_vector << 8);
        c->seg[X86_CS].base = (u64)p->sipi_vector << 12;
        c->r[X86_RIP] = c->next_rip = 0;
        x86_derive(c);
        p->start = 0;
    }
    store_release(p->start, p->start & (u32)PC_WAIT_SIPI);
    if (p->start) {
        vcpu_pause(pc_vcpu(p), VPF_down);
        runs = false;
    }
    spin_unlock(&p->pc->lock);
    return runs;
}

void pc_set_regs(struct pc_cpu *p, const struct cpu_user_regs *r)
{
    static const u64 WRITABLE = X86_ARITH_FLAGS | X86_TF | X86_IF | X86_DF | X86_NT | X86_AC | X86_ID;
    struct x86_cpu *c = &p->cpu;
    const u64 general[16] = { r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi, r->r8, r->r9, r->r10, r->r11, r->r12, r->r13,
                              r->r14, r->r15 };
    for (unsigned n = 0; n < 16; n++)
        c->r[n] = general[n];
    c->r[X86_RIP] = c->next_rip = r->rip;
    c->rflags = (c->rflags & ~WRITABLE) | (r->rflags & WRITABLE) | X86_FLAG1;
    x86_derive(c);
}
