/* Snapshot and reset of a whole host; see snapshot.c. */
#ifndef XL_SNAPSHOT_H
#define XL_SNAPSHOT_H

struct host;

int  snapshot_take(struct host *h);     /* replaces an earlier one. -EBUSY with the real clock, -ENOMEM */
int  snapshot_reset(struct host *h);    /* back to it, as often as wanted. -ENOENT: none was taken */
void snapshot_drop(struct host *h);

#endif
