/* Operands of integer instructions by size, read-modify-write, the stack, near branches.
 *
 * Owns: nothing; in line in exec_*.c, which write each operation once and have the compiler make the eight functions of its x86_op
 * (X86_OP_SIZES: memory or not, and size, are constants in each). No locks; locked operations are host atomics.
 *
 * Order within an op: everything that can fault comes first, then registers and flags.
 */
#ifndef XL_X86_OPERAND_H
#define XL_X86_OPERAND_H

#include "x86/flags.h"
#include "x86/mem.h"

/* x86_op_<name> out of body(c, i, mem, size, ...). */
#define X86_OP_FN(name, suffix, mem, size, body, ...)                                                                   \
    static void name##suffix(struct x86_cpu *c, const struct x86_insn *i) { body(c, i, mem, size, ##__VA_ARGS__); }
#define X86_OP_SIZES(name, body, ...)                                                                                   \
    X86_OP_FN(name, _r8, false, 1, body, ##__VA_ARGS__) X86_OP_FN(name, _r16, false, 2, body, ##__VA_ARGS__)            \
    X86_OP_FN(name, _r32, false, 4, body, ##__VA_ARGS__) X86_OP_FN(name, _r64, false, 8, body, ##__VA_ARGS__)           \
    X86_OP_FN(name, _m8, true, 1, body, ##__VA_ARGS__) X86_OP_FN(name, _m16, true, 2, body, ##__VA_ARGS__)              \
    X86_OP_FN(name, _m32, true, 4, body, ##__VA_ARGS__) X86_OP_FN(name, _m64, true, 8, body, ##__VA_ARGS__)             \
    const struct x86_op x86_op_##name = { { { name##_r8, name##_r16, name##_r32, name##_r64 },                          \
                                            { name##_m8, name##_m16, name##_m32, name##_m64 } } }
/* The same where only the size matters: body(c, i, size, ...). */
#define X86_OP_FN_SIZE(name, suffix, size, body, ...)                                                                   \
    static void name##suffix(struct x86_cpu *c, const struct x86_insn *i) { body(c, i, size, ##__VA_ARGS__); }
#define X86_OP_SIZES_ANY(name, body, ...)                                                                               \
    X86_OP_FN_SIZE(name, _8, 1, body, ##__VA_ARGS__) X86_OP_FN_SIZE(name, _16, 2, body, ##__VA_ARGS__)                  \
    X86_OP_FN_SIZE(name, _32, 4, body, ##__VA_ARGS__) X86_OP_FN_SIZE(name, _64, 8, body, ##__VA_ARGS__)                 \
    const struct x86_op x86_op_##name = { { { name##_8, name##_16, name##_32, name##_64 },                              \
                                            { name##_8, name##_16, name##_32, name##_64 } } }

/* ---- registers and memory by size --------------------------------------------------------------------------------- */

X86_INLINE u64 x86_host_get(const u8 *p, unsigned size)
{
    u64 x = 0;
    switch (size) {             /* not memcpy(&x, p, size): each case is one host access */
    case 1: x = *p; break;
    case 2: { u16 v; memcpy(&v, p, 2); x = v; break; }
    case 4: { u32 v; memcpy(&v, p, 4); x = v; break; }
    case 8: memcpy(&x, p, 8); break;
    }
    return x;
}

X86_INLINE void x86_host_set(u8 *p, unsigned size, u64 x)
{
    switch (size) {
    case 1: *p = (u8)x; break;
    case 2: { u16 v = (u16)x; memcpy(p, &v, 2); break; }
    case 4: { u32 v = (u32)x; memcpy(p, &v, 4); break; }
    case 8: memcpy(p, &x, 8); break;
    }
}

/* off: byte offset into x86_cpu.r, as in struct x86_operand. */
X86_INLINE u64 x86_reg_get(const struct x86_cpu *c, unsigned off, unsigned size) { return x86_host_get((const u8 *)c->r + off, size); }
X86_INLINE void x86_reg_set(struct x86_cpu *c, unsigned off, unsigned size, u64 x)
{
    if (size == 4)
        x86_host_set((u8 *)c->r + off, 8, (u32)x);
    else
        x86_host_set((u8 *)c->r + off, size, x);
}

X86_INLINE u64 x86_load(struct x86_cpu *c, unsigned seg, u64 off, unsigned size)
{
    return size == 1 ? x86_load8(c, seg, off) : size == 2 ? x86_load16(c, seg, off) : size == 4 ? x86_load32(c, seg, off) : x86_load64(c, seg, off);
}

X86_INLINE void x86_store(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 x)
{
    switch (size) {
    case 1: x86_store8(c, seg, off, (u8)x); break;
    case 2: x86_store16(c, seg, off, (u16)x); break;
    case 4: x86_store32(c, seg, off, (u32)x); break;
    case 8: x86_store64(c, seg, off, x); break;
    }
}

X86_INLINE u64 x86_mem_get(struct x86_cpu *c, const struct x86_insn *i, unsigned size) { return x86_load(c, i->mem_seg, x86_ea(c, i), size); }
X86_INLINE void x86_mem_set(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 x) { x86_store(c, i->mem_seg, x86_ea(c, i), size, x); }

/* Operand n: a register or an immediate; with mem, memory as well. */
X86_INLINE u64 x86_operand_ri(const struct x86_cpu *c, const struct x86_insn *i, unsigned n, unsigned size)
{
    return i->op[n].kind == X86_IMM ? i->imm & x86_mask(size) : x86_reg_get(c, i->op[n].reg, size);
}

X86_INLINE u64 x86_operand_get(struct x86_cpu *c, const struct x86_insn *i, unsigned n, bool mem, unsigned size)
{
    return mem && i->op[n].kind == X86_MEM ? x86_mem_get(c, i, size) : x86_operand_ri(c, i, n, size);
}

X86_INLINE void x86_operand_set(struct x86_cpu *c, const struct x86_insn *i, unsigned n, bool mem, unsigned size, u64 x)
{
    if (mem && i->op[n].kind == X86_MEM)
        x86_mem_set(c, i, size, x);
    else
        x86_reg_set(c, i->op[n].reg, size, x);
}

/* Host address of the memory operand if it is in line, else NULL. The most frequent ops then end in a call of their slow form: with
 * no call in between, their fast path keeps nothing on the host's stack. */
X86_INLINE u8 *x86_fast_ptr(struct x86_cpu *c, const struct x86_insn *i, unsigned size, bool write)
{
    return likely(c->mode == 64) ? x86_inline_ptr(c, c->lin_base[i->mem_seg] + x86_ea(c, i), size, write) : NULL;
}
#define X86_SLOW static __attribute__((noinline, cold)) void

/* ---- read-modify-write -------------------------------------------------------------------------------------------- */

/* An operation: its result for a and b, and *flags (rflags before) changed as it says. */
typedef u64 x86_alu_fn(u64 a, u64 b, unsigned size, u64 *flags);

/* *p: *old -> x, atomic. False: *old is what was there. Operands need not be aligned. */
__attribute__((no_sanitize("alignment"))) X86_INLINE bool x86_host_cmpxchg(u8 *p, unsigned size, u64 *old, u64 x)
{
#define CASE(bytes, type) case bytes: { type o = (type)*old; bool done = cmpxchg((type *)p, &o, (type)x); *old = o; return done; }
    switch (size) {
    CASE(1, u8) CASE(2, u16) CASE(4, u32) CASE(8, u64)
    }
#undef CASE
    return false;
}

/* Memory operand at off := f(memory operand, b), by any road, atomically with a lock prefix or `atomic`; *flags as f makes them.
 * Returns what the operand was. Nothing but memory and *flags has changed. exec_alu.c */
u64 x86_rmw(struct x86_cpu *c, const struct x86_insn *i, u64 off, unsigned size, bool atomic, x86_alu_fn *f, u64 b, u64 *flags);

/* ---- stack -------------------------------------------------------------------------------------------------------- */

/* The bits of rSP that address the stack (vol. 1, 6.2.3). */
X86_INLINE u64 x86_stack_mask(const struct x86_cpu *c)
{
    return likely(c->mode == 64) ? ~0ul : c->seg[X86_SS].attr & X86_ATTR_DB ? 0xffffffff : 0xffff;
}

X86_INLINE void x86_reg_set_masked(struct x86_cpu *c, unsigned reg, u64 mask, u64 x)    /* by an address or stack size */
{
    c->r[reg] = mask == 0xffff ? (c->r[reg] & ~0xfffful) | (x & 0xffff) : x & mask;
}

X86_INLINE void x86_set_sp(struct x86_cpu *c, u64 sp) { x86_reg_set_masked(c, X86_RSP, x86_stack_mask(c), sp); }

/* Push and pop with a stack pointer of the caller's, which he writes back (x86_set_sp) when nothing can fault any more. */
static inline void x86_push_at(struct x86_cpu *c, u64 *sp, unsigned size, u64 x)
{
    *sp -= size;
    x86_store_slow(c, X86_SS, *sp & x86_stack_mask(c), size, x);
}

static inline u64 x86_pop_at(struct x86_cpu *c, u64 *sp, unsigned size)
{
    u64 x = x86_load_slow(c, X86_SS, *sp & x86_stack_mask(c), size);
    *sp += size;
    return x;
}

/* Host address of the top of a 64-bit stack, or of what is pushed next, if in line. */
X86_INLINE u8 *x86_fast_stack(struct x86_cpu *c, u64 sp, unsigned size, bool write)
{
    return likely(c->mode == 64) ? x86_inline_ptr(c, sp, size, write) : NULL;
}

/* ---- near branches ------------------------------------------------------------------------------------------------ */

/* `target` cut to the operand size; #GP(0) if code cannot be there (vol. 2, JMP). */
X86_INLINE u64 x86_branch_target(struct x86_cpu *c, u64 target, unsigned size)
{
    target &= x86_mask(size);
    if (unlikely(c->mode == 64 ? !va_canonical(target) : target > c->seg[X86_CS].limit))
        x86_raise_error(c, X86_GP, 0);
    return target;
}

#endif
