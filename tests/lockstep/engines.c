/* The engines' side: a bare machine that interprets, and one that translates.
 *
 * Owns: the machines and the memory of their sequences. Called by: lockstep.c.
 *
 * The translator is not told to forget between sequences, but that code was written, as it is told by guests' stores: what is left over of one
 * sequence must not show in the next. `fresh` begins anew, which a batch does, so that a batch alone shows what it showed.
 */
#define _GNU_SOURCE
#include "lockstep.h"

#include <stdlib.h>
#include <string.h>

#include "bt/bt.h"
#include "x86/bare.h"
#include "x86/decode.h"

enum { BUDGET = 200000 };
#define GDT_VA  0xffffff8000000000ul

static struct engine { struct x86_bare *b; u8 *code, *data; u64 *loop; } engines[NR_WHO];
static struct engine_options opt;
/* As Linux's: kernel code and data, user code of 32 bits, user data, user code of 64 bits. */
static u64 gdt[512] __attribute__((aligned(PAGE_SIZE))) = {
    [2] = 0x00af9b000000fffful, [3] = 0x00cf93000000fffful, [4] = 0x00cffb000000fffful, [5] = 0x00cff3000000fffful, [6] = 0x00affb000000fffful,
};

static void set(struct x86_bare *b, const char *name, u64 value) { xl_bare_set(b, xl_bare_reg(name), value); }

static void set_selectors(struct x86_bare *b)
{
    set(b, "cs.sel", LINUX_CS);
    set(b, "ss.sel", LINUX_DS);
    set(b, "ds.sel", 0);
    set(b, "es.sel", 0);
}

static bool engine_create(struct engine *e, const u8 *constants, int translate)
{
    struct x86_bare *b = e->b = xl_bare_create(1 << 20);
    e->code = aligned_alloc(PAGE_SIZE, CODE_SIZE);
    e->data = aligned_alloc(PAGE_SIZE, DATA_SIZE);
    e->loop = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
    if (!b || !e->code || !e->data || !e->loop || xl_bare_setup(b, 64, 3))
        return false;
    memset(e->code, 0xcc, CODE_SIZE);
    memset(e->loop, 0, PAGE_SIZE);
    xl_bare_map(b, CODE_VA, e->code, CODE_SIZE, 1 | 4);
    xl_bare_map(b, DATA_VA, e->data, DATA_SIZE, 1 | 2);
    xl_bare_map(b, CONST_VA, (u8 *)constants, CONST_SIZE, 1);
    xl_bare_map(b, LOOP_VA, e->loop, PAGE_SIZE, 1 | 2);
    xl_bare_map(b, GDT_VA, gdt, sizeof gdt, 1);
    xl_bare_options(b, XL_BARE_STOP_EXCEPTIONS | XL_BARE_KEEP_CODE | (opt.no_icache ? XL_BARE_NO_ICACHE : 0));
    if (translate >= 0 && xl_bare_engine(b, true, (unsigned)translate))
        return false;
    set_selectors(b);
    set(b, "fs.sel", 0);
    set(b, "gs.sel", 0);
    set(b, "fs.base", FS_BASE);
    set(b, "gs.base", GS_BASE);
    set(b, "tr.limit", 0);                              /* no I/O permission map */
    set(b, "ldtr.attr", 0);                             /* there is no LDT */
    set(b, "ldtr.sel", 0);
    set(b, "ldtr.limit", 0);
    set(b, "gdtr.base", GDT_VA);
    set(b, "gdtr.limit", 0x7f);
    return true;
}

bool engines_create(const struct engine_options *o, const u8 *constants)
{
    opt = *o;
    return engine_create(&engines[INTERPRETER], constants, -1) && (o->translate < 0 || engine_create(&engines[TRANSLATOR], constants, o->translate));
}

void engines_destroy(void)
{
    for (unsigned who = INTERPRETER; who < NR_WHO; who++) {
        struct engine *e = &engines[who];
        xl_bare_destroy(e->b);
        free(e->code);
        free(e->data);
        free(e->loop);
        *e = (struct engine){ 0 };
    }
}

static void write_code(struct engine *e, unsigned at, const void *bytes, unsigned n)
{
    memcpy(e->code + at, bytes, n);
    for (unsigned page = at / PAGE_SIZE; page <= (at + n - 1) / PAGE_SIZE; page++)
        codemap_wrote(e->b->cpu.codemap, e->code + page * PAGE_SIZE, PAGE_SIZE);
}

static u64 fold(u64 digest, u64 x)
{
    digest = (digest ^ x) * 0x9e3779b97f4a7c15ul;
    return digest ^ digest >> 29;
}

/* In slices, if the sequence is for that: where an engine stops in the middle it must have done as much as the other, and go on from there. */
static int run_sliced(struct engine *e, u64 seed, struct ls_result *out)
{
    struct rng r = { seed };
    struct x86_bare *b = e->b;
    u64 from = b->cpu.retired, most = opt.step ? 1 : 1 + rng_below(&r, rng_chance(&r, 50) ? 8 : 80), regs[18];
    for (;;) {
        u64 done = b->cpu.retired - from;
        int exit = xl_bare_run(b, opt.step ? 1 : 1 + rng_below(&r, (unsigned)most));
        if (exit != XL_BARE_BUDGET || done > BUDGET)
            return exit;
        xl_bare_get_regs(b, regs);
        out->nr_stops++;
        out->stops = fold(out->stops, b->cpu.retired - from);
        for (unsigned n = 0; n < 17; n++)               /* of the flags some may be undefined here */
            out->stops = fold(out->stops, regs[n]);
    }
}

static void begin(struct engine *e, const struct ls_job *job, const u8 *data, bool fresh)
{
    struct x86_bare *b = e->b;
    u64 regs[18];
    write_code(e, job->offset, job->code, job->len);
    memcpy(e->data, data, DATA_SIZE);
    memcpy(e->loop, job->loop, sizeof job->loop);
    if (fresh)
        bt_flush(&b->cpu);
    memcpy(regs, job->in.r, sizeof job->in.r);
    regs[16] = job->in.rip;
    regs[17] = job->in.rflags;
    b->cpu.pending_db = 0;              /* the last sequence may have ended, by int3 say, with its single-step trap still to come */
    b->cpu.slow &= ~(u32)(X86_SLOW_PENDING_DB | X86_SLOW_SHADOW | X86_SLOW_SHADOW_SS);
    xl_bare_set_regs(b, regs);
    xl_bare_set_fx(b, job->in.fx);
    if ((b->cpu.seg[X86_DS].sel | b->cpu.seg[X86_ES].sel) || b->cpu.seg[X86_SS].sel != LINUX_DS || b->cpu.seg[X86_CS].sel != LINUX_CS)
        set_selectors(b);
}

static void end(struct engine *e, const struct ls_job *job)
{
    static const u8 nothing[MAX_CODE] = { [0 ... MAX_CODE - 1] = 0xcc };
    write_code(e, job->offset, nothing, job->len);
}

void engine_run(enum who who, const struct ls_sequence *s, const struct ls_job *job, const u8 *data, bool fresh, struct ls_result *out)
{
    struct engine *e = &engines[who];
    struct x86_bare *b = e->b;
    u64 regs[18], x[5] = { 0 };
    begin(e, job, data, fresh);
    u64 from = b->cpu.retired;
    out->nr_stops = 0;
    out->stops = 0;
    int exit = s->slices || opt.step ? run_sliced(e, s->slices | 1, out) : xl_bare_run(b, BUDGET);
    out->retired = b->cpu.retired - from;

    xl_bare_get_regs(b, regs);
    memcpy(out->s.r, regs, sizeof out->s.r);
    out->s.rip = regs[16];
    out->s.rflags = regs[17];
    xl_bare_get_fx(b, out->s.fx);
    out->hung = !xl_bare_exception(b, x) || exit != XL_BARE_STOPPED;
    out->elsewhere = x[4] && x[0] != X86_BP;
    out->vector = (u32)x[0];
    out->error = (u32)x[1];
    out->cr2 = x[2];
    memcpy(out->data, e->data, DATA_SIZE);
    memcpy(out->loop, e->loop, sizeof out->loop);
    end(e, job);
}

bool engine_strays(const struct ls_job *job, const u8 *data, bool agreed)
{
    struct engine *e = &engines[INTERPRETER];
    struct x86_insn i;
    bool starts[MAX_CODE] = { false }, strays = false;
    for (int at = 0, len; at < (int)job->len && (len = x86_decode(&i, job->code + at, 15, 64, ~0ul)) > 0; at += len)
        starts[at] = true;
    begin(e, job, data, false);
    for (unsigned n = 0; n < BUDGET && !strays; n++) {
        u64 at = e->b->cpu.r[X86_RIP] - CODE_VA - job->offset;
        strays = at < job->len && !starts[at] && (agreed || (x86_decode(&i, job->code + at, 15, 64, ~0ul) > 0 && gen_undefined(&i)));
        if (xl_bare_run(e->b, 1) != XL_BARE_BUDGET)
            break;
    }
    end(e, job);
    return strays;
}

struct engine_stats engine_stats(enum who who)
{
    const struct x86_cpu *c = &engines[who].b->cpu;
    const struct bt_stats *t = bt_stats(c);
    return (struct engine_stats){ c->retired, t ? t->interpreted : 0, t ? t->rejected : 0, t ? t->blocks : 0 };
}
