/*
 * Time from the records in vcpu_info and shared_info, and the vCPU's timer.
 */
#include <guest.h>

u64 time_now(void)
{
    const volatile struct vcpu_time_info *t = &this_cpu()->vcpu_info->time;
    u32 version;
    u64 delta, ns;

    do { /* odd: being written; changed: written meanwhile */
        version = t->version;
        barrier();
        delta = rdtsc() - t->tsc_timestamp;
        delta = t->tsc_shift >= 0 ? delta << t->tsc_shift : delta >> -t->tsc_shift;
        ns = t->system_time + (u64)((unsigned __int128)delta * t->tsc_to_system_mul >> 32);
        barrier();
    } while (version & 1 || version != t->version);
    return ns;
}

u64 time_wall(void)
{
    u32 version;
    u64 base;

    do {
        version = READ_ONCE(shared_info.wc_version);
        barrier();
        base = ((u64)READ_ONCE(shared_info.wc_sec_hi) << 32 | READ_ONCE(shared_info.wc_sec)) * NSEC + READ_ONCE(shared_info.wc_nsec);
        barrier();
    } while (version & 1 || version != READ_ONCE(shared_info.wc_version));
    return base + time_now();
}

/* Ports are not listed: the time is what ends it; a delivered event only makes the loop go round. */
void time_sleep(u64 ns)
{
    struct sched_poll poll = {.timeout = time_now() + ns};

    while (time_now() < poll.timeout)
        HYPERVISOR_sched_op(SCHEDOP_poll, &poll);
}

static void timer_event(u32 port, void *data)
{
    struct cpu *cpu = this_cpu();
    void (*handler)(void) = cpu->timer_handler;

    (void)port, (void)data;
    if (handler)
        handler();
}

s64 timer_set(u64 when, void (*handler)(void))
{
    struct cpu *cpu = this_cpu();
    s64 port;

    if (!cpu->timer_port) {
        port = event_bind_virq(VIRQ_TIMER, cpu->id);
        if (port < 0)
            return port;
        cpu->timer_port = port;
        event_handle(port, timer_event, NULL);
    }
    cpu->timer_handler = handler;
    return HYPERVISOR_set_timer_op(handler ? MAX(when, 1ul) : 0); /* 0 would stop it */
}
