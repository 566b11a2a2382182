/*
 * xen_version: what hypervisor this is.
 *
 * Strings are NUL-terminated and padded with zeros to the end of their field.
 */
#ifndef __XEN_PUBLIC_VERSION_H__
#define __XEN_PUBLIC_VERSION_H__

#include "xen.h"

#define XENVER(number, name, type) XEN_CONST(XENVER_##name, number)
XEN_TABLE_BEGIN
#include "xenver.def"
XEN_TABLE_END
#undef XENVER

enum {
    XEN_EXTRAVERSION_LEN = 16,
    XEN_CAPABILITIES_INFO_LEN = 1024,
    XEN_CHANGESET_INFO_LEN = 64,
};

typedef char xen_extraversion_t[XEN_EXTRAVERSION_LEN];
typedef char xen_capabilities_info_t[XEN_CAPABILITIES_INFO_LEN]; /* "xen-3.0-x86_64 ...", each with a space after it */
typedef char xen_changeset_info_t[XEN_CHANGESET_INFO_LEN];
typedef char xen_commandline_t[1024];

struct xen_compile_info {
    char compiler[64];
    char compile_by[16];
    char compile_domain[32];
    char compile_date[32];
};
typedef struct xen_compile_info xen_compile_info_t;
XEN_ABI_SIZE(struct xen_compile_info, 144);

struct xen_platform_parameters {
    xen_ulong_t virt_start; /* HYPERVISOR_VIRT_START */
};
typedef struct xen_platform_parameters xen_platform_parameters_t;

struct xen_feature_info {
    unsigned int submap_idx; /* in */
    uint32_t submap;         /* out: bit n is XENFEAT_ n + 32 * submap_idx */
};
typedef struct xen_feature_info xen_feature_info_t;

struct xen_build_id {
    uint32_t len; /* bytes of room */
    unsigned char buf[];
};
typedef struct xen_build_id xen_build_id_t;

#endif
