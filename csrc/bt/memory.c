/* The software MMU in translated code: linear address, L0, and the cold stub that asks L1.
 *
 * Owns: the sequences. Called by: translate.c. An access may fault, and the guest sees its flags then: one sequence changes none; the other
 * is for where the cold stub can make them again.
 *
 * L0: an entry for a class of instructions (slot_of), L1: one for a page number modulo its size. An entry is -(page) and host - linear; one
 * of the tables slid and l1_slid only -(page): host - linear is bt->slide. Where a page has another the block is left (EXIT_MISFIT; misfit
 * in run.c). Operands that are always in the same page have that one tested, once a block (access_fixed).
 */
#include "bt/translate.h"

enum { SLOT_STACK = 0 };        /* and three behind it */

#if defined(__x86_64__)

void tr_address(struct translation *tr, bool segment)
{
    struct emit *e = &tr->e;
    const struct x86_insn *i = tr->i;
    bool wide = i->addr_mask == ~0ul;
    carry_end(tr);
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
        e_lea(e, tr_width(tr) == 8, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
    }
}

static unsigned hashed_slot(u64 h) { return SLOT_STACK + 4 + (unsigned)((h ^ h >> 7) % (L0 - 4)); }
static unsigned slot_of_page(u64 va) { return hashed_slot(va >> PAGE_SHIFT); }

/* L0 entry for the instruction's memory operand. */
static unsigned slot_of(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    u64 h = (u64)i->disp >> 9;
    if (i->base == X86_RSP && i->index == X86_ZERO && (u64)i->disp < PAGE_SIZE)
        return SLOT_STACK + (unsigned)(i->disp >> 7) % 4;
    if (i->base == X86_RIP)
        return slot_of_page(tr->va + tr->off + (u64)i->disp);
    return hashed_slot(h * 31 + i->base * 5 + i->index * 3 + (tr->va + tr->off) / 32 * 7);
}

/* Jumps if reg, a distance from a page's beginning, is above `last`; aligned: if it is above a page or no multiple of 16. */
static u32 e_unless_in_page(struct emit *e, unsigned reg, unsigned last, bool aligned)
{
    e8(e, 0x49);
    if (aligned)
        e8(e, 0xf7), e8(e, 0xc0 | (reg & 7)), e32(e, 0xfffff00f);       /* test reg, ~0xff0 */
    else
        e8(e, 0x81), e8(e, 0xf8 | (reg & 7)), e32(e, last);             /* cmp reg, last */
    return e_jcc_later(e, aligned ? 5 : 7);                             /* jne, ja */
}

/* The shorter sequence: the flags can be had again. */
static u32 access_clobbering(struct translation *tr, u32 at, unsigned size, bool aligned)
{
    struct emit *e = &tr->e;
    e_load(e, SCRATCH2, at);
    e8(e, 0x4d), e8(e, 0x01), e8(e, 0xf7);                              /* add r15, r14 */
    u32 from = e_unless_in_page(e, SCRATCH2, PAGE_SIZE - size, aligned);
    e_gs(e, true, 0x03, SCRATCH, at + 8);                               /* add r14, [addend] */
    tr->lost = true;
    return from;
}

void tr_l1(struct emit *e, u8 op, unsigned reg, u32 disp)     /* op reg, [gs:r15 + disp]; reg r14 or r15 */
{
    e8(e, 0x65), e8(e, 0x4d), e8(e, op), e8(e, 0x87 | (reg & 7) << 3), e32(e, disp);
}

/* Whether to translate for a page that has bt->slide: what is at va now, if that is known; else what most pages are like. */
static bool expects_slide_at(const struct translation *tr, bool known, u64 va)
{
    const struct bt *t = tr->t;
    if (tr->apart == APART)
        return false;
    if (known) {
        const struct tlb_entry *e = tlb_slot(t->cpu->tlb, tr->set, va);
        u64 tag = tlb_tag(t->cpu->tlb, va);
        if (e->read_tag == tag || e->write_tag == tag)
            return (u64)e->page - (va & ~(u64)(PAGE_SIZE - 1)) == t->slide[tr->set];
        const struct bt_region *r = &t->region[tr->set][bt_region_of(va)];
        if (r->number == va >> REGION_SHIFT)
            return r->addend == t->slide[tr->set];
    }
    bool leads = t->candidate[tr->set] == t->slide[tr->set] && t->votes[tr->set] >= 2;
    return leads || !t->slide[tr->set];         /* the first page that is filled in decides */
}

/* r15, which has a linear address, := the place of its page in a side of L1. */
static void e_l1_index(struct emit *e)
{
    e_bytes(e, (const u8[]){ 0xc4, 0x43, 0xfb, 0xf0, 0xfe, 9 }, 6);     /* rorx r15, r14, 9 */
    e8(e, 0x41), e8(e, 0x81), e8(e, 0xe7), e32(e, (L1 - 1) << 3);       /* and r15d, .. */
}

/* r15 := the distance of r14, a linear address, from the beginning of its page, if that has bt->slide. */
static void e_l1_slid(struct emit *e, u32 side)
{
    e_l1_index(e);
    tr_l1(e, 0x8b, SCRATCH2, GS(l1_slid) + side);                        /* mov r15, negated */
    e_bytes(e, (const u8[]){ 0x4d, 0x01, 0xf7 }, 3);                    /* add r15, r14 */
}

static bool expects_slide(const struct translation *tr, struct place of, s64 disp)
{
    u64 now;
    bool known = near_address(tr, of, &now);
    return expects_slide_at(tr, known, now + (u64)disp);
}

/* For operands with an index, which wander from page to page so that L0 would miss at random: L1 in line. Where a page's addend is as
 * good as known the access need not wait for the entry, only the test: a chase of pointers takes two thirds of the time. */
static u32 access_indexed(struct translation *tr, unsigned size, bool write, bool aligned, bool slid)
{
    struct emit *e = &tr->e;
    u32 side = (tr->set * 2 + write) * L1 * 8, from;
    if (!slid) {
        e_l1_index(e);
        tr_l1(e, 0x03, SCRATCH, GS(l1_negated) + side);                  /* add r14, negated */
        from = e_unless_in_page(e, SCRATCH, PAGE_SIZE - size, aligned);
        tr_l1(e, 0x03, SCRATCH, GS(l1_host) + side);                     /* add r14, host */
    } else {
        e_l1_slid(e, side);
        from = e_unless_in_page(e, SCRATCH2, PAGE_SIZE - size, aligned);
        e_gs(e, true, 0x03, SCRATCH, GS(slide) + 8 * tr->set);          /* add r14, [slide] */
    }
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

static u32 l0_entry(const struct translation *tr, bool write, unsigned slot)
{
    return GS(l0) + ((tr->set * 2 + write) * L0 + slot) * (u32)sizeof(struct bt_entry);
}

/* What becomes of an access whose test jumps from `from`. */
static struct cold *cold_access(struct translation *tr, enum cold_kind kind, u32 from, unsigned size, bool write, bool aligned, bool early, u32 slot)
{
    u32 exit = tr_exit(tr, EXIT_MISS, 0);
    tr->t->exits[exit].size = (u8)size;
    tr->t->exits[exit].write = write;
    tr->t->exits[exit].align = aligned;
    tr->t->exits[exit].early = early;
    tr->t->exits[exit].slot = slot;
    struct cold *c = tr_cold(tr, kind, from, exit);
    c->size = (u8)size, c->write = write, c->aligned = aligned, c->slot = slot, c->back = tr->e.at;
    if (flags_may_go(tr))
        c->flags = tr->flags;
    return c;
}

/* At r14, which becomes the host address. */
static void access_scratch(struct translation *tr, unsigned size, bool write, bool aligned, unsigned slot, bool indexed)
{
    u32 at = l0_entry(tr, write, slot);
    bool clobber = flags_may_go(tr);
    indexed &= clobber;
    const struct x86_insn *i = tr->i;
    bool slid = indexed && expects_slide(tr, (struct place){ i->base, i->index, i->scale }, (s64)i->disp);
    carry_end(tr);
    u32 from = indexed ? access_indexed(tr, size, write, aligned, slid) : clobber ? access_clobbering(tr, at, size, aligned) : access_keeping(tr, at, size);
    u32 l1 = slid ? 0 : GS(l1_negated) + (tr->set * 2 + write) * L1 * 8;
    struct cold *c = cold_access(tr, indexed ? COLD_MISS : COLD_ACCESS, from, size, write, aligned, false, indexed ? l1 : at);
    tr->t->exits[c->exit].slid = slid;
    tr->operand = (struct operand){ .base = -1 };
}

/* Jumps if r15, a distance from a page's beginning, is no place for a span of `room` bytes; whole: also if it is no multiple of 16. */
u32 tr_unless_fits(struct emit *e, unsigned room, bool whole)
{
    if (whole && room == 16)
        return e_unless_in_page(e, SCRATCH2, 0, true);
    if (whole)
        e_bytes(e, (const u8[]){ 0xc4, 0x43, 0xfb, 0xf0, 0xff, 4 }, 6);     /* rorx r15, r15, 4: what is no multiple becomes huge */
    return e_unless_in_page(e, SCRATCH2, whole ? (PAGE_SIZE - room) / 16 : PAGE_SIZE - room, false);
}

/* r14 := bt->slide. */
static void load_slide(struct translation *tr)
{
    if (tr->slid)
        return;
    e_load(&tr->e, SCRATCH, GS(slide) + 8 * tr->set);
    tr->carry.on = false, tr->slid = true;
}

/* The first access of a span: the test. */
static void open_span(struct translation *tr, unsigned base, s32 disp, unsigned size, bool write, bool aligned, unsigned slot)
{
    struct emit *e = &tr->e;
    struct span *s = &tr->span[base];
    unsigned host = base == R_SP ? GUEST_SP : base;
    *s = near_span(tr, place_of(base), disp, size, write, aligned);
    u16 room = (u16)(s->high - s->low);
    u32 at = GS(slid) + ((tr->set * 2 + s->write) * L0 + slot) * 8;
    e_lea(e, true, SCRATCH2, (int)host, NO_INDEX, 0, s->low);
    e_gs(e, true, 0x03, SCRATCH2, at);                                  /* add r15, [negated] */
    struct cold *c = cold_access(tr, COLD_SPAN, tr_unless_fits(e, room, s->whole), size, s->write, aligned, s->write && !write, at);
    tr->t->exits[c->exit].opens = true;
    c->misfit = tr_exit(tr, EXIT_MISFIT, 0);
    c->direct = true, c->of = s->of, c->disp = disp, c->bias = s->low, c->room = room, c->whole = s->whole;
    tr->lost = true;
    tr->carry.on = false;
    load_slide(tr);
    c->back = e->at;
}

static bool in_span(const struct span *s, s32 disp, unsigned size, bool write, bool aligned)
{
    return s->on && s->write >= write && disp >= s->low && disp + (s64)size <= s->high && (!aligned || (s->whole && (disp - s->low) % 16 == 0));
}

static bool is_fixed(const struct translation *tr, u64 page, bool write)
{
    for (unsigned k = 0; k < tr->nr_fixed; k++)
        if (tr->fixed[k].page == page && tr->fixed[k].write >= write)
            return true;
    return false;
}

/* Stores to the page will find an entry, as far as can be seen: it is no page of code, nor one that was only read so far. */
static bool expects_stores(const struct translation *tr, u64 page)
{
    struct tlb *tlb = tr->t->cpu->tlb;
    const struct tlb_entry *e = tlb_slot(tlb, tr->set, page);
    u64 tag = tlb_tag(tlb, page);
    return page != (tr->va & ~(u64)(PAGE_SIZE - 1)) && (e->write_tag == tag || e->read_tag != tag);
}

/* A store to the page comes on every way that the block goes on by: then the first test is for that too, as a span's is. */
static bool will_store(const struct translation *tr, u64 page)
{
    for (unsigned k = 0; k < tr->nr_rest && !tr->rest_near[k].step && !tr->rest_near[k].branch; k++)
        if (tr->rest_near[k].fixed && tr->rest_near[k].page == page && tr->rest_near[k].write)
            return true;
    return false;
}

/* An operand that is in one page whatever registers are (range.c). False: it is to be had otherwise, and nothing was emitted. */
static bool access_fixed(struct translation *tr, unsigned size, bool write, bool aligned)
{
    struct emit *e = &tr->e;
    const struct x86_insn *i = tr->i;
    u64 page = tr->here->page;
    if (!tr->here->fixed)
        return false;
    bool known = is_fixed(tr, page, write);
    if (!known && (tr->nr_fixed == MAX_FIXED || !flags_may_go(tr) || !expects_slide_at(tr, true, page) ||
                   (write && !expects_stores(tr, page))))
        return false;
    if (i->base < R_13)
        tr->operand = (struct operand){ .base = (int)i->base, .disp = (s32)i->disp };
    else
        tr->operand = (struct operand){ .constant = true, .index = i->index == X86_ZERO ? NO_INDEX : (s8)i->index,
                                        .scale = i->index == X86_ZERO ? 0 : i->scale,
                                        .disp = (s32)(i->disp + (i->base == X86_RIP ? (s64)tr->va + tr->off : 0)) };
    if (known) {
        load_slide(tr);
        return true;
    }
    bool store = write || (will_store(tr, page) && expects_stores(tr, page));
    u32 at = GS(slid) + ((tr->set * 2 + store) * L0 + slot_of_page(page)) * 8;
    e_bytes(e, (const u8[]){ 0x65, 0x48, 0x81, 0x3c, 0x25 }, 5), e32(e, at), e32(e, -(u32)page);        /* cmp qword [negated], -page */
    struct cold *c = cold_access(tr, COLD_SPAN, e_jcc_later(e, 5), size, store, aligned, store && !write, at);
    tr->t->exits[c->exit].opens = true;
    c->misfit = tr_exit(tr, EXIT_MISFIT, 0);
    c->fixed = true, c->bias = (s32)page;
    c->direct = true, c->of = (struct place){ tr->operand.constant ? X86_ZERO : i->base, i->index, i->scale }, c->disp = tr->operand.disp;
    tr->lost = true;
    tr->carry.on = false;
    load_slide(tr);
    c->back = e->at;
    tr->fixed[tr->nr_fixed++] = (struct fixed){ page, store };
    return true;
}

/* By a span that is open, nothing before the instruction opening another by this register. */
bool tr_is_known(const struct translation *tr, const struct x86_insn *i, const struct near *near, unsigned n)
{
    const struct near *at = &near[n];
    if (at->fixed && is_fixed(tr, at->page, at->write))
        return true;
    const struct span *s = &tr->span[at->of.base % R_13];
    if (!at->access || !is_plain_place(at->of) || !s->on || (x86_has_mem(&i[n]) && !at->mem))
        return false;
    s64 moved = 0, by;
    for (unsigned k = 0; ; k++) {
        bool constant;
        s64 d = near[k].disp + moved;
        if (near[k].access && same_place(near[k].of, at->of) && (d != (s32)d || !in_span(s, (s32)d, near[k].size, near[k].write, near[k].aligned)))
            return false;
        if (k == n)
            return true;
        if (near_changes(&i[k], at->of.base, &by, &constant)) {
            if (!constant)
                return false;
            moved += by;
        }
    }
}

/* At guest register base, which is in a host register, + disp. */
static void access_direct(struct translation *tr, unsigned base, s32 disp, unsigned size, bool write, bool aligned, unsigned slot)
{
    struct emit *e = &tr->e;
    struct carry *k = &tr->carry;
    unsigned host = base == R_SP ? GUEST_SP : base;
    tr->operand = (struct operand){ .base = (int)host, .disp = disp };
    if (in_span(&tr->span[base], disp, size, write, aligned)) {
        load_slide(tr);
        return;
    }
    if (access_fixed(tr, size, write, aligned))
        return;
    if (!flags_may_go(tr)) {
        e_lea(e, true, SCRATCH, (int)host, NO_INDEX, 0, disp);
        access_scratch(tr, size, write, aligned, slot, false);
        return;
    }
    if (expects_slide(tr, place_of(base), disp)) {
        open_span(tr, base, disp, size, write, aligned, slot);
        return;
    }
    s64 above = (s64)disp - k->bias;
    bool near = !aligned && k->on && k->base == base && k->write >= write && above >= 0 && above + size <= PAGE_SIZE;
    if (!near) {
        struct run run = aligned ? (struct run){ disp, write } : near_run(tr, base, disp, write);
        tr->slid = false;
        *k = (struct carry){ true, run.write, (u8)base, run.low, l0_entry(tr, run.write, slot) };
        above = (s64)disp - run.low;
        e_lea(e, true, SCRATCH2, (int)host, NO_INDEX, 0, run.low);
        e_gs(e, true, 0x03, SCRATCH2, k->slot);                         /* add r15, [negated] */
    }
    u32 from = e_unless_in_page(e, SCRATCH2, (unsigned)(PAGE_SIZE - size - above), aligned);
    if (!near)
        e_load(e, SCRATCH, k->slot + 8);
    struct cold *c = cold_access(tr, COLD_ACCESS, from, size, k->write, aligned, k->write && !write, k->slot);
    c->direct = true, c->of = place_of(base), c->disp = disp, c->bias = k->bias;
    tr->lost = true;
}

/* r14 := linear address of a place + disp; no flag changes. */
void tr_place(struct emit *e, struct place of, s32 disp)
{
    e_lea(e, true, SCRATCH, of.base == X86_ZERO ? -1 : of.base == R_SP ? GUEST_SP : of.base, of.index == X86_ZERO ? NO_INDEX : of.index,
          of.index == X86_ZERO ? 0 : of.scale, disp);
}

/* At a place that is no single register, if others behind it are near: then the first tests for all. False: by itself. */
static bool access_wide(struct translation *tr, struct place of, s32 disp, unsigned size, bool write, bool aligned)
{
    struct emit *e = &tr->e;
    u32 slide = GS(slide) + 8 * tr->set;
    for (const struct span *s = tr->wide; s < tr->wide + WIDE; s++) {
        if (!same_place(s->of, of) || !in_span(s, disp, size, write, aligned))
            continue;
        carry_end(tr);
        tr_place(e, of, disp);
        if (flags_may_go(tr)) {
            e_gs(e, true, 0x03, SCRATCH, slide);                        /* add r14, [slide] */
            tr->lost = true;
        } else {
            e_load(e, SCRATCH2, slide);
            e_lea(e, true, SCRATCH, SCRATCH, SCRATCH2, 0, 0);
        }
        tr->operand = (struct operand){ .base = -1 };
        return true;
    }
    if (!flags_may_go(tr) || tr->apart || !expects_slide(tr, of, disp))
        return false;
    struct span s = near_span(tr, of, disp, size, write, aligned);
    if (!s.others)
        return false;
    u16 room = (u16)(s.high - s.low);
    carry_end(tr);
    tr_place(e, of, s.low);
    e_l1_slid(e, (tr->set * 2 + s.write) * L1 * 8);
    u32 from = tr_unless_fits(e, room, s.whole);
    e_gs(e, true, 0x03, SCRATCH, slide);
    struct cold *c = cold_access(tr, COLD_WIDE_SPAN, from, size, s.write, aligned, s.write && !write, 0);
    tr->t->exits[c->exit].opens = true;
    c->misfit = tr_exit(tr, EXIT_MISFIT, 0);
    c->direct = true, c->of = of, c->disp = disp;
    tr->lost = true;
    tr->operand = (struct operand){ .base = -1, .disp = disp - s.low };
    tr->wide[tr->next_wide++ % WIDE] = s;
    return true;
}

void tr_access(struct translation *tr, unsigned size, bool write, bool aligned)
{
    const struct x86_insn *i = tr->i;
    unsigned slot = slot_of(tr);
    if (tr_has_place(i) && i->index == X86_ZERO) {
        access_direct(tr, i->base, (s32)i->disp, size, write, aligned, slot);
        return;
    }
    if (access_fixed(tr, size, write, aligned))
        return;
    if (tr_has_place(i) && access_wide(tr, (struct place){ i->base, i->index, i->scale }, (s32)i->disp, size, write, aligned))
        return;
    tr_address(tr, true);
    access_scratch(tr, size, write, aligned, slot, i->index != X86_ZERO);
}

/* In 32-bit code, at base + disp cut to 32 bits: no run of them can be compared as a distance. */
static void access_cut(struct translation *tr, unsigned base, s32 disp, unsigned size, bool write)
{
    e_lea(&tr->e, false, SCRATCH, (int)(base == R_SP ? GUEST_SP : base), NO_INDEX, 0, disp);
    access_scratch(tr, size, write, false, SLOT_STACK, false);
}

void tr_access_at(struct translation *tr, unsigned base, s32 disp, bool write)
{
    if (tr_width(tr) == 8) {
        access_direct(tr, base, disp, 8, write, false, SLOT_STACK);
        return;
    }
    access_cut(tr, base, disp, 4, write);
}

void tr_push_selector_address(struct translation *tr)
{
    if (tr_width(tr) == 8)
        access_direct(tr, R_SP, -8, 8, true, false, SLOT_STACK);
    else
        access_cut(tr, R_SP, -4, 2, true);
}

#endif
