/* RFLAGS as instructions compute and change them.
 *
 * Owns: nothing; arithmetic in line in every integer op. Called by: exec_*.c, and whoever changes rflags (x86_set_flags). No locks.
 *
 * Flags are eager and branch-free. CF, AF and OF of a sum come from one word, the carries out of each bit: bit n of it is the carry that
 * bit n gave to bit n+1, so CF is its top bit, AF its bit 3, and OF says that the two top ones differ (Warren, Hacker's Delight, 2-13).
 * Values are zero-extended to 64 bits; `size` is in bytes and a constant after inlining.
 */
#ifndef XL_X86_FLAGS_H
#define XL_X86_FLAGS_H

#include "x86/cpu.h"

#define X86_INLINE static inline __attribute__((always_inline))

X86_INLINE u64 x86_mask(unsigned size) { return ~0ul >> (64 - 8 * size); }
X86_INLINE u64 x86_sext(u64 x, unsigned size) { return (u64)((s64)(x << (64 - 8 * size)) >> (64 - 8 * size)); }
X86_INLINE unsigned x86_msb(u64 x, unsigned size) { return x >> (8 * size - 1) & 1; }

/* SF, ZF and PF of a result. */
X86_INLINE u64 x86_flags_szp(u64 res, unsigned size)
{
    return ((res >> (8 * size - 8) & X86_SF) | (u64)(res == 0) << 6 | (u64)(unsigned)__builtin_parity(res & 0xff) << 2) ^ X86_PF;
}

/* CF, AF and OF of the word of carries or borrows. */
X86_INLINE u64 x86_flags_carries(u64 carries, unsigned size)
{
    return carries >> (8 * size - 1) | (carries << 1 & X86_AF) | (((carries >> (8 * size - 2)) + 1) & 2) << 10;
}

/* The six flags of res = a + b (+ CF), of res = a - b (- CF), and of a logical operation (AF: 0, as on all CPUs of this century). */
X86_INLINE u64 x86_flags_add(u64 a, u64 b, u64 res, unsigned size)
{
    return x86_flags_carries((a & b) | ((a | b) & ~res), size) | x86_flags_szp(res, size);
}

X86_INLINE u64 x86_flags_sub(u64 a, u64 b, u64 res, unsigned size)
{
    return x86_flags_carries((~a & (b | res)) | (b & res), size) | x86_flags_szp(res, size);
}

X86_INLINE u64 x86_flags_merge(u64 old, u64 mask, u64 value) { return (old & ~mask) | value; }

/* Condition cc (0-15, vol. 1, appendix B) of flags: a mask says which bits make it true, its low bit negates. Bit 15, always 0 in
 * rflags, stands for SF != OF. */
X86_INLINE bool x86_condition(u64 flags, unsigned cc)
{
    enum { LESS = 1 << 15 };
    static const u16 bits[8] = { X86_OF, X86_CF, X86_ZF, X86_CF | X86_ZF, X86_SF, X86_PF, LESS, LESS | X86_ZF };
    u64 f = flags | ((flags << 4 ^ flags) & X86_OF) << 4;
    return ((f & bits[cc >> 1]) != 0) ^ (cc & 1);
}

/* rflags := value in the bits of mask. Everything that depends on a system flag (single step, alignment checks, virtual-8086 mode, a
 * waiting interrupt) follows; arithmetic flags may be stored without it. */
static inline void x86_set_flags(struct x86_cpu *c, u64 value, u64 mask)
{
    u64 changed = (c->rflags ^ value) & mask;
    c->rflags ^= changed;
    if (unlikely(changed & (X86_TF | X86_RF | X86_VM | X86_AC)))
        x86_derive(c);
}

#endif
