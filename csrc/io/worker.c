/* See worker.h. */
#define _GNU_SOURCE
#include "io/worker.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hv/host.h"

enum { READY_WORDS = IO_SLOTS / 64, NOT_BUSY = -1 };

struct io_slot {
    io_run_fn *run;             /* NULL: free */
    s32 id;
    void *dev;
    void *backing;
    void (*release)(void *backing);
};

struct io_state {
    pthread_mutex_t lock;
    pthread_cond_t idle;        /* busy has become NOT_BUSY */
    pthread_t thread;
    bool started;               /* [lane] */
    u32 stop;                   /* atomic */
    u32 sleeping;               /* atomic, futex word: the worker waits, or is about to */
    int busy;                   /* slot whose device runs just now. [lock] */
    int nr_slots;               /* slots ever used. Written under the lock, read without */
    u32 nr_attached;            /* ever: makes ids differ. [lane] */
    struct io_slot *saved;      /* the table at the snapshot. [lane] */
    int nr_saved;
    u64 ready[READY_WORDS];     /* bit a slot: kicked. atomic */
    struct io_slot slot[IO_SLOTS];      /* [lock] */
};

static u32 slot_of(s32 id) { return (u32)id % IO_SLOTS; }

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static long futex(u32 *word, int op, u32 value)
{
    return syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

/* Words of `ready` that can be nonzero. */
static int ready_words(const struct io_state *io) { return (read_once(io->nr_slots) + 63) / 64; }

static bool anything_ready(const struct io_state *io)
{
    for (int w = 0, n = ready_words(io); w < n; w++)
        if (read_once(io->ready[w]))
            return true;
    return false;
}

/* Pairs with io_kick: the flag is set before `sleeping` is read there, `sleeping` is set before the flags are read here. */
static void sleep_until_kicked(struct io_state *io)
{
    write_once(io->sleeping, 1);
    smp_mb();
    while (!anything_ready(io) && !load_acquire(io->stop) && load_acquire(io->sleeping))
        futex(&io->sleeping, FUTEX_WAIT_PRIVATE, 1);
    write_once(io->sleeping, 0);
}

static void wake(struct io_state *io)
{
    if (load_acquire(io->sleeping) && xchg(&io->sleeping, 0))
        futex(&io->sleeping, FUTEX_WAKE_PRIVATE, 1);
}

static void run_slot(struct host *h, struct io_state *io, int slot)
{
    pthread_mutex_lock(&io->lock);
    struct io_slot s = io->slot[slot];
    if (s.run)
        io->busy = slot;
    pthread_mutex_unlock(&io->lock);
    if (!s.run)                 /* detached after the kick */
        return;

    bool more = s.run(h, s.dev);

    pthread_mutex_lock(&io->lock);
    io->busy = NOT_BUSY;
    pthread_cond_broadcast(&io->idle);
    pthread_mutex_unlock(&io->lock);
    if (more)
        atomic_or(&io->ready[slot / 64], 1ul << (slot % 64));
}

static void *worker_main(void *arg)
{
    struct host *h = arg;
    struct io_state *io = *host_io(h);

    while (!load_acquire(io->stop)) {       /* no spinning before sleep: on a busy machine it doubles every figure (measured) */
        bool ran = false;
        for (int w = 0, n = ready_words(io); w < n; w++) {
            if (!read_once(io->ready[w]))
                continue;
            for (u64 bits = xchg(&io->ready[w], 0); bits; bits &= bits - 1) {
                run_slot(h, io, w * 64 + __builtin_ctzl(bits));
                ran = true;
            }
        }
        if (!ran)
            sleep_until_kicked(io);
    }
    return NULL;
}

static int worker_start(struct host *h, struct io_state *io)
{
    if (io->started || h->clock.kind == CLOCK_VIRTUAL)
        return 0;
    sigset_t all, old;
    sigfillset(&all);           /* signals belong to the embedding program's threads */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&io->thread, NULL, worker_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return -XEN_EAGAIN;
    pthread_setname_np(io->thread, "xl-io");
    io->started = true;
    return 0;
}

void io_kick(struct host *h, s32 id)
{
    struct io_state *io = *host_io(h);
    u32 slot = slot_of(id);
    if (!test_and_set_bit(&io->ready[slot / 64], slot % 64))
        wake(io);
}

void io_stop(struct host *h)
{
    struct io_state *io = *host_io(h);
    if (!io || !io->started)
        return;
    store_release(io->stop, 1);
    smp_mb();
    wake(io);
    pthread_join(io->thread, NULL);
    io->started = false;
}

/* ---- slots ------------------------------------------------------------------------------------------------------- */

static struct io_state *io_state_get(struct host *h)
{
    struct io_state **io = host_io(h);
    if (!*io && (*io = calloc(1, sizeof **io))) {       /* 170 KiB, of which the kernel backs what is touched */
        pthread_mutex_init(&(*io)->lock, NULL);
        pthread_cond_init(&(*io)->idle, NULL);
        (*io)->busy = NOT_BUSY;
    }
    return *io;
}

s32 io_attach(struct host *h, io_run_fn *run, void *dev, void *backing, void (*release)(void *backing))
{
    struct io_state *io = io_state_get(h);
    if (!io)
        return -XEN_ENOMEM;
    int rc = worker_start(h, io);
    if (rc)
        return rc;

    int slot = 0;
    while (slot < IO_SLOTS && io->slot[slot].run)       /* only the lane changes the table: it may read without the lock */
        slot++;
    if (slot == IO_SLOTS)
        return -XEN_ENOSPC;
    s32 id = (s32)((io->nr_attached++ * IO_SLOTS + (u32)slot) & INT32_MAX);
    pthread_mutex_lock(&io->lock);
    io->slot[slot] = (struct io_slot){ run, id, dev, backing, release };
    if (slot >= io->nr_slots)
        write_once(io->nr_slots, slot + 1);      /* before any kick of that slot: the worker looks at no word beyond */
    pthread_mutex_unlock(&io->lock);
    return id;
}

/* Does the snapshot hold this backing in this slot? A backing never moves to another slot. */
static bool is_saved(const struct io_state *io, int slot, const void *backing)
{
    return slot < io->nr_saved && io->saved[slot].run && io->saved[slot].backing == backing;
}

void io_detach(struct host *h, s32 id)
{
    struct io_state *io = *host_io(h);
    int slot = (int)slot_of(id);
    pthread_mutex_lock(&io->lock);
    while (io->busy == slot)
        pthread_cond_wait(&io->idle, &io->lock);
    struct io_slot s = io->slot[slot];
    io->slot[slot] = (struct io_slot){ 0 };
    pthread_mutex_unlock(&io->lock);
    if (s.backing && !is_saved(io, slot, s.backing))
        s.release(s.backing);
}

void *io_device(struct host *h, s32 id, io_run_fn *run)
{
    struct io_state *io = *host_io(h);
    if (!io || id < 0)
        return NULL;
    const struct io_slot *s = &io->slot[slot_of(id)];
    return s->run == run && s->id == id ? s->dev : NULL;
}

void *io_device_next(struct host *h, io_run_fn *run, u32 *slot)
{
    struct io_state *io = *host_io(h);
    while (io && *slot < (u32)io->nr_slots) {
        const struct io_slot *s = &io->slot[(*slot)++];
        if (s->run == run)
            return s->dev;
    }
    return NULL;
}

void io_free(struct host *h)
{
    struct io_state *io = *host_io(h);
    if (!io)
        return;
    io_snapshot_drop(h);
    pthread_cond_destroy(&io->idle);
    pthread_mutex_destroy(&io->lock);
    free(io);
    *host_io(h) = NULL;
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

int io_snapshot(struct host *h)
{
    struct io_state *io = *host_io(h);
    if (!io)
        return 0;               /* nothing saved reads as an empty table */
    pthread_mutex_lock(&io->lock);
    bool busy = io->busy != NOT_BUSY || anything_ready(io);
    pthread_mutex_unlock(&io->lock);
    if (busy && h->clock.kind == CLOCK_REAL)
        return -XEN_EBUSY;
    struct io_slot *copy = malloc(io->nr_slots * sizeof *copy + 1);
    if (!copy)
        return -XEN_ENOMEM;
    io_snapshot_drop(h);
    memcpy(copy, io->slot, io->nr_slots * sizeof *copy);
    io->saved = copy;
    io->nr_saved = io->nr_slots;
    return 0;
}

void io_reset(struct host *h)
{
    struct io_state *io = *host_io(h);
    if (!io)
        return;
    pthread_mutex_lock(&io->lock);
    for (int i = 0; i < io->nr_slots; i++) {
        while (io->busy == i)
            pthread_cond_wait(&io->idle, &io->lock);
        struct io_slot *s = &io->slot[i];
        if (s->run && s->backing && !is_saved(io, i, s->backing))
            s->release(s->backing);
        *s = i < io->nr_saved ? io->saved[i] : (struct io_slot){ 0 };
    }
    pthread_mutex_unlock(&io->lock);
}

void io_snapshot_drop(struct host *h)
{
    struct io_state *io = *host_io(h);
    if (!io || !io->saved)
        return;
    for (int i = 0; i < io->nr_saved; i++) {
        const struct io_slot *s = &io->saved[i];
        if (s->run && s->backing && s->backing != io->slot[i].backing)
            s->release(s->backing);         /* detached since the snapshot: nobody can bring it back now */
    }
    free(io->saved);
    io->saved = NULL;
    io->nr_saved = 0;
}
