/*
 * The console: the PV ring once console_init has run, console_io before. printf writes here.
 */
#ifndef GUEST_CONSOLE_H
#define GUEST_CONSOLE_H

#include <guest/types.h>

/* Writes all of it, waiting for room in the ring. "\n" goes out as it is. */
void console_write(const char *text, size_t n);

/* Waits until the back end has taken everything. */
void console_drain(void);

/* Up to n bytes of input; 0 if there is none. */
size_t console_read(char *buffer, size_t n);

/* A line without its end, waiting for it. Returns its length; what does not fit is dropped. */
size_t console_gets(char *buffer, size_t size);

void console_init(void);

#endif
