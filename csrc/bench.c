/* See bench.h. */
#define _GNU_SOURCE
#include "xenlike.h"

#include <linux/futex.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- floors ------------------------------------------------------------------------------------------------------ */

typedef s64 floor_fn(u64 n, u8 *buf, u64 size);

static u64 __attribute__((noinline)) nothing(u64 x)
{
    __asm__ volatile("" : "+r"(x));     /* a real call, every time */
    return x;
}

static s64 floor_call(u64 n, u8 *buf, u64 size)
{
    u64 (*volatile fn)(u64) = nothing;
    for (u64 i = 0; i < n; i++)
        fn(i);
    return 0;
}

static s64 floor_atomic(u64 n, u8 *buf, u64 size)
{
    u64 word = 0;
    for (u64 i = 0; i < n; i++)
        atomic_add(&word, 1);
    return 0;
}

static s64 floor_clock(u64 n, u8 *buf, u64 size)
{
    for (u64 i = 0; i < n; i++)
        clock_monotonic_ns();
    return 0;
}

static s64 floor_memcpy(u64 n, u8 *buf, u64 size)
{
    if (!size)
        return -XEN_EINVAL;
    for (u64 i = 0, page = 0; i < n; i++, page = page + 1 < size ? page + 1 : 0) {
        memcpy(buf + (size + page) * PAGE_SIZE, buf + page * PAGE_SIZE, PAGE_SIZE);
        __asm__ volatile("" : : "r"(buf) : "memory");
    }
    return 0;
}

static s64 floor_pread(u64 n, u8 *buf, u64 size)
{
    enum { BYTES = 512, FILE_PAGES = 1024 };
    for (u64 i = 0; i < n; i++)
        if (pread((int)size, buf, BYTES, (off_t)(i * 367 % FILE_PAGES * PAGE_SIZE)) != BYTES)
            return -XEN_EIO;
    return 0;
}

/* Two threads take turns: an even word is the one's turn, an odd one the other's. */
struct turns { u32 word; u64 n; };

static void turns_take(struct turns *t, u32 mine)
{
    for (u64 i = 0; i < t->n; i++) {
        u32 seen;
        while ((seen = load_acquire(t->word)) % 2 != mine)
            syscall(SYS_futex, &t->word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        store_release(t->word, seen + 1);
        syscall(SYS_futex, &t->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *turns_other(void *t)
{
    turns_take(t, 1);
    return NULL;
}

static s64 floor_wake(u64 n, u8 *buf, u64 size)
{
    struct turns t = { .n = n / 2 };
    pthread_t other;
    if (pthread_create(&other, NULL, turns_other, &t))
        return -XEN_EAGAIN;
    turns_take(&t, 0);
    pthread_join(other, NULL);
    return 0;
}

static floor_fn *const floors[] = {
    [BENCH_FLOOR_CALL] = floor_call,     [BENCH_FLOOR_ATOMIC] = floor_atomic, [BENCH_FLOOR_CLOCK] = floor_clock,
    [BENCH_FLOOR_MEMCPY] = floor_memcpy, [BENCH_FLOOR_PREAD] = floor_pread,   [BENCH_FLOOR_WAKE] = floor_wake,
};
STATIC_ASSERT(ARRAY_SIZE(floors) == BENCH_NR_FLOORS);

s64 xl_bench_floor(u32 floor, u64 n, void *buf, u64 size)
{
    if (floor >= BENCH_NR_FLOORS)
        return -XEN_EINVAL;
    u64 start = clock_monotonic_ns();
    s64 rc = floors[floor](n, buf, size);
    return rc ? rc : (s64)(clock_monotonic_ns() - start);
}

/* ---- hypercalls -------------------------------------------------------------------------------------------------- */

s64 xl_bench_hypercalls(struct vcpu *v, const struct xl_cold *calls, u32 nr, u64 rounds)
{
    u64 start = clock_monotonic_ns();
    for (u64 round = 0; round < rounds; round++)
        for (u32 i = 0; i < nr; i++) {
            s64 rc = hypercall(v, calls[i].nr, calls[i].args);
            if (rc < 0)
                return rc;
        }
    return (s64)(clock_monotonic_ns() - start);
}
