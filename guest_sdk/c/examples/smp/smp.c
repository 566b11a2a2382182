/*
 * Several vCPUs: a counter that all advance, and interrupts both ways. vcpus = 4
 */
#include <guest.h>

#define LAPS 10000

static u64 counter;
static u32 counted, answered, interrupts;
static s64 to_boss, to_worker[MAX_VCPUS];

/* Runs on the vCPU that the port belongs to, events masked. Interrupts that come close together are one. */
static void on_ipi(u32 port, void *data)
{
    (void)port;
    ++*(u32 *)data;
}

static void count(u32 *done)
{
    for (int i = 0; i < LAPS; i++)
        __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(done, 1, __ATOMIC_RELEASE);
}

static void worker(void *arg)
{
    u32 woken = 0, id = this_cpu()->id;

    event_handle(to_worker[id], on_ipi, &woken);
    count(arg);
    event_send(to_boss);
    wait_until(READ_ONCE(woken));
    __atomic_add_fetch(&answered, id, __ATOMIC_RELEASE);
    event_send(to_boss);
}

int main(int argc, char **argv)
{
    u32 n = smp_count(), sum = 0;
    s64 rc;

    (void)argc, (void)argv;
    to_boss = event_bind_ipi(0);
    ASSERT(n > 1 && to_boss > 0);
    event_handle(to_boss, on_ipi, &interrupts);
    for (u32 vcpu = 1; vcpu < n; vcpu++) {
        to_worker[vcpu] = event_bind_ipi(vcpu);
        ASSERT(to_worker[vcpu] > 0);
        rc = smp_boot(vcpu, worker, &counted);
        if (rc)
            panic("vcpu %u: %s", vcpu, error_name(rc));
    }
    count(&counted);
    wait_until(__atomic_load_n(&counted, __ATOMIC_ACQUIRE) == n);
    printf("%u vcpus counted to %lu\n", n, counter);
    for (u32 vcpu = 1; vcpu < n; vcpu++) {
        event_send(to_worker[vcpu]);
        sum += vcpu;
    }
    wait_until(__atomic_load_n(&answered, __ATOMIC_ACQUIRE) == sum);
    printf("all were woken, and %s\n", interrupts ? "interrupted us" : "said nothing");
    for (u32 vcpu = 1; vcpu < n; vcpu++)
        while (HYPERVISOR_vcpu_op(VCPUOP_is_up, vcpu, NULL) > 0) /* their last instructions */
            HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
    printf("all are down\n");
    return 0;
}
