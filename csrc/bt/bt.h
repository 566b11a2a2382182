/* The binary translator: x86-64 guest code as x86-64 host code, with a software MMU.
 *
 * Owns: struct bt, what a CPU has for it (code cache, tables). Called by: hv/native.c, x86/bare.c, xenlike_bt.c. The interpreter
 * (x86/interp.c) is the reference and does whatever is not translated: bt_run is x86_run with blocks between the instructions, its contract
 * the same. No locks: a struct bt belongs to the thread that runs its CPU; what other threads write into translated code they tell
 * machine/codemap.h.
 *
 * Files: run.c the loop and what it does when a block is left, context.h for what a block is made; block.c tables of blocks and pages;
 * address.c what is known of addresses: the TLB's two levels, jump cache, links; life.c its life; translate.c from guest to host
 * instructions, with route.c which of them make a block, insn.c each by its rule, branch.c ways out of the block, system.c system
 * instructions in line, light.c those that C does without code being left, operand.c re-encoding, flags.c the guest's flags, memory.c the
 * software MMU's sequences, cold.c the stubs behind a block, near.c accesses near each other, range.c those that are in one page always;
 * cache.c the memory for code, entry and exit; verify.c and verify_*.c the verifier. internal.h has the register conventions.
 */
#ifndef XL_BT_BT_H
#define XL_BT_BT_H

#include "x86/cpu.h"

struct bt;

enum {                          /* for tests: everything slow */
    BT_ONE = 1,                 /* blocks of one instruction */
    BT_NO_CHAIN = 2,            /* every block ends in the loop */
    BT_FLUSH = 4,               /* all is forgotten every 64 blocks */
    BT_TINY_TLB = 8,            /* one page for loads, one for stores */
    BT_VERIFY = 16,             /* each block is checked as it is made (verify.c) */
    BT_PROFILE = 32,            /* executions are counted */
    BT_CLOCK = 64,              /* translating is timed: benchmarks */
};

/* Why there can be no translation on this host ("the CPU lacks BMI2"), or NULL. The environment's XENLIKE_HOST_LACKS=bmi2,fsgsbase,lahf,wx
 * makes the host appear to lack these. */
const char *bt_unavailable(void);
/* The translator's half of c, which is complete but for it. Sets c->bt. False: no memory, or what bt_unavailable says. */
bool bt_create(struct x86_cpu *c, unsigned options);
void bt_destroy(struct x86_cpu *c);
/* Forgets all translations: features changed, or memory did that no codemap covers. */
void bt_flush(struct x86_cpu *c);
/* Makes translated code that c runs on another thread come out to look at *c->attention at its next jump. It may be lost; then c comes out
 * when its slice of instructions is over. */
void bt_kick(struct x86_cpu *c);
/* x86_run (x86/cpu.h), by translation as far as possible. */
enum x86_exit bt_run(struct x86_cpu *c, u64 budget);

struct bt_stats {
    u64 blocks, translated;     /* blocks, and the instructions in them, made since creation */
    u64 interpreted;            /* instructions that the interpreter did */
    u64 exits;                  /* returns from translated code to the loop */
    u64 flushes, invalidated;   /* cache full; blocks of pages that were written */
    u64 host_bytes, guest_bytes;        /* of the blocks */
    u64 rejected;               /* blocks that the verifier refused */
    u64 translate_ns;           /* spent in bt_translate (BT_CLOCK) */
};
const struct bt_stats *bt_stats(const struct x86_cpu *c);

u64 bt_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size, u64 *compared);    /* xl_bt_fuzz */

#endif
