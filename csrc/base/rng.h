/* The only source of randomness: splitmix64, seeded once per host, so that a seed repeats a run.
 *
 * Owns: the host's random state. Called by: whoever needs a number that a guest or a test could see. Virtual clock: one
 * thread; with the real clock, draws race harmlessly (nothing then promises repetition).
 */
#ifndef XL_BASE_RNG_H
#define XL_BASE_RNG_H

#include "base/types.h"

struct rng { u64 state; };

static inline u64 rng_u64(struct rng *r)
{
    u64 z = (r->state += 0x9e3779b97f4a7c15ul);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
    return z ^ (z >> 31);
}

#endif
