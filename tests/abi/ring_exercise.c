/*
 * A front end and a back end on one ring page, as a guest's source would have them: printed state, step by step.
 *
 * Compiled against our headers and against Xen's; the two programs must print the same. It therefore uses only public
 * names: ring macros, blkif and netif rings, start_info, multicall, guest handles, grant and event structures.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00

#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()

#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/io/blkif.h>
#include <xen/io/console.h>
#include <xen/io/netif.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>

static _Alignas(4096) char page[4096];
static blkif_front_ring_t front;
static blkif_back_ring_t back;

static void show(const char *what)
{
    const struct blkif_sring *ring = front.sring;

    printf("%s: req %u/%u rsp %u/%u pvt %u %u cons %u %u free %u full %d responses %u\n", what, ring->req_prod,
           ring->req_event, ring->rsp_prod, ring->rsp_event, front.req_prod_pvt, back.rsp_prod_pvt, back.req_cons,
           front.rsp_cons, (unsigned int)RING_FREE_REQUESTS(&front), !!RING_FULL(&front),
           (unsigned int)RING_HAS_UNCONSUMED_RESPONSES(&front));
}

static void submit(unsigned int count)
{
    int notify;

    while (count--) {
        blkif_request_t *req = RING_GET_REQUEST(&front, front.req_prod_pvt);

        memset(req, 0, sizeof(*req));
        req->operation = BLKIF_OP_READ;
        req->id = front.req_prod_pvt;
        front.req_prod_pvt++;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, notify);
    printf("submit: notify %d\n", !!notify);
    show("submitted");
}

static void serve(unsigned int limit)
{
    int notify, more = 0;

    while (limit-- && RING_HAS_UNCONSUMED_REQUESTS(&back) && !RING_REQUEST_CONS_OVERFLOW(&back, back.req_cons)) {
        blkif_request_t req;
        blkif_response_t *rsp;

        RING_COPY_REQUEST(&back, back.req_cons, &req);
        back.req_cons++;
        rsp = RING_GET_RESPONSE(&back, back.rsp_prod_pvt);
        rsp->id = req.id;
        rsp->operation = req.operation;
        rsp->status = BLKIF_RSP_OKAY;
        back.rsp_prod_pvt++;
    }
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);
    RING_FINAL_CHECK_FOR_REQUESTS(&back, more);
    printf("serve: notify %d more %d\n", !!notify, !!more);
    show("served");
}

static void collect(void)
{
    uint64_t sum = 0;
    int more;

    do {
        while (front.rsp_cons != front.sring->rsp_prod)
            sum += RING_GET_RESPONSE(&front, front.rsp_cons++)->id;
        RING_FINAL_CHECK_FOR_RESPONSES(&front, more);
    } while (more);
    printf("collect: ids sum to %llu\n", (unsigned long long)sum);
    show("collected");
}

int main(void)
{
    blkif_sring_t *ring = (blkif_sring_t *)page;
    netif_tx_sring_t *tx = (netif_tx_sring_t *)page;
    netif_rx_sring_t *rx = (netif_rx_sring_t *)page;

    printf("slots %u %u %u, constant %u %u\n", (unsigned int)__RING_SIZE(ring, sizeof(page)),
           (unsigned int)__RING_SIZE(tx, sizeof(page)), (unsigned int)__RING_SIZE(rx, sizeof(page)),
           (unsigned int)__CONST_RING_SIZE(blkif, 4096), (unsigned int)__CONST_RING_SIZE(netif_tx, 8192));
    SHARED_RING_INIT(ring);
    FRONT_RING_INIT(&front, ring, sizeof(page));
    BACK_RING_INIT(&back, ring, sizeof(page));
    show("fresh");
    for (unsigned int round = 1; round < 8; round++) {
        submit(round);
        serve(round - round / 3);
        collect();
    }
    submit(RING_SIZE(&front) - (front.req_prod_pvt - front.rsp_cons));
    serve(100);
    collect();
    /* A front end that lies about what it has produced gets no more than the ring holds. */
    ring->req_prod += 1000;
    printf("lie: %u waiting, overflow %d %d\n", (unsigned int)RING_HAS_UNCONSUMED_REQUESTS(&back),
           RING_REQUEST_PROD_OVERFLOW(&back, ring->req_prod), RING_REQUEST_PROD_OVERFLOW(&back, back.rsp_prod_pvt));
    /* Indices that wrap round 32 bits. */
    memset(page, 0, sizeof(page));
    ring->req_prod = ring->rsp_prod = 0xfffffffd;
    ring->req_event = ring->rsp_event = 0xfffffffe;
    FRONT_RING_ATTACH(&front, ring, 0xfffffffd, sizeof(page));
    BACK_RING_ATTACH(&back, ring, 0xfffffffd, sizeof(page));
    for (unsigned int round = 1; round < 6; round++) {
        submit(round);
        serve(round);
        collect();
    }

    /* Guest handles hold pointers, to a guest. */
    evtchn_port_t port = 3;
    xen_pfn_t frames[2] = { 7, 8 };
    struct sched_poll poll = { .nr_ports = 1, .timeout = 5 };
    struct xen_memory_reservation reservation = { .nr_extents = 2, .domid = DOMID_SELF };
    gnttab_setup_table_t setup = { .dom = DOMID_SELF, .nr_frames = 2 };
    vcpu_register_runstate_memory_area_t area;
    vcpu_runstate_info_t runstate;

    set_xen_guest_handle(poll.ports, &port);
    set_xen_guest_handle(reservation.extent_start, frames);
    set_xen_guest_handle(setup.frame_list, frames);
    area.addr.v = &runstate;
    printf("handles %u %lu %lu %d\n", *poll.ports.p, reservation.extent_start.p[1], setup.frame_list.p[0],
           area.addr.p == (uint64_t)(uintptr_t)&runstate);

    struct cpu_user_regs regs = { .rax = 0x1122334455667788 };
    multicall_entry_t call = { .op = __HYPERVISOR_event_channel_op, .args = { EVTCHNOP_send } };

    printf("registers %lx %x, call %lu %lu\n", regs.eax, regs._eax, call.op, call.args[0]);
    printf("masks %u %u\n", MASK_XENSTORE_IDX(1030u),
           (unsigned int)MASK_XENCONS_IDX(2050u, ((struct xencons_interface *)page)->out));
    printf("machine_to_phys_mapping %d, states %d %d\n",
           (unsigned long)machine_to_phys_mapping == HYPERVISOR_VIRT_START, XenbusStateConnected, XS_WATCH_EVENT);
    return 0;
}
