/*
 * vcpu_op: bringing vCPUs up and down, their timers, and the areas in guest memory that the hypervisor keeps current.
 */
#ifndef __XEN_PUBLIC_VCPU_H__
#define __XEN_PUBLIC_VCPU_H__

#include "xen.h"

#define VCPUOP(number, name, arg) XEN_CONST(VCPUOP_##name, number)
XEN_TABLE_BEGIN
#include "vcpuop.def"
XEN_TABLE_END
#undef VCPUOP

enum {
    RUNSTATE_running = 0,
    RUNSTATE_runnable = 1, /* waits for a CPU */
    RUNSTATE_blocked = 2,
    RUNSTATE_offline = 3, /* paused, down, or over its cap */
};

struct vcpu_runstate_info {
    int state; /* RUNSTATE_* */
    uint64_t state_entry_time; /* system time in ns */
    uint64_t time[4]; /* ns spent in each state */
};
typedef struct vcpu_runstate_info vcpu_runstate_info_t;
DEFINE_XEN_GUEST_HANDLE(vcpu_runstate_info_t);
XEN_ABI_SIZE(struct vcpu_runstate_info, 48);

/* In state_entry_time, with the runstate_update_flag assist: an update is under way. */
enum {
    XEN_RUNSTATE_UPDATE = 1ull << 63,
};

struct vcpu_register_runstate_memory_area {
    union {
        XEN_GUEST_HANDLE(vcpu_runstate_info_t) h;
        XEN_GUEST_POINTER(struct vcpu_runstate_info) v;
        uint64_t p;
    } addr;
};
typedef struct vcpu_register_runstate_memory_area vcpu_register_runstate_memory_area_t;

struct vcpu_set_periodic_timer {
    uint64_t period_ns;
};
typedef struct vcpu_set_periodic_timer vcpu_set_periodic_timer_t;

struct vcpu_set_singleshot_timer {
    uint64_t timeout_abs_ns;
    uint32_t flags; /* VCPU_SSHOTTMR_* */
};
typedef struct vcpu_set_singleshot_timer vcpu_set_singleshot_timer_t;
XEN_ABI_SIZE(struct vcpu_set_singleshot_timer, 16);

enum {
    XEN_FLAG(VCPU_SSHOTTMR_future, 0), /* -ETIME if the time is past, instead of firing */
};

/* Moves vcpu_info out of shared_info, once and for good. */
struct vcpu_register_vcpu_info {
    uint64_t mfn;
    uint32_t offset; /* within the page, 8-byte aligned */
    uint32_t rsvd;
};
typedef struct vcpu_register_vcpu_info vcpu_register_vcpu_info_t;
XEN_ABI_SIZE(struct vcpu_register_vcpu_info, 16);

struct vcpu_get_physid {
    uint64_t phys_id; /* out: ACPI id in the low half, APIC id in the high half */
};
typedef struct vcpu_get_physid vcpu_get_physid_t;

#ifndef XL_CDEF
#define xen_vcpu_physid_to_x86_apicid(physid) ((uint32_t)((physid) >> 32))
#define xen_vcpu_physid_to_x86_acpiid(physid) ((uint32_t)(physid))
#endif

struct vcpu_register_time_memory_area {
    union {
        XEN_GUEST_HANDLE(vcpu_time_info_t) h;
        XEN_GUEST_POINTER(struct vcpu_time_info) v;
        uint64_t p;
    } addr;
};
typedef struct vcpu_register_time_memory_area vcpu_register_time_memory_area_t;

#endif
