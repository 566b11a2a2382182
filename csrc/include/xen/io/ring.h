/*
 * Shared rings: one page or more, two producers, requests and responses in the same slots.
 *
 * The header is struct xen_sring_hdr below; slots follow at byte 64, as many as fit, rounded down to a power of two.
 * Indices run freely over 32 bits; slot = index & (slots - 1). The rules of notification: publish the producer index,
 * full barrier, then notify if the other side's event index was passed; a consumer sets its event index to its own
 * index + 1, full barrier, and looks once more before it sleeps. Each side must doubt what the other writes here.
 *
 * DEFINE_RING_TYPES and the macros that go with it are for C guests; the hypervisor's own data paths and cffi use the
 * plain structures.
 */
#ifndef __XEN_PUBLIC_IO_RING_H__
#define __XEN_PUBLIC_IO_RING_H__

#include "../xen-compat.h"

typedef unsigned int RING_IDX;

/* The first 64 bytes of every ring, without its slots. */
struct xen_sring_hdr {
    RING_IDX req_prod;  /* requests up to here are published */
    RING_IDX req_event; /* the back end wants a notification when req_prod passes this */
    RING_IDX rsp_prod;
    RING_IDX rsp_event;
    uint8_t pvt_pad[4]; /* for the back end's own use */
    uint8_t __pad[44];
};
XEN_ABI_SIZE(struct xen_sring_hdr, 64);

enum {
    XEN_RING_HEADER_SIZE = 64,
    XEN_PAGE_SHIFT = 12,
};

#ifndef XL_CDEF

/* ---- Barriers, which x86 gives cheaply; a guest may define its own first ----------------------------------------- */

#ifndef xen_mb
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

/* ---- Geometry ---------------------------------------------------------------------------------------------------- */

#define XEN_POW2_BELOW(n) ((n) ? 1u << (31 - __builtin_clz(n)) : 0u)

/* Slots of a ring of `sz` bytes at s, whose type has a `ring` array. Constant where sz is. */
#define __RING_SIZE(s, sz) XEN_POW2_BELOW((unsigned int)(((sz) - XEN_RING_HEADER_SIZE) / sizeof((s)->ring[0])))
#define __CONST_RING_SIZE(name, sz)                                                                                    \
    XEN_POW2_BELOW((unsigned int)(((sz) - XEN_RING_HEADER_SIZE) / sizeof(union name##_sring_entry)))

#define RING_SIZE(r) ((r)->nr_ents)

/* ---- Types: struct <name>_sring, struct <name>_front_ring, struct <name>_back_ring ------------------------------- */

#define DEFINE_RING_TYPES(name, request_t, response_t)                                                                 \
    union name##_sring_entry {                                                                                         \
        request_t req;                                                                                                 \
        response_t rsp;                                                                                                \
    };                                                                                                                 \
    struct name##_sring {                                                                                              \
        RING_IDX req_prod, req_event;                                                                                  \
        RING_IDX rsp_prod, rsp_event;                                                                                  \
        union {                                                                                                        \
            struct {                                                                                                   \
                uint8_t smartpoll_active;                                                                              \
            } netif;                                                                                                   \
            struct {                                                                                                   \
                uint8_t msg;                                                                                           \
            } tapif_user;                                                                                              \
            uint8_t pvt_pad[4];                                                                                        \
        } pvt;                                                                                                         \
        uint8_t __pad[44];                                                                                             \
        union name##_sring_entry ring[1]; /* as many as fit */                                                         \
    };                                                                                                                 \
    struct name##_front_ring {                                                                                         \
        RING_IDX req_prod_pvt; /* requests written, not all published */                                               \
        RING_IDX rsp_cons;                                                                                             \
        unsigned int nr_ents;                                                                                          \
        struct name##_sring *sring;                                                                                    \
    };                                                                                                                 \
    struct name##_back_ring {                                                                                          \
        RING_IDX rsp_prod_pvt;                                                                                         \
        RING_IDX req_cons;                                                                                             \
        unsigned int nr_ents;                                                                                          \
        struct name##_sring *sring;                                                                                    \
    };                                                                                                                 \
    typedef struct name##_sring name##_sring_t;                                                                        \
    typedef struct name##_front_ring name##_front_ring_t;                                                              \
    typedef struct name##_back_ring name##_back_ring_t

#define SHARED_RING_INIT(s)                                                                                            \
    do {                                                                                                               \
        __builtin_memset((s), 0, XEN_RING_HEADER_SIZE);                                                                \
        (s)->req_event = (s)->rsp_event = 1;                                                                           \
    } while (0)

/* A front end attaches at the ring's current end; a back end too, after checking the index it found there. */
#define FRONT_RING_ATTACH(r, s, i, size)                                                                               \
    do {                                                                                                               \
        (r)->req_prod_pvt = (r)->rsp_cons = (i);                                                                       \
        (r)->nr_ents = __RING_SIZE(s, size);                                                                           \
        (r)->sring = (s);                                                                                              \
    } while (0)
#define FRONT_RING_INIT(r, s, size) FRONT_RING_ATTACH(r, s, 0, size)
#define XEN_FRONT_RING_INIT(r, s, size)                                                                                \
    do {                                                                                                               \
        SHARED_RING_INIT(s);                                                                                           \
        FRONT_RING_INIT(r, s, size);                                                                                   \
    } while (0)

#define BACK_RING_ATTACH(r, s, i, size)                                                                                \
    do {                                                                                                               \
        (r)->rsp_prod_pvt = (r)->req_cons = (i);                                                                       \
        (r)->nr_ents = __RING_SIZE(s, size);                                                                           \
        (r)->sring = (s);                                                                                              \
    } while (0)
#define BACK_RING_INIT(r, s, size) BACK_RING_ATTACH(r, s, 0, size)

/* ---- Slots ------------------------------------------------------------------------------------------------------- */

#define RING_GET_REQUEST(r, idx) (&(r)->sring->ring[(idx) & (RING_SIZE(r) - 1)].req)
#define RING_GET_RESPONSE(r, idx) (&(r)->sring->ring[(idx) & (RING_SIZE(r) - 1)].rsp)

/* A private copy, taken once: the other side can change the slot at any time. */
#define RING_COPY_REQUEST(r, idx, dst) (*(dst) = *(const volatile __typeof__(*(dst)) *)RING_GET_REQUEST(r, idx))
#define RING_COPY_RESPONSE(r, idx, dst) (*(dst) = *(const volatile __typeof__(*(dst)) *)RING_GET_RESPONSE(r, idx))

#define RING_FREE_REQUESTS(r) (RING_SIZE(r) - ((r)->req_prod_pvt - (r)->rsp_cons))
#define RING_FULL(r) (RING_FREE_REQUESTS(r) == 0)

#define RING_HAS_UNCONSUMED_RESPONSES(r) ((r)->sring->rsp_prod - (r)->rsp_cons)

/* Never more than the slots that are not waiting for a response, whatever req_prod claims. */
#define RING_HAS_UNCONSUMED_REQUESTS(r)                                                                                \
    __extension__({                                                                                                    \
        unsigned int req_ = (r)->sring->req_prod - (r)->req_cons;                                                      \
        unsigned int room_ = RING_SIZE(r) - ((r)->req_cons - (r)->rsp_prod_pvt);                                       \
        req_ < room_ ? req_ : room_;                                                                                   \
    })

#define RING_REQUEST_CONS_OVERFLOW(r, cons) (((cons) - (r)->rsp_prod_pvt) >= RING_SIZE(r))
#define RING_REQUEST_PROD_OVERFLOW(r, prod) (((prod) - (r)->rsp_prod_pvt) > RING_SIZE(r))
#define RING_RESPONSE_PROD_OVERFLOW(r, prod) (((prod) - (r)->rsp_cons) > RING_SIZE(r))

/* ---- Publishing and waiting -------------------------------------------------------------------------------------- */

#define RING_PUSH_REQUESTS(r)                                                                                          \
    do {                                                                                                               \
        xen_wmb();                                                                                                     \
        (r)->sring->req_prod = (r)->req_prod_pvt;                                                                      \
    } while (0)

#define RING_PUSH_RESPONSES(r)                                                                                         \
    do {                                                                                                               \
        xen_wmb();                                                                                                     \
        (r)->sring->rsp_prod = (r)->rsp_prod_pvt;                                                                      \
    } while (0)

#define RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(r, notify)                                                                 \
    do {                                                                                                               \
        RING_IDX old_ = (r)->sring->req_prod;                                                                          \
        RING_IDX new_ = (r)->req_prod_pvt;                                                                             \
        xen_wmb();                                                                                                     \
        (r)->sring->req_prod = new_;                                                                                   \
        xen_mb();                                                                                                      \
        (notify) = (RING_IDX)(new_ - (r)->sring->req_event) < (RING_IDX)(new_ - old_);                                 \
    } while (0)

#define RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(r, notify)                                                                \
    do {                                                                                                               \
        RING_IDX old_ = (r)->sring->rsp_prod;                                                                          \
        RING_IDX new_ = (r)->rsp_prod_pvt;                                                                             \
        xen_wmb();                                                                                                     \
        (r)->sring->rsp_prod = new_;                                                                                   \
        xen_mb();                                                                                                      \
        (notify) = (RING_IDX)(new_ - (r)->sring->rsp_event) < (RING_IDX)(new_ - old_);                                 \
    } while (0)

#define RING_FINAL_CHECK_FOR_REQUESTS(r, work)                                                                         \
    do {                                                                                                               \
        (work) = RING_HAS_UNCONSUMED_REQUESTS(r);                                                                      \
        if (work)                                                                                                      \
            break;                                                                                                     \
        (r)->sring->req_event = (r)->req_cons + 1;                                                                     \
        xen_mb();                                                                                                      \
        (work) = RING_HAS_UNCONSUMED_REQUESTS(r);                                                                      \
    } while (0)

#define RING_FINAL_CHECK_FOR_RESPONSES(r, work)                                                                        \
    do {                                                                                                               \
        (work) = RING_HAS_UNCONSUMED_RESPONSES(r);                                                                     \
        if (work)                                                                                                      \
            break;                                                                                                     \
        (r)->sring->rsp_event = (r)->rsp_cons + 1;                                                                     \
        xen_mb();                                                                                                      \
        (work) = RING_HAS_UNCONSUMED_RESPONSES(r);                                                                     \
    } while (0)

#endif /* !XL_CDEF */

#endif
