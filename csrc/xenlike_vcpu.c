/* See xenlike.h: vCPUs, Python's and those that play scripts. */
#include "xenlike.h"

#include <string.h>

enum { STEP_VIRTUAL_NS = 100 };

/* ---- vCPUs ------------------------------------------------------------------------------------------------------- */

struct vcpu *xl_vcpu(struct host *h, u16 domid, u32 id)
{
    struct domain *d = host_domain(h, domid);
    return d && id < d->nr_vcpus ? d->vcpu[id] : NULL;
}

s64 xl_hypercall(struct vcpu *v, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4)
{
    const u64 a[5] = { a0, a1, a2, a3, a4 };
    return hypercall(v, nr, a);
}

void xl_cold_args(struct vcpu *v, struct xl_cold *out)
{
    out->nr = v->cold.nr;
    memcpy(out->args, v->cold.args, sizeof out->args);
}

s64 xl_hypercall_complete(struct vcpu *v, s64 rc) { return hypercall_complete(v, rc); }

static int report(int rc, const struct mmu_fault *f, u64 *fault)
{
    if (rc && fault) {
        fault[0] = f->va;
        fault[1] = f->error_code;
    }
    return rc;
}

/* A vCPU that has its own page tables. */
static int translate(struct vcpu *v, u64 va, u64 *mfn, u64 *fault)
{
    if (vcpu_runnable(v))
        return report(-XEN_EBUSY, &(struct mmu_fault){ .va = va }, fault);
    vcpu_wait_rest(v);
    return vcpu_backend(v)->translate(v, va, mfn) ? 0 : report(-XEN_EFAULT, &(struct mmu_fault){ .va = va }, fault);
}

static int copy(struct vcpu *v, u64 va, void *buf, u64 n, bool write, u64 *fault)
{
    for (u64 done = 0, part; done < n; done += part) {
        u64 at = va + done, mfn;
        int rc = translate(v, at, &mfn, fault);
        part = PAGE_SIZE - at % PAGE_SIZE < n - done ? PAGE_SIZE - at % PAGE_SIZE : n - done;
        if (!rc)
            rc = write ? xl_frame_write(v->host, v->domain->id, mfn, at % PAGE_SIZE, (u8 *)buf + done, (u32)part)
                       : xl_frame_read(v->host, v->domain->id, mfn, at % PAGE_SIZE, (u8 *)buf + done, (u32)part);
        if (rc)
            return rc;
    }
    return 0;
}

int xl_guest_read(struct vcpu *v, u64 va, void *buf, u64 n, u64 *fault)
{
    struct mmu_fault f;
    if (vcpu_backend(v)->translate)
        return copy(v, va, buf, n, false, fault);
    return report(mmu_read(v, buf, va, n, &f), &f, fault);
}

int xl_guest_write(struct vcpu *v, u64 va, const void *buf, u64 n, u64 *fault)
{
    struct mmu_fault f;
    if (vcpu_backend(v)->translate)
        return copy(v, va, (void *)buf, n, true, fault);
    return report(mmu_write(v, va, buf, n, &f), &f, fault);
}

s64 xl_guest_translate(struct vcpu *v, u64 va, u32 access, u64 *fault)
{
    struct mmu_fault f;
    u64 mfn;
    int rc = vcpu_backend(v)->translate ? translate(v, va, &mfn, fault) : report(mmu_translate(v, va, access, &mfn, &f), &f, fault);
    return rc ? rc : (s64)mfn;
}

int xl_vcpu_enter(struct vcpu *v)
{
    vcpu_runstate_publish(v);
    atomic_and(&v->exit_work, ~(u32)WORK_upcall);
    if (!vcpu_event_deliverable(v))
        return 0;
    write_once(v->info->evtchn_upcall_mask, 1);
    stat_inc(v, upcalls);
    vcpu_trace(v, UPCALL, v->info->evtchn_pending_sel, 0);
    return 1;
}

void xl_vcpu_step(struct vcpu *v)
{
    clock_advance(&v->host->clock, STEP_VIRTUAL_NS);    /* or a task that only ever sleeps for 0 s would stop the clock */
    vcpu_check_slice(v);
}

void xl_vcpu_park(struct vcpu *v) { sched_put_back(v); }

int xl_vcpu_set_bases(struct vcpu *v, u64 kernel_l4, u64 user_l4)
{
    int rc = mm_set_vcpu_bases(v, (u32)kernel_l4, (u32)user_l4);
    if (!rc)
        v->initialised = true;
    return rc;
}

int xl_vcpu_set_iopl(struct vcpu *v, u32 iopl)
{
    if (iopl > 3)
        return -XEN_EINVAL;
    v->arch.iopl = (u8)iopl;
    return 0;
}

int xl_vcpu_set_iobitmap(struct vcpu *v, u64 bitmap, u32 nr_ports)
{
    if (nr_ports > 65536)
        return -XEN_EINVAL;
    v->arch.io_bitmap = bitmap;
    v->arch.io_bitmap_ports = nr_ports;
    return 0;
}

void xl_vcpu_up(struct vcpu *v) { vcpu_unpause(v, VPF_down); }

/* The guest's half of the 2-level ABI (section 5.3): clear, collect, acknowledge. What does not fit stays pending. */
int xl_scan_events(struct vcpu *v, u32 *ports, int max)
{
    struct shared_info *s = v->domain->shared_info;
    int n = 0;
    xchg(&v->info->evtchn_upcall_pending, 0);
    u64 sel = xchg(&v->info->evtchn_pending_sel, 0ul);
    for (; sel; sel &= sel - 1) {
        unsigned word = (unsigned)__builtin_ctzl(sel);
        u64 bits = read_once(s->evtchn_pending[word]) & ~read_once(s->evtchn_mask[word]);
        for (; bits; bits &= bits - 1) {
            if (n == max) {             /* no room: leave word and rest as found */
                atomic_or(&v->info->evtchn_pending_sel, sel);
                xchg(&v->info->evtchn_upcall_pending, 1);
                return n;
            }
            unsigned bit = (unsigned)__builtin_ctzl(bits);
            test_and_clear_bit((u64 *)&s->evtchn_pending[word], bit);
            ports[n++] = word * 64 + bit;
        }
    }
    return n;
}

int xl_cmpxchg16(void *p, u16 old, u16 new_value) { return cmpxchg((u16 *)p, &old, new_value); }

void xl_vcpu_stats(struct vcpu *v, u64 *stats, u64 *hypercalls64)
{
    memcpy(stats, v->stats, sizeof v->stats);
    memcpy(hypercalls64, v->hypercall_count, sizeof v->hypercall_count);
}

void xl_vcpu_runstate(struct vcpu *v, u64 *out6)
{
    struct vcpu_runstate_info r;
    vcpu_runstate_get(v, &r);
    out6[0] = (u64)r.state;
    out6[1] = r.state_entry_time;
    for (unsigned i = 0; i < 4; i++)
        out6[2 + i] = r.time[i];
}

/* ---- scripts: while the vCPU runs on another thread the figures may be a step apart ------------------------------ */

int xl_script_load(struct vcpu *v, const struct script_step *steps, u32 n, u32 nr_samples)
{
    return script_load(v, steps, n, nr_samples);
}

int xl_script_samples(struct vcpu *v, u64 *out, u32 n)
{
    const struct script *s = v->script;
    if (!s)
        return -XEN_EINVAL;
    if (n > s->nr_samples)
        n = s->nr_samples;
    memcpy(out, s->samples, n * sizeof *out);
    return (int)n;
}

void xl_script_regs(struct vcpu *v, u64 *out16, u64 *faults, u64 *steps_run)
{
    static const struct script none;
    const struct script *s = v->script ? v->script : &none;
    memcpy(out16, s->regs, sizeof s->regs);
    *faults = s->faults;
    *steps_run = s->steps_run;
}
