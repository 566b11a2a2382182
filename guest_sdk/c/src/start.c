/*
 * From the first C instruction to main, and the domain's end.
 */
#include <guest.h>

#define MAX_ARGS 32

struct start_info *start_info;
struct cpu cpus[MAX_VCPUS];

void guest_start(struct start_info *info);

void cpu_init(struct cpu *cpu, u32 id)
{
    cpu->self = cpu;
    cpu->id = id;
    cpu->vcpu_info = &shared_info.vcpu_info[id];
}

/* The command line, split in place at spaces. */
static int split(char *line, char **argv)
{
    int argc = 1;

    argv[0] = "guest";
    while (*line && argc < MAX_ARGS - 1) {
        while (*line == ' ')
            *line++ = 0;
        if (*line)
            argv[argc++] = line;
        while (*line && *line != ' ')
            line++;
    }
    argv[argc] = NULL;
    return argc;
}

void guest_start(struct start_info *info)
{
    static char line[MAX_GUEST_CMDLINE + 1];
    static char *argv[MAX_ARGS];
    int status;

    start_info = info;
    cpu_init(&cpus[0], 0);
    HYPERVISOR_set_segment_base(SEGBASE_GS_KERNEL, (u64)&cpus[0]);
    /* Of all addresses in start_info only this one is a machine address: the page is Xen's and has no pfn. */
    HYPERVISOR_update_va_mapping(&shared_info, info->shared_info | PTE_DATA, UVMF_INVLPG);
    event_init();
    trap_init();
    memory_init();
    console_init();
    xenbus_init();
    events_enable();
    memcpy(line, info->cmd_line, MAX_GUEST_CMDLINE);
    status = main(split(line, argv), argv);
    if (status)
        panic("main returned %d", status);
    domain_shutdown(SHUTDOWN_poweroff);
}

domid_t domain_id(void)
{
    static domid_t id = DOMID_INVALID;
    struct evtchn_status status = {.dom = DOMID_SELF};
    s64 port;

    /* A port that only we may bind names us as its remote end: works without xenstore. */
    if (id == DOMID_INVALID && (port = event_alloc_unbound(DOMID_SELF)) > 0) {
        status.port = port;
        if (!HYPERVISOR_event_channel_op(EVTCHNOP_status, &status))
            id = status.u.unbound.dom;
        event_close(port);
    }
    return id;
}

void domain_shutdown(u32 reason)
{
    struct sched_shutdown arg = {reason};

    console_drain();
    for (;;)
        HYPERVISOR_sched_op(SCHEDOP_shutdown, &arg);
}

void panic(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("panic: ");
    vprintf(format, args);
    putchar('\n');
    domain_shutdown(SHUTDOWN_crash);
}

static const struct {
    const char *name;
    s64 number;
} errors[] = {
#define XEN_ERRNO(name, value) {#name, value},
#include <xen/errno.h>
};

const char *error_name(s64 error)
{
    if (!error)
        return "success";
    for (u32 i = 0; i < ARRAY_SIZE(errors); i++)
        if (errors[i].number == (error < 0 ? -error : error))
            return errors[i].name;
    return "unknown error";
}

/* The other way round, for xenstore, which sends names. */
s64 error_number(const char *name)
{
    for (u32 i = 0; i < ARRAY_SIZE(errors); i++)
        if (!strcmp(errors[i].name, name))
            return errors[i].number;
    return XEN_EIO;
}
