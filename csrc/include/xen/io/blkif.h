/*
 * Block devices: requests and responses, 64-bit layout. Keys and their meaning: docs of the block back end.
 *
 * Sectors are 512 bytes on the ring, whatever the device's own sector size.
 */
#ifndef __XEN_PUBLIC_IO_BLKIF_H__
#define __XEN_PUBLIC_IO_BLKIF_H__

#include "../grant_table.h"
#include "ring.h"

typedef uint16_t blkif_vdev_t;
typedef uint64_t blkif_sector_t;

enum {
    BLKIF_OP_READ = 0,
    BLKIF_OP_WRITE = 1,
    BLKIF_OP_WRITE_BARRIER = 2,
    BLKIF_OP_FLUSH_DISKCACHE = 3,
    BLKIF_OP_RESERVED_1 = 4,
    BLKIF_OP_DISCARD = 5,
    BLKIF_OP_INDIRECT = 6, /* the segments stand in granted pages */
};

enum {
    BLKIF_MAX_SEGMENTS_PER_REQUEST = 11,
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8,
};

/* Sectors first_sect to last_sect, both included, of the granted page. */
struct blkif_request_segment {
    grant_ref_t gref;
    uint8_t first_sect;
    uint8_t last_sect;
};
XEN_ABI_SIZE(struct blkif_request_segment, 8);

struct blkif_request {
    uint8_t operation; /* BLKIF_OP_* */
    uint8_t nr_segments;
    blkif_vdev_t handle;
    uint64_t id; /* echoed in the response */
    blkif_sector_t sector_number;
    struct blkif_request_segment seg[BLKIF_MAX_SEGMENTS_PER_REQUEST];
};
typedef struct blkif_request blkif_request_t;
XEN_ABI_SIZE(struct blkif_request, 112);

enum {
    BLKIF_DISCARD_SECURE = 1 << 0,
};

struct blkif_request_discard {
    uint8_t operation;
    uint8_t flag; /* BLKIF_DISCARD_* */
    blkif_vdev_t handle;
    uint64_t id;
    blkif_sector_t sector_number;
    uint64_t nr_sectors;
};
typedef struct blkif_request_discard blkif_request_discard_t;

struct blkif_request_indirect {
    uint8_t operation;
    uint8_t indirect_op; /* READ or WRITE */
    uint16_t nr_segments;
    uint64_t id;
    blkif_sector_t sector_number;
    blkif_vdev_t handle;
    grant_ref_t indirect_grefs[BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST];
};
typedef struct blkif_request_indirect blkif_request_indirect_t;

struct blkif_response {
    uint64_t id;
    uint8_t operation;
    int16_t status; /* BLKIF_RSP_* */
};
typedef struct blkif_response blkif_response_t;
XEN_ABI_SIZE(struct blkif_response, 16);

enum {
    BLKIF_RSP_OKAY = 0,
    BLKIF_RSP_ERROR = -1,
    BLKIF_RSP_EOPNOTSUPP = -2, /* the front end stops using the operation */
};

/* Bits of the back end's `info` key. */
enum {
    VDISK_CDROM = 1,
    VDISK_REMOVABLE = 2,
    VDISK_READONLY = 4,
};

#ifndef XL_CDEF
DEFINE_RING_TYPES(blkif, struct blkif_request, struct blkif_response);
#endif

#endif
