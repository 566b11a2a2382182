/*
 * Integer names, page arithmetic and compiler helpers of the C core.
 *
 * Owns no state and takes no lock; every file of csrc/ may include it. The guest-visible headers under include/xen do
 * not: they stand below this file and use <stdint.h> names, so that a guest can include them without getting these.
 *
 * Under XL_CDEF (the pass that feeds cffi) only typedefs and enumerators remain, because pycparser knows no GNU C.
 */
#ifndef XL_BASE_TYPES_H
#define XL_BASE_TYPES_H

#ifndef XL_CDEF
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

enum {
    PAGE_SHIFT = 12,
    PAGE_SIZE = 4096,
};

#ifndef XL_CDEF

#define STATIC_ASSERT(cond) _Static_assert(cond, #cond)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Clears the offset bits of an address of any width: the mask is sign-extended by the usual conversions. */
#define PAGE_MASK (~((s64)PAGE_SIZE - 1))

/* Number of elements; refuses a pointer at compile time (the array would be compatible with &(a)[0]'s type). */
#define ARRAY_SIZE(a)                                                                                                  \
    (sizeof(a) / sizeof((a)[0]) +                                                                                      \
     0 * sizeof(struct { _Static_assert(!__builtin_types_compatible_p(__typeof__(a), __typeof__(&(a)[0])),             \
                                        "ARRAY_SIZE of a pointer"); int unused_; }))

#define sizeof_field(type, field) sizeof(((type *)0)->field)

/* First byte after a field: the size that an older layout of the structure had. */
#define offsetof_end(type, field) (offsetof(type, field) + sizeof_field(type, field))

/* The structure that holds *ptr as its field; a pointer of another type than the field's does not compile. */
#define container_of(ptr, type, field)                                                                                 \
    ((type *)((char *)(1 ? (ptr) : &((type *)0)->field) - offsetof(type, field)))

/* Round to a power of two. Both are evaluated in the type of x. */
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a) - 1))
#define ALIGN_UP(x, a) ALIGN_DOWN((x) + ((__typeof__(x))(a) - 1), a)
#define IS_ALIGNED(x, a) (((x) & ((__typeof__(x))(a) - 1)) == 0)

/* An address that 4-level paging can translate: bits 48-63 repeat bit 47 (SDM vol. 1, 3.3.7.1). */
static inline bool va_canonical(u64 va) { return (u64)((s64)(va << 16) >> 16) == va; }

#define PFN_DOWN(bytes) ((u64)(bytes) >> PAGE_SHIFT)
#define PFN_UP(bytes) (((u64)(bytes) + PAGE_SIZE - 1) >> PAGE_SHIFT)

STATIC_ASSERT(PAGE_SIZE == 1 << PAGE_SHIFT);
STATIC_ASSERT(sizeof(void *) == 8);

#endif /* !XL_CDEF */

#endif
