/* A translator's life, and what it cannot do without.
 *
 * Owns: bt_create, bt_destroy; which hosts can translate (needs). Called by: hv/native.c, bare.c, the host's set-up. No locks: bt_kick
 * alone is called by other threads than the CPU's.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "bt/internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

static bool has_bmi2(void)
{
    u32 a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1 << 8;
}
static bool has_lahf(void)
{
    u32 a, b, c, d;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & 1;
}
static bool has_fsgsbase(void) { return getauxval(AT_HWCAP2) & 2; }     /* HWCAP2_FSGSBASE: the CPU has it, and the kernel lets it be used */

/* What translated code and its cache cannot do without. word: what XENLIKE_HOST_LACKS calls it. */
static const struct { const char *word, *why; bool (*have)(void); } needs[] = {
    { "bmi2", "the CPU lacks BMI2", has_bmi2 },
    { "fsgsbase", "FSGSBASE is not enabled", has_fsgsbase },
    { "lahf", "the CPU lacks LAHF in 64-bit mode", has_lahf },
    { "wx", "executable memory is refused", bt_cache_possible },
};

/* `word` is among those, separated by commas, of the environment's XENLIKE_HOST_LACKS: for tests of hosts that are poorer than this one. */
static bool is_masked(const char *word)
{
    const char *list = getenv("XENLIKE_HOST_LACKS");
    u64 n = strlen(word);
    for (const char *p = list; p && (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (p[n] == ',' || !p[n]))
            return true;
    return false;
}

const char *bt_unavailable(void)
{
    for (unsigned n = 0; n < ARRAY_SIZE(needs); n++)
        if (is_masked(needs[n].word) || !needs[n].have())
            return needs[n].why;
    return NULL;
}

static u64 random_page(void)
{
    u64 x, mix = 0;
    const u8 *at = (const u8 *)getauxval(AT_RANDOM);
    if (at)                             /* 16 bytes, not aligned */
        memcpy(&mix, at + 8, sizeof mix);
    x = (mix ^ __builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15ul) * 0xbf58476d1ce4e5b9ul;
    return (1ul << 63) | ((x ^ x >> 31) & ((1ul << 62) - 1) & ~(1ul << 47) & ~(u64)(PAGE_SIZE - 1));
}

static void *map_zeroed(u64 bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

bool bt_create(struct x86_cpu *c, unsigned options)
{
    if (bt_unavailable() || !c->icache)
        return false;
    u64 own = ALIGN_UP(sizeof(struct bt), PAGE_SIZE);
    struct bt *t = map_zeroed(own);
    if (!t)
        return false;
    c->bt = t;
    t->cpu = c;
    t->options = options;
    t->mapped = own;
    t->block = map_zeroed(NR_BLOCKS * sizeof *t->block);
    t->exits = map_zeroed(NR_EXITS * sizeof *t->exits);
    t->maps = map_zeroed(NR_MAPS * sizeof *t->maps);
    if (!t->block || !t->exits || !t->maps || !bt_cache_create(t)) {
        bt_destroy(c);
        return false;
    }
    t->poison = random_page();
    t->no_frame = t->poison;
    t->host_leave = bt_host_address(t, t->leave);
    t->x87_out = 1;
    t->mask_page = ~(u64)(PAGE_SIZE - 1);
    for (unsigned n = 0; n < ARRAY_SIZE(t->mask_size); n++)
        t->mask_size[n] = ~(u64)(PAGE_SIZE - 1) | ((1u << n) - 1);
    t->mask_aligned = ~(u64)(PAGE_SIZE - 1) | 15;
    t->mask_l1 = (u64)(L1 - 1) << PAGE_SHIFT;
    t->mask_jump = JUMP_MASK;
    t->mask_sign = 1ul << 63;
    t->mask_sign32 = 1ul << 31;
    bt_system_masks(t);
    t->dispatch = (u64)(uintptr_t)bt_dispatch;
    t->light = (u64)(uintptr_t)bt_light_call;
    bt_addresses_begin(t);
    bt_rules(t);
    bt_forget(t);
    t->stats.flushes = 0;
    return true;
}

void bt_destroy(struct x86_cpu *c)
{
    struct bt *t = c->bt;
    if (!t)
        return;
    c->bt = NULL;
    bt_cache_destroy(t);
    if (t->block)
        munmap(t->block, NR_BLOCKS * sizeof *t->block);
    if (t->exits)
        munmap(t->exits, NR_EXITS * sizeof *t->exits);
    if (t->maps)
        munmap(t->maps, NR_MAPS * sizeof *t->maps);
    munmap(t, t->mapped);
}

void bt_flush(struct x86_cpu *c)
{
    if (c->bt)
        bt_forget(c->bt);
}

void bt_kick(struct x86_cpu *c)
{
    struct bt *t = load_acquire(c->bt);
    s64 left = t ? read_once(t->left) : -1;
    if (left >= 0)
        (void)cmpxchg(&t->left, &left, left - KICK);
}

const struct bt_stats *bt_stats(const struct x86_cpu *c) { return c->bt ? &c->bt->stats : NULL; }

#else

const char *bt_unavailable(void) { return "the host is not x86-64"; }
bool bt_create(struct x86_cpu *c, unsigned options) { return false; }
void bt_destroy(struct x86_cpu *c) { }
void bt_flush(struct x86_cpu *c) { }
void bt_kick(struct x86_cpu *c) { }
const struct bt_stats *bt_stats(const struct x86_cpu *c) { return NULL; }

#endif
