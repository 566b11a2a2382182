/*
 * blkfront: one request at a time, through pages that stay granted. A guest that wants more in flight has the ring macros of
 * xen/io/ring.h for it; what is here is the protocol in its shortest correct form.
 */
#include <guest.h>
#include <xen/io/blkif.h>
#include <xen/io/protocols.h>

#define PER_PAGE (PAGE_SIZE / SECTOR_SIZE)
#define SEGMENTS BLKIF_MAX_SEGMENTS_PER_REQUEST
#define STATE(s) (1u << (s))

struct block {
    char path[64], backend[128];
    u32 port, info;
    u64 sectors, next_id, handle;
    s64 ring_ref;
    struct blkif_front_ring ring;
    char *pages; /* SEGMENTS of them */
    s64 refs[SEGMENTS];
};

static s64 key(const struct block *disk, bool back, const char *name, u64 *value)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/%s", back ? disk->backend : disk->path, name);
    return xs_read_number(XS_NO_TRANSACTION, path, value);
}

static s64 set_state(const struct block *disk, enum xenbus_state state)
{
    char path[80];

    snprintf(path, sizeof(path), "%s/state", disk->path);
    return xs_write(XS_NO_TRANSACTION, path, "%d", state);
}

static s64 wait_back(const struct block *disk, u32 states)
{
    char path[160];

    snprintf(path, sizeof(path), "%s/state", disk->backend);
    return xs_wait_state(path, states);
}

/* Finds the device whose back end calls it `name`. */
static s64 find(struct block *disk, const char *name)
{
    char list[512], path[160], dev[32];
    s64 n = xs_ls(XS_NO_TRANSACTION, "device/vbd", list, sizeof(list) - 1), rc;

    for (char *id = list; n > 0 && id < list + n; id += strlen(id) + 1) {
        snprintf(disk->path, sizeof(disk->path), "device/vbd/%s", id);
        snprintf(path, sizeof(path), "%s/backend", disk->path);
        rc = xs_read(XS_NO_TRANSACTION, path, disk->backend, sizeof(disk->backend));
        if (rc < 0)
            continue;
        snprintf(path, sizeof(path), "%s/dev", disk->backend);
        if (xs_read(XS_NO_TRANSACTION, path, dev, sizeof(dev)) >= 0 && !strcmp(dev, name)) {
            disk->handle = strtoul(id, NULL, 10);
            return 0;
        }
    }
    return -XEN_ENOENT;
}

static s64 publish(const struct block *disk)
{
    char path[80];
    u32 tx;
    s64 rc;

    do {
        rc = xs_transaction_start(&tx);
        if (rc)
            return rc;
#define KEY(name, ...)                                                                                                             \
    if (!rc) {                                                                                                                     \
        snprintf(path, sizeof(path), "%s/" name, disk->path);                                                                      \
        rc = xs_write(tx, path, __VA_ARGS__);                                                                                      \
    }
        KEY("ring-ref", "%ld", disk->ring_ref)
        KEY("event-channel", "%u", disk->port)
        KEY("protocol", "%s", XEN_IO_PROTO_ABI_X86_64)
        KEY("state", "%d", XenbusStateInitialised)
#undef KEY
        if (rc) {
            xs_transaction_end(tx, true);
            return rc;
        }
        rc = xs_transaction_end(tx, false);
    } while (rc == -XEN_EAGAIN);
    return rc;
}

static s64 connect(struct block *disk)
{
    struct blkif_sring *sring = page_alloc(1);
    u64 backend_id, value;
    s64 rc = key(disk, false, "backend-id", &backend_id);

    if (rc || !sring)
        return rc ? rc : -XEN_ENOMEM;
    if (!key(disk, true, "state", &value) && value >= XenbusStateClosing) /* somebody has used and closed it: begin anew */
        set_state(disk, XenbusStateInitialising);
    rc = wait_back(disk, STATE(XenbusStateInitWait) | STATE(XenbusStateConnected));
    if (rc != XenbusStateInitWait)
        return rc < 0 ? rc : -XEN_EBUSY;
    XEN_FRONT_RING_INIT(&disk->ring, sring, PAGE_SIZE);
    disk->ring_ref = grant_access(backend_id, virt_to_mfn(sring), false);
    disk->pages = page_alloc(SEGMENTS);
    rc = event_alloc_unbound(backend_id);
    if (disk->ring_ref < 0 || !disk->pages || rc < 0)
        return rc < 0 ? rc : -XEN_ENOMEM;
    disk->port = rc;
    for (u32 i = 0; i < SEGMENTS; i++)
        disk->refs[i] = grant_access(backend_id, virt_to_mfn(disk->pages + i * PAGE_SIZE), false);
    rc = publish(disk);
    if (rc)
        return rc;
    rc = wait_back(disk, STATE(XenbusStateConnected) | STATE(XenbusStateClosing) | STATE(XenbusStateClosed));
    if (rc != XenbusStateConnected)
        return rc < 0 ? rc : -XEN_EIO;
    rc = key(disk, true, "sectors", &disk->sectors);
    if (!rc && !key(disk, true, "info", &value))
        disk->info = value;
    return rc ? rc : set_state(disk, XenbusStateConnected);
}

struct block *block_open(const char *name, s64 *error)
{
    struct block *disk = calloc(1, sizeof(*disk));
    s64 rc = disk ? find(disk, name) : -XEN_ENOMEM;

    if (!rc)
        rc = connect(disk);
    if (error)
        *error = rc;
    if (rc) { /* pages that the back end may hold stay with it */
        free(disk);
        return NULL;
    }
    return disk;
}

void block_close(struct block *disk)
{
    set_state(disk, XenbusStateClosing);
    wait_back(disk, STATE(XenbusStateClosing) | STATE(XenbusStateClosed));
    set_state(disk, XenbusStateClosed);
    wait_back(disk, STATE(XenbusStateClosed));
    event_close(disk->port);
    if (!grant_end(disk->ring_ref))
        page_free(disk->ring.sring, 1);
    for (u32 i = 0; i < SEGMENTS; i++)
        if (!grant_end(disk->refs[i]))
            page_free(disk->pages + i * PAGE_SIZE, 1);
    free(disk);
}

u64 block_sectors(const struct block *disk)
{
    return disk->sectors;
}

bool block_readonly(const struct block *disk)
{
    return disk->info & VDISK_READONLY;
}

/* One request of up to SEGMENTS pages; its data lies in disk->pages. */
static s64 submit(struct block *disk, u8 operation, u64 sector, u64 sectors)
{
    struct blkif_request *req = RING_GET_REQUEST(&disk->ring, disk->ring.req_prod_pvt);
    struct blkif_response rsp;
    int notify, work;

    *req = (struct blkif_request){.operation = operation, .handle = disk->handle, .id = ++disk->next_id, .sector_number = sector};
    for (u64 left = sectors; left; left -= MIN(left, PER_PAGE))
        req->seg[req->nr_segments] = (struct blkif_request_segment){
            .gref = disk->refs[req->nr_segments], .last_sect = MIN(left, PER_PAGE) - 1}, req->nr_segments++;
    disk->ring.req_prod_pvt++;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&disk->ring, notify);
    if (notify)
        event_send(disk->port);
    for (;;) {
        RING_FINAL_CHECK_FOR_RESPONSES(&disk->ring, work);
        if (!work) {
            event_wait(disk->port, 0);
            continue;
        }
        xen_rmb();
        RING_COPY_RESPONSE(&disk->ring, disk->ring.rsp_cons, &rsp);
        disk->ring.rsp_cons++;
        if (rsp.id == disk->next_id)
            return rsp.status == BLKIF_RSP_OKAY ? 0 : rsp.status == BLKIF_RSP_EOPNOTSUPP ? -XEN_EOPNOTSUPP : -XEN_EIO;
    }
}

s64 block_read(struct block *disk, u64 sector, void *buffer, u64 sectors)
{
    while (sectors) {
        u64 n = MIN(sectors, SEGMENTS * PER_PAGE);
        s64 rc = submit(disk, BLKIF_OP_READ, sector, n);

        if (rc)
            return rc;
        memcpy(buffer, disk->pages, n * SECTOR_SIZE);
        buffer = (char *)buffer + n * SECTOR_SIZE;
        sector += n;
        sectors -= n;
    }
    return 0;
}

s64 block_write(struct block *disk, u64 sector, const void *buffer, u64 sectors)
{
    while (sectors) {
        u64 n = MIN(sectors, SEGMENTS * PER_PAGE);
        s64 rc;

        memcpy(disk->pages, buffer, n * SECTOR_SIZE);
        rc = submit(disk, BLKIF_OP_WRITE, sector, n);
        if (rc)
            return rc;
        buffer = (const char *)buffer + n * SECTOR_SIZE;
        sector += n;
        sectors -= n;
    }
    return 0;
}

s64 block_flush(struct block *disk)
{
    return submit(disk, BLKIF_OP_FLUSH_DISKCACHE, 0, 0);
}
