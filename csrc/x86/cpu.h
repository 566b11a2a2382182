/* An x86 CPU as software sees it, and what runs it.
 *
 * Owns: struct x86_cpu, the architectural state of one (virtual) CPU; the calls that run it. Called by: what makes it the CPU of
 * something: pv/ (a PV vCPU), bare.c (a machine of plain RAM: tests, fuzzing), pc/ (a PC's). It knows nothing of domains. Locks: none:
 * a CPU belongs to the thread that runs it. Sources: Intel SDM vol. 1-3; section numbers in comments are the SDM's.
 *
 * What a privileged event *does* stands behind struct x86_ops; what the architecture says about when it happens stands here.
 */
#ifndef XL_X86_CPU_H
#define XL_X86_CPU_H

#include <setjmp.h>

#include "base/lock.h"
#include "base/types.h"
#include "machine/tlb.h"

/* ---- names ------------------------------------------------------------------------------------------------------- */

enum { X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI, X86_R8, X86_R9, X86_R10, X86_R11, X86_R12, X86_R13,
       X86_R14, X86_R15,
       X86_ZERO,                /* slot that always reads 0: "no base", "no index" */
       X86_RIP,                 /* slot of rip, so that rip-relative operands are like any other */
       X86_NR_SLOTS };
enum { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_NR_SEGS };

enum { X86_CF = 1 << 0, X86_FLAG1 = 1 << 1, X86_PF = 1 << 2, X86_AF = 1 << 4, X86_ZF = 1 << 6, X86_SF = 1 << 7, X86_TF = 1 << 8,
       X86_IF = 1 << 9, X86_DF = 1 << 10, X86_OF = 1 << 11, X86_IOPL = 3 << 12, X86_NT = 1 << 14, X86_RF = 1 << 16, X86_VM = 1 << 17,
       X86_AC = 1 << 18, X86_VIF = 1 << 19, X86_VIP = 1 << 20, X86_ID = 1 << 21 };
enum { X86_ARITH_FLAGS = X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF };

enum { X86_DE = 0, X86_DB = 1, X86_NMI = 2, X86_BP = 3, X86_OFLOW = 4, X86_BR = 5, X86_UD = 6, X86_NM = 7, X86_DF_EXC = 8, X86_TS = 10,
       X86_NP = 11, X86_SS_EXC = 12, X86_GP = 13, X86_PAGE = 14, X86_MF = 16, X86_AC_EXC = 17, X86_MC = 18, X86_XM = 19 };

#define X86_CR0_PE (1ul << 0)
#define X86_CR0_MP (1ul << 1)
#define X86_CR0_EM (1ul << 2)
#define X86_CR0_TS (1ul << 3)
#define X86_CR0_ET (1ul << 4)
#define X86_CR0_NE (1ul << 5)
#define X86_CR0_WP (1ul << 16)
#define X86_CR0_AM (1ul << 18)
#define X86_CR0_NW (1ul << 29)
#define X86_CR0_CD (1ul << 30)
#define X86_CR0_PG (1ul << 31)
#define X86_CR4_VME (1ul << 0)
#define X86_CR4_PVI (1ul << 1)
#define X86_CR4_TSD (1ul << 2)
#define X86_CR4_DE (1ul << 3)
#define X86_CR4_PSE (1ul << 4)
#define X86_CR4_PAE (1ul << 5)
#define X86_CR4_MCE (1ul << 6)
#define X86_CR4_PGE (1ul << 7)
#define X86_CR4_PCE (1ul << 8)
#define X86_CR4_OSFXSR (1ul << 9)
#define X86_CR4_OSXMMEXCPT (1ul << 10)
#define X86_EFER_SCE (1ul << 0)
#define X86_EFER_LME (1ul << 8)
#define X86_EFER_LMA (1ul << 10)
#define X86_EFER_NXE (1ul << 11)

/* ---- state ------------------------------------------------------------------------------------------------------- */

struct x86_cpu;
struct x86_insn;

struct x86_seg {                /* a segment register with its hidden part (vol. 3, 3.4.3) */
    u16 sel;
    u16 attr;                   /* descriptor bits 40-47 in bits 0-7 (type, S, DPL, P), bits 52-55 in bits 8-11 (AVL, L, D/B, G) */
    u32 limit;                  /* in bytes, G applied */
    u64 base;
};
enum { X86_ATTR_S = 1 << 4, X86_ATTR_P = 1 << 7, X86_ATTR_L = 1 << 9, X86_ATTR_DB = 1 << 10, X86_ATTR_G = 1 << 11 };
static inline unsigned x86_attr_type(u16 attr) { return attr & 15; }
static inline unsigned x86_attr_dpl(u16 attr) { return attr >> 5 & 3; }
#define X86_ATTR_UNUSABLE (1 << 15)     /* null selector (ours; no descriptor bit) */

struct x86_dtr { u64 base; u32 limit; };

struct x86_exception {
    u8 vector;
    bool has_error;
    bool soft;                  /* int n, int3, into: DPL of the gate is checked; rip is that of the next instruction */
    u32 error;
    u64 cr2;                    /* #PF: the faulting address; #DB: bits to be set in DR6 */
};

struct x86_fx {                 /* FXSAVE64 image (vol. 1, 10.5.1); the FPU's only copy */
    u16 fcw, fsw;
    u8 ftw, pad0;               /* abridged: bit set = not empty, by physical register */
    u16 fop;
    u64 fip, fdp;
    u32 mxcsr, mxcsr_mask;
    struct { u8 b[16]; } st[8]; /* by stack position: ST(0) first; MMi is the physical register's low 8 bytes */
    struct { u8 b[16]; } xmm[16];
    u8 pad1[96];
} __attribute__((aligned(16)));

/* Reasons why x86_run takes the slow road before each instruction. */
enum { X86_SLOW_TF = 1, X86_SLOW_BREAKPOINT = 2, X86_SLOW_SHADOW = 4, X86_SLOW_PENDING_DB = 8, X86_SLOW_STOP = 16, X86_SLOW_DEBUGGER = 32,
       X86_SLOW_INTERRUPT = 64, X86_SLOW_SHADOW_SS = 128 /* interp.c: the shadow is of a load of SS */, X86_SLOW_WROTE = 256 /* x86_wrote_code */ };

struct x86_cpu {
    u64 r[X86_NR_SLOTS];        /* general registers by number; r[X86_ZERO] is 0; r[X86_RIP] of the instruction under way */
    u64 rflags;                 /* always complete, bit 1 set */
    u64 next_rip;               /* where the instruction under way goes on; branches set it, the loop copies it to rip */
    u64 lin_base[X86_NR_SEGS];  /* what is added to offsets: seg[].base, or 0 for ES, CS, SS, DS in 64-bit mode */
    struct tlb *tlb;            /* [cpl 3 set or kernel set: tlb_set] */
    u32 tlb_set;                /* index of the TLB's set for accesses now. bare, pc: cpl == 3; pv: user mode */
    u8 mode;                    /* code size now: 16, 32 or 64 */
    u8 cpl;
    u8 long_mode;               /* EFER.LMA */
    u8 real;                    /* real or virtual-8086 mode. (tlb_set .. real are one word that interp.c compares as such) */
    u32 slow;                   /* X86_SLOW_* */
    u8 strict;                  /* every data access takes the slow road: alignment checks or data breakpoints are on (X86_STRICT_*) */
    const u32 *attention;       /* x86_run returns X86_ATTENTION soon after this becomes nonzero */
    u64 retired;                /* instructions completed since the CPU was made; faulting ones do not count. rep: see exec_string.c */
    u64 limit;                  /* x86_run's budget, as a value of retired; each delivery of an exception or interrupt lowers it by one */
    bool roughly;               /* the budget is a slice of real time: bt_run may end up to a block's length before it. The owner sets it, and
                                 * gives none that small, but where slow is set */
    const struct x86_insn *insn;/* the one under way (valid in ops called from it, and in ops->exception of what it raised); NULL: fetch failed */
    const struct x86_ops *ops;
    void *owner;                /* whose CPU it is; the ops know what that is. hv/: a struct vcpu */
    jmp_buf *unwind;            /* of the x86_run under way: where x86_raise goes */
    struct x86_exception exc;   /* what x86_raise raised */

    struct x86_seg seg[X86_NR_SEGS], ldtr, tr;
    struct x86_dtr gdtr, idtr;
    u64 cr0, cr2, cr3, cr4, cr8, efer;
    u64 dr[8];                  /* 4 and 5 unused */
    u64 pending_db;             /* DR6 bits of a #DB trap to be taken after this instruction */
    u64 star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, tsc_aux, pat, apic_base;
    u64 tsc_offset;             /* added to ops->tsc: what writes to IA32_TIME_STAMP_COUNTER made of it */
    u64 pdpte[4];               /* PAE paging without long mode: loaded by mov cr3 (vol. 3, 4.4.1) */
    u64 features;               /* X86_FEAT_* that decode and CPUID offer */
    bool halted, shutdown;
    bool in_delivery;           /* interp.c: an event is being delivered; what that raises belongs to the same unit of budget */
    u8 delivering;              /* vector + 1 of the exception being delivered, for #DF; 0: none */

    /* Code that is fetched without further checks: rip in [start, start + len) stands at host address host + (rip - start), and 16 bytes
     * from there are in the same page and in CS's limit. Valid while tag is the TLB's generation (0: invalid) and context that of the CPU;
     * x86_derive and x86_tlb_flush* invalidate. */
    struct { u64 start, len; const u8 *host; u64 key, context, va; u32 tag; } code;
    struct icache *icache;      /* decoded instructions (interp.c); NULL: x86_run decodes each time */
    spinlock_t *bus_lock;       /* of the machine: locked accesses that cross a page take it; NULL: the CPU is alone */
    u64 undecoded;              /* #UD because we have no such form */
    struct codemap *codemap;    /* which of the memory holds translated code: stores by a slow road tell it. NULL: none does */
    struct { const u8 *p; u32 n; } wrote[2];    /* X86_SLOW_WROTE: what was stored where translated code is; n 0: nothing */
    struct bt *bt;              /* the translator's half (bt/bt.h). NULL: none; bt_run interprets */
    struct x86_fx fx;
};
enum { X86_STRICT_ALIGN = 1, X86_STRICT_BREAKPOINT = 2, X86_STRICT_DEBUGGER = 4 };

struct x86_fault {
    u64 va;
    u32 error;                  /* PFEC_* (machine/frame.h) */
    bool mmio;                  /* no fault: the page is there and allowed, but a device's, at guest-physical pa (page-aligned): ops->mmio */
    u64 pa;
};

/* Guest-physical memory for the CPU's own paging (paging.c): host address of the page at guest-physical `pa` (page-aligned), NULL: none. */
typedef u8 *x86_phys_fn(struct x86_cpu *c, u64 pa, bool write);

/* What differs between a bare machine, a PV vCPU and a PC. Every function may x86_raise unless it says otherwise. */
struct x86_ops {
    const char *name;
    /* The TLB missed: host address of the page of va (canonical) for `access` (enum mmu_access) in the current mode, TLB filled; NULL
     * and *f: a page fault. Does not raise. */
    u8 *(*page)(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f);
    /* A store of `size` bytes that page() refused. NULL: none. compare: *old is what memory must hold (else *old := what it holds, nothing
     * stored). True: done as an instruction would. PV: writable page tables. Does not raise. */
    bool (*store)(struct x86_cpu *c, const struct x86_fault *f, unsigned size, bool compare, u64 *old, u64 value);
    /* An access of 1 to 8 bytes in one page where page() said mmio. Returns what a read finds. NULL: there are no devices. Does not raise. */
    u64 (*mmio)(struct x86_cpu *c, u64 pa, unsigned size, bool write, u64 value);
    /* Delivers c->exc: c->r[X86_RIP] is the address to return to. May be called outside of an instruction. */
    void (*exception)(struct x86_cpu *c, const struct x86_exception *e);
    void (*interrupt)(struct x86_cpu *c);       /* X86_SLOW_INTERRUPT: an interrupt waits and IF allows it. NULL: none */
    void (*soft_int)(struct x86_cpu *c, u8 vector);     /* int n, int3, into, int1; rip of the next instruction is c->next_rip */
    void (*syscall)(struct x86_cpu *c);         /* c->next_rip: the return address; sets c->next_rip */
    /* The same, of a kernel's hypercall, by translated code: the return address is next, rflags are `flags`; of c's registers those that the
     * C ABI has callees save are not up to date, and no vector or x87 register may be touched. True: done, nothing but other general
     * registers and segments' bases has changed, and nothing is to be looked at. False: nothing has happened. quick: for which numbers in rax,
     * below 64, it may do something. */
    bool (*quick_syscall)(struct x86_cpu *c, u64 next, u64 flags);
    u64 quick;
    void (*sysenter)(struct x86_cpu *c);
    /* Both halves of the descriptor that sel names (bytes 8-15 only for 16-byte system descriptors). False: beyond the table. */
    bool (*descriptor)(struct x86_cpu *c, u16 sel, bool two, u64 desc[2]);
    void (*cpuid)(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4]);
    u64 (*tsc)(struct x86_cpu *c);
    void (*rdmsr)(struct x86_cpu *c, u32 msr);  /* CPL was checked; result to edx:eax */
    void (*wrmsr)(struct x86_cpu *c, u32 msr, u64 value);
    u32 (*in)(struct x86_cpu *c, u16 port, unsigned size);      /* permission was checked */
    void (*out)(struct x86_cpu *c, u16 port, unsigned size, u32 value);
    bool (*debug)(struct x86_cpu *c);           /* X86_SLOW_DEBUGGER: before each instruction. True: x86_run returns X86_DEBUGGER */
    void (*watch)(struct x86_cpu *c, u64 va, unsigned size, bool write);        /* X86_STRICT_DEBUGGER: a data access was made */
    void (*segment_loaded)(struct x86_cpu *c, unsigned seg);    /* NULL: nobody cares */
    void (*cr8_written)(struct x86_cpu *c);     /* NULL: nobody cares */
    /* The page at host address p begins to hold translated code, and c->codemap says so already: when it returns, no TLB has a write entry
     * for it. NULL: no page can. */
    void (*code_page)(struct x86_cpu *c, const u8 *p);
    /* A store of c's took away what was translated of the page at p: before c's next instruction no other CPU may run translations made before.
     * In the middle of an instruction. NULL: there is no other CPU. */
    void (*code_changed)(struct x86_cpu *c, const u8 *p);
    x86_phys_fn *phys;          /* what PDPTEs are read through; also: x86_derive sets tlb_set by CPL. NULL (PV): tlb_set is the owner's business */
};

/* ---- running ----------------------------------------------------------------------------------------------------- */

enum x86_exit {
    X86_BUDGET,                 /* so many instructions have retired */
    X86_ATTENTION,              /* *c->attention is nonzero */
    X86_STOPPED,                /* x86_stop() */
    X86_HALTED,                 /* hlt; or entered halted */
    X86_SHUTDOWN,               /* triple fault */
    X86_DEBUGGER,               /* ops->debug said so; the instruction at rip has not run */
};

/* Runs until one of the above; at most `budget` instructions. State is precise at every return. The only call that may not nest. */
enum x86_exit x86_run(struct x86_cpu *c, u64 budget);
/* x86_run returns X86_STOPPED when the instruction under way has ended (or its exception is delivered). */
static inline void x86_stop(struct x86_cpu *c) { c->slow |= X86_SLOW_STOP; }
/* Tells c->codemap of the last stores into translated code (c->wrote), which are done. */
void x86_wrote_code(struct x86_cpu *c);

/* What x86_run is made of, for the translator, which puts blocks between the instructions (bt/run.c). begin sets c->limit; the caller sets
 * c->unwind to where x86_raise goes and calls raised there. between is due when slow or attention is nonzero or the limit is reached: true: the run
 * ends with *exit. one: one instruction, with c->slow zero. c->icache is not NULL. */
void x86_run_begin(struct x86_cpu *c, u64 budget);
bool x86_run_between(struct x86_cpu *c, enum x86_exit *exit);
void x86_run_one(struct x86_cpu *c);
/* Makes a decoded instruction raise #UD or #GP when executed, where real mode or the level forbids it as a whole. */
void x86_restrict(struct x86_insn *i, bool real, u8 cpl);
void x86_run_raised(struct x86_cpu *c);

/* State after RESET (vol. 3, table 9-1), except what is no part of the architecture: features, tlb, ops, owner, attention, icache, codemap, bt, counters,
 * a debugger's hold. */
void x86_reset(struct x86_cpu *c);
/* After rflags (TF, RF, VM, AC), cr0, EFER, dr7, cpl or segment registers were changed, by an instruction or from outside: recomputes
 * what is derived (mode, real, long_mode, lin_base, strict, slow, tlb_set) and forgets the code page. */
void x86_derive(struct x86_cpu *c);
void x86_debug_derive(struct x86_cpu *c);       /* debug.c: strict and slow from DR7 */
/* The part of it that follows from cpl, rflags, cr0 and dr7. */
static inline void x86_derive_level(struct x86_cpu *c)
{
    if (c->ops->phys)
        c->tlb_set = c->cpl == 3;
    bool align = c->cpl == 3 && c->cr0 & X86_CR0_AM && c->rflags & X86_AC;      /* vol. 3, 6.15, #AC */
    c->strict = (c->strict & ~X86_STRICT_ALIGN) | (align ? X86_STRICT_ALIGN : 0);
    c->slow = (c->slow & ~X86_SLOW_TF) | (c->rflags & (X86_TF | X86_RF) ? X86_SLOW_TF : 0);
    if (unlikely(c->dr[7] & 0xff || c->strict & X86_STRICT_BREAKPOINT || c->slow & X86_SLOW_BREAKPOINT))
        x86_debug_derive(c);            /* a breakpoint is enabled, or was */
    c->code.tag = 0;
}

/* The instruction at rip is in the page that c->code has, whatever the context. */
static inline bool x86_has_code(const struct x86_cpu *c, u64 rip)
{
    return rip - c->code.start < c->code.len && c->code.tag == c->tlb->generation;
}

/* Makes an FXSAVE image from outside (guest memory, a snapshot) fit for c->fx: reserved bits cleared, fsw.ES consistent. exec_fxsave.c */
void x86_fx_sanitize(struct x86_fx *fx);

u64 x86_icache_bytes(void);             /* of memory (zeroed, 64-byte aligned) to set c->icache to */

/* Ends the instruction under way with an exception: nothing of it may have been stored yet. */
_Noreturn void x86_raise(struct x86_cpu *c, unsigned vector);
_Noreturn void x86_raise_error(struct x86_cpu *c, unsigned vector, u32 error);
_Noreturn void x86_raise_page_fault(struct x86_cpu *c, const struct x86_fault *f);
_Noreturn void x86_unwind(struct x86_cpu *c, const struct x86_exception *e);

/* ---- segments, exceptions, paging of a CPU that has them for itself (bare.c, pc/) ---------------------------------- */

/* Loads a data segment register (or SS) with all checks (mov sreg, pop sreg, lds; vol. 2 MOV). segment.c */
void x86_load_segment(struct x86_cpu *c, unsigned seg, u16 sel);
/* Fills the hidden part from a descriptor without checks. */
void x86_seg_from_descriptor(struct x86_seg *s, u16 sel, u64 desc);
/* Delivers through the IDT of the current mode (real, protected, long), with #DF and shutdown. An x86_ops.exception. exception.c */
void x86_deliver_idt(struct x86_cpu *c, const struct x86_exception *e);
void x86_soft_int_idt(struct x86_cpu *c, u8 vector);    /* an x86_ops.soft_int */
void x86_interrupt_idt(struct x86_cpu *c, u8 vector);   /* an external interrupt or NMI, with the vector its controller gave */
void x86_syscall_native(struct x86_cpu *c);     /* SYSCALL by STAR, LSTAR, FMASK: an x86_ops.syscall */
void x86_sysenter_native(struct x86_cpu *c);
bool x86_descriptor_native(struct x86_cpu *c, u16 sel, bool two, u64 desc[2]);  /* from GDT and LDT in linear memory */
void x86_rdmsr_native(struct x86_cpu *c, u32 msr);      /* those that struct x86_cpu holds; others #GP(0) */
void x86_wrmsr_native(struct x86_cpu *c, u32 msr, u64 value);
/* CPUID of the features in c->features (SDM vol. 2, CPUID): what every ops->cpuid starts from. cpuid.c */
void x86_cpuid_native(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4]);
u64 x86_features_supported(void);       /* X86_FEAT_* that this build on this host can execute */

/* One walk in the current paging mode (none, 32-bit, PAE, 4-level) with A/D, NX, WP, U/S, large pages; fills the TLB. An x86_ops.page
 * is this with its own phys. paging.c */
u8 *x86_page_walk(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f, x86_phys_fn *phys);
enum { X86_PHYS_BITS = 40 };    /* MAXPHYADDR: address bits above it are reserved in page tables and cr3; CPUID leaf 80000008h says so */
/* Loads c->pdpte[] from the table at cr3 through ops->phys (vol. 3, 4.4.1). False: a reserved bit is set, nothing was loaded: #GP(0). */
bool x86_load_pdptes(struct x86_cpu *c, u64 cr3);
/* Forgets translations, of data and of code: all (mov cr3; changes of cr0.PG/WP, cr4.PAE/PSE/PGE, EFER.NXE), those of one page of 4 KiB,
 * or those of the page of va, whatever its size (invlpg). Who changes c->tlb otherwise: a new generation is noticed; after clearing single entries set c->code.tag = 0. */
void x86_tlb_flush(struct x86_cpu *c);
void x86_tlb_flush_page(struct x86_cpu *c, u64 va);
void x86_tlb_flush_linear(struct x86_cpu *c, u64 va);

/* Debug registers (vol. 3, 17.2). debug.c. DR6 bits of the enabled breakpoints that an access hits; kind as R/W in DR7. */
enum { X86_DR_EXEC = 0, X86_DR_WRITE = 1, X86_DR_IO = 2, X86_DR_ACCESS = 3, X86_DR6_BD = 1 << 13, X86_DR6_BS = 1 << 14, X86_DR7_GD = 1 << 13 };
u64 x86_debug_match(const struct x86_cpu *c, u64 lin, unsigned size, unsigned kind);
/* The instruction under way makes an access: its breakpoints become a pending trap. For in, out, ins, outs: kind X86_DR_IO (CR4.DE). */
void x86_debug_access(struct x86_cpu *c, u64 lin, unsigned size, unsigned kind);

enum {                          /* feature bits of ours, one a row of docs; forms.def and cpuid.c use them */
    X86_FEAT_FPU = 1 << 0, X86_FEAT_MMX = 1 << 1, X86_FEAT_SSE = 1 << 2, X86_FEAT_SSE2 = 1 << 3, X86_FEAT_SSE3 = 1 << 4, X86_FEAT_SSSE3 = 1 << 5,
    X86_FEAT_SSE41 = 1 << 6, X86_FEAT_SSE42 = 1 << 7, X86_FEAT_POPCNT = 1 << 8, X86_FEAT_BMI1 = 1 << 9, X86_FEAT_BMI2 = 1 << 10,
    X86_FEAT_LZCNT = 1 << 11, X86_FEAT_MOVBE = 1 << 12, X86_FEAT_ADX = 1 << 13, X86_FEAT_CX16 = 1 << 14, X86_FEAT_RDTSCP = 1 << 15,
    X86_FEAT_LM = 1 << 16, X86_FEAT_NX = 1 << 17, X86_FEAT_SEP = 1 << 18, X86_FEAT_SYSCALL = 1 << 19, X86_FEAT_RDRAND = 1 << 20,
    X86_FEAT_AES = 1 << 21, X86_FEAT_PCLMUL = 1 << 22, X86_FEAT_CLFLUSH = 1 << 23,
};

#endif
