/* All processors count together, by locked additions and under a spinlock; then the first one interrupts the others, one after another and all
 * at once. */
#include <pc/pc.h>

enum { VECTOR = 80, EACH = 20000 };
static volatile u32 atomic, done, got[PC_CPUS], lock, guarded, go;

static void on_ipi(struct pc_frame *f)
{
    __atomic_fetch_add(&got[apic_read(APIC_ID) >> 24], 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}

static void count(void)
{
    for (unsigned n = 0; n < EACH; n++) {
        __atomic_fetch_add(&atomic, 1, __ATOMIC_SEQ_CST);
        if (n % 16)
            continue;
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
            pause();
        guarded = guarded + 1;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
    __atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
}

static void other(unsigned number)
{
    while (!go)
        pause();
    count();
    for (;;)
        wait_for_interrupt();
}

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    pic_init();
    trap_handler(VECTOR, on_ipi);
    unsigned cpus = pc_start_aps(other);
    print("smp: %u processors\n", cpus);
    go = 1;
    count();
    while (done < cpus)
        pause();
    check(atomic == cpus * EACH && guarded == cpus * EACH / 16);
    print("smp: counted %u\n", atomic);
    for (u32 id = 1; id < cpus; id++) {
        apic_ipi(id, 1 << 14 | VECTOR);
        while (got[id] != 1)
            pause();
    }
    apic_ipi(0, IPI_OTHERS | 1 << 14 | VECTOR);
    for (u32 id = 1; id < cpus; id++)
        while (got[id] != 2)
            pause();
    apic_ipi(0, IPI_SELF | 1 << 14 | VECTOR);
    sti();
    while (got[0] != 1)
        pause();
    cli();
    print("smp: interrupts arrived\n");
    pc_exit(0);
}
