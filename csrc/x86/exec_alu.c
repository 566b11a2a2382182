/* Two- and one-operand arithmetic and logic: add adc sub sbb and or xor cmp test, inc dec neg not, adcx adox; xchg xadd cmpxchg.
 *
 * Owns: x86_rmw, how an operand in memory is changed. Called by: the interpreter through x86_op tables. No locks: what the guest locks
 * is a compare-and-swap of ours.
 */
#include "x86/operand.h"

u64 x86_rmw(struct x86_cpu *c, const struct x86_insn *i, u64 off, unsigned size, bool atomic, x86_alu_fn *f, u64 b, u64 *flags)
{
    u8 *p = x86_rmw_ptr(c, i->mem_seg, off, size);
    u64 before = *flags, x, old = p ? x86_host_get(p, size) : x86_load_slow(c, i->mem_seg, off, size);
    if (p && !atomic && !(i->prefixes & X86_LOCK)) {
        x86_host_set(p, size, f(old, b, size, flags));
        return old;
    }
    if (unlikely(!p) && x86_is_device(c, i->mem_seg, off, size)) {
        x86_store_slow(c, i->mem_seg, off, size, f(old, b, size, flags));
        return old;
    }
    do {
        *flags = before;
        x = f(old, b, size, flags);
    } while (!(p ? x86_host_cmpxchg(p, size, &old, x) : x86_cmpxchg_slow(c, i->mem_seg, off, size, &old, x)));
    return old;
}

/* ---- operations --------------------------------------------------------------------------------------------------- */

X86_INLINE u64 alu_add(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a + b) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_add(a, b, res, size));
    return res;
}

X86_INLINE u64 alu_adc(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a + b + (*flags & X86_CF)) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_add(a, b, res, size));
    return res;
}

X86_INLINE u64 alu_sub(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a - b) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_sub(a, b, res, size));
    return res;
}

X86_INLINE u64 alu_sbb(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a - b - (*flags & X86_CF)) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_sub(a, b, res, size));
    return res;
}

X86_INLINE u64 alu_logic(u64 res, unsigned size, u64 *flags)
{
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_szp(res, size));
    return res;
}

X86_INLINE u64 alu_and(u64 a, u64 b, unsigned size, u64 *flags) { return alu_logic(a & b, size, flags); }
X86_INLINE u64 alu_or(u64 a, u64 b, unsigned size, u64 *flags) { return alu_logic(a | b, size, flags); }
X86_INLINE u64 alu_xor(u64 a, u64 b, unsigned size, u64 *flags) { return alu_logic(a ^ b, size, flags); }

X86_INLINE u64 alu_inc(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a + 1) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS & ~X86_CF, x86_flags_add(a, 1, res, size) & ~(u64)X86_CF);
    return res;
}

X86_INLINE u64 alu_dec(u64 a, u64 b, unsigned size, u64 *flags)
{
    u64 res = (a - 1) & x86_mask(size);
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS & ~X86_CF, x86_flags_sub(a, 1, res, size) & ~(u64)X86_CF);
    return res;
}

X86_INLINE u64 alu_neg(u64 a, u64 b, unsigned size, u64 *flags) { return alu_sub(0, a, size, flags); }
X86_INLINE u64 alu_not(u64 a, u64 b, unsigned size, u64 *flags) { return ~a & x86_mask(size); }
X86_INLINE u64 alu_take(u64 a, u64 b, unsigned size, u64 *flags) { return b; }

/* ---- their forms -------------------------------------------------------------------------------------------------- */

X86_SLOW alu2_slow(struct x86_cpu *c, const struct x86_insn *i, x86_alu_fn *f)
{
    u64 flags = c->rflags, off = x86_ea(c, i);
    if (i->op[0].kind == X86_MEM) {
        x86_rmw(c, i, off, i->size, false, f, x86_operand_ri(c, i, 1, i->size), &flags);
    } else {
        u64 b = x86_load_slow(c, i->mem_seg, off, i->size);
        x86_reg_set(c, i->op[0].reg, i->size, f(x86_reg_get(c, i->op[0].reg, i->size), b, i->size, &flags));
    }
    c->rflags = flags;
}

X86_INLINE void alu2(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, x86_alu_fn *f)      /* dst := f(dst, src) */
{
    bool store = mem && i->op[0].kind == X86_MEM;
    u8 *p = mem ? x86_fast_ptr(c, i, size, store) : NULL;
    if (mem && unlikely(!p || (i->prefixes & X86_LOCK)))
        return alu2_slow(c, i, f);
    u64 b = mem && !store ? x86_host_get(p, size) : x86_operand_ri(c, i, 1, size);
    u64 flags = c->rflags, x = f(store ? x86_host_get(p, size) : x86_reg_get(c, i->op[0].reg, size), b, size, &flags);
    if (store)
        x86_host_set(p, size, x);
    else
        x86_reg_set(c, i->op[0].reg, size, x);
    c->rflags = flags;
}

X86_SLOW alu2_flags_slow(struct x86_cpu *c, const struct x86_insn *i, x86_alu_fn *f)
{
    u64 x = x86_load_slow(c, i->mem_seg, x86_ea(c, i), i->size);
    bool first = i->op[0].kind == X86_MEM;
    f(first ? x : x86_reg_get(c, i->op[0].reg, i->size), first ? x86_operand_ri(c, i, 1, i->size) : x, i->size, &c->rflags);
}

X86_INLINE void alu2_flags(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, x86_alu_fn *f)       /* cmp, test */
{
    u64 a, b, flags;
    if (mem) {
        u8 *p = x86_fast_ptr(c, i, size, false);
        if (unlikely(!p))
            return alu2_flags_slow(c, i, f);
        u64 x = x86_host_get(p, size);
        bool first = i->op[0].kind == X86_MEM;
        a = first ? x : x86_reg_get(c, i->op[0].reg, size);
        b = first ? x86_operand_ri(c, i, 1, size) : x;
    } else {
        a = x86_reg_get(c, i->op[0].reg, size);
        b = x86_operand_ri(c, i, 1, size);
    }
    flags = c->rflags;
    f(a, b, size, &flags);
    c->rflags = flags;
}

X86_SLOW alu1_slow(struct x86_cpu *c, const struct x86_insn *i, x86_alu_fn *f)
{
    u64 flags = c->rflags;
    x86_rmw(c, i, x86_ea(c, i), i->size, false, f, 0, &flags);
    c->rflags = flags;
}

X86_INLINE void alu1(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, x86_alu_fn *f)
{
    u8 *p = mem ? x86_fast_ptr(c, i, size, true) : NULL;
    if (mem && unlikely(!p || (i->prefixes & X86_LOCK)))
        return alu1_slow(c, i, f);
    u64 flags = c->rflags, x = f(mem ? x86_host_get(p, size) : x86_reg_get(c, i->op[0].reg, size), 0, size, &flags);
    if (mem)
        x86_host_set(p, size, x);
    else
        x86_reg_set(c, i->op[0].reg, size, x);
    c->rflags = flags;
}

X86_OP_SIZES(add, alu2, alu_add);
X86_OP_SIZES(adc, alu2, alu_adc);
X86_OP_SIZES(sub, alu2, alu_sub);
X86_OP_SIZES(sbb, alu2, alu_sbb);
X86_OP_SIZES(and, alu2, alu_and);
X86_OP_SIZES(or, alu2, alu_or);
X86_OP_SIZES(xor, alu2, alu_xor);
X86_OP_SIZES(cmp, alu2_flags, alu_sub);
X86_OP_SIZES(test, alu2_flags, alu_and);
X86_OP_SIZES(inc, alu1, alu_inc);
X86_OP_SIZES(dec, alu1, alu_dec);
X86_OP_SIZES(neg, alu1, alu_neg);
X86_OP_SIZES(not, alu1, alu_not);

/* adcx, adox: an adc whose carry is CF or OF and that leaves the other five alone. */
X86_INLINE void alu_adx(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, unsigned flag)
{
    u64 b = x86_operand_get(c, i, 1, mem, size), a = x86_reg_get(c, i->op[0].reg, size);
    u64 res = (a + b + ((c->rflags & flag) != 0)) & x86_mask(size);
    bool carry = x86_msb((a & b) | ((a | b) & ~res), size);
    x86_reg_set(c, i->op[0].reg, size, res);
    c->rflags = x86_flags_merge(c->rflags, flag, carry ? flag : 0);
}
X86_OP_SIZES(adcx, alu_adx, X86_CF);
X86_OP_SIZES(adox, alu_adx, X86_OF);

/* ---- exchanges: atomic in memory, with or without a lock prefix ----------------------------------------------------- */

X86_INLINE void alu_xchg(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 flags = c->rflags;
    if (mem) {
        unsigned reg = i->op[i->op[0].kind == X86_MEM].reg;
        x86_reg_set(c, reg, size, x86_rmw(c, i, x86_ea(c, i), size, true, alu_take, x86_reg_get(c, reg, size), &flags));
    } else {
        u64 a = x86_reg_get(c, i->op[0].reg, size), b = x86_reg_get(c, i->op[1].reg, size);
        x86_reg_set(c, i->op[0].reg, size, b);
        x86_reg_set(c, i->op[1].reg, size, a);
    }
}
X86_OP_SIZES(xchg, alu_xchg);

X86_INLINE void alu_xadd(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 flags = c->rflags, b = x86_reg_get(c, i->op[1].reg, size);
    if (mem) {
        x86_reg_set(c, i->op[1].reg, size, x86_rmw(c, i, x86_ea(c, i), size, false, alu_add, b, &flags));
    } else {
        u64 a = x86_reg_get(c, i->op[0].reg, size);
        x86_reg_set(c, i->op[1].reg, size, a);
        x86_reg_set(c, i->op[0].reg, size, alu_add(a, b, size, &flags));        /* last: xadd of a register to itself doubles it */
    }
    c->rflags = flags;
}
X86_OP_SIZES(xadd, alu_xadd);

/* Of a register that differs nothing is written, not even a 32-bit one's upper half; of rAX only if they differ. */
X86_INLINE void alu_cmpxchg(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 acc = x86_reg_get(c, X86_RAX * 8, size), src = x86_reg_get(c, i->op[1].reg, size), old = acc, flags = c->rflags;
    if (mem) {
        u64 off = x86_ea(c, i);
        u8 *p = x86_rmw_ptr(c, i->mem_seg, off, size);
        if (p)
            x86_host_cmpxchg(p, size, &old, src);
        else
            x86_cmpxchg_slow(c, i->mem_seg, off, size, &old, src);
    } else {
        old = x86_reg_get(c, i->op[0].reg, size);
        if (old == acc)
            x86_reg_set(c, i->op[0].reg, size, src);
    }
    alu_sub(acc, old, size, &flags);
    if (old != acc)
        x86_reg_set(c, X86_RAX * 8, size, old);
    c->rflags = flags;
}
X86_OP_SIZES(cmpxchg, alu_cmpxchg);

static void exec_cmpxchg8b(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 off = x86_ea(c, i), expected = c->r[X86_RDX] << 32 | (u32)c->r[X86_RAX], old = expected;
    u64 x = c->r[X86_RCX] << 32 | (u32)c->r[X86_RBX];
    u8 *p = x86_rmw_ptr(c, i->mem_seg, off, 8);
    if (p ? x86_host_cmpxchg(p, 8, &old, x) : x86_cmpxchg_slow(c, i->mem_seg, off, 8, &old, x)) {
        c->rflags |= X86_ZF;
        return;
    }
    c->rflags &= ~(u64)X86_ZF;
    c->r[X86_RAX] = (u32)old;
    c->r[X86_RDX] = old >> 32;
}
X86_OP_ALL(cmpxchg8b, exec_cmpxchg8b);

#if defined(__x86_64__)
__attribute__((target("cx16")))
#endif
static bool host_cmpxchg16(u8 *p, unsigned __int128 *old, unsigned __int128 x)
{
    unsigned __int128 found = __sync_val_compare_and_swap((unsigned __int128 *)p, *old, x);
    bool done = found == *old;
    *old = found;
    return done;
}

static void exec_cmpxchg16b(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 off = x86_ea(c, i);
    unsigned __int128 expected = (unsigned __int128)c->r[X86_RDX] << 64 | c->r[X86_RAX], old = expected;
    unsigned __int128 x = (unsigned __int128)c->r[X86_RCX] << 64 | c->r[X86_RBX];
    if ((c->lin_base[i->mem_seg] + off) & 15)
        x86_raise_error(c, X86_GP, 0);
    u8 *p = x86_rmw_ptr(c, i->mem_seg, off, 16);
    if (p) {
        host_cmpxchg16(p, &old, x);
    } else {                    /* a store hook or a breakpoint: not atomic, as no hook takes 16 bytes at once */
        x86_load_bytes(c, i->mem_seg, off, &old, 16);
        if (old == expected)
            x86_store_bytes(c, i->mem_seg, off, &x, 16);
    }
    if (old == expected) {
        c->rflags |= X86_ZF;
        return;
    }
    c->rflags &= ~(u64)X86_ZF;
    c->r[X86_RAX] = (u64)old;
    c->r[X86_RDX] = (u64)(old >> 64);
}
X86_OP_ALL(cmpxchg16b, exec_cmpxchg16b);
