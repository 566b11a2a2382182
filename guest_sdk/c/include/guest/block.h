/*
 * blkfront: virtual disks. Sectors are 512 bytes on the ring, whatever the back end's own.
 */
#ifndef GUEST_BLOCK_H
#define GUEST_BLOCK_H

#include <guest/types.h>

#define SECTOR_SIZE 512ul

struct block;

/* Connects the disk of that name ("xvda"); NULL, with the reason in *error if that is not NULL. */
struct block *block_open(const char *name, s64 *error);
void block_close(struct block *disk);

u64 block_sectors(const struct block *disk);
bool block_readonly(const struct block *disk);

/* Whole sectors, waiting for the answer. 0; -XEN_EIO; -XEN_EOPNOTSUPP. One vCPU at a time. */
s64 block_read(struct block *disk, u64 sector, void *buffer, u64 sectors);
s64 block_write(struct block *disk, u64 sector, const void *buffer, u64 sectors);
s64 block_flush(struct block *disk);

#endif
