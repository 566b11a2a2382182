/* See xenlike.h: the part of the face that loads scripts and reads what they left. While the vCPU runs on another thread the
 * figures may be a step apart. */
#include "xenlike.h"

#include <string.h>

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
