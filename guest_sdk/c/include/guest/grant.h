/*
 * Grant tables, version 1: giving other domains access to pages, and mapping theirs.
 */
#ifndef GUEST_GRANT_H
#define GUEST_GRANT_H

#include <guest/memory.h>

/* Lets domain `domid` map and copy a frame. Returns the reference, or -XEN_ENOSPC. */
s64 grant_access(domid_t domid, u64 mfn, bool readonly);

/* Ends it and frees the reference; -XEN_EBUSY while the other side still uses it. */
s64 grant_end(u32 ref);

struct grant_map {
    void *va;
    u32 handle;
};

/* Maps another domain's page. 0, -XEN_E<error> of the call, or -XEN_EINVAL: then map->handle holds -GNTST_*. */
s64 grant_map(struct grant_map *map, domid_t domid, u32 ref, bool readonly);
s64 grant_unmap(struct grant_map *map);

/* The entry of a reference, in the shared table. */
struct grant_entry_v1 *grant_entry(u32 ref);

#endif
