/* The loop around translated code.
 *
 * Owns: what happens when a block is left. Called by: hv/native.c, bare.c; bt_dispatch by translated code. No locks.
 *
 * bt_run is x86_run's loop, taken from its parts, with a block executed wherever one can be: 64-bit code, or 32-bit code with flat
 * segments, nothing in c->slow, no strict accesses, time for all of it. Everything that can raise runs here, on complete state, never
 * inside a block.
 *
 * A block that needs something calls bt_dispatch (by the routine `leave`, cache.c), which does it and says where to go on, mostly in the
 * same block: an instruction for the interpreter costs a call with all registers stored and loaded, no fetch and no lookup. What it raises
 * goes past the routine and its caller by longjmp: nothing is on the host's stack that somebody needs.
 */
#include <setjmp.h>
#include <string.h>

#include "base/clock.h"
#include "bt/context.h"
#include "machine/frame.h"
#include "x86/decode.h"
#include "x86/system.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_jcc;

static u64 gs_read(void) { u64 x; __asm__ volatile("rdgsbase %0" : "=r"(x)); return x; }
static void gs_write(u64 x) { __asm__ volatile("wrgsbase %0" : : "r"(x) : "memory"); }

/* Where the bytes at rip are: by what the interpreter knows, by the TLB, by a walk; if that faults, so does the guest: it has been counted.
 * NULL: not canonical, the interpreter's business. */
static const u8 *code_at(struct x86_cpu *c, u64 rip, bool raise)
{
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, rip);
    if (likely(e->exec_tag == tlb_tag(c->tlb, rip)))
        return e->page + rip % PAGE_SIZE;
    u64 context, off = rip - c->code.start;
    memcpy(&context, &c->tlb_set, sizeof context);
    if (off < c->code.len && c->code.tag == c->tlb->generation && c->code.context == context)
        return c->code.host + off;
    struct x86_fault f;
    const u8 *page = va_canonical(rip) ? c->ops->page(c, rip, MMU_EXEC, &f) : NULL;
    if (unlikely(!page) && raise && va_canonical(rip))
        x86_raise_page_fault(c, &f);    /* here, as the walk has counted it */
    return page ? page + rip % PAGE_SIZE : NULL;
}

/* Everything that may have changed outside of translated code, brought up to date. Stands between every entry into guest mode
 * (hv/native.h), by whatever way, and translated code: others wait for guest mode to be left, not for this (machine/mmu.h, "Shootdown";
 * machine/codemap.h). */
static inline void settle(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    const struct tlb *tlb = c->tlb;
    codemap_wait_for_writers(c->codemap);
    if (unlikely(codemap_epoch(c->codemap) != t->epoch))
        bt_look_for_writes(t);
    if (unlikely(tlb->flushes != t->tlb_flushes || tlb->page_flushes != t->page_flushes))
        bt_forget_flushed(t);
    bt_load_bases(t);
}

/* An interrupt that waits is nothing to look at while IF is clear: what sets it looks. */
static inline __attribute__((always_inline)) bool must_look(const struct x86_cpu *c)
{
    return c->slow & (c->rflags & X86_IF ? ~0u : ~(u32)X86_SLOW_INTERRUPT) || (c->attention && read_once(*c->attention)) ||
           c->retired >= c->limit;
}

/* The loop is to look, before the instruction of exit x, which has not happened. */
static bool must_look_before(const struct bt *t, const struct bt_exit *x)
{
    struct x86_cpu *c = t->cpu;
    if (likely(!must_look(c)))
        return false;
    if (x->shadow && !(t->sti_flags & X86_IF))
        c->slow |= X86_SLOW_SHADOW;
    return true;
}

/* Where translated code goes on: at a host address, k instructions into a block. */
static inline u64 go(struct bt *t, u64 host, s64 k)
{
    struct x86_cpu *c = t->cpu;
    u64 time = c->limit - c->retired;
    t->x87_ip = c->fx.fip, t->x87_dp = c->fx.fdp, t->x87_op = c->fx.fop;
    t->left = (s64)(time < SLICE ? time : SLICE) - LEFT_BIAS + k;
    t->time = c->retired + (u64)t->left - (u64)k;
    return host;
}

/* The same at a block's beginning. The routine that enters has xmm registers as cpu->fx has them. */
static inline u64 begin(struct bt *t, u64 host)
{
    t->vectors = 0;
    t->frames = t->bottom;
    return go(t, host, 0);
}

/* Within the block that was left. Nothing was forgotten meanwhile, so that calls still find where to return to; but a guest that only goes
 * deeper must not use up the host's stack. */
static inline void keep_frames(struct bt *t)
{
    if (unlikely(t->bottom - t->frames > FRAMES))
        t->frames = t->bottom;
}

/* The block at rip, translated if need be. 0: the interpreter's turn. */
static u32 block_at_rip(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    u64 rip = c->r[X86_RIP];
    const u8 *host = c->mode == 64 || rip == (u32)rip ? code_at(c, rip, true) : NULL;
    if (unlikely(!host))
        return 0;
    bt_look_for_writes(t);              /* a walk may grant a right to write: as in miss() */
    u16 context = context_of(t);
    u32 b = bt_block_find(t, host, rip, context);
    if (unlikely(!b)) {
        u64 start = t->options & BT_CLOCK ? clock_monotonic_ns() : 0;
        b = bt_translate(t, host, rip, context, NULL, SPANS);
        if (start)
            t->stats.translate_ns += clock_monotonic_ns() - start;
        settle(t);                      /* the page may be code only now, and the TLB flushed for it */
        if (!b || code_at(c, rip, false) != host)
            return 0;
    }
    if (!t->block[b].nr || t->block[b].nr > c->limit - c->retired)
        return 0;
    unsigned set = context & CTX_SET;
    if (t->jump_context[set] != context) {
        t->jump_context[set] = context;
        bt_forget_jumps(t);
    }
    bt_note_code(t, rip);
    if (!(t->options & BT_NO_CHAIN))
        bt_jump_fill(t, set, rip, t->block[b].code);
    return b;
}

/* Where translated code goes on at rip: by the jump cache, else by the tables. 0: nowhere. All is settled, nothing must be looked at. */
static u64 next_block(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    if (!can_translate(c))
        return 0;
    u16 context = context_of(t);
    unsigned set = context & CTX_SET;
    if (!(context & CTX_X87))
        t->x87_out = 1;
    if (t->jump_context[set] == context && c->limit - c->retired >= BT_MAX_BLOCK) {
        u64 host = bt_jump_find(t, set, c->r[X86_RIP]);
        if (host)
            return begin(t, host);
    }
    u32 b = block_at_rip(t);
    return b ? begin(t, bt_host_address(t, t->block[b].code)) : 0;
}

/* The access that x stands for, if the TLB has it: true if L1 has it now too. */
static bool fill_from_tlb(struct bt *t, const struct bt_exit *x)
{
    struct x86_cpu *c = t->cpu;
    u64 lin = t->lin;
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, lin);
    if (lin % PAGE_SIZE + x->size > PAGE_SIZE || (x->align && lin % 16) || (x->write ? e->write_tag : e->read_tag) != tlb_tag(c->tlb, lin))
        return false;
    bt_tlb_fill(t, c->tlb_set, x->write, lin, e->page);
    return true;
}

/* A page that the TLB lacks is looked up as the interpreter would, once: it faults here. False: a device's page, or a store that the hook
 * may do, or more than one page: the interpreter's. */
static bool look_up_page(struct bt *t, const struct bt_exit *x)
{
    struct x86_cpu *c = t->cpu;
    struct x86_fault f = { .mmio = false };
    u64 lin = t->lin;
    if (lin % PAGE_SIZE + x->size > PAGE_SIZE || (x->align && lin % 16) || !va_canonical(lin) || (x->write && c->ops->store))
        return false;
    if (c->ops->page(c, lin, x->write ? MMU_WRITE : MMU_READ, &f))
        return true;
    if (!f.mmio)
        x86_raise_page_fault(c, &f);            /* here, as the walk has counted it */
    return false;
}

/* What it stores must not be where it stands itself: so the interpreter has to have fetched there (exec_string.c, string_stores). */
static inline bool is_repeated(const struct x86_insn *i) { return i->prefixes & (X86_REP | X86_REPNE); }

/* As x86_run_one, without fetching. */
static void execute(struct x86_cpu *c, const struct x86_insn *i)
{
    c->insn = i;
    c->next_rip = c->r[X86_RIP] + i->len;
    i->exec(c, i);
    c->r[X86_RIP] = c->next_rip;
    c->retired++;
    if (unlikely(c->slow & X86_SLOW_WROTE))
        x86_wrote_code(c);
}

/* The interpreter's turn: one instruction, or all rounds of a repeated one (exec_string.c) that go without a look at anything. */
static void interpret(struct bt *t)
{
    struct x86_cpu *c = t->cpu;
    u64 rip = c->r[X86_RIP];
    do {
        x86_run_one(c);
        t->stats.interpreted++;
    } while (c->r[X86_RIP] == rip && !must_look(c));
}

/* The instruction of exit n is the interpreter's, and its rounds if it is repeated. Then on: behind it in its block if nothing speaks
 * against it, or in the block that it leads to. */
static u64 step(struct bt *t, u32 n)
{
    struct x86_cpu *c = t->cpu;
    const struct bt_exit *x = &t->exits[n];
    const struct bt_block *b = &t->block[x->block];
    const struct x86_insn *i = bt_exit_insn(t, n);
    u64 rip = c->r[X86_RIP], flushes = t->stats.flushes, forgotten = t->forgotten, lin = t->lin;
    do {
        if (likely(i && (!is_repeated(i) || x86_has_code(c, rip))))
            execute(c, i);
        else
            x86_run_one(c);
        t->stats.interpreted++;
        if (must_look(c))
            return 0;
        settle(t);
    } while (unlikely(c->r[X86_RIP] == rip) && i && is_repeated(i) && flushes == t->stats.flushes && !b->invalid);
    if (unlikely(forgotten != t->forgotten)) {  /* x may be another's after a flush */
        if (flushes != t->stats.flushes || !x->drops || code_at(c, rip, false) != b->host + x->off)
            return next_block(t);
        t->frames = t->bottom;
    }
    if (!x->behind || !i || c->r[X86_RIP] != rip + i->len || b->invalid || !can_translate(c) || context_of(t) != b->context ||
        c->limit - c->retired < b->nr)
        return next_block(t);
    if (x->kind == EXIT_MISS) {         /* the TLB has it now, but another address may soon have its place */
        t->lin = lin;
        (void)fill_from_tlb(t, x);
        if (forgotten != t->forgotten)
            return next_block(t);
    }
    keep_frames(t);
    return go(t, bt_host_address(t, x->behind), x->k + 1);
}

/* The block at rip, now that all is brought up to date. */
static u64 settled_block(struct bt *t)
{
    settle(t);
    u32 b = can_translate(t->cpu) ? block_at_rip(t) : 0;
    return b ? begin(t, bt_host_address(t, t->block[b].code)) : 0;
}

/* Another one takes block b's place. */
static void replace(struct bt *t, u32 b, const struct loop_path *loop, enum bt_apart apart)
{
    const struct bt_block *old = &t->block[b];
    u64 flushes = t->stats.flushes;
    u32 new = bt_translate(t, old->host, old->va, old->context, loop, apart);
    if (t->stats.flushes == flushes && new && !old->invalid && t->block[new].nr)
        bt_block_replace(t, b, new);
}

/* One instruction, and all brought up to date. False: there is something to look at. */
static bool interpret_next(struct bt *t)
{
    x86_run_one(t->cpu);
    t->stats.interpreted++;
    if (must_look(t->cpu))
        return false;
    settle(t);
    return true;
}

/* The interpreter goes on for n instructions, or to where a block is known to begin. Then on there. */
static u64 interpret_some(struct bt *t, unsigned n)
{
    struct x86_cpu *c = t->cpu;
    do {
        if (!interpret_next(t))
            return 0;
    } while (--n && !bt_jump_find(t, c->tlb_set, c->r[X86_RIP]));
    return next_block(t);
}

/* An access does not fit into what its block takes for granted of pages. The interpreter goes on to where a block begins. If that comes
 * soon again, another block takes the place of this one, that takes less for granted. */
static u64 misfit(struct bt *t, u32 n)
{
    struct x86_cpu *c = t->cpu;
    u32 b = t->exits[n].block;
    struct bt_block *block = &t->block[b];
    if (must_look(c))
        return 0;
    settle(t);
    if (block->misfit && c->retired - block->misfit_at < RARE)
        replace(t, b, block->unrolled ? &block->path : NULL, block->apart == SPANS ? PLAIN_SPANS : APART);
    block->misfit = true, block->misfit_at = c->retired;
    return interpret_some(t, t->options & BT_NO_CHAIN ? BT_MAX_BLOCK / 4 /* where blocks begin is not known then */ : BT_MAX_BLOCK);
}

/* An access that L1 does not have. Looking a page up may grant a right to write that another CPU's store has set free, by taking the
 * page's claims away: what was translated of it goes before that right is used (machine/codemap.h, rule 4). */
static u64 miss(struct bt *t, u32 n)
{
    const struct bt_exit *x = &t->exits[n];
    u64 flushes = t->stats.flushes, forgotten = t->forgotten;
    if (!fill_from_tlb(t, x)) {
        if (x->early || !look_up_page(t, x))    /* a load must not fault as the store behind it would, nor make the page dirty */
            return step(t, n);
        settle(t);
        if (flushes != t->stats.flushes || t->block[x->block].invalid)
            return next_block(t);
        if (!fill_from_tlb(t, x))               /* code: each store is to be seen */
            return step(t, n);
    }
    if (x->slid && !bt_has_slide(t, t->cpu->tlb_set, x->write, t->lin))
        return misfit(t, n);
    if (forgotten != t->forgotten)
        return next_block(t);
    keep_frames(t);
    return bt_host_address(t, x->again);        /* the time goes on as it was */
}

/* The interpreter does some rounds of the loop whose head is at rip, and notes which of its conditional branches are mostly taken. False:
 * it does not come back soon, or the loop is to look at something. */
static bool watch(struct bt *t, struct loop_path *path)
{
    struct x86_cpu *c = t->cpu;
    enum { BRANCHES = 32 };
    struct { s64 off; int taken; } seen[BRANCHES];
    u64 head = c->r[X86_RIP];
    unsigned nr = 0, k, rounds = 0;
    for (unsigned n = 0; n < BT_MAX_BLOCK * (rounds + 1) && rounds < SEEN; n++) {        /* none longer than a block can be */
        u64 rip = c->r[X86_RIP];
        if (!interpret_next(t))
            return false;
        rounds += c->r[X86_RIP] == head;
        if (!c->insn || x86_forms[c->insn->form].op != &x86_op_jcc || (rip ^ head) >> PAGE_SHIFT)
            continue;
        for (k = 0; k < nr && seen[k].off != (s64)(rip - head); k++)
            ;
        if (k == nr && nr < BRANCHES)
            seen[nr++].off = (s64)(rip - head), seen[k].taken = 0;
        if (k < nr)
            seen[k].taken += c->r[X86_RIP] == rip + c->insn->len ? -1 : 1;
    }
    for (k = 0, path->nr = 0; k < nr && path->nr < PATH; k++)
        if (seen[k].taken > 0)
            path->taken[path->nr++] = (s16)seen[k].off;
    return rounds == SEEN;
}

/* Block b, at rip, is a loop's head. Another takes its place that goes the way that the loop mostly goes. */
static u64 watch_loop(struct bt *t, u32 b)
{
    struct loop_path path;
    t->block[b].unrolled = t->block[b].rounds >= TRIES * HOT;
    if (!watch(t, &path))
        return must_look(t->cpu) ? 0 : next_block(t);
    if (block_at_rip(t) == b) {         /* as before */
        t->block[b].unrolled = true;    /* once is enough */
        replace(t, b, &path, t->block[b].apart);
    }
    return settled_block(t);
}

/* A direct jump was made for the first time since its target was forgotten. */
static u64 connect(struct bt *t, u32 n)
{
    struct x86_cpu *c = t->cpu;
    const struct bt_exit x = t->exits[n];
    u64 flushes = t->stats.flushes;
    settle(t);
    u32 b = block_at_rip(t);
    if (!b)
        return 0;
    if (x.kind == EXIT_CHAIN && x.target <= t->block[x.block].va && !t->block[b].unrolled)
        return ++t->block[b].rounds % HOT ? begin(t, bt_host_address(t, t->block[b].code)) : watch_loop(t, b);
    if (t->stats.flushes == flushes && c->tlb->flushes == t->tlb_flushes && !t->block[x.block].invalid) {
        if (x.kind == EXIT_CHAIN)
            bt_cache_patch(t, x.patch, t->block[b].code);
        else
            bt_link_fill(t, x.patch, t->block[b].code);
    }
    return begin(t, bt_host_address(t, t->block[b].code));
}

/* What the exit that was taken, number n, asks for. */
static u64 dispatch(struct bt *t, u32 n)
{
    struct x86_cpu *c = t->cpu;
    const struct bt_exit *x = &t->exits[n];
    c->rflags = bt_rflags(t);
    if (unlikely(!t->x87_out)) {
        c->fx.fip = t->x87_ip, c->fx.fdp = t->x87_dp, c->fx.fop = t->x87_op;
        c->fx.mxcsr_mask = MXCSR_VALID;
    }
    s64 left = read_once(t->left);
    left += left < -KICK / 2 ? KICK : 0;
    c->retired = t->time - (u64)(left - x->k);
    c->r[X86_RIP] = x->kind <= EXIT_NEXT ? x->target : t->block[x->block].va + x->off;
    t->stats.exits++;
    if (likely(x->kind == EXIT_STEP))
        return step(t, n);
    switch (x->kind) {
    case EXIT_MISS:
        return miss(t, n);
    case EXIT_BRANCH:
        return must_look_before(t, x) ? 0 : step(t, n);
    case EXIT_TIME:
        /* The last instructions of a budget do not fit into blocks. Where it need not be used up they are left out: for these few dozens
         * the interpreter, which has nothing of this code in its cache, would take a fifth of the time of a whole slice. */
        if (c->roughly && c->limit - c->retired <= LEFT_BIAS)
            c->limit = c->retired;
        if (must_look_before(t, x))
            return 0;
        return interpret_some(t, 1);
    case EXIT_MISFIT:
        return misfit(t, n);
    case EXIT_CHAIN: case EXIT_LINK:
        return must_look(c) ? 0 : connect(t, n);
    default:
        bt_jump_forget(t, t->block[x->block].context & CTX_SET, x->target);     /* it may be what led here */
        return must_look(c) ? 0 : settled_block(t);
    }
}

u64 bt_dispatch(struct x86_cpu *c)
{
    struct bt *t = c->bt;
    u64 host = dispatch(t, t->exit);
    t->slide_now = t->slide[c->tlb_set];
    if (!host)
        t->frames = t->bottom;
    return host;
}

/* Translated code from rip on until something needs the loop. False: there is none; the interpreter's turn. */
static bool run_blocks(struct bt *t)
{
    typedef void enter_fn(struct x86_cpu *c, u64 entry);
    enter_fn *enter = (enter_fn *)(uintptr_t)bt_host_address(t, t->enter);
    if (unlikely(t->cpu->features != t->features))
        bt_forget(t);
    settle(t);
    t->x87_out = 1;
    u64 host = next_block(t);
    if (host)
        enter(t->cpu, host);
    return host != 0;
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
        if (run_blocks(t))
            continue;
        if (must_look(c))
            continue;
        interpret(t);
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
