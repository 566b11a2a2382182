/* The seventeen instructions that read or write system state without a trap (Robin and Irvine, 2000), each at level 0 and at level 3: what bare
 * metal shows, by value. A line "ok NAME" for each; docs/sensitive-instructions.md is about them. */
#include <pc/pc.h>

enum { KCODE = 0x08, KDATA = 0x10, UCODE = 0x1b, UDATA = 0x23, TSS = 0x28, LDT = 0x30, IF = 1 << 9, IOPL = 3 << 12, ZF = 1 << 6 };
extern u64 gdt[];
static volatile u32 vector, error;
u32 resume, kernel_esp;
static u8 user_stack[8192] __attribute__((aligned(16)));
static bool user;                       /* the function under way is at level 3 */

void user_call(void (*f)(void), u32 flags, u8 *stack_top);
void user_back(void);
__asm__(".text\n"
        "user_call:\n\t"
        "mov 4(%esp), %eax\n\tmov 8(%esp), %edx\n\tmov 12(%esp), %ecx\n\t"
        "push %ebx\n\tpush %ebp\n\tpush %esi\n\tpush %edi\n\t"
        "mov %esp, kernel_esp\n\t"
        "movl $user_exit, -4(%ecx)\n\tsub $4, %ecx\n\t"
        "push $0x23\n\tpush %ecx\n\tpush %edx\n\tpush $0x1b\n\tpush %eax\n\t"
        "mov $0x23, %eax\n\tmov %ax, %ds\n\tmov %ax, %es\n\tiret\n"
        "user_exit:\n\tint $0x80\n"
        "user_back:\n\t"
        "mov $0x10, %eax\n\tmov %ax, %ds\n\tmov %ax, %es\n\tmov kernel_esp, %esp\n\t"
        "pop %edi\n\tpop %esi\n\tpop %ebp\n\tpop %ebx\n\tcld\n\tret\n");

static void on_fault(struct pc_frame *f)
{
    vector = f->vector;
    error = f->error;
    f->ip = resume;
}

static void on_int(struct pc_frame *f) { vector = f->vector; }

/* Runs the instruction; the vector of its fault, or 0. */
#define FAULT(insn, ...) ({ vector = 0; __asm__ volatile("movl $1f, resume\n\t" insn "\n1:" __VA_ARGS__); vector; })

/* ---- tables: the same values at both levels, and no trap --------------------------------------------------------- */

static void sgdt(void)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) r = { 0 };
    check(!FAULT("sgdt %0", : "=m"(r)));
    check(r.base == (u32)gdt && r.limit == 7 * 8 - 1);
}

static void sidt(void)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) r = { 0 };
    check(!FAULT("sidt %0", : "=m"(r)));
    check(r.base && r.limit == 256 * 8 - 1);
}

static void sldt(void)
{
    u32 r = ~0u;
    check(!FAULT("sldt %0", : "=r"(r)));
    check(r == LDT);
}

static void str(void)
{
    u32 r = ~0u;
    check(!FAULT("str %0", : "=r"(r)));
    check((u16)r == TSS);
}

static u32 cr0;
static void smsw(void)
{
    u32 r = 0;
    check(!FAULT("smsw %0", : "=r"(r)));
    check((u16)r == (u16)cr0 && r & 1 && r & 8);        /* PE, and TS as the kernel has set it */
}

/* ---- flags ------------------------------------------------------------------------------------------------------- */

static u32 expected_if;
static u32 flags(void)
{
    u32 r;
    __asm__ volatile("pushf; pop %0" : "=r"(r) : : "memory");
    return r;
}

static void pushf_(void) { check((flags() & (IF | IOPL)) == expected_if); }

/* IF and IOPL silently stay at level 3, and change at level 0. */
static void popf_(void)
{
    u32 before = flags(), after;
    __asm__ volatile("push %1; popf; pushf; pop %0; push %2; popf" : "=&r"(after) : "r"((before ^ IF) | IOPL), "r"(before) : "memory", "cc");
    check(user ? (after & (IF | IOPL)) == (before & (IF | IOPL)) : (after & (IF | IOPL)) == ((before & IF) ^ IF) + IOPL);
}

/* ---- what a selector says ---------------------------------------------------------------------------------------- */

static bool query_lar(u32 sel, u32 *out)
{
    u32 r = 0xdead;
    bool ok;
    __asm__ volatile("lar %2, %0; setz %1" : "+r"(r), "=q"(ok) : "r"(sel) : "cc");
    *out = ok ? r & 0x00f0ff00 : r;     /* the limit's bits are undefined */
    return ok;
}

static void lar(void)
{
    u32 r;
    check(query_lar(KCODE, &r) == !user && (user ? r == 0xdead : r == 0x00c09b00));     /* level 3 may not look at level 0's */
    check(query_lar(UCODE, &r) && (r & ~0x100u) == 0x00c0fa00);
    check(!query_lar(0, &r) && !query_lar(0xfff8, &r));
}

static void lsl(void)
{
    u32 r = 0xdead;
    bool ok;
    __asm__ volatile("lsl %2, %0; setz %1" : "+r"(r), "=q"(ok) : "r"(KDATA) : "cc");
    check(ok == !user && r == (user ? 0xdead : 0xffffffff));
    __asm__ volatile("lsl %2, %0; setz %1" : "+r"(r), "=q"(ok) : "r"(UDATA) : "cc");
    check(ok && r == 0xffffffff);
}

#define QUERY(name, sel) ({ bool ok_; __asm__ volatile(name " %1; setz %0" : "=q"(ok_) : "r"((u16)(sel)) : "cc"); ok_; })

static void verr(void)
{
    check(QUERY("verr", KDATA) == !user && QUERY("verr", KCODE) == !user);
    check(QUERY("verr", UDATA) && QUERY("verr", UCODE) && !QUERY("verr", 0) && !QUERY("verr", TSS));
}

static void verw(void)
{
    check(QUERY("verw", KDATA) == !user && !QUERY("verw", KCODE));
    check(QUERY("verw", UDATA) && !QUERY("verw", UCODE) && !QUERY("verw", 0));
}

/* ---- segment registers show the level ---------------------------------------------------------------------------- */

static void push_segment(void)
{
    u32 cs, ss, ds;
    __asm__ volatile("push %%cs; pop %0; push %%ss; pop %1; push %%ds; pop %2" : "=r"(cs), "=r"(ss), "=r"(ds));
    check((u16)cs == (user ? UCODE : KCODE) && (u16)ss == (user ? UDATA : KDATA) && (u16)ds == (user ? UDATA : KDATA));
}

static void pop_segment(void)
{
    check(!FAULT("push $0x23; pop %%es", : : : "memory"));
    u32 fault = FAULT("mov %%esp, %%ecx; push $0x10; pop %%es; jmp 2f; 1: mov %%ecx, %%esp; 2:", : : : "ecx", "memory");
    check(user ? fault == 13 && error == KDATA : !fault);               /* level 0's data are not level 3's */
    check(!FAULT("push $0; pop %%es", : : : "memory"));
    fault = FAULT("mov %%esp, %%ecx; push $0; pop %%ss; jmp 2f; 1: mov %%ecx, %%esp; 2:", : : : "ecx", "memory");
    check(fault == 13 && error == 0);                                   /* no null stack */
    __asm__ volatile("push %0; pop %%es" : : "r"(user ? UDATA : KDATA));
}

static void mov_segment(void)
{
    u32 cs, ss;
    __asm__ volatile("mov %%cs, %0; mov %%ss, %1" : "=r"(cs), "=r"(ss));
    check(cs == (user ? UCODE : KCODE) && ss == (user ? UDATA : KDATA));
}

/* ---- far transfers ----------------------------------------------------------------------------------------------- */

static void call_far(void)
{
    u32 pushed = 0;
    if (user) {
        check(!FAULT("lcall $0x1b, $3f; jmp 2f; 3: mov 4(%%esp), %0; lret; 2:", : "=&r"(pushed) : : "memory") && (u16)pushed == UCODE);
        check(FAULT("lcall $0x08, $1f", : : : "memory") == 13 && error == KCODE);
    } else {
        check(!FAULT("lcall $0x08, $3f; jmp 2f; 3: mov 4(%%esp), %0; lret; 2:", : "=&r"(pushed) : : "memory") && (u16)pushed == KCODE);
        check(FAULT("lcall $0x1b, $1f", : : : "memory") == 13 && error == 0x18);        /* outwards only by a return */
    }
}

static void jmp_far(void)
{
    check(!(user ? FAULT("ljmp $0x1b, $1f; ud2", :) : FAULT("ljmp $0x08, $1f; ud2", :)));
    check((user ? FAULT("ljmp $0x08, $1f", :) : FAULT("ljmp $0x18, $1f", :)) == 13 && error == (user ? KCODE : 0x18));
}

static void ret_far(void)
{
    check(!FAULT("push %%cs; push $2f; lret; ud2; 2:", : : : "memory"));
    if (user)
        check(FAULT("mov %%esp, %%ecx; push $0x08; push $2f; lret; 2: ud2; 1: mov %%ecx, %%esp", : : : "ecx", "memory") == 13 && error == KCODE);
    else
        check(FAULT("mov %%esp, %%ecx; push $0x08; push $0; movw $0x10, 4(%%esp); lret; ud2; 1: mov %%ecx, %%esp", : : : "ecx", "memory") == 13 &&
              error == KDATA);          /* no code segment */
}

static void int_n(void)
{
    vector = 0;
    __asm__ volatile("int $0x81" : : : "memory");       /* its gate is of level 3 */
    check(vector == 0x81);
    u32 fault = FAULT("int $0x82", : : : "memory");
    check(user ? fault == 13 && error == 0x82 * 8 + 2 : fault == 0x82);
}

static const struct { const char *name; void (*f)(void); } TESTS[] = {
    { "sgdt", sgdt }, { "sidt", sidt }, { "sldt", sldt }, { "smsw", smsw }, { "str", str }, { "pushf", pushf_ }, { "popf", popf_ }, { "lar", lar },
    { "lsl", lsl }, { "verr", verr }, { "verw", verw }, { "push segment", push_segment }, { "pop segment", pop_segment }, { "far call", call_far },
    { "far jump", jmp_far }, { "far return", ret_far }, { "int n", int_n }, { "mov from segment", mov_segment },
};

void pc_main(unsigned long magic, unsigned long info)
{
    serial_init();
    trap_init(0);
    static u8 stack[8192] __attribute__((aligned(16)));
    trap_kernel_stack(0, (u32)stack + sizeof stack);
    trap_handler(13, on_fault);
    trap_handler(6, on_fault);
    trap_handler(0x81, on_int);
    trap_user(0x81);
    trap_handler(0x82, on_int);
    trap_entry(0x80, user_back);
    trap_user(0x80);
    static u64 ldt[2];
    gdt[LDT / 8] = (sizeof ldt - 1) | ((u64)(u32)ldt & 0xffffff) << 16 | (u64)0x82 << 40 | (u64)((u32)ldt >> 24) << 56;
    __asm__ volatile("lldt %w0" : : "r"(LDT));
    __asm__ volatile("mov %%cr0, %0; or $8, %0; mov %0, %%cr0" : "=&r"(cr0));
    outb(0x21, 0xff);                                   /* no interrupts, though IF is set for a while */
    outb(0xa1, 0xff);
    /* QEMU's console needs serial ports at level 3: IOPL is 0, so what is printed is printed by level 0. */
    for (unsigned n = 0; n < sizeof TESTS / sizeof *TESTS; n++) {
        user = false;
        expected_if = 0;
        TESTS[n].f();
        user = true;
        for (u32 f = 0; f < 2; f++) {
            expected_if = f * IF;
            user_call(TESTS[n].f, 2 | f * IF, user_stack + sizeof user_stack);
        }
        user = false;
        print("ok %s\n", TESTS[n].name);
    }
    pc_exit(0);
}
