/* See native.h. */
#include "hv/native.h"

#include "bt/bt.h"
#include "hv/debug.h"
#include "hv/host.h"

enum { SLICE = 8192, SLICE_BT = 65536 };        /* about 20 us of the translator's time */

/* ---- life -------------------------------------------------------------------------------------------------------- */

void native_attach(struct vcpu *v, struct x86_cpu *c, const struct x86_ops *ops)
{
    v->cpu = c;
    c->tlb = v->tlb;
    c->ops = ops;
    c->owner = v;
    c->attention = &v->exit_work;
    c->features = x86_features_supported();
    c->bus_lock = &v->domain->bus_lock;
    c->roughly = v->host->clock.kind == CLOCK_REAL;
    c->codemap = &v->host->machine.codemap;
}

void native_detach(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    bt_destroy(c);
    v->cpu = NULL;
    arena_free(&v->host->arena, c->icache, x86_icache_bytes());
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

void native_charge(struct vcpu *v)
{
    const struct x86_cpu *c = v->cpu;
    u64 n = c->retired - v->native.charged;
    v->native.charged = c->retired;
    stat_add(v, instructions, n);
    v->stats[STAT_undecoded] = c->undecoded;
    clock_advance(&v->host->clock, n);
}

u64 native_budget(const struct vcpu *v)
{
    const struct clock *clock = &v->host->clock;
    u64 now = clock_now(clock), stop = load_acquire(*v->native.stop_at), left = stop > now ? stop - now : 0;
    return clock->kind == CLOCK_VIRTUAL || !left ? left : v->cpu->bt ? SLICE_BT : SLICE;
}

void native_spend_virtual(struct vcpu *v, u64 cost)
{
    struct x86_cpu *c = v->cpu;
    native_charge(v);
    clock_advance(&v->host->clock, cost);
    u64 left = native_budget(v);
    c->limit = left < NEVER - c->retired ? c->retired + left : NEVER;
}

/* ---- in and out -------------------------------------------------------------------------------------------------- */

void native_begin(struct vcpu *v, const u64 *stop_at)
{
    struct x86_cpu *c = v->cpu;
    v->native.stop_at = stop_at;
    if (unlikely(!c->icache))           /* not before it runs: most of a big domain's vCPUs may never do. NULL: no memory, decodes each time */
        c->icache = arena_alloc(&v->host->arena, x86_icache_bytes());
    if (unlikely(v->host->translate && !c->bt && !v->native.untranslated) && !bt_create(c, v->host->bt_options)) {
        v->native.untranslated = true;                  /* it is interpreted, and Python says so */
        lane_push(v->host, (struct lane_exit){ .kind = EXIT_ENGINE, .domid = v->domain->id, .vcpu = (u16)v->id });
    }
}

void native_enter(struct vcpu *v)
{
    u32 work = read_once(v->exit_work) & (WORK_flush | WORK_upcall | WORK_code);
    if (work)                           /* entering guest mode is what flushes */
        atomic_and(&v->exit_work, ~work);
    if (unlikely(work & WORK_code)) {
        guest_mode_wait(v->host, v->native.changed_foreign ? NULL : v->domain);
        v->native.changed_foreign = false;
    }
    vcpu_enter_guest(v);
}

enum x86_exit native_execute(struct vcpu *v, u64 n)
{
    enum x86_exit exit = vcpu_must_park(v) ? X86_STOPPED : bt_run(v->cpu, n);
    vcpu_leave_guest(v);
    if (unlikely(exit == X86_DEBUGGER || v->debug.watch_hit))
        debug_stopped(v);
    return exit;
}

void vcpu_nudge(struct vcpu *v)
{
    if (v->cpu)
        bt_kick(v->cpu);
}

/* ---- translated code --------------------------------------------------------------------------------------------- */

/* Other domains may map the page, or have. */
static bool is_foreign(const struct vcpu *v, const u8 *p)
{
    const struct machine *m = &v->host->machine;
    return read_once(m->frames[(u64)(p - m->ram) >> PAGE_SHIFT].count_info) & PGC_FOREIGN;
}

void native_code_changed(struct x86_cpu *c, const u8 *p)
{
    struct vcpu *v = c->owner;
    bool foreign = is_foreign(v, p);
    if (v->host->clock.kind == CLOCK_VIRTUAL || (!foreign && v->domain->nr_vcpus == 1))
        return;
    v->native.changed_foreign |= foreign;
    atomic_or(&v->exit_work, WORK_code);
}

void native_code_page(struct x86_cpu *c, const u8 *p)
{
    struct vcpu *v = c->owner;
    vcpu_leave_guest(v);
    if (is_foreign(v, p))
        tlb_shootdown_since(v->host, NEVER);
    else
        tlb_flush_domain(v->domain);
    vcpu_enter_guest(v);
}
