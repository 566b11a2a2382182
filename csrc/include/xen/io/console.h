/*
 * The console page: two byte rings. The guest produces `out` and consumes `in`; indices run freely over 32 bits.
 */
#ifndef __XEN_PUBLIC_IO_CONSOLE_H__
#define __XEN_PUBLIC_IO_CONSOLE_H__

#include "../xen-compat.h"

typedef uint32_t XENCONS_RING_IDX;

enum {
    XENCONSOLE_CONNECTED = 0,
    XENCONSOLE_DISCONNECTED = 1,
};

struct xencons_interface {
    char in[1024];
    char out[2048];
    XENCONS_RING_IDX in_cons;
    XENCONS_RING_IDX in_prod;
    XENCONS_RING_IDX out_cons;
    XENCONS_RING_IDX out_prod;
    uint8_t connection; /* XENCONSOLE_*, by the back end; Xen 4.17 has no such field: zero there */
};
XEN_ABI_OFFSET(struct xencons_interface, in_cons, 3072);
XEN_ABI_OFFSET(struct xencons_interface, connection, 3088);

#ifndef XL_CDEF
#define MASK_XENCONS_IDX(idx, ring) ((idx) & (sizeof(ring) - 1))
#endif

#endif
