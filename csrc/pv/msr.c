/* Model-specific registers of a PV vCPU (section 3.8, the table of MSRs) and the hypercall page that one of them writes.
 *
 * Owns: nothing. Called by: emulate.c, outside guest mode; xenlike.h (hypercall page). No locks.
 */
#include <string.h>

#include "pv/pv.h"

enum {
    MSR_TSC = 0x10, MSR_PLATFORM_ID = 0x17, MSR_APIC_BASE = 0x1b, MSR_FEATURE_CONTROL = 0x3a, MSR_UCODE_REV = 0x8b,
    MSR_PLATFORM_INFO = 0xce,
    MSR_MPERF = 0xe7, MSR_APERF = 0xe8, MSR_MISC_FEATURES = 0x140, MSR_MCG_CAP = 0x179, MSR_MCG_STATUS = 0x17a, MSR_MCG_CTL = 0x17b,
    MSR_PERF_STATUS = 0x198, MSR_PERF_CTL = 0x199, MSR_THERM_STATUS = 0x19c, MSR_MISC_ENABLE = 0x1a0, MSR_PAT = 0x277, MSR_PERF_CAP = 0x345,
};
enum { MSR_HYPERCALL_PAGE = 0x40000000 };
#define MSR_EFER            0xc0000080u
#define MSR_FS_BASE         0xc0000100u
#define MSR_GS_BASE         0xc0000101u
#define MSR_KERNEL_GS_BASE  0xc0000102u
#define MSR_TSC_AUX         0xc0000103u

static const u64 XEN_PAT = 0x0000050100070406, MISC_ENABLE_VALUE = 1;   /* fast strings */
static const u64 APIC_BASE = 0xfee00800, APIC_BSP = 0x100;

bool pv_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    const struct x86_cpu *c = v->cpu;
    *value = 0;
    switch (msr) {
    case MSR_TSC:
        *value = host_now(v->host);
        return true;
    case MSR_APIC_BASE:
        *value = APIC_BASE | (v->id ? 0 : APIC_BSP);
        return true;
    case MSR_FS_BASE:
        *value = c->seg[X86_FS].base;
        return true;
    case MSR_GS_BASE:
        *value = c->seg[X86_GS].base;
        return true;
    case MSR_KERNEL_GS_BASE:
        *value = c->kernel_gs_base;
        return true;
    case MSR_EFER:
        *value = c->efer;
        return true;
    case MSR_PAT:
        *value = XEN_PAT;
        return true;
    case MSR_MISC_ENABLE:
        *value = MISC_ENABLE_VALUE;
        return true;
    case MSR_FEATURE_CONTROL:
        *value = 1;                     /* locked, nothing enabled */
        return true;
    case MSR_TSC_AUX:
        *value = c->tsc_aux;
        return true;
    case MSR_PLATFORM_ID: case MSR_UCODE_REV: case MSR_PLATFORM_INFO: case MSR_MISC_FEATURES: case MSR_MCG_CAP: case MSR_MCG_STATUS:
    case MSR_PERF_STATUS: case MSR_PERF_CTL: case MSR_THERM_STATUS: case MSR_PERF_CAP: case MSR_HYPERCALL_PAGE:
        return true;
    default:
        /* Kernels that read MSRs before they can take the fault: an unknown one is 0 for them. */
        return msr >> 16 != 0x4000 && !(v->arch.traps && v->arch.traps[X86_GP].address);
    }
}

static bool set_base(struct x86_cpu *c, u64 *base, u64 value)
{
    if (!va_canonical(value))
        return false;
    *base = value;
    x86_derive(c);
    return true;
}

static bool write_hypercall_page(struct vcpu *v, u64 value)
{
    if (value % PAGE_SIZE)              /* index of the page: there is one */
        return false;
    u8 *page = frame_write_begin(v->host, value >> PAGE_SHIFT, v->domain);
    if (!page)
        return false;
    pv_hypercall_page(page);
    frame_write_end(v->host, value >> PAGE_SHIFT);
    return true;
}

bool pv_wrmsr(struct vcpu *v, u32 msr, u64 value)
{
    struct x86_cpu *c = v->cpu;
    switch (msr) {
    case MSR_FS_BASE:
        return set_base(c, &c->seg[X86_FS].base, value);
    case MSR_GS_BASE:
        return set_base(c, &c->seg[X86_GS].base, value);
    case MSR_KERNEL_GS_BASE:
        return set_base(c, &c->kernel_gs_base, value);
    case MSR_EFER:
        return value == c->efer;
    case MSR_TSC_AUX:
        c->tsc_aux = (u32)value;
        return true;
    case MSR_UCODE_REV: case MSR_MISC_FEATURES:
        return value == 0;
    case MSR_MISC_ENABLE: case MSR_PERF_CTL: case MSR_MPERF: case MSR_APERF: case MSR_MCG_STATUS: case MSR_MCG_CTL:
        return true;                    /* taken, without effect */
    case MSR_HYPERCALL_PAGE:
        return write_hypercall_page(v, value);
    default:
        return false;
    }
}

/* Section 2.1. Bytes between the stubs stay as they are. */
void pv_hypercall_page(u8 *page)
{
    static const u8 call[] = { 0x51, 0x41, 0x53, 0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3 };
    static const u8 iret[] = { 0x51, 0x41, 0x53, 0x50, 0xb8, __HYPERVISOR_iret, 0, 0, 0, 0x0f, 0x05 };
    for (unsigned n = 0; n < PAGE_SIZE / 32; n++) {
        u8 *stub = page + n * 32;
        if (n == __HYPERVISOR_iret) {
            memcpy(stub, iret, sizeof iret);
        } else {
            memcpy(stub, call, sizeof call);
            stub[4] = (u8)n;
        }
    }
}
