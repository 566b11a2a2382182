/*
 * Hypercalls: one raw function a row of xen/hypercalls.def, hypercall_<name>(u64...), and typed ones, HYPERVISOR_<name>, for those
 * that guests use by themselves.
 *
 * All go through the hypercall page, which the domain builder fills where the HYPERCALL_PAGE note says. Results are those of the
 * ABI: 0 or a count, or -XEN_E<error> (xen/errno.h). The hypervisor may clobber the argument registers that a call uses, and rcx
 * and r11 belong to the `syscall` instruction; all others are kept.
 */
#ifndef GUEST_HYPERCALL_H
#define GUEST_HYPERCALL_H

#include <guest/types.h>
#include <xen/callback.h>
#include <xen/errno.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>
#include <xen/xen.h>

extern char hypercall_page[4096];

#define GUEST_CALL(nr, ...)                                                                                                        \
    s64 ret;                                                                                                                       \
    asm volatile("call hypercall_page + %c[stub]" : "=a"(ret) __VA_ARGS__ : [stub] "i"((nr) * 32) : "rcx", "r11", "memory");       \
    return ret

#define GUEST_HYPERCALL_0(nr, name)                                                                                                \
    static inline s64 hypercall_##name(void)                                                                                       \
    {                                                                                                                              \
        GUEST_CALL(nr, );                                                                                                          \
    }
#define GUEST_HYPERCALL_1(nr, name)                                                                                                \
    static inline s64 hypercall_##name(u64 a1)                                                                                     \
    {                                                                                                                              \
        GUEST_CALL(nr, , "+D"(a1));                                                                                                \
    }
#define GUEST_HYPERCALL_2(nr, name)                                                                                                \
    static inline s64 hypercall_##name(u64 a1, u64 a2)                                                                             \
    {                                                                                                                              \
        GUEST_CALL(nr, , "+D"(a1), "+S"(a2));                                                                                      \
    }
#define GUEST_HYPERCALL_3(nr, name)                                                                                                \
    static inline s64 hypercall_##name(u64 a1, u64 a2, u64 a3)                                                                     \
    {                                                                                                                              \
        GUEST_CALL(nr, , "+D"(a1), "+S"(a2), "+d"(a3));                                                                            \
    }
#define GUEST_HYPERCALL_4(nr, name)                                                                                                \
    static inline s64 hypercall_##name(u64 a1, u64 a2, u64 a3, u64 a4)                                                             \
    {                                                                                                                              \
        register u64 r10 asm("r10") = a4;                                                                                          \
        GUEST_CALL(nr, , "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10));                                                                 \
    }
#define GUEST_HYPERCALL_5(nr, name)                                                                                                \
    static inline s64 hypercall_##name(u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)                                                     \
    {                                                                                                                              \
        register u64 r10 asm("r10") = a4;                                                                                          \
        register u64 r8 asm("r8") = a5;                                                                                            \
        GUEST_CALL(nr, , "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10), "+r"(r8));                                                       \
    }

#define HYPERCALL(number, name, nargs, where, note) GUEST_HYPERCALL_##nargs(number, name)
#include <xen/hypercalls.def>
#undef HYPERCALL

/* ---- Typed ------------------------------------------------------------------------------------------------------- */

#define GUEST_TYPED(name, params, ...)                                                                                             \
    static inline s64 HYPERVISOR_##name params                                                                                     \
    {                                                                                                                              \
        return hypercall_##name(__VA_ARGS__);                                                                                      \
    }

GUEST_TYPED(set_trap_table, (const struct trap_info *table), (u64)table)
GUEST_TYPED(mmu_update, (const struct mmu_update *req, u32 count, u32 *done, u32 domid), (u64)req, count, (u64)done, domid)
GUEST_TYPED(set_gdt, (const xen_pfn_t *frames, u32 entries), (u64)frames, entries)
GUEST_TYPED(stack_switch, (u64 ss, u64 sp), ss, sp)
GUEST_TYPED(fpu_taskswitch, (u32 set), set)
GUEST_TYPED(set_debugreg, (u32 reg, u64 value), reg, value)
GUEST_TYPED(get_debugreg, (u32 reg), reg)
GUEST_TYPED(update_descriptor, (u64 maddr, u64 descriptor), maddr, descriptor)
GUEST_TYPED(memory_op, (u32 cmd, void *arg), cmd, (u64)arg)
GUEST_TYPED(multicall, (struct multicall_entry *list, u32 count), (u64)list, count)
GUEST_TYPED(update_va_mapping, (const void *va, u64 pte, u64 flags), (u64)va, pte, flags)
GUEST_TYPED(set_timer_op, (u64 when), when)
GUEST_TYPED(xen_version, (u32 cmd, void *arg), cmd, (u64)arg)
GUEST_TYPED(console_io, (u32 cmd, u32 count, char *text), cmd, count, (u64)text)
GUEST_TYPED(grant_table_op, (u32 cmd, void *args, u32 count), cmd, (u64)args, count)
GUEST_TYPED(vm_assist, (u32 cmd, u32 type), cmd, type)
GUEST_TYPED(vcpu_op, (u32 cmd, u32 vcpu, void *arg), cmd, vcpu, (u64)arg)
GUEST_TYPED(set_segment_base, (u32 which, u64 base), which, base)
GUEST_TYPED(mmuext_op, (struct mmuext_op *ops, u32 count, u32 *done, u32 domid), (u64)ops, count, (u64)done, domid)
GUEST_TYPED(sched_op, (u32 cmd, void *arg), cmd, (u64)arg)
GUEST_TYPED(callback_op, (u32 cmd, void *arg), cmd, (u64)arg)
GUEST_TYPED(event_channel_op, (u32 cmd, void *arg), cmd, (u64)arg)
GUEST_TYPED(physdev_op, (u32 cmd, void *arg), cmd, (u64)arg)

#endif
