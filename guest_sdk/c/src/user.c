/*
 * User mode. Each entry into the kernel from there uses the stack below user_enter's frame; exit unwinds to that frame.
 */
#include <guest.h>

extern char __user_text[], __user_text_end[], __user_data[], __user_data_end[], user_return[];
u64 user_enter(u64 rip, u64 rsp, u64 arg);
void user_leave(u64 result) __attribute__((noreturn));

static void user_trap(struct trap_regs *regs)
{
    if (regs->rax == USER_SYS_EXIT)
        user_exit(regs->rdi);
    regs->rax = this_cpu()->syscall ? this_cpu()->syscall(regs) : (u64)-XEN_ENOSYS;
}

s64 user_map(struct user *user, u64 va, u64 mfn, u64 flags)
{
    return space_map(&user->space, va, mfn << PAGE_SHIFT | flags | PTE_U);
}

static s64 map_image(struct user *user, char *from, char *to, u64 flags)
{
    s64 rc = 0;

    for (char *va = from; va < to && !rc; va += PAGE_SIZE)
        rc = user_map(user, (u64)va, virt_to_mfn(va), flags);
    return rc;
}

s64 user_create(struct user *user)
{
    s64 rc;

    *user = (struct user){.stack = page_alloc(USER_STACK_PAGES)};
    if (!user->stack)
        return -XEN_ENOMEM;
    rc = space_create(&user->space);
    if (!rc)
        rc = map_image(user, __user_text, __user_text_end, PTE_RO);
    if (!rc)
        rc = map_image(user, __user_data, __user_data_end, PTE_DATA | PTE_NX);
    for (u64 i = 0; i < USER_STACK_PAGES && !rc; i++)
        rc = user_map(user, USER_STACK_TOP - (i + 1) * PAGE_SIZE, virt_to_mfn(user->stack + (USER_STACK_PAGES - 1 - i) * PAGE_SIZE),
                      PTE_DATA | PTE_NX);
    if (!rc)
        rc = mmuext(MMUEXT_PIN_L4_TABLE, virt_to_mfn(user->space.l4), 0);
    if (rc)
        user_destroy(user);
    return rc;
}

void user_destroy(struct user *user)
{
    mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0);
    space_destroy(&user->space);
    page_free(user->stack, USER_STACK_PAGES);
}

u64 user_call(struct user *user, u64 (*fn)(u64 arg), u64 arg, u64 (*syscall)(struct trap_regs *regs))
{
    bool masked = events_save();
    u64 *top = user->stack + USER_STACK_PAGES * PAGE_SIZE;
    s64 rc = mmuext(MMUEXT_NEW_USER_BASEPTR, virt_to_mfn(user->space.l4), 0);
    u64 result;

    if (rc)
        panic("no user page table: %s", error_name(rc));
    top[-1] = (u64)user_return; /* the ABI's alignment at a function's entry: 8 below a multiple of 16 */
    this_cpu()->syscall = syscall;
    trap_set(TRAP_SYSCALL, user_trap, 0);
    result = user_enter((u64)fn, USER_STACK_TOP - 8, arg);
    events_restore(masked);
    return result;
}

void user_exit(u64 result)
{
    ASSERT(this_cpu()->user_sp);
    user_leave(result);
}
