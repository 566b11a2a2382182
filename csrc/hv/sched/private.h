/* Between core.c and pcpu.c. */
#ifndef XL_HV_SCHED_PRIVATE_H
#define XL_HV_SCHED_PRIVATE_H

#include "hv/host.h"

/* Atomically *at = min(*at, t). */
static inline void atomic_lower(u64 *at, u64 t)
{
    u64 old = load_acquire(*at);
    while (t < old && !cmpxchg(at, &old, t))
        ;
}

/* Rests `prev` (NULL: none) and puts the policy's choice on p, which it returns. NULL: p->idle is set. */
struct sched_unit *sched_switch(struct host *h, struct pcpu *p, struct sched_unit *prev, u64 now);

/* p->held is a Python vCPU that has burned compute time since p->burning_since: takes that off. (pcpu.c) */
void burn_account(struct pcpu *p, u64 now);

#endif
