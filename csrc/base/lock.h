/* Locks and atomics: thin names over the C11 builtins.
 *
 * Owns: nothing. Called by: everything below. Spinlocks are one byte so that every event channel can have its own.
 * They guard short sections only; nobody sleeps, does I/O or waits for another vCPU while holding one.
 *
 * Global lock order (take downwards, never upwards):
 *   domain->mm.lock (two domains: in domid order) -> domain->event lock -> event channel
 *   -> grant table, maptrack (one of them at a time) -> domain->lock -> runqueue -> timer heap -> domain list (shootdowns walk it)
 *   -> domain->mm.list_lock -> heap (free frames) -> lane -> arena
 */
#ifndef XL_BASE_LOCK_H
#define XL_BASE_LOCK_H

#include "base/types.h"

typedef struct { u8 held; } spinlock_t;

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

void spin_lock_slow(spinlock_t *l);    /* spins, then yields the host CPU: the holder may have been preempted */

static inline bool spin_trylock(spinlock_t *l)
{
    return __atomic_exchange_n(&l->held, 1, __ATOMIC_ACQUIRE) == 0;
}

static inline void spin_lock(spinlock_t *l)
{
    if (unlikely(!spin_trylock(l)))
        spin_lock_slow(l);
}

static inline void spin_unlock(spinlock_t *l)
{
    __atomic_store_n(&l->held, 0, __ATOMIC_RELEASE);
}

/* Takes two locks of one class by address, so that two takers cannot deadlock. The same lock twice is taken once. */
static inline void spin_lock_two(spinlock_t *a, spinlock_t *b)
{
    spinlock_t *first = a < b ? a : b, *second = a < b ? b : a;
    spin_lock(first);
    if (second != first)
        spin_lock(second);
}

static inline void spin_unlock_two(spinlock_t *a, spinlock_t *b)
{
    spin_unlock(a);
    if (b != a)
        spin_unlock(b);
}

#define read_once(x)          __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define write_once(x, v)      __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)
#define load_acquire(x)       __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define store_release(x, v)   __atomic_store_n(&(x), (v), __ATOMIC_RELEASE)
#define smp_mb()              __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define smp_wmb()             __atomic_thread_fence(__ATOMIC_RELEASE)
#define smp_rmb()             __atomic_thread_fence(__ATOMIC_ACQUIRE)

/* *p: old -> new; on failure *old becomes what was found. Full barrier either way. */
#define cmpxchg(p, old, new)  __atomic_compare_exchange_n((p), (old), (new), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
#define xchg(p, v)            __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define atomic_or(p, v)       __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
#define atomic_and(p, v)      __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
#define atomic_add(p, v)      __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define atomic_sub(p, v)      __atomic_fetch_sub((p), (v), __ATOMIC_SEQ_CST)

static inline bool test_and_set_bit(u64 *word, unsigned bit)
{
    return (__atomic_fetch_or(word, 1ul << bit, __ATOMIC_SEQ_CST) >> bit) & 1;
}

static inline bool test_and_clear_bit(u64 *word, unsigned bit)
{
    return (__atomic_fetch_and(word, ~(1ul << bit), __ATOMIC_SEQ_CST) >> bit) & 1;
}

static inline bool test_bit(const u64 *word, unsigned bit)
{
    return (__atomic_load_n(word, __ATOMIC_SEQ_CST) >> bit) & 1;
}

#endif
