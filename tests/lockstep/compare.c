/* What is compared of a sequence's outcomes, and what the architecture leaves open.
 *
 * Owns: the tables of what is not compared. Called by: lockstep.c.
 */
#include "lockstep.h"

#include <stdio.h>
#include <string.h>

#include "x86/cpu.h"
#include "x86/decode.h"
#include "x86/insn.h"

const char *const WHO[NR_WHO] = { "CPU", "interpreter", "translator" };
const char *const REGISTERS[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
                                       "r14", "r15" };

/* An unmasked underflow or overflow: whether PE is set too depends on the unbounded result, which the interpreter does not have. The
 * products and sums of dpps raise one by one in an order of the CPU's. */
enum { MXCSR_PE = 1 << 5, MXCSR_FLAGS = 0x3f };

/* What the architecture leaves open where the sequence ended. */
struct tolerance {
    u16 flags;                  /* undefined ones */
    bool image;                 /* of x87's images and 80-bit numbers, and of the frames of far calls and returns, which part faults first */
    bool memory;                /* an image with bytes that are the maker's, single-stepped before they could be cleared */
    u32 mxcsr;                  /* flags of an unmasked exception */
    u64 cs_at;                  /* where a far call may have stored CS before it faulted, */
    unsigned cs_size;           /* and how much of it; 0: it has not */
};

/* At a far call. If the second word of its frame faults, AMD has stored the first, CS; the engine has tested room for both before it stores
 * (Intel: SDM vol. 2, CALL, has the test there). */
static struct tolerance at_far_call(const struct ls_outcome *o, unsigned at, const struct ls_result *out)
{
    struct tolerance open = { .image = true };
    struct x86_insn i;
    if (out->vector == X86_PAGE && x86_decode(&i, o->job->code + at, 15, 64, ~0ul) > 0 && out->cr2 == out->s.r[X86_RSP] - 2 * i.size) {
        open.cs_at = out->s.r[X86_RSP] - i.size;
        open.cs_size = i.size;
    }
    return open;
}

static struct tolerance tolerance_at(const struct ls_outcome *o, const struct ls_result *out)
{
    const struct ls_sequence *s = o->s;
    const unsigned *starts = o->starts;
    u64 at = out->s.rip - CODE_VA - o->job->offset;
    for (unsigned k = 0; k < s->nr; k++) {
        const struct ls_unit *u = &s->unit[k];
        const struct x86_form *f = &x86_forms[u->form];
        if (at < starts[k] || at >= starts[k + 1])
            continue;
        u64 in = at - starts[k];
        /* A fault within rep cmps, scas: flags of before (Intel: SDM vol. 2, REP) or of the last iteration (AMD). */
        if (in == u->main_at && form_is(f, "cmpsb cmpsw/cmpsd/cmpsq scasb scasw/scasd/scasq"))
            return (struct tolerance){ .flags = X86_ARITH_FLAGS };
        if (in == u->main_at && out->vector == X86_XM)
            return (struct tolerance){ .mxcsr = form_is(f, "dpps dppd") ? MXCSR_FLAGS : MXCSR_PE };
        if (in == u->main_at && form_is(f, "callf"))
            return at_far_call(o, starts[k] + u->main_at, out);
        if (in == u->main_at)
            return (struct tolerance){ .image = (f->attr & F_FPU && f->operand[0] == OP_M) || form_is(f, "retf") };
        if (in == u->main_at + u->main_len && form_is(f, "fxsave fxsave64 fnsave fnstenv"))
            return (struct tolerance){ .memory = true };
        if (u->cleanup_at && in >= u->cleanup_at)
            return (struct tolerance){ .flags = in - u->cleanup_at > 1 ? X86_ARITH_FLAGS : u->undefined };
    }
    return (struct tolerance){ 0 };
}

/* The CPU has CS where the engine has kept what was there, and no other byte differs. */
static bool differs_in_cs_alone(const struct ls_result *cpu, const struct ls_result *engine, struct tolerance open)
{
    u64 at = open.cs_at - DATA_VA, behind = at + open.cs_size, selector = LINUX_CS;
    return open.cs_size && at <= DATA_SIZE - open.cs_size && !memcmp(cpu->data + at, &selector, open.cs_size) &&
           !memcmp(cpu->data, engine->data, at) && !memcmp(cpu->data + behind, engine->data + behind, DATA_SIZE - behind);
}

static bool is_address_fault(u32 vector) { return vector == X86_PAGE || vector == X86_GP || vector == X86_SS_EXC; }

#define SAY(...) do { differ = true; if (say) printf("    " __VA_ARGS__); else return true; } while (0)

static u64 word(const void *p) { u64 x; memcpy(&x, p, 8); return x; }

/* Of a pair, what is compared wherever it comes from. x and y are its names, padded to one width. */
static bool differs(const struct ls_result *a, const struct ls_result *b, const char *x, const char *y, struct tolerance open, u64 base, bool say)
{
    const struct x86_fx *fa = (const struct x86_fx *)a->s.fx, *fb = (const struct x86_fx *)b->s.fx;
    u64 flags = (X86_ARITH_FLAGS | X86_DF) & ~(u64)open.flags;
    bool differ = false;
    if (a->hung || b->hung) {
        if (!a->hung != !b->hung)
            SAY("the %s does not end\n", a->hung ? x : y);
        return differ;
    }
    if (open.image && (a->vector == X86_PAGE || b->vector == X86_PAGE) && is_address_fault(a->vector) && is_address_fault(b->vector) &&
        a->s.rip == b->s.rip)
        ;
    else if (a->vector != b->vector || a->s.rip != b->s.rip)
        SAY("ended by      %s vector %u at +%#lx, %s vector %u at +%#lx\n", x, a->vector, a->s.rip - base, y, b->vector, b->s.rip - base);
    else if (a->vector == X86_PAGE && (a->cr2 != b->cr2 || (a->error != b->error && (a->cr2 < 0x7ffffffff000ul || x != WHO[CPU]))))    /* Linux hides others */
        SAY("page fault    %s %#lx error %#x, %s %#lx error %#x\n", x, a->cr2, a->error, y, b->cr2, b->error);
    else if (a->vector != X86_PAGE && a->error != b->error)
        SAY("error code    %s %#x, %s %#x\n", x, a->error, y, b->error);
    for (unsigned n = 0; n < 16; n++)
        if (a->s.r[n] != b->s.r[n])
            SAY("%-4s          %s %016lx %s %016lx\n", REGISTERS[n], x, a->s.r[n], y, b->s.r[n]);
    if ((a->s.rflags ^ b->s.rflags) & flags)
        SAY("flags         %s %#lx %s %#lx, of those that are defined\n", x, a->s.rflags & flags, y, b->s.rflags & flags);
    if (fa->fcw != fb->fcw || fa->fsw != fb->fsw || fa->ftw != fb->ftw || (fa->mxcsr ^ fb->mxcsr) & ~open.mxcsr)
        SAY("fcw fsw ftw mxcsr  %s %04x %04x %02x %08x %s %04x %04x %02x %08x\n", x, fa->fcw, fa->fsw, fa->ftw, fa->mxcsr, y, fb->fcw,
            fb->fsw, fb->ftw, fb->mxcsr);
    for (unsigned n = 0; n < 8; n++)
        if (memcmp(fa->st[n].b, fb->st[n].b, 10))
            SAY("st%u           %s %04lx:%016lx %s %04lx:%016lx\n", n, x, word(fa->st[n].b + 8) & 0xffff, word(fa->st[n].b), y,
                word(fb->st[n].b + 8) & 0xffff, word(fb->st[n].b));
    for (unsigned n = 0; n < 16; n++)
        if (memcmp(fa->xmm[n].b, fb->xmm[n].b, 16))
            SAY("xmm%-2u         %s %016lx:%016lx %s %016lx:%016lx\n", n, x, word(fa->xmm[n].b + 8), word(fa->xmm[n].b), y,
                word(fb->xmm[n].b + 8), word(fb->xmm[n].b));
    if (!open.memory && memcmp(a->data, b->data, DATA_SIZE) && !(x == WHO[CPU] && differs_in_cs_alone(a, b, open)))
        for (unsigned n = 0, shown = 0; n < DATA_SIZE && shown < 6; n += 8)
            if (memcmp(a->data + n, b->data + n, 8)) {
                shown++;
                SAY("memory %#lx  %s %016lx %s %016lx\n", DATA_VA + n, x, word(a->data + n), y, word(b->data + n));
            }
    for (unsigned n = 0; n < LOOP_WORDS; n++)
        if (a->loop[n] != b->loop[n])
            SAY("memory %#lx  %s %016lx %s %016lx\n", LOOP_VA + 8 * n, x, a->loop[n], y, b->loop[n]);
    return differ;
}

/* The engines count alike, and are in the same place whenever their time is over. */
static bool engines_differ(const struct ls_result *a, const struct ls_result *b, bool say)
{
    bool differ = false;
    if (a->hung || b->hung)
        return false;
    if (a->retired != b->retired)
        SAY("retired       interpreter %lu, translator %lu\n", a->retired, b->retired);
    if (a->nr_stops != b->nr_stops || a->stops != b->stops)
        SAY("stops         interpreter %u, translator %u; other registers at one of them\n", a->nr_stops, b->nr_stops);
    return differ;
}

unsigned outcome_differs(const struct ls_outcome *o, bool say)
{
    unsigned pairs = 0;
    for (unsigned a = CPU; a < NR_WHO; a++)
        for (unsigned b = a + 1; b < NR_WHO; b++) {
            const struct ls_result *x = o->of[a], *y = o->of[b];
            if (!x || !y)
                continue;
            bool differ = differs(x, y, WHO[a], WHO[b], tolerance_at(o, x), o->job->in.rip, say);
            if (a == INTERPRETER && (!differ || say))
                differ |= engines_differ(x, y, say);
            pairs |= (unsigned)differ << (a + b);
        }
    return pairs;
}

enum { CI = 1 << (CPU + INTERPRETER), CT = 1 << (CPU + TRANSLATOR), IT = 1 << (INTERPRETER + TRANSLATOR) };

bool outcome_is_agreed(unsigned pairs) { return !(pairs & IT); }

const char *outcome_verdict(unsigned pairs)
{
    switch (pairs) {
    case 0: return "nobody disagrees";
    case CI | CT: return "the engines agree, the CPU does not";
    case CI | IT: return "the interpreter disagrees with CPU and translator";
    case CT | IT: return "the translator disagrees with CPU and interpreter";
    case CI: return "the interpreter disagrees with the CPU";
    case CT: return "the translator disagrees with the CPU";
    case IT: return "the engines disagree where the CPU says nothing";
    default: return "all three disagree";
    }
}
