/* Re-encoding: the guest's instruction with the host's registers in it.
 *
 * Owns: the map from guest to host registers in instructions. Called by: translate.c, memory.c. rsp becomes r13; r13-r15 are loaded to
 * scratch registers and stored back; a memory operand becomes [r14]. What comes after the operands (immediates) is copied, as are opcode
 * and mandatory prefixes.
 */
#include "bt/translate.h"
#include "x86/decode.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_cmp, x86_op_test, x86_op_bt, x86_op_xchg, x86_op_xadd, x86_op_mulx;

enum field { IN_NONE, IN_RM, IN_REG, IN_OPCODE, IN_VVVV };

static enum field field_of(u8 code)
{
    switch (code) {
    case OP_Eb: case OP_Ew: case OP_Ed: case OP_Ev: case OP_Ey: case OP_Eq: case OP_E64: case OP_Ez:
    case OP_Rd: case OP_Rv: case OP_Ry:
        return IN_RM;
    case OP_Gb: case OP_Gw: case OP_Gd: case OP_Gv: case OP_Gy: case OP_Gq:
        return IN_REG;
    case OP_Zb: case OP_Zv: case OP_Z64:
        return IN_OPCODE;
    case OP_By:
        return IN_VVVV;
    default:
        return IN_NONE;
    }
}

static bool in_slot(unsigned n) { return n >= R_13; }
static unsigned host_of(unsigned n) { return n == R_SP ? GUEST_SP : n; }

unsigned tr_get(struct translation *tr, unsigned n, unsigned scratch)
{
    if (!in_slot(n))
        return host_of(n);
    carry_end(tr);
    e_load(&tr->e, scratch, GS(hi) + 8 * (n - R_13));
    return scratch;
}

void tr_set(struct translation *tr, unsigned n, unsigned from)
{
    if (in_slot(n))
        e_store(&tr->e, from, GS(hi) + 8 * (n - R_13));
    else
        e_mov(&tr->e, host_of(n), from);
}

/* modrm, SIB and displacement of tr->operand. */
static void operand(struct translation *tr, unsigned reg)
{
    struct emit *e = &tr->e;
    const struct operand *o = &tr->operand;
    if (o->constant) {
        e8(e, 2 << 6 | (reg & 7) << 3 | 4), e8(e, (u8)(o->scale << 6 | (o->index < 0 ? 4 : o->index & 7) << 3 | (SCRATCH & 7)));
        e32(e, (u32)o->disp);
        return;
    }
    u8 mod = o->base < 0 && !o->disp ? 0 : o->disp == (s8)o->disp ? 1 : 2;
    e8(e, mod << 6 | (reg & 7) << 3 | (o->base < 0 ? SCRATCH & 7 : 4));
    if (o->base >= 0)
        e8(e, (SCRATCH & 7) << 3 | (o->base & 7));
    if (mod == 1)
        e8(e, (u8)o->disp);
    else if (mod == 2)
        e32(e, (u32)o->disp);
}

static u8 operand_rex(const struct translation *tr)
{
    if (tr->operand.constant)
        return 1 | (tr->operand.index >= 8) << 1;
    return tr->operand.base < 0 ? 1 : 2 | (u8)(tr->operand.base >> 3);          /* X: r14 is the index; B */
}

void tr_operand(struct translation *tr, unsigned width, u8 opcode, unsigned reg)
{
    e8(&tr->e, 0x40 | (width == 8) << 3 | (reg >> 3) << 2 | operand_rex(tr)), e8(&tr->e, opcode);
    operand(tr, reg);
}

struct shape {
    int guest[5];               /* general register in each field, or -1 */
    int host[5];
    int slotted[2];             /* guest registers that need a scratch register */
    unsigned nr_slotted;
    bool high_byte, mem, modrm;
    u8 tail_at;                 /* offset of what follows the operands */
};

/* False: more scratch registers would be needed than there are, or AH and its like beside a REX prefix. */
static bool shape_of(const struct translation *tr, struct shape *s)
{
    const struct x86_insn *i = tr->i;
    if (i->mode != 64 && i->prefixes & X86_VEX && i->rex & 8)
        return false;                   /* VEX.W, which 32-bit code ignores */
    const struct x86_form *f = &x86_forms[i->form];
    *s = (struct shape){ .guest = { -1, -1, -1, -1, -1 }, .mem = x86_has_mem(i), .modrm = x86_form_has_modrm(f) };
    bool rex = i->rex != 0 || s->mem;
    for (unsigned k = 0; k < i->nr_ops; k++) {
        enum field where = field_of(f->operand[k]);
        if (i->op[k].kind != X86_REG)
            continue;
        if (i->op[k].size == 1 && i->op[k].reg % 8 == 1) {
            s->high_byte = true;        /* its number is not that of a register that moves */
            continue;
        }
        if (!where)
            continue;
        unsigned n = i->op[k].reg / 8;
        s->guest[where] = (int)n;
        rex |= host_of(n) >= 8;
        if (!in_slot(n)) {
            s->host[where] = (int)host_of(n);
            continue;
        }
        unsigned slot = 0;
        while (slot < s->nr_slotted && s->slotted[slot] != (int)n)
            slot++;
        if (slot >= (s->mem ? 1u : 2u))
            return false;
        s->slotted[slot] = (int)n;
        if (slot == s->nr_slotted)
            s->nr_slotted++;
        s->host[where] = slot ? SCRATCH : SCRATCH2;
    }
    return !(s->high_byte && rex);
}

/* Guest register n may be changed by the instruction as one of its operands. */
static bool may_write(const struct x86_insn *i, unsigned n)
{
    const struct x86_op *op = x86_forms[i->form].op;
    if (op == &x86_op_cmp || op == &x86_op_test || op == &x86_op_bt)
        return false;
    bool both = op == &x86_op_xchg || op == &x86_op_xadd || op == &x86_op_mulx;
    for (unsigned k = 0; k < (both ? 2u : 1u); k++)
        if (i->op[k].kind == X86_REG && i->op[k].reg / 8 == n)
            return true;
    return false;
}

bool tr_can_encode(const struct translation *tr)
{
    struct shape s;
    return shape_of(tr, &s);
}

/* Offset of the opcode's last byte, and behind modrm, SIB and displacement. */
static void scan(const struct translation *tr, struct shape *s, unsigned *opcode_at)
{
    const u8 *b = tr->bytes;
    const struct x86_insn *i = tr->i;
    unsigned at = 0;
    if (i->prefixes & X86_VEX) {
        while (b[at] != 0xc4 && b[at] != 0xc5)
            at++;
        at += b[at] == 0xc4 ? 3 : 2;
    } else {
        for (;; at++) {
            u8 p = b[at];
            if (!(p == 0x66 || p == 0x67 || p == 0xf0 || p == 0xf2 || p == 0xf3 || p == 0x26 || p == 0x2e || p == 0x36 || p == 0x3e ||
                  p == 0x64 || p == 0x65 || ((p & 0xf0) == 0x40 && i->mode == 64)))
                break;
        }
        if (b[at] == 0x0f)
            at += b[at + 1] == 0x38 || b[at + 1] == 0x3a ? 2 : 1;
    }
    *opcode_at = at++;
    if (s->modrm) {
        u8 modrm = b[at++], mod = modrm >> 6;
        if (mod != 3) {
            bool sib = (modrm & 7) == 4;
            u8 base = sib ? b[at] & 7 : modrm & 7;
            at += sib + (mod == 1 ? 1 : mod == 2 || base == 5 ? 4 : 0);
        }
    } else if (s->mem) {
        at += i->addr_mask == ~0ul ? 8 : 4;     /* moffs */
    }
    s->tail_at = (u8)at;
}

/* 32-bit code's inc and dec, opcodes 40-4f: they become ff /0 and ff /1. */
static bool is_short_inc(const struct x86_insn *i)
{
    return i->mode != 64 && x86_forms[i->form].map == X86_MAP_1 && (i->opcode & 0xf0) == 0x40;
}

/* mov al/eax/rax, moffs and back have no modrm: they become the forms that have one. Opcode 82 is 80. */
static u8 opcode_of(const struct x86_insn *i, const struct shape *s)
{
    static const u8 moffs[4] = { 0x8a, 0x8b, 0x88, 0x89 };
    if (i->mode != 64 && i->opcode == 0x82 && x86_forms[i->form].map == X86_MAP_1)
        return 0x80;
    return s->mem && !s->modrm ? moffs[i->opcode & 3] : i->opcode;
}

void tr_encode(struct translation *tr)
{
    struct emit *e = &tr->e;
    const struct x86_insn *i = tr->i;
    const struct x86_form *f = &x86_forms[i->form];
    struct shape s;
    unsigned opcode_at;
    shape_of(tr, &s);
    scan(tr, &s, &opcode_at);
    if (s.nr_slotted)
        carry_end(tr);
    for (unsigned k = 0; k < s.nr_slotted; k++)
        e_load(e, k ? SCRATCH : SCRATCH2, GS(hi) + 8 * (u32)(s.slotted[k] - R_13));

    unsigned reg = s.guest[IN_REG] >= 0 ? (unsigned)s.host[IN_REG] : (i->modrm >> 3 & 7) | (i->rex & 4) << 1;
    unsigned rm = s.mem ? SCRATCH : s.guest[IN_RM] >= 0 ? (unsigned)s.host[IN_RM] : (i->modrm & 7) | (i->rex & 1) << 3;
    bool modrm = s.modrm || s.mem;
    if (!s.modrm && s.mem)
        reg = R_AX;
    if (s.guest[IN_OPCODE] >= 0)
        rm = (unsigned)s.host[IN_OPCODE];
    else if (!modrm)
        rm = 0;
    if (!modrm)
        reg = 0;
    if (s.guest[IN_RM] < 0 && !s.mem && f->ext >= 64)
        reg = i->modrm >> 3 & 7;

    if (i->prefixes & X86_VEX) {
        unsigned vvvv = s.guest[IN_VVVV] >= 0 ? (unsigned)s.host[IN_VVVV] : 0;
        static const u8 pp[] = { [PFX_NP] = 0, [PFX_66] = 1, [PFX_F3] = 2, [PFX_F2] = 3 };
        e8(e, 0xc4);
        u8 xb = s.mem ? operand_rex(tr) : rm >> 3;
        e8(e, (reg < 8) << 7 | !(xb & 2) << 6 | !(xb & 1) << 5 | (f->map == X86_MAP_VEX0F38 ? 2 : 3));
        e8(e, (i->rex >> 3 & 1) << 7 | (~vvvv & 15) << 3 | pp[f->prefix]);
        e8(e, i->opcode);
    } else {
        if (i->prefixes & X86_LOCK)
            e8(e, 0xf0);
        if (i->prefixes & X86_OPSIZE)
            e8(e, 0x66);
        if (f->prefix == PFX_F3 || f->prefix == PFX_F2 || f->prefix == PFX_66F2)
            e8(e, f->prefix == PFX_F3 ? 0xf3 : 0xf2);
        u8 rex = 0x40 | (i->rex & 8) | (reg >> 3) << 2 | (s.mem ? operand_rex(tr) : rm >> 3);
        if (rex != 0x40 || i->rex)
            e8(e, rex);
        if (f->map != X86_MAP_1)
            e8(e, 0x0f);
        if (f->map == X86_MAP_0F38 || f->map == X86_MAP_0F3A)
            e8(e, f->map == X86_MAP_0F38 ? 0x38 : 0x3a);
        if (is_short_inc(i))
            modrm = true, reg = i->opcode >> 3 & 1, e8(e, 0xff);
        else
            e8(e, s.guest[IN_OPCODE] >= 0 ? (i->opcode & 0xf8) | (rm & 7) : opcode_of(i, &s));
    }
    if (s.mem)
        operand(tr, reg);
    else if (modrm)
        e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
    e_bytes(e, tr->bytes + s.tail_at, i->len - s.tail_at);

    for (unsigned k = 0; k < s.nr_slotted; k++)
        if (may_write(i, (unsigned)s.slotted[k]))
            e_store(e, k ? SCRATCH : SCRATCH2, GS(hi) + 8 * (u32)(s.slotted[k] - R_13));
}

#endif
