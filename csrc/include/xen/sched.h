/*
 * sched_op: giving up the CPU, waiting, ending.
 */
#ifndef __XEN_PUBLIC_SCHED_H__
#define __XEN_PUBLIC_SCHED_H__

#include "event_channel.h"

#define SCHEDOP(number, name, arg) XEN_CONST(SCHEDOP_##name, number)
XEN_TABLE_BEGIN
#include "schedop.def"
XEN_TABLE_END
#undef SCHEDOP

/* For suspend, a third argument in rdx is the frame of start_info; the call returns in the resumed domain. */
struct sched_shutdown {
    unsigned int reason; /* SHUTDOWN_* */
};
typedef struct sched_shutdown sched_shutdown_t;

/* Wakes for a listed port even if it is masked, and leaves the upcall mask alone. */
struct sched_poll {
    XEN_GUEST_HANDLE(evtchn_port_t) ports;
    unsigned int nr_ports; /* at most 128 */
    uint64_t timeout;      /* absolute system time in ns, 0: none */
};
typedef struct sched_poll sched_poll_t;
XEN_ABI_SIZE(struct sched_poll, 24);

struct sched_remote_shutdown {
    domid_t domain_id;
    unsigned int reason; /* SHUTDOWN_* */
};
typedef struct sched_remote_shutdown sched_remote_shutdown_t;

struct sched_watchdog {
    uint32_t id;      /* 0: a new one */
    uint32_t timeout; /* seconds, 0 disarms */
};
typedef struct sched_watchdog sched_watchdog_t;

struct sched_pin_override {
    int32_t pcpu; /* negative: undo */
};
typedef struct sched_pin_override sched_pin_override_t;

enum {
    SHUTDOWN_poweroff = 0,
    SHUTDOWN_reboot = 1,
    SHUTDOWN_suspend = 2,
    SHUTDOWN_crash = 3,
    SHUTDOWN_watchdog = 4,
    SHUTDOWN_soft_reset = 5, /* start again as if freshly built, same domain */
    SHUTDOWN_MAX = 5,
};

#endif
