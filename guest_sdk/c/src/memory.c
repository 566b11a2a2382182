/*
 * The page allocator, the linear mapping, page tables.
 *
 * The builder leaves a mapping of the image, of what it put behind it (P2M, start_info, rings, tables, boot stack), and of at least
 * 512 KiB of free pages; memory_init builds the rest of the linear mapping with tables from those.
 */
#include "bitmap.h"
#include <guest.h>

#define ENTRIES 512
#define LINEAR_PAGES (0x80000000ul >> PAGE_SHIFT) /* from VIRT_BASE to the end of the address space */

u64 *p2m;
struct space kernel_space;

static struct bitmap pages;
static u64 vmap_words[VMAP_PAGES / 64];
static struct bitmap vmap = {.words = vmap_words, .size = VMAP_PAGES};

/* ---- Pages ------------------------------------------------------------------------------------------------------- */

void *page_alloc(u64 n)
{
    u64 pfn = bitmap_take(&pages, n);

    return pfn < pages.size ? memset(pfn_to_virt(pfn), 0, n * PAGE_SIZE) : NULL;
}

void page_free(void *va, u64 n)
{
    if (va)
        bitmap_give(&pages, virt_to_pfn(va), n);
}

u64 page_free_count(void)
{
    u64 n = 0;

    for (u64 pfn = 0; pfn < pages.size; pfn++)
        n += !(pages.words[pfn / 64] >> (pfn % 64) & 1);
    return n;
}

s64 page_protect(const void *va, u64 flags)
{
    return HYPERVISOR_update_va_mapping(va, virt_to_mfn(va) << PAGE_SHIFT | flags, UVMF_INVLPG | UVMF_ALL);
}

/* ---- Page tables ------------------------------------------------------------------------------------------------- */

s64 mmuext(u32 cmd, u64 arg1, u64 arg2)
{
    struct mmuext_op op = {.cmd = cmd, .arg1.mfn = arg1, .arg2.src_mfn = arg2};

    return HYPERVISOR_mmuext_op(&op, 1, NULL, DOMID_SELF);
}

s64 pte_write(const u64 *entry, u64 value)
{
    u64 machine = virt_to_mfn(entry) << PAGE_SHIFT | ((u64)entry & ~PAGE_MASK);
    struct mmu_update update = {machine | MMU_NORMAL_PT_UPDATE, value};

    return HYPERVISOR_mmu_update(&update, 1, NULL, DOMID_SELF);
}

static u64 *table_alloc(void)
{
    u64 *table = page_alloc(1);

    if (table && page_protect(table, PTE_RO | PTE_NX)) {
        page_free(table, 1);
        return NULL;
    }
    return table;
}

static void table_free(u64 *table)
{
    /* Busy only if somebody else still refers to the table: then the page stays lost, which is better than reused. */
    if (!page_protect(table, PTE_DATA | PTE_NX))
        page_free(table, 1);
}

u64 *space_entry(const struct space *space, u64 va, u32 level, bool create)
{
    u64 *table = space->l4;

    for (u32 at = 4;; at--) {
        u64 *entry = &table[va >> (12 + 9 * (at - 1)) & (ENTRIES - 1)];

        if (at == level)
            return entry;
        if (!(READ_ONCE(*entry) & PTE_P)) {
            table = create ? table_alloc() : NULL;
            if (!table)
                return NULL;
            if (pte_write(entry, virt_to_mfn(table) << PAGE_SHIFT | PTE_TABLE)) {
                table_free(table);
                return NULL;
            }
        } else {
            table = mfn_to_virt((*entry & PTE_FRAME) >> PAGE_SHIFT);
        }
    }
}

s64 space_map(const struct space *space, u64 va, u64 pte)
{
    u64 *entry = space_entry(space, va, 1, true);

    return entry ? pte_write(entry, pte) : -XEN_ENOMEM;
}

s64 kernel_map(u64 va, u64 pte)
{
    if (!space_entry(&kernel_space, va, 1, true))
        return -XEN_ENOMEM;
    return HYPERVISOR_update_va_mapping((void *)va, pte, UVMF_INVLPG | UVMF_ALL);
}

s64 kernel_unmap(u64 va)
{
    return HYPERVISOR_update_va_mapping((void *)va, 0, UVMF_INVLPG | UVMF_ALL);
}

s64 space_create(struct space *space)
{
    space->l4 = table_alloc();
    return space->l4 ? 0 : -XEN_ENOMEM;
}

/* Frees what hangs below a table, which nothing refers to any more. Xen's own slots in an L4 are not ours. */
static void tables_free(u64 *table, u32 level)
{
    for (u32 i = 0; level > 1 && i < ENTRIES; i++)
        if (table[i] & PTE_P && !(level == 4 && i >= 256 && i < 272))
            tables_free(mfn_to_virt((table[i] & PTE_FRAME) >> PAGE_SHIFT), level - 1);
    table_free(table);
}

void space_destroy(struct space *space)
{
    if (!space->l4)
        return;
    mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(space->l4), 0); /* -EINVAL if it was not pinned */
    tables_free(space->l4, 4);
    space->l4 = NULL;
}

void *vmap_alloc(u64 n)
{
    u64 at = bitmap_take(&vmap, n);

    if (at >= vmap.size)
        return NULL;
    for (u64 i = at; i < at + n; i++)
        if (!space_entry(&kernel_space, VMAP_BASE + i * PAGE_SIZE, 1, true)) {
            bitmap_give(&vmap, at, n);
            return NULL;
        }
    return (void *)(VMAP_BASE + at * PAGE_SIZE);
}

void vmap_free(void *va, u64 n)
{
    bitmap_give(&vmap, ((u64)va - VMAP_BASE) >> PAGE_SHIFT, n);
}

/* ---- Start ------------------------------------------------------------------------------------------------------- */

/* Maps pfns from `from` on, one new L1 at a time; each gives the allocator more pages. Returns where it had to end. */
static u64 map_linear(u64 from, u64 end)
{
    while (from < end) {
        u64 va = (u64)pfn_to_virt(from), count = MIN(ENTRIES - from % ENTRIES, end - from);
        u64 *entry = space_entry(&kernel_space, va, 2, true), *l1;

        if (!entry)
            break;
        if (*entry & PTE_P) { /* the last L1 of the boot mapping has room */
            for (u64 i = 0; i < count; i++)
                if (space_map(&kernel_space, va + i * PAGE_SIZE, pfn_to_mfn(from + i) << PAGE_SHIFT | PTE_DATA | PTE_NX))
                    return from + i;
        } else {
            l1 = page_alloc(1);
            if (!l1)
                break;
            for (u64 i = 0; i < count; i++)
                l1[from % ENTRIES + i] = pfn_to_mfn(from + i) << PAGE_SHIFT | PTE_DATA | PTE_NX;
            if (page_protect(l1, PTE_RO | PTE_NX) || pte_write(entry, virt_to_mfn(l1) << PAGE_SHIFT | PTE_TABLE))
                break;
        }
        bitmap_give(&pages, from, count);
        from += count;
    }
    return from;
}

/* The L1 entry of va, given that of the page before; NULL: no table. A walk for each page would be most of the boot. */
static const u64 *next_entry(const u64 *entry, u64 va)
{
    return entry && va >> PAGE_SHIFT & (ENTRIES - 1) ? entry + 1 : space_entry(&kernel_space, va, 1, false);
}

/* Rights of mapped pages, in batches; their translation stays. Tables must not be among them. */
static void protect(const char *from, const char *to, u64 flags)
{
    struct mmu_update batch[64];
    const u64 *entry = NULL;
    u32 n = 0;

    for (u64 va = (u64)from; va < (u64)to; va += PAGE_SIZE) {
        entry = next_entry(entry, va);
        batch[n++] = (struct mmu_update){virt_to_mfn(entry) << PAGE_SHIFT | ((u64)entry & ~PAGE_MASK) | MMU_NORMAL_PT_UPDATE,
                                         (*entry & PTE_FRAME) | flags};
        if (n == ARRAY_SIZE(batch) || va + PAGE_SIZE >= (u64)to) {
            if (HYPERVISOR_mmu_update(batch, n, NULL, DOMID_SELF))
                panic("cannot set the rights of %#lx", va);
            n = 0;
        }
    }
}

/* Text read-only, nothing that is data executable. */
static void protect_all(u64 mapped)
{
    extern char __text[], __rodata[], __data[];
    char *tables = (char *)start_info->pt_base;

    protect(__text, __rodata, PTE_RO);
    protect(__rodata, __data, PTE_RO | PTE_NX);
    protect(__data, tables, PTE_DATA | PTE_NX);
    protect(tables + start_info->nr_pt_frames * PAGE_SIZE, pfn_to_virt(mapped), PTE_DATA | PTE_NX);
    tlb_flush();
}

void memory_init(void)
{
    u64 first = virt_to_pfn((void *)start_info->pt_base) + start_info->nr_pt_frames + 1; /* behind the boot stack */
    u64 nr = MIN(start_info->nr_pages, LINEAR_PAGES - ENTRIES);                          /* the last addresses serve as errors */
    u64 bitmap_pages = DIV_UP(nr, PAGE_SIZE * 8), mapped;
    const u64 *entry = NULL;

    p2m = (u64 *)start_info->mfn_list;
    kernel_space.l4 = (u64 *)start_info->pt_base;
    pages.words = pfn_to_virt(first);
    pages.size = nr;
    memset(pages.words, 0xff, bitmap_pages * PAGE_SIZE);
    for (mapped = first; mapped < nr; mapped++) {
        entry = next_entry(entry, (u64)pfn_to_virt(mapped));
        if (!entry || !(*entry & PTE_P))
            break;
    }
    protect_all(mapped);
    bitmap_give(&pages, first + bitmap_pages, mapped - first - bitmap_pages);
    map_linear(mapped, nr);
}
