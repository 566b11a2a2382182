/* The x87: arithmetic by the host's instructions, control and environment in C on the saved image.
 *
 * Owns: the x87 ops of forms_sse.def. Called by: the interpreter. Locks: none. Sources: SDM vol. 1, chapter 8; vol. 2.
 *
 * Pointers are those of current Intel CPUs: FIP is that of the last non-control instruction; FOP and FDP of the last that raised an
 * unmasked exception (CPUID.7.0:EBX[6]); FCS and FDS do not exist and read as 0 (EBX[13]). CPUs differ here (AMD's keep none of them
 * unless an exception is pending), so a comparison with a host masks them unless fsw.ES is set.
 */
#include "x86/fpu.h"

#define X87_OP(name) static void name(struct x86_cpu *c, const struct x86_insn *i); X86_OP_ALL(name, name); \
                     static void name(struct x86_cpu *c, const struct x86_insn *i)

void x87_set_top(struct x86_fx *fx, unsigned top)
{
    unsigned turn = (top - x87_top(fx)) & 7;
    u8 st[8][16];
    if (turn == 0)
        return;
    memcpy(st, fx->st, sizeof st);
    for (unsigned n = 0; n < 8; n++)
        memcpy(fx->st[n].b, st[(n + turn) & 7], 16);
    fx->fsw = (fx->fsw & ~X87_TOP) | top << 11;
}

/* ---- instructions that the host executes ---------------------------------------------------------------------------- */

static void run(struct x86_cpu *c, const struct x86_insn *i, void *operand)
{
    struct x86_fx *fx = &c->fx;
    u16 fop = fx->fop;
    u64 fdp = fx->fdp;
    fx->mxcsr &= MXCSR_VALID;           /* whatever happened to the image: fxrstor64 must not fault on the host */
    u64 flags = fpu_call_x87(operand, fx, fpu_stub_x87(i->opcode, i->modrm), c->rflags & X86_ARITH_FLAGS);
    c->rflags = (c->rflags & ~(u64)X86_ARITH_FLAGS) | (flags & X86_ARITH_FLAGS);    /* fcomi and its like; others leave them */
    fx->mxcsr_mask = MXCSR_VALID;
    fx->fip = c->r[X86_RIP];
    if (unlikely(fx->fsw & X87_ES)) {   /* raised just now: with one pending the instruction would not have started */
        fop = (i->opcode & 7) << 8 | i->modrm;
        if (x86_has_mem(i))
            fdp = x86_ea(c, i);
    }
    fx->fop = fop;
    fx->fdp = fdp;
}

/* Memory operands without a size of their own are those of 80 bits: extended real and packed BCD. */
static unsigned operand_size(const struct x86_insn *i) { return i->op[0].size ? i->op[0].size : 10; }

X87_OP(x87)                             /* register forms */
{
    x87_check(c, true);
    run(c, i, NULL);
}

X87_OP(x87_load)                        /* a memory operand is read */
{
    union x86_vec v;
    x87_check(c, true);
    x86_fp_load(c, i, operand_size(i), &v);
    run(c, i, &v);
}

/* A memory operand is written, unless an unmasked exception other than precision leaves no result. */
X87_OP(x87_store)
{
    union x86_vec v = { { 0 } };
    unsigned size = operand_size(i);
    x87_check(c, true);
    x86_probe_write(c, i->mem_seg, x86_ea(c, i), size);
    run(c, i, &v);
    if (!(c->fx.fsw & ~c->fx.fcw & (X87_FLAGS & ~MXCSR_PE)))
        x86_fp_store(c, i, size, &v);
}

/* ---- control -------------------------------------------------------------------------------------------------------- */

static void set_fcw(struct x86_fx *fx, u16 fcw)
{
    fx->fcw = (fcw & X87_CW_VALID) | X87_CW_ONE;
    x87_update_es(fx);
}

static void reset(struct x86_fx *fx)
{
    x87_set_top(fx, 0);
    fx->fcw = 0x37f;
    fx->fsw = fx->fop = 0;
    fx->ftw = 0;
    fx->fip = fx->fdp = 0;
}

X87_OP(fwait)
{
    if ((c->cr0 & (X86_CR0_MP | X86_CR0_TS)) == (X86_CR0_MP | X86_CR0_TS))
        x86_raise(c, X86_NM);
    if (c->fx.fsw & X87_ES)
        x86_raise(c, X86_MF);
}

X87_OP(fnop) { x87_check(c, true); }
X87_OP(x87_nop) { x87_check(c, false); }        /* fneni, fndisi, fnsetpm: what the 8087 and 80287 had them for is gone */

X87_OP(fninit)
{
    x87_check(c, false);
    reset(&c->fx);
}

X87_OP(fnclex)
{
    x87_check(c, false);
    c->fx.fsw &= ~(X87_FLAGS | X87_SF | X87_ES | X87_B);
}

X87_OP(fldcw)
{
    x87_check(c, true);
    set_fcw(&c->fx, x86_load16(c, i->mem_seg, x86_ea(c, i)));
}

X87_OP(fnstcw)
{
    x87_check(c, false);
    x86_store16(c, i->mem_seg, x86_ea(c, i), c->fx.fcw);
}

X87_OP(fnstsw)
{
    x87_check(c, false);
    if (x86_has_mem(i))
        x86_store16(c, i->mem_seg, x86_ea(c, i), c->fx.fsw);
    else
        x86_set16(c, X86_RAX * 8, c->fx.fsw);
}

/* ---- environment (vol. 1, 8.1.10, figures 8-9 to 8-12) --------------------------------------------------------------- */

enum { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

/* The tag of a register that is not empty, by its contents (vol. 1, 8.1.7). */
static unsigned tag_of(const u8 *st)
{
    u64 significand;
    u16 exponent;
    memcpy(&significand, st, 8);
    memcpy(&exponent, st + 8, 2);
    exponent &= 0x7fff;
    if (exponent == 0 && significand == 0)
        return TAG_ZERO;
    return exponent == 0 || exponent == 0x7fff || !(significand >> 63) ? TAG_SPECIAL : TAG_VALID;
}

/* The environment is seven words, each in a slot of two bytes or four; three layouts of the pointers. */
struct env_format { u8 slot; bool real; };

static struct env_format env_format(const struct x86_cpu *c, const struct x86_insn *i)
{
    bool small = (c->mode == 16) != !!(i->prefixes & X86_OPSIZE);
    return (struct env_format){ small ? 2 : 4, !(c->cr0 & X86_CR0_PE) || (c->rflags & X86_VM) };
}

static void env_write(const struct x86_fx *fx, struct env_format f, u8 *out)
{
    u32 ip = (u32)fx->fip, dp = (u32)fx->fdp, w[7] = { fx->fcw, fx->fsw };
    for (unsigned n = 0; n < 8; n++)
        w[2] |= (fx->ftw >> n & 1 ? tag_of(fx->st[(n - x87_top(fx)) & 7].b) : TAG_EMPTY) << n * 2;
    w[3] = ip, w[5] = dp;
    if (f.slot == 4) {
        w[0] |= 0xffff0000, w[1] |= 0xffff0000, w[2] |= 0xffff0000;
        if (f.real) {
            w[3] = 0xffff0000 | (u16)ip, w[4] = (ip >> 16) << 12 | fx->fop;
            w[5] = 0xffff0000 | (u16)dp, w[6] = (dp >> 16) << 12;
        } else {
            w[4] = (u32)fx->fop << 16, w[6] = 0xffff0000;
        }
    } else if (f.real) {
        w[4] = (ip >> 16 & 15) << 12 | fx->fop, w[6] = (dp >> 16 & 15) << 12;
    }
    for (unsigned n = 0; n < 7; n++)
        memcpy(out + n * f.slot, &w[n], f.slot);
}

static void env_read(struct x86_fx *fx, struct env_format f, const u8 *in)
{
    u32 w[7] = { 0 };
    for (unsigned n = 0; n < 7; n++)
        memcpy(&w[n], in + n * f.slot, f.slot);
    x87_set_top(fx, w[1] >> 11 & 7);
    fx->fsw = (u16)w[1];
    fx->ftw = 0;
    for (unsigned n = 0; n < 8; n++)
        fx->ftw |= ((w[2] >> n * 2 & 3) != TAG_EMPTY) << n;
    set_fcw(fx, (u16)w[0]);
    if (f.real) {
        fx->fip = (u16)w[3] | (u64)(w[4] >> 12) << 16;
        fx->fdp = (u16)w[5] | (u64)(w[6] >> 12) << 16;
        fx->fop = w[4] & 0x7ff;
        if (f.slot == 4)
            fx->fip = (u32)fx->fip, fx->fdp = (u32)fx->fdp;
    } else {
        fx->fip = w[3];
        fx->fdp = w[5];
        fx->fop = f.slot == 4 ? w[4] >> 16 & 0x7ff : 0;
    }
}

X87_OP(fnstenv)
{
    u8 env[28];
    struct env_format f = env_format(c, i);
    x87_check(c, false);
    env_write(&c->fx, f, env);
    x86_store_bytes(c, i->mem_seg, x86_ea(c, i), env, f.slot * 7);
    set_fcw(&c->fx, c->fx.fcw | X87_FLAGS);
}

X87_OP(fldenv)
{
    u8 env[28];
    struct env_format f = env_format(c, i);
    x87_check(c, true);
    x86_load_bytes(c, i->mem_seg, x86_ea(c, i), env, f.slot * 7);
    env_read(&c->fx, f, env);
}

X87_OP(fnsave)
{
    u8 image[28 + 80];
    struct env_format f = env_format(c, i);
    unsigned env = f.slot * 7;
    x87_check(c, false);
    env_write(&c->fx, f, image);
    for (unsigned n = 0; n < 8; n++)
        memcpy(image + env + n * 10, c->fx.st[n].b, 10);
    x86_store_bytes(c, i->mem_seg, x86_ea(c, i), image, env + 80);
    reset(&c->fx);
}

X87_OP(frstor)
{
    u8 image[28 + 80];
    struct env_format f = env_format(c, i);
    unsigned env = f.slot * 7;
    x87_check(c, true);
    x86_load_bytes(c, i->mem_seg, x86_ea(c, i), image, env + 80);
    env_read(&c->fx, f, image);
    for (unsigned n = 0; n < 8; n++)
        memcpy(c->fx.st[n].b, image + env + n * 10, 10);
}
