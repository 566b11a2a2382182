/* What the translator's files share: state that translated code reaches through GS, blocks, exits.
 *
 * Registers in translated code: rax-r12 except rsp are the guest's; r13 is the guest's rsp; r14 and r15 are scratch: between two guest
 * instructions they have nothing, or what struct carry and span (translate.h) say, or r14 is bt->slide and r15 -1, as enter leaves them;
 * the guest's r13-r15 are in bt->hi. 32-bit code has the same registers, upper halves too; its addresses are cut to 32 bits. rsp is the
 * host's stack. Flags are the guest's arithmetic flags between two instructions; DF is clear. xmm0-15 and MXCSR are the guest's once a
 * block has one of them (uses_fp). The x87's registers are loaded by the first instruction that needs them (x87_in), and stay until
 * translated code is left; where bt_dispatch goes on they are back (x87_out 0), unless it has taken them (1). GS points to struct bt; FS
 * stays libc's.
 *
 * Flags are architectural at every access that may fault and at every exit. Where they can be made again from registers (flags.c) inserted
 * code may destroy them: the cold stub, or a later use, makes them again. Elsewhere it changes none: lea, mov, pext and jrcxz (which is why
 * rcx is saved in r15 there), no add, cmp, and.
 *
 * Calls. The host's stack has a frame of two words for each guest call that has not returned since the loop entered: the address where the
 * guest is to return to, and, pushed by the host's call, that of the code behind the call. A guest's return to that address is the host's;
 * any other drops the frame and asks the jump cache. They stay if code is left and goes on in the same block with nothing forgotten, and
 * are not more than FRAMES; all other ways on drop them, and without leaving there are SLICE instructions at most. What changes context or
 * the meaning of addresses without leaving (light.c) drops them too: it sets bt->frames to bottom.
 *
 * Time. bt->left + LEFT_BIAS instructions may still retire, as of the start of the block under way: a block subtracts its length at its
 * end, and leaves when the result is negative, so that any block may begin while it is not. bt_kick, on another thread, makes it so by
 * subtracting KICK, at most once; the block's own subtraction is not atomic and may undo that, but never loses time by it.
 */
#ifndef XL_BT_INTERNAL_H
#define XL_BT_INTERNAL_H

#include "bt/bt.h"
#include "machine/codemap.h"
#include "x86/insn.h"

enum { R_AX, R_CX, R_DX, R_BX, R_SP, R_BP, R_SI, R_DI, R_8, R_9, R_10, R_11, R_12, R_13, R_14, R_15 };  /* host registers */
enum { GUEST_SP = R_13, SCRATCH = R_14, SCRATCH2 = R_15 };

enum {
    BT_STRAIGHT = 64, BT_MAX_BLOCK = 160,       /* instructions of a block, of an unrolled loop, at most */
    LEFT_BIAS = BT_MAX_BLOCK,
    HOT = 64, SEEN = 8, TRIES = 2,      /* rounds of a loop before it is watched; for which it is; how often at most */
    PATH = 8,                           /* branches of a block that are followed as taken */
    RARE = 8192,                        /* instructions between two misfits that are borne */
    VOTES = 16,                         /* fills by which an addend must be ahead to become bt->slide */
    CACHE_BYTES = 8 << 20, CACHE_SLACK = 80 << 10,      /* the largest block fits into the slack */
    NR_BLOCKS = 1 << 15, NR_EXITS = 1 << 18, HASH = 1 << 13,
    L0 = 128, L1 = 16384 /* as much memory as is used */, JUMPS = 2048, LINKS = 8192, CODE_PAGES = 4096, PAGE_HASH = 1024,
    REGIONS = 256, REGION_SHIFT = 16,
    NR_INSNS = 1 << 12, FILLED = 8192, CODE_PAGE_BITS = 4096,
    SLICE = 1 << 16,                    /* instructions after which attention is looked at */
    FRAMES = 1 << 16,                   /* bytes of the host's stack that calls may have taken when code is left, and keep */
};
static const s64 KICK = 1l << 40;       /* much more than any budget */
#define JUMP_MASK 0x33feul      /* bits of an address that choose its place in the jump cache: JUMPS of them */

/* Why translated code was left. */
enum bt_exit_kind {
    EXIT_CHAIN,                 /* to a block of the same page: patch the jump */
    EXIT_LINK,                  /* to a block of another page: fill the link */
    EXIT_NEXT,                  /* to rip, whatever is there (invalidated block, BT_NO_CHAIN) */
    EXIT_MISS,                  /* a memory access that neither L0 nor L1 has: bt->lin */
    EXIT_STEP,                  /* called out: the interpreter's function does it, and the block goes on if nothing speaks against it */
    EXIT_BRANCH,                /* the same, and the block has ended */
    EXIT_TIME,                  /* bt->left is negative */
    EXIT_MISFIT,                /* a span is not within a page that has bt->slide: the interpreter goes on for a while */
};

enum bt_light { LIGHT_SYSCALL = 1, LIGHT_SYSRET, LIGHT_IRET, LIGHT_HYPERCALL };         /* what the routine light_call does */

struct bt_exit {
    u8 kind;
    s16 k;                      /* instructions of the block that have retired, less those that were subtracted from left */
    u8 size, write;             /* MISS: bytes. BRANCH, STEP to light_call: enum bt_light */
    u8 align;                   /* MISS: it must be aligned */
    bool early;                 /* MISS: it only loads; the lookup is for a store behind it */
    bool opens;                 /* MISS: accesses behind it rely on its span, so that nothing goes on behind the instruction */
    bool drops;                 /* STEP: behind it nothing is taken for granted of pages and registers */
    bool slid;                  /* MISS: only a page that has bt->slide will do */
    bool shadow;                /* TIME, BRANCH: the instruction, which has not happened, follows a sti in line */
    u32 block;
    s32 off;                    /* of the guest instruction from the block's first; CHAIN, LINK: unused */
    u64 target;                 /* CHAIN, LINK, NEXT: guest address */
    u32 again, behind;          /* cache offsets: where the instruction begins again; where it goes on behind it (0: nowhere) */
    u32 patch;                  /* CHAIN: cache offset of the rel32. LINK: number of the link */
    u32 slot;                   /* MISS: offset in struct bt of what L0 has of it: a struct bt_entry, or a word of slid. 0: nothing */
    u32 insn;                   /* STEP, BRANCH, MISS: bt->insns, decoded when first needed. 0: not yet */
};

/* Of a block's conditional branches forward those that are followed where they lead, by offset from its first byte; all others are
 * followed as not taken. */
struct loop_path { u8 nr; s16 taken[PATH]; };

/* What a block takes for granted of accesses near each other: all that it can; spans of single registers only; nothing, each is looked up
 * by its own entry. */
enum bt_apart { SPANS, PLAIN_SPANS, APART };

struct bt_block {
    const u8 *host;             /* the guest's bytes */
    u64 va;
    u32 code, code_len;         /* cache offset of the entry; bytes */
    u32 next, page_next;        /* in its hash chain; among the blocks of its code page. 0 ends */
    u32 entry_exit;             /* EXIT_NEXT to itself: what its entry becomes when it is invalid */
    u32 first_map, nr_exits;    /* its exits are entry_exit and those behind it */
    u16 bytes, nr;              /* of the guest's code; instructions */
    s16 low;                    /* where the bytes begin, from the first instruction: jumps back are followed */
    u16 context;
    bool invalid;
    u8 apart;                   /* enum bt_apart */
    bool unrolled;              /* its loop has been watched, or is none that can be */
    u8 rounds;                  /* how often it was gone back to through the loop */
    struct loop_path path;
    bool misfit;                /* it has met one, */
    u64 misfit_at;              /* the last when so many instructions had retired */
    u64 hits;                   /* BT_PROFILE */
};

/* Which host bytes belong to which guest instruction: for the viewer and the verifier. */
enum bt_treatment { BT_COPIED, BT_REWRITTEN, BT_INLINE, BT_CALLED_OUT, BT_ENDING };
struct bt_map { u32 code; s16 off; u8 len, treatment; };

struct bt_page { const u8 *host; struct codemap *map; u64 page; u32 generation, first, next; };

/* Bits of rflags, for system.c's pext and pdep. */
enum bt_mask {
    MASK_NOT_IF, MASK_NOT_DF, MASK_ARITH,
    MASK_PUSHED,                /* what pushf shows beside the arithmetic flags, which x86_cpu.rflags has not while translated code runs */
    MASK_LOW, MASK_AH, MASK_OF, /* bits 0-7, 8-15, 11: to bt->saved_flags */
    MASK_POPF_STEP,             /* [CPL 0, other]: popf that changes one of these is the interpreter's; */
    MASK_POPF_KEEP = MASK_POPF_STEP + 2,        /* what popf leaves as it is ... */
    MASK_POPF_TAKE = MASK_POPF_KEEP + 2,        /* ... and takes from the stack, of what is in x86_cpu.rflags */
    NR_MASKS = MASK_POPF_TAKE + 2,
};

/* Of a CPU in 64-bit mode: x86_cpu.tlb_set to real in one; CR0, CR4, the masks of MXCSR and of the x87, with its pending exception; and the
 * context by these. */
struct bt_mode { u64 level, cr0, cr4, masks; u16 context; };
struct bt_region { u64 number, addend; };       /* va >> REGION_SHIFT; the addend that a page there had when last one was filled in */
struct bt_entry { u64 negated, addend; };       /* -(linear page); host address - linear address */

struct bt {
    /* What translated code uses. */
    s64 left;
    u64 tmp, tmp2, hi[3], seg_base[2], lin, entry;
    u32 exit, flags;            /* flags: ah = SF ZF AF PF CF, al = OF, as lahf and seto leave them */
    u32 host_mxcsr, saved_flags;
    u64 no_frame, host_leave;   /* the frame at the bottom of the host's stack: poison, and leave */
    u64 bottom;                 /* rsp there */
    u64 frames;                 /* rsp, when code was left; where it goes on with */
    u64 flag_a, flag_b;         /* operands from which flags can be made again (flags.c) */
    u64 sti_flags;              /* rflags before the last sti in line: IF 0 says that the instruction behind it is in its shadow */
    struct x86_cpu *cpu;
    u64 dispatch, light;        /* addresses of bt_dispatch, bt_light_call */
    u64 x87_out;                /* 0: the host's x87 registers are the guest's now; 1: they are in cpu->fx */
    u64 x87_ip;                 /* what fx.fip is to be */
    u64 vectors;                /* 0: xmm registers and MXCSR are what cpu->fx has; a block that may change them says 1 */
    u64 uses_fp;                /* 0: no block has them, or the x87's, and they are the host's */
    u32 host_fcw;
    u64 slide[2], slide_now;    /* by TLB set: the addend that most pages have; that of the set in use */
    u64 mask_page, mask_aligned, mask_l1, mask_jump, mask_sign, mask_sign32;    /* for pext */
    u64 mask_size[5];           /* by log2 of bytes: page, and natural alignment */
    u64 mask_flags[NR_MASKS];   /* of rflags: enum bt_mask */

    /* What the loop uses: beside it, so that few pages are in use. */
    unsigned options;
    u8 *rx, *rw;                /* two views of the cache */
    u32 used, start;            /* bytes of it; those of entry and exit */
    u32 x87_in;                 /* cache offset of the routine that loads the guest's x87 registers */
    u32 enter, leave, light_call;       /* cache offsets of routines */
    u32 l1_code[2][2][17];      /* of L1 lookups, by set, write, size - 1; [16]: 16 bytes aligned */
    u64 tlb_flushes;            /* of cpu->tlb when l0, l1, jumps and links were last empty, */
    u32 page_flushes, epoch;    /* or what it says to forget of them was forgotten */
    u64 forgotten;              /* how often something was, or slide has changed: what a block under way knows of pages may be wrong */
    u64 candidate[2];           /* for slide: fills of pages with this addend less those with others, as far as above 0, are */
    u32 votes[2];               /* so many */
    u16 jump_context[2];
    struct bt_mode mode;        /* as context_of found it last */
    bool tlb_used[2];
    u32 nr_links, nr_active;
    u64 x87_dp;                 /* fx.fdp, fx.fop: as long as all exceptions are masked these stay */
    u16 x87_op;
    u64 time;                   /* cpu->retired, as of the start of the block under way, and left */
    u32 nr_l1_filled, nr_jump_filled;
    u32 nr_insns;
    u32 nr_blocks, nr_exits, nr_pages, nr_maps;
    u64 poison;                 /* a page that no guest uses: not canonical, and drawn at random. Empty entries are for it */
    u64 features;
    struct bt_block *block;
    struct bt_exit *exits;
    struct bt_map *maps;
    struct bt_stats stats;
    u64 mapped;                 /* bytes of the arrays */

    /* Tables; those that translated code uses first. */
    struct bt_entry l0[2][2][L0];                       /* [TLB set][write] */
    u64 slid[2][2][L0], l1_slid[2][2][L1];              /* negated pages, of those alone that have bt->slide */
    u64 l1_negated[2][2][L1], l1_addend[2][2][L1], l1_host[2][2][L1];   /* host: of the page's first byte */
    u32 l1_copies[2][2][L1], l1_copier[2][2][L1];       /* how often L0 has copied what was here since its page was forgotten; what exit last */
    u64 jump_negated[2][JUMPS], jump_host[2][JUMPS];
    u64 link[LINKS];
    struct bt_region region[2][REGIONS];
    u64 code_pages[CODE_PAGE_BITS / 64];        /* by a hash: pages of addresses that jumps or links lead to */
    u16 active[LINKS];          /* links that are filled */
    u32 link_exit[LINKS];
    u16 l1_filled[FILLED], jump_filled[FILLED]; /* entries to be emptied: those that are not, if there are not more */
    struct x86_insn insns[NR_INSNS];            /* a ring: what exits have had interpreted; exits[].insn */
    u32 insn_exit[NR_INSNS];                    /* whose it is */
    u32 hash[HASH], page_hash[PAGE_HASH];
    u8 nowhere[2 * PAGE_SIZE];  /* where empty entries lead */
    u8 form_rule[1024];         /* enum rule (translate.h) by form */
    struct bt_page pages[CODE_PAGES];
    struct bt_block rejected;   /* the last that the verifier refused */
};
enum { NR_MAPS = 1 << 19 };
/* The guest's flags when code was left: all but the arithmetic ones are in the CPU. */
static inline u64 bt_rflags(const struct bt *t)
{
    return (t->cpu->rflags & ~(u64)X86_ARITH_FLAGS) | (t->flags >> 8 & 0xd5) | (t->flags & 1) << 11;
}

/* What translated code adds to addresses by FS and GS. */
static inline void bt_load_bases(struct bt *t)
{
    t->seg_base[0] = t->cpu->lin_base[X86_FS];
    t->seg_base[1] = t->cpu->lin_base[X86_GS];
}

/* Context: what decides beside the bytes and their address how a block is translated. */
enum { CTX_SET = 1, CTX_CPL = 2, CTX_SSE = 4, CTX_FP = 8,
       CTX_32 = 0x100,          /* 32-bit code; ES, CS, SS, DS have base 0 and no limit, SS's stack is 32 bits wide (run.c, is_flat) */
       CTX_X87 = 0x800,         /* x87 and MMX can be used, and all exceptions are masked */
       CTX_FS = 0x200, CTX_GS = 0x400 };        /* with CTX_32: FS, GS can be written and have no limit */
static inline unsigned context_mode(unsigned context) { return context & CTX_32 ? 32 : 64; }

/* ---- cache.c ----------------------------------------------------------------------------------------------------- */
bool bt_cache_possible(void);   /* executable memory is not refused */
bool bt_cache_create(struct bt *t);
void bt_cache_destroy(struct bt *t);
void bt_cache_patch(struct bt *t, u32 at, u32 target);         /* the rel32 at `at` */
u32 bt_cache_target(const struct bt *t, u32 at);                /* where it leads */
static inline unsigned bt_region_of(u64 va) { return (unsigned)((va >> REGION_SHIFT ^ va >> 30) % REGIONS); }
static inline u64 bt_host_address(const struct bt *t, u32 off) { return (u64)t->rx + off; }

/* ---- block.c ----------------------------------------------------------------------------------------------------- */
u32 bt_block_find(struct bt *t, const u8 *host, u64 va, u16 context);    /* 0: none */
/* NULL: the page cannot hold translated code. */
struct bt_page *bt_page_claim(struct bt *t, const u8 *host, unsigned in_page, unsigned n);
void bt_block_insert(struct bt *t, u32 b, struct bt_page *page);
void bt_block_replace(struct bt *t, u32 old, u32 new);  /* what leads to old goes on to new */
void bt_forget(struct bt *t);                   /* everything */
void bt_look_for_writes(struct bt *t);          /* drops the blocks of pages whose code was written */
/* The guest's instruction at rip, which is that of exit n; decoded once. NULL: not to be had. */
const struct x86_insn *bt_exit_insn(struct bt *t, u32 n);

/* ---- address.c --------------------------------------------------------------------------------------------------- */
void bt_addresses_begin(struct bt *t);          /* before the first bt_forget */
void bt_forget_addresses(struct bt *t);         /* l0, l1, jumps, links: a TLB flush */
void bt_forget_flushed(struct bt *t);           /* what cpu->tlb has forgotten since */
void bt_note_code(struct bt *t, u64 va);        /* jumps or links may lead there: before one does */
bool bt_has_slide(const struct bt *t, unsigned set, bool write, u64 lin);     /* L1 has lin's page, and its addend is bt->slide */
void bt_tlb_fill(struct bt *t, unsigned set, bool write, u64 lin, u8 *page);
void bt_forget_jumps(struct bt *t);             /* the jump cache alone */
void bt_jump_fill(struct bt *t, unsigned set, u64 va, u32 code);
void bt_jump_forget(struct bt *t, unsigned set, u64 va);
u64 bt_jump_find(const struct bt *t, unsigned set, u64 va);             /* host address; 0: none */
void bt_link_fill(struct bt *t, u32 link, u32 code);

/* ---- run.c ------------------------------------------------------------------------------------------------------- */
/* Called by translated code, with all state in c and bt->exit saying why it was left: does what is due, and returns the host address where
 * it goes on, or 0: bt_run's loop is to have it. May x86_raise. */
u64 bt_dispatch(struct x86_cpu *c);

/* ---- translate.c ------------------------------------------------------------------------------------------------- */
void bt_rules(struct bt *t);
/* A block's number; 0: its first instruction is the interpreter's. loop: it is one, and goes by this path mostly. */
u32 bt_translate(struct bt *t, const u8 *host, u64 va, u16 context, const struct loop_path *loop, enum bt_apart apart);

/* ---- system.c ---------------------------------------------------------------------------------------------------- */
void bt_system_masks(struct bt *t);

/* ---- light.c ----------------------------------------------------------------------------------------------------- */
/* 64-bit code: syscall, sysret and iret of a CPU that has them for itself, hypercalls. Called by translated code with bt->exit and
 * bt->frames set, general registers but rbx, rbp and r12-r15 in c, and flags in bt->flags, where all that is afterwards. Returns the host
 * address where it goes on, or 0: nothing has happened. */
u64 bt_light_call(struct x86_cpu *c);

/* ---- verify.c ---------------------------------------------------------------------------------------------------- */
bool bt_verify(const struct bt *t, const struct bt_block *b);

#endif
