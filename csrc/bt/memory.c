/* The software MMU in translated code: linear address, L0, and the cold stub that asks L1.
 *
 * Owns: the sequences. Called by: translate.c. An access may fault, and the guest sees its flags then: one sequence changes none; the other is for where
 * the cold stub can make them again.
 *
 * L0: an entry for a class of instructions (tr_slot), L1: one for a page number modulo its size. An entry is -(page) and host - linear.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

void tr_address(struct translation *tr, bool segment)
{
    struct emit *e = &tr->e;
    const struct x86_insn *i = tr->i;
    bool wide = i->addr_mask == ~0ul;
    if (i->base == X86_RIP || (i->base == X86_ZERO && i->index == X86_ZERO)) {
        u64 base = i->base == X86_RIP ? tr->va + tr->off : 0;
        e_mov_imm(e, SCRATCH, (base + (u64)i->disp) & i->addr_mask);
    } else {
        int base = i->base == X86_ZERO ? -1 : (int)tr_get(tr, i->base, SCRATCH);
        int index = i->index == X86_ZERO ? NO_INDEX : (int)tr_get(tr, i->index, SCRATCH2);
        e_lea(e, wide, SCRATCH, base, index, i->scale, (s32)i->disp);
    }
    if (segment && (i->mem_seg == X86_FS || i->mem_seg == X86_GS)) {
        e_load(e, SCRATCH2, GS(seg_base) + 8 * (i->mem_seg - X86_FS));
        e_lea(e, true, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
    }
}

unsigned tr_slot(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    u64 h = (u64)i->disp >> 9;
    if (i->base == X86_RSP && i->index == X86_ZERO && (u64)i->disp < PAGE_SIZE)
        return SLOT_STACK;
    if (i->base == X86_RIP)
        h = (tr->va + tr->off + (u64)i->disp) >> PAGE_SHIFT;
    else
        h = h * 31 + i->base * 5 + i->index * 3 + (tr->va + tr->off) / 32 * 7;
    return 1 + (unsigned)((h ^ h >> 7) % (L0 - 1));
}

/* The shorter sequence: the flags can be had again. */
static u32 access_clobbering(struct translation *tr, u32 at, unsigned size, bool aligned)
{
    struct emit *e = &tr->e;
    e_load(e, SCRATCH2, at);
    e8(e, 0x4d), e8(e, 0x01), e8(e, 0xf7);                              /* add r15, r14 */
    if (aligned)
        e8(e, 0x49), e8(e, 0xf7), e8(e, 0xc7), e32(e, 0xfffff00f);      /* test r15, ~0xff0 */
    else
        e8(e, 0x49), e8(e, 0x81), e8(e, 0xff), e32(e, PAGE_SIZE - size);        /* cmp r15, 4096 - size */
    u32 from = e_jcc_later(e, aligned ? 5 : 7);                         /* jne, ja */
    e_gs(e, true, 0x03, SCRATCH, at + 8);                               /* add r14, [addend] */
    tr->lost = true;
    return from;
}

static void e_l1(struct emit *e, u8 op, u32 disp) { e8(e, 0x65), e8(e, 0x4d), e8(e, op), e8(e, 0xb7), e32(e, disp); }    /* op r14, [gs:r15 + disp] */

/* For operands with an index, which wander from page to page so that L0 would miss at random: L1 in line. */
static u32 access_indexed(struct translation *tr, unsigned size, bool write, bool aligned)
{
    struct emit *e = &tr->e;
    u32 side = (tr->set * 2 + write) * L1 * 8;
    e_bytes(e, (const u8[]){ 0xc4, 0x43, 0xfb, 0xf0, 0xfe, 9 }, 6);     /* rorx r15, r14, 9 */
    e8(e, 0x41), e8(e, 0x81), e8(e, 0xe7), e32(e, (L1 - 1) << 3);       /* and r15d, .. */
    e_l1(e, 0x03, GS(l1_negated) + side);                                                  /* add r14, negated */
    if (aligned)
        e8(e, 0x49), e8(e, 0xf7), e8(e, 0xc6), e32(e, 0xfffff00f);      /* test r14, ~0xff0 */
    else
        e8(e, 0x49), e8(e, 0x81), e8(e, 0xfe), e32(e, PAGE_SIZE - size);        /* cmp r14, 4096 - size */
    u32 from = e_jcc_later(e, aligned ? 5 : 7);
    e_l1(e, 0x03, GS(l1_host) + side);                                  /* add r14, host */
    tr->lost = true;
    return from;
}

/* No flag changes: a mask finds whether page and alignment are right. Operands that are not aligned go to L1's routine: a sum with size - 1
 * would also hit for those that begin before the page. */
static u32 access_keeping(struct translation *tr, u32 at, unsigned size)
{
    struct emit *e = &tr->e;
    e_mov(e, SCRATCH2, R_CX);
    e_load(e, R_CX, at);
    e_lea(e, true, R_CX, R_CX, SCRATCH, 0, 0);
    e_pext(e, true, R_CX, R_CX, GS(mask_size) + 8 * (u32)__builtin_ctz(size));
    u32 hit = e_jrcxz(e), from = e_jmp_later(e);
    e_here(e, hit);
    e_mov(e, R_CX, SCRATCH2);
    e_load(e, SCRATCH2, at + 8);
    e_lea(e, true, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
    return from;
}

void tr_access(struct translation *tr, unsigned size, bool write, bool aligned, unsigned slot)
{
    u32 at = GS(l0) + ((tr->set * 2 + write) * L0 + slot) * (u32)sizeof(struct bt_entry);
    bool clobber = flags_may_go(tr);
    bool indexed = clobber && slot != SLOT_STACK && tr->i->index != X86_ZERO && x86_has_mem(tr->i);
    u32 from = indexed ? access_indexed(tr, size, write, aligned) : clobber ? access_clobbering(tr, at, size, aligned) : access_keeping(tr, at, size);
    u32 exit = tr_exit(tr, EXIT_MISS, 0);
    tr->t->exits[exit].size = (u8)size;
    tr->t->exits[exit].write = write;
    tr->t->exits[exit].align = aligned;
    struct cold *c = tr_cold(tr, indexed ? COLD_MISS : COLD_ACCESS, from, exit);
    c->size = (u8)size, c->write = write, c->aligned = aligned;
    c->slot = indexed ? GS(l1_negated) + (tr->set * 2 + write) * L1 * 8 : at;
    c->back = tr->e.at;
    if (clobber)
        c->flags = tr->flags;
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
        if (c->kind == COLD_MISS)
            e_l1(e, 0x2b, c->slot);     /* sub r14, negated: the linear address again */
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
            if (c->kind == COLD_ACCESS)
                e_mov(e, SCRATCH2, R_CX);
        }
        e_store_imm32(e, GS(exit), c->exit);
        if (c->kind == COLD_ACCESS) {
            e_call(e, t->l1_code[tr->set][c->write][c->aligned ? 16 : c->size - 1]);
            e_store(e, R_CX, c->slot);
            e_store(e, SCRATCH2, c->slot + 8);
            e_load(e, R_CX, GS(tmp));
            e_lea(e, true, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
            e_jmp(e, c->back);
        } else {
            e_jmp(e, t->leave);
        }
    }
}

#endif
