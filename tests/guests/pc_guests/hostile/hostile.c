/* Every port and every register of the APIC, with any value and any size: what a fuzzer would do first. Ports whose purpose is to end the machine
 * are left out, and so are INIT and NMI to itself. At the end the serial port is set up again and must still work. */
#include <pc/pc.h>

static u64 state = 88172645463325252;
static u32 next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (u32)(state >> 16);
}

static bool ends(u16 port, unsigned size)
{
    static const u16 fatal[] = { 0x64, 0x92, 0xf4, 0xcf9 };
    for (unsigned n = 0; n < sizeof fatal / sizeof *fatal; n++)
        if (port <= fatal[n] && fatal[n] < port + size)
            return true;
    return false;
}

static void port(u16 port)
{
    u32 x = next();
    switch (x >> 8 & 7) {
    case 0: inb(port); break;
    case 1: { u16 y; __asm__ volatile("inw %1, %0" : "=a"(y) : "d"(port)); break; }
    case 2: inl(port); break;
    case 3: if (!ends(port, 1)) outb(port, (u8)x); break;
    case 4: if (!ends(port, 2)) outw(port, (u16)x); break;
    default: if (!ends(port, 4)) outl(port, x); break;
    }
}

static void mmio(unsigned offset)
{
    volatile u8 *at = (volatile u8 *)0xfee00000ul + offset;
    u32 x = next();
    unsigned reg = offset & ~15u;
    if ((reg == APIC_ICR_LOW || reg == 0x2f0) && x & 4)
        return;
    if (reg == APIC_ICR_LOW)
        x &= ~0x700u;
    switch (next() & 7) {
    case 0: (void)*at; break;
    case 1: (void)*(volatile u16 *)at; break;
    case 2: (void)*(volatile u32 *)at; break;
    case 3: (void)*(volatile u64 *)at; break;
    case 4: *at = (u8)x; break;
    case 5: *(volatile u64 *)at = x; break;
    case 6: __atomic_fetch_xor((volatile u32 *)at, reg == APIC_ICR_LOW ? 0 : x & 0xff, __ATOMIC_SEQ_CST); break;
    default: *(volatile u32 *)at = x;
    }
}

void pc_main(unsigned long magic, unsigned long info)
{
    static const u16 devices[] = { 0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x70, 0x71, 0xa0, 0xa1, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe,
                                   0x3ff, 0xcf8, 0xcfc };
    serial_init();
    trap_init(0);
    for (u32 n = 0; n < 65536; n++)
        if (n != COM1 && n != 0xe9)
            port((u16)n);
    for (u32 n = 0; n < 100000; n++)
        port(devices[next() % (sizeof devices / sizeof *devices)]);
    for (u32 n = 0; n < 100000; n++)
        mmio(next() % 4096);
    (void)*(volatile u32 *)0xfec00000ul;                /* where there is nothing */
    *(volatile u64 *)0xd0000000ul = 1;
    check(*(volatile u32 *)0xd0000000ul == 0xffffffff);
    *(volatile u64 *)0xfedffffcul = 1;                  /* half in the APIC's page */
    (void)*(volatile u64 *)0xfeeffffcul;
    apic_write(APIC_LVT_TIMER, 1 << 16);
    serial_init();
    print("survived\n");
    pc_exit(0);
}
