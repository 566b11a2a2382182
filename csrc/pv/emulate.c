/* Privileged instructions of a guest that runs at CPL 3: they raise #GP(0), and the hypervisor does what they mean (section 3.8).
 *
 * Owns: nothing. Called by: traps.c, outside guest mode. Locks: those of the hypercalls that do the same things (cr3: mm.lock).
 *
 * The instruction is fetched and decoded again, because a fault may also come from an instruction that is not privileged; what is no row of
 * the table stays the guest's fault.
 */
#include <string.h>

#include "hv/hypercall.h"
#include "pv/pv.h"
#include "x86/insn.h"

struct emulation {
    struct vcpu *v;
    struct x86_cpu *c;
    struct x86_insn i;
    struct x86_exception *e;    /* in: what was raised; out, with PV_FAULTED: what the guest gets */
};

/* Section 3.8's "IOPL ok": the guest kernel counts as ring 1, as ring 0 with the assist. */
static bool iopl_ok(const struct vcpu *v)
{
    unsigned cpl = !v->kernel_mode ? 3 : pv_assist(v, VMASST_TYPE_architectural_iopl) ? 0 : 1;
    return cpl <= v->arch.iopl;
}

static enum pv_emulated fault(struct emulation *m, unsigned vector)
{
    *m->e = (struct x86_exception){ .vector = (u8)vector, .has_error = vector == X86_GP };
    return PV_FAULTED;
}

static enum pv_emulated page_fault(struct emulation *m, const struct mmu_fault *f)
{
    *m->e = (struct x86_exception){ .vector = X86_PAGE, .has_error = true, .error = f->error_code, .cr2 = f->va };
    return PV_FAULTED;
}

/* ---- ports ------------------------------------------------------------------------------------------------------- */

/* The guest's own bitmap, set by PHYSDEVOP_set_iobitmap: a clear bit allows. */
static bool bitmap_allows(struct vcpu *v, u32 port, unsigned size)
{
    for (; size; size--, port++) {
        u8 byte;
        if (port >= v->arch.io_bitmap_ports || copy_from_guest(v, &byte, v->arch.io_bitmap + port / 8, 1) || (byte >> port % 8 & 1))
            return false;
    }
    return true;
}

static bool port_ok(struct vcpu *v, u16 port, unsigned size) { return iopl_ok(v) || bitmap_allows(v, port, size); }

static void set_rax(struct x86_cpu *c, unsigned size, u32 value)
{
    u64 mask = size == 4 ? ~0ul : (1ul << size * 8) - 1;
    c->r[X86_RAX] = (c->r[X86_RAX] & ~mask) | (value & (size == 4 ? 0xffffffff : mask));
}

static enum pv_emulated in_out(struct emulation *m)
{
    struct x86_cpu *c = m->c;
    u8 op = m->i.opcode;
    unsigned size = !(op & 1) ? 1 : m->i.size == 2 ? 2 : 4;
    u16 port = op & 8 ? (u16)c->r[X86_RDX] : (u8)m->i.imm;
    if (!port_ok(m->v, port, size))
        return PV_NOT_EMULATED;
    if (op & 2)
        pv_port_write(m->v, port, size, (u32)c->r[X86_RAX]);
    else
        set_rax(c, size, pv_port_read(m->v, port, size));
    return PV_EMULATED;
}

/* ins, outs, with or without rep: some elements at a time, then the guest goes on at the same instruction. */
static enum pv_emulated string_io(struct emulation *m)
{
    enum { BATCH = 256 };
    struct x86_cpu *c = m->c;
    struct vcpu *v = m->v;
    const bool out = m->i.opcode & 2, rep = m->i.prefixes & (X86_REP | X86_REPNE);
    const unsigned size = !(m->i.opcode & 1) ? 1 : m->i.size == 2 ? 2 : 4, reg = out ? X86_RSI : X86_RDI;
    const u64 mask = m->i.addr_mask, step = c->rflags & X86_DF ? -(u64)size : size;
    const u64 base = c->lin_base[out ? m->i.mem_seg : X86_ES];
    const u16 port = (u16)c->r[X86_RDX];
    u64 left = rep ? c->r[X86_RCX] & mask : 1;
    if (!port_ok(v, port, size))
        return PV_NOT_EMULATED;

    for (unsigned n = 0; left && n < BATCH; n++, left--) {
        u64 va = base + (c->r[reg] & mask);
        struct mmu_fault f;
        u32 value = 0;
        if (!va_canonical(va))
            return fault(m, X86_GP);
        if (out) {
            if (mmu_read(v, &value, va, size, &f))
                return page_fault(m, &f);
            pv_port_write(v, port, size, value);
        } else {
            value = pv_port_read(v, port, size);
            if (mmu_write(v, va, &value, size, &f))
                return page_fault(m, &f);
        }
        u64 keep = mask == 0xffff ? ~mask : 0;          /* 32-bit results clear the upper half, 16-bit ones keep it */
        c->r[reg] = (c->r[reg] & keep) | ((c->r[reg] + step) & mask);
        if (rep)
            c->r[X86_RCX] = (c->r[X86_RCX] & keep) | ((left - 1) & mask);
    }
    if (left)
        c->r[X86_RIP] -= m->i.len;      /* the caller adds it */
    return PV_EMULATED;
}

/* ---- control and debug registers --------------------------------------------------------------------------------- */

static enum pv_emulated read_cr(struct emulation *m, unsigned cr, u64 *value)
{
    struct x86_cpu *c = m->c;
    switch (cr) {
    case 0: *value = c->cr0; break;
    case 2: *value = c->cr2; break;
    case 3: *value = (u64)m->v->cr3_mfn << PAGE_SHIFT; break;
    case 4: *value = c->cr4; break;
    default: return PV_NOT_EMULATED;
    }
    return PV_EMULATED;
}

static enum pv_emulated write_cr(struct emulation *m, unsigned cr, u64 value)
{
    struct x86_cpu *c = m->c;
    switch (cr) {
    case 0:
        if ((c->cr0 ^ value) & ~X86_CR0_TS)
            return PV_NOT_EMULATED;
        c->cr0 = value;
        return PV_EMULATED;
    case 2:
        c->cr2 = value;
        m->v->info->arch.cr2 = value;
        frame_mark_dirty(&m->v->host->machine, m->v->info_mfn ? m->v->info_mfn : m->v->domain->shared_info_mfn);
        return PV_EMULATED;
    case 3:
        return value >> PAGE_SHIFT && !mm_new_base(m->v, false, value >> PAGE_SHIFT) ? PV_EMULATED : PV_NOT_EMULATED;
    case 4:
        c->cr4 = PV_CR4 | (value & PV_CR4_GUEST);
        return PV_EMULATED;
    default:
        return PV_NOT_EMULATED;
    }
}

static enum pv_emulated mov_cr_dr(struct emulation *m)
{
    const struct x86_insn *i = &m->i;
    bool write = i->opcode & 2, dr = i->opcode & 1;
    const struct x86_operand *gpr = &i->op[write], *reg = &i->op[!write];
    u64 *slot = &m->c->r[gpr->reg / 8];
    if (gpr->kind != X86_REG || (dr && reg->reg > 7))
        return PV_NOT_EMULATED;
    if (!dr)
        return write ? write_cr(m, reg->reg, *slot) : read_cr(m, reg->reg, slot);
    if ((reg->reg == 4 || reg->reg == 5) && (m->c->cr4 & X86_CR4_DE))
        return fault(m, X86_UD);
    if (!write)
        *slot = (u64)do_get_debugreg(m->v, reg->reg);
    return !write || !do_set_debugreg(m->v, reg->reg, *slot) ? PV_EMULATED : PV_NOT_EMULATED;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void set_edx_eax(struct x86_cpu *c, u64 value)
{
    c->r[X86_RAX] = (u32)value;
    c->r[X86_RDX] = value >> 32;
}

static enum pv_emulated msr(struct emulation *m)
{
    struct x86_cpu *c = m->c;
    u32 nr = (u32)c->r[X86_RCX];
    u64 value = (u32)c->r[X86_RAX] | c->r[X86_RDX] << 32;
    if (m->i.opcode == 0x30)
        return pv_wrmsr(m->v, nr, value) ? PV_EMULATED : PV_NOT_EMULATED;
    if (!pv_rdmsr(m->v, nr, &value))
        return PV_NOT_EMULATED;
    set_edx_eax(c, value);
    return PV_EMULATED;
}

/* CR4.TSD is set, or it would not have faulted: the kernel may all the same. */
static enum pv_emulated tsc(struct emulation *m)
{
    set_edx_eax(m->c, host_now(m->v->host));
    if (m->i.opcode == 0x01)
        m->c->r[X86_RCX] = (u32)m->c->tsc_aux;
    return PV_EMULATED;
}

static enum pv_emulated kernel_only(struct emulation *m)
{
    switch (m->i.opcode) {
    case 0x01:                          /* rdtscp; its group's others (invlpg, lgdt, lmsw, swapgs, ...) stay faults */
        return m->i.modrm == 0xf9 ? tsc(m) : PV_NOT_EMULATED;
    case 0x06:
        m->c->cr0 &= ~X86_CR0_TS;
        return PV_EMULATED;
    case 0x09:                          /* wbinvd */
        return PV_EMULATED;
    case 0x20: case 0x21: case 0x22: case 0x23:
        return mov_cr_dr(m);
    case 0x30: case 0x32:
        return msr(m);
    case 0x31:
        return tsc(m);
    default:
        return PV_NOT_EMULATED;
    }
}

static enum pv_emulated execute(struct emulation *m)
{
    unsigned map = x86_forms[m->i.form].map;
    if (map == X86_MAP_0F)
        return m->v->kernel_mode ? kernel_only(m) : PV_NOT_EMULATED;
    if (map != X86_MAP_1)
        return PV_NOT_EMULATED;
    switch (m->i.opcode) {
    case 0x6c: case 0x6d: case 0x6e: case 0x6f:
        return string_io(m);
    case 0xe4: case 0xe5: case 0xe6: case 0xe7: case 0xec: case 0xed: case 0xee: case 0xef:
        return in_out(m);
    case 0xfa: case 0xfb:               /* cli, sti: the upcall mask is not theirs */
        return iopl_ok(m->v) ? PV_EMULATED : PV_NOT_EMULATED;
    default:
        return PV_NOT_EMULATED;
    }
}

/* ud2; "xen"; cpuid: a CPUID that the hypervisor answers on any hardware. Any other instruction behind the prefix is a #UD. */
static enum pv_emulated forced_cpuid(struct vcpu *v, const u8 *bytes, unsigned n)
{
    static const u8 FORCED[7] = { 0x0f, 0x0b, 'x', 'e', 'n', 0x0f, 0xa2 };
    struct x86_cpu *c = v->cpu;
    u32 out[4];
    if (n < sizeof FORCED || memcmp(bytes, FORCED, sizeof FORCED))
        return PV_NOT_EMULATED;
    pv_cpuid(c, (u32)c->r[X86_RAX], (u32)c->r[X86_RCX], out);
    c->r[X86_RAX] = out[0], c->r[X86_RBX] = out[1], c->r[X86_RCX] = out[2], c->r[X86_RDX] = out[3];
    c->r[X86_RIP] += sizeof FORCED;
    return PV_EMULATED;
}

/* As many of the 15 bytes at rip as are mapped. */
static unsigned fetch(struct vcpu *v, u8 bytes[15])
{
    const struct x86_cpu *c = v->cpu;
    u64 lin = c->mode == 64 ? c->r[X86_RIP] : (u32)(c->seg[X86_CS].base + c->r[X86_RIP]);
    unsigned in_page = (unsigned)(PAGE_SIZE - lin % PAGE_SIZE), n = in_page < 15 ? in_page : 15;
    if (mmu_read(v, bytes, lin, n, NULL))
        return 0;
    return n < 15 && !mmu_read(v, bytes + n, lin + n, 15 - n, NULL) ? 15 : n;
}

enum pv_emulated pv_emulate(struct vcpu *v, struct x86_exception *e)
{
    struct emulation m = { .v = v, .c = v->cpu, .e = e };
    u8 bytes[15];
    unsigned n = fetch(v, bytes);
    if (e->vector == X86_UD)
        return forced_cpuid(v, bytes, n);
    if (!n || x86_decode(&m.i, bytes, n, v->cpu->mode, v->cpu->features) <= 0)
        return PV_NOT_EMULATED;
    enum pv_emulated rc = execute(&m);
    if (rc == PV_EMULATED)
        v->cpu->r[X86_RIP] += m.i.len;
    return rc;
}
