/* Symbolic values: what a host register holds, in terms of the guest's state before an instruction.
 *
 * Owns: struct values, a pool in which equal values have equal numbers (so that == compares them). Used by: the verifier alone (verify.h).
 * No locks.
 *
 * A value is an atom or a sum of atoms, each shifted left, and a constant. Atoms: see enum value_kind. Arithmetic is modulo 2^64.
 */
#ifndef XL_BT_VALUE_H
#define XL_BT_VALUE_H

#include <string.h>

#include "base/types.h"

typedef u16 value;              /* index into the pool; 0: unknown */

enum value_kind {
    VAL_UNKNOWN,
    VAL_SUM,                    /* term[i] << shift[i] ... + n */
    VAL_GUEST,                  /* guest register n before the instruction */
    VAL_RESULT,                 /* guest register n after the copied instruction */
    VAL_FIELD,                  /* what [gs:n] holds */
    VAL_INDEXED,                /* what [gs:n + 8 * term[0]] holds */
    VAL_PEXT,                   /* bits of term[0] that the mask at [gs:n] chooses; width: bytes */
    VAL_CUT,                    /* low 32 bits of term[0] */
    VAL_LOADED,                 /* the bytes of guest memory at term[0]; width: how many, 8 or 4 */
    VAL_L1_INDEX,               /* page number of term[0] modulo L1's size, times 8 */
    VAL_ROTATED,                /* term[0] rotated right by n */
    VAL_FLAGS,                  /* the guest's flags in rax: n 1 ah, 2 al too (lahf, seto), 3 with OF in the host's (add al, 7fh) */
    VAL_DONE,                   /* term[0] with something added or subtracted (verify_inserted.c, remakes) */
    VAL_CARRIED_NEGATED, VAL_CARRIED_ADDEND,    /* of the entry that an instruction before has used (struct carried); n: it is for stores */
    VAL_CPU,                    /* field of struct x86_cpu at offset n before the instruction; width: bytes */
    VAL_MASKED,                 /* bits n of term[0], in their places */
    VAL_DEPOSIT,                /* low bits of term[0] in the places that n has */
    VAL_NOT,                    /* complement of term[0] */
    VAL_SPAN,                   /* negated page of number n >> 1 of struct spans, for stores if n is odd */
    VAL_HOST_FLAGS,             /* what pushfq has pushed, while the arithmetic flags were the guest's */
    VAL_L1_NEGATED, VAL_L1_ADDEND,      /* what the lookup number n (verify_jump.c) found for the linear address term[0] */
};

enum { VALUE_TERMS = 6, NR_VALUES = 512 };
struct value_node {
    u8 kind, nr, width, pad;
    u8 shift[VALUE_TERMS];
    value term[VALUE_TERMS];
    u64 n;
};
struct values { unsigned nr; struct value_node v[NR_VALUES]; };

static inline void values_clear(struct values *p) { memset(&p->v[0], 0, sizeof p->v[0]); p->nr = 1; }

static inline value value_of(struct values *p, const struct value_node *v)
{
    for (unsigned k = 1; k < p->nr; k++)
        if (!memcmp(&p->v[k], v, sizeof *v))
            return (value)k;
    if (p->nr == NR_VALUES)
        return 0;
    p->v[p->nr] = *v;
    return (value)p->nr++;
}

static inline value value_atom(struct values *p, enum value_kind kind, value of, u64 n, unsigned width)
{
    struct value_node v;
    memset(&v, 0, sizeof v);
    v.kind = (u8)kind, v.nr = of != 0, v.term[0] = of, v.n = n, v.width = (u8)width;
    return value_of(p, &v);
}

static inline value value_const(struct values *p, u64 n) { return value_atom(p, VAL_SUM, 0, n, 0); }

/* a + (b << shift) + n; unknown if either is, or if it has too many terms. */
static inline value value_add(struct values *p, value a, value b, unsigned shift, u64 n)
{
    struct value_node s;
    memset(&s, 0, sizeof s);
    s.kind = VAL_SUM, s.n = n;
    if (!a || !b)
        return 0;
    for (unsigned k = 0; k < 2; k++) {
        const struct value_node *v = &p->v[k ? b : a];
        unsigned by = k ? shift : 0, terms = v->kind == VAL_SUM ? v->nr : 1;
        if (v->kind == VAL_SUM)
            s.n += v->n << by;
        for (unsigned t = 0; t < terms; t++) {
            value term = v->kind == VAL_SUM ? v->term[t] : k ? b : a;
            u8 sh = (u8)((v->kind == VAL_SUM ? v->shift[t] : 0) + by);
            unsigned at = s.nr;
            if (s.nr == VALUE_TERMS)
                return 0;
            for (; at && (s.term[at - 1] > term || (s.term[at - 1] == term && s.shift[at - 1] > sh)); at--)
                s.term[at] = s.term[at - 1], s.shift[at] = s.shift[at - 1];
            s.term[at] = term, s.shift[at] = sh;
            s.nr++;
        }
    }
    return s.nr == 1 && !s.n && !s.shift[0] ? s.term[0] : value_of(p, &s);
}

static inline value value_plus(struct values *p, value a, u64 n) { return value_add(p, a, value_const(p, 0), 0, n); }

static inline value value_cut(struct values *p, value a)
{
    const struct value_node *v = &p->v[a];
    if (!a || v->kind == VAL_CUT || (v->kind == VAL_LOADED && v->width == 4))
        return a;
    return v->kind == VAL_SUM && !v->nr ? value_const(p, (u32)v->n) : value_atom(p, VAL_CUT, a, 0, 0);
}

/* sum less one unshifted term: true and *rest, or false if it has no such term. An atom is a sum of itself. */
static inline bool value_without(struct values *p, value sum, value term, value *rest)
{
    struct value_node v = p->v[sum];
    if (sum == term) {
        *rest = value_const(p, 0);
        return sum != 0;
    }
    if (v.kind != VAL_SUM)
        return false;
    for (unsigned k = 0; k < v.nr; k++)
        if (v.term[k] == term && !v.shift[k]) {
            for (unsigned j = k; j + 1 < v.nr; j++)
                v.term[j] = v.term[j + 1], v.shift[j] = v.shift[j + 1];
            v.nr--, v.term[v.nr] = 0, v.shift[v.nr] = 0;
            *rest = v.nr == 1 && !v.n && !v.shift[0] ? v.term[0] : value_of(p, &v);
            return true;
        }
    return false;
}

/* a is b and a constant: true and *by. */
static inline bool value_apart(const struct values *p, value a, value b, u64 *by)
{
    struct value_node x = p->v[a], y = p->v[b];
    if (!a || !b)
        return false;
    if (x.kind != VAL_SUM)
        memset(&x, 0, sizeof x), x.kind = VAL_SUM, x.nr = 1, x.term[0] = a;
    if (y.kind != VAL_SUM)
        memset(&y, 0, sizeof y), y.kind = VAL_SUM, y.nr = 1, y.term[0] = b;
    *by = x.n - y.n;
    x.n = y.n;
    return !memcmp(&x, &y, sizeof x);
}

#endif
