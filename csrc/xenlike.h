/* The functions that Python may call: few, coarse, documented.
 *
 * Owns: nothing; the face of the C core. The only importer of the compiled module is xenlike/engine.py.
 * Every function that returns int or s64 returns -errno (Xen's) on failure. Unless it says otherwise a function is called on the
 * lane (the one Python thread of a host), never blocks, and needs no lock of the caller.
 * cffi reads this file and the headers it names after the C preprocessor, with XL_CDEF defined.
 */
#ifndef XL_XENLIKE_H
#define XL_XENLIKE_H

#include "base/stats.h"
#include "base/trace.h"
#include "hv/lane.h"
#include "hv/script.h"
#include "hv/states.h"
#include "io/blk.h"
#include "machine/frame.h"
#include "xen/xen.h"
#ifndef XL_CDEF
#include "hv/domain.h"
#include "hv/host.h"
#include "hv/hypercall.h"
#else
struct host;
struct domain_config { s32 domid; u32 nr_vcpus, max_pages, backend, max_evtchn_port, max_grant_frames, max_maptrack_frames, weight;
                       u8 uuid[16]; u8 privileged; ...; };
/* What Python looks at after each hypercall; cffi finds the offsets. */
struct vcpu { u32 exit_work; u32 pause_flags; u32 cr3_mfn, user_cr3_mfn; u64 burn_ns; ...; };
static const s64 HYPERCALL_COLD;
#endif

/* ---- host ------------------------------------------------------------------------------------------------------------ */

struct xl_host_config {
    u64 memory;                 /* bytes of machine memory (sparse) */
    u32 nr_pcpus;               /* pCPU threads with the real clock; the virtual clock has one pCPU whatever this says */
    u32 virtual_clock;          /* 0 real, 1 virtual */
    u64 seed;
    u64 wall_ns;                /* virtual clock: UTC at start, 0: 2020-01-01 */
    u32 translate;              /* machine code runs in the binary translator where xl_bt_unavailable() is NULL, else in the interpreter */
    u32 bt_options;             /* XL_BARE_BT_*: for tests */
};
const char *xl_bt_unavailable(void);            /* why this host cannot translate ("the CPU lacks BMI2"); NULL: it can */
struct host *xl_host_create(const struct xl_host_config *c, int *err);     /* -EINVAL, -ENOMEM */
void xl_host_destroy(struct host *h);           /* kills all domains, stops threads, frees everything. Blocks */
u64  xl_now(struct host *h);                    /* system time, ns */
void xl_advance(struct host *h, u64 ns);        /* virtual clock: charges ns of Python guest work */
u64  xl_random(struct host *h);

/* ---- the lane -------------------------------------------------------------------------------------------------------- */

/* Runs the lane's pCPU and fills at most n exits; at least one (EXIT_IDLE / EXIT_STALLED when there is nothing). Returns how many. */
int  xl_run(struct host *h, struct lane_exit *exits, int n);
/* Real clock: sleeps until an exit is queued, the descriptor `fd` is readable (-1: none), or system time `deadline`. Releases the GIL.
 * Returns 1 if fd is readable, else 0. */
int  xl_wait(struct host *h, int fd, u64 deadline);
void xl_skip_to(struct host *h, u64 when);      /* virtual clock: nothing runs until `when` */
int  xl_eventfd(struct host *h);                /* becomes readable when an exit is queued: for foreign event loops. Any thread may write it */
void xl_kick(struct host *h);                   /* makes xl_wait return; any thread */
int  xl_set_deadline(struct host *h, u64 when); /* EXIT_TIMER at system time `when` (one deadline a host); NEVER: none. -ENOMEM */

/* ---- domains --------------------------------------------------------------------------------------------------------- */

int  xl_domain_create(struct host *h, const struct domain_config *c);      /* domid; -EINVAL -EEXIST -ENOMEM. Paused, no memory */
int  xl_domain_populate(struct host *h, u16 domid, u64 first_pfn, u32 n, u32 *mfns);   /* n fresh frames, M2P set. -ENOMEM -ESRCH */
int  xl_domain_pin_l4(struct host *h, u16 domid, u64 mfn);                  /* MMUEXT_PIN_L4_TABLE by the builder; validates all it reaches */
int  xl_domain_unpause(struct host *h, u16 domid);
int  xl_domain_pause(struct host *h, u16 domid);
int  xl_domain_shutdown(struct host *h, u16 domid, u8 reason);
int  xl_domain_crash(struct host *h, u16 domid, const char *reason);
int  xl_domain_destroy(struct host *h, u16 domid);
int  xl_domain_set_e820(struct host *h, u16 domid, u64 bytes);             /* one RAM entry [0, bytes) */

struct xl_domain_info {
    u16 domid; u8 state, shutdown_code;
    u32 nr_vcpus, tot_pages, max_pages, nr_ports, nr_grants_pinned, nr_maptrack, refcount, shared_info_mfn;
    u64 cpu_ns;
    u64 stats[STAT_NR];
    u8 uuid[16];
    u16 last_vcpu;              /* who crashed it, or asked for its shutdown */
    s32 exit_code;              /* what a PC guest gave its debug-exit port, as QEMU reports it: (value << 1) | 1; -1: nothing */
    char crash_reason[192];
};
int  xl_domain_info(struct host *h, u16 domid, struct xl_domain_info *out);
int  xl_domain_list(struct host *h, u16 *domids, int n);                   /* ascending; returns the count */

/* ---- memory (builder, back ends, tests; not guests) ------------------------------------------------------------------ */

/* Copies through the choke point; a frame that is a page table cannot be written. -EINVAL: not the domain's frame (domid
 * DOMID_INVALID: any allocated frame). offset + n <= 4096. */
int  xl_frame_read(struct host *h, u16 domid, u64 mfn, u32 offset, void *buf, u32 n);
int  xl_frame_write(struct host *h, u16 domid, u64 mfn, u32 offset, const void *buf, u32 n);
/* A window: the frame's bytes for as long as it is open, typed writable meanwhile. NULL: not the domain's, or a page table. */
void *xl_window_open(struct host *h, u16 domid, u64 mfn);
void xl_window_close(struct host *h, u64 mfn);
void *xl_shared_info(struct host *h, u16 domid);                           /* special: never needs a window */
u64  xl_m2p(struct host *h, u64 mfn);
struct xl_frame_info { u16 owner; u8 type, allocated, special, validated, pinned; u32 type_count, count; };
int  xl_frame_info(struct host *h, u64 mfn, struct xl_frame_info *out);
/* Free frames and what is in use, for leak checks. */
struct xl_usage { u64 frames_free, frames_total, arena_in_use; u32 domains, timers; };
void xl_usage(struct host *h, struct xl_usage *out);
/* Checks every TLB of the host: how many write entries point at frames that are not typed writable (must be 0). */
u64  xl_check_tlbs(struct host *h);
/* Recounts every reference that page tables, pins and vCPUs hold: frames and entries that disagree (must be 0). exact: nothing else holds
 * references now (no window, no grant in use). Call it only while no hypercall runs. */
s64  xl_check_frames(struct host *h, u32 exact);

/* ---- vCPUs (Python guests) ------------------------------------------------------------------------------------------- */

struct vcpu *xl_vcpu(struct host *h, u16 domid, u32 id);                   /* NULL: none. Valid until the domain is destroyed */
/* One hypercall of v, which the lane runs. HYPERCALL_COLD: Python must do it and then xl_hypercall_complete. Look at v->exit_work after. */
s64  xl_hypercall(struct vcpu *v, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4);
struct xl_cold { u64 nr; u64 args[5]; };
void xl_cold_args(struct vcpu *v, struct xl_cold *out);
s64  xl_hypercall_complete(struct vcpu *v, s64 rc);                        /* rax, or HYPERCALL_COLD: the next cold entry of a multicall */
int  xl_guest_read(struct vcpu *v, u64 va, void *buf, u64 n, u64 *fault);  /* soft MMU. -EFAULT: fault[0] = va, fault[1] = PFEC_* */
int  xl_guest_write(struct vcpu *v, u64 va, const void *buf, u64 n, u64 *fault);
s64  xl_guest_translate(struct vcpu *v, u64 va, u32 access, u64 *fault);   /* mfn */
/* Guest entry: publishes runstate, and if an unmasked event is pending masks upcalls, counts one, returns 1: run the handler. */
int  xl_vcpu_enter(struct vcpu *v);
/* A step of a Python program begins: charges 100 ns on the virtual clock, sets WORK_park if the slice is over or a timer is due. */
void xl_vcpu_step(struct vcpu *v);
/* The Python vCPU rests (blocked, yielded, slice over, or burn_ns set): back to the scheduler. */
void xl_vcpu_park(struct vcpu *v);
int  xl_vcpu_set_bases(struct vcpu *v, u64 kernel_l4, u64 user_l4);        /* builder: marks the vCPU initialised */
int  xl_vcpu_set_iopl(struct vcpu *v, u32 iopl);                           /* physdev_op. -EINVAL: above 3 */
int  xl_vcpu_set_iobitmap(struct vcpu *v, u64 bitmap, u32 nr_ports);       /* -EINVAL: above 65536 */
void xl_vcpu_up(struct vcpu *v);                                           /* builder: clears VPF_down */
/* Guest code in C for the Python SDK, on the guest's own memory: the 2-level scan of an upcall handler. Fills ports, returns the count. */
int  xl_scan_events(struct vcpu *v, u32 *ports, int max);
/* An atomic exchange on the guest's own memory, which Python cannot do: 1 if *p was `old` and is `new` now. */
int  xl_cmpxchg16(void *p, u16 old, u16 new_value);
void xl_vcpu_stats(struct vcpu *v, u64 *stats, u64 *hypercalls64);
void xl_vcpu_runstate(struct vcpu *v, u64 *out6);                          /* state, entry time, time[4] */

/* ---- vCPUs that run machine code (BACKEND_INTERP, BACKEND_PC): -EINVAL for others -------------------------------------- */

/* The builder's, PV only: what a vCPU starts with (xen-abi 1.7), this rip, rsp and rsi. */
int  xl_vcpu_set_regs(struct vcpu *v, u64 rip, u64 rsp, u64 rsi);
struct xl_cpu_state {           /* all registers; what a crash left behind, what a debugger shows */
    struct cpu_user_regs regs;
    u64 fs_base, gs_base, kernel_gs_base;       /* gs_base: of the mode it is in; the other is what a change of mode brings */
    u64 cr0, cr2, cr3, cr4, efer;               /* cr3: of the mode it is in, PV a machine address */
    u64 dr[8];
    u64 retired;                /* instructions completed */
    u8 kernel_mode, mode;       /* mode: code size, 16, 32 or 64 */
    u8 fx[512];                 /* FXSAVE64 image */
};
/* Waits until v is off its pCPU. -EBUSY: it could run now. */
int  xl_vcpu_state(struct vcpu *v, struct xl_cpu_state *out);
/* General registers, rip, rflags (not its IF and IOPL), the two bases of the mode, the FPU. Selectors and control registers stay. */
int  xl_vcpu_set_state(struct vcpu *v, const struct xl_cpu_state *in);
void xl_hypercall_page(u8 *page);               /* fills 4096 bytes with the stubs (xen-abi 2.1) */

/* ---- PCs (BACKEND_PC): -EINVAL for others ------------------------------------------------------------------------------ */

int  xl_pc_populate(struct host *h, u16 domid, u32 n);  /* n pages of RAM from 0, once. -ENOMEM; -EINVAL: 3 GiB is the most */
/* Copies guest-physical memory. -EINVAL: not all of it is RAM. */
int  xl_pc_read(struct host *h, u16 domid, u64 pa, void *buf, u64 n);
int  xl_pc_write(struct host *h, u16 domid, u64 pa, const void *buf, u64 n);
/* vCPU 0 at a boot protocol's entry: flat 32-bit protected mode, these registers, others 0. */
int  xl_pc_start(struct vcpu *v, u32 eip, u32 eax, u32 ebx);
/* The serial port's host side: takes at most n bytes of output; gives n bytes of input and returns how many there was room for. */
int  xl_pc_output(struct host *h, u16 domid, u8 *buf, u32 n);
int  xl_pc_input(struct host *h, u16 domid, const u8 *buf, u32 n);

/* ---- debuggers: all-stop. Domains that run machine code ---------------------------------------------------------------- */

/* attach stops the domain; detach forgets all points and lets it go on. -EBUSY: attached already, -EINVAL: not attached, other backend. */
int  xl_debug_attach(struct host *h, u16 domid);
int  xl_debug_detach(struct host *h, u16 domid);
int  xl_debug_stop(struct host *h, u16 domid);  /* returns when every vCPU rests; no EXIT_DEBUG comes of it */
/* Adds or removes a point while the domain is stopped (else -EBUSY): kind enum debug_kind, len bytes at va (DEBUG_EXEC: of the first).
 * -EINVAL: kind, len, no such point; -ENOSPC: 64 are set. */
int  xl_debug_break(struct host *h, u16 domid, u32 add, u32 kind, u64 va, u32 len);
int  xl_debug_step(struct vcpu *v);             /* one instruction of v, the others stand; EXIT_DEBUG when it is done */
int  xl_debug_continue(struct host *h, u16 domid);

/* ---- events and grants for the toolstack ----------------------------------------------------------------------------- */

int  xl_evtchn_alloc_unbound(struct host *h, u16 domid, u16 remote);
int  xl_grant_seed(struct host *h, u16 domid, u32 ref, u16 to, u64 mfn);
int  xl_send_virq(struct host *h, u16 domid, u32 vcpu, u32 virq);

/* ---- scripts --------------------------------------------------------------------------------------------------------- */

int  xl_script_load(struct vcpu *v, const struct script_step *steps, u32 n, u32 nr_samples);
int  xl_script_samples(struct vcpu *v, u64 *out, u32 n);
void xl_script_regs(struct vcpu *v, u64 *out16, u64 *faults, u64 *steps_run);

/* ---- trace, snapshot ------------------------------------------------------------------------------------------------- */

int  xl_trace_read(struct host *h, struct trace_record *out, int n);       /* the last n, oldest first */
u64  xl_trace_digest(struct host *h, u32 with_memory);                     /* with_memory: also of all touched frames, by mfn */
void xl_trace_mark(struct host *h, u64 a, u64 b);
void xl_trace_off(struct host *h, u32 off);
/* Virtual clock, or all pCPUs stopped. -EBUSY otherwise. Reset puts back arena and dirty frames. */
int  xl_snapshot(struct host *h);
int  xl_reset(struct host *h);
void xl_snapshot_drop(struct host *h);

/* ---- benchmarks (tests/bench) ---------------------------------------------------------------------------------------- */

#include "bench.h"

#endif
