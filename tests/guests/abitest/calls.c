/*
 * Versions, events, calls that a guest has no right to.
 */
#include "abitest.h"

static const char *tail(const char *what, u32 cmd, char *buffer, u32 size, const u32 *fields, u32 count)
{
    s64 rc;

    memset(buffer, 0xaa, size);
    rc = HYPERVISOR_xen_version(cmd, buffer);
    CHECK(rc >= 0, "%s: %s", what, error_name(rc));
    for (u32 f = 0, at = 0; f < count; at += fields[f++])
        for (u32 i = strnlen(buffer + at, fields[f]); i < fields[f]; i++)
            CHECK(!buffer[at + i], "%s: byte %u, behind the text, is %#x", what, at + i, (u8)buffer[at + i]);
    return NULL;
}

const char *xsa_122(void)
{
    static char buffer[256];
    const char *result = tail("extraversion", XENVER_extraversion, buffer, 16, (u32[]){16}, 1);

    if (!result)
        result = tail("compile_info", XENVER_compile_info, buffer, 144, (u32[]){64, 16, 32, 32}, 4);
    return result ? result : tail("changeset", XENVER_changeset, buffer, 64, (u32[]){64}, 1);
}

const char *livepatch_priv_check(void)
{
    u32 op[2 + 32 + 8] = {27 /* livepatch */};
    s64 rc = -XEN_EACCES;

    for (u32 version = 1; version < 64 && rc == -XEN_EACCES; version++) { /* a wrong version is refused before anything else */
        op[1] = version;
        rc = hypercall_sysctl((u64)op);
    }
    CHECK(rc == -XEN_EPERM || rc == -XEN_ENOSYS, "a guest's livepatch call: %s", error_name(rc));
    return NULL;
}

const char *hypercall_page_msr(void)
{
    struct cpuid leaf = cpuid_xen(0x40000002, 0);
    u8 *page = page_alloc(1);
    s64 (*version)(u64, u64) = (void *)(page + __HYPERVISOR_xen_version * 32);

    CHECK(leaf.eax >= 1, "no hypercall pages: %u", leaf.eax);
    page[0] = 0xcc;
    wrmsr(leaf.ebx, virt_to_mfn(page) << PAGE_SHIFT);
    CHECK(page_protect(page, PTE_RO) == 0, "the page cannot be protected");
    CHECK(version(XENVER_version, 0) == HYPERVISOR_xen_version(XENVER_version, NULL), "its stub answers otherwise than ours");
    return NULL;
}

static u32 ticks;

static void tick(void)
{
    ticks++;
}

const char *timers(void)
{
    struct vcpu_set_singleshot_timer shot = {.timeout_abs_ns = 1, .flags = VCPU_SSHOTTMR_future};
    u64 start = time_now();
    s64 rc;

    CHECK(start > 0 && time_wall() > start, "system time %lu, UTC %lu", start, time_wall());
    rc = timer_set(start + 3000000, tick);
    CHECK(!rc, "timer_set: %s", error_name(rc));
    wait_until(ticks == 1);
    CHECK(time_now() >= start + 3000000, "%lu ns too early", start + 3000000 - time_now());
    timer_set(1, tick); /* long past: at once */
    wait_until(ticks == 2);
    rc = HYPERVISOR_vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    CHECK(rc == -XEN_ETIME || (!rc && ticks == 3), "a past time with the flag that it be future: %s", error_name(rc));
    shot.flags = 0;
    rc = HYPERVISOR_vcpu_op(VCPUOP_set_singleshot_timer, 0, &shot);
    wait_until(rc || ticks >= 3);
    CHECK(!rc, "set_singleshot_timer: %s", error_name(rc));
    start = time_now();
    time_sleep(2000000);
    CHECK(time_now() - start >= 2000000, "a short sleep");
    timer_set(time_now() + 1000000, tick);
    timer_set(0, NULL);
    rc = ticks;
    time_sleep(3000000);
    CHECK(ticks == rc, "a stopped timer fired");
    return NULL;
}

const char *multicall(void)
{
    struct multicall_entry inner = {.op = __HYPERVISOR_xen_version, .args = {XENVER_version, 0}};
    struct multicall_entry list[] = {
        {.op = __HYPERVISOR_xen_version, .args = {XENVER_version, 0}},
        {.op = 1000, .result = 1},
        {.op = __HYPERVISOR_multicall, .args = {(u64)&inner, 1}},
        {.op = __HYPERVISOR_sched_op, .args = {99, 0}},
    };
    s64 rc = HYPERVISOR_multicall(list, ARRAY_SIZE(list));

    CHECK(!rc, "multicall: %s", error_name(rc));
    CHECK((s64)list[0].result == HYPERVISOR_xen_version(XENVER_version, NULL), "version in a list: %#lx", list[0].result);
    CHECK((s64)list[1].result == -XEN_ENOSYS && (s64)list[3].result == -XEN_ENOSYS, "unknown calls: %ld %ld", (s64)list[1].result,
          (s64)list[3].result);
    CHECK((s64)list[2].result == -XEN_EINVAL, "a list in a list: %ld", (s64)list[2].result);
    CHECK(HYPERVISOR_multicall((void *)HYPERVISOR_VIRT_START, 1) == -XEN_EFAULT, "a list in the hypervisor");
    return NULL;
}

const char *xsa_188(void)
{
    struct evtchn_init_control control = {.control_gfn = ~0ul, .offset = 4096 - 64};
    struct evtchn_expand_array expand = {.array_gfn = ~0ul};
    s64 rc = HYPERVISOR_event_channel_op(EVTCHNOP_init_control, &control);

    if (rc == -XEN_ENOSYS)
        return SKIP("no FIFO event channels");
    CHECK(rc == -XEN_EINVAL, "a control block across the end of its page: %s", error_name(rc));
    control.offset = 4;
    rc = HYPERVISOR_event_channel_op(EVTCHNOP_init_control, &control);
    CHECK(rc == -XEN_EINVAL, "a control block on 4 bytes: %s", error_name(rc));
    control.offset = 0;
    rc = HYPERVISOR_event_channel_op(EVTCHNOP_init_control, &control);
    CHECK(rc == -XEN_EINVAL, "a frame nobody has: %s", error_name(rc));
    rc = HYPERVISOR_event_channel_op(EVTCHNOP_expand_array, &expand);
    CHECK(rc == -XEN_ENOSYS || rc == -XEN_EOPNOTSUPP, "expand_array without FIFO: %s", error_name(rc));
    return NULL;
}

const char *xsa_221(void)
{
    for (u32 port = 32; port <= 4096; port++) {
        struct sched_poll poll = {.nr_ports = 1, .timeout = 1};
        s64 rc;

        set_xen_guest_handle(poll.ports, &port);
        rc = HYPERVISOR_sched_op(SCHEDOP_poll, &poll);
        CHECK(!rc || rc == -XEN_EINVAL, "poll of port %u: %s", port, error_name(rc));
    }
    return NULL;
}

const char *xsa_317(void)
{
    static u32 ports[EVTCHN_2L_NR_CHANNELS];
    u32 n = 0;
    s64 port;

    while ((port = event_alloc_unbound(DOMID_SELF)) > 0) {
        CHECK(n < EVTCHN_2L_NR_CHANNELS, "%u ports and no end", n);
        ports[n++] = port;
    }
    CHECK(port == -XEN_ENOSPC, "after %u ports: %s", n, error_name(port));
    CHECK(n > 100, "only %u ports", n);
    CHECK(!event_close(ports[50]) && event_alloc_unbound(DOMID_SELF) == ports[50], "a closed port is not given out again");
    for (u32 i = 0; i < n; i++)
        CHECK(!event_close(ports[i]), "close of port %u", ports[i]);
    return NULL;
}
