/* State of the CPU that follows from other state; RESET; how an instruction ends with an exception.
 *
 * Owns: x86_reset, x86_derive, x86_raise*. Called by: all of x86/ and what stands on it. No locks.
 */
#include "x86/cpu.h"

#include <string.h>

/* interp.c compares tlb_set, mode, cpl, long_mode and real in one load. */
STATIC_ASSERT(offsetof(struct x86_cpu, tlb_set) % 8 == 0);
STATIC_ASSERT(offsetof_end(struct x86_cpu, real) == offsetof(struct x86_cpu, tlb_set) + 8);

static const struct x86_seg RESET_DATA = { 0, 0x93, 0xffff, 0 };

void x86_reset(struct x86_cpu *c)
{
    const struct x86_cpu old = *c;
    memset(c, 0, sizeof *c);
    c->tlb = old.tlb, c->ops = old.ops, c->attention = old.attention, c->icache = old.icache, c->features = old.features;
    c->bus_lock = old.bus_lock, c->owner = old.owner, c->unwind = old.unwind, c->insn = old.insn;
    c->codemap = old.codemap, c->bt = old.bt, c->roughly = old.roughly;
    c->retired = old.retired, c->undecoded = old.undecoded;
    c->slow = old.slow & X86_SLOW_DEBUGGER;
    c->strict = old.strict & X86_STRICT_DEBUGGER;

    c->rflags = X86_FLAG1;
    c->r[X86_RIP] = c->next_rip = 0xfff0;
    for (unsigned s = 0; s < X86_NR_SEGS; s++)
        c->seg[s] = RESET_DATA;
    c->seg[X86_CS] = (struct x86_seg){ 0xf000, 0x93, 0xffff, 0xffff0000 };
    c->ldtr = (struct x86_seg){ 0, 0x82, 0xffff, 0 };
    c->tr = (struct x86_seg){ 0, 0x8b, 0xffff, 0 };
    c->gdtr.limit = c->idtr.limit = 0xffff;
    c->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
    c->dr[6] = 0xffff0ff0;
    c->dr[7] = 0x400;
    c->pat = 0x0007040600070406;
    c->apic_base = 0xfee00900;          /* enabled, bootstrap processor */
    c->fx.fcw = 0x40;
    c->fx.ftw = 0xff;                   /* tag word 5555h: all valid (zeros) */
    c->fx.mxcsr = 0x1f80;
    c->fx.mxcsr_mask = 0xffff;
    u32 id[4];
    x86_cpuid_native(c, 1, 0, id);
    c->r[X86_RDX] = id[0];              /* the signature */
    x86_tlb_flush(c);
    x86_derive(c);
}

void x86_derive(struct x86_cpu *c)
{
    c->long_mode = (c->efer & X86_EFER_LMA) != 0;
    c->real = !(c->cr0 & X86_CR0_PE) || (c->rflags & X86_VM);
    u16 cs = c->seg[X86_CS].attr;
    c->mode = c->long_mode && !c->real && cs & X86_ATTR_L ? 64 : cs & X86_ATTR_DB ? 32 : 16;
    for (unsigned s = X86_ES; s <= X86_DS; s++)
        c->lin_base[s] = c->mode == 64 ? 0 : c->seg[s].base;
    c->lin_base[X86_FS] = c->seg[X86_FS].base;
    c->lin_base[X86_GS] = c->seg[X86_GS].base;
    x86_derive_level(c);
}

/* ---- exceptions -------------------------------------------------------------------------------------------------- */

_Noreturn void x86_unwind(struct x86_cpu *c, const struct x86_exception *e)
{
    c->exc = *e;
    longjmp(*c->unwind, 1);
}

_Noreturn void x86_raise(struct x86_cpu *c, unsigned vector)
{
    x86_unwind(c, &(struct x86_exception){ .vector = (u8)vector });
}

_Noreturn void x86_raise_error(struct x86_cpu *c, unsigned vector, u32 error)
{
    x86_unwind(c, &(struct x86_exception){ .vector = (u8)vector, .has_error = true, .error = error });
}

_Noreturn void x86_raise_page_fault(struct x86_cpu *c, const struct x86_fault *f)
{
    x86_unwind(c, &(struct x86_exception){ .vector = X86_PAGE, .has_error = true, .error = f->error, .cr2 = f->va });
}
