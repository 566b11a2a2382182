/* Hostile machines (x86/bare_fuzz.h) in the translator.
 *
 * Owns: bt_fuzz. Called by: xenlike_bt.c, for tests/property/test_bt_fuzz.py and `make fuzz`. No locks.
 *
 * Each machine runs in the interpreter, instruction by instruction, up to the first instruction after which the two engines may differ: one
 * that leaves flags or a result undefined, which are the host CPU's in translated code. It then runs as far in the translator, in one go
 * and in pieces, and must come to the same state; and on, as far as it likes, where nothing is compared but what no guest can do. Every
 * block goes through the verifier, which must refuse none. The translator's options for tests, everything slow, change from machine to
 * machine. What a machine does that changes its page tables without a flush depends on what the TLB happens to hold; so the interpreter
 * runs with an empty TLB for each instruction as well as with one that stays, and if that makes a difference nothing is compared.
 */
#include <stdio.h>
#include <string.h>

#include "bt/bt.h"
#include "x86/bare_fuzz.h"
#include "x86/insn.h"

#define UNDEFINED(X) X(and) X(or) X(xor) X(test) X(andn) X(blsr) X(blsmsk) X(blsi) X(bzhi) X(bextr) X(mul) X(imul) X(div) X(idiv) \
    X(bt) X(bts) X(btr) X(btc) X(bsf) X(bsr) X(tzcnt) X(lzcnt) X(shld) X(shrd) X(shl) X(shr) X(sar) X(rol) X(ror) X(rcl) X(rcr) X(bswap)
#define X(op) extern const struct x86_op x86_op_##op;
UNDEFINED(X)
#undef X

/* SDM vol. 1, appendix A. What is undefined only for some operands counts as a whole, except where nearly all code would. */
static bool is_undefined(const struct x86_insn *i)
{
    static const struct x86_op *const OPS[] = {
#define X(op) &x86_op_##op,
        UNDEFINED(X)
#undef X
    };
    const struct x86_op *op = x86_forms[i->form].op;
    if (op == &x86_op_and || op == &x86_op_or || op == &x86_op_xor || op == &x86_op_test)
        return false;                   /* AF: cleared by every x86-64 CPU, and by the interpreter */
    if (op == &x86_op_bswap)
        return i->size == 2;
    for (unsigned n = 0; n < ARRAY_SIZE(OPS); n++)
        if (op == OPS[n])
            return true;
    return false;
}

struct start { struct x86_cpu cpu; int vector; };

static void restart(struct x86_bare *b, const struct start *s, const u8 *ram, struct bt *bt)
{
    memcpy(b->ram, ram, BARE_FUZZ_RAM);
    memset(b->nowhere, 0xff, PAGE_SIZE);
    b->cpu = s->cpu;
    b->cpu.bt = bt;
    b->vector = s->vector;
    x86_tlb_flush(&b->cpu);
    bt_flush(&b->cpu);                  /* memory was changed behind the codemap's back */
}

/* Units up to the first instruction that cannot be compared; the TLB is emptied before each. */
static u64 comparable(struct x86_bare *b)
{
    u64 n = 0;
    for (; n < BARE_FUZZ_UNITS; n++) {
        u64 retired = b->cpu.retired;
        x86_tlb_flush(&b->cpu);
        int exit = xl_bare_run(b, 1);
        if (b->cpu.retired != retired && (!b->cpu.insn || is_undefined(b->cpu.insn)))       /* NULL: at the end of a page, not kept */
            break;
        if ((exit != X86_BUDGET && exit != X86_STOPPED) || b->stopped)
            return BARE_FUZZ_UNITS;     /* it ends before */
    }
    return n;
}

u64 bt_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size, u64 *compared)
{
    static const unsigned OPTIONS[] = {
        0, BT_ONE, BT_NO_CHAIN, BT_FLUSH, BT_TINY_TLB, BT_ONE | BT_TINY_TLB, BT_NO_CHAIN | BT_FLUSH, BT_PROFILE
    };
    struct x86_bare *b = xl_bare_create(BARE_FUZZ_RAM);
    u8 *const end_ram = ram + BARE_FUZZ_RAM;
    u64 n = 0;
    report[0] = 0;
    *compared = 0;
    for (; b && n < machines && !report[0]; n++) {
        unsigned options = OPTIONS[(seed + n) % ARRAY_SIZE(OPTIONS)] | BT_VERIFY;
        struct start start;
        if (xl_bare_engine(b, true, options)) {
            snprintf(report, size, "there is no translator");
            break;
        }
        struct bt *bt = b->cpu.bt;
        b->cpu.bt = NULL;
        bare_fuzz_make(b, seed + n);
        memcpy(ram, b->ram, BARE_FUZZ_RAM);
        start.cpu = b->cpu, start.vector = b->vector;
        u64 units = comparable(b);
        restart(b, &start, ram, NULL);
        u64 left = bare_fuzz_run(b, units, 1, true);
        struct x86_cpu end = b->cpu;
        memcpy(end_ram, b->ram, BARE_FUZZ_RAM);
        restart(b, &start, ram, NULL);
        bool same = bare_fuzz_run(b, units, BARE_FUZZ_UNITS, false) == left && !bare_fuzz_differs(&end, &b->cpu) &&
                    !memcmp(end_ram, b->ram, BARE_FUZZ_RAM);
        *compared += same ? end.retired - start.cpu.retired : 0;
        for (unsigned way = same ? 0 : 2; way < 3 && !report[0]; way++) {  /* in one go; in pieces; on to where nothing can be compared */
            restart(b, &start, ram, bt);
            u64 rest = bare_fuzz_run(b, way == 2 ? BARE_FUZZ_UNITS : units, way == 1 ? 7 : BARE_FUZZ_UNITS, false);
            const char *wrong = bare_fuzz_broken(b);
            if (!wrong && way < 2)
                wrong = rest != left ? "units used" : bare_fuzz_differs(&end, &b->cpu);
            if (!wrong && way < 2 && memcmp(end_ram, b->ram, BARE_FUZZ_RAM))
                wrong = "memory";
            if (!wrong && bt_stats(&b->cpu)->rejected)
                wrong = "the verifier refused a block";
            if (wrong)
                snprintf(report, size, "machine %llu, options %u, way %u, %llu units: %s; rip %#llx, retired %llu "
                         "(interpreter: rip %#llx, retired %llu)", (unsigned long long)(seed + n), options, way,
                         (unsigned long long)units, wrong, (unsigned long long)b->cpu.r[X86_RIP], (unsigned long long)b->cpu.retired,
                         (unsigned long long)end.r[X86_RIP], (unsigned long long)end.retired);
        }
    }
    xl_bare_destroy(b);
    return n;
}
