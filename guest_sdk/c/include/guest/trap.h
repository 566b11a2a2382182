/*
 * Exceptions: the trap table, C handlers, and trap_try, which runs code that may fault and tells how.
 *
 * Vectors 0 to 31 are registered at start; a trap without a handler prints the registers and crashes the domain. Handlers run with
 * events masked, on the stack that the trap interrupted (or the kernel stack, from user mode), and return where regs says: they may
 * change any register.
 */
#ifndef GUEST_TRAP_H
#define GUEST_TRAP_H

#include <guest/types.h>

/* Pushed by trap_entry.S below Xen's frame. The order is that of the ABI's struct cpu_user_regs. */
struct trap_regs {
    u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    u32 error;  /* 0 where the trap has no error code */
    u32 vector; /* TRAP_* */
    u64 rip;
    u16 cs;     /* RPL 0: from guest kernel; 3: from guest user */
    u16 pad0;
    u8 upcall_mask; /* as it was */
    u8 pad1[3];
    u64 rflags; /* IF: upcalls were not masked */
    u64 rsp;
    u64 ss;
};

enum {
    TRAP_DE = 0, TRAP_DB = 1, TRAP_NMI = 2, TRAP_BP = 3, TRAP_OF = 4, TRAP_BR = 5, TRAP_UD = 6, TRAP_NM = 7, TRAP_DF = 8,
    TRAP_TS = 10, TRAP_NP = 11, TRAP_SS = 12, TRAP_GP = 13, TRAP_PF = 14, TRAP_MF = 16, TRAP_AC = 17, TRAP_MC = 18, TRAP_XM = 19,
    TRAP_EVENT = 256, /* the callbacks come through the same code */
    TRAP_FAILSAFE, TRAP_SYSCALL, TRAP_SYSCALL32, TRAP_SYSENTER,
    TRAP_NR,
};

enum {
    PF_PRESENT = 1, PF_WRITE = 2, PF_USER = 4, PF_RESERVED = 8, PF_FETCH = 16, /* error code of TRAP_PF */
    X86_TF = 1 << 8, X86_IF = 1 << 9, X86_DF = 1 << 10,
};

typedef void trap_handler_t(struct trap_regs *regs);

/* Handler of a vector; NULL: back to the default. dpl 3 lets user mode raise it with `int`, 1 the kernel, 0 nobody (3 and 4 always
 * may). The trap table is per vCPU: vectors above 31 reach the calling vCPU and those that are booted later. */
void trap_set(u32 vector, trap_handler_t *handler, u32 dpl);

/* Takes a vector out of the table. Vectors below 32 must not be: the next such trap would crash the domain. */
void trap_clear(u32 vector);

static inline bool trap_from_user(const struct trap_regs *regs)
{
    return (regs->cs & 3) == 3;
}

/* The address of the last page fault. Valid in a handler, until it enables events. */
u64 trap_cr2(void);

/* Prints registers and the top of the stack. */
void trap_print(const struct trap_regs *regs);

/* What trap_try saw. */
struct trap_record {
    bool happened;
    u32 vector, error;
    u64 rip, cr2;
    bool user; /* it came from user mode */
};

/*
 * Runs fn(arg). A trap that has no handler of its own, in fn or what it calls, ends it; the record tells which. Nests. Locks that
 * fn holds stay held.
 */
struct trap_record trap_try(void (*fn)(void *arg), void *arg);

/* Called at start, and by smp.c for the context of a new vCPU. */
struct trap_info;
void trap_init(void);
void trap_fill(struct trap_info table[256]);
void callbacks_init(void);

#endif
