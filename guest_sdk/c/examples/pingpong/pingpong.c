/*
 * Two guests, an event channel and a shared page. The command line says which one this is and who the peer is:
 *
 *     ping peer=2        grants a page, allocates a port, says so in xenstore, measures round trips
 *     pong peer=1        reads that, maps, binds, answers
 *
 * The node and the page are those of guest_sdk/examples/pingpong.py: a C guest and a Python guest can play.
 */
#include <guest.h>

#define ROUNDS 1000

/* The shared page. Each side writes its own words and doubts the other's. */
struct table {
    u32 asked, answered;
    u8 done;
};

static void ping(domid_t peer)
{
    struct table *table = page_alloc(1);
    s64 ref = grant_access(peer, virt_to_mfn(table), false), port = event_alloc_unbound(peer), rc;
    char perms[32];
    u64 start, spent;

    ASSERT(table && ref > 0 && port > 0);
    rc = xs_write(XS_NO_TRANSACTION, "data/pingpong", "%ld %ld", ref, port);
    snprintf(perms, sizeof(perms), "n%u r%u", domain_id(), peer);
    if (!rc)
        rc = xs_set_perms(XS_NO_TRANSACTION, "data/pingpong", perms);
    if (rc)
        panic("data/pingpong: %s", error_name(rc));
    event_wait(port, 0); /* pong says that it is there */
    start = time_now();
    for (u32 n = 1; n <= ROUNDS; n++) {
        WRITE_ONCE(table->asked, n);
        event_send(port);
        while (READ_ONCE(table->answered) != n) /* an event says "look", not "done" */
            event_wait(port, 0);
    }
    spent = time_now() - start;
    WRITE_ONCE(table->done, 1);
    event_send(port);
    printf("%d round trips, %lu.%lu us each\n", ROUNDS, spent / ROUNDS / 1000, spent / ROUNDS / 100 % 10);
}

static void pong(domid_t peer)
{
    struct grant_map map;
    struct table *table;
    char node[64], text[64], *end;
    u32 answered = 0, asked;
    s64 port, rc;

    snprintf(node, sizeof(node), "/local/domain/%u/data/pingpong", peer);
    while (xs_read(XS_NO_TRANSACTION, node, text, sizeof(text)) < 0) /* not there yet, or not ours to read yet */
        time_sleep(1000000);
    rc = grant_map(&map, peer, strtoul(text, &end, 10), false);
    if (rc)
        panic("grant_map: %s", error_name(rc));
    table = map.va;
    port = event_bind_interdomain(peer, strtoul(end, NULL, 10));
    ASSERT(port > 0);
    event_send(port);
    while (!READ_ONCE(table->done)) {
        event_wait(port, 0);
        asked = READ_ONCE(table->asked);
        if (asked != table->answered) {
            WRITE_ONCE(table->answered, asked);
            answered++;
            event_send(port);
        }
    }
    rc = grant_unmap(&map);
    printf("answered %u, unmap: %s\n", answered, error_name(rc));
}

int main(int argc, char **argv)
{
    domid_t peer;

    if (argc < 3 || strncmp(argv[2], "peer=", 5))
        panic("say: ping peer=DOMID or pong peer=DOMID");
    peer = strtoul(argv[2] + 5, NULL, 10);
    if (!strcmp(argv[1], "ping"))
        ping(peer);
    else
        pong(peer);
    return 0;
}
