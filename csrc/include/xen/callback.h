/*
 * callback_op: the guest's entry points.
 */
#ifndef __XEN_PUBLIC_CALLBACK_H__
#define __XEN_PUBLIC_CALLBACK_H__

#include "xen.h"

enum {
    CALLBACKOP_register = 0,
    CALLBACKOP_unregister = 1,
};

enum {
    CALLBACKTYPE_event = 0,
    CALLBACKTYPE_failsafe = 1,
    CALLBACKTYPE_syscall = 2, /* from 64-bit user code */
    CALLBACKTYPE_sysenter_deprecated = 3,
    CALLBACKTYPE_nmi = 4,
    CALLBACKTYPE_sysenter = 5,
    CALLBACKTYPE_syscall32 = 7, /* from 32-bit user code */
};

enum {
    XEN_FLAG(CALLBACKF_mask_events, 0), /* enter with upcalls masked; events and NMIs always do */
};

struct callback_register {
    uint16_t type;  /* CALLBACKTYPE_* */
    uint16_t flags; /* CALLBACKF_* */
    xen_callback_t address;
};
typedef struct callback_register callback_register_t;
XEN_ABI_SIZE(struct callback_register, 16);

struct callback_unregister {
    uint16_t type;
    uint16_t _unused;
};
typedef struct callback_unregister callback_unregister_t;

#endif
