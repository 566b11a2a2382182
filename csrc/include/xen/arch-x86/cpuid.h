/*
 * The hypervisor's CPUID leaves, from XEN_CPUID_FIRST_LEAF or the next free multiple of 0x100 above it.
 */
#ifndef __XEN_PUBLIC_ARCH_X86_CPUID_H__
#define __XEN_PUBLIC_ARCH_X86_CPUID_H__

#include "../xen-compat.h"

enum {
    XEN_CPUID_FIRST_LEAF = 0x40000000,
    XEN_CPUID_SIGNATURE_EBX = 0x566e6558, /* "XenVMMXenVMM" */
    XEN_CPUID_SIGNATURE_ECX = 0x65584d4d,
    XEN_CPUID_SIGNATURE_EDX = 0x4d4d566e,
    XEN_CPUID_MAX_NUM_LEAVES = 5,
};

/* Leaf 2, ecx. */
enum {
    _XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 0,
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1u << 0,
};

/* Leaf 4, eax, HVM only. */
enum {
    XEN_HVM_CPUID_APIC_ACCESS_VIRT = 1u << 0,
    XEN_HVM_CPUID_X2APIC_VIRT = 1u << 1,
    XEN_HVM_CPUID_IOMMU_MAPPINGS = 1u << 2,
    XEN_HVM_CPUID_VCPU_ID_PRESENT = 1u << 3,
    XEN_HVM_CPUID_DOMID_PRESENT = 1u << 4,
    XEN_HVM_CPUID_EXT_DEST_ID = 1u << 5,
    XEN_HVM_CPUID_UPCALL_VECTOR = 1u << 6,
};

/* Leaf 5, ebx, PV only. */
enum {
    XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK = 0xffu,
};

#ifndef XL_CDEF
#define XEN_CPUID_LEAF(i) (XEN_CPUID_FIRST_LEAF + (i))
#endif

#endif
