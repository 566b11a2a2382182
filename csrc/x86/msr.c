/* Model-specific registers (vol. 4, table 2-2) that struct x86_cpu holds.
 *
 * Owns: which exist, what may be written to them. Called by: ops->rdmsr, ops->wrmsr, directly or for what a machine does not have itself.
 * CPL was checked. Locks: none. What no row describes is #GP(0).
 */
#include "x86/system.h"

enum {
    MSR_TSC = 0x10, MSR_PLATFORM_ID = 0x17, MSR_APIC_BASE = 0x1b, MSR_BIOS_SIGN_ID = 0x8b, MSR_SYSENTER_CS = 0x174,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176, MSR_MISC_ENABLE = 0x1a0, MSR_PAT = 0x277, MSR_EFER = 0xc0000080, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SFMASK,
    MSR_FS_BASE = 0xc0000100, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_TSC_AUX,
};
#define MISC_ENABLE 0x1801ul    /* fast strings; no branch trace store, no PEBS. Read-only here: nothing of it can be turned off */

enum { ANY, CANONICAL, LOW32 /* upper half ignored */, ONLY32 /* upper half reserved */, PAT, FIXED /* writes are ignored */ };
#define AT(field) offsetof(struct x86_cpu, field)
static const struct msr { u32 index; u8 check; u32 feature; u32 at; u64 fixed; } MSRS[] = {
    { MSR_PLATFORM_ID,    FIXED,     0,                 0, 0 },
    { MSR_BIOS_SIGN_ID,   FIXED,     0,                 0, 0 },
    { MSR_MISC_ENABLE,    FIXED,     0,                 0, MISC_ENABLE },
    { MSR_SYSENTER_CS,    LOW32,     X86_FEAT_SEP,      AT(sysenter_cs) },
    { MSR_SYSENTER_ESP,   CANONICAL, X86_FEAT_SEP,      AT(sysenter_esp) },
    { MSR_SYSENTER_EIP,   CANONICAL, X86_FEAT_SEP,      AT(sysenter_eip) },
    { MSR_PAT,            PAT,       0,                 AT(pat) },
    { MSR_STAR,           ANY,       X86_FEAT_SYSCALL,  AT(star) },
    { MSR_LSTAR,          CANONICAL, X86_FEAT_SYSCALL,  AT(lstar) },
    { MSR_CSTAR,          CANONICAL, X86_FEAT_SYSCALL,  AT(cstar) },
    { MSR_SFMASK,         LOW32,     X86_FEAT_SYSCALL,  AT(sfmask) },
    { MSR_FS_BASE,        CANONICAL, X86_FEAT_LM,       AT(seg[X86_FS].base) },
    { MSR_GS_BASE,        CANONICAL, X86_FEAT_LM,       AT(seg[X86_GS].base) },
    { MSR_KERNEL_GS_BASE, CANONICAL, X86_FEAT_LM,       AT(kernel_gs_base) },
    { MSR_TSC_AUX,        ONLY32,    X86_FEAT_RDTSCP,   AT(tsc_aux) },
};

static const struct msr *msr_find(struct x86_cpu *c, u32 index)
{
    for (unsigned n = 0; n < ARRAY_SIZE(MSRS); n++)
        if (MSRS[n].index == index && (!MSRS[n].feature || (c->features & MSRS[n].feature)))
            return &MSRS[n];
    x86_raise_error(c, X86_GP, 0);
}

static bool has_efer(const struct x86_cpu *c) { return c->features & (X86_FEAT_LM | X86_FEAT_NX | X86_FEAT_SYSCALL); }

void x86_rdmsr_native(struct x86_cpu *c, u32 index)
{
    u64 value;
    if (index == MSR_TSC) {
        value = c->ops->tsc(c) + c->tsc_offset;
    } else if (index == MSR_APIC_BASE) {
        value = c->apic_base;
    } else if (index == MSR_EFER && has_efer(c)) {
        value = c->efer;
    } else {
        const struct msr *m = msr_find(c, index);
        value = m->check == FIXED ? m->fixed : *(u64 *)((u8 *)c + m->at);
    }
    c->r[X86_RAX] = (u32)value;
    c->r[X86_RDX] = value >> 32;
}

/* LMA is the CPU's own: writes leave it. LME may not change under paging (vol. 3, 2.2.1, 9.8.5). */
static void write_efer(struct x86_cpu *c, u64 value)
{
    u64 allowed = X86_EFER_LMA | (c->features & X86_FEAT_SYSCALL ? X86_EFER_SCE : 0) | (c->features & X86_FEAT_LM ? X86_EFER_LME : 0) |
                  (c->features & X86_FEAT_NX ? X86_EFER_NXE : 0);
    u64 changed = value ^ c->efer;
    if ((value & ~allowed) || ((changed & X86_EFER_LME) && (c->cr0 & X86_CR0_PG)))
        x86_raise_error(c, X86_GP, 0);
    c->efer = (value & ~X86_EFER_LMA) | (c->efer & X86_EFER_LMA);
    if (changed & X86_EFER_NXE)
        x86_tlb_flush(c);
    x86_derive(c);
}

static bool pat_valid(u64 value)
{
    for (unsigned n = 0; n < 64; n += 8)                /* memory types 2 and 3 are reserved (11.12.2) */
        if ((value >> n & 0xff) > 7 || (value >> n & 0xfe) == 2)
            return false;
    return true;
}

void x86_wrmsr_native(struct x86_cpu *c, u32 index, u64 value)
{
    if (index == MSR_TSC) {
        c->tsc_offset = value - c->ops->tsc(c);
    } else if (index == MSR_APIC_BASE) {
        if (value >> X86_PHYS_BITS || (value & 0x6ff))  /* bits 0-7, 9; 10: no x2APIC */
            x86_raise_error(c, X86_GP, 0);
        c->apic_base = (value & ~0x100ul) | (c->apic_base & 0x100);
    } else if (index == MSR_EFER && has_efer(c)) {
        write_efer(c, value);
    } else {
        const struct msr *m = msr_find(c, index);
        if ((m->check == CANONICAL && !va_canonical(value)) || (m->check == ONLY32 && value >> 32) ||
            (m->check == PAT && !pat_valid(value)))
            x86_raise_error(c, X86_GP, 0);
        if (m->check != FIXED)
            *(u64 *)((u8 *)c + m->at) = m->check == LOW32 ? (u32)value : value;
        x86_derive(c);                                  /* FS and GS bases */
    }
}
