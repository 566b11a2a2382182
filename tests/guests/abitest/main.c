/*
 * The table of tests and what runs them: the command line names tests, or says `all` or `list`. Prints "name: PASS", "name: FAIL reason" or
 * "name: SKIP reason" for each. The exit is a crash if one failed.
 */
#include "abitest.h"

static const struct {
    const char *name;
    const char *(*run)(void);
    bool crashes; /* only if named */
} tests[] = {
#define TEST(name) {#name, name, false},
#define CRASH(name) {#name, name, true},
#include "tests.def"
#undef TEST
#undef CRASH
};

static char text[256];

const char *verdict(const char *kind, const char *format, ...)
{
    va_list args;
    int n = snprintf(text, sizeof(text), "%s ", kind);

    va_start(args, format);
    vsnprintf(text + n, sizeof(text) - n, format, args);
    va_end(args);
    return text;
}

struct user *user_space(void)
{
    static struct user user;

    if (!user.stack && user_create(&user))
        panic("no user page table");
    return &user;
}

static void run_user(void *arg)
{
    struct user_run *run = arg;

    run->result = user_call(user_space(), run->fn, run->arg, run->syscall);
}

struct trap_record user_try(struct user_run *run)
{
    return trap_try(run_user, run);
}

static bool same(const char *word, const char *name)
{
    for (; *word && (*word == *name || (*word == '-' && *name == '_')); word++, name++)
        ;
    return !*word && !*name;
}

static void print_name(const char *name)
{
    char shown[40];
    u32 i;

    for (i = 0; name[i] && i < sizeof(shown) - 1; i++)
        shown[i] = name[i] == '_' ? '-' : name[i];
    shown[i] = 0;
    printf("%s", shown);
}

int main(int argc, char **argv)
{
    u32 failed = 0, run = 0;

    for (int i = 1; i < argc; i++)
        for (u32 t = 0; t < ARRAY_SIZE(tests); t++) {
            const char *result;

            if (!strcmp(argv[i], "list")) {
                print_name(tests[t].name);
                putchar('\n');
                run++;
            } else if (same(argv[i], tests[t].name) || (!strcmp(argv[i], "all") && !tests[t].crashes)) {
                result = tests[t].run();
                print_name(tests[t].name);
                printf(": %s\n", result ? result : "PASS");
                failed += result && !strncmp(result, "FAIL", 4);
                run++;
            }
        }
    if (!run)
        printf("name tests, or say all or list\n");
    return run && !failed ? 0 : 1;
}

/* ---- The two that test the ground the others stand on ------------------------------------------------------------ */

const char *example(void)
{
    return NULL;
}

static void undefined(void *arg)
{
    (void)arg;
    asm volatile("ud2");
}

static void load(void *arg)
{
    (void)*(volatile u64 *)arg;
}

USER_TEXT static u64 user_load(u64 va)
{
    return *(volatile u64 *)va;
}

USER_TEXT static u64 user_cs(u64 arg)
{
    asm volatile("mov %%cs, %0" : "=r"(arg));
    return arg;
}

static u32 interrupts;

static void on_interrupt(struct trap_regs *regs)
{
    (void)regs;
    interrupts++;
}

const char *selftest(void)
{
    struct user_run run = {.fn = user_cs};
    struct trap_record trap;
    char domid[16];
    struct gnttab_set_version version = {1};
    s64 rc;

    CHECK_TRAP(TRAP_UD, 0, undefined, 0);
    CHECK_TRAP(TRAP_PF, 0, load, 0);
    trap = user_try(&run);
    CHECK(!trap.happened && (run.result & 3) == 3, "user function: trap %u, cs %#lx", trap.vector, run.result);
    CHECK_USER_TRAP(TRAP_PF, PF_USER, user_load, &interrupts);
    trap_set(0x40, on_interrupt, 1);
    asm volatile("int $0x40");
    trap_clear(0x40);
    CHECK(interrupts == 1, "int 0x40 reached its handler %u times", interrupts);
    rc = xs_read(XS_NO_TRANSACTION, "domid", domid, sizeof(domid));
    CHECK(rc > 0 && strtoul(domid, NULL, 10) == domain_id(), "xenstore says domid is '%s' (%ld), events say %u", domid, rc, domain_id());
    rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);
    if (rc == -XEN_ENOSYS)
        return NULL;
    CHECK(!rc, "grant set_version(1): %s", error_name(rc));
    version.version = 2;
    rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);
    CHECK(!rc || rc == -XEN_ENOSYS, "grant set_version(2): %s", error_name(rc));
    version.version = 1;
    if (!rc)
        rc = HYPERVISOR_grant_table_op(GNTTABOP_set_version, &version, 1);
    CHECK(!rc || rc == -XEN_ENOSYS, "grant set_version back to 1: %s", error_name(rc));
    return NULL;
}
