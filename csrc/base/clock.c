/* See clock.h. */
#define _GNU_SOURCE
#include "base/clock.h"

#include <time.h>

u64 clock_monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * 1000000000ul + (u64)ts.tv_nsec;
}

void clock_init(struct clock *c, enum clock_kind kind, u64 wall_ns)
{
    *c = (struct clock){ .kind = kind, .now = 1 };
    if (kind == CLOCK_REAL) {
        struct timespec ts;
        clock_gettime(CLOCK_REALTIME, &ts);
        wall_ns = (u64)ts.tv_sec * 1000000000ul + (u64)ts.tv_nsec;
        c->epoch = clock_monotonic_ns() - 1;
    } else if (wall_ns == 0) {
        wall_ns = 1577836800ul * 1000000000ul;      /* 2020-01-01T00:00:00Z: repeatable, and a sane date to guests */
    }
    c->wall_sec = wall_ns / 1000000000ul;
    c->wall_nsec = (u32)(wall_ns % 1000000000ul);
}
