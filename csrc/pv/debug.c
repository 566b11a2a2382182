/* Breakpoints, watchpoints and single steps for a debugger outside of the guest.
 *
 * Owns: domain->debug, VPF_debug, X86_SLOW_DEBUGGER and X86_STRICT_DEBUGGER of the vCPUs. Called by: xenlike.h on the lane; the engine.
 * Locks: none: domain->debug changes only while every vCPU of the domain rests.
 *
 * All-stop: when one vCPU meets a point, all get VPF_debug, and the lane one EXIT_DEBUG. With the real clock another vCPU may meet one
 * of its own before it has stopped, and there are two. Guest memory is never changed: a point is an entry in a table.
 */
#include "pv/pv.h"

static bool covers(const struct debug_point *b, u64 va, unsigned size) { return va - b->va < b->len || b->va - va < size; }

static void stop_all(struct domain *d)
{
    for (u32 i = 0; i < d->nr_vcpus; i++)
        vcpu_pause(d->vcpu[i], VPF_debug);
}

/* ---- in the engine ----------------------------------------------------------------------------------------------- */

bool pv_debug(struct x86_cpu *c)
{
    struct pv_cpu *p = pv_cpu_of(c);
    const struct debug_state *s = &p->vcpu->domain->debug;
    if (p->resumed) {
        p->resumed = false;
        if (c->r[X86_RIP] == p->resumed_at)     /* else an event came first, or VCPUOP_initialise */
            return false;
    }
    if (p->step)
        return true;
    for (u32 i = 0; i < s->nr; i++)
        if (s->point[i].kind == DEBUG_EXEC && s->point[i].va == c->r[X86_RIP])
            return true;
    return false;
}

void pv_watch(struct x86_cpu *c, u64 va, unsigned size, bool write)
{
    struct pv_cpu *p = pv_cpu_of(c);
    const struct debug_state *s = &p->vcpu->domain->debug;
    for (u32 i = 0; i < s->nr; i++) {
        const struct debug_point *b = &s->point[i];
        bool kind = b->kind == DEBUG_ACCESS || b->kind == (write ? DEBUG_WRITE : DEBUG_READ);
        if (kind && covers(b, va, size)) {
            p->watch_hit = true;
            p->watch_va = b->va;
            x86_stop(c);
        }
    }
}

void pv_debug_stopped(struct vcpu *v)
{
    struct pv_cpu *p = pv_cpu_of(v->cpu);
    unsigned reason = p->watch_hit ? DEBUG_WATCHPOINT : p->step ? DEBUG_STEPPED : DEBUG_BREAKPOINT;
    u64 where = p->watch_hit ? p->watch_va : v->cpu->r[X86_RIP];
    p->watch_hit = false;
    p->step = false;
    stop_all(v->domain);
    lane_push(v->host, (struct lane_exit){ .kind = EXIT_DEBUG, .domid = v->domain->id, .vcpu = v->id, .a = reason, .b = where });
}

/* ---- from the lane ----------------------------------------------------------------------------------------------- */

void pv_debug_stop(struct domain *d)
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
    bool exec = pv_cpu_of(c)->step, data = false;
    for (u32 i = 0; i < s->nr; i++)
        if (s->point[i].kind == DEBUG_EXEC)
            exec = true;
        else
            data = true;
    c->slow = (c->slow & ~X86_SLOW_DEBUGGER) | (exec ? X86_SLOW_DEBUGGER : 0);
    c->strict = (c->strict & ~X86_STRICT_DEBUGGER) | (data ? X86_STRICT_DEBUGGER : 0);
}

int pv_debug_point(struct domain *d, bool add, unsigned kind, u64 va, u32 len)
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

void pv_debug_go(struct domain *d, struct vcpu *only, bool step)
{
    for (u32 i = 0; i < d->nr_vcpus; i++) {
        struct vcpu *v = d->vcpu[i];
        if (only && v != only)
            continue;
        struct pv_cpu *p = pv_cpu_of(v->cpu);
        p->step = step;
        arm(v);
        p->resumed = v->cpu->slow & X86_SLOW_DEBUGGER;
        p->resumed_at = v->cpu->r[X86_RIP];
    }
    for (u32 i = 0; i < d->nr_vcpus; i++)       /* now that all are set up: the first may bring up the next */
        if (!only || d->vcpu[i] == only)
            vcpu_unpause(d->vcpu[i], VPF_debug);
}

void pv_debug_attach(struct domain *d, bool on)
{
    pv_debug_stop(d);
    d->debug.attached = on;
    d->debug.nr = 0;
    if (!on)
        pv_debug_go(d, NULL, false);
}
