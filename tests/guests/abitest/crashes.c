/*
 * What a guest kernel can only die of: where Xen would have to report a fault and cannot. Each prints that it begins, and that must be all.
 */
#include "abitest.h"

#define CRASH_BEGINS()                                                                                                             \
    do {                                                                                                                           \
        printf("it begins\n");                                                                                                     \
        console_drain();                                                                                                           \
    } while (0)

#define SURVIVED FAIL("the domain lives")

const char *crash_no_handler(void)
{
    CRASH_BEGINS();
    HYPERVISOR_set_trap_table(NULL);
    asm volatile("ud2");
    return SURVIVED;
}

/* An exception with the stack pointer at `sp`. */
static void fault_with_stack(u64 sp)
{
    asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; ud2; mov %%rbx, %%rsp" : : "r"(sp) : "rbx", "memory");
}

const char *crash_no_stack(void)
{
    CRASH_BEGINS();
    fault_with_stack(0x1000);
    return SURVIVED;
}

const char *crash_stack_in_xen(void)
{
    CRASH_BEGINS();
    fault_with_stack(HYPERVISOR_VIRT_START + 0x10000);
    return SURVIVED;
}

const char *crash_stack_not_canonical(void)
{
    CRASH_BEGINS();
    fault_with_stack(0x0000800000000010);
    return SURVIVED;
}

const char *crash_iret_frame(void)
{
    CRASH_BEGINS();
    asm volatile("mov %0, %%rsp; mov %1, %%eax; syscall" : : "r"(0x1000ul), "i"(__HYPERVISOR_iret) : "memory");
    return SURVIVED;
}

const char *crash_iret_no_user(void)
{
    CRASH_BEGINS();
    mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0);
    asm volatile("push %0; push %%rsp; push $0x202; push %1; push $0; push $0; push $0; push $0; push $0; mov %2, %%eax; syscall"
                 : : "i"(FLAT_USER_SS), "i"(FLAT_USER_CS), "i"(__HYPERVISOR_iret) : "memory");
    return SURVIVED;
}

const char *crash_no_callback(void)
{
    struct callback_register none = {.type = CALLBACKTYPE_event};
    s64 port = event_bind_ipi(0);

    CRASH_BEGINS();
    HYPERVISOR_callback_op(CALLBACKOP_register, &none);
    event_handle(port, (event_handler_t *)1, NULL);
    event_send(port);
    return SURVIVED;
}
