/* See hypercall.h. */
#include "hv/hypercall.h"

#include "hv/host.h"

enum {
    HYPERCALL_VIRTUAL_NS = 100,         /* what a hypercall costs on the virtual clock, whatever it does */
    WORK_MULTICALL_ENTRY = 64,          /* so many entries, too, as work allows. Xen would preempt; only an attacker gets here */
    WORK_COLD_ENTRY = 1 << 14,
};

/* ---- the table --------------------------------------------------------------------------------------------------- */

static s64 python_will(struct vcpu *v, const u64 *a) { return HYPERCALL_COLD; }
static s64 not_implemented(struct vcpu *v, const u64 *a) { return -XEN_ENOSYS; }

/* One adapter a C row: registers to arguments. */
#define ARGS_0(a)
#define ARGS_1(a) , (a)[0]
#define ARGS_2(a) ARGS_1(a), (a)[1]
#define ARGS_3(a) ARGS_2(a), (a)[2]
#define ARGS_4(a) ARGS_3(a), (a)[3]
#define ARGS_5(a) ARGS_4(a), (a)[4]
#define ADAPT_C(name, nargs)    static s64 call_##name(struct vcpu *v, const u64 *a) { return do_##name(v ARGS_##nargs(a)); }
#define ADAPT_PY(name, nargs)
#define ADAPT_NONE(name, nargs)
#define HYPERCALL(number, name, nargs, where, note) ADAPT_##where(name, nargs)
#include "xen/hypercalls.def"
#undef HYPERCALL

#define ENTRY_C(name)    call_##name
#define ENTRY_PY(name)   python_will
#define ENTRY_NONE(name) not_implemented
static hypercall_fn *const table[64] = {
#define HYPERCALL(number, name, nargs, where, note) [number] = ENTRY_##where(name),
#include "xen/hypercalls.def"
#undef HYPERCALL
};

static inline s64 dispatch(struct vcpu *v, u64 nr, const u64 *a)
{
    if (unlikely(nr >= 64 || !table[nr]))
        return -XEN_ENOSYS;
    v->hypercall_count[nr]++;
    return table[nr](v, a);
}

bool hypercall_charge(struct vcpu *v, u64 work)
{
    v->work += work;
    if (likely(v->work <= HYPERCALL_WORK_LIMIT))
        return true;
    domain_crash(v->domain, "one hypercall did the work of %lu page-table entries and had not ended", HYPERCALL_WORK_LIMIT);
    return false;
}

/* ---- entry and exit ---------------------------------------------------------------------------------------------- */

/* The work of a return to the guest (section 3.4, step 4). */
static inline void leave(struct vcpu *v)
{
    if (unlikely(vcpu_event_deliverable(v)))
        atomic_or(&v->exit_work, WORK_upcall);
}

static inline u64 digest_args(const struct host *h, const u64 *a)
{
    if (!h->trace.digesting)
        return a[0];
    u64 d = 0;
    for (unsigned i = 0; i < 5; i++)
        d = digest_mix(d, a[i]);
    return d >> 16;
}

s64 hypercall(struct vcpu *v, u64 nr, const u64 a[5])
{
    const bool guest_mode = v->in_guest;
    stat_inc(v, hypercalls);
    v->work = 0;
    v->iret_done = false;
    clock_advance(&v->host->clock, HYPERCALL_VIRTUAL_NS);
    if (guest_mode)
        vcpu_leave_guest(v);
    s64 rc = dispatch(v, nr, a);
    if (unlikely(rc == HYPERCALL_COLD)) {
        stat_inc(v, cold_hypercalls);
        if (nr != __HYPERVISOR_multicall) {     /* a multicall has noted its entry itself */
            v->cold.nr = nr;
            for (unsigned i = 0; i < 5; i++)
                v->cold.args[i] = a[i];
        }
        vcpu_trace(v, HYPERCALL, hypercall_traced(nr, digest_args(v->host, a)), (u64)HYPERCALL_COLD);
        if (v->backend != BACKEND_PYTHON) {
            vcpu_pause(v, VPF_lane);
            lane_push(v->host, (struct lane_exit){ .kind = EXIT_HYPERCALL, .domid = v->domain->id, .vcpu = v->id });
        }
        if (guest_mode)
            vcpu_enter_guest(v);
        return rc;
    }
    if (guest_mode)
        vcpu_enter_guest(v);            /* before the trace: its barrier would wait for the clock, which what follows need not */
    vcpu_trace_self(v, HYPERCALL, hypercall_traced(nr, digest_args(v->host, a)), (u64)rc);
    leave(v);
    return rc;
}

/* ---- multicall (section 8.5) ------------------------------------------------------------------------------------- */

/* Runs entries from multicall.next on. Upcalls are not delivered between entries: nobody looks at exit_work here. */
static s64 multicall_run(struct vcpu *v)
{
    while (v->multicall.next < v->multicall.count) {
        u64 at = v->multicall.list + v->multicall.next * sizeof(struct multicall_entry);
        struct multicall_entry e;
        u64 mm_work = read_once(v->domain->mm.work);
        if (read_once(v->domain->state) > DOM_running || copy_from_guest(v, &e, at, sizeof e)) {
            v->in_multicall = false;
            return -XEN_EFAULT;
        }
        stat_inc(v, multicall_entries);
        u64 args[6];
        for (unsigned i = 0; i < 6; i++)
            args[i] = e.args[i];
        s64 rc = e.op == __HYPERVISOR_multicall ? -XEN_EINVAL : dispatch(v, e.op, args);
        if (rc == HYPERCALL_COLD) {
            v->cold.nr = e.op;
            for (unsigned i = 0; i < 5; i++)
                v->cold.args[i] = args[i];
            return rc;
        }
        if (v->iret_done)               /* it went elsewhere: no result, no further entries (XSA-213) */
            break;
        u64 result = (u64)rc;
        if (copy_to_guest(v, at + offsetof(struct multicall_entry, result), &result, sizeof result)) {
            v->in_multicall = false;
            return -XEN_EFAULT;
        }
        v->multicall.next++;
        hypercall_charge(v, WORK_MULTICALL_ENTRY + read_once(v->domain->mm.work) - mm_work);
    }
    v->in_multicall = false;
    return 0;
}

s64 do_multicall(struct vcpu *v, u64 list, u64 count)
{
    v->in_multicall = true;
    v->multicall.list = list;
    v->multicall.next = 0;
    v->multicall.count = (u32)count;    /* the ABI's count is 32 bits wide */
    return multicall_run(v);
}

s64 hypercall_complete(struct vcpu *v, s64 rc)
{
    u64 nr = v->cold.nr;
    if (v->in_multicall) {
        u64 at = v->multicall.list + v->multicall.next * sizeof(struct multicall_entry);
        u64 result = (u64)rc;
        nr = __HYPERVISOR_multicall;
        if (copy_to_guest(v, at + offsetof(struct multicall_entry, result), &result, sizeof result)) {
            v->in_multicall = false;
            rc = -XEN_EFAULT;
        } else {
            v->multicall.next++;
            hypercall_charge(v, WORK_COLD_ENTRY);
            rc = multicall_run(v);
            if (rc == HYPERCALL_COLD) {
                if (v->backend != BACKEND_PYTHON)
                    lane_push(v->host, (struct lane_exit){ .kind = EXIT_HYPERCALL, .domid = v->domain->id, .vcpu = v->id });
                return rc;
            }
        }
    }
    vcpu_trace(v, HYPERCALL, nr << 48, (u64)rc);        /* v rests: the caller is the lane */
    leave(v);
    v->cold.result = rc;
    if (v->backend != BACKEND_PYTHON)
        vcpu_unpause(v, VPF_lane);
    return rc;
}
