/* Segment registers and descriptors (vol. 3, chapters 3 and 5).
 *
 * Owns: loading of segment registers with all checks, descriptor tables in linear memory, stacks of inner levels; LAR, LSL, VERR, VERW,
 * ARPL. Called by: mov/pop sreg (exec_move.c, exec_stack.c), exec_far.c, exception.c, task.c. Locks: none; descriptor bits change by
 * compare-and-swap, because other CPUs load from the same tables.
 */
#include "x86/system.h"

#define SET (X86_ATTR_S | X86_ATTR_P | X86_SEG_A | X86_SEG_RW)      /* a writable data segment, as real mode has */

/* ---- descriptors -------------------------------------------------------------------------------------------------- */

static u64 descriptor_address(const struct x86_cpu *c, u16 sel)
{
    u64 lin = (sel & 4 ? c->ldtr.base : c->gdtr.base) + (sel & ~7u);
    return c->long_mode ? lin : (u32)lin;
}

bool x86_descriptor_native(struct x86_cpu *c, u16 sel, bool two, u64 desc[2])
{
    if ((sel & 4) && (c->ldtr.attr & X86_ATTR_UNUSABLE))
        return false;
    if ((sel & ~7u) + (two ? 15 : 7) > (sel & 4 ? c->ldtr.limit : c->gdtr.limit))
        return false;
    u64 lin = descriptor_address(c, sel);
    desc[0] = x86_sys_load(c, lin, 8);
    if (two)
        desc[1] = x86_sys_load(c, lin + 8, 8);
    return true;
}

void x86_fetch_descriptor(struct x86_cpu *c, u16 sel, bool two, u64 desc[2], unsigned vector, unsigned ext)
{
    desc[0] = desc[1] = 0;
    if (!c->ops->descriptor(c, sel, two, desc))
        x86_raise_error(c, vector, (sel & ~3u) | ext);
}

void x86_probe_descriptor(struct x86_cpu *c, u16 sel)
{
    x86_probe_write(c, X86_SYS_SEG, descriptor_address(c, sel) + 4, 4);
}

void x86_update_descriptor(struct x86_cpu *c, u16 sel, u32 set, u32 clear)
{
    u64 lin = descriptor_address(c, sel) + 4, old = x86_sys_load(c, lin, 4);
    while (!x86_is_device(c, X86_SYS_SEG, lin, 4) && !x86_cmpxchg_slow(c, X86_SYS_SEG, lin, 4, &old, ((u32)old | set) & ~clear))
        ;
}

void x86_make_accessed(struct x86_cpu *c, u16 sel, u64 *desc)
{
    *desc |= (u64)X86_SEG_A << 40;
    if (c->ops->descriptor == x86_descriptor_native)
        x86_update_descriptor(c, sel, X86_SEG_A << 8, 0);
}

void x86_seg_from_descriptor(struct x86_seg *s, u16 sel, u64 desc) { *s = x86_segment_of(sel, desc); }

struct x86_seg x86_flat_segment(u16 sel, bool code, unsigned dpl, bool l)
{
    u16 size = code && l ? X86_ATTR_L : X86_ATTR_DB;
    return (struct x86_seg){ .sel = sel, .limit = 0xffffffff, .attr = X86_ATTR_G | size | SET | (code ? X86_SEG_CODE : 0) | dpl << 5 };
}

bool x86_in_limit(const struct x86_seg *s, u64 off, unsigned n)
{
    u64 last = off + n - 1;
    if ((s->attr & (X86_ATTR_S | X86_SEG_CODE | X86_SEG_EC)) == (X86_ATTR_S | X86_SEG_EC))      /* expand-down */
        return off > s->limit && last <= (s->attr & X86_ATTR_DB ? 0xffffffff : 0xffff);
    return last <= s->limit;
}

/* ---- commits ------------------------------------------------------------------------------------------------------ */

/* Limits stay: that is what "unreal mode" lives on. CS gets its rights anew, so that 16-bit code follows a switch from protected mode
 * (vol. 3, 9.9.2). */
void x86_set_segment_real(struct x86_cpu *c, unsigned seg, u16 sel)
{
    struct x86_seg s = c->seg[seg];
    s.sel = sel;
    s.base = (u64)sel << 4;
    s.attr &= ~X86_ATTR_UNUSABLE;
    if (seg == X86_CS)
        s.attr = SET;
    x86_set_segment(c, seg, &s);
}

void x86_set_segment_vm86(struct x86_cpu *c, unsigned seg, u16 sel)
{
    struct x86_seg s = { .sel = sel, .attr = SET | 3 << 5, .limit = 0xffff, .base = (u64)sel << 4 };
    x86_set_segment(c, seg, &s);
}

void x86_set_segment_null(struct x86_cpu *c, unsigned seg, u16 sel)
{
    struct x86_seg s = { .sel = sel, .attr = X86_ATTR_UNUSABLE | (sel & 3) << 5 };
    x86_set_segment(c, seg, &s);
}

void x86_drop_inner_segments(struct x86_cpu *c)
{
    static const u8 data[] = { X86_ES, X86_DS, X86_FS, X86_GS };
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++)
        if (x86_is_inner(&c->seg[data[n]], c->cpl))
            x86_set_segment_null(c, data[n], 0);
}

/* ---- checks ------------------------------------------------------------------------------------------------------- */

u64 x86_check_stack_descriptor(struct x86_cpu *c, u16 sel, unsigned cpl, unsigned vector, unsigned ext)
{
    if (x86_null_sel(sel))
        x86_raise_error(c, vector, ext);
    u64 desc = x86_fetch_segment(c, sel, vector, ext);
    u16 attr = x86_desc_attr(desc);
    if (!x86_may_be_stack(attr, sel, cpl))
        x86_raise_error(c, vector, (sel & ~3u) | ext);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_SS_EXC, (sel & ~3u) | ext);
    x86_set_accessed(c, sel, &desc);
    return desc;
}

void x86_check_data_segment(struct x86_cpu *c, struct x86_seg *s, u16 sel, unsigned vector)
{
    u64 desc[2];
    if (x86_null_sel(sel)) {
        *s = (struct x86_seg){ .sel = sel, .attr = X86_ATTR_UNUSABLE };
        return;
    }
    x86_fetch_descriptor(c, sel, false, desc, vector, 0);
    u16 attr = x86_desc_attr(desc[0]);
    unsigned dpl = x86_attr_dpl(attr);
    if (!x86_is_readable(attr) || (!x86_is_conforming(attr) && ((sel & 3u) > dpl || c->cpl > dpl)))
        x86_raise_error(c, vector, sel & ~3u);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_set_accessed(c, sel, &desc[0]);
    x86_seg_from_descriptor(s, sel, desc[0]);
}

void x86_load_segment(struct x86_cpu *c, unsigned seg, u16 sel)
{
    struct x86_seg s;
    if (!(c->cr0 & X86_CR0_PE)) {
        x86_set_segment_real(c, seg, sel);
    } else if (c->rflags & X86_VM) {
        x86_set_segment_vm86(c, seg, sel);
    } else if (seg == X86_SS && x86_null_sel(sel) && c->mode == 64 && c->cpl != 3 && (sel & 3) == c->cpl) {
        x86_set_segment_null(c, seg, sel);
    } else {
        if (seg == X86_SS)
            x86_check_stack_segment(c, &s, sel, c->cpl, X86_GP, 0);
        else
            x86_check_data_segment(c, &s, sel, X86_GP);
        x86_set_segment(c, seg, &s);
    }
}

/* ---- stacks ------------------------------------------------------------------------------------------------------- */

struct x86_stack x86_current_stack(const struct x86_cpu *c)
{
    if (likely(c->mode == 64))
        return (struct x86_stack){ .sp = c->r[X86_RSP], .mask = ~0ul, .via = X86_SS, .flat = true };
    u64 mask = c->seg[X86_SS].attr & X86_ATTR_DB ? 0xffffffff : 0xffff;
    return (struct x86_stack){ .sp = c->r[X86_RSP], .mask = mask, .ss = c->seg[X86_SS], .via = X86_SS };
}

struct x86_stack x86_inner_stack(const struct x86_seg *ss, u64 sp)
{
    if (!ss)
        return (struct x86_stack){ .sp = sp, .mask = ~0ul, .via = X86_SYS_SEG, .flat = true };
    return (struct x86_stack){ .sp = sp, .mask = ss->attr & X86_ATTR_DB ? 0xffffffff : 0xffff, .ss = *ss, .via = X86_SYS_SEG };
}

static u64 stack_address(const struct x86_cpu *c, const struct x86_stack *s, u64 off)
{
    if (s->via == X86_SS)
        return off;                                     /* mem.c adds the base */
    return s->flat ? off : (u32)(s->ss.base + off);
}

static void stack_probe(struct x86_cpu *c, const struct x86_stack *s, u64 off, unsigned n, u32 error)
{
    bool ok = s->flat ? va_canonical(off) && va_canonical(off + n - 1) : x86_in_limit(&s->ss, off, n);
    if (!ok)
        x86_raise_error(c, X86_SS_EXC, error);
    x86_probe_write(c, s->via, stack_address(c, s, off), n);
}

void x86_stack_reserve(struct x86_cpu *c, const struct x86_stack *s, unsigned n, unsigned unit, u32 error)
{
    u64 off = (s->sp - n * unit) & s->mask;
    if (s->flat || off + n * unit - 1 <= s->mask) {
        stack_probe(c, s, off, n * unit, error);
    } else {                                            /* the stack wraps around offset 0: each push stands for itself */
        for (unsigned k = 1; k <= n; k++)
            stack_probe(c, s, (s->sp - k * unit) & s->mask, unit, error);
    }
}

void x86_frame_probe(struct x86_cpu *c, unsigned via, u64 sp, unsigned n, u32 error)
{
    stack_probe(c, &(struct x86_stack){ .via = (u8)via, .flat = true }, sp - n * 8, n * 8, error);
}

static void stack_move(struct x86_stack *s, s64 by)
{
    u64 sp = s->sp + by;
    s->sp = s->mask == 0xffff ? (s->sp & ~0xfffful) | (sp & 0xffff) : sp & s->mask;
}

void x86_stack_push(struct x86_cpu *c, struct x86_stack *s, unsigned size, u64 value)
{
    u64 off = (s->sp - size) & s->mask;
    x86_store_slow(c, s->via, stack_address(c, s, off), size, size == 8 ? value : value & ((1ul << size * 8) - 1));
    stack_move(s, -(s64)size);
}

u64 x86_stack_pop(struct x86_cpu *c, struct x86_stack *s, unsigned size)
{
    u64 value = x86_load_slow(c, s->via, stack_address(c, s, s->sp & s->mask), size);
    stack_move(s, size);
    return value;
}

struct x86_stack x86_tss_stack(struct x86_cpu *c, unsigned cpl, unsigned ext)
{
    bool wide = x86_sys_type(c->tr.attr) & 8;
    unsigned size = wide ? 4 : 2, off = wide ? cpl * 8 + 4 : cpl * 4 + 2;
    struct x86_seg ss;
    if ((c->tr.attr & X86_ATTR_UNUSABLE) || off + size + 1 > c->tr.limit)
        x86_raise_error(c, X86_TS, (c->tr.sel & ~3u) | ext);
    u64 sp = x86_sys_load(c, c->tr.base + off, size);
    u16 sel = x86_sys_load(c, c->tr.base + off + size, 2);
    x86_check_stack_segment(c, &ss, sel, cpl, X86_TS, ext);
    return x86_inner_stack(&ss, sp);
}

u64 x86_tss_rsp(struct x86_cpu *c, unsigned cpl, unsigned ist, unsigned ext)
{
    unsigned off = ist ? ist * 8 + 28 : cpl * 8 + 4;
    if ((c->tr.attr & X86_ATTR_UNUSABLE) || off + 7 > c->tr.limit)
        x86_raise_error(c, X86_TS, (c->tr.sel & ~3u) | ext);
    u64 sp = x86_sys_load(c, c->tr.base + off, 8);
    if (!va_canonical(sp))
        x86_raise_error(c, X86_SS_EXC, ext);
    return sp;
}

/* ---- instructions that only look ---------------------------------------------------------------------------------- */

/* What LAR, LSL, VERR, VERW may see of sel: its descriptor, unless it is null, beyond the table or of too inner a level. */
static bool visible(struct x86_cpu *c, u16 sel, u64 *out)
{
    u64 desc[2];
    if (x86_null_sel(sel) || !c->ops->descriptor(c, sel, false, desc))
        return false;
    u16 attr = x86_desc_attr(desc[0]);
    *out = desc[0];
    return x86_is_conforming(attr) || ((sel & 3u) <= x86_attr_dpl(attr) && c->cpl <= x86_attr_dpl(attr));
}

static void set_zf(struct x86_cpu *c, bool on) { c->rflags = (c->rflags & ~(u64)X86_ZF) | (on ? X86_ZF : 0); }

/* System types that the two accept: bit n for type n (vol. 2, tables of LAR and LSL). */
static const u16 lar_types[2] = { 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12,
                                  1 << 2 | 1 << 9 | 1 << 11 | 1 << 12 };
static const u16 lsl_types[2] = { 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11, 1 << 2 | 1 << 9 | 1 << 11 };

static void lar_lsl(struct x86_cpu *c, const struct x86_insn *i, const u16 types[2], bool lsl)
{
    u64 desc;
    bool ok = visible(c, x86_read_operand(c, i, 1, 2), &desc);
    u16 attr = ok ? x86_desc_attr(desc) : 0;
    if (ok && !(attr & X86_ATTR_S))
        ok = types[c->long_mode] >> x86_attr_type(attr) & 1;
    if (ok) {
        struct x86_seg s;
        x86_seg_from_descriptor(&s, 0, desc);
        x86_write_reg(c, i->op[0].reg, i->size, lsl ? s.limit : desc >> 32 & (i->size == 2 ? 0xff00 : 0xf0ff00));
    }
    set_zf(c, ok);
}

static void lar(struct x86_cpu *c, const struct x86_insn *i) { lar_lsl(c, i, lar_types, false); }
static void lsl(struct x86_cpu *c, const struct x86_insn *i) { lar_lsl(c, i, lsl_types, true); }

static void verr(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 desc;
    set_zf(c, visible(c, x86_read_operand(c, i, 0, 2), &desc) && x86_is_readable(x86_desc_attr(desc)));
}

static void verw(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 desc;
    set_zf(c, visible(c, x86_read_operand(c, i, 0, 2), &desc) && x86_is_writable(x86_desc_attr(desc)));
}

static void arpl(struct x86_cpu *c, const struct x86_insn *i)
{
    u16 dest = x86_read_operand(c, i, 0, 2), rpl = x86_get16(c, i->op[1].reg) & 3;
    bool raise = (dest & 3) < rpl;
    if (raise) {
        dest = (dest & ~3) | rpl;
        if (x86_has_mem(i))
            x86_store16(c, i->mem_seg, x86_ea(c, i), dest);
        else
            x86_set16(c, i->op[0].reg, dest);
    }
    set_zf(c, raise);
}

X86_OP_ALL(lar, lar);
X86_OP_ALL(lsl, lsl);
X86_OP_ALL(verr, verr);
X86_OP_ALL(verw, verw);
X86_OP_ALL(arpl, arpl);
