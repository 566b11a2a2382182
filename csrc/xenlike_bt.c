/* The translator's tables for Python (xenlike_bt.h). Owns: nothing. Locks: none: the CPU does not run meanwhile. */
#include "xenlike_bt.h"

#include <string.h>

#include "bt/inspect.h"
#include "hv/vcpu.h"
#include "x86/bare.h"

#define SAME(name) STATIC_ASSERT((int)XL_BT_##name == (int)BT_##name)
SAME(ONE); SAME(NO_CHAIN); SAME(FLUSH); SAME(TINY_TLB); SAME(VERIFY); SAME(PROFILE); SAME(CLOCK);
SAME(COPIED); SAME(REWRITTEN); SAME(INLINE); SAME(CALLED_OUT); SAME(ENDING); SAME(NAME);
#undef SAME
#define SAME(name) STATIC_ASSERT((int)XL_BT_EXIT_##name == (int)EXIT_##name)
SAME(CHAIN); SAME(LINK); SAME(NEXT); SAME(MISS); SAME(STEP); SAME(BRANCH); SAME(TIME);
#undef SAME

enum { NOT_THERE = -2, INVALID = -22 };

struct bt *xl_bt_of_bare(struct x86_bare *b) { return b->cpu.bt; }
struct bt *xl_bt_of_vcpu(struct vcpu *v) { return v->cpu ? v->cpu->bt : NULL; }

#if defined(__x86_64__)

void xl_bt_stats(const struct bt *t, struct xl_bt_stats *out)
{
    const struct bt_stats *s = &t->stats;
    *out = (struct xl_bt_stats){
        s->blocks, s->translated, s->interpreted, s->exits, s->flushes, s->invalidated, s->host_bytes, s->guest_bytes, s->rejected, s->translate_ns,
        .rx = (u64)t->rx, .used = t->used, .nr_blocks = t->nr_blocks, .nr_links = t->nr_links, .links_filled = t->nr_active, .options = t->options,
    };
}

static bool is_block(const struct bt *t, u32 n) { return n && n < t->nr_blocks; }

int xl_bt_block(const struct bt *t, u32 n, struct xl_bt_block *out)
{
    if (!is_block(t, n))
        return NOT_THERE;
    const struct bt_block *b = &t->block[n];
    *out = (struct xl_bt_block){
        .va = b->va, .hits = b->hits, .code = b->code, .code_len = b->code_len, .bytes = b->bytes, .nr = b->nr, .context = b->context,
        .invalid = b->invalid, .first_exit = b->entry_exit,
    };
    for (u32 x = b->entry_exit; b->nr && x && x < t->nr_exits && t->exits[x].block == n; x++)
        out->nr_exits++;
    return 0;
}

u32 xl_bt_maps(const struct bt *t, u32 n, struct xl_bt_map *out, u32 max)
{
    if (!is_block(t, n))
        return 0;
    const struct bt_map *m = &t->maps[t->block[n].first_map];
    u32 nr = t->block[n].nr;
    for (u32 k = 0; k < nr && k < max; k++)
        out[k] = (struct xl_bt_map){ m[k].code, m[k].off, m[k].len, m[k].treatment };
    return nr;
}

static bool is_entry(const struct bt *t, u32 at)
{
    for (u32 n = 1; n < t->nr_blocks; n++)
        if (t->block[n].code == at && t->block[n].nr)
            return true;
    return false;
}

int xl_bt_exit(const struct bt *t, u32 n, struct xl_bt_exit *out)
{
    if (!n || n >= t->nr_exits)
        return NOT_THERE;
    const struct bt_exit *x = &t->exits[n];
    *out = (struct xl_bt_exit){
        .target = x->target, .kind = x->kind, .block = x->block, .off = x->off, .k = x->k, .again = x->again, .behind = x->behind,
        .patch = x->patch, .size = x->size, .write = x->write, .align = x->align,
    };
    if (x->kind == EXIT_CHAIN) {
        s32 rel;
        memcpy(&rel, t->rw + x->patch, 4);
        out->leads_to = x->patch + 4 + (u32)rel;
    } else if (x->kind == EXIT_LINK) {
        out->leads_to = (u32)(t->link[x->patch] - (u64)t->rx);
    }
    out->linked = out->leads_to && is_entry(t, out->leads_to);
    return 0;
}

u32 xl_bt_code(const struct bt *t, u32 at, u8 *out, u32 n)
{
    if (at >= t->used)
        return 0;
    if (n > t->used - at)
        n = t->used - at;
    memcpy(out, t->rw + at, n);
    return n;
}

u32 xl_bt_guest_code(const struct bt *t, u32 b, u8 *out, u32 n)
{
    if (!is_block(t, b))
        return 0;
    if (n > t->block[b].bytes)
        n = t->block[b].bytes;
    memcpy(out, t->block[b].host, n);
    return n;
}

bool xl_bt_field_name(const struct bt *t, u64 offset, char out[XL_BT_NAME]) { return bt_field_name(t, offset, out); }
bool xl_bt_routine_name(const struct bt *t, u32 at, char out[XL_BT_NAME]) { return bt_routine_name(t, at, out); }

const char *xl_bt_verify(const struct bt *t, u32 n, u32 *at)
{
    *at = 0;
    if (!is_block(t, n)) {
        *at = (u32)NOT_THERE;
        return "there is no such block";
    }
    const struct bt_block *b = &t->block[n];
    return b->invalid ? "its guest code was written" : b->nr ? bt_verify_why(t, b, at) : NULL;
}

int xl_bt_plant_code(struct bt *t, u32 at, const u8 *bytes, u32 n)
{
    if (at >= t->used || n > t->used - at)
        return INVALID;
    memcpy(t->rw + at, bytes, n);
    return 0;
}

int xl_bt_plant_exit(struct bt *t, u32 n, const struct xl_bt_exit *x)
{
    if (!n || n >= t->nr_exits || x->kind > EXIT_TIME || x->block >= t->nr_blocks)
        return INVALID;
    t->exits[n] = (struct bt_exit){
        .kind = (u8)x->kind, .k = (s8)x->k, .size = (u8)x->size, .write = (u8)x->write, .align = (u8)x->align, .block = x->block, .off = x->off,
        .target = x->target, .again = x->again, .behind = x->behind, .patch = x->patch,
    };
    return 0;
}

#else           /* no translator is ever created */

void xl_bt_stats(const struct bt *t, struct xl_bt_stats *out) { memset(out, 0, sizeof *out); }
int xl_bt_block(const struct bt *t, u32 n, struct xl_bt_block *out) { return NOT_THERE; }
u32 xl_bt_maps(const struct bt *t, u32 n, struct xl_bt_map *out, u32 max) { return 0; }
int xl_bt_exit(const struct bt *t, u32 n, struct xl_bt_exit *out) { return NOT_THERE; }
u32 xl_bt_code(const struct bt *t, u32 at, u8 *out, u32 n) { return 0; }
u32 xl_bt_guest_code(const struct bt *t, u32 b, u8 *out, u32 n) { return 0; }
bool xl_bt_field_name(const struct bt *t, u64 offset, char out[XL_BT_NAME]) { return false; }
bool xl_bt_routine_name(const struct bt *t, u32 at, char out[XL_BT_NAME]) { return false; }
const char *xl_bt_verify(const struct bt *t, u32 n, u32 *at) { *at = (u32)NOT_THERE; return "there is no such block"; }
int xl_bt_plant_code(struct bt *t, u32 at, const u8 *bytes, u32 n) { return INVALID; }
int xl_bt_plant_exit(struct bt *t, u32 n, const struct xl_bt_exit *x) { return INVALID; }

#endif
