/* The translator's tables for Python (xenlike_bt.h). Owns: nothing. Locks: none: the CPU does not run meanwhile. */
#include "xenlike_bt.h"

#include <stdio.h>
#include <string.h>

#include "bt/inspect.h"
#include "hv/vcpu.h"
#include "x86/bare.h"

#define SAME(name) STATIC_ASSERT((int)XL_BT_##name == (int)BT_##name)
SAME(ONE); SAME(NO_CHAIN); SAME(FLUSH); SAME(TINY_TLB); SAME(VERIFY); SAME(PROFILE); SAME(CLOCK);
SAME(COPIED); SAME(REWRITTEN); SAME(INLINE); SAME(CALLED_OUT); SAME(ENDING); SAME(NAME); SAME(MAX_BLOCK);
#undef SAME
#define SAME(name) STATIC_ASSERT((int)XL_BT_EXIT_##name == (int)EXIT_##name)
SAME(CHAIN); SAME(LINK); SAME(NEXT); SAME(MISS); SAME(STEP); SAME(BRANCH); SAME(TIME); SAME(MISFIT);
#undef SAME

enum { NOT_THERE = -2, INVALID = -22 };

struct bt *xl_bt_of_bare(struct x86_bare *b) { return b->cpu.bt; }
struct bt *xl_bt_of_vcpu(struct vcpu *v) { return v->cpu ? v->cpu->bt : NULL; }

u64 xl_bt_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size, u64 *compared)
{
    return bt_fuzz(seed, machines, ram, report, size, compared);
}

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
        .va = b->va, .hits = b->hits, .code = b->code, .code_len = b->code_len, .low = b->low, .bytes = b->bytes, .nr = b->nr, .context = b->context,
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

/* A way out of block b that leads to cache offset `at` leads to a block: to another, or to itself, but not to one of its own stubs. */
static bool is_linked(const struct bt *t, const struct bt_block *b, u32 at)
{
    return b->nr && (at - b->code >= b->code_len || at <= t->maps[b->first_map + b->nr - 1].code);
}

int xl_bt_exit(const struct bt *t, u32 n, struct xl_bt_exit *out)
{
    if (!n || n >= t->nr_exits)
        return NOT_THERE;
    const struct bt_exit *x = &t->exits[n];
    *out = (struct xl_bt_exit){
        .target = x->target, .kind = x->kind, .block = x->block, .off = x->off, .k = x->k, .again = x->again, .behind = x->behind,
        .patch = x->patch, .size = x->size, .write = x->write, .align = x->align, .early = x->early, .opens = x->opens, .slid = x->slid,
        .drops = x->drops, .shadow = x->shadow,
    };
    if (x->kind == EXIT_CHAIN) {
        s32 rel;
        memcpy(&rel, t->rw + x->patch, 4);
        out->leads_to = x->patch + 4 + (u32)rel;
    } else if (x->kind == EXIT_LINK) {
        out->leads_to = (u32)(t->link[x->patch] - (u64)t->rx);
    }
    out->linked = out->leads_to && is_linked(t, &t->block[x->block], out->leads_to);
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
    memcpy(out, t->block[b].host + t->block[b].low, n);
    return n;
}

bool xl_bt_field_name(const struct bt *t, u64 offset, char out[XL_BT_NAME]) { return bt_field_name(t, offset, out); }
bool xl_bt_routine_name(const struct bt *t, u32 at, char out[XL_BT_NAME]) { return bt_routine_name(t, at, out); }

bool xl_bt_cpu_name(u64 offset, char out[XL_BT_NAME])
{
#define F(name) { offsetof(struct x86_cpu, name), sizeof_field(struct x86_cpu, name), #name }
    static const struct { u32 at, bytes; const char *name; } FIELDS[] = {
        F(rflags), F(next_rip), F(tlb_set), F(mode), F(cpl), F(slow), F(strict), F(attention), F(retired), F(limit), F(cr0), F(cr2), F(cr3), F(cr4), F(cr8), F(efer),
        F(ldtr.sel), F(tr.sel), F(kernel_gs_base), F(bt), F(fx.mxcsr),
    };
#undef F
    static const char *const SEG[X86_NR_SEGS] = { [X86_ES] = "es", [X86_CS] = "cs", [X86_SS] = "ss", [X86_DS] = "ds", [X86_FS] = "fs", [X86_GS] = "gs" };
    u64 r = offset - offsetof(struct x86_cpu, r), lin = offset - offsetof(struct x86_cpu, lin_base), seg = offset - offsetof(struct x86_cpu, seg);
    for (unsigned n = 0; n < ARRAY_SIZE(FIELDS); n++)
        if (offset - FIELDS[n].at < FIELDS[n].bytes)
            return snprintf(out, XL_BT_NAME, "%s", FIELDS[n].name);
    if (r < sizeof_field(struct x86_cpu, r))
        return snprintf(out, XL_BT_NAME, "r[%u]", (unsigned)(r / 8));
    if (lin < sizeof_field(struct x86_cpu, lin_base))
        return snprintf(out, XL_BT_NAME, "%s_linear_base", SEG[lin / 8]);
    if (seg < sizeof_field(struct x86_cpu, seg)) {
        u64 in = seg % sizeof(struct x86_seg);
        const char *part = in < offsetof(struct x86_seg, attr) ? "" : in < offsetof(struct x86_seg, limit) ? ".attr" : in < offsetof(struct x86_seg, base) ? ".limit" : ".base";
        return snprintf(out, XL_BT_NAME, "%s%s", SEG[seg / sizeof(struct x86_seg)], part);
    }
    return false;
}

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
    if (!n || n >= t->nr_exits || x->kind > EXIT_MISFIT || x->block >= t->nr_blocks)
        return INVALID;
    t->exits[n] = (struct bt_exit){
        .kind = (u8)x->kind, .k = (s16)x->k, .size = (u8)x->size, .write = (u8)x->write, .align = (u8)x->align, .block = x->block, .off = x->off,
        .target = x->target, .again = x->again, .behind = x->behind, .patch = x->patch,
        .early = x->early, .opens = x->opens, .slid = x->slid, .drops = x->drops, .shadow = x->shadow,
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
bool xl_bt_cpu_name(u64 offset, char out[XL_BT_NAME]) { return false; }
const char *xl_bt_verify(const struct bt *t, u32 n, u32 *at) { *at = (u32)NOT_THERE; return "there is no such block"; }
int xl_bt_plant_code(struct bt *t, u32 at, const u8 *bytes, u32 n) { return INVALID; }
int xl_bt_plant_exit(struct bt *t, u32 n, const struct xl_bt_exit *x) { return INVALID; }

#endif
