/*
 * Instructions that Xen emulates, filters or refuses: CPUID, MSRs, I/O privilege, segments.
 */
#include "abitest.h"

enum {
    MSR_TSC = 0x10, MSR_APIC_BASE = 0x1b, MSR_PLATFORM_INFO = 0xce, MSR_MISC_FEATURES = 0x140, MSR_MISC_ENABLE = 0x1a0, MSR_PAT = 0x277,
    MSR_EFER = 0xc0000080u,
};
enum {
    MSR_FS_BASE = 0xc0000100u, MSR_GS_BASE = 0xc0000101u, MSR_KERNEL_GS_BASE = 0xc0000102u,
};

/* ---- CPUID and MSRs ---------------------------------------------------------------------------------------------- */

const char *cpuid_policy(void)
{
    struct cpuid base = cpuid_xen(0x40000000, 0), version = cpuid_xen(0x40000001, 0), basic = cpuid_xen(1, 0), more;
    s64 known = HYPERVISOR_xen_version(XENVER_version, NULL);

    CHECK(base.ebx == 0x566e6558 && base.ecx == 0x65584d4d && base.edx == 0x4d4d566e, "signature %x %x %x", base.ebx, base.ecx, base.edx);
    CHECK(base.eax >= 0x40000002 && base.eax < 0x40000100, "highest leaf %#x", base.eax);
    CHECK(version.eax == known, "leaf says version %#x, hypercall %#lx", version.eax, known);
    CHECK(cpuid_xen(0x40000002, 0).ebx == 0x40000000, "no MSR for hypercall pages");
    CHECK(basic.ecx >> 31 & 1, "the hypervisor bit is clear");
    /* FPU TSC MSR PAE CX8 CMOV FXSR SSE SSE2 */
    CHECK((basic.edx & 0x07008171) == 0x07008171, "leaf 1 edx %#x lacks what every PV guest has", basic.edx);
    CHECK(!(basic.edx & (1 << 1 | 1 << 3 | 1 << 12 | 1 << 13)), "leaf 1 edx %#x shows VME, PSE, MTRR or PGE", basic.edx);
    CHECK(!(basic.ecx & (1 << 3 | 1 << 5 | 1 << 17 | 1 << 24)), "leaf 1 ecx %#x shows MONITOR, VMX, PCID or TSC_DEADLINE", basic.ecx);
    more = cpuid_xen(0x80000001, 0);
    CHECK((more.edx & (1u << 29 | 1 << 20 | 1 << 11)) == (1u << 29 | 1 << 20 | 1 << 11), "no long mode, NX or SYSCALL: %#x", more.edx);
    if (cpuid_xen(0, 0).eax >= 7) {
        more = cpuid_xen(7, 0);
        CHECK(!(more.ebx & (1 << 7 | 1 << 20 | 1 << 10)), "leaf 7 ebx %#x shows SMEP, SMAP or INVPCID", more.ebx);
        CHECK(!(more.ecx & (1 << 3)), "leaf 7 ecx %#x shows PKU", more.ecx);
    }
    return NULL;
}

static u64 msr_value;

USER_TEXT static u64 user_cpuid(u64 leaf)
{
    u32 a = leaf, b, c = 0, d;

    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return a;
}

static void kernel_cpuid(void *arg)
{
    (void)arg;
    (void)cpuid(0, 0);
}

static void read_msr(void *msr)
{
    msr_value = rdmsr((u64)msr);
}

static void write_msr(void *msr)
{
    wrmsr((u64)msr, msr_value);
}

const char *cpuid_faulting(void)
{
    struct trap_record trap = trap_try(read_msr, (void *)MSR_PLATFORM_INFO);

    if (trap.happened || !(msr_value >> 31 & 1))
        return SKIP("CPUID faulting is not offered");
    msr_value = 1;
    CHECK(!trap_try(write_msr, (void *)MSR_MISC_FEATURES).happened, "it is offered and cannot be switched on");
    CHECK_USER_TRAP(TRAP_GP, 0, user_cpuid, 0);
    CHECK(!trap_try(kernel_cpuid, NULL).happened, "the kernel's own cpuid faults");
    msr_value = 0;
    write_msr((void *)MSR_MISC_FEATURES);
    return NULL;
}

static u64 read_cr4(void)
{
    u64 cr4;

    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    return cr4;
}

static void rdfsbase(void *arg)
{
    (void)arg;
    asm volatile("rdfsbase %%rax" : : : "rax");
}

static void wrgsbase(void *arg)
{
    (void)arg;
    asm volatile("rdmsr; shl $32, %%rdx; or %%rdx, %%rax; wrgsbase %%rax" : : "c"(MSR_GS_BASE) : "rax", "rdx"); /* what it is */
}

const char *fsgsbase(void)
{
    bool offered = cpuid_xen(0, 0).eax >= 7 && cpuid_xen(7, 0).ebx & 1;

    CHECK(!(read_cr4() >> 16 & 1), "CR4.FSGSBASE is set at start");
    CHECK_TRAP(TRAP_UD, 0, rdfsbase, 0);
    CHECK_TRAP(TRAP_UD, 0, wrgsbase, 0);
    if (offered) { /* then it can be switched on */
        asm volatile("mov %0, %%cr4" : : "r"(read_cr4() | 1 << 16));
        CHECK(!trap_try(rdfsbase, NULL).happened && !trap_try(wrgsbase, NULL).happened, "offered, and #UD with CR4.FSGSBASE set");
        asm volatile("mov %0, %%cr4" : : "r"(read_cr4() & ~(1ul << 16)));
    }
    return NULL;
}

const char *msr(void)
{
    u32 readable = 0;
    u64 efer;

    for (u64 n = 0; n < 0x2000; n++) { /* whatever there is: a value or #GP(0), the guest lives */
        struct trap_record trap = trap_try(read_msr, (void *)(n < 0x1000 ? n : 0xc0000000 + n - 0x1000));

        CHECK(!trap.happened || (trap.vector == TRAP_GP && !trap.error), "MSR %#lx: trap %u(%#x)", n, trap.vector, trap.error);
        readable += !trap.happened;
    }
    CHECK(readable > 5, "only %u MSRs can be read", readable);
    read_msr((void *)MSR_EFER);
    efer = msr_value;
    CHECK((efer & 0xd01) == 0xd01, "EFER is %#lx: SCE, LME, LMA, NXE belong there", efer);
    write_msr((void *)MSR_EFER); /* what it was */
    msr_value = efer ^ 1;
    CHECK_TRAP(TRAP_GP, 0, write_msr, MSR_EFER);
    read_msr((void *)MSR_PAT);
    CHECK(msr_value == 0x0000050100070406, "PAT is %#lx", msr_value);
    CHECK_TRAP(TRAP_GP, 0, write_msr, MSR_PAT);
    CHECK_TRAP(TRAP_GP, 0, write_msr, MSR_TSC);
    read_msr((void *)MSR_APIC_BASE);
    CHECK(msr_value == 0xfee00900, "APIC_BASE of vcpu 0 is %#lx", msr_value);
    CHECK_TRAP(TRAP_GP, 0, read_msr, 0xdeadbeef);
    return NULL;
}

const char *xsa_193(void)
{
    u32 bases[] = {MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE};

    for (u32 i = 0; i < ARRAY_SIZE(bases); i++) {
        msr_value = NON_CANONICAL;
        CHECK_TRAP(TRAP_GP, 0, write_msr, (u64)bases[i]);
    }
    CHECK(HYPERVISOR_set_segment_base(SEGBASE_FS, NON_CANONICAL) == -XEN_EINVAL, "set_segment_base takes it");
    return NULL;
}

const char *xsa_333(void)
{
    struct trap_record trap = trap_try(read_msr, (void *)MSR_MISC_ENABLE);

    if (!trap.happened)
        trap = trap_try(write_msr, (void *)MSR_MISC_ENABLE);
    CHECK(!trap.happened || trap.vector == TRAP_GP, "trap %u", trap.vector);
    msr_value = ~0ul;
    trap = trap_try(write_msr, (void *)MSR_MISC_ENABLE);
    CHECK(!trap.happened || trap.vector == TRAP_GP, "trap %u for odd bits", trap.vector);
    return NULL;
}

static u32 rtm_status;

static void transaction(void *arg)
{
    u32 status = ~0u;

    (void)arg;
    asm volatile(".byte 0xc7, 0xf8, 0, 0, 0, 0" : "+a"(status)); /* xbegin to the next instruction */
    if (status == ~0u)
        asm volatile(".byte 0x0f, 0x01, 0xd5"); /* xend */
    rtm_status = status;
}

const char *rtm_check(void)
{
    bool offered = cpuid_xen(0, 0).eax >= 7 && cpuid_xen(7, 0).ebx >> 11 & 1;
    struct trap_record trap = trap_try(transaction, NULL);

    CHECK(!trap.happened || (trap.vector == TRAP_UD && !offered), "xbegin: trap %u, feature %soffered", trap.vector, offered ? "" : "not ");
    return NULL;
}

/* ---- I/O privilege ----------------------------------------------------------------------------------------------- */

static void do_cli(void *arg)
{
    (void)arg;
    asm volatile("cli");
}

static void do_sti(void *arg)
{
    (void)arg;
    asm volatile("sti");
}

static void do_out(void *arg)
{
    (void)arg;
    asm volatile("outb %%al, $0x80" : : "a"(0));
}

static void do_in(void *arg)
{
    (void)arg;
    asm volatile("inb $0x80, %%al" : : : "rax");
}

#define SYS_IOPL 5

USER_TEXT static u64 user_cli(u64 iopl)
{
    user_syscall(SYS_IOPL, iopl, 0, 0);
    asm volatile("cli");
    return 1;
}

USER_TEXT static u64 user_out(u64 iopl)
{
    user_syscall(SYS_IOPL, iopl, 0, 0);
    asm volatile("outb %%al, $0x80" : : "a"(0));
    return 1;
}

/* With the assist the virtual IOPL is that of the flags the kernel returns with. */
static u64 set_iopl(struct trap_regs *regs)
{
    regs->rflags = (regs->rflags & ~0x3000ul) | regs->rdi << 12;
    return 0;
}

static const char *iopl_level(const char *how, u32 iopl, bool kernel_may)
{
    static void (*const kernel[])(void *) = {do_cli, do_sti, do_out, do_in};
    static u64 (*const user[])(u64) = {user_cli, user_out};

    for (u32 i = 0; i < ARRAY_SIZE(kernel); i++) {
        struct trap_record trap = trap_try(kernel[i], NULL);

        CHECK(trap.happened == !kernel_may && (!trap.happened || (trap.vector == TRAP_GP && !trap.error)),
              "%s, IOPL %u, kernel instruction %u: %s %u(%#x)", how, iopl, i, trap.happened ? "trap" : "no trap", trap.vector, trap.error);
    }
    CHECK(!events_masked(), "%s: cli has masked events", how);
    for (u32 i = 0; i < ARRAY_SIZE(user); i++) {
        struct user_run run = {.fn = user[i], .arg = iopl, .syscall = set_iopl};
        struct trap_record trap = user_try(&run);

        CHECK(trap.happened == (iopl < 3) && (!trap.happened || (trap.vector == TRAP_GP && !trap.error)),
              "%s, IOPL %u, user instruction %u: %s %u(%#x)", how, iopl, i, trap.happened ? "trap" : "no trap", trap.vector, trap.error);
    }
    return NULL;
}

const char *pv_iopl(void)
{
    struct physdev_set_iopl op = {4};
    const char *result = NULL;
    u64 flags;

    CHECK(HYPERVISOR_physdev_op(PHYSDEVOP_set_iopl, &op) == -XEN_EINVAL, "set_iopl(4) is taken");
    for (u32 iopl = 0; iopl <= 3 && !result; iopl++) { /* by hypercall: the kernel runs at virtual CPL 1 */
        op.iopl = iopl;
        CHECK(!HYPERVISOR_physdev_op(PHYSDEVOP_set_iopl, &op), "set_iopl(%u) is refused", iopl);
        result = iopl_level("hypercall", iopl, iopl >= 1);
        asm volatile("pushf; pop %0" : "=r"(flags));
        CHECK((flags & 0x3200) == X86_IF, "pushf shows %#lx", flags);
    }
    op.iopl = 0;
    HYPERVISOR_physdev_op(PHYSDEVOP_set_iopl, &op);
    if (HYPERVISOR_vm_assist(VMASST_CMD_enable, VMASST_TYPE_architectural_iopl))
        return result ? result : FAIL("no architectural_iopl assist");
    for (u32 iopl = 0; iopl <= 3 && !result; iopl++) /* with the assist: at virtual CPL 0 */
        result = iopl_level("assist", iopl, true);
    HYPERVISOR_vm_assist(VMASST_CMD_disable, VMASST_TYPE_architectural_iopl);
    return result;
}

/* ---- Addresses that are not canonical ---------------------------------------------------------------------------- */

#define ACCESS(name, insn)                                                                                                         \
    static void name(void *arg)                                                                                                    \
    {                                                                                                                              \
        asm volatile("push %%rbp; mov %0, %%rbp; mov %0, %%rax; " insn "; pop %%rbp" : : "c"(arg) : "rax", "rdx", "memory");       \
    }
#define USER_ACCESS(name, insn)                                                                                                    \
    USER_TEXT static u64 name(u64 arg)                                                                                             \
    {                                                                                                                              \
        asm volatile("push %%rbp; mov %%rsp, %%r8; mov %0, %%rbp; mov %0, %%rax; mov %0, %%rsp; " insn                             \
                     "; mov %%r8, %%rsp; pop %%rbp" : : "c"(arg) : "rax", "rdx", "r8", "memory");                                  \
        return 0;                                                                                                                  \
    }

ACCESS(load_rax, "mov (%%rax), %%rdx")
ACCESS(store_rax, "mov %%rdx, (%%rax)")
ACCESS(load_rbp, "mov (%%rbp), %%rdx")
ACCESS(store_rbp, "mov %%rdx, 8(%%rbp)")
ACCESS(load_fs_rbp, "mov %%fs:(%%rbp), %%rdx")
ACCESS(forced_load, ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e; mov (%%rax), %%rdx")
USER_ACCESS(user_rax, "mov (%%rax), %%rdx")
USER_ACCESS(user_rbp, "mov (%%rbp), %%rdx")
USER_ACCESS(user_rsp, "mov (%%rsp), %%rdx")
USER_ACCESS(user_pop, "pop %%rdx")
USER_ACCESS(user_push, "push %%rdx")
USER_ACCESS(user_forced, ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e; mov (%%rax), %%rdx")

const char *memop_seg(void)
{
    u64 at = NON_CANONICAL;

    CHECK_TRAP(TRAP_GP, 0, load_rax, at);
    CHECK_TRAP(TRAP_GP, 0, store_rax, at);
    CHECK_TRAP(TRAP_SS, 0, load_rbp, at);
    CHECK_TRAP(TRAP_SS, 0, store_rbp, at);
    CHECK_TRAP(TRAP_GP, 0, load_fs_rbp, at);
    CHECK_TRAP(TRAP_UD, 0, forced_load, at); /* the prefix is for cpuid alone */
    CHECK_USER_TRAP(TRAP_GP, 0, user_rax, at);
    CHECK_USER_TRAP(TRAP_SS, 0, user_rbp, at);
    CHECK_USER_TRAP(TRAP_SS, 0, user_rsp, at);
    CHECK_USER_TRAP(TRAP_SS, 0, user_pop, at);
    CHECK_USER_TRAP(TRAP_SS, 0, user_push, at);
    CHECK_USER_TRAP(TRAP_UD, 0, user_forced, at);
    return NULL;
}

/* ---- FPU, segments ----------------------------------------------------------------------------------------------- */

static void use_fpu(void *arg)
{
    (void)arg;
    asm volatile("fnop");
}

static u64 read_cr0(void)
{
    u64 cr0;

    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    return cr0;
}

const char *fpu_ts(void)
{
    struct trap_record trap;

    CHECK(!HYPERVISOR_fpu_taskswitch(1), "fpu_taskswitch(1) fails");
    CHECK(read_cr0() & 8, "CR0.TS is clear behind it");
    CHECK_TRAP(TRAP_NM, 0, use_fpu, 0);
    trap = trap_try(use_fpu, NULL); /* Xen clears TS before it delivers */
    CHECK(!trap.happened, "a second trap %u", trap.vector);
    HYPERVISOR_fpu_taskswitch(1);
    asm volatile("clts");
    trap = trap_try(use_fpu, NULL);
    CHECK(!trap.happened && !(read_cr0() & 8), "trap %u behind clts", trap.vector);
    return NULL;
}

static u64 load_fs0(void)
{
    u64 value;

    asm volatile("mov %%fs:0, %0" : "=r"(value) : : "memory");
    return value;
}

USER_TEXT static u64 user_gs(u64 arg)
{
    asm volatile("mov %%gs:0, %0" : "=r"(arg) : : "memory");
    return arg;
}

USER_DATA static u64 user_value = 0x1234;

const char *segment_bases(void)
{
    u64 here = 0xfeed;
    struct user_run run = {.fn = user_gs};
    struct trap_record trap;

    CHECK(!HYPERVISOR_set_segment_base(SEGBASE_FS, (u64)&here) && load_fs0() == here, "FS base by hypercall");
    wrmsr(MSR_FS_BASE, (u64)&run);
    CHECK(rdmsr(MSR_FS_BASE) == (u64)&run && load_fs0() == (u64)run.fn, "FS base by MSR");
    CHECK(rdmsr(MSR_GS_BASE) == (u64)this_cpu(), "GS base reads %#lx", rdmsr(MSR_GS_BASE));
    CHECK(!HYPERVISOR_set_segment_base(SEGBASE_GS_USER, (u64)&user_value), "user GS base");
    CHECK(rdmsr(MSR_KERNEL_GS_BASE) == (u64)&user_value, "KERNEL_GS_BASE reads %#lx", rdmsr(MSR_KERNEL_GS_BASE));
    trap = user_try(&run);
    CHECK(!trap.happened && run.result == 0x1234, "user GS base: trap %u, %#lx", trap.vector, run.result);
    CHECK(this_cpu()->self == this_cpu(), "the kernel's GS base did not come back");
    CHECK(HYPERVISOR_set_segment_base(9, 0) == -XEN_EINVAL, "base 9 is taken");
    return NULL;
}

/* ---- Far calls --------------------------------------------------------------------------------------------------- */

USER_TEXT static u64 user_far_call(u64 selector)
{
    struct {
        u32 offset;
        u16 selector;
    } __attribute__((packed)) target = {0, selector};

    asm volatile("lcall *%0" : : "m"(target) : "memory");
    return 0;
}

const char *xsa_298(void)
{
    CHECK_USER_TRAP(TRAP_GP, 0x1004, user_far_call, 0x1007); /* in an LDT that has no entries */
    return NULL;
}
