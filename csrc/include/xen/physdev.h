/*
 * physdev_op: I/O privilege, and the interrupts and PCI functions of passed-through hardware.
 *
 * Without passthrough a guest meets only set_iopl, set_iobitmap, irq_status_query and eoi; the others exist here for
 * the structures of their arguments.
 */
#ifndef __XEN_PUBLIC_PHYSDEV_H__
#define __XEN_PUBLIC_PHYSDEV_H__

#include "xen.h"

#define PHYSDEVOP(number, name, arg) XEN_CONST(PHYSDEVOP_##name, number)
XEN_TABLE_BEGIN
#include "physdevop.def"
    XEN_CONST(PHYSDEVOP_pirq_eoi_gmfn, PHYSDEVOP_pirq_eoi_gmfn_v2)
XEN_TABLE_END
#undef PHYSDEVOP

/* ---- I/O privilege ----------------------------------------------------------------------------------------------- */

struct physdev_set_iopl {
    uint32_t iopl; /* 0 to 3 */
};
typedef struct physdev_set_iopl physdev_set_iopl_t;

struct physdev_set_iobitmap {
    XEN_GUEST_HANDLE(uint8) bitmap; /* bit clear: the port may be used */
    uint32_t nr_ports; /* at most 65536 */
};
typedef struct physdev_set_iobitmap physdev_set_iobitmap_t;

/* ---- Interrupts -------------------------------------------------------------------------------------------------- */

struct physdev_eoi {
    uint32_t irq;
};
typedef struct physdev_eoi physdev_eoi_t;

/* A page with a bit for each pirq that needs an eoi. v1 also makes unmasking a port do the eoi. */
struct physdev_pirq_eoi_gmfn {
    xen_pfn_t gmfn;
};
typedef struct physdev_pirq_eoi_gmfn physdev_pirq_eoi_gmfn_t;

enum {
    XEN_FLAG(XENIRQSTAT_needs_eoi, 0),
    XEN_FLAG(XENIRQSTAT_shared, 1),
};

struct physdev_irq_status_query {
    uint32_t irq;
    uint32_t flags; /* out: XENIRQSTAT_* */
};
typedef struct physdev_irq_status_query physdev_irq_status_query_t;

struct physdev_apic {
    unsigned long apic_physbase;
    uint32_t reg;
    uint32_t value; /* in or out */
};
typedef struct physdev_apic physdev_apic_t;

struct physdev_irq {
    uint32_t irq;
    uint32_t vector; /* in or out */
};
typedef struct physdev_irq physdev_irq_t;

enum {
    MAP_PIRQ_TYPE_MSI = 0,
    MAP_PIRQ_TYPE_GSI = 1,
    MAP_PIRQ_TYPE_UNKNOWN = 2,
    MAP_PIRQ_TYPE_MSI_SEG = 3,
    MAP_PIRQ_TYPE_MULTI_MSI = 4,
};

struct physdev_map_pirq {
    domid_t domid;
    int type; /* MAP_PIRQ_TYPE_* */
    int index; /* GSI; for multi-MSI unused */
    int pirq; /* in: wanted, negative for any; out */
    int bus; /* segment in the high half for MSI_SEG and MULTI_MSI */
    int devfn;
    int entry_nr; /* MSI-X entry; multi-MSI count */
    uint64_t table_base; /* 0: MSI */
};
typedef struct physdev_map_pirq physdev_map_pirq_t;

struct physdev_unmap_pirq {
    domid_t domid;
    int pirq;
};
typedef struct physdev_unmap_pirq physdev_unmap_pirq_t;

struct physdev_setup_gsi {
    int gsi;
    uint8_t triggering; /* 1: level */
    uint8_t polarity;   /* 1: active low */
};
typedef struct physdev_setup_gsi physdev_setup_gsi_t;

struct physdev_get_free_pirq {
    int type;
    uint32_t pirq; /* out */
};
typedef struct physdev_get_free_pirq physdev_get_free_pirq_t;

/* ---- PCI functions ----------------------------------------------------------------------------------------------- */

struct physdev_manage_pci {
    uint8_t bus;
    uint8_t devfn;
};
typedef struct physdev_manage_pci physdev_manage_pci_t;

struct physdev_restore_msi {
    uint8_t bus;
    uint8_t devfn;
};
typedef struct physdev_restore_msi physdev_restore_msi_t;

struct physdev_manage_pci_ext {
    uint8_t bus;
    uint8_t devfn;
    uint32_t is_extfn; /* booleans */
    uint32_t is_virtfn;
    struct {
        uint8_t bus;
        uint8_t devfn;
    } physfn;
};
typedef struct physdev_manage_pci_ext physdev_manage_pci_ext_t;

enum {
    XEN_PCI_MMCFG_RESERVED = 1,
};

struct physdev_pci_mmcfg_reserved {
    uint64_t address;
    uint16_t segment;
    uint8_t start_bus;
    uint8_t end_bus;
    uint32_t flags; /* XEN_PCI_MMCFG_RESERVED */
};
typedef struct physdev_pci_mmcfg_reserved physdev_pci_mmcfg_reserved_t;

enum {
    XEN_PCI_DEV_EXTFN = 1,
    XEN_PCI_DEV_VIRTFN = 2,
    XEN_PCI_DEV_PXM = 4, /* optarr[0] is the proximity domain */
};

struct physdev_pci_device_add {
    uint16_t seg;
    uint8_t bus;
    uint8_t devfn;
    uint32_t flags; /* XEN_PCI_DEV_* */
    struct {
        uint8_t bus;
        uint8_t devfn;
    } physfn;
    uint32_t optarr[];
};
typedef struct physdev_pci_device_add physdev_pci_device_add_t;

struct physdev_pci_device {
    uint16_t seg;
    uint8_t bus;
    uint8_t devfn;
};
typedef struct physdev_pci_device physdev_pci_device_t;

enum {
    PHYSDEVOP_DBGP_RESET_PREPARE = 1,
    PHYSDEVOP_DBGP_RESET_DONE = 2,
    PHYSDEVOP_DBGP_BUS_UNKNOWN = 0,
    PHYSDEVOP_DBGP_BUS_PCI = 1,
};

struct physdev_dbgp_op {
    uint8_t op;
    uint8_t bus;
    union {
        physdev_pci_device_t pci;
    } u;
};
typedef struct physdev_dbgp_op physdev_dbgp_op_t;

/* physdev_op_compat: the command travels in the structure. */
struct physdev_op {
    uint32_t cmd;
    union {
        physdev_irq_status_query_t irq_status_query;
        physdev_set_iopl_t set_iopl;
        physdev_set_iobitmap_t set_iobitmap;
        physdev_apic_t apic_op;
        physdev_irq_t irq_op;
    } u;
};
typedef struct physdev_op physdev_op_t;

#endif
