/* What translate.c, operand.c and memory.c share: a block under translation. Owns: nothing. */
#ifndef XL_BT_TRANSLATE_H
#define XL_BT_TRANSLATE_H

#include "bt/emit.h"

/* How the guest's flags can be had again once inserted code has destroyed them. */
enum recipe_kind {
    FLAGS_ONLY_HERE,            /* they cannot: they are in the host's, and stay there */
    FLAGS_SAVED,                /* in bt->saved_flags */
    FLAGS_AGAIN,                /* cmp, test: once more */
    FLAGS_OF_RESULT,            /* and, or, xor: test a, a */
    FLAGS_OF_ADD, FLAGS_OF_SUB, /* undone and done again on a copy of a */
};
struct recipe { u8 kind, op, a, b; bool has_imm; u8 size; s32 imm; u32 regs; };     /* op: AGAIN: 0 test, 7 cmp. regs: host registers it needs */

enum cold_kind { COLD_ACCESS, COLD_MISS /* an access that L1 was asked for in line */, COLD_SIDE /* a branch out of the middle */, COLD_EXIT, COLD_LINK };
struct cold {                   /* code that is rarely reached, behind the block's */
    u8 kind, size, write, aligned;
    bool restore_rcx;           /* EXIT: rcx is in r15 */
    u32 from;                   /* the rel32 that leads to it */
    u32 back;                   /* ACCESS: where it goes on */
    u32 slot;                   /* ACCESS, MISS: offset in struct bt of its L0 entry, of L1's side. SIDE: instructions up to it */
    u64 target;                 /* SIDE: guest address */
    struct recipe flags;        /* FLAGS_ONLY_HERE: they are intact */
    u32 exit;
};
enum { MAX_COLD = 4 * BT_MAX_BLOCK };

struct translation {
    struct emit e;
    struct bt *t;
    u32 b, set;
    u64 va;
    u8 context;
    const struct x86_insn *i;   /* the instruction under way, */
    const u8 *bytes;            /* its bytes, */
    u32 off;                    /* its offset in the block, */
    s8 k;                       /* bt_exit.k at it, */
    u32 again;                  /* where its code begins, */
    u32 first_exit;             /* and its exits */
    struct recipe flags;
    bool lost;                  /* the host's flags are not the guest's now: tr->flags says how to get them */
    bool step;                  /* the instruction under way is the interpreter's */
    bool keep;                  /* the instruction under way needs them: inserted code may not touch them */
    struct cold cold[MAX_COLD];
    unsigned nr_cold;
};

u32 tr_exit(struct translation *tr, enum bt_exit_kind kind, u64 target);
struct cold *tr_cold(struct translation *tr, enum cold_kind kind, u32 from, u32 exit);

/* ---- memory.c ---- */
/* r14 := linear address of the instruction's memory operand; r15 is used. segment: with FS's or GS's base. */
void tr_address(struct translation *tr, bool segment);
/* r14: linear address -> host address of `size` bytes for a load or store; r15 is used. */
void tr_access(struct translation *tr, unsigned size, bool write, bool aligned, unsigned slot);
unsigned tr_slot(const struct translation *tr); /* L0 entry for the instruction's memory operand */
enum { SLOT_STACK = 0 };
void tr_cold_code(struct translation *tr);      /* all that is in tr->cold, also what is added meanwhile */
void tr_side_code(struct translation *tr, const struct cold *c);        /* translate.c */

/* ---- flags.c ---- */
enum flag_use { FLAGS_UNTOUCHED, FLAGS_WRITTEN /* all six, and none read */, FLAGS_USED };
enum flag_use flags_use(const struct x86_insn *i);
void flags_before(struct translation *tr, unsigned following); /* before each instruction; following: accesses up to the next that writes flags */
void flags_after(struct translation *tr);
void flags_restore(struct translation *tr);     /* the host's flags are the guest's again */
void flags_emit(struct emit *e, const struct recipe *r);        /* r15 is used */
static inline bool flags_may_go(const struct translation *tr) { return tr->flags.kind != FLAGS_ONLY_HERE && !tr->keep; }

/* ---- operand.c ---- */
/* The instruction with its registers replaced and its memory operand, if any, at [r14]. False: it cannot be encoded; nothing was emitted. */
bool tr_can_encode(const struct translation *tr);
void tr_encode(struct translation *tr);
/* Host register that holds guest register n, or scratch after loading it there. */
unsigned tr_get(struct translation *tr, unsigned n, unsigned scratch);
void tr_set(struct translation *tr, unsigned n, unsigned from);

#endif
