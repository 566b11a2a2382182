/* The arena: one mapping that holds every hypervisor object of one host.
 *
 * Owns: the mapping, size-class free lists. Called by: every subsystem that creates objects. Lock: arena.lock, innermost.
 *
 * The arena lies at a fixed address (a slot a host), so objects refer to each other by plain pointers and yet a snapshot
 * is a copy of [base, brk) that can be put back, and could be saved to disk and mapped again by another process. What
 * belongs to the Linux process (threads, descriptors) is kept outside, in struct host_os.
 * Memory is type-stable: a freed object's bytes stay mapped, so a racing reader sees stale bytes, never a fault.
 */
#ifndef XL_BASE_ARENA_H
#define XL_BASE_ARENA_H

#include "base/lock.h"

enum { ARENA_CLASSES = 20 };            /* 64 B << class, up to 32 MiB */

struct arena {
    u8 *base;
    u64 size;                           /* bytes reserved */
    u64 brk;                            /* bytes ever used [lock] */
    u64 in_use;                         /* bytes handed out, rounded to their class [lock] */
    u64 free_list[ARENA_CLASSES];       /* offset of the first free block of a class, 0: none [lock] */
    spinlock_t lock;
};

/* Maps a fresh arena of `size` bytes (untouched pages cost nothing). Returns its base, NULL if there is no memory. */
u8 *arena_map(u64 size);
/* Lays the arena's own book-keeping over a mapping whose first `used` bytes are taken (by struct host). */
void arena_init(struct arena *a, u8 *base, u64 size, u64 used);
void arena_unmap(u8 *base, u64 size);

/* Zeroed memory of n bytes, 64-byte aligned; NULL when the arena is full (callers answer -ENOMEM). */
void *arena_alloc(struct arena *a, u64 n);
void arena_free(struct arena *a, void *p, u64 n);       /* n as given to arena_alloc; p may be NULL */

#endif
