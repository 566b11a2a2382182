/*
 * Two vCPUs, events at any time, code that changes: what a wrong cache, or a register lost on the way, would show.
 */
#include "abitest.h"

/* Boots the first vCPU that no other test has used. 0, or why not. */
static s64 boot_fresh(void (*entry)(void *))
{
    s64 rc = -XEN_EEXIST;

    for (u32 vcpu = 1; rc == -XEN_EEXIST; vcpu++)
        rc = smp_boot(vcpu, entry, NULL);
    return rc;
}

#define BOOT_FRESH(entry)                                                                                                          \
    do {                                                                                                                           \
        s64 rc_ = boot_fresh(entry);                                                                                               \
        if (rc_ == -XEN_ENOENT || rc_ == -XEN_EINVAL)                                                                              \
            return SKIP("needs one more vCPU");                                                                                    \
        CHECK(!rc_, "smp_boot: %s", error_name(rc_));                                                                              \
    } while (0)

/* ---- Registers under a storm of events --------------------------------------------------------------------------- */

static u32 storm_events, storm_over, storm_ready;
static s64 storm_port;

static void on_storm(u32 port, void *data)
{
    (void)port, (void)data;
    storm_events++;
    asm volatile("stc; std; cld" : : : "cc"); /* flags that must not come through */
}

static void storm(void *arg)
{
    (void)arg;
    WRITE_ONCE(storm_ready, 1);
    while (!READ_ONCE(storm_over))
        event_send(storm_port);
    WRITE_ONCE(storm_ready, 0);
}

/* Counts rcx down with the other registers holding values; 0 if all are what they were and no flag was lost. */
#define WALK                                                                                                                       \
    "mov $0x1111, %%eax; mov $0x2222, %%ebx; mov $0x3333, %%edx; mov $0x4444, %%esi; mov $0x5555, %%r8d; mov $0x6666, %%r9d;"      \
    "mov $0x7777, %%r10d; mov $0x8888, %%r12d; mov $0x9999, %%r13d; mov $0xaaaa, %%r14d; mov $0xbbbb, %%r15d;"                     \
    "xor %%edi, %%edi;"                                                                                                            \
    "1: mov %%rcx, %%r11; add $-1, %%rcx; jnc 2f; cmp %%rcx, %%r11; jbe 2f; push %%r11; lea (%%rcx, %%rax), %%r11; pop %%r11;"     \
    "sub %%rcx, %%r11; cmp $1, %%r11; jne 2f; test %%rcx, %%rcx; jnz 1b; jmp 3f;"                                                  \
    "2: or $1, %%edi;"                                                                                                             \
    "3: sub $0x1111, %%rax; sub $0x2222, %%rbx; sub $0x3333, %%rdx; sub $0x4444, %%rsi; sub $0x5555, %%r8; sub $0x6666, %%r9;"     \
    "sub $0x7777, %%r10; sub $0x8888, %%r12; sub $0x9999, %%r13; sub $0xaaaa, %%r14; sub $0xbbbb, %%r15;"                          \
    "or %%rbx, %%rax; or %%rdx, %%rax; or %%rsi, %%rax; or %%r8, %%rax; or %%r9, %%rax; or %%r10, %%rax; or %%r12, %%rax;"         \
    "or %%r13, %%rax; or %%r14, %%rax; or %%r15, %%rax; or %%rdi, %%rax"
#define WALK_CLOBBERS "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc"

static u64 walk(u64 laps)
{
    u64 wrong;

    asm volatile(WALK : "=a"(wrong), "+c"(laps) : : WALK_CLOBBERS);
    return wrong;
}

USER_TEXT static u64 user_walk(u64 laps)
{
    u64 wrong;

    asm volatile(WALK : "=a"(wrong), "+c"(laps) : : WALK_CLOBBERS);
    return wrong;
}

const char *upcall_registers(void)
{
    struct user_run run = {.fn = user_walk, .arg = 100000};
    struct trap_record trap;
    u64 wrong = 0;

    storm_port = event_bind_ipi(0);
    CHECK(storm_port > 0, "no port: %s", error_name(storm_port));
    event_handle(storm_port, on_storm, NULL);
    BOOT_FRESH(storm);
    while (!READ_ONCE(storm_ready))
        HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    for (u32 i = 0; i < 1000 && !wrong && (i < 10 || storm_events < 10); i++) /* the storm's vCPU may have to wait for a CPU */
        wrong = walk(100000);
    CHECK(!wrong, "kernel: %#lx after %u events", wrong, storm_events);
    CHECK(storm_events >= 10, "%u events in all", storm_events);
    storm_events = 0;
    for (u32 i = 0; i < 1000 && !run.result && (i < 10 || storm_events < 10); i++) {
        trap = user_try(&run);
        CHECK(!trap.happened, "user: trap %u", trap.vector);
    }
    WRITE_ONCE(storm_over, 1);
    CHECK(!run.result, "user: %#lx after %u events", run.result, storm_events);
    CHECK(storm_events >= 10, "%u events in user mode", storm_events);
    while (READ_ONCE(storm_ready))
        HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    event_close(storm_port);
    return NULL;
}

/* ---- Stale translations ------------------------------------------------------------------------------------------ */

static u64 *target;
static u32 writer_state; /* 1: writes; 2: has been stopped by a fault */
static struct trap_record writer_trap;

static void write_on(void *arg)
{
    (void)arg;
    for (;;)
        WRITE_ONCE(*target, *target + 1);
}

static void writer(void *arg)
{
    WRITE_ONCE(writer_state, 1);
    writer_trap = trap_try(write_on, arg);
    WRITE_ONCE(writer_state, 2);
}

const char *tlb_shootdown(void)
{
    void *page = page_alloc(1);
    u64 before;
    s64 rc;

    target = vmap_alloc(1);
    rc = kernel_map((u64)target, virt_to_mfn(page) << PAGE_SHIFT | PTE_DATA);
    CHECK(!rc, "map: %s", error_name(rc));
    BOOT_FRESH(writer);
    while (!READ_ONCE(*target))
        HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    rc = kernel_map((u64)target, virt_to_mfn(page) << PAGE_SHIFT | PTE_RO); /* with a flush on all vCPUs */
    before = READ_ONCE(*target);
    CHECK(!rc, "read-only: %s", error_name(rc));
    for (u32 i = 0; READ_ONCE(writer_state) != 2; i++) {
        CHECK(READ_ONCE(*target) == before, "a store after the flush");
        HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    }
    CHECK(READ_ONCE(*target) == before, "a store after the flush");
    CHECK(writer_trap.vector == TRAP_PF && writer_trap.error == (PF_PRESENT | PF_WRITE) && writer_trap.cr2 == (u64)target,
          "the writer saw %u(%#x) at %#lx", writer_trap.vector, writer_trap.error, writer_trap.cr2);
    return NULL;
}

/* ---- Stale code -------------------------------------------------------------------------------------------------- */

static void put_code(u8 *at, u32 value)
{
    at[0] = 0xb8; /* mov eax, value; ret */
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

const char *self_modifying(void)
{
    u8 *first = page_alloc(2), *second = first + PAGE_SIZE, *code = vmap_alloc(2), *across;
    u32 (*fn)(void) = (void *)code;

    kernel_map((u64)code, virt_to_mfn(first) << PAGE_SHIFT | PTE_RO);
    kernel_map((u64)code + PAGE_SIZE, virt_to_mfn(second) << PAGE_SHIFT | PTE_RO);
    for (u32 i = 1; i < 100; i++) { /* by stores through another mapping */
        put_code(first, i);
        CHECK(fn() == i, "turn %u: %u", i, fn());
    }
    for (u32 i = 1; i < 100; i++) { /* one byte of an instruction that lies across two pages */
        across = first + PAGE_SIZE - 3;
        put_code(across, 0x01010101u * i);
        CHECK(((u32(*)(void))(code + PAGE_SIZE - 3))() == 0x01010101u * i, "across pages, turn %u", i);
        second[0]++;
        CHECK(((u32(*)(void))(code + PAGE_SIZE - 3))() != 0x01010101u * i, "across pages, turn %u: the old code", i);
    }
    put_code(first, 1000); /* by another translation */
    put_code(second, 2000);
    CHECK(fn() == 1000, "%u, not 1000", fn());
    kernel_map((u64)code, virt_to_mfn(second) << PAGE_SHIFT | PTE_RO);
    CHECK(fn() == 2000, "remapped: %u, not 2000", fn());
    CHECK(!mmuext(MMUEXT_COPY_PAGE, virt_to_mfn(second), virt_to_mfn(first)) && fn() == 1000, "by COPY_PAGE: %u, not 1000", fn());
    for (u32 i = 1; i < 20; i++) { /* by the hypervisor, into the guest's own memory */
        put_code(second, 7);
        CHECK(fn() == 7, "%u, not 7", fn());
        HYPERVISOR_xen_version(XENVER_changeset, second + 64);
        put_code(second, 7 + i);
        CHECK(fn() == 7 + i, "%u, not %u", fn(), 7 + i);
    }
    return NULL;
}

/* ---- Atomics ----------------------------------------------------------------------------------------------------- */

#define ATOMIC_LAPS 20000

static struct {
    u64 low, high;
} __attribute__((aligned(16))) pair;
static u64 sum, bits;
static u32 helper_state;

static bool add_pair(void)
{
    u64 low = pair.low, high = pair.high;
    bool done;

    asm volatile("lock cmpxchg16b %1" : "=@ccz"(done), "+m"(pair), "+a"(low), "+d"(high) : "b"(low + 1), "c"(high - 1) : "memory");
    return done;
}

static void atomics(u32 me)
{
    for (u32 i = 0; i < ATOMIC_LAPS; i++) {
        while (!add_pair())
            ;
        __atomic_fetch_add(&sum, 3, __ATOMIC_SEQ_CST);
        bit_test_and_set(&bits, me);
        bit_test_and_clear(&bits, me + 8);
    }
}

static void helper(void *arg)
{
    (void)arg;
    atomics(1);
    __atomic_store_n(&helper_state, 1, __ATOMIC_RELEASE);
}

const char *atomic_pairs(void)
{
    bits = 0xff00;
    BOOT_FRESH(helper);
    atomics(0);
    while (!__atomic_load_n(&helper_state, __ATOMIC_ACQUIRE))
        HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    CHECK(pair.low == 2 * ATOMIC_LAPS && pair.high == -2ul * ATOMIC_LAPS, "cmpxchg16b: %lu %ld", pair.low, (s64)pair.high);
    CHECK(sum == 6 * ATOMIC_LAPS, "xadd: %lu", sum);
    CHECK(bits == 0xfc03, "bts, btr: %#lx", bits);
    return NULL;
}
