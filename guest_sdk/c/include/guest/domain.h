/*
 * The domain as a whole: what it was started with, and how it ends.
 */
#ifndef GUEST_DOMAIN_H
#define GUEST_DOMAIN_H

#include <guest/hypercall.h>

extern struct start_info *start_info;
extern struct shared_info shared_info; /* mapped at start */

/* The guest's own function. argv[1...] are the words of the domain's command line (extra, cmdline). 0 powers off. */
int main(int argc, char **argv);

domid_t domain_id(void);

/* SHUTDOWN_poweroff and so on, after the console has drained. */
void domain_shutdown(u32 reason) __attribute__((noreturn));

/* Prints and crashes the domain. */
void panic(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#define ASSERT(cond)                                                                                                               \
    do {                                                                                                                           \
        if (!(cond))                                                                                                               \
            panic("%s:%d: assertion failed: %s", __FILE__, __LINE__, #cond);                                                       \
    } while (0)

/* Name of an error number, positive or negative: "EINVAL". */
const char *error_name(s64 error);

#endif
