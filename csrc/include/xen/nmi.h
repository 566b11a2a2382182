/*
 * nmi_op: the NMI entry point, and the reasons that shared_info.arch.nmi_reason gives.
 */
#ifndef __XEN_PUBLIC_NMI_H__
#define __XEN_PUBLIC_NMI_H__

#include "xen.h"

enum {
    XENNMI_register_callback = 0,
    XENNMI_unregister_callback = 1,
};

struct xennmi_callback {
    unsigned long handler_address;
    unsigned long pad;
};
typedef struct xennmi_callback xennmi_callback_t;

enum {
    XEN_FLAG(XEN_NMIREASON_io_error, 0),
    XEN_FLAG(XEN_NMIREASON_pci_serr, 1),
    XEN_FLAG(XEN_NMIREASON_unknown, 2),
};

#endif
