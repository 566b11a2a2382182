/* Snapshot and reset of a whole host, for tests that start many times from one state.
 *
 * Owns: struct snapshot, outside the arena. Called by: xenlike.h, while no pCPU runs (virtual clock: one thread).
 * The arena, the used part of frame table and M2P are copied whole (a few MiB); guest memory goes back by the dirty map, which the
 * choke point (machine/frame.h), the TLB's write fills and page-table writes keep: a reset costs what was touched.
 */
#define _GNU_SOURCE
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "bt/bt.h"
#include "hv/host.h"
#include "io/worker.h"

struct snapshot {
    u8 *arena;          u64 brk;
    struct frame *frames;
    u64 *m2p;           u32 m2p_valid;
    u32 fresh;                  /* frames ever used */
    u32 *ram_index;             /* [fresh]: 1 + place of the frame's bytes in ram, 0: all zero */
    u8 *ram;
};

void snapshot_drop(struct host *h)
{
    struct snapshot *s = h->os->snapshot;
    if (!s)
        return;
    free(s->arena);
    free(s->frames);
    free(s->m2p);
    free(s->ram_index);
    free(s->ram);
    free(s);
    h->os->snapshot = NULL;
    io_snapshot_drop(h);
}

/* From here on every first write to a frame is noticed: no TLB may remember a write right, no frame is dirty. */
static void forget_dirt(struct host *h)
{
    memset(h->machine.dirty, 0, h->machine.heap.fresh);
    for (struct domain *d = h->domains; d; d = d->next)
        tlb_flush_domain(d);
}

/* They are outside the arena and know its contents: none is in a snapshot, and none outlives a reset. The next run makes new ones. */
static void drop_translators(struct host *h)
{
    for (struct domain *d = h->domains; d; d = d->next)
        for (u32 i = 0; i < d->nr_vcpus; i++)
            if (d->vcpu[i] && d->vcpu[i]->cpu)
                bt_destroy(d->vcpu[i]->cpu);
}

static bool copy_ram(struct host *h, struct snapshot *s)
{
    struct machine *m = &h->machine;
    u32 n = 0;
    for (u32 mfn = m->first_mfn; mfn < s->fresh; mfn++)
        if (m->frames[mfn].count_info & PGC_TOUCHED)
            s->ram_index[mfn] = ++n;
    s->ram = malloc((u64)n * PAGE_SIZE + 1);
    if (!s->ram)
        return false;
    for (u32 mfn = m->first_mfn; mfn < s->fresh; mfn++)
        if (s->ram_index[mfn])
            memcpy(s->ram + (u64)(s->ram_index[mfn] - 1) * PAGE_SIZE, mfn_ptr(m, mfn), PAGE_SIZE);
    return true;
}

int snapshot_take(struct host *h)
{
    struct machine *m = &h->machine;
    if (h->clock.kind != CLOCK_VIRTUAL)
        return -XEN_EBUSY;
    snapshot_drop(h);
    drop_translators(h);
    forget_dirt(h);                     /* before the copy: its flush requests are part of the state that comes back */
    struct snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return -XEN_ENOMEM;
    h->os->snapshot = s;
    s->brk = h->arena.brk;
    s->fresh = m->heap.fresh;
    s->m2p_valid = m->m2p_valid;
    s->arena = malloc(s->brk);
    s->frames = malloc(s->fresh * sizeof *s->frames);
    s->m2p = malloc(s->m2p_valid * sizeof *s->m2p + 1);
    s->ram_index = calloc(s->fresh, sizeof *s->ram_index);
    if (!s->arena || !s->frames || !s->m2p || !s->ram_index || !copy_ram(h, s) || io_snapshot(h)) {
        snapshot_drop(h);
        return -XEN_ENOMEM;
    }
    memcpy(s->arena, h->arena.base, s->brk);
    memcpy(s->frames, m->frames, s->fresh * sizeof *s->frames);
    memcpy(s->m2p, m->m2p, s->m2p_valid * sizeof *s->m2p);
    return 0;
}

int snapshot_reset(struct host *h)
{
    struct machine *m = &h->machine;
    const struct snapshot *s = h->os->snapshot;
    if (!s)
        return -XEN_ENOENT;

    drop_translators(h);
    u32 fresh_now = m->heap.fresh, m2p_now = m->m2p_valid;
    for (u32 mfn = m->first_mfn; mfn < fresh_now; mfn++) {
        if (!m->dirty[mfn])
            continue;
        if (mfn < s->fresh && s->ram_index[mfn])
            memcpy(mfn_ptr(m, mfn), s->ram + (u64)(s->ram_index[mfn] - 1) * PAGE_SIZE, PAGE_SIZE);
        else
            memset(mfn_ptr(m, mfn), 0, PAGE_SIZE);
        m->dirty[mfn] = 0;
    }
    memcpy(m->frames, s->frames, s->fresh * sizeof *s->frames);
    memset(m->frames + s->fresh, 0, (fresh_now - s->fresh) * sizeof *m->frames);
    memcpy(m->m2p, s->m2p, s->m2p_valid * sizeof *s->m2p);
    memset(m->m2p + s->m2p_valid, 0, (m2p_now - s->m2p_valid) * sizeof *m->m2p);
    u64 brk_now = h->arena.brk;
    memcpy(h->arena.base, s->arena, s->brk);            /* struct host itself lies at the arena's start */
    memset(h->arena.base + s->brk, 0, brk_now - s->brk);
    io_reset(h);
    return 0;
}
