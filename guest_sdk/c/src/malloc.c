/*
 * The heap: first fit over a list of free blocks in address order, neighbours joined; it grows by pages and keeps them.
 */
#include <guest.h>

#define UNIT 16 /* size and alignment of a header, and of everything */
#define GROW 16 /* pages at least */

struct block_header {
    size_t size; /* with the header, in bytes */
    struct block_header *next;
};

static struct block_header *free_list;
static spinlock_t lock;

static void give(struct block_header *block)
{
    struct block_header **link = &free_list, *prev = NULL;

    while (*link && *link < block) {
        prev = *link;
        link = &prev->next;
    }
    block->next = *link;
    *link = block;
    if (block->next && (char *)block + block->size == (char *)block->next) {
        block->size += block->next->size;
        block->next = block->next->next;
    }
    if (prev && (char *)prev + prev->size == (char *)block) {
        prev->size += block->size;
        prev->next = block->next;
    }
}

static struct block_header *take(size_t size)
{
    for (struct block_header **link = &free_list; *link; link = &(*link)->next) {
        struct block_header *block = *link;

        if (block->size < size)
            continue;
        if (block->size - size < 2 * UNIT) {
            *link = block->next;
        } else { /* the end of it, so that the list stays as it is */
            block->size -= size;
            block = (void *)((char *)block + block->size);
            block->size = size;
        }
        return block;
    }
    return NULL;
}

void *malloc(size_t size)
{
    struct block_header *block;
    bool masked;

    if (size > 1ul << 31)
        return NULL;
    size = ALIGN_UP(size, UNIT) + UNIT;
    masked = spin_lock_events(&lock);
    block = take(size);
    if (!block) {
        u64 n = MAX(DIV_UP(size, PAGE_SIZE), (u64)GROW);
        struct block_header *fresh = page_alloc(n);

        if (fresh) {
            fresh->size = n * PAGE_SIZE;
            give(fresh);
            block = take(size);
        }
    }
    spin_unlock_events(&lock, masked);
    return block ? block + 1 : NULL;
}

void free(void *p)
{
    bool masked;

    if (!p)
        return;
    masked = spin_lock_events(&lock);
    give((struct block_header *)p - 1);
    spin_unlock_events(&lock, masked);
}

void *calloc(size_t n, size_t size)
{
    size_t bytes;
    void *p = __builtin_mul_overflow(n, size, &bytes) ? NULL : malloc(bytes);

    return p ? memset(p, 0, bytes) : NULL;
}

void *realloc(void *p, size_t size)
{
    size_t old = p ? ((struct block_header *)p - 1)->size - UNIT : 0;
    void *fresh;

    if (p && size <= old)
        return p;
    fresh = malloc(size);
    if (fresh && p) {
        memcpy(fresh, p, old);
        free(p);
    }
    return fresh;
}

unsigned long strtoul(const char *s, char **end, int base)
{
    unsigned long value = 0;
    const char *start = s;

    while (*s == ' ' || *s == '\t')
        s++;
    if ((base == 0 || base == 16) && s[0] == '0' && (s[1] | 32) == 'x') {
        base = 16;
        s += 2;
    }
    if (base == 0)
        base = *s == '0' ? 8 : 10;
    for (;; s++, start = NULL) {
        int digit = *s >= '0' && *s <= '9' ? *s - '0' : (*s | 32) >= 'a' && (*s | 32) <= 'z' ? (*s | 32) - 'a' + 10 : 99;

        if (digit >= base)
            break;
        value = value * base + digit;
    }
    if (end)
        *end = (char *)(start ? start : s);
    return value;
}
