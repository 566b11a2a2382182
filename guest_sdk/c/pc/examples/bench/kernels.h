/* The benchmark's kernels: what a CPU does without an operating system. The same object file is linked into the guest and into a Linux
 * program (make native), which prints the same lines: name, iterations, nanoseconds, checksum. Called by bench.c and native.c.
 *
 * A kernel runs in PIECES pieces of a fraction of a millisecond, and the middle piece counts: most pieces are over before a host's scheduler
 * takes the CPU away, and what is done once (translation, page faults) is done in the first. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { PIECES = 15 };

struct kernel {
    const char *name;
    void (*prepare)(size_t size);                       /* makes its memory what it is at the beginning, so that checksums repeat; or NULL */
    uint64_t (*run)(uint64_t iterations, size_t size);  /* each of the same work; a checksum of what was computed, which nothing else decides */
    uint64_t iterations;                                /* of a piece */
    size_t size;                                        /* bytes of memory it works on, where it has any */
};
extern const struct kernel kernels[];
extern const unsigned nr_kernels;
/* Memory that they may use, set by the caller. */
extern unsigned char *kernel_memory;
enum { KERNEL_MEMORY = 64 << 20 };

struct measured { uint64_t iterations, ticks, sum; };   /* of all pieces; ticks: of the middle one, times PIECES */

/* Runs k with so many percent of its iterations, at least one a piece. clock: any that goes on while nobody runs. */
static inline struct measured kernel_measure(const struct kernel *k, uint64_t percent, uint64_t (*clock)(void))
{
    uint64_t iterations = k->iterations * percent / 100, spent[PIECES];
    struct measured m = { 0 };
    iterations += !iterations;
    if (k->prepare)
        k->prepare(k->size);
    k->run(1, k->size);
    for (unsigned n = 0; n < PIECES; n++) {
        uint64_t start = clock(), sum = k->run(iterations, k->size), ticks = clock() - start;
        unsigned at = n;
        m.sum = m.sum * 31 + sum;
        for (; at && spent[at - 1] > ticks; at--)       /* in order */
            spent[at] = spent[at - 1];
        spent[at] = ticks;
    }
    m.iterations = iterations * PIECES;
    m.ticks = spent[PIECES / 2] * PIECES;
    return m;
}

#endif
