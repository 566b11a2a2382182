/*
 * sysctl: host-wide control, for the toolstack's domain. The version is checked before the caller's right.
 *
 * Argument structures are given for the calls that have one in use here; the others are known by number.
 */
#ifndef __XEN_PUBLIC_SYSCTL_H__
#define __XEN_PUBLIC_SYSCTL_H__

#include "domctl.h"

enum {
    XEN_SYSCTL_INTERFACE_VERSION = 0x15, /* Xen 4.17 */
};

#define SYSCTL(number, name) XEN_CONST(XEN_SYSCTL_##name, number)
XEN_TABLE_BEGIN
#include "sysctl.def"
XEN_TABLE_END
#undef SYSCTL

struct xen_sysctl_readconsole {
    uint8_t clear;
    uint8_t incremental;
    uint8_t pad0;
    uint8_t pad1;
    uint32_t index; /* in and out, for incremental reads */
    XEN_GUEST_HANDLE_64(char) buffer;
    uint32_t count; /* in: room; out: bytes */
};

enum {
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_hvm, 0),
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_pv, 1),
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_directio, 2),
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_hap, 3),
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_shadow, 4),
    XEN_FLAG(XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share, 5),
    XEN_SYSCTL_PHYSCAP_vmtrace = 1u << 6,
    XEN_SYSCTL_PHYSCAP_vpmu = 1u << 7,
    XEN_SYSCTL_PHYSCAP_gnttab_v1 = 1u << 8,
    XEN_SYSCTL_PHYSCAP_gnttab_v2 = 1u << 9,
    XEN_SYSCTL_PHYSCAP_MAX = 1u << 9,
};

/* out */
struct xen_sysctl_physinfo {
    uint32_t threads_per_core;
    uint32_t cores_per_socket;
    uint32_t nr_cpus;
    uint32_t max_cpu_id;
    uint32_t nr_nodes;
    uint32_t max_node_id;
    uint32_t cpu_khz;
    uint32_t capabilities; /* XEN_SYSCTL_PHYSCAP_* */
    uint32_t arch_capabilities;
    uint32_t pad;
    uint64_t total_pages;
    uint64_t free_pages;
    uint64_t scrub_pages;
    uint64_t outstanding_pages;
    uint64_t max_mfn;
    uint32_t hw_cap[8]; /* CPUID feature words */
};

struct xen_sysctl_sched_id {
    uint32_t sched_id; /* out: XEN_SCHEDULER_* */
};

struct xen_sysctl_getdomaininfolist {
    domid_t first_domain;
    uint32_t max_domains;
    XEN_GUEST_HANDLE_64(xen_domctl_getdomaininfo_t) buffer;
    uint32_t num_domains; /* out */
};

struct xen_sysctl_debug_keys {
    XEN_GUEST_HANDLE_64(char) keys;
    uint32_t nr_keys;
};

struct xen_sysctl {
    uint32_t cmd; /* XEN_SYSCTL_* */
    uint32_t interface_version;
    union {
        struct xen_sysctl_readconsole readconsole;
        struct xen_sysctl_physinfo physinfo;
        struct xen_sysctl_sched_id sched_id;
        struct xen_sysctl_getdomaininfolist getdomaininfolist;
        struct xen_sysctl_debug_keys debug_keys;
        uint8_t pad[128];
    } u;
};
typedef struct xen_sysctl xen_sysctl_t;
XEN_ABI_SIZE(struct xen_sysctl, 136);

#endif
