/* The I/O ports that a PV guest with IOPL finds: the timer's channel 2 with the speaker gate, the CMOS clock, PCI's address register; all
 * others read as ones (section 3.8).
 *
 * Owns: domain->ports. Called by: emulate.c. Lock: ports.lock, leaf.
 */
#include <string.h>
#include <time.h>

#include "pv/pv.h"

static const u64 PIT_HZ = 1193182;
enum { SPEAKER_GATE = 1, SPEAKER_DATA = 2, SPEAKER_OUT = 1 << 5 };

/* ---- 8254, channel 2 --------------------------------------------------------------------------------------------- */

static u64 pit_ticks(const struct pv_ports *p, u64 now)
{
    return (u64)((unsigned __int128)(now - p->pit_start) * PIT_HZ / 1000000000ul);
}

static u32 pit_period(const struct pv_ports *p) { return p->pit_reload ? p->pit_reload : 0x10000; }

static u16 pit_count(const struct pv_ports *p, u64 now)
{
    u64 t = pit_ticks(p, now);
    u32 period = pit_period(p);
    switch (p->pit_mode) {
    case 2:
        return (u16)(period - t % period);
    case 3:
        return (u16)(period - 2 * t % period);
    default:
        return (u16)(period - t);
    }
}

static bool pit_out(const struct pv_ports *p, u64 now)
{
    u64 t = pit_ticks(p, now);
    u32 period = pit_period(p);
    switch (p->pit_mode) {
    case 2:
        return t % period != period - 1;
    case 3:
        return t % period < (period + 1) / 2;
    default:
        return t >= period;
    }
}

static void pit_control(struct pv_ports *p, u8 value, u64 now)
{
    if (value >> 6 != 2)                /* other channels are not there; read-back neither */
        return;
    if (!(value & 0x30)) {
        p->pit_latch = pit_count(p, now);
        p->pit_latched = true;
        return;
    }
    p->pit_access = value >> 4 & 3;
    p->pit_mode = value >> 1 & (value & 4 ? 3 : 7);
    p->pit_write_high = p->pit_read_high = p->pit_latched = false;
}

static void pit_write(struct pv_ports *p, u8 value, u64 now)
{
    bool high = p->pit_access == 2 || (p->pit_access == 3 && p->pit_write_high);
    if (p->pit_access == 3 && !p->pit_write_high) {
        p->pit_low = value;
        p->pit_write_high = true;
        return;
    }
    p->pit_reload = high ? (u16)(value << 8 | (p->pit_access == 3 ? p->pit_low : 0)) : value;
    p->pit_write_high = false;
    p->pit_start = now;
}

static u8 pit_read(struct pv_ports *p, u64 now)
{
    u16 count = p->pit_latched ? p->pit_latch : pit_count(p, now);
    bool high = p->pit_access == 2 || (p->pit_access == 3 && p->pit_read_high);
    p->pit_read_high = p->pit_access == 3 && !p->pit_read_high;
    if (!p->pit_read_high)
        p->pit_latched = false;
    return (u8)(high ? count >> 8 : count);
}

/* ---- CMOS -------------------------------------------------------------------------------------------------------- */

static u8 bcd(int n) { return (u8)(n / 10 * 16 + n % 10); }

static u8 cmos_read(struct domain *d, unsigned index, u64 now)
{
    const struct clock *clock = &d->host->clock;
    time_t seconds = (time_t)(clock->wall_sec + (clock->wall_nsec + now) / 1000000000ul);
    struct tm t;
    gmtime_r(&seconds, &t);
    switch (index) {
    case 0x00: return bcd(t.tm_sec);
    case 0x02: return bcd(t.tm_min);
    case 0x04: return bcd(t.tm_hour);
    case 0x06: return bcd(t.tm_wday + 1);
    case 0x07: return bcd(t.tm_mday);
    case 0x08: return bcd(t.tm_mon + 1);
    case 0x09: return bcd(t.tm_year % 100);
    case 0x0a: return 0x26;             /* 32768 Hz, no update in progress */
    case 0x0b: return 0x02;             /* 24 hours, BCD */
    case 0x0d: return 0x80;             /* valid */
    case 0x32: return bcd(19 + t.tm_year / 100);
    default: return 0;
    }
}

/* ---- dispatch, a byte at a time ---------------------------------------------------------------------------------- */

static u8 read_byte(struct domain *d, u16 port, u64 now)
{
    struct pv_ports *p = &d->ports;
    switch (port) {
    case 0x42:
        return pit_read(p, now);
    case 0x61:
        return (p->speaker & (SPEAKER_GATE | SPEAKER_DATA)) | (pit_out(p, now) ? SPEAKER_OUT : 0);
    case 0x71:
        return cmos_read(d, p->cmos_index, now);
    default:
        return 0xff;
    }
}

static void write_byte(struct domain *d, u16 port, u8 value, u64 now)
{
    struct pv_ports *p = &d->ports;
    switch (port) {
    case 0x42:
        pit_write(p, value, now);
        break;
    case 0x43:
        pit_control(p, value, now);
        break;
    case 0x61:
        if (~p->speaker & value & SPEAKER_GATE)         /* its rising edge starts the count */
            p->pit_start = now;
        p->speaker = value & (SPEAKER_GATE | SPEAKER_DATA);
        break;
    case 0x70:
        p->cmos_index = value & 0x7f;
        break;
    }
}

u32 pv_port_read(struct vcpu *v, u16 port, unsigned size)
{
    struct domain *d = v->domain;
    u64 now = host_now(v->host);
    u32 value = 0;
    spin_lock(&d->ports.lock);
    if (port == 0xcf8 && size == 4)
        value = d->ports.pci_address;
    else
        for (unsigned i = 0; i < size; i++)
            value |= (u32)read_byte(d, (u16)(port + i), now) << 8 * i;
    spin_unlock(&d->ports.lock);
    return value;
}

void pv_port_write(struct vcpu *v, u16 port, unsigned size, u32 value)
{
    struct domain *d = v->domain;
    u64 now = host_now(v->host);
    spin_lock(&d->ports.lock);
    if (port == 0xcf8 && size == 4)
        d->ports.pci_address = value;
    else
        for (unsigned i = 0; i < size; i++)
            write_byte(d, (u16)(port + i), (u8)(value >> 8 * i), now);
    spin_unlock(&d->ports.lock);
}
