/* Delivery of events: the 2-level bits in guest memory, upcall marks, VIRQs, pollers (xen-abi 5.3, 5.5, 5.6; Xen's public
 * event_channel.h and xen.h).
 *
 * Owns: no state of its own; writes shared_info, vcpu_info and ev.poll_vcpus by atomic operations. Called by: port.c with the
 * port kept stable, timers and the toolstack (VIRQs), the scheduler (polls). Takes a port lock in the VIRQ raisers only;
 * vcpu_kick and vcpu_unpause take the run queue's lock below it.
 *
 * The order of the atomic steps is the protocol: pending bit, then mask, then selector, then upcall byte. A guest that takes
 * them in the opposite order (byte, selector, bits) cannot miss one.
 */
#include "hv/event/private.h"

STATIC_ASSERT(sizeof_field(struct shared_info, evtchn_pending[0]) == 8);
STATIC_ASSERT(ECS_FREE < ECS_RESERVED && ECS_RESERVED < ECS_UNBOUND);
STATIC_ASSERT(EVTCHN_POLL_WORDS * 64 >= MAX_VCPUS);

static inline u64 *pending_word(const struct domain *d, u32 port) { return &d->shared_info->evtchn_pending[port / 64]; }
static inline u64 *mask_word(const struct domain *d, u32 port) { return &d->shared_info->evtchn_mask[port / 64]; }

/* The caller writes v's vcpu_info: it lies in shared_info, in a frame of the guest's, or (a dummy) in the arena. Two movers
 * of the area are ordered by pending bit and rescan, see evtchn_vcpu_info_moved. */
static inline struct vcpu_info *info_for_write(struct vcpu *v)
{
    struct machine *m = &v->host->machine;
    frame_mark_dirty(m, v->info_mfn ? v->info_mfn : v->domain->shared_info_mfn);
    return load_acquire(v->info);
}

void vcpu_mark_events_pending(struct vcpu *v)
{
    u8 was = atomic_or(&info_for_write(v)->evtchn_upcall_pending, 1);
    if (!(was & 1))
        vcpu_kick(v);
}

/* An unmasked port of v became pending. */
static inline void select_port(struct vcpu *v, u32 port)
{
    if (!test_and_set_bit(&info_for_write(v)->evtchn_pending_sel, port / 64))
        vcpu_mark_events_pending(v);
}

void port_set_pending(struct domain *d, u32 vcpu, u32 port)
{
    struct host *h = d->host;
    struct vcpu *v = d->vcpu[vcpu];

    if (test_and_set_bit(pending_word(d, port), port % 64))
        return;                         /* whoever polls for it was woken by the first edge */
    frame_mark_dirty(&h->machine, d->shared_info_mfn);
    __atomic_fetch_add(&v->stats[STAT_events_received], 1, __ATOMIC_RELAXED);
    host_trace(h, TRACE_EVENT, d->id, vcpu, port, vcpu);
    if (!test_bit(mask_word(d, port), port % 64))
        select_port(v, port);
    evtchn_wake_pollers(d, port);
}

void port_clear_pending(struct domain *d, u32 port)
{
    if (test_and_clear_bit(pending_word(d, port), port % 64))
        frame_mark_dirty(&d->host->machine, d->shared_info_mfn);
}

bool port_is_pending(const struct domain *d, u32 port)
{
    return test_bit(pending_word(d, port), port % 64);
}

void port_unmask(struct domain *d, u32 vcpu, u32 port)
{
    if (!test_and_clear_bit(mask_word(d, port), port % 64))
        return;
    frame_mark_dirty(&d->host->machine, d->shared_info_mfn);
    if (port_is_pending(d, port))
        select_port(d->vcpu[vcpu], port);
}

/* A sender sets the pending bit and reads v->info after; the mover publishes the new area and sets every bit in it after. So
 * either the sender finds the new area, or its pending bit is there before the guest rescans. */
void evtchn_vcpu_info_moved(struct vcpu *v)
{
    struct vcpu_info *info = info_for_write(v);

    smp_mb();
    atomic_or(&info->evtchn_pending_sel, ~0ul);
    xchg(&info->evtchn_upcall_pending, 1);
    vcpu_kick(v);                       /* even if the byte was set: the copy may have raced with its mark */
}

/* ---- VIRQs ------------------------------------------------------------------------------------------------------- */

enum virq_kind { VIRQ_KIND_global, VIRQ_KIND_domain, VIRQ_KIND_vcpu };

bool virq_is_per_vcpu(u32 virq)
{
    static const u8 kind[NR_VIRQS] = {  /* numbers without a row are global, as in Xen */
#define VIRQ(number, name, kind) [number] = VIRQ_KIND_##kind,
#include "xen/virqs.def"
#undef VIRQ
    };
    return kind[virq] == VIRQ_KIND_vcpu;
}

/* `slot`: the vCPU whose virq_port says where the VIRQ goes. */
static void raise_virq(struct vcpu *slot, u32 virq)
{
    struct domain *d = slot->domain;
    u32 port = read_once(slot->virq_port[virq]);

    if (!port)
        return;
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    spin_lock(&chn->lock);
    if (read_once(slot->virq_port[virq]) == port) {     /* not closed meanwhile: that takes the port's lock too */
        struct vcpu *v = d->vcpu[read_once(chn->notify_vcpu)];
        __atomic_fetch_add(&v->stats[STAT_virqs], 1, __ATOMIC_RELAXED);
        vcpu_trace(v, VIRQ, virq, port);
        port_set_pending(d, v->id, port);
    }
    spin_unlock(&chn->lock);
}

void send_guest_vcpu_virq(struct vcpu *v, u32 virq)
{
    if (virq < NR_VIRQS)
        raise_virq(virq_is_per_vcpu(virq) ? v : v->domain->vcpu[0], virq);
}

void send_global_virq(struct host *h, u32 virq)
{
    struct domain *d = domain_get(h, 0);

    if (!d)
        return;
    if (d->vcpu[0])                     /* not while domain 0 itself is being made */
        send_guest_vcpu_virq(d->vcpu[0], virq);
    domain_put(d);
}

/* ---- pollers ----------------------------------------------------------------------------------------------------- */

static inline u64 *poll_word(struct vcpu *v) { return &v->domain->ev.poll_vcpus[v->id / 64]; }

void evtchn_poll_begin(struct vcpu *v, u32 nr, u32 port)
{
    write_once(v->poll_port, port);
    write_once(v->poll_nr, nr);
    test_and_set_bit(poll_word(v), v->id % 64);         /* full barrier: announced before the caller looks */
}

void evtchn_poll_end(struct vcpu *v)
{
    if (test_bit(poll_word(v), v->id % 64))
        test_and_clear_bit(poll_word(v), v->id % 64);
    write_once(v->poll_nr, 0);
}

void evtchn_wake_pollers(struct domain *d, u32 port)
{
    for (unsigned w = 0; w < EVTCHN_POLL_WORDS; w++) {
        u64 left = __atomic_load_n(&d->ev.poll_vcpus[w], __ATOMIC_SEQ_CST);
        for (; unlikely(left); left &= left - 1) {
            unsigned bit = (unsigned)__builtin_ctzl(left);
            struct vcpu *v = d->vcpu[w * 64 + bit];
            if (read_once(v->poll_nr) == 1 && read_once(v->poll_port) != port)
                continue;
            if (test_and_clear_bit(&d->ev.poll_vcpus[w], bit))
                vcpu_unpause(v, VPF_blocked);
        }
    }
}

int evtchn_port_pending(struct domain *d, u32 port)
{
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    int rc = -XEN_EINVAL;

    if (!chn)
        return rc;
    spin_lock(&chn->lock);
    if (port_usable(chn))
        rc = port_is_pending(d, port);
    spin_unlock(&chn->lock);
    return rc;
}
