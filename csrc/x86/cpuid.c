/* CPUID: what the CPU says it is (vol. 2, CPUID).
 *
 * Owns: the leaves of a CPU with x86_cpu.features and nothing around it: no APIC, no caches worth naming, no hypervisor. Who has more
 * (pv/, pc/) starts from these and adds. Called by: ops->cpuid. Locks: none.
 *
 * Family, model and stepping are those of an in-order core (Atom, 06_1CH). Operating systems choose their mitigations for speculative
 * execution by model; this CPU does not speculate, and so they need none and take none.
 */
#include <string.h>

#include "x86/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { SIGNATURE = 0x000106ca, MAX_BASIC = 7, MAX_EXTENDED = 0x80000008 - 0x80000000, LINEAR_BITS = 48, CLFLUSH_QUADWORDS = 8 };
enum { EAX, EBX, ECX, EDX };

/* One row a bit. Feature 0: every CPU has it. */
static const struct { u32 leaf; u8 reg, bit; u32 feature; } BITS[] = {
    { 1, EDX, 0, X86_FEAT_FPU },
    { 1, EDX, 2, 0 },                                   /* DE */
    { 1, EDX, 3, 0 },                                   /* PSE */
    { 1, EDX, 4, 0 },                                   /* TSC */
    { 1, EDX, 5, 0 },                                   /* MSR */
    { 1, EDX, 6, 0 },                                   /* PAE */
    { 1, EDX, 8, 0 },                                   /* CMPXCHG8B */
    { 1, EDX, 11, X86_FEAT_SEP },
    { 1, EDX, 13, 0 },                                  /* PGE */
    { 1, EDX, 15, 0 },                                  /* CMOV */
    { 1, EDX, 16, 0 },                                  /* PAT: the MSR; memory has one type */
    { 1, EDX, 19, X86_FEAT_CLFLUSH },
    { 1, EDX, 23, X86_FEAT_MMX },
    { 1, EDX, 24, X86_FEAT_SSE },                       /* FXSR */
    { 1, EDX, 25, X86_FEAT_SSE },
    { 1, EDX, 26, X86_FEAT_SSE2 },
    { 1, ECX, 0, X86_FEAT_SSE3 },
    { 1, ECX, 1, X86_FEAT_PCLMUL },
    { 1, ECX, 9, X86_FEAT_SSSE3 },
    { 1, ECX, 13, X86_FEAT_CX16 },
    { 1, ECX, 19, X86_FEAT_SSE41 },
    { 1, ECX, 20, X86_FEAT_SSE42 },
    { 1, ECX, 22, X86_FEAT_MOVBE },
    { 1, ECX, 23, X86_FEAT_POPCNT },
    { 1, ECX, 25, X86_FEAT_AES },
    { 1, ECX, 30, X86_FEAT_RDRAND },
    { 7, EBX, 3, X86_FEAT_BMI1 },
    { 7, EBX, 8, X86_FEAT_BMI2 },
    { 7, EBX, 19, X86_FEAT_ADX },
    { 0x80000001, ECX, 0, X86_FEAT_LM },                /* LAHF and SAHF in 64-bit mode */
    { 0x80000001, ECX, 5, X86_FEAT_LZCNT },
    { 0x80000001, EDX, 11, X86_FEAT_SYSCALL },          /* in 64-bit mode only (Intel) */
    { 0x80000001, EDX, 20, X86_FEAT_NX },
    { 0x80000001, EDX, 26, X86_FEAT_LM },               /* pages of 1 GiB */
    { 0x80000001, EDX, 27, X86_FEAT_RDTSCP },
    { 0x80000001, EDX, 29, X86_FEAT_LM },
};

static void put_string(u32 *out, const char *s, unsigned n) { memcpy(out, s, n); }

void x86_cpuid_native(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4])
{
    static const char brand[48] = "xenlike x86-64 interpreter";
    out[EAX] = out[EBX] = out[ECX] = out[EDX] = 0;
    if (leaf < 0x80000000 ? leaf > MAX_BASIC : leaf - 0x80000000 > MAX_EXTENDED)
        leaf = MAX_BASIC;                               /* Intel: a leaf beyond the last answers as the last basic one */
    switch (leaf) {
    case 0:
        out[EAX] = MAX_BASIC;
        put_string(&out[EBX], "Genu", 4);
        put_string(&out[EDX], "ineI", 4);
        put_string(&out[ECX], "ntel", 4);
        break;
    case 1:
        out[EAX] = SIGNATURE;
        out[EBX] = 1 << 16 | (c->features & X86_FEAT_CLFLUSH ? CLFLUSH_QUADWORDS << 8 : 0);
        break;
    case 2:
        out[EAX] = 1;                                   /* one call suffices; no descriptors */
        break;
    case 7:
        if (subleaf)
            return;
        break;
    case 0x80000000:
        out[EAX] = 0x80000000 + MAX_EXTENDED;
        break;
    case 0x80000002: case 0x80000003: case 0x80000004:
        put_string(out, brand + (leaf - 0x80000002) * 16, 16);
        break;
    case 0x80000008:
        out[EAX] = X86_PHYS_BITS | (c->features & X86_FEAT_LM ? LINEAR_BITS : 32) << 8;
        break;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(BITS); n++) {
        bool has = !BITS[n].feature || (c->features & BITS[n].feature);
        if (BITS[n].leaf == leaf && BITS[n].feature == X86_FEAT_SYSCALL)
            has = has && c->mode == 64;
        if (BITS[n].leaf == leaf && has)
            out[BITS[n].reg] |= 1u << BITS[n].bit;
    }
}

/* Integer and system instructions are ours on any host; those of the FPU and of SSE run on the host's (fpu.h). */
u64 x86_features_supported(void)
{
    u64 features = X86_FEAT_POPCNT | X86_FEAT_BMI1 | X86_FEAT_BMI2 | X86_FEAT_LZCNT | X86_FEAT_MOVBE | X86_FEAT_ADX | X86_FEAT_CX16 |
                   X86_FEAT_RDTSCP | X86_FEAT_LM | X86_FEAT_NX | X86_FEAT_SEP | X86_FEAT_SYSCALL | X86_FEAT_CLFLUSH;
#if defined(__x86_64__)
    static const struct { u8 bit; u32 feature; } ecx_of_leaf_1[] = {
        { 0, X86_FEAT_SSE3 }, { 1, X86_FEAT_PCLMUL }, { 9, X86_FEAT_SSSE3 }, { 19, X86_FEAT_SSE41 }, { 20, X86_FEAT_SSE42 },
        { 25, X86_FEAT_AES },
    };
    u32 a, b, ecx = 0, d;
    __get_cpuid(1, &a, &b, &ecx, &d);
    features |= X86_FEAT_FPU | X86_FEAT_MMX | X86_FEAT_SSE | X86_FEAT_SSE2;
    for (unsigned n = 0; n < ARRAY_SIZE(ecx_of_leaf_1); n++)
        if (ecx >> ecx_of_leaf_1[n].bit & 1)
            features |= ecx_of_leaf_1[n].feature;
#endif
    return features;
}
