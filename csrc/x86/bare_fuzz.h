/* Hostile machines for who runs them (bare_fuzz.c, bt/fuzz.c): made from a seed, looked at, compared. Owns nothing. No locks. */
#ifndef XL_X86_BARE_FUZZ_H
#define XL_X86_BARE_FUZZ_H

#include "x86/bare.h"

enum { BARE_FUZZ_RAM = 1 << 20, BARE_FUZZ_UNITS = 300 };

/* b, of BARE_FUZZ_RAM bytes, becomes the machine of that seed: any bytes as code, in any mode, any registers and page tables. */
void bare_fuzz_make(struct x86_bare *b, u64 seed);
/* At most `units` of budget, in runs of `step`, the TLB emptied before each if `flush`. Returns how many are left; a stop of another kind than budget and the exit port ends it. */
u64  bare_fuzz_run(struct x86_bare *b, u64 units, u64 step, bool flush);
/* The first part of the architectural state that differs, or NULL. */
const char *bare_fuzz_differs(const struct x86_cpu *a, const struct x86_cpu *b);
/* What no guest can do to its CPU, and this one has done; NULL: nothing. */
const char *bare_fuzz_broken(const struct x86_bare *b);

#endif
