/* Timer interrupts and demand paging: ticks of the 8254 by the PIC, of the local APIC's timer, and pages that appear when they are touched. */
#include <pc/pc.h>

enum { APIC_VECTOR = 64, PAGES = 16 };
static volatile unsigned pit_ticks, apic_ticks, faults;
static u64 page_table[512] __attribute__((aligned(4096)));
static u8 pool[PAGES][4096] __attribute__((aligned(4096)));
static u8 *const window = PC_WINDOW;

static void on_pit(struct pc_frame *f)
{
    pit_ticks++;
    pic_eoi(0);
}

static void on_apic(struct pc_frame *f)
{
    apic_ticks++;
    apic_write(APIC_EOI, 0);
}

static void on_fault(struct pc_frame *f)
{
    unsigned long va = read_cr2(), page = (va - (unsigned long)window) / 4096;
    check(page < PAGES && (f->error & ~2ul) == 0);      /* not present, by the supervisor */
    faults++;
    page_table[page] = (u64)pool[page] | 3;
}

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    pic_init();
    trap_handler(IRQ_BASE, on_pit);
    trap_handler(APIC_VECTOR, on_apic);
    trap_handler(14, on_fault);

    pit_periodic(1000);
    pic_mask(0, false);
    while (pit_ticks < 20)
        wait_for_interrupt();
    pic_mask(0, true);
    print("pit: 20 ticks\n");

    apic_enable();
    apic_write(APIC_DIVIDE, 3);                         /* by 16 */
    apic_write(APIC_LVT_TIMER, 1 << 17 | APIC_VECTOR);
    apic_write(APIC_INITIAL, 62500);                    /* 1 ms of a bus of 1 GHz */
    while (apic_ticks < 20)
        wait_for_interrupt();
    apic_write(APIC_LVT_TIMER, 1 << 16 | APIC_VECTOR);
    print("apic: 20 ticks\n");

    pc_map_window(page_table);
    for (unsigned n = 0; n < PAGES; n++)
        window[n * 4096 + n] = (u8)(n + 1);
    unsigned sum = 0;
    for (unsigned n = 0; n < PAGES; n++)
        sum += pool[n][n];
    check(faults == PAGES && sum == PAGES * (PAGES + 1) / 2);
    page_table[3] = 0;
    invlpg(window + 3 * 4096);
    check(window[3 * 4096 + 3] == 4 && faults == PAGES + 1);
    for (unsigned n = 0; n < PAGES; n++)
        check((page_table[n] & 1 << 5) && (n == 3 || page_table[n] & 1 << 6));        /* accessed; dirty where written */
    print("paging: %u faults\n", faults);
    pc_exit(0);
}
