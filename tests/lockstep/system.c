/* System instructions that a process may execute, with what they need to mean the same on the CPU and on the engines.
 *
 * Owns: the units that random bytes do not make: loads of segment registers, looks at descriptors, far branches and iret at CPL 3. Called by: gen.c.
 *
 * Selectors are null, beyond the table, in an LDT that there is none of, the hypervisor's or Linux's for 64-bit user mode; engines.c has descriptors like
 * Linux's for them. FS and GS are left alone (what a null selector does to their bases differs between makers), and so is code of 32 bits.
 */
#include "lockstep.h"

#include <string.h>

#include "x86/decode.h"

static u16 selector(struct rng *r, u16 good)
{
    static const u16 bad[] = { 0, 1, 2, 3, 7, 0x10, 0x13, 0x18, LINUX_DS, LINUX_CS, LINUX_DS & ~3, 0xfffb, 0xfff8 };
    return rng_chance(r, r->calm ? 97 : 50) ? good : bad[rng_below(r, ARRAY_SIZE(bad))];
}

static void push_selector(struct ls_unit *u, u16 sel)
{
    u8 code[5] = { 0x68, (u8)sel, (u8)(sel >> 8) };
    unit_put(u, code, sizeof code);
}

static void push_target(struct ls_unit *u, int target)
{
    u8 code[11] = { 0x48, 0xb8, [10] = 0x50 };          /* mov $target, rax; push rax */
    unit_put(u, code, sizeof code);
    unit_fix(u, u->len - 9u, FIX_ABS64, 0, target, 0);
}

static void main_insn(struct ls_unit *u, const void *bytes, unsigned n)
{
    u->main_at = u->len;
    u->main_len = (u8)n;
    unit_put(u, bytes, n);
}

/* mov $sel, r; op r (and r2). */
static void on_register(struct rng *r, struct ls_unit *u, unsigned nr)
{
    static const struct { u8 opcode[2], len, reg; } ops[] = {
        { { 0x8e }, 1, X86_DS }, { { 0x8e }, 1, X86_ES }, { { 0x8e }, 1, X86_SS }, { { 0x0f, 0x02 }, 2, 8 }, { { 0x0f, 0x03 }, 2, 8 },
        { { 0x0f, 0x00 }, 2, 4 }, { { 0x0f, 0x00 }, 2, 5 },
    };
    const __typeof__(ops[0]) *op = &ops[nr];
    u16 sel = op->reg == X86_SS && op->len == 1 ? selector(r, LINUX_DS) : rng_chance(r, 50) ? selector(r, LINUX_DS) : selector(r, LINUX_CS);
    unsigned rm = rng_below(r, 4), reg = op->reg == 8 ? rng_below(r, 4) : op->reg;      /* not rsp */
    u8 mov[5] = { 0xb8 | (u8)rm, (u8)sel, (u8)(sel >> 8), (u8)rng_next(r), (u8)rng_next(r) }, code[4];
    unsigned at = 0;
    unit_put(u, mov, sizeof mov);
    if (op->opcode[1] == 0x02)
        code[at++] = 0x66;              /* lar's bits 16-19 are undefined */
    else if (op->reg == 8 && rng_chance(r, 40))
        code[at++] = rng_chance(r, 50) ? 0x66 : 0x48;
    memcpy(code + at, op->opcode, op->len);
    at += op->len;
    code[at++] = (u8)(0xc0 | reg << 3 | rm);
    main_insn(u, code, at);
}

static void iretq(struct rng *r, struct ls_unit *u, int target)
{
    unit_put(u, (u8[]){ 0x48, 0x89, 0xe0 }, 3);         /* mov rsp, rax */
    push_selector(u, selector(r, LINUX_DS));
    unit_put(u, (u8[]){ 0x50, 0x9c }, 2);               /* push rax; pushfq */
    push_selector(u, selector(r, LINUX_CS));
    push_target(u, target);
    main_insn(u, (u8[]){ 0x48, 0xcf }, 2);
}

static void retfq(struct rng *r, struct ls_unit *u, int target)
{
    u8 pop = (u8)(8 * rng_below(r, 16));
    push_selector(u, selector(r, LINUX_CS));
    push_target(u, target);
    if (rng_chance(r, 50))
        main_insn(u, (u8[]){ 0x48, 0xcb }, 2);
    else
        main_insn(u, (u8[]){ 0x48, 0xca, pop, 0 }, 4);
}

static void far_indirect(struct rng *r, struct ls_unit *u, int target, u8 modrm)
{
    u64 slot = DATA_VA + 16 * rng_below(r, 64);
    u16 sel = selector(r, LINUX_CS);
    u8 lea[10] = { 0x48, 0xb8 }, store[6] = { 0x89, 0x05 }, store_sel[9] = { 0x66, 0xc7, 0x05, [7] = (u8)sel, [8] = (u8)(sel >> 8) };
    u8 jump[6] = { 0xff, modrm };
    unit_put(u, lea, sizeof lea);                       /* mov $target, rax; mov eax, slot; movw $sel, slot + 4 */
    unit_fix(u, u->len - 8u, FIX_ABS64, 0, target, 0);
    unit_insn_rip(u, store, sizeof store, 2, slot);
    unit_insn_rip(u, store_sel, sizeof store_sel, 3, slot + 4);
    unsigned at = u->len + 2u;
    main_insn(u, jump, sizeof jump);
    unit_fix(u, at, FIX_RIPREL, u->len, 0, slot);
}

bool system_unit(struct rng *r, struct ls_unit *u, u64 features, int target, bool guard, int next)
{
    unsigned n = rng_below(r, 11);
    struct x86_insn i;
    *u = (struct ls_unit){ 0 };
    if (guard)
        flow_guard(u, next);
    switch (n) {
    case 7: iretq(r, u, target); break;
    case 8: retfq(r, u, target); break;
    case 9: far_indirect(r, u, target, 0x1d); break;    /* call */
    case 10: far_indirect(r, u, target, 0x2d); break;   /* jmp */
    default: on_register(r, u, n); break;
    }
    if (x86_decode(&i, u->bytes + u->main_at, u->main_len, 64, features) != u->main_len)
        return false;
    u->form = i.form;
    return true;
}

bool system_covers(const struct x86_form *f)
{
    return form_is(f, "lar lsl verr verw iret/iretd/iretq retf") || (form_is(f, "callf jmpf") && f->map == X86_MAP_1 && f->first == 0xff) ||
           (form_is(f, "mov") && f->first == 0x8e);
}
