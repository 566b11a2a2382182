/* The only source of time.
 *
 * Owns: "now" of one host, in ns since the host was made (Xen's system time; always > 0). Called by: everything.
 * Real: CLOCK_MONOTONIC less the host's start. Virtual: a counter that moves only by clock_advance() (retired guest work)
 * and clock_skip_to() (idle); one thread only, so no lock.
 */
#ifndef XL_BASE_CLOCK_H
#define XL_BASE_CLOCK_H

#include "base/types.h"

enum clock_kind { CLOCK_REAL = 0, CLOCK_VIRTUAL = 1 };

struct clock {
    u32 kind;           /* enum clock_kind; fixed at creation */
    u64 epoch;          /* real: CLOCK_MONOTONIC ns that is system time 1 */
    u64 now;            /* virtual: current time */
    u64 wall_sec;       /* UTC at system time 0, for the guests' wallclock */
    u32 wall_nsec;
};

static const u64 NEVER = ~0ul;

/* wall_ns: UTC at start in ns; used by the virtual clock only (0: 2020-01-01), the real one asks the system. */
void clock_init(struct clock *c, enum clock_kind kind, u64 wall_ns);
u64 clock_monotonic_ns(void);

/* A cheap, monotonic, uncalibrated counter of the host. */
static inline u64 clock_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return clock_monotonic_ns();
#endif
}

static inline u64 clock_now(const struct clock *c)
{
    return c->kind == CLOCK_VIRTUAL ? c->now : clock_monotonic_ns() - c->epoch;
}

/* Charges ns of guest work. No effect on a real clock, which runs by itself. */
static inline void clock_advance(struct clock *c, u64 ns)
{
    if (c->kind == CLOCK_VIRTUAL)
        c->now += ns;
}

static inline void clock_skip_to(struct clock *c, u64 t)
{
    if (c->kind == CLOCK_VIRTUAL && t > c->now)
        c->now = t;
}

#endif
