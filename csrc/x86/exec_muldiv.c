/* mul imul div idiv, and the decimal adjustments: aaa aas daa das aam aad.
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks.
 *
 * Undefined flags: after a multiplication SF, ZF and PF are those of the low half, AF is clear; a division changes none.
 */
#include "x86/operand.h"

typedef unsigned __int128 u128;
typedef __int128 s128;

/* ---- multiplication ---------------------------------------------------------------------------------------------------- */

X86_INLINE void mul_flags(struct x86_cpu *c, u64 low, unsigned size, bool overflow)
{
    c->rflags = x86_flags_merge(c->rflags, X86_ARITH_FLAGS, x86_flags_szp(low, size) | (overflow ? X86_CF | X86_OF : 0));
}

/* rDX:rAX, or AX, := the double-width product. */
X86_INLINE void mul_store(struct x86_cpu *c, unsigned size, u64 low, u64 high)
{
    if (size == 1) {
        x86_reg_set(c, X86_RAX * 8, 2, high << 8 | low);
    } else {
        x86_reg_set(c, X86_RAX * 8, size, low);
        x86_reg_set(c, X86_RDX * 8, size, high);
    }
}

X86_INLINE void exec_mul(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u128 x = (u128)x86_operand_get(c, i, 0, mem, size) * x86_reg_get(c, X86_RAX * 8, size);
    u64 low = (u64)x & x86_mask(size), high = (u64)(x >> (8 * size));
    mul_store(c, size, low, high);
    mul_flags(c, low, size, high != 0);
}
X86_OP_SIZES(mul, exec_mul);

/* One operand: rDX:rAX := rAX * E. Two: G := G * E. Three: G := E * I. */
X86_INLINE void exec_imul(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    bool wide = i->nr_ops == 1;
    s64 a = (s64)x86_sext(x86_operand_get(c, i, !wide, mem, size), size);
    s64 b = (s64)x86_sext(wide ? x86_reg_get(c, X86_RAX * 8, size) : x86_operand_ri(c, i, i->nr_ops == 3 ? 2 : 0, size), size);
    s128 x = (s128)a * b;
    u64 low = (u64)x & x86_mask(size);
    if (wide)
        mul_store(c, size, low, (u64)(x >> (8 * size)) & x86_mask(size));
    else
        x86_reg_set(c, i->op[0].reg, size, low);
    mul_flags(c, low, size, x != (s64)x86_sext(low, size));
}
X86_OP_SIZES(imul, exec_imul);

/* ---- division: #DE if the divisor is 0 or the quotient does not fit ------------------------------------------------------- */

X86_INLINE void div_store(struct x86_cpu *c, unsigned size, u64 quotient, u64 remainder)
{
    if (size == 1) {
        x86_reg_set(c, X86_RAX * 8, 2, (remainder & 0xff) << 8 | (quotient & 0xff));
    } else {
        x86_reg_set(c, X86_RAX * 8, size, quotient);
        x86_reg_set(c, X86_RDX * 8, size, remainder);
    }
}

X86_INLINE u64 dividend_low(const struct x86_cpu *c, unsigned size)     /* all of it, of sizes below 8 */
{
    return size == 1 ? x86_reg_get(c, X86_RAX * 8, 2)
                     : x86_reg_get(c, X86_RDX * 8, size) << (8 * size & 63) | x86_reg_get(c, X86_RAX * 8, size);
}

X86_INLINE void exec_div(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 divisor = x86_operand_get(c, i, 0, mem, size), quotient, remainder;
    if (size == 8) {
        u64 high = c->r[X86_RDX], low = c->r[X86_RAX];
        if (high >= divisor)                                    /* covers 0 */
            x86_raise(c, X86_DE);
        u128 x = (u128)high << 64 | low;
        quotient = high ? (u64)(x / divisor) : low / divisor;
        remainder = low - quotient * divisor;
    } else {
        u64 x = dividend_low(c, size);
        if (!divisor || x / divisor > x86_mask(size))
            x86_raise(c, X86_DE);
        quotient = x / divisor;
        remainder = x % divisor;
    }
    div_store(c, size, quotient, remainder);
}
X86_OP_SIZES(div, exec_div);

X86_INLINE void exec_idiv(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    s64 divisor = (s64)x86_sext(x86_operand_get(c, i, 0, mem, size), size), quotient, remainder;
    if (!divisor)
        x86_raise(c, X86_DE);
    if (size == 8) {
        s64 high = (s64)c->r[X86_RDX], low = (s64)c->r[X86_RAX];
        u64 magnitude = divisor < 0 ? -(u64)divisor : (u64)divisor;
        u128 x = (u128)(u64)high << 64 | (u64)low, ux = high < 0 ? -x : x;
        if ((u64)(ux >> 64) >= magnitude)
            x86_raise(c, X86_DE);
        u64 q = ux >> 64 ? (u64)(ux / magnitude) : (u64)ux / magnitude;
        bool negative = (high ^ divisor) < 0;
        if (q > (u64)INT64_MAX + negative)
            x86_raise(c, X86_DE);
        quotient = (s64)(negative ? -q : q);
        remainder = (s64)((u64)low - (u64)quotient * (u64)divisor);
    } else {
        s64 x = (s64)x86_sext(dividend_low(c, size), 2 * size & 15);
        if (divisor == -1 && x == INT64_MIN)                    /* would trap here */
            x86_raise(c, X86_DE);
        quotient = x / divisor;
        remainder = x % divisor;
        if (quotient != (s64)x86_sext((u64)quotient, size))
            x86_raise(c, X86_DE);
    }
    div_store(c, size, (u64)quotient, (u64)remainder);
}
X86_OP_SIZES(idiv, exec_idiv);

/* ---- decimal adjustments (vol. 2, each instruction's operation) -------------------------------------------------------------- */

static void decimal_flags(struct x86_cpu *c, u64 carries)
{
    c->rflags = x86_flags_merge(c->rflags, X86_ARITH_FLAGS, x86_flags_szp(x86_get8(c, X86_RAX * 8), 1) | carries);
}

/* sign: +1 aaa, -1 aas. */
static void ascii_adjust(struct x86_cpu *c, int sign)
{
    u16 ax = x86_get16(c, X86_RAX * 8);
    bool adjust = (ax & 15) > 9 || c->rflags & X86_AF;
    if (adjust)
        ax = (u16)(ax + sign * 0x106);
    x86_set16(c, X86_RAX * 8, ax & 0xff0f);
    decimal_flags(c, adjust ? X86_CF | X86_AF : 0);
}
static void exec_aaa(struct x86_cpu *c, const struct x86_insn *i) { ascii_adjust(c, 1); }
static void exec_aas(struct x86_cpu *c, const struct x86_insn *i) { ascii_adjust(c, -1); }
X86_OP_ALL(aaa, exec_aaa);
X86_OP_ALL(aas, exec_aas);

static void decimal_adjust(struct x86_cpu *c, int sign)
{
    u8 al = x86_get8(c, X86_RAX * 8), before = al;
    bool low = (al & 15) > 9 || c->rflags & X86_AF, high = al > 0x99 || c->rflags & X86_CF, carry = high;
    if (low) {
        if (sign < 0)
            carry |= al < 6;
        al = (u8)(al + sign * 6);
    }
    if (high)
        al = (u8)(before + sign * (low ? 0x66 : 0x60));
    x86_set8(c, X86_RAX * 8, al);
    decimal_flags(c, (carry ? X86_CF : 0) | (low ? X86_AF : 0));
}
static void exec_daa(struct x86_cpu *c, const struct x86_insn *i) { decimal_adjust(c, 1); }
static void exec_das(struct x86_cpu *c, const struct x86_insn *i) { decimal_adjust(c, -1); }
X86_OP_ALL(daa, exec_daa);
X86_OP_ALL(das, exec_das);

static void exec_aam(struct x86_cpu *c, const struct x86_insn *i)
{
    u8 base = (u8)i->imm, al = x86_get8(c, X86_RAX * 8);
    if (!base)
        x86_raise(c, X86_DE);
    x86_set16(c, X86_RAX * 8, (u16)(al / base << 8 | al % base));
    decimal_flags(c, 0);
}
X86_OP_ALL(aam, exec_aam);

static void exec_aad(struct x86_cpu *c, const struct x86_insn *i)
{
    u16 ax = x86_get16(c, X86_RAX * 8);
    x86_set16(c, X86_RAX * 8, (u8)(ax + (ax >> 8) * (u8)i->imm));
    decimal_flags(c, 0);
}
X86_OP_ALL(aad, exec_aad);
