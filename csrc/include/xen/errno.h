/*
 * Error numbers of the hypercall interface: enum { XEN_EPERM = 1, ... }, from errno.def.
 *
 * As with Xen's own header, a guest that wants the numbers under other names defines XEN_ERRNO(name, value) before it
 * includes this file, and gets the rows expanded in place (then, and only then, more than one inclusion counts).
 */
#ifdef XEN_ERRNO
#include "errno.def"
#undef XEN_ERRNO
#elif !defined(__XEN_PUBLIC_ERRNO_H__)
#define __XEN_PUBLIC_ERRNO_H__

#include "xen-compat.h"

#define XEN_ERRNO(name, value) XEN_CONST(XEN_##name, value)
XEN_TABLE_BEGIN
#include "errno.def"
XEN_TABLE_END
#undef XEN_ERRNO

#endif
