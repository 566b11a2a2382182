/* Loads and stores of instructions: effective address, segment, TLB, host memory.
 *
 * Owns: nothing; in line in every op. Called by: exec_*.c, segment.c, exception.c. A function here raises the instruction's exception
 * (#PF, #GP, #SS, #AC) itself; what it stores is stored when it returns.
 *
 * An access is in line if it lies within a page that the TLB has and nothing is strict; all else is in mem.c.
 */
#ifndef XL_X86_MEM_H
#define XL_X86_MEM_H

#include <string.h>

#include "base/lock.h"
#include "x86/insn.h"

/* The slow roads. seg: for the choice of #GP or #SS and for limits; X86_SYS_SEG: an access of the CPU itself (descriptor tables, TSS, IDT,
 * stacks of inner levels): linear address, supervisor whatever CPL is. */
enum { X86_SYS_SEG = 7 };
u64 x86_load_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size);
void x86_store_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 value);
void x86_load_bytes(struct x86_cpu *c, unsigned seg, u64 off, void *out, unsigned n);          /* any n <= 512; 16-byte operands, fxrstor */
void x86_store_bytes(struct x86_cpu *c, unsigned seg, u64 off, const void *in, unsigned n);    /* all or nothing */
/* Checks that [off, off+n) could be stored, so that a later store of it cannot fault. */
void x86_probe_write(struct x86_cpu *c, unsigned seg, u64 off, unsigned n);
/* Host address of an operand that lies in one writable page, or NULL: use x86_rmw_slow. Raises if it may not be written. */
u8 *x86_rmw_ptr(struct x86_cpu *c, unsigned seg, u64 off, unsigned size);
/* Compare-and-swap of a memory operand by any road (page-crossing, store hook), atomic towards other vCPUs. True: *old was there and
 * value is stored; false: *old := what is there. */
bool x86_cmpxchg_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 *old, u64 value);
/* The access goes to a device (x86_ops.mmio): a loop that reads and compares might never end there, as its registers change by themselves. */
bool x86_is_device(struct x86_cpu *c, unsigned seg, u64 off, unsigned size);
/* #GP(0) or #SS(0) unless off .. off+size-1 lies in the segment (not in 64-bit mode) and is canonical. Returns the linear address. */
u64 x86_linear(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, bool write);

static inline u64 x86_ea(const struct x86_cpu *c, const struct x86_insn *i)
{
    return (c->r[i->base] + (c->r[i->index] << i->scale) + (u64)i->disp) & i->addr_mask;
}

/* Host address if [lin, lin+size) is in line for the access, else NULL. Non-canonical addresses are never in the TLB. */
static inline u8 *x86_inline_ptr(struct x86_cpu *c, u64 lin, unsigned size, bool write)
{
    const struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, lin);
    u64 off = lin & (PAGE_SIZE - 1);
    if (likely((write ? e->write_tag : e->read_tag) == tlb_tag(c->tlb, lin) && off <= PAGE_SIZE - size && !c->strict))
        return e->page + off;
    return NULL;
}

/* The same where c->mode was not looked at, of accesses of the CPU itself too. Nothing has to be checked but what the tags say: a page with translated
 * code has no write entry, an address that is not canonical none at all. The address is good until something leaves guest mode or the
 * instruction is over. NULL: the slow road. */
static inline u8 *x86_quick_ptr(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, bool write)
{
    bool sys = seg == X86_SYS_SEG;
    if (unlikely(c->strict || !(sys ? c->long_mode : c->mode == 64)))
        return NULL;
    u64 lin = sys ? off : c->lin_base[seg] + off;
    const struct tlb_entry *e = tlb_slot(c->tlb, sys ? 0 : c->tlb_set, lin);
    return (write ? e->write_tag : e->read_tag) == tlb_tag(c->tlb, lin) && lin % PAGE_SIZE + size <= PAGE_SIZE ? e->page + lin % PAGE_SIZE : NULL;
}

/* One host access each, so that aligned ones are single-copy atomic (vol. 3, 8.1.1). */
static inline u64 x86_host_load(const u8 *p, unsigned size)
{
    u16 w; u32 d; u64 q;
    switch (size) {
    case 1: return *(const volatile u8 *)p;
    case 2: memcpy(&w, p, 2); return w;
    case 4: memcpy(&d, p, 4); return d;
    case 8: memcpy(&q, p, 8); return q;
    }
    q = 0;
    memcpy(&q, p, size);                /* 6: sgdt and far pointers */
    return q;
}

#define X86_DEFINE_ACCESS(bits)                                                                                         \
static inline u##bits x86_load##bits(struct x86_cpu *c, unsigned seg, u64 off)                                          \
{                                                                                                                       \
    if (likely(c->mode == 64)) {                                                                                        \
        const u8 *p = x86_inline_ptr(c, c->lin_base[seg] + off, bits / 8, false);                                       \
        if (likely(p != NULL)) {                                                                                        \
            u##bits value;                                                                                              \
            memcpy(&value, p, sizeof value);                                                                            \
            return value;                                                                                               \
        }                                                                                                               \
    }                                                                                                                   \
    return (u##bits)x86_load_slow(c, seg, off, bits / 8);                                                               \
}                                                                                                                       \
static inline void x86_store##bits(struct x86_cpu *c, unsigned seg, u64 off, u##bits value)                             \
{                                                                                                                       \
    if (likely(c->mode == 64)) {                                                                                        \
        u8 *p = x86_inline_ptr(c, c->lin_base[seg] + off, bits / 8, true);                                              \
        if (likely(p != NULL)) {                                                                                        \
            memcpy(p, &value, sizeof value);                                                                            \
            return;                                                                                                     \
        }                                                                                                               \
    }                                                                                                                   \
    x86_store_slow(c, seg, off, bits / 8, value);                                                                       \
}
X86_DEFINE_ACCESS(8)
X86_DEFINE_ACCESS(16)
X86_DEFINE_ACCESS(32)
X86_DEFINE_ACCESS(64)
#undef X86_DEFINE_ACCESS

/* Registers by the byte offset of struct x86_operand. 32-bit writes clear the upper half, 8- and 16-bit ones keep it. */
static inline u8 *x86_reg_ptr(struct x86_cpu *c, unsigned off) { return (u8 *)c->r + off; }
static inline u8 x86_get8(struct x86_cpu *c, unsigned off) { return *x86_reg_ptr(c, off); }
static inline u16 x86_get16(struct x86_cpu *c, unsigned off) { return (u16)c->r[off / 8]; }
static inline u32 x86_get32(struct x86_cpu *c, unsigned off) { return (u32)c->r[off / 8]; }
static inline u64 x86_get64(struct x86_cpu *c, unsigned off) { return c->r[off / 8]; }
static inline void x86_set8(struct x86_cpu *c, unsigned off, u8 x) { *x86_reg_ptr(c, off) = x; }
static inline void x86_set16(struct x86_cpu *c, unsigned off, u16 x) { c->r[off / 8] = (c->r[off / 8] & ~0xfffful) | x; }
static inline void x86_set32(struct x86_cpu *c, unsigned off, u32 x) { c->r[off / 8] = x; }
static inline void x86_set64(struct x86_cpu *c, unsigned off, u64 x) { c->r[off / 8] = x; }

#endif
