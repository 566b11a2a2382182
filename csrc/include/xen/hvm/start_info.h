/*
 * What a PVH guest finds at the physical address in ebx. All addresses are physical.
 */
#ifndef __XEN_PUBLIC_ARCH_X86_HVM_START_INFO_H__
#define __XEN_PUBLIC_ARCH_X86_HVM_START_INFO_H__

#include "../xen-compat.h"

XEN_TABLE_BEGIN
    XEN_CONST(XEN_HVM_START_MAGIC_VALUE, 0x336ec578) /* "xEn3", bit 7 of the first byte set */
XEN_TABLE_END

#ifndef __ASSEMBLY__

struct hvm_start_info {
    uint32_t magic;
    uint32_t version; /* 1: with the memory map */
    uint32_t flags;   /* SIF_* */
    uint32_t nr_modules;
    uint64_t modlist_paddr;
    uint64_t cmdline_paddr;
    uint64_t rsdp_paddr;
    uint64_t memmap_paddr;
    uint32_t memmap_entries;
    uint32_t reserved;
};
XEN_ABI_SIZE(struct hvm_start_info, 56);

struct hvm_modlist_entry {
    uint64_t paddr;
    uint64_t size;
    uint64_t cmdline_paddr;
    uint64_t reserved;
};
XEN_ABI_SIZE(struct hvm_modlist_entry, 32);

struct hvm_memmap_table_entry {
    uint64_t addr;
    uint64_t size;
    uint32_t type; /* XEN_HVM_MEMMAP_TYPE_* */
    uint32_t reserved;
};
XEN_ABI_SIZE(struct hvm_memmap_table_entry, 24);

/* The numbers of E820. */
enum {
    XEN_HVM_MEMMAP_TYPE_RAM = 1,
    XEN_HVM_MEMMAP_TYPE_RESERVED = 2,
    XEN_HVM_MEMMAP_TYPE_ACPI = 3,
    XEN_HVM_MEMMAP_TYPE_NVS = 4,
    XEN_HVM_MEMMAP_TYPE_UNUSABLE = 5,
    XEN_HVM_MEMMAP_TYPE_DISABLED = 6,
    XEN_HVM_MEMMAP_TYPE_PMEM = 7,
};

#endif /* !__ASSEMBLY__ */

#endif
