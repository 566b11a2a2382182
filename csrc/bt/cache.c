/* The memory that translated code lives in, and the ways into and out of it.
 *
 * Owns: the cache's two views (one memfd, mapped executable and writable, never both), the routines at its start: enter, leave, and the
 * second-level TLB lookups. Called by: block.c, run.c. No locks.
 */
#define _GNU_SOURCE
#include "bt/emit.h"            /* before unistd.h, which has an F_LOCK of its own */

#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)

static bool map_views(struct bt *t)
{
    int fd = memfd_create("xenlike-bt", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (!ftruncate(fd, CACHE_BYTES)) {
        t->rw = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        t->rx = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
    }
    close(fd);
    if (t->rw == MAP_FAILED)
        t->rw = NULL;
    if (t->rx == MAP_FAILED)
        t->rx = NULL;
    return t->rw && t->rx;
}

bool bt_cache_possible(void)
{
    int fd = memfd_create("xenlike-bt", MFD_CLOEXEC);
    void *p = fd >= 0 && !ftruncate(fd, PAGE_SIZE) ? mmap(NULL, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (p != MAP_FAILED)
        munmap(p, PAGE_SIZE);
    if (fd >= 0)
        close(fd);
    return p != MAP_FAILED;
}

/* Guest registers that live in the host's: number n of both, but rsp. */
static bool same_register(unsigned n) { return n != R_SP && n < R_13; }

static void e_state(struct emit *e, bool store, unsigned reg, unsigned base, u32 disp)  /* mov between reg and [base + disp32] */
{
    e8(e, 0x48 | (reg >> 3) << 2 | base >> 3), e8(e, store ? 0x89 : 0x8b), e8(e, 0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == 4)
        e8(e, 0x24);
    e32(e, disp);
}
static void e_xmm(struct emit *e, bool store, unsigned xmm, unsigned base, u32 disp)    /* movups */
{
    e8(e, 0x40 | (xmm >> 3) << 2 | base >> 3), e8(e, 0x0f), e8(e, store ? 0x11 : 0x10), e8(e, 0x80 | (xmm & 7) << 3 | (base & 7)), e32(e, disp);
}
static void e_mxcsr_gs(struct emit *e, bool store, u32 disp) { e8(e, 0x65), e8(e, 0x0f), e8(e, 0xae), e8(e, store ? 0x1c : 0x14), e8(e, 0x25), e32(e, disp); }

#define R(n) ((u32)offsetof(struct x86_cpu, r) + 8 * (n))
static const u8 SAVED[6] = { R_BX, R_BP, R_12, R_13, R_14, R_15 };

/* void enter(struct x86_cpu *rdi, u64 entry rsi): loads the guest's state and goes there. GS is set. */
static void emit_enter(struct emit *e)
{
    for (unsigned n = 0; n < 6; n++) {
        if (SAVED[n] >= 8)
            e8(e, 0x41);
        e8(e, 0x50 | (SAVED[n] & 7));
    }
    e_bytes(e, (const u8[]){ 0x48, 0x83, 0xec, 0x08 }, 4);      /* sub rsp, 8 */
    e_store(e, R_SI, GS(entry));
    e_mxcsr_gs(e, true, GS(host_mxcsr));
    e8(e, 0x0f), e8(e, 0xae), e8(e, 0x97), e32(e, offsetof(struct x86_cpu, fx.mxcsr));  /* ldmxcsr [rdi + mxcsr] */
    for (unsigned n = 0; n < 16; n++)
        e_xmm(e, false, n, R_DI, (u32)offsetof(struct x86_cpu, fx.xmm) + 16 * n);
    for (unsigned n = 0; n < 3; n++) {
        e_state(e, false, R_AX, R_DI, R(13 + n));
        e_store(e, R_AX, GS(hi) + 8 * n);
    }
    e_state(e, false, R_CX, R_DI, (u32)offsetof(struct x86_cpu, rflags));
    e_bytes(e, (const u8[]){ 0x88, 0xcc, 0xc1, 0xe9, 0x0b, 0x83, 0xe1, 0x01, 0x88, 0xc8, 0x04, 0x7f, 0x9e }, 13);
                                                                /* mov ah, cl; shr ecx, 11; and ecx, 1; mov al, cl; add al, 7fh: OF; sahf: the others */
    e_state(e, false, GUEST_SP, R_DI, R(R_SP));
    for (unsigned n = 0; n < R_13; n++)
        if (same_register(n) && n != R_DI)
            e_state(e, false, n, R_DI, R(n));
    e_state(e, false, R_DI, R_DI, R(R_DI));
    e_jmp_gs(e, GS(entry));
}

/* Stores the guest's state and returns from enter; bt->exit says which exit it is. */
static void emit_leave(struct emit *e)
{
    e_store(e, SCRATCH, GS(lin));
    e_load(e, SCRATCH, GS(cpu));
    for (unsigned n = 0; n < R_13; n++)
        if (same_register(n))
            e_state(e, true, n, SCRATCH, R(n));
    e_state(e, true, GUEST_SP, SCRATCH, R(R_SP));
    e_bytes(e, (const u8[]){ 0x9f, 0x0f, 0x90, 0xc0 }, 4);      /* lahf; seto al */
    e_gs(e, false, 0x89, R_AX, GS(flags));
    for (unsigned n = 0; n < 3; n++) {
        e_load(e, R_AX, GS(hi) + 8 * n);
        e_state(e, true, R_AX, SCRATCH, R(13 + n));
    }
    for (unsigned n = 0; n < 16; n++)
        e_xmm(e, true, n, SCRATCH, (u32)offsetof(struct x86_cpu, fx.xmm) + 16 * n);
    e8(e, 0x41), e8(e, 0x0f), e8(e, 0xae), e8(e, 0x9e), e32(e, offsetof(struct x86_cpu, fx.mxcsr));     /* stmxcsr [r14 + mxcsr] */
    e_mxcsr_gs(e, false, GS(host_mxcsr));
    e_bytes(e, (const u8[]){ 0x48, 0x83, 0xc4, 0x08 }, 4);
    for (unsigned n = 6; n-- > 0; ) {
        if (SAVED[n] >= 8)
            e8(e, 0x41);
        e8(e, 0x58 | (SAVED[n] & 7));
    }
    e8(e, 0xc3);
}

/* Called by a cold stub: r14 the linear address, r15 the guest's rcx, rcx free, bt->exit set. Hit: returns with r15 = addend, rcx = negated,
 * bt->tmp = the guest's rcx. Miss: leaves. No flag changes. */
static void emit_l1(struct emit *e, unsigned set, unsigned write, unsigned size, bool aligned)
{
    e_store(e, R_15, GS(tmp));
    e_pext(e, true, R_CX, SCRATCH, GS(mask_l1));
    e_load_index8(e, R_15, R_CX, GS(l1_addend) + (set * 2 + write) * L1 * 8);
    e_load_index8(e, R_CX, R_CX, GS(l1_negated) + (set * 2 + write) * L1 * 8);
    e_store(e, R_CX, GS(tmp2));
    e_lea(e, true, R_CX, R_CX, SCRATCH, 0, aligned ? 0 : (s32)size - 1);
    e_pext(e, true, R_CX, R_CX, aligned ? GS(mask_aligned) : GS(mask_page));
    u32 hit = e_jrcxz(e);
    e_load(e, R_CX, GS(tmp));
    e_lea(e, true, R_SP, R_SP, NO_INDEX, 0, 8);
    e_jmp(e, e->t->leave);
    e_here(e, hit);
    e_load(e, R_CX, GS(tmp2));
    e8(e, 0xc3);
}

bool bt_cache_create(struct bt *t)
{
    if (!map_views(t))
        return false;
    struct emit e = { t, t->rw + 64, 64 };      /* offset 0 is no code */
    t->enter = e.at;
    emit_enter(&e);
    t->leave = e.at;
    emit_leave(&e);
    for (unsigned set = 0; set < 2; set++)
        for (unsigned write = 0; write < 2; write++)
            for (unsigned size = 1; size <= 17; size++)
                if (!(size & (size - 1)) || size == 17) {
                    t->l1_code[set][write][size - 1] = e.at;
                    emit_l1(&e, set, write, size, size == 17);
                }
    t->start = t->used = ALIGN_UP(e.at, 64);
    return true;
}

void bt_cache_destroy(struct bt *t)
{
    if (t->rw)
        munmap(t->rw, CACHE_BYTES);
    if (t->rx)
        munmap(t->rx, CACHE_BYTES);
}

/* One aligned or unaligned store of four bytes by the thread that executes them: nothing to wait for. */
void bt_cache_patch(struct bt *t, u32 at, u32 target)
{
    u32 d = target - at - 4;
    memcpy(t->rw + at, &d, 4);
}

#endif
