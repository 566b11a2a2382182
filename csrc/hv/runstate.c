/* Run states: how long a vCPU ran, waited, was blocked, was offline (xen-abi 8.2, commands 4 and 5; Xen's public vcpu.h).
 *
 * Owns: vcpu.runstate and the copy in guest memory. Called by: the scheduler core at every change [runqueue lock], pcpu.c
 * (publishing), vcpu_op. While a vCPU runs nobody changes its runstate, so it may read it itself without the lock.
 */
#include "hv/host.h"

void vcpu_runstate_init(struct vcpu *v)
{
    v->runstate = (struct vcpu_runstate_info){ .state = vcpu_rest_state(v->pause_flags), .state_entry_time = host_now(v->host) };
}

/* Blocked goes before offline, as in Xen: a paused domain's vCPU that waits for an event goes on waiting. */
int vcpu_rest_state(u32 pause_flags)
{
    return !pause_flags ? RUNSTATE_runnable
         : pause_flags & (VPF_blocked | VPF_lane) ? RUNSTATE_blocked : RUNSTATE_offline;
}

static void change(struct vcpu_runstate_info *r, int state, u64 now)
{
    if (now > r->state_entry_time) {    /* another thread may have read the clock earlier and taken the lock later */
        r->time[r->state] += now - r->state_entry_time;
        r->state_entry_time = now;
    }
    r->state = state;
}

void vcpu_runstate_change(struct vcpu *v, int state, u64 now)
{
    change(&v->runstate, state, now);
}

void vcpu_runstate_get(struct vcpu *v, struct vcpu_runstate_info *out)
{
    u64 now = host_now(v->host);
    spin_lock(&v->unit.queue->lock);
    *out = v->runstate;
    spin_unlock(&v->unit.queue->lock);
    if (now > out->state_entry_time)
        out->time[out->state] += now - out->state_entry_time;
}

/* A guest that asked for it (vm_assist 5) sees bit 63 of the entry time while the rest is being written. Nobody is told that
 * the area is not mapped any more. */
static void write_area(struct vcpu *v, struct vcpu_runstate_info *r)
{
    u64 va = v->runstate_va, entry_va = va + offsetof(struct vcpu_runstate_info, state_entry_time);

    if (!(read_once(v->domain->vm_assist) >> VMASST_TYPE_runstate_update_flag & 1)) {
        copy_to_guest(v, va, r, sizeof *r);
        return;
    }
    r->state_entry_time |= XEN_RUNSTATE_UPDATE;
    if (copy_to_guest(v, entry_va, &r->state_entry_time, sizeof r->state_entry_time))
        return;
    smp_wmb();
    copy_to_guest(v, va, r, sizeof *r);
    smp_wmb();
    r->state_entry_time &= ~XEN_RUNSTATE_UPDATE;
    copy_to_guest(v, entry_va, &r->state_entry_time, sizeof r->state_entry_time);
}

void vcpu_runstate_publish(struct vcpu *v)
{
    if (likely(!v->runstate_va))
        return;
    struct vcpu_runstate_info r = v->runstate;
    write_area(v, &r);
}

/* Once v is at rest its address space is not ours to use; so this is written just before, with what the core is about to
 * set. If an event comes in between, v is queued and publishes again when it runs. */
void vcpu_runstate_publish_rest(struct vcpu *v)
{
    if (likely(!v->runstate_va))
        return;
    struct vcpu_runstate_info r = v->runstate;
    change(&r, vcpu_rest_state(read_once(v->pause_flags)), host_now(v->host));
    write_area(v, &r);
}
