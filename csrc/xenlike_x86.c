/* Decoding and the table of forms for Python (xenlike_x86.h). Owns: the forms' texts. Locks: none. */
#include "xenlike_x86.h"

#include <string.h>

#include "x86/insn.h"

#define SAME(name) STATIC_ASSERT((int)XL_X86_##name == (int)X86_##name)
SAME(NONE); SAME(REG); SAME(MEM); SAME(IMM); SAME(REL); SAME(FAR); SAME(SEG); SAME(CR); SAME(DR); SAME(XMM); SAME(MMX); SAME(ST);
SAME(IMM2); SAME(TRUNCATED); SAME(UNDEFINED); SAME(TOO_LONG);
SAME(LOCK); SAME(REP); SAME(REPNE); SAME(OPSIZE); SAME(ADDRSIZE); SAME(SEGOVR); SAME(VEX); SAME(HAS_MEM);

int xl_x86_decode(const u8 *bytes, u32 n, u32 mode, u64 features, struct xl_x86_insn *out)
{
    struct x86_insn i;
    if (mode != 16 && mode != 32 && mode != 64)
        return -22;
    int len = x86_decode(&i, bytes, n, mode, features);
    *out = (struct xl_x86_insn){
        .imm = i.imm, .disp = i.disp, .addr_mask = i.addr_mask, .form = i.form, .sel = i.sel, .len = i.len, .size = i.size,
        .prefixes = i.prefixes, .opcode = i.opcode, .modrm = i.modrm, .rex = i.rex, .mem_seg = i.mem_seg,
        .base = i.base, .index = i.index, .scale = i.scale, .nr_ops = i.nr_ops,
    };
    for (unsigned k = 0; k < 4; k++)
        out->op[k] = (struct xl_x86_operand){ i.op[k].kind, i.op[k].reg, i.op[k].size };
    if (len > 0)
        x86_mnemonic(&i, out->mnemonic);
    return len;
}

struct form_text { const char *op, *map, *prefix, *mod, *w, *feature, *attributes, *operands; };

#define FORM(op, mnemonic, map, first, last, prefix, mod, ext, w, feature, attr, ...) \
    { #op, #map, #prefix, #mod, #w, #feature, #attr, #__VA_ARGS__ },
static const struct form_text texts[] = {
#include "x86/forms.def"
#if __has_include("x86/forms_sse.def")
#include "x86/forms_sse.def"
#endif
};
#undef FORM

int xl_x86_form(u32 number, struct xl_x86_form *out)
{
    if (number >= x86_nr_forms)
        return -2;
    const struct x86_form *f = &x86_forms[number];
    const struct form_text *t = &texts[number];
    *out = (struct xl_x86_form){
        .mnemonic = f->mnemonic, .op = t->op, .map = t->map, .prefix = t->prefix, .mod = t->mod, .w = t->w, .feature = t->feature,
        .attributes = t->attributes, .operands = t->operands, .ext = f->ext, .first = f->first, .last = f->last, .attr = f->attr,
    };
    return 0;
}
