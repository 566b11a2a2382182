/* String instructions: movs stos lods cmps scas ins outs, alone and repeated.
 *
 * Owns: the rule of how far a repeated instruction goes at once. Called by: the interpreter through x86_op tables. No locks.
 *
 * Repetition: a round is at most X86_REP_CHUNK iterations (one in single-step mode). If some remain behind it, registers show how far it got,
 * next_rip is the instruction itself, and it counts as one retired: so that a budget of instructions cuts at the same place every time
 * and interrupts are never late by more than a chunk. A fault leaves the registers of the iterations done and rip at the instruction;
 * cmps and scas then leave the flags they found (vol. 2, REP).
 *
 * In bulk: iterations that stay within a page that the TLB has, and within the segment, go by host pointers. A movs onto its own source
 * copies element by element: later elements read what earlier ones wrote. Bulk may go through several rounds, which it counts as the loop
 * would, if the loop would do nothing else between them: nothing waits, the budget lasts, and the instruction does not overwrite itself.
 */
#include "x86/operand.h"
#include "x86/system.h"

enum { X86_REP_CHUNK = 1024 };

/* One iteration; *flags are changed by those that compare. */
typedef void string_fn(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags);
/* Iterations left of this round; whether some of the next ones may be done with it. */
struct string_round { unsigned left; bool alone; };
/* Up to n iterations at once; returns how many (0: none can be done so). Compares end after the one that ends the repetition. */
typedef unsigned string_bulk_fn(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned n, struct string_round *round, u64 *flags);

X86_INLINE u64 string_off(const struct x86_cpu *c, const struct x86_insn *i, unsigned reg) { return c->r[reg] & i->addr_mask; }

X86_INLINE void string_advance(struct x86_cpu *c, const struct x86_insn *i, unsigned reg, unsigned bytes)
{
    x86_reg_set_masked(c, reg, i->addr_mask, c->rflags & X86_DF ? c->r[reg] - bytes : c->r[reg] + bytes);
}

/* True: the comparison said so, and the repetition ends. */
X86_INLINE bool string_ends(const struct x86_insn *i, u64 flags) { return !(flags & X86_ZF) == !(i->prefixes & X86_REPNE); }

/* Iterations beyond this round that may be done with it. */
X86_INLINE unsigned string_ahead(const struct x86_cpu *c)
{
    u64 rounds = c->limit - c->retired - 1;
    if (c->slow || (c->attention && read_once(*c->attention)) || c->retired >= c->limit)
        return 0;
    return (rounds < PAGE_SIZE / X86_REP_CHUNK ? (unsigned)rounds : PAGE_SIZE / X86_REP_CHUNK) * X86_REP_CHUNK;
}

/* A store to the page at p. Where the instruction under way is, or may be, the next round has to be fetched: returns how many of n are left then. */
X86_INLINE unsigned string_stores(const struct x86_cpu *c, const u8 *p, unsigned n, struct string_round *round)
{
    u64 off = c->r[X86_RIP] - c->code.start;
    if (unlikely(!x86_has_code(c, c->r[X86_RIP]) || !(((u64)(c->code.host + off) ^ (u64)p) >> PAGE_SHIFT)))
        round->alone = true;
    return round->alone && n > round->left ? round->left : n;
}

/* Repeats. compare: repe and repne look at ZF; else both prefixes mean rep. */
X86_INLINE void string_exec(struct x86_cpu *c, const struct x86_insn *i, unsigned size, string_fn *one, string_bulk_fn *bulk, bool compare)
{
    u64 flags = c->rflags;
    if (!(i->prefixes & (X86_REP | X86_REPNE))) {
        one(c, i, size, &flags);
        c->rflags = flags;
        return;
    }
    u64 count = c->r[X86_RCX] & i->addr_mask;
    struct string_round round = { .left = c->rflags & X86_TF ? 1 : X86_REP_CHUNK, .alone = compare };
    bool end = false;
    while (count && round.left && !end) {
        unsigned n = 0;
        if (bulk && !c->strict) {
            unsigned most = round.left + (round.alone || count <= round.left ? 0 : string_ahead(c));
            n = bulk(c, i, size, count < most ? (unsigned)count : most, &round, &flags);
        }
        if (!n) {
            one(c, i, size, &flags);
            n = 1, round.alone = true;          /* wherever it stored */
        }
        count -= n;
        if (n > round.left) {
            unsigned more = (n - round.left + X86_REP_CHUNK - 1) / X86_REP_CHUNK;
            c->retired += more;
            round.left += more * X86_REP_CHUNK;
        }
        round.left -= n;
        x86_reg_set_masked(c, X86_RCX, i->addr_mask, count);
        end = compare && string_ends(i, flags);
        if (c->pending_db || c->slow & X86_SLOW_STOP)           /* a data breakpoint traps between iterations (vol. 3, 17.3.1.2) */
            break;
    }
    c->rflags = flags;
    if (count && !end)
        c->next_rip = c->r[X86_RIP];
}

/* Host address of the first of a run of elements from seg:off in the direction of DF, and in *n (at most what it was) how many of them are in
 * line. NULL: none. */
X86_INLINE u8 *string_run(struct x86_cpu *c, const struct x86_insn *i, unsigned seg, u64 off, unsigned size, bool write, unsigned *n)
{
    u64 lin = c->lin_base[seg] + off, bytes;
    if (unlikely(c->mode != 64)) {
        const struct x86_seg *s = &c->seg[seg];
        lin = (u32)lin;
        if (s->attr & X86_ATTR_UNUSABLE || (write ? !x86_is_writable(s->attr) : !x86_is_readable(s->attr)) ||
            (s->attr & (X86_SEG_CODE | X86_SEG_EC)) == X86_SEG_EC || off > s->limit)
            return NULL;
    }
    bytes = PAGE_SIZE - (lin & (PAGE_SIZE - 1));
    if (i->addr_mask - off < bytes - 1)
        bytes = i->addr_mask - off + 1;
    if (unlikely(c->mode != 64) && c->seg[seg].limit - off < bytes - 1)
        bytes = c->seg[seg].limit - off + 1;
    if (unlikely(c->rflags & X86_DF)) {
        u64 below = lin & (PAGE_SIZE - 1);      /* the element at off, and as many below it as page and segment have */
        if (bytes < size)
            return NULL;
        bytes = (below < off ? below : off) / size * size + size;
    }
    if (bytes / size < *n)
        *n = (unsigned)bytes / size;
    return *n ? x86_inline_ptr(c, lin, size, write) : NULL;
}

/* The lowest element's address in a run of n that string_run has found the first of. */
X86_INLINE u8 *string_lowest(const struct x86_cpu *c, u8 *first, unsigned size, unsigned n)
{
    return c->rflags & X86_DF ? first - (u64)(n - 1) * size : first;
}

/* ---- movs, stos, lods ---------------------------------------------------------------------------------------------------- */

X86_INLINE void movs_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u64 x = x86_load(c, i->mem_seg, string_off(c, i, X86_RSI), size);
    x86_store(c, X86_ES, string_off(c, i, X86_RDI), size, x);
    string_advance(c, i, X86_RSI, size);
    string_advance(c, i, X86_RDI, size);
}

X86_INLINE unsigned movs_bulk(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned n, struct string_round *round, u64 *flags)
{
    bool down = c->rflags & X86_DF;
    u8 *src = string_run(c, i, i->mem_seg, string_off(c, i, X86_RSI), size, false, &n);
    u8 *dst = src ? string_run(c, i, X86_ES, string_off(c, i, X86_RDI), size, true, &n) : NULL;
    if (!dst)
        return 0;
    n = string_stores(c, dst, n, round);
    u64 bytes = (u64)n * size;
    src = string_lowest(c, src, size, n), dst = string_lowest(c, dst, size, n);
    if ((down ? (u64)(src - dst) : (u64)(dst - src)) >= bytes)  /* away from what is still to be read, or no overlap: order does not matter */
        memmove(dst, src, bytes);
    else
        for (u64 k = 0; k < bytes; k += size) {
            u64 at = down ? bytes - size - k : k;
            x86_host_set(dst + at, size, x86_host_get(src + at, size));
        }
    string_advance(c, i, X86_RSI, (unsigned)bytes);
    string_advance(c, i, X86_RDI, (unsigned)bytes);
    return n;
}
X86_OP_SIZES_ANY(movs, string_exec, movs_one, movs_bulk, false);

X86_INLINE void stos_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    x86_store(c, X86_ES, string_off(c, i, X86_RDI), size, x86_reg_get(c, X86_RAX * 8, size));
    string_advance(c, i, X86_RDI, size);
}

/* A call of memset would be put in line by the compiler as rep stosq, four times slower than this. */
static void fill(u8 *p, u64 bytes, u64 repeated, unsigned size)
{
    typedef u64 chunk __attribute__((vector_size(32), aligned(1), may_alias));
    const chunk x = { repeated, repeated, repeated, repeated };
    u64 k = 0;
    if (bytes < sizeof x) {
        for (; k < bytes; k += size)
            x86_host_set(p + k, size, repeated);
        return;
    }
    for (; k + sizeof x <= bytes; k += sizeof x)
        *(chunk *)(p + k) = x;
    *(chunk *)(p + bytes - sizeof x) = x;       /* bytes is a multiple of the pattern's length, so that it lies right */
}

X86_INLINE unsigned stos_bulk(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned n, struct string_round *round, u64 *flags)
{
    u8 *dst = string_run(c, i, X86_ES, string_off(c, i, X86_RDI), size, true, &n);
    if (!dst)
        return 0;
    n = string_stores(c, dst, n, round);
    dst = string_lowest(c, dst, size, n);
    fill(dst, (u64)n * size, x86_reg_get(c, X86_RAX * 8, size) * (~0ul / x86_mask(size)), size);
    string_advance(c, i, X86_RDI, n * size);
    return n;
}
X86_OP_SIZES_ANY(stos, string_exec, stos_one, stos_bulk, false);

X86_INLINE void lods_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u64 x = x86_load(c, i->mem_seg, string_off(c, i, X86_RSI), size);
    x86_reg_set(c, X86_RAX * 8, size, x);
    string_advance(c, i, X86_RSI, size);
}
X86_OP_SIZES_ANY(lods, string_exec, lods_one, NULL, false);

/* ---- cmps, scas ------------------------------------------------------------------------------------------------------------ */

X86_INLINE void string_compare(u64 a, u64 b, unsigned size, u64 *flags)
{
    *flags = x86_flags_merge(*flags, X86_ARITH_FLAGS, x86_flags_sub(a, b, (a - b) & x86_mask(size), size));
}

X86_INLINE void cmps_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u64 a = x86_load(c, i->mem_seg, string_off(c, i, X86_RSI), size);
    u64 b = x86_load(c, X86_ES, string_off(c, i, X86_RDI), size);
    string_compare(a, b, size, flags);
    string_advance(c, i, X86_RSI, size);
    string_advance(c, i, X86_RDI, size);
}

X86_INLINE unsigned cmps_bulk(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned n, struct string_round *round, u64 *flags)
{
    if (c->rflags & X86_DF)
        return 0;
    const u8 *p = string_run(c, i, i->mem_seg, string_off(c, i, X86_RSI), size, false, &n);
    const u8 *q = p ? string_run(c, i, X86_ES, string_off(c, i, X86_RDI), size, false, &n) : NULL;
    if (!q)
        return 0;
    bool until_equal = i->prefixes & X86_REPNE;
    u64 a, b;
    unsigned k = 0;
    do {
        a = x86_host_get(p + (u64)k * size, size);
        b = x86_host_get(q + (u64)k * size, size);
    } while (++k < n && (a == b) != until_equal);
    string_compare(a, b, size, flags);
    string_advance(c, i, X86_RSI, k * size);
    string_advance(c, i, X86_RDI, k * size);
    return k;
}
X86_OP_SIZES_ANY(cmps, string_exec, cmps_one, cmps_bulk, true);

X86_INLINE void scas_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u64 b = x86_load(c, X86_ES, string_off(c, i, X86_RDI), size);
    string_compare(x86_reg_get(c, X86_RAX * 8, size), b, size, flags);
    string_advance(c, i, X86_RDI, size);
}

X86_INLINE unsigned scas_bulk(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned n, struct string_round *round, u64 *flags)
{
    if (c->rflags & X86_DF)
        return 0;
    const u8 *q = string_run(c, i, X86_ES, string_off(c, i, X86_RDI), size, false, &n);
    if (!q)
        return 0;
    bool until_equal = i->prefixes & X86_REPNE;
    u64 a = x86_reg_get(c, X86_RAX * 8, size), b;
    unsigned k = 0;
    do
        b = x86_host_get(q + (u64)k * size, size);
    while (++k < n && (a == b) != until_equal);
    string_compare(a, b, size, flags);
    string_advance(c, i, X86_RDI, k * size);
    return k;
}
X86_OP_SIZES_ANY(scas, string_exec, scas_one, scas_bulk, true);

/* ---- ins, outs: the port's permission is checked each time round, memory before the device is touched -------------------------- */

X86_INLINE void ins_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u16 port = x86_get16(c, X86_RDX * 8);
    u64 off = string_off(c, i, X86_RDI);
    x86_check_io(c, port, size);
    x86_probe_write(c, X86_ES, off, size);
    x86_store(c, X86_ES, off, size, c->ops->in(c, port, size));
    string_advance(c, i, X86_RDI, size);
}
X86_OP_SIZES_ANY(ins, string_exec, ins_one, NULL, false);

X86_INLINE void outs_one(struct x86_cpu *c, const struct x86_insn *i, unsigned size, u64 *flags)
{
    u16 port = x86_get16(c, X86_RDX * 8);
    x86_check_io(c, port, size);
    u64 x = x86_load(c, i->mem_seg, string_off(c, i, X86_RSI), size);
    c->ops->out(c, port, size, (u32)x);
    string_advance(c, i, X86_RSI, size);
}
X86_OP_SIZES_ANY(outs, string_exec, outs_one, NULL, false);
