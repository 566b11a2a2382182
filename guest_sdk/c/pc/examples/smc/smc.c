/* Self-modifying code, the ways that guests do it: an immediate patched between calls, code written over its own next instruction, a function
 * copied over another one, the same page by another address, and code that crosses into a page that changes. */
#include <pc/pc.h>

static u8 code[3][4096] __attribute__((aligned(4096)));

static unsigned call(const void *p) { return ((unsigned (*)(void))p)(); }

/* mov eax, n; ret */
static void write_return(u8 *at, u32 n)
{
    at[0] = 0xb8;
    memcpy(at + 1, &n, 4);
    at[5] = 0xc3;
}

static void patched_immediate(void)
{
    unsigned sum = 0;
    write_return(code[0], 0);
    for (u32 n = 0; n < 1000; n++) {
        memcpy(code[0] + 1, &n, 4);
        sum += call(code[0]);
    }
    check(sum == 999 * 1000 / 2);
    print("smc: immediate\n");
}

/* The instruction behind a store is the one that the store writes. */
static void own_next_instruction(void)
{
    unsigned before = 0, after = 0;
    for (unsigned n = 0; n < 200; n++) {
        unsigned x;
        __asm__ volatile("mov $1, %0\n\t"
                         "movb %b2, 1f+1(%%rip)\n\t"
                         "jmp 1f\n"                             /* as the SDM wants it (vol. 3, 8.1.3) */
                         "1: .byte 0xb9, 0, 0, 0, 0\n\t"        /* mov ecx, imm32 */
                         "mov %%ecx, %0" : "=&r"(x) : "0"(0), "q"((u8)n) : "ecx", "memory");
        before += n;
        after += x;
    }
    check(before == after);
    print("smc: own next instruction\n");
}

static void copied_function(void)
{
    for (u32 n = 0; n < 100; n++) {
        u8 other[6];
        write_return(other, n * 7);
        memcpy(code[1] + 100, other, sizeof other);
        check(call(code[1] + 100) == n * 7);
    }
    print("smc: copied function\n");
}

/* Stores by one mapping, execution by another. */
static void other_mapping(void)
{
    static u64 pt[512] __attribute__((aligned(4096)));
    u8 *window = PC_WINDOW;
    pc_map_window(pt);
    pt[0] = (u64)code[2] | 3;
    for (u32 n = 0; n < 100; n++) {
        write_return(code[2], n);
        check(call(window) == n);
        write_return(window, n + 1000);
        check(call(code[2]) == n + 1000);
    }
    pt[0] = (u64)code[1] | 3;           /* another page at the same address */
    invlpg(window);
    write_return(code[1], 77);
    check(call(window) == 77);
    print("smc: other mapping\n");
}

static void across_pages(void)
{
    u8 *at = code[0] + 4096 - 3;        /* the immediate's upper half is in the next page */
    write_return(at, 0);
    for (u32 n = 0; n < 100; n++) {
        code[1][0] = (u8)n;             /* byte 2 of the immediate */
        check(call(at) == n << 16);
    }
    print("smc: across pages\n");
}

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    patched_immediate();
    own_next_instruction();
    copied_function();
    other_mapping();
    across_pages();
    pc_exit(0);
}
