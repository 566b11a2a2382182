/*
 * Network devices: transmit, receive and control rings.
 *
 * Transmit: the first slot's size is the whole packet's; the back end takes the other slots' sizes from it. Extra slots
 * follow the first one. Receive: the response to a request stands in the request's own slot.
 */
#ifndef __XEN_PUBLIC_IO_NETIF_H__
#define __XEN_PUBLIC_IO_NETIF_H__

#include "../grant_table.h"
#include "ring.h"

enum {
    XEN_NETIF_NR_SLOTS_MIN = 18, /* slots a packet that every back end takes */
    XEN_NETIF_MAX_TX_SIZE = 0xFFFF,
};

/* ---- Transmit ---------------------------------------------------------------------------------------------------- */

enum {
    XEN_FLAG(NETTXF_csum_blank, 0),     /* the checksum is to be filled in */
    XEN_FLAG(NETTXF_data_validated, 1), /* it is known to be right */
    XEN_FLAG(NETTXF_more_data, 2),      /* the packet goes on in the next slot */
    XEN_FLAG(NETTXF_extra_info, 3),     /* the next slot is an extra_info */
};

struct netif_tx_request {
    grant_ref_t gref;
    uint16_t offset;
    uint16_t flags; /* NETTXF_* */
    uint16_t id;    /* echoed in the response */
    uint16_t size;
};
typedef struct netif_tx_request netif_tx_request_t;
XEN_ABI_SIZE(struct netif_tx_request, 12);

struct netif_tx_response {
    uint16_t id;
    int16_t status; /* NETIF_RSP_* */
};
typedef struct netif_tx_response netif_tx_response_t;
XEN_ABI_SIZE(struct netif_tx_response, 4);

/* ---- Receive ----------------------------------------------------------------------------------------------------- */

struct netif_rx_request {
    uint16_t id;
    uint16_t pad;
    grant_ref_t gref;
};
typedef struct netif_rx_request netif_rx_request_t;
XEN_ABI_SIZE(struct netif_rx_request, 8);

enum {
    XEN_FLAG(NETRXF_data_validated, 0),
    XEN_FLAG(NETRXF_csum_blank, 1),
    XEN_FLAG(NETRXF_more_data, 2),
    XEN_FLAG(NETRXF_extra_info, 3),
    XEN_FLAG(NETRXF_gso_prefix, 4),
};

struct netif_rx_response {
    uint16_t id;
    uint16_t offset;
    uint16_t flags; /* NETRXF_* */
    int16_t status; /* bytes, or NETIF_RSP_* if negative */
};
typedef struct netif_rx_response netif_rx_response_t;
XEN_ABI_SIZE(struct netif_rx_response, 8);

enum {
    NETIF_RSP_OKAY = 0,
    NETIF_RSP_ERROR = -1,
    NETIF_RSP_DROPPED = -2,
    NETIF_RSP_NULL = 1, /* for a slot that carried an extra_info */
};

/* ---- Extra information about a packet ---------------------------------------------------------------------------- */

enum {
    XEN_NETIF_EXTRA_TYPE_NONE = 0,
    XEN_NETIF_EXTRA_TYPE_GSO = 1,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3,
    XEN_NETIF_EXTRA_TYPE_HASH = 4,
    XEN_NETIF_EXTRA_TYPE_MAX = 5,
    XEN_FLAG(XEN_NETIF_EXTRA_FLAG_MORE, 0), /* another one follows */
    XEN_NETIF_GSO_TYPE_NONE = 0,
    XEN_NETIF_GSO_TYPE_TCPV4 = 1,
    XEN_NETIF_GSO_TYPE_TCPV6 = 2,
};

struct netif_extra_info {
    uint8_t type;  /* XEN_NETIF_EXTRA_TYPE_* */
    uint8_t flags; /* XEN_NETIF_EXTRA_FLAG_* */
    union {
        struct {
            uint16_t size; /* largest segment */
            uint8_t type;  /* XEN_NETIF_GSO_TYPE_* */
            uint8_t pad;
            uint16_t features;
        } gso;
        struct {
            uint8_t addr[6];
        } mcast;
        struct {
            uint8_t type;      /* _XEN_NETIF_CTRL_HASH_TYPE_* */
            uint8_t algorithm; /* XEN_NETIF_CTRL_HASH_ALGORITHM_* */
            uint8_t value[4];
        } hash;
        uint16_t pad[3];
    } u;
};
typedef struct netif_extra_info netif_extra_info_t;
XEN_ABI_SIZE(struct netif_extra_info, 8);

/* ---- Control ring ------------------------------------------------------------------------------------------------ */

enum {
    XEN_FLAG(XEN_NETIF_CTRL_HASH_TYPE_IPV4, 0),
    XEN_FLAG(XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP, 1),
    XEN_FLAG(XEN_NETIF_CTRL_HASH_TYPE_IPV6, 2),
    XEN_FLAG(XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP, 3),
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1,
};

enum {
    XEN_NETIF_CTRL_TYPE_INVALID = 0,
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1,
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2,
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3,
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5,
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6,
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7,
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8,
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9,
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10,
    XEN_NETIF_CTRL_STATUS_SUCCESS = 0,
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2,
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3,
};

struct xen_netif_ctrl_request {
    uint16_t id;
    uint16_t type; /* XEN_NETIF_CTRL_TYPE_* */
    uint32_t data[3];
};

struct xen_netif_ctrl_response {
    uint16_t id;
    uint16_t type;
    uint32_t status; /* XEN_NETIF_CTRL_STATUS_* */
    uint32_t data;
};

struct xen_netif_gref {
    grant_ref_t ref;
    uint16_t flags; /* XEN_NETIF_CTRLF_GREF_* */
    uint16_t status;
};

enum {
    XEN_FLAG(XEN_NETIF_CTRLF_GREF_readonly, 0),
};

#ifndef XL_CDEF
DEFINE_RING_TYPES(netif_tx, struct netif_tx_request, struct netif_tx_response);
DEFINE_RING_TYPES(netif_rx, struct netif_rx_request, struct netif_rx_response);
DEFINE_RING_TYPES(xen_netif_ctrl, struct xen_netif_ctrl_request, struct xen_netif_ctrl_response);
#endif

#endif
