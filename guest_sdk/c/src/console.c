/*
 * The PV console ring: we produce `out` and consume `in`. The back end may write anything into its indices.
 *
 * Locks: `lock` alone, with events masked, never while waiting for room.
 */
#include <guest.h>
#include <xen/io/console.h>
#include <xen/io/ring.h>

#define RETRY_NS 10000000ull /* look again, should a notification be lost while the back end attaches */

static struct xencons_interface *ring;
static u32 port;
static spinlock_t lock;

void console_init(void)
{
    if (!start_info->console.domU.mfn)
        return;
    ring = mfn_to_virt(start_info->console.domU.mfn);
    port = start_info->console.domU.evtchn;
}

static void wait_room(void)
{
    event_wait(port, time_now() + RETRY_NS);
}

void console_write(const char *text, size_t n)
{
    if (!ring) {
        HYPERVISOR_console_io(CONSOLEIO_write, n, (char *)text);
        return;
    }
    while (n) {
        bool masked = spin_lock_events(&lock);
        u32 prod = ring->out_prod, used = prod - READ_ONCE(ring->out_cons);
        u32 room = used < sizeof(ring->out) ? sizeof(ring->out) - used : 0;
        /* A text that fits at all goes out in one piece. */
        u32 put = n <= sizeof(ring->out) && room < n ? 0 : MIN(room, n);

        for (u32 i = 0; i < put; i++)
            ring->out[MASK_XENCONS_IDX(prod + i, ring->out)] = text[i];
        xen_wmb();
        WRITE_ONCE(ring->out_prod, prod + put);
        spin_unlock_events(&lock, masked);
        event_send(port);
        text += put;
        n -= put;
        if (!put)
            wait_room();
    }
}

void console_drain(void)
{
    while (ring && READ_ONCE(ring->out_cons) != ring->out_prod)
        wait_room();
}

size_t console_read(char *buffer, size_t n)
{
    bool masked;
    u32 cons, have;
    size_t got;

    if (!ring)
        return 0;
    masked = spin_lock_events(&lock);
    cons = ring->in_cons;
    have = READ_ONCE(ring->in_prod) - cons;
    xen_rmb();
    got = have > sizeof(ring->in) ? 0 : MIN(have, n);
    for (size_t i = 0; i < got; i++)
        buffer[i] = ring->in[MASK_XENCONS_IDX(cons + i, ring->in)];
    xen_mb(); /* read before the room is given back */
    WRITE_ONCE(ring->in_cons, cons + got);
    spin_unlock_events(&lock, masked);
    if (got)
        event_send(port);
    return got;
}

size_t console_gets(char *buffer, size_t size)
{
    size_t n = 0;
    char c;

    for (;;) {
        while (!console_read(&c, 1))
            event_wait(port, 0);
        if (c == '\n' || c == '\r')
            break;
        if (n + 1 < size)
            buffer[n++] = c;
    }
    if (size)
        buffer[n] = 0;
    return n;
}
