/* 8259, 8254, local APIC. */
#include <pc/pc.h>

static u16 masks = 0xfffb;              /* all but the cascade */

void pic_init(void)
{
    static const u8 words[][2] = { { 0x20, 0x11 }, { 0xa0, 0x11 }, { 0x21, IRQ_BASE }, { 0xa1, IRQ_BASE + 8 }, { 0x21, 4 }, { 0xa1, 2 },
                                   { 0x21, 1 }, { 0xa1, 1 } };
    for (unsigned n = 0; n < sizeof words / sizeof *words; n++)
        outb(words[n][0], words[n][1]);
    outb(0x21, (u8)masks);
    outb(0xa1, (u8)(masks >> 8));
}

void pic_mask(unsigned irq, bool masked)
{
    masks = (u16)(masked ? masks | 1 << irq : masks & ~(1 << irq));
    outb(irq < 8 ? 0x21 : 0xa1, (u8)(irq < 8 ? masks : masks >> 8));
}

void pic_eoi(unsigned irq)
{
    if (irq >= 8)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

void pit_periodic(unsigned hz)
{
    unsigned n = 1193182 / hz;
    outb(0x43, 0x34);
    outb(0x40, (u8)n);
    outb(0x40, (u8)(n >> 8));
}

u64 pit_measure_tsc(unsigned ms)
{
    unsigned n = 1193 * ms;
    outb(0x61, (inb(0x61) & ~2) | 1);   /* gate on, speaker off */
    outb(0x43, 0xb0);                   /* channel 2, mode 0 */
    outb(0x42, (u8)n);
    outb(0x42, (u8)(n >> 8));
    u64 start = rdtsc();
    while (!(inb(0x61) & 0x20))
        pause();
    return rdtsc() - start;
}

void apic_enable(void)
{
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
}

void apic_ipi(u32 id, u32 low)
{
    apic_write(APIC_ICR_HIGH, id << 24);
    apic_write(APIC_ICR_LOW, low);
    while (apic_read(APIC_ICR_LOW) & 1 << 12)
        pause();
}
