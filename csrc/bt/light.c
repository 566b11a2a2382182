/* Instructions that translated code calls C for without being left: ways between privilege levels (syscall, sysret, iretq), and a
 * paravirtual kernel's hypercalls, as far as they are quick (x86_ops.quick_syscall).
 *
 * Owns: bt_light_call. Called by: the routine light_call (cache.c), from translated code. No locks.
 *
 * The guest's vector registers and MXCSR are in the host's meanwhile, x87 registers perhaps, so all that is compiled here keeps to general
 * registers, what it takes from headers too, and only what does so is called. Only what is usual is done, what it needs being in the TLB;
 * all else is the interpreter's (exec_far.c), with nothing changed.
 */
#include "base/general_regs.h"

#include "bt/internal.h"
#include "x86/system.h"

#if GENERAL_REGS

/* What is left, and where from: translated code's state at the instruction. flags: rflags as they are there. */
struct departure { struct bt *t; const struct bt_exit *x; const struct bt_block *b; u64 flags; s64 left; };

/* The host address of the code at rip for that level, 0 or 3. 0: it is not known, or the flags need the interpreter there. */
static inline u64 landing(const struct x86_cpu *c, const struct departure *d, unsigned level, u64 rip, u64 flags)
{
    const struct bt *t = d->t;
    unsigned set = level == 3;
    u16 context = (u16)((d->b->context & ~(CTX_SET | CTX_CPL)) | (set ? CTX_SET | CTX_CPL : 0));
    u64 place;
    __asm__("pext %2, %1, %0" : "=r"(place) : "r"(rip), "r"(JUMP_MASK));
    bool fits = !(flags & (X86_TF | X86_RF)) && !(set && flags & X86_AC && c->cr0 & X86_CR0_AM);
    bool known = t->jump_context[set] == context && t->jump_negated[set][place] == -rip && rip != t->poison;
    return likely(fits && known) ? t->jump_host[set][place] : 0;
}

static inline void arrive(struct x86_cpu *c, const struct departure *d, unsigned level, u64 flags)
{
    c->cpl = (u8)level;
    c->tlb_set = level == 3;
    c->rflags = flags;
    c->code.tag = 0;
    d->t->flags = (u32)(flags & 0xd5) << 8 | (u32)(flags >> 11 & 1);
    d->t->left = d->left;
    d->t->frames = d->t->bottom;        /* addresses mean something else */
}

/* As x86_syscall_native and sysret. */
static inline u64 by_syscall(struct x86_cpu *c, const struct departure *d)
{
    enum { SYSRET_FLAGS = 0x247fd5, CODE = X86_ATTR_G | X86_ATTR_L | X86_ATTR_P | X86_ATTR_S | X86_SEG_CODE | X86_SEG_RW | X86_SEG_A,
           DATA = X86_ATTR_G | X86_ATTR_DB | X86_ATTR_P | X86_ATTR_S | X86_SEG_RW | X86_SEG_A };
    bool sysret = d->x->size == LIGHT_SYSRET;
    unsigned level = sysret ? 3 : 0;
    u64 flags = sysret ? (c->r[X86_R11] & SYSRET_FLAGS) | X86_FLAG1 : (d->flags & ~(c->sfmask | X86_RF)) | X86_FLAG1;
    u64 host = landing(c, d, level, sysret ? c->r[X86_RCX] : c->lstar, flags);
    if (unlikely(!host || !(c->efer & X86_EFER_SCE)))
        return 0;
    if (!sysret) {
        c->r[X86_RCX] = d->b->va + d->x->off + 2;       /* bytes of syscall */
        c->r[X86_R11] = d->flags & ~(u64)X86_RF;
    }
    u16 base = (u16)(c->star >> (sysret ? 48 : 32)), cs = (u16)(base + (sysret ? 16 : 0)), ss = (u16)(base + 8);
    c->seg[X86_CS] = (struct x86_seg){ .sel = (u16)((cs & ~3u) | level), .attr = (u16)(CODE | level << 5), .limit = 0xffffffff };
    c->seg[X86_SS] = (struct x86_seg){ .sel = (u16)((ss & ~3u) | level), .attr = (u16)(DATA | level << 5), .limit = 0xffffffff };
    arrive(c, d, level, flags);
    return host;
}

/* A descriptor that can be loaded as it is: present, and marked as accessed. 0: there is none. */
static inline u64 ready_descriptor(struct x86_cpu *c, u16 sel)
{
    enum { READY = X86_ATTR_P | X86_SEG_A };
    const u8 *quick = x86_null_sel(sel) ? NULL : x86_quick_descriptor(c, sel);
    u64 desc = quick ? x86_host_load(quick, 8) : 0;
    return (x86_desc_attr(desc) & READY) == READY ? desc : 0;
}

/* As iret, from level 0. It serializes: code that others than CPUs have written is not run as it was. */
static inline u64 by_iret(struct x86_cpu *c, const struct departure *d)
{
    static const u8 DATA[] = { X86_ES, X86_DS, X86_FS, X86_GS };
    const u8 *frame = x86_quick_ptr(c, X86_SS, c->r[X86_RSP], 5 * 8, false);
    x86_serialize();
    if (unlikely(!frame || d->flags & X86_NT || codemap_epoch(c->codemap) != d->t->epoch))
        return 0;
    u16 cs = (u16)x86_host_load(frame + 8, 8), ss = (u16)x86_host_load(frame + 32, 8);
    unsigned level = cs & 3;
    u64 code = ready_descriptor(c, cs), stack = ready_descriptor(c, ss), rsp = x86_host_load(frame + 24, 8);
    u64 flags = x86_iret_flags(c, d->flags, x86_host_load(frame + 16, 8), 8);
    u64 host = landing(c, d, level, x86_host_load(frame, 8), flags);
    u16 attr = x86_desc_attr(code);
    bool null = x86_null_is_stack(ss, level);
    if (unlikely(!host || (level && level != 3) || (attr & (X86_ATTR_L | X86_ATTR_DB)) != X86_ATTR_L || !x86_may_return_to(attr, level, 0) ||
                 !(null || x86_may_be_stack(x86_desc_attr(stack), ss, level))))
        return 0;
    for (unsigned n = 0; n < ARRAY_SIZE(DATA); n++)
        if (unlikely(x86_is_inner(&c->seg[DATA[n]], level)))
            return 0;
    c->seg[X86_CS] = x86_segment_of(cs, code);
    if (null)
        c->seg[X86_SS] = (struct x86_seg){ .sel = ss, .attr = (u16)(X86_ATTR_UNUSABLE | level << 5) };
    else
        c->seg[X86_SS] = x86_segment_of(ss, stack);
    c->r[X86_RSP] = rsp;
    arrive(c, d, level, flags);
    return host;
}

/* The block goes on: nothing that it takes for granted has changed but segments' bases. */
static u64 by_hypercall(struct x86_cpu *c, const struct departure *d)
{
    if (!d->x->behind || !c->ops->quick_syscall(c, d->b->va + d->x->off + 2, d->flags))
        return 0;
    bt_load_bases(d->t);
    return bt_host_address(d->t, d->x->behind);
}

/* bt_exit.size says which. x87_out is about all contexts, of which one has CTX_X87 if the other has. */
u64 bt_light_call(struct x86_cpu *c)
{
    struct bt *t = c->bt;
    const struct bt_exit *x = &t->exits[t->exit];
    struct departure d = { t, x, &t->block[x->block], bt_rflags(t), t->left - x->k - 1 };
    if (unlikely(c->slow || c->strict))
        return 0;
    if (x->size == LIGHT_HYPERCALL)
        return by_hypercall(c, &d);
    if (unlikely(d.left < 0))
        return 0;
    return x->size == LIGHT_IRET ? by_iret(c, &d) : by_syscall(c, &d);
}

#else

u64 bt_light_call(struct x86_cpu *c) { return 0; }

#endif
