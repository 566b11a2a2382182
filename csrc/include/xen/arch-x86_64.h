/*
 * The x86-64 half of the ABI: selectors, address-space layout, registers, what a vCPU is made of.
 *
 * Included by xen.h, which guests include. In Xen's own tree these names live in arch-x86/xen.h and
 * arch-x86/xen-x86_64.h.
 */
#ifndef __XEN_PUBLIC_ARCH_X86_64_H__
#define __XEN_PUBLIC_ARCH_X86_64_H__

#include "xen-compat.h"

/*
 * Selectors of the descriptors that the hypervisor keeps in the last pages of every GDT. Guest kernel and guest user
 * both run at CPL 3, so that both use the same ones.
 */
XEN_TABLE_BEGIN
    XEN_CONST(FLAT_RING3_CS32, 0xe023)
    XEN_CONST(FLAT_RING3_CS64, 0xe033)
    XEN_CONST(FLAT_RING3_DS32, 0xe02b)
    XEN_CONST(FLAT_RING3_DS64, 0x0000)
    XEN_CONST(FLAT_RING3_SS32, 0xe02b)
    XEN_CONST(FLAT_RING3_SS64, 0xe02b)
    XEN_CONST(FLAT_KERNEL_CS32, FLAT_RING3_CS32)
    XEN_CONST(FLAT_KERNEL_CS64, FLAT_RING3_CS64)
    XEN_CONST(FLAT_KERNEL_CS, FLAT_KERNEL_CS64)
    XEN_CONST(FLAT_KERNEL_DS32, FLAT_RING3_DS32)
    XEN_CONST(FLAT_KERNEL_DS64, FLAT_RING3_DS64)
    XEN_CONST(FLAT_KERNEL_DS, FLAT_KERNEL_DS64)
    XEN_CONST(FLAT_KERNEL_SS32, FLAT_RING3_SS32)
    XEN_CONST(FLAT_KERNEL_SS64, FLAT_RING3_SS64)
    XEN_CONST(FLAT_KERNEL_SS, FLAT_KERNEL_SS64)
    XEN_CONST(FLAT_USER_CS32, FLAT_RING3_CS32)
    XEN_CONST(FLAT_USER_CS64, FLAT_RING3_CS64)
    XEN_CONST(FLAT_USER_CS, FLAT_USER_CS64)
    XEN_CONST(FLAT_USER_DS32, FLAT_RING3_DS32)
    XEN_CONST(FLAT_USER_DS64, FLAT_RING3_DS64)
    XEN_CONST(FLAT_USER_DS, FLAT_USER_DS64)
    XEN_CONST(FLAT_USER_SS32, FLAT_RING3_SS32)
    XEN_CONST(FLAT_USER_SS64, FLAT_RING3_SS64)
    XEN_CONST(FLAT_USER_SS, FLAT_USER_SS64)
XEN_TABLE_END

/* vcpu_guest_context.flags; _VGCF_in_syscall also stands in the flags slot of an iret frame. */
XEN_TABLE_BEGIN
    XEN_CONST(_VGCF_i387_valid, 0)
    XEN_CONST(_VGCF_in_kernel, 2)
    XEN_CONST(_VGCF_failsafe_disables_events, 3)
    XEN_CONST(_VGCF_syscall_disables_events, 4)
    XEN_CONST(_VGCF_online, 5)
    XEN_CONST(_VGCF_in_syscall, 8)
    XEN_CONST(VGCF_i387_valid, 1 << _VGCF_i387_valid)
    XEN_CONST(VGCF_in_kernel, 1 << _VGCF_in_kernel)
    XEN_CONST(VGCF_failsafe_disables_events, 1 << _VGCF_failsafe_disables_events)
    XEN_CONST(VGCF_syscall_disables_events, 1 << _VGCF_syscall_disables_events)
    XEN_CONST(VGCF_online, 1 << _VGCF_online)
    XEN_CONST(VGCF_in_syscall, 1 << _VGCF_in_syscall)
    XEN_CONST(VGCF_I387_VALID, VGCF_i387_valid)
    XEN_CONST(VGCF_IN_KERNEL, VGCF_in_kernel)
    XEN_CONST(VGCF_IN_SYSCALL, VGCF_in_syscall)
XEN_TABLE_END

#ifndef __ASSEMBLY__

/* L4 slots 256 to 271 belong to the hypervisor; the machine-to-physical table is slot 256, read-only to guests. */
enum {
    HYPERVISOR_VIRT_START = 0xFFFF800000000000u,
    HYPERVISOR_VIRT_END = 0xFFFF880000000000u,
    MACH2PHYS_VIRT_START = 0xFFFF800000000000u,
    MACH2PHYS_VIRT_END = 0xFFFF804000000000u,
    __HYPERVISOR_VIRT_START = HYPERVISOR_VIRT_START,
    __HYPERVISOR_VIRT_END = HYPERVISOR_VIRT_END,
    __MACH2PHYS_VIRT_START = MACH2PHYS_VIRT_START,
    __MACH2PHYS_VIRT_END = MACH2PHYS_VIRT_END,
};

enum {
    MACH2PHYS_NR_ENTRIES = 0x800000000u, /* 8 bytes each */
};

#ifndef XL_CDEF
#define machine_to_phys_mapping ((unsigned long *)HYPERVISOR_VIRT_START)
/* A PV guest has an entry point of its own, and masks upcalls in vcpu_info. Guests test these with #ifdef. */
#define XEN_HAVE_PV_GUEST_ENTRY 1
#define XEN_HAVE_PV_UPCALL_MASK 1
#endif

/* A guest GDT ends where the hypervisor's own descriptors begin. */
enum {
    FIRST_RESERVED_GDT_PAGE = 14,
    FIRST_RESERVED_GDT_BYTE = 14 * 4096,
    FIRST_RESERVED_GDT_ENTRY = 14 * 512,
    XEN_LEGACY_MAX_VCPUS = 32, /* vCPUs with a vcpu_info in the shared_info page */
};

/* set_segment_base: which base. GS_KERNEL is the active one while the guest kernel runs. */
enum {
    SEGBASE_FS = 0,
    SEGBASE_GS_USER = 1,
    SEGBASE_GS_KERNEL = 2,
    SEGBASE_GS_USER_SEL = 3,
};

typedef unsigned long xen_pfn_t;
typedef unsigned long xen_ulong_t;
typedef unsigned long xen_callback_t;
typedef uint64_t tsc_timestamp_t;

/*
 * Registers, in the order in which the hypervisor's own entry code stores them. A register has several names of several
 * widths. As in Xen, tools and the core see eax as 32 bits; for guests, by an old habit, eax is rax, and _eax has 32.
 */
#if defined(XL_CORE) || defined(XL_CDEF) || defined(__XEN_TOOLS__)
#define XEN_REG_NUMBERED(n) union { uint64_t r##n; uint32_t r##n##d; uint16_t r##n##w; uint8_t r##n##b; }
#define XEN_REG_LETTERED(c)                                                                                            \
    union { uint64_t r##c##x; uint32_t e##c##x; uint16_t c##x; struct { uint8_t c##l; uint8_t c##h; }; }
#define XEN_REG_INDEX(x) union { uint64_t r##x; uint32_t e##x; uint16_t x; uint8_t x##l; }
#define XEN_REG_PLAIN(x) union { uint64_t r##x; uint32_t e##x; uint16_t x; }
#else
#define XEN_REG_NUMBERED(n) uint64_t r##n
#define XEN_REG_PLAIN(x) union { uint64_t r##x, e##x; uint32_t _e##x; }
#define XEN_REG_LETTERED(c) XEN_REG_PLAIN(c##x)
#define XEN_REG_INDEX(x) XEN_REG_PLAIN(x)
#endif

struct cpu_user_regs {
    XEN_REG_NUMBERED(15);
    XEN_REG_NUMBERED(14);
    XEN_REG_NUMBERED(13);
    XEN_REG_NUMBERED(12);
    XEN_REG_INDEX(bp);
    XEN_REG_LETTERED(b);
    XEN_REG_NUMBERED(11);
    XEN_REG_NUMBERED(10);
    XEN_REG_NUMBERED(9);
    XEN_REG_NUMBERED(8);
    XEN_REG_LETTERED(a);
    XEN_REG_LETTERED(c);
    XEN_REG_LETTERED(d);
    XEN_REG_INDEX(si);
    XEN_REG_INDEX(di);
    uint32_t error_code;
    uint32_t entry_vector;
    XEN_REG_PLAIN(ip);
    uint16_t cs;
    uint16_t _pad0[1];
    uint8_t saved_upcall_mask;
    uint8_t _pad1[3];
    XEN_REG_PLAIN(flags);
    XEN_REG_INDEX(sp);
    uint16_t ss;
    uint16_t _pad2[3];
    uint16_t es;
    uint16_t _pad3[3];
    uint16_t ds;
    uint16_t _pad4[3];
    uint16_t fs;
    uint16_t _pad5[3];
    uint16_t gs;
    uint16_t _pad6[3];
};
typedef struct cpu_user_regs cpu_user_regs_t;
XEN_ABI_SIZE(struct cpu_user_regs, 200);
XEN_ABI_OFFSET(struct cpu_user_regs, rip, 128);
XEN_ABI_OFFSET(struct cpu_user_regs, gs, 192);

#undef XEN_REG_NUMBERED
#undef XEN_REG_LETTERED
#undef XEN_REG_INDEX
#undef XEN_REG_PLAIN

/* One entry of set_trap_table's list, which ends at address 0. flags: bits 0-1 DPL, bit 2 mask events on entry. */
struct trap_info {
    uint8_t vector;
    uint8_t flags;
    uint16_t cs; /* stored, not used: delivery loads FLAT_KERNEL_CS64 */
    unsigned long address;
};
typedef struct trap_info trap_info_t;
XEN_ABI_SIZE(struct trap_info, 16);

#ifndef XL_CDEF
#define TI_GET_DPL(ti) ((ti)->flags & 3)
#define TI_GET_IF(ti) ((ti)->flags & 4)
#define TI_SET_DPL(ti, dpl) ((ti)->flags |= (dpl))
#define TI_SET_IF(ti, mask) ((ti)->flags |= ((!!(mask)) << 2))
#endif

/* What HYPERVISOR_iret pops. cs.RPL 3 means: to user mode. */
struct iret_context {
    uint64_t rax;
    uint64_t r11;
    uint64_t rcx;
    uint64_t flags; /* VGCF_in_syscall, or 0 */
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags; /* IF clear: leave upcalls masked */
    uint64_t rsp;
    uint64_t ss;
};
XEN_ABI_SIZE(struct iret_context, 72);

/* The whole state of a PV vCPU, for VCPUOP_initialise, the toolstack and save files. */
struct vcpu_guest_context {
    struct { char x[512]; } fpu_ctxt;   /* FXSAVE image */
    unsigned long flags;                /* VGCF_* */
    struct cpu_user_regs user_regs;
    struct trap_info trap_ctxt[256];
    unsigned long ldt_base;             /* linear address, page aligned */
    unsigned long ldt_ents;
    unsigned long gdt_frames[16];       /* machine frames */
    unsigned long gdt_ents;
    unsigned long kernel_ss;            /* stack for entries from user mode */
    unsigned long kernel_sp;
    unsigned long ctrlreg[8];           /* [1]: user page table, bit 0 = present; [3]: kernel page table (machine) */
    unsigned long debugreg[8];
    unsigned long event_callback_eip;
    unsigned long failsafe_callback_eip;
    unsigned long syscall_callback_eip;
    unsigned long vm_assist;            /* bit n: assist type n */
    uint64_t fs_base;
    uint64_t gs_base_kernel;
    uint64_t gs_base_user;
};
typedef struct vcpu_guest_context vcpu_guest_context_t;
XEN_ABI_SIZE(struct vcpu_guest_context, 5168);
XEN_ABI_OFFSET(struct vcpu_guest_context, ctrlreg, 4984);

/* The part of shared_info in which a guest tells the tools where its P2M is. */
struct arch_shared_info {
    unsigned long max_pfn;
    xen_pfn_t pfn_to_mfn_frame_list_list; /* root of the three-level P2M tree */
    unsigned long nmi_reason;             /* XEN_NMIREASON_* bits, set by the hypervisor */
    unsigned long p2m_cr3;                /* nonzero: the linear P2M is valid */
    unsigned long p2m_vaddr;
    unsigned long p2m_generation;         /* odd while the guest changes the P2M */
};
typedef struct arch_shared_info arch_shared_info_t;
XEN_ABI_SIZE(struct arch_shared_info, 48);

struct arch_vcpu_info {
    unsigned long cr2; /* address of the last page fault */
    unsigned long pad;
};
typedef struct arch_vcpu_info arch_vcpu_info_t;

/* Leaves and MSRs as the toolstack and the migration stream list them. */
struct xen_cpuid_leaf {
    uint32_t leaf;
    uint32_t subleaf; /* XEN_CPUID_NO_SUBLEAF where the leaf has none */
    uint32_t a;
    uint32_t b;
    uint32_t c;
    uint32_t d;
};
typedef struct xen_cpuid_leaf xen_cpuid_leaf_t;

struct xen_msr_entry {
    uint32_t idx;
    uint32_t flags;
    uint64_t val;
};
typedef struct xen_msr_entry xen_msr_entry_t;

enum {
    XEN_CPUID_NO_SUBLEAF = 0xffffffffu,
};

enum {
    XEN_HVM_DEBUGCONS_IOPORT = 0xe9, /* byte port that prints, for HVM guests */
};

/* Bytes that, before CPUID, ask the hypervisor to emulate it: ud2; "xen". */
#ifndef XL_CDEF
#define XEN_EMULATE_PREFIX ".byte 0x0f,0x0b,0x78,0x65,0x6e ; "
#define XEN_CPUID XEN_EMULATE_PREFIX "cpuid"
#endif

#endif /* !__ASSEMBLY__ */

#endif
