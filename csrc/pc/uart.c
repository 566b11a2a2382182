/* The 16550A serial port COM1 (National Semiconductor PC16550D), and the way from it to the host's console and back.
 *
 * Owns: pc.uart. Called by: ports.c, xenlike.h (the host's side). Lock: pc.lock.
 *
 * The line is as fast as both ends: a byte that is written has been sent, unless the host has not taken the last UART_OUT bytes (then the
 * transmitter is not empty, and what is written all the same is lost); received bytes wait on the host's side until the FIFO has room.
 * The interrupt reaches the PIC only with MCR.OUT2, as a PC is wired.
 */
#include <string.h>

#include "pc/pc.h"

enum { IER_RDA = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8, FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4, LCR_DLAB = 0x80,
       MCR_OUT2 = 8, MCR_LOOP = 16, LSR_DATA = 1, LSR_OVERRUN = 2, LSR_THRE = 0x20, LSR_IDLE = 0x40,
       IIR_NONE = 1, IIR_MODEM = 0, IIR_THRE = 2, IIR_RDA = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, MSR_ONLINE = 0xb0 /* CTS, DSR, DCD */ };

static unsigned depth(const struct uart *u) { return u->fcr & FCR_ENABLE ? UART_FIFO : 1; }
static bool can_send(const struct uart *u) { return u->out_len < UART_OUT || u->mcr & MCR_LOOP; }

static unsigned trigger(const struct uart *u)
{
    static const u8 levels[4] = { 1, 4, 8, 14 };
    return u->fcr & FCR_ENABLE ? levels[u->fcr >> 6] : 1;
}

/* The interrupt of highest priority (data sheet, table III). A FIFO below its level times out at once. */
static u8 identify(const struct uart *u)
{
    if (u->ier & IER_LINE && u->overrun)
        return IIR_LINE;
    if (u->ier & IER_RDA && u->fifo_len)
        return u->fifo_len >= trigger(u) ? IIR_RDA : IIR_TIMEOUT;
    if (u->ier & IER_THRE && u->thr_empty_irq)
        return IIR_THRE;
    if (u->ier & IER_MODEM && u->msr_delta)
        return IIR_MODEM;
    return IIR_NONE;
}

static void push(struct uart *u, u8 byte)
{
    if (u->fifo_len == depth(u)) {
        u->overrun = true;
        return;
    }
    u->fifo[(u->fifo_head + u->fifo_len++) % UART_FIFO] = byte;
}

static void tell_host(struct pc *pc)
{
    lane_push(pc->domain->host, (struct lane_exit){ .kind = EXIT_SERIAL, .domid = pc->domain->id });
}

/* Takes what the host has sent as far as there is room, and sets the interrupt line. */
static void update(struct pc *pc)
{
    struct uart *u = &pc->uart;
    while (u->in_len && u->fifo_len < depth(u) && !(u->mcr & MCR_LOOP)) {
        push(u, u->in[u->in_head]);
        u->in_head = (u->in_head + 1) % UART_IN;
        u->in_len--;
    }
    if (u->more_in && u->in_len < UART_IN / 2) {
        u->more_in = false;
        tell_host(pc);
    }
    pic_set_line(pc, PC_IRQ_COM1, u->mcr & MCR_OUT2 && identify(u) != IIR_NONE);
}

/* ---- the host's side --------------------------------------------------------------------------------------------- */

void uart_print(struct pc *pc, u8 byte)
{
    struct uart *u = &pc->uart;
    if (u->out_len == UART_OUT)
        return;
    u->out[u->out_len++] = byte;
    if (!u->told) {
        u->told = true;
        tell_host(pc);
    }
    if (u->out_len == UART_OUT)         /* let the lane take it before the guest spins */
        for (u32 i = 0; i < pc->domain->nr_vcpus; i++)
            atomic_or(&pc->domain->vcpu[i]->exit_work, WORK_park);
}

u32 uart_output(struct pc *pc, u8 *out, u32 n)
{
    struct uart *u = &pc->uart;
    bool was_full = u->out_len == UART_OUT;
    n = n < u->out_len ? n : u->out_len;
    memcpy(out, u->out, n);
    memmove(u->out, u->out + n, u->out_len - n);
    u->out_len -= n;
    u->told = u->out_len != 0;
    if (was_full && n) {
        u->thr_empty_irq = true;
        update(pc);
    }
    return n;
}

u32 uart_input(struct pc *pc, const u8 *data, u32 n)
{
    struct uart *u = &pc->uart;
    u32 room = UART_IN - u->in_len;
    u->more_in = n > room;
    n = n < room ? n : room;
    for (u32 k = 0; k < n; k++)
        u->in[(u->in_head + u->in_len++) % UART_IN] = data[k];
    update(pc);
    return n;
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

/* Loopback: the outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD. */
static u8 modem(const struct uart *u)
{
    if (!(u->mcr & MCR_LOOP))
        return MSR_ONLINE;
    return (u8)((u->mcr & 1) << 5 | (u->mcr & 2) << 3 | (u->mcr & 4) << 4 | (u->mcr & 8) << 4);
}

static void transmit(struct pc *pc, u8 byte)
{
    struct uart *u = &pc->uart;
    if (u->mcr & MCR_LOOP)
        push(u, byte);
    else
        uart_print(pc, byte);
    u->thr_empty_irq = can_send(u);
}

static void set_fcr(struct uart *u, u8 value)
{
    if ((value ^ u->fcr) & FCR_ENABLE || value & FCR_CLEAR_RX)
        u->fifo_len = 0;
    u->fcr = value & FCR_ENABLE ? value & ~(FCR_CLEAR_RX | FCR_CLEAR_TX) : 0;
}

void uart_write(struct pc *pc, u16 port, unsigned size, u32 value)
{
    struct uart *u = &pc->uart;
    u8 x = (u8)value, old;
    switch (port & 7) {
    case 0:
        if (u->lcr & LCR_DLAB)
            u->dll = x;
        else
            transmit(pc, x);
        break;
    case 1:
        if (u->lcr & LCR_DLAB) {
            u->dlm = x;
            break;
        }
        old = u->ier;
        u->ier = x & 15;
        if (u->ier & ~old & IER_THRE)   /* enabling it with an empty transmitter interrupts at once */
            u->thr_empty_irq = can_send(u);
        break;
    case 2: set_fcr(u, x); break;
    case 3: u->lcr = x; break;
    case 4:
        u->mcr = x & 31;
        u->msr_delta |= (modem(u) ^ u->modem) >> 4;
        u->modem = modem(u);
        break;
    case 7: u->scratch = x; return;     /* nothing depends on it */
    }
    update(pc);
}

u32 uart_read(struct pc *pc, u16 port, unsigned size)
{
    struct uart *u = &pc->uart;
    u8 value = 0;
    switch (port & 7) {
    case 0:
        if (u->lcr & LCR_DLAB)
            return u->dll;
        if (u->fifo_len) {
            value = u->fifo[u->fifo_head];
            u->fifo_head = (u->fifo_head + 1) % UART_FIFO;
            u->fifo_len--;
        }
        break;
    case 1: return u->lcr & LCR_DLAB ? u->dlm : u->ier;
    case 2:
        value = identify(u);
        if (value == IIR_THRE)
            u->thr_empty_irq = false;
        value |= u->fcr & FCR_ENABLE ? 0xc0 : 0;
        break;
    case 3: return u->lcr;
    case 4: return u->mcr;
    case 5:
        value = (u->fifo_len ? LSR_DATA : 0) | (u->overrun ? LSR_OVERRUN : 0) | (can_send(u) ? LSR_THRE | LSR_IDLE : 0);
        u->overrun = false;
        break;
    case 6:
        value = modem(u) | u->msr_delta;
        u->msr_delta = 0;
        break;
    case 7: return u->scratch;
    }
    update(pc);
    return value;
}

void uart_create(struct pc *pc)
{
    pc->uart.dll = 12;                  /* 9600 baud */
    pc->uart.modem = MSR_ONLINE;
}
