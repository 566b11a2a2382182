/*
 * Runs of numbers from a bitmap, first fit: pages, and pages of the VMAP window. Bit set: taken.
 */
#ifndef GUEST_BITMAP_H
#define GUEST_BITMAP_H

#include <guest/cpu.h>

struct bitmap {
    u64 *words;
    u64 size; /* numbers */
    u64 low;  /* none below is free */
    spinlock_t lock;
};

/* The first of n adjacent free numbers, or `size`. */
static inline u64 bitmap_take(struct bitmap *map, u64 n)
{
    bool masked = spin_lock_events(&map->lock);
    u64 run = 0, at;

    for (at = map->low; at < map->size && run < n; at++) {
        if (at % 64 == 0 && map->words[at / 64] == ~0ul) {
            run = 0;
            at += 63;
            continue;
        }
        run = map->words[at / 64] >> (at % 64) & 1 ? 0 : run + 1;
    }
    if (run < n || !n) {
        at = map->size;
    } else {
        at -= n;
        for (u64 i = at; i < at + n; i++)
            map->words[i / 64] |= 1ul << (i % 64);
        if (at == map->low)
            map->low += n;
    }
    spin_unlock_events(&map->lock, masked);
    return at;
}

static inline void bitmap_give(struct bitmap *map, u64 at, u64 n)
{
    bool masked = spin_lock_events(&map->lock);

    map->low = MIN(map->low, at);
    for (u64 end = at + n, run; at < end; at += run) { /* word by word: at boot these are all pages there are */
        run = MIN(64 - at % 64, end - at);
        map->words[at / 64] &= ~((run == 64 ? ~0ul : (1ul << run) - 1) << (at % 64));
    }
    spin_unlock_events(&map->lock, masked);
}

#endif
