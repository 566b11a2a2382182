/* The x86 engine as Python sees it: decoding and the table of forms.
 *
 * Owns: nothing. Read by cffi like xenlike.h. Used by tests, scripts/decode_table.py, and whoever shows guest code.
 */
#ifndef XL_XENLIKE_X86_H
#define XL_XENLIKE_X86_H

#include "base/types.h"

enum {                          /* x86/insn.h's operand kinds and prefix flags for Python */
    XL_X86_NONE, XL_X86_REG, XL_X86_MEM, XL_X86_IMM, XL_X86_REL, XL_X86_FAR, XL_X86_SEG, XL_X86_CR, XL_X86_DR, XL_X86_XMM, XL_X86_MMX,
    XL_X86_ST, XL_X86_IMM2,
};
enum { XL_X86_TRUNCATED = 0, XL_X86_UNDEFINED = -1, XL_X86_TOO_LONG = -2 };
enum { XL_X86_LOCK = 1, XL_X86_REP = 2, XL_X86_REPNE = 4, XL_X86_OPSIZE = 8, XL_X86_ADDRSIZE = 16, XL_X86_SEGOVR = 32, XL_X86_VEX = 64,
       XL_X86_HAS_MEM = 128 };

struct xl_x86_operand {
    u32 kind;                   /* XL_X86_* */
    u32 reg;                    /* REG: byte offset into the register file (AH 1, RCX 8); others: the number */
    u32 size;                   /* bytes, 0: none */
};
struct xl_x86_insn {
    u64 imm;
    s64 disp;                   /* rip-relative: the length is included */
    u64 addr_mask;
    u32 form, sel;
    u32 len, size, prefixes, opcode, modrm, rex;
    u32 mem_seg;                /* ES CS SS DS FS GS: 0-5 */
    u32 base, index, scale;     /* 0-15, 16: none, 17: rip; scale: a shift */
    u32 nr_ops;
    struct xl_x86_operand op[4];
    char mnemonic[24];
};
/* Decodes the instruction at bytes[0..n) in mode 16, 32 or 64 with the features X86_FEAT_* (~0: all). Its length, or XL_X86_TRUNCATED,
 * XL_X86_UNDEFINED, XL_X86_TOO_LONG; -22 (EINVAL): no such mode. */
int xl_x86_decode(const u8 *bytes, u32 n, u32 mode, u64 features, struct xl_x86_insn *out);

struct xl_x86_form {
    const char *mnemonic, *op, *map, *prefix, *mod, *w, *feature, *attributes, *operands;       /* as forms.def has them */
    s32 ext;                    /* modrm.reg, 64 + n: modrm 0xc0 + n, -1: any */
    u32 first, last;            /* opcodes */
    u32 attr;                   /* F_* */
};
/* Row `number` of the table of forms. -2 (ENOENT): beyond its end. */
int xl_x86_form(u32 number, struct xl_x86_form *out);

#endif
