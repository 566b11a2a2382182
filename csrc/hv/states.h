/* States and flags of vCPUs and domains, shared with Python. Owns nothing but names. */
#ifndef XL_HV_STATES_H
#define XL_HV_STATES_H

/* What executes a vCPU. The rest of the hypervisor cannot tell them apart. */
enum backend_kind { BACKEND_PYTHON = 0, BACKEND_SCRIPT = 1, BACKEND_INTERP = 2, BACKEND_PC = 3, NR_BACKENDS };

/* pause_flags: the vCPU may run only while this is 0 (Xen's VPF_*). */
enum {
    VPF_blocked  = 1,           /* SCHEDOP_block or poll; an event clears it */
    VPF_down     = 2,           /* VCPUOP_down, or never brought up */
    VPF_paused   = 4,           /* the domain is paused, shut down, or dying */
    VPF_lane     = 8,           /* waits for Python to finish a cold hypercall */
    VPF_debug    = 32,          /* a debugger has stopped it */
    VPF_initialising = 16,      /* VCPUOP_initialise fills it in: whoever sets it does so alone, and nobody runs a half-made vCPU */
};

/* exit_work (WORK_*): what whoever runs the vCPU must look at after each hypercall and before entering the guest. */
enum {
    WORK_park   = 1,            /* pause_flags may be nonzero or the slice is over: give the pCPU back */
    WORK_upcall = 2,            /* an unmasked event is pending: deliver the upcall */
    WORK_flush  = 4,            /* machine code: leave guest mode and enter it again, somebody waits for that */
    WORK_code   = 8,            /* machine code, set by itself: it has changed translated code, and waits for the others before it goes on */
};

/* Debuggers (xl_debug_*): what a point watches; why the domain stopped. */
enum debug_kind { DEBUG_EXEC, DEBUG_WRITE, DEBUG_READ, DEBUG_ACCESS, NR_DEBUG_KINDS };
enum debug_reason { DEBUG_BREAKPOINT, DEBUG_WATCHPOINT, DEBUG_STEPPED };

enum { MAX_VCPUS = 128 };       /* of a domain */
enum { PC_MAX_VCPUS = 8 };      /* of a plain PC: what flat logical destinations can name */

enum domain_state { DOM_paused_new, DOM_running, DOM_shutdown, DOM_dying, DOM_dead };

#endif
