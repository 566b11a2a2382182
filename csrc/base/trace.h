/* The trace rings and the trace digest.
 *
 * Owns: the last TRACE_RING events of each ring of a host, and a running digest of all. Called by: hypercall exit, scheduler,
 * events, crashes. One ring is everybody's: a writer claims a slot by an atomic add. What a vCPU does itself on a pCPU that has a
 * thread goes to that pCPU's own ring, without: a locked instruction is a tenth of a hypercall. A reader merges the rings by
 * time, and drops slots that were overwritten meanwhile.
 * The digest is kept with the virtual clock only, where there is one thread and one ring: two runs of one seed have equal digests.
 */
#ifndef XL_BASE_TRACE_H
#define XL_BASE_TRACE_H

#include "base/types.h"
#ifndef XL_CDEF
#include "base/clock.h"
#include "base/lock.h"
#endif

/* name, meaning of a, meaning of b */
#define TRACE_EVENTS(X)                                                     \
    X(HYPERCALL,    "number << 48 | first argument's hash", "result")       \
    X(RUN,          "time slice in ns", "-")                                \
    X(BLOCK,        "pause flags", "-")                                     \
    X(WAKE,         "pause flags before", "-")                              \
    X(EVENT,        "port", "notified vcpu")                                \
    X(VIRQ,         "virq", "port")                                         \
    X(UPCALL,       "pending_sel", "-")                                     \
    X(TRAP,         "vector << 32 | error code", "rip")                     \
    X(TIMER,        "expiry, ns", "-")                                      \
    X(GRANT_MAP,    "granter << 32 | gref", "mfn")                          \
    X(GRANT_UNMAP,  "handle", "mfn")                                        \
    X(PT_TYPE,      "mfn", "new type")                                      \
    X(CREATE,       "frames", "vcpus")                                      \
    X(SHUTDOWN,     "reason", "-")                                          \
    X(CRASH,        "-", "-")                                               \
    X(DESTROY,      "-", "-")                                               \
    X(IO,           "operation << 56 | sector", "status")                   \
    X(MARK,         "user value", "user value")

enum trace_kind {
#define X(name, a, b) TRACE_##name,
    TRACE_EVENTS(X)
#undef X
    TRACE_NR_KINDS
};

struct trace_record {
    u64 time;                   /* system time, ns */
    u16 kind;                   /* enum trace_kind */
    u16 domid;
    u32 vcpu;
    u64 a, b;
};

#ifndef XL_CDEF
enum { TRACE_RING = 8192, TRACE_RINGS = 64 };   /* records of a ring; rings, at most */

struct trace_ring {
    u64 next;                   /* records ever written; everybody's: or claimed (atomic) */
    struct trace_record record[TRACE_RING];
};

struct trace {
    u64 digest;
    bool digesting;             /* virtual clock: one thread */
    bool off;                   /* whoever adds looks first. Benchmarks measure with and without */
    struct trace_ring shared;
};

/* Copies the last n records of these rings, TRACE_RINGS at most, to out, oldest first; returns how many. Any thread. */
int trace_merge(const struct trace_ring *const *rings, unsigned nr_rings, struct trace_record *out, int n);

static inline u64 digest_mix(u64 h, u64 v)
{
    h = (h ^ v) * 0x9fb21c651e98df25ul;
    return h ^ (h >> 29);
}

static inline void trace_add(struct trace *t, u64 now, unsigned kind, unsigned domid, unsigned vcpu, u64 a, u64 b)
{
    u64 n = t->digesting ? t->shared.next++ : __atomic_fetch_add(&t->shared.next, 1, __ATOMIC_RELAXED);
    t->shared.record[n % TRACE_RING] = (struct trace_record){ now, (u16)kind, (u16)domid, vcpu, a, b };
    if (t->digesting)
        t->digest = digest_mix(digest_mix(digest_mix(t->digest, now ^ ((u64)kind << 48)), a ^ ((u64)domid << 48)), b + vcpu);
}

/* To a ring that nobody else writes. */
static inline void trace_add_own(struct trace_ring *r, u64 now, unsigned kind, unsigned domid, unsigned vcpu, u64 a, u64 b)
{
    u64 n = r->next;
    r->record[n % TRACE_RING] = (struct trace_record){ now, (u16)kind, (u16)domid, vcpu, a, b };
    store_release(r->next, n + 1);
}
#endif
#endif
