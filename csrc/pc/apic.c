/* The local APIC of a vCPU in xAPIC mode (SDM vol. 3, chapter 10): priorities, the timer, interprocessor interrupts, INIT and start-up.
 *
 * Owns: pc_cpu.apic. Called by: run.c (accesses to its page, delivery), other vCPUs (IPIs), its own timer. Locks: irr changes by atomic
 * operations, all else belongs to the vCPU; pc.lock is taken for INIT and start-up IPIs.
 *
 * The timer's bus clock is 1 GHz: a count of the undivided clock is a nanosecond. NMI and SMI IPIs are not delivered; there is no x2APIC
 * and no TSC-deadline mode, and CPUID offers none. Interrupts are edge-triggered.
 */
#include "pc/pc.h"

enum { REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0a, REG_EOI = 0x0b, REG_LDR = 0x0d, REG_DFR = 0x0e,
       REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28, REG_ICR_LOW = 0x30, REG_ICR_HIGH = 0x31,
       REG_LVT_TIMER = 0x32, REG_LVT_ERROR = 0x37, REG_INITIAL = 0x38, REG_CURRENT = 0x39, REG_DIVIDE = 0x3e };      /* offset / 16 */
enum { SVR_ENABLE = 1 << 8, LVT_MASKED = 1 << 16, LVT_PERIODIC = 1 << 17, ESR_SEND_ILLEGAL = 1 << 5, ESR_REGISTER = 1 << 7 };
enum { MODE_FIXED = 0, MODE_LOWEST = 1, MODE_INIT = 5, MODE_STARTUP = 6, MODE_EXTINT = 7 };
enum { VERSION = 0x14 | (APIC_NR_LVT - 1) << 16, FIRST_VECTOR = 16 };
static const u32 LVT_WRITABLE[APIC_NR_LVT] = { 0x300ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff };

static inline u64 now_of(const struct pc_cpu *p) { return pc_now(p->pc); }
static bool enabled(const struct pc_cpu *p) { return p->cpu.apic_base & PC_APIC_ENABLE && read_once(p->apic.svr) & SVR_ENABLE; }

static int highest(const u32 bits[8])
{
    for (int n = 7; n >= 0; n--) {
        u32 word = read_once(bits[n]);
        if (word)
            return n * 32 + 31 - __builtin_clz(word);
    }
    return -1;
}

static u8 processor_priority(const struct lapic *a)
{
    int busy = highest(a->isr);
    u8 class = busy < 0 ? 0 : busy & 0xf0;
    return (a->tpr & 0xf0) >= class ? a->tpr : class;
}

/* ---- delivery ---------------------------------------------------------------------------------------------------- */

/* An interrupt for p, from anywhere. */
static void post(struct pc_cpu *p, u8 vector)
{
    if (vector < FIRST_VECTOR || !enabled(p))
        return;
    atomic_or(&p->apic.irr[vector / 32], 1u << vector % 32);
    vcpu_kick(pc_vcpu(p));
}

bool apic_pending(const struct pc_cpu *p, u8 *vector)
{
    int want = enabled(p) ? highest(p->apic.irr) : -1;
    if (want < 0 || (want & 0xf0) <= (processor_priority(&p->apic) & 0xf0))
        return false;
    *vector = (u8)want;
    return true;
}

bool apic_passes_extint(const struct pc_cpu *p)
{
    u32 lint0 = p->apic.lvt[APIC_LVT_LINT0];
    return pc_bsp(p) && (!(p->cpu.apic_base & PC_APIC_ENABLE) || (!(lint0 & LVT_MASKED) && (lint0 >> 8 & 7) == MODE_EXTINT));
}

/* ---- the timer --------------------------------------------------------------------------------------------------- */

static u64 divisor(const struct lapic *a) { return 1ul << (((a->divide & 3) | (a->divide >> 1 & 4)) + 1) % 8; }
static u64 period(const struct lapic *a) { return a->initial * divisor(a); }
static bool is_requested(const struct lapic *a, u8 vector) { return read_once(a->irr[vector / 32]) >> vector % 32 & 1; }

/* Sets the timer for the next interrupt that would change something. */
static void timer_arm(struct pc_cpu *p)
{
    struct lapic *a = &p->apic;
    u32 lvt = a->lvt[APIC_LVT_TIMER];
    u64 n = period(a), now = now_of(p), when;
    bool idle = !n || lvt & LVT_MASKED || (lvt & LVT_PERIODIC ? is_requested(a, (u8)lvt) : a->expired || now >= a->start + n);
    if (idle) {
        timer_stop(pc_vcpu(p)->host, &a->timer);
        return;
    }
    when = lvt & LVT_PERIODIC ? a->start + ((now - a->start) / n + 1) * n : a->start + n;
    if (timer_set(pc_vcpu(p)->host, &a->timer, pc_vcpu(p)->unit.pcpu, when))
        domain_crash(pc_vcpu(p)->domain, "vCPU %u: no memory for the APIC's timer", pc_vcpu(p)->id);
}

/* On any thread. What it reads may be changing: then the guest changes it while the interrupt comes. */
static void timer_fired(struct host *h, struct timer *t)
{
    struct pc_cpu *p = t->data;
    u32 lvt = read_once(p->apic.lvt[APIC_LVT_TIMER]);
    write_once(p->apic.expired, true);
    if (!(lvt & LVT_MASKED))
        post(p, (u8)lvt);
}

static u32 timer_count(const struct pc_cpu *p)
{
    const struct lapic *a = &p->apic;
    u64 n = period(a), gone = now_of(p) - a->start;
    if (!n || (!(a->lvt[APIC_LVT_TIMER] & LVT_PERIODIC) && gone >= n))
        return 0;
    return a->initial - (u32)(gone % n / divisor(a));
}

u8 apic_accept(struct pc_cpu *p, u8 vector)
{
    struct lapic *a = &p->apic;
    atomic_and(&a->irr[vector / 32], ~(1u << vector % 32));
    a->isr[vector / 32] |= 1u << vector % 32;
    if (vector == (u8)a->lvt[APIC_LVT_TIMER] && a->lvt[APIC_LVT_TIMER] & LVT_PERIODIC)
        timer_arm(p);
    return vector;
}

/* ---- interprocessor interrupts (10.6) ---------------------------------------------------------------------------- */

static bool is_destination(const struct pc_cpu *p, u8 destination, bool logical)
{
    u8 mine = (u8)(read_once(p->apic.ldr) >> 24);
    if (!logical)
        return destination == 0xff || destination == p->apic.id;
    if (read_once(p->apic.dfr) >> 28 == 15)
        return destination & mine;
    return (destination >> 4 == mine >> 4 || destination >> 4 == 15) && destination & mine & 15;
}

static void send_ipi(struct pc_cpu *p)
{
    struct pc *pc = p->pc;
    u32 low = p->apic.icr[0];
    u8 vector = (u8)low, mode = low >> 8 & 7, shorthand = low >> 18 & 3, destination = (u8)(p->apic.icr[1] >> 24);
    if ((mode == MODE_FIXED || mode == MODE_LOWEST) && vector < FIRST_VECTOR) {
        p->apic.esr_new |= ESR_SEND_ILLEGAL;
        return;
    }
    if (mode == MODE_INIT && (low & 0xc000) == 0x8000)          /* "INIT level de-assert": nothing on these CPUs */
        return;
    for (u32 n = 0; n < pc->domain->nr_vcpus; n++) {
        struct pc_cpu *to = pc_cpu(pc, n);
        bool chosen = shorthand == 0 ? is_destination(to, destination, low & 1 << 11) : shorthand == 1 ? to == p : shorthand == 2 || to != p;
        if (!chosen)
            continue;
        if (mode == MODE_FIXED || mode == MODE_LOWEST) {
            post(to, vector);
            if (mode == MODE_LOWEST)    /* all are of equal rank: the first takes it */
                return;
        } else if (mode == MODE_INIT || mode == MODE_STARTUP) {
            spin_lock(&pc->lock);
            if (mode == MODE_INIT)
                pc_send_init(to);
            else
                pc_send_sipi(to, vector);
            spin_unlock(&pc->lock);
        }
    }
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

u32 apic_read(struct pc_cpu *p, unsigned offset)
{
    const struct lapic *a = &p->apic;
    unsigned reg = offset / 16;
    switch (reg) {
    case REG_ID: return (u32)a->id << 24;
    case REG_VERSION: return VERSION;
    case REG_TPR: return a->tpr;
    case REG_APR: case REG_PPR: return processor_priority(a);
    case REG_LDR: return a->ldr;
    case REG_DFR: return a->dfr;
    case REG_SVR: return a->svr;
    case REG_ISR ... REG_ISR + 7: return a->isr[reg - REG_ISR];
    case REG_IRR ... REG_IRR + 7: return read_once(a->irr[reg - REG_IRR]);
    case REG_ESR: return a->esr;
    case REG_ICR_LOW: return a->icr[0];
    case REG_ICR_HIGH: return a->icr[1];
    case REG_LVT_TIMER ... REG_LVT_ERROR: return a->lvt[reg - REG_LVT_TIMER];
    case REG_INITIAL: return a->initial;
    case REG_CURRENT: return timer_count(p);
    case REG_DIVIDE: return a->divide;
    default: return 0;
    }
}

static void write_lvt(struct pc_cpu *p, unsigned n, u32 value)
{
    struct lapic *a = &p->apic;
    write_once(a->lvt[n], (value & LVT_WRITABLE[n]) | (a->svr & SVR_ENABLE ? 0 : LVT_MASKED));
    if (n == APIC_LVT_TIMER)
        timer_arm(p);
}

static void write_svr(struct pc_cpu *p, u32 value)
{
    write_once(p->apic.svr, value & 0x1ff);
    for (unsigned n = 0; n < APIC_NR_LVT; n++)          /* disabling it masks them for good (10.4.7.2) */
        write_lvt(p, n, p->apic.lvt[n]);
}

static void end_of_interrupt(struct lapic *a)
{
    int busy = highest(a->isr);
    if (busy >= 0)
        a->isr[busy / 32] &= ~(1u << busy % 32);
}

static void timer_start(struct pc_cpu *p, u32 initial)
{
    struct lapic *a = &p->apic;
    a->initial = initial;
    a->start = now_of(p);
    write_once(a->expired, false);
    timer_stop(pc_vcpu(p)->host, &a->timer);
    timer_arm(p);
}

/* A count under way goes on from where it is, at the new pace; what is periodic keeps its initial count. */
static void set_divide(struct pc_cpu *p, u32 value)
{
    struct lapic *a = &p->apic;
    u64 now = now_of(p), gone = a->initial - timer_count(p);
    bool running = a->initial && !(read_once(a->expired) && !(a->lvt[APIC_LVT_TIMER] & LVT_PERIODIC));
    a->divide = value;
    if (!running)
        return;
    gone *= divisor(a);
    a->start = now > gone ? now - gone : 0;
    timer_arm(p);
}

void apic_write(struct pc_cpu *p, unsigned offset, u32 value)
{
    struct lapic *a = &p->apic;
    unsigned reg = offset / 16;
    switch (reg) {
    case REG_TPR:
        a->tpr = (u8)value;
        p->cpu.cr8 = a->tpr >> 4;
        break;
    case REG_EOI: end_of_interrupt(a); break;
    case REG_LDR: write_once(a->ldr, value & 0xff000000); break;
    case REG_DFR: write_once(a->dfr, value | 0x0fffffff); break;
    case REG_SVR: write_svr(p, value); break;
    case REG_ESR:
        a->esr = a->esr_new;
        a->esr_new = 0;
        break;
    case REG_ICR_LOW:
        a->icr[0] = value & 0xccfff;    /* delivery status reads 0: it has been sent */
        send_ipi(p);
        break;
    case REG_ICR_HIGH: a->icr[1] = value & 0xff000000; break;
    case REG_LVT_TIMER ... REG_LVT_ERROR: write_lvt(p, reg - REG_LVT_TIMER, value); break;
    case REG_INITIAL: timer_start(p, value); break;
    case REG_DIVIDE: set_divide(p, value & 11); break;
    case REG_ID: case REG_VERSION: case REG_PPR: case REG_APR: case REG_CURRENT: break;
    default:
        if (!(reg >= REG_ISR && reg < REG_IRR + 8))
            a->esr_new |= ESR_REGISTER;
    }
}

void apic_set_base(struct pc_cpu *p, u64 value)
{
    u64 old = p->cpu.apic_base;
    p->cpu.apic_base = (value & ~(u64)PC_APIC_BSP) | (pc_bsp(p) ? PC_APIC_BSP : 0);
    if (old & PC_APIC_ENABLE && !(value & PC_APIC_ENABLE))
        apic_reset(p);                  /* 10.4.3: as after a reset when it is enabled again */
    if (old != p->cpu.apic_base)
        x86_tlb_flush(&p->cpu);
}

void apic_reset(struct pc_cpu *p)
{
    struct lapic *a = &p->apic;
    timer_stop(pc_vcpu(p)->host, &a->timer);
    for (unsigned n = 0; n < 8; n++) {
        xchg(&a->irr[n], 0);
        a->isr[n] = 0;
    }
    a->ldr = a->esr = a->esr_new = a->icr[0] = a->icr[1] = a->divide = a->initial = 0;
    a->dfr = 0xffffffff;
    a->svr = 0xff;
    a->tpr = 0;
    a->expired = false;
    for (unsigned n = 0; n < APIC_NR_LVT; n++)
        a->lvt[n] = LVT_MASKED;
    p->cpu.cr8 = 0;
}

/* The first vCPU's as firmware leaves it: enabled, the PIC behind LINT0 ("virtual wire", MP specification 3.6.2.1). */
void apic_create(struct pc_cpu *p)
{
    p->apic.id = (u8)pc_vcpu(p)->id;
    timer_init(&p->apic.timer, timer_fired, p);
    apic_reset(p);
    if (pc_bsp(p)) {
        p->apic.svr = SVR_ENABLE | 0xff;
        p->apic.lvt[APIC_LVT_LINT0] = MODE_EXTINT << 8;
        p->apic.lvt[APIC_LVT_LINT1] = 4 << 8;
    }
}
