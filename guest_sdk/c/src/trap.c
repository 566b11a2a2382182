/*
 * Traps: the table, dispatch from trap_entry.S, the default handler, trap_try.
 */
#include <guest.h>

#define VECTORS 256
#define EXCEPTIONS 32
#define MASK_EVENTS 4 /* trap_info.flags */

/* An active trap_try. trap_entry.S stores sp. */
struct trap_probe {
    u64 sp;
    struct trap_probe *outer;
    bool masked;
    struct trap_record record;
};

extern char trap_stubs[][16];
extern char event_entry[], failsafe_entry[], syscall_entry[], syscall32_entry[], sysenter_entry[], trap_resume[];
bool trap_run(struct trap_probe *probe, void (*fn)(void *), void *arg);
void trap_dispatch(struct trap_regs *regs);

static trap_handler_t *handlers[TRAP_NR];
static struct {
    bool present;
    u8 dpl;
} gates[VECTORS];

_Static_assert(offsetof(struct trap_regs, error) == offsetof(struct cpu_user_regs, error_code), "registers in the ABI's order");
_Static_assert(offsetof(struct trap_regs, ss) == offsetof(struct cpu_user_regs, ss), "frame in the ABI's order");

u64 trap_cr2(void)
{
    return this_cpu()->vcpu_info->arch.cr2;
}

/* ---- The table --------------------------------------------------------------------------------------------------- */

/* Every gate masks events: a nested upcall that faults would overwrite cr2 before the first #PF handler has read it. */
static struct trap_info gate_info(u32 vector)
{
    return (struct trap_info){vector, gates[vector].dpl | MASK_EVENTS, FLAT_KERNEL_CS, (u64)trap_stubs[vector]};
}

/* The list form of set_trap_table, without gaps. The last of 257 entries ends it. */
static void trap_load(void)
{
    static struct trap_info list[VECTORS + 1];
    u32 n = 0;

    for (u32 vector = 0; vector < VECTORS; vector++)
        if (gates[vector].present)
            list[n++] = gate_info(vector);
    list[n] = (struct trap_info){0};
    HYPERVISOR_set_trap_table(NULL);
    if (HYPERVISOR_set_trap_table(list))
        panic("set_trap_table failed");
}

/* For vcpu_guest_context, which is indexed by vector. */
void trap_fill(struct trap_info table[VECTORS])
{
    for (u32 vector = 0; vector < VECTORS; vector++)
        table[vector] = gates[vector].present ? gate_info(vector) : (struct trap_info){.vector = vector};
}

void trap_set(u32 vector, trap_handler_t *handler, u32 dpl)
{
    ASSERT(vector < TRAP_NR && dpl <= 3);
    handlers[vector] = handler;
    if (vector >= VECTORS)
        return;
    gates[vector].present = true;
    gates[vector].dpl = dpl;
    HYPERVISOR_set_trap_table((struct trap_info[]){gate_info(vector), {0}});
}

void trap_clear(u32 vector)
{
    ASSERT(vector >= EXCEPTIONS && vector < VECTORS);
    handlers[vector] = NULL;
    gates[vector].present = false;
    trap_load();
}

void trap_init(void)
{
    for (u32 vector = 0; vector < EXCEPTIONS; vector++)
        gates[vector].present = true;
    gates[TRAP_BP].dpl = gates[TRAP_OF].dpl = 3;
    trap_load();
    callbacks_init();
}

void callbacks_init(void)
{
    static const struct {
        u16 type;
        bool needed;
        char *entry;
    } callbacks[] = {
        {CALLBACKTYPE_event, true, event_entry},        {CALLBACKTYPE_failsafe, true, failsafe_entry},
        {CALLBACKTYPE_syscall, true, syscall_entry},    {CALLBACKTYPE_syscall32, false, syscall32_entry},
        {CALLBACKTYPE_sysenter, false, sysenter_entry},
    };

    for (u32 i = 0; i < ARRAY_SIZE(callbacks); i++) {
        struct callback_register reg = {callbacks[i].type, CALLBACKF_mask_events, (u64)callbacks[i].entry};
        s64 rc = HYPERVISOR_callback_op(CALLBACKOP_register, &reg);

        if (rc && callbacks[i].needed)
            panic("callback %u cannot be registered: %s", reg.type, error_name(rc));
    }
}

/* ---- Dispatch ---------------------------------------------------------------------------------------------------- */

static const char *trap_name(u32 vector)
{
    static const char *const names[] = {"divide error", "debug", "NMI", "breakpoint", "overflow", "bound", "invalid opcode",
        "no FPU", "double fault", "vector 9", "invalid TSS", "segment not present", "stack fault", "general protection",
        "page fault", "vector 15", "x87 error", "alignment", "machine check", "SIMD error"};

    return vector < ARRAY_SIZE(names) ? names[vector] : vector >= VECTORS ? "callback" : "interrupt";
}

void trap_print(const struct trap_regs *r)
{
    printf("vcpu %u: %s (vector %u, error %#x) in %s mode", this_cpu()->id, trap_name(r->vector), r->vector, r->error,
           trap_from_user(r) ? "user" : "kernel");
    if (r->vector == TRAP_PF)
        printf(", address %#lx", trap_cr2());
    printf("\nrip %04x:%016lx  rflags %08lx  rsp %04lx:%016lx\n", r->cs, r->rip, r->rflags, r->ss, r->rsp);
    printf("rax %016lx  rbx %016lx  rcx %016lx  rdx %016lx\n", r->rax, r->rbx, r->rcx, r->rdx);
    printf("rsi %016lx  rdi %016lx  rbp %016lx  r8  %016lx\n", r->rsi, r->rdi, r->rbp, r->r8);
    printf("r9  %016lx  r10 %016lx  r11 %016lx  r12 %016lx\n", r->r9, r->r10, r->r11, r->r12);
    printf("r13 %016lx  r14 %016lx  r15 %016lx\n", r->r13, r->r14, r->r15);
}

/* Goes back to trap_run of the innermost probe. From user mode too: the frame becomes a kernel's. */
static void trap_escape(struct trap_regs *regs, struct trap_probe *probe)
{
    probe->record = (struct trap_record){true, regs->vector, regs->error, regs->rip, trap_cr2(), trap_from_user(regs)};
    if (trap_from_user(regs))
        this_cpu()->user_sp = 0;
    regs->rip = (u64)trap_resume;
    regs->rsp = probe->sp;
    regs->cs = FLAT_KERNEL_CS & ~3;
    regs->ss = FLAT_KERNEL_SS;
    regs->rflags = probe->masked ? 2 : X86_IF | 2;
}

void trap_dispatch(struct trap_regs *regs)
{
    struct trap_probe *probe = this_cpu()->probe;

    if (regs->vector < TRAP_NR && handlers[regs->vector]) {
        handlers[regs->vector](regs);
        return;
    }
    if (probe && regs->vector != TRAP_NMI) {
        trap_escape(regs, probe);
        return;
    }
    trap_print(regs);
    panic("unhandled trap");
}

struct trap_record trap_try(void (*fn)(void *arg), void *arg)
{
    struct cpu *cpu = this_cpu();
    struct trap_probe probe = {.outer = cpu->probe, .masked = events_masked()};

    cpu->probe = &probe;
    trap_run(&probe, fn, arg);
    cpu->probe = probe.outer;
    return probe.record;
}
