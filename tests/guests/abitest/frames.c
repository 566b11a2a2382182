/*
 * Ways into the guest kernel and out: frames that Xen pushes, frames it pops, masks.
 */
#include "abitest.h"

static struct trap_regs seen;
static u32 count;

static void record(struct trap_regs *regs)
{
    seen = *regs;
    count++;
}

const char *trap_frame(void)
{
    u64 sp, next, flags, rcx = 0x1111, r11;

    /* rsp is off by 8 on purpose: Xen aligns down, and gives the old value back. */
    trap_set(TRAP_BP, record, 3);
    count = 0;
    asm volatile("mov %%rsp, %%rbx; and $-16, %%rsp; sub $8, %%rsp; mov $0x2222, %%r11d; mov %%rsp, %0; lea 1f(%%rip), %1; std; int3;"
                 "1: pushf; pop %2; cld; mov %%r11, %4; mov %%rbx, %%rsp"
                 : "=&r"(sp), "=&r"(next), "=&r"(flags), "+c"(rcx), "=&r"(r11) : : "rbx", "r11", "memory", "cc");
    trap_set(TRAP_BP, NULL, 3);
    CHECK(count == 1, "%u traps", count);
    CHECK(seen.rip == next && seen.rsp == sp, "rip %#lx rsp %#lx, not %#lx %#lx", seen.rip, seen.rsp, next, sp);
    CHECK(seen.cs == (FLAT_KERNEL_CS & ~3), "cs %#x: from the kernel RPL is 0", seen.cs);
    CHECK(seen.ss == FLAT_KERNEL_SS, "ss %#lx", seen.ss);
    CHECK(seen.upcall_mask == 0 && seen.rflags & X86_IF, "mask %u, rflags %#lx with events enabled", seen.upcall_mask, seen.rflags);
    CHECK(seen.rflags & X86_DF && flags & X86_DF, "DF is lost: %#lx, %#lx", seen.rflags, flags);
    CHECK(seen.rcx == 0x1111 && seen.r11 == 0x2222 && rcx == 0x1111 && r11 == 0x2222, "rcx %#lx %#lx, r11 %#lx %#lx", seen.rcx, rcx,
          seen.r11, r11);
    return NULL;
}

static void masks_seen(struct trap_regs *regs)
{
    seen = *regs;
    seen.r15 = events_masked(); /* in the handler */
}

const char *upcall_mask(void)
{
    s64 port = event_alloc_unbound(DOMID_SELF), other;

    CHECK(port > 0, "no port");
    trap_set(TRAP_BP, masks_seen, 3);
    asm volatile("int3");
    CHECK(seen.r15 && !seen.upcall_mask && !events_masked(), "the gate's mask flag: %lu %u %u", seen.r15, seen.upcall_mask,
          events_masked());
    events_disable();
    asm volatile("int3");
    CHECK(seen.upcall_mask && !(seen.rflags & X86_IF) && events_masked(), "with events masked: %u %#lx %u", seen.upcall_mask, seen.rflags,
          events_masked());
    trap_set(TRAP_BP, NULL, 3);

    /* A port bound to our own unbound one is pending at once; nothing is delivered while the mask is set, all when it goes. */
    trap_set(TRAP_EVENT, record, 0);
    count = 0;
    other = event_bind_interdomain(DOMID_SELF, port);
    CHECK(other > 0, "bind to ourselves: %s", error_name(other));
    CHECK(!event_unmask(other) && !count, "an upcall through the mask");
    CHECK(this_cpu()->vcpu_info->evtchn_upcall_pending, "no event pending on port %ld", other);
    this_cpu()->vcpu_info->evtchn_upcall_pending = 0;
    this_cpu()->vcpu_info->evtchn_pending_sel = 0; /* or the next event would find it set, and not make an upcall */
    this_cpu()->vcpu_info->evtchn_upcall_mask = 0;
    HYPERVISOR_xen_version(XENVER_version, NULL);
    CHECK(!count, "an upcall without pending");
    this_cpu()->vcpu_info->evtchn_upcall_mask = 1;
    event_take(other);
    event_send(port);
    CHECK(event_take(other), "send to ourselves");
    event_init();
    event_close(other);
    event_close(port);
    events_enable();
    return NULL;
}

static void int_n(void *arg)
{
    if ((u64)arg == 0x41)
        asm volatile("int $0x41");
    else
        asm volatile("int $0x42");
}

USER_TEXT static u64 user_int_42(u64 arg)
{
    asm volatile("int $0x42");
    return arg;
}

const char *soft_int(void)
{
    struct user_run run = {.fn = user_int_42, .arg = 7};

    CHECK_TRAP(TRAP_GP, 0x41 << 3 | 2, int_n, 0x41); /* nobody registered it */
    trap_set(0x42, record, 0);
    CHECK_TRAP(TRAP_GP, 0x42 << 3 | 2, int_n, 0x42);
    trap_set(0x42, record, 1); /* the kernel may, users may not */
    count = 0;
    int_n((void *)0x42);
    CHECK(count == 1 && !seen.error, "kernel, DPL 1: %u", count);
    CHECK_USER_TRAP(TRAP_GP, 0x42 << 3 | 2, user_int_42, 0);
    trap_set(0x42, record, 3);
    CHECK(!user_try(&run).happened && count == 2 && run.result == 7, "user, DPL 3: %u", count);
    CHECK(trap_from_user(&seen) && seen.cs == FLAT_USER_CS, "cs %#x from user", seen.cs);
    trap_clear(0x42);
    return NULL;
}

const char *nmi(void)
{
    s64 rc;

    trap_set(TRAP_NMI, masks_seen, 0);
    seen.r15 = 0;
    rc = HYPERVISOR_vcpu_op(VCPUOP_send_nmi, 0, NULL);
    HYPERVISOR_xen_version(XENVER_version, NULL);
    trap_set(TRAP_NMI, NULL, 0);
    CHECK(!rc, "send_nmi: %s", error_name(rc));
    CHECK(seen.r15 == 1, "not delivered, or with events unmasked");
    CHECK(!events_masked(), "the mask stays set");
    return NULL;
}

/* ---- 32-bit user code -------------------------------------------------------------------------------------------- */

/* mov eax, esp; inc eax (0x40: a REX prefix in 64-bit code); int 0x43 */
static const u8 code32[] = {0x89, 0xe0, 0x40, 0xcd, 0x43};

#define LOW_PAGE 0x400000ul

USER_TEXT static u64 to_low(u64 arg)
{
    user_syscall(9, arg, 0, 0);
    return 0;
}

static u64 go32(struct trap_regs *regs)
{
    regs->cs = FLAT_USER_CS32;
    regs->rip = LOW_PAGE;
    regs->rsp = LOW_PAGE + 0x800;
    return 0;
}

static void leave32(struct trap_regs *regs)
{
    seen = *regs;
    user_exit(regs->rax);
}

const char *user32(void)
{
    struct user_run run = {.fn = to_low, .syscall = go32};
    void *page = page_alloc(1);
    struct trap_record trap;
    s64 rc;

    memcpy(page, code32, sizeof(code32));
    rc = user_map(user_space(), LOW_PAGE, virt_to_mfn(page), PTE_DATA);
    CHECK(!rc, "map: %s", error_name(rc));
    trap_set(0x43, leave32, 3);
    trap = user_try(&run);
    trap_clear(0x43);
    CHECK(!trap.happened && run.result == LOW_PAGE + 0x801, "trap %u, result %#lx", trap.vector, run.result);
    CHECK(seen.cs == FLAT_USER_CS32 && seen.rip == LOW_PAGE + sizeof(code32), "cs %#x rip %#lx", seen.cs, seen.rip);
    return NULL;
}

/* ---- Descriptors ------------------------------------------------------------------------------------------------- */

#define DATA_DESCRIPTOR(base) (0x00cff3000000fffful | ((base) & 0xfffffful) << 16 | ((base) >> 24 & 0xff) << 56)

static void load_fs(void *selector)
{
    asm volatile("mov %0, %%fs" : : "r"((u32)(u64)selector));
}

const char *gdt(void)
{
    u64 *table = page_alloc(1), mfn = virt_to_mfn(table);
    u64 value;
    s64 rc;

    table[2] = DATA_DESCRIPTOR(LOW_PAGE + 0x1000ul);
    table[3] = 0x0000e90000000000ul; /* an available TSS: guests have no use for system descriptors */
    CHECK(HYPERVISOR_set_gdt(&mfn, 512) == -XEN_EINVAL, "a writable page becomes a GDT");
    page_protect(table, PTE_RO);
    CHECK(HYPERVISOR_set_gdt(&mfn, 512) == -XEN_EINVAL, "a GDT with a TSS descriptor");
    page_protect(table, PTE_DATA);
    table[3] = 0;
    page_protect(table, PTE_RO);
    rc = HYPERVISOR_set_gdt(&mfn, 512);
    CHECK(!rc, "set_gdt: %s", error_name(rc));
    CHECK(page_protect(table, PTE_DATA), "a GDT page is mapped writable");
    CHECK(!kernel_map(LOW_PAGE + 0x1000, virt_to_mfn(p2m) << PAGE_SHIFT | PTE_RO), "map");
    load_fs((void *)(2 << 3 | 3));
    asm volatile("mov %%fs:0, %0" : "=r"(value));
    CHECK(value == p2m[0], "through the descriptor: %#lx", value);
    CHECK_TRAP(TRAP_GP, 3 << 3, load_fs, 3 << 3 | 3); /* an empty descriptor is no data segment */
    CHECK_TRAP(TRAP_GP, 5000 << 3 & 0xfffc, load_fs, (5000 << 3 | 3) & 0xffff);
    rc = HYPERVISOR_update_descriptor(mfn << PAGE_SHIFT | 3 << 3, DATA_DESCRIPTOR(0ul));
    CHECK(!rc, "update_descriptor: %s", error_name(rc));
    CHECK(!trap_try(load_fs, (void *)(3 << 3 | 3)).happened, "the new descriptor cannot be loaded");
    rc = HYPERVISOR_update_descriptor(mfn << PAGE_SHIFT | 4 << 3, 0x0000e90000000000ul);
    CHECK(rc == -XEN_EINVAL, "update_descriptor with a TSS: %s", error_name(rc));
    load_fs(0);
    CHECK(!HYPERVISOR_set_gdt(NULL, 0), "set_gdt of none");
    CHECK(!page_protect(table, PTE_DATA), "the page does not come back");
    return NULL;
}

const char *ldt(void)
{
    u64 *table = page_alloc(1), value;
    s64 rc;

    table[1] = DATA_DESCRIPTOR(LOW_PAGE + 0x1000ul);
    CHECK(!kernel_map(LOW_PAGE + 0x1000, virt_to_mfn(p2m) << PAGE_SHIFT | PTE_RO), "map");
    CHECK(mmuext(MMUEXT_SET_LDT, (u64)table + 8, 1) == -XEN_EINVAL, "an LDT at an odd address");
    CHECK(mmuext(MMUEXT_SET_LDT, (u64)table, 8193) == -XEN_EINVAL, "an LDT of 8193 entries");
    page_protect(table, PTE_RO);
    rc = mmuext(MMUEXT_SET_LDT, (u64)table, 4);
    CHECK(!rc, "set_ldt: %s", error_name(rc));
    load_fs((void *)(1 << 3 | 4 | 3));
    asm volatile("mov %%fs:0, %0" : "=r"(value));
    CHECK(value == p2m[0], "through the descriptor: %#lx", value);
    CHECK_TRAP(TRAP_GP, 4 << 3 | 4, load_fs, 4 << 3 | 4 | 3); /* behind its end */
    load_fs(0);
    CHECK(!mmuext(MMUEXT_SET_LDT, 0, 0), "no LDT");
    CHECK_TRAP(TRAP_GP, 1 << 3 | 4, load_fs, 1 << 3 | 4 | 3);
    rc = page_protect(table, PTE_DATA);
    CHECK(!rc, "the page does not come back: %s", error_name(rc));
    return NULL;
}

/* ---- Returning to impossible places ------------------------------------------------------------------------------ */

#define LAST_PAGE 0x00007ffffffff000ul

static u64 edge_rip;

static u64 at_edge(struct trap_regs *regs)
{
    edge_rip = regs->rip;
    return 0;
}

const char *xsa_7(void)
{
    struct user_run run = {.fn = (void *)(LAST_PAGE + 4092), .syscall = at_edge};
    u8 *page = page_alloc(1);
    struct trap_record trap;

    memcpy(page + 4092, "\xb0\x01\x0f\x05", 4); /* mov al, 1; syscall; and right behind is the hole of the address space */
    CHECK(!user_map(user_space(), LAST_PAGE, virt_to_mfn(page), PTE_RO), "the last page below the hole cannot be mapped");
    trap = user_try(&run);
    CHECK(edge_rip == LAST_PAGE + 4096, "the callback saw rip %#lx; %s %u(%#x), address %#lx", edge_rip, trap.happened ? "trap" : "no trap",
          trap.vector, trap.error, trap.cr2);
    CHECK(trap.happened && (trap.vector == TRAP_GP || trap.vector == TRAP_FAILSAFE), "return there: %s %u",
          trap.happened ? "trap" : "no trap", trap.vector);
    return NULL;
}

const char *xsa_213(void)
{
    static struct multicall_entry list[2];
    u64 rax;

    list[0] = (struct multicall_entry){.op = __HYPERVISOR_iret};
    list[1] = (struct multicall_entry){.op = __HYPERVISOR_xen_version, .args = {XENVER_version, 0}};
    /* The frame must be what rsp points to, so the call is made in place, not through the page. */
    asm volatile("mov %%rsp, %%rbx; push %[ss]; push %%rbx; push $0x202; push %[cs]; lea 1f(%%rip), %%rax; push %%rax; push $0;"
                 "push $0; push $0; push $0xdead;"
                 "mov %[nr], %%eax; syscall; ud2; 1:"
                 : "=a"(rax) : [ss] "i"(FLAT_KERNEL_SS), [cs] "i"(FLAT_KERNEL_CS & ~3), [nr] "i"(__HYPERVISOR_multicall), "D"(list), "S"(2)
                 : "rbx", "rcx", "r11", "memory");
    CHECK(rax == 0xdead, "rax %#lx: not the frame's", rax);
    CHECK(!list[1].result, "the entry behind iret was run: %#lx", list[1].result);
    CHECK(!events_masked(), "the frame's IF was not followed");
    return NULL;
}

static void int_80(void *arg)
{
    (void)arg;
    asm volatile("int $0x80");
}

const char *xsa_259(void)
{
    CHECK_TRAP(TRAP_GP, 0x402, int_80, 0);
    return NULL;
}

const char *xsa_296(void)
{
    struct vcpu_guest_context *context;
    s64 rc;

    if (smp_count() < 2)
        return SKIP("needs vcpus=2");
    context = malloc(sizeof(*context));
    memset(context, 0, sizeof(*context));
    context->ctrlreg[3] = ~0ul << PAGE_SHIFT;
    context->flags = VGCF_in_kernel;
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, 1, context);
    CHECK(rc == -XEN_EINVAL, "a page table nobody has: %s", error_name(rc));
    context->ctrlreg[3] = virt_to_mfn(kernel_space.l4) << PAGE_SHIFT;
    context->gdt_ents = 65536;
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, 1, context);
    CHECK(rc == -XEN_EINVAL, "a GDT too large: %s", error_name(rc));
    context->gdt_ents = 0;
    context->user_regs.rip = 1ul << 63;
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, 1, context);
    CHECK(rc == -XEN_EINVAL, "rip not canonical: %s", error_name(rc));
    context->user_regs.rip = 0;
    context->flags = VGCF_in_kernel | VGCF_i387_valid;
    context->user_regs.rflags = ~0ul;
    context->user_regs.cs = context->user_regs.ss = 0xffff;
    memset(&context->fpu_ctxt, 0xff, sizeof(context->fpu_ctxt));
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, 1, context);
    CHECK(!rc, "odd flags and FPU state: %s", error_name(rc));
    rc = HYPERVISOR_vcpu_op(VCPUOP_initialise, 1, context);
    CHECK(rc == -XEN_EEXIST, "again: %s", error_name(rc));
    free(context);
    return NULL;
}

USER_TEXT static u64 user_sysenter_nt(u64 arg)
{
    asm volatile("pushf; orq $0x4000, (%%rsp); popf; sysenter" : : : "memory", "cc");
    return arg;
}

const char *xsa_339(void)
{
    struct user_run run = {.fn = user_sysenter_nt};
    struct trap_record trap = user_try(&run);
    u64 flags;

    CHECK(trap.happened && (trap.vector == TRAP_UD || trap.vector == TRAP_GP || trap.vector == TRAP_SYSENTER), "%s %u",
          trap.happened ? "trap" : "no trap", trap.vector);
    asm volatile("pushf; pop %0" : "=r"(flags));
    CHECK(!(flags & 0x4000), "NT came into the kernel");
    return NULL;
}
