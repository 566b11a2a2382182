/* Included first by a file whose functions translated code calls with the guest's vector and x87 registers in the CPU: all that is compiled
 * there, what it takes from headers too, keeps to general registers. GENERAL_REGS: the compiler can be told so; else such a file has
 * stubs that do nothing, and the ways that are always there are taken.
 */
#ifndef XL_BASE_GENERAL_REGS_H
#define XL_BASE_GENERAL_REGS_H

#if defined(__x86_64__) && !defined(__clang__)
#define GENERAL_REGS 1
#pragma GCC target("general-regs-only")
#else
#define GENERAL_REGS 0
#endif

#endif
