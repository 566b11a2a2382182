/*
 * Xenstore on the wire: message header, message types, and the page that carries them for a guest.
 *
 * The same bytes travel over the unix socket and over the ring. Errors travel as names, of errno.def.
 */
#ifndef _XS_WIRE_H
#define _XS_WIRE_H

#include "../xen-compat.h"

enum xsd_sockmsg_type {
    XS_CONTROL = 0,
    XS_DIRECTORY = 1,
    XS_READ = 2,
    XS_GET_PERMS = 3,
    XS_WATCH = 4,
    XS_UNWATCH = 5,
    XS_TRANSACTION_START = 6,
    XS_TRANSACTION_END = 7,
    XS_INTRODUCE = 8,
    XS_RELEASE = 9,
    XS_GET_DOMAIN_PATH = 10,
    XS_WRITE = 11,
    XS_MKDIR = 12,
    XS_RM = 13,
    XS_SET_PERMS = 14,
    XS_WATCH_EVENT = 15,
    XS_ERROR = 16,
    XS_IS_DOMAIN_INTRODUCED = 17,
    XS_RESUME = 18,
    XS_SET_TARGET = 19,
    /* 20 was XS_RESTRICT, which no server serves */
    XS_RESET_WATCHES = 21,
    XS_DIRECTORY_PART = 22,
    XS_TYPE_COUNT = 23,
    XS_INVALID = 0xffff,
};

enum {
    XS_DEBUG = 0, /* old name of XS_CONTROL */
};

struct xsd_sockmsg {
    uint32_t type; /* enum xsd_sockmsg_type */
    uint32_t req_id; /* echoed */
    uint32_t tx_id; /* transaction, 0: none */
    uint32_t len; /* of the payload that follows */
};
XEN_ABI_SIZE(struct xsd_sockmsg, 16);

/* Strings of a watch event's payload, in order. */
enum xs_watch_type {
    XS_WATCH_PATH = 0,
    XS_WATCH_TOKEN = 1,
};

enum {
    XENSTORE_RING_SIZE = 1024,
    XENSTORE_PAYLOAD_MAX = 4096, /* a longer message ends the connection */
    XENSTORE_ABS_PATH_MAX = 3072,
    XENSTORE_REL_PATH_MAX = 2048,
};

enum {
    XENSTORE_SERVER_FEATURE_RECONNECTION = 1,
    XENSTORE_SERVER_FEATURE_ERROR = 2,
    XENSTORE_CONNECTED = 0,
    XENSTORE_RECONNECT = 1, /* written by the guest: start again, with empty rings */
    XENSTORE_ERROR_NONE = 0,
    XENSTORE_ERROR_COMM = 1,
    XENSTORE_ERROR_RINGIDX = 2,
    XENSTORE_ERROR_PROTO = 3,
};

typedef uint32_t XENSTORE_RING_IDX;

struct xenstore_domain_interface {
    char req[XENSTORE_RING_SIZE]; /* guest to server */
    char rsp[XENSTORE_RING_SIZE];
    XENSTORE_RING_IDX req_cons;
    XENSTORE_RING_IDX req_prod;
    XENSTORE_RING_IDX rsp_cons;
    XENSTORE_RING_IDX rsp_prod;
    uint32_t server_features; /* XENSTORE_SERVER_FEATURE_* */
    uint32_t connection;      /* XENSTORE_CONNECTED or _RECONNECT */
    uint32_t error;           /* XENSTORE_ERROR_* */
};
XEN_ABI_OFFSET(struct xenstore_domain_interface, req_cons, 2048);
XEN_ABI_OFFSET(struct xenstore_domain_interface, error, 2072);

#ifndef XL_CDEF
#define MASK_XENSTORE_IDX(idx) ((idx) & (XENSTORE_RING_SIZE - 1))
#define XS_WRITE_NONE "NONE"
#define XS_WRITE_CREATE "CREATE"
#define XS_WRITE_CREATE_EXCL "CREATE|EXCL"
#endif

#endif
