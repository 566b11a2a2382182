/* A debugger outside of the guest, on domains that run machine code.
 *
 * Owns: names. See debug.c. Called by: pv/ and pc/ (their engines), xenlike.h.
 */
#ifndef XL_HV_DEBUG_H
#define XL_HV_DEBUG_H

#include "base/types.h"

struct domain;
struct vcpu;
struct x86_cpu;

bool debug_check(struct x86_cpu *c);    /* an x86_ops.debug */
void debug_watch(struct x86_cpu *c, u64 va, unsigned size, bool write);         /* an x86_ops.watch */
/* The vCPU has come out of the engine because of the debugger: stops the domain and tells the lane. Not in guest mode. */
void debug_stopped(struct vcpu *v);
void debug_stop(struct domain *d);      /* returns when every vCPU rests */
void debug_attach(struct domain *d, bool on);   /* stops it; off: forgets all points and lets it go */
/* Adds or removes a point; the domain is stopped. -EINVAL: kind, length, not there; -ENOSPC. */
int  debug_point_change(struct domain *d, bool add, unsigned kind, u64 va, u32 len);
void debug_go(struct domain *d, struct vcpu *only, bool step);  /* only NULL: all of them */

#endif
