/* INIT and start-up of a processor that runs: it begins anew, with time as it was, and nothing of what it did goes on. */
#include <pc/pc.h>

enum { TIMES = 50 };
extern volatile u32 pc_ap_number;
static volatile u32 came, beats;
static volatile u64 time_of_other;

static void other(unsigned self)
{
    time_of_other = rdtsc();
    __atomic_fetch_add(&came, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        u64 now = rdtsc();
        check(now >= time_of_other);
        time_of_other = now;
        beats++;
    }
}

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    pic_init();
    check(pc_start_aps(other) == 2);
    u64 start = rdtsc(), last = start;
    for (u32 n = 1; n <= TIMES; n++) {
        while (came != n)
            pause();
        u32 seen = beats;
        while (beats == seen)
            pause();
        apic_ipi(1, IPI_INIT);
        pit_measure_tsc(1);             /* on its way; then it must be still */
        seen = beats;
        pit_measure_tsc(1);
        check(beats == seen);
        u64 now = rdtsc();
        check(now >= last && now >= time_of_other);
        last = now;
        pc_ap_number = 1;
        apic_ipi(1, IPI_STARTUP | AP_PAGE);
    }
    while (came != TIMES + 1)
        pause();
    check(time_of_other >= last && rdtsc() - start < 60000000000ul);
    print("restart: %u times\n", TIMES);
    pc_exit(0);
}
