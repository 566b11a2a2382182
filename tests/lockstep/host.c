/* Runs sequences on this CPU: lockstep-host <fd of struct ls_shared> <fd to read> <fd to write>.
 *
 * Owns: a process that is nothing but the memory of lockstep.h, a signal handler on its own stack, and the shared batch. Each sequence
 * ends in a signal (the int3 behind it, or its fault); the handler records the state the kernel saved, makes the kernel's image that of the
 * next sequence, and returns into it: one trip through the kernel each. seccomp's strict mode leaves read, write, _exit and sigreturn.
 * A byte is read from the parent before each batch and written after it. Registers FS and GS point into the data, so nothing here may use
 * thread-local storage once it has begun.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "lockstep.h"

static struct ls_shared *shared;
static u8 *code_rw;             /* the code's pages, writable */
static int from_parent, to_parent;
static bool running;
static u64 started, last_tick;  /* sequences begun; and when SIGALRM came last */

static const int SLOT[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15 };
enum { FX_BYTES = 416, XSTATE_BV = 512 };       /* 464-511 of the kernel's image are its own */

static inline long sys3(long nr, long a, long b, long c)
{
    long rc;
    __asm__ volatile("syscall" : "=a"(rc) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return rc;
}

static void copy(void *to, const void *from, size_t n) { __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory"); }
static void fill(void *to, int byte, size_t n) { __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory"); }

static void record(const ucontext_t *uc, struct ls_job *job, u32 hung)
{
    struct ls_result *out = &job->out;
    const greg_t *g = uc->uc_mcontext.gregs;
    for (unsigned n = 0; n < 16; n++)
        out->s.r[n] = (u64)g[SLOT[n]];
    out->s.rip = (u64)g[REG_RIP];
    out->s.rflags = (u64)g[REG_EFL];
    copy(out->s.fx, uc->uc_mcontext.fpregs, FX_BYTES);
    out->vector = (u32)g[REG_TRAPNO];
    out->error = (u32)g[REG_ERR];
    out->cr2 = (u64)g[REG_CR2];
    out->hung = hung;
    copy(out->data, (void *)DATA_VA, DATA_SIZE);
    copy(out->loop, (void *)LOOP_VA, sizeof out->loop);
    fill(code_rw + job->offset, 0xcc, job->len);
}

static void start(ucontext_t *uc, struct ls_job *job)
{
    greg_t *g = uc->uc_mcontext.gregs;
    u8 *fp = (u8 *)uc->uc_mcontext.fpregs;
    copy(code_rw + job->offset, job->code, job->len);
    copy((void *)DATA_VA, shared->data, DATA_SIZE);
    copy((void *)LOOP_VA, job->loop, sizeof job->loop);
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(0));          /* the kernel leaves them as the last sequence did */
    /* And NT and ID, if that set them: sigreturn takes them from here. Not through the red zone. */
    __asm__ volatile("lea -128(%%rsp), %%rsp; push $2; popf; lea 128(%%rsp), %%rsp" : : : "cc", "memory");
    for (unsigned n = 0; n < 16; n++)
        g[SLOT[n]] = (greg_t)job->in.r[n];
    g[REG_RIP] = (greg_t)job->in.rip;
    g[REG_EFL] = (greg_t)job->in.rflags;
    copy(fp, job->in.fx, FX_BYTES);
    *(u64 *)(fp + XSTATE_BV) |= 3;      /* x87 and SSE are in the image, not in their initial state */
}

static void handler(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    u32 hung = 0;
    if (sig == SIGALRM) {               /* twice in the same sequence: it loops */
        if (!running || last_tick != started) {
            last_tick = started;
            return;
        }
        hung = 1;
    }
    if (running) {
        record(uc, &shared->job[shared->next], hung);
        shared->next++;
    }
    running = true;
    while (shared->next >= shared->count) {
        char byte = 0;
        if (sys3(SYS_write, to_parent, (long)&byte, 1) != 1 || sys3(SYS_read, from_parent, (long)&byte, 1) != 1)
            sys3(SYS_exit, 0, 0, 0);
    }
    started++;
    start(uc, &shared->job[shared->next]);
}

static void *map(u64 va, size_t size, int prot, int flags, int fd)
{
    void *p = mmap((void *)va, size, prot, flags | MAP_POPULATE | (va ? MAP_FIXED_NOREPLACE : 0), fd, 0);
    if (p == MAP_FAILED)
        exit(2);
    return p;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    from_parent = atoi(argv[2]);
    to_parent = atoi(argv[3]);
    shared = map(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]));
    int code = memfd_create("lockstep-code", 0);
    if (code < 0 || ftruncate(code, CODE_SIZE))
        return 2;
    code_rw = map(0, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, code);
    memset(code_rw, 0xcc, CODE_SIZE);
    map(CODE_VA, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, code);
    memset(map(DATA_VA, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), 0, DATA_SIZE);
    memcpy(map(CONST_VA, CONST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), shared->constants, CONST_SIZE);
    memset(map(LOOP_VA, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), 0, PAGE_SIZE);
    mprotect((void *)CONST_VA, CONST_SIZE, PROT_READ);

    stack_t stack = { .ss_size = 1 << 16 };
    stack.ss_sp = map(0, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    struct sigaction act = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    sigfillset(&act.sa_mask);
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGALRM };
    sigaltstack(&stack, NULL);
    for (unsigned n = 0; n < sizeof signals / sizeof *signals; n++)
        sigaction(signals[n], &act, NULL);
    struct itimerval timer = { { 0, 30000 }, { 0, 30000 } };
    setitimer(ITIMER_REAL, &timer, NULL);
    prctl(PR_SET_DUMPABLE, 0);
    syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
    shared->next = shared->count = 0;
    if (sys3(SYS_arch_prctl, ARCH_SET_FS, FS_BASE, 0) || sys3(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0))
        sys3(SYS_exit_group, 3, 0, 0);
    __asm__ volatile("int3");
    return 0;
}
