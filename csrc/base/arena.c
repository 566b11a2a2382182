/* See arena.h. */
#define _GNU_SOURCE
#include "base/arena.h"

#include <sched.h>
#include <string.h>
#include <sys/mman.h>

enum { ARENA_SLOTS = 64 };
static const u64 ARENA_SLOT_BASE = 0x6a0000000000ul;    /* away from where Linux puts libraries, heaps and stacks */
static const u64 ARENA_SLOT_SIZE = 0x001000000000ul;    /* 64 GiB apart */

void spin_lock_slow(spinlock_t *l)
{
    for (unsigned spins = 0; !spin_trylock(l); spins++) {
        if (spins & 127)
            cpu_relax();
        else
            sched_yield();
    }
}

u8 *arena_map(u64 size)
{
    const int prot = PROT_READ | PROT_WRITE;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

    for (unsigned slot = 0; slot < ARENA_SLOTS; slot++) {
        void *want = (void *)(ARENA_SLOT_BASE + slot * ARENA_SLOT_SIZE);
        void *got = mmap(want, size, prot, flags | MAP_FIXED_NOREPLACE, -1, 0);
        if (got == want)
            return got;
        if (got != MAP_FAILED)          /* a kernel that ignores FIXED_NOREPLACE */
            munmap(got, size);
    }
    void *any = mmap(NULL, size, prot, flags, -1, 0);
    return any == MAP_FAILED ? NULL : any;
}

void arena_init(struct arena *a, u8 *base, u64 size, u64 used)
{
    *a = (struct arena){ .base = base, .size = size, .brk = (used + 63) & ~63ul };
}

void arena_unmap(u8 *base, u64 size)
{
    munmap(base, size);
}

static unsigned size_class(u64 n)
{
    unsigned c = 0;
    while ((64ul << c) < n)
        c++;
    return c;
}

void *arena_alloc(struct arena *a, u64 n)
{
    unsigned c = size_class(n);
    if (c >= ARENA_CLASSES)
        return NULL;

    u64 bytes = 64ul << c;
    bool fresh = false;
    u8 *p = NULL;
    spin_lock(&a->lock);
    if (a->free_list[c]) {
        p = a->base + a->free_list[c];
        a->free_list[c] = *(u64 *)p;
    } else if (a->size - a->brk >= bytes) {
        p = a->base + a->brk;
        a->brk += bytes;
        fresh = true;
    }
    if (p)
        a->in_use += bytes;
    spin_unlock(&a->lock);

    if (p && !fresh)                    /* fresh pages of the mapping are zero already: do not touch them */
        memset(p, 0, n);
    return p;
}

void arena_free(struct arena *a, void *p, u64 n)
{
    if (!p)
        return;
    unsigned c = size_class(n);
    spin_lock(&a->lock);
    *(u64 *)p = a->free_list[c];
    a->free_list[c] = (u64)((u8 *)p - a->base);
    a->in_use -= 64ul << c;
    spin_unlock(&a->lock);
}
