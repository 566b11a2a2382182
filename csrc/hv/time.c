/* Time as guests see it: the time record, VIRQ_TIMER, set_timer_op (xen-abi 8.3, 8.4; Xen's public xen.h and vcpu.h).
 *
 * Owns: the three timers of a vCPU but for poll's (sched_op.c), the time record in its vcpu_info. Called by: domain creation,
 * vcpu_op, dispatch, the pCPU loop. Locks: none; expiry functions run on the timer's pCPU and only raise a VIRQ.
 *
 * The time record. Guests compute ns = system_time + (((tsc - tsc_timestamp) << shift) * mul >> 32). Their TSC is virtual:
 * whoever executes RDTSC for them returns system time itself, a constant 1 GHz TSC that all vCPUs share. With timestamp 0,
 * system_time 0, shift 1 and mul 2^31 the formula is the identity, for ever: the record never has to be refreshed, its version
 * stays even, and TSC_STABLE is true by construction. (A migrated guest will get an offset in system_time.)
 */
#include "hv/host.h"

static const struct vcpu_time_info time_record = {
    .version = 2,
    .tsc_to_system_mul = 0x80000000u,
    .tsc_shift = 1,
    .flags = XEN_PVCLOCK_TSC_STABLE_BIT,
};

static const u64 WRAP_WORKAROUND_NS = 100000000;        /* set_timer_op with nonsense: look again in 100 ms */

/* ---- VIRQ_TIMER -------------------------------------------------------------------------------------------------- */

static void singleshot_expired(struct host *h, struct timer *t)
{
    struct vcpu *v = t->data;
    vcpu_trace(v, TIMER, t->expires, 0);
    send_guest_vcpu_virq(v, VIRQ_TIMER);
}

int vcpu_singleshot_set(struct vcpu *v, u64 when)
{
    if (when > host_now(v->host))
        return timer_set(v->host, &v->singleshot, v->unit.pcpu, when);
    timer_stop(v->host, &v->singleshot);
    send_guest_vcpu_virq(v, VIRQ_TIMER);
    return 0;
}

/* Ticks go on while the vCPU is blocked (more than Xen gives: it ticks only running vCPUs). While it is paused or down they
 * rest, so that a paused domain does not keep an idle host from noticing that nothing can happen any more. Whoever unpauses
 * it clears the flag and then looks whether the timer is set; it stops being set before the flag is looked at here. */
static void periodic_expired(struct host *h, struct timer *t)
{
    struct vcpu *v = t->data;
    u64 period = read_once(v->periodic_period), now = host_now(h);

    if (!period || read_once(v->pause_flags) & ~(u32)(VPF_blocked | VPF_lane))
        return;
    u64 next = t->expires + period;     /* no drift; ticks that are past are not made up for */
    vcpu_trace(v, TIMER, t->expires, 0);
    send_guest_vcpu_virq(v, VIRQ_TIMER);
    timer_set(h, t, t->pcpu, next > now ? next : now + period);
}

void vcpu_periodic_resume(struct vcpu *v)
{
    u64 period = read_once(v->periodic_period);
    if (period && !timer_pending(&v->periodic))
        timer_set(v->host, &v->periodic, v->unit.pcpu, host_now(v->host) + period);
}

int vcpu_periodic_set(struct vcpu *v, u64 period)
{
    write_once(v->periodic_period, period);
    if (period)
        return timer_set(v->host, &v->periodic, v->unit.pcpu, host_now(v->host) + period);
    timer_stop(v->host, &v->periodic);
    return 0;
}

s64 do_set_timer_op(struct vcpu *v, u64 timeout)
{
    u64 now = host_now(v->host);

    if (timeout == 0) {
        timer_stop(v->host, &v->singleshot);
        return 0;
    }
    if ((s64)timeout < 0 || (timeout > now && timeout - now >= 1ul << 50))
        timeout = now + WRAP_WORKAROUND_NS;
    return vcpu_singleshot_set(v, timeout);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

void vcpu_time_record(struct vcpu_time_info *out)
{
    *out = time_record;
}

static void poll_timeout(struct host *h, struct timer *t)
{
    vcpu_poll_expired(t->data);
}

void vcpu_time_init(struct vcpu *v)
{
    vcpu_time_record(&v->info->time);
    timer_init(&v->singleshot, singleshot_expired, v);
    timer_init(&v->periodic, periodic_expired, v);
    timer_init(&v->poll_timer, poll_timeout, v);
}

void vcpu_time_destroy(struct vcpu *v)
{
    write_once(v->periodic_period, 0);
    timer_kill(v->host, &v->singleshot);
    timer_kill(v->host, &v->periodic);
    timer_kill(v->host, &v->poll_timer);
}
