/* A PV64 vCPU that executes machine code: the x86 engine below, the hypervisor's state of the vCPU beside it.
 *
 * Owns: struct pv_cpu. Called by: the pCPU loop and dispatch through pv_backend, the x86 engine through pv_ops, xenlike.h. Files: run.c
 * the loop and the clock, traps.c entries into the guest kernel, quick.c hypercalls without leaving guest mode, iret.c the way back and
 * segments, emulate.c privileged instructions, msr.c, cpuid.c, ports.c what those reach, state.c registers from outside. Section numbers
 * are those of Xen's PV ABI notes (docs/design.md).
 *
 * Guest mode (machine/mmu.h). The engine runs in guest mode, so every x86_ops function is called in it. What may wait for other vCPUs or
 * takes a lock (hypercalls, descriptors, page-table writes, emulation, crashes) is done between vcpu_leave_guest and vcpu_enter_guest. The
 * TLB may have been flushed after that; the engine looks at its generation again.
 */
#ifndef XL_PV_PV_H
#define XL_PV_PV_H

#include "hv/debug.h"
#include "hv/host.h"
#include "hv/native.h"

struct pv_cpu {
    struct x86_cpu cpu;
    bool cold;                  /* its hypercall's result comes from Python */
    bool failsafe;              /* VCPUOP_initialise gave it selectors that cannot be loaded: it starts at the failsafe callback */
    bool nmi_masked;            /* from the delivery of an NMI until the next iret */
};

static inline struct pv_cpu *pv_cpu_of(struct x86_cpu *c) { return container_of(c, struct pv_cpu, cpu); }
static inline struct vcpu *pv_vcpu(struct x86_cpu *c) { return c->owner; }
static inline bool pv_assist(const struct vcpu *v, unsigned type) { return read_once(v->domain->vm_assist) >> type & 1; }

extern const struct vcpu_backend pv_backend;
extern const struct x86_ops pv_ops;

/* ---- run.c ------------------------------------------------------------------------------------------------------- */

/* What the guest's work costs besides its instructions, in instructions; on the virtual clock one is 1 ns. */
enum { PV_COST_TRAP = 50, PV_COST_HYPERCALL = 100 };
/* domain_crash with "vCPU n, rip ...: " before the reason; in guest mode or not. The vCPU stops at the end of the instruction. */
void pv_crash(struct vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- traps.c ----------------------------------------------------------------------------------------------------- */

struct pv_bounce {              /* an entry into the guest kernel (section 3.3) */
    u64 rip;                    /* 0: there is no handler, and the domain crashes */
    bool mask;                  /* mask upcalls */
    bool clear_df;
    bool has_error;
    bool failsafe;              /* with the data segment selectors */
    u32 error;
    const char *why;            /* for the crash message; NULL: this exception */
    const struct x86_exception *exception;
};
/* Makes the frame from the registers as they stand, switches to kernel mode, enters at b->rip. False: the domain crashed, registers
 * are as before. */
bool pv_bounce(struct vcpu *v, const struct pv_bounce *b);
/* Enters the failsafe callback: the selectors of the registers as they stand cannot be loaded (section 3.7). */
void pv_failsafe(struct vcpu *v);
/* Delivers NMI and upcall if they may come now (section 3.4). The registers are between two instructions. */
void pv_test_events(struct vcpu *v);
void pv_exception(struct x86_cpu *c, const struct x86_exception *e);    /* an x86_ops.exception */
void pv_soft_int(struct x86_cpu *c, u8 vector);
void pv_syscall(struct x86_cpu *c);
void pv_sysenter(struct x86_cpu *c);

/* ---- quick.c ----------------------------------------------------------------------------------------------------- */

#define PV_QUICK (1ul << __HYPERVISOR_stack_switch | 1ul << __HYPERVISOR_xen_version | 1ul << __HYPERVISOR_set_segment_base)
bool pv_quick_syscall(struct x86_cpu *c, u64 next, u64 flags);  /* an x86_ops.quick_syscall */

/* ---- iret.c ------------------------------------------------------------------------------------------------------ */

void pv_toggle_mode(struct vcpu *v);    /* kernel <-> user: page tables and GS bases. x86_derive is the caller's */
void pv_set_kernel_segments(struct x86_cpu *c);         /* CS and SS as at every entry */
s64  pv_iret(struct vcpu *v);
/* The segment that sel names, if register seg of CPL 3 can be loaded with it. Not in guest mode. */
bool pv_segment(struct vcpu *v, unsigned seg, u16 sel, struct x86_seg *out);
bool pv_descriptor(struct x86_cpu *c, u16 sel, bool two, u64 desc[2]);  /* an x86_ops.descriptor */
void pv_load_user_gs(struct vcpu *v, u16 sel);

/* ---- emulate.c, msr.c, cpuid.c, ports.c: not in guest mode ------------------------------------------------------- */

enum pv_emulated {
    PV_NOT_EMULATED,            /* the exception is the guest's */
    PV_EMULATED,                /* done; rip is that of the next instruction */
    PV_FAULTED,                 /* *e is what the guest gets instead */
};
/* The instruction at rip raised *e, #GP(0) or #UD (section 3.8). */
enum pv_emulated pv_emulate(struct vcpu *v, struct x86_exception *e);
bool pv_rdmsr(struct vcpu *v, u32 msr, u64 *value);     /* false: #GP(0) */
bool pv_wrmsr(struct vcpu *v, u32 msr, u64 value);
void pv_cpuid(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4]);    /* an x86_ops.cpuid; anywhere */
u32  pv_port_read(struct vcpu *v, u16 port, unsigned size);
void pv_port_write(struct vcpu *v, u16 port, unsigned size, u32 value);
void pv_hypercall_page(u8 *page);       /* 4096 bytes, 128 stubs (section 2.1) */

/* ---- state.c ----------------------------------------------------------------------------------------------------- */

#define PV_CR0 (X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG)
#define PV_CR4 (X86_CR4_PAE | X86_CR4_MCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)
#define PV_CR4_GUEST (X86_CR4_TSD | X86_CR4_DE)         /* what a guest may set */
#define PV_RFLAGS 0x3f7fd5ul                            /* flags that exist */
void pv_reset(struct vcpu *v);          /* section 1.7, rip, rsp and rsi apart */
void pv_set_context(struct vcpu *v, const struct vcpu_guest_context *c);
void pv_get_regs(const struct vcpu *v, struct cpu_user_regs *r);
void pv_set_regs(struct vcpu *v, const struct cpu_user_regs *r);        /* general ones, rip, rflags; not the selectors */

#endif
