/* Shifts, rotates, bit tests, bit scans and counts, byte order, CRC32.
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks.
 *
 * Flags that the SDM leaves undefined are those of Intel's cores: OF of a shift by more than 1 by the same rule as by 1 (from the result's
 * two top bits), AF clear after shifts; all else as it was.
 */
#include "x86/operand.h"

/* ---- shifts and rotates: f(a, count), count as the instruction gives it --------------------------------------------- */

X86_INLINE unsigned count_mask(unsigned size) { return size == 8 ? 63 : 31; }

X86_INLINE u64 shift_shl(u64 a, u64 b, unsigned size, u64 *flags)
{
    unsigned n = b & count_mask(size), bits = 8 * size;
    if (!n)
        return a;
    u64 res = a << n & x86_mask(size), cf = n <= bits ? a >> (bits - n) & 1 : 0;
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_szp(res, size) | cf | (u64)(x86_msb(res, size) ^ cf) << 11);
    return res;
}

X86_INLINE u64 shift_right(u64 a, u64 res, unsigned n, unsigned size, u64 *flags)       /* a: extended as the shift does */
{
    u64 of = x86_msb(res, size) ^ x86_msb(res << 1, size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_szp(res, size) | (a >> (n - 1) & 1) | of << 11);
    return res;
}

X86_INLINE u64 shift_shr(u64 a, u64 b, unsigned size, u64 *flags)
{
    unsigned n = b & count_mask(size);
    return n ? shift_right(a, a >> n, n, size, flags) : a;
}

X86_INLINE u64 shift_sar(u64 a, u64 b, unsigned size, u64 *flags)
{
    unsigned n = b & count_mask(size);
    if (!n)
        return a;
    s64 x = (s64)x86_sext(a, size);
    u64 res = (u64)(x >> n) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_szp(res, size) | (x >> (n - 1) & 1));
    return res;
}

X86_INLINE u64 rotate_flags(u64 res, u64 cf, u64 of, u64 *flags)
{
    *flags = x86_flags_merge(*flags, X86_CF | X86_OF, cf | of << 11);
    return res;
}

X86_INLINE u64 rotate_left(u64 a, unsigned n, unsigned size)     /* n < bits */
{
    return (a << n | a >> 1 >> (8 * size - 1 - n)) & x86_mask(size);
}

X86_INLINE u64 shift_rol(u64 a, u64 b, unsigned size, u64 *flags)
{
    if (!(b & count_mask(size)))
        return a;
    u64 res = rotate_left(a, b % (8 * size), size), cf = res & 1;
    return rotate_flags(res, cf, x86_msb(res, size) ^ cf, flags);
}

X86_INLINE u64 shift_ror(u64 a, u64 b, unsigned size, u64 *flags)
{
    if (!(b & count_mask(size)))
        return a;
    u64 res = rotate_left(a, -b % (8 * size), size), cf = x86_msb(res, size);
    return rotate_flags(res, cf, cf ^ x86_msb(res << 1, size), flags);
}

/* Through carry: bits + 1 of them go round. */
X86_INLINE u64 rotate_carry(u64 a, unsigned n, unsigned size, u64 flags, u64 *cf)       /* left by n, 0 < n <= bits */
{
    unsigned bits = 8 * size;
    u64 low = n == 1 ? 0 : a >> (bits + 1 - n);
    *cf = a >> (bits - n) & 1;
    return ((n == 64 ? 0 : a << n) | (flags & X86_CF) << (n - 1) | low) & x86_mask(size);
}

X86_INLINE u64 shift_rcl(u64 a, u64 b, unsigned size, u64 *flags)
{
    unsigned n = (b & count_mask(size)) % (8 * size + 1);
    if (!n)
        return a;
    u64 cf, res = rotate_carry(a, n, size, *flags, &cf);
    return rotate_flags(res, cf, x86_msb(res, size) ^ cf, flags);
}

X86_INLINE u64 shift_rcr(u64 a, u64 b, unsigned size, u64 *flags)
{
    unsigned n = (b & count_mask(size)) % (8 * size + 1);
    if (!n)
        return a;
    u64 cf, res = rotate_carry(a, 8 * size + 1 - n, size, *flags, &cf);
    return rotate_flags(res, cf, x86_msb(res, size) ^ x86_msb(res << 1, size), flags);
}

X86_INLINE void shift(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, x86_alu_fn *f)
{
    u64 flags = c->rflags, n = x86_operand_ri(c, i, 1, 1);
    if (mem)
        x86_rmw(c, i, x86_ea(c, i), size, false, f, n, &flags);
    else
        x86_reg_set(c, i->op[0].reg, size, f(x86_reg_get(c, i->op[0].reg, size), n, size, &flags));
    c->rflags = flags;
}
X86_OP_SIZES(shl, shift, shift_shl);
X86_OP_SIZES(shr, shift, shift_shr);
X86_OP_SIZES(sar, shift, shift_sar);
X86_OP_SIZES(rol, shift, shift_rol);
X86_OP_SIZES(ror, shift, shift_ror);
X86_OP_SIZES(rcl, shift, shift_rcl);
X86_OP_SIZES(rcr, shift, shift_rcr);

/* shld, shrd: a with the bits of b shifted in. 16-bit counts above 16: a:b:a goes round, as on Intel's cores. */
X86_INLINE u64 double_left(u64 a, u64 b, unsigned n, unsigned size, u64 *cf)
{
    unsigned bits = 8 * size;
    if (n > bits) {
        u64 swap = a;
        a = b, b = swap, n -= bits;
    }
    *cf = a >> (bits - n) & 1;
    return (a << n | b >> (bits - n)) & x86_mask(size);
}

X86_INLINE u64 double_right(u64 a, u64 b, unsigned n, unsigned size, u64 *cf)
{
    unsigned bits = 8 * size;
    if (n > bits) {
        u64 swap = a;
        a = b, b = swap, n -= bits;
    }
    *cf = a >> (n - 1) & 1;
    return (a >> n | b << (bits - n)) & x86_mask(size);
}

X86_INLINE void shift_double(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, bool left)
{
    unsigned n = x86_operand_ri(c, i, 2, 1) & count_mask(size);
    u64 off = mem ? x86_ea(c, i) : 0, b = x86_reg_get(c, i->op[1].reg, size), a, res, cf, of;
    u8 *p = mem ? x86_rmw_ptr(c, i->mem_seg, off, size) : NULL;
    a = !mem ? x86_reg_get(c, i->op[0].reg, size) : p ? x86_host_get(p, size) : x86_load_slow(c, i->mem_seg, off, size);
    if (!n) {
        if (!mem)
            x86_reg_set(c, i->op[0].reg, size, a);              /* a 32-bit register is written all the same */
        return;
    }
    res = left ? double_left(a, b, n, size, &cf) : double_right(a, b, n, size, &cf);
    of = x86_msb(res, size) ^ (left ? cf : x86_msb(res << 1, size));
    if (!mem)
        x86_reg_set(c, i->op[0].reg, size, res);
    else if (p)
        x86_host_set(p, size, res);
    else
        x86_store_slow(c, i->mem_seg, off, size, res);
    c->rflags = x86_flags_merge(c->rflags, X86_ARITH_FLAGS, x86_flags_szp(res, size) | cf | of << 11);
}
X86_OP_SIZES(shld, shift_double, true);
X86_OP_SIZES(shrd, shift_double, false);

/* ---- bit tests: f(a, bit number), bit number below the size ---------------------------------------------------------- */

X86_INLINE u64 bit_flag(u64 a, u64 b, u64 res, u64 *flags)
{
    *flags = x86_flags_merge(*flags, X86_CF, a >> b & 1);
    return res;
}
X86_INLINE u64 bit_set(u64 a, u64 b, unsigned size, u64 *flags) { return bit_flag(a, b, a | 1ul << b, flags); }
X86_INLINE u64 bit_reset(u64 a, u64 b, unsigned size, u64 *flags) { return bit_flag(a, b, a & ~(1ul << b), flags); }
X86_INLINE u64 bit_complement(u64 a, u64 b, unsigned size, u64 *flags) { return bit_flag(a, b, a ^ 1ul << b, flags); }

/* f NULL: bt. A register's bit number reaches beyond the memory operand, by whole operands (vol. 2, BT). */
X86_INLINE void bit_op(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, x86_alu_fn *f)
{
    u64 flags = c->rflags, b = x86_operand_ri(c, i, 1, size), n = b & (8 * size - 1);
    if (mem) {
        u64 off = x86_ea(c, i);
        if (i->op[1].kind == X86_REG)
            off = (off + (u64)((s64)x86_sext(b, size) >> (size == 8 ? 6 : size == 4 ? 5 : 4)) * size) & i->addr_mask;
        if (f)
            x86_rmw(c, i, off, size, false, f, n, &flags);
        else
            bit_flag(x86_load(c, i->mem_seg, off, size), n, 0, &flags);
    } else if (f) {
        x86_reg_set(c, i->op[0].reg, size, f(x86_reg_get(c, i->op[0].reg, size), n, size, &flags));
    } else {
        bit_flag(x86_reg_get(c, i->op[0].reg, size), n, 0, &flags);
    }
    c->rflags = flags;
}
X86_OP_SIZES(bt, bit_op, NULL);
X86_OP_SIZES(bts, bit_op, bit_set);
X86_OP_SIZES(btr, bit_op, bit_reset);
X86_OP_SIZES(btc, bit_op, bit_complement);

/* ---- scans and counts ------------------------------------------------------------------------------------------------ */

/* bsf, bsr: a source of 0 leaves the whole destination, upper half too. */
X86_INLINE void bit_scan(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, bool reverse)
{
    u64 x = x86_operand_get(c, i, 1, mem, size);
    c->rflags = x86_flags_merge(c->rflags, X86_ZF, x ? 0 : X86_ZF);
    if (x)
        x86_reg_set(c, i->op[0].reg, size, reverse ? 63 - (unsigned)__builtin_clzl(x) : (unsigned)__builtin_ctzl(x));
}
X86_OP_SIZES(bsf, bit_scan, false);
X86_OP_SIZES(bsr, bit_scan, true);

X86_INLINE void zero_count(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, bool leading)
{
    u64 x = x86_operand_get(c, i, 1, mem, size);
    unsigned bits = 8 * size, n = !x ? bits : leading ? (unsigned)__builtin_clzl(x) - (64 - bits) : (unsigned)__builtin_ctzl(x);
    x86_reg_set(c, i->op[0].reg, size, n);
    c->rflags = x86_flags_merge(c->rflags, X86_CF | X86_ZF, (x ? 0 : X86_CF) | (n ? 0 : X86_ZF));
}
X86_OP_SIZES(tzcnt, zero_count, false);
X86_OP_SIZES(lzcnt, zero_count, true);

X86_INLINE void bit_count(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 x = x86_operand_get(c, i, 1, mem, size);
    x86_reg_set(c, i->op[0].reg, size, (unsigned)__builtin_popcountl(x));
    c->rflags = x86_flags_merge(c->rflags, X86_ARITH_FLAGS, x ? 0 : X86_ZF);
}
X86_OP_SIZES(popcnt, bit_count);

/* ---- byte order, CRC --------------------------------------------------------------------------------------------------- */

X86_INLINE u64 byte_swap(u64 x, unsigned size) { return __builtin_bswap64(x) >> (64 - 8 * size); }

X86_INLINE void exec_bswap(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    u64 x = x86_reg_get(c, i->op[0].reg, size);
    x86_reg_set(c, i->op[0].reg, size, size == 2 ? 0 : byte_swap(x, size));     /* 16 bits: undefined; hardware gives 0 */
}
X86_OP_SIZES_ANY(bswap, exec_bswap);

X86_INLINE void exec_movbe(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    x86_operand_set(c, i, 0, true, size, byte_swap(x86_operand_get(c, i, 1, true, size), size));
}
X86_OP_SIZES_ANY(movbe, exec_movbe);

/* CRC-32C (polynomial 11EDC6F41h), bit-reflected, four bits a step. */
static void exec_crc32(struct x86_cpu *c, const struct x86_insn *i)
{
    static const u32 step[16] = { 0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                  0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75 };
    unsigned size = i->op[1].size;
    u64 x = i->op[1].kind == X86_MEM ? x86_load_slow(c, i->mem_seg, x86_ea(c, i), size) : x86_reg_get(c, i->op[1].reg, size);
    u32 crc = (u32)x86_get64(c, i->op[0].reg);
    for (unsigned n = 0; n < 2 * size; n++, x >>= 4)
        crc = crc >> 4 ^ step[(crc ^ x) & 15];
    x86_set64(c, i->op[0].reg, crc);
}
X86_OP_ALL(crc32, exec_crc32);
