/* Counters, declared in one table. One array a vCPU (written by whoever runs that vCPU) and one a host (atomic adds).
 *
 * Owns: the names. Called by: every subsystem; Python turns the table into `statistics()`.
 */
#ifndef XL_BASE_STATS_H
#define XL_BASE_STATS_H

#include "base/types.h"

#define STATISTICS(X)                                                       \
    X(hypercalls,       "hypercalls made")                                  \
    X(cold_hypercalls,  "hypercalls that Python handled")                   \
    X(multicall_entries,"hypercalls made inside a multicall")               \
    X(events_sent,      "EVTCHNOP_send that reached a port")                \
    X(events_received,  "times a port bound to this vCPU became pending")   \
    X(upcalls,          "event upcalls delivered")                          \
    X(virqs,            "virtual interrupts raised")                        \
    X(wakes,            "times the vCPU was woken")                         \
    X(switches,         "times the vCPU was put on a physical CPU")         \
    X(pt_updates,       "page-table entries written")                       \
    X(pt_validations,   "page tables validated")                            \
    X(tlb_fills,        "soft TLB misses")                                  \
    X(tlb_flushes,      "soft TLB flushes")                                 \
    X(page_faults,      "guest page faults")                                \
    X(instructions,     "instructions of machine code completed")           \
    X(traps,            "exceptions and software interrupts that the guest took") \
    X(emulated,         "privileged instructions emulated")                 \
    X(ptwr_writes,      "stores to page tables emulated")                   \
    X(undecoded,        "instructions that the engine does not know")       \
    X(grant_maps,       "grants mapped")                                    \
    X(grant_unmaps,     "grants unmapped")                                  \
    X(grant_copies,     "grant copies")                                     \
    X(blk_requests,     "block requests completed")                         \
    X(blk_sectors,      "512-byte sectors moved")                           \
    X(blk_errors,       "block requests answered with an error")

enum stat_id {
#define X(name, doc) STAT_##name,
    STATISTICS(X)
#undef X
    STAT_NR
};

#endif
