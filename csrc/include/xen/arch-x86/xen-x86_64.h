/* The x86-64 ABI under the name that it has in Xen's own tree. */
#include "../arch-x86_64.h"
