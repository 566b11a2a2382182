/* System instructions: descriptor-table and control registers, MSRs, ports, time (vol. 2; vol. 3, chapter 2).
 *
 * Owns: what may be written to CR0, CR3, CR4, CR8, DR6, DR7; the way into and out of long mode; I/O permission. Called by: x86_run; CPL 0
 * has been checked where forms.def says F_CPL0. Locks: none; the TSS's busy bit changes by compare-and-swap.
 */
#include "x86/system.h"

/* ---- descriptor tables --------------------------------------------------------------------------------------------- */

static void lgdt_lidt(struct x86_cpu *c, const struct x86_insn *i, struct x86_dtr *dtr)
{
    u64 ea = x86_ea(c, i);
    u32 limit = x86_read_mem(c, i, ea, 2);
    u64 base = x86_read_mem(c, i, (ea + 2) & i->addr_mask, c->mode == 64 ? 8 : 4);
    if (c->mode == 64 && !va_canonical(base))
        x86_raise_error(c, X86_GP, 0);
    if (c->mode != 64 && i->size == 2)
        base &= 0xffffff;
    *dtr = (struct x86_dtr){ .base = base, .limit = limit };
}

static void sgdt_sidt(struct x86_cpu *c, const struct x86_insn *i, const struct x86_dtr *dtr)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) image = { dtr->limit, dtr->base };
    u64 ea = x86_ea(c, i);
    x86_store_bytes(c, i->mem_seg, ea, &image, c->mode == 64 ? 10 : 6);
}

static void lgdt(struct x86_cpu *c, const struct x86_insn *i) { x86_serialize(); lgdt_lidt(c, i, &c->gdtr); }
static void lidt(struct x86_cpu *c, const struct x86_insn *i) { x86_serialize(); lgdt_lidt(c, i, &c->idtr); }
static void sgdt(struct x86_cpu *c, const struct x86_insn *i) { sgdt_sidt(c, i, &c->gdtr); }
static void sidt(struct x86_cpu *c, const struct x86_insn *i) { sgdt_sidt(c, i, &c->idtr); }

/* The checks common to LLDT and LTR: a descriptor of the GDT, of one of `types`; 16 bytes and a canonical base in long mode. */
static u16 fetch_system(struct x86_cpu *c, u16 sel, u16 types, struct x86_seg *s)
{
    u64 desc[2];
    if (sel & 4)
        x86_raise_error(c, X86_GP, sel & ~3u);
    x86_fetch_descriptor(c, sel, c->long_mode, desc, X86_GP, 0);
    u16 attr = x86_desc_attr(desc[0]);
    if ((attr & X86_ATTR_S) || !(types >> x86_attr_type(attr) & 1) || (desc[1] >> 40 & 0x1f))
        x86_raise_error(c, X86_GP, sel & ~3u);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_seg_from_descriptor(s, sel, desc[0]);
    s->base |= desc[1] << 32;
    if (!va_canonical(s->base))
        x86_raise_error(c, X86_GP, sel & ~3u);
    return attr;
}

static void lldt(struct x86_cpu *c, const struct x86_insn *i)
{
    x86_serialize();
    u16 sel = x86_read_operand(c, i, 0, 2);
    struct x86_seg s = { .sel = sel, .attr = X86_ATTR_UNUSABLE };
    if (!x86_null_sel(sel))
        fetch_system(c, sel, 1 << X86_SYS_LDT, &s);
    c->ldtr = s;
}

static void ltr(struct x86_cpu *c, const struct x86_insn *i)
{
    x86_serialize();
    u16 sel = x86_read_operand(c, i, 0, 2);
    struct x86_seg s;
    if (x86_null_sel(sel))
        x86_raise_error(c, X86_GP, 0);
    fetch_system(c, sel, 1 << X86_SYS_TSS | (c->long_mode ? 0 : 1 << X86_SYS_TSS16), &s);
    x86_update_descriptor(c, sel, 2 << 8, 0);           /* busy */
    s.attr |= 2;
    c->tr = s;
}

/* To memory 16 bits; to a register the operand's size. */
static void store_word(struct x86_cpu *c, const struct x86_insn *i, u64 value)
{
    if (x86_has_mem(i))
        x86_store16(c, i->mem_seg, x86_ea(c, i), value);
    else
        x86_write_reg(c, i->op[0].reg, i->size, value);
}

static void sldt(struct x86_cpu *c, const struct x86_insn *i) { store_word(c, i, c->ldtr.sel); }
static void str(struct x86_cpu *c, const struct x86_insn *i) { store_word(c, i, c->tr.sel); }
static void smsw(struct x86_cpu *c, const struct x86_insn *i) { store_word(c, i, c->cr0); }

/* ---- control registers ---------------------------------------------------------------------------------------------- */

#define CR0_WRITABLE (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_NW | \
                      X86_CR0_CD | X86_CR0_PG)
#define CR0_FLUSH (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE)
#define CR4_FLUSH (X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PSE)

static bool pae_paging(const struct x86_cpu *c, u64 cr0, u64 cr4)
{
    return (cr0 & X86_CR0_PG) && (cr4 & X86_CR4_PAE) && !(c->efer & X86_EFER_LME);
}

static void write_cr0(struct x86_cpu *c, u64 value)
{
    if (value >> 32)
        x86_raise_error(c, X86_GP, 0);
    value = (value & CR0_WRITABLE) | X86_CR0_ET;        /* other bits are reserved, not checked */
    u64 changed = value ^ c->cr0;
    bool pg = value & X86_CR0_PG, enter = pg && (changed & X86_CR0_PG) && (c->efer & X86_EFER_LME);
    bool bad = (pg && !(value & X86_CR0_PE)) || ((value & X86_CR0_NW) && !(value & X86_CR0_CD)) ||
               (!pg && (changed & X86_CR0_PG) && c->mode == 64);
    if (enter)                                          /* vol. 3, 9.8.5 and 4.1.2 */
        bad = bad || !(c->cr4 & X86_CR4_PAE) || (c->seg[X86_CS].attr & X86_ATTR_L) || x86_sys_type(c->tr.attr) < X86_SYS_TSS;
    if (bad || ((changed & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)) && pae_paging(c, value, c->cr4) && !x86_load_pdptes(c, c->cr3)))
        x86_raise_error(c, X86_GP, 0);
    if (enter)
        c->efer |= X86_EFER_LMA;
    if (!pg)
        c->efer &= ~X86_EFER_LMA;
    c->cr0 = value;
    if (changed & CR0_FLUSH)
        x86_tlb_flush(c);
    x86_derive(c);
}

static void write_cr3(struct x86_cpu *c, u64 value)
{
    if (c->long_mode && value >> X86_PHYS_BITS)         /* CR4.PCIDE is not offered, so bit 63 is reserved, too */
        x86_raise_error(c, X86_GP, 0);
    if (pae_paging(c, c->cr0, c->cr4) && !x86_load_pdptes(c, value))
        x86_raise_error(c, X86_GP, 0);
    c->cr3 = value;
    x86_tlb_flush(c);
}

static void write_cr4(struct x86_cpu *c, u64 value)
{
    u64 allowed = X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PCE;
    if (c->features & X86_FEAT_SSE)
        allowed |= X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
    u64 changed = value ^ c->cr4;
    if ((value & ~allowed) || (c->long_mode && !(value & X86_CR4_PAE)))
        x86_raise_error(c, X86_GP, 0);
    if ((changed & CR4_FLUSH) && pae_paging(c, c->cr0, value) && !x86_load_pdptes(c, c->cr3))
        x86_raise_error(c, X86_GP, 0);
    c->cr4 = value;
    if (changed & CR4_FLUSH)
        x86_tlb_flush(c);
    x86_derive(c);
}

static void mov_cr(struct x86_cpu *c, const struct x86_insn *i)
{
    bool write = i->op[0].kind == X86_CR;
    unsigned n = i->op[!write].reg, gpr = i->op[write].reg;
    if (!(n == 0 || (n >= 2 && n <= 4) || (n == 8 && c->mode == 64)))
        x86_raise(c, X86_UD);
    u64 value = c->mode == 64 ? x86_get64(c, gpr) : x86_get32(c, gpr);
    if (!write) {
        u64 x = n == 0 ? c->cr0 : n == 2 ? c->cr2 : n == 3 ? c->cr3 : n == 4 ? c->cr4 : c->cr8;
        x86_write_reg(c, gpr, c->mode == 64 ? 8 : 4, x);
        return;
    }
    x86_serialize();                                        /* also where it would not have to: mov cr8 */
    switch (n) {
    case 0: write_cr0(c, value); break;
    case 2: c->cr2 = value; break;
    case 3: write_cr3(c, value); break;
    case 4: write_cr4(c, value); break;
    case 8:
        if (value & ~15ul)
            x86_raise_error(c, X86_GP, 0);
        c->cr8 = value;
        if (c->ops->cr8_written)
            c->ops->cr8_written(c);
    }
}

/* Loads PE, MP, EM, TS; it can set PE but not clear it. */
static void lmsw(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 value = x86_read_operand(c, i, 0, 2) & 15;
    write_cr0(c, (c->cr0 & ~14ul) | value);
}

static void clts(struct x86_cpu *c, const struct x86_insn *i) { c->cr0 &= ~X86_CR0_TS; }

/* ---- debug registers (vol. 3, 17.2) --------------------------------------------------------------------------------- */

static void mov_dr(struct x86_cpu *c, const struct x86_insn *i)
{
    bool write = i->op[0].kind == X86_DR;
    unsigned n = i->op[!write].reg, gpr = i->op[write].reg;
    if (n > 7 || ((n == 4 || n == 5) && (c->cr4 & X86_CR4_DE)))
        x86_raise(c, X86_UD);
    if (n == 4 || n == 5)
        n += 2;
    if (c->dr[7] & X86_DR7_GD)
        x86_unwind(c, &(struct x86_exception){ .vector = X86_DB, .cr2 = X86_DR6_BD });
    u64 value = c->mode == 64 ? x86_get64(c, gpr) : x86_get32(c, gpr);
    if (!write) {
        x86_write_reg(c, gpr, c->mode == 64 ? 8 : 4, c->dr[n]);
        return;
    }
    if (n >= 6 && value >> 32)
        x86_raise_error(c, X86_GP, 0);
    x86_serialize();
    if (n == 6)
        value = (value & 0xe00f) | 0xffff0ff0;          /* B0-3, BD, BS, BT; the rest is fixed (no RTM) */
    if (n == 7)
        value = (value & 0xffff23ff) | 0x400;
    c->dr[n] = value;
    x86_derive(c);
}

/* ---- caches, TLB, halt ---------------------------------------------------------------------------------------------- */

static void invlpg(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 lin = c->lin_base[i->mem_seg] + x86_ea(c, i);
    x86_serialize();
    x86_tlb_flush_linear(c, c->mode == 64 ? lin : (u32)lin);
}

/* wbinvd and invd: there is no cache to write back. */
static void only_serialize(struct x86_cpu *c, const struct x86_insn *i) { x86_serialize(); }

/* A load's checks and faults, and nothing else. */
static void clflush(struct x86_cpu *c, const struct x86_insn *i) { x86_load8(c, i->mem_seg, x86_ea(c, i)); }

static void hlt(struct x86_cpu *c, const struct x86_insn *i)
{
    c->halted = true;
    x86_stop(c);                                        /* brings x86_run out of its fast loop, which does not look at halted */
}

static void ud(struct x86_cpu *c, const struct x86_insn *i) { x86_raise(c, X86_UD); }

/* ---- MSRs, time, identification ------------------------------------------------------------------------------------- */

static void set_edx_eax(struct x86_cpu *c, u64 value)
{
    c->r[X86_RAX] = (u32)value;
    c->r[X86_RDX] = value >> 32;
}

static void rdmsr(struct x86_cpu *c, const struct x86_insn *i) { c->ops->rdmsr(c, c->r[X86_RCX]); }

static void wrmsr(struct x86_cpu *c, const struct x86_insn *i)
{
    x86_serialize();
    c->ops->wrmsr(c, c->r[X86_RCX], (u32)c->r[X86_RAX] | c->r[X86_RDX] << 32);
}

static void rdtsc(struct x86_cpu *c, const struct x86_insn *i)
{
    if ((c->cr4 & X86_CR4_TSD) && c->cpl)
        x86_raise_error(c, X86_GP, 0);
    set_edx_eax(c, c->ops->tsc(c) + c->tsc_offset);
}

static void rdtscp(struct x86_cpu *c, const struct x86_insn *i)
{
    rdtsc(c, i);
    c->r[X86_RCX] = (u32)c->tsc_aux;
}

/* There are no performance counters (CPUID leaf 0Ah): every index is beyond the last. */
static void rdpmc(struct x86_cpu *c, const struct x86_insn *i) { x86_raise_error(c, X86_GP, 0); }

static void cpuid(struct x86_cpu *c, const struct x86_insn *i)
{
    static const u8 to[4] = { X86_RAX, X86_RBX, X86_RCX, X86_RDX };
    u32 out[4];
    x86_serialize();
    c->ops->cpuid(c, c->r[X86_RAX], c->r[X86_RCX], out);
    for (unsigned n = 0; n < 4; n++)
        c->r[to[n]] = out[n];
}

/* x86_features_supported() leaves it out: numbers that a replay repeats are no entropy. Who offers it all the same gets what the SDM
 * allows at any time: none available (CF = 0, the destination 0). */
static void rdrand(struct x86_cpu *c, const struct x86_insn *i)
{
    c->rflags &= ~(u64)X86_ARITH_FLAGS;
    x86_write_reg(c, i->op[0].reg, i->size, 0);
}

static void swapgs(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 base = c->seg[X86_GS].base;
    c->seg[X86_GS].base = c->lin_base[X86_GS] = c->kernel_gs_base;
    c->kernel_gs_base = base;
}

/* ---- ports ---------------------------------------------------------------------------------------------------------- */

void x86_check_io(struct x86_cpu *c, u16 port, unsigned size)
{
    if (!(c->cr0 & X86_CR0_PE) || (!(c->rflags & X86_VM) && c->cpl <= x86_iopl(c)))
        return;
    const struct x86_seg *tr = &c->tr;
    if (!(tr->attr & X86_ATTR_UNUSABLE) && x86_sys_type(tr->attr) >= X86_SYS_TSS && tr->limit >= 103) {
        u32 at = (u32)x86_sys_load(c, tr->base + 102, 2) + port / 8;
        if (at + 1 <= tr->limit && !(x86_sys_load(c, tr->base + at, 2) >> port % 8 & ((1u << size) - 1)))
            return;
    }
    x86_raise_error(c, X86_GP, 0);
}

static void in(struct x86_cpu *c, const struct x86_insn *i)
{
    unsigned size = i->op[0].size;
    u16 port = i->op[1].kind == X86_IMM ? (u8)i->imm : (u16)c->r[X86_RDX];
    x86_check_io(c, port, size);
    u32 value = c->ops->in(c, port, size);
    x86_debug_access(c, port, size, X86_DR_IO);
    x86_write_reg(c, i->op[0].reg, size, value);
}

static void out(struct x86_cpu *c, const struct x86_insn *i)
{
    unsigned size = i->op[1].size;
    u16 port = i->op[0].kind == X86_IMM ? (u8)i->imm : (u16)c->r[X86_RDX];
    x86_check_io(c, port, size);
    c->ops->out(c, port, size, x86_read_operand(c, i, 1, size));
    x86_debug_access(c, port, size, X86_DR_IO);
}

X86_OP_ALL(lgdt, lgdt);
X86_OP_ALL(lidt, lidt);
X86_OP_ALL(sgdt, sgdt);
X86_OP_ALL(sidt, sidt);
X86_OP_ALL(lldt, lldt);
X86_OP_ALL(ltr, ltr);
X86_OP_ALL(sldt, sldt);
X86_OP_ALL(str, str);
X86_OP_ALL(smsw, smsw);
X86_OP_ALL(lmsw, lmsw);
X86_OP_ALL(clts, clts);
X86_OP_ALL(mov_cr, mov_cr);
X86_OP_ALL(mov_dr, mov_dr);
X86_OP_ALL(invlpg, invlpg);
X86_OP_ALL(wbinvd, only_serialize);
X86_OP_ALL(invd, only_serialize);
X86_OP_ALL(clflush, clflush);
X86_OP_ALL(hlt, hlt);
X86_OP_ALL(ud2, ud);
X86_OP_ALL(rdmsr, rdmsr);
X86_OP_ALL(wrmsr, wrmsr);
X86_OP_ALL(rdtsc, rdtsc);
X86_OP_ALL(rdtscp, rdtscp);
X86_OP_ALL(rdpmc, rdpmc);
X86_OP_ALL(cpuid, cpuid);
X86_OP_ALL(rdrand, rdrand);
X86_OP_ALL(swapgs, swapgs);
X86_OP_ALL(in, in);
X86_OP_ALL(out, out);
