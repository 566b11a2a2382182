/* What the chips of a PC do, as their data sheets say, one check after another: 8259, 8254, MC146818, 16550, local APIC. "ok NAME" for each group.
 * The same image runs on other PCs. */
#include <pc/pc.h>

static volatile u32 count[256], seen_isr, order[4], nr_order;
static struct { u8 read_isr, mask; } pic_seen;

/* Until it is so, or a second has passed. Interrupts as they are. */
#define WAIT(condition) for (u32 n_ = 0; n_ < 1000 && !(condition); n_++) pit_measure_tsc(1)

static void apic_eoi(void) { apic_write(APIC_EOI, 0); }

/* ---- 8259 -------------------------------------------------------------------------------------------------------- */

static void on_pit(struct pc_frame *f)
{
    count[f->vector]++;
    outb(0x20, 0x0b);                   /* OCW3: read the ISR */
    pic_seen.read_isr = inb(0x20);
    outb(0x20, 0x0a);
    pic_eoi(0);
}

static void pit_oneshot(u16 n)
{
    outb(0x43, 0x30);
    outb(0x40, (u8)n);
    outb(0x40, (u8)(n >> 8));
}

static void pic(void)
{
    outb(0x21, 0xab);
    check(inb(0x21) == 0xab);
    outb(0xa1, 0x5a);
    check(inb(0xa1) == 0x5a);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    trap_handler(IRQ_BASE, on_pit);
    pit_oneshot(100);
    pit_measure_tsc(2);
    outb(0x20, 0x0a);
    check(inb(0x20) & 1);               /* requested, and masked */
    sti();
    pit_measure_tsc(1);
    check(count[IRQ_BASE] == 0);
    outb(0x21, 0xfa);
    WAIT(count[IRQ_BASE]);
    cli();
    check(count[IRQ_BASE] == 1 && pic_seen.read_isr == 1);
    check(!(inb(0x20) & 1));            /* the acknowledgement took the request */
    outb(0x21, 0xff);
    print("ok pic\n");
}

static void on_first(struct pc_frame *f)
{
    count[f->vector]++;                 /* no EOI */
}

/* While input 0 is in service nothing of the same controller comes; a specific EOI lets it. */
static void pic_in_service(void)
{
    u32 before = count[IRQ_BASE];
    trap_handler(IRQ_BASE, on_first);
    outb(0x21, 0xfa);
    pit_oneshot(100);
    while (count[IRQ_BASE] == before)
        wait_for_interrupt();
    check(count[IRQ_BASE] == before + 1);
    pit_oneshot(100);
    sti();
    pit_measure_tsc(2);
    cli();
    check(count[IRQ_BASE] == before + 1);
    outb(0x20, 0x60);                   /* specific EOI of input 0 */
    sti();
    WAIT(count[IRQ_BASE] != before + 1);
    cli();
    check(count[IRQ_BASE] == before + 2);
    outb(0x20, 0x20);
    trap_handler(IRQ_BASE, on_pit);
    outb(0x21, 0xff);
    print("ok pic in service\n");
}

/* ---- 8254 -------------------------------------------------------------------------------------------------------- */

static u16 read_count(u8 channel)
{
    outb(0x43, (u8)(channel << 6));
    u8 low = inb((u16)(0x40 + channel));
    return (u16)(inb((u16)(0x40 + channel)) << 8 | low);
}

static void pit(void)
{
    outb(0x43, 0x34);                   /* channel 0, mode 2 */
    outb(0x40, 0xff);
    outb(0x40, 0xff);
    u16 a = read_count(0);
    pit_measure_tsc(1);
    u16 b = read_count(0);
    check(b < a && a - b >= 1100);      /* counts down, 1193 a ms */
    outb(0x43, 0xe2);                   /* read back channel 0's status */
    check((inb(0x40) & 0x3f) == 0x34);
    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);                   /* channel 2, mode 0: out falls, and rises at the end */
    outb(0x42, 0);
    outb(0x42, 8);
    check(!(inb(0x61) & 0x20));
    while (!(inb(0x61) & 0x20))
        pause();
    outb(0x43, 0xa6);                   /* channel 2, mode 3, high byte only: a square wave */
    outb(0x42, 1);
    u32 changes = 0, last = 0;
    for (u32 n = 0; n < 1000000 && changes < 4; n++) {
        u32 out = inb(0x61) & 0x20;
        changes += out != last;
        last = out;
    }
    check(changes >= 4);
    u64 ms = pit_measure_tsc(10);
    check(ms > 1000);
    print("ok pit\n");
}

/* ---- MC146818 ---------------------------------------------------------------------------------------------------- */

static u8 cmos(u8 n) { outb(0x70, n); return inb(0x71); }
static void cmos_write(u8 n, u8 x) { outb(0x70, n); outb(0x71, x); }

static void on_rtc(struct pc_frame *f)
{
    count[f->vector]++;
    check((cmos(0x0c) & 0xc0) == 0xc0);
    pic_eoi(8);
}

static void rtc(void)
{
    check(cmos(0x0d) == 0x80 && (cmos(0x0a) & 0x70) == 0x20 && cmos(0x0b) & 2);
    u8 seconds = cmos(0), month = cmos(8), century = cmos(0x32);
    check((seconds & 15) < 10 && seconds < 0x60 && month >= 1 && month <= 0x12 && (century == 0x20 || century == 0x19));
    check(cmos(0x15) + cmos(0x16) * 256 == 640);
    cmos_write(0x0f, 0x5a);
    check(cmos(0x0f) == 0x5a);
    cmos_write(0x0f, 0);
    trap_handler(IRQ_BASE + 8, on_rtc);
    cmos_write(0x0a, 0x26);             /* 1024 Hz */
    cmos(0x0c);
    cmos_write(0x0b, (cmos(0x0b) | 0x40) & ~0x30);
    outb(0xa1, 0xfe);
    outb(0x21, 0xfb);
    u64 start = rdtsc();
    while (count[IRQ_BASE + 8] < 10)
        wait_for_interrupt();
    check(rdtsc() > start);
    cmos_write(0x0b, cmos(0x0b) & ~0x40);
    cmos(0x0c);
    outb(0xa1, 0xff);
    outb(0x21, 0xff);
    check(!(cmos(0x0c) & 0x80));
    print("ok rtc\n");
}

/* ---- 16550 ------------------------------------------------------------------------------------------------------- */

static volatile u8 uart_iir[4];
static volatile u32 nr_iir;

static void on_uart(struct pc_frame *f)
{
    u8 iir = inb(COM1 + 2);
    if (nr_iir < 4)
        uart_iir[nr_iir] = iir;
    nr_iir++;
    if ((iir & 15) == 4 || (iir & 15) == 12)
        inb(COM1);
    pic_eoi(4);
}

static void uart(void)
{
    outb(COM1 + 7, 0xa5);
    check(inb(COM1 + 7) == 0xa5);
    outb(COM1 + 3, 0x83);
    check(inb(COM1) == 1 && inb(COM1 + 1) == 0);        /* the divisor that serial_init set */
    outb(COM1 + 3, 3);
    check(inb(COM1 + 3) == 3 && (inb(COM1 + 2) & 0xc1) == 0xc1 && (inb(COM1 + 5) & 0x60) == 0x60);
    outb(COM1 + 4, 0x10);               /* loopback */
    outb(COM1 + 2, 7);
    for (u8 n = 0; n < 16; n++) {
        outb(COM1, n);
        pit_measure_tsc(1);
    }
    for (u8 n = 0; n < 16; n++) {
        check(inb(COM1 + 5) & 1);
        check(inb(COM1) == n);
    }
    check(!(inb(COM1 + 5) & 1));
    outb(COM1 + 4, 0x1a);               /* RTS and OUT2 come back as CTS and DCD */
    check((inb(COM1 + 6) & 0xf0) == 0x90);
    outb(COM1 + 4, 0x0b);
    trap_handler(IRQ_BASE + 4, on_uart);
    outb(0x21, 0xef);
    outb(COM1 + 1, 2);                  /* the transmitter is empty: that interrupts at once */
    sti();
    WAIT(nr_iir);
    cli();
    check(nr_iir == 1 && (uart_iir[0] & 15) == 2 && (inb(COM1 + 2) & 15) == 1);
    outb(COM1 + 1, 0);
    outb(0x21, 0xff);
    outb(COM1 + 4, 3);
    print("ok uart\n");
}

/* ---- local APIC -------------------------------------------------------------------------------------------------- */

static void on_vector(struct pc_frame *f)
{
    count[f->vector]++;
    if (nr_order < 4)
        order[nr_order++] = (u32)f->vector;
    seen_isr = apic_read(0x100 + (u32)f->vector / 32 * 16);
    apic_eoi();
}

static inline u64 read_cr8(void) { u64 x; __asm__ volatile("mov %%cr8, %0" : "=r"(x)); return x; }
static inline void write_cr8(u64 x) { __asm__ volatile("mov %0, %%cr8" : : "r"(x) : "memory"); }

static void self_ipi(u32 vector) { apic_ipi(0, IPI_SELF | 1 << 14 | vector); }

static void apic(void)
{
    u32 id[4];
    cpuid(1, id);
    check(id[3] & 1 << 9 && id[1] >> 24 == 0);
    check((rdmsr(0x1b) & ~0xfffffffull) == 0xf0000000 || (rdmsr(0x1b) & 0xffffff000ull) == 0xfee00000);
    check(rdmsr(0x1b) & 1 << 8 && rdmsr(0x1b) & 1 << 11);               /* the first processor, enabled */
    apic_enable();
    check((apic_read(0x30) & 0xff) >= 0x10 && apic_read(APIC_ID) == 0);
    apic_write(APIC_TPR, 0x50);
    check(read_cr8() == 5);
    write_cr8(3);
    check(apic_read(APIC_TPR) == 0x30 && apic_read(0xa0) == 0x30);
    for (unsigned v = 0x40; v < 0x80; v++)
        trap_handler(v, on_vector);

    self_ipi(0x45);                     /* interrupts are off: requested */
    check(apic_read(0x220) & 1 << 5 && count[0x45] == 0);
    sti();
    WAIT(count[0x45]);
    cli();
    check(count[0x45] == 1 && seen_isr & 1 << 5 && !(apic_read(0x220) & 1 << 5) && !(apic_read(0x120) & 1 << 5));

    write_cr8(6);                       /* 0x5x waits, 0x7x comes */
    sti();
    self_ipi(0x51);
    self_ipi(0x71);
    WAIT(count[0x71]);
    check(count[0x51] == 0 && count[0x71] == 1);
    write_cr8(0);                       /* lowering the priority is what lets it */
    WAIT(count[0x51]);
    cli();
    check(count[0x51] == 1);

    nr_order = 0;                       /* of two that wait the higher one first */
    self_ipi(0x48);
    self_ipi(0x62);
    sti();
    WAIT(nr_order == 2);
    cli();
    check(nr_order == 2 && order[0] == 0x62 && order[1] == 0x48);
    print("ok apic\n");
}

static void apic_timer(void)
{
    apic_write(APIC_DIVIDE, 11);        /* by 1 */
    apic_write(APIC_LVT_TIMER, 0x4a);   /* one-shot */
    apic_write(APIC_INITIAL, 20000000);
    u32 a = apic_read(APIC_CURRENT);
    pause();
    u32 b = apic_read(APIC_CURRENT);
    check(a <= 20000000 && b < a);
    while (!count[0x4a])
        wait_for_interrupt();
    check(count[0x4a] == 1 && apic_read(APIC_CURRENT) == 0);
    pit_measure_tsc(1);
    sti();
    pause();
    cli();
    check(count[0x4a] == 1);            /* once */
    apic_write(APIC_LVT_TIMER, 1 << 16 | 0x4a);
    apic_write(APIC_INITIAL, 1000);
    pit_measure_tsc(1);
    check(!(apic_read(0x220) & 1 << 10));               /* masked: nothing is requested */
    apic_write(APIC_LVT_TIMER, 1 << 17 | 0x4a);
    apic_write(APIC_INITIAL, 100000);
    while (count[0x4a] < 6)
        wait_for_interrupt();
    apic_write(APIC_INITIAL, 0);        /* stops it */
    sti();
    pause();
    cli();
    u32 n = count[0x4a];
    pit_measure_tsc(1);
    sti();
    pause();
    cli();
    check(count[0x4a] == n);
    print("ok apic timer\n");
    apic_write(APIC_SVR, 0xff);         /* software-disabled: LVTs are masked, and stay so */
    check(apic_read(APIC_LVT_TIMER) & 1 << 16);
    apic_write(APIC_SVR, 0x1ff);
    check(apic_read(APIC_LVT_TIMER) & 1 << 16);
    print("ok apic disabled\n");
}

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    pic_init();
    pic();
    pic_in_service();
    pit();
    rtc();
    uart();
    apic();
    apic_timer();
    pc_exit(0);
}
