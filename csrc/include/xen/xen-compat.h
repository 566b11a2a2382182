/*
 * What the ABI headers need from the compiler: fixed-width integers, guest handles, flag pairs, layout checks.
 *
 * Every header of this folder includes this one and, but for <stddef.h> and <stdint.h>, nothing outside the folder. Its
 * readers:
 *   a C guest          plain; __XEN_INTERFACE_VERSION__ as with Xen's own headers;
 *   tools              with __XEN_TOOLS__, as with Xen's own headers;
 *   the hypervisor     with XL_CORE: guest pointers are 64-bit numbers that nothing can dereference by mistake;
 *   cffi               with XL_CDEF, through `gcc -E -P`: no includes, no attributes, no asserts;
 *   assembler sources  with __ASSEMBLY__: the tables of numbers become `.set` symbols.
 *
 * Constants are enumerators, never macros: a macro is gone after `-E`, and cffi and pycparser would not see it. A value
 * that needs 64 bits stands in an enum of its own (GNU C gives that enum type `unsigned long`; cffi picks the same).
 * Values with bit 31 set are written unsigned. 64-bit layout only: a 32-bit guest is not supported.
 */
#ifndef __XEN_PUBLIC_XEN_COMPAT_H__
#define __XEN_PUBLIC_XEN_COMPAT_H__

/*
 * The interface of Xen 4.17, whose sources last changed incompatibly in 4.14. As with Xen's own headers, a guest may
 * ask for an older version; here that decides about the form of guest handles only, older layouts are not kept.
 */
#define __XEN_LATEST_INTERFACE_VERSION__ 0x00040e00
#if defined(XL_CORE) || defined(XL_CDEF) || defined(__XEN_TOOLS__)
#undef __XEN_INTERFACE_VERSION__
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#elif !defined(__XEN_INTERFACE_VERSION__)
#define __XEN_INTERFACE_VERSION__ 0
#endif

/* A table of numbers, usable from C and from assembler: XEN_TABLE_BEGIN, rows of XEN_CONST, XEN_TABLE_END. */
#ifdef __ASSEMBLY__
#define XEN_TABLE_BEGIN
#define XEN_CONST(name, value) .set name, value;
#define XEN_TABLE_END
#else
#define XEN_TABLE_BEGIN enum {
#define XEN_CONST(name, value) name = value,
#define XEN_TABLE_END };
#endif

#ifndef __ASSEMBLY__

#ifndef XL_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* A flag that Xen publishes twice: as a bit number with a leading underscore, and as a mask. */
#define XEN_FLAG(name, bit) _##name = bit, name = 1u << bit

/*
 * A pointer into the guest's memory inside an argument structure. Size and offset are the same in all three forms: a
 * number for the hypervisor and Python; for guests a pointer, which those that declare an interface version from
 * 0x00030201 on find in a structure of its own. set_xen_guest_handle suits both. `name` is a name that
 * DEFINE_XEN_GUEST_HANDLE has had, or such a name after const_; guests may define more.
 */
#if defined(XL_CORE) || defined(XL_CDEF)
#define XEN_GUEST_HANDLE(name) uint64_t
#define __DEFINE_XEN_GUEST_HANDLE(name, type)
#else
#define XEN_GUEST_HANDLE(name) __guest_handle_##name
#define __DEFINE_XEN_GUEST_HANDLE(name, type)                                                                          \
    typedef XEN_POINTER_FIELD(type) __guest_handle_##name;                                                             \
    typedef XEN_POINTER_FIELD(const type) __guest_handle_const_##name
#if __XEN_INTERFACE_VERSION__ >= 0x00030201
#define XEN_POINTER_FIELD(type) struct { type *p; }
#define set_xen_guest_handle(handle, value) ((handle).p = (value))
#else
#define XEN_POINTER_FIELD(type) type *
#define set_xen_guest_handle(handle, value) ((handle) = (value))
#endif
#endif
#define DEFINE_XEN_GUEST_HANDLE(name) __DEFINE_XEN_GUEST_HANDLE(name, name)
#define XEN_GUEST_HANDLE_64(name) XEN_GUEST_HANDLE(name)

/* The few pointers that Xen gives guests as such, whatever their version. */
#if defined(XL_CORE) || defined(XL_CDEF)
#define XEN_GUEST_POINTER(type) uint64_t
#else
#define XEN_GUEST_POINTER(type) type *
#endif

/* Layout facts, checked where the structure is defined; tests/abi checks all the others. */
#ifdef XL_CDEF
#define XEN_ABI_SIZE(type, size)
#define XEN_ABI_OFFSET(type, field, offset)
#else
#define XEN_ABI_SIZE(type, size) _Static_assert(sizeof(type) == (size), #type " has another size")
#define XEN_ABI_OFFSET(type, field, offset)                                                                            \
    _Static_assert(offsetof(type, field) == (offset), #type "." #field " is elsewhere")
#endif

#endif /* !__ASSEMBLY__ */

#endif
