/*
 * memory_op: reservations, ballooning, exchange, memory maps, the machine-to-physical table.
 *
 * Commands that work on extents return how many they have done, which may be fewer than asked for, and no errno.
 */
#ifndef __XEN_PUBLIC_MEMORY_H__
#define __XEN_PUBLIC_MEMORY_H__

#include "xen.h"
#include "physdev.h"

#define XENMEM(number, name, arg) XEN_CONST(XENMEM_##name, number)
XEN_TABLE_BEGIN
#include "xenmem.def"
XEN_TABLE_END
#undef XENMEM

/* increase, decrease and claim; populate_physmap; one half of exchange. */
struct xen_memory_reservation {
    XEN_GUEST_HANDLE(xen_pfn_t) extent_start; /* nr_extents numbers: in, out or both, by command */
    xen_ulong_t nr_extents;
    unsigned int extent_order; /* pages an extent, log2 */
    unsigned int mem_flags;    /* XENMEMF_* */
    domid_t domid;
};
typedef struct xen_memory_reservation xen_memory_reservation_t;
XEN_ABI_SIZE(struct xen_memory_reservation, 32);

enum {
    XENMEMF_populate_on_demand = 1 << 16,
    XENMEMF_exact_node_request = 1 << 17,
    XENMEMF_vnode = 1 << 18,
};

/* mem_flags: bits 0-7 address width, bits 8-15 node + 1. */
#ifndef XL_CDEF
#define XENMEMF_address_bits(x) (x)
#define XENMEMF_get_address_bits(x) ((x) & 0xffu)
#define XENMEMF_node(x) (((x) + 1) << 8)
#define XENMEMF_get_node(x) ((((x) >> 8) - 1) & 0xffu)
#define XENMEMF_exact_node(n) (XENMEMF_node(n) | XENMEMF_exact_node_request)
#endif

struct xen_memory_exchange {
    struct xen_memory_reservation in;
    struct xen_memory_reservation out;
    xen_ulong_t nr_exchanged; /* out, also on error */
};
typedef struct xen_memory_exchange xen_memory_exchange_t;
XEN_ABI_SIZE(struct xen_memory_exchange, 72);

/* current_reservation, maximum_reservation, maximum_gpfn; a bare domid_t has the same layout. */
struct xen_memory_domain {
    domid_t domid;
};

struct xen_machphys_mfn_list {
    unsigned int max_extents;
    XEN_GUEST_HANDLE(xen_pfn_t) extent_start; /* out */
    unsigned int nr_extents; /* out */
};
typedef struct xen_machphys_mfn_list xen_machphys_mfn_list_t;

/* out: where the table is mapped and the largest frame number a guest may look up. */
struct xen_machphys_mapping {
    xen_ulong_t v_start;
    xen_ulong_t v_end;
    xen_ulong_t max_mfn;
};
typedef struct xen_machphys_mapping xen_machphys_mapping_t;
XEN_ABI_SIZE(struct xen_machphys_mapping, 24);

/* ---- Physmap of translated guests; refused for PV ---------------------------------------------------------------- */

enum {
    XENMAPSPACE_shared_info = 0,
    XENMAPSPACE_grant_table = 1,
    XENMAPSPACE_gmfn = 2,
    XENMAPSPACE_gmfn_range = 3,
    XENMAPSPACE_gmfn_foreign = 4,
    XENMAPSPACE_dev_mmio = 5,
};

enum {
    XENMAPIDX_grant_table_status = 0x80000000u, /* in idx: a status frame */
};

struct xen_add_to_physmap {
    domid_t domid;
    uint16_t size; /* pages, for gmfn_range */
    unsigned int space; /* XENMAPSPACE_* */
    xen_ulong_t idx;
    xen_pfn_t gpfn;
};
typedef struct xen_add_to_physmap xen_add_to_physmap_t;
XEN_ABI_SIZE(struct xen_add_to_physmap, 24);

struct xen_add_to_physmap_batch {
    domid_t domid;
    uint16_t space;
    uint16_t size;
    union xen_add_to_physmap_batch_extra {
        domid_t foreign_domid;
        uint16_t res0;
    } u;
    XEN_GUEST_HANDLE(xen_ulong_t) idxs;
    XEN_GUEST_HANDLE(xen_pfn_t) gpfns;
    XEN_GUEST_HANDLE(int) errs; /* out */
};
typedef struct xen_add_to_physmap_batch xen_add_to_physmap_batch_t;

struct xen_remove_from_physmap {
    domid_t domid;
    xen_pfn_t gpfn;
};
typedef struct xen_remove_from_physmap xen_remove_from_physmap_t;

/* ---- Memory maps ------------------------------------------------------------------------------------------------- */

/* buffer: packed 20-byte e820 entries {u64 address, u64 size, u32 type}. */
struct xen_memory_map {
    unsigned int nr_entries; /* in: room; out: entries there are */
    XEN_GUEST_HANDLE(void) buffer;
};
typedef struct xen_memory_map xen_memory_map_t;
XEN_ABI_SIZE(struct xen_memory_map, 16);

struct xen_foreign_memory_map {
    domid_t domid;
    struct xen_memory_map map;
};
typedef struct xen_foreign_memory_map xen_foreign_memory_map_t;

struct xen_reserved_device_memory {
    xen_pfn_t start_pfn;
    xen_ulong_t nr_pages;
};
typedef struct xen_reserved_device_memory xen_reserved_device_memory_t;
DEFINE_XEN_GUEST_HANDLE(xen_reserved_device_memory_t);

enum {
    XENMEM_RDM_ALL = 1, /* ranges of every device, not just dev.pci's */
};

struct xen_reserved_device_memory_map {
    uint32_t flags; /* XENMEM_RDM_* */
    unsigned int nr_entries;
    XEN_GUEST_HANDLE(xen_reserved_device_memory_t) buffer;
    union {
        physdev_pci_device_t pci;
    } dev;
};
typedef struct xen_reserved_device_memory_map xen_reserved_device_memory_map_t;

struct xen_vmemrange {
    uint64_t start;
    uint64_t end;
    unsigned int flags;
    unsigned int nid;
};
typedef struct xen_vmemrange xen_vmemrange_t;
DEFINE_XEN_GUEST_HANDLE(xen_vmemrange_t);

struct xen_vnuma_topology_info {
    domid_t domid;
    uint16_t pad;
    unsigned int nr_vnodes;     /* these three in: room, out: needed */
    unsigned int nr_vcpus;
    unsigned int nr_vmemranges;
    union {
        XEN_GUEST_HANDLE(uint) h;
        uint64_t pad;
    } vdistance;
    union {
        XEN_GUEST_HANDLE(uint) h;
        uint64_t pad;
    } vcpu_to_vnode;
    union {
        XEN_GUEST_HANDLE(xen_vmemrange_t) h;
        uint64_t pad;
    } vmemrange;
};
typedef struct xen_vnuma_topology_info xen_vnuma_topology_info_t;

/* ---- Tools: populate on demand, paging, access, sharing, foreign resources --------------------------------------- */

struct xen_pod_target {
    uint64_t target_pages; /* in */
    uint64_t tot_pages;    /* out, with the next two */
    uint64_t pod_cache_pages;
    uint64_t pod_entries;
    domid_t domid;
};
typedef struct xen_pod_target xen_pod_target_t;

enum {
    XENMEM_paging_op_nominate = 0,
    XENMEM_paging_op_evict = 1,
    XENMEM_paging_op_prep = 2,
};

struct xen_mem_paging_op {
    uint8_t op; /* XENMEM_paging_op_* */
    domid_t domain;
    XEN_GUEST_HANDLE_64(const_uint8) buffer; /* page to put in, for prep */
    uint64_t gfn;
};
typedef struct xen_mem_paging_op xen_mem_paging_op_t;

enum {
    XENMEM_access_op_set_access = 0,
    XENMEM_access_op_get_access = 1,
    XENMEM_access_op_set_access_multi = 4,
};

typedef enum {
    XENMEM_access_n,
    XENMEM_access_r,
    XENMEM_access_w,
    XENMEM_access_rw,
    XENMEM_access_x,
    XENMEM_access_rx,
    XENMEM_access_wx,
    XENMEM_access_rwx,
    XENMEM_access_rx2rw, /* as rx; a write event turns it into rw */
    XENMEM_access_n2rwx, /* as n; the first event turns it into rwx */
    XENMEM_access_default,
} xenmem_access_t;

struct xen_mem_access_op {
    uint8_t op; /* XENMEM_access_op_* */
    uint8_t access; /* xenmem_access_t */
    domid_t domid;
    uint32_t nr;
    uint64_t pfn; /* all ones: the default for new pages */
    XEN_GUEST_HANDLE(const_uint64) pfn_list;
    XEN_GUEST_HANDLE(const_uint8) access_list;
};
typedef struct xen_mem_access_op xen_mem_access_op_t;

enum {
    XENMEM_sharing_op_nominate_gfn = 0,
    XENMEM_sharing_op_nominate_gref = 1,
    XENMEM_sharing_op_share = 2,
    XENMEM_sharing_op_debug_gfn = 3,
    XENMEM_sharing_op_debug_mfn = 4,
    XENMEM_sharing_op_debug_gref = 5,
    XENMEM_sharing_op_add_physmap = 6,
    XENMEM_sharing_op_audit = 7,
    XENMEM_sharing_op_range_share = 8,
    XENMEM_sharing_op_fork = 9,
    XENMEM_sharing_op_fork_reset = 10,
    XENMEM_SHARING_OP_S_HANDLE_INVALID = -10, /* returned: the source's handle is stale */
    XENMEM_SHARING_OP_C_HANDLE_INVALID = -9,  /* returned: the client's is */
};

enum {
    XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG = 1ull << 62, /* in a gfn field: it is a grant reference */
};

enum {
    XENMEM_FORK_WITH_IOMMU_ALLOWED = 1u << 0,
    XENMEM_FORK_BLOCK_INTERRUPTS = 1u << 1,
    XENMEM_FORK_RESET_STATE = 1u << 2,
    XENMEM_FORK_RESET_MEMORY = 1u << 3,
};

struct xen_mem_sharing_op {
    uint8_t op; /* XENMEM_sharing_op_* */
    domid_t domain;
    union {
        struct mem_sharing_op_nominate {
            union {
                uint64_t gfn;
                uint32_t grant_ref;
            } u;
            uint64_t handle; /* out */
        } nominate;
        struct mem_sharing_op_share {
            uint64_t source_gfn;
            uint64_t source_handle;
            uint64_t client_gfn;
            uint64_t client_handle;
            domid_t client_domain;
        } share;
        struct mem_sharing_op_range {
            uint64_t first_gfn;
            uint64_t last_gfn;
            uint64_t opaque; /* must be 0 at first; how far a continued call is */
            domid_t client_domain;
            uint16_t _pad[3];
        } range;
        struct mem_sharing_op_debug {
            union {
                uint64_t gfn;
                uint64_t mfn;
                uint32_t gref;
            } u;
        } debug;
        struct mem_sharing_op_fork {
            domid_t parent_domain;
            uint16_t flags; /* XENMEM_FORK_* */
            uint32_t pad;
        } fork;
    } u;
};
typedef struct xen_mem_sharing_op xen_mem_sharing_op_t;

enum {
    XENMEM_resource_ioreq_server = 0,
    XENMEM_resource_grant_table = 1,
    XENMEM_resource_vmtrace_buf = 2,
    XENMEM_resource_grant_table_id_shared = 0,
    XENMEM_resource_grant_table_id_status = 1,
    XENMEM_resource_ioreq_server_frame_bufioreq = 0,
};

#ifndef XL_CDEF
#define XENMEM_resource_ioreq_server_frame_ioreq(n) (1 + (n))
#endif

struct xen_mem_acquire_resource {
    domid_t domid;
    uint16_t type; /* XENMEM_resource_* */
    uint32_t id;
    uint32_t nr_frames; /* in and out; 0 asks for the size */
    uint32_t pad;
    uint64_t frame;
    XEN_GUEST_HANDLE(xen_pfn_t) frame_list; /* out for a PV caller, in for a translated one */
};
typedef struct xen_mem_acquire_resource xen_mem_acquire_resource_t;

#endif
