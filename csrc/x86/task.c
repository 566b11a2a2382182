/* Task switches by hardware (vol. 3, chapter 7).
 *
 * Owns: the switch itself, for 32- and 16-bit TSS. Called by: exec_far.c (jmp, call, iret), exception.c (task gates in the IDT). The
 * caller has checked the privilege; here the TSS is. Locks: none. Long mode has no task switches.
 *
 * Everything that can fault in the old task's context (both TSS, both descriptors, the back link) is checked or probed first. From
 * the commit on, faults are the new task's, with its first instruction's address.
 */
#include "x86/system.h"

struct tss_layout {
    u8 size;                    /* of a field: 4 or 2 */
    u8 min_limit;
    u8 ip, flags, regs, segs, nr_segs, ldt;
};
static const struct tss_layout tss32 = { 4, 0x67, 0x20, 0x24, 0x28, 0x48, 6, 0x60 }, tss16 = { 2, 0x2b, 0x0e, 0x10, 0x12, 0x22, 4, 0x2a };
enum { TSS_LINK = 0, TSS32_CR3 = 0x1c, TSS32_TRAP = 0x64, DR6_BT = 1 << 15, DR7_LOCAL = 0x155,
       TASK_FLAGS = 0x277fd5 /* all but VIF and VIP, which we do not have */ };

static u32 get(const u8 *tss, unsigned off, unsigned size)
{
    u32 x = 0;
    memcpy(&x, tss + off, size);
    return x;
}

static void put(u8 *tss, unsigned off, unsigned size, u32 x) { memcpy(tss + off, &x, size); }

/* The registers as they go to the old TSS: the bytes from its IP to its last segment. */
static void save_task(struct x86_cpu *c, const struct tss_layout *l, u64 rip, u64 rflags)
{
    u8 tss[104] = { 0 };
    unsigned end = l->segs + l->nr_segs * l->size;
    put(tss, l->ip, l->size, rip);
    put(tss, l->flags, l->size, rflags);
    for (unsigned n = 0; n < 8; n++)
        put(tss, l->regs + n * l->size, l->size, c->r[n]);
    for (unsigned n = 0; n < l->nr_segs; n++)
        put(tss, l->segs + n * l->size, l->size, c->seg[n].sel);
    x86_store_bytes(c, X86_SYS_SEG, c->tr.base + l->ip, tss + l->ip, end - l->ip);
}

static void load_ldt(struct x86_cpu *c, u16 sel)
{
    u64 desc[2];
    c->ldtr = (struct x86_seg){ .sel = sel, .attr = X86_ATTR_UNUSABLE };
    if (x86_null_sel(sel))
        return;
    if (sel & 4)
        x86_raise_error(c, X86_TS, sel & ~3u);
    x86_fetch_descriptor(c, sel, false, desc, X86_TS, 0);
    u16 attr = x86_desc_attr(desc[0]);
    if (x86_sys_type(attr) != X86_SYS_LDT || !(attr & X86_ATTR_P))
        x86_raise_error(c, X86_TS, sel & ~3u);
    x86_seg_from_descriptor(&c->ldtr, sel, desc[0]);
}

static void load_code(struct x86_cpu *c, u16 sel, struct x86_seg *cs)
{
    u64 desc[2];
    if (x86_null_sel(sel))
        x86_raise_error(c, X86_TS, 0);
    x86_fetch_descriptor(c, sel, false, desc, X86_TS, 0);
    u16 attr = x86_desc_attr(desc[0]);
    unsigned dpl = x86_attr_dpl(attr), rpl = sel & 3;
    if (!x86_is_code(attr) || (x86_is_conforming(attr) ? dpl > rpl : dpl != rpl))
        x86_raise_error(c, X86_TS, sel & ~3u);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_set_accessed(c, sel, &desc[0]);
    x86_seg_from_descriptor(cs, sel, desc[0]);
}

/* The segment registers of the new task; each in turn, faults in its context (vol. 3, table 7-1). */
static void load_segments(struct x86_cpu *c, const u16 sel[X86_NR_SEGS])
{
    static const u8 data[] = { X86_ES, X86_DS, X86_FS, X86_GS };
    struct x86_seg s;
    if (c->rflags & X86_VM) {
        for (unsigned n = 0; n < X86_NR_SEGS; n++)
            x86_set_segment_vm86(c, n, sel[n]);
        return;
    }
    x86_check_stack_segment(c, &s, sel[X86_SS], c->cpl, X86_TS, 0);
    x86_set_segment(c, X86_SS, &s);
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
        x86_check_data_segment(c, &s, sel[data[n]], X86_TS);
        x86_set_segment(c, data[n], &s);
    }
    load_code(c, sel[X86_CS], &s);
    x86_set_segment(c, X86_CS, &s);
}

void x86_switch_task(struct x86_cpu *c, u16 sel, enum x86_task_cause cause, u64 rip, u64 rflags,
                     const struct x86_exception *e, unsigned ext)
{
    u64 desc[2];
    struct x86_seg to;
    u8 tss[104] = { 0 };
    bool nest = cause == X86_TASK_CALL || cause == X86_TASK_INT;

    /* 1. What can fault in the old task. */
    x86_fetch_descriptor(c, sel, false, desc, cause == X86_TASK_IRET ? X86_TS : X86_GP, ext);
    x86_seg_from_descriptor(&to, sel, desc[0]);
    const struct tss_layout *old = x86_sys_type(c->tr.attr) & 8 ? &tss32 : &tss16, *new = x86_sys_type(to.attr) & 8 ? &tss32 : &tss16;
    if (to.limit < new->min_limit)
        x86_raise_error(c, X86_TS, (sel & ~3u) | ext);
    if ((c->tr.attr & X86_ATTR_UNUSABLE) || c->tr.limit < old->min_limit)
        x86_raise_error(c, X86_TS, (c->tr.sel & ~3u) | ext);
    x86_load_bytes(c, X86_SYS_SEG, to.base, tss, new->min_limit + 1);
    x86_probe_write(c, X86_SYS_SEG, c->tr.base + old->ip, old->segs + old->nr_segs * old->size - old->ip);
    if (nest)
        x86_probe_write(c, X86_SYS_SEG, to.base + TSS_LINK, 2);
    else
        x86_probe_descriptor(c, c->tr.sel);
    if (cause != X86_TASK_IRET)
        x86_probe_descriptor(c, sel);

    /* 2. The old task goes: its state, the busy bits, the back link (7.3, steps 7-12). */
    save_task(c, old, rip, cause == X86_TASK_IRET ? rflags & ~(u64)X86_NT : rflags);
    if (!nest)
        x86_update_descriptor(c, c->tr.sel, 0, 2 << 8);
    if (nest)
        x86_store_slow(c, X86_SYS_SEG, to.base + TSS_LINK, 2, c->tr.sel);
    if (cause != X86_TASK_IRET)
        x86_update_descriptor(c, sel, 2 << 8, 0);

    /* 3. The new one comes. */
    c->tr = to;
    c->tr.attr |= 2;
    c->cr0 |= X86_CR0_TS;
    c->dr[7] &= ~(u64)DR7_LOCAL;
    c->r[X86_RIP] = c->next_rip = get(tss, new->ip, new->size);
    c->rflags = (get(tss, new->flags, new->size) & TASK_FLAGS) | X86_FLAG1 | (nest ? X86_NT : 0);
    for (unsigned n = 0; n < 8; n++)
        c->r[n] = new->size == 4 ? get(tss, new->regs + n * 4, 4) : (c->r[n] & 0xffff0000) | get(tss, new->regs + n * 2, 2);
    if (new->size == 4 && (c->cr0 & X86_CR0_PG)) {
        u64 cr3 = get(tss, TSS32_CR3, 4);
        if ((c->cr4 & X86_CR4_PAE) && !x86_load_pdptes(c, cr3))
            x86_raise_error(c, X86_TS, (sel & ~3u) | ext);
        c->cr3 = cr3;
        x86_tlb_flush(c);
    }
    u16 segs[X86_NR_SEGS] = { 0 };
    for (unsigned n = 0; n < new->nr_segs; n++)
        segs[n] = get(tss, new->segs + n * new->size, 2);
    for (unsigned n = 0; n < X86_NR_SEGS; n++)          /* what a fault below finds: the new task's selectors, nothing usable behind them */
        c->seg[n] = (struct x86_seg){ .sel = segs[n], .attr = n == X86_CS ? c->seg[n].attr : X86_ATTR_UNUSABLE,
                                      .limit = c->seg[n].limit, .base = c->seg[n].base };
    c->cpl = c->rflags & X86_VM ? 3 : segs[X86_CS] & 3;
    load_ldt(c, get(tss, new->ldt, 2));
    load_segments(c, segs);
    x86_derive(c);
    if (new->size == 4 && (tss[TSS32_TRAP] & 1)) {
        c->pending_db |= DR6_BT;
        c->slow |= X86_SLOW_PENDING_DB;
    }
    x86_check_rip(c, &c->seg[X86_CS], c->next_rip, 0);
    if (e && e->has_error) {
        struct x86_stack s = x86_current_stack(c);
        x86_stack_reserve(c, &s, 1, new->size, ext);
        x86_stack_push(c, &s, new->size, e->error);
        c->r[X86_RSP] = s.sp;
    }
}
