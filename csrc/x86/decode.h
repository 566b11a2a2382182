/* What decode.c and forms.c share, and the generator of tests/lockstep uses. Owns: nothing. */
#ifndef XL_X86_DECODE_H
#define XL_X86_DECODE_H

#include "x86/insn.h"

/* 1 + number of the last row of the opcode, 0: none; [0] rows of forms.def, [1] of forms_sse.def. Rows of one opcode are contiguous
 * in each. */
extern const u16 x86_form_index[2][X86_NR_MAPS][256];

bool x86_form_has_modrm(const struct x86_form *f);

#endif
