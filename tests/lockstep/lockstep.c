/* Lockstep: random sequences on the CPU, on the interpreter and on the translator, and who differs.
 *
 *   lockstep [--sequences N] [--seed S] [--form MNEMONIC] [--jobs N] [--max-length N] [--differences N] [--verbose] [--histogram]
 *            [--loops PERCENT] [--slices PERCENT] [--translate OPTIONS] [--no-translator] [--step] [--no-icache] [--plant WHO:MNEMONIC]
 *
 * --loops: how many of the sequences are executed several times over, with branches back and calls (flow.c); 50.
 * --slices: how many the engines run a few instructions at a time, stopping and going on anywhere; 10.
 * --translate: BT_* options of the translator (csrc/bt/bt.h): 15 makes everything slow, 16 has each block verified. --no-translator: without.
 * --step: one instruction at a time. --no-icache: without the interpreter's cache of decoded instructions (the translator needs it: without).
 * --plant WHO:MNEMONIC: rax is made wrong in the outcome of the interpreter, the translator or the CPU wherever a sequence holds that instruction: shows
 * that a defect would be found.
 *
 * Owns: the run. Batches of sequences go to host.c's process through shared memory; while it runs one batch this process runs the same on the
 * engines. A sequence that differs is cut down: units are dropped, and rounds of its loop, as long as it still differs.
 * Exit status: 0 all equal, 1 differences or a block that the verifier refused, 2 the programs themselves failed.
 */
#define _GNU_SOURCE
#include "lockstep.h"
#include "bt/bt.h"
#include "x86/insn.h"           /* before unistd.h, which has an F_LOCK of its own */

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
    struct gen_options gen;
    struct engine_options engine;
    const char *host, *plant;
    enum who plant_in;
    unsigned jobs, differences;
    bool verbose, histogram;
} opt = { .sequences = 100000, .seed = 1, .jobs = 1, .differences = 5, .gen = { .max_units = MAX_UNITS, .loops = 50, .slices = 10 } };

static bool translates(void) { return opt.engine.translate >= 0; }

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

/* ---- a batch of sequences ---------------------------------------------------------------------------------------- */

static void plant(enum who who, const struct ls_sequence *s, struct ls_result *out)
{
    for (unsigned k = 0; opt.plant && who == opt.plant_in && k < s->nr; k++)
        out->s.r[0] ^= !strcmp(x86_forms[s->unit[k].form].mnemonic, opt.plant);
}

/* Sequences as they are run, and what became of them. */
struct batch {
    struct ls_sequence s[BATCH + 1];
    unsigned starts[BATCH + 1][MAX_UNITS + 1];
    struct ls_result by[NR_WHO][BATCH + 1];     /* the CPU's are in shared memory */
};
static struct batch batch;

/* Runs those from `from` on, before `n`, which are laid out in shared memory, everywhere. */
static void run_batch(struct batch *b, unsigned from, unsigned n)
{
    struct ls_shared *sh = host.shared;
    for (unsigned k = from; k < n; k++)
        sh->job[k].out.hung = 0;
    host_begin(from, n);
    for (unsigned who = INTERPRETER; who < (translates() ? NR_WHO : TRANSLATOR); who++)
        for (unsigned k = from; k < n; k++) {
            engine_run(who, &b->s[k], &sh->job[k], sh->data, k == from, &b->by[who][k]);
            plant(who, &b->s[k], &b->by[who][k]);
        }
    host_finish(n);
    for (unsigned k = from; k < n; k++)
        plant(CPU, &b->s[k], &sh->job[k].out);
}

static struct ls_outcome outcome(const struct batch *b, unsigned k)
{
    const struct ls_job *job = &host.shared->job[k];
    return (struct ls_outcome){ &b->s[k], job, b->starts[k], { &job->out, &b->by[INTERPRETER][k], translates() ? &b->by[TRANSLATOR][k] : NULL } };
}

/* The CPU's process was killed by the sequence, or nobody came to its end, or that is the system's business: nothing to compare. */
static bool is_lost(const struct ls_outcome *o)
{
    if (o->of[INTERPRETER]->elsewhere && (!translates() || o->of[TRANSLATOR]->elsewhere))
        return true;
    return o->of[CPU]->hung == 2 || (o->of[CPU]->hung && o->of[INTERPRETER]->hung && (!translates() || o->of[TRANSLATOR]->hung));
}

/* ---- cutting down ------------------------------------------------------------------------------------------------ */

static unsigned still_differs(const struct ls_sequence *s, bool say)
{
    batch.s[BATCH] = *s;
    if (!flow_layout(s, &host.shared->job[BATCH], batch.starts[BATCH]))
        return 0;
    run_batch(&batch, BATCH, BATCH + 1);
    struct ls_outcome o = outcome(&batch, BATCH);
    return is_lost(&o) ? 0 : outcome_differs(&o, say);
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

/* Simpler ones of the same kind, one after the other: no loop, no slices, fewer rounds; without unit n. False: there is no nth. */
static bool simplify(struct ls_sequence *s, unsigned n)
{
    if (n < 5 && n != 1 && s->way == LOOP_NONE)
        return true;
    switch (n) {
    case 0: s->way = LOOP_NONE; return true;
    case 1: s->slices = 0; return true;
    case 2: s->loop[LOOP_COUNT] /= 2; return true;
    case 3: s->loop[LOOP_COUNT]--; return true;
    case 4: s->loop[LOOP_FUEL] /= 2; return true;
    }
    n -= 5;
    if (n >= s->nr)
        return false;
    if (s->nr > 1)
        drop_unit(s, s->nr - 1 - n);
    return true;
}

static bool cut_down(struct ls_sequence *s, u32 pairs)
{
    static struct ls_sequence smaller;
    bool any = false;
    for (unsigned n = 0; ; n++) {
        smaller = *s;
        if (!simplify(&smaller, n))
            return any;
        if (smaller.way != LOOP_NONE && !smaller.loop[LOOP_COUNT])
            continue;                   /* would be 2^64 rounds */
        if (memcmp(&smaller, s, sizeof smaller) && still_differs(&smaller, false) == pairs) {
            *s = smaller;
            any = true;
            n -= n >= 5;                /* another unit stands there now */
        }
    }
}

static const char *const WAYS[NR_LOOP_WAYS] = { "", "jnz", "jmp", "an indirect jmp", "call and ret" };

/* False: it does not differ again, and only in that the CPU was slow. */
static bool report(unsigned at, u64 number, unsigned first, bool slow)
{
    static struct ls_sequence s;
    const struct ls_sequence *original = &batch.s[at];
    s = *original;
    unsigned pairs = still_differs(&s, false);
    if (!pairs) {
        if (!slow) {
            struct ls_outcome o = outcome(&batch, at);
            printf("sequence %lu of seed %lu differed in its batch, not by itself: %s\n", number, opt.seed, outcome_verdict(first));
            outcome_differs(&o, true);
        }
        return !slow;
    }
    while (cut_down(&s, pairs))
        ;
    printf("sequence %lu of seed %lu, %s; cut down to %u of %u", number, opt.seed, outcome_verdict(pairs), s.nr, original->nr);
    if (s.way != LOOP_NONE)
        printf(", %lu times by %s", s.loop[LOOP_COUNT], WAYS[s.way]);
    printf("%s:\n", s.slices ? ", in slices" : "");
    unsigned starts[MAX_UNITS + 1];
    static struct ls_job job;
    flow_layout(&s, &job, starts);
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
        printf(" %s=%lx", REGISTERS[n], s.in.r[n]);
    const struct x86_fx *fx = (const struct x86_fx *)s.in.fx;
    printf(" rflags=%lx fcw=%x fsw=%x ftw=%x mxcsr=%x", s.in.rflags, fx->fcw, fx->fsw, fx->ftw, fx->mxcsr);
    if (s.way != LOOP_NONE)
        printf(" fuel=%lu walk=%lx%+d walk16=%lx%+d", s.loop[LOOP_FUEL], s.loop[LOOP_WALK], s.stride, s.loop[LOOP_WALK16], s.stride16);
    printf(" at %#lx\n", job.in.rip);
    still_differs(&s, true);
    return true;
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

struct totals {
    u64 sequences, looped, sliced, instructions, hung, differences, by_vector[32], by_form[2048];
    struct engine_stats engine[NR_WHO];
};

static void count(struct totals *t, const struct ls_outcome *o)
{
    const struct ls_sequence *s = o->s;
    u64 end = o->of[CPU]->s.rip - CODE_VA - s->offset;
    t->sequences++;
    t->looped += s->way != LOOP_NONE;
    t->sliced += s->slices != 0;
    t->by_vector[o->of[CPU]->vector & 31]++;
    for (unsigned k = 0; k < s->nr && (end > o->job->len || o->starts[k] + s->unit[k].main_at <= end); k++) {
        t->by_form[s->unit[k].form]++;
        t->instructions++;
    }
}

static void run(struct totals *t, u64 first, u64 n)
{
    struct ls_shared *sh = host.shared;
    for (u64 done = 0; done < n && t->differences < opt.differences;) {
        struct rng r = { (opt.seed + 1) * 0x9e3779b97f4a7c15ul ^ (first + done) * 0xbf58476d1ce4e5b9ul };
        unsigned many = n - done < BATCH ? (unsigned)(n - done) : BATCH, pairs[BATCH] = { 0 };
        gen_data(&r, sh->data, DATA_SIZE);
        for (unsigned k = 0; k < many;) {
            gen_sequence(&r, &batch.s[k]);
            k += flow_layout(&batch.s[k], &sh->job[k], batch.starts[k]);
        }
        run_batch(&batch, 0, many);
        bool any = false, slow[BATCH];
        for (unsigned k = 0; k < many; k++) {
            struct ls_outcome o = outcome(&batch, k);
            slow[k] = o.of[CPU]->hung;
            pairs[k] = is_lost(&o) ? 0 : outcome_differs(&o, false);
            if (is_lost(&o) || (pairs[k] && engine_strays(o.job, sh->data, outcome_is_agreed(pairs[k])))) {
                t->hung++;
                pairs[k] = 0;
                continue;
            }
            count(t, &o);
            any |= pairs[k] != 0;
        }
        for (unsigned k = 0; any && k < many && t->differences < opt.differences; k++)
            if (pairs[k])
                t->differences += report(k, first + done + k, pairs[k], slow[k]);
        done += many;
        if (opt.verbose && done % (BATCH * 512) < BATCH)
            fprintf(stderr, "%lu sequences\n", done);
    }
    for (unsigned who = INTERPRETER; who < (translates() ? NR_WHO : TRANSLATOR); who++)
        t->engine[who] = engine_stats(who);
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
    if (!engines_create(&opt.engine, host.shared->constants))
        die("engines_create");
    host_start();
    run(t, first, n);
    host_stop();
    engines_destroy();
    fflush(stdout);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        { "sequences", 1, NULL, 'n' }, { "seed", 1, NULL, 's' }, { "form", 1, NULL, 'f' }, { "jobs", 1, NULL, 'j' },
        { "max-length", 1, NULL, 'l' }, { "differences", 1, NULL, 'd' }, { "verbose", 0, NULL, 'v' }, { "histogram", 0, NULL, 'h' },
        { "host", 1, NULL, 'x' }, { "plant", 1, NULL, 'p' }, { "step", 0, NULL, 'S' }, { "no-icache", 0, NULL, 'C' },
        { "translate", 1, NULL, 'T' }, { "no-translator", 0, NULL, 'N' }, { "loops", 1, NULL, 'L' }, { "slices", 1, NULL, 'I' }, { 0 },
    };
    bool no_translator = false, said = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        unsigned number = optarg ? (unsigned)strtoul(optarg, NULL, 0) : 0;
        switch (c) {
        case 'n': opt.sequences = strtoul(optarg, NULL, 0); break;
        case 's': opt.seed = strtoul(optarg, NULL, 0); break;
        case 'f': opt.gen.only = optarg; break;
        case 'j': opt.jobs = number; break;
        case 'l': opt.gen.max_units = number; break;
        case 'd': opt.differences = number; break;
        case 'v': opt.verbose = true; break;
        case 'h': opt.histogram = true; break;
        case 'S': opt.engine.step = true; break;
        case 'C': opt.engine.no_icache = no_translator = true; break;
        case 'T': opt.engine.translate = (int)number; said = true; break;
        case 'N': no_translator = true; break;
        case 'L': opt.gen.loops = number; break;
        case 'I': opt.gen.slices = number; break;
        case 'x': opt.host = optarg; break;
        case 'p':
            for (opt.plant_in = CPU; opt.plant_in < NR_WHO; opt.plant_in++)
                if (!strncmp(optarg, WHO[opt.plant_in], strlen(WHO[opt.plant_in])) && optarg[strlen(WHO[opt.plant_in])] == ':')
                    break;
            opt.plant = strchr(optarg, ':');
            opt.plant += opt.plant != NULL;
            if (opt.plant_in == NR_WHO)
                opt.plant = "";
            break;
        default: exit(2);
        }
    }
    if (!opt.gen.max_units || opt.gen.max_units > MAX_UNITS || !opt.jobs || opt.jobs > 16 || opt.gen.loops > 100 || opt.gen.slices > 100 ||
        (opt.plant && !*opt.plant)) {
        fprintf(stderr, "lockstep: --max-length 1-%d, --jobs 1-16, --loops and --slices 0-100, --plant CPU:, interpreter: or translator:MNEMONIC\n",
                MAX_UNITS);
        exit(2);
    }
    const char *why = bt_unavailable();
    if (why && !no_translator) {
        fprintf(stderr, "lockstep: no translator: %s\n", why);
        if (said)
            exit(2);
    }
    if (why || no_translator)
        opt.engine.translate = -1;
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
    unsigned forms = gen_init(x86_features_supported(), &opt.gen);
    if (!forms) {
        fprintf(stderr, "lockstep: no form \"%s\" that a process may execute\n", opt.gen.only ? opt.gen.only : "");
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
    printf("; %lu in loops, %lu in slices; ended by", t->looped, t->sliced);
    for (unsigned n = 0; n < 32; n++)
        if (t->by_vector[n])
            printf(" #%u: %lu", n, t->by_vector[n]);
    printf("; executed: interpreter %lu", t->engine[INTERPRETER].retired);
    const struct engine_stats *e = &t->engine[TRANSLATOR];
    if (translates())
        printf(", translator %lu, of which %lu translated, in %lu blocks, %lu refused", e->retired, e->retired - e->interpreted, e->blocks, e->rejected);
    double seconds = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
    printf("; %lu not compared; %lu differences; %.1f s\n", t->hung, t->differences, seconds);
    return failed ? 2 : t->differences || e->rejected ? 1 : 0;
}
