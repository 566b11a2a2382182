/* Litmus tests of the order of memory accesses (SDM vol. 3, 8.2; x86-TSO), and of the atomicity of locked instructions, on real processors.
 *
 * Each test runs many times: the processors meet, each does its few accesses to two words, x and y, and notes what it read. The outcomes are counted
 * and printed, "name r:count ..."; r has a hex digit for each processor that reads (first load: bit 0, second: bit 1). An outcome
 * that the architecture forbids ends the run. Then all processors add together, by every kind of locked instruction and at every kind of place.
 * Command line: times=N (default 2000).
 */
#include <pc/pc.h>

enum { BATCH = 256, MAX = 4 };
static unsigned cpus, times = 2000;

/* x and y in lines of their own, each time others. */
static volatile struct place { u32 x; u32 pad0[15]; u32 y; u32 pad1[15]; } place[BATCH] __attribute__((aligned(64)));
static volatile struct { u32 at; u32 pad[15]; } arrived[MAX] __attribute__((aligned(64)));
static u8 result[MAX][BATCH];

static inline u32 load(volatile const u32 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store(volatile u32 *p, u32 x) { __atomic_store_n(p, x, __ATOMIC_RELEASE); }

/* All `n` are here. Each time a greater number. */
static void meet(unsigned self, unsigned n, u32 number)
{
    store(&arrived[self].at, number);
    for (unsigned k = 0; k < n; k++)
        while ((int)(load(&arrived[k].at) - number) < 0)
            pause();
}

/* ---- what a processor does ------------------------------------------------------------------------------------------ */

typedef unsigned body(volatile struct place *p);

#define STORE(var)  "movl $1, %[" #var "]\n\t"
#define LOAD(var, reg) "movl %[" #var "], %[" #reg "]\n\t"
#define BODY(name, code, ...)                                                                                           \
static unsigned name(volatile struct place *p)                                                                          \
{                                                                                                                       \
    u32 a = 0, b = 0, one = 1;                                                                                          \
    u64 word = 0;                                                                                                       \
    __asm__ volatile(code : [a] "+&r"(a), [b] "+&r"(b), [one] "+&r"(one), [x] "+m"(p->x), [y] "+m"(p->y), [word] "+m"(word)     \
                     : [cr3] "r"(read_cr3()) : "memory", "cc", "rax", "rbx", "rcx", "rdx");                             \
    return a | b << 1;                                                                                                  \
}

/* Store one word, then load the other, with nothing or something between. */
#define SB(name, between) BODY(name##_0, STORE(x) between LOAD(y, a)) BODY(name##_1, STORE(y) between LOAD(x, a))
SB(sb, "")
SB(sb_mfence, "mfence\n\t")
SB(sb_lock, "lock addq $0, %[word]\n\t")
SB(sb_xchg_word, "mov $1, %%eax; xchg %%rax, %[word]\n\t")
SB(sb_cpuid, "xor %%eax, %%eax; cpuid\n\t")
SB(sb_cr3, "mov %[cr3], %%cr3\n\t")
SB(sb_iret, "mov %%ss, %%eax; mov %%rsp, %%rcx; push %%rax; push %%rcx; pushf; mov %%cs, %%eax; push %%rax; lea 1f(%%rip), %%rax; push %%rax; iretq; 1:\n\t")
SB(sb_port, "mov $0x3ff, %%edx; in %%dx, %%al\n\t")
SB(sb_own, "movl %[x], %%eax; movl %[y], %%ebx\n\t")    /* loads of both before: that of the own word is served by its store */
#undef STORE
#define STORE(var)  "xchg %[one], %[" #var "]\n\t"
SB(sb_xchg, "")
#undef STORE
#define STORE(var)  "xor %%eax, %%eax; lock cmpxchg %[one], %[" #var "]\n\t"
SB(sb_cmpxchg, "")
#undef STORE
#define STORE(var)  "xor %%eax, %%eax; xor %%edx, %%edx; mov $1, %%ebx; xor %%ecx, %%ecx; lock cmpxchg8b %[" #var "]\n\t"
SB(sb_cmpxchg8b, "")
#undef STORE
#define STORE(var)  "xor %%eax, %%eax; xor %%edx, %%edx; mov $1, %%ebx; xor %%ecx, %%ecx; lock cmpxchg16b %[" #var "]\n\t"
SB(sb_cmpxchg16b, "")
#undef STORE
#define STORE(var)  "movl $1, %[" #var "]\n\t"

BODY(write_both, STORE(x) STORE(y))
BODY(read_both, LOAD(y, a) LOAD(x, b))
BODY(read_twice, LOAD(x, a) LOAD(x, b))
BODY(write_x, STORE(x))
BODY(write_y, STORE(y))
BODY(read_xy, LOAD(x, a) LOAD(y, b))
BODY(lb_0, LOAD(x, a) STORE(y))
BODY(lb_1, LOAD(y, a) STORE(x))
BODY(read_own_0, STORE(x) LOAD(x, a) LOAD(y, b))
BODY(read_own_1, STORE(y) LOAD(y, a) LOAD(x, b))
BODY(write_wide, "movq $-1, %[x]\n\t")                  /* x and the word behind it */
BODY(read_wide, "movq %[x], %%rax\n\t mov %%eax, %[a]\n\t shr $32, %%rax\n\t mov %%eax, %[b]\n\t and $1, %[a]\n\t and $1, %[b]\n\t")
BODY(write_rep, "lea %[x], %%rdi\n\t mov $1, %%eax\n\t mov $1, %%ecx\n\t rep stosl\n\t" STORE(y) "xor %[b], %[b]\n\t")

/* ---- the tests ------------------------------------------------------------------------------------------------------ */

static const struct test {
    const char *name;
    unsigned cpus, first;       /* whose results make the outcome: from `first` on */
    body *run[MAX];
    u16 forbidden;              /* bit r: outcome r, of two processors with two bits each; the first is the high digit */
} tests[] = {
#define OUTCOME(first, second) (1u << ((first) << 2 | (second)))
    { "SB", 2, 0, { sb_0, sb_1 }, 0 },
    { "SB+own", 2, 0, { sb_own_0, sb_own_1 }, 0 },
    { "SB+mfence", 2, 0, { sb_mfence_0, sb_mfence_1 }, OUTCOME(0, 0) },
    { "SB+lock", 2, 0, { sb_lock_0, sb_lock_1 }, OUTCOME(0, 0) },
    { "SB+xchg", 2, 0, { sb_xchg_0, sb_xchg_1 }, OUTCOME(0, 0) },
    { "SB+xchg-other", 2, 0, { sb_xchg_word_0, sb_xchg_word_1 }, OUTCOME(0, 0) },
    { "SB+cmpxchg", 2, 0, { sb_cmpxchg_0, sb_cmpxchg_1 }, OUTCOME(0, 0) },
    { "SB+cmpxchg8b", 2, 0, { sb_cmpxchg8b_0, sb_cmpxchg8b_1 }, OUTCOME(0, 0) },
    { "SB+cmpxchg16b", 2, 0, { sb_cmpxchg16b_0, sb_cmpxchg16b_1 }, OUTCOME(0, 0) },
    { "SB+cpuid", 2, 0, { sb_cpuid_0, sb_cpuid_1 }, OUTCOME(0, 0) },
    { "SB+cr3", 2, 0, { sb_cr3_0, sb_cr3_1 }, OUTCOME(0, 0) },
    { "SB+iret", 2, 0, { sb_iret_0, sb_iret_1 }, OUTCOME(0, 0) },
    { "SB+in", 2, 0, { sb_port_0, sb_port_1 }, OUTCOME(0, 0) },
    { "own-store", 2, 0, { read_own_0, read_own_1 },    /* each sees its own */
      OUTCOME(0, 0) | OUTCOME(0, 1) | OUTCOME(0, 2) | OUTCOME(0, 3) | OUTCOME(1, 0) | OUTCOME(2, 0) | OUTCOME(3, 0) | OUTCOME(1, 2) |
      OUTCOME(2, 1) | OUTCOME(2, 2) | OUTCOME(2, 3) | OUTCOME(3, 2) },
    { "MP", 2, 0, { write_both, read_both }, OUTCOME(0, 1) },
    { "MP+rep-stos", 2, 0, { write_rep, read_both }, OUTCOME(0, 1) },
    { "LB", 2, 0, { lb_0, lb_1 }, OUTCOME(1, 1) },
    { "CoRR", 2, 0, { write_x, read_twice }, OUTCOME(0, 1) },
    { "wide", 2, 0, { write_wide, read_wide }, OUTCOME(0, 1) | OUTCOME(0, 2) },
    { "IRIW", 4, 2, { write_x, write_y, read_xy, read_both }, OUTCOME(1, 1) },
};

static u32 outcomes[16];
static volatile u32 meetings;           /* of the test under way: number of its first one */

static void take_part(unsigned self, const struct test *t)
{
    u32 number = meetings;
    for (unsigned done = 0, batch; done < times; done += batch) {
        batch = times - done < BATCH ? times - done : BATCH;
        if (self == 0)
            for (unsigned n = 0; n < batch; n++)
                *(volatile u64 *)&place[n].x = place[n].y = 0;
        meet(self, cpus, number++);
        for (unsigned n = 0; n < batch && self < t->cpus; n++) {
            meet(self, t->cpus, number + n);
            result[self][n] = (u8)t->run[self](&place[n]);
        }
        number += batch;
        meet(self, cpus, number++);
        if (self == 0)
            for (unsigned n = 0; n < batch; n++)
                outcomes[(result[t->first][n] & 3) << 2 | (result[t->first + 1][n] & 3)]++;
        meet(self, cpus, number++);
    }
}

static void run_test(unsigned self, const struct test *t)
{
    if (self == 0)
        memset(outcomes, 0, sizeof outcomes);
    take_part(self, t);
    if (self)
        return;
    print("litmus: %s", t->name);
    for (unsigned n = 0; n < 16; n++)
        if (outcomes[n])
            print(" %x%x:%u", n >> 2, n & 3, outcomes[n]);
    print("\n");
    for (unsigned n = 0; n < 16; n++)
        if (outcomes[n] && t->forbidden >> n & 1) {
            print("litmus: %s: forbidden outcome %x%x\n", t->name, n >> 2, n & 3);
            pc_exit(1);
        }
}

/* ---- locked instructions --------------------------------------------------------------------------------------------- */

static u8 memory[3][4096] __attribute__((aligned(4096)));
static u64 page_table[512] __attribute__((aligned(4096)));
static u8 *const window = PC_WINDOW;    /* two pages that do not follow each other: memory[2], memory[0] */

static void lock_inc(u8 *p) { __asm__ volatile("lock incl %0" : "+m"(*(u32 *)p) : : "memory", "cc"); }
static void lock_inc16(u8 *p) { __asm__ volatile("lock incw %0" : "+m"(*(u16 *)p) : : "memory", "cc"); }
static void lock_add64(u8 *p) { __asm__ volatile("lock addq $1, %0" : "+m"(*(u64 *)p) : : "memory", "cc"); }
static void lock_neg(u8 *p) { __asm__ volatile("lock negl %0; lock decl %0; lock negl %0" : "+m"(*(u32 *)(p + 16)) : : "memory", "cc"); lock_inc(p); }
static void lock_xadd(u8 *p) { u32 one = 1; __asm__ volatile("lock xaddl %1, %0" : "+m"(*(u32 *)p), "+r"(one) : : "memory", "cc"); }
static void lock_cmpxchg(u8 *p)
{
    u32 old = *(volatile u32 *)p;
    bool done;
    do
        __asm__ volatile("lock cmpxchgl %3, %0; sete %2" : "+m"(*(u32 *)p), "+a"(old), "=q"(done) : "r"(old + 1) : "memory", "cc");
    while (!done);
}
static void lock_cmpxchg8b(u8 *p)
{
    u32 lo = *(volatile u32 *)p, hi = *(volatile u32 *)(p + 4);
    bool done;
    do
        __asm__ volatile("lock cmpxchg8b %0; sete %3" : "+m"(*(u64 *)p), "+a"(lo), "+d"(hi), "=q"(done) : "b"(lo + 1), "c"(hi + 1) : "memory", "cc");
    while (!done);
}
static void lock_cmpxchg16b(u8 *p)
{
    u64 lo = *(volatile u64 *)p, hi = *(volatile u64 *)(p + 8);
    bool done;
    do
        __asm__ volatile("lock cmpxchg16b %0; sete %3" : "+m"(*(u8 (*)[16])p), "+a"(lo), "+d"(hi), "=q"(done) : "b"(lo + 1), "c"(hi + 1) : "memory", "cc");
    while (!done);
}
/* A lock behind the counter. */
static void xchg_lock(u8 *p)
{
    u32 taken;
    do
        __asm__ volatile("mov $1, %0; xchg %0, %1" : "=&r"(taken), "+m"(*(u32 *)(p + 8)) : : "memory");
    while (taken && (pause(), true));
    ++*(volatile u32 *)p;
    store((u32 *)(p + 8), 0);
}
static void bts_lock(u8 *p)
{
    bool taken;
    do
        __asm__ volatile("lock btsl $5, %1; setc %0" : "=q"(taken), "+m"(*(u32 *)(p + 8)) : : "memory", "cc");
    while (taken && (pause(), true));
    ++*(volatile u32 *)p;
    __asm__ volatile("lock btrl $5, %0" : "+m"(*(u32 *)(p + 8)) : : "memory", "cc");
}

enum { LINE = 64, ACROSS_LINES = 2 * 64 - 1, ACROSS_PAGES = 4096 - 1 };
static const struct adder { const char *name; void (*add)(u8 *p); u16 at; u8 size; } adders[] = {
    { "lock inc", lock_inc, LINE, 4 }, { "lock inc, 16 bits", lock_inc16, LINE, 2 }, { "lock add, 64 bits", lock_add64, LINE, 8 },
    { "lock neg", lock_neg, LINE, 4 }, { "lock xadd", lock_xadd, LINE, 4 }, { "lock cmpxchg", lock_cmpxchg, LINE, 4 },
    { "lock cmpxchg8b", lock_cmpxchg8b, LINE, 4 }, { "lock cmpxchg16b", lock_cmpxchg16b, LINE, 8 }, { "xchg", xchg_lock, LINE, 4 },
    { "lock bts", bts_lock, LINE, 4 }, { "lock inc, not aligned", lock_inc, LINE + 3, 4 },
    { "lock inc across lines", lock_inc, ACROSS_LINES, 4 }, { "lock xadd across lines", lock_xadd, ACROSS_LINES, 4 },
    { "lock cmpxchg across lines", lock_cmpxchg, ACROSS_LINES, 4 }, { "lock cmpxchg8b across lines", lock_cmpxchg8b, ACROSS_LINES, 4 },
    { "lock inc across pages", lock_inc, ACROSS_PAGES, 4 }, { "lock inc, 16 bits, across pages", lock_inc16, ACROSS_PAGES, 2 },
    { "lock add, 64 bits, across pages", lock_add64, ACROSS_PAGES, 8 }, { "lock xadd across pages", lock_xadd, ACROSS_PAGES, 4 },
    { "lock cmpxchg across pages", lock_cmpxchg, ACROSS_PAGES, 4 }, { "lock cmpxchg8b across pages", lock_cmpxchg8b, ACROSS_PAGES, 4 },
};

static void run_adder(unsigned self, const struct adder *a)
{
    u8 *p = window + a->at;
    u32 number = meetings;
    if (self == 0)
        memset(memory, 0, sizeof memory);
    meet(self, cpus, number++);
    for (unsigned n = 0; n < times; n++)
        a->add(p);
    meet(self, cpus, number++);
    u64 sum = 0;
    memcpy(&sum, p, a->size);
    if (self == 0 && sum != (a->size == 2 ? (u16)(times * cpus) : times * cpus)) {
        print("litmus: %s: %lu additions of %u were lost\n", a->name, times * cpus - sum, times * cpus);
        pc_exit(1);
    }
    meet(self, cpus, number++);
}

/* ---- all processors --------------------------------------------------------------------------------------------------- */

static void everybody(unsigned self)
{
    u32 per_test = times + (times / BATCH + 1) * 2 + 8;
    u32 first = 1;
    meet(self, cpus, first++);
    for (unsigned n = 0; n < sizeof tests / sizeof *tests; n++) {
        if (tests[n].cpus > cpus)
            continue;
        if (self == 0)
            meetings = first + 1;
        meet(self, cpus, first);
        run_test(self, &tests[n]);
        first += per_test;
    }
    for (unsigned n = 0; n < sizeof adders / sizeof *adders; n++) {
        if (self == 0)
            meetings = first + 1;
        meet(self, cpus, first);
        run_adder(self, &adders[n]);
        first += 8;
    }
    meet(self, cpus, first);
}

static volatile u32 started;
static void other(unsigned self)
{
    while (!started)
        pause();
    if (self < cpus)
        everybody(self);
    for (;;) {
        cli();
        hlt();
    }
}

struct start_info { u32 magic, version, flags, nr_modules; u64 modlist, cmdline; };

void pc_main(unsigned long magic, unsigned long info)
{
    const struct start_info *s = (const struct start_info *)info;
    for (const char *p = s->cmdline ? (const char *)s->cmdline : ""; *p; p++)
        if (!memcmp(p, "times=", 6))
            for (times = 0, p += 6; *p >= '0' && *p <= '9'; p++)
                times = times * 10 + (unsigned)(*p - '0');
    serial_init();
    trap_init(0);
    pic_init();
    pc_map_window(page_table);
    page_table[0] = (u64)memory[2] | 3;
    page_table[1] = (u64)memory[0] | 3;
    cpus = pc_start_aps(other);
    cpus = cpus > MAX ? MAX : cpus;
    print("litmus: %u processors, %u times\n", cpus, times);
    started = 1;
    everybody(0);
    print("litmus: locked instructions\n");
    pc_exit(0);
}
