/* What translate.c and the files it emits code with share: a block under translation. Owns: nothing. */
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
    FLAGS_OF_SHIFT,             /* done again on what a was before: bt->flag_a */
};
/* op: AGAIN: 8 test, 7 cmp; OF_SHIFT: as in modrm. regs: host registers it needs. a_saved, b_saved: they are in bt->flag_a, flag_b;
 * old: flag_a has what a was before an addition (of a b that is not known). */
struct recipe { u8 kind, op, a, b; bool has_imm, a_saved, b_saved, old; u8 size; s32 imm; u32 regs; };

/* A sum of guest registers (base, index below 13, or X86_ZERO, none): base + (index << scale). */
struct place { u8 base, index, scale; };
static inline struct place place_of(unsigned base) { return (struct place){ (u8)base, X86_ZERO, 0 }; }
static inline bool is_plain_place(struct place p) { return p.index == X86_ZERO; }
static inline bool same_place(struct place a, struct place b) { return a.base == b.base && a.index == b.index && a.scale == b.scale; }

enum cold_kind {
    COLD_ACCESS, COLD_SPAN, COLD_WIDE_SPAN /* those that open one */, COLD_MISS /* L1 was asked for in line */, COLD_SIDE /* a branch out of the middle */,
    COLD_EXIT, COLD_LINK, COLD_RETURN
};
struct cold {                   /* code that is rarely reached, behind the block's */
    u8 kind, size, write, aligned;
    bool restore_rcx;           /* EXIT: rcx is in r15 */
    bool shadow;                /* of the instruction, as in struct translation */
    bool light;                 /* EXIT: to the routine light_call, not leave */
    u32 from;                   /* the rel32 that leads to it */
    u32 back;                   /* ACCESS, SPAN: where it goes on */
    bool direct;                /* ACCESS, SPAN, WIDE_SPAN: at place of + disp; else at r14 */
    struct place of;
    s32 disp, bias;             /* SPAN: its lowest displacement, */
    u16 room;                   /* and what follows that */
    bool whole;                 /* SPAN: it begins at a multiple of 16 */
    bool fixed;                 /* SPAN: it is the page at bias */
    u32 slot;                   /* ACCESS, SPAN, MISS: offset in struct bt of its L0 entry, of L1's side (0: r14 is as it was). SIDE: instructions up to it */
    u64 target;                 /* SIDE: guest address */
    struct recipe flags;        /* FLAGS_ONLY_HERE: they are intact */
    s32 off;
    u32 again;                  /* of the instruction: as in struct translation */
    s16 k;
    u32 exit, misfit;           /* misfit: SPAN's, WIDE_SPAN's second */
};
enum { MAX_COLD = 4 * BT_MAX_BLOCK };

/* The last access's page, for accesses near by: r14 is the addend of its entry, r15 how far guest register base + bias is from the page's
 * beginning: below 4096 where it is in the page. Or r15 is -1 and r14 nothing: so it is where the loop enters. Whoever uses r14 or r15
 * otherwise ends it (carry_end). */
struct carry { bool on, write; u8 base; s32 bias; u32 slot; };
/* What is known of the value x of a guest register, or of a place: the bytes from x + low up to x + high are in one page (for stores if
 * write) whose addend is bt->slide; whole: x + low is a multiple of 16. It needs neither r14 nor r15 and stays true until the register is
 * changed, by whatever way the block goes on: where the loop has forgotten something, the block is not gone on with. */
struct span { bool on, write, whole; s32 low, high; struct place of; unsigned others /* accesses behind the first */; };
enum { WIDE = 4 };
/* Of a register: low and a multiple of 1 << zeros, which is at most width. */
struct range { bool on; u8 zeros; u64 low, width; };
/* Pages that have bt->slide, as a test has shown: for loads, or stores too. That is as lasting as a span. */
enum { MAX_FIXED = 8 };
struct fixed { u64 page; bool write; };
/* Host memory: [base + r14 + disp]; base < 0: [r14 + disp]; constant: [r14 + index << scale + disp]. */
struct operand { int base; s32 disp; bool constant; s8 index; u8 scale; };

/* What an instruction does, as far as it matters here. access: of size bytes at a place + disp; keeps: neither r14 nor r15 is used for
 * anything else; step: it is the interpreter's; mem: write, aligned and size are its memory operand's, which is all in `page` if fixed;
 * ordinary: a hypercall that is known not to be quick. */
struct near { bool access, write, aligned, branch, keeps, step, mem, fixed, ordinary; u8 size; struct place of; s64 disp; u64 page; };

struct translation {
    struct emit e;
    struct bt *t;
    u32 b, set;
    u64 va;
    u16 context;
    const struct x86_insn *i;   /* the instruction under way, */
    const u8 *bytes;            /* its bytes, */
    s32 off;                    /* its offset in the block, */
    s16 k;                      /* bt_exit.k at it, */
    u32 again;                  /* where its code begins, */
    u32 first_exit;             /* and its exits; */
    const struct x86_insn *rest;        /* the instructions behind it */
    const struct near *here, *rest_near;        /* of the instruction, of those behind it */
    unsigned nr_rest;
    enum bt_apart apart;
    struct carry carry;
    struct span span[R_13];     /* of guest registers */
    struct span wide[WIDE];     /* of other places, */
    unsigned next_wide;         /* and which of these is to make room */
    struct fixed fixed[MAX_FIXED];
    unsigned nr_fixed;
    bool slid;                  /* r14 is bt->slide */
    bool known[R_13];           /* a register is what the CPU has now, */
    s64 moved[R_13];            /* and this */
    struct operand operand;     /* what tr_access has found */
    struct recipe flags;
    bool lost;                  /* the host's flags are not the guest's now: tr->flags says how to get them */
    bool old;                   /* bt->flag_a has what its first operand was before it */
    bool last;                  /* the instruction under way is the block's last */
    bool shadow;                /* it follows a sti in line */
    bool step;                  /* the instruction under way is the interpreter's */
    bool opens;                 /* it can open a span */
    bool x87;                   /* the x87's registers are the guest's here */
    bool vectors;               /* bt->vectors is 1 here */
    bool keep;                  /* the instruction under way needs them: inserted code may not touch them */
    unsigned nr_cold;
    struct cold cold[MAX_COLD];         /* the two that are not zeroed */
    struct near near[BT_MAX_BLOCK];     /* of all instructions */
};

/* Bytes of an address, of what a push pushes: 4 in 32-bit code, where addresses are cut to them. */
static inline unsigned tr_width(const struct translation *tr) { return tr->context & CTX_32 ? 4 : 8; }

/* x87 or MMX. */
static inline bool uses_x87(const struct x86_insn *i) { return x86_forms[i->form].attr & (F_FPU | F_MMX); }
/* fcomi and its like, which write flags, and fcmov. */
static inline bool x87_has_flags(const struct x86_insn *i)
{
    unsigned reg = i->modrm >> 3 & 7;
    return x86_forms[i->form].attr & F_FPU && i->modrm >= 0xc0 &&
           (((i->opcode == 0xda || i->opcode == 0xdb) && reg < 4) || ((i->opcode == 0xdb || i->opcode == 0xdf) && (reg == 5 || reg == 6)));
}

static inline bool is_rel(const struct x86_insn *i) { return i->op[0].kind == X86_REL; }
/* A branch to `target` neither wraps nor faults. */
static inline bool is_plain(u64 target, unsigned mode) { return mode == 32 ? target == (u32)target : va_canonical(target); }
static inline u64 branch_target(const struct translation *tr) { return tr->va + tr->off + tr->i->len + tr->i->imm; }
/* The operand that is in memory, and in *number which it is; NULL: none is. */
static inline const struct x86_operand *mem_operand(const struct x86_insn *i, unsigned *number)
{
    for (unsigned k = 0; k < i->nr_ops; k++)
        if (i->op[k].kind == X86_MEM) {
            *number = k;
            return &i->op[k];
        }
    return NULL;
}

/* ---- translate.c ---- */
enum rule {
    STEP,                       /* the interpreter does it */
    NOTHING,                    /* nop, prefetch */
    SAME,                       /* no operand in memory or in a register that moves: copied with its prefixes */
    MODIFY,                     /* memory as first operand: read and written; else read */
    READ,                       /* memory is read */
    MOVE,                       /* memory as first operand: written; else read */
    BITS,                       /* as MODIFY, but a bit number in a register reaches beyond the operand */
    LEA, PUSH, POP, LEAVE, JMP, JCC, CALL, RET, LOOP, JCXZ, DIV,
    SYSTEM,                     /* system.c */
    FP = 0x40, SSE = 0x80,      /* flags: uses xmm registers; computes in floating point (MXCSR) */
    RULE = 0x3f,
};
/* The rule for tr->i as it stands here; STEP where the op's does not cover it. */
enum rule tr_rule(const struct translation *tr);

/* ---- route.c ---- */
struct route {                  /* the instructions of a block: in the order of execution, as far as that can be foreseen */
    struct x86_insn i[BT_MAX_BLOCK];
    s16 off[BT_MAX_BLOCK + 1];  /* where each is; [nr]: where it goes on behind the last */
    unsigned nr;
    int low, high;              /* the bytes they are in, from the first one's address */
};
/* Decodes what is at `va`, in a copy of its page, as far as it makes one block; loop: by this path, and if it leads back as often as
 * there is room. */
void route_decode(const struct bt *t, const u8 *page, u64 va, u16 context, const struct loop_path *loop, struct route *p);
/* The interpreter's, and mostly goes on behind itself although it is a branch: a hypercall. */
bool route_comes_back(const struct bt *t, u16 context, const struct x86_insn *i);

/* ---- insn.c ---- */
/* tr->i; n: instructions up to and with it. *ended: it was a branch. */
enum bt_treatment tr_instruction(struct translation *tr, unsigned n, bool *ended);
void tr_push_address(struct translation *tr);   /* tr->operand := what a push writes */
void tr_load(struct translation *tr, unsigned width, unsigned reg);     /* mov reg, operand; width: bytes, 8 or 4 */
void tr_store(struct translation *tr, unsigned width, unsigned reg);
void tr_store_imm(struct translation *tr, u64 imm);     /* as wide as an address */
void tr_move_sp(struct translation *tr, s32 by);        /* the guest's rsp += by; no flag changes */

/* ---- branch.c ---- */
u32 tr_exit(struct translation *tr, enum bt_exit_kind kind, u64 target);        /* a record of a way out: its number */
struct cold *tr_cold(struct translation *tr, enum cold_kind kind, u32 from, u32 exit);  /* code that is due behind the block's */
/* The jump whose rel32 is at `from` leaves to the loop; goes to a guest address that is known. */
void tr_leave_at(struct translation *tr, u32 from, enum bt_exit_kind kind, u64 target);
void tr_go_to(struct translation *tr, u32 from, u64 target);
void tr_take_time(struct translation *tr, unsigned n);  /* of n instructions; leaves if too little remains to promise any block its own */
void tr_branch(struct translation *tr, enum rule rule, unsigned n);     /* tr->i, a branch, ends the block, of n instructions */
void tr_side_code(struct translation *tr, const struct cold *c);        /* COLD_SIDE */
void tr_return_code(struct translation *tr, const struct cold *c);      /* COLD_RETURN */

/* ---- system.c ---- */
/* A system instruction, as it stands here, can be done in line. */
bool tr_system_rule(const struct translation *tr);
void tr_system(struct translation *tr);
unsigned tr_light(const struct translation *tr);        /* enum bt_light if bt_light_call may do it, else 0 */

/* ---- memory.c ---- */
/* Its memory operand is at a place + displacement: no segment's base, nothing cut, no register that is not the host's. */
static inline bool tr_has_place(const struct x86_insn *i)
{
    return i->addr_mask == ~0ul && i->mem_seg != X86_FS && i->mem_seg != X86_GS &&
           (i->index == X86_ZERO ? i->base < R_13 : i->index < R_13 && (i->base < R_13 || i->base == X86_ZERO));
}
/* r14 := linear address of the instruction's memory operand; r15 is used. segment: with FS's or GS's base. */
void tr_address(struct translation *tr, bool segment);
/* tr->operand := where `size` bytes of the instruction's memory operand are, for a load or store; r14 and r15 are used. */
void tr_access(struct translation *tr, unsigned size, bool write, bool aligned);
/* The same for what a push writes, at guest register base + disp. */
void tr_access_at(struct translation *tr, unsigned base, s32 disp, bool write);
void tr_push_selector_address(struct translation *tr);  /* of a segment register: in 32-bit code the lower half of what a push moves over */
static inline void carry_end(struct translation *tr) { tr->carry.on = tr->slid = false; }
/* The instruction number n of those from tr->i on, which have not been emitted, will find its page tested. */
bool tr_is_known(const struct translation *tr, const struct x86_insn *i, const struct near *near, unsigned n);
/* Parts of the sequences, for stubs: op reg, [gs:r15 + disp], reg r14 or r15; jumps if r15 is no place for a span of `room` bytes; r14 := a
 * place + disp. */
void tr_l1(struct emit *e, u8 op, unsigned reg, u32 disp);
u32 tr_unless_fits(struct emit *e, unsigned room, bool whole);
void tr_place(struct emit *e, struct place of, s32 disp);

/* ---- cold.c ---- */
void tr_cold_code(struct translation *tr);      /* all that is in tr->cold, also what is added meanwhile */

/* ---- flags.c ---- */
enum flag_use { FLAGS_UNTOUCHED, FLAGS_WRITTEN /* all six, and none read */, FLAGS_USED };
enum flag_use flags_use(const struct x86_insn *i);
/* Before each instruction; following: accesses up to the next that writes flags, 0 flags are dead; behind: the same from the next
 * instruction on. */
void flags_before(struct translation *tr, int following, int behind);
void flags_after(struct translation *tr);
void flags_restore(struct translation *tr);     /* the host's flags are the guest's again */
void flags_emit(struct emit *e, const struct recipe *r);        /* r15 is used */
static inline bool flags_may_go(const struct translation *tr) { return tr->flags.kind != FLAGS_ONLY_HERE && !tr->keep; }

/* ---- operand.c ---- */
/* The instruction with its registers replaced and its memory operand at [r14]. False: it cannot be encoded; nothing was emitted. */
bool tr_can_encode(const struct translation *tr);
void tr_encode(struct translation *tr);
/* An instruction with tr->operand: opcode, modrm, SIB, displacement; width: bytes, 8 or 4. */
void tr_operand(struct translation *tr, unsigned width, u8 opcode, unsigned reg);
/* Host register that holds guest register n, or scratch after loading it there. */
unsigned tr_get(struct translation *tr, unsigned n, unsigned scratch);
void tr_set(struct translation *tr, unsigned n, unsigned from);

/* ---- range.c ---- */
/* tr->i, which stands at `va`: r is what registers are before it, then behind it; n->fixed, n->page. */
void range_next(const struct translation *tr, struct range r[16], struct near *n, u64 va);

/* ---- near.c ---- */
enum { NEAR = 1024 };           /* bytes between the first access of a run and any other */
struct run { s32 low; bool write; };    /* the lowest displacement, as of now; there are stores */
void tr_near(const struct translation *tr, struct near *n);      /* of tr->i; insn.c */
/* Of the access that tr->i makes there, and those behind it. */
struct run near_run(struct translation *tr, unsigned base, s32 disp, bool write);
struct span near_span(struct translation *tr, struct place of, s32 disp, unsigned size, bool write, bool aligned);
bool near_address(const struct translation *tr, struct place of, u64 *va);       /* where it is now, if that is known here */
/* Guest register `base` may be changed; *by: by so much. */
bool near_changes(const struct x86_insn *i, unsigned base, s64 *by, bool *constant);
void near_after(struct translation *tr);        /* tr->i has been done: what that makes of tr->carry and tr->span */

#endif
