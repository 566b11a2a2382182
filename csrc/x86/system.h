/* What the system part of the interpreter shares among its own files.
 *
 * Owns: helpers of segment.c, exception.c, task.c, exec_far.c, exec_system.c; nobody else includes it, except for x86_check_io and the
 * descriptor helpers, which string I/O and a PC's devices may use. No state, no locks.
 *
 * The rule of all of them: what can fault comes first, then the state changes ("commit"). A fault leaves by longjmp.
 */
#ifndef XL_X86_SYSTEM_H
#define XL_X86_SYSTEM_H

#include "x86/mem.h"

/* Vol. 3, 8.3: a serializing instruction does not begin before all stores ahead of it are visible. What is read behind it is read behind them;
 * that no bytes of code are old by then is for who executes it (interp.c compares them, bt/run.c looks at the codemap). */
static inline void x86_serialize(void) { smp_mb(); }

/* Types of descriptors (vol. 3, tables 3-1 and 3-2). Long mode has no 16-bit and no task gates. */
enum {
    X86_SEG_A = 1,
    X86_SEG_RW = 2,             /* data: writable; code: readable */
    X86_SEG_EC = 4,             /* data: expand-down; code: conforming */
    X86_SEG_CODE = 8,
};
enum { X86_SYS_TSS16 = 1, X86_SYS_LDT = 2, X86_SYS_TSS16_BUSY = 3, X86_SYS_CALL16 = 4, X86_SYS_TASK = 5, X86_SYS_INT16 = 6,
       X86_SYS_TRAP16 = 7, X86_SYS_TSS = 9, X86_SYS_TSS_BUSY = 11, X86_SYS_CALL = 12, X86_SYS_INT = 14, X86_SYS_TRAP = 15 };

static inline bool x86_protected(const struct x86_cpu *c) { return (c->cr0 & X86_CR0_PE) && !(c->rflags & X86_VM); }
static inline unsigned x86_iopl(const struct x86_cpu *c) { return c->rflags >> 12 & 3; }
static inline bool x86_null_sel(u16 sel) { return (sel & ~3) == 0; }
static inline bool x86_is_code(u16 attr) { return (attr & (X86_ATTR_S | X86_SEG_CODE)) == (X86_ATTR_S | X86_SEG_CODE); }
static inline bool x86_is_conforming(u16 attr) { return x86_is_code(attr) && (attr & X86_SEG_EC); }
static inline bool x86_is_writable(u16 attr) { return (attr & (X86_ATTR_S | X86_SEG_CODE | X86_SEG_RW)) == (X86_ATTR_S | X86_SEG_RW); }
static inline bool x86_is_readable(u16 attr) { return (attr & X86_ATTR_S) && (!(attr & X86_SEG_CODE) || (attr & X86_SEG_RW)); }
/* Type of a system descriptor, 0 (reserved) if it is one of code or data. */
static inline unsigned x86_sys_type(u16 attr) { return attr & X86_ATTR_S ? 0 : x86_attr_type(attr); }
/* What a return (vol. 2, RET, IRET) may lead to: code by a selector with this RPL; a stack of level cpl; in 64-bit code
 * no stack segment at all. */
static inline bool x86_may_return_to(u16 attr, unsigned rpl, unsigned cpl)
{
    unsigned dpl = x86_attr_dpl(attr);
    return x86_is_code(attr) && rpl >= cpl && (x86_is_conforming(attr) ? dpl <= rpl : dpl == rpl);
}
static inline bool x86_may_be_stack(u16 attr, u16 sel, unsigned cpl)
{
    return (sel & 3u) == cpl && x86_is_writable(attr) && x86_attr_dpl(attr) == cpl;
}
static inline bool x86_null_is_stack(u16 sel, unsigned rpl) { return x86_null_sel(sel) && rpl != 3 && (sel & 3u) == rpl; }
/* A data segment that level cpl may not use: on the way there it becomes null. */
static inline bool x86_is_inner(const struct x86_seg *s, unsigned cpl)
{
    return !(s->attr & X86_ATTR_UNUSABLE) && !x86_is_conforming(s->attr) && x86_attr_dpl(s->attr) < cpl;
}
/* What IRET makes of rflags with `image` from the stack (vol. 2, IRET; no VME: VIF and VIP do not exist). */
static inline u64 x86_iret_flags(const struct x86_cpu *c, u64 rflags, u64 image, unsigned size)
{
    u64 mask = X86_ARITH_FLAGS | X86_TF | X86_DF | X86_NT;
    if (size > 2)
        mask |= X86_RF | X86_AC | X86_ID;
    if (!(c->cr0 & X86_CR0_PE) || c->cpl == 0)
        mask |= X86_IF | X86_IOPL;
    else if (c->cpl <= x86_iopl(c))
        mask |= X86_IF;
    return (rflags & ~mask) | (image & mask) | X86_FLAG1;
}
static inline u16 x86_desc_attr(u64 desc) { return (desc >> 40 & 0xff) | (desc >> 44 & 0xf00); }

static inline u64 x86_sys_load(struct x86_cpu *c, u64 lin, unsigned size)
{
    const u8 *quick = x86_quick_ptr(c, X86_SYS_SEG, lin, size, false);
    return likely(quick != NULL) ? x86_host_load(quick, size) : x86_load_slow(c, X86_SYS_SEG, c->long_mode ? lin : (u32)lin, size);
}

/* What a segment register has after that descriptor was loaded into it. */
static inline struct x86_seg x86_segment_of(u16 sel, u64 desc)
{
    u32 limit = (desc & 0xffff) | (desc >> 32 & 0xf0000);
    u16 attr = x86_desc_attr(desc);
    return (struct x86_seg){ .sel = sel, .attr = attr, .limit = attr & X86_ATTR_G ? limit << 12 | 0xfff : limit,
                             .base = (desc >> 16 & 0xffffff) | (desc >> 32 & 0xff000000) };
}

/* ---- segment.c --------------------------------------------------------------------------------------------------- */

/* The descriptor that sel names; #vector(sel & ~3 | ext) if it lies beyond its table. desc[1] is 0 unless `two`. */
void x86_fetch_descriptor(struct x86_cpu *c, u16 sel, bool two, u64 desc[2], unsigned vector, unsigned ext);
/* The 8 bytes that nearly all are: of the GDT, in a page that the TLB has. NULL: by x86_fetch_descriptor. */
static inline const u8 *x86_quick_descriptor(struct x86_cpu *c, u16 sel)
{
    bool gdt = c->ops->descriptor == x86_descriptor_native && !(sel & 4) && (sel | 7u) <= c->gdtr.limit;
    return likely(gdt) ? x86_quick_ptr(c, X86_SYS_SEG, c->gdtr.base + (sel & ~7u), 8, false) : NULL;
}
/* The same as x86_fetch_descriptor of 8 bytes. */
static inline u64 x86_fetch_segment(struct x86_cpu *c, u16 sel, unsigned vector, unsigned ext)
{
    u64 desc[2];
    const u8 *quick = x86_quick_descriptor(c, sel);
    if (likely(quick != NULL))
        return x86_host_load(quick, 8);
    x86_fetch_descriptor(c, sel, false, desc, vector, ext);
    return desc[0];
}
/* Sets and clears bits of a descriptor's upper half (accessed, busy), atomically. Not where the OS below owns the tables (PV). */
void x86_update_descriptor(struct x86_cpu *c, u16 sel, u32 set, u32 clear);
/* Checks that the above can be done. */
void x86_probe_descriptor(struct x86_cpu *c, u16 sel);
/* Sets the accessed bit of a code or data descriptor, in memory if it is not set, and in *desc. */
void x86_make_accessed(struct x86_cpu *c, u16 sel, u64 *desc);
static inline void x86_set_accessed(struct x86_cpu *c, u16 sel, u64 *desc)
{
    if (unlikely(!(*desc >> 40 & X86_SEG_A)))
        x86_make_accessed(c, sel, desc);
}
/* Commit: makes *s the segment, or the one of real (limit and rights stay) or virtual-8086 mode. No checks, no faults. */
static inline void x86_set_segment(struct x86_cpu *c, unsigned seg, const struct x86_seg *s)
{
    c->seg[seg] = *s;
    c->lin_base[seg] = c->mode == 64 && seg < X86_FS ? 0 : s->base;
    if (c->ops->segment_loaded)
        c->ops->segment_loaded(c, seg);
}
void x86_set_segment_real(struct x86_cpu *c, unsigned seg, u16 sel);
void x86_set_segment_vm86(struct x86_cpu *c, unsigned seg, u16 sel);
void x86_set_segment_null(struct x86_cpu *c, unsigned seg, u16 sel);
/* After CPL rose (numerically): data segments that the new level may not use become null (vol. 2 RET, IRET). */
void x86_drop_inner_segments(struct x86_cpu *c);
/* The checks of a stack segment for privilege level cpl: #vector(sel | ext), #SS(sel | ext) if not present; null: #vector(ext).
 * Accessed bit set. mov ss: #GP; task switch and inner stacks: #TS. */
u64 x86_check_stack_descriptor(struct x86_cpu *c, u16 sel, unsigned cpl, unsigned vector, unsigned ext);
static inline void x86_check_stack_segment(struct x86_cpu *c, struct x86_seg *ss, u16 sel, unsigned cpl, unsigned vector, unsigned ext)
{
    *ss = x86_segment_of(sel, x86_check_stack_descriptor(c, sel, cpl, vector, ext));
}
/* The checks of a data segment register's new value: #vector(sel), #NP(sel). sel may be null. Accessed bit set. */
void x86_check_data_segment(struct x86_cpu *c, struct x86_seg *s, u16 sel, unsigned vector);
/* Offsets [off, off + n) lie in the segment (expand-down too). Not for 64-bit mode. */
bool x86_in_limit(const struct x86_seg *s, u64 off, unsigned n);

/* A stack that is pushed to or popped from before anything is committed. */
struct x86_stack {
    u64 sp;                     /* where it has got to: what rsp will be */
    u64 mask;                   /* of offsets */
    struct x86_seg ss;          /* unless flat */
    u8 via;                     /* X86_SS: the current stack, by the rights of CPL; X86_SYS_SEG: a stack of an inner level */
    bool flat;                  /* 64-bit: no base, no limit, canonical */
};
struct x86_stack x86_current_stack(const struct x86_cpu *c);
/* A legacy stack of an inner level, or (ss NULL) a flat one. */
struct x86_stack x86_inner_stack(const struct x86_seg *ss, u64 sp);
/* Checks that n pushes of `unit` bytes will not fault; #SS(error), #PF. */
void x86_stack_reserve(struct x86_cpu *c, const struct x86_stack *s, unsigned n, unsigned unit, u32 error);
void x86_stack_push(struct x86_cpu *c, struct x86_stack *s, unsigned size, u64 value);
u64 x86_stack_pop(struct x86_cpu *c, struct x86_stack *s, unsigned size);
/* The stack of privilege level cpl in the current TSS, checked: #TS, #SS. Legacy TSS. */
struct x86_stack x86_tss_stack(struct x86_cpu *c, unsigned cpl, unsigned ext);
/* The rsp in a 64-bit TSS for privilege level cpl, or IST slot ist if not 0, of a flat stack. #TS(tr), #SS(ext) if not canonical. */
u64 x86_tss_rsp(struct x86_cpu *c, unsigned cpl, unsigned ist, unsigned ext);
/* x86_stack_reserve of n words of 8 bytes for a flat stack that is at sp. Their host address, the lowest first, if all can be stored there
 * as they are; NULL: each is to be pushed. */
void x86_frame_probe(struct x86_cpu *c, unsigned via, u64 sp, unsigned n, u32 error);
static inline u64 *x86_frame_reserve(struct x86_cpu *c, unsigned via, u64 sp, unsigned n, u32 error)
{
    u8 *quick = x86_quick_ptr(c, via, sp - n * 8, n * 8, true);
    if (unlikely(!quick))
        x86_frame_probe(c, via, sp, n, error);
    return (u64 *)quick;
}

/* #GP(ext) unless rip may be executed in cs: limit, or canonical. */
static inline void x86_check_rip(struct x86_cpu *c, const struct x86_seg *cs, u64 rip, unsigned ext)
{
    bool ok = c->long_mode && (cs->attr & X86_ATTR_L) ? va_canonical(rip) : rip <= cs->limit;
    if (unlikely(!ok))
        x86_raise_error(c, X86_GP, ext);
}

/* Commit: code segment with selector's RPL = cpl, privilege level, rip. Everything derived is recomputed. */
static inline void x86_set_code(struct x86_cpu *c, const struct x86_seg *cs, unsigned cpl, u64 rip)
{
    struct x86_seg s = { .sel = (u16)((cs->sel & ~3u) | cpl), .attr = cs->attr, .limit = cs->limit, .base = cs->base };
    c->cpl = (u8)cpl;
    x86_set_segment(c, X86_CS, &s);
    c->next_rip = rip;
    if (likely(c->mode == 64 && s.attr & X86_ATTR_L))   /* to other 64-bit code: mode and bases stay what they are */
        x86_derive_level(c);
    else
        x86_derive(c);
}

/* A flat segment, as syscall and sysenter make: code (l: 64-bit) or stack. */
struct x86_seg x86_flat_segment(u16 sel, bool code, unsigned dpl, bool l);

/* ---- task.c ------------------------------------------------------------------------------------------------------ */

enum x86_task_cause { X86_TASK_JMP, X86_TASK_CALL, X86_TASK_IRET, X86_TASK_INT };
/* Switches to the task that sel (a TSS; DPL was checked) names; rip, rflags: where and how the old one
 * goes on; e: the exception under way, for its error code, or NULL. Raises in the old task's context, or
 * (after the point of no return, vol. 3, 7.3) in the new one's. Not in long mode. */
void x86_switch_task(struct x86_cpu *c, u16 sel, enum x86_task_cause cause, u64 rip, u64 rflags,
                     const struct x86_exception *e, unsigned ext);

/* ---- exec_system.c ----------------------------------------------------------------------------------------------- */

/* Raises #GP(0) unless the port may be used: IOPL, then the I/O permission bitmap of the TSS (vol. 1, 19.5). in, out, ins, outs. */
void x86_check_io(struct x86_cpu *c, u16 port, unsigned size);

/* ---- operands ---------------------------------------------------------------------------------------------------- */

static inline u64 x86_read_mem(struct x86_cpu *c, const struct x86_insn *i, u64 ea, unsigned size)
{
    switch (size) {
    case 1: return x86_load8(c, i->mem_seg, ea);
    case 2: return x86_load16(c, i->mem_seg, ea);
    case 4: return x86_load32(c, i->mem_seg, ea);
    default: return x86_load64(c, i->mem_seg, ea);
    }
}

/* Operand n's value, `size` bytes of it (registers, memory, immediates). */
static inline u64 x86_read_operand(struct x86_cpu *c, const struct x86_insn *i, unsigned n, unsigned size)
{
    const struct x86_operand *o = &i->op[n];
    if (o->kind == X86_MEM)
        return x86_read_mem(c, i, x86_ea(c, i), size);
    if (o->kind == X86_IMM)
        return i->imm;
    return size == 1 ? x86_get8(c, o->reg) : size == 2 ? x86_get16(c, o->reg) : size == 4 ? x86_get32(c, o->reg) : x86_get64(c, o->reg);
}

static inline void x86_write_reg(struct x86_cpu *c, unsigned reg, unsigned size, u64 value)
{
    switch (size) {
    case 1: x86_set8(c, reg, value); break;
    case 2: x86_set16(c, reg, value); break;
    case 4: x86_set32(c, reg, value); break;
    default: x86_set64(c, reg, value);
    }
}

#endif
