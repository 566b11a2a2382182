/* The lane: how C hands work to the one Python thread.
 *
 * Owns: the queue of exits. Called by: pCPU threads, timers and I/O workers (push), the Python lane (drain).
 * Lock: lane.lock, only the arena's lock inside it. Push never waits for Python and never loses: the queue grows.
 */
#ifndef XL_HV_LANE_H
#define XL_HV_LANE_H

#include "base/types.h"
#ifndef XL_CDEF
#include "base/lock.h"
#endif

enum lane_exit_kind {
    EXIT_NONE = 0,
    EXIT_PYTHON,            /* a Python vCPU was given the CPU: resume its coroutine, then xl_vcpu_park */
    EXIT_HYPERCALL,         /* a vCPU waits for a cold hypercall: nr, args; answer with xl_hypercall_complete */
    EXIT_DOMAIN,            /* a domain changed state: a = enum domain_state, b = shutdown code */
    EXIT_TIMER,             /* the time of xl_set_deadline has come */
    EXIT_IO,                /* a back end's worker wants Python: a = device cookie, b = what */
    EXIT_IDLE,              /* nothing runs: wait for outside input or until a = deadline (NEVER: none) */
    EXIT_DEBUG,             /* a vCPU met what the debugger asked for, its domain stands still: a = enum debug_reason, b = address */
    EXIT_SERIAL,            /* a PC's serial port has output waiting: xl_pc_output */
    EXIT_ENGINE,            /* a vCPU that was to be translated is interpreted: no memory, or none that is executable */
    EXIT_STALLED,           /* virtual clock: nothing runs, no timer is set */
};

struct lane_exit {
    u32 kind;
    u16 domid;
    u16 vcpu;
    u64 a, b;
};

#ifndef XL_CDEF
struct host;
struct vcpu;

struct lane {
    spinlock_t lock;
    u32 head, tail, capacity;       /* free-running indices; capacity is a power of two. [lock] */
    struct lane_exit *queue;        /* arena memory, grows when full. [lock] */
    u32 sleeping;                   /* atomic: the lane is in xl_wait; a push must write the eventfd */
};

int  lane_init(struct host *h);

void lane_push(struct host *h, struct lane_exit e);
bool lane_pop(struct host *h, struct lane_exit *e);
void lane_kick(struct host *h);         /* wakes the lane: its pCPU has a vCPU to run */
#endif
#endif
