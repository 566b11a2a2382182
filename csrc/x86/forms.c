/* The table of forms and its index by opcode.
 *
 * Owns: x86_forms, x86_form_index. Called by: decode.c and whoever lists forms. All of it is constant: no start-up work, no locks.
 */
#include "x86/decode.h"

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

enum { X86_FEAT_0 = 0 };

#define OPERANDS_(a, b, c, d, ...) { OP_##a, OP_##b, OP_##c, OP_##d }
#define OPERANDS(...) OPERANDS_(__VA_ARGS__, , , , )

#define FORM(op_, mnemonic_, map_, first_, last_, prefix_, mod_, ext_, w_, feature_, attr_, ...)                        \
    { .mnemonic = mnemonic_, .op = &x86_op_##op_, .feature = X86_FEAT_##feature_, .attr = attr_, .map = X86_MAP_##map_,  \
      .first = 0x##first_, .last = 0x##last_, .prefix = PFX_##prefix_, .mod = MOD_##mod_, .w = W_##w_, .ext = ext_,      \
      .operand = OPERANDS(__VA_ARGS__) },
const struct x86_form x86_forms[] = {
#include "x86/forms.def"
#include "x86/forms_sse.def"
};
#undef FORM
const unsigned x86_nr_forms = ARRAY_SIZE(x86_forms);

/* A later row's designator overrides an earlier one's: what remains is the last row of each opcode. __COUNTER__ numbers the rows. */
#pragma GCC diagnostic ignored "-Woverride-init"
#define FORM(op_, mnemonic_, map_, first_, last_, ...) [X86_MAP_##map_][0x##first_ ... 0x##last_] = __COUNTER__ - BASE,
enum { BASE = __COUNTER__ };
const u16 x86_form_index[2][X86_NR_MAPS][256] = {
    {
#include "x86/forms.def"
    }, {
#include "x86/forms_sse.def"
    },
};
#undef FORM
