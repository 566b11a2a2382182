/* The IDT, handlers, and what happens to an exception that nobody wants. */
#include <pc/pc.h>

extern char pc_stubs[];
enum { GATE = 0x8e, GATE_USER = 0xee, CODE = 0x08, NR_CPUS = 8 };
static pc_handler *handlers[256];

#ifdef __x86_64__
enum { TSS = 0x30 };
static struct { u16 low, sel; u8 ist, type; u16 middle; u32 high, zero; } __attribute__((packed, aligned(16))) idt[256];
static struct { u32 zero0; u64 rsp[3], zero1, ist[7]; u64 zero2; u16 zero3, io_map; } __attribute__((packed, aligned(16))) tss[NR_CPUS];
extern u64 gdt[];
#else
enum { TSS = 0x28 };
static struct { u16 low, sel; u8 zero, type; u16 high; } __attribute__((packed)) idt[256] __attribute__((aligned(16)));
static struct { u32 link, esp0, ss0, rest[22]; u16 trap, io_map; } __attribute__((packed)) tss[1] __attribute__((aligned(16)));
extern u64 gdt[];
#endif

static void load_tss(unsigned n)
{
    unsigned long base = (unsigned long)&tss[n];
    unsigned at = (TSS + n * 16) / 8;
    tss[n].io_map = sizeof tss[n];
#ifndef __x86_64__
    tss[n].ss0 = 0x10;
#endif
    gdt[at] = (sizeof tss[n] - 1) | ((u64)base & 0xffffff) << 16 | (u64)0x89 << 40 | (u64)(base >> 24 & 0xff) << 56;
#ifdef __x86_64__
    gdt[at + 1] = base >> 32;
#endif
    __asm__ volatile("ltr %w0" : : "r"(TSS + n * 16));
}

void trap_init(unsigned n)
{
    struct { u16 limit; unsigned long base; } __attribute__((packed)) pointer = { sizeof idt - 1, (unsigned long)idt };
    for (unsigned v = 0; v < 256; v++) {
        unsigned long to = (unsigned long)pc_stubs + v * 16;
        if (idt[v].sel)                 /* another processor has been here */
            break;
        idt[v].low = (u16)to;
        idt[v].type = GATE;
#ifdef __x86_64__
        idt[v].middle = (u16)(to >> 16);
        idt[v].high = (u32)(to >> 32);
#else
        idt[v].high = (u16)(to >> 16);
#endif
        idt[v].sel = CODE;
    }
    __asm__ volatile("lidt %0" : : "m"(pointer));
    load_tss(n);
}

void trap_handler(unsigned vector, pc_handler *h) { handlers[vector] = h; }
void trap_entry(unsigned vector, void *entry)
{
    unsigned long to = (unsigned long)entry;
    idt[vector].low = (u16)to;
#ifdef __x86_64__
    idt[vector].middle = (u16)(to >> 16);
    idt[vector].high = (u32)(to >> 32);
#else
    idt[vector].high = (u16)(to >> 16);
#endif
}

void trap_user(unsigned vector) { idt[vector].type = GATE_USER; }

void trap_kernel_stack(unsigned n, unsigned long top)
{
#ifdef __x86_64__
    tss[n].rsp[0] = top;
#else
    tss[n].esp0 = top;
#endif
}

void pc_trap(struct pc_frame *f)
{
    if (handlers[f->vector & 255]) {
        handlers[f->vector & 255](f);
        return;
    }
    print("vector %lu error %lx at %lx:%lx flags %lx cr2 %lx\n", (unsigned long)f->vector, (unsigned long)f->error, (unsigned long)f->cs,
          (unsigned long)f->ip, (unsigned long)f->flags, read_cr2());
    pc_exit(2);
}
