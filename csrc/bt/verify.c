/* Checks of emitted code, independent of what emits it.
 *
 * Owns: the walk over a block's paths. Called by: translate.c under BT_VERIFY, dump.c. No locks. No state but the caller's stack. What the
 * guest's instruction does is verify_guest.c's, what else may stand there verify_inserted.c's, where a path may lead verify_jump.c's.
 *
 * Each guest instruction's host code is followed along every path from its first byte, with symbolic values (value.h) in registers and in
 * the fields of struct bt that code uses for its own purposes. Between two guest instructions all values are where internal.h's conventions
 * have them, so the instructions of a block are checked one by one; where the loop comes back (bt_exit.again, behind) is a first byte as
 * well. A path is in order if it reaches the next instruction or an exit, having done exactly what the guest instruction does, or nothing:
 *  - the instruction itself is there once (ACTS), with the same operands, registers where they are kept, memory through the MMU;
 *    or the values that pushes, branches and their like produce are those that verify_effect works out from the guest's bytes;
 *  - host memory is reached only at "linear address + addend", where a test has shown that the entry that has the addend is for the
 *    page of all the bytes; its linear address is the guest operand's. Stores need an entry for stores;
 *  - what else touches memory names a field of struct bt, in the direction that FIELDS allows;
 *  - time has been taken, the exit's record says what really has happened, and jumps lead to where the guest's do;
 *  - every other instruction is mov, lea, pext or a jump: no flag changes, nothing privileged, nothing that writes rsp.
 */
#include "bt/verify.h"
#include "x86/decode.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_lea, x86_op_mov, x86_op_sti;

/* ---- the copied instruction -------------------------------------------------------------------------------------- */

/* All guest registers are where they are kept: else what looks like the instruction is not (a sahf that makes flags again, say). */
static bool all_in_place(struct check *c, const struct path *p)
{
    for (unsigned n = 0; n < 16; n++)
        if (home(p, n) != guest(c, n))
            return false;
    return true;
}

static bool act(struct check *c, struct path *p, const struct x86_insn *h, const u8 slots[16], u32 at)
{
    const struct x86_insn *g = c->g;
    u8 flags = c->effect.act_flags;
    if (p->acted)
        return verify_refuse(c, "the instruction is done twice");
    if (flags & X87 && !(p->live & LIVE_X87))
        return verify_refuse(c, "the x87's registers may not be the guest's");
    for (unsigned k = 0; k < g->nr_ops; k++)
        if (g->op[k].kind == X86_XMM && !p->live)
            return verify_refuse(c, "nobody knows that xmm registers change");
    if (p->flags != FL_GUEST && !(flags & (KEEPS | SETS)))
        return verify_refuse(c, "the instruction uses flags that are lost");
    if (!(flags & KEEPS))
        p->flags = FL_GUEST, p->saved = false;
    for (unsigned k = 0; k < g->nr_ops; k++)
        if (g->op[k].kind == X86_MEM) {
            const struct x86_op *op = x86_forms[g->form].op;
            bool write = k < 2 && flags & (k ? W1 : W0);
            unsigned size = g->op[k].size, align = size == 16 && !(flags & UNALIGNED) ? 16 : 1;
            value lin;
            if (!size || size > 16 || h->mem_seg >= X86_FS || op == &x86_op_lea)
                return verify_refuse(c, "no access to memory is copied in this form");
            if (!verify_access(c, p, verify_host_address(c, p, h, at), size, write, align, &lin))
                return false;
            if (lin != verify_linear(c, true))
                return verify_refuse(c, "the access is not at the guest's address");
        }
    p->acted = true;
    for (unsigned n = 0; n < R_13; n++)
        p->reg[home_of(n)] = result(c, n);
    for (unsigned r = R_14; r <= R_15; r++)
        if (slots[r])
            p->reg[r] = c->effect.reg[slots[r]] ? result(c, slots[r]) : guest(c, slots[r]);
    return true;
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

bool verify_follow(struct check *c, struct path p, u32 at)
{
    const struct bt_block *b = c->b;
    for (;;) {
        struct x86_insn h;
        u8 slots[16] = { 0 };
        if (c->next && at == c->next) {         /* the next guest instruction */
            const struct effect *f = &c->effect;
            if ((f->conditional && !p.decided) || p.taken || !verify_slot_is_whole(c, &p))
                return verify_refuse(c, "a branch falls through, or time was taken too early");
            if (value_const(&c->values, b->va + c->next_off) != (f->branch && (p.sent || !f->conditional) ? f->target : f->next))
                return verify_refuse(c, "the next instruction is not the guest's");
            verify_carry(c, &p);
            verify_spans(c, &p, false);
            c->to.kept &= verify_kept(c, &p);
            c->to.fell = true, c->to.lost |= p.flags != FL_GUEST, c->to.saved &= p.saved, c->to.live &= p.live;
            return verify_is_after(c, &p) || verify_refuse(c, "goes on with the instruction undone or done wrongly");
        }
        c->at = c->why ? c->at : at;
        if (++c->steps > MAX_STEPS)
            return verify_refuse(c, "too many paths");
        if (at < b->code || at >= b->code + b->code_len)
            return verify_refuse(c, "runs out of the block");
        u32 left = b->code + b->code_len - at;
        if (x86_decode(&h, c->t->rw + at, left < 15 ? left : 15, 64, ~0ul) <= 0)
            return verify_refuse(c, "no instruction");
        const struct x86_form *form = &x86_forms[h.form];
        if (form->attr & F_CPL0)
            return verify_refuse(c, "a privileged instruction");
        if (c->g && c->effect.act && !p.acted && all_in_place(c, &p) && verify_corresponds(c, &p, &h, c->effect.act_flags, slots)) {
            if (c->effect.forbidden)
                return verify_refuse(c, "an instruction that the interpreter has to do");
            if (!verify_divides(c, &p))
                return verify_refuse(c, "a division that may raise #DE");
            struct path acted = p;
            struct between to = c->to;
            acted.from = 0;
            if (act(c, &acted, &h, slots, at) && verify_follow(c, acted, at + h.len))
                return true;
            if (form->op != &x86_op_mov || x86_has_mem(&h))
                return false;
            /* mov r15, rax may be the guest's or not: it does the same */
            c->why = NULL, c->to = to;
        }
        bool end = false;
        u32 next = at;
        if (!verify_inserted(c, &p, &h, &next, &end))
            return false;
        if (end)
            return true;
        at = next;
    }
}

bool verify_from(struct check *c, u32 entry, int taken, bool lost, bool saved, u8 live, bool carried, const struct path *left)
{
    struct path p;
    u32 before = c->entry;
    verify_path_start(c, &p, carried);
    if (left)                   /* the loop comes back: it leaves these alone */
        p.own[OWN_FLAG_A] = left->own[OWN_FLAG_A], p.own[OWN_FLAG_B] = left->own[OWN_FLAG_B];
    p.taken = taken, p.flags = lost ? FL_LOST : FL_GUEST, p.saved = saved, p.live = live;
    c->entry = entry;           /* an `again` in there leads here */
    bool ok = verify_follow(c, p, entry);
    c->entry = before;
    return ok;
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* What counts executions, in front of the first instruction: the one access to host memory by its address. */
static bool counts_hits(struct check *c, u32 at, u32 end)
{
    struct path p = { 0 };
    value hits = value_const(&c->values, (u64)&c->b->hits);
    while (at < end) {
        struct x86_insn h;
        c->at = at;
        if (x86_decode(&h, c->t->rw + at, end - at < 15 ? end - at : 15, 64, ~0ul) <= 0)
            return verify_refuse(c, "no instruction");
        const struct x86_op *op = x86_forms[h.form].op;
        bool mem = x86_has_mem(&h), store = mem && h.op[0].kind == X86_MEM;
        unsigned r = store ? h.op[1].reg / 8u : h.op[0].reg / 8u;
        value a = mem ? verify_host_address(c, &p, &h, at) : 0;
        if ((r != R_14 && r != R_15) || h.size < 4 || (mem && h.mem_seg >= X86_FS) || (op != &x86_op_mov && op != &x86_op_lea))
            return verify_refuse(c, "an instruction that does not count executions");
        if (op == &x86_op_mov && mem && (a != hits || h.size != 8))
            return verify_refuse(c, "memory is accessed at an address that is no guest's");
        p.reg[r] = store ? p.reg[r] : op == &x86_op_lea ? a : !mem && h.op[1].kind == X86_IMM ? value_const(&c->values, h.imm) : 0;
        at += h.len;
    }
    return at == end || verify_refuse(c, "no instruction");
}

const char *bt_verify_why(const struct bt *t, const struct bt_block *b, u32 *at)
{
    struct check c;
    c.t = t, c.b = b, c.why = NULL, c.at = b->code, c.behind = 0, c.g = NULL, c.known.op = NULL;
    c.carried.on = c.shadow = c.spans.slid = false;
    c.spans.nr = c.spans.nr_pages = 0;
    memset(c.range, 0, sizeof c.range);
    c.nr = c.steps = c.lookups = 0, c.off = 0;
    const struct bt_map *map = &t->maps[b->first_map];
    int off = 0;
    bool lost = false, saved = false;
    u8 live = 0;
    values_clear(&c.values);
    bool ok = !b->nr || counts_hits(&c, b->code, map[0].code);
    for (unsigned n = 0; ok && n < b->nr; n++) {
        struct x86_insn g;
        u8 bytes[15];
        off = map[n].off;
        unsigned left = PAGE_SIZE - (unsigned)((b->va + (u64)off) % PAGE_SIZE);
        memcpy(bytes, b->host + off, left < 15 ? left : 15);
        int len = x86_decode(&g, bytes, left < 15 ? left : 15, context_mode(b->context), t->features);
        c.at = map[n].code;
        if (len != map[n].len || off < b->low || off + map[n].len > b->low + b->bytes || (!n && off)) {
            ok = verify_refuse(&c, "the map of instructions is not the guest's");
            break;
        }
        values_clear(&c.values);
        c.g = &g, c.nr = n, c.off = off, c.len = (unsigned)len, c.steps = 0, c.lookups = 0;
        c.next = n + 1 < b->nr ? map[n + 1].code : 0, c.entry = map[n].code, c.next_off = n + 1 < b->nr ? map[n + 1].off : 0;
        bool any = !verify_effect(&c);      /* only is_before will do */
        if (any)
            c.effect = (struct effect){ .act = true, .branch = true, .forbidden = true };
        c.to.lost = c.to.fell = c.to.carries = c.to.spanned = false, c.to.saved = true, c.to.kept = c.to.live = 0xff;
        ok = verify_from(&c, map[n].code, 0, lost, saved, live, true, NULL) &&
             (!n || verify_from(&c, map[n].code, 0, lost, saved, live, false, NULL));
        verify_ranges(&c, any);
        c.carried = c.to.carries ? c.to.carried : (struct carried){ .on = false };
        c.spans = c.to.spanned ? c.to.spans : (struct spans){ .nr = 0 };
        c.known = verify_known_behind(&c, c.to.fell ? c.to.kept : 0);
        lost = c.to.lost, saved = c.to.fell && c.to.saved, live = c.to.fell ? c.to.live : 0;
        c.shadow = !c.effect.forbidden && x86_forms[g.form].op == &x86_op_sti;
        off += len;
    }
    if (ok && c.behind) {
        values_clear(&c.values);
        c.g = NULL, c.shadow = false, c.nr = b->nr, c.off = off, c.len = 0, c.steps = c.lookups = 0;
        c.next = 0, c.entry = c.behind;
        verify_effect(&c);
        ok = verify_from(&c, c.behind, 0, false, saved, live, false, NULL);
    }
    *at = c.at;
    return ok ? NULL : c.why;
}

bool bt_verify(const struct bt *t, const struct bt_block *b)
{
    u32 at;
    return !bt_verify_why(t, b, &at);
}

#else

bool bt_verify(const struct bt *t, const struct bt_block *b) { return true; }
const char *bt_verify_why(const struct bt *t, const struct bt_block *b, u32 *at) { return NULL; }

#endif
