/* Debug registers: which accesses hit a breakpoint (vol. 3, 17.2).
 *
 * Owns: the meaning of DR0-3 and DR7. Called by: cpu.c (what DR7 makes slow), interp.c (instruction breakpoints), mem.c (data),
 * in/out. DR6 is written by who delivers the #DB. No locks.
 */
#include "x86/cpu.h"

static inline bool enabled(const struct x86_cpu *c, unsigned n) { return c->dr[7] >> (2 * n) & 3; }     /* L or G */
static inline unsigned kind_of(const struct x86_cpu *c, unsigned n) { return c->dr[7] >> (16 + 4 * n) & 3; }

static inline unsigned length_of(const struct x86_cpu *c, unsigned n)
{
    static const u8 LENGTHS[4] = { 1, 2, 8, 4 };
    return LENGTHS[c->dr[7] >> (18 + 4 * n) & 3];
}

void x86_debug_derive(struct x86_cpu *c)
{
    c->strict &= ~X86_STRICT_BREAKPOINT;
    c->slow &= ~X86_SLOW_BREAKPOINT;
    for (unsigned n = 0; n < 4; n++)
        if (enabled(c, n)) {
            if (kind_of(c, n) == X86_DR_EXEC)
                c->slow |= X86_SLOW_BREAKPOINT;
            else if (kind_of(c, n) != X86_DR_IO)
                c->strict |= X86_STRICT_BREAKPOINT;
        }
}

/* A breakpoint covers `length` bytes from its address, aligned down to that (17.2.5). Instruction breakpoints: the first byte only. */
u64 x86_debug_match(const struct x86_cpu *c, u64 lin, unsigned size, unsigned kind)
{
    u64 hit = 0;
    for (unsigned n = 0; n < 4; n++) {
        unsigned k = kind_of(c, n), length = k == X86_DR_EXEC ? 1 : length_of(c, n);
        u64 start = c->dr[n] & ~(u64)(length - 1);
        bool applies = k == kind || (k == X86_DR_ACCESS && kind == X86_DR_WRITE);
        if (enabled(c, n) && applies && (lin - start < length || start - lin < size))
            hit |= 1ul << n;
    }
    return hit;
}

void x86_debug_access(struct x86_cpu *c, u64 lin, unsigned size, unsigned kind)
{
    if (kind == X86_DR_IO && !(c->cr4 & X86_CR4_DE))
        return;
    u64 hit = x86_debug_match(c, lin, size, kind);
    if (hit) {
        c->pending_db |= hit;
        c->slow |= X86_SLOW_PENDING_DB;
    }
}
