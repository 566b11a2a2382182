/*
 * Integer types, barriers and atomics that the whole SDK uses.
 *
 * Included by every other header. Atomics are gcc's builtins: on x86 they are the locked instructions that the ABI asks for where
 * guest and hypervisor share a word.
 */
#ifndef GUEST_TYPES_H
#define GUEST_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ul
#define PAGE_MASK (~(PAGE_SIZE - 1))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a) (((x) + (a) - 1) & ~((typeof(x))(a) - 1))
#define DIV_UP(x, n) (((x) + (n) - 1) / (n))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define barrier() asm volatile("" ::: "memory")
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* Bit n of an array of u64, shared with other CPUs or the hypervisor. */
static inline bool bit_test(const u64 *words, u64 n)
{
    return READ_ONCE(words[n / 64]) >> (n % 64) & 1;
}

static inline bool bit_test_and_set(u64 *words, u64 n)
{
    return __atomic_fetch_or(&words[n / 64], 1ul << (n % 64), __ATOMIC_SEQ_CST) >> (n % 64) & 1;
}

static inline bool bit_test_and_clear(u64 *words, u64 n)
{
    return __atomic_fetch_and(&words[n / 64], ~(1ul << (n % 64)), __ATOMIC_SEQ_CST) >> (n % 64) & 1;
}

#endif
