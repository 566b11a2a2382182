/* The kernels as a Linux program: `make native && ./bench-native [scale=PERCENT] [only=NAME]` prints all; `./bench-native serve` reads lines
 * "NAME PERCENT" and answers each; `./bench-native smp=N [only=NAME]` runs one kernel N times at once, in threads, and once alone. */
#include "kernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void report(const struct kernel *k, uint64_t percent)
{
    struct measured m = kernel_measure(k, percent, now);
    printf("%s %llu %llu %016llx\n", k->name, (unsigned long long)m.iterations, (unsigned long long)m.ticks, (unsigned long long)m.sum);
    fflush(stdout);
}

static int serve(void)
{
    char name[32];
    unsigned long long percent;
    while (scanf("%31s %llu", name, &percent) == 2)
        for (unsigned n = 0; n < nr_kernels; n++)
            if (!strcmp(name, kernels[n].name))
                report(&kernels[n], percent);
    return 0;
}

struct work { const struct kernel *kernel; uint64_t percent; };

static void *work(void *p)
{
    const struct work *w = p;
    w->kernel->run(w->kernel->iterations * w->percent / 100 * PIECES, 0);
    return NULL;
}

/* As the guest's: nanoseconds of so many threads that do the work of one each. */
static void smp(unsigned threads, struct work w)
{
    pthread_t thread[16];
    uint64_t start = now();
    for (unsigned n = 1; n < threads; n++)
        if (pthread_create(&thread[n], NULL, work, &w))
            exit(1);
    work(&w);
    for (unsigned n = 1; n < threads; n++)
        pthread_join(thread[n], NULL);
    printf("%s_x%u %llu\n", w.kernel->name, threads, (unsigned long long)(now() - start));
}

int main(int argc, char **argv)
{
    uint64_t percent = 100;
    unsigned threads = 0;
    const char *only = NULL;
    kernel_memory = aligned_alloc(4096, KERNEL_MEMORY);
    for (int n = 1; n < argc; n++) {
        if (!strncmp(argv[n], "scale=", 6))
            percent = strtoull(argv[n] + 6, NULL, 10);
        if (!strncmp(argv[n], "only=", 5))
            only = argv[n] + 5;
        if (!strncmp(argv[n], "smp=", 4))
            threads = (unsigned)atoi(argv[n] + 4);
        if (!strcmp(argv[n], "serve"))
            return serve();
    }
    for (unsigned n = 0; n < nr_kernels; n++) {
        if (only && strcmp(only, kernels[n].name))
            continue;
        if (threads && threads <= 16) {
            smp(1, (struct work){ &kernels[n], percent });
            smp(threads, (struct work){ &kernels[n], percent });
            return 0;
        }
        report(&kernels[n], percent);
    }
    return 0;
}
