/* The loop around translated code.
 *
 * Owns: what happens when a block is left. Called by: pv/run.c, bare.c. No locks.
 *
 * bt_run is x86_run's loop, taken from its parts, with a block executed wherever one can be: 64-bit code, nothing in c->slow, no strict accesses, time for
 * all of it. Everything that can raise runs here, on complete state, never inside a block.
 */
#include <setjmp.h>
#include <string.h>

#include "base/clock.h"
#include "bt/internal.h"
#include "machine/frame.h"

#if defined(__x86_64__)

static u64 gs_read(void) { u64 x; __asm__ volatile("rdgsbase %0" : "=r"(x)); return x; }
static void gs_write(u64 x) { __asm__ volatile("wrgsbase %0" : : "r"(x) : "memory"); }

static u8 context_of(const struct x86_cpu *c)
{
    bool sse = !(c->cr0 & (X86_CR0_EM | X86_CR0_TS)) && c->cr4 & X86_CR4_OSFXSR;
    bool masked = (c->fx.mxcsr & 0x1f80) == 0x1f80;
    return (u8)((c->tlb_set ? CTX_SET : 0) | (c->cpl ? CTX_CPL : 0) | (sse ? CTX_SSE : 0) | (sse && masked ? CTX_FP : 0));
}

/* Where the bytes at rip are: by what the interpreter knows, by the TLB, by a walk. NULL: the interpreter finds out why not. */
static const u8 *code_at(struct x86_cpu *c, u64 rip)
{
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, rip);
    if (likely(e->exec_tag == tlb_tag(c->tlb, rip)))
        return e->page + rip % PAGE_SIZE;
    u64 context, off = rip - c->code.start;
    memcpy(&context, &c->tlb_set, sizeof context);
    if (off < c->code.len && c->code.tag == c->tlb->generation && c->code.context == context)
        return c->code.host + off;
    struct x86_fault f;
    bool canonical = (u64)((s64)(rip << 16) >> 16) == rip;
    const u8 *page = canonical ? c->ops->page(c, rip, MMU_EXEC, &f) : NULL;
    return page ? page + rip % PAGE_SIZE : NULL;
}

/* Everything that may have changed outside of translated code, brought up to date. */
static void settle(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    if (unlikely(c->features != t->features))
        bt_forget(t);
    bt_look_for_writes(t);
    if (c->tlb->generation != t->tlb_generation || c->tlb->page_flushes != t->page_flushes)
        bt_forget_addresses(t);
    t->seg_base[0] = c->lin_base[X86_FS];
    t->seg_base[1] = c->lin_base[X86_GS];
}

/* Runs translated code at cache offset `code`, k instructions into a block. Returns how it was left, with c complete. */
static __attribute__((noinline)) const struct bt_exit *execute(struct bt *t, u32 code, s64 k)
{
    struct x86_cpu *c = t->cpu;
    u64 retired = c->retired, time = c->limit - retired;
    s64 before = (s64)(time < SLICE ? time : SLICE) - LEFT_BIAS;
    t->left = before + k;
    typedef void enter_fn(struct x86_cpu *c, u64 entry);
    enter_fn *enter = (enter_fn *)(uintptr_t)bt_host_address(t, t->enter);
    enter(c, bt_host_address(t, code));

    const struct bt_exit *x = &t->exits[t->exit];
    c->rflags = (c->rflags & ~(u64)X86_ARITH_FLAGS) | (t->flags >> 8 & 0xd5) | (t->flags & 1) << 11;
    c->retired = retired + (u64)(before - (t->left - x->k));
    c->r[X86_RIP] = x->kind <= EXIT_NEXT ? x->target : t->block[x->block].va + x->off;
    t->stats.exits++;
    return x;
}

/* The block at rip, translated if need be. 0: the interpreter's turn. */
static u32 block_at_rip(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    u64 rip = c->r[X86_RIP];
    const u8 *host = code_at(c, rip);
    if (unlikely(!host))
        return 0;
    u8 context = context_of(c);
    u32 b = bt_block_find(t, host, rip, context);
    if (unlikely(!b)) {
        u64 start = t->options & BT_CLOCK ? clock_monotonic_ns() : 0;
        b = bt_translate(t, host, rip, context);
        if (start)
            t->stats.translate_ns += clock_monotonic_ns() - start;
        settle(t);                      /* the page may be code only now, and the TLB flushed for it */
        if (!b || code_at(c, rip) != host)
            return 0;
    }
    if (!t->block[b].nr || t->block[b].nr > c->limit - c->retired)
        return 0;
    unsigned set = context & CTX_SET;
    if (t->jump_context[set] != context) {
        t->jump_context[set] = context;
        bt_forget_addresses(t);
    }
    if (!(t->options & BT_NO_CHAIN))
        bt_jump_fill(t, set, rip, t->block[b].code);
    return b;
}

static bool must_look(const struct x86_cpu *c)
{
    return c->slow || (c->attention && read_once(*c->attention)) || c->retired >= c->limit;
}

/* The access that x stands for: true if L1 has it now. */
static bool fill(struct bt *t, const struct bt_exit *x)
{
    struct x86_cpu *c = t->cpu;
    u64 lin = t->lin;
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, lin);
    if (lin % PAGE_SIZE + x->size > PAGE_SIZE || (x->align && lin % 16) || (x->write ? e->write_tag : e->read_tag) != tlb_tag(c->tlb, lin))
        return false;
    bt_tlb_fill(t, c->tlb_set, x->write, lin, e->page);
    return true;
}

/* The interpreter's instruction in the middle of block x->block. True: the block goes on behind it. */
static bool step_in_block(struct bt *t, const struct bt_exit *x)
{
    struct x86_cpu *c = t->cpu;
    u64 rip = c->r[X86_RIP], retired = c->retired;
    u8 context = context_of(c), len;
    u32 generation = t->stats.flushes ? (u32)t->stats.flushes : 0;
    x86_run_one(c);
    t->stats.interpreted++;
    len = c->insn ? c->insn->len : 0;
    if (!x->behind || must_look(c) || c->mode != 64 || c->strict || c->r[X86_RIP] != rip + len || c->retired != retired + 1)
        return false;
    settle(t);
    const struct bt_block *b = &t->block[x->block];
    return generation == (u32)t->stats.flushes && !b->invalid && context_of(c) == context && c->limit - c->retired >= b->nr &&
           code_at(c, rip) == b->host + x->off;
}

/* Translated code from rip on until something needs the loop. False: there is none; the interpreter's turn. */
static bool run_blocks(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    settle(t);
    u32 b = block_at_rip(t);
    if (!b)
        return false;
    u32 code = t->block[b].code;
    u64 lin;
    s64 k = 0;
    for (;;) {
        const struct bt_exit *x = execute(t, code, k);
        switch (x->kind) {
        case EXIT_MISS:
            if (fill(t, x)) {
                code = x->again, k = x->k;
                continue;
            }
            /* fall through */
        case EXIT_STEP:
            k = x->k + 1;
            lin = t->lin;
            if (!step_in_block(t, x))
                return true;
            if (x->kind == EXIT_MISS) { /* the TLB has it now, but another address may soon have its place */
                t->lin = lin;
                (void)fill(t, x);
            }
            code = x->behind;
            continue;
        case EXIT_BRANCH: case EXIT_TIME:
            if (must_look(c))
                return true;
            x86_run_one(c);
            t->stats.interpreted++;
            return true;
        case EXIT_CHAIN: case EXIT_LINK: {
            u64 flushes = t->stats.flushes;
            if (must_look(c) || !(b = block_at_rip(t)))
                return true;
            if (t->stats.flushes == flushes && c->tlb->generation == t->tlb_generation && !t->block[x->block].invalid) {
                if (x->kind == EXIT_CHAIN)
                    bt_cache_patch(t, x->patch, t->block[b].code);
                else
                    bt_link_fill(t, x->patch, t->block[b].code);
            }
            code = t->block[b].code, k = 0;
            continue;
        }
        default:
            return true;
        }
    }
}

static __attribute__((noinline)) enum x86_exit loop(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    enum x86_exit exit;
    for (;;) {
        if (unlikely(must_look(c))) {
            if (x86_run_between(c, &exit))
                return exit;
            continue;
        }
        if (c->mode == 64 && !c->strict && run_blocks(t))
            continue;
        if (must_look(c))
            continue;
        x86_run_one(c);
        t->stats.interpreted++;
    }
}

enum x86_exit bt_run(struct x86_cpu *c, u64 budget)
{
    struct bt *t = c->bt;
    jmp_buf here;
    if (!t || !c->icache)
        return x86_run(c, budget);
    u64 gs = gs_read();
    gs_write((u64)t);
    x86_run_begin(c, budget);
    c->unwind = &here;
    if (setjmp(here))
        x86_run_raised(c);
    enum x86_exit exit = loop(t);
    c->unwind = NULL;
    gs_write(gs);
    return exit;
}

#else

enum x86_exit bt_run(struct x86_cpu *c, u64 budget) { return x86_run(c, budget); }

#endif
