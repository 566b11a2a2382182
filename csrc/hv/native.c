/* See native.h. */
#include "hv/native.h"

#include "bt/bt.h"
#include "hv/debug.h"
#include "hv/host.h"

enum { SLICE = 8192 };

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
    return clock->kind == CLOCK_VIRTUAL || !left ? left : SLICE;
}

void native_spend(struct vcpu *v, u64 cost)
{
    struct x86_cpu *c = v->cpu;
    if (v->host->clock.kind == CLOCK_VIRTUAL) {
        native_charge(v);
        clock_advance(&v->host->clock, cost);
        u64 left = native_budget(v);
        c->limit = left < NEVER - c->retired ? c->retired + left : NEVER;
    } else {
        c->limit = c->limit > c->retired + cost ? c->limit - cost : c->retired;
    }
}

/* ---- in and out -------------------------------------------------------------------------------------------------- */

void native_begin(struct vcpu *v, const u64 *stop_at)
{
    struct x86_cpu *c = v->cpu;
    v->native.stop_at = stop_at;
    if (unlikely(!c->icache))           /* not before it runs: most of a big domain's vCPUs may never do. NULL: no memory, decodes each time */
        c->icache = arena_alloc(&v->host->arena, x86_icache_bytes());
    if (unlikely(v->host->translate && !c->bt))
        (void)bt_create(c, v->host->bt_options);        /* without: it is interpreted */
}

void native_enter(struct vcpu *v)
{
    if (read_once(v->exit_work) & (WORK_flush | WORK_upcall))   /* entering guest mode is what flushes */
        atomic_and(&v->exit_work, ~(u32)(WORK_flush | WORK_upcall));
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

void native_code_page(struct x86_cpu *c, const u8 *p)
{
    struct vcpu *v = c->owner;
    const struct machine *m = &v->host->machine;
    const struct frame *f = &m->frames[(u64)(p - m->ram) >> PAGE_SHIFT];
    vcpu_leave_guest(v);
    if (read_once(f->count_info) & PGC_FOREIGN)
        tlb_shootdown_since(v->host, NEVER);
    else
        tlb_flush_domain(v->domain);
    vcpu_enter_guest(v);
}
