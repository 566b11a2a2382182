/*
 * Bringing vCPUs up and down.
 */
#include <guest.h>

#define STACK_PAGES 8

extern char event_entry[], failsafe_entry[], syscall_entry[];
void cpu_init(struct cpu *cpu, u32 id);

u32 smp_count(void)
{
    u32 n = 1;

    while (n < MAX_VCPUS && HYPERVISOR_vcpu_op(VCPUOP_is_up, n, NULL) >= 0)
        n++;
    return n;
}

static void smp_entry(void)
{
    struct cpu *cpu = this_cpu();

    callbacks_init(); /* the context has room for three of them only, and not for their flags */
    events_enable();
    cpu->entry(cpu->arg);
    for (;;)
        HYPERVISOR_vcpu_op(VCPUOP_down, cpu->id, NULL);
}

s64 smp_boot(u32 vcpu, void (*entry)(void *arg), void *arg)
{
    struct vcpu_guest_context *context;
    struct cpu *cpu = &cpus[vcpu];
    s64 rc;

    if (vcpu == 0 || vcpu >= MAX_VCPUS)
        return -XEN_EINVAL;
    context = calloc(1, sizeof(*context));
    if (!cpu->stack)
        cpu->stack = page_alloc(STACK_PAGES);
    if (!context || !cpu->stack) {
        free(context);
        return -XEN_ENOMEM;
    }
    cpu_init(cpu, vcpu);
    cpu->entry = entry;
    cpu->arg = arg;
    context->flags = VGCF_in_kernel | VGCF_online;
    context->user_regs.rip = (u64)smp_entry;
    context->user_regs.rsp = (u64)cpu->stack + STACK_PAGES * PAGE_SIZE - 8; /* as if called */
    context->user_regs.rflags = 2;
    context->user_regs.cs = FLAT_KERNEL_CS;
    context->user_regs.ss = FLAT_KERNEL_SS;
    context->kernel_ss = FLAT_KERNEL_SS;
    context->kernel_sp = context->user_regs.rsp + 8;
    context->ctrlreg[3] = virt_to_mfn(kernel_space.l4) << PAGE_SHIFT;
    context->event_callback_eip = (u64)event_entry;
    context->failsafe_callback_eip = (u64)failsafe_entry;
    context->syscall_callback_eip = (u64)syscall_entry;
    context->gs_base_kernel = (u64)cpu;
    *(u16 *)&context->fpu_ctxt.x[0] = 0x37f; /* x87 control word, MXCSR: all exceptions masked */
    *(u32 *)&context->fpu_ctxt.x[24] = 0x1f80;
    trap_fill(context->trap_ctxt);
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, vcpu, context);
    free(context);
    return rc ? rc : HYPERVISOR_vcpu_op(VCPUOP_up, vcpu, NULL);
}
