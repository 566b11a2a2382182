/* Random instruction sequences out of the table of forms.
 *
 * Owns: how an encoding of a form is chosen, what is put before it so that it does something, and which flags it leaves undefined. Called
 * by: lockstep.c. Bytes are random; x86_decode says whether they are the form that was wanted, so nothing is encoded twice over. What executes a
 * sequence several times is flow.c's; system instructions are system.c's.
 */
#include "lockstep.h"

#include <string.h>

#include "x86/decode.h"

u64 rng_next(struct rng *r)     /* xorshift64* */
{
    r->s ^= r->s >> 12;
    r->s ^= r->s << 25;
    r->s ^= r->s >> 27;
    return r->s * 0x2545f4914f6cdd1dul;
}

static u64 interesting(struct rng *r)
{
    static const u64 values[] = { 0, 1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000,
                                  0xffffffff, 0x7ffffffffffffffful, 0x8000000000000000ul, ~0ul, ~1ul, 0x5555555555555555ul };
    if (rng_chance(r, 50))
        return values[rng_below(r, ARRAY_SIZE(values))];
    return rng_next(r) >> rng_below(r, 64);
}

/* Bits of floating-point numbers worth a try, as float, double and the parts of an extended. */
static u64 interesting_fp(struct rng *r)
{
    static const u64 values[] = {
        0, 0x8000000000000000ul, 0x3ff0000000000000ul, 0xbff0000000000000ul, 0x7ff0000000000000ul, 0xfff0000000000000ul,
        0x7ff8000000000000ul, 0x7ff0000000000001ul, 0x000fffffffffffff, 1, 0x43e0000000000000ul, 0xc3e0000000000000ul,
        0x3f8000003f800000ul, 0x7f8000007f800000ul, 0x7fc000007f800001ul, 0x0000000180000001ul, 0x4f0000004f000000ul,
        0x7fefffffffffffff, 0x3fe0000000000000ul, 0x4330000000000001ul,
    };
    return rng_chance(r, 70) ? values[rng_below(r, ARRAY_SIZE(values))] : rng_next(r);
}

void gen_data(struct rng *r, u8 *data, unsigned n)
{
    for (unsigned k = 0; k < n; k += 8) {
        u64 x = rng_chance(r, 40) ? interesting_fp(r) : rng_chance(r, 50) ? interesting(r) : rng_next(r);
        if (rng_chance(r, 5))
            x = DATA_VA + rng_below(r, DATA_SIZE);
        memcpy(data + k, &x, 8);
    }
}

/* ---- which forms ------------------------------------------------------------------------------------------------- */

static u64 features;
static const struct gen_options *options;
static u16 common[2048], rare[2048], flow[2048];
static unsigned nr_common, nr_rare, nr_flow;

/* What forms need of their own, by mnemonic. */
enum {
    K_CMPS = 1 << 0,
    K_IO = 1 << 1,
    K_XLAT = 1 << 2,
    K_LEAVE = 1 << 3,
    K_ENTER = 1 << 4,
    K_RET = 1 << 5,
    K_DIV = 1 << 6,
    K_MASKMOV = 1 << 7,
    K_POPF = 1 << 8,
    K_IMAGE = 1 << 9,
    K_ENV = 1 << 10,
    K_BSWAP = 1 << 11,
    K_SHIFT2 = 1 << 12,
    K_RSP_OK = 1 << 13,
    K_SWAP = 1 << 14,
    K_REP_PREFIX = 1 << 15,
    K_MXCSR = 1 << 16,
    K_MOVSXD = 1 << 17,
};
static const struct { u32 kind; const char *mnemonics; } kinds[] = {
    { K_CMPS, "cmpsb cmpsw/cmpsd/cmpsq" },
    { K_IO, "insb outsb insw/insd/insd outsw/outsd/outsd" },
    { K_XLAT, "xlat" },
    { K_LEAVE, "leave" },
    { K_ENTER, "enter" },
    { K_RET, "ret" },
    { K_DIV, "div idiv" },
    { K_MASKMOV, "maskmovq maskmovdqu" },
    { K_POPF, "popf/popfd/popfq" },
    { K_IMAGE, "fxsave fxsave64 fnsave fnstenv" },
    { K_ENV, "fnsave fnstenv" },
    { K_BSWAP, "bswap" },
    { K_SHIFT2, "shld shrd" },
    { K_RSP_OK, "cmp test push" },
    { K_SWAP, "xchg xadd mulx" },
    { K_REP_PREFIX, "movsd cmpsd" },
    { K_MXCSR, "ldmxcsr fxrstor fxrstor64" },
    { K_MOVSXD, "movsxd" },
};
static u32 kind_of[2048];

bool form_is(const struct x86_form *f, const char *list)
{
    size_t n = strlen(f->mnemonic);
    for (const char *p = list; (p = strstr(p, f->mnemonic)); p++)
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
            return true;
    return false;
}

/* Flags that instructions leave undefined (SDM vol. 1, appendix A, and the instructions' pages). */
static const struct { const char *mnemonics; u16 flags; bool shift; } undefined_table[] = {
    { "and or xor test", X86_AF },
    { "andn blsr blsmsk blsi bzhi", X86_AF | X86_PF },
    { "bextr", X86_AF | X86_PF | X86_SF },
    { "mul imul", X86_SF | X86_ZF | X86_AF | X86_PF },
    { "div idiv", X86_ARITH_FLAGS },
    { "bt bts btr btc", X86_OF | X86_SF | X86_AF | X86_PF },
    { "bsf bsr", X86_CF | X86_OF | X86_SF | X86_AF | X86_PF },
    { "tzcnt lzcnt", X86_OF | X86_SF | X86_AF | X86_PF },
    { "shld shrd shl shr sar", X86_OF | X86_AF, true },
    { "rol ror rcl rcr", X86_OF, true },
};
static u8 undefined_row[2048];

u16 gen_undefined(const struct x86_insn *i)
{
    unsigned row = undefined_row[i->form];
    if (!row)
        return 0;
    u16 flags = undefined_table[row - 1].flags;
    if (!undefined_table[row - 1].shift)
        return flags;
    unsigned last = i->nr_ops - 1u, count = (unsigned)i->imm & (i->size == 8 ? 63 : 31);
    if (i->op[last].kind == X86_IMM && count == 1)
        flags &= (u16)~X86_OF;
    if (i->size < 4 && flags & X86_AF)          /* counts beyond the operand's width */
        flags |= X86_CF;
    return flags;
}

bool gen_covers(unsigned form)
{
    const struct x86_form *f = &x86_forms[form];
    if (f->attr & (F_TEST_NEVER | F_NO64) || (f->feature & ~features))
        return !options->only && !(f->attr & F_NO64) && system_covers(f);
    /* Where AMD and Intel differ: sysexit in long mode; 0F 0D with a register. */
    return !form_is(f, "sysexit") && !(f->map == X86_MAP_0F && f->first == 0x0d && form_is(f, "nop"));
}

/* Those that can only fault in a process. */
static bool is_rare(const struct x86_form *f)
{
    return f->attr & F_CPL0 || form_is(f, "cli sti in out ud0 ud1 ud2 int3 insb insw/insd/insd outsb outsw/outsd/outsd");
}

/* Forms that move the stack pointer or go elsewhere: sequences that loop have more of them. */
static bool is_flow(const struct x86_form *f)
{
    return f->attr & F_BRANCH || form_is(f, "push pop pushf/pushfd/pushfq popf/popfd/popfq enter leave");
}

unsigned gen_init(u64 features_, const struct gen_options *o)
{
    unsigned forms = 0;
    features = features_;
    options = o;
    nr_common = nr_rare = nr_flow = 0;
    for (unsigned n = 0; n < x86_nr_forms; n++) {
        for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++)
            kind_of[n] |= form_is(&x86_forms[n], kinds[k].mnemonics) ? kinds[k].kind : 0;
        undefined_row[n] = 0;
        for (unsigned k = 0; k < ARRAY_SIZE(undefined_table); k++)
            if (form_is(&x86_forms[n], undefined_table[k].mnemonics))
                undefined_row[n] = (u8)(k + 1);
    }
    for (unsigned n = 0; n < x86_nr_forms; n++) {
        const struct x86_form *f = &x86_forms[n];
        if (!gen_covers(n) || (o->only && strcmp(f->mnemonic, o->only)))
            continue;
        forms++;
        if (f->attr & F_TEST_NEVER)
            continue;                   /* system.c's */
        if (is_rare(f) && !o->only)
            rare[nr_rare++] = (u16)n;
        else
            common[nr_common++] = (u16)n;
        if (is_flow(f) && !o->only)
            flow[nr_flow++] = (u16)n;
    }
    return forms;
}

/* ---- code -------------------------------------------------------------------------------------------------------- */

static void put_mov_imm(struct ls_unit *u, unsigned reg, u64 value)
{
    u8 code[10] = { 0x48 | (u8)(reg >> 3), 0xb8 | (reg & 7) };
    memcpy(code + 2, &value, 8);
    unit_put(u, code, sizeof code);
}

/* Address of an operand: mostly inside of the data, aligned or not; across its pages; at its end; in what cannot be written; nowhere. */
u64 gen_address(struct rng *r)
{
    u64 fine = rng_below(r, 2) ? 0 : rng_below(r, 64);
    unsigned p = rng_below(r, 100);
    if (p < 76 || (r->calm && !rng_chance(r, 2)))
        return DATA_VA + 16 * (8 + rng_below(r, DATA_SIZE / 16 - 40)) + fine;
    if (p < 86)
        return DATA_VA + PAGE_SIZE - rng_below(r, 40);
    if (p < 91)
        return DATA_VA + DATA_SIZE - rng_below(r, 64);
    if (p < 93)
        return DATA_VA - rng_below(r, 40);
    if (p < 97)
        return CONST_VA + 16 * rng_below(r, CONST_SIZE / 16 - 4) + fine;
    if (p < 98)
        return CONST_VA + CONST_SIZE - rng_below(r, 32);
    if (p < 99)
        return CODE_VA + rng_below(r, 64);
    return rng_below(r, 2) ? 0x0000800000000000ul - rng_below(r, 16) : 0xdead000000000000ul;
}

/* modrm (reg given), SIB and displacement for `va`, with the registers set up in the unit before. */
struct memory { u8 bytes[6], len, rexbits; bool rip; u64 va; };
enum { SETUP = 1, RIP = 2, WALK = 4, WALK16 = 8 };      /* registers get values; it must be rip-relative; its base moves on from round to round */

static struct memory memory_operand(struct rng *r, struct ls_unit *u, u8 reg, u64 va, unsigned how)
{
    bool rip = how & RIP, setup = how & SETUP, walk = how & (WALK | WALK16);
    struct memory m = { .va = va };
    unsigned way = walk ? 45 + rng_below(r, 55) : rng_below(r, 100);
    s32 disp = walk ? (s32)(rng_below(r, 16) * 16) - 128 : rng_chance(r, 50) ? (s32)rng_below(r, 256) - 128 : (s32)rng_below(r, 1 << 16) - (1 << 15);
    if (rip || way < 35) {
        m.bytes[0] = (u8)(reg << 3 | 5);
        m.len = 5;
        m.rip = true;
    } else if (way < 45) {
        m.bytes[0] = (u8)(reg << 3 | 4);
        m.bytes[1] = 0x25;
        memcpy(m.bytes + 2, &va, 4);
        m.len = 6;
    } else {
        bool sib = way >= 75;
        u8 base = (u8)rng_below(r, 16), index = (u8)rng_below(r, 16), scale = (u8)rng_below(r, 4);
        u64 index_value = 0;
        if (base == X86_RSP && setup)
            base = X86_RBX;
        sib |= (base & 7) == 4;
        if (sib && index != X86_RSP && index != base && !(how & WALK16)) {
            index_value = rng_chance(r, 80) ? rng_below(r, 256) - 128ul : rng_next(r) % 4096;
            if (setup)
                put_mov_imm(u, index, index_value);
        } else {
            index = X86_RSP;
        }
        bool small = disp >= -128 && disp < 128, none = (base & 7) != 5 && rng_chance(r, 20);
        if (none)
            disp = 0;
        if (walk) {
            u8 load[7] = { 0x48 | (base >> 3) << 2, 0x8b, 0x05 | (base & 7) << 3 };
            unit_insn_rip(u, load, sizeof load, 3, LOOP_VA + 8 * (how & WALK ? LOOP_WALK : LOOP_WALK16));
        } else if (setup) {
            put_mov_imm(u, base, va - (u64)(s64)disp - (index != X86_RSP ? index_value << scale : 0));
        }
        m.bytes[m.len++] = (u8)((none ? 0 : small ? 0x40 : 0x80) | reg << 3 | (sib ? 4 : base & 7));
        if (sib)
            m.bytes[m.len++] = (u8)(scale << 6 | (index & 7) << 3 | (base & 7));
        memcpy(m.bytes + m.len, &disp, none ? 0 : small ? 1 : 4);
        m.len += none ? 0 : small ? 1 : 4;
        m.rexbits = (u8)(base >> 3 | (index >> 3) << 1);
    }
    return m;
}

/* After an instruction that stores FIP, FDP, FOP or reserved bytes of an image: zeroes there. */
static void scrub(struct ls_unit *u, u64 va, unsigned from, unsigned to)
{
    for (; from < to; from += 2) {
        u8 code[9] = { 0x66, 0xc7, 0x05 };              /* movw $0, va(%rip) */
        unit_put(u, code, sizeof code);
        unit_fix(u, u->len - 6u, FIX_RIPREL, u->len, 0, va + from);
    }
}

enum { ALL_FLAGS = X86_ARITH_FLAGS };

static bool has_operand(const struct x86_form *f, unsigned code)
{
    return f->operand[0] == code || f->operand[1] == code || f->operand[2] == code;
}

/* One try at an encoding of form number `n`. False: not that form, or not one for lockstep. */
static bool try_unit(struct rng *r, struct ls_unit *u, unsigned n, int target, bool back, int next)
{
    const struct x86_form *f = &x86_forms[n];
    u32 kind = kind_of[n];
    bool branch = f->attr & F_BRANCH, rep = false, modrm = x86_form_has_modrm(f), mem = modrm && rng_chance(r, 60), lock = false;
    bool near_ind = has_operand(f, OP_E64) && branch, image = kind & K_IMAGE;
    u8 b[64];
    unsigned at = 0, rex = 0;
    *u = (struct ls_unit){ .form = (u16)n };
    if (back && branch)
        flow_guard(u, next);

    /* what comes before */
    u64 va = gen_address(r), jump_slot = DATA_VA + 8 * rng_below(r, 64);
    if (f->attr & F_SSE && rng_chance(r, r->calm ? 99 : 80))
        va &= ~15ul;
    if (f->attr & F_REP || kind & K_REP_PREFIX) {
        rep = rng_chance(r, 60);
        if (kind & K_CMPS) {              /* which of two faults comes first is the CPU's choice */
            put_mov_imm(u, X86_RSI, DATA_VA + 0x400 + rng_below(r, DATA_SIZE - 0x800));
            put_mov_imm(u, X86_RDI, gen_address(r));
        } else if (f->attr & F_REP && rng_chance(r, r->calm ? 100 : 85)) {
            put_mov_imm(u, X86_RSI, gen_address(r));
            put_mov_imm(u, X86_RDI, rng_chance(r, 30) ? DATA_VA + rng_below(r, DATA_SIZE) : gen_address(r));
        }
        bool few = kind & K_CMPS, io = kind & K_IO;
        if (few || io || rng_chance(r, 90))             /* a count of 0 and no permission: #GP on AMD alone */
            put_mov_imm(u, X86_RCX, io ? 1 : few || rng_chance(r, 90) ? rng_below(r, 40) : rng_below(r, 4000));
    }
    if (kind & K_XLAT)
        put_mov_imm(u, X86_RBX, va);
    if (kind & K_MASKMOV)                /* which masked bytes fault is the CPU's choice; AMD's changes to MMX state before a fault */
        put_mov_imm(u, X86_RDI, DATA_VA + rng_below(r, DATA_SIZE - 16));
    if (kind & K_LEAVE)
        put_mov_imm(u, X86_RBP, va);
    if (kind & K_DIV && rng_chance(r, r->calm ? 95 : 60))
        put_mov_imm(u, X86_RDX, rng_chance(r, 50) ? 0 : ~0ul);
    if (kind & K_RET || near_ind) {
        if (near_ind && !mem) {                         /* the register is chosen below */
        } else {
            put_mov_imm(u, X86_RAX, 0);
            unit_fix(u, u->len - 8u, FIX_ABS64, 0, target, 0);
            if (near_ind) {
                u8 store[7] = { 0x48, 0x89, 0x05 };     /* mov %rax, jump_slot(%rip) */
                unit_put(u, store, 7);
                unit_fix(u, u->len - 4u, FIX_RIPREL, u->len, 0, jump_slot);
                va = jump_slot;
            } else {
                unit_put(u, (u8[]){ 0x50 }, 1);
            }
        }
    }
    if (kind & K_POPF) {                 /* no AC, NT, ID: they would stay; TF now and then */
        u32 flags = (u32)rng_next(r) & (X86_ARITH_FLAGS | X86_DF);
        if (rng_chance(r, 40))          /* to no effect at CPL 3 */
            flags |= (u32)rng_next(r) & ~(u32)(X86_ARITH_FLAGS | X86_DF | X86_TF | X86_AC | X86_NT | X86_ID);
        if (!r->calm && rng_chance(r, 4))
            flags |= X86_TF;
        u8 push[5] = { 0x68 };
        memcpy(push + 1, &flags, 4);
        unit_put(u, push, 5);
    }

    if (kind & K_MXCSR) {                               /* AMD has a bit 17 */
        u32 reserved = 0x10000u << (rng_chance(r, 50) ? 0 : 2 + rng_below(r, 13));
        u32 mxcsr = rng_chance(r, 70) ? (u32)rng_next(r) & 0xffff : rng_chance(r, 50) ? 0x1f80 : reserved;
        u8 store[10] = { 0xc7, 0x05 };                  /* movl $mxcsr, va(%rip) */
        va = DATA_VA + rng_below(r, (DATA_SIZE - 512) / 16) * 16 + (rng_chance(r, 90) ? 0 : rng_below(r, 16));
        memcpy(store + 6, &mxcsr, 4);
        unit_put(u, store, sizeof store);
        unit_fix(u, u->len - 8u, FIX_RIPREL, u->len, 0, va + (f->attr & F_SSE ? 0 : 24));
    }

    /* prefixes */
    bool fixed_mem = near_ind || image || kind & K_MXCSR;
    bool bad_lock = !r->calm && !(f->attr & F_CPL0) && rng_chance(r, 1);         /* lock where there must be none: #UD */
    if (bad_lock)
        b[at++] = 0xf0;
    if (rng_chance(r, 8) && !fixed_mem && !(kind & (K_CMPS | K_MASKMOV))) {
        static const u8 overrides[] = { 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65 };
        unsigned k = rng_below(r, 6);
        b[at++] = overrides[k];
        if (k >= 4 && rng_chance(r, 90))
            va -= k == 4 ? FS_BASE : GS_BASE;
    }
    if (rng_chance(r, 4) && !fixed_mem && !branch)
        b[at++] = 0x67;
    bool vex = f->map >= X86_MAP_VEX0F38;
    bool opsize = f->prefix == PFX_66 || f->prefix == PFX_66F2 ||
                  (f->prefix != PFX_NP && !branch && !(f->attr & (F_SSE | F_MMX | F_FPU)) && rng_chance(r, 22));
    if (opsize && !vex && !(kind & K_POPF))
        b[at++] = 0x66;
    if (f->attr & F_LOCK && mem && !bad_lock)
        lock = rng_chance(r, 30);
    if (lock)
        b[at++] = 0xf0;
    if (!vex) {
        if (f->prefix == PFX_F3 || (f->prefix == PFX_ANY && rep && rng_chance(r, 50)))
            b[at++] = 0xf3;
        else if (f->prefix == PFX_F2 || f->prefix == PFX_66F2 || (f->prefix == PFX_ANY && rep))
            b[at++] = 0xf2;
        if (f->w == W_1 || rng_chance(r, 75))
            rex = 0x40 | rng_below(r, 8) | (f->w == W_1 || (f->w != W_0 && rng_chance(r, 50)) ? 8 : 0);
    } else {
        rex = 0x40 | rng_below(r, 16);
    }

    /* modrm */
    struct memory m = { .len = 0 };
    u8 reg = f->ext >= 0 && f->ext < 8 ? (u8)f->ext : (u8)rng_below(r, 8);
    if (modrm && mem) {
        unsigned how = (fixed_mem ? RIP : 0) | (rng_chance(r, r->calm ? 99 : 92) ? SETUP : 0);
        if (r->flow && how == SETUP && rng_chance(r, 40))
            how |= f->attr & F_SSE ? WALK16 : WALK;
        m = memory_operand(r, u, reg, va, how);
        rex = m.rexbits || rex ? (rex & ~3u) | 0x40 | m.rexbits : 0;
    } else if (modrm) {
        m.bytes[0] = f->ext >= 64 ? (u8)(0xc0 + f->ext - 64) : (u8)(0xc0 | reg << 3 | rng_below(r, 8));
        m.len = 1;
    }

    /* REX or VEX, opcode */
    u8 opcode = (u8)(f->first + rng_below(r, f->last - f->first + 1u));
    if (vex) {
        u8 pp = f->prefix == PFX_66 ? 1 : f->prefix == PFX_F3 ? 2 : f->prefix == PFX_F2 ? 3 : 0;
        bool vvvv = has_operand(f, OP_By);
        b[at++] = 0xc4;
        b[at++] = (u8)((~rex & 7) << 5 | (f->map == X86_MAP_VEX0F38 ? 2 : 3));
        b[at++] = (u8)((rex & 8) << 4 | (vvvv ? rng_below(r, 16) : 15) << 3 | pp);
    } else {
        if (rex)
            b[at++] = (u8)rex;
        if (f->map != X86_MAP_1)
            b[at++] = 0x0f;
        if (f->map == X86_MAP_0F38 || f->map == X86_MAP_0F3A)
            b[at++] = f->map == X86_MAP_0F38 ? 0x38 : 0x3a;
    }
    b[at++] = opcode;
    unsigned modrm_at = at;
    memcpy(b + at, m.bytes, m.len);
    at += m.len;
    u64 imm[2] = { interesting(r), rng_next(r) };
    if (has_operand(f, OP_Ob) || has_operand(f, OP_Ov))
        imm[0] = va;
    if (kind & K_RET)
        imm[0] = 8 * rng_below(r, 16);
    if (kind & K_ENTER)
        imm[0] = 8 * rng_below(r, 16) | rng_below(r, 4) << 16;
    memcpy(b + at, imm, sizeof imm);

    struct x86_insn i;
    int len = bad_lock ? x86_decode(&i, b, 15, 64, features) : X86_UNDEFINED;
    if (len != X86_UNDEFINED)
        return false;
    len = x86_decode(&i, b + bad_lock, 15, 64, features);
    if (len <= 0 || i.form != n || (modrm && mem != x86_has_mem(&i)))
        return false;
    if (kind & K_MOVSXD && i.size == 2 && mem)
        return false;                                   /* AMD reads 32 bits */
    if (kind & K_BSWAP && i.size == 2)
        return false;                                   /* undefined result */
    if (kind & K_SHIFT2 && i.size == 2 && (i.op[2].kind != X86_IMM || (i.imm & 31) > 16))
        return false;                                   /* undefined result */
    bool stack_pointer = i.op[0].kind == X86_REG && i.op[0].reg == X86_RSP * 8;
    if (stack_pointer && !(kind & K_RSP_OK) && !rng_chance(r, 4))
        return false;
    if (kind & K_SWAP && i.op[1].kind == X86_REG && i.op[1].reg == X86_RSP * 8)
        return false;
    if (near_ind && !mem) {
        unsigned target_reg = i.op[0].reg / 8;
        if (target_reg == X86_RSP)
            return false;
        put_mov_imm(u, target_reg, 0);
        unit_fix(u, u->len - 8u, FIX_ABS64, 0, target, 0);
    }

    len += bad_lock;
    u->main_at = u->len;
    u->main_len = (u8)len;
    unit_put(u, b, (unsigned)len);
    if (m.rip)
        unit_fix(u, u->main_at + modrm_at + 1, FIX_RIPREL, u->len, 0, m.va);
    if (f->operand[0] == OP_Jb)
        unit_fix(u, u->len - 1u, FIX_REL8, u->len, target, 0);
    if (f->operand[0] == OP_Jz)
        unit_fix(u, u->len - 4u, FIX_REL32, u->len, target, 0);

    /* what comes after */
    if (image && mem) {
        if (kind & K_ENV)
            scrub(u, m.va, 12, 28);
        else {
            scrub(u, m.va, 6, 24);
            scrub(u, m.va, 28, 32);
        }
    }
    u->undefined = gen_undefined(&i);
    if (u->undefined) {
        u8 code[10] = { 0x9c, 0x48, 0x81, 0x24, 0x24, 0, 0, 0, 0, 0x9d };       /* pushfq; andq $~undefined, (%rsp); popfq */
        u32 mask = ~(u32)u->undefined;
        memcpy(code + 5, &mask, 4);
        u->cleanup_at = u->len;
        unit_put(u, code, sizeof code);
    }
    return true;
}

/* Where a branch of unit k goes: mostly forward by a few units; with fuel to spare, back. */
static int branch_target(struct rng *r, unsigned k, bool *back)
{
    *back = r->flow && rng_chance(r, 40);
    return *back ? (int)(k - rng_below(r, k < 6 ? k + 1 : 6)) : (int)(k + 1 + rng_below(r, 3));
}

/* A function must come to its end with the stack as it was. */
static bool may_be_wrapped(struct rng *r, const struct ls_unit *u)
{
    const struct x86_form *f = &x86_forms[u->form];
    return !is_flow(f) && !(f->attr & F_CPL0) && (!r->calm || !form_is(f, "int3 ud2"));
}

void gen_sequence(struct rng *r, struct ls_sequence *s)
{
    r->calm = rng_chance(r, 70);
    r->flow = rng_chance(r, options->loops);
    unsigned most = options->max_units, n = 1 + rng_below(r, rng_chance(r, 70) ? (most + 7) / 8 : most);
    s->nr = 0;
    s->slices = rng_chance(r, options->slices) ? rng_next(r) | 1 : 0;
    flow_sequence(r, s);
    if (s->way != LOOP_NONE && n > 24)
        s->loop[LOOP_COUNT] = 2 + s->loop[LOOP_COUNT] % 3;
    for (unsigned k = 0, tries = 0; k < n && tries < 4000; tries++) {
        bool odd = nr_rare && !r->calm && rng_chance(r, 3), back;
        int target = branch_target(r, k, &back);
        struct ls_unit *u = &s->unit[k];
        bool system = nr_flow && rng_chance(r, r->flow ? 3 : 1);
        unsigned form = odd ? rare[rng_below(r, nr_rare)] : r->flow && nr_flow && rng_chance(r, 15) ? flow[rng_below(r, nr_flow)] :
                        common[rng_below(r, nr_common)];
        if (system ? !system_unit(r, u, features, target, back, (int)k + 1) : !try_unit(r, u, form, target, back, (int)k + 1))
            continue;
        if (r->flow && may_be_wrapped(r, u) && rng_chance(r, 10))
            (void)flow_wrap(u);
        s->nr = ++k;
    }
    for (unsigned k = 0; k < 16; k++)
        s->in.r[k] = rng_chance(r, 40) ? interesting(r) : rng_chance(r, 30) ? gen_address(r) : rng_next(r);
    s->in.r[X86_RSP] = DATA_VA + (r->calm || rng_chance(r, 85) ? PAGE_SIZE + 8 * rng_below(r, 300) : rng_below(r, DATA_SIZE + 64));
    s->in.rflags = X86_FLAG1 | X86_IF | (rng_next(r) & X86_ARITH_FLAGS) | (rng_chance(r, 20) ? X86_DF : 0);

    struct x86_fx *fx = (struct x86_fx *)s->in.fx;
    memset(fx, 0, sizeof *fx);
    gen_data(r, (u8 *)fx->xmm, sizeof fx->xmm);
    for (unsigned k = 0; k < 8; k++) {
        u64 mantissa = rng_chance(r, 50) ? 1ul << 63 : rng_next(r) | (rng_chance(r, 90) ? 1ul << 63 : 0);
        u16 exponent = (u16)(0x3fff + rng_below(r, 80) - 40);
        if (rng_chance(r, 30))
            exponent = rng_chance(r, 50) ? (u16)rng_next(r) : rng_chance(r, 50) ? 0x7fff : 0;
        exponent |= rng_chance(r, 50) ? 0x8000 : 0;
        memcpy(fx->st[k].b, &mantissa, 8);
        memcpy(fx->st[k].b + 8, &exponent, 2);
    }
    fx->fcw = (u16)(0x40 | (rng_chance(r, r->calm ? 99 : 80) ? 0x3f : rng_below(r, 64)) | rng_below(r, 16) << 8);
    if (rng_chance(r, 60))
        fx->fcw |= 0x300;
    fx->fsw = (u16)(rng_below(r, 8) << 11 | (rng_next(r) & 0x4700));
    fx->ftw = rng_chance(r, 50) ? (u8)rng_next(r) : rng_chance(r, 50) ? 0xff : 0;
    fx->mxcsr = (rng_chance(r, r->calm ? 99 : 85) ? 0x1f80 : rng_below(r, 64) << 7) | rng_below(r, 4) << 13;
    fx->mxcsr |= (rng_chance(r, 10) ? 0x8000 : 0) | (rng_chance(r, 10) ? 0x40 : 0) | (rng_chance(r, 20) ? rng_below(r, 64) : 0);
    s->offset = rng_chance(r, 50) ? rng_below(r, 64) : PAGE_SIZE - rng_below(r, 200);
}
