/* A decoded instruction, the tables it comes from, and how it is executed.
 *
 * Owns: struct x86_insn, x86_decode(), the numbering of forms. Called by: the interpreter, PV's emulation of privileged instructions,
 * gdb's reports, later the translator. No state, no locks. A decoded instruction holds no address: the same bytes in the same mode
 * decode to the same thing wherever they stand.
 *
 * A *form* is one row of forms.def: an opcode with its operands in the notation of SDM vol. 2, appendix A.2 (Ev, Gv, Ib, ...).
 * An *op* (struct x86_op, named x86_op_<mnemonic>) is what executes it: eight functions, by "has a memory operand" and by size.
 */
#ifndef XL_X86_INSN_H
#define XL_X86_INSN_H

#include "x86/cpu.h"

typedef void x86_exec_fn(struct x86_cpu *c, const struct x86_insn *i);
struct x86_op { x86_exec_fn *fn[2][4]; };       /* [1: an operand is in memory][log2 of x86_insn.size] */

enum x86_operand_kind {
    X86_NONE,
    X86_REG,                    /* general register: `reg` is the byte offset into x86_cpu.r, so AH is 1, RCX 8, BPL 40 */
    X86_MEM,                    /* the memory operand (there is at most one) */
    X86_IMM,                    /* x86_insn.imm */
    X86_REL,                    /* branch target: next rip + imm */
    X86_FAR,                    /* far pointer: sel:imm */
    X86_SEG, X86_CR, X86_DR,    /* `reg` is the number */
    X86_XMM, X86_MMX, X86_ST,   /* `reg` is the number */
    X86_IMM2,                   /* second immediate (enter), in sel */
};
struct x86_operand { u8 kind, reg, size; };     /* size in bytes; 0 where it has none (lea's memory, invlpg, ...) */

enum { X86_LOCK = 1, X86_REP = 2, X86_REPNE = 4, X86_OPSIZE = 8, X86_ADDRSIZE = 16, X86_SEGOVR = 32, X86_VEX = 64, X86_HAS_MEM = 128 };

struct x86_insn {
    x86_exec_fn *exec;
    u64 imm;                    /* immediate or displacement of a branch, extended as the form says; far pointer: its offset */
    s64 disp;                   /* of the memory operand; rip-relative: the instruction's length is added; moffs: the offset */
    u64 addr_mask;              /* of offsets: 2^16-1, 2^32-1 or 2^64-1 */
    u16 form;                   /* index into x86_forms */
    u16 sel;                    /* far pointer's selector; enter's second immediate */
    u8 len;                     /* 1..15 */
    u8 size;                    /* operand size in bytes (1, 2, 4, 8); SSE: size of the memory operand, rounded to 8 */
    u8 mode;                    /* 16, 32, 64 it was decoded for */
    u8 prefixes;                /* X86_LOCK ... */
    u8 opcode, modrm;           /* last opcode byte; modrm 0 if none */
    u8 rex;                     /* 0x40-0x4f, or 0; VEX: the equivalent bits */
    u8 nr_ops;
    u8 mem_seg;                 /* segment of the memory operand (or of DS:rSI for string instructions), overrides applied */
    u8 base, index, scale;      /* slots into x86_cpu.r (X86_ZERO: none, X86_RIP); scale as a shift */
    struct x86_operand op[4];
};

/* ---- tables ------------------------------------------------------------------------------------------------------ */

enum x86_map { X86_MAP_1, X86_MAP_0F, X86_MAP_0F38, X86_MAP_0F3A, X86_MAP_VEX0F38, X86_MAP_VEX0F3A, X86_NR_MAPS };

/* Operand codes of forms.def. First letter as in SDM vol. 2 A.2.1 (E modrm r/m, G modrm reg, I immediate, J relative, M memory only,
 * R register only, O moffs, S segment, C/D control/debug, Z low three bits of the opcode, X/Y string source/destination, V/W xmm reg /
 * xmm or memory, P/Q mmx, U/N register only, B VEX.vvvv general register, A far pointer), second the size (b w d q, v: 2/4/8, z: 2/4 (imm),
 * y: 4/8, dq 16, p far pointer in memory 2+2/4/8, s pseudo-descriptor). Fixed registers by name. Ibs: byte, sign-extended to size. */
enum x86_operand_code {
    OP_, OP_Eb, OP_Ew, OP_Ed, OP_Ev, OP_Ey, OP_Eq, OP_E64 /* v, but 64 by default in 64-bit mode */, OP_Gb, OP_Gw, OP_Gd, OP_Gv, OP_Gy, OP_Gq,
    OP_Ib, OP_Ibs, OP_Iw, OP_Iz, OP_Iv, OP_Iw2b /* enter */, OP_Jb, OP_Jz, OP_Ap, OP_Ob, OP_Ov, OP_M, OP_Mb, OP_Mw, OP_Md, OP_Mq, OP_Mdq, OP_My, OP_Mv, OP_Mp, OP_Ms, OP_Ma /* bound: two of v */,
    OP_Rd /* CR, DR moves: 4, or 8 in 64-bit mode */, OP_Rv, OP_Ry, OP_Sw, OP_Cd, OP_Dd, OP_Zb, OP_Zv, OP_Z64, OP_By,
    OP_AL, OP_CL, OP_DX, OP_rAX, OP_eAX /* z: 2 or 4 */, OP_1, OP_ES, OP_CS, OP_SS, OP_DS, OP_FS, OP_GS, OP_Xb, OP_Xv, OP_Xz, OP_Yb, OP_Yv, OP_Yz,
    OP_Vx /* 16 */, OP_Vd, OP_Vq, OP_Wx, OP_Wq, OP_Wd, OP_Ww, OP_Wb, OP_Ux, OP_Pq, OP_Qq, OP_Qd, OP_Nq, OP_ST, OP_STi, OP_XMM0,
    OP_Ez, OP_AX /* 16 bits: fnstsw */,
    OP_NR,
};

/* Attributes of a form. */
enum {
    F_NO64 = 1 << 0,            /* #UD in 64-bit mode */
    F_ONLY64 = 1 << 1,
    F_DEF64 = 1 << 2,           /* operand size is 64 by default in 64-bit mode, 32 impossible (push, pop, near branches) */
    F_LOCK = 1 << 3,            /* may have a lock prefix when its destination is memory; others #UD with it */
    F_REP = 1 << 4,             /* rep/repe/repne are meant (string instructions) */
    F_CPL0 = 1 << 5,            /* #GP(0) unless CPL 0: checked by the interpreter before exec */
    F_FPU = 1 << 6,             /* x87: #NM by CR0.EM/TS, #MF by a pending exception (its op checks) */
    F_MMX = 1 << 7, F_SSE = 1 << 8,     /* #UD by EM / OSFXSR, #NM by TS (its op checks) */
    F_BRANCH = 1 << 9,          /* may set next_rip */
    F_NOREAL = 1 << 10,         /* #UD in real and virtual-8086 mode */
    F_TEST_NEVER = 1 << 11,     /* lockstep on the host CPU cannot run it (system instructions); its test is named in the docs table */
};
enum { PFX_ANY = 0, PFX_NP, PFX_66, PFX_F3, PFX_F2, PFX_66F2 };         /* mandatory prefix. NP: none of 66, F2, F3 */
enum { MOD_ANY = 0, MOD_MEM, MOD_REG };
enum { EXT_ANY = -1 };          /* modrm.reg (0-7) of a group; 64 + n: the whole modrm byte is 0xc0 + n */
enum { W_ANY = 0, W_0, W_1 };   /* REX.W / VEX.W */

struct x86_form {
    const char *mnemonic;       /* as in the SDM, lower case; "j%c", "set%c", "cmov%c": condition by the opcode */
    const struct x86_op *op;
    u32 feature;                /* X86_FEAT_*, 0: every CPU */
    u16 attr;                   /* F_* */
    u8 map, first, last;        /* opcode range */
    u8 prefix, mod, w;
    s8 ext;
    u8 operand[4];              /* enum x86_operand_code */
};
extern const struct x86_form x86_forms[];
extern const unsigned x86_nr_forms;

/* Decodes the instruction at bytes[0..n). mode: 16, 32, 64; features: X86_FEAT_*.
 * Returns its length; or X86_TRUNCATED: n bytes do not hold all of it (n < 15); X86_UNDEFINED: no such form, or a prefix that it does not
 * take: #UD, and *i holds what is known (len 0); X86_TOO_LONG: more than 15 bytes: #GP(0). */
enum { X86_TRUNCATED = 0, X86_UNDEFINED = -1, X86_TOO_LONG = -2 };
int x86_decode(struct x86_insn *i, const u8 *bytes, unsigned n, unsigned mode, u64 features);
/* The form's mnemonic with its condition, into out (24 bytes). */
void x86_mnemonic(const struct x86_insn *i, char out[24]);

#define X86_OP_ALL(name, f)     const struct x86_op x86_op_##name = { { { f, f, f, f }, { f, f, f, f } } }
static inline unsigned x86_cond(const struct x86_insn *i) { return i->opcode & 15; }
static inline bool x86_has_mem(const struct x86_insn *i) { return i->prefixes & X86_HAS_MEM; }

#endif
