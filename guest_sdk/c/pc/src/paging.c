/* A window of pages beside the boot's own mapping: whatever its page table says. */
#include <pc/pc.h>

#ifdef __x86_64__
extern u64 pml4[];

void pc_map_window(const u64 *page_table)
{
    static u64 pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096)));
    pml4[1] = (u64)pdpt | 3;
    pdpt[0] = (u64)pd | 3;
    pd[0] = (u64)page_table | 3;
}
#endif
