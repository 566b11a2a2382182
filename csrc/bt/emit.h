/* Writing host instructions.
 *
 * Owns: struct emit. Used by: cache.c and what translates (translate.h). Only what the translator needs, 64-bit forms unless the name says
 * otherwise. Encodings: SDM vol. 2, chapter 2. [GS + disp32] is modrm 00 reg 100, SIB 25h, prefix 65h.
 */
#ifndef XL_BT_EMIT_H
#define XL_BT_EMIT_H

#include <string.h>

#include "bt/internal.h"

struct emit {
    struct bt *t;
    u8 *p;                      /* writable view */
    u32 at;                     /* cache offset of p */
};
#define GS(field) ((u32)offsetof(struct bt, field))
enum { NO_INDEX = -1 };

static inline void e8(struct emit *e, u8 b) { *e->p++ = b; e->at++; }
static inline void e32(struct emit *e, u32 x) { memcpy(e->p, &x, 4); e->p += 4; e->at += 4; }
static inline void e64(struct emit *e, u64 x) { memcpy(e->p, &x, 8); e->p += 8; e->at += 8; }
static inline void e_bytes(struct emit *e, const u8 *b, unsigned n) { memcpy(e->p, b, n); e->p += n; e->at += n; }

/* op reg, [gs:disp]; w: 64 bits. */
static inline void e_gs(struct emit *e, bool w, u8 op, unsigned reg, u32 disp)
{
    e8(e, 0x65);
    if (w || reg >= 8)
        e8(e, 0x40 | w << 3 | (reg >> 3) << 2);
    e8(e, op), e8(e, (reg & 7) << 3 | 4), e8(e, 0x25), e32(e, disp);
}
static inline void e_load(struct emit *e, unsigned reg, u32 disp) { e_gs(e, true, 0x8b, reg, disp); }
static inline void e_store(struct emit *e, unsigned reg, u32 disp) { e_gs(e, true, 0x89, reg, disp); }
static inline void e_store_imm32(struct emit *e, u32 disp, u32 imm) { e_gs(e, false, 0xc7, 0, disp), e32(e, imm); }

/* mov reg, [gs:index*8 + disp] */
static inline void e_load_index8(struct emit *e, unsigned reg, unsigned index, u32 disp)
{
    e8(e, 0x65), e8(e, 0x48 | (reg >> 3) << 2 | (index >> 3) << 1), e8(e, 0x8b), e8(e, (reg & 7) << 3 | 4);
    e8(e, 3 << 6 | (index & 7) << 3 | 5), e32(e, disp);
}
static inline void e_mov(struct emit *e, unsigned dst, unsigned src)
{
    e8(e, 0x48 | (src >> 3) << 2 | dst >> 3), e8(e, 0x89), e8(e, 0xc0 | (src & 7) << 3 | (dst & 7));
}
static inline void e_mov_imm(struct emit *e, unsigned dst, u64 imm)
{
    if (imm == (u32)imm) {
        if (dst >= 8)
            e8(e, 0x41);
        e8(e, 0xb8 | (dst & 7)), e32(e, (u32)imm);
    } else if (imm == (u64)(s64)(s32)imm) {
        e8(e, 0x48 | dst >> 3), e8(e, 0xc7), e8(e, 0xc0 | (dst & 7)), e32(e, (u32)imm);
    } else {
        e8(e, 0x48 | dst >> 3), e8(e, 0xb8 | (dst & 7)), e64(e, imm);
    }
}
/* lea dst, [base + index << scale + disp]; wide: else the result is cut to 32 bits. base < 0: none. */
static inline void e_lea(struct emit *e, bool wide, unsigned dst, int base, int index, unsigned scale, s32 disp)
{
    u8 rex = 0x40 | wide << 3 | (dst >> 3) << 2 | (index >= 8) << 1 | (base >= 8);
    bool sib = index >= 0 || base < 0 || (base & 7) == 4;
    u8 mod = base < 0 ? 0 : !disp && (base & 7) != 5 ? 0 : disp == (s8)disp ? 1 : 2;
    if (rex != 0x40)
        e8(e, rex);
    e8(e, 0x8d);
    e8(e, mod << 6 | (dst & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        e8(e, scale << 6 | (index >= 0 ? index & 7 : 4) << 3 | (base >= 0 ? base & 7 : 5));
    if (base < 0 || mod == 2)
        e32(e, (u32)disp);
    else if (mod == 1)
        e8(e, (u8)disp);
}
/* pext dst, src, [gs:mask] */
static inline void e_pext(struct emit *e, bool w, unsigned dst, unsigned src, u32 mask)
{
    e8(e, 0x65), e8(e, 0xc4), e8(e, (dst < 8) << 7 | 1 << 6 | 1 << 5 | 2), e8(e, w << 7 | (~src & 15) << 3 | 2), e8(e, 0xf5);
    e8(e, (dst & 7) << 3 | 4), e8(e, 0x25), e32(e, mask);
}
/* pdep dst, src, [gs:mask] */
static inline void e_pdep(struct emit *e, unsigned dst, unsigned src, u32 mask)
{
    e8(e, 0x65), e8(e, 0xc4), e8(e, (dst < 8) << 7 | 1 << 6 | 1 << 5 | 2), e8(e, 1 << 7 | (~src & 15) << 3 | 3), e8(e, 0xf5);
    e8(e, (dst & 7) << 3 | 4), e8(e, 0x25), e32(e, mask);
}
static inline void e_jmp(struct emit *e, u32 target) { e8(e, 0xe9), e32(e, target - e->at - 4); }
static inline void e_call(struct emit *e, u32 target) { e8(e, 0xe8), e32(e, target - e->at - 4); }
static inline void e_call_gs(struct emit *e, u32 disp) { e8(e, 0x65), e8(e, 0xff), e8(e, 0x14), e8(e, 0x25), e32(e, disp); }
static inline void e_push_gs(struct emit *e, u32 disp) { e8(e, 0x65), e8(e, 0xff), e8(e, 0x34), e8(e, 0x25), e32(e, disp); }
static inline void e_jmp_gs(struct emit *e, u32 disp) { e8(e, 0x65), e8(e, 0xff), e8(e, 0x24), e8(e, 0x25), e32(e, disp); }
static inline u32 e_jecxz(struct emit *e) { e8(e, 0x67), e8(e, 0xe3), e8(e, 0); return e->at; }
static inline u32 e_jrcxz(struct emit *e) { e8(e, 0xe3), e8(e, 0); return e->at; }      /* forward: e_here sets where to */
static inline void e_here(struct emit *e, u32 from) { e->t->rw[from - 1] = (u8)(e->at - from); }
/* A forward jump whose target comes later: returns the offset of its rel32. */
static inline u32 e_jmp_later(struct emit *e) { e8(e, 0xe9), e32(e, 0); return e->at - 4; }
static inline u32 e_call_later(struct emit *e) { e8(e, 0xe8), e32(e, 0); return e->at - 4; }
static inline u32 e_jcc_later(struct emit *e, u8 cc) { e8(e, 0x0f), e8(e, 0x80 | cc), e32(e, 0); return e->at - 4; }
static inline void e_patch(struct emit *e, u32 rel, u32 target) { u32 d = target - rel - 4; memcpy(e->t->rw + rel, &d, 4); }

#endif
