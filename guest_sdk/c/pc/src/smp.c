/* Starting the other processors (SDM vol. 3, 8.4.4). */
#include <pc/pc.h>

#ifdef __x86_64__
extern const char ap_start[], ap_end[];
extern volatile u32 pc_ap_number;
static void (*ap_main)(unsigned number);
static volatile u32 running = 1;

void pc_ap_main(unsigned number)
{
    trap_init(number);
    apic_enable();
    __atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
    ap_main(number);
}

unsigned pc_start_aps(void (*main)(unsigned number))
{
    ap_main = main;
    memcpy((void *)(AP_PAGE * 4096ul), ap_start, (size_t)(ap_end - ap_start));
    apic_enable();
    apic_ipi(0, IPI_OTHERS | IPI_INIT);
    pit_measure_tsc(10);
    for (int n = 0; n < 2; n++) {
        apic_ipi(0, IPI_OTHERS | IPI_STARTUP | AP_PAGE);
        pit_measure_tsc(1);
    }
    u32 seen;
    do {
        seen = running;
        pit_measure_tsc(20);
    } while (running != seen || pc_ap_number != seen);
    return seen;
}
#endif
