/* States and flags of vCPUs and domains, shared with Python. Owns nothing but names. */
#ifndef XL_HV_STATES_H
#define XL_HV_STATES_H

/* What executes a vCPU. The rest of the hypervisor cannot tell them apart. */
enum backend_kind { BACKEND_PYTHON = 0, BACKEND_SCRIPT = 1, NR_BACKENDS };

/* pause_flags: the vCPU may run only while this is 0 (Xen's VPF_*). */
enum {
    VPF_blocked  = 1,           /* SCHEDOP_block or poll; an event clears it */
    VPF_down     = 2,           /* VCPUOP_down, or never brought up */
    VPF_paused   = 4,           /* the domain is paused, shut down, or dying */
    VPF_lane     = 8,           /* waits for Python to finish a cold hypercall */
    VPF_initialising = 16,      /* VCPUOP_initialise fills it in: whoever sets it does so alone, and nobody runs a half-made vCPU */
};

/* exit_work (WORK_*): what whoever runs the vCPU must look at after each hypercall and before entering the guest. */
enum {
    WORK_park   = 1,            /* pause_flags may be nonzero or the slice is over: give the pCPU back */
    WORK_upcall = 2,            /* an unmasked event is pending: deliver the upcall */
};

enum { MAX_VCPUS = 128 };       /* of a domain */

enum domain_state { DOM_paused_new, DOM_running, DOM_shutdown, DOM_dying, DOM_dead };

#endif
