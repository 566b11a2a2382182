/* What memory translated code may touch: fields of struct bt, guest memory behind a test. Called by: verify.c. Owns: nothing. */
#include "bt/verify.h"

#if defined(__x86_64__)

/* What the lookup found that gave this VAL_L1_NEGATED. */
static value addend_of(struct values *v, const struct value_node *n) { return value_atom(v, VAL_L1_ADDEND, n->term[0], n->n, n->width); }

/* ---- fields of struct bt ----------------------------------------------------------------------------------------- */

static int own_of(u32 field)
{
    if (field >= GS(hi) && field < GS(hi) + 24 && !((field - GS(hi)) % 8))
        return OWN_HI + (int)(field - GS(hi)) / 8;
    return field == GS(tmp) ? OWN_TMP : field == GS(tmp2) ? OWN_TMP2 : field == GS(entry) ? OWN_ENTRY : field == GS(left) ? OWN_LEFT :
           field == GS(flag_a) ? OWN_FLAG_A : field == GS(flag_b) ? OWN_FLAG_B : -1;
}

/* The entry without addend that this field is: of the block's own set. */
static bool is_slid_entry(const struct check *c, u32 field, bool *write)
{
    u32 half = L0 * 8, off = field - GS(slid) - (c->b->context & CTX_SET) * 2 * half;
    *write = off >= half;
    return off < 2 * half && off % 8 == 0;
}

static value slid_entry(struct check *c, const struct path *p, u32 field)
{
    for (unsigned k = p->nr_slid; k-- > 0; )
        if (p->slid[k].at == field)
            return p->slid[k].x;
    return value_atom(&c->values, VAL_FIELD, 0, field, 8);
}

value verify_slide(struct check *c) { return value_atom(&c->values, VAL_FIELD, 0, GS(slide) + 8 * (c->b->context & CTX_SET), 8); }

/* The L0 entry that has this field, as its offset, or 0; *write: which half, *addend: which word. Of the block's own set only. */
static u32 slot_of(const struct check *c, u32 field, bool *write, bool *addend)
{
    u32 half = L0 * sizeof(struct bt_entry), first = GS(l0) + (c->b->context & CTX_SET) * 2 * half, off = field - first;
    if (field < first || off >= 2 * half || off % 8)
        return 0;
    *write = off >= half, *addend = off % 16 == 8;
    return field - off % 16;
}

bool verify_entry(const struct check *c, u32 addend, bool *write)
{
    bool is_addend;
    return slot_of(c, addend, write, &is_addend) && is_addend;
}

bool verify_is_slid(const struct check *c, u32 field)
{
    bool write;
    return is_slid_entry(c, field, &write);
}

bool verify_read_field(struct check *c, struct path *p, u32 field, value *out)
{
    int own = own_of(field);
    bool write, addend;
    u32 slot = slot_of(c, field, &write, &addend);
    if (own >= 0)
        *out = p->own[own];
    else if (field == GS(slide) + 8 * (c->b->context & CTX_SET))
        *out = verify_slide(c);
    else if (is_slid_entry(c, field, &write))
        *out = slid_entry(c, p, field);
    else if (slot && slot == p->slot)
        *out = addend ? p->slot_addend : p->slot_negated;
    else if (slot || field == GS(x87_out) || field == GS(seg_base) || field == GS(seg_base) + 8 || field == GS(cpu))
        *out = value_atom(&c->values, VAL_FIELD, 0, field, 8);
    else
        return verify_refuse(c, "reads a field that is not translated code's");
    return true;
}

bool verify_write_field(struct check *c, struct path *p, u32 field, value x)
{
    int own = own_of(field);
    bool write = false, addend = false;
    u32 slot = slot_of(c, field, &write, &addend);
    struct values *v = &c->values;
    if (own == OWN_LEFT) {
        value rest;
        const struct value_node *n;
        if (!value_without(v, x, p->own[OWN_LEFT], &rest))
            return verify_refuse(c, "time is not taken from bt->left");
        n = &v->v[rest];
        if (n->kind != VAL_SUM || n->nr || -n->n != c->nr + 1 - (c->g ? 0 : 1) || p->taken)
            return verify_refuse(c, "wrong time is taken");
        p->taken = (int)-n->n, p->in_time = false;
        p->own[own] = x;
        return true;
    }
    if (own >= 0) {
        p->own[own] = x;
        return true;
    }
    if (field == GS(sti_flags) || field == GS(seg_base) + 8)
        return verify_state_write(c, p, OF_BT | field, x);
    if (field == GS(x87_ip)) {
        if (!p->acted || !c->effect.sets_ip || x != value_const(v, c->b->va + c->off))
            return verify_refuse(c, "FIP becomes what it is not");
        p->ip_set = true;
        return true;
    }
    const struct value_node *n = &v->v[x];
    bool for_write;
    if (is_slid_entry(c, field, &for_write)) {
        if (p->nr_slid == ARRAY_SIZE(p->slid))
            return verify_refuse(c, "too many entries are replaced");
        p->slid[p->nr_slid++] = (struct written){ field, x };
        return (n->kind == VAL_L1_NEGATED && (bool)(n->width & 32) == for_write && facts_have(p, SLIDE, addend_of(v, n))) ||
               verify_refuse(c, "an entry for pages that have bt->slide gets one that has not");
    }
    if (!slot)
        return verify_refuse(c, "writes a field that is not translated code's");
    if (n->kind != (addend ? VAL_L1_ADDEND : VAL_L1_NEGATED) || (bool)(n->width & 32) != write)
        return verify_refuse(c, "an L0 entry gets what no lookup of its kind has found");
    if (p->slot && p->slot != slot && !(p->slot_negated && p->slot_addend && v->v[p->slot_negated].n == v->v[p->slot_addend].n))
        return verify_refuse(c, "an L0 entry is half replaced");
    if (p->slot != slot)
        p->slot = slot, p->slot_negated = p->slot_addend = 0;
    *(addend ? &p->slot_addend : &p->slot_negated) = x;
    return true;
}

bool verify_slot_is_whole(const struct check *c, const struct path *p)
{
    const struct value_node *v = c->values.v;
    return !p->slot || (p->slot_negated && p->slot_addend && v[p->slot_negated].n == v[p->slot_addend].n);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* A fact about a sum: it is at most *most, and a multiple of 16 if *whole. 0: none of that kind. */
static value at_most(const struct check *c, const struct fact *f, u64 *most, bool *whole)
{
    const struct value_node *n = &c->values.v[f->of];
    if (f->kind == CLEAR && (f->n | (PAGE_SIZE - 1)) == ~0ul)
        return *whole = f->n % 16 == 15, *most = ~f->n, f->of;
    if (f->kind != BELOW)
        return 0;
    *whole = n->kind == VAL_ROTATED && n->n == 4 && f->n < 1ul << 60;   /* else its highest four bits would not be 0 */
    *most = *whole ? 16 * f->n : f->n;
    return *whole ? n->term[0] : f->of;
}

/* Tests have shown that all of `size` bytes from lin are in the page of the entry with this negated field, and lin a multiple of align. */
static bool tested(struct check *c, const struct path *p, value negated, value lin, unsigned size, unsigned align)
{
    value first = value_add(&c->values, lin, negated, 0, 0), last = value_add(&c->values, lin, negated, 0, size - 1);
    bool first_in = false, last_in = false;
    for (unsigned k = 0; first && k < p->nr_facts; k++) {
        const struct fact *f = &p->fact[k];
        const struct value_node *n = &c->values.v[f->of];
        u64 clear = f->kind == CLEAR ? f->n : 0, page = ~(u64)(PAGE_SIZE - 1), apart, most;
        bool whole;
        value of = at_most(c, f, &most, &whole);
        if (of && value_apart(&c->values, first, of, &apart) && apart <= PAGE_SIZE && most <= PAGE_SIZE &&
            most + apart + size <= PAGE_SIZE && (align <= 1 || (whole && apart % align == 0)))
            return true;
        of = f->of;
        if (f->kind == ZERO && n->kind == VAL_PEXT && n->width == 8)
            of = n->term[0], clear = mask_at(c, (u32)n->n);
        if ((clear & page) != page)
            continue;
        if (of == first && (clear & (size - 1)) == size - 1)    /* aligned, so that no byte is in another page */
            return true;
        first_in |= of == first;
        last_in |= of == last;
    }
    return align <= 1 && first_in && last_in;
}

/* x is the negated address of a page that has bt->slide; *write: for stores. */
static bool is_slid(struct check *c, const struct path *p, value x, bool *write)
{
    const struct value_node n = c->values.v[x];
    u32 half = L1 * 8, off = (u32)n.n - GS(l1_slid) - (c->b->context & CTX_SET) * 2 * half;
    switch (n.kind) {
    case VAL_SPAN:
        return *write = n.n & 1, true;
    case VAL_FIELD:
        return is_slid_entry(c, (u32)n.n, write);
    case VAL_L1_NEGATED:
        return *write = n.width & 32, facts_have(p, SLIDE, addend_of(&c->values, &n));
    case VAL_INDEXED:
        return *write = off == half, c->values.v[n.term[0]].kind == VAL_L1_INDEX && (off == 0 || off == half);
    default:
        return false;
    }
}

/* The same of a sum's term: *rest is the sum without it. 0: it has none. */
static value slid_in(struct check *c, const struct path *p, value sum, bool *write, value *rest)
{
    struct value_node n = c->values.v[sum];
    for (unsigned k = 0; n.kind == VAL_SUM && k < n.nr; k++)
        if (!n.shift[k] && is_slid(c, p, n.term[k], write) && value_without(&c->values, sum, n.term[k], rest))
            return n.term[k];
    return 0;
}

/* Tests have shown the same for a page that has bt->slide. */
static bool tested_slid(struct check *c, const struct path *p, value lin, unsigned size, bool write, unsigned align)
{
    for (unsigned k = 0; k < p->nr_facts; k++) {
        const struct fact *f = &p->fact[k];
        bool for_write = false;
        value rest, of = c->values.v[f->of].kind == VAL_ROTATED ? c->values.v[f->of].term[0] : f->of;
        value negated = slid_in(c, p, of, &for_write, &rest);
        if (f->kind == EQUAL && is_slid(c, p, f->of, &for_write) && for_write >= write && verify_lies_in(c, lin, size, align, -f->n))
            return true;
        if (negated && for_write >= write && tested(c, p, negated, lin, size, align))
            return true;
    }
    return false;
}

void verify_spans_start(struct check *c, struct path *p)
{
    for (unsigned k = 0; k < c->spans.nr; k++) {
        const struct known_span *s = &c->spans.of[k];
        value of = value_plus(&c->values, value_atom(&c->values, VAL_SPAN, 0, k << 1 | s->write, 0), s->low);
        if (s->base != NONE)
            of = value_add(&c->values, of, guest(c, s->base), 0, 0);
        if (s->index != NONE)
            of = value_add(&c->values, of, guest(c, s->index), s->scale, 0);
        facts_add(c, p, BELOW, s->whole ? value_atom(&c->values, VAL_ROTATED, of, 4, 0) : of, s->whole ? s->most / 16 : s->most);
    }
    for (unsigned k = 0; k < c->spans.nr_pages; k++)
        facts_add(c, p, EQUAL, value_atom(&c->values, VAL_SPAN, 0, (MAX_SPANS + k) << 1 | c->spans.page[k].write, 0), -c->spans.page[k].page);
}

static bool implied(const struct spans *by, const struct known_span *s)
{
    for (unsigned k = 0; k < by->nr; k++)
        if (!memcmp(&by->of[k], s, sizeof *s))
            return true;
    return false;
}

/* x is a place, in terms of registers behind the instruction, and a constant: *s is that place, *s->low what the constant is then. */
static bool is_place(struct check *c, value x, struct known_span *s)
{
    struct value_node sum = c->values.v[x];
    s->base = s->index = NONE, s->scale = 0, s->low = sum.n;
    for (unsigned k = 0; sum.kind == VAL_SUM && k < sum.nr; k++) {
        struct value_node term = c->values.v[sum.term[k]];
        u64 by;
        if (term.kind != VAL_GUEST || term.n >= R_13 || !value_apart(&c->values, verify_behind(c, (unsigned)term.n), sum.term[k], &by))
            return false;
        s->low -= by << sum.shift[k];
        if (!sum.shift[k] && s->base == NONE)
            s->base = (u8)term.n;
        else if (s->index == NONE)
            s->index = (u8)term.n, s->scale = sum.shift[k];
        else
            return false;
    }
    return s->index != NONE;            /* single registers are looked for otherwise: several may have been made the same */
}

static bool page_implied(const struct spans *by, const struct known_page *s)
{
    for (unsigned k = 0; k < by->nr_pages; k++)
        if (by->page[k].page == s->page && by->page[k].write == s->write)
            return true;
    return false;
}

/* Pages that p's facts make known: they stay so. */
static void pages_of(struct check *c, const struct path *p, struct spans *now)
{
    for (unsigned k = 0; k < p->nr_facts; k++) {
        struct known_page s = { .page = -p->fact[k].n };
        if (p->fact[k].kind == EQUAL && is_slid(c, p, p->fact[k].of, &s.write) && now->nr_pages < MAX_PAGES && !page_implied(now, &s))
            now->page[now->nr_pages++] = s;
    }
}

void verify_spans(struct check *c, const struct path *p, bool back)
{
    struct spans now = { .nr = 0, .slid = back || p->reg[R_14] == verify_slide(c) }, *to = &c->to.spans;
    memset(now.of, 0, sizeof now.of);
    for (unsigned k = 0; p && c->g && k < p->nr_facts; k++) {
        u64 most, low;
        bool whole, write;
        value rest, of = at_most(c, &p->fact[k], &most, &whole);
        if (!of || !slid_in(c, p, of, &write, &rest))
            continue;
        for (unsigned base = 0; base < R_13; base++)
            if (now.nr < MAX_SPANS && value_apart(&c->values, rest, verify_behind(c, base), &low)) {
                struct known_span *s = &now.of[now.nr++];
                s->base = (u8)base, s->index = NONE, s->write = write, s->whole = whole, s->low = low, s->most = most;
            }
        struct known_span *s = &now.of[now.nr];
        if (now.nr < MAX_SPANS && is_place(c, rest, s))
            s->write = write, s->whole = whole, s->most = most, now.nr++;
        else if (now.nr < MAX_SPANS)
            memset(s, 0, sizeof *s);
    }
    if (p && c->g)
        pages_of(c, p, &now);
    if (!c->to.spanned) {
        *to = now;
    } else {
        unsigned nr = 0;
        for (unsigned k = 0; k < to->nr; k++)
            if (implied(&now, &to->of[k]))
                to->of[nr++] = to->of[k];
        to->nr = nr, to->slid &= now.slid;
        nr = 0;
        for (unsigned k = 0; k < to->nr_pages; k++)
            if (page_implied(&now, &to->page[k]))
                to->page[nr++] = to->page[k];
        to->nr_pages = nr;
    }
    c->to.spanned = true;
}

/* `address` is that of `size` bytes of guest memory, for a store if write, a multiple of `align`: *lin := their linear address. */
bool verify_access(struct check *c, const struct path *p, value address, unsigned size, bool write, unsigned align, value *lin)
{
    struct value_node sum = c->values.v[address];
    if (sum.kind != VAL_SUM)
        memset(&sum, 0, sizeof sum), sum.nr = address != 0, sum.term[0] = address;
    for (unsigned k = 0; k < sum.nr; k++) {
        struct value_node addend = c->values.v[sum.term[k]];
        bool for_write;
        if (sum.shift[k] || !value_without(&c->values, address, sum.term[k], lin))
            continue;
        if (addend.kind == VAL_L1_ADDEND) {             /* width: log2 of the size, 16: aligned, 32: for stores */
            if (addend.term[0] != *lin || size > 1u << (addend.width & 15) || (align > 1 && !(addend.width & 16)))
                return verify_refuse(c, "the lookup was for another address, for fewer bytes or for any alignment");
            return write && !(addend.width & 32) ? verify_refuse(c, "a store through an entry for loads") : true;
        }
        if (addend.kind == VAL_CARRIED_ADDEND) {
            value negated = value_atom(&c->values, VAL_CARRIED_NEGATED, 0, addend.n, 0);
            if (write && !addend.n)
                return verify_refuse(c, "a store through an entry for loads");
            return tested(c, p, negated, *lin, size, align) || verify_refuse(c, "no test shows that all bytes are in the entry's page");
        }
        if (addend.kind == VAL_INDEXED && c->values.v[addend.term[0]].kind == VAL_L1_INDEX) {    /* L1 in line: linear + negated + host */
            u32 half = L1 * 8, set = (c->b->context & CTX_SET) * 2 * half, side = (u32)addend.n - GS(l1_host) - set;
            value rest, entry = value_atom(&c->values, VAL_INDEXED, addend.term[0], GS(l1_negated) + set + side, 8);
            if ((side && side != half) || addend.n < GS(l1_host) || !value_without(&c->values, *lin, entry, &rest))
                continue;
            *lin = rest;
            if (write && !side)
                return verify_refuse(c, "a store through an entry for loads");
            return tested(c, p, entry, rest, size, align) || verify_refuse(c, "no test shows that all bytes are in the entry's page");
        }
        if (sum.term[k] == verify_slide(c))
            return tested_slid(c, p, *lin, size, write, align) ||
                   verify_refuse(c, "no test shows that all bytes are in a page that has bt->slide");
        if (addend.kind != VAL_FIELD || !verify_entry(c, (u32)addend.n, &for_write))
            continue;
        if (write && !for_write)
            return verify_refuse(c, "a store through an entry for loads");
        value negated = value_atom(&c->values, VAL_FIELD, 0, addend.n - 8, 8);
        return tested(c, p, negated, *lin, size, align) || verify_refuse(c, "no test shows that all bytes are in the entry's page");
    }
    return verify_refuse(c, "memory is accessed at an address that is no guest's");
}

value verify_host_address(struct check *c, const struct path *p, const struct x86_insn *h, u32 at)
{
    struct values *v = &c->values;
    value a = h->base == X86_RIP ? value_const(v, bt_host_address(c->t, at)) : h->base == X86_ZERO ? value_const(v, 0) : p->reg[h->base];
    if (h->index != X86_ZERO)
        a = value_add(v, a, p->reg[h->index], h->scale, 0);
    a = value_plus(v, a, (u64)h->disp);
    return h->addr_mask == ~0ul ? a : 0;
}

#endif
