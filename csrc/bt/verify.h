/* What verify.c and verify_*.c share: the state of a path through a guest instruction's host code. Owns: nothing. */
#ifndef XL_BT_VERIFY_H
#define XL_BT_VERIFY_H

#include "bt/inspect.h"
#include "bt/value.h"

#define GS(field) ((u32)offsetof(struct bt, field))

/* Operands written; the first one entirely; 16 bytes of any address; computes with MXCSR. Flags: neither read nor written, all written and
 * none read; else both. Uses the x87's registers. */
enum { W0 = 1, W1 = 2, PURE = 4, UNALIGNED = 8, FP = 16, KEEPS = 32, SETS = 64, X87 = 128 };
enum { OWN_TMP, OWN_TMP2, OWN_ENTRY, OWN_LEFT, OWN_FLAG_A, OWN_FLAG_B, OWN_HI, NR_OWN = OWN_HI + 3 };
enum { FACTS = 64, MAX_STEPS = 4096 };

/* The guest's; nobody's; flag_value compared with, tested by flag_n; its sign; flag_value compared with the host frame's guest address; rsp
 * compared with bt->bottom. */
enum host_flags { FL_GUEST, FL_LOST, FL_CMP, FL_TEST, FL_SIGN, FL_FRAME, FL_BOTTOM, FL_SLIDE };
enum fact_kind { ZERO, NONZERO, BELOW /* or equal n */, CLEAR /* of the bits n */, SLIDE /* is bt->slide */, EQUAL };
struct fact { value of; u8 kind; u64 n; };

/* A field of struct x86_cpu at `at`, or of struct bt (at | OF_BT), and what was or is to be written there. */
enum { OF_BT = 1u << 31, MAX_WRITES = 4 };
struct written { u32 at; value x; };

enum { LIVE_X87 = 1, LIVE_VECTORS = 2 };        /* the x87's registers are the guest's; bt->vectors says that xmm registers may change */

struct path {
    value reg[16], own[NR_OWN];
    struct fact fact[FACTS];
    unsigned nr_facts;
    u8 flags;                   /* enum host_flags */
    bool saved;                 /* bt->saved_flags are the guest's */
    value flag_value;
    u64 flag_n;
    value wanted;               /* the linear address that L1 was asked for in line */
    u32 exit, from;             /* bt->exit; rel32 of the jump just made, nothing but bt->exit being set since (0: none) */
    int taken;                  /* instructions that were subtracted from bt->left, */
    bool in_time;               /* and it is known not to be negative */
    bool acted, stored;         /* the instruction was done; memory was written */
    bool sent;                  /* the branch went to its target, not to the next instruction */
    bool decided;
    bool pushed;                /* the frame of a call has its first word */
    bool has_frame;             /* rsp is above bt->bottom */
    value framed;               /* the last frame's guest address is this */
    u8 live;                    /* LIVE_* */
    bool ip_set;                /* FIP has been set */
    u32 link;                   /* 1 + number of the link that was jumped through while empty */
    value store_at, store_value;
    struct written written[MAX_WRITES];
    unsigned nr_written;
    bool pushfq, popping, popped;       /* pushfq was just executed; bt->saved_flags, the host's flags are those that popf has popped */
    u32 slot;                   /* L0 entry that is being replaced: its offset, and what has been stored */
    value slot_negated, slot_addend;
    struct written slid[2];     /* entries without addend that were replaced, and with what */
    unsigned nr_slid;
    bool wanted_slid;           /* wanted: in the table without addends */
};

/* What an instruction that is not copied does. value 0: nothing, or does not matter. */
struct effect {
    struct written written[MAX_WRITES]; /* system instructions: state; */
    unsigned nr_written;
    value zero[2];                      /* what must have been found to be zero; */
    bool popf;                          /* arithmetic flags are those of saved_flags; */
    value saved_flags;
    bool act, branch, conditional, forbidden, sets_ip; u8 act_flags; value reg[16]; value store_at, store_value, target, next;
    u8 store_size;                      /* bytes, if there is a store */
};

/* What is known of the guest's flags: they are those of op on its registers (or an immediate) as they are now, or were but for op itself.
 * op NULL: nothing. b: IMM. a, b: GONE, a register's value is no more there. */
struct known { const struct x86_op *op; u8 size, a, b, kept; u64 imm; };
enum { IMM = 0xff, GONE = 0xfe };
enum { KEPT_A = 1, KEPT_B = 2, KEPT_OLD = 4 };  /* bt->flag_a has a, flag_b b; flag_a has what a was before op */

/* Between two instructions r14 may be the addend of an entry, r15 its negated field + guest register base + bias. Or, where the loop comes
 * in, r15 is -1. */
struct carried { bool on, write; u8 base; u64 bias; };

/* Known of a place x, base + (index << scale), where base or index may be NONE: bytes from x + low on are in a page that has bt->slide, of
 * which x + low is at byte `most` at the latest; in a page for stores if write; x + low is a multiple of 16 if whole. */
enum { MAX_SPANS = 32, MAX_PAGES = 8, NONE = 0xff };
struct known_span { u8 base, index, scale; bool write, whole; u64 low, most; };
struct known_page { u64 page; bool write; };    /* has bt->slide */
struct spans {
    struct known_span of[MAX_SPANS];
    struct known_page page[MAX_PAGES];
    unsigned nr, nr_pages;
    bool slid;                  /* r14 is bt->slide */
};

/* A register is from low to high, which do not go round, and differs from low by a multiple of step, a power of 2 (0: it is low). */
struct known_range { bool on; u64 low, high, step; };

/* What all paths to the next instruction agree on. */
struct between {
    bool fell;                  /* there is one; */
    bool lost, saved;           /* flags may be lost, are saved; */
    u8 live;                    /* LIVE_*; */
    u8 kept;                    /* KEPT_*; */
    bool carries, spanned;      /* the next two are what the first path has */
    struct carried carried;
    struct spans spans;
};

struct check {
    const struct bt *t;
    const struct bt_block *b;
    struct values values;
    const struct x86_insn *g;   /* the guest's; NULL: none, behind the last */
    struct effect effect;
    struct known known;
    struct carried carried;     /* to this instruction */
    struct spans spans;         /* and what is known of its registers, */
    struct known_range range[16];
    struct between to;          /* all that at the next */
    bool shadow;                /* the instruction before was a sti in line */
    int off;                    /* its place, from the block's first */
    unsigned nr, len, steps, lookups;      /* its number and place; the lookups in L1 on the path */
    int next_off;               /* guest offset of the next instruction of the block (next != 0) */
    u32 entry;                  /* cache offset of its code; */
    u32 next, behind;           /* the next instruction's, where the loop goes on behind the last (0: there is none) */
    const char *why;
    u32 at;
};

static inline bool verify_refuse(struct check *c, const char *why)
{
    if (!c->why)
        c->why = why;
    return false;
}

/* Bytes of an address, and of what push pushes. */
static inline unsigned verify_width(const struct check *c) { return context_mode(c->b->context) / 8; }
/* An address, or what is as wide: in 32-bit code it is cut. */
static inline value verify_fits(struct check *c, value x) { return verify_width(c) == 8 ? x : value_cut(&c->values, x); }
static inline unsigned home_of(unsigned n) { return n == R_SP ? R_13 : n; }           /* host register of guest register n < 13 */
static inline value home(const struct path *p, unsigned n) { return n >= R_13 ? p->own[OWN_HI + n - R_13] : p->reg[home_of(n)]; }
static inline value guest(struct check *c, unsigned n) { return value_atom(&c->values, VAL_GUEST, 0, n, 0); }
static inline value result(struct check *c, unsigned n) { return value_atom(&c->values, VAL_RESULT, 0, n, 0); }
static inline u64 mask_at(const struct check *c, u32 field) { u64 m; memcpy(&m, (const u8 *)c->t + field, 8); return m; }
static inline bool facts_have(const struct path *p, enum fact_kind kind, value of)
{
    for (unsigned k = 0; k < p->nr_facts; k++)
        if (p->fact[k].kind == kind && p->fact[k].of == of)
            return true;
    return false;
}
static inline bool facts_add(struct check *c, struct path *p, enum fact_kind kind, value of, u64 n)
{
    if (p->nr_facts == FACTS)
        return verify_refuse(c, "too many tests");
    p->fact[p->nr_facts++] = (struct fact){ of, (u8)kind, n };
    return true;
}
static inline bool is_mask(u32 field) { return field >= GS(mask_page) && field < GS(l0) && field % 8 == 0; }

static inline bool is_gs(const struct x86_insn *h) { return x86_has_mem(h) && h->mem_seg == X86_GS; }
/* Only absolute fields below have no registers in their address. */
static inline bool gs_field(const struct x86_insn *h, u32 *field)
{
    *field = (u32)h->disp;
    return h->base == X86_ZERO && h->index == X86_ZERO && (u64)h->disp < sizeof(struct bt);
}

/* ---- verify.c: paths ------------------------------------------------------------------------------------------------ */

/* The path p goes on at cache offset `at`: it is in order to its end. */
bool verify_follow(struct check *c, struct path p, u32 at);
/* All paths from `entry`, where the instruction's code begins or the loop comes back; left: the path that left for there, if one did. */
bool verify_from(struct check *c, u32 entry, int taken, bool lost, bool saved, u8 live, bool carried, const struct path *left);

/* ---- verify_inserted.c: what is not the guest's instruction ---------------------------------------------------------- */

/* h, an instruction that the translator put there. *end: the path ends well here. *at: where h is, then the next instruction. */
bool verify_inserted(struct check *c, struct path *p, const struct x86_insn *h, u32 *at, bool *end);

/* ---- verify_jump.c: where a path leads ------------------------------------------------------------------------------- */

bool verify_goes_to(struct check *c, const struct path *p, value target);       /* on to guest address `target`, all being done */
bool verify_jumps_through(struct check *c, const struct path *p, value to);     /* jmp to what the jump cache has */
bool verify_jumps_by_link(struct check *c, struct path *p, u32 field, u32 behind);      /* jmp [gs:field], code at `behind` following */
/* call, with the first word of the frame pushed. `target`: cache offset, or 0: the one that bt->entry names. */
bool verify_calls(struct check *c, struct path *p, u32 target, u32 behind);
/* A jump or call with a rel at `here`, made with `from` as it was in p->from. *end, *at: as verify_inserted's. */
bool verify_relative(struct check *c, struct path *p, const struct x86_insn *h, u32 here, u32 from, u32 *at, bool *end);

/* ---- verify_guest.c: what the guest's instruction does ------------------------------------------------------------- */

/* Of c->g, into c->effect. False: nothing but leaving it to the interpreter is in order. */
bool verify_effect(struct check *c);
/* Facts show that it cannot raise #DE, if it is a division. */
bool verify_divides(struct check *c, const struct path *p);
value verify_linear(struct check *c, bool segment);     /* address of its memory operand */
void verify_path_start(struct check *c, struct path *p, bool carried);  /* carried: not where the loop comes in */
value verify_behind(struct check *c, unsigned n);       /* guest register n behind it, in terms of what was before; 0: not known */
void verify_carry(struct check *c, const struct path *p);       /* p goes on at the next instruction */
/* Nothing has happened yet: it can begin again, or be left to the interpreter. It has happened. */
bool verify_is_before(struct check *c, const struct path *p);
bool verify_is_after(struct check *c, const struct path *p);
/* h is c->g with its registers where they are kept. On a match *slots gets the host scratch registers that stand for r13-r15. */
bool verify_corresponds(struct check *c, const struct path *p, const struct x86_insn *h, u8 flags, u8 slots[16]);
u8 verify_kept(struct check *c, const struct path *p);
struct known verify_known_behind(const struct check *c, u8 kept);       /* what is known of the flags behind it */
bool verify_makes_flags(struct check *c, const struct path *p, const struct x86_insn *h, value a, value b);

/* ---- verify_system.c: state that is neither registers nor memory ----------------------------------------------------- */

/* The effect of a system instruction in line. False: it is none, or the interpreter has to do it. */
bool verify_system_effect(struct check *c);
bool verify_state_is_before(const struct path *p);
bool verify_state_is_after(const struct check *c, const struct path *p);
/* h, at `at`, accesses struct x86_cpu: in order or not; *other: it does not. */
bool verify_cpu_access(struct check *c, struct path *p, const struct x86_insn *h, u32 at, bool *other);
bool verify_state_write(struct check *c, struct path *p, u32 at, value x);
/* pdep of x by the mask at `field`; not. */
value verify_deposit(struct check *c, value x, u32 field);

/* ---- verify_range.c: what registers can be -------------------------------------------------------------------------- */

void verify_ranges(struct check *c, bool any);  /* behind c->g; any: the interpreter may have done anything */
/* All `size` bytes from lin, in terms of registers before the instruction, are in this page, and lin is a multiple of align. */
bool verify_lies_in(const struct check *c, value lin, unsigned size, unsigned align, u64 page);

/* ---- verify_access.c: fields of struct bt, guest memory ------------------------------------------------------------- */

bool verify_entry(const struct check *c, u32 addend, bool *write);      /* is the addend of an L0 entry, for stores if *write */
bool verify_is_slid(const struct check *c, u32 field);          /* is an entry without addend, of the block's own set */
bool verify_read_field(struct check *c, struct path *p, u32 field, value *out);
bool verify_write_field(struct check *c, struct path *p, u32 field, value x);
bool verify_slot_is_whole(const struct check *c, const struct path *p);         /* no L0 entry is half replaced */
/* That host instruction h at `at` accesses. */
void verify_spans_start(struct check *c, struct path *p);       /* what is known of registers becomes facts */
/* What p's facts make known of registers behind the instruction; NULL: nothing. back: the loop comes back there. */
void verify_spans(struct check *c, const struct path *p, bool back);
value verify_slide(struct check *c);
value verify_stored_at(struct check *c);        /* where the instruction stores, or 0 */
value verify_host_address(struct check *c, const struct path *p, const struct x86_insn *h, u32 at);
/* `address` is that of `size` bytes of guest memory, for a store if write, a multiple of `align`: *lin := their linear address. */
bool verify_access(struct check *c, const struct path *p, value address, unsigned size, bool write, unsigned align, value *lin);

#endif
