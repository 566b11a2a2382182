/* Code that changes while other processors run it. The first processor writes, in every way that there is; the others run what it writes, and
 * must see it as the architecture says (SDM vol. 3, 8.1.3), or, without a serializing instruction, as processors do. Then all of them change
 * code of their own in one page, pages are remapped under them, and (the test's doing) the host writes.
 * Command line: cpus=N (waits for so many processors); rounds=N (default 200); host: wait for what the host writes. */
#include <pc/pc.h>

enum { MAX = PC_CPUS, IPI_LOOK = 80, IPI_FLUSH = 81 };
typedef u32 function(void);

static unsigned cpus, rounds = 200;
static const char *doing = "";
static u8 code[4][4096] __attribute__((aligned(4096)));
static u64 page_table[512] __attribute__((aligned(4096)));
static u8 *const window = PC_WINDOW;    /* page_table maps it */

/* As check, with the writer's name. */
#define check_code(condition) do { if (!(condition)) { print("crossmod: %s\n", doing); pc_failed(__FILE__, __LINE__, #condition); } } while (0)

static inline u32 load(volatile const u32 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store(volatile u32 *p, u32 x) { __atomic_store_n(p, x, __ATOMIC_RELEASE); }
static inline void serialize(void) { u32 out[4]; cpuid(0, out); }
static void wait_for(volatile const u32 *p, u32 x)
{
    while (load(p) != x)
        pause();
}

/* ---- the others: what they do until the first one says that they do something else ------------------------------------ */

static volatile u32 job_number, jobs_done, here = 1;
static void (*volatile job)(unsigned self);

static void other(unsigned self)
{
    sti();
    __atomic_fetch_add(&here, 1, __ATOMIC_SEQ_CST);
    for (u32 n = 1;; n++) {
        wait_for(&job_number, n);
        job(self);
        __atomic_fetch_add(&jobs_done, 1, __ATOMIC_SEQ_CST);
    }
}

/* f on all the others. */
static void begin(void (*f)(unsigned self))
{
    job = f;
    jobs_done = 0;
    __atomic_fetch_add(&job_number, 1, __ATOMIC_SEQ_CST);
}

static void end(const char *what)
{
    wait_for(&jobs_done, cpus - 1);
    print("crossmod: %s\n", what);
}

/* ---- writers -------------------------------------------------------------------------------------------------------- */

/* A function that returns n: mov eax, n; ret. The immediate is at + 1. */
static void make(u8 *at, u32 n)
{
    at[0] = 0xb8;
    memcpy(at + 1, &n, 4);
    at[5] = 0xc3;
}

static void by_mov(u8 *at, u32 n) { *(volatile u32 *)(at + 1) = n; }
static void by_bytes(u8 *at, u32 n)
{
    for (unsigned k = 0; k < 4; k++)
        ((volatile u8 *)at)[1 + k] = (u8)(n >> 8 * k);
}
static void by_rep_movs(u8 *at, u32 n)
{
    u8 f[6];
    make(f, n);
    memcpy(at, f, sizeof f);
}
static void by_rep_stos(u8 *at, u32 n)
{
    void *to = at + 1;
    u64 count = 1;
    __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(n) : "memory");
}
static void by_xchg(u8 *at, u32 n) { __asm__ volatile("xchg %0, %1" : "+r"(n), "+m"(*(u32 *)(at + 1))); }
static void by_lock_add(u8 *at, u32 n) { __asm__ volatile("lock addl %1, %0" : "+m"(*(u32 *)(at + 1)) : "r"(n - *(volatile u32 *)(at + 1))); }
static void by_cmpxchg8b(u8 *at, u32 n)
{
    union { u64 word; u8 byte[8]; } old, new;
    memcpy(&old, at, 8);
    new = old;
    make(new.byte, n);
    __asm__ volatile("lock cmpxchg8b %0" : "+m"(*(u64 *)at), "+A"(*(u32 *)&old), "+d"(*((u32 *)&old + 1))
                     : "b"((u32)new.word), "c"((u32)(new.word >> 32)));
}
static void by_sse(u8 *at, u32 n)
{
    u8 f[16];
    memcpy(f, at, 16);
    make(f, n);
    __asm__ volatile("movups %1, %%xmm0; movups %%xmm0, %0" : "=m"(*(u8 (*)[16])at) : "m"(*(u8 (*)[16])f));
}
static void by_push(u8 *at, u32 n)
{
    u64 f;
    memcpy(&f, at, 8);
    make((u8 *)&f, n);
    __asm__ volatile("mov %%rsp, %%rcx; mov %0, %%rsp; push %1; mov %%rcx, %%rsp" : : "r"(at + 8), "r"(f) : "rcx", "memory");
}
static void by_alias(u8 *at, u32 n) { *(volatile u32 *)(window + (at - code[0]) + 1) = n; }
static void by_alias_lock(u8 *at, u32 n) { by_xchg(window + (at - code[0]), n); }

/* Where the function stands: in a line, across two, across two pages. atomic: who runs it meanwhile sees the old one or the new one. */
enum { IN_LINE = 128, ACROSS_LINES = 192 - 3, ACROSS_PAGES = 4096 - 3 };
static const struct { const char *name; void (*write)(u8 *at, u32 n); u16 at; bool atomic; } writers[] = {
    { "mov", by_mov, IN_LINE, true }, { "mov across lines", by_mov, ACROSS_LINES, false }, { "mov across pages", by_mov, ACROSS_PAGES, false },
    { "bytes", by_bytes, IN_LINE, false }, { "rep movs", by_rep_movs, IN_LINE, false }, { "rep movs across pages", by_rep_movs, ACROSS_PAGES, false },
    { "rep stos", by_rep_stos, IN_LINE, true }, { "rep stos across pages", by_rep_stos, ACROSS_PAGES, false },
    { "xchg", by_xchg, IN_LINE, true }, { "xchg across lines", by_xchg, ACROSS_LINES, false }, { "xchg across pages", by_xchg, ACROSS_PAGES, false },
    { "lock add", by_lock_add, IN_LINE, true }, { "lock add across pages", by_lock_add, ACROSS_PAGES, false },
    { "cmpxchg8b", by_cmpxchg8b, IN_LINE, true }, { "movups", by_sse, IN_LINE, false }, { "movups across pages", by_sse, ACROSS_PAGES, false },
    { "push", by_push, IN_LINE, true }, { "another mapping", by_alias, IN_LINE, true },
    { "another mapping, across pages", by_alias, ACROSS_PAGES, false }, { "another mapping, xchg", by_alias_lock, IN_LINE, true },
};
enum { NR_WRITERS = sizeof writers / sizeof *writers };

/* ---- cross-modifying code ------------------------------------------------------------------------------------------- */

static volatile u32 round_number, seen[MAX];
static u8 *volatile target;
enum how { BY_FLAG, BY_FLAG_ALONE, BY_IPI };
static volatile enum how how;

static void on_look(struct pc_frame *f)
{
    unsigned self = apic_read(APIC_ID) >> 24;
    check_code(((function *)target)() == load(&round_number));  /* the interrupt and the iret before have serialized */
    store(&seen[self], load(&round_number));
    apic_write(APIC_EOI, 0);
}

/* Calls target in a loop that translated code never leaves by itself. */
static void call_it(unsigned self)
{
    u32 last = 0;
    for (u32 n = 1; n <= rounds; n++) {
        if (how == BY_IPI) {
            while (load(&seen[self]) < n) {
                u32 x = ((function *)target)();
                check_code(x >= last && x <= rounds);           /* what stood there before does not come back */
                last = x;
            }
        } else {
            wait_for(&round_number, n);
            if (how == BY_FLAG)
                serialize();
            check_code(((function *)target)() == n);
            store(&seen[self], n);
        }
    }
}

static void cross_modify(enum how way, unsigned w)
{
    target = code[0] + writers[w].at;
    how = way;
    make(target, 0);
    store(&round_number, 0);
    for (unsigned n = 1; n < cpus; n++)
        seen[n] = 0;
    begin(call_it);
    for (u32 n = 1; n <= rounds; n++) {
        writers[w].write(target, n);
        store(&round_number, n);
        if (way == BY_IPI)
            apic_ipi(0, IPI_OTHERS | 1 << 14 | IPI_LOOK);
        for (unsigned k = 1; k < cpus; k++)
            wait_for(&seen[k], n);
    }
    wait_for(&jobs_done, cpus - 1);
}

static void cross_modifying(void)
{
    static const char *const names[] = { [BY_FLAG] = "flag and cpuid", [BY_FLAG_ALONE] = "flag", [BY_IPI] = "interrupt" };
    for (enum how way = BY_FLAG; way <= BY_IPI; way++) {
        for (unsigned w = 0; w < NR_WRITERS; w++)
            if (way != BY_IPI || writers[w].atomic) {
                doing = writers[w].name;
                cross_modify(way, w);
            }
        print("crossmod: %s\n", names[way]);
    }
}

/* ---- all change code of their own, in one page ----------------------------------------------------------------------- */

static void own_code(unsigned self)
{
    u8 *at = code[3] + 64 * self;
    volatile u32 *count = (volatile u32 *)(at + 32), *common = (volatile u32 *)(code[3] + 64 * MAX);
    make(at, 0);
    for (u32 n = 1; n <= rounds * 8; n++) {
        by_mov(at, n);
        check(((function *)at)() == n);         /* its own: no more is needed than the call */
        ++*count;                               /* data in the line of the code */
        __atomic_fetch_add(common, 1, __ATOMIC_SEQ_CST);
        if (n % 8 == 0)
            check(((function *)at)() == n);     /* the line was written beside it */
    }
    check(*count == rounds * 8);
}

/* ---- pages are remapped ---------------------------------------------------------------------------------------------- */

static volatile u32 started, flipped, flushed[MAX], remap_over;
enum { DATA = 2048 };

static void on_flush(struct pc_frame *f)
{
    invlpg(window);
    store(&flushed[apic_read(APIC_ID) >> 24], load(&started));
    apic_write(APIC_EOI, 0);
}

static void run_window(unsigned self)
{
    volatile u32 *word = (volatile u32 *)(window + DATA) + self;
    for (u32 n = 0; !load(&remap_over); n++) {
        u32 before = load(&flipped), x = ((function *)window)();
        check(x < 2);
        *word = n;
        if (load(&started) == before)           /* nothing changed meanwhile */
            check(x == (before & 1));
    }
}

static void remap(void)
{
    make(code[1], 0);
    make(code[2], 1);
    started = flipped = remap_over = 0;
    page_table[0] = (u64)code[1] | 3;
    invlpg(window);
    begin(run_window);
    for (u32 n = 1; n <= rounds; n++) {
        u8 *old = code[1 + (n & 1 ? 0 : 1)];
        store(&started, n);
        page_table[0] = (u64)code[1 + (n & 1)] | 3;
        invlpg(window);
        apic_ipi(0, IPI_OTHERS | 1 << 14 | IPI_FLUSH);
        for (unsigned k = 1; k < cpus; k++)
            wait_for(&flushed[k], n);
        u32 words[MAX];
        memcpy(words, old + DATA, sizeof words);        /* from here on nobody can write there */
        store(&flipped, n);
        check(((function *)window)() == (n & 1));
        for (unsigned k = 0; k < 200; k++)
            pause();
        check(!memcmp(words, old + DATA, sizeof words));
    }
    store(&remap_over, 1);
    end("remapped pages");
}

/* ---- the host writes ------------------------------------------------------------------------------------------------- */

/* The test writes the function and then round_number, and reads `seen` (by physical address, which is the linear one). */
static void host_writes(void)
{
    target = code[0] + IN_LINE;
    how = BY_FLAG;
    make(target, 0);
    store(&round_number, 0);
    for (unsigned n = 0; n < cpus; n++)
        seen[n] = 0;
    begin(call_it);
    print("host: rounds %u target %lx round %lx seen %lx cpus %u\n", rounds, (unsigned long)target, (unsigned long)&round_number,
          (unsigned long)seen, cpus);
    call_it(0);
    end("the host's writes");
}

/* ---- the command line ------------------------------------------------------------------------------------------------ */

struct start_info { u32 magic, version, flags, nr_modules; u64 modlist, cmdline; };

static bool word_is(const char *p, const char *word) { return !memcmp(p, word, strlen(word)); }

void pc_main(unsigned long magic, unsigned long info)
{
    const struct start_info *s = (const struct start_info *)info;
    bool host = false;
    u32 expected = 2;
    for (const char *p = s->cmdline ? (const char *)s->cmdline : ""; *p; p++) {
        host |= word_is(p, "host");
        if (word_is(p, "cpus="))
            expected = (u32)(p[5] - '0');
        if (word_is(p, "rounds="))
            for (rounds = 0, p += 7; *p >= '0' && *p <= '9'; p++)
                rounds = rounds * 10 + (unsigned)(*p - '0');
    }
    serial_init();
    trap_init(0);
    pic_init();
    pc_map_window(page_table);
    for (unsigned n = 0; n < 2; n++)
        page_table[n] = (u64)code[n] | 3;
    trap_handler(IPI_LOOK, on_look);
    trap_handler(IPI_FLUSH, on_flush);
    pc_start_aps(other);
    wait_for(&here, expected);          /* on a busy host they may be late */
    cpus = expected;
    print("crossmod: %u processors\n", cpus);
    if (host) {
        host_writes();
        pc_exit(0);
    }
    cross_modifying();
    begin(own_code);
    own_code(0);
    end("own code in one page");
    check(*(volatile u32 *)(code[3] + 64 * MAX) == cpus * rounds * 8);
    remap();
    pc_exit(0);
}
