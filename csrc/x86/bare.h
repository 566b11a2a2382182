/* A machine of plain RAM with one CPU: tests, lockstep, fuzzing, measurements.
 *
 * Owns: struct x86_bare: RAM from guest-physical 0, a CPU with its own paging, tables and an IDT; a debug port and an exit port; instead of
 * RAM, or beside it, regions: host memory at chosen linear addresses. Called by: tests through cffi (xl_bare_*), C test drivers. A machine
 * belongs to one thread at a time. Physical addresses that are not RAM read as ones; stores there are lost.
 */
#ifndef XL_X86_BARE_H
#define XL_X86_BARE_H

#include "base/types.h"

struct x86_bare;

/* RAM of `size` bytes (rounded up to pages, at least 1 MiB, at most 1 GiB), the CPU as after RESET. NULL: no memory. */
struct x86_bare *xl_bare_create(u64 size);
void xl_bare_destroy(struct x86_bare *b);

/* The CPU in a flat mode: bits 16 (real mode, segments at base 0), 32 (protected, no paging) or 64 (4-level, identity over RAM with 2 MiB
 * pages that everybody may write and execute), at CPL 0 or 3 (16: 0); interrupts off, rsp at XL_BARE_STACK, rip 0. GDT, a TSS with a stack for CPL 0
 * and page tables are built in the last 64 KiB of RAM (offsets XL_BARE_*); the IDT there is empty: the tests' business. 0, or -EINVAL. */
int xl_bare_setup(struct x86_bare *b, unsigned bits, unsigned cpl);
enum {
    XL_BARE_SYSTEM = 0x10000,   /* the tables begin this far below the end of RAM */
    XL_BARE_GDT = 0, XL_BARE_IDT = 0x1000, XL_BARE_TSS = 0x2000, XL_BARE_PML4 = 0x3000, XL_BARE_PDPT = 0x4000, XL_BARE_PD = 0x5000,
    XL_BARE_RING0_STACK = 0xf000,       /* its top */
    XL_BARE_CS0 = 0x08, XL_BARE_DS0 = 0x10, XL_BARE_CS3 = 0x1b, XL_BARE_DS3 = 0x23, XL_BARE_TR = 0x28, XL_BARE_CS0_64 = 0x38, XL_BARE_CS0_16 = 0x40,
    XL_BARE_DS0_16 = 0x48,      /* selectors of the GDT; CS0 and CS3 are of the mode that was set up, CS0_64 is 64-bit always */
    XL_BARE_STACK = 0x8000,     /* rsp at first */
};

/* Guest-physical memory. 0, or -EINVAL: not all of it is RAM. */
int xl_bare_write(struct x86_bare *b, u64 pa, const void *bytes, u64 n);
int xl_bare_read(struct x86_bare *b, u64 pa, void *bytes, u64 n);

/* State by name ("rax" .. "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "dr0" .. "dr7", "cpl", "es.sel", "es.attr",
 * "es.limit", "es.base" .. "gs", "ldtr", "tr", "gdtr.base", "gdtr.limit", "idtr.*", "star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_*", "retired",
 * "undecoded", "features", "halted", "shutdown", "pending_db", "slow" ...) -> index, or -1. Setting derives what follows from it and flushes the TLB. */
int xl_bare_reg(const char *name);
u64 xl_bare_get(struct x86_bare *b, int reg);
void xl_bare_set(struct x86_bare *b, int reg, u64 value);
/* rax .. r15, rip, rflags: 18 words, in one call. */
void xl_bare_get_regs(struct x86_bare *b, u64 *regs);
void xl_bare_set_regs(struct x86_bare *b, const u64 *regs);
/* The FXSAVE image, 512 bytes. */
void xl_bare_get_fx(struct x86_bare *b, void *fx);
void xl_bare_set_fx(struct x86_bare *b, const void *fx);

enum { XL_BARE_STOP_EXCEPTIONS = 1,     /* exceptions and software interrupts are not delivered: the run stops and reports them; SYSCALL too, as vector 256 */
       XL_BARE_NO_ICACHE = 2,
       XL_BARE_KEEP_CODE = 4 };         /* who writes code into regions says so (codemap_wrote): translations outlast a run. Else each run begins without */
void xl_bare_options(struct x86_bare *b, unsigned options);
/* What runs it: false, with the first machine, the interpreter; true: the translator, with BT_* options (bt/bt.h). -ENOTSUP: not on this host. */
int xl_bare_engine(struct x86_bare *b, bool translate, unsigned options);
/* x86_run, or bt_run; how it ended, as in enum x86_exit. */
enum { XL_BARE_BUDGET, XL_BARE_ATTENTION, XL_BARE_STOPPED, XL_BARE_HALTED, XL_BARE_SHUTDOWN, XL_BARE_DEBUGGER };
int xl_bare_run(struct x86_bare *b, u64 budget);
/* The exception that stopped the last run: out = { vector, error, cr2 (#DB: DR6 bits), has_error, soft }. False: none did. */
bool xl_bare_exception(struct x86_bare *b, u64 *out);
/* What was written to port 0xe9 since the last call, at most n bytes; returns how many. */
u64 xl_bare_output(struct x86_bare *b, void *out, u64 n);
/* True once something was written to port 0xf4 (which stops the run); *code: what. */
bool xl_bare_exited(struct x86_bare *b, u64 *code);
/* An external interrupt, delivered when IF allows it. */
void xl_bare_interrupt(struct x86_bare *b, unsigned vector);

/* Host memory at a linear address, whatever the paging mode: page-aligned, prot as of mmap (1 read, 2 write, 4 execute). While there is
 * any region, linear addresses are looked up there alone. At most XL_BARE_REGIONS. 0, -EINVAL, -ENOSPC. */
enum { XL_BARE_REGIONS = 64, XL_BARE_BT_ONE = 1, XL_BARE_BT_NO_CHAIN = 2, XL_BARE_BT_FLUSH = 4, XL_BARE_BT_TINY_TLB = 8, XL_BARE_BT_VERIFY = 16, XL_BARE_BT_PROFILE = 32 };
int xl_bare_map(struct x86_bare *b, u64 va, void *host, u64 size, unsigned prot);
void xl_bare_unmap_all(struct x86_bare *b);

/* Translation alone: 0 and *pa, or the page fault's error code + 1 << 32. access: 0 read, 2 write, 16 execute. */
u64 xl_bare_translate(struct x86_bare *b, u64 va, unsigned access, bool user, u64 *pa);

/* Fuzzing (bare_fuzz.c): makes and runs `machines` hostile machines from seed, seed + 1, ...; ram: scratch of 2 MiB. Returns how many
 * ran. Report (size >= 256): empty, or what went wrong with the last one, which its own seed repeats. */
u64 xl_bare_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size);

#ifndef XL_CDEF
#include "machine/codemap.h"
#include "x86/cpu.h"

struct x86_bare_region { u64 va, size; u8 *host; unsigned prot; };

struct x86_bare {
    struct x86_cpu cpu;         /* first: ops get it back by its address */
    struct tlb tlb;
    u8 *ram;
    u64 size;
    u8 *nowhere;                /* a page that is all there is beyond RAM, ones at first: one, as a TLB entry has one address for loads and stores */
    struct icache *icache;
    void *icache_memory;
    unsigned options;
    struct x86_exception stopped_by;
    bool stopped, exited;
    u64 exit_code, tsc_base;
    int vector;                 /* of the interrupt that waits; -1: none */
    struct x86_bare_region regions[XL_BARE_REGIONS];
    unsigned nr_regions;
    struct codemap codemap, region_codemap[XL_BARE_REGIONS];
    u32 out_len;
    u8 out[65536];
};
extern const struct x86_ops x86_bare_ops;
#endif

#endif
