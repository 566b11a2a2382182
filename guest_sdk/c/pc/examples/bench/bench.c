/* The benchmark guest: the CPU kernels (kernels.h), then what an operating system does. A line each on the serial port: name, iterations,
 * nanoseconds, checksum. Command line: scale=PERCENT of the iterations; only=NAME; smp=N (N processors do the kernel, integer unless only= says
 * otherwise, at once); serve (reads lines "NAME PERCENT" from the serial port and answers each with its own; "tsc": the counter's value; "end"). */
#include <pc/pc.h>

#include "kernels.h"

extern u64 pml4[], pd[];
extern char syscall_entry[], int_entry[];
void syscall_trips(u64 iterations);
void int_trips(u64 iterations);

static u64 tsc_khz, percent = 100;
static const char *only;
static u64 page_table[512] __attribute__((aligned(4096))), other_pml4[512] __attribute__((aligned(4096)));
static u8 page[2][4096] __attribute__((aligned(4096)));
static u8 *const window = (u8 *)0x8000000000ul;

/* ---- kernels of the system --------------------------------------------------------------------------------------- */

static void on_fault(struct pc_frame *f)
{
    check(read_cr2() == (unsigned long)window);
    page_table[0] = (u64)page[0] | 3;
}

static u64 page_fault(u64 n, size_t size)
{
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        page_table[0] = 0;
        invlpg(window);
        sum += *(volatile u8 *)window;
    }
    return sum + n;
}

static u64 syscalls(u64 n, size_t size) { syscall_trips(n); return n; }
static u64 ints(u64 n, size_t size) { int_trips(n); return n; }

static u64 cr3_switch(u64 n, size_t size)
{
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        write_cr3((unsigned long)(k & 1 ? pml4 : other_pml4));
        sum += *(volatile u8 *)window;
    }
    write_cr3((unsigned long)pml4);
    return sum;
}

static u64 pte_edit(u64 n, size_t size)
{
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        page_table[0] = (u64)page[k & 1] | 3;
        invlpg(window);
        sum += *(volatile u8 *)window;
    }
    return sum;
}

static void port_prepare(size_t size) { outb(COM1 + 7, 0x5a); }

static u64 port_in(u64 n, size_t size)
{
    u64 sum = 0;
    for (u64 k = 0; k < n; k++)
        sum += inb(COM1 + 7);
    return sum;
}

static u64 port_out(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++)
        outb(COM1 + 7, (u8)k);
    return n;
}

static u64 cli_sti(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++) {
        sti();
        cli();
    }
    return n;
}

static const struct kernel system_kernels[] = {
    { "page_fault", NULL, page_fault, 200, 0 },
    { "syscall", NULL, syscalls, 2000, 0 },
    { "int", NULL, ints, 1000, 0 },
    { "cr3_switch", NULL, cr3_switch, 300, 0 },
    { "pte_edit", NULL, pte_edit, 400, 0 },
    { "port_in", port_prepare, port_in, 3000, 0 },
    { "port_out", NULL, port_out, 3000, 0 },
    { "cli_sti", NULL, cli_sti, 6000, 0 },
};

enum { nr_system_kernels = sizeof system_kernels / sizeof *system_kernels };

static void system_init(void)
{
    static u64 pdpt[512] __attribute__((aligned(4096))), directory[512] __attribute__((aligned(4096)));
    pml4[1] = (u64)pdpt | 3;
    pdpt[0] = (u64)directory | 3;
    directory[0] = (u64)page_table | 3;
    page_table[0] = (u64)page[0] | 3;
    page[0][0] = 1;
    page[1][0] = 2;
    memcpy(other_pml4, pml4, 4096);
    trap_handler(14, on_fault);
    pd[0] |= 4;                         /* code and data of this image, for level 3 */
    write_cr3(read_cr3());
    static u8 stack[4096] __attribute__((aligned(16)));
    trap_kernel_stack(0, (unsigned long)stack + sizeof stack);
    trap_entry(0x80, int_entry);
    trap_user(0x80);
    wrmsr(0xc0000081, 0x18ul << 48 | 0x08ul << 32);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000084, 0);
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

static char *find(char *p, char c, size_t n)
{
    for (; n; n--, p++)
        if (*p == c)
            return p;
    return NULL;
}

static bool same(const char *a, const char *b) { return strlen(a) == strlen(b) && !memcmp(a, b, strlen(a)); }

static u64 nanoseconds(u64 cycles) { return cycles * 1000 / (tsc_khz / 1000); }

static void measure(const struct kernel *k, u64 scale)
{
    struct measured m = kernel_measure(k, scale, rdtsc);
    print("%s %lu %lu %016lx\n", k->name, m.iterations, nanoseconds(m.ticks), m.sum);
}

/* Kernel n of both tables, or NULL. */
static const struct kernel *kernel(unsigned n)
{
    return n < nr_kernels ? &kernels[n] : n < nr_kernels + nr_system_kernels ? &system_kernels[n - nr_kernels] : NULL;
}

static const struct kernel *kernel_named(const char *name)
{
    const struct kernel *k;
    for (unsigned n = 0; (k = kernel(n)) && !same(k->name, name); n++)
        ;
    return k;
}

/* ---- several processors ------------------------------------------------------------------------------------------ */

static volatile u32 ready, finished, go;
static const struct kernel *shared;     /* a kernel that works on no memory but its stack */

static void other(unsigned number)
{
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (!go)
        pause();
    shared->run(shared->iterations * percent / 100 * PIECES, 0);
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        cli();
        hlt();
    }
}

static void measure_smp(unsigned cpus)
{
    shared = only ? kernel_named(only) : &kernels[0];
    check(shared && !shared->size);
    pc_start_aps(other);                /* on a busy host some may come after this has given them up */
    while (ready != cpus - 1)
        pause();
    u64 iterations = shared->iterations * percent / 100 * PIECES;
    shared->run(shared->iterations, 0);
    u64 start = rdtsc();
    go = 1;
    u64 sum = shared->run(iterations, 0);
    while (finished != cpus - 1)
        pause();
    print("%s_x%u %lu %lu %016lx\n", shared->name, cpus, iterations * cpus, nanoseconds(rdtsc() - start), sum);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static char input[64];
static volatile unsigned received;

static void on_serial(struct pc_frame *f)
{
    while (inb(COM1 + 5) & 1) {
        char c = (char)inb(COM1);
        if (received < sizeof input - 1)
            input[received++] = c;
    }
    pic_eoi(4);
}

/* The next line, without its end; valid until the next call. */
static char *read_line(void)
{
    static char line[sizeof input];
    for (;;) {
        char *end = find(input, '\n', received);
        if (end) {
            unsigned n = (unsigned)(end - input);
            memcpy(line, input, n);
            line[n] = 0;
            received -= n + 1;
            memmove(input, end + 1, received);
            return line;
        }
        check(received < sizeof input - 1);
        wait_for_interrupt();
    }
}

static u64 number(const char *digits)
{
    u64 x = 0;
    for (; *digits >= '0' && *digits <= '9'; digits++)
        x = x * 10 + (u64)(*digits - '0');
    return x;
}

static void serve(void)
{
    trap_handler(IRQ_BASE + 4, on_serial);
    outb(COM1 + 4, 0x0b);               /* OUT2: lets the interrupt through */
    outb(COM1 + 1, 1);
    pic_mask(4, false);
    for (print("ready\n");;) {
        char *line = read_line(), *arguments = find(line, ' ', strlen(line));
        if (arguments)
            *arguments++ = 0;
        const struct kernel *k = kernel_named(line);
        if (k && arguments)
            measure(k, number(arguments));
        else if (same(line, "tsc"))
            print("tsc %lu\n", rdtsc());
        else if (same(line, "end"))
            return;
        else
            print("no kernel: %s\n", line);
    }
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

struct start_info { u32 magic, version, flags, nr_modules; u64 modlist, cmdline; };

static bool serving;
static u64 smp;

static void parse(char *line)
{
    while (*line) {
        char *word = line;
        while (*line && *line != ' ')
            line++;
        if (*line)
            *line++ = 0;
        if (!memcmp(word, "only=", 5))
            only = word + 5;
        if (!memcmp(word, "scale=", 6))
            percent = number(word + 6);
        if (!memcmp(word, "smp=", 4))
            smp = number(word + 4);
        serving |= same(word, "serve");
    }
}

void pc_main(unsigned long magic, unsigned long info)
{
    static u8 memory[KERNEL_MEMORY] __attribute__((aligned(4096)));
    const struct start_info *s = (const struct start_info *)info;
    const struct kernel *k;
    serial_init();
    trap_init(0);
    pic_init();
    system_init();
    kernel_memory = memory;
    if (s->cmdline)
        parse((char *)s->cmdline);
    tsc_khz = pit_measure_tsc(50) / 50;
    print("tsc_khz %lu\n", tsc_khz);
    if (smp)
        measure_smp((unsigned)smp);
    else if (serving)
        serve();
    else
        for (unsigned n = 0; (k = kernel(n)); n++)
            if (!only || same(only, k->name))
                measure(k, percent);
    pc_exit(0);
}
