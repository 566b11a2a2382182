/* A plain PC for guests that know nothing of Xen: vCPUs with everything privileged, memory from 0, and the devices of a small PC.
 *
 * Owns: struct pc (one a domain) and struct pc_cpu (one a vCPU). Called by: the pCPU loop through pc_backend, the x86 engine through pc_ops,
 * timers, xenlike.h. Files: run.c the loop, the clock, what the engine asks; state.c starts and resets; memory.c guest-physical memory;
 * apic.c the local APICs; ports.c the table of ports; pic.c, pit.c, rtc.c, uart.c the devices. docs/pc.md describes the machine.
 *
 * Locks. pc.lock guards the devices and the start words; it is taken outside of guest mode (machine/mmu.h), below domain->lock and above the
 * run queues: whoever holds it may set timers, kick vCPUs and push to the lane, and never waits. A local APIC belongs to its vCPU; others
 * only set bits of irr, and then kick.
 *
 * Interrupt sources are lazy: a timer is set only for an edge that would change something. While the last tick still waits in an IRR no
 * timer is set for the next; the acknowledgement sets it. So a guest that programs a tick every nanosecond costs the host one timer for each
 * interrupt that it takes, and one that does not listen costs nothing.
 */
#ifndef XL_PC_PC_H
#define XL_PC_PC_H

#include "hv/debug.h"
#include "hv/host.h"
#include "hv/native.h"

enum { PC_IRQ_PIT = 0, PC_IRQ_COM1 = 4, PC_IRQ_RTC = 8 };

/* ---- 8259 pair, pic.c -------------------------------------------------------------------------------------------- */

struct pic {
    u8 irr, imr, isr, lines;            /* lines: levels of the inputs */
    u8 base;                            /* vector of input 0 */
    u8 lowest;                          /* input of lowest priority: 7 unless rotated */
    u8 icw;                             /* initialisation: number of the word awaited, 0: none */
    bool want_icw4, single, auto_eoi, rotate_auto, special_mask, read_isr, poll;
};

/* ---- 8254, pit.c ------------------------------------------------------------------------------------------------- */

struct pit_channel {
    u8 mode, access;                    /* access: 1 low byte, 2 high byte, 3 both */
    u8 low;                             /* first of two bytes written */
    bool write_high, read_high, latched, status_latched, loaded, gate;
    u8 status;
    u16 reload, latch;
    u64 start;                          /* system time when it began to count */
};
struct pit {
    struct pit_channel ch[3];
    u64 fired;                          /* modes 0, 1, 4, 5: start of the count whose end was told; 0: none */
    struct timer timer;                 /* IRQ 0 */
};

/* ---- CMOS, rtc.c ------------------------------------------------------------------------------------------------- */

struct rtc {
    u8 index;
    u8 ram[128];
    u64 seen;                           /* system time when register C was last read */
    struct timer timer;                 /* IRQ 8 */
};

/* ---- 16550, uart.c ----------------------------------------------------------------------------------------------- */

enum { UART_FIFO = 16, UART_OUT = 32768, UART_IN = 4096 };
struct uart {
    u8 ier, lcr, mcr, scratch, fcr, dll, dlm;
    bool thr_empty_irq, overrun;
    u8 fifo[UART_FIFO];                 /* received: a ring */
    u8 fifo_head, fifo_len;
    u8 msr_delta, modem;                /* modem: what loopback made of the inputs */
    u32 in_head, in_len, out_len;
    u8 in[UART_IN];                     /* from the host, not yet on the line: a ring */
    u8 out[UART_OUT];                   /* for the host */
    bool told;                          /* EXIT_SERIAL is on its way */
    bool more_in;                       /* the host has more input than there was room for */
};

/* ---- the machine ------------------------------------------------------------------------------------------------- */

struct pc {
    struct domain *domain;
    spinlock_t lock;
    u32 nr_pages;                       /* RAM: guest frames [0, nr_pages), each held by a writable reference. Fixed once the domain runs */
    u32 *p2m;                           /* guest frame -> machine frame */
    struct pic pic[2];                  /* [0] the master. All devices: [lock] */
    bool intr;                          /* the master's output; read without the lock */
    struct pit pit;
    struct rtc rtc;
    struct uart uart;
    u32 pci_address;
    u8 port61, reset_control, reset;    /* reset: the guest has asked for a reset (run.c does it without the lock) */
    bool exits;                         /* ... or to end, with domain->exit_code */
    u8 nowhere[PAGE_SIZE] __attribute__((aligned(64)));         /* ones: code fetched where there is no memory */
};

enum { APIC_LVT_TIMER, APIC_LVT_THERMAL, APIC_LVT_PERF, APIC_LVT_LINT0, APIC_LVT_LINT1, APIC_LVT_ERROR, APIC_NR_LVT };
struct lapic {
    u32 irr[8];                         /* atomic: anybody sets, its vCPU clears */
    u32 isr[8];
    u32 ldr, dfr, svr, esr, esr_new, icr[2], divide;
    u32 lvt[APIC_NR_LVT];
    u8 id, tpr;
    u32 initial;                        /* the timer's initial count */
    u64 start;                          /* system time when it began to count */
    bool expired;                       /* one-shot: its interrupt has been given */
    struct timer timer;
};

enum { PC_WAIT_SIPI = 1, PC_INIT = 2, PC_SIPI = 4 };
struct pc_cpu {
    struct x86_cpu cpu;
    struct pc *pc;
    struct lapic apic;
    u32 start;                          /* PC_WAIT_SIPI ... [pc.lock]; read without it as a hint */
    u8 sipi_vector;                     /* [pc.lock] */
};

static inline struct pc_cpu *pc_cpu_of(struct x86_cpu *c) { return container_of(c, struct pc_cpu, cpu); }
static inline struct pc_cpu *pc_cpu(const struct pc *pc, unsigned n) { return pc_cpu_of(pc->domain->vcpu[n]->cpu); }
static inline struct vcpu *pc_vcpu(const struct pc_cpu *p) { return p->cpu.owner; }
static inline bool pc_bsp(const struct pc_cpu *p) { return pc_vcpu(p)->id == 0; }

extern const struct vcpu_backend pc_backend;
extern const struct x86_ops pc_ops;

/* ---- run.c ------------------------------------------------------------------------------------------------------- */

/* Sets X86_SLOW_INTERRUPT as the APIC and the PIC have something for the vCPU or not. By itself, or while it rests. */
void pc_update(struct pc_cpu *p);
u64  pc_now(const struct pc *pc);       /* system time; a running vCPU has charged its instructions before */
/* Arms a device's timer on vCPU 0's pCPU. */
void pc_timer_set(struct pc *pc, struct timer *t, u64 when);

/* ---- state.c ----------------------------------------------------------------------------------------------------- */

/* The vCPU at a boot protocol's entry: flat 32-bit protected mode, interrupts off (Multiboot 0.6.96, 3.2; xen-abi 9.1). */
void pc_start(struct pc_cpu *p, u32 eip, u32 eax, u32 ebx);
void pc_init(struct pc_cpu *p);         /* INIT: registers as after RESET, the FPU and the time stamp as they are. Not in the engine */
/* INIT and start-up IPIs of others, when the vCPU comes by. False: it waits for a start-up IPI, VPF_down is set. */
bool pc_take_start(struct pc_cpu *p);
void pc_send_init(struct pc_cpu *p);    /* [pc.lock] */
void pc_send_sipi(struct pc_cpu *p, u8 vector);         /* [pc.lock] */
void pc_set_regs(struct pc_cpu *p, const struct cpu_user_regs *r);     /* a debugger: general ones, rip, flags */

/* ---- memory.c ---------------------------------------------------------------------------------------------------- */

/* n pages of RAM from 0. -ENOMEM; -EINVAL: there is some already, or no pages, or too many. */
int  pc_populate(struct pc *pc, u32 n);
void pc_release(struct pc *pc);         /* gives the references up; nothing runs any more */
u8  *pc_phys(struct x86_cpu *c, u64 pa, bool write);    /* an x86_phys_fn */
/* An x86_ops.page. */
u8  *pc_page(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f);
bool pc_translate(struct vcpu *v, u64 va, u64 *mfn);

/* ---- apic.c ------------------------------------------------------------------------------------------------------ */

enum { PC_APIC_ENABLE = 1 << 11, PC_APIC_BSP = 1 << 8 };
void apic_create(struct pc_cpu *p);
void apic_reset(struct pc_cpu *p);      /* RESET and INIT (SDM vol. 3, 10.4.7.1) */
/* Guest mode is left, the clock charged. offset: in the page. */
u32  apic_read(struct pc_cpu *p, unsigned offset);
void apic_write(struct pc_cpu *p, unsigned offset, u32 value);
void apic_set_base(struct pc_cpu *p, u64 value);        /* IA32_APIC_BASE, checked */
bool apic_pending(const struct pc_cpu *p, u8 *vector);  /* the interrupt that the APIC would deliver now */
u8   apic_accept(struct pc_cpu *p, u8 vector);          /* it is delivered: in service from here on */
bool apic_passes_extint(const struct pc_cpu *p);        /* the PIC's output reaches this vCPU */

/* ---- ports.c ----------------------------------------------------------------------------------------------------- */

u32  pc_port_read(struct pc *pc, u16 port, unsigned size);              /* [pc.lock] */
void pc_port_write(struct pc *pc, u16 port, unsigned size, u32 value);  /* [pc.lock] */

/* ---- devices: all [pc.lock], a byte at a time -------------------------------------------------------------------- */

void pic_reset(struct pc *pc);
u32  pic_read(struct pc *pc, u16 port, unsigned size);
void pic_write(struct pc *pc, u16 port, unsigned size, u32 value);
void pic_set_line(struct pc *pc, unsigned irq, bool level);
void pic_pulse(struct pc *pc, unsigned irq);            /* an edge */
bool pic_requested(const struct pc *pc, unsigned irq);  /* an edge that nobody has acknowledged */
u8   pic_acknowledge(struct pc *pc);    /* the vector that a CPU gets in an INTA cycle */

void pit_create(struct pc *pc);
u32  pit_read(struct pc *pc, u16 port, unsigned size);
void pit_write(struct pc *pc, u16 port, unsigned size, u32 value);
void pit_arm(struct pc *pc);            /* IRQ 0 was acknowledged, or forgotten */
bool pit_out(const struct pit_channel *ch, u64 now);
void pit_set_gate(struct pit_channel *ch, bool gate, u64 now);

void rtc_create(struct pc *pc);
void rtc_tell_memory(struct pc *pc);    /* as firmware does, once there is RAM */
u32  rtc_read(struct pc *pc, u16 port, unsigned size);
void rtc_write(struct pc *pc, u16 port, unsigned size, u32 value);

void uart_create(struct pc *pc);
u32  uart_read(struct pc *pc, u16 port, unsigned size);
void uart_write(struct pc *pc, u16 port, unsigned size, u32 value);
void uart_print(struct pc *pc, u8 byte);                /* a byte for the host's console. Lost if there is no room */
u32  uart_input(struct pc *pc, const u8 *data, u32 n);  /* from the host; how many there was room for */
u32  uart_output(struct pc *pc, u8 *out, u32 n);        /* to the host; how many there were, at most n */

#endif
