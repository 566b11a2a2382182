/*
 * Reads the disk xvda from end to end, sums it up, and writes its last sector.
 */
#include <guest.h>

#define CHUNK 128 /* sectors */

/* FNV-1a, 64 bits: short, and order matters. */
static u64 hash(u64 h, const u8 *data, u64 n)
{
    while (n--)
        h = (h ^ *data++) * 0x100000001b3;
    return h;
}

int main(int argc, char **argv)
{
    s64 rc;
    struct block *disk = block_open("xvda", &rc);
    u8 *buffer = malloc(CHUNK * SECTOR_SIZE);
    u64 sectors, h = 0xcbf29ce484222325;

    (void)argc, (void)argv;
    if (!disk)
        panic("xvda: %s", error_name(rc));
    sectors = block_sectors(disk);
    for (u64 at = 0; at < sectors && !rc; at += CHUNK) {
        u64 n = MIN(CHUNK, sectors - at);

        rc = block_read(disk, at, buffer, n);
        h = hash(h, buffer, n * SECTOR_SIZE);
    }
    printf("%lu sectors, fnv1a %016lx, %s\n", sectors, h, error_name(rc));
    memset(buffer, 0, SECTOR_SIZE);
    memcpy(buffer, "written by a C guest", 20);
    rc = block_write(disk, sectors - 1, buffer, 1);
    if (!rc)
        rc = block_flush(disk);
    printf("write of the last sector: %s\n", error_name(rc));
    rc = block_read(disk, sectors, buffer, 1);
    printf("read behind the end: %s\n", error_name(rc));
    block_close(disk);
    disk = block_open("xvda", &rc); /* a disk that was closed in order can be opened again */
    if (!disk)
        panic("xvda again: %s", error_name(rc));
    rc = block_read(disk, sectors - 1, buffer, 1);
    printf("opened again: %s, \"%s\"\n", error_name(rc), (char *)buffer);
    block_close(disk);
    return 0;
}
