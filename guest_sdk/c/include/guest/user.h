/*
 * User mode: functions that run with a page table of their own, which has nothing of the kernel in it.
 *
 * Code and data marked USER_TEXT and USER_DATA lie in pages that user_create maps at the same addresses in the user table, so that
 * the kernel sees them where the user does. Such code may call only such code. It enters the kernel with `syscall` (user_syscall).
 */
#ifndef GUEST_USER_H
#define GUEST_USER_H

#include <guest/memory.h>
#include <guest/trap.h>

#define USER_TEXT __attribute__((section(".user.text"), noinline))
#define USER_DATA __attribute__((section(".user.data")))
#define USER_STACK_TOP 0x0000700000000000ul
#define USER_STACK_PAGES 4

enum {
    USER_SYS_EXIT = 0, /* the number that user_call itself answers */
};

struct user {
    struct space space;
    void *stack;
};

s64 user_create(struct user *user);
void user_destroy(struct user *user);

/* One more page for the user: of the linear mapping, at va (which may be any address below the kernel's). flags: PTE_*. */
s64 user_map(struct user *user, u64 va, u64 mfn, u64 flags);

/*
 * Runs fn(arg) in user mode on this vCPU, events enabled, and returns what it returns, or what user_exit was given. Syscalls other than
 * exit go to `syscall`, whose result is the user's rax. Does not nest. A trap without a handler is the kernel's: use trap_try.
 */
u64 user_call(struct user *user, u64 (*fn)(u64 arg), u64 arg, u64 (*syscall)(struct trap_regs *regs));

/* Ends user_call from a trap or syscall handler. */
void user_exit(u64 result) __attribute__((noreturn));

/* For USER_TEXT code. */
static inline __attribute__((always_inline)) u64 user_syscall(u64 number, u64 a, u64 b, u64 c)
{
    asm volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return number;
}

#endif
