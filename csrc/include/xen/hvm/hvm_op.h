/*
 * hvm_op: the calls that an HVM or PVH guest makes on itself.
 */
#ifndef __XEN_PUBLIC_HVM_HVM_OP_H__
#define __XEN_PUBLIC_HVM_HVM_OP_H__

#include "../xen.h"

enum {
    HVMOP_set_param = 0,
    HVMOP_get_param = 1,
    HVMOP_flush_tlbs = 5,
    HVMOP_pagetable_dying = 9,
    HVMOP_get_time = 10,
    HVMOP_xentrace = 11,
    HVMOP_set_mem_access = 12,
    HVMOP_get_mem_access = 13,
    HVMOP_get_mem_type = 15,
    HVMOP_set_evtchn_upcall_vector = 23,
    HVMOP_guest_request_vm_event = 24,
    HVMOP_altp2m = 25,
};

struct xen_hvm_param {
    domid_t domid;
    uint16_t pad;
    uint32_t index; /* HVM_PARAM_* */
    uint64_t value; /* in or out */
};
typedef struct xen_hvm_param xen_hvm_param_t;
XEN_ABI_SIZE(struct xen_hvm_param, 16);

/* Hint: this page table will not be used again. */
struct xen_hvm_pagetable_dying {
    domid_t domid;
    uint16_t pad[3];
    uint64_t gpa;
};
typedef struct xen_hvm_pagetable_dying xen_hvm_pagetable_dying_t;

struct xen_hvm_get_time {
    uint64_t now; /* out: ns */
};
typedef struct xen_hvm_get_time xen_hvm_get_time_t;

struct xen_hvm_get_mem_type {
    domid_t domid;
    uint16_t mem_type; /* out: hvmmem_type_t */
    uint16_t pad[2];
    uint64_t pfn;
};
typedef struct xen_hvm_get_mem_type xen_hvm_get_mem_type_t;

typedef enum {
    HVMMEM_ram_rw,
    HVMMEM_ram_ro,
    HVMMEM_mmio_dm,
    HVMMEM_unused,
    HVMMEM_ioreq_server,
} hvmmem_type_t;

/* A vector of the vCPU's local APIC for its upcalls. */
struct xen_hvm_evtchn_upcall_vector {
    uint32_t vcpu;
    uint8_t vector; /* 16 to 255 */
};
typedef struct xen_hvm_evtchn_upcall_vector xen_hvm_evtchn_upcall_vector_t;

#endif
