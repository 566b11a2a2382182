/* The heap, numbers. malloc may be called on any vCPU and from event handlers. */
#ifndef GUEST_STDLIB_H
#define GUEST_STDLIB_H

#include <stddef.h>

void *malloc(size_t size);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t size);
void free(void *p);
unsigned long strtoul(const char *s, char **end, int base);

#endif
