/* The 8254 interval timer (Intel 8254 data sheet): channel 0 is IRQ 0, channel 2 the speaker's, with its gate and output in port 61h.
 *
 * Owns: pc.pit. Called by: ports.c, pic.c (the tick was taken), its own timer. Lock: pc.lock.
 *
 * Nothing counts: counts and outputs are computed from the system time of the load. A count is binary (BCD is taken as binary).
 */
#include "pc/pc.h"

static const u64 PIT_HZ = 1193182, NS = 1000000000;

static u64 ticks(const struct pit_channel *ch, u64 now) { return (u64)((unsigned __int128)(now - ch->start) * PIT_HZ / NS); }
static u64 period(const struct pit_channel *ch) { return ch->reload ? ch->reload : 0x10000; }
static bool periodic(const struct pit_channel *ch) { return ch->mode == 2 || ch->mode == 3; }
/* Mode 1 and 5 wait for the gate's rising edge; 0, 2, 3 and 4 hold while it is low. Channels 0 and 1 have it high for good. */
static bool counts(const struct pit_channel *ch) { return ch->loaded && (ch->gate || ch->mode == 1 || ch->mode == 5); }

static u16 count(const struct pit_channel *ch, u64 now)
{
    u64 n = period(ch), t = counts(ch) ? ticks(ch, now) : 0;
    switch (ch->mode) {
    case 2:  return (u16)(n - t % n);
    case 3:  return (u16)(n - 2 * t % n);
    default: return (u16)(n - t);
    }
}

bool pit_out(const struct pit_channel *ch, u64 now)
{
    u64 n = period(ch), t = counts(ch) ? ticks(ch, now) : 0;
    if (!counts(ch))
        return ch->mode != 0;
    switch (ch->mode) {
    case 2:  return t % n != n - 1;
    case 3:  return t % n < (n + 1) / 2;
    case 4: case 5: return t != n;
    default: return t >= n;
    }
}

void pit_set_gate(struct pit_channel *ch, bool gate, u64 now)
{
    if (gate && !ch->gate && ch->mode != 4)     /* modes 1, 2, 3, 5 start anew; 0 as well, close enough to going on */
        ch->start = now;
    ch->gate = gate;
}

/* ---- IRQ 0 ------------------------------------------------------------------------------------------------------- */

void pit_arm(struct pc *pc)
{
    struct pit *pit = &pc->pit;
    const struct pit_channel *ch = &pit->ch[0];
    u64 now = pc_now(pc), n = period(ch), edge = n;
    if (!counts(ch) || ch->mode == 1 || ch->mode == 5 || pic_requested(pc, PC_IRQ_PIT) || (!periodic(ch) && pit->fired == ch->start)) {
        timer_stop(pc->domain->host, &pit->timer);
        return;
    }
    if (periodic(ch))
        edge = (ticks(ch, now) / n + 1) * n;
    u64 when = ch->start + (u64)(((unsigned __int128)edge * NS + PIT_HZ - 1) / PIT_HZ);
    if (!timer_pending(&pit->timer) || pit->timer.expires != when)
        pc_timer_set(pc, &pit->timer, when);
}

static void fired(struct host *h, struct timer *t)
{
    struct pc *pc = t->data;
    spin_lock(&pc->lock);
    pc->pit.fired = pc->pit.ch[0].start;
    pic_pulse(pc, PC_IRQ_PIT);
    pit_arm(pc);
    spin_unlock(&pc->lock);
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static void latch_count(struct pit_channel *ch, u64 now)
{
    if (ch->latched)                    /* until it is read */
        return;
    ch->latch = count(ch, now);
    ch->latched = true;
}

static void read_back(struct pit *pit, u8 value, u64 now)
{
    for (unsigned n = 0; n < 3; n++) {
        struct pit_channel *ch = &pit->ch[n];
        if (!(value >> (n + 1) & 1))
            continue;
        if (!(value & 0x20))
            latch_count(ch, now);
        if (!(value & 0x10) && !ch->status_latched) {
            ch->status = (u8)(pit_out(ch, now) << 7 | !ch->loaded << 6 | ch->access << 4 | ch->mode << 1);
            ch->status_latched = true;
        }
    }
}

static void control(struct pc *pc, u8 value, u64 now)
{
    struct pit *pit = &pc->pit;
    if (value >> 6 == 3) {
        read_back(pit, value, now);
        return;
    }
    struct pit_channel *ch = &pit->ch[value >> 6];
    if (!(value & 0x30)) {
        latch_count(ch, now);
        return;
    }
    *ch = (struct pit_channel){ .mode = value >> 1 & (value & 4 ? 3 : 7), .access = value >> 4 & 3, .gate = ch->gate };
    if (ch == &pit->ch[0])
        pit_arm(pc);
}

static void load(struct pc *pc, struct pit_channel *ch, u8 value, u64 now)
{
    if (ch->access == 3 && !ch->write_high) {
        ch->low = value;
        ch->write_high = true;
        return;
    }
    bool high = ch->access & 2;
    ch->reload = high ? (u16)(value << 8 | (ch->access == 3 ? ch->low : 0)) : value;
    ch->write_high = false;
    ch->start = now;
    ch->loaded = true;
    if (ch == &pc->pit.ch[0]) {
        pc->pit.fired = 0;
        pit_arm(pc);
    }
}

void pit_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    u64 now = pc_now(pc);
    if (port == 0x43)
        control(pc, (u8)value, now);
    else
        load(pc, &pc->pit.ch[port - 0x40], (u8)value, now);
}

u32 pit_read(struct pc *pc, u16 port, unsigned size)
{
    if (port == 0x43)
        return 0xff;                    /* write-only */
    struct pit_channel *ch = &pc->pit.ch[port - 0x40];
    if (ch->status_latched) {
        ch->status_latched = false;
        return ch->status;
    }
    u16 value = ch->latched ? ch->latch : count(ch, pc_now(pc));
    bool high = ch->access == 2 || (ch->access == 3 && ch->read_high);
    ch->read_high = ch->access == 3 && !ch->read_high;
    if (!ch->read_high)
        ch->latched = false;
    return high ? value >> 8 : value & 0xff;
}

void pit_create(struct pc *pc)
{
    timer_init(&pc->pit.timer, fired, pc);
    for (unsigned n = 0; n < 3; n++)
        pc->pit.ch[n] = (struct pit_channel){ .access = 3, .mode = 3, .gate = n < 2 };
}
