/* The benchmark's kernels: what a CPU does without an operating system. The same file is compiled into the guest and into a Linux program
 * (make native), which prints the same lines: name, iterations, nanoseconds, checksum. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

struct kernel {
    const char *name;
    uint64_t (*run)(uint64_t iterations, size_t size);  /* returns a checksum, which depends on the arguments only */
    uint64_t iterations;
    size_t size;                                        /* bytes of memory it works on, where it has any */
};
extern const struct kernel kernels[];
extern const unsigned nr_kernels;
/* Memory that they may use: 64 MiB, set by the caller. */
extern unsigned char *kernel_memory;
enum { KERNEL_MEMORY = 64 << 20 };

#endif
