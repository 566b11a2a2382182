/*
 * Debug registers and single-step.
 */
#include "abitest.h"

#define DR7_RW4 (1 | 0xful << 16) /* breakpoint 0, local; 4 bytes, reads and writes */

static u32 debug_traps;
static u64 debug_rip, debug_dr6;

static void on_debug(struct trap_regs *regs)
{
    debug_traps++;
    debug_rip = regs->rip;
    debug_dr6 = HYPERVISOR_get_debugreg(6);
    HYPERVISOR_set_debugreg(6, 0);
    regs->rflags &= ~(u64)X86_TF;
}

const char *single_step(void)
{
    u64 next;

    trap_set(TRAP_DB, on_debug, 0);
    debug_traps = 0;
    asm volatile("pushf; orq $0x100, (%%rsp); popf; lea 1f(%%rip), %0; 1:" : "=r"(next) : : "memory", "cc");
    trap_set(TRAP_DB, NULL, 0);
    CHECK(debug_traps == 1 && debug_rip == next, "%u traps, rip %#lx, not %#lx", debug_traps, debug_rip, next);
    CHECK(debug_dr6 & 1 << 14, "dr6 %#lx lacks BS", debug_dr6);
    return NULL;
}

static bool watch(void *at)
{
    debug_traps = 0;
    trap_set(TRAP_DB, on_debug, 0);
    return !HYPERVISOR_set_debugreg(0, (u64)at) && !HYPERVISOR_set_debugreg(6, 0) && !HYPERVISOR_set_debugreg(7, DR7_RW4);
}

static void unwatch(void)
{
    HYPERVISOR_set_debugreg(7, 0);
    HYPERVISOR_set_debugreg(0, 0);
    trap_set(TRAP_DB, NULL, 0);
}

static u32 hits;

static void on_hit(struct trap_regs *regs)
{
    (void)regs;
    hits++;
}

const char *xsa_260(void)
{
    static u32 selector = FLAT_KERNEL_SS;
    u64 after, version;

    if (!watch(&selector))
        return FAIL("no breakpoint on data");
    asm volatile("movl %1, %%eax; nop; lea 1f(%%rip), %0" "\n1:" : "=&r"(after) : "m"(selector) : "rax", "memory");
    CHECK(debug_traps == 1 && debug_dr6 & 1, "an ordinary load: %u traps, dr6 %#lx", debug_traps, debug_dr6);
    debug_traps = 0;
    asm volatile("lea 1f(%%rip), %0; mov %1, %%ss; nop; 1: nop" : "=&r"(after) : "m"(selector) : "memory");
    CHECK(debug_traps == 1, "mov ss: %u traps", debug_traps);
    CHECK(debug_rip == after, "mov ss: trap at %#lx, not behind the next instruction, %#lx", debug_rip, after);

    /* The instruction behind enters the hypervisor: the trap is the guest's, or lost, and nobody dies of it. */
    trap_set(TRAP_BP, on_hit, 3);
    asm volatile("mov %0, %%ss; int3" : : "m"(selector) : "memory");
    CHECK(hits == 1, "mov ss; int3: %u breakpoints", hits);
    asm volatile("mov %1, %%ss; syscall" : "=a"(version) : "m"(selector), "a"(__HYPERVISOR_xen_version), "D"(XENVER_version), "S"(0)
                 : "rcx", "r11", "memory");
    CHECK(version == (u64)HYPERVISOR_xen_version(XENVER_version, NULL), "mov ss; syscall: %#lx", version);
    trap_set(TRAP_BP, NULL, 3);
    unwatch();
    return NULL;
}

USER_DATA static u32 user_selector = FLAT_USER_SS;

USER_TEXT static u64 user_mov_ss_syscall(u64 arg)
{
    asm volatile("mov %1, %%ss; syscall" : "+a"(arg) : "m"(user_selector) : "rcx", "r11", "memory");
    return arg;
}

USER_TEXT static u64 user_mov_ss_int3(u64 arg)
{
    asm volatile("mov %0, %%ss; int3" : : "m"(user_selector) : "memory");
    return arg;
}

static u64 answer(struct trap_regs *regs)
{
    return regs->rax + 1;
}

const char *xsa_265(void)
{
    struct user_run run = {.fn = user_mov_ss_syscall, .arg = 41, .syscall = answer};
    struct trap_record trap;

    if (!watch(&user_selector))
        return FAIL("no breakpoint on data");
    trap = user_try(&run);
    CHECK(!trap.happened && run.result == 42, "syscall: trap %u, result %lu", trap.vector, run.result);
    hits = 0;
    trap_set(TRAP_BP, on_hit, 3);
    run = (struct user_run){.fn = user_mov_ss_int3, .arg = 43};
    trap = user_try(&run);
    trap_set(TRAP_BP, NULL, 3);
    unwatch();
    CHECK(!trap.happened && run.result == 43 && hits == 1, "int3: trap %u, result %lu, %u breakpoints", trap.vector, run.result, hits);
    return NULL;
}

const char *xsa_444(void)
{
    s64 rc;

    for (u32 reg = 0; reg < 4; reg++) {
        rc = HYPERVISOR_set_debugreg(reg, HYPERVISOR_VIRT_START + 0x1000);
        CHECK(rc == -XEN_EPERM, "dr%u in the hypervisor: %s", reg, error_name(rc));
        CHECK(HYPERVISOR_set_debugreg(reg, NON_CANONICAL) == -XEN_EPERM, "dr%u non-canonical is taken", reg);
    }
    CHECK(HYPERVISOR_set_debugreg(8, 0) == -XEN_ENODEV, "dr8 is taken");
    CHECK(HYPERVISOR_set_debugreg(6, 1ul << 32) == -XEN_EINVAL && HYPERVISOR_set_debugreg(7, 1ul << 32) == -XEN_EINVAL,
          "high halves of dr6, dr7 are taken");
    CHECK(HYPERVISOR_set_debugreg(7, 1 << 13) == -XEN_EPERM, "dr7.GD is taken");
    return NULL;
}
