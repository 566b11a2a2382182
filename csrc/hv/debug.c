/* Breakpoints, watchpoints and single steps for a debugger outside of the guest.
 *
 * Owns: domain->debug, VPF_debug, X86_SLOW_DEBUGGER and X86_STRICT_DEBUGGER of the vCPUs. Called by: xenlike.h on the lane; the engine,
 * through the x86_ops of pv/ and pc/. Locks: none: domain->debug changes only while every vCPU of the domain rests.
 *
 * All-stop: when one vCPU meets a point, all get VPF_debug, and the lane one EXIT_DEBUG. With the real clock another vCPU may meet one
 * of its own before it has stopped, and there are two. Guest memory is never changed: a point is an entry in a table.
 */
#include "hv/debug.h"

#include "hv/host.h"

static bool covers(const struct debug_point *b, u64 va, unsigned size) { return va - b->va < b->len || b->va - va < size; }

static void stop_all(struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        vcpu_pause(d->vcpu[i], VPF_debug);
}

/* ---- in the engine ----------------------------------------------------------------------------------------------- */

bool debug_check(struct x86_cpu *c)
{
    struct vcpu *v = c->owner;
    const struct debug_state *s = &v->domain->debug;
    if (v->debug.resumed) {
        v->debug.resumed = false;
        if (c->r[X86_RIP] == v->debug.resumed_at)       /* else an event came first, or VCPUOP_initialise */
            return false;
    }
    if (v->debug.step)
        return true;
    for (u32 i = 0; i < s->nr; i++)
        if (s->point[i].kind == DEBUG_EXEC && s->point[i].va == c->r[X86_RIP])
            return true;
    return false;
}

void debug_watch(struct x86_cpu *c, u64 va, unsigned size, bool write)
{
    struct vcpu *v = c->owner;
    const struct debug_state *s = &v->domain->debug;
    for (u32 i = 0; i < s->nr; i++) {
        const struct debug_point *b = &s->point[i];
        bool kind = b->kind == DEBUG_ACCESS || b->kind == (write ? DEBUG_WRITE : DEBUG_READ);
        if (kind && covers(b, va, size)) {
            v->debug.watch_hit = true;
            v->debug.watch_va = b->va;
            x86_stop(c);
        }
    }
}

void debug_stopped(struct vcpu *v)
{
    unsigned reason = v->debug.watch_hit ? DEBUG_WATCHPOINT : v->debug.step ? DEBUG_STEPPED : DEBUG_BREAKPOINT;
    u64 where = v->debug.watch_hit ? v->debug.watch_va : v->cpu->r[X86_RIP];
    v->debug.watch_hit = false;
    v->debug.step = false;
    stop_all(v->domain);
    lane_push(v->host, (struct lane_exit){ .kind = EXIT_DEBUG, .domid = v->domain->id, .vcpu = v->id, .a = reason, .b = where });
}

/* ---- from the lane ----------------------------------------------------------------------------------------------- */

void debug_stop(struct domain *d)
{
    stop_all(d);
    for (u32 i = 0; i < d->nr_vcpus; i++)
        vcpu_wait_rest(d->vcpu[i]);
}

/* v's slow and strict as the table, or a step, wants them; v is at rest. */
static void arm(struct vcpu *v)
{
    const struct debug_state *s = &v->domain->debug;
    struct x86_cpu *c = v->cpu;
    bool exec = v->debug.step, data = false;
    for (u32 i = 0; i < s->nr; i++)
        if (s->point[i].kind == DEBUG_EXEC)
            exec = true;
        else
            data = true;
    c->slow = (c->slow & ~X86_SLOW_DEBUGGER) | (exec ? X86_SLOW_DEBUGGER : 0);
    c->strict = (c->strict & ~X86_STRICT_DEBUGGER) | (data ? X86_STRICT_DEBUGGER : 0);
}

int debug_point_change(struct domain *d, bool add, unsigned kind, u64 va, u32 len)
{
    struct debug_state *s = &d->debug;
    u32 i = 0;
    if (kind >= NR_DEBUG_KINDS || !len)
        return -XEN_EINVAL;
    while (i < s->nr && !(s->point[i].va == va && s->point[i].kind == kind && s->point[i].len == len))
        i++;
    if (add && i < s->nr)
        return 0;
    if (add ? i == DEBUG_POINTS : i == s->nr)
        return add ? -XEN_ENOSPC : -XEN_EINVAL;
    if (add)
        s->point[s->nr++] = (struct debug_point){ va, len, (u8)kind };
    else
        s->point[i] = s->point[--s->nr];
    return 0;
}

void debug_go(struct domain *d, struct vcpu *only, bool step)
{
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        if (only && v != only)
            continue;
        v->debug.step = step;
        arm(v);
        v->debug.resumed = v->cpu->slow & X86_SLOW_DEBUGGER;
        v->debug.resumed_at = v->cpu->r[X86_RIP];
    }
    for (u32 i = 0; i < d->nr_vcpus; i++)       /* now that all are set up: the first may bring up the next */
        if (!only || d->vcpu[i] == only)
            vcpu_unpause(d->vcpu[i], VPF_debug);
}

void debug_attach(struct domain *d, bool on)
{
    debug_stop(d);
    d->debug.attached = on;
    d->debug.nr = 0;
    if (!on)
        debug_go(d, NULL, false);
}
