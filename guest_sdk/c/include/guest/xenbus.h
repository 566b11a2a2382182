/*
 * The xenstore client, on the domain's ring. Calls wait for their answer; any vCPU may call, not from event handlers.
 *
 * Paths without a leading slash are below /local/domain/<own id>. Results: 0 or a length, or -XEN_E<error> as the store named it.
 */
#ifndef GUEST_XENBUS_H
#define GUEST_XENBUS_H

#include <guest/types.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

#define XS_NO_TRANSACTION 0u

/* Value of a node, with a NUL behind it; the length without it. -XEN_E2BIG if it does not fit. */
s64 xs_read(u32 tx, const char *path, char *buffer, size_t size);

/* The value as a decimal number. */
s64 xs_read_number(u32 tx, const char *path, u64 *value);

/* Sets a node; format as printf's. Makes missing parents. */
s64 xs_write(u32 tx, const char *path, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Names below path, each with a NUL behind it; the length of all. */
s64 xs_ls(u32 tx, const char *path, char *buffer, size_t size);
s64 xs_mkdir(u32 tx, const char *path);
s64 xs_rm(u32 tx, const char *path);

/* Permissions such as "n5 r0", separated by spaces: the first names the owner and what others may do. */
s64 xs_set_perms(u32 tx, const char *path, const char *perms);

/* What is done between start and end is done at once or, if end says -XEN_EAGAIN, not at all: try again. */
s64 xs_transaction_start(u32 *tx);
s64 xs_transaction_end(u32 tx, bool abort);

/* A watch fires once when it is set, then for each change at or below path. */
s64 xs_watch(const char *path, const char *token);
s64 xs_unwatch(const char *path, const char *token);

struct xs_event {
    char *path, *token; /* both in one block: xs_event_free */
};

/* The next event of any watch. deadline: system time in ns, 0 for none. -XEN_ETIME. */
s64 xs_watch_next(struct xs_event *event, u64 deadline);
void xs_event_free(struct xs_event *event);

/* Waits until `path` holds one of the xenbus states whose bits are in `states`; returns it. -XEN_ENOENT once it is gone. */
s64 xs_wait_state(const char *path, u32 states);

void xenbus_init(void);

#endif
