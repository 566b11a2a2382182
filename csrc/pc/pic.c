/* The pair of 8259A interrupt controllers (Intel 8259A data sheet): edge-triggered, the slave on the master's input 2.
 *
 * Owns: pc.pic, pc.intr. Called by: ports.c, the devices, run.c (acknowledgement). Lock: pc.lock.
 */
#include "pc/pc.h"

enum { CASCADE = 2, SPURIOUS = 7 };

/* How far an input is from the highest priority, 0-7. */
static unsigned rank(const struct pic *p, unsigned input) { return (input - p->lowest - 1) & 7; }

/* The input of highest priority among `inputs`, -1: none. */
static int highest(const struct pic *p, u8 inputs)
{
    for (unsigned r = 0; r < 8; r++) {
        unsigned input = (p->lowest + 1 + r) & 7;
        if (inputs >> input & 1)
            return (int)input;
    }
    return -1;
}

/* The input that would interrupt now, -1: none. In special mask mode an input in service holds back only itself, else all of its rank and
 * below; the master lets the slave's through again while one of the slave's is in service only in special fully nested mode, not here. */
static int request(const struct pic *p)
{
    int want = highest(p, p->irr & ~p->imr & (p->special_mask ? ~p->isr : 0xff));
    int busy = highest(p, p->special_mask ? 0 : p->isr);
    return want >= 0 && (busy < 0 || rank(p, want) < rank(p, busy)) ? want : -1;
}

static void set_input(struct pic *p, unsigned input, bool level)
{
    u8 bit = 1 << input;
    if (level && !(p->lines & bit))
        p->irr |= bit;
    p->lines = level ? p->lines | bit : p->lines & ~bit;
}

static void update(struct pc *pc)
{
    struct pic *m = &pc->pic[0];
    set_input(m, CASCADE, false);
    if (request(&pc->pic[1]) >= 0)
        set_input(m, CASCADE, true);
    else
        m->irr &= ~(1 << CASCADE);
    bool intr = request(m) >= 0, rises = intr && !pc->intr;
    write_once(pc->intr, intr);
    if (rises)
        vcpu_kick(pc->domain->vcpu[0]);
}

void pic_set_line(struct pc *pc, unsigned irq, bool level)
{
    set_input(&pc->pic[irq / 8], irq % 8, level);
    update(pc);
}

void pic_pulse(struct pc *pc, unsigned irq)
{
    pic_set_line(pc, irq, true);
    pic_set_line(pc, irq, false);
}

bool pic_requested(const struct pc *pc, unsigned irq) { return pc->pic[irq / 8].irr >> irq % 8 & 1; }

static u8 acknowledge(struct pic *p)
{
    int input = request(p);
    if (input < 0)                      /* it went away between the request and the acknowledgement: no ISR bit is set */
        return p->base + SPURIOUS;
    p->irr &= ~(1 << input);
    if (!p->auto_eoi)
        p->isr |= 1 << input;
    else if (p->rotate_auto)
        p->lowest = (u8)input;
    return p->base + (u8)input;
}

/* A device's timer that rested while its edge waited goes on. */
static void edges_taken(struct pc *pc)
{
    if (!pic_requested(pc, PC_IRQ_PIT))
        pit_arm(pc);
}

u8 pic_acknowledge(struct pc *pc)
{
    bool slave = request(&pc->pic[0]) == CASCADE;
    u8 vector = acknowledge(&pc->pic[0]);
    if (slave)
        vector = acknowledge(&pc->pic[1]);
    edges_taken(pc);
    update(pc);
    return vector;
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static void initialise(struct pic *p, u8 icw1)
{
    *p = (struct pic){ .lines = p->lines, .base = p->base, .lowest = 7, .icw = 2, .want_icw4 = icw1 & 1, .single = icw1 >> 1 & 1 };
}

/* OCW2: rotate, specific, EOI in bits 7-5. */
static void command(struct pic *p, u8 value)
{
    bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
    int input = specific ? value & 7 : highest(p, p->isr);
    if (eoi && input >= 0)
        p->isr &= ~(1 << input);
    if (rotate && (eoi || specific) && input >= 0)
        p->lowest = (u8)input;
    if (!eoi && !specific)
        p->rotate_auto = rotate;
}

static void write_command(struct pic *p, u8 value)
{
    if (value & 0x10) {
        initialise(p, value);
    } else if (value & 0x08) {          /* OCW3 */
        if (value & 0x40)
            p->special_mask = value >> 5 & 1;
        if (value & 0x04)
            p->poll = true;
        else if (value & 0x02)
            p->read_isr = value & 1;
    } else {
        command(p, value);
    }
}

static void write_data(struct pic *p, u8 value)
{
    switch (p->icw) {
    case 2:
        p->base = value & 0xf8;
        p->icw = !p->single ? 3 : p->want_icw4 ? 4 : 0;
        break;
    case 3:                             /* the wiring is what it is */
        p->icw = p->want_icw4 ? 4 : 0;
        break;
    case 4:
        p->auto_eoi = value >> 1 & 1;
        p->icw = 0;
        break;
    default:
        p->imr = value;
    }
}

void pic_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    struct pic *p = &pc->pic[port >= 0xa0];
    if (port & 1)
        write_data(p, (u8)value);
    else
        write_command(p, (u8)value);
    edges_taken(pc);
    update(pc);
}

u32 pic_read(struct pc *pc, u16 port, unsigned size)
{
    struct pic *p = &pc->pic[port >= 0xa0];
    if (p->poll) {                      /* an acknowledgement by software */
        int input = request(p);
        p->poll = false;
        if (input < 0)
            return 0;
        acknowledge(p);
        edges_taken(pc);
        update(pc);
        return 0x80 | (u32)input;
    }
    return port & 1 ? p->imr : p->read_isr ? p->isr : p->irr;
}

/* As a PC's firmware leaves them: vectors 8 and 70h, all masked but the cascade. */
void pic_reset(struct pc *pc)
{
    pc->pic[0] = (struct pic){ .base = 0x08, .lowest = 7, .imr = 0xff & ~(1 << CASCADE) };
    pc->pic[1] = (struct pic){ .base = 0x70, .lowest = 7, .imr = 0xff };
    pc->intr = false;
}
