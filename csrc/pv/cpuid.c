/* CPUID of a PV vCPU: the engine's, without what Xen hides from PV guests, and the hypervisor's own leaves (section 3.10).
 *
 * Owns: the policy. Called by: the engine (cpuid), emulate.c (forced emulation). No locks.
 */
#include "hv/hypercall.h"
#include "pv/pv.h"
#include "xen/arch-x86/cpuid.h"

#define BIT(n) (1u << (n))

/* What to clear, by leaf and register. */
static const struct { u32 leaf, eax, ebx, ecx, edx; } hidden[] = {
    /* 1: DTES64 MONITOR DS-CPL VMX EST TM2 PDCM PCID x2APIC TSC-DEADLINE XSAVE OSXSAVE; VME PSE PGE MTRR PSE36 DS ACPI TM */
    { 1, 0, 0, BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(7) | BIT(8) | BIT(15) | BIT(17) | BIT(21) | BIT(24) | BIT(26) | BIT(27),
      BIT(1) | BIT(3) | BIT(12) | BIT(13) | BIT(17) | BIT(21) | BIT(22) | BIT(29) },
    { 5, ~0u, ~0u, ~0u, ~0u },                  /* MONITOR */
    { 6, ~0u, ~0u, ~0u, ~0u },                  /* power management */
    /* 7: FSGSBASE HLE SMEP INVPCID RTM MPX SMAP PT; UMIP PKU OSPKE */
    { 7, 0, BIT(0) | BIT(4) | BIT(7) | BIT(10) | BIT(11) | BIT(14) | BIT(20) | BIT(25), BIT(2) | BIT(3) | BIT(4), 0 },
    { 10, ~0u, ~0u, ~0u, ~0u },                 /* performance counters */
    { 13, ~0u, ~0u, ~0u, ~0u },                 /* XSAVE */
    { 0x80000001, 0, 0, BIT(2), BIT(1) | BIT(3) | BIT(12) | BIT(13) | BIT(17) | BIT(26) },     /* SVM; as leaf 1, and 1 GiB pages */
};

static void set(u32 out[4], u32 a, u32 b, u32 c, u32 d)
{
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

static void hypervisor_leaf(u32 n, u32 subleaf, u32 out[4])
{
    struct vcpu_time_info t;
    set(out, 0, 0, 0, 0);
    switch (n) {
    case 0:
        set(out, XEN_CPUID_LEAF(XEN_CPUID_MAX_NUM_LEAVES), XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX);
        break;
    case 1:
        out[0] = XEN_VERSION;
        break;
    case 2:                             /* one hypercall page, written by this MSR */
        set(out, 1, 0x40000000, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0);
        break;
    case 3:                             /* the TSC: emulated, reliable, 1 GHz (hv/time.c) */
        vcpu_time_record(&t);
        if (subleaf == 0)
            set(out, BIT(0) | BIT(1) | BIT(2), 1, 1000000, 0);
        else if (subleaf == 1)
            set(out, 0, 0, t.tsc_to_system_mul, (u32)t.tsc_shift);
        else if (subleaf == 2)
            out[0] = 1000000;
        break;
    case 5:
        out[1] = X86_PHYS_BITS;
        break;
    }
}

void pv_cpuid(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4])
{
    if (leaf - XEN_CPUID_FIRST_LEAF <= XEN_CPUID_MAX_NUM_LEAVES) {
        hypervisor_leaf(leaf - XEN_CPUID_FIRST_LEAF, subleaf, out);
        return;
    }
    if (leaf >> 28 == 4) {              /* between our leaves and the next hypervisor's there is nothing */
        set(out, 0, 0, 0, 0);
        return;
    }
    x86_cpuid_native(c, leaf, subleaf, out);
    for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++)
        if (hidden[i].leaf == leaf) {
            out[0] &= ~hidden[i].eax;
            out[1] &= ~hidden[i].ebx;
            out[2] &= ~hidden[i].ecx;
            out[3] &= ~hidden[i].edx;
        }
    if (leaf == 1) {
        out[1] = (out[1] & 0x00ffffff) | pv_vcpu(c)->id << 25;          /* APIC id */
        out[2] |= BIT(31);              /* a hypervisor is present */
        out[3] |= BIT(9);               /* APIC: Xen says so to every PV guest */
    }
}
