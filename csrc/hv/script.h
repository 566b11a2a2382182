/* The script backend: a vCPU whose instruction stream is a list of steps in C.
 *
 * Owns: struct script. Called by: pCPU loop (run), xenlike.h (load). The subject of scheduler tests, interleavings, fuzzing
 * and C-side benchmarks: the hypervisor sees an ordinary vCPU. Lock: none, a script belongs to its vCPU.
 */
#ifndef XL_HV_SCRIPT_H
#define XL_HV_SCRIPT_H

#include "base/types.h"

/* name, what it does */
#define SCRIPT_OPS(X)                                                                                   \
    X(END,        "VCPUOP_down on itself; the last vCPU's END powers the domain off. So does the end of the list") \
    X(COMPUTE,    "burn a ns of CPU (preemptible)")                                                     \
    X(HYPERCALL,  "hypercall a with arguments b c d e f; the result goes to regs[r]")                   \
    X(LOAD,       "regs[r] = 8 bytes at guest address a; a fault is counted, not fatal")                \
    X(STORE,      "8 bytes b at guest address a; likewise")                                             \
    X(SET,        "regs[r] = a")                                                                        \
    X(ADD,        "regs[r] += a")                                                                       \
    X(LOOP,       "if --regs[r] != 0 go to step a")                                                     \
    X(JUMP_IF,    "if (regs[r] == b) go to step a")                                                     \
    X(JUMP,       "go to step a")                                                                       \
    X(YIELD,      "SCHEDOP_yield")                                                                      \
    X(BLOCK,      "SCHEDOP_block")                                                                      \
    X(POLL,       "SCHEDOP_poll on port a until system time b (0: for ever), by 28 bytes at guest address c; result in regs[r]") \
    X(ACK,        "take the upcall as a kernel would: clear pending, scan, clear the ports' bits; regs[r] += ports") \
    X(WAIT,       "ACK until regs[r] has grown by a, BLOCKing between: waits for a events")             \
    X(STAMP,      "samples[regs[r]++ % a] = now - the host's stamp; for latency benchmarks")            \
    X(MARK,       "host stamp = now")                                                                   \
    X(TRACE,      "trace MARK a b")                                                                     \
    X(NOW,        "regs[r] = system time + a")

enum script_op {
#define X(name, doc) SCRIPT_##name,
    SCRIPT_OPS(X)
#undef X
    SCRIPT_NR_OPS
};

enum { SCRIPT_REGS = 16, SCRIPT_MAX_STEPS = 1 << 16, SCRIPT_MAX_SAMPLES = 1 << 20 };

struct script_step {
    u16 op;             /* enum script_op */
    u16 r;              /* register, < 16 */
    u16 regmask;        /* bit n: operand n (a = 0, b = 1, ...) is the number of a register, not a value */
    u16 pad;
    u64 a, b, c, d, e, f;
};

#ifndef XL_CDEF
struct vcpu;

struct script {                 /* [self] */
    struct script_step *steps;  /* arena memory */
    u32 nr_steps, pc;
    u64 regs[SCRIPT_REGS];
    u64 burn_left;              /* of the COMPUTE under way, ns */
    u64 wait_left;              /* of the WAIT under way, events */
    bool cold;                  /* a HYPERCALL waits for Python; its result goes to ... */
    u16 cold_reg;
    u64 faults, steps_run;
    u64 *samples; u32 nr_samples;
};

/* Gives v (BACKEND_SCRIPT) a copy of `n` steps and room for nr_samples; registers 0, first step next. -EINVAL: a bad step or
 * count, another backend; -EBUSY: v could be running now; -ENOMEM. */
int script_load(struct vcpu *v, const struct script_step *steps, u32 n, u32 nr_samples);
/* Virtual clock: each step costs 100 ns, and a hypercall what it charges itself. A vCPU without a script is one at its end. */
extern const struct vcpu_backend script_backend;
#endif
#endif
