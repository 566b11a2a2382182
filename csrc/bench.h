/* Loops for tests/bench that neither Python nor a script can make: both cost more than what is measured.
 *
 * Owns: nothing. Called by: tests/bench, on the lane. No lock. A part of xenlike.h, which declares the structures used here.
 */
#ifndef XL_BENCH_H
#define XL_BENCH_H

#include "base/types.h"

/* What the host itself needs for one thing: the floors that figures are compared with. */
#define BENCH_FLOORS(X)                                                                             \
    X(CALL,     "an indirect call of an empty function")                                            \
    X(ATOMIC,   "a locked add to a word of one's own")                                              \
    X(CLOCK,    "reading CLOCK_MONOTONIC")                                                          \
    X(MEMCPY,   "copying a page: buf is 2 * size pages, page i is copied to page size + i")         \
    X(PREAD,    "pread of 512 bytes of descriptor `size` into buf, at the places of a 4 MiB file")  \
    X(WAKE,     "a futex wake of a thread until that runs")

enum bench_floor {
#define X(name, doc) BENCH_FLOOR_##name,
    BENCH_FLOORS(X)
#undef X
    BENCH_NR_FLOORS
};

/* Does it n times. Returns the ns that took; -EINVAL: no such floor or bad size, -EAGAIN: no thread, -EIO: a read failed. */
s64 xl_bench_floor(u32 floor, u64 n, void *buf, u64 size);

/* Plays `calls` (nr of them, in order) as hypercalls of v, `rounds` times over. v must be at rest, and stays so: calls that
 * block it are not for this. Returns the ns that took, or the first negative result. */
s64 xl_bench_hypercalls(struct vcpu *v, const struct xl_cold *calls, u32 nr, u64 rounds);

#endif
