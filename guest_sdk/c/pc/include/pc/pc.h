/* Bare metal on a PC, in one header: ports, serial output, exceptions and interrupts, PIC, PIT, local APIC, other processors. 32 and 64 bits.
 *
 * A guest defines pc_main(); it is called with interrupts off, on a 64 KiB stack (16 KiB in 32 bits), in flat segments; in 64 bits the first
 * 4 GiB are mapped one to one. What it does not use is not linked.
 */
#ifndef PC_PC_H
#define PC_PC_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* info: what the boot protocol hands over: multiboot's information (magic 0x2badb002), or hvm_start_info (magic 0). */
void pc_main(unsigned long magic, unsigned long info);

/* ---- instructions -------------------------------------------------------------------------------------------------- */

static inline void outb(u16 port, u8 x) { __asm__ volatile("outb %0, %1" : : "a"(x), "Nd"(port)); }
static inline void outw(u16 port, u16 x) { __asm__ volatile("outw %0, %1" : : "a"(x), "Nd"(port)); }
static inline void outl(u16 port, u32 x) { __asm__ volatile("outl %0, %1" : : "a"(x), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 x; __asm__ volatile("inb %1, %0" : "=a"(x) : "Nd"(port)); return x; }
static inline u32 inl(u16 port) { u32 x; __asm__ volatile("inl %1, %0" : "=a"(x) : "Nd"(port)); return x; }
static inline void cli(void) { __asm__ volatile("cli" : : : "memory"); }
static inline void sti(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void hlt(void) { __asm__ volatile("hlt" : : : "memory"); }
/* Waits for an interrupt with no gap between the look before it and the sleep; interrupts are off again after it. */
static inline void wait_for_interrupt(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }
static inline void pause(void) { __asm__ volatile("pause" : : : "memory"); }
static inline u64 rdtsc(void) { u32 lo, hi; __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi)); return (u64)hi << 32 | lo; }
static inline unsigned long read_cr2(void) { unsigned long x; __asm__ volatile("mov %%cr2, %0" : "=r"(x)); return x; }
static inline unsigned long read_cr3(void) { unsigned long x; __asm__ volatile("mov %%cr3, %0" : "=r"(x)); return x; }
static inline void write_cr3(unsigned long x) { __asm__ volatile("mov %0, %%cr3" : : "r"(x) : "memory"); }
static inline void invlpg(void *p) { __asm__ volatile("invlpg (%0)" : : "r"(p) : "memory"); }
static inline u64 rdmsr(u32 n) { u32 lo, hi; __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(n)); return (u64)hi << 32 | lo; }
static inline void wrmsr(u32 n, u64 x) { __asm__ volatile("wrmsr" : : "c"(n), "a"((u32)x), "d"((u32)(x >> 32)) : "memory"); }
static inline void cpuid(u32 leaf, u32 out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

/* ---- lib.c --------------------------------------------------------------------------------------------------------- */

enum { COM1 = 0x3f8, PORT_EXIT = 0xf4 };
void serial_init(void);                 /* 115200 8N1, FIFO, no interrupts */
void putch(char c);
/* %c %s %d %u %x with widths and a leading 0, and l and ll; to the serial port. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Ends the machine by the debug-exit port: QEMU's exit status is (code << 1) | 1, and so is ours. */
_Noreturn void pc_exit(u32 code);
/* Prints "file:line: what" and ends with 1 unless the condition holds. */
#define check(condition) do { if (!(condition)) pc_failed(__FILE__, __LINE__, #condition); } while (0)
_Noreturn void pc_failed(const char *file, int line, const char *what);
void *memset(void *p, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* ---- trap.c -------------------------------------------------------------------------------------------------------- */

#ifdef __x86_64__
struct pc_frame { u64 r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax, vector, error, ip, cs, flags, sp, ss; };
#else
struct pc_frame { u32 di, si, bp, bx, dx, cx, ax, vector, error, ip, cs, flags, sp, ss; };      /* sp, ss: only from level 3 */
#endif
typedef void pc_handler(struct pc_frame *f);
/* Fills and loads the IDT, and a TSS for this processor (number n, from 0) in 64 bits. What has no handler prints the frame and ends. */
void trap_init(unsigned n);
void trap_handler(unsigned vector, pc_handler *h);
void trap_entry(unsigned vector, void *entry);          /* straight to assembler code that ends in iret */
void trap_user(unsigned vector);        /* level 3 may call it by int */
void trap_kernel_stack(unsigned n, unsigned long top);          /* for traps from level 3 on processor n */

/* ---- chips.c ------------------------------------------------------------------------------------------------------- */

enum { IRQ_BASE = 32 };
void pic_init(void);                    /* vectors 32 to 47, all masked */
void pic_mask(unsigned irq, bool masked);
void pic_eoi(unsigned irq);
void pit_periodic(unsigned hz);         /* channel 0 */
u64  pit_measure_tsc(unsigned ms);      /* cycles of the time stamp counter in so many ms (at most 50), by channel 2 */

enum { APIC_ID = 0x20, APIC_TPR = 0x80, APIC_EOI = 0xb0, APIC_SVR = 0xf0, APIC_ICR_LOW = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320,
       APIC_LVT_LINT0 = 0x350, APIC_INITIAL = 0x380, APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3e0 };
static inline u32 apic_read(unsigned reg) { return *(volatile u32 *)(0xfee00000ul + reg); }
static inline void apic_write(unsigned reg, u32 x) { *(volatile u32 *)(0xfee00000ul + reg) = x; }
void apic_enable(void);                 /* spurious vector 255 */
void apic_ipi(u32 id, u32 low);         /* waits until it is sent */
enum { IPI_OTHERS = 3 << 18, IPI_ALL = 2 << 18, IPI_SELF = 1 << 18, IPI_INIT = 0x4500, IPI_STARTUP = 0x4600 };

/* ---- paging.c (64 bits) -------------------------------------------------------------------------------------------- */

#define PC_WINDOW ((u8 *)0x8000000000ul)        /* 512 GiB: nothing is there before pc_map_window */
/* page_table, one page of it, says from now on what the first 2 MiB of PC_WINDOW are. */
void pc_map_window(const u64 *page_table);

/* ---- smp.c (64 bits) ----------------------------------------------------------------------------------------------- */

enum { AP_PAGE = 8, PC_CPUS = 8 };
/* INIT and start-up IPIs to all others; waits until no more have come for a while, and returns how many processors run now, this one included.
 * Each gets a number from 1 up, calls trap_init and apic_enable, and then main(number). */
unsigned pc_start_aps(void (*main)(unsigned number));

#endif
