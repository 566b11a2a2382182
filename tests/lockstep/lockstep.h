/* Lockstep: the same random instructions on the host CPU and on the interpreter.
 *
 * Owns: what the programs of this directory share: the layout of memory, the state compared, the batch in shared memory. gen.c makes
 * sequences, host.c (its own program, so that nothing else is mapped where a stray access may go) runs them on the CPU, lockstep.c runs
 * them on the interpreter, compares, and cuts down what differs.
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
enum { CODE_SIZE = 2 * PAGE_SIZE, DATA_SIZE = 2 * PAGE_SIZE, CONST_SIZE = PAGE_SIZE, MAX_CODE = 2048, BATCH = 128, MAX_UNITS = 64 };

struct ls_state {
    u64 r[16], rip, rflags;     /* the order of x86_cpu.r, then as xl_bare_set_regs has it */
    u8 fx[512] __attribute__((aligned(16)));    /* FXSAVE64 image */
};
struct ls_result {
    struct ls_state s;
    u32 vector, error;          /* what ended it; the int3 behind the sequence: 3 */
    u64 cr2;
    u32 hung, pad[3];
    u8 data[DATA_SIZE];
};
struct ls_job {
    u32 len, offset;            /* of the code in its two pages */
    u8 code[MAX_CODE];
    struct ls_state in;
    struct ls_result out;       /* by the host */
};
struct ls_shared {
    volatile u32 count, next;   /* jobs, and the one under way */
    u8 data[DATA_SIZE];         /* what the writable pages hold before each job */
    u8 constants[CONST_SIZE] __attribute__((aligned(PAGE_SIZE)));       /* mapped where it lies (xl_bare_map) */
    struct ls_job job[BATCH];
};

/* ---- sequences (gen.c) ------------------------------------------------------------------------------------------- */

struct ls_fix { u8 at, kind, end; s16 target; u64 va; };        /* REL8, REL32, ABS64 of unit `target`; RIPREL of va */
enum { FIX_REL8, FIX_REL32, FIX_ABS64, FIX_RIPREL };
struct ls_unit {                /* an instruction under test, with what makes its operands useful before it and cleans up after it */
    u8 bytes[160], len, main_at, main_len, nr_fixes;
    u16 form;
    u16 undefined;              /* flags that are undefined after it; cleared by the code behind it */
    u8 cleanup_at;              /* where that begins; 0: none */
    struct ls_fix fix[16];
};
struct ls_sequence {
    struct ls_unit unit[MAX_UNITS];
    unsigned nr;
    unsigned offset;            /* where the code is to begin in its pages */
    struct ls_state in;
};
struct rng { u64 s; bool calm; };       /* calm: a sequence that is to come to its end */
u64 rng_next(struct rng *r);
static inline unsigned rng_below(struct rng *r, unsigned n) { return (unsigned)((rng_next(r) >> 32) * n >> 32); }
static inline bool rng_chance(struct rng *r, unsigned percent) { return rng_below(r, 100) < percent; }

/* Forms that lockstep runs, of the features given; `only`: those of that mnemonic, NULL: all. How many. */
unsigned gen_init(u64 features, const char *only);
bool gen_covers(unsigned form);
struct x86_form;
bool form_is(const struct x86_form *f, const char *mnemonics);    /* separated by spaces, as forms.def has them */
void gen_sequence(struct rng *r, struct ls_sequence *s, unsigned max_units);
void gen_data(struct rng *r, u8 *data, unsigned n);
/* Lays a sequence out. starts: offset of each unit in the code. False: too long. */
bool gen_layout(const struct ls_sequence *s, struct ls_job *job, unsigned *starts);

#endif
