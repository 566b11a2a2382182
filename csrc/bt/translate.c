/* From guest instructions to a block of host code.
 *
 * Owns: which ops are translated, and how (RULES). Called by: run.c. No locks. An op that has no rule is the interpreter's (EXIT_STEP), and
 * costs nothing but time.
 *
 * A block: instructions of one page in the order in which they will probably be executed (route.c), at most BT_MAX_BLOCK, with the time
 * they take subtracted before the last changes anything or, where the last is no branch, behind it. Then its ways out (branch.c), then cold
 * code. A block that a loop has led back to HOT times is made again, along the path that the loop takes, and unrolled (run.c).
 */
#include "bt/translate.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

static const struct { const struct x86_op *op; u8 rule; } RULES[] = {
#define OP(name, rule) { &x86_op_##name, rule }
    OP(add, MODIFY), OP(or, MODIFY), OP(adc, MODIFY), OP(sbb, MODIFY), OP(and, MODIFY), OP(sub, MODIFY), OP(xor, MODIFY),
    OP(inc, MODIFY), OP(dec, MODIFY), OP(not, MODIFY), OP(neg, MODIFY), OP(rol, MODIFY), OP(ror, MODIFY), OP(rcl, MODIFY), OP(rcr, MODIFY),
    OP(shl, MODIFY), OP(shr, MODIFY), OP(sar, MODIFY), OP(shld, MODIFY), OP(shrd, MODIFY), OP(xchg, MODIFY), OP(xadd, MODIFY),
    OP(cmpxchg, MODIFY), OP(bts, BITS), OP(btr, BITS), OP(btc, BITS), OP(bt, BITS),
    OP(cmp, READ), OP(test, READ), OP(movzx, READ), OP(movsx, READ), OP(movsxd, READ), OP(imul, READ), OP(mul, READ), OP(cmovcc, READ),
    OP(popcnt, READ), OP(tzcnt, READ), OP(lzcnt, READ), OP(bsf, READ), OP(bsr, READ), OP(crc32, READ), OP(adcx, READ), OP(adox, READ),
    OP(andn, READ), OP(blsr, READ), OP(blsmsk, READ), OP(blsi, READ), OP(bzhi, READ), OP(pext, READ), OP(pdep, READ), OP(mulx, READ),
    OP(bextr, READ), OP(shlx, READ), OP(sarx, READ), OP(shrx, READ), OP(rorx, READ),
    OP(mov, MOVE), OP(movbe, MOVE), OP(setcc, MOVE), OP(bswap, READ), OP(cbw, SAME), OP(cwd, SAME), OP(sahf, SAME), OP(lahf, SAME),
    OP(cmc, SAME), OP(clc, SAME), OP(stc, SAME), OP(nop, NOTHING), OP(lea, LEA), OP(push, PUSH), OP(pop, POP), OP(leave, LEAVE),
    OP(jmp, JMP), OP(jcc, JCC), OP(call, CALL), OP(ret, RET), OP(div, DIV), OP(idiv, DIV), OP(loop, LOOP), OP(jcxz, JCXZ),
    OP(cli, SYSTEM), OP(sti, SYSTEM), OP(cld, SYSTEM), OP(std, SYSTEM), OP(pushf, SYSTEM), OP(popf, SYSTEM), OP(mov_cr, SYSTEM),
    OP(mov_from_seg, SYSTEM), OP(push_seg, SYSTEM), OP(sldt, SYSTEM), OP(str, SYSTEM), OP(smsw, SYSTEM), OP(swapgs, SYSTEM),
    OP(mova, MOVE | SSE), OP(movu, MOVE | SSE), OP(movscalar, MOVE | SSE), OP(movq, MOVE | SSE), OP(movd, MOVE | SSE), OP(movl, MOVE | SSE),
    OP(movh, MOVE | SSE), OP(pextr, MOVE | SSE), OP(pinsr, READ | SSE), OP(sse, READ | SSE), OP(sse_imm, READ | SSE),
    OP(sse_shift, READ | SSE), OP(sse_dqshift, READ | SSE), OP(insertps, READ | SSE), OP(blendv, READ | SSE), OP(pcmpstr, READ | SSE),
    OP(x87, READ), OP(x87_load, READ), OP(x87_store, MOVE), OP(fnstcw, MOVE), OP(fnstsw, MOVE), OP(fnclex, READ),
    OP(mmx, READ), OP(mmx_imm, READ), OP(mmx_shift, READ), OP(mmx_gpr, READ), OP(mmx_movq, MOVE), OP(emms, READ),
    OP(sse_fp, READ | SSE | FP), OP(sse_fp_imm, READ | SSE | FP), OP(sse_flags, READ | SSE | FP), OP(sse_gpr, READ | SSE | FP),
#undef OP
};

void bt_rules(struct bt *t)
{
    for (unsigned f = 0; f < x86_nr_forms && f < sizeof t->form_rule; f++)
        for (unsigned n = 0; n < ARRAY_SIZE(RULES); n++)
            if (x86_forms[f].op == RULES[n].op)
                t->form_rule[f] = RULES[n].rule;
}

/* ---- what an instruction is to be -------------------------------------------------------------------------------- */

/* False: #GP(0), or in 32-bit code an address that has to be cut. */
static bool target_is_plain(const struct translation *tr) { return is_plain(branch_target(tr), context_mode(tr->context)); }

/* In 32-bit code: the memory operand is one of the segments that the context says can be used, by a 32-bit address. */
static bool operand_is_flat(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    if (!(tr->context & CTX_32) || !x86_has_mem(i))
        return true;
    return i->addr_mask == 0xffffffff && i->mem_seg != X86_CS && (i->mem_seg != X86_FS || tr->context & CTX_FS) &&
           (i->mem_seg != X86_GS || tr->context & CTX_GS);
}

enum rule tr_rule(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    u8 r = tr->t->form_rule[i->form];
    enum rule rule = r & RULE;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    unsigned width = tr_width(tr);
    if ((r & SSE && !(tr->context & CTX_SSE)) || (r & FP && !(tr->context & CTX_FP)))
        return STEP;
    if (rule != NOTHING && !operand_is_flat(tr))
        return STEP;
    if (uses_x87(i) && !(tr->context & CTX_X87))
        return STEP;
    switch (rule) {
    case STEP: case NOTHING: case SAME:
        return rule;
    case BITS: case MODIFY: case READ: case MOVE:
        if (rule == BITS && mem && i->op[1].kind != X86_IMM)
            return STEP;
        if (i->size == 2 && (x86_forms[i->form].op == &x86_op_shld || x86_forms[i->form].op == &x86_op_shrd))
            return STEP;                /* by more than 16: CPUs differ */
        if (mem && (!mem->size || mem->size > 16 || mem->size & (mem->size - 1)))
            return STEP;
        return tr_can_encode(tr) ? rule : STEP;
    case SYSTEM:
        return tr_system_rule(tr) ? rule : STEP;
    case LEA:
        return i->size >= 4 ? rule : STEP;
    case PUSH: case LEAVE:
        return i->size == width ? rule : STEP;
    case POP:
        return i->size == width && !mem ? rule : STEP;
    case JMP: case CALL: case JCC: case RET:
        return i->size != width || (is_rel(i) && !target_is_plain(tr)) ? STEP : rule;
    case DIV:                           /* of registers that stay, with what compilers put into rdx */
        return i->op[0].kind == X86_REG && i->size >= 4 && i->op[0].reg / 8 < R_13 && i->op[0].reg / 8 != R_SP ? rule : STEP;
    case LOOP: case JCXZ:
        return i->size == width && i->addr_mask >> (8 * width - 1) == 1 && target_is_plain(tr) ? rule : STEP;
    default:
        return rule;
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* How many sequences come from the instruction number `first` on before the flags are written next: whether it pays to save them. 0: they
 * are dead; -1: none, but they are read. */
static int accesses_to_come(const struct translation *tr, const struct x86_insn *i, const struct near *near, unsigned first, unsigned n)
{
    int accesses = 0;
    for (unsigned k = first; k < n; k++) {
        enum rule rule = tr->t->form_rule[i[k].form] & RULE;
        enum flag_use use = flags_use(&i[k]);
        if (near[k].step || use == FLAGS_USED)
            return accesses ? accesses : -1;
        if (!tr_is_known(tr, i, near, k))
            accesses += (x86_has_mem(&i[k]) && rule != LEA && rule != NOTHING) + (rule == PUSH || rule == POP || rule == LEAVE) +
                        2 * (rule == CALL || rule == RET);
        if (use == FLAGS_WRITTEN)
            return accesses;
    }
    return accesses + 1;
}

/* The interpreter does an instruction: it may be any, and change what is known of pages and registers. */
static void forget_spans(struct translation *tr)
{
    carry_end(tr);
    for (unsigned n = 0; n < R_13; n++)
        tr->span[n].on = tr->known[n] = false;
    for (unsigned n = 0; n < WIDE; n++)
        tr->wide[n].on = false;
    tr->nr_fixed = 0;
}

static void emit_block(struct translation *tr, const struct route *route, const u8 *copy)
{
    struct bt *t = tr->t;
    struct emit *e = &tr->e;
    const struct x86_insn *insns = route->i;
    unsigned nr = route->nr;
    bool ended = false;
    struct range ranges[16] = { 0 };
    if (t->options & BT_PROFILE) {      /* lea leaves the flags alone */
        e_mov_imm(e, SCRATCH, (u64)&t->block[tr->b].hits);
        tr->operand.base = -1;
        tr_load(tr, 8, SCRATCH2);
        e_lea(e, true, SCRATCH2, SCRATCH2, NO_INDEX, 0, 1);
        tr_store(tr, 8, SCRATCH2);
    }
    for (unsigned n = 0; n < nr; n++) {
        tr->i = &insns[n], tr->last = n + 1 == nr;
        tr_near(tr, &tr->near[n]);
        range_next(tr, ranges, &tr->near[n], tr->va + route->off[n]);
    }
    for (unsigned n = 0; n < nr; n++) {
        u32 first = t->nr_exits;
        struct bt_map *m = &t->maps[t->nr_maps++];
        tr->off = route->off[n];
        tr->rest = &insns[n + 1], tr->rest_near = &tr->near[n + 1], tr->nr_rest = nr - n - 1;
        tr->i = &insns[n], tr->bytes = copy + (int)(tr->va % PAGE_SIZE) + tr->off, tr->k = (s16)n, tr->again = e->at;
        m->code = e->at, m->off = (s16)tr->off, m->len = insns[n].len;
        tr->last = n + 1 == nr;
        tr->here = &tr->near[n];
        tr->step = tr->here->step;
        tr->opens = tr->apart != APART && (tr->here->fixed || (tr->here->access && (is_plain_place(tr->here->of) || tr->apart == SPANS)));
        if (tr->t->form_rule[insns[n].form] == JCC && !tr->step && n + 1 < nr) {
            u64 behind = tr->va + tr->off + insns[n].len;
            bool taken = tr->va + route->off[n + 1] != behind;
            flags_restore(tr);
            struct cold *c = tr_cold(tr, COLD_SIDE, e_jcc_later(e, (insns[n].opcode & 15) ^ taken), 0);
            c->slot = n + 1, c->target = taken ? behind : branch_target(tr), c->flags = tr->flags;
            m->treatment = BT_ENDING;
            tr->shadow = false;
            continue;
        }
        if (tr->t->form_rule[insns[n].form] == JMP && n + 1 < nr) {
            m->treatment = BT_ENDING;   /* followed: nothing is left of it */
            tr->shadow = false;
            continue;
        }
        flags_before(tr, accesses_to_come(tr, insns + n, tr->near + n, 0, nr - n),
                     accesses_to_come(tr, insns + n, tr->near + n, 1, nr - n));
        tr->again = e->at;              /* a restart finds the flags in order */
        m->treatment = (u8)tr_instruction(tr, n + 1, &ended);
        if (tr->step)
            forget_spans(tr);
        near_after(tr);
        if (!ended)
            flags_after(tr);
        bool opened = false;            /* what the interpreter does in the place of an instruction that opens a span does not open it */
        for (u32 x = first; x < t->nr_exits; x++)
            opened |= t->exits[x].opens;
        for (u32 x = first; x < t->nr_exits && !ended && !opened; x++)
            t->exits[x].behind = e->at;
        tr->shadow = m->treatment == BT_INLINE && x86_forms[insns[n].form].op == &x86_op_sti;
    }
    tr->off = route->off[nr];
    if (!ended) {
        tr->k = (s16)nr;
        tr->shadow = false;
        tr_take_time(tr, nr);
        flags_restore(tr);
        tr_go_to(tr, e_jmp_later(e), tr->va + tr->off);
    }
    tr_cold_code(tr);
}

/* There is room for the largest block. */
static bool has_room(const struct bt *t)
{
    return t->used + CACHE_SLACK <= CACHE_BYTES && t->nr_blocks < NR_BLOCKS && t->nr_exits + 5 * BT_MAX_BLOCK < NR_EXITS &&
           t->nr_links + 2 <= LINKS && t->nr_pages < CODE_PAGES && t->nr_maps + BT_MAX_BLOCK < NR_MAPS &&
           !(t->options & BT_FLUSH && t->nr_blocks > 64);
}

u32 bt_translate(struct bt *t, const u8 *host, u64 va, u16 context, const struct loop_path *loop, enum bt_apart apart)
{
    struct route route;
    u8 copy[PAGE_SIZE];
    unsigned in_page = va % PAGE_SIZE;
    if (!has_room(t))
        bt_forget(t);
    memcpy(copy, host - in_page, PAGE_SIZE);    /* once: another CPU may be writing there */
    route_decode(t, copy, va, context, loop, &route);
    unsigned nr = route.nr, low = in_page + (unsigned)route.low, bytes = (unsigned)(route.high - route.low);
    struct bt_page *page = bt_page_claim(t, host, low, bytes ? bytes : 1);
    if (!page || memcmp(copy + low, host - in_page + low, bytes))
        return 0;

    u32 b = t->nr_blocks++;
    struct translation tr;
    memset(&tr, 0, offsetof(struct translation, cold));
    tr.e = (struct emit){ t, t->rw + t->used, t->used };
    tr.t = t, tr.b = b, tr.set = context & CTX_SET, tr.va = va, tr.context = context, tr.apart = apart;
    for (unsigned n = 0; n < R_13; n++)
        tr.known[n] = true;
    struct bt_block *block = &t->block[b];
    *block = (struct bt_block){ .host = host, .va = va, .code = t->used, .bytes = (u16)bytes, .low = (s16)route.low, .nr = (u16)nr,
                                .context = context, .first_map = t->nr_maps, .unrolled = loop, .apart = (u8)apart };
    if (loop)
        block->path = *loop;
    tr.i = route.i, tr.bytes = copy + in_page;
    if (!nr) {                  /* known to be none */
        block->nr = 0;
        bt_block_insert(t, b, page);
        return b;
    }
    block->entry_exit = tr_exit(&tr, EXIT_NEXT, va);
    emit_block(&tr, &route, copy);
    block->code_len = tr.e.at - t->used;
    block->nr_exits = t->nr_exits - block->entry_exit;
    t->used = ALIGN_UP(tr.e.at, 64);
    bt_block_insert(t, b, page);
    t->stats.blocks++;
    t->stats.translated += nr;
    t->stats.host_bytes += block->code_len;
    t->stats.guest_bytes += bytes;
    if (t->options & BT_VERIFY) {
        block->host = copy + in_page;   /* what was translated: in memory another CPU may be changing it */
        bool ok = bt_verify(t, block);
        block->host = host;
        if (!ok) {
            t->stats.rejected++;
            t->rejected = *block;       /* for who looks into it */
            block->nr = 0;
        }
    }
    return b;
}

#endif
