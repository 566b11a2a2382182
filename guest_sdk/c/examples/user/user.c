/*
 * User mode: functions with a page table of their own, system calls, and what they cannot reach.
 */
#include <guest.h>

enum {
    SYS_ADD = 1,
    SYS_WRITE = 2,
};

USER_DATA u32 turns = 3; /* the kernel sees it at the same address */
USER_DATA char greeting[] = "hello from user mode\n";

USER_TEXT static u64 program(u64 arg)
{
    user_syscall(SYS_WRITE, (u64)greeting, sizeof(greeting) - 1, 0);
    for (; turns; turns--)
        arg = user_syscall(SYS_ADD, arg, 10, 0);
    return arg;
}

USER_TEXT static u64 peek(u64 address)
{
    return *(volatile u64 *)address;
}

USER_TEXT static u64 read_cr3(u64 arg)
{
    asm volatile("mov %%cr3, %0" : "+r"(arg));
    return arg;
}

USER_TEXT static u64 spin(u64 arg)
{
    while (!*(volatile u32 *)&turns)
        ;
    return arg + 1;
}

static u32 calls;

static u64 syscall(struct trap_regs *regs)
{
    calls++;
    switch (regs->rax) {
    case SYS_ADD:
        return regs->rdi + regs->rsi;
    case SYS_WRITE:
        /* A real kernel would check that the pages are the user's; a fault here would be the kernel's. */
        console_write((char *)regs->rdi, regs->rsi);
        return regs->rsi;
    default:
        return -XEN_ENOSYS;
    }
}

static struct user user;

static void run(void *arg)
{
    u64 *call = arg;

    user_call(&user, (u64(*)(u64))call[0], call[1], syscall);
}

static void show(const char *what, u64 (*fn)(u64), u64 arg)
{
    struct trap_record trap = trap_try(run, (u64[]){(u64)fn, arg});

    printf("%s: %s mode, vector %u, error %#x\n", what, trap.user ? "user" : "kernel", trap.vector, trap.error);
}

static void tick(void)
{
    WRITE_ONCE(turns, 1);
}

int main(int argc, char **argv)
{
    s64 rc = user_create(&user);

    (void)argc, (void)argv;
    if (rc)
        panic("user_create: %s", error_name(rc));
    printf("program(12) = %lu, ", user_call(&user, program, 12, syscall));
    printf("%u system calls\n", calls);
    show("user reads kernel data", peek, (u64)&calls);
    show("user reads cr3", read_cr3, 0);
    timer_set(time_now() + 1000000, tick);
    printf("the timer reached spin(): %lu\n", user_call(&user, spin, 6, NULL));
    user_destroy(&user);
    printf("the pages are back\n");
    return 0;
}
