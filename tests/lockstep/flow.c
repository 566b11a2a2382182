/* The control flow of sequences: loops, branches back, calls; laying out.
 *
 * Owns: how a sequence is executed several times, and why it ends all the same. Called by: gen.c, lockstep.c.
 *
 * A loop counts in memory (LOOP_VA), which no operand names on purpose, so that all registers are the sequence's. Each round restores the stack
 * pointer of the first, and moves two addresses on by a stride; units that use them reach other pages from round to round, cross them, leave the
 * data: what a block has learnt of an access in one round does not hold in the next. Branches back use up fuel; without it they are skipped.
 */
#include "lockstep.h"

#include <string.h>

void unit_put(struct ls_unit *u, const void *bytes, unsigned n)
{
    memcpy(u->bytes + u->len, bytes, n);
    u->len += (u8)n;
}

void unit_fix(struct ls_unit *u, unsigned at, unsigned kind, unsigned end, int target, u64 va)
{
    u->fix[u->nr_fixes++] = (struct ls_fix){ (u8)at, (u8)kind, (u8)end, (s16)target, va };
}

void unit_insn_rip(struct ls_unit *u, const void *bytes, unsigned n, unsigned disp_at, u64 va)
{
    unsigned at = u->len + disp_at;
    unit_put(u, bytes, n);
    unit_fix(u, at, FIX_RIPREL, u->len, 0, va);
}

void flow_guard(struct ls_unit *u, int next)
{
    static const u8 load[] = { 0x48, 0x8b, 0x0d, 0, 0, 0, 0 }, less[] = { 0x48, 0x8d, 0x49, 0xff }, store[] = { 0x48, 0x89, 0x0d, 0, 0, 0, 0 };
    unit_insn_rip(u, load, sizeof load, 3, LOOP_VA + 8 * LOOP_FUEL);    /* mov fuel, rcx */
    unit_put(u, (u8[]){ 0xe3, 0 }, 2);                                  /* jrcxz next */
    unit_fix(u, u->len - 1u, FIX_REL8, u->len, next, 0);
    unit_put(u, less, sizeof less);                                     /* lea -1(rcx), rcx */
    unit_insn_rip(u, store, sizeof store, 3, LOOP_VA + 8 * LOOP_FUEL);
}

bool flow_wrap(struct ls_unit *u)
{
    enum { BEFORE = 7 };
    const u8 before[BEFORE] = { 0xe8, 2, 0, 0, 0, 0xeb, (u8)(u->len + 1) };     /* call 1f; jmp 2f; 1: unit; ret; 2: */
    if (u->len + BEFORE + 1u > sizeof u->bytes || u->len + 1 > 127)
        return false;
    memmove(u->bytes + BEFORE, u->bytes, u->len);
    memcpy(u->bytes, before, BEFORE);
    u->len += BEFORE;
    u->main_at += BEFORE;
    u->cleanup_at += u->cleanup_at ? BEFORE : 0;
    for (unsigned n = 0; n < u->nr_fixes; n++)
        u->fix[n].at += BEFORE, u->fix[n].end += BEFORE;
    unit_put(u, (u8[]){ 0xc3 }, 1);
    return true;
}

void flow_sequence(struct rng *r, struct ls_sequence *s)
{
    static const s16 strides[] = { 0, 0, 1, 2, 4, 8, 8, 16, -8, 64, 96, 250, -256, 1000, 2040, 4096, -4096 };
    s->way = LOOP_NONE;
    memset(s->loop, 0, sizeof s->loop);
    if (!r->flow)
        return;
    s->way = 1 + rng_below(r, NR_LOOP_WAYS - 1);
    s->loop[LOOP_COUNT] = 2 + rng_below(r, rng_chance(r, 60) ? 5 : 24);
    s->loop[LOOP_FUEL] = rng_below(r, 24);
    s->loop[LOOP_WALK] = r->calm ? DATA_VA + PAGE_SIZE - 400 + rng_below(r, 800) : gen_address(r);
    s->loop[LOOP_WALK16] = (r->calm ? DATA_VA + PAGE_SIZE - 400 + rng_below(r, 800) : gen_address(r)) & ~15ul;
    do
        s->stride = strides[rng_below(r, ARRAY_SIZE(strides))];
    while (r->calm && s->stride * (s32)s->loop[LOOP_COUNT] / 3000);
    do
        s->stride16 = strides[rng_below(r, ARRAY_SIZE(strides))];
    while (s->stride16 % 16 || (r->calm && s->stride16 * (s32)s->loop[LOOP_COUNT] / 3000));
}

/* What is before the units and, from `at` on, behind them. Returns where the code is entered. */
static unsigned loop_code(const struct ls_sequence *s, unsigned at, struct ls_unit *head, struct ls_unit *tail)
{
    static const u8 save[] = { 0x48, 0x89, 0x25, 0, 0, 0, 0 }, restore[] = { 0x48, 0x8b, 0x25, 0, 0, 0, 0 };
    static const u8 dec[] = { 0x48, 0xff, 0x0d, 0, 0, 0, 0 }, cmp[] = { 0x48, 0x83, 0x3d, 0, 0, 0, 0, 0 };
    u8 add[11] = { 0x48, 0x81, 0x05 }, lea[7] = { 0x48, 0x8d, 0x05 };
    unsigned enter = 0;
    *head = *tail = (struct ls_unit){ 0 };
    if (s->way != LOOP_NONE) {
        unit_insn_rip(head, save, sizeof save, 3, LOOP_VA + 8 * LOOP_RSP);
        unit_insn_rip(tail, restore, sizeof restore, 3, LOOP_VA + 8 * LOOP_RSP);
        memcpy(add + 7, &s->stride, 4);
        unit_insn_rip(tail, add, sizeof add, 3, LOOP_VA + 8 * LOOP_WALK);
        memcpy(add + 7, &s->stride16, 4);
        unit_insn_rip(tail, add, sizeof add, 3, LOOP_VA + 8 * LOOP_WALK16);
        unit_insn_rip(tail, dec, sizeof dec, 3, LOOP_VA + 8 * LOOP_COUNT);
        s32 rel;
        switch (s->way) {
        case LOOP_JCC:
            unit_put(tail, (u8[]){ 0x0f, 0x85 }, 2);            /* jnz head */
            rel = -(s32)(at + tail->len + 4);
            unit_put(tail, &rel, 4);
            break;
        case LOOP_JMP:
            unit_put(tail, (u8[]){ 0x74, 5, 0xe9 }, 3);         /* jz 1f; jmp head; 1: */
            rel = -(s32)(at + tail->len + 4);
            unit_put(tail, &rel, 4);
            break;
        case LOOP_INDIRECT:
            unit_put(tail, (u8[]){ 0x74, 9 }, 2);               /* jz 1f; lea head, rax; jmp *rax; 1: */
            unit_insn_rip(tail, lea, sizeof lea, 3, CODE_VA + s->offset);
            unit_put(tail, (u8[]){ 0xff, 0xe0 }, 2);
            break;
        default:                        /* the units are a function; who calls it stands behind it */
            unit_put(tail, (u8[]){ 0x78, 20, 0xc3, 0xe8 }, 4);  /* js 2f (they wrote another return address); ret; 1: call head */
            enter = at + tail->len - 1;
            rel = -(s32)(enter + 5);
            unit_put(tail, &rel, 4);
            unit_insn_rip(tail, cmp, sizeof cmp, 3, LOOP_VA + 8 * LOOP_COUNT);
            unit_put(tail, (u8[]){ 0x0f, 0x85, 0xed, 0xff, 0xff, 0xff }, 6);    /* jnz 1b; 2: */
        }
    }
    unit_put(tail, (u8[]){ 0xcc }, 1);
    return enter;
}

static void place(const struct ls_sequence *s, const struct ls_unit *u, unsigned start, const unsigned *starts, u8 *code)
{
    memcpy(code + start, u->bytes, u->len);
    for (unsigned n = 0; n < u->nr_fixes; n++) {
        const struct ls_fix *x = &u->fix[n];
        u8 *field = code + start + x->at;
        u64 end = CODE_VA + s->offset + start + x->end;
        u64 to = CODE_VA + s->offset + starts[x->target < (int)s->nr ? x->target : (int)s->nr];
        u64 rel = to - end, rip_rel = x->va - end;
        switch (x->kind) {
        case FIX_REL8:
            if (rel + 128 > 255)
                rel = 0;                /* out of reach: to the next unit */
            memcpy(field, &rel, 1);
            break;
        case FIX_REL32: memcpy(field, &rel, 4); break;
        case FIX_ABS64: memcpy(field, &to, 8); break;
        default: memcpy(field, &rip_rel, 4); break;
        }
    }
}

bool flow_layout(const struct ls_sequence *s, struct ls_job *job, unsigned *starts)
{
    struct ls_unit head, tail;
    unsigned at = s->way == LOOP_NONE ? 0 : 7, enter;
    for (unsigned k = 0; k < s->nr; k++) {
        starts[k] = at;
        at += s->unit[k].len;
    }
    starts[s->nr] = at;
    enter = loop_code(s, at, &head, &tail);
    job->len = at + tail.len;
    if (job->len > MAX_CODE || s->offset + job->len > CODE_SIZE)
        return false;
    place(s, &head, 0, starts, job->code);
    for (unsigned k = 0; k < s->nr; k++)
        place(s, &s->unit[k], starts[k], starts, job->code);
    place(s, &tail, at, starts, job->code);
    job->offset = s->offset;
    job->in = s->in;
    job->in.rip = CODE_VA + s->offset + enter;
    memcpy(job->loop, s->loop, sizeof job->loop);
    return true;
}
