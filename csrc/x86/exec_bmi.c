/* BMI1 and BMI2: andn bextr blsi blsmsk blsr bzhi mulx pdep pext rorx sarx shlx shrx. (tzcnt, lzcnt, popcnt: exec_bits.c.)
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks. Operand sizes 4 and 8 only; AF and PF, undefined, stay.
 */
#include "x86/operand.h"

X86_INLINE void bmi_flags(struct x86_cpu *c, u64 res, unsigned size, bool cf)
{
    c->rflags = x86_flags_merge(c->rflags, X86_CF | X86_OF | X86_SF | X86_ZF, (x86_flags_szp(res, size) & ~(u64)X86_PF) | cf);
}

/* An op of result f(x, y) and carry cf(x, y): operand x is number `n` (or memory), y number 3 - n if there is one. */
#define BMI_OP(name, nx, ny, result, carry)                                                                             \
X86_INLINE void bmi_##name(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)                        \
{                                                                                                                       \
    const unsigned bits = 8 * size;                                                                                     \
    u64 x = x86_operand_get(c, i, nx, mem, size), y = ny ? x86_operand_ri(c, i, ny, size) : 0, res = (result) & x86_mask(size);     \
    (void)y, (void)bits;                                                                                                \
    x86_reg_set(c, i->op[0].reg, size, res);                                                                            \
    bmi_flags(c, res, size, carry);                                                                                     \
}                                                                                                                       \
X86_OP_SIZES(name, bmi_##name)

X86_INLINE u64 low_bits(u64 x, unsigned n) { return n >= 64 ? x : x & ((1ul << n) - 1); }
X86_INLINE u64 shift_down(u64 x, unsigned n) { return n >= 64 ? 0 : x >> n; }

BMI_OP(andn, 2, 1, x & ~y, false);
BMI_OP(blsi, 1, 0, x & -x, x != 0);
BMI_OP(blsmsk, 1, 0, x ^ (x - 1), x == 0);
BMI_OP(blsr, 1, 0, x & (x - 1), x == 0);
BMI_OP(bextr, 1, 2, low_bits(shift_down(x, y & 0xff), y >> 8 & 0xff), false);
BMI_OP(bzhi, 1, 2, low_bits(x, y & 0xff), (y & 0xff) > bits - 1);

/* The others change no flags: dst := f(operand nx or memory, operand ny). */
#define BMI_MOVE(name, nx, ny, ysize, result)                                                                           \
X86_INLINE void bmi_##name(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)                        \
{                                                                                                                       \
    const unsigned bits = 8 * size;                                                                                     \
    u64 x = x86_operand_get(c, i, nx, mem, size), y = x86_operand_ri(c, i, ny, ysize);                                  \
    (void)bits;                                                                                                         \
    x86_reg_set(c, i->op[0].reg, size, result);                                                                         \
}                                                                                                                       \
X86_OP_SIZES(name, bmi_##name)

static u64 deposit(u64 mask, u64 x)
{
    u64 res = 0;
    for (; mask; mask &= mask - 1, x >>= 1)
        res |= mask & -mask & -(x & 1);
    return res;
}

static u64 extract(u64 mask, u64 x)
{
    u64 res = 0;
    for (unsigned n = 0; mask; mask &= mask - 1, n++)
        res |= (u64)((x & mask & -mask) != 0) << n;
    return res;
}

BMI_MOVE(pdep, 2, 1, size, deposit(x, y));
BMI_MOVE(pext, 2, 1, size, extract(x, y));
BMI_MOVE(rorx, 1, 2, 1, x >> (y % bits) | x << (-y % bits));
BMI_MOVE(sarx, 1, 2, size, (u64)((s64)x86_sext(x, size) >> (y % bits)));
BMI_MOVE(shlx, 1, 2, size, x << (y % bits));
BMI_MOVE(shrx, 1, 2, size, x >> (y % bits));

X86_INLINE void bmi_mulx(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    unsigned __int128 x = (unsigned __int128)x86_operand_get(c, i, 2, mem, size) * x86_reg_get(c, X86_RDX * 8, size);
    x86_reg_set(c, i->op[1].reg, size, (u64)x);
    x86_reg_set(c, i->op[0].reg, size, (u64)(x >> (8 * size)));         /* last: of one register twice, the high half stays */
}
X86_OP_SIZES(mulx, bmi_mulx);
