/* A domain: identity, life cycle, and its part of each subsystem.
 *
 * Owns: struct domain, the host's domain list. Called by: toolstack (through xenlike.h), sched_op shutdown, crashes.
 * Locks: host->domains_lock guards the list; a domain found by domain_get() stays until domain_put().
 *
 * Death is staged: domain_kill() pauses the vCPUs, closes ports, undoes grant mappings, gives up memory; the struct goes when the
 * last reference goes (a frame that another domain still maps keeps its owner's id taken: a zombie, as on Xen).
 */
#ifndef XL_HV_DOMAIN_H
#define XL_HV_DOMAIN_H

#include "hv/event.h"
#include "hv/grant.h"
#include "hv/mm.h"
#include "hv/vcpu.h"

enum { CRASH_REASON_MAX = 192 };

/* The ports that a PV guest's I/O instructions reach (pv/ports.c): 8254 channel 2, speaker gate, CMOS, PCI's address register. [lock] */
struct pv_ports {
    spinlock_t lock;
    u32 pci_address;
    u8 cmos_index, speaker;
    u8 pit_mode, pit_access;            /* of the last control word; access: 1 low byte, 2 high byte, 3 both */
    u8 pit_low;                         /* first of two bytes written */
    bool pit_write_high, pit_read_high, pit_latched;
    u16 pit_reload, pit_latch;
    u64 pit_start;                      /* system time when it began to count */
};

/* What a debugger asked for (hv/debug.c). Changed only while every vCPU of the domain rests with VPF_debug. */
enum { DEBUG_POINTS = 64 };
struct debug_state {
    bool attached;
    u32 nr;
    struct debug_point { u64 va; u32 len; u8 kind; } point[DEBUG_POINTS];       /* kind: enum debug_kind */
};

struct domain {
    struct host *host;
    u16 id;
    bool privileged;                    /* domain 0 */
    u8 state;                           /* enum domain_state. [lock] */
    u8 shutdown_code;                   /* SHUTDOWN_*; valid from DOM_shutdown on */
    bool shutdown_code_set;             /* SCHEDOP_shutdown_code came first */
    u16 last_vcpu;                      /* the vCPU that crashed the domain, or asked for its shutdown; of two at once, either */
    bool dying;                         /* no new references, ports, maps. read with load_acquire */
    u32 refcount;                       /* atomic: 1 for being alive, 1 a frame owned, 1 a domain_get() */
    u32 pause_count;                    /* toolstack pauses. [lock] */
    spinlock_t lock;
    struct domain *next;                /* host's list, by domid. [domains_lock] */
    u8 uuid[16];
    u64 vm_assist;                      /* bits by VMASST_TYPE_*. atomic */

    u16 weight;                         /* of its vCPUs' share of CPU; 256 is the norm */
    u32 nr_vcpus;
    struct vcpu *vcpu[MAX_VCPUS];       /* fixed after creation; NULL beyond nr_vcpus */

    u32 shared_info_mfn;
    struct shared_info *shared_info;    /* host address; a special frame, never freed before the struct */
    struct mm_state mm;
    struct evtchn_state_of_domain ev;
    struct grant_state gt;
    struct pv_ports ports;
    struct debug_state debug;
    struct pc *pc;                      /* the machine around BACKEND_PC's vCPUs (pc/pc.h); NULL: no PC */
    s32 exit_code;                      /* what a PC guest gave the debug-exit port, as QEMU reports it; -1: nothing. [lock] */
    spinlock_t bus_lock;                /* locked accesses of machine code that cross a page; leaf */
    struct timer watchdog[2];
    u32 watchdog_inuse;
    char crash_reason[CRASH_REASON_MAX];        /* what a user reads; "" unless shutdown_code is SHUTDOWN_crash */
};

struct domain_config {                  /* what the toolstack asks for */
    s32 domid;                          /* -1: next free */
    u32 nr_vcpus, max_pages;
    u32 backend;                        /* enum backend_kind */
    u32 max_evtchn_port, max_grant_frames, max_maptrack_frames;
    u32 weight;                         /* scheduler weight, 0: default 256 */
    u8 uuid[16];
    u8 privileged;
};

/* Creates a paused domain with its vCPUs, shared_info, event and grant state, and no memory. NULL and *err = -errno:
 * -EINVAL (limits), -EEXIST (domid taken), -ENOMEM. */
struct domain *domain_create(struct host *h, const struct domain_config *c, int *err);
struct domain *domain_get(struct host *h, u16 domid);       /* NULL: none, or dead */
void domain_put(struct domain *d);
/* Resolves DOMID_SELF; other domains only for a privileged caller. NULL and *err -ESRCH / -EPERM. Put it after use. */
struct domain *domain_get_remote(struct vcpu *caller, u16 domid, int *err);

void domain_unpause(struct domain *d);
void domain_pause(struct domain *d);                        /* returns when no vCPU of it runs */
void domain_shutdown(struct domain *d, u8 reason);          /* SCHEDOP_shutdown: pauses all vCPUs, tells the lane */
/* The guest did what cannot be answered: shutdown(crash) with a reason that a user can read. */
void domain_crash(struct domain *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void domain_kill(struct domain *d);                         /* destroy, to the end of what can be freed now */

#endif
