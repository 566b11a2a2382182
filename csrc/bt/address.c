/* What translated code knows of addresses: L0 and L1 of its TLB, the jump cache, links; how it is forgotten.
 *
 * Owns: bt->l0, slid, l1_*, slide, jump_*, link. Called by: run.c, block.c, life.c; translated code reads all of it, and copies entries of
 * L1 to L0. No locks.
 *
 * All of it is a copy of what the vCPU's TLB knew (docs/engine.md, "Guest memory"), and goes when that has forgotten it: everything at a
 * flush, one page's at the flush of a page.
 */
#include "bt/emit.h"

#if defined(__x86_64__)

STATIC_ASSERT(4 * L1 <= 1 << 16);      /* l1_filled */

static void empty_l0(struct bt *t, unsigned set, bool write)
{
    for (unsigned n = 0; n < L0; n++)
        t->l0[set][write][n] = (struct bt_entry){ -t->poison, (u64)t->nowhere - t->poison }, t->slid[set][write][n] = -t->poison;
}

/* What an entry of L1 that is for no page has for it; n: [set][write][n]. 0 is for page 0, and so for none but where that page's entry
 * is, or the last's, whose operands may end in page 0: most of the tables is memory that was never touched. */
static u64 no_page(const struct bt *t, unsigned n) { return (n + 1) % L1 > 1 ? 0 : -t->poison; }

static void empty_l1(struct bt *t, unsigned n)
{
    (&t->l1_negated[0][0][0])[n] = (&t->l1_slid[0][0][0])[n] = no_page(t, n);
    (&t->l1_addend[0][0][0])[n] = (u64)t->nowhere - t->poison;
    (&t->l1_host[0][0][0])[n] = (u64)t->nowhere;
    (&t->l1_copies[0][0][0])[n] = 0;
}

/* Empties what is filled of n entries: those listed, or, if there were more than the list holds, all. */
static void empty_filled(struct bt *t, const u16 *filled, u32 *nr, u32 n, void empty(struct bt *t, unsigned n))
{
    for (u32 k = 0; k < (*nr <= FILLED ? *nr : n); k++)
        empty(t, *nr <= FILLED ? filled[k] : k);
    *nr = 0;
}

static void note_filled(u16 *filled, u32 *nr, u32 n)
{
    if (*nr < FILLED)
        filled[*nr] = (u16)n;
    *nr += *nr <= FILLED;
}

static void empty_entries(struct bt *t, unsigned set)
{
    empty_l0(t, set, false);
    empty_l0(t, set, true);
    t->tlb_used[set] = false;
}

/* n: [set][n]. */
static void empty_jump(struct bt *t, unsigned n) { (&t->jump_negated[0][0])[n] = -t->poison; }

static void empty_link(struct bt *t, u32 n) { t->link[n] = bt_host_address(t, t->link_exit[n]); }

void bt_forget_jumps(struct bt *t) { empty_filled(t, t->jump_filled, &t->nr_jump_filled, 2 * JUMPS, empty_jump); }

void bt_forget_addresses(struct bt *t)
{
    for (unsigned set = 0; set < 2; set++)
        if (t->tlb_used[set])
            empty_entries(t, set);
    empty_filled(t, t->l1_filled, &t->nr_l1_filled, 4 * L1, empty_l1);
    bt_forget_jumps(t);
    while (t->nr_active)
        empty_link(t, t->active[--t->nr_active]);
    memset(t->code_pages, 0, sizeof t->code_pages);
    t->forgotten++;
    t->tlb_flushes = t->cpu->tlb->flushes;
    t->page_flushes = t->cpu->tlb->page_flushes;
}

static bool shares_l1(u64 negated, unsigned n) { return (-negated >> PAGE_SHIFT) % L1 == n; }

/* What L0 has of a page, on one side; n: its place in L1. Returns whether copies of other pages with that place may be left. */
static bool forget_copies(struct bt *t, unsigned side, unsigned n, u64 negated)
{
    struct bt_entry *l0 = t->l0[side / 2][side % 2];
    u64 *slid = t->slid[side / 2][side % 2];
    bool others = false;
    for (unsigned k = 0; k < L0; k++) {
        if (unlikely(l0[k].negated == negated))
            l0[k] = (struct bt_entry){ -t->poison, (u64)t->nowhere - t->poison };
        if (unlikely(slid[k] == negated))
            slid[k] = -t->poison;
        others |= shares_l1(l0[k].negated, n) | shares_l1(slid[k], n);
    }
    return others;
}

/* Entries for one page of data. Mostly L0 has copied its entry once, and it is known where to; what it has of other pages that L1 had
 * there stays counted. */
static void forget_page(struct bt *t, u64 va)
{
    u64 negated = -(va & ~(u64)(PAGE_SIZE - 1));
    unsigned n = (va >> PAGE_SHIFT) % L1;
    for (unsigned side = 0; side < 4; side++) {
        u32 *copies = &(&t->l1_copies[0][0][0])[side * L1 + n], left = *copies;
        u32 at = t->exits[(&t->l1_copier[0][0][0])[side * L1 + n]].slot;
        u64 *slot = (u64 *)((u8 *)t + at);
        if (left > 1) {
            left = forget_copies(t, side, n, negated) ? 2 : 0;
        } else if (left && !at) {       /* it only looked */
            left = 0;
        } else if (left && *slot == negated) {
            left = 0;
            *slot = -t->poison;
            if (slot < &t->slid[0][0][0])
                slot[1] = (u64)t->nowhere - t->poison;
        }
        if ((&t->l1_negated[0][0][0])[side * L1 + n] == negated)
            empty_l1(t, side * L1 + n);
        *copies = left;
    }
    t->forgotten++;
}

static u32 code_page_bit(u64 va) { return (u32)((va >> PAGE_SHIFT ^ va >> 24) % CODE_PAGE_BITS); }
void bt_note_code(struct bt *t, u64 va) { t->code_pages[code_page_bit(va) / 64] |= 1ul << code_page_bit(va) % 64; }

void bt_forget_flushed(struct bt *t)
{
    const struct tlb *tlb = t->cpu->tlb;
    u64 va = tlb->flushed_va;
    if (t->tlb_flushes != tlb->flushes || tlb->page_flushes - t->page_flushes != 1 ||
        t->code_pages[code_page_bit(va) / 64] >> code_page_bit(va) % 64 & 1) {
        bt_forget_addresses(t);
        return;
    }
    forget_page(t, va);
    t->page_flushes = tlb->page_flushes;
}

/* A page with this addend has been filled in: a vote (Boyer and Moore's) on bt->slide. */
static void vote(struct bt *t, unsigned set, u64 addend)
{
    if (addend == t->candidate[set])
        t->votes[set] += t->votes[set] < 2 * VOTES;
    else if (t->votes[set])
        t->votes[set]--;
    else
        t->candidate[set] = addend, t->votes[set] = 1;
    if (likely(t->slide[set] == t->candidate[set]) || (t->slide[set] && t->votes[set] < VOTES))
        return;
    t->slide[set] = t->candidate[set];
    for (unsigned n = 0; n < 2 * L0; n++)
        (&t->slid[set][0][0])[n] = -t->poison;
    for (unsigned n = 0; n < 2 * L1; n++) {
        u64 *slid = &(&t->l1_slid[set][0][0])[n], addend = (&t->l1_addend[set][0][0])[n];
        u64 page = addend == t->slide[set] ? (&t->l1_negated[set][0][0])[n] : no_page(t, n);
        if (*slid != page)
            *slid = page;
    }
    t->forgotten++;
}

void bt_tlb_fill(struct bt *t, unsigned set, bool write, u64 lin, u8 *page)
{
    u64 va = lin & ~(u64)(PAGE_SIZE - 1);
    unsigned n = (lin >> PAGE_SHIFT) % L1;
    if (t->options & BT_TINY_TLB) {     /* the other side stays: an instruction may need both */
        empty_l0(t, set, write);
        u32 nr = t->nr_l1_filled;
        t->nr_l1_filled = 0;
        for (unsigned k = 0; k < nr; k++)
            if (t->l1_filled[k] / L1 == set * 2 + write)
                empty_l1(t, t->l1_filled[k]);
            else
                note_filled(t->l1_filled, &t->nr_l1_filled, t->l1_filled[k]);
    }
    t->l1_negated[set][write][n] = -va;
    t->l1_addend[set][write][n] = (u64)page - va;
    vote(t, set, (u64)page - va);
    t->region[set][bt_region_of(va)] = (struct bt_region){ va >> REGION_SHIFT, (u64)page - va };
    t->l1_slid[set][write][n] = (u64)page - va == t->slide[set] ? -va : no_page(t, n);
    t->l1_host[set][write][n] = (u64)page;
    t->tlb_used[set] = true;
    note_filled(t->l1_filled, &t->nr_l1_filled, (set * 2 + write) * L1 + n);
}

bool bt_has_slide(const struct bt *t, unsigned set, bool write, u64 lin)
{
    return t->l1_slid[set][write][(lin >> PAGE_SHIFT) % L1] == -(lin & ~(u64)(PAGE_SIZE - 1));
}

static unsigned jump_place(u64 va)
{
    u64 n;
    __asm__("pext %2, %1, %0" : "=r"(n) : "r"(va), "r"(JUMP_MASK));
    return (unsigned)n;
}

void bt_jump_fill(struct bt *t, unsigned set, u64 va, u32 code)
{
    unsigned n = jump_place(va);
    t->jump_negated[set][n] = -va;
    t->jump_host[set][n] = bt_host_address(t, code);
    note_filled(t->jump_filled, &t->nr_jump_filled, set * JUMPS + n);
}

void bt_jump_forget(struct bt *t, unsigned set, u64 va)
{
    unsigned n = jump_place(va);
    if (t->jump_negated[set][n] == -va)
        empty_jump(t, set * JUMPS + n);
}

u64 bt_jump_find(const struct bt *t, unsigned set, u64 va)
{
    unsigned n = jump_place(va);
    return t->jump_negated[set][n] == -va && va != t->poison ? t->jump_host[set][n] : 0;
}

void bt_link_fill(struct bt *t, u32 link, u32 code)
{
    if (t->link[link] == bt_host_address(t, t->link_exit[link]))
        t->active[t->nr_active++] = (u16)link;
    t->link[link] = bt_host_address(t, code);
}

void bt_addresses_begin(struct bt *t)
{
    t->tlb_used[0] = t->tlb_used[1] = true;
    t->nr_jump_filled = FILLED + 1;     /* bt_forget empties all */
    for (unsigned side = 0; side < 4; side++) {
        note_filled(t->l1_filled, &t->nr_l1_filled, side * L1);
        note_filled(t->l1_filled, &t->nr_l1_filled, side * L1 + L1 - 1);
    }
}

#endif
