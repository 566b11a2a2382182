/* The benchmark guest: the CPU kernels, then what an operating system does. A line each on the serial port: name, iterations, nanoseconds,
 * checksum. Command line: scale=PERCENT of the iterations, only=NAME, smp (all processors do the integer kernel at once). */
#include <pc/pc.h>

#include "kernels.h"

extern u64 pml4[], pd[];
extern char syscall_entry[], int_entry[];
void syscall_trips(u64 iterations);
void int_trips(u64 iterations);

static u64 tsc_khz, scale = 100;
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
    { "page_fault", page_fault, 50000, 0 },
    { "syscall", syscalls, 200000, 0 },
    { "int", ints, 100000, 0 },
    { "cr3_switch", cr3_switch, 100000, 0 },
    { "pte_edit", pte_edit, 100000, 0 },
    { "port_in", port_in, 100000, 0 },
    { "port_out", port_out, 100000, 0 },
    { "cli_sti", cli_sti, 1000000, 0 },
};

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

static bool same(const char *a, const char *b) { return strlen(a) == strlen(b) && !memcmp(a, b, strlen(a)); }

static void measure(const struct kernel *k)
{
    u64 iterations = k->iterations * scale / 100;
    if (only && !same(only, k->name))
        return;
    iterations = iterations ? iterations : 1;
    k->run(1, k->size);
    u64 start = rdtsc(), sum = k->run(iterations, k->size), cycles = rdtsc() - start;
    print("%s %lu %lu %016lx\n", k->name, iterations, cycles * 1000 / (tsc_khz / 1000), sum);
}

static volatile u32 ready, finished, go;

static void other(unsigned number)
{
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (!go)
        pause();
    kernels[0].run(kernels[0].iterations * scale / 100, 0);
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        cli();
        hlt();
    }
}

static void measure_smp(void)
{
    unsigned cpus = pc_start_aps(other);
    while (ready != cpus - 1)
        pause();
    u64 start = rdtsc();
    go = 1;
    u64 sum = kernels[0].run(kernels[0].iterations * scale / 100, 0);
    while (finished != cpus - 1)
        pause();
    u64 cycles = rdtsc() - start;
    print("integer_x%u %lu %lu %016lx\n", cpus, kernels[0].iterations * scale / 100 * cpus, cycles * 1000 / (tsc_khz / 1000), sum);
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

struct start_info { u32 magic, version, flags, nr_modules; u64 modlist, cmdline; };

static bool parse(char *line)
{
    bool smp = false;
    for (char *p = line; *p;) {
        char *word = p;
        while (*p && *p != ' ')
            p++;
        if (*p)
            *p++ = 0;
        if (!memcmp(word, "only=", 5))
            only = word + 5;
        if (same(word, "smp"))
            smp = true;
        if (!memcmp(word, "scale=", 6))
            for (scale = 0, word += 6; *word >= '0' && *word <= '9'; word++)
                scale = scale * 10 + (u64)(*word - '0');
    }
    return smp;
}

void pc_main(unsigned long magic, unsigned long info)
{
    static u8 memory[KERNEL_MEMORY] __attribute__((aligned(4096)));
    const struct start_info *s = (const struct start_info *)info;
    serial_init();
    trap_init(0);
    pic_init();
    system_init();
    kernel_memory = memory;
    bool smp = s->cmdline && parse((char *)s->cmdline);
    tsc_khz = pit_measure_tsc(50) / 50;
    print("tsc_khz %lu\n", tsc_khz);
    if (smp) {
        measure_smp();
        pc_exit(0);
    }
    for (unsigned n = 0; n < nr_kernels; n++)
        measure(&kernels[n]);
    for (unsigned n = 0; n < sizeof system_kernels / sizeof *system_kernels; n++)
        measure(&system_kernels[n]);
    pc_exit(0);
}
