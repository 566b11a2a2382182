/* What all vCPUs that execute machine code have in common: their engine, what its instructions cost, the way in and out of it.
 *
 * Owns: vcpu.native, the decode cache. Called by: pv/ and pc/, on the thread that runs the vCPU. No locks.
 *
 * Time. With the virtual clock an instruction is 1 ns: the clock is brought up to cpu->retired before anything reads it, and the engine
 * runs no further than *stop_at. Only the vCPU itself can lower *stop_at meanwhile (there is one thread): native_spend looks again after
 * whatever may have done so. With the real clock the engine comes back every slice of instructions to look at the clock; kicks and pauses
 * reach it through exit_work.
 */
#ifndef XL_HV_NATIVE_H
#define XL_HV_NATIVE_H

#include "hv/host.h"
#include "x86/cpu.h"

/* Connects v and its engine c, which is zeroed and stays where it is; before x86_reset. */
void native_attach(struct vcpu *v, struct x86_cpu *c, const struct x86_ops *ops);
/* Frees what the engine has allocated. c itself is the caller's. */
void native_detach(struct vcpu *v);

/* Brings the clock and the statistics up to the instructions that have retired: before anything reads the clock. */
void native_charge(struct vcpu *v);
/* How many instructions v may run from now on; 0: its time is over. */
u64  native_budget(const struct vcpu *v);
void native_spend_virtual(struct vcpu *v, u64 cost);
/* Charges `cost` instructions more, and makes x86_run end in time for what may have been set meanwhile (a timer, a shorter slice). */
static inline void native_spend(struct vcpu *v, u64 cost)
{
    struct x86_cpu *c = v->cpu;
    if (unlikely(v->host->clock.kind == CLOCK_VIRTUAL))
        native_spend_virtual(v, cost);
    else
        c->limit = c->limit > c->retired + cost ? c->limit - cost : c->retired;
}

/* Guest mode around native_execute. What is due before the first instruction is done between the two. */
void native_begin(struct vcpu *v, const u64 *stop_at);
void native_enter(struct vcpu *v);
/* Runs up to n instructions in the translator or the interpreter, unless v must park; leaves guest mode, and tells the debugger if that
 * is why. */
enum x86_exit native_execute(struct vcpu *v, u64 n);
/* x86_ops.code_changed: native_enter waits for the others. Real clock. */
void native_code_changed(struct x86_cpu *c, const u8 *p);
/* x86_ops.code_page: other vCPUs may have write entries, and be in guest mode with them. Leaves guest mode meanwhile. */
void native_code_page(struct x86_cpu *c, const u8 *p);

#endif
