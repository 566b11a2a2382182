/* The CMOS clock (Motorola MC146818): time, 114 bytes of memory with what firmware says of RAM, periodic and update-ended interrupts (IRQ 8).
 *
 * Owns: pc.rtc. Called by: ports.c, its own timer. Lock: pc.lock. The time of day is the host's and cannot be set; 24 hours, BCD or binary
 * as register B says. No alarm.
 */
#include <time.h>

#include "pc/pc.h"

enum { REG_A = 10, REG_B, REG_C, REG_D, REG_SHUTDOWN = 15 };
enum { A_UIP = 0x80, B_24H = 2, B_BINARY = 4, B_UIE = 0x10, B_PIE = 0x40, B_SET = 0x80, C_UF = 0x10, C_PF = 0x40, C_IRQF = 0x80 };
static const u64 NS = 1000000000, UPDATE_NS = 244000;

static u64 wall(const struct pc *pc, u64 now)
{
    const struct clock *c = &pc->domain->host->clock;
    return c->wall_sec * NS + c->wall_nsec + now;
}

/* Half the periods that divider and rate give, ns; 0: none. Rates 1 and 2 are those of 8 and 9 (data sheet, table 5). */
static u64 period(const struct rtc *r)
{
    unsigned rate = r->ram[REG_A] & 15;
    if (!rate || (r->ram[REG_A] & 0x70) != 0x20)
        return 0;
    return (NS << ((rate < 3 ? rate + 7 : rate) - 1)) / 32768;
}

/* What has become true since register C was last read. */
static u8 flags(const struct pc *pc, u64 now)
{
    const struct rtc *r = &pc->rtc;
    u64 n = period(r), from = wall(pc, r->seen), to = wall(pc, now);
    u8 c = (n && to / n != from / n ? C_PF : 0) | (to / NS != from / NS && !(r->ram[REG_B] & B_SET) ? C_UF : 0);
    return c & r->ram[REG_B] & (C_PF | C_UF) ? c | C_IRQF : c;
}

/* Sets the line, or the timer for when it will rise. */
static void update(struct pc *pc)
{
    struct rtc *r = &pc->rtc;
    u64 now = pc_now(pc), w = wall(pc, now), n = period(r), when = NEVER;
    bool raised = flags(pc, now) & C_IRQF;
    pic_set_line(pc, PC_IRQ_RTC, raised);
    if (r->ram[REG_B] & B_PIE && n)
        when = n - w % n;
    if (r->ram[REG_B] & B_UIE && !(r->ram[REG_B] & B_SET) && NS - w % NS < when)
        when = NS - w % NS;
    if (raised || when == NEVER)
        timer_stop(pc->domain->host, &r->timer);
    else
        pc_timer_set(pc, &r->timer, now + when);
}

static void fired(struct host *h, struct timer *t)
{
    struct pc *pc = t->data;
    spin_lock(&pc->lock);
    update(pc);
    spin_unlock(&pc->lock);
}

static u8 number(const struct rtc *r, int n) { return (u8)(r->ram[REG_B] & B_BINARY ? n : n / 10 * 16 + n % 10); }

static u8 read_register(struct pc *pc, unsigned index)
{
    struct rtc *r = &pc->rtc;
    u64 now = pc_now(pc), w = wall(pc, now);
    time_t seconds = (time_t)(w / NS);
    struct tm t;
    u8 c;
    gmtime_r(&seconds, &t);
    switch (index) {
    case 0x00: return number(r, t.tm_sec);
    case 0x02: return number(r, t.tm_min);
    case 0x04: return number(r, t.tm_hour);
    case 0x06: return number(r, t.tm_wday + 1);
    case 0x07: return number(r, t.tm_mday);
    case 0x08: return number(r, t.tm_mon + 1);
    case 0x09: return number(r, t.tm_year % 100);
    case 0x32: return number(r, 19 + t.tm_year / 100);
    case REG_A: return r->ram[REG_A] | (w % NS >= NS - UPDATE_NS && !(r->ram[REG_B] & B_SET) ? A_UIP : 0);
    case REG_C:
        c = flags(pc, now);
        r->seen = now;
        update(pc);
        return c;
    case REG_D: return 0x80;            /* time and memory are valid */
    default: return r->ram[index];
    }
}

static void write_register(struct pc *pc, unsigned index, u8 value)
{
    struct rtc *r = &pc->rtc;
    switch (index) {
    case REG_A:
        r->ram[REG_A] = value & 0x7f;
        update(pc);
        break;
    case REG_B:
        r->ram[REG_B] = value | B_24H;
        update(pc);
        break;
    case REG_C: case REG_D:
        break;
    default:
        if (index == 1 || index == 3 || index == 5 || index >= REG_SHUTDOWN - 1)        /* alarms are memory; the time is the host's */
            r->ram[index] = value;
    }
}

u32 rtc_read(struct pc *pc, u16 port, unsigned size) { return port & 1 ? read_register(pc, pc->rtc.index) : 0xff; }

void rtc_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    if (port & 1)
        write_register(pc, pc->rtc.index, (u8)value);
    else
        pc->rtc.index = value & 0x7f;   /* bit 7 masks NMIs: there are none */
}

static void put16(u8 *ram, unsigned at, u64 value)
{
    value = value > 0xffff ? 0xffff : value;
    ram[at] = (u8)value;
    ram[at + 1] = (u8)(value >> 8);
}

void rtc_create(struct pc *pc)
{
    timer_init(&pc->rtc.timer, fired, pc);
    pc->rtc.ram[REG_A] = 0x26;          /* 32768 Hz, 1024 Hz */
    pc->rtc.ram[REG_B] = B_24H;
}

void rtc_tell_memory(struct pc *pc)
{
    struct rtc *r = &pc->rtc;
    u64 kib = (u64)pc->nr_pages * 4, above_1m = kib > 1024 ? kib - 1024 : 0, above_16m = kib > 16384 ? kib - 16384 : 0;
    put16(r->ram, 0x15, 640);           /* KiB below 1 MiB; above it, below 64 MiB, twice; 64 KiB above 16 MiB */
    put16(r->ram, 0x17, above_1m);
    put16(r->ram, 0x30, above_1m);
    put16(r->ram, 0x34, above_16m / 64);
    r->ram[0x5f] = (u8)(pc->domain->nr_vcpus - 1);      /* as QEMU's firmware interface says it: CPUs beyond the first */
}
