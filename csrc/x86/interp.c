/* The interpreter: what happens between two instructions, and how fast.
 *
 * Owns: x86_run, fetching, the cache of decoded instructions. Called by: hv/native.c (vCPUs), bare.c. Locks: none; the cache belongs to the CPU.
 *
 * The cache is checked against memory, never invalidated: an entry is found by the host address of the instruction's first byte (the
 * same machine frame has the same address whatever maps it) and holds the bytes it was decoded from; each execution compares them. So
 * stores into code, by whomever, and remapped pages need nothing.
 *
 * x86_run has a fast loop, left when something is in c->slow, and one for what the architecture asks for between instructions (vol. 3,
 * 6.9): traps of the last instruction, interrupts, instruction breakpoints, in this order. Budget: an instruction that retires and a
 * delivery, of an exception or of an interrupt, cost one each, so that a guest that only faults uses its budget up too.
 */
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "machine/frame.h"
#include "x86/mem.h"

enum { FETCH = 16, ICACHE_BYTES = 4 << 20 /* in all: arenas hand out powers of two */, ICACHE_PLACES = 1 << 17,
       ICACHE_ENTRIES = (ICACHE_BYTES - 2 * ICACHE_PLACES - 64) / 128 };

struct icache_entry {
    struct x86_insn insn;
    u64 key;                    /* host address of the first byte | what else decides how it executes << 56; 0: empty */
    u64 bytes[2], mask[2];      /* what stood there; mask: its first insn.len bytes */
    u32 bits;                   /* mask with a bit for each byte */
    u32 pad;
    struct icache_entry *next;  /* what was executed after it the last time: a guess, checked as all else */
    u64 pad2;
};
/* Entries are made one after the other and the oldest is overwritten, so that code that runs in sequence lies in sequence. A place is a
 * guess too: its entry may belong to another key by now. Places are by byte: 128 KiB of code in a row share none. */
struct icache {
    struct icache_entry e[ICACHE_ENTRIES];      /* e[0] stays empty: where places that nobody used lead */
    u16 place[ICACHE_PLACES];
    u32 hand;                   /* the next entry to overwrite */
    u64 features;               /* of the CPU when it decoded them */
};
STATIC_ASSERT(sizeof(struct icache_entry) == 128 && sizeof(struct icache) <= ICACHE_BYTES && ICACHE_ENTRIES <= 1 << 16);

u64 x86_icache_bytes(void) { return sizeof(struct icache); }

static inline u16 *icache_place(struct icache *ic, u64 key) { return &ic->place[(key ^ key >> 17 ^ key >> 43) % ICACHE_PLACES]; }
static inline struct icache_entry *icache_find(struct icache *ic, u64 key) { return &ic->e[*icache_place(ic, key)]; }

static void icache_clear(struct icache *ic, u64 features)
{
    memset(ic->place, 0, sizeof ic->place);
    ic->hand = 1;
    ic->features = features;
}

/* The instruction's bytes are (still) at p; FETCH bytes may be read there. */
static inline bool entry_fits(const struct icache_entry *e, const u8 *p)
{
#ifdef __SSE2__                         /* a tenth faster than the same in words */
    __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), _mm_loadu_si128((const __m128i *)e->bytes));
    return !(~(u32)_mm_movemask_epi8(same) & e->bits);
#else
    u64 b[2];
    memcpy(b, p, sizeof b);
    return !(((b[0] ^ e->bytes[0]) & e->mask[0]) | ((b[1] ^ e->bytes[1]) & e->mask[1]));
#endif
}

static inline u64 context_of(const struct x86_cpu *c)
{
    u64 context;
    memcpy(&context, &c->tlb_set, sizeof context);
    return context;
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

static void exec_gp(struct x86_cpu *c, const struct x86_insn *i) { x86_raise_error(c, X86_GP, 0); }
static void exec_ud(struct x86_cpu *c, const struct x86_insn *i) { x86_raise(c, X86_UD); }

void x86_restrict(struct x86_insn *i, bool real, u8 cpl)
{
    u16 attr = x86_forms[i->form].attr;
    if (attr & F_NOREAL && real)
        i->exec = exec_ud;
    else if (attr & F_CPL0 && cpl)
        i->exec = exec_gp;
}

/* What decides how bytes execute beside themselves: code size, CPL 0 or not, real mode. */
static u64 key_kind(const struct x86_cpu *c)
{
    return (u64)(c->mode >> 5 | (c->cpl != 0) << 2 | c->real << 3) << 56;
}

/* Decodes bytes[0..n), zeros behind them up to FETCH. False: they do not hold all of it. Raises #UD and #GP. */
static bool entry_decode(struct x86_cpu *c, struct icache_entry *e, u64 key, const u8 *bytes, unsigned n)
{
    e->key = 0;
    int len = x86_decode(&e->insn, bytes, n < 15 ? n : 15, c->mode, c->features);
    if (len <= 0) {
        if (len == X86_TRUNCATED && n < 15)
            return false;
        if (len != X86_UNDEFINED)
            x86_raise_error(c, X86_GP, 0);
        c->undecoded++;
        x86_raise(c, X86_UD);
    }
    x86_restrict(&e->insn, c->real, c->cpl);
    memcpy(e->bytes, bytes, FETCH);
    e->bits = (1u << len) - 1;
    e->mask[0] = len >= 8 ? ~0ul : (1ul << 8 * len) - 1;
    e->mask[1] = len <= 8 ? 0 : (1ul << 8 * (len - 8)) - 1;
    e->next = e;
    e->key = key;
    return true;
}

/* The same into the cache: over the entry of what stood there before, else over the oldest. Without a cache, into scratch. NULL: truncated. */
static struct icache_entry *decode_into_cache(struct x86_cpu *c, struct icache_entry *scratch, u64 key, const u8 *bytes, unsigned n)
{
    struct icache *ic = c->icache;
    if (!ic)
        return entry_decode(c, scratch, key, bytes, n) ? scratch : NULL;
    struct icache_entry *old = icache_find(ic, key), *e = old->key == key ? old : &ic->e[ic->hand];
    if (!entry_decode(c, e, key, bytes, n))
        return NULL;
    if (e != old) {                     /* only now: what cannot be decoded evicts at most one */
        *icache_place(ic, key) = (u16)ic->hand;
        ic->hand = ic->hand + 1 < ICACHE_ENTRIES ? ic->hand + 1 : 1;
    }
    return e;
}

/* ---- fetching ---------------------------------------------------------------------------------------------------- */

static const u8 *exec_page(struct x86_cpu *c, u64 lin)
{
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, lin);
    if (e->exec_tag == tlb_tag(c->tlb, lin))
        return e->page;
    struct x86_fault f;
    const u8 *page = c->ops->page(c, lin, MMU_EXEC, &f);
    if (!page)
        x86_raise_page_fault(c, &f);
    return page;
}

/* An instruction at the end of a page or of CS: gathers what there is. */
static struct icache_entry *fetch_edge(struct x86_cpu *c, struct icache_entry *scratch, const u8 *p, u64 lin, u64 limit_left)
{
    u64 key = (u64)p | key_kind(c);
    u8 bytes[FETCH] = { 0 };
    u64 page_left = PAGE_SIZE - lin % PAGE_SIZE, left = limit_left < FETCH ? limit_left : FETCH;
    unsigned n = (unsigned)(page_left < left ? page_left : left);
    memcpy(bytes, p, n);
    if (c->icache) {
        struct icache_entry *e = icache_find(c->icache, key);
        if (e->key == key && e->insn.len <= n && entry_fits(e, bytes))
            return e;
    }
    struct icache_entry *e = decode_into_cache(c, scratch, key, bytes, n);
    if (e)
        return e;
    if (n < left) {                     /* only now the second page is needed, and its fault taken */
        u64 next = lin + n;
        const u8 *second = exec_page(c, c->mode == 64 ? next : (u32)next);
        memcpy(bytes + n, second, left - n);
        if (entry_decode(c, scratch, 0, bytes, (unsigned)left))         /* no key: a cached one would be compared beyond its page */
            return scratch;
    }
    x86_raise_error(c, X86_GP, 0);      /* beyond CS's limit */
}

/* An instruction at p that the cache does not have; FETCH bytes are there. */
static struct icache_entry *fetch_decode(struct x86_cpu *c, struct icache_entry *scratch, const u8 *p)
{
    u8 bytes[FETCH];
    c->insn = NULL;
    memcpy(bytes, p, sizeof bytes);     /* once: another CPU may be writing there */
    return decode_into_cache(c, scratch, (u64)p | key_kind(c), bytes, FETCH);
}

/* Finds the code page of rip, checks CS's limit, and fetches there. */
static struct icache_entry *fetch_slow(struct x86_cpu *c, struct icache_entry *scratch)
{
    bool flat = c->mode == 64;
    c->insn = NULL;
    if (!flat)
        c->r[X86_RIP] = (u32)c->r[X86_RIP];
    u64 rip = c->r[X86_RIP], lin = flat ? rip : c->seg[X86_CS].base + rip, limit = flat ? ~0ul : c->seg[X86_CS].limit;
    if (!flat)
        lin = (u32)lin;
    if (rip > limit || (flat && !va_canonical(lin)))
        x86_raise_error(c, X86_GP, 0);

    const u8 *page = exec_page(c, lin);
    u64 in_page = lin % PAGE_SIZE, before = flat || in_page < rip ? in_page : rip;      /* bytes before rip, in page and segment */
    u64 after = PAGE_SIZE - in_page;
    if (limit - rip < after)
        after = limit - rip + 1;
    c->code.start = rip - before;
    c->code.len = before + after < FETCH ? 0 : before + after - FETCH + 1;
    c->code.host = page + in_page - before;
    c->code.va = lin - before;
    c->code.key = (u64)c->code.host | key_kind(c);
    c->code.context = context_of(c);
    c->code.tag = c->tlb->generation;

    const u8 *p = page + in_page;
    if (rip - c->code.start >= c->code.len)
        return fetch_edge(c, scratch, p, lin, limit - rip == ~0ul ? ~0ul : limit - rip + 1);
    if (c->icache) {
        struct icache_entry *e = icache_find(c->icache, (u64)p | key_kind(c));
        if (e->key == ((u64)p | key_kind(c)) && entry_fits(e, p))
            return e;
    }
    return fetch_decode(c, scratch, p);
}

/* The decoded instruction at rip. last: the one before. Its guess is tried first: the host need not wait for rip to know where the next
 * instruction's function is (a third faster than the hash alone). */
static inline struct icache_entry *fetch(struct x86_cpu *c, struct icache *ic, struct icache_entry *scratch, struct icache_entry *last)
{
    u64 off = c->r[X86_RIP] - c->code.start;
    if (likely(off < c->code.len && c->code.tag == c->tlb->generation && c->code.context == context_of(c))) {
        u64 key = c->code.key + off;
        struct icache_entry *e = last->next;
        if (likely(e->key == key && entry_fits(e, c->code.host + off)))
            return e;
        if (ic) {
            last->next = e = icache_find(ic, key);
            if (likely(e->key == key && entry_fits(e, c->code.host + off)))
                return e;
        }
        return fetch_decode(c, scratch, c->code.host + off);
    }
    return fetch_slow(c, scratch);
}

/* ---- between instructions ---------------------------------------------------------------------------------------- */

/* Hands an exception on, or (e NULL) has an interrupt delivered. What that raises comes back to x86_run, and from there here. */
static void deliver(struct x86_cpu *c, const struct x86_exception *e)
{
    if (!c->in_delivery)
        c->limit--;                     /* it is above retired, else nothing would have begun */
    c->in_delivery = true;
    c->slow &= ~(X86_SLOW_SHADOW | X86_SLOW_SHADOW_SS);
    c->halted = false;
    if (e)
        c->ops->exception(c, e);
    else
        c->ops->interrupt(c);
    c->in_delivery = false;
}

static void deliver_trap(struct x86_cpu *c)
{
    struct x86_exception e = { .vector = X86_DB, .cr2 = c->pending_db };
    c->pending_db = 0;
    c->slow &= ~X86_SLOW_PENDING_DB;
    c->insn = NULL;
    deliver(c, &e);
}

/* int n, int3, into, int1, syscall, sysenter that cleared TF: no trap after them (vol. 3, 17.3.1.4). */
static bool clears_tf(const struct x86_cpu *c, const struct x86_insn *i)
{
    const struct x86_form *form = &x86_forms[i->form];
    if (c->rflags & X86_TF)
        return false;
    return form->map == X86_MAP_1 ? (i->opcode >= 0xcc && i->opcode <= 0xce) || i->opcode == 0xf1
                                  : form->map == X86_MAP_0F && (i->opcode == 0x05 || i->opcode == 0x34);
}

static bool loads_ss(const struct x86_insn *i) { return i->op[0].kind == X86_SEG && i->op[0].reg == X86_SS && i->nr_ops; }

/* One instruction with all that slow asks for. */
static void step_slow(struct x86_cpu *c, struct icache_entry *scratch)
{
    u64 entry_flags = c->rflags;
    bool shadowed = c->slow & X86_SLOW_SHADOW_SS;
    if (c->slow & X86_SLOW_BREAKPOINT && !(entry_flags & X86_RF) && !shadowed) {
        u64 lin = c->mode == 64 ? c->r[X86_RIP] : (u32)(c->seg[X86_CS].base + c->r[X86_RIP]);
        u64 hit = x86_debug_match(c, lin, 1, X86_DR_EXEC);
        if (hit) {                      /* a fault, but RF in the image stays as it is (17.3.1.1) */
            deliver(c, &(struct x86_exception){ .vector = X86_DB, .cr2 = hit });
            return;
        }
    }
    const struct x86_insn *i = &fetch(c, c->icache, scratch, scratch)->insn;
    u64 rip = c->r[X86_RIP];
    c->slow &= ~(X86_SLOW_SHADOW | X86_SLOW_SHADOW_SS);
    if (entry_flags & X86_RF) {
        c->rflags &= ~(u64)X86_RF;
        if (!(entry_flags & X86_TF))
            c->slow &= ~X86_SLOW_TF;
    }
    c->insn = i;
    c->next_rip = rip + i->len;
    i->exec(c, i);
    c->r[X86_RIP] = c->next_rip;
    c->retired++;

    bool repeats = i->prefixes & (X86_REP | X86_REPNE) && x86_forms[i->form].attr & F_REP && c->next_rip == rip;
    if (repeats) {                      /* so that its breakpoint does not hit again when it goes on */
        c->rflags |= X86_RF;
        c->slow |= X86_SLOW_TF;
    }
    if (shadowed && loads_ss(i))        /* only the first of several delays (vol. 2, MOV) */
        c->slow &= ~X86_SLOW_SHADOW;
    bool holds = c->slow & X86_SLOW_SHADOW && loads_ss(i);      /* 6.8.3: debug traps wait too, and single-step is lost */
    if (entry_flags & X86_TF && !holds && !clears_tf(c, i))
        c->pending_db |= X86_DR6_BS;
    if (c->pending_db)
        c->slow |= X86_SLOW_PENDING_DB;
}

static bool interrupt_waits(const struct x86_cpu *c)
{
    return c->slow & X86_SLOW_INTERRUPT && c->ops->interrupt && c->rflags & X86_IF;
}

/* The decoded instruction that c->insn stands for is about to go: what `between` would ask it next time is answered now. */
static void forget_scratch(struct x86_cpu *c, const struct icache_entry *scratch)
{
    if (c->insn != &scratch->insn)
        return;
    if (c->slow & X86_SLOW_SHADOW && loads_ss(c->insn))
        c->slow |= X86_SLOW_SHADOW_SS;
    c->insn = NULL;
}

/* All reasons to leave the fast loop. True: x86_run returns *exit. */
static bool between(struct x86_cpu *c, struct icache_entry *scratch, enum x86_exit *exit)
{
    if (unlikely(c->slow & X86_SLOW_WROTE))
        x86_wrote_code(c);
    if (c->slow & X86_SLOW_SHADOW && c->insn && loads_ss(c->insn))
        c->slow |= X86_SLOW_SHADOW_SS;
    if (c->shutdown)
        return *exit = X86_SHUTDOWN, true;
    if (c->slow & X86_SLOW_STOP) {
        c->slow &= ~X86_SLOW_STOP;
        if (!c->halted)
            return *exit = X86_STOPPED, true;
    }
    if (c->attention && read_once(*c->attention))
        return *exit = X86_ATTENTION, true;
    if (c->retired >= c->limit)
        return *exit = X86_BUDGET, true;
    if (c->slow & X86_SLOW_PENDING_DB && !(c->slow & X86_SLOW_SHADOW_SS)) {
        deliver_trap(c);
        return false;
    }
    if (interrupt_waits(c) && !(c->slow & X86_SLOW_SHADOW)) {
        c->insn = NULL;
        deliver(c, NULL);
        return false;
    }
    if (c->halted)
        return *exit = X86_HALTED, true;
    if (c->slow & X86_SLOW_DEBUGGER && c->ops->debug && c->ops->debug(c))
        return *exit = X86_DEBUGGER, true;
    if (c->slow)
        step_slow(c, scratch);
    return false;
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static __attribute__((noinline)) enum x86_exit loop(struct x86_cpu *c)
{
    static const u32 never = 0;
    const u32 *attention = c->attention ? c->attention : &never;
    struct icache *const ic = c->icache;
    struct icache_entry scratch;
    enum x86_exit exit;
    scratch.key = 0;
    scratch.next = &scratch;
    struct icache_entry *e = &scratch;

    for (;;) {
        if (unlikely((c->slow | read_once(*attention)) || c->retired >= c->limit)) {
            if (between(c, &scratch, &exit)) {
                forget_scratch(c, &scratch);
                return exit;
            }
            continue;
        }
        e = fetch(c, ic, &scratch, e);
        c->insn = &e->insn;
        c->next_rip = c->r[X86_RIP] + e->insn.len;
        e->insn.exec(c, &e->insn);
        c->r[X86_RIP] = c->next_rip;
        c->retired++;
    }
}

void x86_run_begin(struct x86_cpu *c, u64 budget)
{
    c->limit = budget < ~0ul - c->retired ? c->retired + budget : ~0ul;
    c->in_delivery = false;
    c->insn = NULL;
    if (c->icache && (c->icache->features != c->features || !c->icache->hand))
        icache_clear(c->icache, c->features);
    if (c->halted || c->shutdown)
        c->slow |= X86_SLOW_STOP;       /* the fast loop does not look at them */
}

/* Of an instruction, or of a delivery. Vol. 3, 17.3.1.1: faults push RF = 1; a fault takes back what data breakpoints saw. */
void x86_run_raised(struct x86_cpu *c)
{
    struct x86_exception e = c->exc;
    x86_wrote_code(c);                  /* the instruction may have stored before it faulted */
    c->pending_db = 0;
    c->slow &= ~X86_SLOW_PENDING_DB;
    c->rflags |= X86_RF;
    c->slow |= X86_SLOW_TF;
    deliver(c, &e);
}

bool x86_run_between(struct x86_cpu *c, enum x86_exit *exit)
{
    struct icache_entry scratch;
    scratch.key = 0;
    scratch.next = &scratch;
    bool ends = between(c, &scratch, exit);
    forget_scratch(c, &scratch);
    return ends;
}

void x86_run_one(struct x86_cpu *c)
{
    struct icache_entry scratch;        /* not zeroed: that would take longer than most instructions */
    scratch.key = 0;
    scratch.next = &scratch;
    const struct icache_entry *e = fetch(c, c->icache, &scratch, &scratch);
    c->insn = &e->insn;
    c->next_rip = c->r[X86_RIP] + e->insn.len;
    e->insn.exec(c, &e->insn);
    c->r[X86_RIP] = c->next_rip;
    c->retired++;
    if (unlikely(c->slow & X86_SLOW_WROTE))
        x86_wrote_code(c);
    forget_scratch(c, &scratch);
}

enum x86_exit x86_run(struct x86_cpu *c, u64 budget)
{
    jmp_buf here;
    x86_run_begin(c, budget);
    c->unwind = &here;
    if (setjmp(here))
        x86_run_raised(c);
    enum x86_exit exit = loop(c);
    c->unwind = NULL;
    return exit;
}
