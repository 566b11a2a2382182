/*
 * domctl: control of one domain, for the toolstack's domain. The version is checked before the caller's right.
 *
 * Argument structures are given for the calls that have one in use here; the others are known by number.
 */
#ifndef __XEN_PUBLIC_DOMCTL_H__
#define __XEN_PUBLIC_DOMCTL_H__

#include "grant_table.h"

enum {
    XEN_DOMCTL_INTERFACE_VERSION = 0x15, /* Xen 4.17 */
};

#define DOMCTL(number, name) XEN_CONST(XEN_DOMCTL_##name, number)
XEN_TABLE_BEGIN
#include "domctl.def"
XEN_TABLE_END
#undef DOMCTL

/* Emulated devices of a domain; a PV domain has none. */
struct xen_arch_domainconfig {
    uint32_t emulation_flags; /* XEN_X86_EMU_* */
    uint32_t misc_flags;      /* XEN_X86_* */
};

enum {
    XEN_FLAG(XEN_X86_EMU_LAPIC, 0),
    XEN_FLAG(XEN_X86_EMU_HPET, 1),
    XEN_FLAG(XEN_X86_EMU_PM, 2),
    XEN_FLAG(XEN_X86_EMU_RTC, 3),
    XEN_FLAG(XEN_X86_EMU_IOAPIC, 4),
    XEN_FLAG(XEN_X86_EMU_PIC, 5),
    XEN_FLAG(XEN_X86_EMU_VGA, 6),
    XEN_FLAG(XEN_X86_EMU_IOMMU, 7),
    XEN_FLAG(XEN_X86_EMU_PIT, 8),
    XEN_FLAG(XEN_X86_EMU_USE_PIRQ, 9),
    XEN_FLAG(XEN_X86_EMU_VPCI, 10),
    XEN_X86_EMU_ALL = (1u << 11) - 1,
    XEN_X86_MSR_RELAXED = 1u << 0,
    XEN_X86_MISC_FLAGS_MAX = 1u << 0,
};

enum {
    XEN_FLAG(XEN_DOMCTL_CDF_hvm, 0),
    XEN_FLAG(XEN_DOMCTL_CDF_hap, 1),
    XEN_FLAG(XEN_DOMCTL_CDF_s3_integrity, 2),
    XEN_FLAG(XEN_DOMCTL_CDF_oos_off, 3),
    XEN_FLAG(XEN_DOMCTL_CDF_xs_domain, 4), /* the xenstore domain */
    XEN_FLAG(XEN_DOMCTL_CDF_iommu, 5),
    XEN_FLAG(XEN_DOMCTL_CDF_nested_virt, 6),
    XEN_DOMCTL_CDF_vpmu = 1u << 7,
    XEN_DOMCTL_CDF_MAX = 1u << 7,
    XEN_FLAG(XEN_DOMCTL_IOMMU_no_sharept, 0),
    XEN_DOMCTL_IOMMU_MAX = 1u << 0,
    XEN_DOMCTL_GRANT_version_mask = 0xf, /* in grant_opts: highest grant table version */
};

struct xen_domctl_createdomain {
    uint32_t ssidref;
    xen_domain_handle_t handle;
    uint32_t flags; /* XEN_DOMCTL_CDF_* */
    uint32_t iommu_opts;
    uint32_t max_vcpus;
    uint32_t max_evtchn_port;
    int32_t max_grant_frames; /* negative: the host's default, also for the next one */
    int32_t max_maptrack_frames;
    uint32_t grant_opts;
    uint32_t vmtrace_size;
    uint32_t cpupool_id;
    struct xen_arch_domainconfig arch;
};

enum {
    XEN_FLAG(XEN_DOMINF_dying, 0),
    XEN_FLAG(XEN_DOMINF_hvm_guest, 1),
    XEN_FLAG(XEN_DOMINF_shutdown, 2),
    XEN_FLAG(XEN_DOMINF_paused, 3),
    XEN_FLAG(XEN_DOMINF_blocked, 4),
    XEN_FLAG(XEN_DOMINF_running, 5),
    XEN_FLAG(XEN_DOMINF_debugged, 6),
    XEN_FLAG(XEN_DOMINF_xs_domain, 7),
    XEN_FLAG(XEN_DOMINF_hap, 8),
    XEN_DOMINF_shutdownshift = 16, /* where the SHUTDOWN_* code is */
    XEN_DOMINF_shutdownmask = 255,
};
enum {
    XEN_INVALID_MAX_VCPU_ID = 0xFFFFFFFFu,
};

/* out; `domain` is the first existing domain at or above the one asked for */
struct xen_domctl_getdomaininfo {
    domid_t domain;
    uint16_t pad1;
    uint32_t flags; /* XEN_DOMINF_* */
    uint64_t tot_pages;
    uint64_t max_pages;
    uint64_t outstanding_pages;
    uint64_t shr_pages;
    uint64_t paged_pages;
    uint64_t shared_info_frame;
    uint64_t cpu_time; /* ns */
    uint32_t nr_online_vcpus;
    uint32_t max_vcpu_id;
    uint32_t ssidref;
    xen_domain_handle_t handle;
    uint32_t cpupool;
    uint8_t gpaddr_bits;
    uint8_t pad2[7];
    struct xen_arch_domainconfig arch_config;
};
typedef struct xen_domctl_getdomaininfo xen_domctl_getdomaininfo_t;
DEFINE_XEN_GUEST_HANDLE(xen_domctl_getdomaininfo_t);

enum {
    XEN_SCHEDULER_CREDIT = 5,
    XEN_SCHEDULER_CREDIT2 = 6,
    XEN_SCHEDULER_ARINC653 = 7,
    XEN_SCHEDULER_RTDS = 8,
    XEN_SCHEDULER_NULL = 9,
};

/* Types of a frame in getpageframeinfo3 and, from bit 60 on instead of 28, in the migration stream. */
enum {
    XEN_DOMCTL_PFINFO_LTAB_SHIFT = 28,
};
enum {
    XEN_DOMCTL_PFINFO_NOTAB = 0x0u << 28,
    XEN_DOMCTL_PFINFO_L1TAB = 0x1u << 28,
    XEN_DOMCTL_PFINFO_L2TAB = 0x2u << 28,
    XEN_DOMCTL_PFINFO_L3TAB = 0x3u << 28,
    XEN_DOMCTL_PFINFO_L4TAB = 0x4u << 28,
    XEN_DOMCTL_PFINFO_LTABTYPE_MASK = 0x7u << 28,
    XEN_DOMCTL_PFINFO_LPINTAB = 0x1u << 31, /* with one of the above: pinned */
    XEN_DOMCTL_PFINFO_BROKEN = 0xdu << 28,
    XEN_DOMCTL_PFINFO_XALLOC = 0xeu << 28,
    XEN_DOMCTL_PFINFO_XTAB = 0xfu << 28, /* no such frame */
    XEN_DOMCTL_PFINFO_LTAB_MASK = 0xfu << 28,
};

struct xen_domctl_max_mem {
    uint64_t max_memkb;
};

struct xen_domctl_max_vcpus {
    uint32_t max;
};

struct xen_domctl_setdomainhandle {
    xen_domain_handle_t handle;
};

struct xen_domctl {
    uint32_t cmd; /* XEN_DOMCTL_* */
    uint32_t interface_version;
    domid_t domain;
    uint16_t _pad[3];
    union {
        struct xen_domctl_createdomain createdomain;
        struct xen_domctl_getdomaininfo getdomaininfo;
        struct xen_domctl_max_mem max_mem;
        struct xen_domctl_max_vcpus max_vcpus;
        struct xen_domctl_setdomainhandle setdomainhandle;
        uint8_t pad[128];
    } u;
};
typedef struct xen_domctl xen_domctl_t;
XEN_ABI_SIZE(struct xen_domctl, 144);

#endif
