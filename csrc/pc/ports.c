/* The table of I/O ports, and the few that are a line each: resets, the debug ports, PCI's address register.
 *
 * Owns: PORTS, pc.pci_address, pc.port61, pc.reset. Called by: run.c. Lock: pc.lock. A device of bytes sees wider accesses as bytes at
 * successive ports, as on the ISA bus; where there is none, reads find ones.
 */
#include "pc/pc.h"

enum { KBD_RESET = 0xfe, CF9_RESET = 4, PORT92_RESET = 1, PORT92_A20 = 2, SPEAKER_GATE = 1, SPEAKER_DATA = 2, REFRESH = 1 << 4, SPEAKER_OUT = 1 << 5 };

static u32 speaker_read(struct pc *pc, u16 port, unsigned size)
{
    u64 now = pc_now(pc);
    return (pc->port61 & (SPEAKER_GATE | SPEAKER_DATA)) | (now / 15085 & 1 ? REFRESH : 0) | (pit_out(&pc->pit.ch[2], now) ? SPEAKER_OUT : 0);
}

static void speaker_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    pc->port61 = value & (SPEAKER_GATE | SPEAKER_DATA);
    pit_set_gate(&pc->pit.ch[2], value & SPEAKER_GATE, pc_now(pc));
}

static u32 zero(struct pc *pc, u16 port, unsigned size) { return 0; }          /* the keyboard controller: no key, ready for a command */
static void ignore(struct pc *pc, u16 port, unsigned size, u32 value) {}

static void kbd_command(struct pc *pc, u16 port, unsigned size, u32 value)
{
    if ((u8)value == KBD_RESET)         /* pulses the reset line */
        pc->reset = true;
}

static u32 port92_read(struct pc *pc, u16 port, unsigned size) { return PORT92_A20; }
static void port92_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    if (value & PORT92_RESET)
        pc->reset = true;
}

static u32 cf9_read(struct pc *pc, u16 port, unsigned size) { return pc->reset_control; }
static void cf9_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    pc->reset_control = value & 0x0e;
    if (value & CF9_RESET)
        pc->reset = true;
}

/* Only a doubleword access is one to the address register (PCI 3.0, 3.2.2.3.2). There is no bus behind it: data reads ones. */
static u32 pci_read(struct pc *pc, u16 port, unsigned size) { return port == 0xcf8 && size == 4 ? pc->pci_address : 0xffffffff; }
static void pci_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    if (port == 0xcf8 && size == 4)
        pc->pci_address = value;
}

/* As QEMU's isa-debug-exit at its usual port: the guest is over, and its exit status is odd. */
static void debug_exit(struct pc *pc, u16 port, unsigned size, u32 value)
{
    if (!pc->exits)
        pc->domain->exit_code = (s32)((value << 1 | 1) & 0x7fffffff);
    pc->exits = true;
}

static u32 debug_read(struct pc *pc, u16 port, unsigned size) { return 0xe9; }  /* how a guest tells that the port is there */
static void debug_write(struct pc *pc, u16 port, unsigned size, u32 value) { uart_print(pc, (u8)value); }

static const struct device {
    u16 first, last;
    bool wide;                          /* sees accesses of 2 and 4 bytes whole */
    u32  (*read)(struct pc *pc, u16 port, unsigned size);
    void (*write)(struct pc *pc, u16 port, unsigned size, u32 value);
} PORTS[] = {                           /* often used ones first */
    { 0x3f8, 0x3ff, false, uart_read,    uart_write },
    { 0x020, 0x021, false, pic_read,     pic_write },
    { 0x040, 0x043, false, pit_read,     pit_write },
    { 0x060, 0x060, false, zero,         ignore },
    { 0x061, 0x061, false, speaker_read, speaker_write },
    { 0x064, 0x064, false, zero,         kbd_command },
    { 0x070, 0x071, false, rtc_read,     rtc_write },
    { 0x092, 0x092, false, port92_read,  port92_write },
    { 0x0a0, 0x0a1, false, pic_read,     pic_write },
    { 0x0e9, 0x0e9, false, debug_read,   debug_write },
    { 0x0f4, 0x0f4, true,  zero,         debug_exit },
    { 0xcf9, 0xcf9, false, cf9_read,     cf9_write },
    { 0xcf8, 0xcff, true,  pci_read,     pci_write },
};

static const struct device *find(u16 port)
{
    for (unsigned n = 0; n < ARRAY_SIZE(PORTS); n++)
        if (port >= PORTS[n].first && port <= PORTS[n].last)
            return &PORTS[n];
    return NULL;
}

u32 pc_port_read(struct pc *pc, u16 port, unsigned size)
{
    const struct device *d = find(port);
    u32 value = 0;
    if (d && (d->wide || (size == 1 && d->read)))
        return d->read(pc, port, size) & (size == 1 ? 0xff : ~0u);
    for (unsigned k = 0; k < size; k++) {
        d = find((u16)(port + k));
        value |= (d && d->read ? d->read(pc, (u16)(port + k), 1) & 0xff : 0xff) << 8 * k;
    }
    return value;
}

void pc_port_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    const struct device *d = find(port);
    if (d && (d->wide || size == 1)) {
        d->write(pc, port, size, size == 1 ? value & 0xff : value);
        return;
    }
    for (unsigned k = 0; k < size; k++) {
        d = find((u16)(port + k));
        if (d)
            d->write(pc, (u16)(port + k), 1, value >> 8 * k & 0xff);
    }
}
