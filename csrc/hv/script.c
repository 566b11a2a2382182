/* The interpreter of scripts: see script.h.
 *
 * Called by: pcpu.c through script_backend, on the thread that runs the vCPU. It does what a guest's machine code does and nothing
 * more: hypercalls through dispatch, memory through the soft MMU; and the two things that every PV kernel does to shared_info on its
 * own, acknowledging events and reading the time.
 *
 * Looking at the real clock costs as much as a few steps, so that is done every CLOCK_EVERY steps only; a step takes some
 * microseconds at most, COMPUTE looks at the clock itself.
 */
#include "hv/script.h"

#include <string.h>

#include "hv/host.h"
#include "hv/hypercall.h"
#include "xen/sched.h"

enum { STEP_VIRTUAL_NS = 100, CLOCK_EVERY = 32, OPERANDS = 6 };

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static bool step_ok(const struct script_step *s)
{
    const u64 operands[OPERANDS] = { s->a, s->b, s->c, s->d, s->e, s->f };
    if (s->op >= SCRIPT_NR_OPS || s->r >= SCRIPT_REGS || s->regmask >> OPERANDS)
        return false;
    for (unsigned i = 0; i < OPERANDS; i++)
        if ((s->regmask >> i & 1) && operands[i] >= SCRIPT_REGS)
            return false;
    return true;
}

static void script_free(struct vcpu *v);

int script_load(struct vcpu *v, const struct script_step *steps, u32 n, u32 nr_samples)
{
    struct arena *arena = &v->host->arena;

    if (v->backend != BACKEND_SCRIPT || n == 0 || n > SCRIPT_MAX_STEPS || nr_samples > SCRIPT_MAX_SAMPLES)
        return -XEN_EINVAL;
    for (u32 i = 0; i < n; i++)
        if (!step_ok(&steps[i]))
            return -XEN_EINVAL;
    if (vcpu_runnable(v) || load_acquire(v->unit.running))
        return -XEN_EBUSY;

    script_free(v);
    struct script *s = arena_alloc(arena, sizeof *s);
    if (!s)
        return -XEN_ENOMEM;
    v->script = s;
    s->nr_steps = n;
    s->nr_samples = nr_samples;
    s->steps = arena_alloc(arena, n * sizeof *steps);
    s->samples = nr_samples ? arena_alloc(arena, nr_samples * sizeof *s->samples) : NULL;
    if (!s->steps || (nr_samples && !s->samples)) {
        script_free(v);
        return -XEN_ENOMEM;
    }
    memcpy(s->steps, steps, n * sizeof *steps);
    return 0;
}

static void script_free(struct vcpu *v)
{
    struct arena *arena = &v->host->arena;
    struct script *s = v->script;

    if (!s)
        return;
    v->script = NULL;
    arena_free(arena, s->steps, s->nr_steps * sizeof *s->steps);
    arena_free(arena, s->samples, s->nr_samples * sizeof *s->samples);
    arena_free(arena, s, sizeof *s);
}

/* ---- what a guest does ------------------------------------------------------------------------------------------- */

static inline s64 call(struct vcpu *v, u64 nr, u64 a0, u64 a1)
{
    const u64 args[5] = { a0, a1 };
    return hypercall(v, nr, args);
}

/* A kernel's upcall handler: the upcall byte first, then the selector, then the words, so that an event that comes meanwhile
 * sets the byte again and is found the next time. Returns how many unmasked ports were pending; their bits are cleared. */
static u64 acknowledge(struct vcpu *v)
{
    struct shared_info *shared = v->domain->shared_info;
    struct vcpu_info *info = v->info;
    struct machine *m = &v->host->machine;
    u64 n = 0;

    if (!read_once(info->evtchn_upcall_pending))
        return 0;
    frame_mark_dirty(m, v->domain->shared_info_mfn);
    if (v->info_mfn)
        frame_mark_dirty(m, v->info_mfn);
    write_once(info->evtchn_upcall_pending, 0);
    for (u64 sel = xchg(&info->evtchn_pending_sel, 0); sel; sel &= sel - 1) {
        unsigned w = (unsigned)__builtin_ctzl(sel);
        u64 bits = read_once(shared->evtchn_pending[w]) & ~read_once(shared->evtchn_mask[w]);
        n += (u64)__builtin_popcountl(bits);
        if (bits)
            atomic_and(&shared->evtchn_pending[w], ~bits);
    }
    return n;
}

/* Fills in the structure at guest address `at`, with the port behind it, and polls. */
static s64 poll(struct vcpu *v, struct script *s, u32 port, u64 timeout, u64 at)
{
    struct sched_poll p = { .ports = at + sizeof p, .nr_ports = 1, .timeout = timeout };
    if (mmu_write(v, at, &p, sizeof p, NULL) || mmu_write(v, at + sizeof p, &port, sizeof port, NULL))
        s->faults++;
    return call(v, __HYPERVISOR_sched_op, SCHEDOP_poll, at);
}

/* Burns s->burn_left as far as v may run. True: all of it. */
static bool compute(struct vcpu *v, struct script *s, const u64 *stop_at)
{
    struct clock *c = &v->host->clock;
    u64 now = clock_now(c);

    if (c->kind == CLOCK_VIRTUAL) {
        u64 stop = load_acquire(*stop_at), ns = stop > now ? stop - now : 0;
        if (ns > s->burn_left)
            ns = s->burn_left;
        clock_advance(c, ns);
        s->burn_left -= ns;
    } else {
        u64 end = now + s->burn_left;
        while (now < end && now < load_acquire(*stop_at) && !vcpu_must_park(v)) {
            cpu_relax();
            now = clock_now(c);
        }
        s->burn_left = end > now ? end - now : 0;
    }
    return s->burn_left == 0;
}

static void sample(struct vcpu *v, struct script *s, unsigned r, u64 modulus)
{
    u64 i = s->regs[r]++;
    if (modulus)
        i %= modulus;
    if (i < s->nr_samples)
        s->samples[i] = host_now(v->host) - load_acquire(v->host->pcpu[0].mark);
}

/* ---- the interpreter --------------------------------------------------------------------------------------------- */

/* Operands a to f, those that name registers replaced by what these hold. */
static const u64 *fetch_operands(const struct script *s, const struct script_step *step, u64 room[OPERANDS])
{
    const u64 *o = (const u64 *)((const u8 *)step + offsetof(struct script_step, a));
    if (likely(!step->regmask))
        return o;
    for (unsigned i = 0; i < OPERANDS; i++)
        room[i] = step->regmask >> i & 1 ? s->regs[o[i]] : o[i];
    return room;
}

STATIC_ASSERT(offsetof(struct script_step, f) == offsetof(struct script_step, a) + (OPERANDS - 1) * sizeof(u64));

/* One step; s->pc is the next one already. False: v stops in the middle of it, and does it again (or its rest) later. */
static inline bool run_step(struct vcpu *v, struct script *s, const struct script_step *step, const u64 *stop_at)
{
    u64 room[OPERANDS];
    const u64 *o = fetch_operands(s, step, room);
    const unsigned r = step->r;

    switch ((enum script_op)step->op) {
    case SCRIPT_END: {
        const u64 args[5] = { VCPUOP_down, v->id };
        hypercall(v, __HYPERVISOR_vcpu_op, args);
        break;
    }
    case SCRIPT_COMPUTE:
        if (!s->burn_left)
            s->burn_left = o[0];
        if (!compute(v, s, stop_at))
            return false;
        break;
    case SCRIPT_HYPERCALL: {
        s64 rc = hypercall(v, o[0], &o[1]);
        if (unlikely(rc == HYPERCALL_COLD)) {
            s->cold = true;
            s->cold_reg = (u16)r;
        } else {
            s->regs[r] = (u64)rc;
        }
        break;
    }
    case SCRIPT_LOAD:
        if (mmu_read(v, &s->regs[r], o[0], sizeof s->regs[r], NULL))
            s->faults++;
        break;
    case SCRIPT_STORE:
        if (mmu_write(v, o[0], &o[1], sizeof o[1], NULL))
            s->faults++;
        break;
    case SCRIPT_SET:
        s->regs[r] = o[0];
        break;
    case SCRIPT_ADD:
        s->regs[r] += o[0];
        break;
    case SCRIPT_LOOP:
        if (--s->regs[r] != 0)
            s->pc = (u32)o[0];
        break;
    case SCRIPT_JUMP_IF:
        if (s->regs[r] == o[1])
            s->pc = (u32)o[0];
        break;
    case SCRIPT_JUMP:
        s->pc = (u32)o[0];
        break;
    case SCRIPT_YIELD:
        call(v, __HYPERVISOR_sched_op, SCHEDOP_yield, 0);
        break;
    case SCRIPT_BLOCK:
        call(v, __HYPERVISOR_sched_op, SCHEDOP_block, 0);
        break;
    case SCRIPT_POLL:
        s->regs[r] = (u64)poll(v, s, (u32)o[0], o[1], o[2]);
        break;
    case SCRIPT_ACK:
        s->regs[r] += acknowledge(v);
        break;
    case SCRIPT_WAIT: {
        if (!s->wait_left)
            s->wait_left = o[0];
        u64 n = acknowledge(v);
        s->regs[r] += n;
        s->wait_left -= n < s->wait_left ? n : s->wait_left;
        if (s->wait_left) {
            call(v, __HYPERVISOR_sched_op, SCHEDOP_block, 0);
            return false;
        }
        break;
    }
    case SCRIPT_STAMP:
        sample(v, s, r, o[0]);
        break;
    case SCRIPT_MARK:
        store_release(v->host->pcpu[0].mark, host_now(v->host));
        break;
    case SCRIPT_TRACE:
        vcpu_trace(v, MARK, o[0], o[1]);
        break;
    case SCRIPT_NOW:
        s->regs[r] = host_now(v->host) + o[0];
        break;
    case SCRIPT_NR_OPS:
        break;
    }
    return true;
}

static void script_run(struct vcpu *v, const u64 *stop_at)
{
    static const struct script_step end = { .op = SCRIPT_END };
    static const struct script none;
    struct script empty = none, *s = v->script ? v->script : &empty;
    struct clock *c = &v->host->clock;
    const bool virtual = c->kind == CLOCK_VIRTUAL;

    if (s->cold) {
        s->regs[s->cold_reg] = (u64)v->cold.result;
        s->cold = false;
    }
    for (unsigned until_clock = CLOCK_EVERY; !vcpu_must_park(v); until_clock--) {
        if (virtual) {
            if (c->now >= *stop_at)
                return;
            if (!s->burn_left)          /* not the rest of a step that was charged before */
                c->now += STEP_VIRTUAL_NS;
        } else if (!until_clock) {
            if (clock_now(c) >= load_acquire(*stop_at))
                return;
            until_clock = CLOCK_EVERY;
        }
        const u32 pc = s->pc;
        const bool more = pc < s->nr_steps;
        s->pc = pc + more;
        s->steps_run++;
        if (!run_step(v, s, more ? &s->steps[pc] : &end, stop_at)) {
            s->pc = pc;
            return;
        }
    }
}

const struct vcpu_backend script_backend = { .name = "script", .destroy = script_free, .run = script_run };
