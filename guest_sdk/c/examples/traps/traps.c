/*
 * Exceptions and page tables: faults on purpose, handled and told; what a page table may and may not be.
 */
#include <guest.h>

static void read_null(void *arg)
{
    (void)*(volatile char *)arg;
}

static void write_byte(void *arg)
{
    *(volatile char *)arg = 1;
}

static void call_it(void *arg)
{
    ((void (*)(void))arg)();
}

static void read_msr(void *arg)
{
    (void)rdmsr((u64)arg);
}

static void undefined(void *arg)
{
    (void)arg;
    asm volatile("ud2");
}

static void show(const char *what, void (*fn)(void *), void *arg)
{
    struct trap_record trap = trap_try(fn, arg);

    if (!trap.happened)
        printf("%s: nothing\n", what);
    else if (trap.vector == TRAP_PF)
        printf("%s: vector 14, error %#x, address %#lx\n", what, trap.error, trap.cr2);
    else
        printf("%s: vector %u, error %#x\n", what, trap.vector, trap.error);
}

static u32 breakpoints;

/* A handler returns behind the int3, since that is where regs->rip points; it may change any register. */
static void breakpoint(struct trap_regs *regs)
{
    breakpoints++;
    regs->rax++;
}

/* A fault handler that repairs the cause: the instruction is then run again. */
static void repair(struct trap_regs *regs)
{
    printf("repairing %#lx\n", trap_cr2());
    if (!(regs->error & PF_WRITE) || kernel_map(trap_cr2() & PAGE_MASK, virt_to_mfn(page_alloc(1)) << PAGE_SHIFT | PTE_DATA))
        panic("cannot");
}

static void exceptions(void)
{
    static const char constant[] = "in .rodata";
    u64 rax = 41;
    char *lazy;

    show("read of address 8", read_null, (void *)8);
    show("write to .rodata", write_byte, (void *)constant);
    show("jump into data", call_it, page_alloc(1) + 16);
    show("read of a non-canonical address", read_null, (void *)0x8000000000000000);
    show("read of MSR 0xdeadbeef", read_msr, (void *)0xdeadbeef);
    show("ud2", undefined, NULL);

    trap_set(TRAP_BP, breakpoint, 3);
    asm volatile("int3" : "+a"(rax));
    printf("int3: handled %u times, rax %lu\n", breakpoints, rax);

    lazy = vmap_alloc(1);
    trap_set(TRAP_PF, repair, 0);
    *lazy = 7;
    trap_set(TRAP_PF, NULL, 0);
    printf("repaired: %d\n", *lazy);
}

static void page_tables(void)
{
    char *data = page_alloc(1), *alias = vmap_alloc(1);
    u64 *page = page_alloc(1), mfn = virt_to_mfn(page);
    volatile u64 *l1 = page; /* what is read there is not always what was stored */
    s64 rc;

    kernel_map((u64)alias, virt_to_mfn(data) << PAGE_SHIFT | PTE_RO);
    memcpy(data, "one page", 9);
    printf("through a read-only alias: %s\n", alias);
    show("write to the alias", write_byte, alias);

    /* A table must be mapped writable nowhere, or the guest could put any machine frame into it. */
    l1[0] = virt_to_mfn(data) << PAGE_SHIFT | PTE_RO;
    rc = mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0);
    printf("pin of a writable page: %s\n", error_name(rc));
    page_protect(page, PTE_RO);
    rc = mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0);
    printf("pin of a read-only page: %s\n", error_name(rc));
    printf("its first entry is now %#lx: Xen has set U and a software bit\n", l1[0] & ~PTE_FRAME);
    rc = page_protect(page, PTE_DATA);
    printf("mapping a table writable: %s\n", error_name(rc));
    show("store to a table", write_byte, page);
    printf("entry by hypercall: %s\n", error_name(pte_write(&page[1], virt_to_mfn(data) << PAGE_SHIFT | PTE_DATA)));
    printf("entry that maps the table writable: %s\n", error_name(pte_write(&page[2], mfn << PAGE_SHIFT | PTE_DATA)));

    /* With this assist Xen emulates stores to L1 tables, checking them as it checks hypercalls. */
    HYPERVISOR_vm_assist(VMASST_CMD_enable, VMASST_TYPE_writable_pagetables);
    l1[3] = virt_to_mfn(data) << PAGE_SHIFT | PTE_DATA;
    printf("stored entry: %s\n", (l1[3] & PTE_FRAME) == (l1[1] & PTE_FRAME) ? "taken" : "lost");
    HYPERVISOR_vm_assist(VMASST_CMD_disable, VMASST_TYPE_writable_pagetables);

    printf("unpin: %s\n", error_name(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0)));
    printf("mapping it writable again: %s\n", error_name(page_protect(page, PTE_DATA)));
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    exceptions();
    page_tables();
    return 0;
}
