/*
 * Parameters of HVM and PVH domains, for HVMOP_set_param and HVMOP_get_param.
 */
#ifndef __XEN_PUBLIC_HVM_PARAMS_H__
#define __XEN_PUBLIC_HVM_PARAMS_H__

#include "hvm_op.h"

/* Gaps are numbers that Xen has retired; it answers -EINVAL for them. */
enum {
    HVM_PARAM_CALLBACK_IRQ = 0, /* how an upcall arrives: type in bits 56-63 */
    HVM_PARAM_STORE_PFN = 1,
    HVM_PARAM_STORE_EVTCHN = 2,
    HVM_PARAM_IOREQ_PFN = 5,
    HVM_PARAM_BUFIOREQ_PFN = 6,
    HVM_PARAM_VIRIDIAN = 9, /* HVMPV_* */
    HVM_PARAM_TIMER_MODE = 10, /* HVMPTM_* */
    HVM_PARAM_HPET_ENABLED = 11,
    HVM_PARAM_IDENT_PT = 12,
    HVM_PARAM_ACPI_S_STATE = 14,
    HVM_PARAM_VM86_TSS = 15,
    HVM_PARAM_VPT_ALIGN = 16,
    HVM_PARAM_CONSOLE_PFN = 17,
    HVM_PARAM_CONSOLE_EVTCHN = 18,
    HVM_PARAM_ACPI_IOPORTS_LOCATION = 19,
    HVM_PARAM_PAGING_RING_PFN = 27,
    HVM_PARAM_MONITOR_RING_PFN = 28,
    HVM_PARAM_SHARING_RING_PFN = 29,
    HVM_PARAM_TRIPLE_FAULT_REASON = 31, /* SHUTDOWN_* */
    HVM_PARAM_IOREQ_SERVER_PFN = 32,
    HVM_PARAM_NR_IOREQ_SERVER_PAGES = 33,
    HVM_PARAM_VM_GENERATION_ID_ADDR = 34,
    HVM_PARAM_ALTP2M = 35, /* XEN_ALTP2M_* */
    HVM_PARAM_X87_FIP_WIDTH = 36,
    HVM_PARAM_VM86_TSS_SIZED = 37,
    HVM_PARAM_MCA_CAP = 38,
    HVM_NR_PARAMS = 39,
};

enum {
    HVM_PARAM_CALLBACK_IRQ_TYPE_MASK = 0xFF00000000000000u,
};

enum {
    HVM_PARAM_CALLBACK_TYPE_GSI = 0,
    HVM_PARAM_CALLBACK_TYPE_PCI_INTX = 1,
    HVM_PARAM_CALLBACK_TYPE_VECTOR = 2,
};

enum {
    HVMPTM_delay_for_missed_ticks = 0,
    HVMPTM_no_delay_for_missed_ticks = 1,
    HVMPTM_no_missed_ticks_pending = 2,
    HVMPTM_one_missed_tick_pending = 3,
};

enum {
    XEN_ALTP2M_disabled = 0,
    XEN_ALTP2M_mixed = 1,
    XEN_ALTP2M_external = 2,
    XEN_ALTP2M_limited = 3,
};

#endif
