/* PVH start information under the name that it has in Xen's own tree. */
#include "../../hvm/start_info.h"
