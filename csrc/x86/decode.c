/* From bytes to struct x86_insn.
 *
 * Owns: the rules of encoding (SDM vol. 2, chapter 2): prefixes, REX, VEX, opcode maps, modrm and SIB, immediates; which form is meant is
 * table work (forms.def). Called by: interp.c on a miss of its cache, pv/ and debuggers for one instruction. No state, no locks.
 */
#include <string.h>

#include "x86/decode.h"

/* ---- operand codes ------------------------------------------------------------------------------------------------ */

enum how {                      /* where an operand comes from */
    H_NONE, H_RM, H_MEM, H_RM_REG /* modrm.rm, always a register */, H_REG /* modrm.reg */, H_OPCODE /* low bits of the opcode */, H_VVVV,
    H_MOFFS, H_IMM, H_SIGNED, H_ONE, H_IMM2, H_REL, H_FAR, H_FIXED, H_STRING,
};
enum { SZ_V = 0x80, SZ_Z, SZ_Y, SZ_P, SZ_A, SZ_S, SZ_R };        /* sizes that depend on mode and prefixes; others are bytes */

struct operand_code { u8 how, kind, size, reg; };

#define RM(n)        { H_RM, X86_REG, n, 0 }
#define MEM(n)       { H_MEM, X86_MEM, n, 0 }
#define REG(n)       { H_REG, X86_REG, n, 0 }
#define FIXED(n, r)  { H_FIXED, X86_REG, n, r }
#define SEG(s)       { H_FIXED, X86_SEG, 2, s }
static const struct operand_code operand_codes[OP_NR] = {
    [OP_Eb] = RM(1), [OP_Ew] = RM(2), [OP_Ed] = RM(4), [OP_Eq] = RM(8), [OP_Ev] = RM(SZ_V), [OP_Ey] = RM(SZ_Y), [OP_Ez] = RM(SZ_Z),
    [OP_E64] = RM(SZ_V),
    [OP_Gb] = REG(1), [OP_Gw] = REG(2), [OP_Gd] = REG(4), [OP_Gv] = REG(SZ_V), [OP_Gy] = REG(SZ_Y), [OP_Gq] = REG(8),
    [OP_Ib] = { H_IMM, X86_IMM, 1, 0 }, [OP_Iw] = { H_IMM, X86_IMM, 2, 0 }, [OP_Iv] = { H_IMM, X86_IMM, SZ_V, 0 },
    [OP_Ibs] = { H_SIGNED, X86_IMM, 1, 0 }, [OP_Iz] = { H_SIGNED, X86_IMM, SZ_Z, 0 }, [OP_Iw2b] = { H_IMM2, X86_IMM2, 1, 0 },
    [OP_1] = { H_ONE, X86_IMM, 1, 0 },
    [OP_Jb] = { H_REL, X86_REL, 1, 0 }, [OP_Jz] = { H_REL, X86_REL, SZ_Z, 0 }, [OP_Ap] = { H_FAR, X86_FAR, SZ_P, 0 },
    [OP_Ob] = { H_MOFFS, X86_MEM, 1, 0 }, [OP_Ov] = { H_MOFFS, X86_MEM, SZ_V, 0 },
    [OP_M] = MEM(0), [OP_Mb] = MEM(1), [OP_Mw] = MEM(2), [OP_Md] = MEM(4), [OP_Mq] = MEM(8), [OP_Mdq] = MEM(16), [OP_My] = MEM(SZ_Y),
    [OP_Mv] = MEM(SZ_V), [OP_Mp] = MEM(SZ_P), [OP_Ms] = MEM(SZ_S), [OP_Ma] = MEM(SZ_A),
    [OP_Rd] = { H_RM_REG, X86_REG, SZ_R, 0 }, [OP_Rv] = { H_RM_REG, X86_REG, SZ_V, 0 }, [OP_Ry] = { H_RM_REG, X86_REG, SZ_Y, 0 },
    [OP_Sw] = { H_REG, X86_SEG, 2, 0 }, [OP_Cd] = { H_REG, X86_CR, SZ_R, 0 }, [OP_Dd] = { H_REG, X86_DR, SZ_R, 0 },
    [OP_Zb] = { H_OPCODE, X86_REG, 1, 0 }, [OP_Zv] = { H_OPCODE, X86_REG, SZ_V, 0 }, [OP_Z64] = { H_OPCODE, X86_REG, SZ_V, 0 },
    [OP_By] = { H_VVVV, X86_REG, SZ_Y, 0 },
    [OP_AL] = FIXED(1, X86_RAX), [OP_AX] = FIXED(2, X86_RAX), [OP_CL] = FIXED(1, X86_RCX), [OP_DX] = FIXED(2, X86_RDX),
    [OP_rAX] = FIXED(SZ_V, X86_RAX), [OP_eAX] = FIXED(SZ_Z, X86_RAX),
    [OP_ES] = SEG(X86_ES), [OP_CS] = SEG(X86_CS), [OP_SS] = SEG(X86_SS), [OP_DS] = SEG(X86_DS),
    [OP_FS] = SEG(X86_FS), [OP_GS] = SEG(X86_GS),
    [OP_Xb] = { H_STRING, X86_NONE, 1, 0 }, [OP_Xv] = { H_STRING, X86_NONE, SZ_V, 0 }, [OP_Xz] = { H_STRING, X86_NONE, SZ_Z, 0 },
    [OP_Yb] = { H_STRING, X86_NONE, 1, 0 }, [OP_Yv] = { H_STRING, X86_NONE, SZ_V, 0 }, [OP_Yz] = { H_STRING, X86_NONE, SZ_Z, 0 },
    [OP_Vx] = { H_REG, X86_XMM, 16, 0 }, [OP_Vd] = { H_REG, X86_XMM, 4, 0 }, [OP_Vq] = { H_REG, X86_XMM, 8, 0 },
    [OP_Wx] = { H_RM, X86_XMM, 16, 0 }, [OP_Wq] = { H_RM, X86_XMM, 8, 0 }, [OP_Wd] = { H_RM, X86_XMM, 4, 0 },
    [OP_Ww] = { H_RM, X86_XMM, 2, 0 }, [OP_Wb] = { H_RM, X86_XMM, 1, 0 }, [OP_Ux] = { H_RM_REG, X86_XMM, 16, 0 },
    [OP_Pq] = { H_REG, X86_MMX, 8, 0 }, [OP_Qq] = { H_RM, X86_MMX, 8, 0 }, [OP_Qd] = { H_RM, X86_MMX, 4, 0 },
    [OP_Nq] = { H_RM_REG, X86_MMX, 8, 0 },
    [OP_ST] = { H_FIXED, X86_ST, 10, 0 }, [OP_STi] = { H_RM_REG, X86_ST, 10, 0 }, [OP_XMM0] = { H_FIXED, X86_XMM, 16, 0 },
};

/* ---- bytes -------------------------------------------------------------------------------------------------------- */

struct decoder {
    struct x86_insn *i;
    const u8 *bytes;
    unsigned n, pos;
    int status;                 /* 0, or why the bytes ended */
    u64 features;
    u8 mode, opsize, vvvv;
    u8 pp;                      /* PFX_NP, PFX_66, PFX_F3, PFX_F2: which mandatory prefix there is */
    bool vex;
    enum x86_map map;
};

static u64 take(struct decoder *d, unsigned bytes)
{
    u64 value = 0;
    if (d->pos + bytes > d->n) {
        d->status = d->n < 15 ? X86_TRUNCATED : X86_TOO_LONG;
        d->bytes = NULL;
        d->n = 0;
    }
    if (!d->bytes)
        return 0;
    memcpy(&value, d->bytes + d->pos, bytes);           /* little-endian hosts only, like all of the core */
    d->pos += bytes;
    return value;
}
static bool ended(const struct decoder *d) { return !d->bytes; }
static u64 sign_extend(u64 value, unsigned bytes) { return (u64)((s64)(value << (64 - 8 * bytes)) >> (64 - 8 * bytes)); }
static u64 low_bytes(u64 value, unsigned bytes) { return bytes >= 8 ? value : value & ((1ull << 8 * bytes) - 1); }

/* ---- prefixes and opcode ------------------------------------------------------------------------------------------ */

static u8 take_prefixes(struct decoder *d)
{
    struct x86_insn *i = d->i;
    for (;;) {
        u8 b = (u8)take(d, 1);
        if (ended(d))
            return 0;
        u8 rex = 0;
        switch (b) {
        case 0x66: i->prefixes |= X86_OPSIZE; break;
        case 0x67: i->prefixes |= X86_ADDRSIZE; break;
        case 0xf0: i->prefixes |= X86_LOCK; break;
        case 0xf2: i->prefixes = (i->prefixes & ~X86_REP) | X86_REPNE; break;
        case 0xf3: i->prefixes = (i->prefixes & ~X86_REPNE) | X86_REP; break;
        case 0x26: case 0x2e: case 0x36: case 0x3e:             /* null prefixes in 64-bit mode: an FS or GS before them stays */
            if (d->mode != 64) {
                i->mem_seg = b >> 3 & 3;
                i->prefixes |= X86_SEGOVR;
            }
            break;
        case 0x64: case 0x65: i->mem_seg = b & 7; i->prefixes |= X86_SEGOVR; break;
        default:
            if (d->mode != 64 || (b & 0xf0) != 0x40)
                return b;
            rex = b;
        }
        i->rex = rex;                                           /* counts only directly before the opcode */
    }
}

/* C4 or C5 was read. False: not VEX but les, lds. */
static bool take_vex(struct decoder *d, u8 first)
{
    struct x86_insn *i = d->i;
    if (d->pos >= d->n) {
        take(d, 1);
        return true;
    }
    u8 b = d->bytes[d->pos];
    if (d->mode != 64 && b < 0xc0)
        return false;
    d->vex = true;
    if (i->rex || i->prefixes & (X86_OPSIZE | X86_REP | X86_REPNE | X86_LOCK)) {
        d->status = X86_UNDEFINED;
        return true;
    }
    static const u8 pp[4] = { PFX_NP, PFX_66, PFX_F3, PFX_F2 };
    u8 last = (u8)take(d, 1), map = 1;
    u8 rxb = ~last >> 5 & 4;
    if (first == 0xc4) {
        map = last & 31;
        rxb = ~last >> 5 & 7;
        last = (u8)take(d, 1);
        i->rex = last & 0x80 ? 8 : 0;
    }
    if (d->mode != 64)
        rxb = 0;
    i->rex |= 0x40 | rxb;
    i->prefixes |= X86_VEX;
    d->vvvv = ~last >> 3 & (d->mode == 64 ? 15 : 7);
    d->pp = pp[last & 3];
    if (map < 2 || map > 3 || last & 4)                         /* VEX.L: none of ours is 256 bits wide */
        d->status = X86_UNDEFINED;
    d->map = map == 2 ? X86_MAP_VEX0F38 : X86_MAP_VEX0F3A;
    return true;
}

static void take_opcode(struct decoder *d)
{
    struct x86_insn *i = d->i;
    u8 b = take_prefixes(d);
    d->map = X86_MAP_1;
    d->pp = i->prefixes & X86_REP ? PFX_F3 : i->prefixes & X86_REPNE ? PFX_F2 : i->prefixes & X86_OPSIZE ? PFX_66 : PFX_NP;
    if (b == 0x0f) {
        b = (u8)take(d, 1);
        d->map = X86_MAP_0F;
        if (b == 0x38 || b == 0x3a) {
            d->map = b == 0x38 ? X86_MAP_0F38 : X86_MAP_0F3A;
            b = (u8)take(d, 1);
        }
    } else if ((b & 0xfe) == 0xc4 && take_vex(d, b)) {
        if (!d->status)
            b = (u8)take(d, 1);
    }
    i->opcode = b;
}

/* ---- choosing the form --------------------------------------------------------------------------------------------- */

bool x86_form_has_modrm(const struct x86_form *f)
{
    if (f->ext != EXT_ANY || f->mod != MOD_ANY)
        return true;
    for (unsigned k = 0; k < 4 && f->operand[k]; k++) {
        u8 how = operand_codes[f->operand[k]].how;
        if (how == H_RM || how == H_MEM || how == H_RM_REG || how == H_REG)
            return true;
    }
    return false;
}

static bool prefix_fits(const struct decoder *d, const struct x86_form *f)
{
    switch (f->prefix) {
    case PFX_ANY: return true;
    case PFX_66F2: return d->pp == PFX_F2 && d->i->prefixes & X86_OPSIZE;
    default: return d->pp == f->prefix;
    }
}

static bool operands_fit(const struct decoder *d, const struct x86_form *f, bool reg)
{
    bool vvvv_used = false;
    for (unsigned k = 0; k < 4 && f->operand[k]; k++) {
        const struct operand_code *o = &operand_codes[f->operand[k]];
        if ((o->how == H_MEM && reg) || (o->how == H_RM_REG && !reg && f->operand[k] != OP_Rd))
            return false;
        if (o->kind == X86_SEG && o->how == H_REG) {
            u8 seg = d->i->modrm >> 3 & 7;
            if (seg > X86_GS || (seg == X86_CS && k == 0))
                return false;
        }
        u8 number = (d->i->modrm >> 3 & 7) | (d->i->rex & 4) << 1;
        if ((o->kind == X86_CR && !(1 << number & (1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8))) || (o->kind == X86_DR && number > 7))
            return false;                                       /* #UD, before CPL is looked at */
        vvvv_used |= o->how == H_VVVV;
    }
    return vvvv_used || !d->vvvv;
}

static bool form_fits(const struct decoder *d, const struct x86_form *f)
{
    const struct x86_insn *i = d->i;
    bool reg = i->modrm >= 0xc0;
    if ((f->feature && !(d->features & f->feature)) || !prefix_fits(d, f))
        return false;
    if (f->attr & (d->mode == 64 ? F_NO64 : F_ONLY64))
        return false;
    if (f->ext >= 64 ? i->modrm != 0xc0 + f->ext - 64 : f->ext >= 0 && (i->modrm >> 3 & 7) != f->ext)
        return false;
    if (f->mod && reg != (f->mod == MOD_REG))
        return false;
    if (f->w && !(i->rex & 8) != (f->w == W_0))
        return false;
    if (f->map == X86_MAP_1 && f->first == 0x90 && f->last == 0x90 && i->rex & 1)
        return false;                                           /* nop, pause: with REX.B it is xchg %r8 */
    return operands_fit(d, f, reg);
}

/* Reads modrm if the opcode has one. NULL: no form, or the bytes ended. */
static const struct x86_form *find_form(struct decoder *d)
{
    struct x86_insn *i = d->i;
    bool modrm = false;
    for (unsigned table = 0; table < 2; table++) {
        unsigned row = x86_form_index[table][d->map][i->opcode];
        if (!row)
            continue;
        const struct x86_form *f = &x86_forms[row - 1];
        if (!modrm && x86_form_has_modrm(f)) {
            modrm = true;
            i->modrm = (u8)take(d, 1);
            if (ended(d))
                return NULL;
        }
        for (; f >= x86_forms && f->map == d->map && f->first <= i->opcode && i->opcode <= f->last; f--)
            if (form_fits(d, f))
                return f;
    }
    return NULL;
}

/* ---- the memory operand -------------------------------------------------------------------------------------------- */

static void take_mem16(struct decoder *d, u8 mod, u8 rm)
{
    static const u8 bases[8] = { X86_RBX, X86_RBX, X86_RBP, X86_RBP, X86_RSI, X86_RDI, X86_RBP, X86_RBX };
    static const u8 indices[8] = { X86_RSI, X86_RDI, X86_RSI, X86_RDI, X86_ZERO, X86_ZERO, X86_ZERO, X86_ZERO };
    struct x86_insn *i = d->i;
    bool absolute = mod == 0 && rm == 6;
    i->base = absolute ? X86_ZERO : bases[rm];
    i->index = indices[rm];
    if (mod || absolute) {
        unsigned bytes = mod == 1 ? 1 : 2;
        i->disp = (s64)sign_extend(take(d, bytes), bytes);
    }
}

static void take_mem32(struct decoder *d, u8 mod, u8 rm)
{
    struct x86_insn *i = d->i;
    unsigned bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    i->base = rm | (i->rex & 1) << 3;
    if (rm == 4) {
        u8 sib = (u8)take(d, 1);
        u8 index = (sib >> 3 & 7) | (i->rex & 2) << 2;
        i->base = (sib & 7) | (i->rex & 1) << 3;
        i->scale = sib >> 6;
        if (index != X86_RSP)
            i->index = index;
        else
            i->scale = 0;
        rm = sib & 7;
        if (mod == 0 && rm == 5) {
            i->base = X86_ZERO;
            bytes = 4;
        }
    } else if (mod == 0 && rm == 5) {
        i->base = d->mode == 64 ? X86_RIP : X86_ZERO;
        bytes = 4;
    }
    if (bytes)
        i->disp = (s64)sign_extend(take(d, bytes), bytes);
}

static void take_mem(struct decoder *d)
{
    struct x86_insn *i = d->i;
    u8 mod = i->modrm >> 6, rm = i->modrm & 7;
    if (i->addr_mask == 0xffff)
        take_mem16(d, mod, rm);
    else
        take_mem32(d, mod, rm);
    i->prefixes |= X86_HAS_MEM;
    if (!(i->prefixes & X86_SEGOVR) && (i->base == X86_RSP || i->base == X86_RBP))
        i->mem_seg = X86_SS;
}

/* ---- operands ------------------------------------------------------------------------------------------------------ */

static unsigned size_of(const struct decoder *d, u8 size)
{
    switch (size) {
    case SZ_V: return d->opsize;
    case SZ_Z: return d->opsize == 2 ? 2 : 4;
    case SZ_Y: return d->mode == 64 && d->i->rex & 8 ? 8 : 4;
    case SZ_P: return 2 + d->opsize;
    case SZ_A: return 2 * d->opsize;
    case SZ_S: return d->mode == 64 ? 10 : 6;
    case SZ_R: return d->mode == 64 ? 8 : 4;
    default: return size;
    }
}

static unsigned operand_size(const struct decoder *d, const struct x86_form *f)
{
    const struct x86_insn *i = d->i;
    if (d->mode == 64) {
        if (f->attr & F_DEF64)                                  /* near branches ignore 66 */
            return !(i->rex & 8) && i->prefixes & X86_OPSIZE && !(f->attr & F_BRANCH) ? 2 : 8;
        return i->rex & 8 ? 8 : i->prefixes & X86_OPSIZE && !d->vex ? 2 : 4;
    }
    return (d->mode == 32) == !(i->prefixes & X86_OPSIZE) ? 4 : 2;
}

/* x86_insn.size: of the first operand that depends on the operand size, else of the first that has a size; SSE: of modrm.rm's. */
static unsigned insn_size(const struct decoder *d, const struct x86_form *f)
{
    unsigned fixed = 0;
    for (unsigned k = 0; k < 4 && f->operand[k]; k++) {
        const struct operand_code *o = &operand_codes[f->operand[k]];
        if (f->attr & (F_SSE | F_MMX)) {
            if (o->how == H_RM || o->how == H_MEM || o->how == H_RM_REG)
                fixed = size_of(d, o->size);
            continue;
        }
        if (o->kind == X86_IMM || o->kind == X86_IMM2 || o->kind == X86_REL || o->kind == X86_FAR || f->operand[k] == OP_DX)
            continue;
        if (o->size == SZ_V || o->size == SZ_Z || o->size == SZ_Y || o->size == SZ_R)
            return size_of(d, o->size);
        if (o->size < SZ_V && !fixed && o->kind != X86_SEG)
            fixed = o->size;
    }
    return !fixed ? d->opsize : fixed > 8 ? 8 : fixed;
}

static unsigned log2_size(unsigned size) { return size >= 8 ? 3 : size >= 4 ? 2 : size >= 2 ? 1 : 0; }

static u8 reg_slot(const struct decoder *d, unsigned reg, unsigned size)
{
    if (size == 1 && !d->i->rex && reg >= 4)
        return (u8)((reg - 4) * 8 + 1);                         /* AH, CH, DH, BH */
    return (u8)(reg * 8);
}

static void take_operand(struct decoder *d, u8 code, struct x86_operand *o)
{
    struct x86_insn *i = d->i;
    const struct operand_code *oc = &operand_codes[code];
    unsigned size = size_of(d, oc->size), reg;
    *o = (struct x86_operand){ oc->kind, 0, (u8)size };
    switch (oc->how) {
    case H_RM: case H_MEM:
        if (i->modrm < 0xc0) {
            o->kind = X86_MEM;
            return;
        }
        /* fall through */
    case H_RM_REG: reg = (i->modrm & 7) | (i->rex & 1) << 3; break;
    case H_REG: reg = (i->modrm >> 3 & 7) | (i->rex & 4) << 1; break;
    case H_OPCODE: reg = (i->opcode & 7) | (i->rex & 1) << 3; break;
    case H_VVVV: reg = d->vvvv; break;
    case H_FIXED: o->reg = oc->kind == X86_REG ? oc->reg * 8 : oc->reg; return;
    case H_MOFFS:
        i->prefixes |= X86_HAS_MEM;
        i->disp = (s64)take(d, i->addr_mask == 0xffff ? 2 : i->addr_mask >> 32 ? 8 : 4);
        return;
    case H_IMM: i->imm = take(d, size); return;
    case H_SIGNED: i->imm = low_bytes(sign_extend(take(d, size), size), i->size); return;
    case H_ONE: i->imm = 1; return;
    case H_IMM2: i->sel = (u16)take(d, 1); return;
    case H_REL: i->imm = sign_extend(take(d, size), size); return;
    case H_FAR: i->imm = take(d, size - 2); i->sel = (u16)take(d, 2); return;
    default: return;
    }
    if (oc->kind == X86_REG)
        o->reg = reg_slot(d, reg, size);
    else
        o->reg = oc->kind == X86_XMM || oc->kind == X86_CR || oc->kind == X86_DR ? reg : reg & 7;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------- */

static int decode(struct decoder *d)
{
    struct x86_insn *i = d->i;
    take_opcode(d);
    if (ended(d) || d->status)
        return d->status;
    const struct x86_form *f = find_form(d);
    if (ended(d))
        return d->status;
    if (!f)
        return X86_UNDEFINED;
    i->form = (u16)(f - x86_forms);
    d->opsize = (u8)operand_size(d, f);
    i->size = (u8)insn_size(d, f);
    bool wide = d->mode == 64, narrow = d->mode == 16, other = i->prefixes & X86_ADDRSIZE;
    i->addr_mask = wide && !other ? ~0ull : narrow == other || wide ? 0xffffffff : 0xffff;
    if (i->modrm < 0xc0 && x86_form_has_modrm(f) && f->operand[0] != OP_Rd && f->operand[1] != OP_Rd)
        take_mem(d);
    for (unsigned k = 0; k < 4 && f->operand[k]; k++) {
        take_operand(d, f->operand[k], &i->op[k]);
        i->nr_ops = (u8)(k + 1);
    }
    if (ended(d))
        return d->status;
    if (i->prefixes & X86_LOCK && !(f->attr & F_LOCK && i->op[0].kind == X86_MEM))
        return X86_UNDEFINED;
    i->len = (u8)d->pos;
    if (i->base == X86_RIP)
        i->disp += i->len;
    i->exec = f->op->fn[x86_has_mem(i)][log2_size(i->size)];
    return i->len;
}

int x86_decode(struct x86_insn *i, const u8 *bytes, unsigned n, unsigned mode, u64 features)
{
    *i = (struct x86_insn){ .mode = (u8)mode, .mem_seg = X86_DS, .base = X86_ZERO, .index = X86_ZERO };
    struct decoder d = { .i = i, .bytes = bytes, .n = n < 15 ? n : 15, .mode = (u8)mode, .features = features };
    return decode(&d);
}

void x86_mnemonic(const struct x86_insn *i, char out[24])
{
    static const char conditions[16][4] = { "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g" };
    const char *p = x86_forms[i->form].mnemonic;
    unsigned n = 0, skip = i->size >= 8 ? 2 : i->size >= 4 ? 1 : 0;
    if (strchr(p, '/'))
        for (; skip && strchr(p, '/'); skip--)
            p = strchr(p, '/') + 1;
    for (; *p && *p != '/' && n < 20; p++) {
        if (*p != '%') {
            out[n++] = *p;
            continue;
        }
        const char *add = *++p == 'c' ? conditions[x86_cond(i)] : i->addr_mask == 0xffff ? "" : i->addr_mask >> 32 ? "r" : "e";
        while (*add)
            out[n++] = *add++;
    }
    out[n] = '\0';
}
