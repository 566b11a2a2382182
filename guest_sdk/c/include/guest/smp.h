/*
 * More vCPUs.
 */
#ifndef GUEST_SMP_H
#define GUEST_SMP_H

#include <guest/cpu.h>

/* vCPUs that the domain has, up or not. */
u32 smp_count(void);

/* Brings a vCPU up: it runs entry(arg) on a stack of its own with events enabled, and goes down when that returns. 0 or -XEN_E. */
s64 smp_boot(u32 vcpu, void (*entry)(void *arg), void *arg);

#endif
