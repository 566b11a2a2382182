/* vcpu_op: bringing vCPUs up and down, their timers and their areas in guest memory (xen-abi 8.2, Xen 4.17's column of
 * appendix A; Xen's public vcpu.h).
 *
 * Owns: vcpu.info, info_mfn, runstate_va, time_va. Called by: dispatch, on the thread of the calling vCPU `self`; `v` is the
 * vCPU that the call names, of the same domain, which may run elsewhere. Locks: domain->lock for the move of vcpu_info;
 * mm.lock inside mm_set_gdt and mm_set_vcpu_bases. initialise has a claim of its own (below) instead of a lock, because
 * validating page tables takes long.
 */
#include <string.h>

#include "hv/host.h"
#include "hv/hypercall.h"
#include "xen/sched.h"

static const u64 TICK_MIN = 1000000, TICK_MAX = ~0ul >> 2;

/* ---- initialise -------------------------------------------------------------------------------------------------- */

enum { LDT_ENTRIES_MAX = 8192, NR_TRAPS = 256 };

/* Could be a frame of RAM at all; 0 never is, and means "none" to mm_set_vcpu_bases. */
static inline bool is_mfn(u64 mfn) { return mfn && mfn == (u32)mfn; }

static int context_check(const struct vcpu_guest_context *c)
{
    const u64 addresses[] = {
        c->user_regs.rip, c->user_regs.rsp, c->kernel_sp, c->event_callback_eip, c->failsafe_callback_eip,
        c->syscall_callback_eip, c->fs_base, c->gs_base_kernel, c->gs_base_user,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++)
        if (!va_canonical(addresses[i]))
            return -XEN_EINVAL;
    for (unsigned i = 0; i < NR_TRAPS; i++)
        if (!va_canonical(c->trap_ctxt[i].address))
            return -XEN_EINVAL;
    if (c->ldt_base % PAGE_SIZE || c->ldt_ents > LDT_ENTRIES_MAX || !va_canonical(c->ldt_base) || in_hypervisor_range(c->ldt_base))
        return -XEN_EINVAL;
    if (c->gdt_ents > FIRST_RESERVED_GDT_ENTRY)
        return -XEN_EINVAL;
    if (!(c->flags & VGCF_in_kernel) && !c->ctrlreg[1])         /* starts in user mode without a user page table */
        return -XEN_EINVAL;
    if (!is_mfn(c->ctrlreg[3] >> PAGE_SHIFT) || (c->ctrlreg[1] && !is_mfn(c->ctrlreg[1] >> PAGE_SHIFT)))
        return -XEN_EINVAL;
    return 0;
}

/* Everything but references to frames. */
static void context_load(struct vcpu *v, const struct vcpu_guest_context *c)
{
    struct vcpu_arch *a = &v->arch;

    a->iopl = (c->user_regs.rflags & X86_IOPL) >> 12;
    for (unsigned i = 0; i < NR_TRAPS; i++) {
        a->traps[i] = c->trap_ctxt[i];
        a->traps[i].cs |= 3;
    }
    a->vgc_flags = (u32)c->flags;
    v->kernel_mode = c->flags & VGCF_in_kernel;
    a->kernel_ss = (u16)c->kernel_ss | 3;
    a->kernel_sp = c->kernel_sp;
    a->event_callback = c->event_callback_eip;
    a->failsafe_callback = c->failsafe_callback_eip;
    a->syscall_callback = c->syscall_callback_eip;
    mm_set_ldt(v, c->ldt_base, (u32)c->ldt_ents);
    if (vcpu_backend(v)->set_context)
        vcpu_backend(v)->set_context(v, c);
}

/* The caller has claimed v. Nothing that v runs with is set unless all of it can be. */
static int context_set(struct vcpu *v, const struct vcpu_guest_context *c)
{
    static const u8 debug_registers[] = { 0, 1, 2, 3, 6, 7 };
    struct vcpu_arch *a = &v->arch;

    int rc = context_check(c);
    if (rc)
        return rc;
    for (unsigned i = 0; i < ARRAY_SIZE(debug_registers); i++)
        if (do_set_debugreg(v, debug_registers[i], c->debugreg[debug_registers[i]]))
            return -XEN_EINVAL;
    if (!a->traps && !(a->traps = arena_alloc(&v->host->arena, NR_TRAPS * sizeof *a->traps)))
        return -XEN_ENOMEM;

    rc = mm_set_gdt(v, c->gdt_frames, (u32)c->gdt_ents);
    if (rc)
        return -XEN_EINVAL;
    rc = mm_set_vcpu_bases(v, (u32)(c->ctrlreg[3] >> PAGE_SHIFT), (u32)(c->ctrlreg[1] >> PAGE_SHIFT));
    if (rc) {
        mm_set_gdt(v, NULL, 0);
        return -XEN_EINVAL;
    }
    context_load(v, c);
    store_release(v->initialised, true);
    return 0;
}

static s64 vcpuop_initialise(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_guest_context c;

    if (v->id >= XEN_LEGACY_MAX_VCPUS && !read_once(v->info_mfn))
        return -XEN_EINVAL;
    if (copy_from_guest(self, &c, arg, sizeof c))
        return -XEN_EFAULT;
    if (atomic_or(&v->pause_flags, VPF_initialising) & VPF_initialising)
        return -XEN_EEXIST;
    s64 rc = load_acquire(v->initialised) ? -XEN_EEXIST : context_set(v, &c);
    vcpu_unpause(v, VPF_initialising);
    return rc;
}

/* ---- up and down ------------------------------------------------------------------------------------------------- */

static s64 vcpuop_up(struct vcpu *self, struct vcpu *v, u64 arg)
{
    if (!load_acquire(v->initialised))
        return -XEN_EINVAL;
    vcpu_unpause(v, VPF_down);
    return 0;
}

static bool all_down(const struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        if (!(load_acquire(d->vcpu[i]->pause_flags) & VPF_down))
            return false;
    return true;
}

/* First down, then look: of two vCPUs that go down at once, at least one sees the other down. The last one is not left
 * down, it is the domain that stops. */
static s64 vcpuop_down(struct vcpu *self, struct vcpu *v, u64 arg)
{
    vcpu_pause(v, VPF_down);
    smp_mb();
    if (all_down(v->domain)) {
        domain_shutdown(v->domain, SHUTDOWN_poweroff);
        vcpu_unpause(v, VPF_down);
    }
    return 0;
}

static s64 vcpuop_is_up(struct vcpu *self, struct vcpu *v, u64 arg)
{
    return !(load_acquire(v->pause_flags) & VPF_down);
}

static s64 vcpuop_send_nmi(struct vcpu *self, struct vcpu *v, u64 arg)
{
    if (arg)
        return -XEN_EINVAL;
    if (!xchg(&v->arch.nmi_pending, true))
        vcpu_kick(v);
    return 0;
}

/* For the hardware domain with its vCPUs pinned. */
static s64 vcpuop_get_physid(struct vcpu *self, struct vcpu *v, u64 arg)
{
    return -XEN_EINVAL;
}

/* ---- areas in guest memory --------------------------------------------------------------------------------------- */

static s64 vcpuop_get_runstate_info(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_runstate_info r;
    vcpu_runstate_get(v, &r);
    return copy_to_guest(self, arg, &r, sizeof r) ? -XEN_EFAULT : 0;
}

/* The first copy is written here, in the caller's address space; those that follow, in the vCPU's own. Address 0: no more. */
static s64 vcpuop_register_runstate_memory_area(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_register_runstate_memory_area area;
    struct vcpu_runstate_info r;

    if (copy_from_guest(self, &area, arg, sizeof area))
        return -XEN_EFAULT;
    if (area.addr.p) {
        vcpu_runstate_get(v, &r);
        if (copy_to_guest(self, area.addr.p, &r, sizeof r))
            return -XEN_EFAULT;
    }
    write_once(v->runstate_va, area.addr.p);
    return 0;
}

/* The record never changes (hv/time.c), so one copy is all that is ever needed. */
static s64 vcpuop_register_vcpu_time_memory_area(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_register_time_memory_area area;
    struct vcpu_time_info t;

    if (copy_from_guest(self, &area, arg, sizeof area))
        return -XEN_EFAULT;
    vcpu_time_record(&t);
    if (area.addr.p && copy_to_guest(self, area.addr.p, &t, sizeof t))
        return -XEN_EFAULT;
    write_once(v->time_va, area.addr.p);
    return 0;
}

/* The caller holds the frame's references and domain->lock. */
static void move_info(struct vcpu *v, u32 mfn, struct vcpu_info *to)
{
    if (v->id >= XEN_LEGACY_MAX_VCPUS) {        /* it had a dummy: nothing to keep */
        memset(to, 0, sizeof *to);
        to->evtchn_upcall_mask = 1;
        vcpu_time_record(&to->time);
    } else {
        memmove(to, v->info, sizeof *to);
    }
    write_once(v->info_mfn, mfn);
    store_release(v->info, to);
}

/* For good: the frame stays typed writable and referenced until the domain dies (hv/domain.c drops it). */
static s64 vcpuop_register_vcpu_info(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct host *h = v->host;
    struct domain *d = v->domain;
    struct vcpu_register_vcpu_info reg;

    if (copy_from_guest(self, &reg, arg, sizeof reg))
        return -XEN_EFAULT;
    if (reg.offset > PAGE_SIZE - sizeof(struct vcpu_info) || reg.offset % 8)
        return -XEN_ENXIO;
    if (v != self && !(load_acquire(v->pause_flags) & VPF_down))
        return -XEN_EINVAL;
    if (get_page_and_type(h, reg.mfn, d, PGT_writable_page))
        return -XEN_EINVAL;

    u8 *page = frame_write_begin(h, reg.mfn, d);        /* marks it as written to */
    spin_lock(&d->lock);
    bool ok = page && !v->info_mfn;
    if (ok)
        move_info(v, (u32)reg.mfn, (struct vcpu_info *)(page + reg.offset));
    spin_unlock(&d->lock);
    if (page)
        frame_write_end(h, reg.mfn);
    if (!ok) {
        put_page_and_type(h, reg.mfn);
        return -XEN_EINVAL;
    }
    evtchn_vcpu_info_moved(v);
    return 0;
}

/* ---- timers ------------------------------------------------------------------------------------------------------ */

static s64 vcpuop_set_periodic_timer(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_set_periodic_timer t;

    if (copy_from_guest(self, &t, arg, sizeof t))
        return -XEN_EFAULT;
    if (t.period_ns < TICK_MIN || t.period_ns > TICK_MAX)
        return -XEN_EINVAL;
    return vcpu_periodic_set(v, t.period_ns);
}

static s64 vcpuop_stop_periodic_timer(struct vcpu *self, struct vcpu *v, u64 arg)
{
    return vcpu_periodic_set(v, 0);
}

static s64 vcpuop_set_singleshot_timer(struct vcpu *self, struct vcpu *v, u64 arg)
{
    struct vcpu_set_singleshot_timer t;

    if (v != self)
        return -XEN_EINVAL;
    if (copy_from_guest(self, &t, arg, sizeof t))
        return -XEN_EFAULT;
    if (t.flags & VCPU_SSHOTTMR_future && t.timeout_abs_ns < host_now(v->host))
        return -XEN_ETIME;
    return vcpu_singleshot_set(v, t.timeout_abs_ns);
}

static s64 vcpuop_stop_singleshot_timer(struct vcpu *self, struct vcpu *v, u64 arg)
{
    if (v != self)
        return -XEN_EINVAL;
    timer_stop(v->host, &v->singleshot);
    return 0;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

static s64 (*const ops[])(struct vcpu *self, struct vcpu *v, u64 arg) = {
#define VCPUOP(number, name, arg) [number] = vcpuop_##name,
#include "xen/vcpuop.def"
#undef VCPUOP
};

s64 do_vcpu_op(struct vcpu *self, u64 cmd, u64 vcpuid, u64 arg)
{
    const struct domain *d = self->domain;
    u32 id = (u32)vcpuid, op = (u32)cmd;

    if (id >= d->nr_vcpus)
        return -XEN_ENOENT;
    if (op >= ARRAY_SIZE(ops) || !ops[op])
        return -XEN_ENOSYS;
    return ops[op](self, d->vcpu[id], arg);
}
