/* What memory translated code may touch: fields of struct bt, guest memory behind a test. Called by: verify.c. Owns: nothing. */
#include "bt/verify.h"

#if defined(__x86_64__)

/* ---- fields of struct bt ----------------------------------------------------------------------------------------- */

static int own_of(u32 field)
{
    if (field >= GS(hi) && field < GS(hi) + 24 && !((field - GS(hi)) % 8))
        return OWN_HI + (int)(field - GS(hi)) / 8;
    return field == GS(tmp) ? OWN_TMP : field == GS(tmp2) ? OWN_TMP2 : field == GS(entry) ? OWN_ENTRY : field == GS(left) ? OWN_LEFT :
           field == GS(flag_a) ? OWN_FLAG_A : field == GS(flag_b) ? OWN_FLAG_B : -1;
}

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

bool verify_read_field(struct check *c, struct path *p, u32 field, value *out)
{
    int own = own_of(field);
    bool write, addend;
    u32 slot = slot_of(c, field, &write, &addend);
    if (own >= 0)
        *out = p->own[own];
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
    bool write, addend;
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
    if (!slot)
        return verify_refuse(c, "writes a field that is not translated code's");
    const struct value_node *n = &v->v[x];
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

/* Tests have shown that all of `size` bytes from lin are in the page of the entry with this negated field, and lin a multiple of align. */
static bool tested(struct check *c, const struct path *p, value negated, value lin, unsigned size, unsigned align)
{
    value first = value_add(&c->values, lin, negated, 0, 0), last = value_add(&c->values, lin, negated, 0, size - 1);
    bool first_in = false, last_in = false;
    for (unsigned k = 0; first && k < p->nr_facts; k++) {
        const struct fact *f = &p->fact[k];
        const struct value_node *n = &c->values.v[f->of];
        value of = f->of;
        u64 clear = f->kind == CLEAR ? f->n : 0, page = ~(u64)(PAGE_SIZE - 1);
        if (f->kind == ZERO && n->kind == VAL_PEXT && n->width == 8)
            of = n->term[0], clear = mask_at(c, (u32)n->n);
        u64 apart;
        if (f->kind == BELOW && align <= 1 && value_apart(&c->values, first, of, &apart) && apart <= PAGE_SIZE && f->n + apart + size <= PAGE_SIZE)
            return true;
        if ((clear & page) != page)
            continue;
        if (of == first && (clear & (size - 1)) == size - 1)    /* aligned, so that no byte is in another page */
            return true;
        first_in |= of == first;
        last_in |= of == last;
    }
    return align <= 1 && first_in && last_in;
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
