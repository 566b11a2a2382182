/* See bare.h. */
#include "x86/bare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bt/bt.h"
#include "machine/frame.h"
#include "x86/system.h"

STATIC_ASSERT((int)XL_BARE_HALTED == (int)X86_HALTED && (int)XL_BARE_DEBUGGER == (int)X86_DEBUGGER);

static inline struct x86_bare *bare_of(struct x86_cpu *c) { return container_of(c, struct x86_bare, cpu); }

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static u8 *bare_phys(struct x86_cpu *c, u64 pa, bool write)
{
    struct x86_bare *b = bare_of(c);
    return pa < b->size ? b->ram + pa : b->nowhere;
}

static u8 *region_page(struct x86_bare *b, u64 va, unsigned access, struct x86_fault *f)
{
    struct x86_cpu *c = &b->cpu;
    u32 error = access | (c->tlb_set ? PFEC_user : 0);
    for (unsigned n = 0; n < b->nr_regions; n++) {
        const struct x86_bare_region *r = &b->regions[n];
        if (va - r->va >= r->size)
            continue;
        if (!(r->prot & (access == MMU_WRITE ? 2 : access == MMU_EXEC ? 4 : 1))) {
            error |= PFEC_present;
            break;
        }
        struct tlb_entry *e = tlb_slot(c->tlb, c->tlb_set, va);
        u64 tag = tlb_tag(c->tlb, va);
        e->page = r->host + ((va - r->va) & ~(u64)(PAGE_SIZE - 1));
        e->read_tag = r->prot & 1 ? tag : 0;
        e->write_tag = r->prot & 2 && !codemap_has(c->codemap, e->page) ? tag : 0;
        e->exec_tag = r->prot & 4 ? tag : 0;
        c->tlb->used = true;
        return e->page;
    }
    *f = (struct x86_fault){ va, error };
    return NULL;
}

static u8 *bare_page(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f)
{
    struct x86_bare *b = bare_of(c);
    return b->nr_regions ? region_page(b, va, access, f) : x86_page_walk(c, va, access, f, bare_phys);
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

static void stop_by(struct x86_bare *b, const struct x86_exception *e)
{
    b->stopped = true;
    b->stopped_by = *e;
    x86_stop(&b->cpu);
}

static void bare_exception(struct x86_cpu *c, const struct x86_exception *e)
{
    struct x86_bare *b = bare_of(c);
    if (!(b->options & XL_BARE_STOP_EXCEPTIONS)) {
        x86_deliver_idt(c, e);
        return;
    }
    stop_by(b, e);
    c->rflags &= ~(u64)X86_RF;          /* was set for an image that nobody gets */
    x86_derive(c);
}

static void bare_soft_int(struct x86_cpu *c, u8 vector)
{
    struct x86_bare *b = bare_of(c);
    if (b->options & XL_BARE_STOP_EXCEPTIONS)
        stop_by(b, &(struct x86_exception){ .vector = vector, .soft = true });
    else
        x86_soft_int_idt(c, vector);
}

static void bare_syscall(struct x86_cpu *c)
{
    stop_by(bare_of(c), &(struct x86_exception){ .vector = 0, .soft = true, .error = 256 });
}

static void bare_interrupt(struct x86_cpu *c)
{
    struct x86_bare *b = bare_of(c);
    u8 vector = (u8)b->vector;
    b->vector = -1;
    c->slow &= ~X86_SLOW_INTERRUPT;
    if (b->options & XL_BARE_STOP_EXCEPTIONS)
        bare_exception(c, &(struct x86_exception){ .vector = vector });
    else
        x86_interrupt_idt(c, vector);
}

static u64 bare_tsc(struct x86_cpu *c) { return c->retired + bare_of(c)->tsc_base; }

static u32 bare_in(struct x86_cpu *c, u16 port, unsigned size)
{
    return port == 0xe9 ? 0xe9 : (u32)((1ul << 8 * size) - 1);
}

static void bare_out(struct x86_cpu *c, u16 port, unsigned size, u32 value)
{
    struct x86_bare *b = bare_of(c);
    if (port == 0xe9 && b->out_len < sizeof b->out)
        b->out[b->out_len++] = (u8)value;
    if (port == 0xf4) {
        b->exited = true;
        b->exit_code = value;
        x86_stop(c);
    }
}

static void bare_code_page(struct x86_cpu *c, const u8 *p) { x86_tlb_flush(c); }

#define BARE_OPS \
    .name = "bare", \
    .page = bare_page, \
    .exception = bare_exception, \
    .interrupt = bare_interrupt, \
    .soft_int = bare_soft_int, \
    .sysenter = x86_sysenter_native, \
    .descriptor = x86_descriptor_native, \
    .cpuid = x86_cpuid_native, \
    .tsc = bare_tsc, \
    .rdmsr = x86_rdmsr_native, \
    .wrmsr = x86_wrmsr_native, \
    .in = bare_in, \
    .out = bare_out, \
    .phys = bare_phys, \
    .code_page = bare_code_page
const struct x86_ops x86_bare_ops = { BARE_OPS, .syscall = x86_syscall_native };
static const struct x86_ops stop_ops = { BARE_OPS, .syscall = bare_syscall };  /* XL_BARE_STOP_EXCEPTIONS */

/* ---- life -------------------------------------------------------------------------------------------------------- */

struct x86_bare *xl_bare_create(u64 size)
{
    u64 icache_size;
    if (size > 1ul << 30)
        return NULL;
    size = size < 1ul << 20 ? 1ul << 20 : ALIGN_UP(size, PAGE_SIZE);
    icache_size = x86_icache_bytes();
    struct x86_bare *b = aligned_alloc(64, ALIGN_UP(sizeof *b, 64));
    if (!b)
        return NULL;
    memset(b, 0, sizeof *b);
    b->ram = aligned_alloc(PAGE_SIZE, size);
    b->nowhere = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
    b->icache_memory = calloc(1, icache_size + 64);     /* megabytes that the system zeroes when they are touched */
    if (!b->ram || !b->nowhere || !b->icache_memory) {
        xl_bare_destroy(b);
        return NULL;
    }
    memset(b->ram, 0, size);
    memset(b->nowhere, 0xff, PAGE_SIZE);
    b->icache = (struct icache *)ALIGN_UP((u64)b->icache_memory, 64);
    b->size = size;
    b->vector = -1;
    b->cpu.tlb = &b->tlb;
    b->cpu.ops = &x86_bare_ops;
    b->cpu.icache = b->icache;
    b->cpu.features = x86_features_supported();
    x86_reset(&b->cpu);
    return b;
}

void xl_bare_destroy(struct x86_bare *b)
{
    if (!b)
        return;
    bt_destroy(&b->cpu);
    for (unsigned n = 0; n < b->nr_regions; n++) {
        free(b->region_codemap[n].lines);
        free(b->region_codemap[n].generation);
    }
    free(b->codemap.lines);
    free(b->codemap.generation);
    free(b->ram);
    free(b->nowhere);
    free(b->icache_memory);
    free(b);
}

static bool codemap_create(struct codemap *m, const u8 *base, u64 size)
{
    u64 pages = size / PAGE_SIZE;
    *m = (struct codemap){ .base = base, .pages = pages, .lines = calloc(pages, sizeof *m->lines), .generation = calloc(pages, sizeof *m->generation) };
    return m->lines && m->generation;
}

int xl_bare_engine(struct x86_bare *b, bool translate, unsigned options)
{
    bt_destroy(&b->cpu);
    if (!translate)
        return 0;
    if (!b->codemap.lines) {
        if (!codemap_create(&b->codemap, b->ram, b->size))
            return -ENOMEM;
        b->codemap.next = b->cpu.codemap;
        b->cpu.codemap = &b->codemap;
    }
    return bt_create(&b->cpu, options) ? 0 : -ENOTSUP;
}

/* ---- flat modes -------------------------------------------------------------------------------------------------- */

static void put64(struct x86_bare *b, u64 pa, u64 value) { memcpy(b->ram + pa, &value, 8); }

enum { CODE = 0x9b, DATA = 0x93, DPL3 = 3 << 5, TSS_BUSY = 0x8b };

static u64 descriptor(u64 base, u64 limit, unsigned type, unsigned flags)       /* flags: bits 52-55 */
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)type << 40 | (limit >> 16 & 15) << 48 | (u64)flags << 52 |
           (base >> 24 & 0xff) << 56;
}

static void set_seg(struct x86_bare *b, struct x86_seg *s, u16 sel)
{
    u64 desc;
    memcpy(&desc, b->ram + b->size - XL_BARE_SYSTEM + XL_BARE_GDT + (sel & ~7u), 8);
    x86_seg_from_descriptor(s, sel, desc);
}

static void build_tables(struct x86_bare *b, u64 sys, unsigned bits)
{
    unsigned code_flags = bits == 64 ? 0xa : bits == 32 ? 0xc : 0;      /* G, D or L */
    u64 limit = bits == 16 ? 0xffff : 0xfffff, tss = sys + XL_BARE_TSS;
    memset(b->ram + sys, 0, XL_BARE_SYSTEM);
    put64(b, sys + XL_BARE_CS0, descriptor(0, limit, CODE, code_flags));
    put64(b, sys + XL_BARE_DS0, descriptor(0, 0xfffff, DATA, 0xc));
    put64(b, sys + (XL_BARE_CS3 & ~7), descriptor(0, limit, CODE | DPL3, code_flags));
    put64(b, sys + (XL_BARE_DS3 & ~7), descriptor(0, 0xfffff, DATA | DPL3, 0xc));
    put64(b, sys + XL_BARE_TR, descriptor(tss, 0x67, TSS_BUSY, 0));
    put64(b, sys + XL_BARE_TR + 8, 0);                                  /* bits 32-63 of the base, long mode */
    put64(b, sys + XL_BARE_CS0_64, descriptor(0, 0xfffff, CODE, 0xa));
    put64(b, sys + XL_BARE_CS0_16, descriptor(0, 0xffff, CODE, 0));
    put64(b, sys + XL_BARE_DS0_16, descriptor(0, 0xffff, DATA, 0));
    put64(b, tss + 4, sys + XL_BARE_RING0_STACK);       /* rsp0, or esp0 ... */
    if (bits != 64)
        put64(b, tss + 8, XL_BARE_DS0);                 /* ... and ss0 */

    put64(b, sys + XL_BARE_PML4, (sys + XL_BARE_PDPT) | 7);
    put64(b, sys + XL_BARE_PDPT, (sys + XL_BARE_PD) | 7);
    for (u64 n = 0; n < 512; n++)
        put64(b, sys + XL_BARE_PD + 8 * n, n << 21 | 0x87);
}

int xl_bare_setup(struct x86_bare *b, unsigned bits, unsigned cpl)
{
    struct x86_cpu *c = &b->cpu;
    u64 sys = b->size - XL_BARE_SYSTEM;
    if ((bits != 16 && bits != 32 && bits != 64) || (cpl && cpl != 3) || (bits == 16 && cpl))
        return -EINVAL;
    x86_reset(c);
    b->stopped = b->exited = false;
    b->out_len = 0;
    b->vector = -1;
    build_tables(b, sys, bits);
    c->cr0 = X86_CR0_ET | X86_CR0_NE | X86_CR0_MP;
    c->fx.fcw = 0x37f, c->fx.ftw = 0;
    c->cr4 = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
    if (bits == 16) {
        for (unsigned s = 0; s < X86_NR_SEGS; s++)
            c->seg[s] = (struct x86_seg){ 0, DATA, 0xffff, 0 };
    } else {
        c->cr0 |= X86_CR0_PE | X86_CR0_WP;
        if (bits == 64) {
            c->cr0 |= X86_CR0_PG;
            c->cr3 = sys + XL_BARE_PML4;
            c->cr4 |= X86_CR4_PAE;
            c->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
        }
        for (unsigned s = 0; s < X86_NR_SEGS; s++)
            set_seg(b, &c->seg[s], cpl ? XL_BARE_DS3 : XL_BARE_DS0);
        set_seg(b, &c->seg[X86_CS], cpl ? XL_BARE_CS3 : XL_BARE_CS0);
        set_seg(b, &c->tr, XL_BARE_TR);
        c->gdtr = (struct x86_dtr){ sys + XL_BARE_GDT, 0x4f };
        c->idtr = (struct x86_dtr){ sys + XL_BARE_IDT, bits == 64 ? 0xfff : 0x7ff };
    }
    if (bits == 16)
        c->idtr = (struct x86_dtr){ 0, 0x3ff };
    c->cpl = (u8)cpl;
    c->r[X86_RDX] = 0;
    c->r[X86_RSP] = XL_BARE_STACK;
    c->r[X86_RIP] = c->next_rip = 0;
    x86_tlb_flush(c);
    x86_derive(c);
    return 0;
}

/* ---- for tests --------------------------------------------------------------------------------------------------- */

int xl_bare_write(struct x86_bare *b, u64 pa, const void *bytes, u64 n)
{
    if (pa > b->size || n > b->size - pa)
        return -EINVAL;
    memcpy(b->ram + pa, bytes, n);
    for (u64 at = pa / PAGE_SIZE; n && at <= (pa + n - 1) / PAGE_SIZE; at++)
        codemap_wrote_page(&b->codemap, at, ~0ul);
    return 0;
}

int xl_bare_read(struct x86_bare *b, u64 pa, void *bytes, u64 n)
{
    if (pa > b->size || n > b->size - pa)
        return -EINVAL;
    memcpy(bytes, b->ram + pa, n);
    return 0;
}

#define FIELD(text, field)      { text, offsetof(struct x86_cpu, field), sizeof_field(struct x86_cpu, field) }
#define WORD(field)             FIELD(#field, field)
#define SEGMENT(text, field)    FIELD(text ".sel", field.sel), FIELD(text ".attr", field.attr), FIELD(text ".limit", field.limit), \
                                FIELD(text ".base", field.base)
static const struct { const char *name; u16 offset, size; } REGS[] = {
    FIELD("rax", r[0]), FIELD("rcx", r[1]), FIELD("rdx", r[2]), FIELD("rbx", r[3]), FIELD("rsp", r[4]), FIELD("rbp", r[5]),
    FIELD("rsi", r[6]), FIELD("rdi", r[7]), FIELD("r8", r[8]), FIELD("r9", r[9]), FIELD("r10", r[10]), FIELD("r11", r[11]),
    FIELD("r12", r[12]), FIELD("r13", r[13]), FIELD("r14", r[14]), FIELD("r15", r[15]), FIELD("rip", r[X86_RIP]), WORD(rflags),
    WORD(cr0), WORD(cr2), WORD(cr3), WORD(cr4), WORD(cr8), WORD(efer), FIELD("dr0", dr[0]), FIELD("dr1", dr[1]), FIELD("dr2", dr[2]),
    FIELD("dr3", dr[3]), FIELD("dr6", dr[6]), FIELD("dr7", dr[7]), WORD(cpl), WORD(mode), WORD(strict), WORD(slow),
    SEGMENT("es", seg[0]), SEGMENT("cs", seg[1]), SEGMENT("ss", seg[2]), SEGMENT("ds", seg[3]), SEGMENT("fs", seg[4]),
    SEGMENT("gs", seg[5]), SEGMENT("ldtr", ldtr), SEGMENT("tr", tr), WORD(gdtr.base), WORD(gdtr.limit), WORD(idtr.base), WORD(idtr.limit),
    WORD(star), WORD(lstar), WORD(cstar), WORD(sfmask), WORD(kernel_gs_base), WORD(sysenter_cs), WORD(sysenter_esp), WORD(sysenter_eip),
    WORD(tsc_aux), WORD(pat), WORD(apic_base), FIELD("pdpte0", pdpte[0]), FIELD("pdpte1", pdpte[1]), FIELD("pdpte2", pdpte[2]),
    FIELD("pdpte3", pdpte[3]), WORD(pending_db), WORD(features), WORD(retired), WORD(undecoded), WORD(halted), WORD(shutdown),
};

int xl_bare_reg(const char *name)
{
    for (unsigned n = 0; n < ARRAY_SIZE(REGS); n++)
        if (!strcmp(REGS[n].name, name))
            return (int)n;
    return -1;
}

u64 xl_bare_get(struct x86_bare *b, int reg)
{
    u64 value = 0;
    if (reg >= 0 && (unsigned)reg < ARRAY_SIZE(REGS))
        memcpy(&value, (u8 *)&b->cpu + REGS[reg].offset, REGS[reg].size);
    return value;
}

static void settle(struct x86_bare *b)
{
    b->cpu.rflags |= X86_FLAG1;
    x86_derive(&b->cpu);
}

void xl_bare_set(struct x86_bare *b, int reg, u64 value)
{
    if (reg < 0 || (unsigned)reg >= ARRAY_SIZE(REGS))
        return;
    u8 *at = (u8 *)&b->cpu + REGS[reg].offset;
    if (at == (u8 *)&b->cpu.halted || at == (u8 *)&b->cpu.shutdown)
        value = value != 0;
    if (at == (u8 *)&b->cpu.cpl)
        value &= 3;
    memcpy(at, &value, REGS[reg].size);
    if (b->cpu.pending_db)
        b->cpu.slow |= X86_SLOW_PENDING_DB;
    x86_tlb_flush(&b->cpu);
    settle(b);
}

void xl_bare_get_regs(struct x86_bare *b, u64 *regs)
{
    memcpy(regs, b->cpu.r, 16 * sizeof *regs);
    regs[16] = b->cpu.r[X86_RIP];
    regs[17] = b->cpu.rflags;
}

void xl_bare_set_regs(struct x86_bare *b, const u64 *regs)
{
    memcpy(b->cpu.r, regs, 16 * sizeof *regs);
    b->cpu.r[X86_RIP] = regs[16];
    b->cpu.rflags = regs[17];
    settle(b);
}

void xl_bare_get_fx(struct x86_bare *b, void *fx) { memcpy(fx, &b->cpu.fx, sizeof b->cpu.fx); }
void xl_bare_set_fx(struct x86_bare *b, const void *fx)
{
    memcpy(&b->cpu.fx, fx, sizeof b->cpu.fx);
    x86_fx_sanitize(&b->cpu.fx);
}

void xl_bare_options(struct x86_bare *b, unsigned options)
{
    b->options = options;
    b->cpu.ops = options & XL_BARE_STOP_EXCEPTIONS ? &stop_ops : &x86_bare_ops;
    bt_flush(&b->cpu);                  /* what translations do for syscall depends on it */
    b->cpu.icache = options & XL_BARE_NO_ICACHE ? NULL : b->icache;
}

int xl_bare_run(struct x86_bare *b, u64 budget)
{
    b->stopped = false;
    if (b->cpu.bt && b->nr_regions && !(b->options & XL_BARE_KEEP_CODE))
        bt_flush(&b->cpu);              /* whose memory they are has written there as it likes */
    return b->cpu.bt ? bt_run(&b->cpu, budget) : x86_run(&b->cpu, budget);
}

bool xl_bare_exception(struct x86_bare *b, u64 *out)
{
    const struct x86_exception *e = &b->stopped_by;
    if (!b->stopped)
        return false;
    bool is_syscall = e->soft && e->error == 256;
    out[0] = is_syscall ? 256 : e->vector;
    out[1] = is_syscall ? 0 : e->error;
    out[2] = e->cr2, out[3] = e->has_error, out[4] = e->soft;
    return true;
}

u64 xl_bare_output(struct x86_bare *b, void *out, u64 n)
{
    if (n > b->out_len)
        n = b->out_len;
    memcpy(out, b->out, n);
    memmove(b->out, b->out + n, b->out_len - n);
    b->out_len -= (u32)n;
    return n;
}

bool xl_bare_exited(struct x86_bare *b, u64 *code)
{
    *code = b->exit_code;
    return b->exited;
}

void xl_bare_interrupt(struct x86_bare *b, unsigned vector)
{
    b->vector = vector & 0xff;
    b->cpu.slow |= X86_SLOW_INTERRUPT;
}

int xl_bare_map(struct x86_bare *b, u64 va, void *host, u64 size, unsigned prot)
{
    if ((va | size) % PAGE_SIZE || !size || va + size - 1 < va)
        return -EINVAL;
    if (b->nr_regions == XL_BARE_REGIONS)
        return -ENOSPC;
    struct codemap *m = &b->region_codemap[b->nr_regions];
    if (!codemap_create(m, host, size))
        return -ENOMEM;
    m->next = b->cpu.codemap;
    b->cpu.codemap = m;
    b->regions[b->nr_regions++] = (struct x86_bare_region){ va, size, host, prot };
    x86_tlb_flush(&b->cpu);
    return 0;
}

void xl_bare_unmap_all(struct x86_bare *b)
{
    for (unsigned n = 0; n < b->nr_regions; n++) {
        free(b->region_codemap[n].lines);
        free(b->region_codemap[n].generation);
    }
    b->nr_regions = 0;
    b->codemap.next = NULL;
    b->cpu.codemap = b->codemap.lines ? &b->codemap : NULL;
    bt_flush(&b->cpu);
    x86_tlb_flush(&b->cpu);
}

u64 xl_bare_translate(struct x86_bare *b, u64 va, unsigned access, bool user, u64 *pa)
{
    struct x86_fault f;
    u32 set = b->cpu.tlb_set;
    b->cpu.tlb_set = user;
    const u8 *page = bare_page(&b->cpu, va, access, &f);
    b->cpu.tlb_set = set;
    if (!page)
        return f.error + (1ul << 32);
    *pa = page >= b->ram && page < b->ram + b->size ? (u64)(page - b->ram) + va % PAGE_SIZE : ~0ul;
    return 0;
}
