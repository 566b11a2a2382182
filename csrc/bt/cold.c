/* Code behind a block's: what is needed rarely. Where a test of memory.c has failed L1 is asked, or the block left; branches out of the
 * middle, exits, links.
 *
 * Owns: the stubs. Called by: translate.c at a block's end. No locks.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

/* The test of a place's span has failed. L1 is asked for the access alone: if it has that, the span is beyond its page, or the page has
 * another addend. */
static void wide_span_code(struct translation *tr, const struct cold *c)
{
    struct emit *e = &tr->e;
    struct bt *t = tr->t;
    e_call(e, t->l1_code[tr->set][c->write][c->aligned ? 16 : c->size - 1]);
    e_load(e, R_CX, GS(tmp));
    e_store_imm32(e, GS(exit), c->misfit);
    e_jmp(e, t->leave);
}

/* A span's test has failed. r14 is the linear address of the access, r15 the guest's rcx: L1 is asked for its page. If that has bt->slide
 * and the span is in it, on as if nothing had been. */
static void span_code(struct translation *tr, const struct cold *c)
{
    struct emit *e = &tr->e;
    struct bt *t = tr->t;
    u32 slide = GS(slide) + 8 * tr->set;
    e_call(e, t->l1_code[tr->set][c->write][c->aligned ? 16 : c->size - 1]);
    e_gs(e, true, 0x3b, SCRATCH2, slide);                               /* cmp r15, [slide] */
    u32 other = e_jcc_later(e, 5);
    e_store(e, R_CX, c->slot);
    if (c->fixed)
        e_mov(e, SCRATCH2, R_CX);
    else
        e_lea(e, true, SCRATCH2, SCRATCH, R_CX, 0, c->bias - c->disp);
    e_load(e, R_CX, GS(tmp));
    e_load(e, SCRATCH, slide);
    u32 beyond;
    if (c->fixed) {
        e_bytes(e, (const u8[]){ 0x49, 0x81, 0xff }, 3), e32(e, -(u32)c->bias);         /* cmp r15, -page */
        beyond = e_jcc_later(e, 5);
    } else {
        beyond = tr_unless_fits(e, c->room, c->whole);
    }
    e_jmp(e, c->back);
    e_patch(e, other, e->at);
    e_load(e, R_CX, GS(tmp));
    e_patch(e, beyond, e->at);
    flags_emit(e, &c->flags);
    e_store_imm32(e, GS(exit), c->misfit);
    e_jmp(e, t->leave);
}

void tr_cold_code(struct translation *tr)
{
    struct emit *e = &tr->e;
    struct bt *t = tr->t;
    for (unsigned n = 0; n < tr->nr_cold; n++) {
        struct cold *c = &tr->cold[n];
        e_patch(e, c->from, e->at);
        if (c->kind == COLD_SIDE) {
            tr_side_code(tr, c);
            continue;
        }
        if (c->kind == COLD_RETURN) {
            tr_return_code(tr, c);
            continue;
        }
        if (c->kind == COLD_MISS && c->slot)
            tr_l1(e, 0x2b, SCRATCH, c->slot);        /* sub r14, negated: the linear address again */
        if (c->kind == COLD_LINK) {
            struct bt_exit *x = &t->exits[c->exit];
            x->kind = EXIT_LINK;
            x->patch = t->nr_links;
            e_jmp_gs(e, GS(link) + 8 * t->nr_links);
            t->link_exit[t->nr_links] = e->at;
            t->link[t->nr_links] = bt_host_address(t, e->at);
            t->nr_links++;
        }
        if (c->restore_rcx)
            e_mov(e, R_CX, SCRATCH2);
        if (c->flags.kind != FLAGS_ONLY_HERE) {
            flags_emit(e, &c->flags);
            if (c->direct)
                tr_place(e, c->of, c->disp);
            if (c->kind == COLD_ACCESS || c->kind == COLD_SPAN || c->kind == COLD_WIDE_SPAN)
                e_mov(e, SCRATCH2, R_CX);
        }
        e_store_imm32(e, GS(exit), c->exit);
        if (c->kind == COLD_SPAN) {
            span_code(tr, c);
        } else if (c->kind == COLD_WIDE_SPAN) {
            wide_span_code(tr, c);
        } else if (c->kind == COLD_ACCESS) {
            e_call(e, t->l1_code[tr->set][c->write][c->aligned ? 16 : c->size - 1]);
            e_store(e, R_CX, c->slot);
            e_store(e, SCRATCH2, c->slot + 8);
            if (c->direct) {
                e_lea(e, true, R_CX, R_CX, SCRATCH, 0, c->bias - c->disp);
                e_mov(e, SCRATCH, SCRATCH2);
                e_mov(e, SCRATCH2, R_CX);
            } else {
                e_lea(e, true, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
            }
            e_load(e, R_CX, GS(tmp));
            e_jmp(e, c->back);
        } else {
            e_jmp(e, c->light ? t->light_call : t->leave);
        }
    }
}

#endif
