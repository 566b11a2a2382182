/*
 * Grant tables: entries of both versions, the commands of grant_table_op, status codes.
 *
 * grant_table_op returns 0 or an errno for the call as a whole; `status` of each element says GNTST_* for that element.
 */
#ifndef __XEN_PUBLIC_GRANT_TABLE_H__
#define __XEN_PUBLIC_GRANT_TABLE_H__

#include "xen.h"

#define GNTTABOP(number, name, arg) XEN_CONST(GNTTABOP_##name, number)
XEN_TABLE_BEGIN
#include "gnttabop.def"
XEN_TABLE_END
#undef GNTTABOP

typedef uint32_t grant_ref_t;
typedef uint32_t grant_handle_t;
typedef uint16_t grant_status_t; /* v2: the reading and writing bits, in pages of their own */

/* ---- Entries, shared between guest and hypervisor ---------------------------------------------------------------- */

/* Guest: frame and domid first, then a write barrier, then flags. Revoke: cmpxchg flags to 0 while no one uses it. */
struct grant_entry_v1 {
    uint16_t flags; /* GTF_* */
    domid_t domid;  /* who may use the grant */
    uint32_t frame; /* mfn of a PV guest */
};
typedef struct grant_entry_v1 grant_entry_v1_t;
XEN_ABI_SIZE(struct grant_entry_v1, 8);

struct grant_entry_header {
    uint16_t flags;
    domid_t domid;
};
typedef struct grant_entry_header grant_entry_header_t;

union grant_entry_v2 {
    grant_entry_header_t hdr;
    struct {
        grant_entry_header_t hdr;
        uint32_t pad0;
        uint64_t frame;
    } full_page;
    struct { /* GTF_sub_page: only to be copied */
        grant_entry_header_t hdr;
        uint16_t page_off;
        uint16_t length;
        uint64_t frame;
    } sub_page;
    struct { /* GTF_transitive: stands for a grant that trans_domid gave us */
        grant_entry_header_t hdr;
        domid_t trans_domid;
        uint16_t pad0;
        grant_ref_t gref;
    } transitive;
    uint32_t __spacer[4];
};
typedef union grant_entry_v2 grant_entry_v2_t;
XEN_ABI_SIZE(union grant_entry_v2, 16);

enum {
    GTF_invalid = 0u,
    GTF_permit_access = 1u,
    GTF_accept_transfer = 2u,
    GTF_transitive = 3u,
    GTF_type_mask = 3u,
    XEN_FLAG(GTF_readonly, 2),
    XEN_FLAG(GTF_reading, 3), /* set while the page is mapped or copied from */
    XEN_FLAG(GTF_writing, 4), /* set while it is mapped writable or copied to */
    XEN_FLAG(GTF_PWT, 5),
    XEN_FLAG(GTF_PCD, 6),
    XEN_FLAG(GTF_PAT, 7),
    XEN_FLAG(GTF_sub_page, 8),
    XEN_FLAG(GTF_transfer_committed, 2), /* of an accept_transfer entry: a page is on its way */
    XEN_FLAG(GTF_transfer_completed, 3), /* its frame is in the entry */
};

/* The builder writes the first two entries for the guest; a version change keeps all eight. */
enum {
    GNTTAB_NR_RESERVED_ENTRIES = 8,
    GNTTAB_RESERVED_CONSOLE = 0,
    GNTTAB_RESERVED_XENSTORE = 1,
};

/* ---- Arguments --------------------------------------------------------------------------------------------------- */

/* What to map as, and how: GNTMAP_*. Bits 16 and up become software bits of the page-table entry. */
enum {
    XEN_FLAG(GNTMAP_device_map, 0),
    XEN_FLAG(GNTMAP_host_map, 1),
    XEN_FLAG(GNTMAP_readonly, 2),
    XEN_FLAG(GNTMAP_application_map, 3), /* accessible in user mode */
    XEN_FLAG(GNTMAP_contains_pte, 4),    /* host_addr is the machine address of the entry itself */
    _GNTMAP_guest_avail0 = 16,
};
enum {
    GNTMAP_guest_avail_mask = 0xFFFF0000u,
};

struct gnttab_map_grant_ref {
    uint64_t host_addr;
    uint32_t flags; /* GNTMAP_* */
    grant_ref_t ref;
    domid_t dom;            /* the granting domain */
    int16_t status;         /* out */
    grant_handle_t handle;  /* out */
    uint64_t dev_bus_addr;  /* out */
};
typedef struct gnttab_map_grant_ref gnttab_map_grant_ref_t;
XEN_ABI_SIZE(struct gnttab_map_grant_ref, 32);

/* An address of 0 leaves that kind of mapping alone; the handle is free when both are gone. */
struct gnttab_unmap_grant_ref {
    uint64_t host_addr;
    uint64_t dev_bus_addr;
    grant_handle_t handle;
    int16_t status; /* out */
};
typedef struct gnttab_unmap_grant_ref gnttab_unmap_grant_ref_t;
XEN_ABI_SIZE(struct gnttab_unmap_grant_ref, 24);

/* Grows the table to nr_frames and lists them. */
struct gnttab_setup_table {
    domid_t dom;
    uint32_t nr_frames;
    int16_t status; /* out */
    XEN_GUEST_HANDLE(xen_pfn_t) frame_list; /* out: nr_frames numbers */
};
typedef struct gnttab_setup_table gnttab_setup_table_t;
XEN_ABI_SIZE(struct gnttab_setup_table, 24);

struct gnttab_dump_table {
    domid_t dom;
    int16_t status; /* out */
};
typedef struct gnttab_dump_table gnttab_dump_table_t;

/* Gives a page away, to a domain that holds an accept_transfer entry for us. */
struct gnttab_transfer {
    xen_pfn_t mfn;
    domid_t domid;
    grant_ref_t ref;
    int16_t status; /* out */
};
typedef struct gnttab_transfer gnttab_transfer_t;
XEN_ABI_SIZE(struct gnttab_transfer, 24);

enum {
    XEN_FLAG(GNTCOPY_source_gref, 0),
    XEN_FLAG(GNTCOPY_dest_gref, 1),
};

struct gnttab_copy {
    struct gnttab_copy_ptr {
        union {
            grant_ref_t ref;
            xen_pfn_t gmfn; /* own page; domid must be DOMID_SELF */
        } u;
        domid_t domid;
        uint16_t offset;
    } source, dest;
    uint16_t len;
    uint16_t flags; /* GNTCOPY_* */
    int16_t status; /* out */
};
typedef struct gnttab_copy gnttab_copy_t;
XEN_ABI_SIZE(struct gnttab_copy, 40);

struct gnttab_query_size {
    domid_t dom;
    uint32_t nr_frames;     /* out */
    uint32_t max_nr_frames; /* out */
    int16_t status;         /* out */
};
typedef struct gnttab_query_size gnttab_query_size_t;
XEN_ABI_SIZE(struct gnttab_query_size, 16);

/* Puts the mapping found at new_addr in the place of the grant's. */
struct gnttab_unmap_and_replace {
    uint64_t host_addr;
    uint64_t new_addr;
    grant_handle_t handle;
    int16_t status; /* out */
};
typedef struct gnttab_unmap_and_replace gnttab_unmap_and_replace_t;
XEN_ABI_SIZE(struct gnttab_unmap_and_replace, 24);

struct gnttab_set_version {
    uint32_t version; /* in and out */
};
typedef struct gnttab_set_version gnttab_set_version_t;

struct gnttab_get_status_frames {
    uint32_t nr_frames;
    domid_t dom;
    int16_t status; /* out */
    XEN_GUEST_HANDLE(uint64_t) frame_list; /* out */
};
typedef struct gnttab_get_status_frames gnttab_get_status_frames_t;
XEN_ABI_SIZE(struct gnttab_get_status_frames, 16);

struct gnttab_get_version {
    domid_t dom;
    uint16_t pad;
    uint32_t version; /* out */
};
typedef struct gnttab_get_version gnttab_get_version_t;

struct gnttab_swap_grant_ref {
    grant_ref_t ref_a;
    grant_ref_t ref_b;
    int16_t status; /* out */
};
typedef struct gnttab_swap_grant_ref gnttab_swap_grant_ref_t;

/* Not offered on x86. */
struct gnttab_cache_flush {
    union {
        uint64_t dev_bus_addr;
        grant_ref_t ref;
    } a;
    uint16_t offset;
    uint16_t length;
    uint32_t op; /* GNTTAB_CACHE_* */
};
typedef struct gnttab_cache_flush gnttab_cache_flush_t;

enum {
    GNTTAB_CACHE_CLEAN = 1u << 0,
    GNTTAB_CACHE_INVAL = 1u << 1,
};
enum {
    GNTTAB_CACHE_SOURCE_GREF = 1u << 31,
};

/* ---- Status of an element ---------------------------------------------------------------------------------------- */

enum {
    GNTST_okay = 0,
    GNTST_general_error = -1,
    GNTST_bad_domain = -2,
    GNTST_bad_gntref = -3,
    GNTST_bad_handle = -4,
    GNTST_bad_virt_addr = -5,
    GNTST_bad_dev_addr = -6,
    GNTST_no_device_space = -7,
    GNTST_permission_denied = -8,
    GNTST_bad_page = -9,
    GNTST_bad_copy_arg = -10,
    GNTST_address_too_big = -11,
    GNTST_eagain = -12, /* try again later */
    GNTST_no_space = -13, /* no free map handle */
};

/* Text for status -n at index n, as guests print it. */
#ifndef XL_CDEF
#define GNTTABOP_error_msgs { \
    "okay", \
    "general error", \
    "no such domain", \
    "bad grant reference", \
    "bad map handle", \
    "bad virtual address", \
    "bad device address", \
    "no room in the I/O MMU", \
    "permission denied", \
    "page cannot be used for this", \
    "copy goes beyond the page or the grant", \
    "frame number too large", \
    "busy, try again", \
    "no free map handle", \
}
#endif

#endif
