/*
 * The core of the ABI: hypercall numbers, domain ids, the structures that every PV guest meets at start.
 *
 * The other headers of this folder include it; guests start here. Layouts and numbers are written in this folder only.
 */
#ifndef __XEN_PUBLIC_XEN_H__
#define __XEN_PUBLIC_XEN_H__

#include "xen-compat.h"
#include "arch-x86_64.h"

/* __HYPERVISOR_<name>; the number goes in rax, and selects stub <number> of the hypercall page. */
#define HYPERCALL(number, name, nargs, where, note) XEN_CONST(__HYPERVISOR_##name, number)
XEN_TABLE_BEGIN
#include "hypercalls.def"
    XEN_CONST(__HYPERVISOR_arch_0, 48) /* mca */
    XEN_CONST(__HYPERVISOR_arch_2, 50)
    XEN_CONST(__HYPERVISOR_arch_3, 51)
    XEN_CONST(__HYPERVISOR_arch_4, 52)
    XEN_CONST(__HYPERVISOR_arch_5, 53)
    XEN_CONST(__HYPERVISOR_arch_6, 54)
    XEN_CONST(__HYPERVISOR_arch_7, 55)
XEN_TABLE_END
#undef HYPERCALL

/*
 * Guests' stubs paste the number's name into inline assembler, "call hypercall_page + (" STR(__HYPERVISOR_x) " * 32)",
 * where an enumerator is not known. So the assembler is told too.
 */
#if !defined(__ASSEMBLY__) && !defined(XL_CORE) && !defined(XL_CDEF) && !defined(__XEN_TOOLS__)
#define HYPERCALL(number, name, nargs, where, note) __asm__(".set __HYPERVISOR_" #name ", " #number);
#include "hypercalls.def"
#undef HYPERCALL
#endif

#define VIRQ(number, name, kind) XEN_CONST(VIRQ_##name, number)
XEN_TABLE_BEGIN
#include "virqs.def"
    XEN_CONST(VIRQ_MCA, 16)
    XEN_CONST(NR_VIRQS, 24)
XEN_TABLE_END
#undef VIRQ

#ifndef __ASSEMBLY__

__DEFINE_XEN_GUEST_HANDLE(char, char);
__DEFINE_XEN_GUEST_HANDLE(uchar, unsigned char);
__DEFINE_XEN_GUEST_HANDLE(int, int);
__DEFINE_XEN_GUEST_HANDLE(uint, unsigned int);
__DEFINE_XEN_GUEST_HANDLE(long, long);
__DEFINE_XEN_GUEST_HANDLE(ulong, unsigned long);
__DEFINE_XEN_GUEST_HANDLE(void, void);
__DEFINE_XEN_GUEST_HANDLE(uint8, uint8_t);
__DEFINE_XEN_GUEST_HANDLE(uint16, uint16_t);
__DEFINE_XEN_GUEST_HANDLE(uint32, uint32_t);
__DEFINE_XEN_GUEST_HANDLE(uint64, uint64_t);
DEFINE_XEN_GUEST_HANDLE(uint64_t);
DEFINE_XEN_GUEST_HANDLE(xen_pfn_t);
DEFINE_XEN_GUEST_HANDLE(xen_ulong_t);

typedef uint16_t domid_t;
typedef uint8_t xen_domain_handle_t[16]; /* a UUID */

enum {
    DOMID_FIRST_RESERVED = 0x7FF0, /* real domains are below */
    DOMID_SELF = 0x7FF0,
    DOMID_IO = 0x7FF1,      /* owner of memory-mapped I/O */
    DOMID_XEN = 0x7FF2,     /* owner of the hypervisor's shared pages */
    DOMID_COW = 0x7FF3,     /* owner of shared (deduplicated) pages */
    DOMID_INVALID = 0x7FF4,
    DOMID_IDLE = 0x7FFF,
    DOMID_MASK = 0x7FFF,
};

/* ---- Page tables: mmu_update, mmuext_op, update_va_mapping ------------------------------------------------------- */

#define MMU(number, name) XEN_CONST(MMU_##name, number)
XEN_TABLE_BEGIN
#include "mmu.def"
XEN_TABLE_END
#undef MMU

/* ptr: machine address of the entry, MMU_* command in its low bits. val: new entry, or pfn for MMU_MACHPHYS_UPDATE. */
struct mmu_update {
    uint64_t ptr;
    uint64_t val;
};
typedef struct mmu_update mmu_update_t;
XEN_ABI_SIZE(struct mmu_update, 16);

#define MMUEXT(number, name, arg1, arg2) XEN_CONST(MMUEXT_##name, number)
XEN_TABLE_BEGIN
#include "mmuext.def"
XEN_TABLE_END
#undef MMUEXT

struct mmuext_op {
    unsigned int cmd; /* MMUEXT_* */
    union {
        xen_pfn_t mfn;
        unsigned long linear_addr;
    } arg1;
    union {
        unsigned int nr_ents;
        XEN_GUEST_HANDLE(const_void) vcpumask; /* bitmap of longs */
        xen_pfn_t src_mfn;
    } arg2;
};
typedef struct mmuext_op mmuext_op_t;
XEN_ABI_SIZE(struct mmuext_op, 24);

/* update_va_mapping flags. UVMF_MULTI: the rest of the word is the address of a vCPU bitmap. */
enum {
    UVMF_NONE = 0,
    UVMF_TLB_FLUSH = 1,
    UVMF_INVLPG = 2,
    UVMF_FLUSHTYPE_MASK = 3,
    UVMF_MULTI = 0,
    UVMF_LOCAL = 0,
    UVMF_ALL = 4,
};

/* ---- multicall, vm_assist, console_io ---------------------------------------------------------------------------- */

struct multicall_entry {
    xen_ulong_t op;
    xen_ulong_t result;
    xen_ulong_t args[6];
};
typedef struct multicall_entry multicall_entry_t;
XEN_ABI_SIZE(struct multicall_entry, 64);

enum {
    VMASST_CMD_enable = 0,
    VMASST_CMD_disable = 1,
};

#define VMASST(number, name) XEN_CONST(VMASST_TYPE_##name, number)
XEN_TABLE_BEGIN
#include "vmasst.def"
XEN_TABLE_END
#undef VMASST

enum {
    CONSOLEIO_write = 0,
    CONSOLEIO_read = 1,
};

/* ---- Time, events and the shared_info page ----------------------------------------------------------------------- */

/*
 * Turns a TSC value into system time:
 *     ns = system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul / 2^32
 * where a negative shift shifts right. version is odd while the hypervisor writes; the reader retries until it is even
 * and unchanged.
 */
struct vcpu_time_info {
    uint32_t version;
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags; /* XEN_PVCLOCK_* */
    uint8_t pad1[2];
};
typedef struct vcpu_time_info vcpu_time_info_t;
DEFINE_XEN_GUEST_HANDLE(vcpu_time_info_t);
XEN_ABI_SIZE(struct vcpu_time_info, 32);

enum {
    XEN_PVCLOCK_TSC_STABLE_BIT = 1 << 0, /* values of different vCPUs may be compared */
    XEN_PVCLOCK_GUEST_STOPPED = 1 << 1,  /* the host stopped the guest: do not blame a watchdog */
};

/* Lives in shared_info until VCPUOP_register_vcpu_info moves it. */
struct vcpu_info {
    uint8_t evtchn_upcall_pending; /* set by the hypervisor, cleared by the guest */
    uint8_t evtchn_upcall_mask;    /* nonzero: no upcall */
    xen_ulong_t evtchn_pending_sel; /* bit n: look at evtchn_pending[n] */
    struct arch_vcpu_info arch;
    struct vcpu_time_info time;
};
typedef struct vcpu_info vcpu_info_t;
XEN_ABI_SIZE(struct vcpu_info, 64);
XEN_ABI_OFFSET(struct vcpu_info, evtchn_pending_sel, 8);

struct shared_info {
    struct vcpu_info vcpu_info[XEN_LEGACY_MAX_VCPUS];
    xen_ulong_t evtchn_pending[64];
    xen_ulong_t evtchn_mask[64];
    uint32_t wc_version; /* odd while the wallclock is being written */
    uint32_t wc_sec;     /* UTC at system time 0 */
    uint32_t wc_nsec;
    uint32_t wc_sec_hi;
    struct arch_shared_info arch;
};
typedef struct shared_info shared_info_t;
XEN_ABI_SIZE(struct shared_info, 3136);
XEN_ABI_OFFSET(struct shared_info, evtchn_pending, 2048);
XEN_ABI_OFFSET(struct shared_info, wc_version, 3072);
XEN_ABI_OFFSET(struct shared_info, arch, 3088);

/* ---- start_info: what the domain builder tells the guest; rsi points to it at the first instruction -------------- */

enum {
    MAX_GUEST_CMDLINE = 1024,
};

struct start_info {
    char magic[32];            /* "xen-3.0-x86_64" */
    unsigned long nr_pages;
    unsigned long shared_info; /* machine address, unlike the frame numbers below */
    uint32_t flags;            /* SIF_* */
    xen_pfn_t store_mfn;
    uint32_t store_evtchn;
    union {
        struct {
            xen_pfn_t mfn;
            uint32_t evtchn;
        } domU;
        struct {
            uint32_t info_off;
            uint32_t info_size;
        } dom0;
    } console;
    unsigned long pt_base;      /* virtual address of the L4 */
    unsigned long nr_pt_frames; /* boot page-table frames, contiguous from pt_base */
    unsigned long mfn_list;     /* virtual address of the P2M */
    unsigned long mod_start;    /* virtual address, or pfn with SIF_MOD_START_PFN */
    unsigned long mod_len;      /* bytes */
    int8_t cmd_line[MAX_GUEST_CMDLINE];
    unsigned long first_p2m_pfn; /* both only where the P2M stands outside the boot mapping */
    unsigned long nr_p2m_frames;
};
typedef struct start_info start_info_t;
XEN_ABI_SIZE(struct start_info, 1168);
XEN_ABI_OFFSET(struct start_info, console, 72);
XEN_ABI_OFFSET(struct start_info, cmd_line, 128);

enum {
    SIF_PRIVILEGED = 1 << 0,
    SIF_INITDOMAIN = 1 << 1,
    SIF_MULTIBOOT_MOD = 1 << 2,
    SIF_MOD_START_PFN = 1 << 3,
    SIF_VIRT_P2M_4TOOLS = 1 << 4, /* the tools can follow a linear P2M */
    SIF_PM_MASK = 0xFF << 8,
};

/* One module of a dom0 with SIF_MULTIBOOT_MOD. */
struct xen_multiboot_mod_list {
    uint32_t mod_start;
    uint32_t mod_end;
    uint32_t cmdline;
    uint32_t pad;
};

typedef struct { uint8_t a[16]; } xen_uuid_t;

/* A bitmap of CPUs or nodes in a control call. */
struct xenctl_bitmap {
    XEN_GUEST_HANDLE_64(uint8) bitmap;
    uint32_t nr_bits;
};
typedef struct xenctl_bitmap xenctl_bitmap_t;

#endif /* !__ASSEMBLY__ */

#endif
