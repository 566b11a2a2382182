/* Lockstep: the same random instructions on the host CPU, on the interpreter and on the translator.
 *
 * Owns: what the programs of this directory share: the layout of memory, the state compared, the batch in shared memory. gen.c makes
 * units and sequences, flow.c lays them out, in a loop or not; host.c (its own program, so that nothing else is mapped where a stray access
 * may go) runs them on the CPU, engines.c on the interpreter and the translator; compare.c says what differs and for whom, lockstep.c cuts
 * that down.
 */
#ifndef XL_LOCKSTEP_H
#define XL_LOCKSTEP_H

#include "base/types.h"

/* Linear memory of a sequence. Everything else below 2^47 is unmapped (or host.c's own: far from any address that is made on purpose). */
#define CODE_VA     0x10000000ul        /* two pages, readable and executable; 0xcc around the sequence */
#define DATA_VA     0x20000000ul        /* two pages, writable */
#define CONST_VA    0x20003000ul        /* one page, readable */
#define FS_BASE     0x20000800ul
#define GS_BASE     0x20001800ul
#define LOOP_VA     0x30000000ul        /* one page, writable: what loops count with (enum loop_word); no operand is put there on purpose */
enum { CODE_SIZE = 2 * PAGE_SIZE, DATA_SIZE = 2 * PAGE_SIZE, CONST_SIZE = PAGE_SIZE, MAX_CODE = 2048, BATCH = 128, MAX_UNITS = 64 };

/* Words at LOOP_VA. */
enum loop_word {
    LOOP_COUNT,                 /* rounds that are left */
    LOOP_FUEL,                  /* branches back that may still be made */
    LOOP_WALK,                  /* an address that moves on by a stride each round, */
    LOOP_WALK16,                /* and one that stays aligned */
    LOOP_RSP,                   /* the stack pointer at the start of a round */
    LOOP_WORDS = 8,
};

struct ls_state {
    u64 r[16], rip, rflags;     /* the order of x86_cpu.r, then as xl_bare_set_regs has it */
    u8 fx[512] __attribute__((aligned(16)));    /* FXSAVE64 image */
};
struct ls_result {
    struct ls_state s;
    u32 vector, error;          /* what ended it; the int3 behind the sequence: 3 */
    u64 cr2;
    u32 hung;                   /* 1: did not end; 2 (the host): killed its process */
    u32 elsewhere;              /* engines: ended by int n, int1 or syscall, where a wild jump led: what that does is the system's */
    u32 nr_stops;               /* engines: budgets that were used up, */
    u64 stops;                  /* a digest of the registers then, */
    u64 retired;                /* and instructions */
    u64 loop[LOOP_WORDS];
    u8 data[DATA_SIZE];
};
struct ls_job {
    u32 len, offset;            /* of the code in its two pages */
    u8 code[MAX_CODE];
    struct ls_state in;
    u64 loop[LOOP_WORDS];
    struct ls_result out;       /* by the host */
};
struct ls_shared {
    volatile u32 count, next;   /* jobs, and the one under way */
    u8 data[DATA_SIZE];         /* what the writable pages hold before each job */
    u8 constants[CONST_SIZE] __attribute__((aligned(PAGE_SIZE)));       /* mapped where it lies (xl_bare_map) */
    struct ls_job job[BATCH + 1];       /* the last: for one sequence again and again */
};

/* ---- sequences (gen.c, flow.c) ----------------------------------------------------------------------------------- */

struct ls_fix { u8 at, kind, end; s16 target; u64 va; };        /* REL8, REL32, ABS64 of unit `target`; RIPREL of va */
enum { FIX_REL8, FIX_REL32, FIX_ABS64, FIX_RIPREL, NR_FIXES = 16 };
struct ls_unit {                /* an instruction under test, with what makes its operands useful before it and cleans up after it */
    u8 bytes[160], len, main_at, main_len, nr_fixes;
    u16 form;
    u16 undefined;              /* flags that are undefined after it; cleared by the code behind it */
    u8 cleanup_at;              /* where that begins; 0: none */
    struct ls_fix fix[NR_FIXES];
};
struct ls_sequence {
    struct ls_unit unit[MAX_UNITS];
    unsigned nr;
    unsigned offset;            /* where the code is to begin in its pages */
    unsigned way;               /* enum loop_way */
    s32 stride, stride16;
    u64 loop[LOOP_WORDS];
    u64 slices;                 /* engines: seed of the budgets that they run it with, 0: it runs in one */
    struct ls_state in;
};
/* How a sequence is executed again and again: by a conditional branch at its end; by a jump behind one; by an indirect jump; as a function that is
 * called in a loop. */
enum loop_way { LOOP_NONE, LOOP_JCC, LOOP_JMP, LOOP_INDIRECT, LOOP_CALL, NR_LOOP_WAYS };

struct rng { u64 s; bool calm, flow; }; /* calm: a sequence that is to come to its end. flow: one with loops, branches back, calls */
u64 rng_next(struct rng *r);
static inline unsigned rng_below(struct rng *r, unsigned n) { return (unsigned)((rng_next(r) >> 32) * n >> 32); }
static inline bool rng_chance(struct rng *r, unsigned percent) { return rng_below(r, 100) < percent; }

struct gen_options {
    const char *only;           /* forms of that mnemonic; NULL: all */
    unsigned loops, slices;     /* per cent of the sequences that loop; that the engines run in slices */
    unsigned max_units;
};
/* Forms that lockstep runs, of the features given. How many. o stays. */
unsigned gen_init(u64 features, const struct gen_options *o);
bool gen_covers(unsigned form);
struct x86_insn;
u16 gen_undefined(const struct x86_insn *i);    /* flags that it leaves undefined */
struct x86_form;
bool form_is(const struct x86_form *f, const char *mnemonics);    /* separated by spaces, as forms.def has them */
void gen_sequence(struct rng *r, struct ls_sequence *s);
void gen_data(struct rng *r, u8 *data, unsigned n);
u64 gen_address(struct rng *r);         /* of an operand */

/* ---- system.c */
enum { LINUX_CS = 0x33, LINUX_DS = 0x2b };      /* Linux's selectors of 64-bit user mode */
/* A unit of a system instruction; one that branches goes to `target`. guard: as flow_guard. False: try again. */
bool system_unit(struct rng *r, struct ls_unit *u, u64 features, int target, bool guard, int next);
bool system_covers(const struct x86_form *f);

/* ---- flow.c */
void unit_put(struct ls_unit *u, const void *bytes, unsigned n);
void unit_fix(struct ls_unit *u, unsigned at, unsigned kind, unsigned end, int target, u64 va);
void unit_insn_rip(struct ls_unit *u, const void *bytes, unsigned n, unsigned disp_at, u64 va);   /* an instruction with a rip-relative operand */
void flow_guard(struct ls_unit *u, int next);   /* begins a unit that branches back: without fuel it is skipped. rcx changes, no flag does */
bool flow_wrap(struct ls_unit *u);              /* makes a function of a unit, and calls it. False: too long */
void flow_sequence(struct rng *r, struct ls_sequence *s);      /* decides whether and how s loops; before its units are made */
/* Lays a sequence out. starts: offset of each unit in the code, of what is behind the last. False: too long. */
bool flow_layout(const struct ls_sequence *s, struct ls_job *job, unsigned *starts);

/* ---- running and comparing (engines.c, compare.c) ------------------------------------------------------------------ */

enum who { CPU, INTERPRETER, TRANSLATOR, NR_WHO };
extern const char *const WHO[NR_WHO], *const REGISTERS[16];

struct engine_options { int translate; bool step, no_icache; };     /* translate: BT_* options, -1: there is no translator */
bool engines_create(const struct engine_options *o, const u8 *constants);       /* constants: a page, mapped where it lies */
void engines_destroy(void);
/* s, as laid out in job, on the interpreter (who) or the translator. data: what the writable pages hold before. fresh: the translator begins with nothing. */
void engine_run(enum who who, const struct ls_sequence *s, const struct ls_job *job, const u8 *data, bool fresh, struct ls_result *out);
/* Whether a wild jump leads into the middle of one of the job's instructions, where what stands there was not chosen with an eye to what is left
 * open: agreed (the engines are of one mind against the CPU): whatever it is; else if it leaves flags undefined, which nobody clears. */
bool engine_strays(const struct ls_job *job, const u8 *data, bool agreed);
struct engine_stats { u64 retired, interpreted, rejected, blocks; };
struct engine_stats engine_stats(enum who who);

/* What each has made of a sequence; NULL: it has not run it. */
struct ls_outcome { const struct ls_sequence *s; const struct ls_job *job; const unsigned *starts; const struct ls_result *of[NR_WHO]; };
/* Which pairs differ: bits 1 << (a + b) for a, b of enum who. say: prints how. */
unsigned outcome_differs(const struct ls_outcome *o, bool say);
const char *outcome_verdict(unsigned pairs);    /* who disagrees with whom, in words */
bool outcome_is_agreed(unsigned pairs);         /* not interpreter and translator */

#endif
