/* The smallest 64-bit image: says what hvm_start_info told, and ends. */
#include <pc/pc.h>

struct start_info { u32 magic, version, flags, nr_modules; u64 modlist, cmdline, rsdp, memmap; u32 memmap_entries, reserved; };
struct memmap { u64 addr, size; u32 type, reserved; };
struct module { u64 paddr, size, cmdline, reserved; };

void pc_main(unsigned long magic, unsigned long info)
{
    const struct start_info *s = (const struct start_info *)info;
    u64 ram = 0;
    serial_init();
    check(magic == 0 && s->magic == 0x336ec578);
    for (u32 n = 0; s->version >= 1 && n < s->memmap_entries; n++) {
        const struct memmap *m = (const struct memmap *)s->memmap + n;
        if (m->type == 1 && m->addr >= 0x100000)
            ram += m->size;
    }
    print("Hello from 64 bits: %lu KiB above 1 MiB", (unsigned long)(ram >> 10));
    if (s->cmdline && *(const char *)s->cmdline)
        print(", command line \"%s\"", (const char *)s->cmdline);
    if (s->nr_modules)
        print(", module of %lu bytes", (unsigned long)((const struct module *)s->modlist)->size);
    print("\n");
    pc_exit(0);
}
