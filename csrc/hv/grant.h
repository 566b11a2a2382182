/* Grant tables, version 1.
 *
 * Owns: a domain's shared grant frames, its active entries (as granter), its maptrack (as mapper).
 * Called by: hypercalls, toolstack (reserved entries), back ends' data paths.
 * Files: grant/table.c frames, entries, the pin protocol; grant/map.c handles, map and unmap; grant/copy.c; grant/op.c the
 * hypercall.
 *
 * Locks: gt.lock of the granter guards active entries and growth; gt.maptrack_lock of the mapper guards handles. They are
 * never held together, so it does not matter when a domain maps its own grants. Both come below mm.lock, and nothing that waits
 * (page tables, references, guest copies) is done under them. Guest-written entries are read with one load and pinned by
 * cmpxchg (section 6.2).
 *
 * What keeps what: a pin keeps nothing alive by itself. A mapping holds references on the frame (in its PTE, or as a device map);
 * its handle holds one on the granter's struct, so that it can still be unmapped when the granter is a zombie.
 */
#ifndef XL_HV_GRANT_H
#define XL_HV_GRANT_H

#include "base/lock.h"
#include "xen/grant_table.h"

struct domain;
struct host;
struct vcpu;

enum {
    GRANT_ENTRIES_PER_FRAME = 512,
    MAPTRACK_PER_FRAME = 256,           /* as Xen: max_maptrack_frames counts pages of so many handles */
};

/* Counts in active_grant.pin (Xen's GNTPIN_*): 8 bits each; one that has reached 128 takes no more. */
enum {
    GNTPIN_hstw_inc = 1 << 0,
    GNTPIN_hstr_inc = 1 << 8,
    GNTPIN_devw_inc = 1 << 16,
    GNTPIN_devr_inc = 1 << 24,
    GNTPIN_write_mask = 0x00ff00ff,
};

struct active_grant {                   /* one a gref, as granter. [gt.lock] */
    u32 pin;                            /* four counts, see above; 0: not in use, the rest means nothing */
    u16 domid;                          /* mapper */
    u32 mfn;
};

struct maptrack {                       /* one a handle, as mapper. [maptrack_lock] */
    struct domain *granter;             /* with a reference */
    u32 gref;                           /* free: the next free handle */
    u16 flags;                          /* GNTMAP_* still held; 0: free, or not yet published */
    bool busy;                          /* an unmap of it is under way on some vCPU */
};

struct grant_state {
    spinlock_t lock, maptrack_lock;
    bool dead;                          /* the granter died: the shared frames are gone. [lock] */
    u32 max_frames, nr_frames;          /* shared frames: limit and now [lock] */
    u32 max_maptrack_frames, nr_maptrack_frames;        /* pages of handles: limit and now [maptrack_lock] */
    u32 nr_maptrack;                    /* handles in use [maptrack_lock] */
    u32 free_maptrack;                  /* first free handle [maptrack_lock] */
    u32 nr_pinned;                      /* active entries with pin != 0 [lock] */
    u32 *frame_mfns;                    /* [max_frames]; an entry below nr_frames never changes */
    struct active_grant **active;       /* [max_frames] pages of 512 entries */
    struct maptrack **maptrack;         /* [max_maptrack_frames] pages */
};

/* One frame at once. -ENOMEM, -EINVAL (limits); what was taken is returned by grant_destroy and grant_free. */
int  grant_init(struct domain *d, u32 max_frames, u32 max_maptrack_frames);
/* Death, as mapper: undoes every mapping it still has. References that PTEs hold go with the page tables (mm_destroy). */
void grant_release_mappings(struct domain *d);
/* Death, as granter: no new pins, shared frames are given up. Granted frames stay while they are mapped elsewhere. */
void grant_destroy(struct domain *d);
void grant_free(struct domain *d);              /* with the domain struct: nothing is pinned or mapped any more */

s64 do_grant_table_op(struct vcpu *v, u64 cmd, u64 uop, u64 count);

/* Toolstack: writes reserved entry `ref` (< 8): permit_access for `domid` to `mfn`. -EINVAL: ref, or not d's frame; -EBUSY:
 * the entry is in use. */
int grant_seed(struct domain *d, u32 ref, u16 domid, u64 mfn);
/* The same entry protocol for a back end's data path, without a hypercall. status: GNTST_*; on 0 the frame is referenced
 * (and typed writable unless readonly, touched and dirty) and the entry shows as in use, like a device map, until
 * grant_io_end with the same arguments. Reads the granter's entry afresh each time. Any thread. */
int  grant_io_begin(struct host *h, struct domain *mapper, u16 granter, u32 gref, bool readonly, u32 *mfn);
void grant_io_end(struct host *h, struct domain *mapper, u16 granter, u32 gref, bool readonly, u32 mfn);

#endif
