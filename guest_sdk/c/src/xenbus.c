/*
 * The xenstore ring: requests out, replies and watch events in.
 *
 * Locks: `lock` is held for a whole request, also while it waits (the ring carries one conversation). Watch events that arrive
 * meanwhile are kept in a list under the same lock.
 */
#include <guest.h>
#include <xen/io/ring.h>

#define LOOK_NS 10000000ull /* xs_watch_next looks this often for events that another vCPU's request has fetched */

struct part {
    const void *data;
    u32 size;
};

struct pending {
    struct pending *next;
    struct xs_event event;
};

static struct xenstore_domain_interface *ring;
static u32 port, next_id;
static struct pending *events, **events_end = &events;
static spinlock_t lock;

s64 error_number(const char *name);

void xenbus_init(void)
{
    if (!start_info->store_mfn)
        return;
    ring = mfn_to_virt(start_info->store_mfn);
    port = start_info->store_evtchn;
}

/* ---- Bytes ------------------------------------------------------------------------------------------------------- */

static s64 send_bytes(const char *data, u32 n)
{
    while (n) {
        u32 prod = ring->req_prod, used = prod - READ_ONCE(ring->req_cons);
        u32 put = MIN(XENSTORE_RING_SIZE - used, n);

        if (used > XENSTORE_RING_SIZE)
            return -XEN_EIO;
        if (!put) {
            event_wait(port, 0);
            continue;
        }
        xen_mb(); /* the room is ours before we write there */
        for (u32 i = 0; i < put; i++)
            ring->req[MASK_XENSTORE_IDX(prod + i)] = data[i];
        xen_wmb();
        WRITE_ONCE(ring->req_prod, prod + put);
        event_send(port);
        data += put;
        n -= put;
    }
    return 0;
}

/* data NULL: drops them. */
static s64 receive_bytes(char *data, u32 n)
{
    while (n) {
        u32 cons = ring->rsp_cons, have = READ_ONCE(ring->rsp_prod) - cons, got = MIN(have, n);

        if (have > XENSTORE_RING_SIZE)
            return -XEN_EIO;
        if (!got) {
            event_wait(port, 0);
            continue;
        }
        xen_rmb();
        for (u32 i = 0; data && i < got; i++)
            data[i] = ring->rsp[MASK_XENSTORE_IDX(cons + i)];
        xen_mb();
        WRITE_ONCE(ring->rsp_cons, cons + got);
        event_send(port);
        data += data ? got : 0;
        n -= got;
    }
    return 0;
}

/* ---- Messages ---------------------------------------------------------------------------------------------------- */

/* The payload of a watch event: path, token, both with a NUL. Without memory the event is lost. */
static s64 receive_event(u32 n)
{
    struct pending *p = malloc(sizeof(*p));
    char *text = malloc(n + 2);
    s64 rc = receive_bytes(p && text ? text : NULL, n);

    if (rc || !p || !text) {
        free(p);
        free(text);
        return rc;
    }
    text[n] = text[n + 1] = 0;
    *p = (struct pending){NULL, {text, text + strlen(text) + 1}};
    *events_end = p;
    events_end = &p->next;
    return 0;
}

static s64 talk(u32 type, u32 tx, const struct part *parts, u32 count, char *reply, size_t size)
{
    struct xsd_sockmsg msg = {type, ++next_id, tx, 0};
    char error[16] = "";
    s64 rc;

    for (u32 i = 0; i < count; i++)
        msg.len += parts[i].size;
    if (msg.len > XENSTORE_PAYLOAD_MAX)
        return -XEN_E2BIG;
    rc = send_bytes((char *)&msg, sizeof(msg));
    for (u32 i = 0; i < count && !rc; i++)
        rc = send_bytes(parts[i].data, parts[i].size);
    while (!rc) {
        rc = receive_bytes((char *)&msg, sizeof(msg));
        if (rc || msg.len > XENSTORE_PAYLOAD_MAX)
            break;
        if (msg.type == XS_WATCH_EVENT) {
            rc = receive_event(msg.len);
        } else if (msg.req_id != next_id) {
            rc = receive_bytes(NULL, msg.len);
        } else if (msg.type == XS_ERROR) {
            rc = receive_bytes(error, MIN(msg.len, sizeof(error) - 1));
            if (!rc && msg.len > sizeof(error) - 1)
                rc = receive_bytes(NULL, msg.len - (sizeof(error) - 1));
            return rc ? rc : -error_number(error);
        } else {
            u32 keep = MIN(msg.len, size);

            rc = receive_bytes(reply, keep);
            if (!rc)
                rc = receive_bytes(NULL, msg.len - keep);
            return rc ? rc : keep < msg.len && reply ? -XEN_E2BIG : (s64)msg.len;
        }
    }
    return rc ? rc : -XEN_EIO;
}

static s64 request(u32 type, u32 tx, const struct part *parts, u32 count, char *reply, size_t size)
{
    s64 rc;

    if (!ring)
        return -XEN_ENODEV;
    spin_lock(&lock);
    rc = talk(type, tx, parts, count, reply, size);
    spin_unlock(&lock);
    return rc;
}

#define STRING(s) {(s), strlen(s) + 1}

static s64 simple(u32 type, u32 tx, const char *path)
{
    s64 rc = request(type, tx, (struct part[]){STRING(path)}, 1, NULL, 0);

    return rc < 0 ? rc : 0;
}

/* ---- Operations -------------------------------------------------------------------------------------------------- */

s64 xs_read(u32 tx, const char *path, char *buffer, size_t size)
{
    s64 n = size ? request(XS_READ, tx, (struct part[]){STRING(path)}, 1, buffer, size - 1) : -XEN_EINVAL;

    if (n >= 0)
        buffer[n] = 0;
    return n;
}

s64 xs_read_number(u32 tx, const char *path, u64 *value)
{
    char text[24], *end;
    s64 n = xs_read(tx, path, text, sizeof(text));

    if (n < 0)
        return n;
    *value = strtoul(text, &end, 10);
    return n && !*end ? 0 : -XEN_EINVAL;
}

s64 xs_write(u32 tx, const char *path, const char *format, ...)
{
    char text[256];
    va_list args;
    int n;
    s64 rc;

    va_start(args, format);
    n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (n >= (int)sizeof(text))
        return -XEN_E2BIG;
    rc = request(XS_WRITE, tx, (struct part[]){STRING(path), {text, n}}, 2, NULL, 0);
    return rc < 0 ? rc : 0;
}

s64 xs_ls(u32 tx, const char *path, char *buffer, size_t size)
{
    return request(XS_DIRECTORY, tx, (struct part[]){STRING(path)}, 1, buffer, size);
}

s64 xs_mkdir(u32 tx, const char *path)
{
    return simple(XS_MKDIR, tx, path);
}

s64 xs_rm(u32 tx, const char *path)
{
    return simple(XS_RM, tx, path);
}

s64 xs_set_perms(u32 tx, const char *path, const char *perms)
{
    char list[128];
    size_t n = strlen(perms) + 1;
    s64 rc;

    if (n > sizeof(list))
        return -XEN_E2BIG;
    for (size_t i = 0; i < n; i++)
        list[i] = perms[i] == ' ' ? 0 : perms[i];
    rc = request(XS_SET_PERMS, tx, (struct part[]){STRING(path), {list, n}}, 2, NULL, 0);
    return rc < 0 ? rc : 0;
}

s64 xs_transaction_start(u32 *tx)
{
    char id[24];
    s64 n = request(XS_TRANSACTION_START, 0, (struct part[]){{"", 1}}, 1, id, sizeof(id) - 1);

    if (n < 0)
        return n;
    id[n] = 0;
    *tx = strtoul(id, NULL, 10);
    return 0;
}

s64 xs_transaction_end(u32 tx, bool abort)
{
    return simple(XS_TRANSACTION_END, tx, abort ? "F" : "T");
}

/* ---- Watches ----------------------------------------------------------------------------------------------------- */

s64 xs_watch(const char *path, const char *token)
{
    s64 rc = request(XS_WATCH, 0, (struct part[]){STRING(path), STRING(token)}, 2, NULL, 0);

    return rc < 0 ? rc : 0;
}

s64 xs_unwatch(const char *path, const char *token)
{
    s64 rc = request(XS_UNWATCH, 0, (struct part[]){STRING(path), STRING(token)}, 2, NULL, 0);

    return rc < 0 ? rc : 0;
}

s64 xs_watch_next(struct xs_event *event, u64 deadline)
{
    struct xsd_sockmsg msg;
    struct pending *p;
    s64 rc = 0;

    if (!ring)
        return -XEN_ENODEV;
    for (;;) {
        spin_lock(&lock);
        while (!events && !rc && READ_ONCE(ring->rsp_prod) != ring->rsp_cons) { /* between requests: nothing but events */
            rc = receive_bytes((char *)&msg, sizeof(msg));
            if (!rc && msg.len > XENSTORE_PAYLOAD_MAX)
                rc = -XEN_EIO;
            if (!rc)
                rc = msg.type == XS_WATCH_EVENT ? receive_event(msg.len) : receive_bytes(NULL, msg.len);
        }
        p = events;
        if (p && !(events = p->next))
            events_end = &events;
        spin_unlock(&lock);
        if (p) {
            *event = p->event;
            free(p);
            return 0;
        }
        if (rc)
            return rc;
        if (deadline && time_now() >= deadline)
            return -XEN_ETIME;
        event_wait(port, deadline ? MIN(deadline, time_now() + LOOK_NS) : time_now() + LOOK_NS);
    }
}

void xs_event_free(struct xs_event *event)
{
    free(event->path);
}

s64 xs_wait_state(const char *path, u32 states)
{
    struct xs_event event;
    u64 state;
    s64 rc = xs_watch(path, "state");

    while (!rc) {
        rc = xs_read_number(XS_NO_TRANSACTION, path, &state);
        if (!rc && state < 32 && states >> state & 1) {
            rc = state;
            break;
        }
        if (rc && rc != -XEN_EINVAL)
            break;
        rc = xs_watch_next(&event, 0); /* any watch: the loop reads the state again */
        if (!rc)
            xs_event_free(&event);
    }
    xs_unwatch(path, "state");
    return rc;
}
