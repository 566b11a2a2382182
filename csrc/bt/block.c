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

/* ---- addresses --------------------------------------------------------------------------------------------------- */

static void empty_side(struct bt *t, unsigned set, bool write)
{
    u64 negated = -t->poison, addend = (u64)t->nowhere - t->poison;
    for (unsigned n = 0; n < L0; n++)
        t->l0[set][write][n] = (struct bt_entry){ negated, addend };
    for (unsigned n = 0; n < L1; n++) {
        t->l1_negated[set][write][n] = negated;
        t->l1_addend[set][write][n] = addend;
        t->l1_host[set][write][n] = (u64)t->nowhere;
    }
}

static void empty_entries(struct bt *t, unsigned set)
{
    empty_side(t, set, false);
    empty_side(t, set, true);
    t->tlb_used[set] = false;
}

static void empty_jumps(struct bt *t, unsigned set)
{
    for (unsigned n = 0; n < JUMPS; n++)
        t->jump_negated[set][n] = -t->poison;
    t->jumps_used[set] = false;
}

static void empty_link(struct bt *t, u32 n) { t->link[n] = bt_host_address(t, t->link_exit[n]); }

void bt_forget_addresses(struct bt *t)
{
    for (unsigned set = 0; set < 2; set++) {
        if (t->tlb_used[set])
            empty_entries(t, set);
        if (t->jumps_used[set])
            empty_jumps(t, set);
    }
    while (t->nr_active)
        empty_link(t, t->active[--t->nr_active]);
    t->tlb_generation = t->cpu->tlb->generation;
    t->page_flushes = t->cpu->tlb->page_flushes;
}

void bt_tlb_fill(struct bt *t, unsigned set, bool write, u64 lin, u8 *page)
{
    u64 va = lin & ~(u64)(PAGE_SIZE - 1);
    unsigned n = (lin >> PAGE_SHIFT) % L1;
    if (t->options & BT_TINY_TLB)
        empty_side(t, set, write);      /* the other stays: an instruction may need both */
    t->l1_negated[set][write][n] = -va;
    t->l1_addend[set][write][n] = (u64)page - va;
    t->l1_host[set][write][n] = (u64)page;
    t->tlb_used[set] = true;
}

void bt_jump_fill(struct bt *t, unsigned set, u64 va, u32 code)
{
    u64 n = 0, mask = JUMP_MASK;
    for (unsigned k = 0; mask; mask &= mask - 1, k++)           /* pext */
        n |= (va >> __builtin_ctzl(mask) & 1) << k;
    t->jump_negated[set][n] = -va;
    t->jump_host[set][n] = bt_host_address(t, code);
    t->jumps_used[set] = true;
}

void bt_link_fill(struct bt *t, u32 link, u32 code)
{
    if (t->link[link] == bt_host_address(t, t->link_exit[link]))
        t->active[t->nr_active++] = (u16)link;
    t->link[link] = bt_host_address(t, code);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static u32 hash_of(const u8 *host) { return (u32)(((u64)host ^ (u64)host >> 13) % HASH); }

u32 bt_block_find(struct bt *t, const u8 *host, u64 va, u8 context)
{
    for (u32 b = t->hash[hash_of(host)]; b; b = t->block[b].next)
        if (t->block[b].host == host && t->block[b].va == va && t->block[b].context == context)
            return b;
    return 0;
}

static void invalidate(struct bt *t, u32 b)
{
    struct bt_block *block = &t->block[b];
    u32 *at = &t->hash[hash_of(block->host)];
    while (*at != b)
        at = &t->block[*at].next;
    *at = block->next;
    block->invalid = true;
    t->stats.invalidated++;
    if (!block->nr)
        return;
    struct emit e = { t, t->rw + block->code, block->code };
    e_store_imm32(&e, GS(exit), block->entry_exit);
    e_jmp(&e, t->leave);
}

/* Drops a page's blocks if its code was written. */
static void page_look(struct bt *t, struct bt_page *p)
{
    u32 generation = load_acquire(p->map->generation[p->page]);
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
    u32 generation = load_acquire(map->generation[page]);
    if (!k) {
        if (t->nr_pages == CODE_PAGES)
            return NULL;
        k = t->nr_pages++;
        t->pages[k] = (struct bt_page){ host, map, page, generation, 0, t->page_hash[page_hash_of(host)] };
        t->page_hash[page_hash_of(host)] = k;
    } else {
        page_look(t, &t->pages[k]);
    }
    /* Claimed before the bytes are read: who writes from here on is noticed. */
    u64 before = atomic_or(&map->lines[page], codemap_lines(in_page, n));
    if (!before)
        c->ops->code_page(c, host);
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
        page_look(t, &t->pages[k]);
}

void bt_forget(struct bt *t)
{
    bt_forget_addresses(t);
    memset(t->hash, 0, sizeof t->hash);
    memset(t->page_hash, 0, sizeof t->page_hash);
    t->nr_blocks = t->nr_exits = t->nr_pages = t->nr_maps = 1;          /* 0: none */
    t->nr_links = 0;
    t->used = t->start;
    t->features = t->cpu->features;
    t->epoch = ~0u;
    t->stats.flushes++;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

const char *bt_unavailable(void)
{
    u32 a, b, c, d;
    enum { HWCAP2_FSGSBASE_ = 2, EBX_BMI2 = 1 << 8, ECX_LAHF = 1 };
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & EBX_BMI2))
        return "the CPU lacks BMI2";
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_))
        return "FSGSBASE is not enabled";
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & ECX_LAHF))
        return "the CPU lacks LAHF in 64-bit mode";
    return bt_cache_possible() ? NULL : "executable memory is refused";
}

static u64 random_page(void)
{
    u64 x, *at = (u64 *)getauxval(AT_RANDOM), mix = at ? at[1] : 0;
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
    t->mask_page = ~(u64)(PAGE_SIZE - 1);
    for (unsigned n = 0; n < ARRAY_SIZE(t->mask_size); n++)
        t->mask_size[n] = ~(u64)(PAGE_SIZE - 1) | ((1u << n) - 1);
    t->mask_aligned = ~(u64)(PAGE_SIZE - 1) | 15;
    t->mask_l1 = (u64)(L1 - 1) << PAGE_SHIFT;
    t->mask_jump = JUMP_MASK;
    t->mask_sign = 1ul << 63;
    t->mask_sign32 = 1ul << 31;
    for (unsigned set = 0; set < 2; set++) {
        empty_entries(t, set);
        empty_jumps(t, set);
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

const struct bt_stats *bt_stats(const struct x86_cpu *c) { return c->bt ? &c->bt->stats : NULL; }

#else

const char *bt_unavailable(void) { return "the host is not x86-64"; }
bool bt_create(struct x86_cpu *c, unsigned options) { return false; }
void bt_destroy(struct x86_cpu *c) { }
void bt_flush(struct x86_cpu *c) { }
const struct bt_stats *bt_stats(const struct x86_cpu *c) { return NULL; }

#endif
