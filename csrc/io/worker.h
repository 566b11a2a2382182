/* The host's one I/O worker, and the slots of the devices that it serves.
 *
 * Owns: struct io_state: the thread, its wake-up, the slot table with what a device keeps outside the arena (descriptors).
 * Called by: device classes of io/ (blk.c), snapshot.c, host destruction.
 * Locks: io_state.lock guards the slot table and `busy`; the worker runs a device with no lock held. io_kick() takes none, so
 * that an event consumer may call it with a port lock held.
 *
 * A device is an arena object (state that a snapshot copies) with a run function. A kick flags its slot and wakes the worker,
 * which runs it until it has nothing left to do. The virtual clock has no worker: devices then complete in line from a timer.
 */
#ifndef XL_IO_WORKER_H
#define XL_IO_WORKER_H

#include "base/types.h"

struct host;

enum { IO_SLOTS = 4096 };

/* Does what device `dev` has to do, in the worker's thread. True: there is more, run it again after the others. */
typedef bool io_run_fn(struct host *h, void *dev);

/* Registers a device; starts the worker if the clock is real and it does not run yet. `backing` is the device's part outside
 * the arena, given to `release` when nothing needs it any more (also not a snapshot). Lane. Returns an id >= 0 (its low bits are
 * the slot, the others tell successive users of a slot apart), or -ENOSPC, -ENOMEM, -EAGAIN (no thread); then the caller keeps
 * backing. */
s32 io_attach(struct host *h, io_run_fn *run, void *dev, void *backing, void (*release)(void *backing));
/* Waits until the worker is done with the device, then forgets it. Lane. */
void io_detach(struct host *h, s32 id);
/* The device of class `run` with this id, NULL if there is none. Lane. */
void *io_device(struct host *h, s32 id, io_run_fn *run);
/* The first device of that class in slot `*slot` or above, and *slot one past it; NULL: no more. Lane. */
void *io_device_next(struct host *h, io_run_fn *run, u32 *slot);
/* Has the worker run the device soon. Any thread, any lock. Real clock only. */
void io_kick(struct host *h, s32 id);

/* Joins the worker. Devices stay, and nothing runs them. */
void io_stop(struct host *h);
/* After io_stop and the detaching of every device: returns the memory. */
void io_free(struct host *h);

/* The slot table's part in snapshots. save: -EBUSY while the worker has something to do, -ENOMEM. reset puts the table back:
 * devices attached since are gone, those detached since are back with their backing (which stayed). */
int  io_snapshot(struct host *h);
void io_reset(struct host *h);
void io_snapshot_drop(struct host *h);

#endif
