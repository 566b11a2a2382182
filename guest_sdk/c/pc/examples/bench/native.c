/* The kernels as a Linux program: `make native && ./bench-native [scale=PERCENT] [only=NAME]`. */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv)
{
    uint64_t scale = 100;
    const char *only = NULL;
    for (int n = 1; n < argc; n++) {
        if (!strncmp(argv[n], "scale=", 6))
            scale = strtoull(argv[n] + 6, NULL, 10);
        if (!strncmp(argv[n], "only=", 5))
            only = argv[n] + 5;
    }
    kernel_memory = aligned_alloc(4096, KERNEL_MEMORY);
    for (unsigned n = 0; n < nr_kernels; n++) {
        const struct kernel *k = &kernels[n];
        uint64_t iterations = k->iterations * scale / 100;
        struct timespec a, b;
        if (only && strcmp(only, k->name))
            continue;
        iterations = iterations ? iterations : 1;
        k->run(1, k->size);
        clock_gettime(CLOCK_MONOTONIC, &a);
        uint64_t sum = k->run(iterations, k->size);
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%s %llu %llu %016llx\n", k->name, (unsigned long long)iterations,
               (unsigned long long)((b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec), (unsigned long long)sum);
    }
    return 0;
}
