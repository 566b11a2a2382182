/* Lockstep: random sequences on the CPU and on the interpreter, and what differs.
 *
 *   lockstep [--sequences N] [--seed S] [--form MNEMONIC] [--jobs N] [--max-length N] [--differences N] [--verbose] [--histogram]
 *            [--step] [--no-icache] [--plant MNEMONIC]
 *
 * --plant MNEMONIC: the interpreter's rax is made wrong wherever a sequence holds that instruction: shows that a defect would be found.
 * --step: x86_run is called for one instruction at a time. --no-icache: without the cache of decoded instructions.
 *
 * Owns: the comparison and its tables of what is not compared. Batches of sequences go to host.c's process through shared memory; while it
 * runs one batch this process runs the same on the interpreter. A sequence that differs is cut down: units are dropped as long as
 * it still differs.
 * Exit status: 0 all equal, 1 differences, 2 the programs themselves failed.
 */
#define _GNU_SOURCE
#include "lockstep.h"
#include "x86/bare.h"           /* before unistd.h, which has an F_LOCK of its own */
#include "x86/insn.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct {
    u64 sequences, seed;
    const char *only, *host, *plant;
    unsigned jobs, max_length, differences;
    bool verbose, histogram, step, no_icache;
    int bt;                     /* BT_* options of the translator; -1: the interpreter */
} opt = { .sequences = 100000, .seed = 1, .jobs = 1, .max_length = MAX_UNITS, .differences = 5, .bt = -1 };

/* ---- the CPU's side ---------------------------------------------------------------------------------------------- */

static struct { pid_t pid; int to, from, fd; struct ls_shared *shared; u64 deaths; } host;

static void die(const char *what)
{
    fprintf(stderr, "lockstep: %s: %s\n", what, strerror(errno));
    exit(2);
}

static bool host_wait(void)
{
    char byte;
    return read(host.from, &byte, 1) == 1;
}

static void host_start(void)
{
    int to[2], from[2];
    if (pipe(to) || pipe(from))
        die("pipe");
    host.pid = fork();
    if (host.pid < 0)
        die("fork");
    if (!host.pid) {
        char a[16], b[16], c[16];
        int fds[3] = { dup(host.fd), dup(to[0]), dup(from[1]) };
        close(to[1]);
        close(from[0]);
        snprintf(a, sizeof a, "%d", fds[0]);
        snprintf(b, sizeof b, "%d", fds[1]);
        snprintf(c, sizeof c, "%d", fds[2]);
        execl(opt.host, opt.host, a, b, c, (char *)NULL);
        _exit(2);
    }
    close(to[0]);
    close(from[1]);
    host.to = to[1];
    host.from = from[0];
    if (!host_wait())
        die("lockstep-host does not start");
}

static void host_stop(void)
{
    int status;
    close(host.to);
    close(host.from);
    kill(host.pid, SIGKILL);
    waitpid(host.pid, &status, 0);
}

static void host_begin(unsigned from, unsigned count)
{
    host.shared->next = from;
    host.shared->count = count;
    if (write(host.to, "", 1) != 1)
        die("write");
}

/* Waits for the batch; a job that killed the process is marked hung and the rest is run by a new one. */
static void host_finish(unsigned count)
{
    while (!host_wait()) {
        unsigned at = host.shared->next;
        host_stop();
        host.deaths++;
        if (at >= count)
            die("lockstep-host died");
        host.shared->job[at].out.hung = 2;
        host_start();
        if (at + 1 == count)
            return;
        host_begin(at + 1, count);
    }
}

/* ---- the interpreter's side -------------------------------------------------------------------------------------- */

static struct { struct x86_bare *b; u8 *code, *data; const u8 *constants; int cr2_reg; } interp;

static void interp_init(struct ls_shared *shared)
{
    struct x86_bare *b = xl_bare_create(1 << 20);
    if (!b || xl_bare_setup(b, 64, 3))
        die("xl_bare_create");
    interp.b = b;
    interp.code = aligned_alloc(PAGE_SIZE, CODE_SIZE);
    interp.data = aligned_alloc(PAGE_SIZE, DATA_SIZE);
    memset(interp.code, 0xcc, CODE_SIZE);
    xl_bare_map(b, CODE_VA, interp.code, CODE_SIZE, 1 | 4);
    xl_bare_map(b, DATA_VA, interp.data, DATA_SIZE, 1 | 2);
    xl_bare_map(b, CONST_VA, shared->constants, CONST_SIZE, 1);
    xl_bare_options(b, XL_BARE_STOP_EXCEPTIONS | (opt.no_icache ? XL_BARE_NO_ICACHE : 0));
    if (opt.bt >= 0 && xl_bare_engine(b, true, (unsigned)opt.bt))
        die("xl_bare_engine");
    xl_bare_set(b, xl_bare_reg("cs.sel"), 0x33);        /* Linux's user selectors */
    xl_bare_set(b, xl_bare_reg("ss.sel"), 0x2b);
    xl_bare_set(b, xl_bare_reg("ds.sel"), 0);
    xl_bare_set(b, xl_bare_reg("es.sel"), 0);
    xl_bare_set(b, xl_bare_reg("fs.sel"), 0);
    xl_bare_set(b, xl_bare_reg("gs.sel"), 0);
    xl_bare_set(b, xl_bare_reg("fs.base"), FS_BASE);
    xl_bare_set(b, xl_bare_reg("gs.base"), GS_BASE);
    xl_bare_set(b, xl_bare_reg("tr.limit"), 0);         /* no I/O permission map */
}

enum { BUDGET = 100000 };

static void interp_run(const struct ls_sequence *s, const struct ls_job *job, const u8 *data, struct ls_result *out)
{
    u64 regs[18], e[5] = { 0 };
    memcpy(interp.code + job->offset, job->code, job->len);
    memcpy(interp.data, data, DATA_SIZE);
    memcpy(regs, job->in.r, sizeof job->in.r);
    regs[16] = job->in.rip;
    regs[17] = job->in.rflags;
    xl_bare_set_regs(interp.b, regs);
    xl_bare_set_fx(interp.b, job->in.fx);
    int exit = X86_BUDGET;
    for (u64 n = 0; n < BUDGET && exit == X86_BUDGET; n += opt.step ? 1 : BUDGET)
        exit = xl_bare_run(interp.b, opt.step ? 1 : BUDGET);
    xl_bare_get_regs(interp.b, regs);
    memcpy(out->s.r, regs, sizeof out->s.r);
    out->s.rip = regs[16];
    out->s.rflags = regs[17];
    xl_bare_get_fx(interp.b, out->s.fx);
    out->hung = !xl_bare_exception(interp.b, e) || exit != X86_STOPPED;
    out->vector = (u32)e[0];
    out->error = (u32)e[1];
    out->cr2 = e[2];
    memcpy(out->data, interp.data, DATA_SIZE);
    for (unsigned k = 0; opt.plant && k < s->nr; k++)
        out->s.r[0] ^= !strcmp(x86_forms[s->unit[k].form].mnemonic, opt.plant);
    memset(interp.code + job->offset, 0xcc, job->len);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static const char *const NAMES[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
                                       "r14", "r15" };

/* An unmasked underflow or overflow: whether PE is set too depends on the unbounded result, which the interpreter does not have. The
 * products and sums of dpps raise one by one in an order of the CPU's. */
enum { MXCSR_PE = 1 << 5, MXCSR_FLAGS = 0x3f };

/* What the architecture leaves open where the sequence ended. */
struct tolerance {
    u16 flags;                  /* undefined ones */
    bool image;                 /* of x87's images and 80-bit numbers, which part faults first */
    u32 mxcsr;                  /* flags of an unmasked exception */
};

static struct tolerance tolerance_at(const struct ls_sequence *s, const unsigned *starts, const struct ls_job *job, u64 rip)
{
    u64 at = rip - CODE_VA - job->offset;
    for (unsigned k = 0; k < s->nr; k++) {
        const struct ls_unit *u = &s->unit[k];
        const struct x86_form *f = &x86_forms[u->form];
        if (at < starts[k] || at >= starts[k + 1])
            continue;
        u64 in = at - starts[k];
        /* A fault within rep cmps, scas: flags of before (Intel: SDM vol. 2, REP) or of the last iteration (AMD). */
        if (in == u->main_at && form_is(f, "cmpsb cmpsw/cmpsd/cmpsq scasb scasw/scasd/scasq"))
            return (struct tolerance){ .flags = X86_ARITH_FLAGS };
        if (in == u->main_at && job->out.vector == X86_XM)
            return (struct tolerance){ .mxcsr = form_is(f, "dpps dppd") ? MXCSR_FLAGS : MXCSR_PE };
        if (in == u->main_at)
            return (struct tolerance){ .image = (f->attr & F_FPU && f->operand[0] == OP_M) };
        if (u->cleanup_at && in >= u->cleanup_at)
            return (struct tolerance){ .flags = in - u->cleanup_at > 1 ? X86_ARITH_FLAGS : u->undefined };
    }
    return (struct tolerance){ 0 };
}

static bool is_address_fault(u32 vector) { return vector == X86_PAGE || vector == X86_GP || vector == X86_SS_EXC; }

#define SAY(...) do { differ = true; if (say) printf("    " __VA_ARGS__); else return true; } while (0)

static bool differs(const struct ls_result *a, const struct ls_result *b, struct tolerance open, const struct ls_job *job, bool say)
{
    const struct x86_fx *fa = (const struct x86_fx *)a->s.fx, *fb = (const struct x86_fx *)b->s.fx;
    u64 flags = (X86_ARITH_FLAGS | X86_DF) & ~(u64)open.flags;
    bool differ = false;
    if (a->hung || b->hung) {
        if (!a->hung != !b->hung)
            SAY("the %s does not end\n", a->hung ? "CPU" : "interpreter");
        return differ;
    }
    if (open.image && (a->vector == X86_PAGE || b->vector == X86_PAGE) && is_address_fault(a->vector) && is_address_fault(b->vector))
        ;
    else if (a->vector != b->vector || a->s.rip != b->s.rip)
        SAY("ended by      CPU vector %u at +%#lx, interpreter vector %u at +%#lx\n", a->vector, a->s.rip - job->in.rip, b->vector,
            b->s.rip - job->in.rip);
    else if (a->vector == X86_PAGE && (a->cr2 != b->cr2 || (a->error != b->error && a->cr2 < 0x7ffffffff000ul)))    /* Linux hides others */
        SAY("page fault    CPU %#lx error %#x, interpreter %#lx error %#x\n", a->cr2, a->error, b->cr2, b->error);
    else if (a->vector != X86_PAGE && a->error != b->error)
        SAY("error code    CPU %#x, interpreter %#x\n", a->error, b->error);
    for (unsigned n = 0; n < 16; n++)
        if (a->s.r[n] != b->s.r[n])
            SAY("%-4s          CPU %016lx interpreter %016lx\n", NAMES[n], a->s.r[n], b->s.r[n]);
    if ((a->s.rflags ^ b->s.rflags) & flags)
        SAY("flags         CPU %#lx interpreter %#lx, of those that are defined\n", a->s.rflags & flags, b->s.rflags & flags);
    if (fa->fcw != fb->fcw || fa->fsw != fb->fsw || fa->ftw != fb->ftw || (fa->mxcsr ^ fb->mxcsr) & ~open.mxcsr)
        SAY("fcw fsw ftw mxcsr  CPU %04x %04x %02x %08x interpreter %04x %04x %02x %08x\n", fa->fcw, fa->fsw, fa->ftw, fa->mxcsr, fb->fcw,
            fb->fsw, fb->ftw, fb->mxcsr);
    for (unsigned n = 0; n < 8; n++)
        if (memcmp(fa->st[n].b, fb->st[n].b, 10))
            SAY("st%u           CPU %04x:%016lx interpreter %04x:%016lx\n", n, *(const u16 *)(fa->st[n].b + 8), *(const u64 *)fa->st[n].b,
                *(const u16 *)(fb->st[n].b + 8), *(const u64 *)fb->st[n].b);
    for (unsigned n = 0; n < 16; n++)
        if (memcmp(fa->xmm[n].b, fb->xmm[n].b, 16))
            SAY("xmm%-2u         CPU %016lx:%016lx interpreter %016lx:%016lx\n", n, ((const u64 *)fa->xmm[n].b)[1],
                ((const u64 *)fa->xmm[n].b)[0],
                ((const u64 *)fb->xmm[n].b)[1], ((const u64 *)fb->xmm[n].b)[0]);
    if (memcmp(a->data, b->data, DATA_SIZE))
        for (unsigned n = 0, shown = 0; n < DATA_SIZE && shown < 6; n += 8)
            if (memcmp(a->data + n, b->data + n, 8)) {
                shown++;
                SAY("memory %#lx  CPU %016lx interpreter %016lx\n", DATA_VA + n, *(const u64 *)(a->data + n), *(const u64 *)(b->data + n));
            }
    return differ;
}

/* ---- one sequence again and again: cutting down ------------------------------------------------------------------ */

static bool still_differs(const struct ls_sequence *s, struct ls_job *job, struct ls_result *mine, bool say)
{
    unsigned starts[MAX_UNITS + 1];
    if (!gen_layout(s, job, starts))
        return false;
    struct ls_shared *sh = host.shared;
    sh->job[0] = *job;
    host_begin(0, 1);
    host_finish(1);
    interp_run(s, job, sh->data, mine);
    job->out = sh->job[0].out;
    return differs(&job->out, mine, tolerance_at(s, starts, job, job->out.s.rip), job, say);
}

static void drop_unit(struct ls_sequence *s, unsigned at)
{
    memmove(&s->unit[at], &s->unit[at + 1], (s->nr - at - 1) * sizeof s->unit[0]);
    s->nr--;
    for (unsigned k = 0; k < s->nr; k++)
        for (unsigned n = 0; n < s->unit[k].nr_fixes; n++)
            if (s->unit[k].fix[n].target > (int)at)
                s->unit[k].fix[n].target--;
}

static void report(const struct ls_sequence *original, u64 number, const struct ls_job *first_job, const struct ls_result *first)
{
    static struct ls_job job;
    static struct ls_result mine;
    static struct ls_sequence s, smaller;
    s = *original;
    if (!still_differs(&s, &job, &mine, false)) {
        printf("sequence %lu of seed %lu: differed once, not again:\n", number, opt.seed);
        differs(&first_job->out, first, (struct tolerance){ 0 }, first_job, true);
        return;
    }
    for (bool again = true; again;) {
        again = false;
        for (unsigned k = s.nr; k-- > 0 && s.nr > 1;) {
            smaller = s;
            drop_unit(&smaller, k);
            if (still_differs(&smaller, &job, &mine, false)) {
                s = smaller;
                again = true;
            }
        }
    }
    printf("sequence %lu of seed %lu, cut down to %u of %u:\n", number, opt.seed, s.nr, original->nr);
    unsigned starts[MAX_UNITS + 1];
    gen_layout(&s, &job, starts);
    for (unsigned k = 0; k < s.nr; k++) {
        const struct ls_unit *u = &s.unit[k];
        struct x86_insn i;
        char name[24] = "?";
        if (x86_decode(&i, job.code + starts[k] + u->main_at, 15, 64, ~0ul) > 0)
            x86_mnemonic(&i, name);
        printf("  +%#05x %-12s ", starts[k], name);
        for (unsigned n = 0; n < u->len; n++)
            printf("%s%02x%s", n == u->main_at ? " [" : "", job.code[starts[k] + n], n + 1 == u->main_at + u->main_len ? "] " : "");
        printf("\n");
    }
    printf("  from:");
    for (unsigned n = 0; n < 16; n++)
        printf(" %s=%lx", NAMES[n], s.in.r[n]);
    const struct x86_fx *fx = (const struct x86_fx *)s.in.fx;
    printf(" rflags=%lx fcw=%x fsw=%x ftw=%x mxcsr=%x\n", s.in.rflags, fx->fcw, fx->fsw, fx->ftw, fx->mxcsr);
    still_differs(&s, &job, &mine, true);
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

struct totals { u64 sequences, instructions, hung, differences, by_vector[32], by_form[2048]; };

static void count(struct totals *t, const struct ls_sequence *s, const unsigned *starts, const struct ls_job *job)
{
    u64 end = job->out.s.rip - job->in.rip;
    t->sequences++;
    t->by_vector[job->out.vector & 31]++;
    for (unsigned k = 0; k < s->nr && (end > job->len || starts[k] + s->unit[k].main_at <= end); k++) {
        t->by_form[s->unit[k].form]++;
        t->instructions++;
    }
}

static void run(struct totals *t, u64 first, u64 n)
{
    static struct ls_sequence seqs[BATCH];
    static unsigned starts[BATCH][MAX_UNITS + 1];
    static struct ls_result mine[BATCH];
    struct ls_shared *sh = host.shared;
    for (u64 done = 0; done < n && t->differences < opt.differences;) {
        struct rng r = { (opt.seed + 1) * 0x9e3779b97f4a7c15ul ^ (first + done) * 0xbf58476d1ce4e5b9ul };
        unsigned batch = n - done < BATCH ? (unsigned)(n - done) : BATCH;
        gen_data(&r, sh->data, DATA_SIZE);
        for (unsigned k = 0; k < batch;) {
            gen_sequence(&r, &seqs[k], opt.max_length);
            if (gen_layout(&seqs[k], &sh->job[k], starts[k])) {
                sh->job[k].out.hung = 0;
                k++;
            }
        }
        host_begin(0, batch);
        for (unsigned k = 0; k < batch; k++)
            interp_run(&seqs[k], &sh->job[k], sh->data, &mine[k]);
        host_finish(batch);
        u8 bad[BATCH] = { 0 };
        for (unsigned k = 0; k < batch; k++) {
            struct ls_job *job = &sh->job[k];
            if (job->out.hung == 2 || (job->out.hung && mine[k].hung)) {
                t->hung++;
                continue;
            }
            count(t, &seqs[k], starts[k], job);
            bad[k] = differs(&job->out, &mine[k], tolerance_at(&seqs[k], starts[k], job, job->out.s.rip), job, false);
        }
        for (unsigned k = 0; k < batch && t->differences < opt.differences; k++)
            if (bad[k]) {
                t->differences++;
                static struct ls_job kept;
                memcpy(&kept, &sh->job[k], sizeof kept);
                report(&seqs[k], first + done + k, &kept, &mine[k]);
            }
        done += batch;
        if (opt.verbose && done % (BATCH * 512) < BATCH)
            fprintf(stderr, "%lu sequences\n", done);
    }
}

static void worker(struct totals *t, u64 first, u64 n)
{
    host.fd = memfd_create("lockstep", 0);
    if (host.fd < 0 || ftruncate(host.fd, sizeof *host.shared))
        die("memfd_create");
    host.shared = mmap(NULL, sizeof *host.shared, PROT_READ | PROT_WRITE, MAP_SHARED, host.fd, 0);
    if (host.shared == MAP_FAILED)
        die("mmap");
    struct rng r = { opt.seed * 2 + 1 };
    gen_data(&r, host.shared->constants, CONST_SIZE);
    interp_init(host.shared);
    host_start();
    run(t, first, n);
    host_stop();
    xl_bare_destroy(interp.b);
    free(interp.code);
    free(interp.data);
    fflush(stdout);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        { "sequences", 1, NULL, 'n' }, { "seed", 1, NULL, 's' }, { "form", 1, NULL, 'f' }, { "jobs", 1, NULL, 'j' },
        { "max-length", 1, NULL, 'l' },
        { "differences", 1, NULL, 'd' }, { "verbose", 0, NULL, 'v' }, { "histogram", 0, NULL, 'h' }, { "host", 1, NULL, 'x' },
        { "plant", 1, NULL, 'p' }, { "step", 0, NULL, 'S' }, { "no-icache", 0, NULL, 'C' },
        { "translate", 1, NULL, 'T' }, { 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 'n': opt.sequences = strtoul(optarg, NULL, 0); break;
        case 's': opt.seed = strtoul(optarg, NULL, 0); break;
        case 'f': opt.only = optarg; break;
        case 'j': opt.jobs = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'l': opt.max_length = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'd': opt.differences = (unsigned)strtoul(optarg, NULL, 0); break;
        case 'v': opt.verbose = true; break;
        case 'h': opt.histogram = true; break;
        case 'p': opt.plant = optarg; break;
        case 'S': opt.step = true; break;
        case 'C': opt.no_icache = true; break;
        case 'T': opt.bt = (int)strtoul(optarg, NULL, 0); break;
        case 'x': opt.host = optarg; break;
        default: exit(2);
        }
    }
    if (!opt.max_length || opt.max_length > MAX_UNITS || !opt.jobs || opt.jobs > 16) {
        fprintf(stderr, "lockstep: --max-length 1-%d, --jobs 1-16\n", MAX_UNITS);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static char beside[4096];
    ssize_t len = readlink("/proc/self/exe", beside, sizeof beside - 8);
    if (len > 0)
        memcpy(beside + len, "-host", 6);
    opt.host = beside;
    parse(argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned forms = gen_init(x86_features_supported(), opt.only);
    if (!forms) {
        fprintf(stderr, "lockstep: no form \"%s\" that a process may execute\n", opt.only ? opt.only : "");
        return 2;
    }
    struct totals *t = mmap(NULL, opt.jobs * sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    bool failed = false;
    if (opt.jobs == 1) {
        worker(t, 0, opt.sequences);
    } else {
        u64 share = (opt.sequences / opt.jobs + BATCH - 1) / BATCH * BATCH;
        for (unsigned j = 0; j < opt.jobs; j++)
            if (!fork()) {
                u64 first = share * j;
                worker(&t[j], first, first >= opt.sequences ? 0 : j + 1 == opt.jobs ? opt.sequences - first : share);
                exit(0);
            }
        for (int status; wait(&status) > 0;)
            failed |= status != 0;
    }
    for (unsigned j = 1; j < opt.jobs; j++) {
        const u64 *from = (const u64 *)&t[j];
        for (unsigned n = 0; n < sizeof *t / 8; n++)
            ((u64 *)t)[n] += from[n];
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    unsigned met = 0;
    for (unsigned n = 0; n < x86_nr_forms; n++)
        met += t->by_form[n] != 0;
    if (opt.histogram)
        for (unsigned n = 0; n < x86_nr_forms; n++)
            if (gen_covers(n))
                printf("form %4u %-28s %02x %10lu\n", n, x86_forms[n].mnemonic, x86_forms[n].first, t->by_form[n]);
    printf("%lu sequences, %lu instructions of %u forms (of %u)", t->sequences, t->instructions, met, forms);
    printf("; ended by");
    for (unsigned n = 0; n < 32; n++)
        if (t->by_vector[n])
            printf(" #%u: %lu", n, t->by_vector[n]);
    double seconds = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
    printf("; %lu not ended; %lu differences; %.1f s\n", t->hung, t->differences, seconds);
    return failed ? 2 : t->differences ? 1 : 0;
}
