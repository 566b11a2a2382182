/*
 * Time: system time (ns since the host started), the wall clock, one timer a vCPU.
 */
#ifndef GUEST_TIME_H
#define GUEST_TIME_H

#include <guest/types.h>

#define NSEC 1000000000ull

u64 time_now(void);                  /* system time, ns */
u64 time_wall(void);                 /* UTC, ns since 1970 */
void time_sleep(u64 ns);             /* this vCPU blocks; its event handlers run */

/* Calls handler(), events masked, when system time reaches `when` (set_timer_op); NULL stops. Past times fire at once. 0 or -XEN_E. */
s64 timer_set(u64 when, void (*handler)(void));

#endif
