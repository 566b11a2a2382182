/* Tables of blocks, of code pages, of addresses that translated code knows; how they are forgotten.
 *
 * Owns: bt->hash, pages, l0, l1, jumps, links; bt_create. Called by: run.c, translate.c. No locks.
 *
 * A block is found by the host address of its bytes, its linear address and its context. A jump within a page is patched to the target's code:
 * both belong to the same page, and the way in led through a lookup of that page since the last TLB flush. Jumps to other pages go through a
 * link (an address in struct bt) or the jump cache, which are emptied at a TLB flush. An invalid block's entry is overwritten by a jump to the loop,
 * so nothing that leads to it need be found.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "bt/emit.h"

#if defined(__x86_64__)
#include <cpuid.h>

STATIC_ASSERT(4 * L1 <= 1 << 16);      /* l1_filled */

/* ---- addresses --------------------------------------------------------------------------------------------------- */

static void empty_l0(struct bt *t, unsigned set, bool write)
{
    for (unsigned n = 0; n < L0; n++)
        t->l0[set][write][n] = (struct bt_entry){ -t->poison, (u64)t->nowhere - t->poison }, t->slid[set][write][n] = -t->poison;
}

/* What an entry of L1 that is for no page has for it; n: [set][write][n]. 0 is for page 0, and so for none but where that page's entry is, or the last's, whose
 * operands may end in page 0: most of the tables is memory that was never touched. */
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

/* Entries for one page of data. Mostly L0 has copied its entry once, and it is known where to; what it has of other pages that L1 had there stays counted. */
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
    if (likely(t->tlb_flushes == tlb->flushes && t->page_flushes == tlb->page_flushes))
        return;
    if (t->tlb_flushes != tlb->flushes || tlb->page_flushes - t->page_flushes != 1 || t->code_pages[code_page_bit(va) / 64] >> code_page_bit(va) % 64 & 1) {
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
        u64 *slid = &(&t->l1_slid[set][0][0])[n], page = (&t->l1_addend[set][0][0])[n] == t->slide[set] ? (&t->l1_negated[set][0][0])[n] : no_page(t, n);
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

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static u32 hash_of(const u8 *host) { return (u32)(((u64)host ^ (u64)host >> 13) % HASH); }

u32 bt_block_find(struct bt *t, const u8 *host, u64 va, u16 context)
{
    for (u32 b = t->hash[hash_of(host)]; b; b = t->block[b].next)
        if (t->block[b].host == host && t->block[b].va == va && t->block[b].context == context)
            return b;
    return 0;
}

static void unlink_block(struct bt *t, u32 b)
{
    struct bt_block *block = &t->block[b];
    u32 *at = &t->hash[hash_of(block->host)];
    while (*at != b)
        at = &t->block[*at].next;
    *at = block->next;
    block->invalid = true;
}

void bt_block_replace(struct bt *t, u32 old, u32 new)
{
    struct bt_block *block = &t->block[old];
    unlink_block(t, old);
    struct emit e = { t, t->rw + block->code, block->code };
    e_jmp(&e, t->block[new].code);
    for (u32 b = new; b; b = t->block[b].page_next)     /* the blocks of the page: chains come from nowhere else */
        for (u32 n = t->block[b].entry_exit, k = 0; k < t->block[b].nr_exits; k++)
            if (t->exits[n + k].kind == EXIT_CHAIN && t->exits[n + k].target == block->va && bt_cache_target(t, t->exits[n + k].patch) == block->code)
                bt_cache_patch(t, t->exits[n + k].patch, t->block[new].code);
}

static void invalidate(struct bt *t, u32 b)
{
    struct bt_block *block = &t->block[b];
    if (block->invalid)                 /* replaced: leads to one that is not */
        return;
    unlink_block(t, b);
    t->stats.invalidated++;
    if (!block->nr)
        return;
    struct emit e = { t, t->rw + block->code, block->code };
    e_store_imm32(&e, GS(exit), block->entry_exit);
    e_jmp(&e, t->leave);
}

/* Drops a page's blocks if they are of another generation. */
static void page_new_generation(struct bt *t, struct bt_page *p, u32 generation)
{
    if (p->generation == generation)
        return;
    p->generation = generation;
    for (u32 b = p->first; b; b = t->block[b].page_next)
        invalidate(t, b);
    p->first = 0;
}

static u32 page_hash_of(const u8 *host) { return (u32)(((u64)host >> PAGE_SHIFT) % PAGE_HASH); }

struct bt_page *bt_page_claim(struct bt *t, const u8 *host, unsigned in_page, unsigned n)
{
    struct x86_cpu *c = t->cpu;
    u64 page;
    host = (const u8 *)((u64)host & ~(u64)(PAGE_SIZE - 1));
    struct codemap *map = codemap_find(c->codemap, host, &page);
    if (!map || !c->ops->code_page)
        return NULL;
    u32 k = t->page_hash[page_hash_of(host)];
    while (k && t->pages[k].host != host)
        k = t->pages[k].next;
    if (!k) {
        if (t->nr_pages == CODE_PAGES)
            return NULL;
        k = t->nr_pages++;
        t->pages[k] = (struct bt_page){ host, map, page, codemap_generation(map, page), 0, t->page_hash[page_hash_of(host)] };
        t->page_hash[page_hash_of(host)] = k;
    }
    /* Claimed before the bytes are read: who writes from here on is noticed. The page's generation is that of the claim, not a later one: if
     * the claim is gone by the time that the block is there, the next look finds it. */
    u32 generation;
    bool sealed = codemap_claim(map, page, codemap_lines(in_page, n), &generation);
    page_new_generation(t, &t->pages[k], generation);
    if (!sealed) {
        c->ops->code_page(c, host);
        codemap_seal(map, page, generation);
    }
    return &t->pages[k];
}

void bt_block_insert(struct bt *t, u32 b, struct bt_page *page)
{
    struct bt_block *block = &t->block[b];
    block->next = t->hash[hash_of(block->host)];
    t->hash[hash_of(block->host)] = b;
    block->page_next = page->first;
    page->first = b;
}

void bt_look_for_writes(struct bt *t)
{
    u32 epoch = 0;
    for (const struct codemap *m = t->cpu->codemap; m; m = m->next)
        epoch += load_acquire(m->epoch);
    if (t->epoch == epoch)
        return;
    t->epoch = epoch;
    for (u32 k = 1; k < t->nr_pages; k++)
        page_new_generation(t, &t->pages[k], codemap_generation(t->pages[k].map, t->pages[k].page));
}

void bt_forget(struct bt *t)
{
    bt_forget_addresses(t);
    memset(t->hash, 0, sizeof t->hash);
    memset(t->page_hash, 0, sizeof t->page_hash);
    t->nr_blocks = t->nr_exits = t->nr_pages = t->nr_maps = 1;          /* 0: none */
    t->nr_links = t->nr_insns = 0;
    memset(t->insn_exit, 0, sizeof t->insn_exit);
    t->used = t->start;
    t->features = t->cpu->features;
    t->epoch = ~0u;
    t->stats.flushes++;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static bool has_bmi2(void)
{
    u32 a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1 << 8;
}
static bool has_lahf(void)
{
    u32 a, b, c, d;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & 1;
}
static bool has_fsgsbase(void) { return getauxval(AT_HWCAP2) & 2; }     /* HWCAP2_FSGSBASE: the CPU has it, and the kernel lets it be used */

/* What translated code and its cache cannot do without. word: what XENLIKE_HOST_LACKS calls it. */
static const struct { const char *word, *why; bool (*have)(void); } needs[] = {
    { "bmi2", "the CPU lacks BMI2", has_bmi2 },
    { "fsgsbase", "FSGSBASE is not enabled", has_fsgsbase },
    { "lahf", "the CPU lacks LAHF in 64-bit mode", has_lahf },
    { "wx", "executable memory is refused", bt_cache_possible },
};

/* `word` is among those, separated by commas, of the environment's XENLIKE_HOST_LACKS: for tests of hosts that are poorer than this one. */
static bool is_masked(const char *word)
{
    const char *list = getenv("XENLIKE_HOST_LACKS");
    u64 n = strlen(word);
    for (const char *p = list; p && (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (p[n] == ',' || !p[n]))
            return true;
    return false;
}

const char *bt_unavailable(void)
{
    for (unsigned n = 0; n < ARRAY_SIZE(needs); n++)
        if (is_masked(needs[n].word) || !needs[n].have())
            return needs[n].why;
    return NULL;
}

static u64 random_page(void)
{
    u64 x, mix = 0;
    const u8 *at = (const u8 *)getauxval(AT_RANDOM);
    if (at)                             /* 16 bytes, not aligned */
        memcpy(&mix, at + 8, sizeof mix);
    x = (mix ^ __builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15ul) * 0xbf58476d1ce4e5b9ul;
    return (1ul << 63) | ((x ^ x >> 31) & ((1ul << 62) - 1) & ~(1ul << 47) & ~(u64)(PAGE_SIZE - 1));
}

static void *map_zeroed(u64 bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

bool bt_create(struct x86_cpu *c, unsigned options)
{
    if (bt_unavailable() || !c->icache)
        return false;
    u64 own = ALIGN_UP(sizeof(struct bt), PAGE_SIZE);
    struct bt *t = map_zeroed(own);
    if (!t)
        return false;
    c->bt = t;
    t->cpu = c;
    t->options = options;
    t->mapped = own;
    t->block = map_zeroed(NR_BLOCKS * sizeof *t->block);
    t->exits = map_zeroed(NR_EXITS * sizeof *t->exits);
    t->maps = map_zeroed(NR_MAPS * sizeof *t->maps);
    if (!t->block || !t->exits || !t->maps || !bt_cache_create(t)) {
        bt_destroy(c);
        return false;
    }
    t->poison = random_page();
    t->no_frame = t->poison;
    t->host_leave = bt_host_address(t, t->leave);
    t->x87_out = 1;
    t->mask_page = ~(u64)(PAGE_SIZE - 1);
    for (unsigned n = 0; n < ARRAY_SIZE(t->mask_size); n++)
        t->mask_size[n] = ~(u64)(PAGE_SIZE - 1) | ((1u << n) - 1);
    t->mask_aligned = ~(u64)(PAGE_SIZE - 1) | 15;
    t->mask_l1 = (u64)(L1 - 1) << PAGE_SHIFT;
    t->mask_jump = JUMP_MASK;
    t->mask_sign = 1ul << 63;
    t->mask_sign32 = 1ul << 31;
    bt_system_masks(t);
    t->dispatch = (u64)(uintptr_t)bt_dispatch;
    t->level_switch = (u64)(uintptr_t)bt_level_switch;
    t->tlb_used[0] = t->tlb_used[1] = true;
    t->nr_jump_filled = FILLED + 1;     /* bt_forget empties all */
    for (unsigned side = 0; side < 4; side++) {
        note_filled(t->l1_filled, &t->nr_l1_filled, side * L1);
        note_filled(t->l1_filled, &t->nr_l1_filled, side * L1 + L1 - 1);
    }
    bt_rules(t);
    bt_forget(t);
    t->stats.flushes = 0;
    return true;
}

void bt_destroy(struct x86_cpu *c)
{
    struct bt *t = c->bt;
    if (!t)
        return;
    c->bt = NULL;
    bt_cache_destroy(t);
    if (t->block)
        munmap(t->block, NR_BLOCKS * sizeof *t->block);
    if (t->exits)
        munmap(t->exits, NR_EXITS * sizeof *t->exits);
    if (t->maps)
        munmap(t->maps, NR_MAPS * sizeof *t->maps);
    munmap(t, t->mapped);
}

void bt_flush(struct x86_cpu *c)
{
    if (c->bt)
        bt_forget(c->bt);
}

void bt_kick(struct x86_cpu *c)
{
    struct bt *t = load_acquire(c->bt);
    s64 left = t ? read_once(t->left) : -1;
    if (left >= 0)
        (void)cmpxchg(&t->left, &left, left - KICK);
}

const struct bt_stats *bt_stats(const struct x86_cpu *c) { return c->bt ? &c->bt->stats : NULL; }

#else

const char *bt_unavailable(void) { return "the host is not x86-64"; }
bool bt_create(struct x86_cpu *c, unsigned options) { return false; }
void bt_destroy(struct x86_cpu *c) { }
void bt_flush(struct x86_cpu *c) { }
void bt_kick(struct x86_cpu *c) { }
const struct bt_stats *bt_stats(const struct x86_cpu *c) { return NULL; }

#endif
