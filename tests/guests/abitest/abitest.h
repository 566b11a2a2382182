/*
 * Tests of the ABI as a guest meets it, in one image. A test returns NULL if all is as it must be, or one of FAIL(...) and SKIP(...).
 * Each is a row of the table in main.c; the names of the behaviours are those under which XTF and the security advisories know them.
 */
#ifndef ABITEST_H
#define ABITEST_H

#include <guest.h>

const char *verdict(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define NON_CANONICAL 0x8000000000000000ul

#define FAIL(...) verdict("FAIL", __VA_ARGS__)
#define SKIP(...) verdict("SKIP", __VA_ARGS__)

/* Ends the test unless cond holds. */
#define CHECK(cond, ...)                                                                                                           \
    do {                                                                                                                           \
        if (!(cond))                                                                                                               \
            return FAIL(__VA_ARGS__);                                                                                              \
    } while (0)

/* Runs fn(arg) and checks for a trap with that vector and error code. */
#define CHECK_TRAP(vec, err, fn, arg)                                                                                              \
    do {                                                                                                                           \
        struct trap_record t_ = trap_try((fn), (void *)(arg));                                                                     \
        CHECK(t_.happened && t_.vector == (u32)(vec) && t_.error == (u32)(err), "%s(%#lx): %s %u(%#x), not %u(%#x)", #fn,          \
              (u64)(arg), t_.happened ? "trap" : "no trap", t_.vector, t_.error, (u32)(vec), (u32)(err));                          \
    } while (0)

/* A page table for user mode, made at the first call. */
struct user *user_space(void);

/* Runs a function in user mode; how it was ended. */
struct user_run {
    u64 (*fn)(u64);
    u64 arg;
    u64 (*syscall)(struct trap_regs *);
    u64 result;
};
struct trap_record user_try(struct user_run *run);

#define CHECK_USER_TRAP(vec, err, function, argument)                                                                              \
    do {                                                                                                                           \
        struct user_run u_ = {.fn = (void *)(function), .arg = (u64)(argument)};                                                   \
        struct trap_record t_ = user_try(&u_);                                                                                     \
        CHECK(t_.happened && t_.vector == (u32)(vec) && t_.error == (u32)(err), "user %s(%#lx): %s %u(%#x), not %u(%#x)",          \
              #function, u_.arg, t_.happened ? "trap" : "no trap", t_.vector, t_.error, (u32)(vec), (u32)(err));                   \
    } while (0)

#define TEST(name) const char *name(void);
#define CRASH(name) TEST(name)
#include "tests.def"
#undef TEST
#undef CRASH

#endif
