/*
 * Everything of the SDK for paravirtual guests in C; docs/c-sdk.md is the tutorial.
 */
#ifndef GUEST_H
#define GUEST_H

#include <guest/block.h>
#include <guest/console.h>
#include <guest/cpu.h>
#include <guest/domain.h>
#include <guest/event.h>
#include <guest/grant.h>
#include <guest/hypercall.h>
#include <guest/memory.h>
#include <guest/smp.h>
#include <guest/time.h>
#include <guest/trap.h>
#include <guest/types.h>
#include <guest/user.h>
#include <guest/xenbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#endif
