/* Hostile machines: any bytes as code, in any mode, with any register and page-table contents.
 *
 * Owns: xl_bare_fuzz. Called by: tests/property/test_x86_fuzz.py, bt/fuzz.c, `make fuzz`. Each machine is made from one seed and run three times
 * from the same state: in one go with the decode cache; in one go without it; instruction by instruction. Whatever the guest does,
 * the three end in the same state, after the same number of units of budget; the host survives (the sanitizer build looks at how).
 * No locks.
 */
#include "x86/bare_fuzz.h"

#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "machine/frame.h"
#include "x86/insn.h"

enum { RAM = BARE_FUZZ_RAM, SYS = RAM - XL_BARE_SYSTEM, PT = SYS + 0x6000, CODE = 0x1000, CODE_END = 0x3000, UNITS = BARE_FUZZ_UNITS };

static u32 below(struct rng *r, u32 n) { return (u32)((rng_u64(r) >> 32) * n >> 32); }
static bool chance(struct rng *r, u32 percent) { return below(r, 100) < percent; }

static void put(struct x86_bare *b, u64 pa, u64 value, unsigned size) { memcpy(b->ram + pa, &value, size); }

/* ---- what a machine is made of ----------------------------------------------------------------------------------- */

/* Numbers that matter: addresses of RAM, edges, MSR numbers, selectors. */
static u64 any_value(struct rng *r)
{
    static const u64 EDGES[] = { 0, 1, ~0ul, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffff, 0x800000000000,
                                 0xffff800000000000,
                                 0xffff7fffffffffff, 0x7ffffffffffff000, 0xfff, 0x1000, 0xffff, 0x10000, 0xfffff000, 1ul << 63 };
    static const u32 MSRS[] = { 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103,
                                0x10, 0x1b, 0x174, 0x175, 0x176, 0x277, 0x1d9 };
    switch (below(r, 8)) {
    case 0: return EDGES[below(r, ARRAY_SIZE(EDGES))] + below(r, 32) - 16;
    case 1: return MSRS[below(r, ARRAY_SIZE(MSRS))];
    case 2: return rng_u64(r);
    case 3: return below(r, 0x80);
    case 4: return (u64)(1 + below(r, 8)) * PAGE_SIZE - below(r, 20);
    default: return below(r, RAM);
    }
}

/* One instruction of a random form with random prefixes and operands into out[15]; returns its length. */
static unsigned any_insn(struct rng *r, u8 *out, unsigned mode, u64 features)
{
    static const u8 PREFIXES[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66 };
    static const u8 MANDATORY[] = { 0, 0, 0x66, 0xf3, 0xf2, 0x66 };
    const struct x86_form *f = &x86_forms[below(r, x86_nr_forms)];
    struct x86_insn insn;
    unsigned n = 0;
    u8 buf[32];
    for (unsigned k = 0; k < sizeof buf; k += 8) {
        u64 x = rng_u64(r);
        memcpy(buf + k, &x, 8);
    }
    if (chance(r, 85)) {
        while (chance(r, 15) && n < 5)
            buf[n++] = PREFIXES[below(r, sizeof PREFIXES)];
        if (MANDATORY[f->prefix])
            buf[n++] = MANDATORY[f->prefix];
        bool vex = f->map == X86_MAP_VEX0F38 || f->map == X86_MAP_VEX0F3A;
        if (vex) {
            buf[n++] = 0xc4;
            buf[n++] = (u8)(0xe0 | (f->map == X86_MAP_VEX0F38 ? 2 : 3));
            buf[n] &= 0x7b;             /* vvvv and W stay random */
            n++;
        } else if (mode == 64 && chance(r, 40)) {
            buf[n++] = (u8)(0x40 | below(r, 16));
        }
        if (!vex && f->map != X86_MAP_1)
            buf[n++] = 0x0f;
        if (f->map == X86_MAP_0F38 || f->map == X86_MAP_0F3A)
            buf[n++] = f->map == X86_MAP_0F38 ? 0x38 : 0x3a;
        buf[n++] = (u8)(f->first + below(r, f->last - f->first + 1u));
        if (f->ext >= 0 && f->ext < 8)
            buf[n] = (u8)((buf[n] & 0xc7) | f->ext << 3);
        else if (f->ext >= 64)
            buf[n] = (u8)(0xc0 + f->ext - 64);
        if (f->mod == MOD_REG)
            buf[n] |= 0xc0;
        else if (chance(r, 60) && buf[n] < 0xc0)
            buf[n] = (u8)((buf[n] & 0x3f) | 0x40);      /* disp8: stays near its register */
    }
    int len = x86_decode(&insn, buf, 15, mode, features);
    unsigned keep = len > 0 ? (unsigned)len : 1 + below(r, 6);
    memcpy(out, buf, 15);
    return keep;
}

static void any_code(struct rng *r, struct x86_bare *b)
{
    unsigned mode = b->cpu.mode, raw = chance(r, 10) ? 100 : 3;
    for (u64 pa = CODE; pa < CODE_END - 16; ) {
        if (chance(r, raw))
            b->ram[pa++] = (u8)rng_u64(r);
        else
            pa += any_insn(r, b->ram + pa, mode, b->cpu.features);
    }
}

/* A leaf or a table entry with something wrong now and then. */
static u64 any_entry(struct rng *r, u64 entry, bool wide)
{
    if (chance(r, 3))
        entry &= ~1ul;
    if (chance(r, 6))
        entry &= ~2ul;
    if (chance(r, 8))
        entry &= ~4ul;
    if (chance(r, 30))
        entry ^= (u64)below(r, 16) << 5;        /* A, D, PS or PAT, G */
    if (wide && chance(r, 5))
        entry |= 1ul << 63;
    if (wide && chance(r, 2))
        entry |= 1ul << (40 + below(r, 23));
    if (chance(r, 1))
        entry = wide ? rng_u64(r) : (u32)rng_u64(r);
    if (chance(r, 2))
        entry = (entry & ~0xff000ul) | (u64)below(r, 256) << 12;
    return entry;
}

/* Identity tables with 4 KiB pages over RAM, in one of the three formats, and faults in them. */
static void any_paging(struct rng *r, struct x86_bare *b)
{
    struct x86_cpu *c = &b->cpu;
    bool wide = c->long_mode || chance(r, 50), mild = chance(r, 50);
    unsigned size = wide ? 8 : 4;
    for (u64 n = 0; n < PAGE_SIZE / size; n++) {
        u64 pa = n * PAGE_SIZE, entry = pa | 7;
        put(b, PT + n * size, mild && pa >= SYS ? entry : any_entry(r, entry, wide), size);
    }
    if (!c->long_mode) {
        if (!(c->cr0 & X86_CR0_PE) || chance(r, 40))
            return;
        c->cr0 |= X86_CR0_PG;
        c->cr4 |= wide ? X86_CR4_PAE : chance(r, 50) ? X86_CR4_PSE : 0;
        c->efer |= wide && chance(r, 50) ? X86_EFER_NXE : 0;
        c->cr3 = SYS + (wide ? XL_BARE_PDPT : XL_BARE_PD);
        for (unsigned n = 0; wide && n < 4; n++)
            put(b, SYS + XL_BARE_PDPT + 8 * n, SYS + XL_BARE_PD + (chance(r, 90) ? 1 : 0), 8);
        for (u64 n = 0; !wide && n < 1024; n++)
            put(b, SYS + XL_BARE_PD + 4 * n, n << 22 | 0x87, 4);
    }
    put(b, SYS + XL_BARE_PD, PT | 7, size);
    if (!mild)
        for (unsigned n = 0; n < 8; n++) {
            u64 at = SYS + XL_BARE_PML4 + below(r, 0x3000 / size) * size, entry = 0;
            memcpy(&entry, b->ram + at, size);
            put(b, at, any_entry(r, entry, wide), size);
        }
    if (!c->long_mode && wide)
        x86_load_pdptes(c, c->cr3);
}

static void any_descriptors(struct rng *r, struct x86_bare *b)
{
    struct x86_cpu *c = &b->cpu;
    for (u64 n = 10; n < 32; n++) {
        u64 desc = rng_u64(r);
        if (chance(r, 70))              /* present, near RAM */
            desc = (desc & 0x00ffffff00ffffff) | 1ul << 47;
        put(b, SYS + XL_BARE_GDT + 8 * n, desc, 8);
    }
    if (c->gdtr.base)
        c->gdtr.limit = chance(r, 90) ? 0xff : below(r, 0x100);
    for (unsigned n = 0; n < 256; n++) {
        u64 to = CODE + below(r, CODE_END - CODE);
        u64 gate = (to & 0xffff) | (u64)XL_BARE_CS0 << 16 | (0x8eul + below(r, 2)) << 40 | (u64)(below(r, 2) * 3) << 45;
        if (chance(r, 15))
            gate = rng_u64(r);
        if (c->mode == 16)
            put(b, 4 * n, to, 4);
        else if (c->mode == 32)
            put(b, SYS + XL_BARE_IDT + 8 * n, gate, 8);
        else
            put(b, SYS + XL_BARE_IDT + 16 * n, gate, 8);
    }
    for (unsigned n = 0; n < 26; n++)
        if (chance(r, 15))
            put(b, SYS + XL_BARE_TSS + 4 * n, any_value(r), 4);
    c->ldtr = (struct x86_seg){ 0x50, 0x82, 0x7f, SYS + XL_BARE_GDT };
}

static void any_state(struct rng *r, struct x86_bare *b)
{
    struct x86_cpu *c = &b->cpu;
    c->features &= ~(u64)X86_FEAT_RDRAND;       /* the one thing that would differ between runs */
    for (unsigned n = 0; n < 16; n++)
        if (n != X86_RSP || chance(r, 20))
            c->r[n] = any_value(r);
    c->r[X86_RIP] = CODE + below(r, CODE_END - CODE);
    if (chance(r, 15))
        c->r[X86_RIP] = 2 * PAGE_SIZE - below(r, 16);
    if (chance(r, 3))
        c->r[X86_RIP] = c->mode == 64 ? any_value(r) : (u32)any_value(r);

    c->rflags ^= rng_u64(r) & (X86_ARITH_FLAGS | X86_DF | X86_IF | X86_IOPL);
    if (chance(r, 30))
        c->rflags ^= rng_u64(r) & (X86_TF | X86_NT | X86_RF | X86_AC | X86_VIF | X86_VIP | X86_ID);
    if (c->mode != 64 && c->cpl == 3 && chance(r, 20)) {
        c->rflags |= X86_VM;
        for (unsigned s = 0; s < X86_NR_SEGS; s++)
            c->seg[s] = (struct x86_seg){ 0, 0xf3, 0xffff, 0 };
    }
    if (chance(r, 40))
        c->cr0 ^= rng_u64(r) & (X86_CR0_WP | X86_CR0_AM | X86_CR0_TS | X86_CR0_EM | X86_CR0_NE | X86_CR0_MP);
    if (chance(r, 30))
        c->cr4 ^= rng_u64(r) & (X86_CR4_TSD | X86_CR4_DE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_VME |
                                X86_CR4_PVI);
    if (chance(r, 20)) {
        for (unsigned n = 0; n < 4; n++)
            c->dr[n] = chance(r, 50) ? CODE + below(r, CODE_END - CODE) : any_value(r);
        c->dr[7] = (rng_u64(r) & 0xffff23ff) | 0x400;
    }
    for (unsigned s = 0; s < X86_NR_SEGS; s++)
        if (s != X86_CS && chance(r, 4))
            c->seg[s] = (struct x86_seg){ (u16)any_value(r), (u16)(rng_u64(r) & 0x8fff), (u32)any_value(r),
                                          c->mode == 64 ? below(r, RAM) : (u32)any_value(r) };
    c->star = (u64)XL_BARE_CS0 << 32 | 0x13ul << 48;
    c->lstar = c->cstar = c->sysenter_eip = CODE + below(r, CODE_END - CODE);
    c->sysenter_cs = XL_BARE_CS0, c->sysenter_esp = XL_BARE_STACK;
    if (chance(r, 20))
        for (unsigned n = 0; n < sizeof c->fx / 8; n++) {
            u64 x = rng_u64(r);
            memcpy((u8 *)&c->fx + 8 * n, &x, 8);
        }
    x86_fx_sanitize(&c->fx);
    if (chance(r, 10))
        xl_bare_interrupt(b, below(r, 256));
}

void bare_fuzz_make(struct x86_bare *b, u64 seed)
{
    struct rng r = { seed };
    rng_u64(&r);
    static const u8 MODES[] = { 16, 32, 32, 64, 64, 64 };
    unsigned bits = MODES[below(&r, sizeof MODES)];
    memset(b->ram, 0, RAM);
    memset(b->nowhere, 0xff, PAGE_SIZE);
    b->cpu.features = x86_features_supported();
    xl_bare_setup(b, bits, bits == 16 ? 0 : chance(&r, 50) * 3);
    for (u64 pa = 0x4000; pa < 0x9000; pa += 8)
        put(b, pa, chance(&r, 50) ? any_value(&r) : rng_u64(&r), 8);
    any_state(&r, b);
    any_descriptors(&r, b);
    any_paging(&r, b);
    x86_tlb_flush(&b->cpu);
    x86_derive(&b->cpu);
    any_code(&r, b);
    xl_bare_options(b, chance(&r, 20) ? XL_BARE_STOP_EXCEPTIONS : 0);
}

/* ---- running and comparing --------------------------------------------------------------------------------------- */

u64 bare_fuzz_run(struct x86_bare *b, u64 units, u64 step, bool flush)
{
    u64 left = units;
    while (left) {
        u64 now = step < left ? step : left;
        if (flush)
            x86_tlb_flush(&b->cpu);
        int exit = xl_bare_run(b, now);
        left -= now - (b->cpu.limit - b->cpu.retired);
        if ((exit != X86_BUDGET && exit != X86_STOPPED) || b->stopped)
            break;
    }
    return left;
}

#define STATE(X) X(r) X(rflags) X(lin_base) X(tlb_set) X(mode) X(cpl) X(long_mode) X(real) X(strict) X(slow) X(retired) X(seg) X(ldtr) \
    X(tr) X(gdtr.base) X(gdtr.limit) X(idtr.base) X(idtr.limit) X(cr0) X(cr2) X(cr3) X(cr4) X(cr8) X(efer) X(dr) X(pending_db) X(star) \
    X(lstar) X(cstar) X(sfmask) X(kernel_gs_base) X(sysenter_cs) X(sysenter_esp) X(sysenter_eip) X(tsc_aux) X(pat) X(apic_base) X(pdpte) X(halted) X(shutdown) X(delivering) X(undecoded) X(fx)

const char *bare_fuzz_differs(const struct x86_cpu *a, const struct x86_cpu *b)
{
#define X(field) if (memcmp(&a->field, &b->field, sizeof a->field)) return #field;
    STATE(X)
#undef X
    return NULL;
}

const char *bare_fuzz_broken(const struct x86_bare *b)
{
    const struct x86_cpu *c = &b->cpu;
    if (c->r[X86_ZERO])
        return "the zero register is not zero";
    if (!(c->rflags & X86_FLAG1) || c->rflags & ~0x3f7fd7ul)
        return "reserved bits of rflags";
    if (c->mode != 64 && c->r[X86_RIP] >> 32)
        return "rip is wider than the mode";
    if (c->long_mode != (c->efer & X86_EFER_LMA) >> 10 || (c->mode == 64 && !c->long_mode))
        return "EFER.LMA and the mode";
    if (c->cpl > 3 || c->tlb_set != (c->cpl == 3) || (c->rflags & X86_VM && c->cpl != 3))
        return "CPL and what follows from it";
    for (unsigned n = 0; n < 2 * TLB_ENTRIES; n++) {
        const struct tlb_entry *e = &b->tlb.e[n / TLB_ENTRIES][n % TLB_ENTRIES];
        u64 generation = b->tlb.generation;
        if (e->read_tag % PAGE_SIZE == generation && (e->page < b->ram || e->page >= b->ram + b->size) &&
            e->page != b->nowhere)
            return "a TLB entry leads out of the machine";
    }
    return NULL;
}

u64 xl_bare_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size)
{
    static const char *const WAYS[] = { "with the decode cache", "without the decode cache", "instruction by instruction" };
    struct x86_bare *b = xl_bare_create(RAM);
    struct x86_cpu start, end = { 0 };
    u64 n;
    report[0] = 0;
    for (n = 0; b && n < machines && !report[0]; n++) {
        bare_fuzz_make(b, seed + n);
        u64 left = 0;
        u8 *const first_ram = ram, *const end_ram = ram + RAM;
        memcpy(first_ram, b->ram, RAM);
        start = b->cpu;
        int vector = b->vector;
        unsigned options = b->options;
        for (unsigned way = 0; way < 3 && !report[0]; way++) {
            if (way) {
                memcpy(b->ram, first_ram, RAM);
                memset(b->nowhere, 0xff, PAGE_SIZE);
                b->cpu = start;
                b->vector = vector;
                x86_tlb_flush(&b->cpu);
            }
            xl_bare_options(b, options | (way == 1 ? XL_BARE_NO_ICACHE : 0));
            u64 rest = bare_fuzz_run(b, UNITS, way == 2 ? 1 : UNITS, false);
            const char *wrong = bare_fuzz_broken(b);
            if (!wrong && way) {
                wrong = rest != left ? "units used" : bare_fuzz_differs(&end, &b->cpu);
                if (!wrong && memcmp(end_ram, b->ram, RAM))
                    wrong = "memory";
            }
            if (wrong)
                snprintf(report, size, "machine %llu, run %s: %s; rip %#llx, retired %llu (first run: rip %#llx, retired %llu)",
                         (unsigned long long)(seed + n), WAYS[way], wrong, (unsigned long long)b->cpu.r[X86_RIP],
                         (unsigned long long)b->cpu.retired, (unsigned long long)end.r[X86_RIP], (unsigned long long)end.retired);
            if (!way) {
                end = b->cpu;
                left = rest;
                memcpy(end_ram, b->ram, RAM);
            }
        }
    }
    xl_bare_destroy(b);
    return n;
}
