/* For those who look at translations: names, and why a block is refused. Used by: verify.c, dump.c, xenlike_bt.c. Owns: nothing. */
#ifndef XL_BT_INSPECT_H
#define XL_BT_INSPECT_H

#include "bt/internal.h"

enum { BT_NAME = 48 };
/* What [gs:offset] is, what is at a cache offset: false if it has no name. */
bool bt_field_name(const struct bt *t, u64 offset, char out[BT_NAME]);
bool bt_routine_name(const struct bt *t, u32 at, char out[BT_NAME]);

/* NULL: block b is in order. Else what is wrong, and in *at the cache offset of the host instruction that is. b must not be invalid. */
const char *bt_verify_why(const struct bt *t, const struct bt_block *b, u32 *at);

#endif
