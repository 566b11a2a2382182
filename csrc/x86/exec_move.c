/* Moves and conversions: mov movzx movsx movsxd lea setcc cmovcc cbw cwd lahf sahf xlat nop, segment registers, flags by single
 * instructions (clc stc cmc cld std cli sti salc).
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks.
 */
#include "x86/operand.h"

/* ---- mov --------------------------------------------------------------------------------------------------------------- */

X86_SLOW mov_slow(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 off = x86_ea(c, i);
    if (i->op[0].kind == X86_MEM)
        x86_store_slow(c, i->mem_seg, off, i->size, x86_operand_ri(c, i, 1, i->size));
    else
        x86_reg_set(c, i->op[0].reg, i->size, x86_load_slow(c, i->mem_seg, off, i->size));
}

X86_INLINE void exec_mov(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    if (!mem)
        return x86_reg_set(c, i->op[0].reg, size, x86_operand_ri(c, i, 1, size));
    bool store = i->op[0].kind == X86_MEM;
    u8 *p = x86_fast_ptr(c, i, size, store);
    if (unlikely(!p))
        return mov_slow(c, i);
    if (store)
        x86_host_set(p, size, x86_operand_ri(c, i, 1, size));
    else
        x86_reg_set(c, i->op[0].reg, size, x86_host_get(p, size));
}
X86_OP_SIZES(mov, exec_mov);

/* movzx, movsx, movsxd: `from` is the source's size. */
X86_SLOW extend_slow(struct x86_cpu *c, const struct x86_insn *i, unsigned from, bool sign)
{
    u64 x = x86_load_slow(c, i->mem_seg, x86_ea(c, i), from);
    x86_reg_set(c, i->op[0].reg, i->size, sign ? x86_sext(x, from) : x);
}

X86_INLINE void extend(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, unsigned from, bool sign)
{
    const u8 *p = mem ? x86_fast_ptr(c, i, from, false) : NULL;
    if (mem && unlikely(!p))
        return extend_slow(c, i, from, sign);
    u64 x = mem ? x86_host_get(p, from) : x86_reg_get(c, i->op[1].reg, from);
    x86_reg_set(c, i->op[0].reg, size, sign ? x86_sext(x, from) : x);
}

X86_INLINE void exec_extend(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size, bool sign)
{
    if (i->op[1].size == 1)
        extend(c, i, mem, size, 1, sign);
    else
        extend(c, i, mem, size, 2, sign);
}
X86_OP_SIZES(movzx, exec_extend, false);
X86_OP_SIZES(movsx, exec_extend, true);

X86_INLINE void exec_movsxd(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    extend(c, i, mem, size, size == 2 ? 2 : 4, true);
}
X86_OP_SIZES(movsxd, exec_movsxd);

X86_INLINE void exec_lea(struct x86_cpu *c, const struct x86_insn *i, unsigned size) { x86_reg_set(c, i->op[0].reg, size, x86_ea(c, i)); }
X86_OP_SIZES_ANY(lea, exec_lea);

X86_INLINE void exec_setcc(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    x86_operand_set(c, i, 0, mem, 1, x86_condition(c->rflags, x86_cond(i)));
}
X86_OP_SIZES(setcc, exec_setcc);

/* The source is read and a 32-bit destination's upper half cleared whether or not the condition holds. */
X86_INLINE void exec_cmovcc(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 x = x86_operand_get(c, i, 1, mem, size), old = x86_reg_get(c, i->op[0].reg, size);
    x86_reg_set(c, i->op[0].reg, size, x86_condition(c->rflags, x86_cond(i)) ? x : old);
}
X86_OP_SIZES(cmovcc, exec_cmovcc);

X86_INLINE void exec_cbw(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    if (size > 1)
        x86_reg_set(c, X86_RAX * 8, size, x86_sext(x86_reg_get(c, X86_RAX * 8, size / 2), size / 2));
}
X86_OP_SIZES_ANY(cbw, exec_cbw);

X86_INLINE void exec_cwd(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    x86_reg_set(c, X86_RDX * 8, size, -(u64)x86_msb(x86_reg_get(c, X86_RAX * 8, size), size));
}
X86_OP_SIZES_ANY(cwd, exec_cwd);

static void exec_xlat(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 off = (c->r[X86_RBX] + x86_get8(c, X86_RAX * 8)) & i->addr_mask;
    x86_set8(c, X86_RAX * 8, x86_load8(c, i->mem_seg, off));
}
X86_OP_ALL(xlat, exec_xlat);

static void exec_nop(struct x86_cpu *c, const struct x86_insn *i) { }
X86_OP_ALL(nop, exec_nop);

/* The guest's stores are the host's: what orders them is a fence of the host's. lfence and sfence order nothing that TSO does not. */
static void exec_mfence(struct x86_cpu *c, const struct x86_insn *i) { smp_mb(); }
X86_OP_ALL(mfence, exec_mfence);

/* ---- segment registers --------------------------------------------------------------------------------------------------- */

static void exec_mov_seg(struct x86_cpu *c, const struct x86_insn *i)
{
    u16 sel = i->op[1].kind == X86_MEM ? x86_load16(c, i->mem_seg, x86_ea(c, i)) : x86_get16(c, i->op[1].reg);
    x86_load_segment(c, i->op[0].reg, sel);
    if (i->op[0].reg == X86_SS)
        c->slow |= X86_SLOW_SHADOW;                             /* the next instruction is to load rSP (vol. 3, 6.8.3) */
}
X86_OP_ALL(mov_seg, exec_mov_seg);

/* To memory always 16 bits; a wider register is zero-extended. */
X86_INLINE void exec_mov_from_seg(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u16 sel = c->seg[i->op[1].reg].sel;
    if (mem)
        x86_mem_set(c, i, 2, sel);
    else
        x86_reg_set(c, i->op[0].reg, size, sel);
}
X86_OP_SIZES(mov_from_seg, exec_mov_from_seg);

/* ---- flags ----------------------------------------------------------------------------------------------------------------- */

enum { STATUS_FLAGS = X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF };

static void exec_lahf(struct x86_cpu *c, const struct x86_insn *i) { x86_set8(c, X86_RAX * 8 + 1, (c->rflags & STATUS_FLAGS) | X86_FLAG1); }
X86_OP_ALL(lahf, exec_lahf);

static void exec_sahf(struct x86_cpu *c, const struct x86_insn *i)
{
    c->rflags = x86_flags_merge(c->rflags, STATUS_FLAGS, x86_get8(c, X86_RAX * 8 + 1) & STATUS_FLAGS);
}
X86_OP_ALL(sahf, exec_sahf);

static void exec_salc(struct x86_cpu *c, const struct x86_insn *i) { x86_set8(c, X86_RAX * 8, c->rflags & X86_CF ? 0xff : 0); }
X86_OP_ALL(salc, exec_salc);

static void exec_clc(struct x86_cpu *c, const struct x86_insn *i) { c->rflags &= ~(u64)X86_CF; }
X86_OP_ALL(clc, exec_clc);

static void exec_stc(struct x86_cpu *c, const struct x86_insn *i) { c->rflags |= X86_CF; }
X86_OP_ALL(stc, exec_stc);

static void exec_cmc(struct x86_cpu *c, const struct x86_insn *i) { c->rflags ^= X86_CF; }
X86_OP_ALL(cmc, exec_cmc);

static void exec_cld(struct x86_cpu *c, const struct x86_insn *i) { c->rflags &= ~(u64)X86_DF; }
X86_OP_ALL(cld, exec_cld);

static void exec_std(struct x86_cpu *c, const struct x86_insn *i) { c->rflags |= X86_DF; }
X86_OP_ALL(std, exec_std);

/* Which flag cli and sti change: IF, or VIF in virtual-8086 mode with CR4.VME and at CPL 3 with CR4.PVI; else #GP(0) (vol. 2, CLI). */
static u64 interrupt_flag(struct x86_cpu *c)
{
    bool vm = c->rflags & X86_VM;
    unsigned iopl = c->rflags >> 12 & 3;
    if (!(c->cr0 & X86_CR0_PE) || (vm ? iopl == 3 : c->cpl <= iopl))
        return X86_IF;
    if (vm ? c->cr4 & X86_CR4_VME : c->cpl == 3 && c->cr4 & X86_CR4_PVI)
        return X86_VIF;
    x86_raise_error(c, X86_GP, 0);
}

static void exec_cli(struct x86_cpu *c, const struct x86_insn *i) { x86_set_flags(c, 0, interrupt_flag(c)); }
X86_OP_ALL(cli, exec_cli);

static void exec_sti(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 flag = interrupt_flag(c);
    if (flag == X86_VIF && c->rflags & X86_VIP)
        x86_raise_error(c, X86_GP, 0);
    if (flag == X86_IF && !(c->rflags & X86_IF))
        c->slow |= X86_SLOW_SHADOW;                             /* interrupts only after the next instruction */
    x86_set_flags(c, flag, flag);
}
X86_OP_ALL(sti, exec_sti);
