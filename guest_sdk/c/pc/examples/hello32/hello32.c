/* The smallest 32-bit image: says what the multiboot loader told, and ends. */
#include <pc/pc.h>

struct multiboot_info { u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr; };

void pc_main(unsigned long magic, unsigned long info)
{
    const struct multiboot_info *m = (const struct multiboot_info *)info;
    serial_init();
    check(magic == 0x2badb002);
    print("Hello from 32 bits: %u KiB above 1 MiB", m->mem_upper);
    if (m->flags & 4)
        print(", command line \"%s\"", (const char *)m->cmdline);
    if (m->flags & 8 && m->mods_count) {
        const u32 *module = (const u32 *)m->mods_addr;
        print(", module of %u bytes", module[1] - module[0]);
    }
    print("\n");
    pc_exit(0);
}
