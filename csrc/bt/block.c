/* Tables of blocks and of code pages; how they are forgotten.
 *
 * Owns: bt->block, hash, pages, exits' decoded instructions. Called by: run.c, translate.c. No locks.
 *
 * A block is found by the host address of its bytes, its linear address and its context. A jump within a page is patched to the target's
 * code: both belong to the same page, and the way in led through a lookup of that page since the last TLB flush. Jumps to other pages go
 * through a link (an address in struct bt) or the jump cache, which are emptied at a TLB flush. An invalid block's entry is overwritten by
 * a jump to the loop, so nothing that leads to it need be found.
 */
#include "bt/emit.h"
#include "x86/decode.h"

#if defined(__x86_64__)

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
            if (t->exits[n + k].kind == EXIT_CHAIN && t->exits[n + k].target == block->va &&
                bt_cache_target(t, t->exits[n + k].patch) == block->code)
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
    /* Claimed before the bytes are read: who writes from here on is noticed. The page's generation is that of the claim, not a later one:
     * if the claim is gone by the time that the block is there, the next look finds it. */
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
    u32 epoch = codemap_epoch(t->cpu->codemap);
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
    t->uses_fp = 0;
    t->features = t->cpu->features;
    t->epoch = ~0u;
    t->stats.flushes++;
}

const struct x86_insn *bt_exit_insn(struct bt *t, u32 n)
{
    struct bt_exit *x = &t->exits[n];
    const struct bt_block *b = &t->block[x->block];
    u32 k = x->insn;
    if (likely(t->insn_exit[k] == n))
        return &t->insns[k];
    k = t->nr_insns++ % NR_INSNS;
    t->insn_exit[k] = 0;
    int left = b->low + b->bytes - x->off;
    if (left <= 0 || x86_decode(&t->insns[k], b->host + x->off, left < 15 ? (unsigned)left : 15, context_mode(b->context), t->features) <= 0)
        return NULL;
    x86_restrict(&t->insns[k], false, b->context & CTX_CPL ? 3 : 0);
    t->insn_exit[k] = n, x->insn = k;
    return &t->insns[k];
}

#endif
