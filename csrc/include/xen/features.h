/*
 * Feature bits, XENFEAT_<name>: read with XENVER_get_features, asked for by the ELF notes of a guest.
 */
#ifndef __XEN_PUBLIC_FEATURES_H__
#define __XEN_PUBLIC_FEATURES_H__

#include "xen-compat.h"

#define XENFEAT(bit, name) XEN_CONST(XENFEAT_##name, bit)
XEN_TABLE_BEGIN
#include "xenfeat.def"
    XEN_CONST(XENFEAT_NR_SUBMAPS, 1)
XEN_TABLE_END
#undef XENFEAT

#endif
